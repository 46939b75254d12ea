"""Learnt positions added to a fixed number of tokens: forward, vjp, entry, initialization.

Shapes: x, y (batch, t, d); table (count, d), t <= count; dy (k, batch, t, d).
"""

from __future__ import annotations

from typing import Any

from loko_ref.arrays import Array, namespace
from loko_ref.errors import InputError
from loko_ref.network.layers.base import Context, Kind, Layer, Params, Request, Shapes


class Positions(Kind):
    """Learnt positions added to a fixed number of tokens.  [ATT-4]."""

    required = ("name", "width", "count")
    params = ("position",)
    sizes = ("width", "count")
    deviation = 0.02
    needs_tokens = True

    def shapes(self, layer: Layer) -> Shapes:
        """``position`` (count, d)."""
        return {"position": (layer["count"], layer["width"])}

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Add the first t rows; raise if there are fewer."""
        table = params["position"]
        if x.shape[1] > table.shape[0]:
            raise InputError(
                "x",
                f"{x.shape[1]} tokens",
                f"at most {table.shape[0]}, the positions of '{layer['name']}'",
                "an image or text longer than the model was made for",
            )
        return x + table[: x.shape[1]], table.shape[0]

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """``dx = dy``, and the table's cotangent where it is wanted."""
        if "position" not in request.need:
            return dy, {}
        k, batch, t, d = dy.shape
        xp = namespace(dy)
        rest = xp.zeros((k, batch, cache - t, d), dtype=dy.dtype)
        dtable = xp.concatenate([dy, rest], axis=2)  # (k, batch, count, d)
        return dy, {"position": dtable if request.per_sample else dtable.sum(axis=1)}
