"""The comparison along the dataflow: the first wrong quantity, its element, and the error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance
from loko_ref.textbook.network import NETWORK, packing

__all__ = ["Divergence", "compare", "diverging", "in_theta", "plainly", "ratios", "worst_of"]


EQUAL = 0.9
"""Errors of at least this fraction of the largest count as equal to it."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first quantity outside its tolerance, at its worst element (the first of equal ones).

    Attributes
    ----------
    quantity : str
        Its name.
    index : tuple of int
        The element; for a run the first index is the step.
    expected, got : float
        The oracle's value, and the implementation's.
    ratio : float
        Error over tolerance; infinite for NaN and infinity.
    labels : tuple of str
        Derivation labels of the quantity.
    entry, factors : str, tuple of str
        The LoRA factor's element that the index belongs to, ``0.q.A[1, 2]``, and every factor with
        a wrong element; empty for quantities without an axis along theta.
    """

    quantity: str
    index: tuple[int, ...]
    expected: float
    got: float
    ratio: float
    labels: tuple[str, ...]
    entry: str = ""
    factors: tuple[str, ...] = ()


def in_theta(
    case: Case, quantity: str, index: tuple[int, ...], off: Array
) -> tuple[str, tuple[str, ...]]:
    """Find the part of theta that a wrong quantity belongs to.

    It is read off the last axis of length n: a column of Z or H, a row of K. The result is empty
    for quantities without such an axis, and for operations that do not pack theta by the spec.

    Parameters
    ----------
    case : Case
        The case.
    quantity : str
        Output name.
    index : tuple of int
        An element of it.
    off : array of bool
        Which elements are wrong, of the whole quantity or of one step.

    Returns
    -------
    entry : str
        The LoRA factor's element that the index belongs to, ``0.q.A[1, 2]``.
    factors : tuple of str
        Names of all factors with a wrong element, in packing order.
    """
    output = next(o for o in case.operation.outputs if o.name == quantity)
    axes = output.shape.strip("(,)").replace(" ", "").split(",")
    if "n" not in axes or not case.operation.name.startswith(("model.", "loko.")):
        return "", ()
    axis = -1 - axes[::-1].index("n")
    at, lines = index[axis], np.moveaxis(off, axis, 0).reshape(off.shape[axis], -1)
    entry, wrong, start = "", [], 0
    train = case.options.get("train", "factors")
    for name, shape in packing(NETWORK, case.options["spec"], train).items():
        stop = start + math.prod(shape)
        if start <= at < stop:
            entry = f"{name}{list(map(int, np.unravel_index(at - start, shape)))}"
        if lines[start:stop].any():
            wrong.append(name)
        start = stop
    return entry, tuple(wrong)


def ratios(case: Case, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return error over tolerance for every element that can be judged, in dataflow order."""
    allowed, wanted = tolerance(case), expected(case)
    found = {}
    for name in wanted:
        bound = allowed[name]
        if name not in outputs or bound is None:
            continue
        got = canonical(case, name, outputs[name].astype(np.float64))
        with np.errstate(all="ignore"):
            ratio = np.abs(got - wanted[name]) / bound
        found[name] = np.where(np.isfinite(got), ratio, np.inf)
    return found


def worst_of(part: Array) -> tuple[int, ...]:
    """Return the index of the worst element: the first of those equal to it up to rounding.

    Otherwise the choice among elements that differ by rounding alone, as S[0, 1] and S[1, 0] do,
    would depend on the machine.
    """
    flat = int(np.argmax(part >= EQUAL * np.max(part)))
    return tuple(map(int, np.unravel_index(flat, part.shape)))


def diverging(
    case: Case,
    name: str,
    index: tuple[int, ...],
    numbers: tuple[float, float, float],
    off: Array,
) -> Divergence:
    """Describe a wrong quantity.

    Parameters
    ----------
    case : Case
        The case.
    name : str
        The quantity.
    index : tuple of int
        Its worst element.
    numbers : (float, float, float)
        What the element should be, what it is, and its error over tolerance.
    off : array of bool
        Which elements are wrong, of the whole quantity or of one step.
    """
    entry, wrong = in_theta(case, name, index, off)
    should, got, ratio = numbers
    return Divergence(
        quantity=name,
        index=index,
        expected=should,
        got=got,
        ratio=ratio,
        labels=case.operation.labels(name, case.options),
        entry=entry,
        factors=wrong,
    )


def compare(case: Case, outputs: Mapping[str, Array]) -> tuple[Divergence | None, float]:
    """Compare the outputs in dataflow order, a run step by step.

    Parameters
    ----------
    case : Case
        The case.
    outputs : mapping of str to array
        The implementation's outputs, of the right shapes.

    Returns
    -------
    divergence : Divergence or None
        The first quantity outside its tolerance.
    worst : float
        The largest ratio of all.
    """
    found = ratios(case, outputs)
    worst = max((float(np.max(r, initial=0.0)) for r in found.values()), default=0.0)
    if worst <= 1:
        return None, worst
    steps: list[int | None] = [None]
    if case.operation.stepwise:
        steps = list(range(len(next(iter(found.values())))))
    for step in steps:
        for name, ratio in found.items():
            part = ratio if step is None else ratio[step]
            if float(np.max(part, initial=0.0)) <= 1:
                continue
            return plainly(case, name, outputs[name], ratio, step), worst
    return None, worst


def plainly(case: Case, name: str, value: Array, ratio: Array, step: int | None) -> Divergence:
    """Describe a quantity that is off along the whole route, by its error over tolerance."""
    part = ratio if step is None else ratio[step]
    inside = worst_of(part)
    index = inside if step is None else (step, *inside)
    got = canonical(case, name, value.astype(np.float64))
    numbers = float(expected(case)[name][index]), float(got[index]), float(ratio[index])
    return diverging(case, name, index, numbers, part > 1)
