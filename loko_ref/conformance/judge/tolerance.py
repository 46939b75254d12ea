"""Tolerances: a unit of error for every element, computed from the case itself.

The unit of an element is how far it moves when every input, and every intermediate quantity that
it depends on, moves by one unit roundoff u of the dtype: the root mean square over seeded random
perturbations of that size, evaluated along the plain formulas in float64. It therefore accounts
for conditioning, cancellation, saturation and dtype. An element's tolerance is ``factor`` units.
[TOL-1, TOL-2]

In a single step the gain and the quantities computed from it are also perturbed by the backward
error of a stable solve [TOL-4], and the quantities computed from the gain by an error of one unit
in it, so that a correct formula applied to an acceptable K is accepted [TOL-5].

Where u times the conditioning leaves no significant digit, a quantity is not judged, and the
reason is stated.  [TOL-3]
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import OWN, Case
from loko_ref.conformance.judge.disturb import (
    DELTA,
    SOLVED_WITH,
    Apart,
    DisturbInNorm,
    DisturbScalars,
    Stacked,
    Still,
    generators,
    uniform,
)
from loko_ref.conformance.judge.disturb import Disturb as _Disturb
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.operations import loko_from_outputs
from loko_ref.textbook.quantities import identity

__all__ = [
    "DELTA",
    "EXPLANATION",
    "FACTOR",
    "Unit",
    "Units",
    "_Disturb",
    "canonical",
    "expected",
    "factor",
    "label",
    "least",
    "tolerance",
    "unit",
    "widening",
]

FACTOR = 32.0
"""Units of error allowed to a correct implementation, for short sums.  [TOL-2]"""

DRAWS = 16
"""Perturbations per case; over 16 the root mean square is not below a third of its mean."""

AT_ONCE = 2**19
"""Numbers that all outputs may hold together in the draws that one walk takes: 4 MiB."""

LIMIT = 2.0**-8
"""A quantity whose tolerance exceeds this fraction of its size everywhere is not judged."""

ROW_SCALED = 1e4
"""Ratio of S's diagonal entries above which a case is labelled ``row-scaled``: there a solve that
is only normwise stable (by eigenvalues) may err by many units in a small row and not be wrong."""

SOLVED = ("K", "theta", "p", "P")
"""Results of a solve with S; not judged where the case is row-scaled.  [TOL-3]"""

COVARIANCES = ("P_pred", "R_used", "S", "P", "R", "R_step", "U", "WW")
"""Symmetric outputs: the unit of entry (i, j) is at least u sqrt(diagonal_i diagonal_j)."""

EXPLANATION = (
    f"An element's tolerance is {FACTOR:g} sqrt(1 + N/16) units, N the longest axis of an input. "
    f"Its unit is how far it moves (root mean square over {DRAWS} seeded random draws) when every "
    "input and every quantity on the way to it moves by one unit roundoff of the dtype: "
    "conditioning, cancellation and dtype are in it. In a single step, and in the runs of a few "
    "steps that have every combination of options, K and what follows it have "
    "at least the unit that the backward error of a stable solve gives them, and what follows K "
    "the one that K off by its unit does. Numbers made of options alone (1 - beta^t) move by one "
    "unit roundoff of float64, in either dtype. float32 results are judged against float64's."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Unit of error of one output.

    Attributes
    ----------
    size : array
        One number > 0 per element.
    how : str
        How it was computed.
    rounding : array, optional
        The part that is in proportion to the dtype's unit roundoff, where not all is.
    """

    size: Array
    how: str
    rounding: Array | None = None


def _wide(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _wide(item) for name, item in value.items()}
    return np.asarray(value, dtype=np.float64)


@lru_cache(maxsize=1024)
def _inputs(case: Case) -> Mapping[str, Any]:
    """Return a case's inputs, built once; used in this module alone, and never changed."""
    return case.inputs()


def canonical(case: Case, name: str, value: Array) -> Array:
    """Return K without its all-ones part on the simplex, which is a convention.  [OBS-5]."""
    if name == "K" and case.options.get("observation") in ("softmax", "glm"):
        C = _inputs(case)["y"].shape[-1]
        if value.ndim == 0 or value.shape[-1] % C:
            return value  # not the shape of K
        rows = value.reshape(*value.shape[:-1], -1, C)
        with np.errstate(invalid="ignore"):  # an implementation's K may be infinite: then NaN
            centred: Array = rows - rows.mean(axis=-1, keepdims=True)
        return centred.reshape(value.shape)
    return value


@lru_cache(maxsize=1024)
def expected(case: Case) -> Mapping[str, Array]:
    """Return the oracle's outputs, in float64, for the case's inputs rounded to its dtype."""
    if case.twin is not case:
        return expected(case.twin)
    out = case.operation.oracle(_wide(_inputs(case)), case.options)
    return {name: canonical(case, name, np.asarray(value)) for name, value in out.items()}


