"""The network of a run: its spec from the data and the options, and LoRA on its linears.

``train`` and ``lte`` build the same networks by the same options; they differ in which linears get
LoRA by default. One rule for the rank: the default one is lowered to the smaller side of a layer
that is narrower, with the same scale alpha / rank; one that is given must fit every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_choice, check_memory, check_range, check_whole
from loko_ref.errors import InputError, unknown_option
from loko_ref.experiments.data.bundled import Dataset
from loko_ref.experiments.data.registry import kind_of
from loko_ref.experiments.defaults import HIDDEN, Defaults
from loko_ref.network.architectures import SMALL, patch_side, roberta_spec, vit_spec
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.spec import linears, map_linears, mlp_spec, param_shapes

NETWORKS = ("mlp", "vit", "encoder")
"""A perceptron on features; a vision transformer on patches; an encoder of the RoBERTa kind."""

SIZE = (*SMALL, "patch")
"""Of the transformers: blocks, width of a token, heads of the attention, width of the feed-forward;
side of a patch."""

DEEPEST = 100
"""Most hidden layers of a perceptron."""

Spec = list[dict[str, Any]]
Shape = dict[str, Any]
"""``network``, ``hidden``, ``activation``, ``size``, complete."""


def shape_of(
    data: str,
    network: str | None = None,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    size: Mapping[str, int] | None = None,
) -> Shape:
    """Complete a network's description by the defaults of the data set.

    Parameters
    ----------
    network : {"mlp", "vit", "encoder"}, optional
        By default ``encoder`` for a text and ``mlp`` for all else.
    activation : str, optional
        By default ``relu`` (mlp) or ``gelu`` (the others).
    size : mapping of str to int, optional
        Of a transformer: ``layers``, ``width``, ``heads``, ``ff``, ``patch`` that differ.

    Raises
    ------
    InputError
        If the network cannot read the data, or an option is not one of it.
    """
    kind = kind_of(data)
    default = "encoder" if kind == "text" else "mlp"
    name = default if network is None else network
    check_choice("network", name, NETWORKS)
    if name not in {"text": ("encoder",), "image": ("mlp", "vit"), "table": ("mlp",)}[kind]:
        required = "'encoder' for a text, 'vit' or 'mlp' for images, 'mlp' for tables"
        raise InputError("network", repr(name), required, "a network that cannot read these data")
    for option, value, form in (("hidden", hidden, Sequence), ("size", size, Mapping)):
        if value is not None:
            check_type(option, value, form, "one number in place of several")
    surplus, given = ("size", size) if name == "mlp" else ("hidden", hidden)
    if given:
        cause = "hidden has the widths of a perceptron, size those of a transformer"
        raise InputError(surplus, repr(given), f"nothing with network '{name}'", cause)
    if hidden is not None and len(hidden) > DEEPEST:
        got, required = f"{len(hidden)} widths", f"at most {DEEPEST} widths"
        raise InputError("hidden", got, required, "another option's value")
    for width in hidden or ():
        check_whole("hidden", width)
    for key, number in (size or {}).items():
        if key not in SIZE:
            raise unknown_option("size", key, SIZE)
        check_whole(f"size {key}", number)
    act = ("relu" if name == "mlp" else "gelu") if activation is None else activation
    check_choice("activation", act, ACTIVATIONS)
    return {
        "network": name,
        "hidden": tuple(hidden or HIDDEN[kind]) if name == "mlp" else (),
        "activation": act,
        "size": {} if name == "mlp" else {**SMALL, **(size or {})},
    }


def base_spec(shape: Shape, source: Dataset) -> Spec:
    """Build the spec without LoRA.

    Parameters
    ----------
    shape : mapping
        As :func:`shape_of` completes it.
    source : Dataset
        Gives the inputs and the number of outputs.

    Raises
    ------
    InputError
        If it does not fit the data, or would not fit into memory.
    """
    name, activation = shape["network"], shape["activation"]
    size = {"outputs": source.outputs, "activation": activation, **shape["size"]}
    side = size.pop("patch", None)
    if name == "mlp":
        spec = mlp_spec([source.base.x.shape[1], *shape["hidden"], source.outputs], activation)
    elif name == "vit":
        assert source.image is not None
        patch = [side or patch_side(pixels) for pixels in source.image[1:]]
        spec = vit_spec(image=source.image, patch=patch, **size)
    else:
        assert source.vocabulary is not None
        assert source.pad is not None
        positions = source.base.x.shape[1] + source.pad + 1
        spec = roberta_spec(
            vocab=source.vocabulary, positions=positions, pad=source.pad, types=0, **size
        )
    option = "hidden" if name == "mlp" else "size"
    count = sum(math.prod(shape) for shape in param_shapes(spec).values())
    check_memory(option, shape[option], 2 * count)  # the weights now, and at the last merge
    return spec


def put_lora(
    spec: Spec,
    defaults: Defaults,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    targets: Sequence[str] = (),
    bias: bool = False,
    dense_last: bool = False,
) -> Spec:
    """Put LoRA on the given linears, or on all of them.

    Parameters
    ----------
    spec : list of dict
        Without LoRA.
    defaults : Defaults
        Rank and scale where none are given.
    rank, alpha : int, float, optional
        By default ``defaults.rank``, or the smaller side of a narrower layer; and the scale times
        the rank. The scale ``alpha / rank`` is the same on every layer.
    targets : sequence of str
        Full names of linears, or their last parts.
    bias : bool
        Whether branches have biases.
    dense_last : bool
        Whether the last linear stays without LoRA.

    Raises
    ------
    InputError
        If a target is no linear's name, or a given rank does not fit.
    """
    alpha = full_alpha(defaults, rank, alpha)
    most = rank or defaults.rank
    names = [layer["name"] for layer in linears(spec)]
    for target in targets:
        check_choice("targets", target, sorted({n.rsplit(".", 1)[-1] for n in names} | set(names)))

    def put(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        name, side = layer["name"], min(layer["in"], layer["out"])
        if targets and not {name, name.rsplit(".", 1)[-1]} & set(targets):
            return layer
        if name == names[-1] and dense_last:
            return layer
        if rank is not None and rank > side:
            raise InputError(
                "rank",
                rank,
                f"at most {side}, the smaller side of layer {name}",
                "a rank larger than a dimension; without a rank each layer takes "
                f"{defaults.rank} or its smaller side; targets states which layers have LoRA",
            )
        r = min(most, side)
        own = alpha if r == most else alpha / most * r
        return {**layer, "lora": {"r": r, "alpha": own, "bias": bias}}

    return map_linears(spec, put)


def full_alpha(defaults: Defaults, rank: int | None, alpha: float | None) -> float:
    """Check rank and alpha; return alpha of a layer that takes the whole rank."""
    if rank is not None:
        check_whole("rank", rank)
    if alpha is None:
        return defaults.scale * (rank or defaults.rank)
    check_range("alpha", alpha, low_open=True, high_open=True)
    return float(alpha)
