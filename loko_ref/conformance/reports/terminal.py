"""The report on the terminal: a table by operation, then the report in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import Check, summarise
from loko_ref.conformance.reports.text import command, failed, group, rest
from loko_ref.errors import extras

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_report"]


def print_report(
    console: Console,
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    known: Mapping[str, str] | None = None,
    closing: Sequence[str] = (),
) -> None:
    """Print the kinds of failure, a table by operation, what was declined, and the verdict.

    Expected failures (`known`: id -> reason) are listed with their reasons, apart from the others;
    `closing` has lines that stand before the verdict.
    """
    text = extras.load("rich.text", "the report on the terminal")
    known, mistakes = known or {}, mistakes or {}

    def write(lines: Iterable[tuple[str, str, str]]) -> None:
        for style, head, more in lines:
            line = text.Text.assemble((head, style), more)
            console.print(line, soft_wrap=style != "dim", highlight=False)

    groups = group([check for check in checks if check.case.id not in known], mistakes)
    write([("italic", command(target), "")])
    write(failed(target, groups, mistakes))
    _print_table(console, checks, known)
    write(rest(target, checks, notes, groups, known, closing))


def _print_table(console: Console, checks: Sequence[Check], known: Mapping[str, str]) -> None:
    """Count by operation; those of which nothing ran have no row."""
    from rich.table import Table

    table = Table()
    table.add_column("operation", no_wrap=True)
    expecting = ("expected failures", "unexpected passes") if known else ()
    lossy = ("imprecise",) if summarise(checks, known).imprecise else ()
    for head in ("ran", "passed", *lossy, "failed", *expecting, "unsupported", "error/tol."):
        table.add_column(head, justify="right")
    for name in dict.fromkeys(check.case.operation.name for check in checks):
        part = [check for check in checks if check.case.operation.name == name]
        counts = summarise(part, known)
        if not counts.ran:
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
