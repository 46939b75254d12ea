"""The report on the terminal: a table by operation, then the report in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import Check, summarise
from loko_ref.conformance.reports.text import lines
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
) -> None:
    """Print a table by operation, the kinds of failure, what was declined, and the verdict.

    Expected failures (`known`: id -> reason) are listed with their reasons, apart from the others.
    """
    text = extras.load("rich.text", "the report on the terminal")
    _print_table(console, target, checks, known or {})
    for style, head, rest in lines(target, checks, notes, mistakes, known):
        line = text.Text.assemble((head, style), rest)
        console.print(line, soft_wrap=style != "dim", highlight=False)


def _print_table(
    console: Console, target: str, checks: Sequence[Check], known: Mapping[str, str]
) -> None:
    """Count by operation; those of which nothing ran have no row."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"loko-ref verify {escape(target)}", title_justify="left")
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
    else:
        console.print(f"loko-ref verify {escape(target)}", style="italic", soft_wrap=True)
