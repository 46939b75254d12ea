"""What a kind of layer is, and how a list of layers is checked, run and pulled back.

Shapes: x (batch, i) or (batch, t, d) for tokens; dy with a leading axis of k cotangents.

A layer's own file names its arrays without the layer's name (``W``); those of a whole network,
here called weights, carry it (``0.W``). The functions below translate between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_choice, check_whole
from loko_ref.errors import InputError, closest
from loko_ref.network.lora import Init

Layer: TypeAlias = Mapping[str, Any]
Layers: TypeAlias = Sequence[Layer]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Params: TypeAlias = Mapping[str, Array]
Grads: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Request:
    """What a backward pass must return.

    Attributes
    ----------
    need : set of str
        Names of the arrays whose cotangents are wanted.
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
    """What layers pass on beside x: the padding mask (batch, t) of bool, or None."""

    mask: Array | None = None


@dataclass(frozen=True)
class Flow:
    """What is known of x between two layers: its width, and whether it has a token axis."""

    width: int | None = None
    tokens: bool | None = None

    def check_width(self, argument: str, width: int) -> None:
        """Raise unless a layer's input width is the width before it."""
        if self.width is not None and self.width != width:
            raise InputError(
                argument, width, f"{self.width}, the width before it", "layers that do not chain"
            )


class Kind:
    """One kind of layer; the base class is a layer without keys and arrays."""

    required: ClassVar[tuple[str, ...]] = ()  # keys of the spec that must be given
    optional: ClassVar[Mapping[str, Any]] = {}  # keys that may be left out, with their defaults
    params: ClassVar[tuple[str, ...]] = ()  # names of the arrays that it may have
    sizes: ClassVar[tuple[str, ...]] = ()  # keys that hold whole numbers of at least 1
    # standard deviation of the normal that its arrays are drawn from
    deviation: ClassVar[float] = 0.0
    reads_input: ClassVar[bool] = False  # whether it takes ids or images, and so must be first
    needs_tokens: ClassVar[bool] = False  # whether it works on tokens alone

    def option(self, layer: Layer, key: str) -> Any:
        """Return the value of an optional key: the layer's, or the default."""
        return layer.get(key, self.optional[key])

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Raise if a value is faulty; return what flows out."""
        if "width" not in layer:
            return flow
        flow.check_width(f"{where}.width", layer["width"])
        return Flow(layer["width"], True if self.needs_tokens else flow.tokens)

    def check_input(self, layer: Layer, like: Array, x: Array) -> None:
        """Raise if x is no input of a layer that is first and takes ids or images."""
        raise NotImplementedError

    def width_in(self, layer: Layer) -> int | None:
        """Width of x before it, if it fixes one."""
        return layer.get("width")

    def shapes(self, layer: Layer) -> Shapes:
        """Name and shape of each array, in order."""
        return {}

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Yield the linears in it, each with its full name."""
        yield from ()

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Return the layer with every linear in it changed."""
        return dict(layer)

    def init(
        self, layer: Layer, rng: np.random.Generator, init: Init, dtype: str
    ) -> dict[str, Any]:
        """Draw its arrays on the host; `init` names the initialization of A."""
        shapes = self.shapes(layer)
        return {
            k: (self.deviation * rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()
        }

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> tuple[Any, Any]:
        """Return (y, cache)."""
        raise NotImplementedError

    def vjp(
        self, dy: Array, cache: Any, layer: Layer, request: Request
    ) -> tuple[Array | None, Grads]:
        """Return (dx or None, cotangents of the arrays wanted)."""
        raise NotImplementedError


KINDS: dict[str, Kind] = {}
"""Kind of layer -> the object that implements it; filled by the package."""


def option(layer: Layer, key: str) -> Any:
    """Return the value of an optional key of a layer: its own, or the default of its kind."""
    return KINDS[layer["kind"]].option(layer, key)


def own(prefix: str, keys: Sequence[str], weights: Params) -> dict[str, Array]:
    """Return the arrays that are there of ``prefix + key``, by key."""
    return {key: weights[prefix + key] for key in keys if prefix + key in weights}


def wanted(prefix: str, keys: Sequence[str], need: AbstractSet[str]) -> AbstractSet[str]:
    """Return the keys of which ``prefix + key`` is in `need`."""
    return {key for key in keys if prefix + key in need}


def check_kinds(argument: str, layers: Layers) -> None:
    """Raise unless this is a list of layers of known kinds."""
    check_type(argument, layers, Sequence, "another argument in place of a list of layers")
    for j, layer in enumerate(layers):
        check_type(f"{argument}[{j}]", layer, Mapping, "a layer's name in place of the layer")
        check_choice(f"{argument}[{j}].kind", layer.get("kind"), KINDS)


def check_entry(
    where: str,
    given: Layer,
    required: Sequence[str],
    optional: Mapping[str, Any],
    sizes: Sequence[str],
    what: str,
) -> None:
    """Raise if a mapping has a missing or unknown key, or a faulty flag or size.

    Parameters
    ----------
    given : mapping
        A layer, or a part of one.
    required : sequence of str
        The keys that it must have.
    optional : mapping of str to value
        Those that it may have, with their defaults; a flag is one whose default is true or false.
    sizes : sequence of str
        Those of them that hold whole numbers of at least 1.
    """
    allowed = sorted({*required, *optional})
    for key in given:
        if key not in allowed:
            near = closest(key, allowed)
            raise InputError(
                f"{where}.{key}",
                repr(given[key]),
                f"keys {', '.join(allowed)}",
                f"a typing error; the closest known key is '{near}'" if near else "a foreign key",
            )
    for key in required:
        if key not in given:
            raise InputError(where, f"no {key}", f"a key '{key}'", f"an incomplete {what}")
    for key, default in optional.items():
        if isinstance(default, bool) and not isinstance(given.get(key, default), bool):
            flag = "true or false"
            raise InputError(f"{where}.{key}", repr(given[key]), flag, "a word, or a number")
    for key in sizes:
        check_whole(f"{where}.{key}", given.get(key, optional.get(key)))


def check_layers(layers: Layers, where: str, flow: Flow) -> Flow:
    """Raise if layers are of unknown kinds, have unknown or missing keys, or do not chain."""
    check_kinds(where, layers)
    for j, layer in enumerate(layers):
        at, kind = f"{where}[{j}]", KINDS[layer["kind"]]
        required, what = ("kind", *kind.required), f"{layer['kind']} layer"
        check_entry(at, layer, required, kind.optional, kind.sizes, what)
        order = "layers in the wrong order"
        if kind.reads_input and flow != Flow():
            raise InputError(at, f"'{layer['kind']}' inside the stack", "it first", order)
        if kind.needs_tokens and flow.tokens is False:
            raise InputError(at, f"'{layer['kind']}' after pooling", "tokens", order)
        flow = kind.check(layer, at, flow)
    return flow


def width_in(layers: Layers) -> int | None:
    """Width of x before the first layer that fixes it."""
    found = (KINDS[layer["kind"]].width_in(layer) for layer in layers)
    return next((int(width) for width in found if width is not None), None)


def _prefix(layer: Layer) -> str:
    """Return what the names of a layer's arrays begin with; a residual has those of its layers."""
    return f"{layer['name']}." if "name" in KINDS[layer["kind"]].required else ""


