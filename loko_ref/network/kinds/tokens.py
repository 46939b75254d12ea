"""Kinds at the two ends of a transformer: ids or images to tokens, tokens to one vector.

Shapes: x (batch, t, d), or ids (batch, t) and images at the input; dy with a leading axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array, namespace
from loko_ref.checks.values import check_choice
from loko_ref.errors import InputError
from loko_ref.network.kinds.base import (
    Ask,
    Back,
    Context,
    Flow,
    Kind,
    Layer,
    Shapes,
    Weights,
    draw,
    first,
    own,
    whole,
)
from loko_ref.network.layers import embedding

__all__ = ["Embedding", "Patchify", "Pool", "Positions", "Prepend"]


class Embedding(Kind):
    """Token ids to vectors: table + positions + types.  [ATT-4].

    ``inputs`` names the channels of the integer input: ``["ids"]`` (the default), x (batch, t);
    otherwise x (batch, channels, t), channels among ``ids``, ``types``, ``mask``. Without a
    ``mask`` channel, tokens equal to ``pad`` are padding. ``start`` numbers positions as RoBERTa
    does (:func:`loko_ref.network.layers.embedding.positions`).
    """

    required = ("name", "vocab", "width", "positions")
    optional = ("types", "pad", "start", "inputs")

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Refuse it anywhere but first."""
        first(flow, where, layer)
        for key in ("vocab", "width", "positions"):
            whole(f"{where}.{key}", layer[key])
        whole(f"{where}.types", layer.get("types", 0), 0)
        for key in ("pad", "start"):
            if layer.get(key) is not None:
                whole(f"{where}.{key}", layer[key], 0)
        inputs = self.inputs(layer)
        for key in inputs:
            check_choice(f"{where}.inputs", key, ("ids", "types", "mask"))
        if "ids" not in inputs or len(set(inputs)) != len(inputs):
            raise InputError(f"{where}.inputs", list(inputs), "'ids', each once", "a missing name")
        if "types" in inputs and not layer.get("types"):
            raise InputError(f"{where}.types", 0, "at least 1", "a channel without a table")
        return Flow(layer["width"], True)

    @staticmethod
    def inputs(layer: Layer) -> tuple[str, ...]:
        """Names of the input's channels."""
        return tuple(layer.get("inputs") or ("ids",))

    def shapes(self, layer: Layer) -> Shapes:
        """Tables of tokens, positions and types."""
        name, d = layer["name"], layer["width"]
        shapes: Shapes = {
            f"{name}.token": (layer["vocab"], d),
            f"{name}.position": (layer["positions"], d),
        }
        if layer.get("types"):
            shapes[f"{name}.type"] = (layer["types"], d)
        return shapes

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw from a normal, standard deviation 0.02."""
        return draw(self.shapes(layer), rng, dtype)

    def channels(self, layer: Layer, x: Array) -> tuple[Array, Array | None, Array | None]:
        """Split the input: ids, types or None, mask or None."""
        inputs = self.inputs(layer)
        part = {"ids": x} if len(inputs) == 1 else {n: x[:, j] for j, n in enumerate(inputs)}
        ids, mask = part["ids"], part.get("mask")
        if mask is not None:
            mask = mask != 0
        elif layer.get("pad") is not None:
            mask = ids != layer["pad"]
        return ids, part.get("types"), mask

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Add the rows read from each table; hand on the mask."""
        ids, types, context.mask = self.channels(layer, x)
        tables = own(layer, ("token", "position", "type"), weights)
        pad = layer.get("pad")
        at = embedding.positions(ids, None if pad is None else ids != pad, layer.get("start"))
        y, kept = embedding.lookup_forward(tables["token"], ids)
        p, kept_p = embedding.lookup_forward(tables["position"], at)
        y, caches = y + p, {"token": kept, "position": kept_p}
        if "type" in tables:
            zero = namespace(ids).zeros_like(ids) if types is None else types
            p, caches["type"] = embedding.lookup_forward(tables["type"], zero)
            y = y + p
        return y, caches

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Scatter into the tables asked for; ids have no cotangent."""
        prefix = layer["name"] + "."
        return None, {
            prefix + key: embedding.lookup_vjp(dy, kept, per_sample=ask.per_sample)
            for key, kept in cache.items()
            if prefix + key in ask.need
        }


class Patchify(Kind):
    """Cut images into flat patches.  [ATT-5]."""

    required = ("image", "patch")

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Refuse it anywhere but first, and a patch that does not divide the image."""
        first(flow, where, layer)
        for key, count in (("image", 3), ("patch", 2)):
            if len(layer[key]) != count:
                raise InputError(f"{where}.{key}", layer[key], f"{count} numbers", "a wrong shape")
            for value in layer[key]:
                whole(f"{where}.{key}", value)
        (c, h, w), (ph, pw) = layer["image"], layer["patch"]
        if h % ph or w % pw:
            raise InputError(
                f"{where}.patch", [ph, pw], f"a divisor of the image {h} x {w}", "a wrong size"
            )
        return Flow(c * ph * pw, True)

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Accept x (batch, channels, h, w) or (batch, channels * h * w)."""
        image = x.reshape(x.shape[0], *layer["image"])
        return embedding.patchify(image, tuple(layer["patch"])), x.shape[1:]

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Put the patches back."""
        dx = embedding.unpatchify(dy, tuple(layer["image"]), tuple(layer["patch"]))
        return dx.reshape(*dy.shape[:2], *cache), {}


