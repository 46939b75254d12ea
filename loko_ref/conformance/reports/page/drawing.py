"""Expected, got and difference of a quantity as matrices, and the map of all its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.judge.tolerance import canonical, expected

CELLS = 64
"""Cells a side of a heat map at most; beyond, a cell shows the worst of a block."""

ROWS, WIDE = 7, 5
"""Rows and columns of a matrix that is printed: a larger one is cut around the element."""

COLOURS = (
    (-3.0, "#2c5f8a", "below 0.001"),
    (-1.0, "#6ea6cd", "0.001 to 0.1"),
    (0.0, "#c9dff0", "0.1 to 1: within"),
    (1.0, "#fdd49e", "1 to 10: off"),
    (3.0, "#fc8d59", "10 to 1000"),
    (6.0, "#d7301f", "1000 to 1e6"),
    (9.0, "#8c0d0d", "1e6 to 1e9"),
    (math.inf, "#3d0000", "beyond 1e9, or not finite"),
)
"""Upper end of log10(error/tolerance), colour, legend."""


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """How a quantity is laid out as a matrix."""

    lead: tuple[int, ...]
    at: tuple[int, int]  # row and column of the element
    caption: str  # what rows and columns are

    @classmethod
    def of(cls, size: int, index: tuple[int, ...], stepwise: bool) -> _Plane:
        if stepwise and size <= 2:
            at = (index[0], index[1] if size == 2 else 0)
            return cls(lead=(), at=at, caption="rows are steps, columns elements")
        if size <= 1:
            return cls(lead=(), at=(index[0] if index else 0, 0), caption="")
        lead, (row, column) = index[:-2], index[-2:]
        step = f"step {lead[0]}" if stepwise and lead else ""
        rest = f"index {list(lead[1:] if stepwise else lead)}" if len(lead) > stepwise else ""
        return cls(lead=lead, at=(row, column), caption=", ".join(filter(None, (step, rest))))

    def cut(self, value: Array) -> Array:
        """Return the matrix; a vector is a column, a number 1 x 1."""
        found = value[self.lead]
        return found if found.ndim == 2 else found.reshape(-1, 1)


def _window(size: int, at: int, most: int) -> range:
    """Return the indices that are shown of an axis, with `at` in the middle where it can be."""
    start = min(max(at - most // 2, 0), max(size - most, 0))
    return range(start, min(start + most, size))


def _level(ratio: float) -> int:
    """Return the place in COLOURS of error/tolerance."""
    height = math.log10(ratio) if ratio > 0 else -math.inf
    return next(k for k, (top, *_) in enumerate(COLOURS) if not height > top)


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """What is printed of one quantity."""

    # indices that are shown
    rows: range
    columns: range
    shape: tuple[int, ...]  # of the whole matrix
    caption: str  # what is shown of what
    # title, and of each cell its number and its classes
    grids: tuple[tuple[str, tuple[tuple[tuple[str, str], ...], ...]], ...]

    @property
    def whole(self) -> bool:
        """Whether all of the quantity is shown."""
        return (len(self.rows), len(self.columns)) == self.shape


def matrices(check: Check) -> Matrices | None:
    """Lay out the first quantity that is off; None where there is none.

    The cells of the difference have the colour of error/tolerance, those of the others a tint by
    sign and size.
    """
    d = check.divergence
    if d is None:
        return None
    case, name = check.case, d.quantity
    wanted = np.asarray(expected(case)[name], np.float64)
    got = canonical(case, name, np.asarray(check.outputs[name], np.float64))
    ratio = ratios(case, check.outputs)[name]
    plane = _Plane.of(wanted.ndim, d.index, case.operation.stepwise)
    wanted, got, ratio = (plane.cut(value) for value in (wanted, got, ratio))
    rows = _window(wanted.shape[0], plane.at[0], ROWS)
    columns = _window(wanted.shape[1], plane.at[1], WIDE)
    shown = np.ix_(rows, columns)
    cells = {"expected": wanted[shown], "got": got[shown]}
    finite = [np.abs(cell[np.isfinite(cell)]).max(initial=0.0) for cell in cells.values()]
    largest = max(finite) or 1.0

    def tint(value: float) -> str:
        if not math.isfinite(value):
            return f"h{len(COLOURS) - 1}"
        strength = math.ceil(3 * abs(value) / largest)
        return f"{'n' if value < 0 else 'p'}{strength}" if strength else ""

    def grid(
        values: Array, digits: int, classes: list[list[str]]
    ) -> tuple[tuple[tuple[str, str], ...], ...]:
        return tuple(
            tuple(
                (f"{value:.{digits}g}", f"{own} at" if (i, j) == plane.at else own)
                for j, value, own in zip(columns, line, kinds, strict=True)
            )
            for i, line, kinds in zip(rows, values.tolist(), classes, strict=True)
        )

    found = [
        (title, grid(cell, 4, [[tint(value) for value in line] for line in cell.tolist()]))
        for title, cell in cells.items()
    ]
    with np.errstate(all="ignore"):
        off = cells["got"] - cells["expected"]
    heat = [[f"h{_level(value)}" for value in line] for line in ratio[shown].tolist()]
    found.append(("got - expected", grid(off, 2, heat)))
    size = " x ".join(map(str, wanted.shape))
    whole = (len(rows), len(columns)) == wanted.shape
    part = "" if whole else f"the part of {size} around the element"
    caption = ", ".join(filter(None, (name, plane.caption, part)))
    return Matrices(
        rows=rows, columns=columns, shape=wanted.shape, caption=caption, grids=tuple(found)
    )


def as_table(m: Matrices) -> str:
    """Return the matrices as HTML, side by side; ``matrices.css`` is their style."""

    def row(head: object, cells: str) -> str:
        return f'<tr><th scope="row">{head}</th>{cells}</tr>'

    tables = []
    for title, grid in m.grids:
        heads = "".join(f'<th scope="col">{j}</th>' for j in m.columns)
        lines = (
            row(i, "".join(f'<td class="{kind}">{escape(text)}</td>' for text, kind in line))
            for i, line in zip(m.rows, grid, strict=True)
        )
        body = f"<tr><td></td>{heads}</tr>{''.join(lines)}"
        tables.append(f"<table><caption>{escape(title)}</caption>{body}</table>")
    legend = "".join(
        f'<span><i class="h{k}"></i>{escape(words)}</span>' for k, (*_, words) in enumerate(COLOURS)
    )
    note = f"{escape(m.caption)}. Colours of the difference, as error/tolerance:"
    return (
        f'<div class="loko-matrices" role="group" tabindex="0" aria-label="{escape(m.caption)}">'
        f'{"".join(tables)}<p class="legend">{note} {legend}</p></div>'
    )


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """What the template draws of one quantity."""

    # size in cells
    rows: int
    columns: int
    # colour and outline of the cells that have it, in units of a cell
    paths: tuple[tuple[str, str], ...]
    mark: tuple[int, int]  # row and column of the cell with the first element that is off
    caption: str  # what rows and columns are


def heat_map(check: Check) -> HeatMap | None:
    """Draw log10(error/tolerance) of the first quantity that is off; None where there is none."""
    d = check.divergence
    if d is None:
        return None
    ratio = ratios(check.case, check.outputs)[d.quantity]
    layout = _Plane.of(ratio.ndim, d.index, check.case.operation.stepwise)
    plane, (row, column), caption = layout.cut(ratio), layout.at, layout.caption
    if plane.shape[1] == 1:  # a vector: in lines
        wide = min(CELLS, len(plane))
        filled = np.full(-(-len(plane) // wide) * wide, -np.inf)
        filled[: len(plane)] = plane[:, 0]
        plane, (row, column) = filled.reshape(-1, wide), divmod(row, wide)
        caption = f"the elements in order, {wide} in a row"
    tall, wide = (-(-size // CELLS) for size in plane.shape)
    if tall > 1 or wide > 1:
        block = f"a cell is the worst of a block of {tall} x {wide}"
        caption = f"{caption}; {block}" if caption else block
        rows, columns = -(-plane.shape[0] // tall), -(-plane.shape[1] // wide)
        padded = np.full((rows * tall, columns * wide), -np.inf)
        padded[: plane.shape[0], : plane.shape[1]] = plane
        plane = padded.reshape(rows, tall, columns, wide).max(axis=(1, 3))
    drawn: dict[str, list[str]] = {}
    for i, cells in enumerate(plane):
        start = 0
        colours = ["" if value < 0 else COLOURS[_level(value)][1] for value in cells.tolist()]
        for j in range(1, len(colours) + 1):  # neighbours of one colour are one rectangle
            if j == len(colours) or colours[j] != colours[start]:
                if colours[start]:
                    run = f"M{start} {i}h{j - start}v1h{start - j}z"
                    drawn.setdefault(colours[start], []).append(run)
                start = j
    return HeatMap(
        rows=plane.shape[0],
        columns=plane.shape[1],
        paths=tuple((colour, "".join(runs)) for colour, runs in drawn.items()),
        mark=(row // tall, column // wide),
        caption=caption,
    )
