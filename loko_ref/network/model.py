"""The network as data: a JSON-able spec, named weights, and the list of what is trained.

Shapes: x (batch, i), or what the first layer takes; z (batch, C); dz (k, batch, C) with a leading
axis of k cotangents; theta (n,) the packed trainables.

A spec is a list of layers in order, each a plain dict whose ``kind`` stands in
:data:`loko_ref.network.layers.KINDS`::

    {"kind": "linear", "name": "0", "in": 64, "out": 128, "bias": True,
     "lora": {"r": 4, "alpha": 8.0, "bias": False}}
    {"kind": "relu"}                                # or tanh, gelu, softmax, log_softmax
    {"kind": "residual", "layers": [...]}           # x + layers(x)
    {"kind": "attention", "name": "1", "heads": 4, "q": {"in": 64, "out": 64, "lora": ...}, ...}

and the weights of a linear named ``0`` are ``0.W``, ``0.b``, ``0.A``, ``0.B``, ``0.bA``, ``0.bB``;
those of an attention layer's query ``1.q.W`` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks.signatures import check_type, takes
from loko_ref.checks.values import (
    check_choice,
    check_finite,
    check_floats,
    check_format,
    check_memory,
    check_range,
    check_shape,
)
from loko_ref.errors import InputError
from loko_ref.network import lora
from loko_ref.network.layers import Context, Request, backward, run
from loko_ref.network.layers.base import init_layers, width_in
from loko_ref.network.spec import (
    Spec,
    check_input,
    check_spec,
    linears,
    map_linears,
    mlp_spec,
    param_shapes,
    trained_shapes,
    width_out,
)

__all__ = [
    "Model",
    "add_lora",
    "check_inputs",
    "forward",
    "forward_unchecked",
    "init_model",
    "merge_lora",
    "mlp_spec",
    "pack",
    "param_shapes",
    "sites",
    "unpack",
    "unpack_unchecked",
    "vjp",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A spec with its weights and the names of what is trained.

    Parameters
    ----------
    spec : sequence of mapping
        Layers in order (see the module's head).
    weights : mapping of str to array
        Every array that the spec asks for, one library, one floating dtype, finite.
    trainable : tuple of str, or {"factors", "weights"}, optional
        Names in packing order; by default "factors", every LoRA factor: site by site in model
        order, A, B, then bA, bB. "weights" is every array but these: for a filter of the whole
        network, without LoRA.  [LORA-4]

    Raises
    ------
    InputError
        If the spec is faulty, or an array is missing, surplus, misshapen or not finite.
    """

    spec: Spec
    weights: Mapping[str, Array]
    trainable: tuple[str, ...] | Literal["factors", "weights"] = field(default=())

    def __post_init__(self) -> None:
        """Check spec and weights against each other."""
        check_spec(self.spec)
        check_type("weights", self.weights, Mapping, "the arrays alone, without their names")
        if not self.trainable or isinstance(self.trainable, str):
            names = trained_shapes(self.spec, str(self.trainable or "factors"))
            object.__setattr__(self, "trainable", tuple(names))
        check_type("trainable", self.trainable, Sequence, "one name in place of a tuple")
        shapes = param_shapes(self.spec)
        missing, surplus = shapes.keys() - self.weights.keys(), self.weights.keys() - shapes.keys()
        if missing or surplus:
            raise InputError(
                "weights",
                f"missing {sorted(missing)}, surplus {sorted(surplus)}",
                f"exactly {list(shapes)}",
                "a spec with another naming, or factors without 'lora' in the spec",
            )
        check_floats(**self.weights)
        for name, shape in shapes.items():
            check_shape(name, self.weights[name], shape)
        check_finite(**self.weights)
        for name in self.trainable:
            check_choice("trainable", name, shapes)
        if len(set(self.trainable)) != len(self.trainable):
            raise InputError("trainable", self.trainable, "each name once", "a repeated name")

    @cached_property
    def n(self) -> int:
        """Number of trainable parameters."""
        return sum(math.prod(self.weights[k].shape) for k in self.trainable)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weights."""
        return next(iter(self.weights.values())).dtype

    @cached_property
    def outputs(self) -> int:
        """C, the width of the output."""
        return width_out(self.spec)

    @property
    def inputs(self) -> int:
        """Width of the input: features, pixels of an image, or the positions of a text."""
        return int(width_in(self.spec) or 0)


@takes(model=Model)
def sites(model: Model) -> list[tuple[str, tuple[str, ...], slice]]:
    """Trainables grouped by layer: (layer name, parameter names, slice of theta).  [LORA-4].

    Returns
    -------
    list of (str, tuple of str, slice)
        In packing order.
    """
    groups: list[tuple[str, tuple[str, ...], slice]] = []
    at = 0
    for full in model.trainable:
        layer, stop = full.rsplit(".", 1)[0], at + math.prod(model.weights[full].shape)
        if groups and groups[-1][0] == layer:
            _, names, span = groups[-1]
            groups[-1] = (layer, (*names, full), slice(span.start, stop))
        else:
            groups.append((layer, (full,), slice(at, stop)))
        at = stop
    return groups


@takes(model=Model)
def pack(model: Model) -> Array:
    """Concatenate the trainables, each row-major, in packing order: theta (n,).  [LORA-4]."""
    if not model.trainable:
        raise InputError(
            "model", "no trainables", "at least one", "a spec without LoRA sites: use add_lora"
        )
    xp = namespace(*model.weights.values())
    return xp.concatenate([model.weights[k].reshape(-1) for k in model.trainable])


@takes(model=Model)
def unpack(model: Model, theta: Array) -> Model:
    """Return the model with its trainables from theta (n,); undoes :func:`pack`.  [LORA-4].

    Theta has the library and dtype of the model; complex entries pass, for a complex step.
    """
    check_shape("theta", theta, ("n",), {"n": model.n})
    if theta.dtype.kind != "c":
        check_floats(weights=next(iter(model.weights.values())), theta=theta)
    return unpack_unchecked(model, theta)


def unpack_unchecked(model: Model, theta: Array) -> Model:
    """Compute :func:`unpack` of checked arguments."""
    weights, at = dict(model.weights), 0
    for name in model.trainable:
        shape = weights[name].shape
        size = math.prod(shape)
        weights[name] = theta[at : at + size].reshape(shape)
        at += size
    return _substitute(model, weights)


def _substitute(model: Model, weights: Mapping[str, Array]) -> Model:
    """Exchange arrays for others of the same shapes, which were checked when the model was made."""
    new = copy(model)
    object.__setattr__(new, "weights", weights)
    return new


@takes(rng=np.random.Generator)
def init_model(
    rng: np.random.Generator,
    spec: Spec,
    *,
    init: lora.Init = "kaiming",
    dtype: str = "float64",
    like: Array | None = None,
) -> Model:
    """Draw weights for a spec: W uniform on ±sqrt(6 / i) (He), b = 0, factors as in LoRA.

    Layer norms begin at 1 and 0; tables of tokens and positions are normal, deviation 0.02.

    Parameters
    ----------
    rng : numpy.random.Generator
        Numbers are drawn on the host.
    spec : sequence of mapping
        The layers.
    init : {"kaiming", "gaussian", "orthogonal"}
        Initialization of A (:func:`loko_ref.network.lora.init_factors`).
    dtype : str
        float64 or float32.
    like : array, optional
        Gives the library; NumPy by default.
    """
    check_spec(spec)
    check_format("dtype", dtype)
    count = sum(math.prod(shape) for shape in param_shapes(spec).values())
    check_memory("spec", f"{count} weights", count, dtype)
    weights: dict[str, Array] = init_layers(spec, rng, init, dtype)
    if like is not None:
        weights = {key: asarray(value, like) for key, value in weights.items()}
    return Model(spec=spec, weights=weights)


@takes(rng=np.random.Generator, model=Model)
def add_lora(
    rng: np.random.Generator,
    model: Model,
    *,
    r: int,
    alpha: float,
    init: lora.Init = "kaiming",
    bias: bool = False,
    targets: Sequence[str] | None = None,
) -> Model:
    """Put fresh LoRA factors on linears of a model; its output does not change (B = 0).  [LORA-1].

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draw.
    model : Model
        Without LoRA on the targets.
    r, alpha : int, float
        Rank and alpha.
    init, bias
        As in :func:`loko_ref.network.lora.init_factors`.
    targets : sequence of str, optional
        Names of linears; by default all.
    """
    check_range("alpha", alpha, low_open=True, high_open=True)
    names = [layer["name"] for layer in linears(model.spec)]
    for target in targets or ():
        check_choice("targets", target, names)
    like = next(iter(model.weights.values()))
    weights = dict(model.weights)

    def put(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        name = layer["name"]
        if targets is not None and name not in targets:
            return layer
        if layer.get("lora"):
            raise InputError("model", f"LoRA on '{name}' already", "none", "added twice")
        factors = lora.init_factors(
            rng, layer["in"], layer["out"], r, init=init, bias=bias, dtype=model.dtype
        )
        weights.update({f"{name}.{k}": asarray(v, like) for k, v in factors.items()})
        return {**layer, "lora": {"r": r, "alpha": float(alpha), "bias": bias}}

    spec = map_linears(model.spec, put)
    return Model(spec=spec, weights=weights)


@takes(model=Model)
def merge_lora(model: Model) -> Model:
    """Fold every LoRA branch into its weight and bias; the outputs agree to rounding.  [LORA-3]."""
    weights = dict(model.weights)

    def fold(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        new = {key: value for key, value in layer.items() if key != "lora"}
        if not layer.get("lora"):
            return new
        name, alpha = layer["name"], layer["lora"]["alpha"]
        A, B = weights.pop(f"{name}.A"), weights.pop(f"{name}.B")
        weights[f"{name}.W"] = lora.merge(weights[f"{name}.W"], A, B, alpha)
        if layer["lora"].get("bias", False):
            shift = lora.delta_bias(B, weights.pop(f"{name}.bA"), weights.pop(f"{name}.bB"), alpha)
            old = weights.get(f"{name}.b")
            weights[f"{name}.b"] = shift if old is None else old + shift
            new["bias"] = True
        return new

    spec = map_linears(model.spec, fold)
    return Model(spec=spec, weights=weights)


@takes(model=Model)
def check_inputs(model: Model, x: Array, *, finite: bool = True) -> None:
    """Raise on an empty batch, and on inputs of wrong shape, library or dtype, NaN or infinity."""
    check_input(model.spec, next(iter(model.weights.values())), x)
    if x.shape[0] == 0:
        raise InputError("x", "an empty batch", "at least one sample", "a loader at its end")
    if finite and x.dtype.kind not in "iu":
        check_finite(x=x)


@takes(model=Model)
def forward(model: Model, x: Array) -> tuple[Array, list[Any]]:
    """Run the layers in order.

    Parameters
    ----------
    model : Model
        The network.
    x : array (batch, i)
        Inputs, in the model's library and dtype; (batch, t, i) for a stack on tokens, images
        (batch, channels, h, w) for ``patchify``, whole numbers (batch, t) for ``embedding``.

    Returns
    -------
    z : array (batch, C)
        Outputs.
    cache : list
        One entry per layer, for :func:`vjp`.

    Raises
    ------
    InputError
        If x has another shape, library or dtype than the spec asks for. (Complex numbers pass
        unchecked: a complex step is how the derivatives are tested.)
    """
    if not {"c"} & {a.dtype.kind for a in (x, *model.weights.values()) if hasattr(a, "dtype")}:
        check_inputs(model, x, finite=False)
    return forward_unchecked(model, x)


def forward_unchecked(model: Model, x: Array) -> tuple[Array, list[Any]]:
    """Compute :func:`forward` of checked arguments."""
    return run(model.spec, model.weights, x, Context())


def vjp(model: Model, dz: Array, cache: list[Any], *, per_sample: bool = False) -> dict[str, Array]:
    """Pull k cotangents back to the trainables, layer by layer from the last.  [LAY-9].

    No cotangent is formed below the lowest layer that is trained.

    Parameters
    ----------
    model : Model
        The network.
    dz : array (k, batch, C)
        Cotangents of the outputs.
    cache : list
        From :func:`forward`.
    per_sample : bool
        Whether to keep the batch axis of each parameter's cotangent.

    Returns
    -------
    dict
        Trainable name -> ``(k, *shape)``, or ``(k, batch, *shape)`` with ``per_sample``.
    """
    request = Request(frozenset(model.trainable), per_sample, need_dx=False)
    _, found = backward(model.spec, dz, cache, request)
    return {name: found[name] for name in model.trainable}
