"""Mistakes in layer normalisation.

Shapes: x, nu (batch, ..., width); s (batch, ..., 1); d with an axis of outputs behind the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS, Values

__all__: list[str] = []

F = FORMULAS
Normed = tuple[Array, Any]

_FORWARD = "nu = (x - mean) / sqrt(var + eps), y = g * nu + b"
_BACK = "dx = s * (dnu - mean(dnu) - nu * mean(nu * dnu)), dnu = g * dy"


def _unbiased(v: Values, x: Array, g: Any, b: Any, eps: float) -> Normed:
    ratio = (x.shape[-1] - 1) / x.shape[-1]  # c / sqrt(var / ratio + eps)
    made: Normed = F["norm"](v, x, g * ratio**0.5, b, eps * ratio)
    return made


mutant(
    "NORM-UNBIASED",
    "the variance divided by width - 1",
    "The unbiased variance (torch's x.var default) in place of the mean of squares.",
    "var = ((x - mean) ** 2).mean(-1)",
    {"norm": _unbiased},
)
mutant(
    "NORM-EPS-MISSING",
    "eps left out of the norm",
    "sqrt(var) alone.",
    _FORWARD,
    {"norm": lambda v, x, g, b, eps: F["norm"](v, x, g, b, 0.0)},
)


def _eps_outside(v: Values, x: Array, g: Any, b: Any, eps: float) -> Normed:
    """``c / (sigma + eps)``; kept are both reciprocals."""
    c = x - v.keep("mu", x.mean(axis=-1, keepdims=True))
    sigma = np.sqrt(v.keep("var", (c * c).mean(axis=-1, keepdims=True)))
    s = v.keep("deviation", 1 / (sigma + eps))
    nu = v.keep("nu", c * s)
    return g * nu + b, (nu, np.concatenate([s, 1 / sigma], axis=-1), g)


def _eps_outside_back(nu: Array, s: Array, g: Any, d: Array) -> Array:
    dnu = g * d
    along = nu * (nu * dnu).mean(axis=-1, keepdims=True)
    return np.asarray(s[..., :1] * (dnu - dnu.mean(axis=-1, keepdims=True)) - s[..., 1:] * along)


mutant(
    "NORM-EPS-OUTSIDE",
    "eps outside the norm's root",
    "sqrt(var) + eps in place of sqrt(var + eps).",
    _FORWARD,
    {"norm": _eps_outside, "norm_back": _eps_outside_back},
)
mutant(
    "NORM-EPS-OTHER",
    "another eps in the norm",
    "An eps that is not the one given: 1e-5, 1e-6 and 1e-12 are defaults of different models.",
    _FORWARD,
    lambda size: {"norm": lambda v, x, g, b, eps: F["norm"](v, x, g, b, size)},
    sizes=(1e-8, 1e-6, 1e-5, 1e-3, 0.1),
    example=1e-3,
)


def _over_tokens(v: Values, x: Array, g: Any, b: Any, eps: float) -> Normed:
    if x.ndim == 2:
        return F["norm"](v, x, g, b, eps)
    _, (nu, s, _) = F["norm"](v, np.swapaxes(x, 1, 2), 1.0, 0.0, eps)
    nu = np.swapaxes(nu, 1, 2)
    return g * nu + b, (nu, np.swapaxes(s, 1, 2), g)


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
    {"norm": _over_tokens, "norm_back": _over_tokens_back},
)


def _root_mean_square(v: Values, x: Array, g: Any, b: Any, eps: float) -> Normed:
    s = v.keep("deviation", 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps))
    nu = v.keep("nu", x * s)
    return g * nu + b, (nu, s, g)


def _no_mean(nu: Array, s: Array, g: Any, d: Array) -> Array:
    return np.asarray(s * (g * d - nu * (nu * (g * d)).mean(axis=-1, keepdims=True)))


mutant(
    "NORM-RMS",
    "the root mean square in place of the norm",
    "RMSNorm: the mean is not taken out.",
    _FORWARD,
    {"norm": _root_mean_square, "norm_back": _no_mean},
)


def _one_pass(v: Values, x: Array, g: Any, b: Any, eps: float) -> Normed:
    mu = v.keep("mu", x.mean(axis=-1, keepdims=True))
    squares = v.keep("squares", (x * x).mean(axis=-1, keepdims=True))
    s = v.keep("deviation", 1 / np.sqrt(squares - mu * mu + eps))
    nu = v.keep("nu", (x - mu) * s)
    return g * nu + b, (nu, s, g)


mutant(
    "NORM-ONE-PASS",
    "the variance in one pass",
    "mean(x^2) - mean(x)^2 loses its digits where the mean is large.",
    "var = ((x - mean) ** 2).mean(-1)",
    {"norm": _one_pass},
)
mutant(
    "NORM-GAIN-MISSING",
    "the norm's gain left out",
    "y = nu + b.",
    _FORWARD,
    {"norm": lambda v, x, g, b, eps: F["norm"](v, x, 1.0, b, eps)},
)
mutant(
    "NORM-SHIFT-MISSING",
    "the norm's shift left out",
    "y = g nu.",
    _FORWARD,
    {"norm": lambda v, x, g, b, eps: F["norm"](v, x, g, 0.0, eps)},
)
mutant(
    "NORM-GAIN-PLUS-ONE",
    "1 + g for the norm's gain",
    "A gain stored as its difference from 1, read from a model that stores it whole.",
    _FORWARD,
    {"norm": lambda v, x, g, b, eps: F["norm"](v, x, g + (np.ndim(g) > 0), b, eps)},
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
