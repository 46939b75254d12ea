"""Verify an implementation from Python: the same checks, verdicts and names as the command's."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from loko_ref.checks.signatures import NoneType, check_type
from loko_ref.checks.values import check_range
from loko_ref.conformance.cases.chosen import choose, in_the_way, read_options, written
from loko_ref.conformance.cases.globs import matcher, nothing_matches
from loko_ref.conformance.diagnose.baseline import compare
from loko_ref.conformance.diagnose.baseline import read as read_baseline
from loko_ref.conformance.diagnose.naming import Mistake, name_mistakes
from loko_ref.conformance.diagnose.search.again import Again, calling
from loko_ref.conformance.engine import TIMEOUT, Check, judge, run, settle, summarise
from loko_ref.conformance.implementations import recording_runs
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.implementations.python import Implementation, hold, load
from loko_ref.conformance.implementations.recording import Recording
from loko_ref.conformance.judge.answer import Answer
from loko_ref.conformance.judge.answer import check as check_form
from loko_ref.conformance.judge.declared import NONE
from loko_ref.conformance.recorded import check as check_recording
from loko_ref.conformance.recorded import first as first_off
from loko_ref.conformance.recorded_runs import check as check_run
from loko_ref.conformance.reports import expected_failures
from loko_ref.conformance.reports.report import Report
from loko_ref.conformance.reports.text import CASE, OFFLINE, PYTHON
from loko_ref.conformance.stated import noted
from loko_ref.conformance.user_inputs import read_case
from loko_ref.conformance.vectors import answers as offline
from loko_ref.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LONGEST = 1e9
"""Seconds that a timer of the system can hold, all but a factor of 9."""

COMMAND = "--cmd "
"""What a command begins with where it is one text."""


@contextlib.contextmanager
def naming(**names: str) -> Iterator[None]:
    """Rename arguments in an InputError: old name -> new name.

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


