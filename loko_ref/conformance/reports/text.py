"""The report in words, for every output that is plain text.

Failures are of one kind where the same known mistake reproduces them; of those that none
reproduces, where the same quantity is off first in operations that compute it alike. The JSON
report lists every check.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from loko_ref.conformance.cases.registry import OWN
from loko_ref.conformance.diagnose.groups import Group, group
from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.diagnose.search.relation import observed
from loko_ref.conformance.engine import (
    EXPECTED_FAILURE,
    IMPRECISE,
    UNEXPECTED_PASS,
    Check,
    outcome,
    summarise,
)
from loko_ref.conformance.judge.answer import NOT_OFFERED
from loko_ref.conformance.judge.tolerance import EXPLANATION, expected
from loko_ref.conformance.reports.document import failure, written
from loko_ref.conformance.reports.formulas import pairs

BLOCKS = 6
"""Kinds of failure that are described in full; the others get one line each."""

NAMED = 4
"""Ids that a description names beside the one that it shows."""

FEW = 6
"""Elements of which a relation shows little: a larger result of the same kind is described."""

LISTED = 8
"""Expected failures that a short report lists."""

PYTHON = "Python: "
"""What the name of a target begins with that only a Python program can give."""

OFFLINE = "vectors judge "
"""What the name of a target begins with whose outputs were computed elsewhere."""


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


def unnamed(one: Group) -> list[str]:
    """Describe what is off where no name was found: where, its relation, what is ruled out."""
    off = [check for check in one.checks if check.divergence is not None]
    if one.mistake is not None or not off:
        return []

    def few(check: Check) -> tuple[bool, bool, int]:
        assert check.divergence is not None
        size = check.outputs[check.divergence.quantity].size
        return size < FEW, check is not one.shown, size

    check = min(off, key=few)
    where = "" if check is one.shown else f" (in {check.case.id})"
    nothing = "no known mistake and no formula that was tried gives this"
    return [f"  {observed(check)}{where}", f"  {nothing}"]


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


def _counted(names: Sequence[str]) -> str:
    """Each name with how often it occurs, in the order of first occurrence."""
    return ", ".join(f"{name} {count}" for name, count in Counter(names).items())


CASE = " --case "
"""What stands in the name of a target before the file of the one case that was run."""


def command(target: str) -> str:
    """Return the command that verifies a target, or what stands for it."""
    if target.startswith(OFFLINE):
        return f"loko-ref {target}"
    target, case, file = target.partition(CASE)
    head, *options = target.split(" --option ")
    if target.startswith(PYTHON):
        more = f", case={shlex.split(file)[0]!r}" if file else ""
        more += f", options={options}" if options else ""
        return f"loko_ref.verify(<{head.removeprefix(PYTHON)}>{more})"
    ready = target.startswith(("--cmd ", "--trace "))
    words = " --option ".join([head if ready else shlex.quote(head), *options])
    return f"loko-ref verify {words}{case}{file}"


def reproduce(target: str, key: str) -> str:
    """Return what runs one case alone.

    Examples
    --------
    >>> reproduce("my loko.py", "lora.delta/tiny/float64")
    "loko-ref verify 'my loko.py' --only lora.delta/tiny/float64"
    >>> reproduce("my_loko.py --case mine.npz", "lora.delta/own/float64")
    'loko-ref verify my_loko.py --case mine.npz'
    """
    target, _, file = target.partition(CASE)
    one = f"--case {file or 'FILE'}" if f"/{OWN}/" in key else f"--only {shlex.quote(key)}"
    if target.startswith(PYTHON):
        options = target.split(" --option ")[1:]
        more = f", options={options}" if options else ""
        word = f"case={shlex.split(file)[0]!r}" if file else f"only={key!r}"
        return f"loko_ref.verify(..., {word}{more})"
    return f"{command(target)} {one}"


def describe(one: Group, target: str | None = None) -> list[str]:
    """Describe failures of one kind by one of them.

    Parameters
    ----------
    target : str, optional
        What was verified, to name what reproduces the failure.
    """
    check = one.shown
    found = []
    if len(one.checks) > 1:
        found.append("  in: " + _counted([c.case.operation.name for c in one.checks]))
    found += _explained(one)
    found.append(f"  {check.case.id}: {failure(check)}")
    if check.imprecise is not None:
        found.append(f"  imprecise: {check.imprecise.text}")
    found += further(check)
    if check.forced is not None:
        found.append(f"  {check.forced.text}")
    absent = _absent(check)
    if absent:
        found.append(f"  not returned, and before it in the dataflow: {', '.join(absent)}")
    if one.mistake is None:
        found += unnamed(one)
        found.append(f"  covers: {check.case.covers}")
    if target is not None:
        found.append(f"  reproduce: {reproduce(target, check.case.id)}")
    others = [c.case.id for c in one.checks if c is not check]
    if others:
        more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
        found.append(f"  also: {', '.join(others[:NAMED])}{more}")
    return found


def _explained(one: Group) -> list[str]:
    """Write the formula found beside the right one."""
    first, *others = pairs(one)
    if one.mistake is None:
        return [f"  correct formula: {first.right}"] if first.right else []
    m = one.mistake.mutant
    fits = f"it reproduces {one.mistake.explained} of {one.mistake.failed} wrong results"
    if one.mistake.contradicted:
        fits += f" ({one.mistake.contradicted} that passed would have failed with it)"
    found = [f"  mistake {m.id}: {one.mistake.text}; {fits}", f"    {m.explanation}"]
    found.append(f"    correct formula: {first.right}")
    if one.mistake.alike:
        found.append(f"    not distinguished in this run from: {', '.join(one.mistake.alike)}")
    for other in others:
        found += [f"  and {other.found}", f"    correct formula: {other.right}"]
    return found


def failures(
    target: str, groups: Sequence[Group], blocks: int = BLOCKS, style: str = "red"
) -> Iterator[tuple[str, str, str]]:
    """List the kinds of failure as :func:`lines` does, the first ones in full."""
    for number, one in enumerate(groups):
        count = len(one.checks)
        if number >= blocks:
            if number == blocks == 1:
                yield "", "", ""
            named = f", as by {one.mistake.mutant.id}" if one.mistake is not None else ""
            yield style, "FAILED", f" {count}: {one.what}{named}, such as {one.shown.case.id}"
            continue
        yield "", "", ""
        yield style, "FAILED", f" {count} {'check' if count == 1 else 'checks'}: {one.what}"
        yield from (("", "", text) for text in describe(one, target))


def lines(
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    known: Mapping[str, str] | None = None,
    closing: Sequence[str] = (),
) -> Iterator[tuple[str, str, str]]:
    """Write the whole report but for its table: what failed, then :func:`rest`.

    Yields
    ------
    tuple of str
        Of each line a style, what is to be shown in that style, and the rest.
    """
    known, mistakes = known or {}, mistakes or {}
    groups = group([check for check in checks if check.case.id not in known], mistakes)
    yield from failed(target, groups, mistakes)
    yield from rest(target, checks, notes, groups, known, closing)


def failed(
    target: str,
    groups: Sequence[Group],
    mistakes: Mapping[str, Sequence[Mistake]],
    *,
    verbose: bool = True,
) -> Iterator[tuple[str, str, str]]:
    """List what failed, as :func:`lines` does; only the first in full where not `verbose`."""
    yield from failures(target, groups, BLOCKS if verbose else 1)
    wrong = {check.case.id for one in groups for check in one.checks}
    unnamed = sum(not fits for key, fits in mistakes.items() if key in wrong)
    if unnamed:
        yield "", "", f"\nNo known mistake reproduces {unnamed} of the wrong results."
    if sum(len(one.checks) for one in groups) > 1:
        more = ", -v describes more kinds" if len(groups) > 1 and not verbose else ""
        yield "dim", f"--json F lists every check, --html F draws each kind of failure{more}", ""


def verdict(checks: Sequence[Check], known: Mapping[str, str]) -> tuple[str, str, str]:
    """Return the line of the verdict, as :func:`lines` does."""
    summary = summarise(checks, known)
    style = {"failed": "red", "passed": "green"}.get(summary.verdict, "yellow")
    return f"bold {style}", summary.headline, summary.text.removeprefix(summary.headline)


def rest(
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str],
    groups: Sequence[Group],
    known: Mapping[str, str],
    closing: Sequence[str] = (),
    *,
    verbose: bool = True,
) -> Iterator[tuple[str, str, str]]:
    """List all else, as :func:`lines` does: at the end the verdict and what to type next.

    `closing` has lines that stand before the verdict: what changed, what could not be revealed.
    Where not `verbose`, a long list of expected failures is cut and tolerances are not explained.
    """
    summary = summarise(checks, known)
    yield from (("yellow", "note", f" {note}") for note in notes)
    failing = 0
    for check in checks:
        key = check.case.id
        found = outcome(key, check.status, known)
        if found == UNEXPECTED_PASS:
            yield "red", "UNEXPECTED PASS", f" {key}: was expected to fail: {known[key]}"
        elif found == EXPECTED_FAILURE:
            failing += 1
            if verbose or failing <= LISTED:
                yield "yellow", "expected failure", f" {key}: {known[key]}"
    if failing > LISTED and not verbose:
        yield "dim", f"and {failing - LISTED} more expected failures (-v)", ""
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
        if check.status == "unsupported" and (check.reason != NOT_OFFERED or not summary.ran):
            declined.setdefault(str(check.reason), []).append(check.case.operation.name)
    for reason, names in sorted(declined.items(), key=lambda item: len(item[1])):
        yield "yellow", "unsupported", f" {reason} ({len(names)}): {_counted(names)}"
    if summary.ran and verbose:
        yield "dim", f"\n{EXPLANATION}", ""
    yield from (("", "", line) for line in closing)
    yield verdict(checks, known)
    if groups:
        yield "", "", f"next: {reproduce(target, groups[0].shown.case.id)}"
