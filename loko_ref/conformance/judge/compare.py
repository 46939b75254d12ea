"""The walk along the dataflow: the first quantity that is off, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance
from loko_ref.textbook.network import NETWORK, factors

__all__ = ["Divergence", "compare", "in_theta", "ratios"]


EQUAL = 0.9
"""Errors of one quantity, as parts of the largest, that count as large as it."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first quantity outside its tolerance, at its worst element (of equal ones the first).

    Attributes
    ----------
    quantity : str
        Its name.
    index : tuple of int
        The element; for a run the first index is the step.
    expected, got : float
        What the oracle has, and what came.
    ratio : float
        Error over tolerance; infinite for NaN and infinity.
    labels : tuple of str
        Derivation labels of the quantity.
    entry, factors : str, tuple of str
        The LoRA factor's element that the index belongs to, ``0.q.A[1, 2]``, and every factor with
        an element that is off; empty for quantities without an axis along theta.
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

    The last axis of length n tells: a column of Z or H, a row of K. Nothing is found for quantities
    without one, and for operations that pack no theta by the spec.

    Parameters
    ----------
    case : Case
        The case.
    quantity : str
        Output name.
    index : tuple of int
        An element of it.
    off : array of bool
        Which elements are off, of the quantity or of one step's.

    Returns
    -------
    entry : str
        The LoRA factor's element that the index belongs to, ``0.q.A[1, 2]``.
    factors : tuple of str
        Names of all factors with an element that is off, in packing order.
    """
    output = next(o for o in case.operation.outputs if o.name == quantity)
    axes = output.shape.strip("(,)").replace(" ", "").split(",")
    if "n" not in axes or not case.operation.name.startswith(("model.", "loko.")):
        return "", ()
    axis = -1 - axes[::-1].index("n")
    at, lines = index[axis], np.moveaxis(off, axis, 0).reshape(off.shape[axis], -1)
    entry, wrong, start = "", [], 0
    for layer in NETWORK["sites"](case.options["spec"]):
        for key, shape in factors(layer).items():
            name, stop = f"{layer['name']}.{key}", start + math.prod(shape)
            if start <= at < stop:
                entry = f"{name}{list(map(int, np.unravel_index(at - start, shape)))}"
            if lines[start:stop].any():
                wrong.append(name)
            start = stop
    return entry, tuple(wrong)


def ratios(case: Case, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Error over tolerance of every element that can be judged, in dataflow order."""
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


def _worst(part: Array) -> int:
    """Flat index of the worst element: the first of those that differ from it by rounding only.

    Two elements that are equal but for their rounding, as S[0, 1] and S[1, 0] are, would else
    take turns from machine to machine.
    """
    return int(np.argmax(part >= EQUAL * np.max(part)))


def compare(case: Case, outputs: Mapping[str, Array]) -> tuple[Divergence | None, float]:
    """Walk the outputs in dataflow order, a run step by step.

    Parameters
    ----------
    case : Case
        The case.
    outputs : mapping of str to array
        What came back, of the right shapes.

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
            inner = np.unravel_index(_worst(part), part.shape)
            inside = tuple(map(int, inner))
            index = inside if step is None else (step, *inside)
            got = canonical(case, name, outputs[name].astype(np.float64))
            entry, wrong = in_theta(case, name, index, part > 1)
            return (
                Divergence(
                    quantity=name,
                    index=index,
                    expected=float(expected(case)[name][index]),
                    got=float(got[index]),
                    ratio=float(ratio[index]),
                    labels=case.operation.labels(name, case.options),
                    entry=entry,
                    factors=wrong,
                ),
                worst,
            )
    return None, worst
