"""Functions that do what a function should not, each an implementation of its own.

``loko-ref verify faulty_functions.py:NAME``; the last part is done while a module is imported.
"""

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping

import numpy as np


def right(A, B, alpha):
    return {"delta": (alpha / len(A) * (B @ A)).astype(A.dtype)}


def sleeps(A, B, alpha):
    time.sleep(300)


def loops(A, B, alpha):
    while True:
        pass


def tries_again(A, B, alpha):
    """What interrupts it is caught, a few times."""
    for _ in range(5):
        try:
            time.sleep(300)
        except BaseException:
            continue
    time.sleep(300)


def exits(A, B, alpha):
    sys.exit(0)


def recurses(A, B, alpha):
    def again():
        return again()

    return again()


def interrupts(A, B, alpha):
    raise KeyboardInterrupt


def takes_all_memory(A, B, alpha):
    raise MemoryError


def stops_iterating(A, B, alpha):
    raise StopIteration


def generates(A, B, alpha):
    yield {"delta": A}


def prints(A, B, alpha):
    for _ in range(10_000):
        print("computing ...", file=sys.stderr)
    return right(A, B, alpha)


def warns(A, B, alpha):
    warnings.simplefilter("error")
    warnings.warn("this is an old way", DeprecationWarning, stacklevel=1)


def forks(A, B, alpha):
    """Twice back: in the child too."""
    os.fork()
    return right(A, B, alpha)


def leaves_a_thread(A, B, alpha):
    threading.Thread(target=time.sleep, args=(300,)).start()
    return right(A, B, alpha)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def raises_without_text(A, B, alpha):
    raise Unprintable


def raises_with_hostile_text(A, B, alpha):
    raise ValueError("\ud800\x1b[31m[/bold]" + "m" * 100_000)


class Endless(Mapping):
    """A mapping of every number."""

    def __getitem__(self, key):
        return np.ones(1)

    def __iter__(self):
        return map(str, itertools.count())

    def __len__(self):
        return 1


class Slow(Mapping):
    """A mapping that does not come to its first name."""

    def __getitem__(self, key):
        raise KeyError(key)

    def __iter__(self):
        time.sleep(300)
        return iter(())

    def __len__(self):
        return 1


def returns_an_endless_mapping(A, B, alpha):
    return Endless()


def returns_a_slow_mapping(A, B, alpha):
    return Slow()


class NoArray:
    def __array__(self, *arguments, **more):
        sys.exit(3)


class SlowArray:
    def __array__(self, *arguments, **more):
        time.sleep(300)


def returns_what_exits(A, B, alpha):
    return {"delta": NoArray()}


def returns_what_sleeps(A, B, alpha):
    return {"delta": SlowArray()}


def returns_numbered_names(A, B, alpha):
    return {1: A, None: B}


def takes_the_alarm(A, B, alpha):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return right(A, B, alpha)


FUNCTIONS = {
    name: function
    for name, function in globals().items()
    if callable(function) and getattr(function, "__module__", "") == __name__
    if not isinstance(function, type) and name != "right"
}
globals().update({name: {"lora.delta": function} for name, function in FUNCTIONS.items()})

WHILE_IMPORTED = {
    "sleep": "import time; time.sleep(300)",
    "loop": "while True: pass",
    "exit": "import sys; sys.exit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "recursion": "def f(): f()\nf()",
    "syntax": "def",
    "nul": "x = '\0'",
    "text": "raise ValueError('\\ud800\\x1b[31m' + 'm' * 100_000)",
    "deep": "(" * 5000 + ")" * 5000,
}
