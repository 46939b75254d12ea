"""Mistakes in the noise estimators, and of precision.

Shapes as in ``formulas``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.kalman.filter import times
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.filter import FORMULAS, predicted_covariance
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS


def _ema(sample: Any, beta: Any = lambda v: v.beta) -> Any:
    return lambda v: beta(v) * v.R + (1 - beta(v)) * sample(v)


def _ee(v: Values) -> Array:
    return np.outer(v.r, v.r)


def _estimators(wrap: Any) -> Changes:
    return {
        f"R.{k}": wrap(F[f"R.{k}"])
        for k in ("ema_innovation", "ema_innovation_hph", "ema_residual_hph")
    }


mutant(
    "NOISE-BETA-SWAPPED",
    "beta taken for 1 - beta",
    "The past gets the weight 1 - beta.",
    "R = beta * R + (1 - beta) * sample",
    _estimators(lambda f: lambda v: f(Values(v, beta=1 - v.beta))),
)
mutant(
    "NOISE-NO-HPH",
    "H p H' left out of R",
    "Only e e' enters the average.",
    "sample = np.outer(e, e) + H @ (p[:, None] * H.T)",
    {"R.ema_innovation_hph": F["R.ema_innovation"], "R.ema_residual_hph": F["R.ema_innovation"]},
)
mutant(
    "NOISE-HPH-ADDED",
    "H p H' added unasked",
    "ema_innovation averages e e' alone.",
    "sample = np.outer(e, e)",
    {"R.ema_innovation": F["R.ema_innovation_hph"]},
)
mutant(
    "NOISE-HPH-SUBTRACTED",
    "H p H' subtracted",
    "e e' - H p H': unbiased for the innovation, but not what was asked for, and not positive.",
    "sample = np.outer(e, e) + H @ (p[:, None] * H.T)",
    {f"R.{k}": _ema(lambda v: _ee(v) - v.HpH) for k in ("ema_innovation_hph", "ema_residual_hph")},
)


def _corrected(f: Any) -> Any:
    """R's average divided by 1 - beta^t; t = 1 outside a run."""
    return lambda v: f(v) / (1 - v.beta ** v.get("t", 1))


mutant(
    "NOISE-BIAS-CORRECTED",
    "average bias-corrected",
    "R is divided by 1 - beta^t as in Adam. R starts at R_0, not at 0: there is no such bias.",
    "R = beta * R + (1 - beta) * sample",
    _estimators(_corrected),
)
mutant(
    "NOISE-DIAGONAL",
    "only the diagonal of the sample",
    "Off-diagonal entries of e e' (+ H p H') are dropped.",
    "sample = np.outer(e, e)",
    {
        "R.ema_innovation": _ema(lambda v: np.diag(v.r**2)),
        "R.ema_innovation_hph": _ema(lambda v: np.diag(np.diag(_ee(v) + v.HpH))),
        "R.ema_residual_hph": _ema(lambda v: np.diag(np.diag(_ee(v) + v.HpH))),
    },
)
mutant(
    "NOISE-SCALAR",
    "one variance for all outputs",
    "mean(e^2) I in place of e e'.",
    "sample = np.outer(e, e)",
    {"R.ema_innovation": _ema(lambda v: np.mean(v.r**2) * np.eye(len(v.r)))},
)
mutant(
    "NOISE-ADDED",
    "(1 - beta) left out",
    "R = beta R + sample: the average grows by 1 / (1 - beta).",
    "R = beta * R + (1 - beta) * sample",
    {
        "R.ema_innovation": lambda v: v.beta * v.R + _ee(v),
        "R.ema_innovation_hph": lambda v: v.beta * v.R + _ee(v) + v.HpH,
        "R.ema_residual_hph": lambda v: v.beta * v.R + _ee(v) + v.HpH,
    },
)
mutant(
    "NOISE-BETA",
    "another beta",
    "R is averaged with another beta than the one given (a default that is not overwritten).",
    "R = beta * R + (1 - beta) * sample",
    lambda size: _estimators(lambda f: lambda v: f(Values(v, beta=size))),
    sizes=(0.01, 0.1, 0.3, 0.6, 0.9, 0.98, 0.99, 0.999),
    example=0.77,
)
mutant(
    "NOISE-AFTER",
    "R refreshed after the gain",
    "With timing 'before' the refreshed R enters this step's S; here the old one does.",
    "R = refresh(R, e, HpH) before S = HpH + R",
    {"timing": lambda v: "after"},
)
mutant(
    "NOISE-BEFORE",
    "R refreshed before the gain",
    "With timing 'after' the old R enters this step's S.",
    "S = HpH + R before R = refresh(R, e, HpH)",
    {"timing": lambda v: "before" if v.noise != "ema_residual_hph" else "after"},
)
mutant(
    "NOISE-STALE-P",
    "H p H' with the p before the time update",
    "R's sample uses the last posterior p in place of p_pred.",
    "HpH = H @ (p_pred[:, None] * H.T)",
    {"covariance_seen": lambda v: v.p},
)
mutant(
    "NOISE-POSTERIOR-P",
    "H p H' with the posterior p after the gain",
    "With timing 'after' the innovation's estimate uses the prior p of the same step.",
    "HpH with p_pred, computed before p is overwritten",
    {
        "R.ema_innovation_hph": lambda v: F["R.ema_innovation_hph"](
            Values(v, HpH=v.H @ times(v.p_post, v.H)) if v.get("p_post") is not None else v
        )
    },
)
mutant(
    "NOISE-INNOVATION-FOR-RESIDUAL",
    "the innovation for the residual",
    "ema_residual_hph needs y - h(theta+), one more forward pass.",
    "r = y - predict(theta_new, x)",
    {"residual": lambda v: v.e},
)
mutant(
    "NOISE-PRIOR-FOR-RESIDUAL",
    "the prior p with the residual",
    "ema_residual_hph adds H p+ H' with the posterior p.",
    "H @ (p_new[:, None] * H.T)",
    {"covariance_residual": lambda v: v.p_pred},
)
mutant(
    "NOISE-RESET",
    "R not carried from step to step",
    "Each step starts from R_0.",
    "keep R in the state",
    {"carried": lambda state, start: start["R"]},
)
mutant(
    "NOISE-ALWAYS-REFRESHED",
    "R refreshed although fixed",
    "'fixed' keeps R_0.",
    "if noise != 'fixed': refresh",
    {"R.fixed": F["R.ema_innovation"]},
)