class Prepend(Kind):
    """Learnt tokens before the others.  [ATT-5]."""

    required = ("name", "width")
    optional = ("count",)

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Width chains."""
        flow.need_tokens(where, layer)
        whole(f"{where}.width", layer["width"])
        whole(f"{where}.count", layer.get("count", 1))
        flow.take(f"{where}.width", layer["width"])
        return Flow(layer["width"], True)

    def shapes(self, layer: Layer) -> Shapes:
        """``token`` (count, d)."""
        return {f"{layer['name']}.token": (layer.get("count", 1), layer["width"])}

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw from a normal, standard deviation 0.02."""
        return draw(self.shapes(layer), rng, dtype)

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Prepend, to the mask too."""
        token = weights[f"{layer['name']}.token"]
        if context.mask is not None:
            xp = namespace(context.mask)
            real = xp.ones((x.shape[0], token.shape[0]), dtype=bool)
            context.mask = xp.concatenate([real, context.mask], axis=1)
        return embedding.prepend_forward(x, token), token.shape[0]

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Split the cotangent."""
        dx, dtoken = embedding.prepend_vjp(dy, cache, per_sample=ask.per_sample)
        name = f"{layer['name']}.token"
        return dx, ({name: dtoken} if name in ask.need else {})


class Positions(Kind):
    """Learnt positions added to a fixed number of tokens.  [ATT-4]."""

    required = ("name", "width", "count")

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Width chains."""
        flow.need_tokens(where, layer)
        for key in ("width", "count"):
            whole(f"{where}.{key}", layer[key])
        flow.take(f"{where}.width", layer["width"])
        return Flow(layer["width"], True)

    def shapes(self, layer: Layer) -> Shapes:
        """``position`` (count, d)."""
        return {f"{layer['name']}.position": (layer["count"], layer["width"])}

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw from a normal, standard deviation 0.02."""
        return draw(self.shapes(layer), rng, dtype)

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Add the first t rows."""
        table = weights[f"{layer['name']}.position"]
        if x.shape[1] > table.shape[0]:
            raise InputError(
                "x",
                f"{x.shape[1]} tokens",
                f"at most {table.shape[0]}, the positions of '{layer['name']}'",
                "an image or text longer than the model was made for",
            )
        return x + table[: x.shape[1]], table.shape[0]

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """``dx = dy``; the table sums over the batch."""
        name = f"{layer['name']}.position"
        if name not in ask.need:
            return dy, {}
        xp = namespace(dy)
        k, batch, t, d = dy.shape
        rest = xp.zeros((k, batch, cache - t, d), dtype=dy.dtype)
        table = xp.concatenate([dy, rest], axis=2)
        return dy, {name: table if ask.per_sample else table.sum(axis=1)}


class Pool(Kind):
    """From tokens to one vector.  [ATT-6]."""

    required = ("how",)

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Refuse it where there are no tokens."""
        check_choice(f"{where}.how", layer["how"], ("cls", "mean"))
        flow.need_tokens(where, layer)
        return Flow(flow.width, False)

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Call :func:`loko_ref.network.layers.embedding.pool_forward`."""
        y = embedding.pool_forward(x, layer["how"], context.mask)
        return y, (x.shape[1], context.mask)

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Call :func:`loko_ref.network.layers.embedding.pool_vjp`."""
        t, mask = cache
        return embedding.pool_vjp(dy, layer["how"], t, mask), {}
