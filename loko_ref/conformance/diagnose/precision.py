"""Is what is wrong with a check the digits that a coarser format lacks?

Rounding has no formula that a mutant could repeat: errors are of the format's size, whatever their
values, and they are wherever the format has fewer digits than the numbers need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance

__all__ = ["SHOWS", "SINGLE", "ratio", "where_shown"]

SINGLE = 2.0**-24
"""Roundoff of float32. Many a mistake is as small as a coarser one, few are as small as this."""

SHOWS = 0.75
"""Part of the checks in which lost digits show, if they are what is wrong."""


def _unit(check: Check) -> float:
    return float(np.finfo(check.case.dtype).eps) / 2


def _right_before(roundoff: float, check: Check) -> bool:
    """Return whether a quantity before the first one that is off kept digits that the format lacks.

    The time update is passed over: formats for matrix products leave it as it is.
    """
    first = check.divergence
    assert first is not None
    step = first.index[:1] if check.case.operation.stepwise else ()
    for name in expected(check.case):
        if name == first.quantity:
            return False
        if name in check.outputs and name not in ("p_pred", "P_pred"):
            digits = np.frexp(expected(check.case)[name][step])[0] / roundoff
            if (digits != np.round(digits)).any():
                return True
    return False


def ratio(roundoff: float, check: Check) -> float | None:
    """Largest error of a failed check in tolerances of a coarser format; None if it is not that.

    Parameters
    ----------
    roundoff : float
        Unit roundoff of the format.
    check : Check
        Failed by a quantity.
    """
    case, u = check.case, _unit(check)
    if roundoff <= u or (roundoff > SINGLE and _right_before(roundoff, check)):
        return None
    errors = []
    for name, bound in tolerance(case).items():
        if bound is None or name not in check.outputs:
            continue
        got = canonical(case, name, check.outputs[name].astype(np.float64))
        units = np.abs(got - expected(case)[name]) / (bound * (roundoff / u))
        errors.append(units.reshape(-1))
    worst = float(np.max(np.concatenate(errors)))
    typical = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
    # beyond one: not rounding; all far below: rounding of a finer format
    return worst if worst <= 1 and typical >= 1e-5 else None


def where_shown(roundoff: float, failed: Sequence[Check], passed: Sequence[Check]) -> list[Check]:
    """Collect checks of a finer dtype; of a format coarser than float32 passed ones count too."""
    all_of_them = [*failed, *(passed if roundoff > SINGLE else ())]
    return [check for check in all_of_them if _unit(check) < roundoff]
