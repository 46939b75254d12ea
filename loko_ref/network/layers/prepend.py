"""Learnt tokens before the others ([CLS]): forward, vjp, entry in the spec, initialization.

Shapes: x (batch, t, d); token (count, d); y (batch, count + t, d); dy (k, batch, count + t, d).
"""

from __future__ import annotations

from typing import Any, ClassVar

from loko_ref.arrays import Array, namespace
from loko_ref.network.layers.base import Context, Kind, Layer, Params, Request, Shapes


def forward(x: Array, token: Array) -> Array:
    """Put the learnt tokens (count, d) before each sample's own ([CLS]).  [ATT-5]."""
    xp = namespace(x, token)
    head = xp.broadcast_to(token, (x.shape[0], *token.shape))
    return xp.concatenate([head, x], axis=1)


def vjp(dy: Array, count: int, *, per_sample: bool = False) -> tuple[Array, Array]:
    """Split the cotangent: (dx, dtoken), dtoken (k, count, d) or (k, batch, count, d).  [ATT-5]."""
    head = dy[:, :, :count]
    return dy[:, :, count:], head if per_sample else head.sum(axis=1)


class Prepend(Kind):
    """Learnt tokens before the others.  [ATT-5]."""

    required = ("name", "width")
    optional: ClassVar = {"count": 1}
    params = ("token",)
    sizes = ("width", "count")
    deviation = 0.02
    needs_tokens = True

    def shapes(self, layer: Layer) -> Shapes:
        """``token`` (count, d)."""
        return {"token": (self.option(layer, "count"), layer["width"])}

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Prepend, to the mask too."""
        token = params["token"]
        if context.mask is not None:
            xp = namespace(context.mask)
            real = xp.ones((x.shape[0], token.shape[0]), dtype=bool)
            context.mask = xp.concatenate([real, context.mask], axis=1)
        return forward(x, token), token.shape[0]

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """Split the cotangent."""
        dx, dtoken = vjp(dy, cache, per_sample=request.per_sample)
        return dx, ({"token": dtoken} if "token" in request.need else {})
