"""The network as data: a JSON-able spec, named weights, and the list of what is trained.

Shapes: x (batch, i); z (batch, C); dz (k, batch, C) with a leading axis of k cotangents;
theta (n,) the packed trainables.

A spec is a list of layers in order, each a plain dict::

    {"kind": "linear", "name": "0", "in": 64, "out": 128, "bias": True,
     "lora": {"r": 4, "alpha": 8.0, "bias": False}}
    {"kind": "relu"}                                # or tanh, gelu, softmax, log_softmax

and the weights of a linear named ``0`` are ``0.W``, ``0.b``, ``0.A``, ``0.B``, ``0.bA``, ``0.bB``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loko_ref import lora
from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks import check_choice, check_finite, check_floats, check_range, check_shape
from loko_ref.errors import InputError, closest
from loko_ref.layers import linear
from loko_ref.layers.activation import ACTIVATIONS

__all__ = [
    "Model",
    "add_lora",
    "forward",
    "init_model",
    "merge_lora",
    "mlp_spec",
    "pack",
    "param_shapes",
    "sites",
    "unpack",
    "vjp",
]

Spec = Sequence[Mapping[str, Any]]
_LINEAR_KEYS = {"kind", "name", "in", "out", "bias", "lora"}


def _scale(layer: Mapping[str, Any]) -> float:
    return lora.scale(layer["lora"]["alpha"], layer["lora"]["r"]) if layer.get("lora") else 1.0


def _check_spec(spec: Spec) -> None:
    """Refuse a spec that names an unknown kind or key, repeats a name, or does not chain."""
    seen: set[str] = set()
    width: int | None = None
    if not spec:
        raise InputError("spec", "no layers", "at least one layer", "an empty list")
    for at, layer in enumerate(spec):
        where = f"spec[{at}]"
        check_choice(f"{where}.kind", layer.get("kind"), ("linear", *ACTIVATIONS))
        allowed = _LINEAR_KEYS if layer["kind"] == "linear" else {"kind"}
        for key in layer.keys() - allowed:
            near = closest(key, allowed)
            raise InputError(
                f"{where}.{key}",
                repr(layer[key]),
                f"keys {', '.join(sorted(allowed))}",
                f"a typing error; the closest known key is '{near}'" if near else "a foreign key",
            )
        if layer["kind"] != "linear":
            continue
        for key in ("name", "in", "out"):
            if key not in layer:
                raise InputError(where, "no " + key, f"a key '{key}'", "an incomplete linear layer")
        name, i, o = layer["name"], layer["in"], layer["out"]
        if not isinstance(name, str) or not name or name in seen:
            raise InputError(
                f"{where}.name", repr(name), "a name of its own", "two layers with the same name"
            )
        seen.add(name)
        for key in ("in", "out"):
            check_range(f"{where}.{key}", layer[key], low=1)
        if width is not None and width != i:
            raise InputError(
                f"{where}.in", i, f"{width}, the width before it", "layers that do not chain"
            )
        width = o
        if layer.get("lora"):
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
            r = layer["lora"]["r"]
            if not isinstance(r, int) or not 1 <= r <= min(i, o):
                raise InputError(
                    f"{where}.lora.r",
                    repr(r),
                    f"a whole number in [1, min(in, out) = {min(i, o)}]",
                    "a rank larger than a dimension of the weight",
                )
            lora.scale(layer["lora"]["alpha"], r)


def param_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that a spec asks for, in model order.

    Examples
    --------
    >>> param_shapes([{"kind": "linear", "name": "0", "in": 3, "out": 2}])
    {'0.W': (2, 3), '0.b': (2,)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in spec:
        if layer["kind"] != "linear":
            continue
        name, i, o = layer["name"], layer["in"], layer["out"]
        shapes[f"{name}.W"] = (o, i)
        if layer.get("bias", True):
            shapes[f"{name}.b"] = (o,)
        if layer.get("lora"):
            r = layer["lora"]["r"]
            shapes[f"{name}.A"], shapes[f"{name}.B"] = (r, i), (o, r)
            if layer["lora"].get("bias", False):
                shapes[f"{name}.bA"], shapes[f"{name}.bB"] = (r,), (o,)
    return shapes


def _factor_names(spec: Spec) -> tuple[str, ...]:
    return tuple(k for k in param_shapes(spec) if k.rsplit(".", 1)[1] in lora.FACTORS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A spec with its weights and the names of what is trained.

    Parameters
    ----------
    spec : sequence of mapping
        Layers in order (see the module's head).
    weights : mapping of str to array
        Every array that the spec asks for, one library, one floating dtype, finite.
    trainable : tuple of str, optional
        Names in packing order; by default every LoRA factor: site by site in model order, A, B,
        then bA, bB.  [LORA-4]

    Raises
    ------
    InputError
        If the spec is faulty, or an array is missing, surplus, misshapen or not finite.
    """

    spec: Spec
    weights: Mapping[str, Array]
    trainable: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check spec and weights against each other."""
        _check_spec(self.spec)
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
        if not self.trainable:
            object.__setattr__(self, "trainable", _factor_names(self.spec))
        for name in self.trainable:
            check_choice("trainable", name, shapes)
        if len(set(self.trainable)) != len(self.trainable):
            raise InputError("trainable", self.trainable, "each name once", "a repeated name")

    @property
    def n(self) -> int:
        """Number of trainable parameters."""
        return sum(math.prod(self.weights[k].shape) for k in self.trainable)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weights."""
        return next(iter(self.weights.values())).dtype

    @property
    def outputs(self) -> int:
        """C, the width of the last linear layer."""
        return int(next(k["out"] for k in reversed(list(self.spec)) if k["kind"] == "linear"))

    @property
    def inputs(self) -> int:
        """Width of the first linear layer's input."""
        return int(next(k["in"] for k in self.spec if k["kind"] == "linear"))


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


