"""The report for people: a table by operation, and one block for each kind of failure.

Failures are of one kind where the same quantity is off first and the same known mistake reproduces
it; of those that no mistake reproduces, each operation has kinds of its own. The JSON report lists
every check.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import (
    EXPECTED_FAILURE,
    UNEXPECTED_PASS,
    Check,
    Summary,
    outcome,
    summarise,
)
from loko_ref.conformance.judge.tolerance import EXPLANATION, expected
from loko_ref.conformance.reports.document import failure

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BLOCKS", "Group", "group", "print_report"]

BLOCKS = 6
"""Kinds of failure that are printed in full; the others get one line each."""

NAMED = 4
"""Ids that a block names beside the one that it shows."""

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
        The known mistake that reproduces them, the likeliest.
    checks : tuple of Check
        All of them, in the order run.
    shown : Check
        The one to look at: of the smallest inputs, float64 before float32, a step before a run.
    """

    what: str
    mistake: Mistake | None
    checks: tuple[Check, ...]
    shown: Check


def _kind(check: Check, mistake: Mistake | None) -> tuple[str, ...]:
    """Tell what makes a failure equal to another."""
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
    }.get(check.finding.kind, check.finding.kind)


def _elements(value: Any) -> int:
    return sum(map(_elements, value.values())) if isinstance(value, Mapping) else int(value.size)


def _size(check: Check) -> tuple[bool, bool, int]:
    case = check.case
    return case.dtype != "float64", case.operation.stepwise, _elements(case.inputs())


def _absent(check: Check) -> list[str]:
    """Name what comes before the first quantity that is off, and did not come back."""
    if check.divergence is None:
        return []
    names = [name for name in expected(check.case) if name != check.divergence.quantity]
    before = list(expected(check.case)).index(check.divergence.quantity)
    return [name for name in names[:before] if name not in check.outputs]


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


def print_report(
    console: Console,
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    known: Mapping[str, str] | None = None,
) -> None:
    """Print a table by operation, the kinds of failure, what was declined, and the verdict.

    Expected failures (`known`: id -> reason) are listed with their reasons, apart from the others.
    """
    from rich.markup import escape

    known = known or {}
    summary = summarise(checks, known)
    failed = [check for check in checks if check.case.id not in known]
    _print_table(console, target, checks, known)
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    groups = group(failed, mistakes)
    explained: set[str] = set()
    for number, one in enumerate(groups):
        if number < BLOCKS:
            _print_block(console, target, one, explained)
        else:
            _print_line(console, one)
    unnamed = sum(not fits for key, fits in (mistakes or {}).items() if key not in known)
    if unnamed:
        console.print(f"\nNo known mistake reproduces {unnamed} of the wrong results.")
    if len(groups) > 1 or summary.failed > 1:
        text = "--json F lists every check, --html F draws each failure"
        console.print(text, style="dim", highlight=False)
    for check in checks:
        found, key = outcome(check.case.id, check.status, known), check.case.id
        if found == UNEXPECTED_PASS:
            text = f"[red]UNEXPECTED PASS[/] {escape(key)}: was expected to fail: "
        elif found == EXPECTED_FAILURE:
            text = f"[yellow]expected failure[/] {escape(key)}: "
        else:
            continue
        console.print(f"{text}{escape(known[key])}", soft_wrap=True, highlight=False)
    declined: dict[str, list[str]] = {}
    for check in checks:
        if check.status == "unsupported":
            declined.setdefault(str(check.reason), []).append(check.case.operation.name)
    for reason, names in sorted(declined.items(), key=lambda item: len(item[1])):
        text = f"{reason} ({len(names)}): {_counted(names)}"
        console.print(f"[yellow]unsupported[/] {escape(text)}", soft_wrap=True, highlight=False)
    ran = [check for check in checks if check.status != "unsupported"]
    if ran:
        console.print(f"\n{EXPLANATION}", style="dim", highlight=False)
    console.print(_verdict(summary))


