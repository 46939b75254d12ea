"""Activations: forward and vjp side by side.

Shapes: x, y (batch, ..., d); dy, dx (k, batch, ..., d) with a leading axis of k cotangents.
Each forward is written so that it also takes complex input (branches look at the real part), which
is what the complex-step test of its vjp needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from loko_ref.arrays import Array, erfc, namespace

__all__ = [
    "ACTIVATIONS",
    "gelu_forward",
    "gelu_vjp",
    "log_softmax_forward",
    "log_softmax_vjp",
    "relu_forward",
    "relu_vjp",
    "softmax_forward",
    "softmax_vjp",
    "tanh_forward",
    "tanh_vjp",
]


def tanh_forward(x: Array) -> tuple[Array, Array]:
    """``y = tanh(x)``; the cache is y.  [LAY-4]."""
    y = namespace(x).tanh(x)
    return y, y


def tanh_vjp(dy: Array, cache: Array) -> Array:
    """``dx = (1 - y^2) dy``, written (1 - y)(1 + y) to keep its digits.  [LAY-4]."""
    y = cache
    return dy * ((1 - y) * (1 + y))


def relu_forward(x: Array) -> tuple[Array, Array]:
    """``y = max(x, 0)``; the cache is the mask x > 0.  [LAY-5]."""
    mask = x.real > 0
    return namespace(x).where(mask, x, namespace(x).zeros_like(x)), mask


def relu_vjp(dy: Array, cache: Array) -> Array:
    """``dx = dy`` where x > 0, else 0 (0 at the kink, as torch and JAX have it).  [LAY-5]."""
    xp = namespace(dy)
    return xp.where(cache, dy, xp.zeros_like(dy))


def gelu_forward(x: Array) -> tuple[Array, Array]:
    """``y = x Phi(x)``, Phi(x) = erfc(-x / sqrt 2) / 2, exact; the cache is x.  [LAY-6]."""
    return x * (0.5 * erfc(x * -math.sqrt(0.5))), x


def gelu_vjp(dy: Array, cache: Array) -> Array:
    """``dx = (Phi(x) + x phi(x)) dy``, phi(x) = exp(-x^2 / 2) / sqrt(2 pi).  [LAY-6]."""
    x = cache
    xp = namespace(x)
    Phi = 0.5 * erfc(x * -math.sqrt(0.5))
    phi = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return dy * (Phi + x * phi)


def softmax_forward(x: Array) -> tuple[Array, Array]:
    """``y = exp(x - c) / sum exp(x - c)``, c = max x; the cache is y.  [LAY-7]."""
    xp = namespace(x)
    s = xp.exp(x - x.real.max(axis=-1, keepdims=True))
    y = s / s.sum(axis=-1, keepdims=True)
    return y, y


def softmax_vjp(dy: Array, cache: Array) -> Array:
    """``dx = y (dy - <y, dy>)``.  [LAY-7]."""
    y = cache
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


def log_softmax_forward(x: Array) -> tuple[Array, Array]:
    """``y = x - c - log sum exp(x - c)``, c = max x; the cache is softmax(x).  [LAY-8]."""
    xp = namespace(x)
    shifted = x - x.real.max(axis=-1, keepdims=True)
    s = xp.exp(shifted)
    total = s.sum(axis=-1, keepdims=True)
    return shifted - xp.log(total), s / total


def log_softmax_vjp(dy: Array, cache: Array) -> Array:
    """``dx = dy - softmax(x) sum dy``.  [LAY-8]."""
    return dy - cache * dy.sum(axis=-1, keepdims=True)


Forward = Callable[[Array], tuple[Array, Array]]
Vjp = Callable[[Array, Array], Array]

ACTIVATIONS: dict[str, tuple[Forward, Vjp]] = {
    "tanh": (tanh_forward, tanh_vjp),
    "relu": (relu_forward, relu_vjp),
    "gelu": (gelu_forward, gelu_vjp),
    "softmax": (softmax_forward, softmax_vjp),
    "log_softmax": (log_softmax_forward, log_softmax_vjp),
}
"""Activation name -> (forward, vjp)."""
