"""Naming the mistake: which known mutant reproduces exactly what an implementation does?

A mutant fits a check where every output that came back is the mutant's own within tolerance, the
tolerance being the mutant's: its route is disturbed as the oracle's is (TOL-1). Where outputs came
in a wrong shape, it has to be the mutant's. Where a mutant has a size, that one number is fitted
to the first quantity that is off. Candidates are ranked by the
whole run: how many failed checks they explain, and how many passed ones they would have failed;
where these are equal, by the order of the catalogue.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.diagnose import precision
from loko_ref.conformance.diagnose.doubt import with_formulas
from loko_ref.conformance.diagnose.match import distance, within
from loko_ref.conformance.diagnose.mistake import Mistake
from loko_ref.conformance.diagnose.search.again import Again
from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance
from loko_ref.conformance.mistakes.registry import Mutant, all_mutants, evaluate, idle

__all__ = ["Mistake", "fit", "name_mistakes"]

AGREE = 1e-3
"""How near sizes are, relatively, that are one size."""

ROUNDING = 0.5
"""Mean error, in tolerances, up to which nothing but rounding is left: that of right code is far
below it (its median at most 0.05, and 0.16 at the 99th percentile).  [TOL-2]"""

OFF = 1e100
"""Error, in tolerances, of a size that a case cannot be computed with."""

EVALUATIONS = 40
"""Evaluations of a mistake in a fit of its size, from each of two starts."""

MISSES = 8
"""Checks after which a mistake with a size that fits none of them is tried no more."""

VALUES = 2
"""Values off that bear a fitted number out: by one some number is always met."""

OTHER = 1.25
"""Factor to another size: where that fits as well, no size is found."""

PROBES = 2
"""Failed checks of each operation on which every mutant is tried."""


def _came(check: Check) -> Mapping[str, Array]:
    """Return what came back, of whatever shape."""
    return check.returned or check.outputs


def _fit_size(
    one: Mutant, case: Case, outputs: Mapping[str, Array], quantity: str, starts: Sequence[float]
) -> float | None:
    """Fit the one number, by its logarithm, to the first quantity that is off."""
    bound = tolerance(case)[quantity]
    if bound is None or not starts:
        return None
    got = canonical(case, quantity, outputs[quantity].astype(np.float64))

    def residual(log: Array) -> Array:
        out = evaluate.__wrapped__(one, case, float(np.exp(log[0])))
        if out is None or out[quantity].shape != got.shape:
            return np.full(got.size, OFF)
        r = ((got - canonical(case, quantity, out[quantity])) / bound).reshape(-1)
        return r if np.isfinite(r).all() else np.full(got.size, OFF)

    from scipy.optimize import least_squares  # a tenth of a second, which right code need not wait

    def far(log: float) -> float:
        return float(np.log1p(residual(np.array([log])) ** 2).sum())

    best = sorted(map(math.log, starts), key=far)[:2]
    found = [least_squares(residual, [log], method="lm", max_nfev=EVALUATIONS) for log in best]
    nearest = min(found, key=lambda f: float(np.max(np.abs(f.fun))))
    return float(np.exp(nearest.x[0])) if np.max(np.abs(nearest.fun)) < OFF else None


def fit(
    one: Mutant, check: Check, size: float | None = None, *, anew: bool = True
) -> Mistake | None:
    """Fit a mutant to a failed check; None where it does not reproduce what came back.

    Parameters
    ----------
    one : Mutant
        The mistake.
    check : Check
        Failed, with its outputs.
    size : float, optional
        A size found elsewhere, to take if it fits and else to begin from.
    anew : bool
        Whether the size is also sought from the mutant's own starts.
    """
    case, outputs, first = check.case, check.outputs, check.divergence
    if first is None and (not check.returned or one.roundoff or one.sizes):
        return None  # no size is sought in what has another shape
    if one.roundoff:
        found = precision.ratio(one.roundoff, check)
        return None if found is None else Mistake(mutant=one, size=None, ratio=found)
    if idle(one, case):
        return None
    if first is not None and one.sizes:
        if size is not None and (known := _reproduces(one, check, size)) is not None:
            return known  # a coarse check fits many sizes: the one from elsewhere stands
        starts = ([size] if size is not None else []) + (list(one.sizes) if anew else [])
        size = _fit_size(one, case, outputs, first.quantity, starts)
        if size is None:
            return None
    return _reproduces(one, check, size)


def _reproduces(one: Mutant, check: Check, size: float | None) -> Mistake | None:
    """Compare what came back with a mutant of this size; None where it is off."""
    case, outputs, first = check.case, _came(check), check.divergence
    # a run that a mistake makes unstable is compared up to the step after it shows
    unstable = first is not None and case.operation.name == "loko.run"
    steps = first.index[0] + 2 if first is not None and unstable else None
    out = evaluate.__wrapped__(one, case, size) if one.sizes else evaluate(one, case)
    if out is None:
        return None
    ratio = within(one, case, outputs, out, size, steps)
    if ratio > 1:
        return None
    if first is None:
        return Mistake(mutant=one, size=size, ratio=ratio)
    first_off, bound = {first.quantity: outputs[first.quantity]}, tolerance(case)
    return Mistake(
        mutant=one,
        size=size,
        ratio=ratio,
        alone=size is not None and not _found(one, check, size, steps),
        sharp=distance(case, first_off, out, bound, steps) <= 1,
    )


def _found(one: Mutant, check: Check, size: float, steps: int | None) -> bool:
    """Return whether a check bears out a size: by more values than one, and by no other size."""
    case, first = check.case, check.divergence
    assert first is not None
    off = ratios(case, check.outputs)[first.quantity] > 1
    error = check.outputs[first.quantity].astype(np.float64) - expected(case)[first.quantity]
    error = canonical(case, first.quantity, error)
    if case.operation.stepwise:
        off, error = off[first.index[0]], error[first.index[0]]
    size_of = np.round(np.log(np.abs(error[off])), 6)
    above, below = (Counter(size_of[np.sign(error[off]) == sign].tolist()) for sign in (1, -1))
    if size_of.size - (above & below).total() < VALUES:  # of a and 1 - a the one is the other's
        return False
    other = evaluate.__wrapped__(one, case, size * OTHER)
    return other is None or distance(case, _came(check), other, tolerance(case), steps) > 1


def _agree(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and math.isclose(a, b, rel_tol=AGREE)


def _contradicts(one: Mutant, check: Check, size: float | None) -> bool:
    """Return whether a mutant would have failed a check that passed."""
    if one.roundoff:
        return float(np.finfo(check.case.dtype).eps) / 2 < one.roundoff
    if idle(one, check.case):
        return False
    out = evaluate.__wrapped__(one, check.case, size) if one.sizes else evaluate(one, check.case)
    if out is None:
        return False
    wanted = {name: value.astype(np.float64) for name, value in check.outputs.items()}
    return distance(check.case, wanted, out, tolerance(check.case)) > 2


def _confirmed(one: Mutant, size: float | None, others: Sequence[Check]) -> bool | None:
    """Return whether a mistake does what the implementation does with other numbers.

    None where they do not show it.
    """
    found: bool | None = None
    for check in others:
        if check.divergence is None:
            if check.status == "passed" and _contradicts(one, check, size):
                return False
            continue
        fits = fit(one, check, size, anew=False)
        if fits is None or (size is not None and not _agree(fits.size, size)):
            if not idle(one, check.case):
                return False
        elif not fits.alone:
            found = True
    return found


def _cost(check: Check) -> tuple[bool, bool, int]:
    """Cheap and sharp checks first."""
    elements = sum(value.size for value in _came(check).values())
    return check.case.operation.name == "loko.run", check.case.dtype != "float64", elements


def name_mistakes(checks: Sequence[Check], again: Again | None = None) -> dict[str, list[Mistake]]:
    """Name what reproduces each failed check.

    Parameters
    ----------
    checks : sequence of Check
        A whole run: the passed ones tell candidates apart.
    again : callable, optional
        Calls the implementation with other numbers of a case: what one input alone shows is
        confirmed by them.

    Returns
    -------
    dict
        Check id -> mistakes, most likely first; an empty list where none fits.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a candidate may average an empty W
        named = _name(checks, again)
        return with_formulas(checks, named, again)


