"""Is what is wrong with a check the digits that a coarser format lacks?

Rounding has no formula that a mutant could repeat: errors are of the format's size, whatever their
values, and they are wherever the format has fewer digits than the numbers need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.tolerance import canonical, expected, factor, tolerance

__all__ = ["SHOWS", "SINGLE", "kept_before", "ratio", "where_shown"]

SINGLE = 2.0**-24
"""Roundoff of float32. Many a mistake is as small as a coarser one, few are as small as this."""

LEAST = 0.01
"""Units of a format that half of the wrong elements are off by, where its digits are all that is
lost. Of correct code in float32, float16 and bfloat16 19 of 20 checks have 0.018 or more."""

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


def kept_before(roundoff: float, failed: Sequence[Check], checks: Sequence[Check]) -> bool:
    """Return whether a recording's quantities before the first of `failed` kept the digits.

    Each quantity of a recording is a check, and an operation, of its own, in the dataflow's order.
    """
    if roundoff <= SINGLE or not all(c.case.id.startswith("trace/") for c in failed):
        return False
    flow = list(dict.fromkeys(c.case.operation.name for c in checks))
    before = flow[: min(flow.index(c.case.operation.name) for c in failed)]
    for check in checks:
        if check.status == "passed" and check.case.operation.name in before:
            for name, value in expected(check.case).items():
                digits = np.frexp(value)[0] / roundoff
                if name not in ("p_pred", "P_pred") and (digits != np.round(digits)).any():
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
    # beyond one: not rounding; far below: of a finer format, or no rounding
    first = check.divergence
    assert first is not None
    got = canonical(case, first.quantity, check.outputs[first.quantity].astype(np.float64))
    bound = tolerance(case)[first.quantity]
    if bound is None:
        return None
    units = factor(case) * np.abs(got - expected(case)[first.quantity]) / (bound * (roundoff / u))
    off = units[units > 0]
    rounded = 2 * off.size >= units.size and float(np.median(off)) >= LEAST
    return worst if worst <= 1 and rounded else None


def where_shown(roundoff: float, failed: Sequence[Check], passed: Sequence[Check]) -> list[Check]:
    """Collect checks of a finer dtype, passed ones too."""
    return [check for check in [*failed, *passed] if _unit(check) < roundoff]
