"""A step's quantities: those of a variant in dataflow order, each with its numbers.

Shapes: as in :mod:`loko_ref.loko`. A step of a real network has thousands of entries. A fixed few
are shown from the prior to the posterior: those of theta that this step moves most, and the true
and the most probable classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError
from loko_ref.explain.equations import Line, equations
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import dataflow
from loko_ref.textbook.quantities import Lazy, identity, missing

Numbers = NDArray[np.floating]

CHARACTERS = " .:-=+*#%@"
"""Characters of increasing density, for a picture of an image."""

Parts = Sequence[tuple[str, tuple[int, ...]]]
"""Name and shape of what theta is made of, in packing order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Excerpt:
    """A few entries of an array, with names for their rows and columns.

    Attributes
    ----------
    rows, columns : list of str
        Names; a vector has one row named ``""``.
    values : array (len(rows), len(columns))
        The entries.
    """

    rows: list[str]
    columns: list[str]
    values: Numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity(Line):
    """One line of the dataflow with its numbers.

    Attributes
    ----------
    value : array
        All entries.
    excerpt : Excerpt
        The entries shown.
    residual : float or None
        Largest difference from the plain formula, relative to the largest entry; None for inputs
        and for results of the network.
    picture : tuple of str
        Lines of text, if the value is an image.
    """

    value: Numbers
    excerpt: Excerpt
    residual: float | None = None
    picture: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What is the same in all steps of a run."""

    name: str  # of the data
    options: Mapping[str, Any]  # the variant, as the table of quantities names its options
    parts: Parts  # what theta is made of, in packing order
    outputs: int  # C
    image: tuple[int, int, int] | None = None  # channels, height, width of x

    @property
    def regression(self) -> bool:
        """Whether the observation is real."""
        return bool(self.options["observation"] == "gaussian")

    def entry(self, index: int) -> str:
        """Return the name of one entry of theta: ``0.A[2,17]`` is row 2, column 17 of layer 0's A.

        Raises
        ------
        InputError
            If theta has fewer entries.
        """
        left = index
        for name, shape in self.parts:
            size = math.prod(shape)
            if left < size:
                where = ",".join(str(int(i)) for i in np.unravel_index(left, shape))
                return f"{name}[{where}]"
            left -= size
        raise InputError("index", index, f"below n = {index - left}", "an entry of another model")


def described(
    frame: Frame, values: Mapping[str, Numbers], *, first: bool, entries: int
) -> list[Quantity]:
    """Return the quantities that a step has, each with its numbers and the entries shown.

    Parameters
    ----------
    values : mapping of str to array
        By the names of the table of quantities; those that are missing are left out.
    first : bool
        Whether this is step 0.
    """
    shown = _Shown(frame, values, entries)
    return [
        Quantity(
            **vars(line),
            value=values[line.key],
            excerpt=shown.excerpt(line.axes, values[line.key]),
            residual=_residual(frame, values, line),
            picture=_picture(frame, values["x"]) if line.key == "x" else (),
        )
        for line in equations(frame.options, first=first)
        if line.key in values
    ]


class _Shown:
    """The choice of the entries shown."""

    def __init__(self, frame: Frame, values: Mapping[str, Numbers], entries: int) -> None:
        self.frame, self.C = frame, frame.outputs
        moved = np.abs(values.get("theta_post", values["theta"]) - values["theta"])
        self.entries = sorted(int(i) for i in np.argsort(-moved, kind="stable")[:entries])
        self.m = next((values[k].shape[0] for k in ("yhat", "e", "H", "S") if k in values), self.C)
        self.outputs = self._chosen_outputs(values, 4)

    def _chosen_outputs(self, values: Mapping[str, Numbers], count: int) -> list[int]:
        """Return outputs of the first sample: the true class, and the most probable ones."""
        if "yhat" not in values or self.C == 1:
            return list(range(min(self.C, count)))
        yhat = values["yhat"].reshape(-1)[: self.C]
        true = [int(np.argmax(values["y"].reshape(-1)[: self.C]))] if "y" in values else []
        order = [*true, *(int(c) for c in np.argsort(-yhat, kind="stable"))]
        return sorted(dict.fromkeys(order[: count + 1]))[:count]

    def _output_name(self, row: int) -> str:
        sample, c = divmod(row, self.C)
        where = "" if self.m == self.C else f"sample {sample} "
        return f"{where}output {c}" if self.frame.regression else f"{where}class {c}"

    def excerpt(self, axes: str, value: Numbers) -> Excerpt:
        """Return the entries shown, chosen along each axis by its letter (:class:`Line`)."""
        picks: list[list[int]] = []
        names: list[list[str]] = []
        for axis, size in zip(axes, value.shape, strict=True):
            if axis == "n":
                picks.append(self.entries)
                names.append([self.frame.entry(k) for k in self.entries])
            elif axis == "m":
                chosen = list(range(size)) if value.ndim == 1 and size <= 10 else self.outputs
                picks.append(chosen)
                names.append([self._output_name(k) for k in chosen])
            elif axis == "c":
                picks.append(list(range(min(size, 10))))
                names.append([self._output_name(k) for k in picks[-1]])
            elif axis == "s":
                picks.append(list(range(min(size, 2))))
                names.append([f"sample {k}" for k in picks[-1]])
            else:
                middle = size // 2 - min(size, 6) // 2
                picks.append(list(range(middle, middle + min(size, 6))))
                names.append([f"[{k}]" for k in picks[-1]])
        part = value[np.ix_(*picks)]
        if value.ndim == 1:
            return Excerpt(rows=[""], columns=names[0], values=part[None, :])
        return Excerpt(rows=names[0], columns=names[1], values=part)


def _picture(frame: Frame, x: Numbers) -> tuple[str, ...]:
    """Return the first sample as text if it is an image of digits, else nothing."""
    if frame.name != "digits":
        return ()
    last = len(CHARACTERS) - 1
    ink = np.clip(np.rint(x[0] * last), 0, last).astype(int)
    return tuple("".join(CHARACTERS[k] * 2 for k in row) for row in ink.reshape(8, 8))


def _residual(frame: Frame, values: Mapping[str, Numbers], line: Line) -> float | None:
    """Return the relative difference of a value from its plain formula, or None without one."""
    q = line.quantity
    if q is None or q.network:
        return None
    flow = dataflow(frame.options)
    v = Lazy(flow, values, **frame.options, F=FORMULA_TABLE, keep=identity)
    if missing(q.name, v, flow):
        return None  # it needs a second run of the network, or what was not recorded
    for name in ("yhat", "y"):
        if name in v:
            v[name] = v[name].reshape(-1, frame.outputs)
    got, plain = values[q.name], v.follow(q.name)
    if q.name == "K":  # for every method of solution, K S = P H'
        got, plain = got @ v.S, FORMULA_TABLE["pHt"](v)
    size = float(np.abs(plain).max())
    off = float(np.abs(got - plain.reshape(got.shape)).max())
    return off / size if size else float(np.abs(got).max())