def open_implementation(
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


def _read_baseline(
    path: str | os.PathLike[str] | None,
) -> tuple[str | os.PathLike[str], dict[str, Any]] | None:
    """Read an earlier report; return it with its name."""
    check_type("baseline", path, (str, os.PathLike, NoneType), "a report in place of its file")
    return None if path is None else (path, read_baseline(path))


def _settled(
    checks: Sequence[Check], strict: bool = False, again: Again | None = None
) -> tuple[list[Check], dict[str, list[Mistake]]]:
    """Name the mistakes of a run, and settle what is imprecise in their light."""
    mistakes = name_mistakes(checks, again)
    named = {key for key, fits in mistakes.items() if any(one.sharp for one in fits)}
    return settle(checks, named=named, strict=strict), mistakes


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
    options: Mapping[str, str | float | bool] | Sequence[str] = (),
    timeout: float | None = TIMEOUT,
    xfail: str | os.PathLike[str] | Mapping[str, str] | None = None,
    large: int | None = None,
    case: str | os.PathLike[str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
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
    options : mapping or sequence of str
        What the implementation has one value of, name -> value or ``NAME=VALUE``: cases with these
        options are selected, or built where no case has a number; its functions need no parameter
        for them. An attribute ``OPTIONS`` of the implementation, a mapping, states them once.
        Another one, ``PRECISION``, states a format ("bfloat16", "float16", "tf32", "float32") that
        is coarser than the inputs' dtype, or one of each such quantity; ``{"Z": "bfloat16"}``.
    timeout : float or None
        Seconds in (0, 1e9] for each check, for the import of a file, and for a command's first
        answer; None for no limit.
    xfail : path-like or mapping of str to str, optional
        Expected failures: a file with one ``id: reason`` per line, or id -> reason.
    large : int, optional
        Of a command: bytes >= 0 from which an array goes by file.
    case : path-like, optional
        In place of the catalogue's cases: one that
        :func:`loko_ref.conformance.user_inputs.save_case` has written.
    baseline : path-like, optional
        An earlier report, as JSON: the report states what changed since.
    strict : bool
        Whether results that are imprecise (right, by an algorithm that loses digits) fail; stated
        precision excuses nothing then.
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
    check_type("options", options, (Mapping, list, tuple), "one option in place of several")
    given = read_options("options", options)
    if case is not None and (given or only is not None or dtype is not None):
        required = "without only, dtype and options"
        raise InputError("case", case, required, "a file holds one case")
    # both raise before code that is not ours is run
    cases = [] if case is None else [read_case(case, "case")]
    if case is None and "+" not in (only or ""):  # no case that the code's own options build
        choose(given, only, dtype)
    old = _read_baseline(baseline)
    expected = {} if xfail is None else expected_failures.read(xfail)
    done = itertools.count(1)

    def count(check: Check) -> None:
        if progress is not None:
            progress(next(done), len(cases))

    with naming(TARGET="implementation", __cmd="implementation"):
        found, shown = open_implementation(implementation, timeout, large)
    if case is None:
        found = found.having(given)
        cases = choose(found.options, only, dtype)
    with found if isinstance(found, Command) else contextlib.nullcontext():
        declared = NONE if strict else found.precision
        checks = run(found, cases, timeout=timeout, progress=count, again=True, declared=declared)
        checks, mistakes = _settled(checks, strict, calling(found, timeout))
    of_file = [] if case is None else [f"{CASE.strip()} {shlex.quote(os.fspath(case))}"]
    statuses = [(check.case.id, check.status) for check in checks]
    notes = [*found.notes, *noted(found.precision, checks, strict)]
    notes += expected_failures.not_run(statuses, expected)
    if not summarise(checks).ran:
        has = found.operations if isinstance(found, Command) else found.functions
        way = in_the_way((c.case, c.lacking) for c in checks if c.case.operation.name in has)
        if any("not filled in" in (c.reason or "") for c in checks):
            way = "nothing is filled in yet of what 'loko-ref init' wrote"
        notes += [way] if way else []
    return Report(
        target=" ".join([shown, *(f"--option {word}" for word in written(given)), *of_file]),
        checks=tuple(checks),
        notes=tuple(notes),
        mistakes=mistakes,
        expected=expected,
        changes=None if old is None else compare(*old, checks, mistakes),
        precision=found.precision,
    )


def verify_answers(
    folder: str | os.PathLike[str],
    answers: str | os.PathLike[str],
    *,
    only: str | None = None,
    xfail: str | os.PathLike[str] | Mapping[str, str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Judge outputs that were computed elsewhere, as ``loko-ref vectors judge`` does.

    Parameters
    ----------
    folder : path-like
        Golden vectors: what ``loko-ref vectors export`` wrote.
    answers : path-like
        The outputs for their inputs: a folder with one ``.npz``, ``.safetensors`` or ``.json`` a
        case, or one such file of all; :mod:`loko_ref.conformance.vectors.answers` has the forms.
    only : str, optional
        Glob of case ids or operations.
    xfail : path-like or mapping of str to str, optional
    baseline : path-like, optional
        As for :func:`verify`.
    strict : bool
        As for :func:`verify`.
    progress : callable, optional
        As for :func:`verify`.

    Returns
    -------
    Report
        A case without an answer is unsupported.

    Raises
    ------
    InputError
        If a file cannot be used, or an answer is to no case of `folder`.
    """
    for name, value in {"folder": folder, "answers": answers}.items():
        check_type(name, value, (str, os.PathLike), "the arrays in place of their file")
    check_type("only", only, (str, NoneType), "a list of globs in place of one")
    old = _read_baseline(baseline)
    expected = {} if xfail is None else expected_failures.read(xfail)
    with naming(DIR="folder", ANSWERS="answers", __only="only"):
        matches = matcher("--only", only)
        every = offline.cases_of(os.fspath(folder))
        cases = [case for case in every if matches(case.id) or matches(case.operation.name)]
        if not cases:
            raise nothing_matches("--only", only, [c.id for c in every], "manifest.json of DIR")
        given = offline.read_answers(os.fspath(answers), every)
        precision = offline.read_stated(os.fspath(answers))
    judged: list[Check] = []
    for case in cases:
        answer = Answer(declined="it has no answer")
        if case.id in given:
            answer = check_form(given[case.id], case)
        judged.append(judge(case, answer, NONE if strict else precision))
        if progress is not None:
            progress(len(judged), len(cases))
    checks, mistakes = _settled(judged, strict)
    statuses = [(check.case.id, check.status) for check in checks]
    return Report(
        target=f"{OFFLINE}{shlex.join([os.fspath(folder), os.fspath(answers)])}",
        checks=tuple(checks),
        notes=(*noted(precision, checks, strict), *expected_failures.not_run(statuses, expected)),
        mistakes=mistakes,
        expected=expected,
        changes=None if old is None else compare(*old, checks, mistakes),
        precision=precision,
    )


def verify_recording(
    path: str | os.PathLike[str],
    options: Mapping[str, str | float | bool] | Sequence[str] = (),
    *,
    only: str | None = None,
    baseline: str | os.PathLike[str] | None = None,
    strict: bool = False,
) -> Report:
    """Check a recording of a run quantity by quantity, as ``loko-ref verify --trace`` does.

    Parameters
    ----------
    path : path-like
        ``.npz`` or ``.safetensors`` with arrays ``k/name``: quantity `name` of step k. Those of
        LTE and of the optimizers are laid out as
        :mod:`loko_ref.conformance.implementations.recording_runs` states.
    options : mapping or sequence of str
        Options that the run had, name -> value or ``NAME=VALUE``: of ``loko.step``, or of the
        operation that the option ``operation`` names.
    only : str, optional
        Glob of ids (``trace/3/S``) or quantities (``trace.S``).
    baseline : path-like, optional
    strict : bool
        As for :func:`verify`.

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
    old = _read_baseline(baseline)
    with naming(__trace="path", __option="options", __only="only"):
        read = recording_runs.read(os.fspath(path), words)
        precision = read.precision
        read = replace(read, precision={}) if strict else read
        if isinstance(read, Recording):
            checks = check_recording(read, only)
        else:
            checks = check_run(read, only)
    checks, mistakes = _settled(checks, strict)
    first = first_off(checks)
    shown = f"--trace {shlex.quote(str(path))}"
    shown += "".join(f" --option {shlex.quote(word)}" for word in words)
    return Report(
        target=shown,
        checks=tuple(checks),
        notes=(*read.notes, *noted(precision, checks, strict), *([] if first is None else [first])),
        mistakes=mistakes,
        precision=precision,
        changes=None if old is None else compare(*old, checks, mistakes),
    )
