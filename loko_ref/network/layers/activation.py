"""Activations: forward beside vjp, and their entry in the spec (a kind without keys).

Shapes: x, y (batch, ..., d); dy, dx (k, batch, ..., d) with a leading axis of k cotangents.
Each forward is written so that it also takes complex input (branches look at the real part), which
is what the complex-step test of its vjp needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from loko_ref.arrays import Array, erfc, namespace, pi, positive, root, scalar, where_or_zero
from loko_ref.arrays.special import (
    log_softmax_forward,
    log_softmax_vjp,
    softmax_forward,
    softmax_vjp,
)
from loko_ref.network.layers.base import Context, Kind, Layer, Params, Request


def tanh_forward(x: Array) -> tuple[Array, Array]:
    """``y = tanh(x)``; the cache is the slope 1 / cosh^2 x.  [LAY-4, BALL-7].

    With s = exp(-2 |x|) the slope is 4 s / (1 + s)^2; 1 - y^2 would lose its digits as y nears 1.
    """
    xp = namespace(x)
    s = xp.exp(2 * xp.where(x.real > 0, -x, x))
    return xp.tanh(x), 4 * s / ((1 + s) * (1 + s))


def tanh_vjp(dy: Array, cache: Array) -> Array:
    """``dx = (1 - y^2) dy``.  [LAY-4]."""
    return dy * cache


def relu_forward(x: Array) -> tuple[Array, Array]:
    """``y = max(x, 0)``; the cache is the mask x > 0.  [LAY-5]."""
    mask = positive(x)
    return where_or_zero(mask, x), mask


def relu_vjp(dy: Array, cache: Array) -> Array:
    """``dx = dy`` where x > 0, else 0 (0 at the kink, as torch and JAX have it).  [LAY-5]."""
    return where_or_zero(cache, dy)


def gelu_forward(x: Array) -> tuple[Array, Array]:
    """``y = x Phi(x)``, Phi(x) = erfc(-x / sqrt 2) / 2, exact; the cache is x.  [LAY-6]."""
    return x * (0.5 * erfc(x * -root(0.5, x))), x


def gelu_vjp(dy: Array, cache: Array) -> Array:
    """``dx = (Phi(x) + x phi(x)) dy``, phi(x) = exp(-x^2 / 2) / sqrt(2 pi).  [LAY-6]."""
    x = cache
    xp = namespace(x)
    Phi = 0.5 * erfc(x * -root(0.5, x))
    phi = xp.exp(-0.5 * x * x) * (1 / root(2 * pi(x), x))
    return dy * (Phi + x * phi)


def gelu_tanh_forward(x: Array) -> tuple[Array, Array]:
    """``y = x (1 + tanh v) / 2``, v = sqrt(2 / pi) (x + 0.044715 x^3).  [LAY-11].

    The cache is dy/dx. With s = exp(-2 |v|), (1 + tanh v) / 2 is 1 / (1 + s) where v > 0, else
    s / (1 + s): for x far below 0, 1 + tanh v would lose its digits.
    """
    xp = namespace(x)
    a, c = scalar(0.044715, x), root(2 / pi(x), x)
    v = c * (x + a * x * x * x)
    above = x.real > 0  # v has the sign of x
    s = xp.exp(2 * xp.where(above, -v, v))
    half = xp.where(above, xp.ones_like(s), s) / (1 + s)
    slope = s / ((1 + s) * (1 + s)) * (c * (1 + 3 * a * x * x))
    return x * half, half + 2 * x * slope


def gelu_tanh_vjp(dy: Array, cache: Array) -> Array:
    """``dx = ((1 + tanh v) / 2 + x v' / (2 cosh^2 v)) dy``.  [LAY-11]."""
    return dy * cache


Forward = Callable[[Array], tuple[Array, Array]]
Vjp = Callable[[Array, Array], Array]

ActivationName = Literal["tanh", "relu", "gelu", "gelu_tanh", "softmax", "log_softmax"]

ACTIVATIONS: dict[ActivationName, tuple[Forward, Vjp]] = {
    "tanh": (tanh_forward, tanh_vjp),
    "relu": (relu_forward, relu_vjp),
    "gelu": (gelu_forward, gelu_vjp),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_vjp),
    "softmax": (softmax_forward, softmax_vjp),
    "log_softmax": (log_softmax_forward, log_softmax_vjp),
}
"""Activation name -> (forward, vjp)."""


class Activation(Kind):
    """An elementwise function, or a softmax over the last axis.  [LAY-4 to LAY-8]."""

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Return (y, cache) of the activation that the layer's kind names."""
        return ACTIVATIONS[layer["kind"]][0](x)

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """Return (dx, {}): there are no arrays."""
        return ACTIVATIONS[layer["kind"]][1](dy, cache), {}
