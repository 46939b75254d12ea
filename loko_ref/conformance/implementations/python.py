"""Python code under test: loading it, calling it on one case, and reporting faults.

Whatever it does (fails to import, raises, returns no mapping, mutates its inputs, does not return),
the outcome is a finding or an InputError, never a traceback of this package.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol

import numpy as np

from loko_ref.arrays import read_array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.catalogue.registry import VERSION
from loko_ref.conformance.implementations.target import (
    check_place,
    collect,
    stated_catalogue,
    stated_options,
    too_new,
)
from loko_ref.conformance.judge.answer import NOT_OFFERED, Answer, Finding, check, describe, words
from loko_ref.conformance.judge.declared import read_precision
from loko_ref.errors import InputError, shown
from loko_ref.files.reading import open_file

MOST = 1000
"""Most names read from a result."""

SOURCE_LIMIT = 16 * 2**20
"""Most bytes of a Python file."""


class Runnable(Protocol):
    """An implementation that can be verified: in this process, or a command."""

    def run(self, case: Case, timeout: float | None = None) -> Answer:
        """Run one case."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Implementation:
    """A mapping from operation name to function, and the target that holds it."""

    target: str  # as given on the command line
    functions: Mapping[str, Callable[..., Any]]  # operation name -> function
    notes: tuple[str, ...] = ()  # remarks on names that are not operations
    catalogue: int = VERSION  # version of the catalogue that it states that it was written for
    # the one value that it has of an option, name -> value: its functions need no parameter
    options: Mapping[str, Any] = field(default_factory=dict)
    # the precision that it states, quantity -> format; that of "" is all others'
    precision: Mapping[str, str] = field(default_factory=dict)

    def having(self, options: Mapping[str, Any]) -> Implementation:
        """Return it with more options that it has one value of."""
        return replace(self, options={**self.options, **options})

    def run(self, case: Case, timeout: float | None = None) -> Answer:
        """Call the function of the case's operation on new copies of the inputs."""
        function = self.functions.get(case.operation.name)
        if function is None:
            return Answer(declined=NOT_OFFERED)
        return call(function, case, timeout, self.catalogue, self.options)


class _TimeOutError(BaseException):
    """Raised inside the code under test; no ``except Exception`` catches it."""


class _InterruptError(BaseException):
    """The user's interrupt, as opposed to a KeyboardInterrupt raised by the code itself."""


@contextlib.contextmanager
def _guarded(seconds: float | None) -> Iterator[None]:
    """Interrupt Python code after some seconds, and mark interrupts by the user.

    Both use signals, and work only in the main thread of a POSIX process. A call inside compiled
    code is interrupted when it returns to Python; code that catches the interruption is interrupted
    again every tenth of a second.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    start, over, interrupted = time.monotonic(), False, False

    def stop(number: int, frame: FrameType | None) -> None:
        if not over:
            raise _TimeOutError

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        answer = answers[number]
        if callable(answer):
            answer(number, frame)

    answers = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number, answer in answers.items():
        if callable(answer):
            signal.signal(number, interrupt)
    alarm = signal.signal(signal.SIGALRM, stop)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds or 0, 0.1)
    try:
        yield
    except KeyboardInterrupt:
        if interrupted:
            raise _InterruptError from None
        raise
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for number, answer in answers.items():
            if callable(answer):
                signal.signal(number, answer)
        if left:  # restore an earlier timer, such as a test runner's
            left = max(left - (time.monotonic() - start), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, every)


def _module_of(target: str, timeout: float | None) -> tuple[ModuleType, str]:
    """Import the file or module of a target; return it with the attribute's name."""
    place, colon, attribute = target.rpartition(":")
    if not colon or attribute.endswith((".py", "/", "\\")) or "/" in attribute:
        place, attribute = target, "IMPLEMENTATION"
    check_place(target, place)
    path = Path(place)
    try:
        if path.suffix == ".py" or (path.exists() and not path.is_dir()):
            open_file(path, "TARGET", SOURCE_LIMIT).close()  # importing a FIFO would block
            name = f"loko_ref_target_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            folder = str(path.parent.resolve())
            if folder not in sys.path:
                sys.path.insert(0, folder)  # so that it can import modules beside it
            sys.modules[name] = module
            with _guarded(timeout), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                spec.loader.exec_module(module)
            return module, attribute
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        with _guarded(timeout), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(place), attribute
    except InputError:
        raise
    except _TimeOutError:
        raise InputError(
            "TARGET",
            f"{target!r}, which was not imported within {timeout:g} s",
            "a Python file, a module or module:attribute that can be imported",
            "it blocks, or computes at import; --timeout sets a longer limit",
        ) from None
    except _InterruptError:
        raise KeyboardInterrupt from None
    except BaseException as error:
        raise InputError(
            "TARGET",
            f"{shown(target)}, which fails to import: {describe(error, __file__)}",
            "a Python file, a module or module:attribute that can be imported",
            "an error in the implementation's own code, a missing package, or a misspelt name",
        ) from None


def load(target: str, timeout: float | None = None) -> Implementation:
    """Import a target and return its mapping of operations.

    Parameters
    ----------
    target : str
        ``path/to/file.py``, ``package.module``, or either followed by ``:attribute``; the attribute
        is ``IMPLEMENTATION`` by default.
    timeout : float, optional
        Seconds until its import is interrupted, as in :func:`call`.

    Returns
    -------
    Implementation

    Raises
    ------
    InputError
        If it fails to import, or has no mapping from operation name to function.
    """
    module, attribute = _module_of(target, timeout)
    return hold(module, target, attribute)


