"""The walk along the dataflow: the first quantity that is off, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases import Case
from loko_ref.conformance.network import NETWORK, factors
from loko_ref.conformance.tolerance import canonical, expected, tolerance

__all__ = ["Divergence", "compare", "entry_of_theta", "ratios"]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first quantity outside its tolerance, at its worst element.

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
    entry : str
        The LoRA factor's element that the index belongs to, ``0.q.A[1, 2]``; empty where none.
    """

    quantity: str
    index: tuple[int, ...]
    expected: float
    got: float
    ratio: float
    labels: tuple[str, ...]
    entry: str = ""


def entry_of_theta(case: Case, quantity: str, index: tuple[int, ...]) -> str:
    """Name the entry of theta that an element of a quantity belongs to: ``0.q.A[1, 2]``.

    The last axis of length n tells: a column of Z or H, a row of K. Empty for quantities without
    one, and for operations that pack no theta by the spec.
    """
    if not case.operation.name.startswith(("model.", "loko.")):
        return ""
    output = next(o for o in case.operation.outputs if o.name == quantity)
    axes = output.shape.strip("()").replace(" ", "").split(",")
    if "n" not in axes:
        return ""
    at = index[len(axes) - 1 - axes[::-1].index("n")]
    for layer in NETWORK["sites"](case.options["spec"]):
        for key, shape in factors(layer).items():
            if at < math.prod(shape):
                inside = map(int, np.unravel_index(at, shape))
                return f"{layer['name']}.{key}[{', '.join(map(str, inside))}]"
            at -= math.prod(shape)
    raise AssertionError("an index beyond theta")


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
            inner = np.unravel_index(int(np.argmax(part)), part.shape)
            inside = tuple(map(int, inner))
            index = inside if step is None else (step, *inside)
            got = canonical(case, name, outputs[name].astype(np.float64))
            return (
                Divergence(
                    quantity=name,
                    index=index,
                    expected=float(expected(case)[name][index]),
                    got=float(got[index]),
                    ratio=float(ratio[index]),
                    labels=case.operation.labels(name),
                    entry=entry_of_theta(case, name, index),
                ),
                worst,
            )
    return None, worst
