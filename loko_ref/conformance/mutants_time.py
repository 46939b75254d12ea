"""Mistakes in the time update: forgetting and process noise.

Shapes as in ``formulas``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.formulas import Values
from loko_ref.conformance.mutants import mutant

__all__: list[str] = []


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
    "TIME-Q-SUBTRACTED",
    "process noise subtracted",
    "p / lam - q: q adds to what is not known of theta; taken away, it makes the filter surer at "
    "every step, and p negative in the end.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam - _noise_of(v)},
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
