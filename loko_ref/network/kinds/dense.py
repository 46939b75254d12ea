"""Kinds on single vectors or tokens alike: linear, activations, layer normalisation.

Shapes: x (batch, ..., i); dy (k, batch, ..., o).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.values import check_range
from loko_ref.errors import InputError
from loko_ref.network import lora
from loko_ref.network.kinds.base import (
    Ask,
    Back,
    Context,
    Flow,
    Kind,
    Layer,
    Shapes,
    Weights,
    own,
    whole,
)
from loko_ref.network.layers import linear, norm
from loko_ref.network.layers.activation import ACTIVATIONS

__all__ = ["LINEAR", "Activation", "LayerNorm", "Linear", "site_scale"]


def site_scale(layer: Layer, like: Array | None = None) -> Any:
    """``alpha / r`` of a linear's LoRA branch; 1 without one.  [LORA-2]."""
    site = layer.get("lora")
    return lora.scale(site["alpha"], site["r"], like) if site else 1.0


class Linear(Kind):
    """Affine map with an optional LoRA branch.  [LAY-1, LAY-2, LAY-3]."""

    required = ("name", "in", "out")
    optional = ("bias", "lora")

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Widths chain; the rank is at least 1 (it may exceed a width, as PEFT's may)."""
        i, o = layer["in"], layer["out"]
        for key in ("in", "out"):
            whole(f"{where}.{key}", layer[key])
        flow.take(f"{where}.in", i)
        if layer.get("lora"):
            if not isinstance(layer["lora"], Mapping):
                got = f"a {type(layer['lora']).__name__}"
                raise InputError(
                    f"{where}.lora", got, "a mapping with r and alpha", "the rank alone"
                )
            for key in layer["lora"].keys() - {"r", "alpha", "bias"}:
                raise InputError(
                    f"{where}.lora.{key}",
                    repr(layer["lora"][key]),
                    "keys r, alpha, bias",
                    "an option of another package",
                )
            for key in ("r", "alpha"):
                if key not in layer["lora"]:
                    raise InputError(
                        f"{where}.lora", "no " + key, f"a key '{key}'", "an incomplete LoRA site"
                    )
            whole(f"{where}.lora.r", layer["lora"]["r"])
            lora.scale(layer["lora"]["alpha"], layer["lora"]["r"])
        return Flow(o, flow.tokens)

    def shapes(self, layer: Layer) -> Shapes:
        """W, b, and A, B, bA, bB of the branch."""
        name, i, o = layer["name"], layer["in"], layer["out"]
        shapes: Shapes = {f"{name}.W": (o, i)}
        if layer.get("bias", True):
            shapes[f"{name}.b"] = (o,)
        if layer.get("lora"):
            r = layer["lora"]["r"]
            shapes[f"{name}.A"], shapes[f"{name}.B"] = (r, i), (o, r)
            if layer["lora"].get("bias", False):
                shapes[f"{name}.bA"], shapes[f"{name}.bB"] = (r,), (o,)
        return shapes

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Itself."""
        yield layer

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Itself, changed."""
        return dict(change(layer))

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """W uniform on ±sqrt(6 / i) (He), b = 0, factors as in LoRA."""
        name, i, o = layer["name"], layer["in"], layer["out"]
        bound = math.sqrt(6 / i)
        weights: dict[str, Any] = {
            f"{name}.W": rng.uniform(-bound, bound, size=(o, i)).astype(dtype)
        }
        if layer.get("bias", True):
            weights[f"{name}.b"] = np.zeros(o, dtype)
        if layer.get("lora"):
            site = layer["lora"]
            factors = lora.init_factors(
                rng, i, o, site["r"], init=init, bias=site.get("bias", False), dtype=dtype
            )
            weights |= {f"{name}.{key}": value for key, value in factors.items()}
        return weights

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Call :func:`loko_ref.network.layers.linear.forward`."""
        return linear.forward(x, own(layer, linear.PARAMS, weights), site_scale(layer, x))

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Call :func:`loko_ref.network.layers.linear.vjp`."""
        prefix = layer["name"] + "."
        short = [key for key in linear.PARAMS if prefix + key in ask.need]
        dx, got = linear.vjp(dy, cache, short, per_sample=ask.per_sample, need_dx=ask.need_dx)
        return dx, {prefix + key: value for key, value in got.items()}


class Activation(Kind):
    """An elementwise function, or a softmax over the last axis.  [LAY-4 to LAY-8]."""

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Call the activation's forward."""
        return ACTIVATIONS[layer["kind"]][0](x)

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Call the activation's vjp."""
        return ACTIVATIONS[layer["kind"]][1](dy, cache), {}


class LayerNorm(Kind):
    """Layer normalisation.  [ATT-1]."""

    required = ("name", "width")
    optional = ("eps", "affine")

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Width chains; eps >= 0."""
        whole(f"{where}.width", layer["width"])
        flow.take(f"{where}.width", layer["width"])
        check_range(f"{where}.eps", layer.get("eps", 1e-5), low=0, high_open=True)
        return Flow(layer["width"], flow.tokens)

    def shapes(self, layer: Layer) -> Shapes:
        """Gain g and shift b, if affine."""
        if not layer.get("affine", True):
            return {}
        return {f"{layer['name']}.{key}": (layer["width"],) for key in norm.PARAMS}

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw nothing: g = 1, b = 0."""
        shapes = self.shapes(layer).items()
        return {k: (np.ones if k.endswith(".g") else np.zeros)(s, dtype) for k, s in shapes}

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Call :func:`loko_ref.network.layers.norm.forward`."""
        params = own(layer, norm.PARAMS, weights)
        return norm.forward(x, params.get("g"), params.get("b"), eps=layer.get("eps", 1e-5))

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Call :func:`loko_ref.network.layers.norm.vjp`."""
        prefix = layer["name"] + "."
        short = [key for key in norm.PARAMS if prefix + key in ask.need]
        dx, got = norm.vjp(dy, cache, short, per_sample=ask.per_sample, need_dx=ask.need_dx)
        return dx, {prefix + key: value for key, value in got.items()}


LINEAR = Linear()
"""The one that attention shares."""
