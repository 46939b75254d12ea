"""Who holds which heads, and how factors reach the others: the seam between serial and MPI.

Shapes: rows (own heads, n); gathered (heads, n).

The serial driver is a team of one. Over MPI each rank holds a contiguous block of heads; the
gathered rows are the same array on every rank, and what is computed from them is computed by the
same calls on every rank.  [LTE-9]
"""

from __future__ import annotations

from typing import Any, Protocol

from loko_ref.arrays import Array


def span(heads: int, rank: int, size: int) -> slice:
    """Heads held by a rank: contiguous blocks whose sizes differ by at most one.

    Examples
    --------
    >>> [span(5, k, 3) for k in range(3)]
    [slice(0, 1, None), slice(1, 3, None), slice(3, 5, None)]
    """
    return slice(heads * rank // size, heads * (rank + 1) // size)


class Team(Protocol):
    """A process among those that hold the heads."""

    # its number, and how many there are
    rank: int
    size: int
    sent: int  # logical bytes of all heads' rows brought by `gather`: the same for every split

    def gather(self, rows: Array, heads: int) -> Array:
        """All heads' rows, in head order, on every rank."""

    def collect(self, item: Any) -> list[Any]:
        """Small host objects (digests, losses) of all ranks, in rank order, on every rank."""

    def log(self, step: int, doing: str) -> None:
        """Record the current step, for the report if this process dies."""


class Alone:
    """The team of one."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.sent = 0

    def gather(self, rows: Array, heads: int) -> Array:
        """Return the rows themselves."""
        self.sent += rows.nbytes
        return rows

    def collect(self, item: Any) -> list[Any]:
        """Return the item alone."""
        return [item]

    def log(self, step: int, doing: str) -> None:
        """Record nothing: there is one process."""


ALONE = Alone()
"""The team of one."""
