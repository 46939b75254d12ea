"""How far apart right and wrong stand: errors of correct code and of known mistakes, in tolerances.

A tolerance is well set if the worst error of every correct implementation stays well below it and
the mildest mistake stands well above. Both are measured here, over the whole catalogue, in each
dtype, along the whole route and given each quantity's parents: 1 is the tolerance itself.
[TOL-2, TOL-6]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.conformance.cases.registry import DTYPES, Case
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.engine import FAILED, TIMEOUT, judge
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.judge.tolerance import FACTOR, tolerance
from loko_ref.conformance.mistakes.registry import (
    NOTHING,
    Mutant,
    as_implementation,
    dtype_of,
    functions_by,
    idle,
)
from loko_ref.files.documents import document


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Errors of one implementation in one dtype, in tolerances."""

    # whose, and in which dtype
    name: str
    dtype: str
    cases: int  # cases that it ran; for a mutant those in which its formula occurs
    # ids of the cases in which an error exceeds its tolerance, or what came has a wrong form
    failed: tuple[str, ...]
    quantities: int  # outputs of cases that were judged; each counts by its largest element
    # of those: the median, the 99th percentile, the largest; infinite for what is not finite
    median: float
    high: float
    worst: float
    at: str  # case and output of the largest
    # the largest of the verdicts given the parents: that of a case within tolerance along the whole
    # route, else that of a quantity that does not follow from its parents
    given: float
    # cases in which an error exceeds its tolerance along the whole route, and that do not fail:
    # every quantity follows from its parents, or is imprecise. They are left out of `given`.
    amplified: int


def built_in() -> list[Implementation]:
    """Correct implementations that need no file: the oracle, and the plain route in its own dtype.

    ``oracle`` computes in the case's dtype (in float64 it is what others are judged by, so it is
    not run there); ``rounded`` is the plain route with every quantity moved by up to a roundoff.
    """

    def oracle(operation: Operation, inputs: Mapping[str, Any], options: Any) -> dict[str, Any]:
        if dtype_of(inputs) == np.float64:
            raise NotImplementedError("it is what float64 is judged by")
        return dict(operation.oracle(inputs, options))

    return [
        Implementation(target="oracle", functions=functions_by(oracle)),
        Implementation(target="rounded", functions=as_implementation(NOTHING)),
    ]


@dataclass(frozen=True)
class _Errors:
    """Errors in one case: of each output along the whole route; the largest given the parents."""

    case: Case
    plain: Mapping[str, float]
    given: float | None

    @property
    def worst(self) -> float:
        return max(self.plain.values(), default=0.0)


def _spread(name: str, dtype: str, found: Sequence[_Errors]) -> Spread:
    """Summarise the largest error of each output of each case."""
    every = [(ratio, f"{one.case.id} {key}") for one in found for key, ratio in one.plain.items()]
    values = np.array([ratio for ratio, _ in every])
    worst, at = max(every, default=(0.0, ""))
    return Spread(
        name=name,
        dtype=dtype,
        cases=len(found),
        failed=tuple(one.case.id for one in found if not one.worst <= 1),
        quantities=len(every),
        # a percentile that is one of the values: no mean with an infinite one
        median=float(np.percentile(values, 50, method="lower")) if every else 0.0,
        high=float(np.percentile(values, 99, method="lower")) if every else 0.0,
        worst=worst,
        at=at,
        given=max((one.given for one in found if one.given is not None), default=0.0),
        amplified=sum(one.given is None for one in found),
    )


def _errors(target: Implementation, case: Case, timeout: float | None) -> _Errors | None:
    """Return the errors in tolerances; None where it declines or nothing is judged."""
    if all(bound is None for bound in tolerance(case).values()):
        return None
    answer = target.run(case, timeout)
    if answer.declined is not None:
        return None
    found = {
        name: float(np.max(ratio, initial=0.0))
        for name, ratio in ratios(case, answer.outputs).items()
    }
    if answer.finding is not None:
        found[answer.finding.quantity or answer.finding.kind] = math.inf
        return _Errors(case, found, math.inf)
    worst = max(found.values(), default=0.0)
    if worst <= 1:
        return _Errors(case, found, worst)
    check = judge(case, answer)
    wrong = [d.ratio for d in check.divergences] if check.status == FAILED else []
    return _Errors(case, found, max(wrong, default=None))


def of_correct(
    target: Implementation,
    cases: Sequence[Case],
    *,
    timeout: float | None = TIMEOUT,
    progress: Callable[[], None] | None = None,
) -> list[Spread]:
    """Measure a correct implementation.

    Parameters
    ----------
    cases : sequence of Case
        Which; what it declines is left out.
    timeout : float, optional
        Seconds per case.
    progress : callable, optional
        Called after each case.

    Returns
    -------
    list of Spread
        One per dtype that it ran in.
    """
    found: dict[str, list[_Errors]] = {dtype: [] for dtype in DTYPES}
    for case in cases:
        row = _errors(target, case, timeout)
        if row is not None:
            found[case.dtype].append(row)
        if progress is not None:
            progress()
    return [_spread(target.target, dtype, rows) for dtype, rows in found.items() if rows]


