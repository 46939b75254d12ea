"""Kinds that hold other layers: attention with its projections, the residual branch.

Shapes: x (batch, t, d); dy (k, batch, t, d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import InputError
from loko_ref.network.kinds.base import (
    KINDS,
    Ask,
    Back,
    Context,
    Flow,
    Kind,
    Layer,
    Shapes,
    Weights,
    backward,
    check_layers,
    layer_shapes,
    names,
    run,
    whole,
    width_in,
)
from loko_ref.network.kinds.dense import LINEAR
from loko_ref.network.layers import attention

__all__ = ["PROJECTIONS", "Attention", "Residual", "projections"]

PROJECTIONS = ("q", "k", "v", "o")
"""An attention layer's linears, in model order."""


def projections(layer: Layer) -> dict[str, Layer]:
    """Give the linears q, k, v, o of an attention layer their full names."""
    return {
        key: {"kind": "linear", **layer[key], "name": f"{layer['name']}.{key}"}
        for key in PROJECTIONS
    }


class Attention(Kind):
    """Multi-head self-attention with its four projections.  [ATT-2, ATT-3]."""

    required = ("name", "heads", *PROJECTIONS)
    optional = ("causal",)

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """q, k, v read the same width; heads divide it; o reads what v gives."""
        flow.need_tokens(where, layer)
        whole(f"{where}.heads", layer["heads"])
        out: dict[str, int] = {}
        for key, spec in projections(layer).items():
            for got in layer[key].keys() - {"in", "out", "bias", "lora"}:
                raise InputError(
                    f"{where}.{key}.{got}",
                    repr(layer[key][got]),
                    "keys in, out, bias, lora",
                    "a foreign key; a projection has the attention's name",
                )
            for must in ("in", "out"):
                if must not in layer[key]:
                    raise InputError(
                        f"{where}.{key}", f"no {must}", f"a key '{must}'", "an incomplete linear"
                    )
            before = Flow(out["v"], True) if key == "o" else flow
            out[key] = LINEAR.check(spec, f"{where}.{key}", before).width or 0
            if key != "o" and (layer[key]["in"], out[key]) != (layer["q"]["in"], out["q"]):
                raise InputError(
                    f"{where}.{key}",
                    f"{layer[key]['in']} -> {out[key]}",
                    f"{layer['q']['in']} -> {out['q']}, as q has it",
                    "projections of different widths",
                )
        if out["q"] % layer["heads"]:
            raise InputError(
                f"{where}.heads", layer["heads"], f"a divisor of {out['q']}", "a wrong head count"
            )
        return Flow(out["o"], True)

    def shapes(self, layer: Layer) -> Shapes:
        """Those of q, k, v, o."""
        shapes: Shapes = {}
        for spec in projections(layer).values():
            shapes |= LINEAR.shapes(spec)
        return shapes

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Yield q, k, v, o."""
        yield from projections(layer).values()

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Change q, k, v, o."""
        new = dict(layer)
        for key, spec in projections(layer).items():
            changed = dict(change(spec))
            new[key] = {k: v for k, v in changed.items() if k not in ("kind", "name")}
        return new

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw the four linears in turn."""
        weights: dict[str, Any] = {}
        for spec in projections(layer).values():
            weights |= LINEAR.init(spec, rng, init, dtype)
        return weights

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Project, attend, project."""
        spec = projections(layer)
        kept = {}
        out = {}
        for key in ("q", "k", "v"):
            out[key], kept[key] = LINEAR.forward(spec[key], weights, x, context)
        y, kept["attend"] = attention.forward(
            out["q"],
            out["k"],
            out["v"],
            layer["heads"],
            mask=context.mask,
            causal=layer.get("causal", False),
        )
        y, kept["o"] = LINEAR.forward(spec["o"], weights, y, context)
        return y, kept

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Undo the steps in reverse; a projection that nothing asks for is left out."""
        spec = projections(layer)
        wanted = {key: ask.need_dx or bool(names(spec[key]) & ask.need) for key in ("q", "k", "v")}
        inner = replace(ask, need_dx=any(wanted.values()))
        dx, found = LINEAR.vjp(spec["o"], dy, cache["o"], inner)
        if dx is None:
            return None, found
        total: Array | None = None
        for key, d in zip("qkv", attention.vjp(dx, cache["attend"]), strict=True):
            if wanted[key]:
                part, got = LINEAR.vjp(spec[key], d, cache[key], ask)
                found |= got
                total = part if total is None or part is None else total + part
        return total, found


class Residual(Kind):
    """``y = x + layers(x)``.  [ATT-7]."""

    required = ("layers",)

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Refuse layers that do not return to the width they started from."""
        if not layer["layers"]:
            raise InputError(f"{where}.layers", "no layers", "at least one layer", "an empty list")
        inner = check_layers(layer["layers"], f"{where}.layers", flow)
        start = flow.width
        if start is None:
            start = width_in(layer["layers"])
        if inner.width != start or (flow.tokens is not None and inner.tokens != flow.tokens):
            raise InputError(
                f"{where}.layers",
                f"output width {inner.width}",
                f"{start}, the width of the input",
                "x and layers(x) cannot be added",
            )
        return inner

    def shapes(self, layer: Layer) -> Shapes:
        """Those of its layers."""
        return layer_shapes(layer["layers"])

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Those of its layers."""
        for inner in layer["layers"]:
            yield from KINDS[inner["kind"]].linears(inner)

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Change those of its layers."""
        inner = [KINDS[k["kind"]].map_linears(k, change) for k in layer["layers"]]
        return {**layer, "layers": inner}

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw its layers in turn."""
        weights: dict[str, Any] = {}
        for inner in layer["layers"]:
            weights |= KINDS[inner["kind"]].init(inner, rng, init, dtype)
        return weights

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Run the layers and add x."""
        y, caches = run(layer["layers"], weights, x, context)
        return x + y, caches

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """``dx = dy + layers'(dy)``."""
        dx, found = backward(layer["layers"], dy, cache, ask)
        return (None if dx is None else dy + dx), found
