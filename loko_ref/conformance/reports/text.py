"""The report in words, for every output that is plain text.

Failures are of one kind where the same quantity is off first and the same known mistake reproduces
it; of those that no mistake reproduces, each operation has kinds of its own. The JSON report lists
every check.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import (
    EXPECTED_FAILURE,
    FAILED,
    IMPRECISE,
    UNEXPECTED_PASS,
    Check,
    outcome,
    summarise,
)
from loko_ref.conformance.judge.tolerance import EXPLANATION, expected
from loko_ref.conformance.reports.document import failure, written

__all__ = [
    "BLOCKS",
    "PYTHON",
    "Group",
    "amplified",
    "describe",
    "failures",
    "further",
    "group",
    "imprecise",
    "lines",
    "reproduce",
]

BLOCKS = 6
"""Kinds of failure that are described in full; the others get one line each."""

NAMED = 4
"""Ids that a description names beside the one that it shows."""

PYTHON = "Python: "
"""What the name of a target begins with that only a Python program can give."""

_VARIES = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""What differs between messages of one kind: numbers and addresses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Failures of one kind.

    Attributes
    ----------
    what : str
        What they have in common.
    mistake : Mistake or None
        The known mistake that reproduces them, the most likely one.
    checks : tuple of Check
        All of them, in the order run.
    shown : Check
        The one to describe: of the smallest inputs, float64 before float32, a step before a run.
    """

    what: str
    mistake: Mistake | None
    checks: tuple[Check, ...]
    shown: Check


def _kind(check: Check, mistake: Mistake | None) -> tuple[str, ...]:
    """Return what makes a failure equal to another."""
    operation = check.case.operation.name
    finding = check.finding
    if finding is None:
        assert check.divergence is not None
        return ("off", check.divergence.quantity, mistake.mutant.id if mistake else operation)
    if finding.quantity is not None:
        return (finding.kind, finding.quantity, mistake.mutant.id if mistake else operation)
    return (finding.kind, _VARIES.sub("#", finding.message))


def _what(check: Check) -> str:
    if check.divergence is not None:
        return f"{check.divergence.quantity} is off first"
    assert check.finding is not None
    quantity = check.finding.quantity
    return {
        "raised": "an error",
        "timeout": "no answer in time",
        "signature": "a parameter that is not taken",
        "result": "no mapping of outputs",
        "output": "an output that cannot be read",
        "shape": f"{quantity} has another shape",
        "dtype": f"{quantity} has another dtype",
        "mutated": "an input changed in place",
        "crashed": "the command ended",
        "protocol": "an answer against the protocol",
        "not repeatable": "answers that differ when the same call is made again",
    }.get(check.finding.kind, check.finding.kind)


def _elements(value: Any) -> int:
    return sum(map(_elements, value.values())) if isinstance(value, Mapping) else int(value.size)


def _size(check: Check) -> tuple[bool, bool, int]:
    case = check.case
    return case.dtype != "float64", case.operation.stepwise, _elements(case.inputs())


def _absent(check: Check) -> list[str]:
    """Name what comes before the first quantity that is off, and was not returned."""
    if check.divergence is None:
        return []
    names = list(expected(check.case))
    before = names[: names.index(check.divergence.quantity)]
    return [name for name in before if name not in check.outputs]


def further(check: Check) -> list[str]:
    """List what else of a failed check is wrong given its parents, and what was not judged."""
    rest = check.divergences[1:]
    found = [f"  also wrong, given what came before it: {written(check.case, d)}" for d in rest]
    if check.unjudged:
        names = ", ".join(check.unjudged)
        found.append(f"  not judged, since what they are computed from is wrong: {names}")
    return found


def imprecise(check: Check) -> str:
    """Describe an imprecise check: the algorithm, the digits lost, and what is off first."""
    assert check.imprecise is not None
    return f"{check.imprecise.text}; {failure(check)}"


def amplified(check: Check) -> str:
    """Describe a passed check that is off along the whole route; empty for the others."""
    d = check.amplified
    if d is None:
        return ""
    return (
        f"every quantity follows from those before it; {written(check.case, d)} of the whole "
        "case: it amplifies rounding, which is no failure"
    )


def group(
    checks: Sequence[Check], mistakes: Mapping[str, Sequence[Mistake]] | None = None
) -> list[Group]:
    """Put equal failures together.

    Parameters
    ----------
    checks : sequence of Check
        The outcomes.
    mistakes : mapping, optional
        Check id -> known mistakes that reproduce it, most likely first.

    Returns
    -------
    list of Group
        The named ones first, the mistake that explains most before the others; then the others in
        the order in which they first occur.
    """
    found: dict[tuple[str, ...], list[Check]] = {}
    leading: dict[tuple[str, ...], Mistake | None] = {}
    for check in checks:
        if check.status != "failed":
            continue
        fits = (mistakes or {}).get(check.case.id, ())
        mistake = fits[0] if fits else None
        key = _kind(check, mistake)
        found.setdefault(key, []).append(check)
        leading.setdefault(key, mistake)

    def rank(one: Group) -> tuple[bool, int, str]:
        m = one.mistake
        return (True, 0, "") if m is None else (False, m.contradicted - m.explained, m.mutant.id)

    groups = [
        Group(
            what=_what(some[0]),
            mistake=leading[key],
            checks=tuple(some),
            shown=min(some, key=_size),
        )
        for key, some in found.items()
    ]
    return sorted(groups, key=rank)


def _counted(names: Sequence[str]) -> str:
    """Each name with how often it occurs, in the order of first occurrence."""
    return ", ".join(f"{name} {count}" for name, count in Counter(names).items())