def hold(holder: object, target: str, attribute: str = "IMPLEMENTATION") -> Implementation:
    """Make an implementation of what :func:`collect` finds in a mapping, module or object."""
    functions, notes = collect(holder, target, attribute)
    catalogue = stated_catalogue("CATALOGUE", getattr(holder, "CATALOGUE", None))
    options = stated_options("OPTIONS", getattr(holder, "OPTIONS", None))
    return Implementation(
        target=target,
        functions=functions,
        notes=notes,
        catalogue=catalogue,
        options=options,
        precision=read_precision("PRECISION", getattr(holder, "PRECISION", None)),
    )


def _keywords(
    function: Callable[..., Any], case: Case, catalogue: int, stated: Mapping[str, Any]
) -> dict[str, Any] | Answer:
    """Return the keywords of the call, without defaults for which it has no parameter."""
    operation = case.operation
    given: dict[str, Any] = {**case.inputs(), **copy.deepcopy(case.options)}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return given
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    taken, optional = {p.name for p in named}, {i.name for i in operation.inputs if i.optional}
    for p in named:
        if p.default is p.empty and p.name in optional and p.name not in given:
            return Answer(declined=f"it needs the input '{p.name}', which this case does not give")
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        newer = [name for name in case.newer(catalogue) if name not in taken]
        if newer:
            return Answer(declined=too_new(newer, catalogue))
        gone = case.options.keys() - operation.known(case.options, catalogue).keys() - taken
        return {name: value for name, value in given.items() if name not in gone}
    defaults = {o.name: o.default for o in operation.options} | dict(stated)
    left = [name for name in given if name not in taken]
    known = [name for name in left if name in case.options and defaults[name] is not None]
    lacking = tuple(name for name in known if given[name] != defaults[name])
    if lacking:
        sets = f"which this case sets to {given[lacking[0]]!r}"
        return Answer(declined=f"it takes no option '{lacking[0]}', {sets}", lacking=lacking)
    for name in left:
        if name in known:
            del given[name]
        elif name in optional:
            return Answer(declined=f"it takes no input '{name}', which this case gives")
        else:
            return Answer(
                finding=Finding(
                    kind="signature", message=f"the function takes no parameter '{name}'"
                )
            )
    return given


def _same_bytes(a: Any, b: Any) -> bool:
    return (
        isinstance(a, np.ndarray)
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.tobytes() == b.tobytes()
    )


def _mutated(given: Mapping[str, Any], fresh: Mapping[str, Any]) -> str | None:
    """Return the name of the first input that has changed, or None."""
    for name, value in fresh.items():
        now = given.get(name)
        if isinstance(value, Mapping):
            if not isinstance(now, Mapping) or set(now) != set(value):
                return name
            inner = _mutated(now, value)
            if inner is not None:
                return f"{name}['{inner}']"
        elif isinstance(value, np.ndarray) and not _same_bytes(now, value):
            return name
    return None


def _plain(result: Any) -> Any:
    """Return a mapping's items as a dict, while the code under test may still be interrupted."""
    if not isinstance(result, Mapping):
        return result
    plain = {}
    for name in itertools.islice(result, MOST):
        value = plain[name] = result[name]
        if not isinstance(value, np.ndarray) and hasattr(value, "__array__"):
            with contextlib.suppress(Exception):  # `check` meets it again, and reports it
                plain[name] = np.array(read_array(value))
    return plain


def call(
    function: Callable[..., Any],
    case: Case,
    timeout: float | None = None,
    catalogue: int = VERSION,
    stated: Mapping[str, Any] | None = None,
) -> Answer:
    """Call a function on a case's inputs and check the form of what it returns.

    Whatever it raises is a finding, SystemExit and KeyboardInterrupt too. It runs in this process:
    code that ends the process (``os._exit``, a crash of compiled code) or never returns from
    compiled code ends or blocks the run; run such code as a command (``--cmd``).

    Parameters
    ----------
    function : callable
        Takes inputs and options as keywords.
    timeout : float, optional
        Seconds after which it is interrupted (Python code, main thread, POSIX).
    catalogue : int
        Version of the catalogue that it was written for: what came later is passed to parameters
        of its own alone, never to ``**keywords``.
    stated : mapping, optional
        The one value that it has of an option: it needs no parameter for it.
    """
    keywords = _keywords(function, case, catalogue, stated or {})
    if isinstance(keywords, Answer):
        return keywords
    given = dict(keywords)
    process = os.getpid()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), _guarded(timeout):
            warnings.simplefilter("ignore")
            result = _plain(function(**keywords))
    except NotImplementedError as error:
        text = words(error)
        return Answer(declined="it declines (NotImplementedError" + (f": {text})" if text else ")"))
    except _TimeOutError:
        message = f"did not return within {timeout:g} s"
        return Answer(finding=Finding(kind="timeout", message=message))
    except _InterruptError:
        raise KeyboardInterrupt from None
    except BaseException as error:
        return Answer(finding=Finding(kind="raised", message=f"raised {describe(error, __file__)}"))
    finally:
        if os.getpid() != process:  # a fork made by the code under test must not report
            os._exit(0)
    changed = _mutated(given, case.inputs())
    if changed is None and given.get("spec") != case.options.get("spec"):
        changed = "spec"
    if changed is not None:
        message = f"changed its input '{changed}' in place"
        return Answer(finding=Finding(kind="mutated", message=message))
    return check(result, case)
