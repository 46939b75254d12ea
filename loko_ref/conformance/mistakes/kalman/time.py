"""Mistakes in the time update: forgetting and process noise.

Shapes as in ``formulas``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS


def _noise_of(v: Values) -> Any:
    return v.q if v.p.ndim == 1 else v.q * np.eye(v.p.shape[0])


mutant(
    "TIME-MULTIPLIED",
    "p multiplied by lam",
    "Forgetting inflates the variance: divide by lam.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p * v.lam + _noise_of(v)},
)
mutant(
    "TIME-Q-DIVIDED",
    "q divided by lam too",
    "(p + q) / lam in place of p / lam + q.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: (v.p + _noise_of(v)) / v.lam},
)
mutant(
    "TIME-Q-SQUARED",
    "q squared",
    "q is taken for a standard deviation; it is a variance.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam + _noise_of(v) ** 2},
)
mutant(
    "TIME-Q-TIMES-P",
    "q multiplied by p",
    "p / lam + q p: q is a variance of its own, not a share of p.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam + v.q * v.p},
)
mutant(
    "TIME-Q-SUBTRACTED",
    "process noise subtracted",
    "p / lam - q: q adds to what is not known of theta; taken away, it makes the filter surer at "
    "every step, and p negative in the end.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam - _noise_of(v)},
)
mutant(
    "TIME-Q-EVERYWHERE",
    "q added to every entry of P",
    "A number added to a matrix goes to all its entries: any two parameters get the covariance q.",
    "P_pred = P / lam + q * np.eye(n)",
    {"p_pred": lambda v: v.p / v.lam + v.q},
)
mutant(
    "TIME-NO-Q",
    "process noise left out",
    "p / lam only.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam},
)
mutant(
    "TIME-NO-FORGETTING",
    "forgetting left out",
    "p + q only.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p + _noise_of(v)},
)
mutant(
    "TIME-LAM-SQUARED",
    "p divided by lam squared",
    "lam is a variance's factor: p / lam, not p / lam^2.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam**2 + _noise_of(v)},
)


def _in_step(v: Values) -> bool:
    """Return whether a whole step is taken: what is called alone is right."""
    return "theta" in v and "lam" in v


def _after(name: str) -> Any:
    return lambda v: F["p_pred"](Values(v, p=F[name](v))) if _in_step(v) else F[name](v)


mutant(
    "TIME-AFTER",
    "time update after the measurement",
    "S and K use p as the last step left it; forgetting and process noise are put on p after the "
    "update.",
    "p_pred = p / lam + q before S and K",
    {
        "p_pred": lambda v: v.p + 0.0 if _in_step(v) else F["p_pred"](v),
        **{f"p.{k}": _after(f"p.{k}") for k in ("decoupled", "variational", "dense")},
    },
)


def _unforgotten(v: Values) -> Any:
    return F["p_pred"](Values(v, lam=1.0) if _in_step(v) else v)


def _scaled_R(v: Values) -> Any:
    return F["S"](Values(v, R_used=v.lam * v.R_used) if _in_step(v) else v)


mutant(
    "TIME-LAM-ON-R",
    "lam multiplies R, not p",
    "S = H p H' + lam R as in recursive least squares, whose p is then divided by lam; here it is "
    "not.",
    "p_pred = p / lam + q, S with R as it is",
    {
        "p_pred": _unforgotten,
        "S": _scaled_R,
        "K.glm": lambda v: F["K.glm"](Values(v, p_pred=v.p_pred / v.lam)),
    },
)
