"""Specs as data: checks over a whole one, what input it takes, and the multilayer perceptron's.

A spec is a JSON-able list of layers (:mod:`loko_ref.network.kinds`), in order. Specs of whole
published architectures are built in :mod:`loko_ref.network.architectures`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loko_ref.arrays import Array, backend_of
from loko_ref.checks.signatures import NoneType, check_type, takes
from loko_ref.checks.values import check_choice, check_floats, check_shape, check_whole
from loko_ref.errors import InputError
from loko_ref.network.kinds import KINDS, Flow, Layer, Layers
from loko_ref.network.kinds.base import check_layers, layer_shapes, width_in
from loko_ref.network.kinds.tokens import Embedding
from loko_ref.network.layers.activation import ACTIVATIONS

__all__ = [
    "check_input",
    "check_spec",
    "linears",
    "map_linears",
    "mlp_spec",
    "param_shapes",
    "reads_tokens",
    "width_out",
]

Spec = Sequence[Mapping[str, Any]]


def walk(spec: Spec) -> Iterator[tuple[str, Layer]]:
    """Every layer with its place in the spec, those inside residual branches included."""
    for j, layer in enumerate(spec):
        yield f"[{j}]", layer
        for where, inner in walk(layer.get("layers", ())):
            yield f"[{j}].layers{where}", inner


def _layers(spec: Spec) -> Spec:
    """Return a spec that is a list of layers of known kinds; raise for anything else."""
    check_type("spec", spec, Sequence, "another argument in place of a list of layers")
    for j, layer in enumerate(spec):
        check_type(f"spec[{j}]", layer, Mapping, "a layer's name in place of the layer")
        check_choice(f"spec[{j}].kind", layer.get("kind"), KINDS)
    return spec


def linears(spec: Spec) -> list[Layer]:
    """Every linear in model order, attention's projections included, with its full name."""
    return [inner for layer in _layers(spec) for inner in KINDS[layer["kind"]].linears(layer)]


def map_linears(spec: Spec, change: Any) -> list[dict[str, Any]]:
    """Return the spec with ``change(linear)`` in place of every linear."""
    return [KINDS[layer["kind"]].map_linears(layer, change) for layer in spec]


def check_spec(spec: Spec) -> None:
    """Refuse a spec that names an unknown kind or key, repeats a name, or does not chain."""
    if not spec:
        raise InputError("spec", "no layers", "at least one layer", "an empty list")
    end = check_layers(spec, "spec", Flow())
    seen: set[str] = set()
    for where, layer in walk(spec):
        if "name" not in KINDS[layer["kind"]].required:
            continue
        name = layer["name"]
        if not isinstance(name, str) or not name or name in seen:
            raise InputError(
                f"spec{where}.name",
                repr(name),
                "a name of its own",
                "two layers with the same name",
            )
        seen.add(name)
    shapes = [key for layer in spec for key in layer_shapes([layer])]
    if len(set(shapes)) != len(shapes):
        twice = next(key for key in shapes if shapes.count(key) > 1)
        raise InputError("spec", twice, "each array once", "a name that another's projections have")
    if end.tokens:
        raise InputError(
            "spec", "tokens at the end", "a layer of kind 'pool'", "an encoder without its head"
        )


def param_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that a spec asks for, in model order.

    Examples
    --------
    >>> param_shapes([{"kind": "linear", "name": "0", "in": 3, "out": 2}])
    {'0.W': (2, 3), '0.b': (2,)}
    """
    return layer_shapes(_layers(spec))


def width_out(spec: Spec) -> int:
    """C, the width of the output: that of the last layer that fixes one."""
    return int(check_layers(spec, "spec", Flow()).width or 0)


def reads_tokens(spec: Spec) -> bool:
    """Tell whether the input has a token axis: a layer on tokens comes before any pooling."""
    kinds = [layer["kind"] for _, layer in walk(_layers(spec))]
    return any(kind in ("attention", "prepend", "positions", "pool") for kind in kinds)


@takes(lora=(Mapping, NoneType))
def mlp_spec(
    widths: Sequence[int], activation: str = "relu", lora: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Spec of a multilayer perceptron; layer j is named by its number.

    Parameters
    ----------
    widths : sequence of int
        Input, hidden and output widths, at least two.
    activation : str
        Between the linears; none after the last.
    lora : mapping, optional
        ``{"r", "alpha"}`` and perhaps ``"bias"``, put on every linear.

    Examples
    --------
    >>> [k["kind"] for k in mlp_spec([4, 3, 2], "tanh")]
    ['linear', 'tanh', 'linear']
    """
    check_type("widths", widths, Sequence, "one width in place of a list")
    if len(widths) < 2:
        raise InputError("widths", widths, "at least two widths", "a network without a layer")
    for width in widths:
        check_whole("widths", width)
    check_choice("activation", activation, ACTIVATIONS)
    spec: list[dict[str, Any]] = []
    for j, (i, o) in enumerate(itertools.pairwise(widths)):
        if j:
            spec.append({"kind": activation})
        spec.append({"kind": "linear", "name": str(j), "in": int(i), "out": int(o), "bias": True})
        if lora is not None:
            spec[-1]["lora"] = dict(lora)
    return spec


def check_input(spec: Layers, like: Array, x: Array) -> None:
    """Refuse an input that the first layer cannot take: shape, library, dtype, ids out of range."""
    first = spec[0]
    if first["kind"] != "embedding":
        check_floats(weights=like, x=x)
        if first["kind"] == "patchify":
            image = tuple(first["image"])
            if len(x.shape) != 2:
                check_shape("x", x, ("batch", *image))
            else:
                check_shape("x", x, ("batch", "i"), {"i": math.prod(image)})
            return
        width = width_in(spec) or x.shape[-1]
        check_shape(
            "x", x, ("batch", "t", "i") if reads_tokens(spec) else ("batch", "i"), {"i": width}
        )
        return
    if backend_of(like).name != "balls":  # with balls ids stay NumPy's: they are no numbers
        backend_of(like, x)
    if getattr(x, "dtype", None) is None or x.dtype.kind not in "iu":
        raise InputError(
            "x",
            f"dtype {getattr(x, 'dtype', type(x).__name__)}",
            "whole numbers (token ids)",
            "floats, or text that is not tokenised",
        )
    inputs = Embedding.inputs(first)
    if len(inputs) == 1:
        check_shape("x", x, ("batch", "t"))
    else:
        check_shape("x", x, ("batch", len(inputs), "t"))
    room = first["positions"] - (0 if first.get("start") is None else first["start"] + 1)
    if not 1 <= x.shape[-1] <= room:
        raise InputError(
            "x", f"{x.shape[-1]} tokens", f"1 to {room}", "a text longer than the position table"
        )
    if not x.size:
        return
    rows = {"ids": first["vocab"], "types": first.get("types", 0), "mask": 2}
    for j, key in enumerate(inputs):
        part = x if len(inputs) == 1 else x[:, j]
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= rows[key]:
            raise InputError(
                f"x ({key})",
                low if low < 0 else high,
                f"whole numbers in [0, {rows[key] - 1}]",
                "ids of another tokenizer, or channels in another order",
            )
