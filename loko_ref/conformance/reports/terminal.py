"""The report on the terminal: the verdict, the first fault, a table by operation, then the rest."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from loko_ref.conformance.diagnose.groups import group
from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import Check, summarise
from loko_ref.conformance.reports.text import command, failed, rest, verdict
from loko_ref.errors import extras

if TYPE_CHECKING:
    from rich.console import Console

COPIED = ("reproduce: ", "next: ", "loko-ref ")
"""What a line begins with that is there to be copied."""


def print_report(
    console: Console,
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    known: Mapping[str, str] | None = None,
    closing: Sequence[str] = (),
    *,
    verbose: bool = False,
) -> None:
    """Print the verdict, the kinds of failure, a table by operation, and what was declined.

    Expected failures (`known`: id -> reason) are listed with their reasons, apart from the others;
    `closing` has lines that stand before the verdict, which is repeated at the end. On a terminal
    lines are broken at its width, but for those that are to be copied.

    Where not `verbose`, the first kind of failure alone is described in full, operations of which
    all passed share a line, and tolerances are not explained.
    """
    text = extras.load("rich.text", "the report on the terminal")
    known, mistakes = known or {}, mistakes or {}

    def write(lines: Iterable[tuple[str, str, str]]) -> None:
        for style, head, more in lines:
            whole = head + more
            if console.is_terminal or style == "dim":
                whole = _broken(whole, console.width)
            line = text.Text(whole)
            line.stylize(style, 0, len(head) if more else len(whole))
            console.print(line, soft_wrap=True, highlight=False)

    groups = group([check for check in checks if check.case.id not in known], mistakes)
    write([("italic", command(target), ""), verdict(checks, known)])
    write(failed(target, groups, mistakes, verbose=verbose))
    _print_table(console, checks, known, verbose)
    write(rest(target, checks, notes, groups, known, closing, verbose=verbose))


def _broken(text: str, width: int) -> str:
    """Break a line at the width, what follows indented further; not where it is to be copied."""
    if text.strip().startswith(COPIED):
        return text
    breaker = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    pieces = []
    for piece in text.split("\n"):
        breaker.subsequent_indent = " " * (len(piece) - len(piece.lstrip()) + 2)
        pieces.append(breaker.fill(piece))
    return "\n".join(pieces)


def _print_table(
    console: Console, checks: Sequence[Check], known: Mapping[str, str], verbose: bool
) -> None:
    """Count by operation; those of which nothing ran have no row."""
    from rich.table import Table

    table = Table()
    table.add_column("operation", no_wrap=True)
    expecting = ("expected failures", "unexpected passes") if known else ()
    lossy = ("imprecise",) if summarise(checks, known).imprecise else ()
    for head in ("ran", "passed", *lossy, "failed", *expecting, "unsupported", "error/tol."):
        table.add_column(head, justify="right")
    wrong, right = summarise(checks, known).verdict == "failed", []
    for name in dict.fromkeys(check.case.operation.name for check in checks):
        part = [check for check in checks if check.case.operation.name == name]
        counts = summarise(part, known)
        if not counts.ran:
            continue
        if wrong and not verbose and counts.passed == counts.ran:
            right.append(counts.passed)
            continue
        worst = max(c.worst for c in part if c.status != "unsupported")
        mark = {"failed": "red", "as expected": "yellow"}.get(counts.verdict, "green")
        apart = (counts.expected_failures, counts.unexpected_passes) if known else ()
        lost = (counts.imprecise,) if lossy else ()
        numbers = (counts.ran, counts.passed, *lost, counts.failed, *apart, counts.unsupported)
        table.add_row(
            f"[{mark}]{name}[/]",
            *map(str, numbers),
            f"{worst:.2g}" if any(c.quantities for c in part) else "",
        )
    if table.row_count:
        console.print(table)
    if right:
        names = f"{len(right)} more operation{'s' if len(right) > 1 else ''}"
        console.print(
            f"all {sum(right)} checks of {names} passed (-v)", style="green", highlight=False
        )