def of_mutant(
    one: Mutant, cases: Sequence[Case], *, timeout: float | None = TIMEOUT
) -> list[Spread]:
    """Measure a known mistake, where its formula occurs.

    Parameters
    ----------
    timeout : float, optional
        Seconds per case.

    Returns
    -------
    list of Spread
        One per dtype in which it occurs; a mistake of precision occurs in finer dtypes only.
    """
    target = Implementation(target=one.id, functions=as_implementation(one, one.example))
    found: dict[str, list[_Errors]] = {dtype: [] for dtype in DTYPES}
    for case in cases:
        finer = float(np.finfo(case.dtype).eps) / 2 < one.roundoff
        if finer if one.roundoff else not idle(one, case):
            row = _errors(target, case, timeout)
            if row is not None:
                found[case.dtype].append(row)
    return [_spread(one.id, dtype, rows) for dtype, rows in found.items() if rows]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(one: Spread) -> dict[str, Any]:
    numbers = {k: _number(v) for k, v in vars(one).items() if isinstance(v, float)}
    return vars(one) | numbers | {"failed": list(one.failed)}


def _gap(
    right: Sequence[Spread], wrong: Sequence[Spread], of: Callable[[Spread], float]
) -> dict[str, Any]:
    """Set the worst correct one beside the mildest wrong one that is seen."""
    worst = max(right, key=of)
    mildest = min((one for one in wrong if of(one) > 1), key=of, default=None)
    apart = None
    if mildest is not None and of(worst) > 0:
        apart = _number(of(mildest) / of(worst))
    return {
        "worst_correct": _number(of(worst)),
        "by": worst.name,
        "mildest_wrong": None if mildest is None else _number(of(mildest)),
        "mutant": None if mildest is None else mildest.name,
        "quotient": apart,
        "unseen": [one.name for one in wrong if of(one) <= 1],
    }


def as_json(
    cases: Sequence[Case], correct: Sequence[Spread], mutants: Sequence[Spread]
) -> dict[str, Any]:
    """Build the document ``loko-ref/calibration/3``.

    ``gap`` holds, per dtype, the worst of the correct ones, the mildest mistake (each at its
    worst case) and their quotient, along the whole route, and as ``given_parents`` by the verdict
    on each quantity given its parents. A mistake that stays within tolerance everywhere in a dtype
    is below its roundoff there and counts as ``unseen``, not as the mildest. A number that is not
    finite is null.
    """
    gap = {}
    for dtype in dict.fromkeys(one.dtype for one in correct):
        right, wrong = ([one for one in rows if one.dtype == dtype] for rows in (correct, mutants))
        given = _gap(right, wrong, lambda one: one.given)
        gap[dtype] = {**_gap(right, wrong, lambda one: one.worst), "given_parents": given}
    content = {
        "catalogue": CATALOGUE,
        "cases": len(cases),
        "mutants": len({one.name for one in mutants}),
        "factor": FACTOR,
        "gap": gap,
        "correct": [_row(one) for one in correct],
        "wrong": [_row(one) for one in mutants],
    }
    return document("calibration", content)


MILDEST = 5
"""Mistakes that are printed per dtype; the document holds all."""


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def lines(document: Mapping[str, Any]) -> list[str]:
    """Print the document as the tables of derivations/tolerance.md, in Markdown.  [TOL-2]."""
    out = [
        f"{document['cases']} cases, {document['mutants']} mutants; errors in tolerances",
        "",
        "| correct implementation | dtype | outputs | median | 99 % | worst | at | given parents | "
        "amplified |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["correct"]:
        numbers = " | ".join(_shown(row[key]) for key in ("median", "high", "worst"))
        where = row["at"].replace(f"/{row['dtype']}", "")
        name = row["name"].rpartition("/")[2]
        given = f"{_shown(row['given'])} | {row['amplified']}"
        out.append(
            f"| {name} | {row['dtype']} | {row['quantities']} | {numbers} | {where} | {given} |"
        )
    out += [
        "",
        "| mildest mistakes | dtype | worst | at | cases failed | given parents |",
        "|---|---|---|---|---|---|",
    ]
    for dtype, gap in document["gap"].items():
        rows = [r for r in document["wrong"] if r["dtype"] == dtype]
        seen = [r for r in rows if r["name"] not in gap["unseen"]]
        finite = sorted((r for r in seen if r["worst"] is not None), key=lambda r: r["worst"])
        for row in finite[:MILDEST]:
            where = row["at"].replace(f"/{dtype}", "")
            count = f"{len(row['failed'])} of {row['cases']}"
            numbers = (
                f"{dtype} | {_shown(row['worst'])} | {where} | {count} | {_shown(row['given'])}"
            )
            out.append(f"| {row['name']} | {numbers} |")
    out.append("")
    both = [(dtype, gap) for dtype, gap in document["gap"].items()]
    both += [(f"{dtype}, given parents", gap["given_parents"]) for dtype, gap in both]
    for dtype, gap in both:
        line = f"{dtype}: worst correct {_shown(gap['worst_correct'])} ({gap['by']})"
        if gap["mutant"] is not None:
            line += (
                f", mildest mistake {_shown(gap['mildest_wrong'])} ({gap['mutant']}), "
                f"{_shown(gap['quotient'])} times apart"
            )
        out.append(line)
        if gap["unseen"]:
            out.append(f"{dtype}: within tolerance everywhere: {', '.join(gap['unseen'])}")
    return out
