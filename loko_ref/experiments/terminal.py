"""What a run shows on a terminal: progress bars on stderr, tables on stdout.

``rich`` is imported where something is shown, and not before.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which has no edge to wrap at."""


@contextlib.contextmanager
def progress_bars(shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show progress bars on a terminal's stderr while the block runs; nothing elsewhere.

    Parameters
    ----------
    shown : bool
        Whether this process shows any: of several ranks one does.

    Yields
    ------
    callable
        ``update(name, done, total, note="")``; a bar is made at the first call with its name.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda *progress: None
        return
    from rich import progress
    from rich.console import Console

    text, end = (progress.TextColumn(f"{{task.{k}}}") for k in ("description", "fields[note]"))
    counts = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with progress.Progress(text, *counts, end, console=Console(stderr=True)) as bars:

        def update(name: str, done: int, total: int, note: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, note="")
            bars.update(tasks[name], completed=done, note=note)

        yield update


def show_table(
    title: str | None,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    summary: Sequence[Sequence[str]] = (),
) -> None:
    """Print a table: the first column to the left, the others to the right.

    Parameters
    ----------
    title : str or None
        Above it.
    rows, summary : sequence of rows
        Cells; the summary stands below a line, in bold.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(title=title)
    for k, heading in enumerate(columns):
        table.add_column(heading, justify="right" if k else "left")
    for row in rows:
        table.add_row(*row)
    if summary:
        table.add_section()
        for row in summary:
            table.add_row(*row, style="bold")
    console.print(table)