def _prefixed(layer: Layer, arrays: Mapping[str, Any]) -> dict[str, Any]:
    prefix = _prefix(layer)
    return {prefix + key: value for key, value in arrays.items()}


def layer_shapes(layers: Layers) -> Shapes:
    """Name and shape of every array of some layers, in order."""
    shapes: Shapes = {}
    for layer in layers:
        shapes |= _prefixed(layer, KINDS[layer["kind"]].shapes(layer))
    return shapes


def names(layer: Layer) -> AbstractSet[str]:
    """Full names of a layer's arrays."""
    return layer_shapes([layer]).keys()


def init_layers(
    layers: Layers, rng: np.random.Generator, init: Init, dtype: str
) -> dict[str, np.ndarray]:
    """Draw every array of some layers, in order, on the host."""
    weights: dict[str, np.ndarray] = {}
    for layer in layers:
        weights |= _prefixed(layer, KINDS[layer["kind"]].init(layer, rng, init, dtype))
    return weights


def run(layers: Layers, weights: Params, x: Array, context: Context) -> tuple[Array, list[Any]]:
    """Run layers in order; one cache per layer."""
    caches: list[Any] = []
    for layer in layers:
        kind, prefix = KINDS[layer["kind"]], _prefix(layer)
        params = own(prefix, kind.params, weights) if prefix else weights
        x, cache = kind.forward(x, params, layer, context)
        caches.append(cache)
    return x, caches


def backward(
    layers: Layers, dy: Array, caches: list[Any], request: Request
) -> tuple[Array | None, Grads]:
    """Pull cotangents back, the last layer first; none is formed below what is wanted.  [LAY-9].

    Returns
    -------
    dx : array or None
        None unless wanted.
    found : dict
        Cotangents of the arrays wanted, by full name.
    """
    lowest = 0
    if not request.need_dx:
        trained = (
            j for j, layer in enumerate(layers) if layer_shapes([layer]).keys() & request.need
        )
        lowest = next(trained, len(layers))
    found: Grads = {}
    dx: Array | None = dy
    for j in reversed(range(lowest, len(layers))):
        layer = layers[j]
        kind, prefix = KINDS[layer["kind"]], _prefix(layer)
        assert dx is not None
        need = wanted(prefix, kind.params, request.need) if prefix else request.need
        inner = replace(request, need=need, need_dx=request.need_dx or j > lowest)
        dx, got = kind.vjp(dx, caches[j], layer, inner)
        found |= _prefixed(layer, got)
    return (dx if request.need_dx else None), found