def _evaluate(
    case: Case,
    inputs: Any,
    keep: Callable[[str, Any], Any] = identity,
    plain: Callable[..., dict[str, Any]] | None = None,
) -> dict[str, Array]:
    """Evaluate the plain formulas; K comes first where it is computed without being an output."""
    seen = {}

    def look(name: str, value: Any) -> Any:
        value = keep(name, value)
        if name == "K":
            seen[name] = value
        return value

    look.scalar = getattr(keep, "scalar", identity)  # type: ignore[attr-defined]
    look.apart = getattr(keep, "apart", None)  # type: ignore[attr-defined]
    plain = plain or case.operation.plain
    out = dict(plain(inputs, case.options, FORMULA_TABLE, look))
    return out if "K" in out or "K" not in seen else {"K": seen["K"], **out}


def _root_mean_square(
    case: Case,
    centre: Mapping[str, Array],
    moved: Callable[..., Mapping[str, Any]],
    *,
    together: bool = True,
) -> dict[str, Array]:
    """Return the root mean square distance of DRAWS evaluations from the unperturbed one.

    `moved` is given the numbers of the draws that one walk is to take: one, if not `together`.
    """
    most = AT_ONCE // max(sum(map(np.size, centre.values())), 1)
    count = min(max(most, 1), DRAWS) if together else 1
    total = {name: np.zeros(np.shape(value)) for name, value in centre.items()}
    # squares of what is below 1e-154 would be 0: powers of two take it nearer to 1, and no bit else
    power = {name: np.maximum(np.frexp(value)[1], -500) for name, value in centre.items()}
    for first in range(0, DRAWS, count):
        draws = range(first, min(first + count, DRAWS))
        try:
            values = moved(*draws)
        except Apart:
            if not together:
                raise
            return _root_mean_square(case, centre, moved, together=False)
        for name, value in values.items():
            each = value.each if isinstance(value, Stacked) else np.stack([value] * len(draws))
            off = canonical(case, name, each - centre[name])
            for square in np.ldexp(off, -power[name]) ** 2:
                total[name] += square
    return {name: np.ldexp(np.sqrt(a / DRAWS), power[name]) for name, a in total.items()}


def least(name: str, value: Array, case: Case, single: bool = False) -> Array:
    """Return the least unit of error of a quantity's elements, by their size.  [TOL-1]."""
    info, axes = np.finfo(case.dtype), 3 if case.operation.stepwise and not single else 2
    u = float(info.eps) / 2
    size: Array = u * np.abs(value)
    if name in COVARIANCES and value.ndim >= axes:
        scale = np.sqrt(np.abs(np.diagonal(value, axis1=-2, axis2=-1)))
        size = np.maximum(size, u * scale[..., :, None] * scale[..., None, :])
    if name == "v":  # y - softmax, whose terms are of size 1
        size = np.maximum(size, u)
    return np.maximum(size, float(info.tiny))


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """Units of error of every output along one route.

    Attributes
    ----------
    centre : mapping of str to array
        The outputs undisturbed; the gain leads where it is on the way and no output.
    size : mapping of str to array
        One number per element, > 0.
    how : str
        How they were found.
    rounding : mapping of str to array, optional
        The part that is in proportion to the dtype's unit roundoff, where not all is.
    """

    centre: Mapping[str, Array]
    size: Mapping[str, Array]
    how: str
    rounding: Mapping[str, Array] | None = None


Evaluate = Callable[[Any, Callable[[str, Any], Any]], Mapping[str, Array]]

Moved = Callable[[Sequence[int], type[_Disturb]], tuple[Any, Callable[[str, Any], Any]]]
"""Draws and kind of disturbance -> disturbed inputs, and the hook for what comes from them."""


