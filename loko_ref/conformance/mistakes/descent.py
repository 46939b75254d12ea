"""Mistakes in SGD, AdaGrad and AdamW: other methods in their place, decay, corrections.

Shapes: theta, g (the gradient), every slot (n,). ``v.t`` counts steps from 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.optimizers import DESCENT
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

D = DESCENT


def _sgd_damped(v: Values) -> Array:
    d = v.F["sgd.decay"](v)
    return v.momentum * v.slot["momentum"] + (1 - v.dampening) * d


mutant(
    "SGD-FIRST-DAMPED",
    "SGD: the first step damped",
    "The first buffer is the gradient itself; dampening begins with the second step.",
    "buffer = g at the first step",
    {"sgd.momentum": _sgd_damped},
)
mutant(
    "SGD-NO-NESTEROV",
    "SGD: nesterov ignored",
    "The plain momentum step.",
    "step = g + momentum * buffer",
    {"sgd.theta": lambda v: D["sgd.theta"](Values(v, nesterov=False))},
)
mutant(
    "SGD-DECOUPLED-DECAY",
    "SGD: decay decoupled",
    "theta is shrunk by lr * weight_decay in place of adding weight_decay * theta to the gradient.",
    "g = g + weight_decay * theta",
    {
        "sgd.decay": lambda v: v.g,
        "sgd.theta": lambda v: D["sgd.theta"](v) - v.lr * v.weight_decay * v.theta,
    },
)
mutant(
    "SGD-NO-DECAY",
    "SGD: weight decay ignored",
    "The step is along the loss's gradient alone.",
    "g = g + weight_decay * theta",
    {"sgd.decay": lambda v: v.g},
)
mutant(
    "SGD-AVERAGE",
    "SGD: momentum as an average",
    "buffer = momentum buffer + (1 - momentum) g.",
    "buffer = momentum * buffer + (1 - dampening) * g",
    {
        "sgd.momentum": lambda v: (
            v.F["sgd.decay"](v)
            if v.t == 1
            else v.momentum * v.slot["momentum"] + (1 - v.momentum) * v.F["sgd.decay"](v)
        )
    },
)
mutant(
    "SGD-AVERAGE-FROM-ZERO",
    "SGD: momentum as an average that begins at 0",
    "buffer = momentum buffer + (1 - momentum) g at every step, the first too.",
    "buffer = g at the first step, then momentum * buffer + (1 - dampening) * g",
    {
        "sgd.momentum": lambda v: (
            v.momentum * v.slot["momentum"] + (1 - v.momentum) * v.F["sgd.decay"](v)
        )
    },
)
mutant(
    "SGD-NESTEROV-ALWAYS",
    "SGD: nesterov unasked",
    "g + momentum buffer in place of the buffer.",
    "step = buffer",
    {"sgd.theta": lambda v: D["sgd.theta"](Values(v, nesterov=bool(v.momentum)))},
)
mutant(
    "DESCENT-SIGN",
    "SGD: uphill",
    "theta + lr g.",
    "theta = theta - lr * g",
    {"sgd.theta": lambda v: D["sgd.theta"](Values(v, lr=-v.lr))},
)
mutant(
    "ADAGRAD-EPS-INSIDE",
    "AdaGrad: eps under the root",
    "sqrt(sum + eps) in place of sqrt(sum) + eps.",
    "theta - lr * g / (sqrt(sum) + eps)",
    {
        "adagrad.theta": lambda v: (
            v.theta
            - v.lr
            / (1 + (v.t - 1) * v.lr_decay)
            * v.F["adagrad.decay"](v)
            / np.sqrt(v.new["sum"] + v.eps)
        )
    },
)
mutant(
    "ADAGRAD-DECAY-FROM-ONE",
    "AdaGrad: lr_decay counted from 1",
    "lr / (1 + t lr_decay) at step t = 1, 2, ...; the first step has the full rate.",
    "lr / (1 + (t - 1) * lr_decay)",
    {"adagrad.theta": lambda v: D["adagrad.theta"](Values(v, t=v.t + 1))},
)
mutant(
    "ADAGRAD-NO-DECAY",
    "AdaGrad: weight decay ignored",
    "Sum and step are of the loss's gradient alone.",
    "g = g + weight_decay * theta",
    {"adagrad.decay": lambda v: v.g},
)
mutant(
    "ADAGRAD-FROM-ZERO",
    "AdaGrad: initial accumulator ignored",
    "The sum of squares begins at 0 in place of initial_accumulator_value.",
    "sum = initial_accumulator_value before the first step",
    {"adagrad.sum": lambda v: v.F["adagrad.decay"](v) ** 2 if v.t == 1 else D["adagrad.sum"](v)},
)


def _adagrad(v: Values, total: Array) -> Array:
    rate = v.lr / (1 + (v.t - 1) * v.lr_decay)
    step: Array = rate * v.F["adagrad.decay"](v) / (np.sqrt(total) + v.eps)
    return step


mutant(
    "ADAGRAD-DECOUPLED-DECAY",
    "AdaGrad: decay decoupled",
    "theta is shrunk by the rate times weight_decay in place of adding weight_decay * theta to the "
    "gradient.",
    "g = g + weight_decay * theta",
    {
        "adagrad.decay": lambda v: v.g,
        "adagrad.theta": lambda v: (
            D["adagrad.theta"](v) - v.lr / (1 + (v.t - 1) * v.lr_decay) * v.weight_decay * v.theta
        ),
    },
)
mutant(
    "ADAGRAD-LATE",
    "AdaGrad: the sum before this step's gradient",
    "g is divided by the root of the earlier gradients' sum of squares; its own comes too late.",
    "sum = sum + g * g, then theta - lr * g / (sqrt(sum) + eps)",
    {"adagrad.theta": lambda v: v.theta - _adagrad(v, v.slot["sum"])},
)
mutant(
    "ADAGRAD-AVERAGE",
    "AdaGrad: an average of squares for their sum",
    "sum = c sum + (1 - c) g^2: that is RMSProp.",
    "sum = sum + g * g",
    lambda size: {
        "adagrad.sum": lambda v: size * v.slot["sum"] + (1 - size) * v.F["adagrad.decay"](v) ** 2
    },
    sizes=(0.5, 0.9, 0.99, 0.999),
    example=0.93,
)
mutant(
    "ADAGRAD-MEAN",
    "AdaGrad: the mean of squares for their sum",
    "The sum of squares is divided by the number of steps.",
    "theta - lr * g / (sqrt(sum) + eps)",
    {"adagrad.theta": lambda v: v.theta - _adagrad(v, v.new["sum"] / v.t)},
)
mutant(
    "ADAMW-L2",
    "AdamW: decay in the gradient",
    "Adam with L2: weight_decay * theta is added to the gradient.",
    "theta = theta * (1 - lr * weight_decay)",
    {"adamw.gradient": lambda v: v.g + v.weight_decay * v.theta, "adamw.decay": lambda v: v.theta},
)
mutant(
    "ADAMW-NO-DECAY",
    "AdamW: decay left out",
    "Plain Adam.",
    "theta = theta * (1 - lr * weight_decay)",
    {"adamw.decay": lambda v: v.theta},
)
mutant(
    "ADAMW-DECAY-UNSCALED",
    "AdamW: decay without the learning rate",
    "theta (1 - weight_decay).",
    "theta = theta * (1 - lr * weight_decay)",
    {"adamw.decay": lambda v: v.theta * (1 - v.weight_decay)},
)


def _raw(v: Values) -> tuple[Array, Array]:
    return v.new["exp_avg"], v.new["exp_avg_sq"]


mutant(
    "ADAMW-UNCORRECTED",
    "AdamW: bias correction left out",
    "exp_avg and exp_avg_sq are used as they are.",
    "m / (1 - beta1**t), v / (1 - beta2**t)",
    {"adamw.hats": _raw},
)
mutant(
    "ADAMW-CORRECTED-LATE",
    "AdamW: correction counted from 0",
    "The power of beta is t + 1.",
    "t = 1 at the first step",
    {"adamw.hats": lambda v: D["adamw.hats"](Values(v, t=v.t + 1))},
)


def _eps_inside(v: Values) -> Array:
    m, s = v.F["adamw.hats"](v)
    return v.F["adamw.decay"](v) - v.lr * m / np.sqrt(s + v.eps)


def _eps_before(v: Values) -> Array:
    m, _ = v.F["adamw.hats"](v)
    root = (np.sqrt(v.new["exp_avg_sq"]) + v.eps) / math.sqrt(1 - v.beta2**v.t)
    return v.F["adamw.decay"](v) - v.lr * m / root


mutant(
    "ADAMW-EPS-INSIDE",
    "AdamW: eps under the root",
    "sqrt(v + eps) in place of sqrt(v) + eps.",
    "sqrt(v_hat) + eps",
    {"adamw.theta": _eps_inside},
)
mutant(
    "ADAMW-EPS-EARLY",
    "AdamW: eps before the correction",
    "(sqrt(v) + eps) / sqrt(1 - beta2^t), as in Adam's paper's second form.",
    "sqrt(v / (1 - beta2**t)) + eps",
    {"adamw.theta": _eps_before},
)


# ---------------------------------------------------------------------- Adam's relatives for AdamW


def _maximum(name: str, of: Any) -> Changes:
    """Remember the largest that something was, of each head in LTE."""
    largest: dict[int, Array] = {}

    def hats(v: Values) -> tuple[Array, Array]:
        head, now = v.get("head", 0), of(v)
        largest[head] = now if v.t == 1 else np.maximum(largest.get(head, now), now)
        m, s = D["adamw.hats"](Values(v, new={**v.new, "exp_avg_sq": largest[head]}))
        return m, s if name == "exp_avg_sq" else largest[head]

    return {"adamw.hats": hats}


mutant(
    "ADAMW-AMSGRAD",
    "AMSGrad in place of AdamW",
    "The step is divided by the root of the largest exp_avg_sq so far (amsgrad=True).",
    "sqrt(exp_avg_sq / (1 - beta2**t)) + eps",
    _maximum("exp_avg_sq", lambda v: v.new["exp_avg_sq"]),
)
mutant(
    "ADAMW-AMSGRAD-CORRECTED",
    "AMSGrad in place of AdamW, of the corrected averages",
    "The step is divided by the root of the largest exp_avg_sq / (1 - beta2^t) so far.",
    "sqrt(exp_avg_sq / (1 - beta2**t)) + eps",
    _maximum("hat", lambda v: D["adamw.hats"](v)[1]),
)


def _nadam(ahead: int) -> Changes:
    """Nesterov's look ahead; m is corrected by a power of beta1 that many steps ahead."""

    def hats(v: Values) -> tuple[Array, Array]:
        _, s = D["adamw.hats"](v)
        old, new = 1 - v.beta1 ** (v.t + ahead), 1 - v.beta1**v.t
        return v.beta1 * v.new["exp_avg"] / old + (1 - v.beta1) * v.g / new, s

    return {"adamw.hats": hats}


