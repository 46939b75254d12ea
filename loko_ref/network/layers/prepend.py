"""Learnt tokens before the others ([CLS]): forward, vjp, entry in the spec, initialization.

Shapes: x (batch, t, d); token (count, d); y (batch, count + t, d); dy (k, batch, count + t, d).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from loko_ref.arrays import Array, namespace
from loko_ref.checks.values import check_whole
from loko_ref.network.layers.base import (
    Context,
    Flow,
    Kind,
    Layer,
    Params,
    Request,
    Shapes,
    draw_normal,
)
from loko_ref.network.lora import Init

__all__ = ["Prepend", "forward", "vjp"]


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
    needs_tokens = True

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Width chains."""
        check_whole(f"{where}.width", layer["width"])
        check_whole(f"{where}.count", self.option(layer, "count"))
        flow.check_width(f"{where}.width", layer["width"])
        return Flow(layer["width"], True)

    def shapes(self, layer: Layer) -> Shapes:
        """``token`` (count, d)."""
        return {"token": (self.option(layer, "count"), layer["width"])}

    def init(
        self, layer: Layer, rng: np.random.Generator, init: Init, dtype: str
    ) -> dict[str, Any]:
        """Draw from a normal, standard deviation 0.02."""
        return draw_normal(self.shapes(layer), rng, dtype)

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
