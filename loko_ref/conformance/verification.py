"""Verify an implementation from Python: the same checks, verdicts and names as the command's."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from loko_ref.checks.signatures import NoneType, check_type
from loko_ref.checks.values import check_range
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import TIMEOUT, Check, run, settle
from loko_ref.conformance.implementations import recording
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.implementations.python import Implementation, hold, load
from loko_ref.conformance.recorded import check as check_recording
from loko_ref.conformance.recorded import first as first_off
from loko_ref.conformance.reports import expected_failures
from loko_ref.conformance.reports.report import Report
from loko_ref.conformance.reports.text import PYTHON
from loko_ref.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["LONGEST", "naming", "verify", "verify_recording"]

LONGEST = 1e9
"""Seconds that a timer of the system can hold, all but a factor of 9."""

COMMAND = "--cmd "
"""What a command begins with where it is one text."""


@contextlib.contextmanager
def naming(**names: str) -> Iterator[None]:
    """Let an InputError call arguments by other names: old name -> new name.

    Underscores of an old name stand for the dashes of an option.
    """
    try:
        yield
    except InputError as error:
        for name, new in names.items():
            old = name.replace("_", "-")
            rest = error.argument.removeprefix(old)
            if error.argument.startswith(old) and not rest[:1].isalnum():
                raise InputError(new + rest, error.got, error.required, error.cause) from None
        raise


def _open(
    implementation: object, timeout: float | None, large: int | None
) -> tuple[Implementation | Command, str]:
    """Find what is to be verified; return it with its name on the command line."""
    if isinstance(implementation, os.PathLike):
        implementation = os.fspath(implementation)
    if isinstance(implementation, str) and not implementation.startswith(COMMAND):
        return load(implementation, timeout), implementation
    if isinstance(implementation, str | list | tuple):
        command = _command(implementation)
        return Command(command, large, timeout), f"{COMMAND}{shlex.quote(command)}"
    if isinstance(implementation, ModuleType):
        name = implementation.__name__
        known = name != "__main__" and sys.modules.get(name) is implementation
        shown = name if known else f"{PYTHON}module {name}"
    else:
        shown = f"{PYTHON}{type(implementation).__name__}"
    return hold(implementation, shown), shown


def _command(words: str | Sequence[object]) -> str:
    """Write a command as one text, as it would be typed."""
    if not isinstance(words, str):
        parts = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in words]
        for k, part in enumerate(parts):
            check_type(f"implementation[{k}]", part, str, "a command's word that is no text")
        return shlex.join(map(str, parts))
    text = words.removeprefix(COMMAND)
    with contextlib.suppress(ValueError):  # of an open quotation, which Command reports
        typed = shlex.split(text)
        return typed[0] if len(typed) == 1 else text
    return text


def verify(
    implementation: Mapping[str, Callable[..., Mapping[str, ArrayLike]]]
    | ModuleType
    | str
    | os.PathLike[str]
    | Sequence[str]
    | object,
    *,
    only: str | None = None,
    dtype: Literal["float64", "float32"] | None = None,
    timeout: float | None = TIMEOUT,
    xfail: str | os.PathLike[str] | Mapping[str, str] | None = None,
    large: int | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check an implementation against the oracle, as ``loko-ref verify`` does.

    Parameters
    ----------
    implementation
        One of:

        * a mapping from operation name to function; ``loko-ref operations`` describes them;
        * a module or another object that holds the mapping as ``IMPLEMENTATION``, or functions by
          the operations' names with ``_`` for ``.``, such as ``lora_delta``;
        * a path to a Python file, ``package.module``, or either with ``:attribute``;
        * a command that speaks ``loko-ref protocol``: its words as a list, or one text
          ``"--cmd ..."``.
    only : str, optional
        Glob of case ids or operations.
    dtype : {"float64", "float32"}, optional
        Both by default.
    timeout : float or None
        Seconds in (0, 1e9] for each check, for the import of a file, and for a command's first
        answer; None for no limit.
    xfail : path-like or mapping of str to str, optional
        Expected failures: a file with one ``id: reason`` per line, or id -> reason.
    large : int, optional
        Of a command: bytes >= 0 from which an array goes by file.
    strict : bool
        Whether results that are imprecise (right, by an algorithm that loses digits) fail.
    progress : callable, optional
        Called after each check with the number done and that of all.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        If an argument cannot be used, such as an implementation without an operation.

    Examples
    --------
    >>> def delta(A, B, alpha):
    ...     return {"delta": alpha * (B @ A)}
    >>> report = verify({"lora.delta": delta}, only="lora.delta/tiny/float64")
    >>> report.passed, report.failures[0].quantity, report.failures[0].mistake
    (False, 'delta', 'SCALE-ALPHA')
    """
    check_type("only", only, (str, NoneType), "a list of globs in place of one")
    check_type("strict", strict, bool, "a text in place of True or False")
    if timeout is not None:
        check_range("timeout", timeout, low=0, low_open=True, high=LONGEST)
    text = isinstance(implementation, str) and implementation.startswith(COMMAND)
    if large is not None:
        check_type("large", large, int, "a text in place of a number")
        if large < 0 or not (text or isinstance(implementation, list | tuple)):
            raise InputError("large", large, "bytes >= 0, with a command", "no other reads files")
    cases = select(only, dtype)
    expected = {} if xfail is None else expected_failures.read(xfail)
    done = itertools.count(1)

    def count(check: Check) -> None:
        if progress is not None:
            progress(next(done), len(cases))

    with naming(TARGET="implementation", __cmd="implementation"):
        found, shown = _open(implementation, timeout, large)
    with found if isinstance(found, Command) else contextlib.nullcontext():
        checks = run(found, cases, timeout=timeout, progress=count, again=True)
    mistakes = name_mistakes(checks)
    named = {key for key, fits in mistakes.items() if any(one.sharp for one in fits)}
    checks = settle(checks, named=named, strict=strict)
    statuses = [(check.case.id, check.status) for check in checks]
    return Report(
        target=shown,
        checks=tuple(checks),
        notes=(*found.notes, *expected_failures.not_run(statuses, expected)),
        mistakes=mistakes,
        expected=expected,
    )