def _scheduled(v: Values) -> tuple[Array, Array]:
    """Torch's NAdam: a schedule of beta1, and the product of its values."""
    mu = [v.beta1 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in range(1, v.t + 2)]
    product = math.prod(mu[:-1])
    _, s = D["adamw.hats"](v)
    m = mu[-1] * v.new["exp_avg"] / (1 - product * mu[-1]) + (1 - mu[-2]) * v.g / (1 - product)
    return m, s


mutant(
    "ADAMW-NADAM",
    "NAdam in place of AdamW",
    "beta1 m / (1 - beta1^(t+1)) + (1 - beta1) g / (1 - beta1^t) in place of m / (1 - beta1^t).",
    "exp_avg / (1 - beta1**t)",
    _nadam(1),
)
mutant(
    "ADAMW-NADAM-ONE-CORRECTION",
    "NAdam in place of AdamW, by one correction",
    "(beta1 m + (1 - beta1) g) / (1 - beta1^t) in place of m / (1 - beta1^t).",
    "exp_avg / (1 - beta1**t)",
    _nadam(0),
)
mutant(
    "ADAMW-NADAM-SCHEDULED",
    "NAdam in place of AdamW, with torch's schedule of beta1",
    "torch.optim.NAdam: beta1 grows by momentum_decay = 0.004, and the step looks ahead.",
    "exp_avg / (1 - beta1**t)",
    {"adamw.hats": _scheduled},
)


