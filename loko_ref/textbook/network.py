"""The network by its plain formulas, replaceable by name: one walk forward, one walk back.

A layer that holds others (attention its projections, a residual branch its layers) walks them as
the network walks its own; those that hold none are in ``network_leaves``.

Shapes: x (batch, ..., width), q, k, values (batch, heads, t, c); s, a (batch, heads, t, t); mask
(batch, t) of bool or None. Cotangents, one an output of the network, stand behind the batch: d, dx
(batch, C, ..., width); a factor's derivative (batch, C, *shape); z (batch, C); Z (batch * C, n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.textbook.layers import (
    LEAVES,
    LEAVES_FORMULAS,
    Kind,
    Layer,
    Parts,
    Weights,
    linear,
    linear_back,
)
from loko_ref.textbook.values import Formula, Values

__all__ = ["KINDS", "NETWORK", "factors", "forward", "jacobian", "projections"]


# ---------------------------------------------------------------------------------- attention


def projections(layer: Layer) -> dict[str, dict[str, Any]]:
    """Give the linears q, k, v, o of an attention layer their full names."""
    return {
        key: {"kind": "linear", **layer[key], "name": f"{layer['name']}.{key}"} for key in "qkvo"
    }


def _attention(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """``s = q k' / sqrt c``, ``a = softmax(s)`` over the keys seen, ``o(a values)``.  [ATT-2]."""
    linears, kept, by_head = projections(layer), {}, []
    for key in "qkv":
        y, kept[key] = linear(v, linears[key], weights, x)
        by_head.append(v.F["split_heads"](v.keep("y" + key, y), layer["heads"]))
    q, k, values = by_head
    s = v.keep("s", v.F["scores"](v, q, k))
    seen = v.F["seen"](v, v.mask, x.shape[1], layer.get("causal", False))
    a, *more = v.F["attend"](v, s, np.broadcast_to(seen, s.shape))
    a = v.keep("a", a)
    y = v.keep("ya", v.F["merge_heads"](a @ values))
    y, kept["o"] = linear(v, linears["o"], weights, y)
    return y, (kept, q, k, values, a, *more)


def _attention_back(v: Values, layer: Layer, kept: Any, d: Array, parts: Parts) -> Array:
    """``dvalues = a' dy``, ``da = dy values'``, then ds, dq, dk and the projections.  [ATT-2]."""
    caches, *by_head = kept
    q, k, values, a, *more = (array[:, None] for array in by_head)
    linears = projections(layer)
    d = linear_back(v, linears["o"], caches["o"], d, parts)
    dy = v.F["merge_back"](v, d, layer["heads"])  # (batch, C, heads, t, c)
    da, dvalues = v.F["values_back"](a, values, dy)
    ds = v.keep("ds", v.F["attend_back"](da, a, *more))
    dq, dk = v.F["scores_back"](v, q, k, ds)
    dx = np.zeros(())
    for key, one in (("q", dq), ("k", dk), ("v", dvalues)):
        one = v.keep("d" + key, v.F["split_back"](v, one))
        dx = dx + linear_back(v, linears[key], caches[key], one, parts)
    return dx


def _split_heads(x: Array, heads: int) -> Array:
    """(..., t, heads * c) to (..., heads, t, c): head h owns the h-th run of c columns."""
    return np.swapaxes(x.reshape(*x.shape[:-1], heads, -1), -3, -2)