def _name(checks: Sequence[Check], again: Again | None) -> dict[str, list[Mistake]]:
    failed = sorted((c for c in checks if c.divergence is not None or c.returned), key=_cost)
    if not failed:
        return {}
    operations = dict.fromkeys(c.case.operation.name for c in failed)
    found: dict[str, dict[str, Mistake]] = {c.case.id: {} for c in failed}
    survivors: dict[str, tuple[Mutant, float | None]] = {}
    tried: set[str] = set()

    def probe(check: Check) -> None:
        tried.add(check.case.id)
        for one in all_mutants():
            # a size is sought where a case is short; a run of LTE takes it from there
            mistake = fit(one, check, anew=check.case.operation.name != "lte.run")
            if mistake is not None:
                found[check.case.id][one.id] = mistake
                survivors.setdefault(one.id, (one, mistake.size))

    def drop(key: str) -> None:
        del survivors[key]
        for fits in found.values():
            fits.pop(key, None)

    def spread() -> None:
        """Try the survivors on every check that was not probed."""
        missed: Counter[str] = Counter()
        for check in failed:
            for key, (one, size) in survivors.items():
                if check.case.id in tried or key in found[check.case.id] or missed[key] > MISSES:
                    continue
                mistake = fit(one, check, size, anew=False)
                if mistake is not None:
                    found[check.case.id][key] = mistake
                    missed[key] = -len(failed)
                elif not idle(one, check.case):
                    missed[key] += bool(one.sizes)

    for name in operations:
        same = [c for c in failed if c.case.operation.name == name]
        if name != "loko.run" or not survivors:
            for check in same[:PROBES]:
                probe(check)
    spread()
    for name in operations:  # what no survivor explains is probed too, a few of each operation
        left = [
            c
            for c in failed
            if c.case.operation.name == name and not found[c.case.id] and c.case.id not in tried
        ]
        for check in left[:PROBES]:
            probe(check)
    spread()

    for key, (one, _) in list(survivors.items()) if again else ():
        own = [c for c in failed if key in found[c.case.id]]
        if one.roundoff or len({c.case.recipe for c in own}) != 1:
            continue
        first = found[own[0].case.id][key]
        verdict = _confirmed(one, first.size, again(own[0].case) if again else ())
        if verdict is False:
            drop(key)
        elif verdict:
            found[own[0].case.id][key] = replace(first, alone=False)
    for fits in found.values():  # one equation with one unknown proves nothing by itself
        for key, mistake in list(fits.items()):
            if mistake.alone and not any(
                _agree(mistake.size, other[key].size)
                for other in found.values()
                if key in other and other[key] is not mistake
            ):
                del fits[key]
    for fits in found.values():  # what a formula gives to the last digits is no rounding
        if any(mistake.sharp for mistake in fits.values()):
            for key in [key for key in fits if survivors[key][0].roundoff]:
                del fits[key]
    passed = [c for c in checks if c.status == "passed" and c.case.operation.name in operations]
    for key in [key for key, (one, _) in survivors.items() if one.roundoff]:
        # lost digits show wherever the format has more: a few that happen to fit are chance
        off = [c for c in failed if c.divergence is not None]
        roundoff = survivors[key][0].roundoff
        where = precision.where_shown(roundoff, off, passed)
        own = [c for c in where if key in found.get(c.case.id, ())]
        if len(own) < precision.SHOWS * len(where) or (
            own and precision.kept_before(roundoff, own, checks)
        ):
            drop(key)
    explained = {key: sum(key in fits for fits in found.values()) for key in survivors}
    contradicted = {
        key: sum(_contradicts(one, c, size) for c in passed)
        for key, (one, size) in survivors.items()
    }
    for key, one in [(key, one) for key, (one, _) in survivors.items() if one.sizes]:
        affected = {c.case.operation.name for c in failed if key in found[c.case.id]}
        unlike = sum(
            key not in found[c.case.id] and not idle(one, c.case)
            for c in failed
            if c.case.operation.name in affected
        )
        if contradicted[key] + unlike > explained[key]:  # a number that fits some, belies more
            drop(key)

    def place(key: str) -> tuple[float, float, bool]:
        one = survivors[key][0]
        return contradicted[key] - explained[key], one.roundoff, bool(one.sizes)

    def far(key: str) -> bool:
        """Return whether more than rounding is left between a result and a mistake's own."""
        return bool(np.mean([fits[key].ratio for fits in found.values() if key in fits]) > ROUNDING)

    # what the run does not tell apart stands as in the catalogue, not as last bits have it: one
    # order for all its checks, on every machine
    listed = {one.id: at for at, one in enumerate(all_mutants())}
    order = {key: (place(key), far(key), listed[key]) for key in survivors if explained[key]}
    return {
        key: [
            replace(
                m,
                explained=explained[m.mutant.id],
                failed=len(failed),
                contradicted=contradicted[m.mutant.id],
                alike=tuple(i for i in fits if i != m.mutant.id and place(i) == place(m.mutant.id)),
            )
            for m in sorted(fits.values(), key=lambda m: order[m.mutant.id])
        ]
        for key, fits in found.items()
    }