def widening(
    case: Case,
    evaluate: Evaluate,
    *,
    known: Mapping[str, Array] | None = None,
    inputs: Any = None,
    moved: Moved | None = None,
    single: bool = False,
    networked: bool = False,
) -> Iterator[Units]:
    """Find the units of error of a route's outputs, part by part.  [TOL-1, TOL-4, TOL-5].

    Parameters
    ----------
    case : Case
        The case.
    evaluate : callable
        ``inputs, keep -> outputs``, `keep` called on each quantity as it arises.
    known : mapping of str to array, optional
        Better values of the outputs than the undisturbed route gives, for their sizes.
    inputs : mapping, optional
        Other inputs than the case's.
    moved : callable, optional
        Another way to disturb them.
    single : bool
        Whether the route is one step of the case's run.
    networked : bool
        Whether it runs a network, which a move of the gain leaves as it is.

    Yields
    ------
    Units
        Each no smaller than the one before: of a rounding of the result alone; with the draws of
        TOL-1; with TOL-4, where a gain is on the way; with TOL-5; with TOL-7, where there are
        numbers made of options alone.
    """
    inputs = _wide(_inputs(case)) if inputs is None else inputs
    seed, u = zlib.crc32(case.id.encode()), float(np.finfo(case.dtype).eps) / 2
    still = Still()
    centre = evaluate(inputs, still)
    known = {**centre, **(known or {})}
    size = {name: least(name, known[name], case, single) for name in centre}
    yield Units(centre=centre, size=size, how="")
    follows = list(centre)[list(centre).index("K") :] if "K" in centre else []
    step = single or not case.operation.stepwise
    how = f"root mean square of {DRAWS} random disturbances by one unit roundoff, u = {u:.3g}"

    def sizes(first: int, kind: type[_Disturb]) -> dict[str, Array]:
        def disturbed(*draws: int) -> Mapping[str, Any]:
            draws = tuple(first + draw for draw in draws)
            if moved is not None:
                return evaluate(*moved(draws, kind))
            disturb = kind(*(seed + draw for draw in draws))
            return evaluate(disturb.inputs(inputs, case.exact), disturb)

        return _root_mean_square(case, centre, disturbed)

    def widened(found: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
        return size | {name: np.maximum(size[name], found[name] * (u / DELTA)) for name in names}

    size = widened(sizes(0, _Disturb), centre)
    yield Units(centre=centre, size=size, how=how)
    short = case.recipe.shared and not step  # a run of a few steps
    if follows and (case.recipe.name == OWN or short or step):
        solve = sizes(DRAWS, DisturbInNorm)
        size = widened(solve, [k for k in centre if k not in SOLVED_WITH] if short else follows)
        how += "; K and what follows it also with the backward error of a stable solve"
        yield Units(centre=centre, size=size, how=how)
    if follows and step:

        def by_gain(*draws: int) -> Mapping[str, Any]:
            rngs = generators(seed + 2 * DRAWS + draw for draw in draws)
            move = uniform(rngs, np.shape(size["K"])) * size["K"] * (DELTA / u)

            def keep(name: str, value: Any) -> Any:
                return value + move if name == "K" else value

            if not networked:
                return evaluate(inputs, keep)
            run = {name: centre[name] for name in ("z", "Z")}
            return _evaluate(case, {**inputs, **run}, keep, loko_from_outputs)

        size = widened(_root_mean_square(case, centre, by_gain), follows[1:])
        how += "; what follows K also with K off by its unit"
        yield Units(centre=centre, size=size, how=how)
    if still.scalars:
        rounding, u = size, 2.0**-53
        size = widened(sizes(3 * DRAWS, DisturbScalars), centre)
        how += "; also with numbers made of options alone off by one unit roundoff of float64"
        yield Units(centre=centre, size=size, how=how, rounding=rounding)


@lru_cache(maxsize=1024)
def unit(case: Case) -> Mapping[str, Unit]:
    """Return the unit of error of every output of a case.  [TOL-1, TOL-4, TOL-5].

    Returns
    -------
    mapping of str to Unit
        Output name -> unit.
    """
    if case.twin is not case:
        return _in_dtype(unit(case.twin), case)

    def evaluate(inputs: Any, keep: Callable[[str, Any], Any]) -> Mapping[str, Array]:
        return _evaluate(case, inputs, keep)

    networked = case.operation.name == "loko.step"
    *_, found = widening(case, evaluate, known=expected(case), networked=networked)
    part = found.rounding or {}
    return {
        name: Unit(size=found.size[name], how=found.how, rounding=part.get(name))
        for name in expected(case)
    }


def _in_dtype(units: Mapping[str, Unit], case: Case) -> dict[str, Unit]:
    """Turn units of float64 into those of another dtype, linear in its unit roundoff."""
    u = float(np.finfo(case.dtype).eps) / 2
    more = float(np.finfo(case.dtype).eps / np.finfo("float64").eps)
    found = {}
    for name, one in units.items():
        rounding = one.size if one.rounding is None else one.rounding
        size = np.maximum(rounding * more, least(name, expected(case)[name], case))
        size = size if one.rounding is None else np.maximum(size, one.size)
        how = one.how.replace(f"u = {np.finfo('float64').eps / 2:.3g}", f"u = {u:.3g}")
        found[name] = Unit(size=size, how=how)
    return found


def factor(case: Case) -> float:
    """Return ``FACTOR sqrt(1 + N/16)``: rounding in sums of N terms grows as sqrt(N).  [TOL-2]."""
    arrays = [a for a in _inputs(case).values() if not isinstance(a, Mapping)]
    longest = max(max(a.shape, default=1) for a in arrays)
    return float(FACTOR * (1 + longest / 16) ** 0.5)


def label(case: Case) -> str:
    """Return ``row-scaled`` where the outputs' scales differ widely, else "".  [TOL-3]."""
    S = expected(case).get("S")
    if S is None or S.shape[-1] < 2 or case.options.get("observation") in ("softmax", "glm"):
        return ""
    variances = np.diagonal(S, axis1=-2, axis2=-1)
    ratio = np.max(variances.max(axis=-1) / variances.min(axis=-1))
    return "row-scaled" if ratio > ROW_SCALED else ""


@lru_cache(maxsize=1024)
def tolerance(case: Case) -> Mapping[str, Array | None]:
    """Return the tolerance of every output, or None where it cannot be judged.  [TOL-2, TOL-3]."""
    found: dict[str, Array | None] = {}
    for name, one in unit(case).items():
        allowed = factor(case) * one.size
        size = float(np.max(np.abs(expected(case)[name]), initial=0.0))
        lost = np.min(allowed, initial=np.inf) > LIMIT * size > 0
        found[name] = None if lost or (name in SOLVED and label(case)) else allowed
    return found
