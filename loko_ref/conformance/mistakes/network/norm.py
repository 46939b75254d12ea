"""Mistakes in layer normalisation.

Shapes: x, nu (batch, ..., width); s (batch, ..., 1); d with an axis of outputs behind the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS
_FORWARD = "nu = (x - mean) / sqrt(var + eps), y = g * nu + b"
_BACK = "dx = s * (dnu - mean(dnu) - nu * mean(nu * dnu)), dnu = g * dy"


def _unbiased(v: Values, x: Array, mu: Array) -> Array:
    return np.asarray(F["norm.variance"](v, x, mu) * x.shape[-1] / (x.shape[-1] - 1))


mutant(
    "NORM-UNBIASED",
    "the variance divided by width - 1",
    "The unbiased variance (torch's x.var default) in place of the mean of squares.",
    "var = ((x - mean) ** 2).mean(-1)",
    {"norm.variance": _unbiased},
)
mutant(
    "NORM-EPS-MISSING",
    "eps left out of the norm",
    "sqrt(var) alone.",
    _FORWARD,
    {"norm.deviation": lambda var, eps: F["norm.deviation"](var, 0.0)},
)


def _eps_outside(var: Array, eps: float) -> Array:
    """``1 / (sigma + eps)``, and beside it ``1 / sigma``."""
    sigma = np.sqrt(var)
    return np.concatenate([1 / (sigma + eps), 1 / sigma], axis=-1)


def _eps_outside_back(nu: Array, s: Array, g: Any, d: Array) -> Array:
    dnu = g * d
    along = nu * (nu * dnu).mean(axis=-1, keepdims=True)
    return np.asarray(s[..., :1] * (dnu - dnu.mean(axis=-1, keepdims=True)) - s[..., 1:] * along)


mutant(
    "NORM-EPS-OUTSIDE",
    "eps outside the norm's root",
    "sqrt(var) + eps in place of sqrt(var + eps).",
    _FORWARD,
    {
        "norm.deviation": _eps_outside,
        "norm.nu": lambda x, mu, s: F["norm.nu"](x, mu, s[..., :1]),
        "norm_back": _eps_outside_back,
    },
)
mutant(
    "NORM-EPS-OTHER",
    "another eps in the norm",
    "An eps that is not the one given: 1e-5, 1e-6 and 1e-12 are defaults of different models.",
    _FORWARD,
    lambda size: {"norm.deviation": lambda var, eps: F["norm.deviation"](var, size)},
    sizes=(1e-8, 1e-6, 1e-5, 1e-3, 0.1),
    example=1e-3,
)


def _tokens(x: Array) -> int:
    """Find the axis of the tokens, where there are tokens."""
    return 1 if x.ndim == 3 else -1


def _variance_over_tokens(v: Values, x: Array, mu: Array) -> Array:
    return np.asarray(((x - mu) ** 2).mean(axis=_tokens(x), keepdims=True))


def _over_tokens_back(nu: Array, s: Array, g: Any, d: Array) -> Array:
    if nu.ndim == 3:
        return F["norm_back"](nu, s, g, d)
    turned = (np.swapaxes(a, -1, -2) for a in (nu, s))
    return np.swapaxes(F["norm_back"](*turned, 1.0, np.swapaxes(g * d, -1, -2)), -1, -2)


mutant(
    "NORM-AXIS",
    "the norm over the tokens",
    "Mean and variance are taken along the wrong axis.",
    "x.mean(-1), x.var(-1): over the width, token by token",
    {
        "norm.mean": lambda x: x.mean(axis=_tokens(x), keepdims=True),
        "norm.variance": _variance_over_tokens,
        "norm_back": _over_tokens_back,
    },
)


def _no_mean(nu: Array, s: Array, g: Any, d: Array) -> Array:
    return np.asarray(s * (g * d - nu * (nu * (g * d)).mean(axis=-1, keepdims=True)))


mutant(
    "NORM-RMS",
    "the root mean square in place of the norm",
    "RMSNorm: the mean is not taken out.",
    _FORWARD,
    {"norm.mean": lambda x: 0 * F["norm.mean"](x), "norm_back": _no_mean},
)


def _one_pass(v: Values, x: Array, mu: Array) -> Array:
    squares = v.keep("squares", (x * x).mean(axis=-1, keepdims=True))
    return np.asarray(squares - mu * mu)


mutant(
    "NORM-ONE-PASS",
    "the variance in one pass",
    "mean(x^2) - mean(x)^2 loses its digits where the mean is large.",
    "var = ((x - mean) ** 2).mean(-1)",
    {"norm.variance": _one_pass},
)
mutant(
    "NORM-GAIN-MISSING",
    "the norm's gain left out",
    "y = nu + b.",
    _FORWARD,
    {"norm.gain": lambda g: 1.0},
)
mutant(
    "NORM-SHIFT-MISSING",
    "the norm's shift left out",
    "y = g nu.",
    _FORWARD,
    {"norm.shift": lambda b: 0.0},
)
mutant(
    "NORM-GAIN-PLUS-ONE",
    "1 + g for the norm's gain",
    "A gain stored as its difference from 1, read from a model that stores it whole.",
    _FORWARD,
    {"norm.gain": lambda g: g + (np.ndim(g) > 0)},
)
mutant(
    "NORM-JACOBIAN-NO-GAIN",
    "the gain missing in the norm's Jacobian",
    "dnu = dy in place of g dy.",
    _BACK,
    {"norm_back": lambda nu, s, g, d: F["norm_back"](nu, s, 1.0, d)},
)
mutant(
    "NORM-JACOBIAN-NO-MEAN",
    "the mean's part missing in the norm's Jacobian",
    "The mean is taken for a constant.",
    _BACK,
    {"norm_back": _no_mean},
)
mutant(
    "NORM-JACOBIAN-NO-VARIANCE",
    "the variance's part missing in the norm's Jacobian",
    "The variance is taken for a constant.",
    _BACK,
    {"norm_back": lambda nu, s, g, d: s * (g * d - (g * d).mean(axis=-1, keepdims=True)) + 0 * nu},
)
mutant(
    "NORM-JACOBIAN-NO-STATISTICS",
    "mean and variance taken for constants",
    "dx = s g dy.",
    _BACK,
    {"norm_back": lambda nu, s, g, d: s * (g * d) + 0 * nu},
)