def pack(model: Model) -> Array:
    """Concatenate the trainables, each row-major, in packing order: theta (n,).  [LORA-4]."""
    if not model.trainable:
        raise InputError(
            "model", "no trainables", "at least one", "a spec without LoRA sites: use add_lora"
        )
    xp = namespace(*model.weights.values())
    theta: Array = xp.concatenate([model.weights[k].reshape(-1) for k in model.trainable])
    return theta


def unpack(model: Model, theta: Array) -> Model:
    """Return the model with its trainables from theta (n,); undoes :func:`pack`.  [LORA-4]."""
    check_shape("theta", theta, ("n",), {"n": model.n})
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
    if len(widths) < 2:
        raise InputError("widths", widths, "at least two widths", "a network without a layer")
    spec: list[dict[str, Any]] = []
    for j, (i, o) in enumerate(itertools.pairwise(widths)):
        if j:
            spec.append({"kind": activation})
        spec.append({"kind": "linear", "name": str(j), "in": int(i), "out": int(o), "bias": True})
        if lora is not None:
            spec[-1]["lora"] = dict(lora)
    return spec


def init_model(
    rng: np.random.Generator,
    spec: Spec,
    *,
    init: str = "kaiming",
    dtype: str = "float64",
    like: Array | None = None,
) -> Model:
    """Draw weights for a spec: W uniform on ±sqrt(6 / i) (He), b = 0, factors as in LoRA.

    Parameters
    ----------
    rng : numpy.random.Generator
        Numbers are drawn on the host.
    spec : sequence of mapping
        The layers.
    init : {"kaiming", "gaussian", "orthogonal"}
        Law of A (:func:`loko_ref.lora.init_factors`).
    dtype : str
        float64 or float32.
    like : array, optional
        Gives the library; NumPy by default.
    """
    _check_spec(spec)
    weights: dict[str, Any] = {}
    for layer in spec:
        if layer["kind"] != "linear":
            continue
        name, i, o = layer["name"], layer["in"], layer["out"]
        bound = math.sqrt(6 / i)
        weights[f"{name}.W"] = rng.uniform(-bound, bound, size=(o, i)).astype(dtype)
        if layer.get("bias", True):
            weights[f"{name}.b"] = np.zeros(o, dtype)
        if layer.get("lora"):
            site = layer["lora"]
            factors = lora.init_factors(
                rng, i, o, site["r"], init=init, bias=site.get("bias", False), dtype=dtype
            )
            weights |= {f"{name}.{key}": value for key, value in factors.items()}
    if like is not None:
        weights = {key: asarray(value, like) for key, value in weights.items()}
    return Model(spec=spec, weights=weights)


