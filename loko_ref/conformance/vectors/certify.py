"""Certification of the oracle: is each of its numbers where ball arithmetic proves it must be?

For every output of every case: the enclosure of the exact value, the oracle's error in its own
dtype (in ulps, and in the case's unit of error), whether it is contained in its stated bound, and
how many of its values can be rounded correctly beyond doubt.  [BALL-6]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays import Array, balls
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import canonical, factor, label, tolerance, unit
from loko_ref.conformance.vectors.enclosure import enclosed
from loko_ref.errors import InputError, NumericalError
from loko_ref.files.documents import document


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is certified of one output of one case."""

    # the case's id and the output's name
    case: str
    name: str
    bits: int  # precision at which its enclosure was narrow enough
    values: int  # number of elements
    radius: float  # largest radius of an enclosure
    # largest error of the oracle, run in the case's dtype, in units in the last place of the exact
    # value; elements whose exact value is 0 are left to `units`
    ulps: float
    units: float  # the same in units of error of the case
    bound: float  # units that are admissible: the stated error bound
    loose: int  # elements whose enclosure was still wider than asked at the last precision
    # whether every value lies within its bound of its enclosure, and the enclosure's radius is at
    # most one unit: a ball too wide to distinguish right from wrong contains nothing
    contained: bool
    # elements whose correctly rounded float64 value is not decided
    undecided: tuple[tuple[int, ...], ...]
    excluded: str = ""  # why it is not judged; empty where it is


def _ulps(error: Array, exact: Array, dtype: str) -> float:
    """Largest error in units in the last place of a nonzero exact value."""
    judged = exact != 0
    spacing = np.spacing(np.abs(exact[judged]).astype(dtype)).astype(np.float64)
    with np.errstate(over="ignore"):
        return float(np.max(error[judged] / spacing, initial=0.0))


def certify_case(case: Case, limit: int = 2048) -> list[Quantity]:
    """Certify every output of a case, in dataflow order.

    Parameters
    ----------
    limit : int
        Largest precision in bits.
    """
    exact = enclosed(case, limit)
    own = case.operation.oracle(case.inputs(), case.options)
    allowed, sizes = tolerance(case), unit(case)
    found = []
    for name, ball in exact.outputs.items():
        with balls.precision(exact.bits):
            centred = canonical(case, name, ball)
            value = canonical(case, name, balls.balls(np.asarray(own[name])))
            centre = balls.to_host(centred)
            radius = balls.radius(centred)
            # the distance is taken in balls: no rounding of its own
            error = balls.to_host(np.abs(value - centred).view(balls.BallArray))
        error = np.where(np.isfinite(np.asarray(own[name])), error, np.inf)
        judged = allowed[name] is not None or bool(label(case))  # by units, whatever the scaling
        bound = factor(case)
        ratio = (error - np.where(np.isfinite(radius), radius, 0)) / sizes[name].size
        units = float(np.max(ratio, initial=0.0))
        telling = bool((radius <= sizes[name].size).all())
        entries = np.ndenumerate(np.asarray(ball, dtype=object))
        undecided = [at for at, x in entries if not balls.rounded(x).decided]
        found.append(
            Quantity(
                case=case.id,
                name=name,
                bits=exact.bits,
                values=int(np.size(centre)),
                radius=float(np.max(radius, initial=0.0)),
                ulps=_ulps(error, centre, case.dtype),
                units=units,
                bound=bound,
                loose=exact.loose.get(name, 0),
                contained=units <= bound and telling,
                undecided=tuple(undecided),
                excluded="" if judged else "the unit of error leaves no digit in this dtype",
            )
        )
    return found


def certify(
    cases: Sequence[Case], *, limit: int = 2048, progress: Callable[[Case], None] | None = None
) -> tuple[list[Quantity], dict[str, str]]:
    """Certify cases.

    Parameters
    ----------
    limit : int
        Largest precision in bits.
    progress : callable, optional
        Called with each case as it is done.

    Returns
    -------
    list of Quantity
        One an output.
    dict
        Case id -> why it could not be certified at all (counted as not contained).
    """
    found: list[Quantity] = []
    failed: dict[str, str] = {}
    for case in cases:
        try:
            found += certify_case(case, limit)
        except (InputError, NumericalError) as error:
            failed[case.id] = str(error)
        if progress is not None:
            progress(case)
    return found, failed


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_json(quantities: Sequence[Quantity], failed: dict[str, str]) -> dict[str, Any]:
    """Build the document ``loko-ref/certify/1``; a number that is not finite is null.

    ``quantities`` counts outputs of cases (a case that cannot be certified counts as one that is
    not contained), ``values`` their elements, ``undecided`` elements whose rounding is not proven.
    """
    judged = [q for q in quantities if not q.excluded]
    worst: dict[str, dict[str, dict[str, float]]] = {"max_ulp": {}, "max_unit": {}}
    for q in judged:
        operation, dtype = q.case.split("/", 1)[0], q.case.rsplit("/", 1)[1]
        for key, value in (("max_ulp", q.ulps), ("max_unit", q.units)):
            table = worst[key].setdefault(operation, {})
            table[dtype] = max(table.get(dtype, 0.0), value)
    operations = {
        key: {name: {d: _number(v) for d, v in table.items()} for name, table in tables.items()}
        for key, tables in worst.items()
    }
    values = sum(q.values for q in quantities)
    undecided = sum(len(q.undecided) for q in quantities)
    content = {
        "quantities": len(judged) + len(failed),
        "contained": sum(q.contained for q in judged),
        "undecided": undecided,
        "values": values,
        "correctly_rounded": values - undecided,
        "max_bits": max((q.bits for q in quantities), default=0),
        **operations,
        "not_contained": [f"{q.case} {q.name}" for q in judged if not q.contained],
        "loose": {f"{q.case} {q.name}": q.loose for q in quantities if q.loose},
        "undecided_values": [
            f"{q.case} {q.name}{list(at)}" for q in quantities for at in q.undecided
        ],
        "excluded": {f"{q.case} {q.name}": q.excluded for q in quantities if q.excluded},
        "failed": failed,
        "details": [
            {
                "case": q.case,
                "quantity": q.name,
                "bits": q.bits,
                "values": q.values,
                "radius": _number(q.radius),
                "ulps": _number(q.ulps),
                "units": _number(q.units),
                "bound": q.bound,
                "loose": q.loose,
                "contained": q.contained,
            }
            for q in quantities
        ],
    }
    return document("certify", content)
