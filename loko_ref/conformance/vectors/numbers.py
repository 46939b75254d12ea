"""How far the numbers of a golden vector may be from what is derived now: no further than rounding.

Nothing here is a tolerance of its own: each reach follows from the unit of error of the case, from
the roundoff of float64, in which outputs are computed, or from the width of an enclosure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loko_ref.arrays import Array, balls
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import DELTA, expected, factor, unit
from loko_ref.conformance.vectors import enclosure

ROUNDOFF = 2.0**-53
"""Unit roundoff of float64, in which outputs and tolerances are computed, whatever the case's."""

NARROW = 2.0**-70
"""Largest radius of an enclosure, relative to its midpoint.  [BALL-6]"""


def flatten(prefix: str, value: Any) -> dict[str, Array]:
    """Return the arrays of nested mappings by their dotted names, below a prefix."""
    if isinstance(value, Mapping):
        found: dict[str, Array] = {}
        for key, item in value.items():
            found |= flatten(f"{prefix}.{key}", item)
        return found
    return {prefix: value}


def of_file(case: Case, tensors: Mapping[str, Array]) -> Case:
    """Return the case with the inputs of its file, where these are its own up to roundoff.

    Otherwise the case as it is: the comparison will name what differs.
    """
    inputs = case.inputs()
    drawn = flatten("in", inputs)
    if drawn.keys() - tensors.keys():
        return case
    if all(tensors[name].tobytes() == a.tobytes() for name, a in drawn.items()):
        return case
    if not all(_as_drawn(case, name, tensors[name], a) for name, a in drawn.items()):
        return case

    def taken(prefix: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: taken(f"{prefix}.{key}", item) for key, item in value.items()}
        return tensors[prefix]

    recipe = replace(case.recipe, build=lambda draw, dtype: taken("in", inputs))
    return replace(case, recipe=recipe)


def _as_drawn(case: Case, name: str, old: Array, new: Array) -> bool:
    """Whether an input is the case's up to the rounding of the products that it was drawn by."""
    if old.shape != new.shape or old.dtype != new.dtype or not np.isfinite(old).all():
        return False
    if name.removeprefix("in.") in case.exact:
        return old.tobytes() == new.tobytes()
    roundoff = float(np.finfo(case.dtype).eps) / 2
    reach = 2 * factor(case) * roundoff * float(np.max(np.abs(new), initial=0.0))
    return bool((np.abs(old - new) <= reach).all())


def golden_unproven(case: Case, tensors: Mapping[str, Array]) -> list[str]:
    """Compare golden values with the outputs and to their bounds, without an enclosure."""
    wrong = []
    for name in expected(case):
        gold, bound = tensors.get(f"gold.{name}"), tensors.get(f"bound.{name}")
        if gold is None or bound is None:
            wrong.append(f"gold.{name} or bound.{name} is missing")
            continue
        decided = ~np.isnan(gold)
        if (np.isnan(bound) == decided).any():
            wrong.append(f"bound.{name} is not decided where gold.{name} is")
            continue
        gold, bound = gold[decided], bound[decided]
        if not ((bound >= 0) & (bound <= np.spacing(np.abs(gold)))).all():
            wrong.append(f"bound.{name} is not within a unit in the last place")
        near = np.abs(gold - expected(case)[name][decided]) <= _reach(case, name)[decided]
        if not near.all():
            wrong.append(f"gold.{name} is beyond the roundoff of float64 of out.{name}")
    return wrong


def _reach(case: Case, name: str) -> Array:
    """How far two right results in float64 may be apart, from the units of the case's dtype."""
    size: Array = unit(case)[name].size * (2 * ROUNDOFF / float(np.finfo(case.dtype).eps))
    return 2 * factor(case) * size


def differs(case: Case, name: str, old: Array, new: Array) -> str | None:
    """Return how a file's tensor differs from the one that is derived now; None where it does not.

    Parameters
    ----------
    case : Case
        From :func:`of_file`.
    name : str
        ``in.*``, ``out.*``, ``tol.*``, ``gold.*`` or ``bound.*``.
    old, new : array
        The file's, and what is derived from the case.
    """
    part, _, quantity = name.partition(".")
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"was {old.dtype}{old.shape}, is {new.dtype}{new.shape}"
    if part == "in":
        return None if old.tobytes() == new.tobytes() else "is another input"
    if part == "gold":
        return (
            None
            if np.array_equal(old, new, equal_nan=True)
            else "is not what ball arithmetic proves"
        )
    if part == "bound":
        return _bound_differs(case, quantity, old, new)
    if not np.isfinite(old).all():
        return "is not finite"
    if part == "tol":
        # a tolerance is a difference over DELTA of values that are right to so many roundoffs
        share = 2 * factor(case) * ROUNDOFF / DELTA
        return None if (np.abs(old - new) <= share * new).all() else "is another tolerance"
    if not (np.abs(old - new) <= _reach(case, quantity)).all():
        return "is beyond the roundoff of float64 of what is derived now"
    return None


def _bound_differs(case: Case, quantity: str, old: Array, new: Array) -> str | None:
    """Compare two proven bounds on one distance.

    Each is at least the distance, and at most the distance and its own enclosure's width more,
    rounded upward. The width of the enclosure here is known, that of the other is narrow.
    """
    if not enclosure.available():
        return None  # what is compared is the file with itself
    with np.errstate(invalid="ignore"):
        rounding = 4 * np.spacing(np.maximum(np.abs(old), np.abs(new)))
        exact = enclosure.enclosed(case).outputs[quantity]
        least = new - 2 * balls.radius(exact) - rounding
        most = new + 2 * NARROW * np.abs(enclosure.golden(case)[quantity].value) + rounding
        within = (old >= least) & (old <= most)
    if not (within | (np.isnan(old) & np.isnan(new))).all():
        return "is not the distance that ball arithmetic proves"
    return None
