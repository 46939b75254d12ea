"""Whatever a function does short of ending its process, its check ends and the report is whole."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import faulty_functions
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.errors import InputError

FILE = Path(faulty_functions.__file__)
CASES = select("lora.delta/tiny/float64")
TIMEOUT = 0.3

FOUND = {
    "sleeps": ("timeout", "did not return within 0.3 s"),
    "loops": ("timeout", "did not return within 0.3 s"),
    "tries_again": ("timeout", "did not return within 0.3 s"),
    "exits": ("raised", "raised SystemExit: 0"),
    "recurses": ("raised", "raised RecursionError: maximum recursion depth exceeded"),
    "interrupts": ("raised", "raised KeyboardInterrupt"),
    "takes_all_memory": ("raised", "raised MemoryError"),
    "stops_iterating": ("raised", "raised StopIteration"),
    "generates": ("result", "returned generator in place of a mapping"),
    "prints": None,
    "warns": ("raised", "raised DeprecationWarning: this is an old way"),
    "forks": None,
    "leaves_a_thread": None,
    "raises_without_text": ("raised", "raised Unprintable: (its text fails with RuntimeError)"),
    "raises_with_hostile_text": ("raised", r"raised ValueError: \ud800\x1b[31m[/bold]mmm"),
    "returns_an_endless_mapping": ("output", "returned '0', which is no output of lora.delta"),
    "returns_a_slow_mapping": ("timeout", "did not return within 0.3 s"),
    "returns_what_exits": ("raised", "raised SystemExit: 3"),
    "returns_what_sleeps": ("timeout", "did not return within 0.3 s"),
    "returns_numbered_names": ("output", "returned 1, which is no output of lora.delta"),
    "takes_the_alarm": None,
}


def test_all_functions_are_tried():
    assert set(FOUND) == set(faulty_functions.FUNCTIONS)


@pytest.mark.parametrize("name", [n for n in FOUND if n != "leaves_a_thread"])
def test_what_a_function_does_is_a_finding(name):
    """In time, the signals as they were after it, and the next check goes on."""
    functions = {"lora.delta": faulty_functions.FUNCTIONS[name]}
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)
    timer = signal.getitimer(signal.ITIMER_REAL)[0]
    start = time.monotonic()
    (check,) = run(Implementation(target="t", functions=functions), CASES, timeout=TIMEOUT)
    assert time.monotonic() - start < TIMEOUT + 1 + 4  # slack for a loaded machine
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)) == before
    assert abs(signal.getitimer(signal.ITIMER_REAL)[0] - timer) < 20
    assert timer or not any(signal.getitimer(signal.ITIMER_REAL))
    if FOUND[name] is None:
        assert check.status == "passed"
        return
    kind, message = FOUND[name]
    assert check.finding.kind == kind
    assert check.finding.message.startswith(message)
    assert check.finding.message.isprintable()
    assert len(check.finding.message) < 500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_from_outside_is_one(number):
    """One that a handler turns into a KeyboardInterrupt ends the run, not the check alone."""

    def handle(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(number, handle)
    functions = {"lora.delta": faulty_functions.FUNCTIONS["sleeps"]}
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            run(Implementation(target="t", functions=functions), CASES, timeout=20)
        assert signal.getsignal(number) is handle
        timer.join(10)
    finally:
        signal.signal(number, before)


def test_another_timer_goes_on():
    """As of a test runner: it is set back, with the time that it has left."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    kept = signal.setitimer(signal.ITIMER_REAL, 100, 7)
    try:
        run(Implementation(target="t", functions={"lora.delta": faulty_functions.right}), CASES)
        left, every = signal.getitimer(signal.ITIMER_REAL)
        assert 50 < left <= 100
        assert every == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, *kept)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", faulty_functions.WHILE_IMPORTED)
def test_what_a_module_does_while_imported_is_one_error(name, tmp_path):
    path = tmp_path / f"imported_{name}.py"
    path.write_text(faulty_functions.WHILE_IMPORTED[name], encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(InputError, match="TARGET: got") as error:
        load(str(path), TIMEOUT)
    assert time.monotonic() - start < TIMEOUT + 1 + 4
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


def test_a_thread_that_never_ends_holds_up_nothing():
    """The report stands, and the process ends soon after it with the code of the report."""
    code = (
        "import sys; from loko_ref.cli.commands import verify; verify.LEAVING = 0.2; "
        "from loko_ref.cli import main; main()"
    )
    start = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "verify", f"{FILE}:leaves_a_thread"),
            *("--only", "lora.delta/tiny/float64"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "PASSED: 1 of 1" in done.stdout
    assert time.monotonic() - start < 60