def _merge_heads(x: Array) -> Array:
    x = np.swapaxes(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def _scores(v: Values, q: Array, k: Array) -> Array:
    return np.asarray(q @ np.swapaxes(k, -1, -2) * v.F["score_scale"](q.shape[-1]))


def _scores_back(v: Values, q: Array, k: Array, ds: Array) -> tuple[Array, Array]:
    """``dq = ds k / sqrt c``, ``dk = ds' q / sqrt c``."""
    ds = ds * v.F["score_scale"](q.shape[-1])
    return ds @ k, np.swapaxes(ds, -1, -2) @ q


def _seen(v: Values, mask: Array | None, t: int, causal: bool) -> Array:
    """Which key each query sees, broadcastable to (batch, 1, t, t).  [ATT-3]."""
    seen = np.ones((1, 1, 1, t), dtype=bool) if mask is None else mask[:, None, None, :]
    return seen & v.F["causal"](t) if causal else seen


def _attend(v: Values, s: Array, seen: Array) -> tuple[Array, ...]:
    """Attend: ``a = exp(s - lse)`` over the keys seen, else 0, and for who sees none.  [ATT-3].

    What stands behind a, nothing here, is kept for ``attend_back``.
    """
    s = np.where(seen, s, -np.inf)
    top = s.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(s - top).sum(axis=-1, keepdims=True)
    lse = top + np.log(np.where(total > 0, total, 1.0))
    return (np.asarray(np.exp(s - v.keep("lse", lse))),)


def _values_back(a: Array, values: Array, dy: Array) -> tuple[Array, Array]:
    return dy @ np.swapaxes(values, -1, -2), np.swapaxes(a, -1, -2) @ dy


# ----------------------------------------------------------------------------------- residual


def _residual(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """``y = x + layers(x)``.  [ATT-7]."""
    y, caches = _run(v, layer["layers"], weights, x)
    return v.F["add"](x, y), caches


def _residual_back(v: Values, layer: Layer, kept: Any, d: Array, parts: Parts) -> Array:
    inner = _back(v, layer["layers"], kept, d, parts)
    return np.asarray(v.keep("d", v.F["add_back"](d, inner)))


# ------------------------------------------------------------------------------------ the walks

KINDS: dict[str, Kind] = {
    **LEAVES,
    "attention": (_attention, _attention_back),
    "residual": (_residual, _residual_back),
}
"""Kind -> (forward, back)."""


def _run(v: Values, spec: Sequence[Layer], weights: Weights, x: Array) -> tuple[Array, list[Any]]:
    caches = []
    for layer in spec:
        y, kept = KINDS[layer["kind"]][0](v, layer, weights, x)
        caches.append(kept)
        x = v.keep("y" + layer["kind"], y)
    return x, caches


def _back(v: Values, spec: Sequence[Layer], caches: list[Any], d: Array, parts: Parts) -> Array:
    for layer, kept in zip(reversed(spec), reversed(caches), strict=True):
        d = KINDS[layer["kind"]][1](v, layer, kept, d, parts)
    return d


def forward(v: Values, theta: Array | None = None) -> tuple[Array, list[Any]]:
    """Return z (batch, C) and what each layer keeps."""
    v |= {"mask": None, "spec": v.F["layers"](v.spec)}
    weights = v.weights if theta is None else v.F["unpack"](v, theta)
    return _run(v, v.spec, v.F["named"](weights), v.x)


def jacobian(v: Values, caches: list[Any], C: int) -> Array:
    """Z (batch * C, n), backward with one cotangent an output.  [LAY-9, LAY-10]."""
    d, parts = np.broadcast_to(np.eye(C), (v.x.shape[0], C, C)), {}  # type: Array, Parts
    _back(v, v.spec, caches, d, parts)
    flat = [
        v.F["flatten"](parts[f"{layer['name']}.{key}"])
        for layer in v.F["sites"](v.spec)
        for key in v.F["order"](list(factors(layer)))
    ]
    Z: Array = v.F["stack"](np.concatenate(flat, axis=-1))  # (batch, C, n)
    return Z


# ---------------------------------------------------------------------------- theta  [LORA-4]


def _sites(spec: Sequence[Layer]) -> list[Layer]:
    """Linears with LoRA as they stand in the spec, an attention's q, k, v, o in this order."""
    found: list[Layer] = []
    for layer in spec:
        if layer["kind"] == "residual":
            found += _sites(layer["layers"])
        elif layer["kind"] == "attention":
            found += _sites(list(projections(layer).values()))
        elif layer.get("lora"):
            found.append(layer)
    return found


def factors(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Name and shape of the factors of one linear, in packing order."""
    lora, i, o = layer["lora"], layer["in"], layer["out"]
    shapes: dict[str, tuple[int, ...]] = {"A": (lora["r"], i), "B": (o, lora["r"])}
    if lora.get("bias", False):
        shapes |= {"bA": (lora["r"],), "bB": (o,)}
    return shapes


def _unpack(v: Values, theta: Array) -> dict[str, Array]:
    """All weights, the factors taken from theta."""
    weights, at = dict(v.weights), 0
    for layer in v.F["sites"](v.spec):
        shapes = factors(layer)
        for key in v.F["order"](list(shapes)):
            size = math.prod(shapes[key])
            weights[f"{layer['name']}.{key}"] = v.F["unflatten"](theta[at : at + size], shapes[key])
            at += size
    return weights


NETWORK: dict[str, Formula] = {
    **LEAVES_FORMULAS,
    "split_heads": _split_heads,
    "split_back": lambda v, d: v.F["merge_heads"](d),
    "merge_heads": _merge_heads,
    "merge_back": lambda v, d, heads: v.F["split_heads"](d, heads),
    "score_scale": lambda c: 1 / math.sqrt(c),
    "scores": _scores,
    "scores_back": _scores_back,
    "seen": _seen,
    "causal": lambda t: np.tri(t, dtype=bool),
    "attend": _attend,
    "attend_back": lambda da, a: a * (da - (a * da).sum(axis=-1, keepdims=True)),
    "values_back": _values_back,
    "add": lambda x, y: x + y,
    "add_back": lambda d, inner: d + inner,
    "layers": lambda spec: spec,
    "named": lambda weights: weights,
    "sites": _sites,
    "order": lambda names: names,
    "flatten": lambda a: a.reshape(*a.shape[:2], -1),
    "unflatten": lambda flat, shape: flat.reshape(shape),
    "stack": lambda Z: Z.reshape(-1, Z.shape[-1]),
    "unpack": _unpack,
}
"""Formula name -> function: each equation of the network, each convention of theta."""
