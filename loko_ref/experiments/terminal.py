"""What a run shows on a terminal: progress bars on stderr, tables on stdout.

``rich`` is imported where something is shown, and not before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["Bars", "show_table"]

WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which has no edge to wrap at."""


class Bars:
    """Progress bars on a terminal's stderr, one per name; nothing elsewhere.

    Parameters
    ----------
    shown : bool
        Whether this process shows any: of several ranks one does.
    """

    def __init__(self, shown: bool = True) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        if shown and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Bars:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show how far a run is.

        Parameters
        ----------
        name : str
            Which run; its bar is made at the first call.
        done, total : int
            Steps.
        note : str
            Shown at the end of the bar.
        """
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note="")
        self._progress.update(self._tasks[name], completed=done, note=note)


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
    columns : sequence of str
        Their headings.
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
