"""Specs as data: checks over a whole one, what input it takes, and the multilayer perceptron's.

A spec is a JSON-able list of layers (:mod:`loko_ref.network.layers`), in order. Specs of whole
published architectures are built in :mod:`loko_ref.network.architectures`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

from loko_ref.arrays import Array
from loko_ref.checks.signatures import check_type, takes
from loko_ref.checks.values import check_choice, check_floats, check_shape, check_whole
from loko_ref.errors import InputError
from loko_ref.network.layers import KINDS, Flow, Layer, Layers
from loko_ref.network.layers.activation import ACTIVATIONS, ActivationName
from loko_ref.network.layers.base import check_kinds, check_layers, layer_shapes, width_in
from loko_ref.network.lora import FACTORS

__all__ = [
    "TRAINED",
    "check_input",
    "check_spec",
    "factor_shapes",
    "linears",
    "map_linears",
    "mlp_spec",
    "param_shapes",
    "reads_tokens",
    "trained_shapes",
    "width_out",
]

Spec = Sequence[Mapping[str, Any]]

TRAINED = ("factors", "weights")
"""What of a network may be trained, by name: LoRA's factors, or every array but these."""


def walk(spec: Spec) -> Iterator[tuple[str, Layer]]:
    """Every layer with its place in the spec, those inside residual branches included."""
    for j, layer in enumerate(spec):
        yield f"[{j}]", layer
        for where, inner in walk(layer.get("layers", ())):
            yield f"[{j}].layers{where}", inner


def linears(spec: Spec) -> list[Layer]:
    """Every linear in model order, attention's projections included, with its full name."""
    check_kinds("spec", spec)
    return [inner for layer in spec for inner in KINDS[layer["kind"]].linears(layer)]


def map_linears(spec: Spec, change: Any) -> list[dict[str, Any]]:
    """Return the spec with ``change(linear)`` in place of every linear."""
    return [KINDS[layer["kind"]].map_linears(layer, change) for layer in spec]


def check_spec(spec: Spec) -> None:
    """Raise if a spec has an unknown kind or key, repeats a name, or does not chain."""
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
    check_kinds("spec", spec)
    return layer_shapes(spec)


def factor_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every LoRA factor, in packing order: linear by linear.  [LORA-4].

    Examples
    --------
    >>> factor_shapes([{"kind": "linear", "name": "0", "in": 3, "out": 2, "lora": {"r": 1}}])
    {'0.A': (1, 3), '0.B': (2, 1)}
    """
    shapes = layer_shapes(linears(spec))
    return {name: shape for name, shape in shapes.items() if name.rsplit(".", 1)[1] in FACTORS}


def trained_shapes(spec: Spec, train: str = "factors") -> dict[str, tuple[int, ...]]:
    """Name and shape of what is trained, in packing order.  [LORA-4].

    Parameters
    ----------
    spec : sequence of mapping
        The layers.
    train : {"factors", "weights"}
        LoRA's factors, or every array but these: W, b of linears, g, b of norms, tables.

    Examples
    --------
    >>> trained_shapes([{"kind": "linear", "name": "0", "in": 3, "out": 2}], "weights")
    {'0.W': (2, 3), '0.b': (2,)}
    """
    check_choice("trainable", train, TRAINED)
    factors = factor_shapes(spec)
    if train == "factors":
        return factors
    return {name: shape for name, shape in param_shapes(spec).items() if name not in factors}


def width_out(spec: Spec) -> int:
    """C, the width of the output: that of the last layer that fixes one."""
    return int(check_layers(spec, "spec", Flow()).width or 0)


def reads_tokens(spec: Spec) -> bool:
    """Return whether the input has a token axis: some layer works on tokens alone."""
    check_kinds("spec", spec)
    return any(KINDS[layer["kind"]].needs_tokens for _, layer in walk(spec))


@takes(lora=(Mapping, NoneType))
def mlp_spec(
    widths: Sequence[int],
    activation: ActivationName = "relu",
    lora: Mapping[str, Any] | None = None,
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
        raise InputError("widths", widths, "at least two widths", "the width of the input left out")
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
    """Raise if the first layer cannot take an input: shape, library, dtype, ids out of range."""
    first = KINDS[spec[0]["kind"]]
    if first.reads_input:
        first.check_input(spec[0], like, x)
        return
    check_floats(weights=like, x=x)
    width = width_in(spec) or x.shape[-1]
    names = ("batch", "t", "i") if reads_tokens(spec) else ("batch", "i")
    check_shape("x", x, names, {"i": width})