def add_lora(
    rng: np.random.Generator,
    model: Model,
    *,
    r: int,
    alpha: float,
    init: str = "kaiming",
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
        As in :func:`loko_ref.lora.init_factors`.
    targets : sequence of str, optional
        Names of linears; by default all.
    """
    names = [k["name"] for k in model.spec if k["kind"] == "linear"]
    for target in targets or ():
        check_choice("targets", target, names)
    like = next(iter(model.weights.values()))
    spec: list[dict[str, Any]] = []
    weights = dict(model.weights)
    for layer in model.spec:
        new = dict(layer)
        if layer["kind"] == "linear" and (targets is None or layer["name"] in targets):
            name = layer["name"]
            if layer.get("lora"):
                raise InputError("model", f"LoRA on '{name}' already", "none", "added twice")
            new["lora"] = {"r": r, "alpha": float(alpha), "bias": bias}
            factors = lora.init_factors(
                rng, layer["in"], layer["out"], r, init=init, bias=bias, dtype=model.dtype
            )
            weights |= {f"{name}.{k}": asarray(v, like) for k, v in factors.items()}
        spec.append(new)
    return Model(spec=spec, weights=weights)


def merge_lora(model: Model) -> Model:
    """Fold every LoRA branch into its weight and bias; the outputs agree to rounding.  [LORA-3]."""
    spec, weights = [], dict(model.weights)
    for layer in model.spec:
        new = {key: value for key, value in layer.items() if key != "lora"}
        if layer.get("lora"):
            name, alpha = layer["name"], layer["lora"]["alpha"]
            A, B = weights.pop(f"{name}.A"), weights.pop(f"{name}.B")
            weights[f"{name}.W"] = lora.merge(weights[f"{name}.W"], A, B, alpha)
            if layer["lora"].get("bias", False):
                shift = lora.delta_bias(
                    B, weights.pop(f"{name}.bA"), weights.pop(f"{name}.bB"), alpha
                )
                old = weights.get(f"{name}.b")
                weights[f"{name}.b"] = shift if old is None else old + shift
                new["bias"] = True
        spec.append(new)
    return Model(spec=spec, weights=weights)


def forward(model: Model, x: Array) -> tuple[Array, list[Any]]:
    """Run the layers in order.

    Parameters
    ----------
    model : Model
        The network.
    x : array (batch, i)
        Inputs, in the model's library and dtype.

    Returns
    -------
    z : array (batch, C)
        Outputs.
    cache : list
        One entry a layer, for :func:`vjp`.
    """
    caches: list[Any] = []
    for layer in model.spec:
        if layer["kind"] == "linear":
            prefix = layer["name"] + "."
            params = {
                key: model.weights[prefix + key]
                for key in linear.PARAMS
                if prefix + key in model.weights
            }
            x, kept = linear.forward(x, params, _scale(layer))
            caches.append(kept)
        else:
            x, kept_activation = ACTIVATIONS[layer["kind"]][0](x)
            caches.append(kept_activation)
    return x, caches


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
    found: dict[str, Array] = {}
    missing = set(model.trainable)
    for layer, kept in zip(reversed(list(model.spec)), reversed(cache), strict=True):
        if layer["kind"] == "linear":
            prefix = layer["name"] + "."
            need = [key for key in linear.PARAMS if prefix + key in missing]
            missing -= {prefix + key for key in need}
            dx, dparams = linear.vjp(dz, kept, need, per_sample=per_sample, need_dx=bool(missing))
            found |= {prefix + key: value for key, value in dparams.items()}
            if dx is None:
                break
            dz = dx
        else:
            dz = ACTIVATIONS[layer["kind"]][1](dz, kept)
    return {name: found[name] for name in model.trainable}
