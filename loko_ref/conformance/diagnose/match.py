"""How near is what came back to a mutant's outputs, in units of the mutant's own?  [TOL-1]."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import DELTA, canonical, factor, least, tolerance
from loko_ref.conformance.judge.tolerance import DRAWS as UNIT_DRAWS
from loko_ref.conformance.mistakes.registry import Mutant, evaluate

__all__ = ["bounds_of", "distance", "within"]

DRAWS = 6
"""Disturbances for a mutant's own unit of error."""

PREFILTER = 1e5
"""A mutant farther off than this many of an output's largest tolerance is not looked at closer."""

Bounds = Mapping[str, Array | None]
"""Tolerance by output; None where no judgement is possible."""


def distance(
    case: Case,
    outputs: Mapping[str, Array],
    out: Mapping[str, Array],
    bounds: Bounds,
    steps: int | None = None,
) -> float:
    """Largest |got - mutant's| over bound; infinite where shapes or numbers do not fit.

    With `steps` only that many entries of the leading axis are looked at.
    """
    worst = 0.0
    for name, got in outputs.items():
        bound = bounds.get(name)
        if bound is None:
            continue
        if name not in out or out[name].shape != got.shape or bound.shape not in ((), got.shape):
            return float("inf")
        ratio = np.abs(canonical(case, name, got.astype(np.float64) - out[name]))
        ratio = (ratio / bound)[:steps]
        if not np.isfinite(ratio).all():
            return float("inf")
        worst = max(worst, float(np.max(ratio, initial=0.0)))
    return worst


def bounds_of(one: Mutant, case: Case, size: float | None) -> Bounds:
    """Tolerance of a mutant's outputs: the oracle's, or its own where that is wider.

    Where a mutant's outputs have other shapes than the oracle's, its own is all that there is: it
    is found from as many draws as the oracle's.
    """
    base, centre = tolerance(case), evaluate.__wrapped__(one, case, size)
    u = float(np.finfo(case.dtype).eps) / 2
    total: dict[str, Array] = {}
    assert centre is not None
    shaped = all(centre[name].shape == a.shape for name, a in base.items() if a is not None)
    draws = DRAWS if shaped else UNIT_DRAWS
    for draw in range(draws):
        moved = evaluate.__wrapped__(one, case, size, draw)
        if moved is None:
            return dict(base)
        for name, value in moved.items():
            change = canonical(case, name, value - centre[name])
            total[name] = total.get(name, 0.0) + change**2
    found: dict[str, Array | None] = {}
    for name, bound in base.items():
        if bound is None:
            found[name] = None
            continue
        own = np.sqrt(total[name] / draws) * (u / DELTA)
        floor = least(name, canonical(case, name, centre[name]), case)
        own = factor(case) * np.maximum(own, floor)
        found[name] = np.maximum(bound, own) if own.shape == bound.shape else own
    return found


def within(
    one: Mutant,
    case: Case,
    outputs: Mapping[str, Array],
    out: Mapping[str, Array],
    size: float | None = None,
    steps: int | None = None,
) -> float:
    """Largest error of what came back against what a mutant gives, in tolerances.

    Parameters
    ----------
    one, size : Mutant, float or None
        The mistake and its size.
    case : Case
        The case.
    outputs, out : mapping of str to array
        What came back, and the mutant's own.
    steps : int, optional
        Entries of the leading axis that are looked at.

    Returns
    -------
    float
        At most 1 where the mutant reproduces it.
    """
    ratio = distance(case, outputs, out, tolerance(case), steps)
    if ratio <= 1:
        return ratio
    u = float(np.finfo(case.dtype).eps) / 2

    def largest(name: str, bound: Array) -> Array:
        """Return one tolerance for all of an output: where the oracle has 0, the mutant may not."""
        own = u * np.max(np.abs(out.get(name, bound)), initial=0.0)
        return np.asarray(max(np.max(bound, initial=0.0), own))

    size_of = {
        name: None if bound is None else largest(name, bound)
        for name, bound in tolerance(case).items()
    }
    if distance(case, outputs, out, size_of, steps) > PREFILTER:
        return float("inf")
    return distance(case, outputs, out, bounds_of(one, case, size), steps)