def verify_recording(
    path: str | os.PathLike[str],
    options: Mapping[str, str | float | bool] | Sequence[str] = (),
    *,
    only: str | None = None,
) -> Report:
    """Check a recording of a run quantity by quantity, as ``loko-ref verify --trace`` does.

    Parameters
    ----------
    path : path-like
        ``.npz`` or ``.safetensors`` with arrays ``k/name``: quantity `name` of step k.
    options : mapping or sequence of str
        Options of ``loko.step`` that the run had, name -> value or ``NAME=VALUE``.
    only : str, optional
        Glob of ids (``trace/3/S``) or quantities (``trace.S``).

    Returns
    -------
    Report

    Raises
    ------
    InputError
        If the recording or an option cannot be used.
    """
    check_type("path", path, (str, os.PathLike), "the arrays in place of their file")
    check_type("options", options, (Mapping, list, tuple), "one option in place of several")
    pairs = options.items() if isinstance(options, Mapping) else None
    words = [f"{name}={value}" for name, value in pairs] if pairs is not None else list(options)
    with naming(__trace="path", __option="options", __only="only"):
        read = recording.read(os.fspath(path), words)
        checks = check_recording(read, only)
    first = first_off(checks)
    shown = f"--trace {shlex.quote(str(path))}"
    shown += "".join(f" --option {shlex.quote(word)}" for word in words)
    return Report(
        target=shown,
        checks=tuple(checks),
        notes=(*read.notes, *([] if first is None else [first])),
        mistakes=name_mistakes(checks),
    )
