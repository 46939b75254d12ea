"""Tokens to one vector: forward, vjp and entry in the spec.  [ATT-6]

Shapes: x (batch, t, d); mask (batch, t) of bool; y (batch, d); dy (k, batch, d).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from loko_ref.arrays import Array, namespace
from loko_ref.checks.values import check_choice
from loko_ref.network.layers.base import Context, Flow, Kind, Layer, Params, Request

Pooling = Literal["cls", "mean"]
"""The first token, or the mean of those that count."""


def forward(x: Array, how: Pooling, mask: Array | None = None) -> Array:
    """Return one vector per sample: the first token, or the mean of those that count.  [ATT-6]."""
    if how == "cls":
        return x[:, 0]
    if mask is None:
        return x.mean(axis=1)
    real = mask.astype(x.real.dtype)[:, :, None]
    return (x * real).sum(axis=1) / real.sum(axis=1)


def vjp(dy: Array, how: Pooling, t: int, mask: Array | None = None) -> Array:
    """Spread the cotangent (k, batch, d) over the tokens: (k, batch, t, d).  [ATT-6]."""
    xp = namespace(dy)
    k, batch, d = dy.shape
    if how == "cls":
        dx = xp.zeros((k, batch, t, d), dtype=dy.dtype)
        dx[:, :, 0] = dy
        return dx
    if mask is None:
        return xp.broadcast_to((dy / t)[:, :, None], (k, batch, t, d))
    real = mask.astype(dy.dtype)[:, :, None]  # (batch, t, 1)
    return dy[:, :, None] * (real / real.sum(axis=1, keepdims=True))


class Pool(Kind):
    """From tokens to one vector.  [ATT-6]."""

    required = ("how",)
    needs_tokens = True

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Raise unless the way of pooling is known."""
        check_choice(f"{where}.how", layer["how"], get_args(Pooling))
        return Flow(flow.width, False)

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Return y; the cache is the number of tokens and the mask."""
        return forward(x, layer["how"], context.mask), (x.shape[1], context.mask)

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """Return dx (k, batch, t, d)."""
        t, mask = cache
        return vjp(dy, layer["how"], t, mask), {}