def _belief(v: Values, eps: float = 0.0) -> Array:
    seen = (v.F["adamw.gradient"](v) - v.new["exp_avg"]) ** 2
    found: Array = v.beta2 * v.slot["exp_avg_sq"] + (1 - v.beta2) * seen + eps
    return found


mutant(
    "ADAMW-BELIEF",
    "AdaBelief in place of AdamW",
    "exp_avg_sq averages (g - exp_avg)^2 in place of g^2.",
    "exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g**2",
    {"adamw.exp_avg_sq": _belief},
)
mutant(
    "ADAMW-BELIEF-EPS",
    "AdaBelief in place of AdamW, eps added at every step",
    "exp_avg_sq averages (g - exp_avg)^2 in place of g^2, and eps is added to it.",
    "exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g**2",
    {"adamw.exp_avg_sq": lambda v: _belief(v, v.eps)},
)


def _one_hat(name: str) -> Changes:
    def hats(v: Values) -> tuple[Array, Array]:
        m, s = D["adamw.hats"](v)
        return (v.new[name], s) if name == "exp_avg" else (m, v.new[name])

    return {"adamw.hats": hats}


mutant(
    "ADAMW-FIRST-UNCORRECTED",
    "AdamW: exp_avg's bias correction left out",
    "exp_avg is used as it is.",
    "exp_avg / (1 - beta1**t)",
    _one_hat("exp_avg"),
)
mutant(
    "ADAMW-SECOND-UNCORRECTED",
    "AdamW: exp_avg_sq's bias correction left out",
    "exp_avg_sq is used as it is.",
    "exp_avg_sq / (1 - beta2**t)",
    _one_hat("exp_avg_sq"),
)


def _decay_divided(v: Values) -> Array:
    m, s = v.F["adamw.hats"](v)
    found: Array = v.theta - v.lr * (m + v.weight_decay * v.theta) / (np.sqrt(s) + v.eps)
    return found


mutant(
    "ADAMW-DECAY-DIVIDED",
    "AdamW: decay divided by the root",
    "weight_decay * theta is added to the corrected exp_avg, and divided by sqrt(exp_avg_sq) with "
    "it.",
    "theta = theta * (1 - lr * weight_decay)",
    {"adamw.theta": _decay_divided},
)