def reproduce(target: str, key: str) -> str:
    """Return what runs one case alone.

    Examples
    --------
    >>> reproduce("my loko.py", "lora.delta/tiny/float64")
    "loko-ref verify 'my loko.py' --only lora.delta/tiny/float64"
    """
    if target.startswith(PYTHON):
        return f"loko_ref.verify(..., only={key!r})"
    quoted = target if target.startswith(("--cmd ", "--trace ")) else shlex.quote(target)
    return f"loko-ref verify {quoted} --only {shlex.quote(key)}"


def describe(one: Group, target: str | None = None, *, again: bool = False) -> list[str]:
    """Describe failures of one kind by one of them.

    Parameters
    ----------
    one : Group
        The failures.
    target : str, optional
        What was verified, to name what reproduces the failure.
    again : bool
        Whether its mistake was described before.
    """
    check = one.shown
    found = [f"  {check.case.id}: {failure(check)}"]
    if len(one.checks) > 1:
        found.insert(0, "  in: " + _counted([c.case.operation.name for c in one.checks]))
    if check.imprecise is not None:
        found.append(f"  imprecise: {check.imprecise.text}")
    found += further(check)
    if check.forced is not None:
        found.append(f"  {check.forced.text}")
    absent = _absent(check)
    if absent:
        found.append(f"  not returned, and before it in the dataflow: {', '.join(absent)}")
    found.append(f"  covers: {check.case.covers}")
    if target is not None:
        found.append(f"  reproduce: {reproduce(target, check.case.id)}")
    others = [c.case.id for c in one.checks if c is not check]
    if others:
        more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
        found.append(f"  also: {', '.join(others[:NAMED])}{more}")
    if one.mistake is None:
        return found
    m = one.mistake.mutant
    if again:
        return [*found, f"  mistake {m.id}, described above"]
    fits = f"it reproduces {one.mistake.explained} of {one.mistake.failed} wrong results"
    if one.mistake.contradicted:
        fits += f" ({one.mistake.contradicted} that passed would have failed with it)"
    found += [f"  mistake {m.id}: {one.mistake.text}; {fits}", f"    {m.explanation}"]
    found.append(f"    correct formula: {m.look}")
    if one.mistake.alike:
        found.append(f"    not distinguished in this run from: {', '.join(one.mistake.alike)}")
    return found


def failures(
    target: str, groups: Sequence[Group], style: str = "red"
) -> Iterator[tuple[str, str, str]]:
    """List the kinds of failure as :func:`lines` does, the first ``BLOCKS`` in full."""
    described: set[str] = set()
    for number, one in enumerate(groups):
        count = len(one.checks)
        if number >= BLOCKS:
            named = f", as by {one.mistake.mutant.id}" if one.mistake is not None else ""
            yield style, "FAILED", f" {count}: {one.what}{named}, such as {one.shown.case.id}"
            continue
        key = None if one.mistake is None else one.mistake.mutant.id
        yield "", "", ""
        yield style, "FAILED", f" {count} {'check' if count == 1 else 'checks'}: {one.what}"
        yield from (("", "", text) for text in describe(one, target, again=key in described))
        described |= {key} if key is not None else set()


def lines(
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    known: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, str]]:
    """Write the whole report but for its table.

    Yields
    ------
    tuple of str
        Of each line a style, what is to be shown in that style, and the rest.
    """
    known, mistakes = known or {}, mistakes or {}
    summary = summarise(checks, known)
    yield from (("yellow", "note", f" {note}") for note in notes)
    groups = group([check for check in checks if check.case.id not in known], mistakes)
    yield from failures(target, groups)
    failed = {check.case.id for check in checks if check.status == FAILED} - set(known)
    unnamed = sum(not fits for key, fits in mistakes.items() if key in failed)
    if unnamed:
        yield "", "", f"\nNo known mistake reproduces {unnamed} of the wrong results."
    if len(groups) > 1 or summary.failed > 1:
        yield "dim", "--json F lists every check, --html F draws each failure", ""
    for check in checks:
        key = check.case.id
        found = outcome(key, check.status, known)
        if found == UNEXPECTED_PASS:
            yield "red", "UNEXPECTED PASS", f" {key}: was expected to fail: {known[key]}"
        elif found == EXPECTED_FAILURE:
            yield "yellow", "expected failure", f" {key}: {known[key]}"
    lost: dict[str, list[Check]] = {}
    for check in checks:
        if outcome(check.case.id, check.status, known) == IMPRECISE and check.imprecise is not None:
            lost.setdefault(check.imprecise.algorithm, []).append(check)
    for some in lost.values():
        worst = max(some, key=lambda check: check.worst)
        what = f"{len(some)} {'check' if len(some) == 1 else 'checks'}"
        yield "yellow", "imprecise", f" {what}, such as {worst.case.id}: {imprecise(worst)}"
    yield from (
        ("yellow", "amplified", f" {c.case.id}: {amplified(c)}") for c in checks if c.amplified
    )
    declined: dict[str, list[str]] = {}
    for check in checks:
        if check.status == "unsupported":
            declined.setdefault(str(check.reason), []).append(check.case.operation.name)
    for reason, names in sorted(declined.items(), key=lambda item: len(item[1])):
        yield "yellow", "unsupported", f" {reason} ({len(names)}): {_counted(names)}"
    if summary.ran:
        yield "dim", f"\n{EXPLANATION}", ""
    style = {"failed": "red", "passed": "green"}.get(summary.verdict, "yellow")
    yield f"bold {style}", summary.headline, summary.text.removeprefix(summary.headline)
