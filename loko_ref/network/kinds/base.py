"""What a kind of layer is, and how a list of layers is checked, run and pulled back.

Shapes: x (batch, i) or (batch, t, d) for tokens; dy with a leading axis of k cotangents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_choice, check_whole
from loko_ref.errors import InputError, closest

__all__ = [
    "KINDS",
    "Ask",
    "Context",
    "Flow",
    "Kind",
    "Layer",
    "Layers",
    "backward",
    "check_layers",
    "draw",
    "first",
    "layer_shapes",
    "names",
    "own",
    "run",
    "whole",
    "width_in",
]

Layer: TypeAlias = Mapping[str, Any]
Layers: TypeAlias = Sequence[Layer]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Weights: TypeAlias = Mapping[str, Array]
Found: TypeAlias = dict[str, Array]
Back: TypeAlias = tuple[Array | None, Found]


@dataclass(frozen=True)
class Ask:
    """What a backward pass is asked for.

    Attributes
    ----------
    need : set of str
        Full names of the arrays whose cotangents are wanted.
    per_sample : bool
        Whether these keep their batch axis.
    need_dx : bool
        Whether the input's cotangent is wanted.
    """

    need: AbstractSet[str]
    per_sample: bool = False
    need_dx: bool = True


@dataclass
class Context:
    """What layers hand on beside x: the padding mask (batch, t) of bool, or None."""

    mask: Array | None = None


@dataclass(frozen=True)
class Flow:
    """What is known of x between two layers: its width, and whether it has a token axis."""

    width: int | None = None
    tokens: bool | None = None

    def take(self, argument: str, width: int) -> None:
        """Refuse a layer whose input width is not the width before it."""
        if self.width is not None and self.width != width:
            raise InputError(
                argument, width, f"{self.width}, the width before it", "layers that do not chain"
            )

    def need_tokens(self, where: str, layer: Layer) -> None:
        """Refuse a layer that works on tokens where there are none."""
        if self.tokens is False:
            raise InputError(
                where, f"'{layer['kind']}' after pooling", "tokens", "layers in the wrong order"
            )


class Kind:
    """One kind of layer; the base class is a layer without keys and arrays."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Refuse faulty values; return what flows out."""
        return flow

    def shapes(self, layer: Layer) -> Shapes:
        """Name and shape of each array, in order."""
        return {}

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Yield the linears in it, each with its full name."""
        yield from ()

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Return the layer with every linear in it changed."""
        return dict(layer)

    def init(self, layer: Layer, rng: np.random.Generator, init: str, dtype: str) -> dict[str, Any]:
        """Draw its arrays on the host."""
        return {}

    def forward(self, layer: Layer, weights: Weights, x: Array, context: Context) -> Any:
        """Return (y, cache)."""
        raise NotImplementedError

    def vjp(self, layer: Layer, dy: Array, cache: Any, ask: Ask) -> Back:
        """Return (dx or None, cotangents of the arrays asked for, by full name)."""
        raise NotImplementedError


KINDS: dict[str, Kind] = {}
"""Kind name -> the object that knows it; filled by the package."""


def own(layer: Layer, keys: Sequence[str], weights: Weights) -> dict[str, Array]:
    """Arrays of a layer by their short names, those that it has."""
    prefix = layer["name"] + "."
    return {key: weights[prefix + key] for key in keys if prefix + key in weights}


def whole(argument: str, value: Any, low: int = 1) -> None:
    """Refuse what is no whole number, or is below `low`."""
    check_whole(argument, value, low=low)


def draw(shapes: Shapes, rng: np.random.Generator, dtype: str) -> dict[str, Any]:
    """Draw arrays, normal with standard deviation 0.02, on the host."""
    return {k: (0.02 * rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()}


def first(flow: Flow, where: str, layer: Layer) -> None:
    """Refuse a layer that reads the raw input where it is not the first."""
    if flow != Flow():
        raise InputError(
            where, f"'{layer['kind']}' inside the stack", "it first", "layers in the wrong order"
        )


def check_layers(layers: Layers, where: str, flow: Flow) -> Flow:
    """Refuse layers of an unknown kind, with foreign or missing keys, or that do not chain."""
    check_type(where, layers, Sequence, "another argument in place of a list of layers")
    for j, layer in enumerate(layers):
        at = f"{where}[{j}]"
        check_type(at, layer, Mapping, "a layer's name in place of the layer")
        check_choice(f"{at}.kind", layer.get("kind"), KINDS)
        kind = KINDS[layer["kind"]]
        allowed = {"kind", *kind.required, *kind.optional}
        for key in layer.keys() - allowed:
            near = closest(key, allowed)
            raise InputError(
                f"{at}.{key}",
                repr(layer[key]),
                f"keys {', '.join(sorted(allowed))}",
                f"a typing error; the closest known key is '{near}'" if near else "a foreign key",
            )
        for key in kind.required:
            if key not in layer:
                raise InputError(
                    at, "no " + key, f"a key '{key}'", f"an incomplete {layer['kind']} layer"
                )
        flow = kind.check(layer, at, flow)
    return flow


def width_in(layers: Layers) -> int | None:
    """Width of x before the first layer that fixes it."""
    for layer in layers:
        if layer["kind"] == "residual":
            found = width_in(layer["layers"])
        elif layer["kind"] == "attention":
            found = layer["q"]["in"]
        elif layer["kind"] == "patchify":
            found = math.prod(layer["image"])
        elif layer["kind"] == "embedding":
            found = layer["positions"]
        else:
            found = layer.get("in", layer.get("width"))
        if found is not None:
            return int(found)
    return None


def layer_shapes(layers: Layers) -> Shapes:
    """Name and shape of every array of some layers, in order."""
    shapes: Shapes = {}
    for layer in layers:
        shapes |= KINDS[layer["kind"]].shapes(layer)
    return shapes


def names(layer: Layer) -> AbstractSet[str]:
    """Full names of a layer's arrays."""
    return KINDS[layer["kind"]].shapes(layer).keys()


def run(layers: Layers, weights: Weights, x: Array, context: Context) -> tuple[Array, list[Any]]:
    """Run layers in order; one cache a layer."""
    caches: list[Any] = []
    for layer in layers:
        x, kept = KINDS[layer["kind"]].forward(layer, weights, x, context)
        caches.append(kept)
    return x, caches


def backward(layers: Layers, dy: Array, caches: list[Any], ask: Ask) -> Back:
    """Pull cotangents back, the last layer first; none is formed below what is asked for.  [LAY-9].

    Returns
    -------
    dx : array or None
        None unless asked for.
    found : dict
        Cotangents of the arrays asked for, by full name.
    """
    lowest = 0
    if not ask.need_dx:
        wanted = (j for j, layer in enumerate(layers) if names(layer) & ask.need)
        lowest = next(wanted, len(layers))
    found: Found = {}
    dx: Array | None = dy
    for j in reversed(range(lowest, len(layers))):
        layer = layers[j]
        assert dx is not None
        inner = replace(ask, need_dx=ask.need_dx or j > lowest)
        dx, got = KINDS[layer["kind"]].vjp(layer, dx, caches[j], inner)
        found |= got
    return (dx if ask.need_dx else None), found
