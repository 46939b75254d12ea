"""The baselines by plain formulas, replaceable by name (see ``formulas``).

Shapes: theta, g (the gradient), every slot (n,). ``v.t`` counts steps from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.textbook.quantities import Quantity, Values, quantity, scalar

METHODS: dict[str, tuple[Quantity, ...]] = {
    "sgd": (
        quantity(
            "momentum",
            "gradient theta",
            "sgd.momentum",
            "g at step 1, then mu momentum + (1 - dampening) g; mu is the option, "
            "g = gradient + weight_decay theta (left out where mu = 0)",
            "OPT-1",
        ),
        quantity(
            "theta",
            "theta gradient momentum",
            "sgd.theta",
            "theta - lr d, d = momentum; with nesterov g + mu momentum; with mu = 0 g",
            "OPT-1",
        ),
    ),
    "adagrad": (
        quantity(
            "sum",
            "gradient theta",
            "adagrad.sum",
            "sum + g^2 from initial_accumulator_value, g = gradient + weight_decay theta",
            "OPT-2",
        ),
        quantity(
            "theta",
            "theta gradient sum",
            "adagrad.theta",
            "theta - lr / (1 + (t-1) lr_decay) g / (sqrt(sum) + eps)",
            "OPT-2",
        ),
    ),
    "adamw": (
        quantity(
            "exp_avg",
            "gradient",
            "adamw.exp_avg",
            "beta1 exp_avg + (1 - beta1) g, g = gradient, from 0",
            "OPT-3",
        ),
        quantity(
            "exp_avg_sq",
            "gradient",
            "adamw.exp_avg_sq",
            "beta2 exp_avg_sq + (1 - beta2) g^2, elementwise, from 0",
            "OPT-3",
        ),
        quantity(
            "theta",
            "theta exp_avg exp_avg_sq",
            "adamw.theta",
            "(1 - lr weight_decay) theta - lr (exp_avg / (1 - beta1^t)) / "
            "(sqrt(exp_avg_sq / (1 - beta2^t)) + eps) at step t = 1, 2, ...",
            "OPT-3",
        ),
    ),
}
"""Method -> the quantities of a step in dataflow order: what it carries beside theta, and theta."""

SLOTS = {name: tuple(q.name for q in flow[:-1]) for name, flow in METHODS.items()}
"""Method -> what it carries beside theta."""


def _decayed(v: Values) -> Array:
    """Weight decay as part of the gradient (SGD, AdaGrad)."""
    return v.g + v.weight_decay * v.theta


def _sgd_momentum(v: Values) -> Array:
    """[OPT-1]; the first step's buffer is the gradient itself, undamped."""
    d = v.F["sgd.decay"](v)
    return d if v.t == 1 else v.momentum * v.slot["momentum"] + (1 - v.dampening) * d


def _sgd_theta(v: Values) -> Array:
    d = v.F["sgd.decay"](v)
    move = d if not v.momentum else v.new["momentum"]
    if v.nesterov:
        move = d + v.momentum * v.new["momentum"]
    return v.theta - v.lr * move


def _adagrad_sum(v: Values) -> Array:
    """[OPT-2]."""
    d = v.F["adagrad.decay"](v)
    return v.slot["sum"] + d * d


def _adagrad_theta(v: Values) -> Array:
    lr = scalar(v, "rate", v.lr / (1 + (v.t - 1) * v.lr_decay))
    return v.theta - lr * v.F["adagrad.decay"](v) / (np.sqrt(v.new["sum"]) + v.eps)


def _adamw_exp_avg(v: Values) -> Array:
    """[OPT-3]."""
    return v.beta1 * v.slot["exp_avg"] + (1 - v.beta1) * v.F["adamw.gradient"](v)


def _adamw_exp_avg_sq(v: Values) -> Array:
    return v.beta2 * v.slot["exp_avg_sq"] + (1 - v.beta2) * v.F["adamw.gradient"](v) ** 2


def _adamw_hats(v: Values) -> tuple[Array, Array]:
    """Divide by 1 - beta^t, each of the two computed literally.  [TOL-7]."""
    of = [1 - scalar(v, "power", beta**v.t) for beta in (v.beta1, v.beta2)]
    m, s = (scalar(v, "correction", one) for one in of)
    return v.new["exp_avg"] / m, v.new["exp_avg_sq"] / s


def _adamw_theta(v: Values) -> Array:
    m, s = v.F["adamw.hats"](v)
    return v.F["adamw.decay"](v) - v.lr * m / (np.sqrt(s) + v.eps)


DESCENT: dict[str, Callable[..., Any]] = {
    "sgd.decay": _decayed,
    "sgd.momentum": _sgd_momentum,
    "sgd.theta": _sgd_theta,
    "adagrad.decay": _decayed,
    "adagrad.sum": _adagrad_sum,
    "adagrad.theta": _adagrad_theta,
    "adamw.gradient": lambda v: v.g,
    "adamw.exp_avg": _adamw_exp_avg,
    "adamw.exp_avg_sq": _adamw_exp_avg_sq,
    "adamw.hats": _adamw_hats,
    "adamw.decay": lambda v: v.theta * (1 - v.lr * v.weight_decay),
    "adamw.theta": _adamw_theta,
}
"""Formula name -> function."""


def run(method: str, v: Values) -> dict[str, Array]:
    """Take a step for each row of the gradient from a fresh state; stack theta and the slots."""
    flow = METHODS[method] if method != "sgd" or v.momentum else METHODS[method][-1:]
    start = v.get("initial_accumulator_value", 0.0)
    v["slot"] = {name: np.full(v.theta.shape[0], start) for name in SLOTS[method]}
    rows: list[dict[str, Array]] = []
    for t, g in enumerate(v.gradient, start=1):
        v |= {"t": t, "g": g, "new": {}}
        for q in flow:
            v.new[q.name] = v.keep(q.name, v.F[q.formula](v))
        v |= {"slot": v.new, "theta": v.new["theta"]}
        rows.append(v.new)
    return {q.name: np.stack([row[q.name] for row in rows]) for q in flow}