mutant(
    "NOISE-REFRESHED-TWICE",
    "R refreshed twice with the same sample",
    "The sample enters the average twice: R goes beta^2 R + (1 - beta^2) sample.",
    "one refresh a step",
    _estimators(lambda f: lambda v: f(Values(v, R=f(v)))),
)


def _refreshed(v: Values) -> Array:
    """Return R refreshed before the gain whatever the timing."""
    HpH = predicted_covariance(v, v.p_pred)
    found: Array = F[f"R.{v.noise}"](Values(v, r=v.e, HpH=HpH))
    return found


mutant(
    "NOISE-BEFORE-AND-AFTER",
    "R refreshed before the gain and after it",
    "Each step refreshes R twice: once for S, and once more from there.",
    "one refresh a step, before the gain or after it",
    {
        "R.standing": _refreshed,
        "R.kept": lambda v: F[f"R.{v.noise}"](_standing(v)),
        **_estimators(lambda f: lambda v: f(_standing(v) if v.get("timing") == "after" else v)),
    },
)


def _standing(v: Values) -> Values:
    return Values(v, R=v.get("R_used", v.R))


def _linear_logits(v: Values) -> Array:
    """``y - h(z + Z (theta+ - theta))``."""
    z = v.z + (v.Z @ (v.theta_post - v.theta)).reshape(v.z.shape)
    found: Array = (v.y - F["yhat"](Values(v, z=z))).reshape(-1)
    return found


_RESIDUAL = "r = y - predict(theta_new, x)"

mutant(
    "NOISE-RESIDUAL-LINEAR",
    "the residual by the linearisation",
    "y - yhat - H (theta+ - theta) in place of y - h(theta+): no forward pass is made.",
    _RESIDUAL,
    {"residual": lambda v: v.e - v.H @ (v.theta_post - v.theta)},
)
mutant(
    "NOISE-RESIDUAL-LINEAR-LOGITS",
    "the residual by linearised outputs of the network",
    "y - h(z + Z (theta+ - theta)) in place of y - h(z(theta+)): no forward pass is made.",
    _RESIDUAL,
    {"residual": _linear_logits},
)
mutant(
    "NOISE-RESIDUAL-RAW",
    "the residual of the network's outputs, without the softmax",
    "y - z(theta+) in place of y - softmax(z(theta+)).",
    _RESIDUAL,
    {"residual": lambda v: F["residual"](Values(v, F={**v.F, "yhat": lambda w: w.z}))},
)

# ------------------------------------------------------------------------- precision

mutant(
    "SINGLE",
    "single precision inside",
    "Numbers agree with the oracle to float32's digits, not float64's: a float32 array, constant "
    "or accumulator on the way (torch's default dtype, JAX without x64).",
    "dtype=np.float64 throughout; jax.config.update('jax_enable_x64', True)",
    roundoff=2.0**-24,
)
mutant(
    "HALF",
    "half precision inside",
    "Numbers agree to about three digits: float16, or TF32 matrix products on a GPU.",
    "torch.backends.cuda.matmul.allow_tf32 = False; no autocast",
    roundoff=2.0**-11,
)
