"""Mistakes that show only at an edge: a kink, a default of 0, a third, a large gradient.

Shapes as in ``formulas``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook import FORMULA_TABLE as F
from loko_ref.textbook.quantities import Values

__all__: list[str] = []


mutant(
    "RELU-JACOBIAN-ONE-AT-ZERO",
    "ReLU's derivative at 0 is 1",
    "x >= 0 in place of x > 0: a unit at exactly 0 sends its cotangent on.",
    "d = dy * (x > 0)",
    {"relu_derivative": lambda x: (x >= 0).astype(x.dtype)},
)
mutant(
    "RELU-JACOBIAN-HALF-AT-ZERO",
    "ReLU's derivative at 0 is 1/2",
    "The maximum of two equal numbers sends half to each (jnp.maximum(x, 0), torch.maximum); "
    "relu's derivative at 0 is 0.",
    "d = dy * (x > 0)",
    {"relu_derivative": lambda x: ((x > 0) + 0.5 * (x == 0)).astype(x.dtype)},
)


def _single(alpha: float, r: int) -> float:
    return float(np.float32(alpha / r))


mutant(
    "SCALE-SINGLE",
    "alpha / r in single precision",
    "The scale is held in float32: where r does not divide alpha, it has 7 digits.",
    "scale = alpha / r, a Python float",
    {"scale": _single, "lte.scale": _single},
)


def _unseen(seen: Array) -> Array:
    """Which queries see no key, (..., t, 1)."""
    return np.asarray(~seen.any(axis=-1, keepdims=True))


def _uniform(v: Values, s: Array, seen: Array) -> tuple[Array, Array]:
    (a,) = F["attend"](v, s, seen)
    return np.where(_unseen(seen), 1 / s.shape[-1], a), seen


mutant(
    "UNSEEN-UNIFORM",
    "a query without keys takes the mean of all",
    "Scores filled with one large negative number are equal again where all are hidden: their "
    "softmax is 1/t each, over keys that are not to be seen.",
    "a = 0 for a query that sees no key",
    {
        "attend": _uniform,
        "attend_back": lambda da, a, seen: seen * F["attend_back"](da, seen * a),
    },
)
mutant(
    "UNSEEN-ALL",
    "a query without keys sees all of them",
    "A large number subtracted from every score of a row leaves their softmax as it was: the mask "
    "hides nothing where it hides everything.",
    "a = 0 for a query that sees no key",
    {"attend": lambda v, s, seen: F["attend"](v, s, seen | _unseen(seen))},
)


def _lowered(c: float) -> Changes:
    """Scores of hidden keys lowered by a number, beside which theirs lose digits."""

    def attend(v: Values, s: Array, seen: Array) -> tuple[Array, ...]:
        low = np.where(_unseen(seen), v.keep("hidden", s - c) + c, s)
        return tuple(F["attend"](v, low, seen | _unseen(seen)))

    return {"attend": attend}


for _digits, _c in (("4", 1e4), ("9", 1e9)):
    mutant(
        f"UNSEEN-LOWERED-{_digits}",
        f"1e{_digits} subtracted from every score of a query without keys",
        "The mask is added as a large negative number: where it hides every key their softmax is "
        "that of their scores, to the digits that are left of them.",
        "a = 0 for a query that sees no key",
        _lowered(_c),
    )


def _defaulted(v: Values) -> Any:
    return F["adamw.decay"](Values(v, weight_decay=v.weight_decay or 0.01))


mutant(
    "ADAMW-DECAY-DEFAULT",
    "AdamW: a decay of 0 taken for none given",
    "weight_decay or 0.01: 0 counts as missing, and torch's default stands in its place.",
    "theta = theta * (1 - lr * weight_decay)",
    {"adamw.decay": _defaulted},
)


def _clipped(clip: Callable[[Array, float], Array]) -> Callable[[float], Changes]:
    def changes(size: float) -> Changes:
        def wrap(name: str) -> Any:
            return lambda v: F[name](Values(v, g=clip(v.g, size)))

        return {name: wrap(name) for name in ("sgd.decay", "adagrad.decay", "adamw.gradient")}

    return changes


_LIMITS = (1.0, 0.1, 0.25, 0.3, 0.5, 2.0, 5.0, 10.0, 100.0)
mutant(
    "GRADIENT-CLIPPED",
    "gradient clipped, each entry",
    "Every entry of the gradient is kept inside [-c, c]: a training loop's clip_grad_value_.",
    "the gradient as it is given",
    _clipped(lambda g, c: np.clip(g, -c, c)),
    sizes=_LIMITS,
    example=0.5,
)
mutant(
    "GRADIENT-NORM-CLIPPED",
    "gradient clipped by its norm",
    "A gradient longer than c is shortened to c: a training loop's clip_grad_norm_.",
    "the gradient as it is given",
    _clipped(lambda g, c: g * np.minimum(1, c / np.linalg.norm(g, axis=-1, keepdims=True))),
    sizes=_LIMITS,
    example=0.5,
)
mutant(
    "SGD-NESTEROV-UNDECAYED",
    "SGD: Nesterov's look-ahead without the decay",
    "The gradient as given, without weight_decay theta, is added to mu momentum.",
    "g = gradient + weight_decay * theta in both places",
    {"sgd.theta": lambda v: F["sgd.theta"](v) + v.lr * v.nesterov * (F["sgd.decay"](v) - v.g)},
)
mutant(
    "WEIGHTS-BIASES-FIRST",
    "a layer's bias before its weight",
    "The arrays of a layer in the order of their names, as JAX sorts a dict's leaves.",
    "theta: layer by layer, W then b, g then b",
    {"order.weights": lambda names: names[::-1]},
)
mutant(
    "WEIGHTS-BIASES-FROZEN",
    "biases not trained",
    "Theta has their entries, and their columns of the Jacobian are 0.",
    "db = dy, summed over tokens",
    {"total": lambda d: 0 * F["total"](d)},
)