def _print_table(
    console: Console, target: str, checks: Sequence[Check], known: Mapping[str, str]
) -> None:
    """Count by operation; those of which nothing ran have no row."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"loko-ref verify {escape(target)}", title_justify="left")
    table.add_column("operation", no_wrap=True)
    expecting = ("expected failures", "unexpected passes") if known else ()
    for head in ("ran", "passed", "failed", *expecting, "unsupported", "error/tol."):
        table.add_column(head, justify="right")
    for name in dict.fromkeys(check.case.operation.name for check in checks):
        part = [check for check in checks if check.case.operation.name == name]
        counts = summarise(part, known)
        if not counts.ran:
            continue
        worst = max(c.worst for c in part if c.status != "unsupported")
        mark = {"failed": "red", "as expected": "yellow"}.get(counts.verdict, "green")
        apart = (counts.expected_failures, counts.unexpected_passes) if known else ()
        numbers = (counts.ran, counts.passed, counts.failed, *apart, counts.unsupported)
        table.add_row(
            f"[{mark}]{name}[/]",
            *map(str, numbers),
            f"{worst:.2g}" if any(c.quantities for c in part) else "",
        )
    if table.row_count:
        console.print(table)
    else:
        console.print(f"loko-ref verify {escape(target)}", style="italic", soft_wrap=True)


def _print_block(console: Console, target: str, one: Group, explained: set[str]) -> None:
    from rich.markup import escape

    def line(text: str, indent: str = "  ") -> None:
        console.print(f"{indent}{escape(text)}", soft_wrap=True, highlight=False)

    check, count = one.shown, len(one.checks)
    console.print(
        f"\n[red]FAILED[/] {count} {'check' if count == 1 else 'checks'}: {escape(one.what)}",
        soft_wrap=True,
        highlight=False,
    )
    if count > 1:
        line("in: " + _counted([c.case.operation.name for c in one.checks]))
    line(f"{check.case.id}: {failure(check)}")
    if check.forced is not None:
        line(check.forced.text)
    absent = _absent(check)
    if absent:
        line(f"not returned, and before it in the dataflow: {', '.join(absent)}")
    line(f"covers: {check.case.covers}")
    quoted = target if target.startswith(("--cmd ", "--trace ")) else shlex.quote(target)
    line(f"alone: loko-ref verify {quoted} --only {shlex.quote(check.case.id)}")
    others = [c.case.id for c in one.checks if c is not check]
    if others:
        more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
        line(f"also: {', '.join(others[:NAMED])}{more}")
    if one.mistake is None:
        return
    m = one.mistake.mutant
    if m.id in explained:
        line(f"{m.id} again")
        return
    explained.add(m.id)
    wrong = f"it reproduces {one.mistake.explained} of {one.mistake.failed} wrong results"
    if one.mistake.contradicted:
        wrong += f" ({one.mistake.contradicted} that passed would have failed with it)"
    console.print(
        f"  [bold]{m.id}[/] {escape(one.mistake.text)}: {wrong}", soft_wrap=True, highlight=False
    )
    line(m.explanation, "    ")
    line(f"look at: {m.look}", "    ")
    if one.mistake.alike:
        line(f"nothing in this run tells it from: {', '.join(one.mistake.alike)}", "    ")


def _print_line(console: Console, one: Group) -> None:
    """Print a kind of failure in one line."""
    from rich.markup import escape

    named = f", as by {one.mistake.mutant.id}" if one.mistake is not None else ""
    text = f"{len(one.checks)}: {one.what}{named}, such as {one.shown.case.id}"
    console.print(f"[red]FAILED[/] {escape(text)}", soft_wrap=True, highlight=False)


def _verdict(summary: Summary) -> str:
    style = {"failed": "red", "passed": "green"}.get(summary.verdict, "yellow")
    return summary.text.replace(summary.headline, f"[bold {style}]{summary.headline}[/]", 1)
