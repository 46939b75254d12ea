"""The kinds of layer that hold no other, by their plain formulas (see ``network``).

A kind is a pair of functions: forward, ``(v, layer, weights, x) -> (y, kept)``, and back,
``(v, layer, kept, d, parts) -> dx``, which puts the derivatives by the LoRA factors into `parts`.
Every equation is an entry of ``v.F``, so that it can be exchanged.

Shapes: x, y (batch, ..., width), with an axis of t tokens in between where there are tokens; mask
(batch, t) of bool or None. Cotangents, one an output of the network, stand behind the batch: d, dx
(batch, C, ..., width); a factor's derivative (batch, C, *shape).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.special

from loko_ref.arrays import Array
from loko_ref.textbook.values import Formula, Values

__all__ = [
    "LEAVES",
    "LEAVES_FORMULAS",
    "Kind",
    "Layer",
    "Parts",
    "Weights",
    "linear",
    "linear_back",
]

Layer = Mapping[str, Any]
Weights = Mapping[str, Array]
Parts = dict[str, Array]
Kind = tuple[Callable[..., tuple[Array, Any]], Callable[..., Array]]

# ------------------------------------------------------------------ linear, with its LoRA branch


def linear(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """``y = W x + b + scale (B u + bB)``, ``u = A x + bA``.  [LAY-1, LAY-2, LAY-3]."""
    name = layer["name"]
    w = {k.rsplit(".", 1)[1]: a for k, a in weights.items() if k.rsplit(".", 1)[0] == name}
    y = x @ w["W"].T + v.F["bias"](w)
    u, scale = None, 0.0
    if layer.get("lora"):
        scale = v.F["scale"](layer["lora"]["alpha"], layer["lora"]["r"])
        u = v.keep("u", x @ w["A"].T + w.get("bA", 0.0))
        y = y + v.F["branch"](v, scale, u, w)
    return y, (x, u, w, scale)


def linear_back(v: Values, layer: Layer, kept: Any, d: Array, parts: Parts) -> Array:
    """``dx = W' d + A' du``, ``du = B' dv``, ``dv = scale d``; dA = du x', dB = dv u'."""
    x, u, w, scale = kept
    name, dx = layer["name"], d @ w["W"]
    if layer.get("lora"):
        dv = v.F["jacobian_scale"](scale) * d
        du = v.keep("du", dv @ w["B"])
        outer, total = v.F["outer"], v.F["total"]
        parts[f"{name}.A"], parts[f"{name}.B"] = outer(du, x), outer(dv, u)
        parts[f"{name}.bA"], parts[f"{name}.bB"] = total(du), total(v.F["shift_back"](dv, d))
        dx = dx + v.F["branch_back"](du @ w["A"])
    kept_dx: Array = v.keep("d", dx)
    return kept_dx


def _outer(d: Array, x: Array) -> Array:
    """``sum_t d_t x_t'``: (batch, C, ..., o) and (batch, ..., i) to (batch, C, o, i)."""
    d = d.reshape(*d.shape[:2], -1, d.shape[-1])
    x = x.reshape(x.shape[0], 1, -1, x.shape[-1])
    return np.asarray(np.swapaxes(d, -1, -2) @ x)


def _total(d: Array) -> Array:
    """``sum_t d_t``: (batch, C, o)."""
    return np.asarray(d.reshape(*d.shape[:2], -1, d.shape[-1]).sum(axis=2))


def _branch(v: Values, scale: float, u: Array, w: Weights) -> Array:
    """``scale (B u + bB)``."""
    return scale * np.asarray(v.keep("v", u @ w["B"].T + w.get("bB", 0.0)))


# ------------------------------------------------------------------------------- activations


def _gelu(v: Values, x: Array) -> tuple[Array, Array]:
    """Value and derivative of ``x Phi(x)``.  [LAY-6]."""
    Phi = 0.5 * (1 + v.keep("erf", scipy.special.erf(x / math.sqrt(2))))
    return x * Phi, Phi + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(v: Values, x: Array) -> tuple[Array, Array]:
    """Value and derivative of ``x (1 + tanh(c (x + k x^3))) / 2``, c = sqrt(2 / pi).  [LAY-11]."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = v.keep("t", np.tanh(c * (x + k * x**3)))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * k * x * x)


def _softmax(v: Values, z: Array) -> Array:
    """``exp(z - lse)``: that route's error, u |lse|, is what a correct one may have.  [LAY-7]."""
    top = z.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    return np.asarray(np.exp(z - v.keep("lse", lse)))


def _of_input(value: Formula, slope: Formula) -> tuple[Formula, Formula]:
    """Pair of an activation whose slope is taken at its input."""
    return (
        lambda v, layer, weights, x: (value(v, x), x),
        lambda v, layer, x, d, parts: d * slope(v, x)[:, None],
    )


def _of_output(kind: str, back: Formula) -> tuple[Formula, Formula]:
    """Pair of an activation whose derivative is taken at its output y."""

    def forward(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
        y = v.F[kind](v, x)
        return y, v.keep(kind, y)

    return forward, lambda v, layer, y, d, parts: back(v, y[:, None], d)


def _log_softmax(v: Values, x: Array) -> Array:
    """``x - lse``: what its rounding, u |lse|, costs where both cancel, a correct one may have."""
    lse = np.asarray(scipy.special.logsumexp(x, axis=-1, keepdims=True))
    return np.asarray(scipy.special.log_softmax(x, axis=-1)) - (v.keep("lse", lse) - lse)


def _log_softmax_back(v: Values, y: Array, d: Array) -> Array:
    """``dx = d - exp(y) sum d``.  [LAY-8]."""
    return np.asarray(d - np.exp(y) * d.sum(axis=-1, keepdims=True))


# ------------------------------------------------------------------------ layer normalisation


def _layernorm(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    g, b = (weights.get(f"{layer['name']}.{key}", unit) for key, unit in (("g", 1.0), ("b", 0.0)))
    y, kept = v.F["norm"](v, x, g, b, layer.get("eps", 1e-5))
    return y, kept


def _norm(v: Values, x: Array, g: Any, b: Any, eps: float) -> tuple[Array, Any]:
    """``nu = (x - mu) / sqrt(var + eps)``, ``y = g nu + b``, over the last axis.  [ATT-1]."""
    c = x - v.keep("mu", x.mean(axis=-1, keepdims=True))
    var = v.keep("var", (c * c).mean(axis=-1, keepdims=True))
    s = v.keep("deviation", 1 / np.sqrt(var + eps))
    nu = v.keep("nu", c * s)
    return g * nu + b, (nu, s, g)


def _norm_back(nu: Array, s: Array, g: Any, d: Array) -> Array:
    """``dx = s (dnu - <dnu> - nu <nu dnu>)``, ``dnu = g d``.  [ATT-1]."""
    dnu = g * d
    along = (nu * dnu).mean(axis=-1, keepdims=True)
    return np.asarray(s * (dnu - dnu.mean(axis=-1, keepdims=True) - nu * along))


def _layernorm_back(v: Values, layer: Layer, kept: Any, d: Array, parts: Parts) -> Array:
    nu, s, g = kept
    return np.asarray(v.keep("d", v.F["norm_back"](nu[:, None], s[:, None], g, d)))


# -------------------------------------------------------------------------- tokens in, pooled out


def _embedding(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """``y = token[id] + position[row] + type[type]``; leaves the mask in ``v.mask``.  [ATT-4]."""
    x, names = x.astype(np.int64), tuple(layer.get("inputs") or ("ids",))
    given = {"ids": x} if len(names) == 1 else {key: x[:, j] for j, key in enumerate(names)}
    ids, pad = given["ids"], layer.get("pad")
    real = np.ones(ids.shape, dtype=bool) if pad is None else ids != pad
    v["mask"] = v.F["mask"](given.get("mask"), None if pad is None else real)
    rows = v.F["position_rows"](real, layer.get("start"))
    table = {key: weights.get(f"{layer['name']}.{key}") for key in ("token", "position", "type")}
    y = v.F["embed_token"](table["token"], ids) + v.F["embed_position"](table["position"], rows)
    if table["type"] is not None:
        y = y + v.F["embed_type"](table["type"], given.get("types", np.zeros_like(ids)))
    return y, None


def _position_rows(real: Array, start: int | None) -> Array:
    """0, 1, 2, ...; by RoBERTa's rule start + 1, start + 2, ... over real tokens, else start."""
    if start is None:
        return np.broadcast_to(np.arange(real.shape[1]), real.shape)
    return np.cumsum(real, axis=1) * real + start


def _patchify(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """Images to tokens: patches row by row, each flattened (channels, ph, pw).  [ATT-5]."""
    image = x.reshape(x.shape[0], *layer["image"])
    return v.F["patches"](image, *layer["patch"]), None


def _patches(image: Array, ph: int, pw: int) -> Array:
    h, w = image.shape[2:]
    tokens = [
        image[:, :, i : i + ph, j : j + pw].reshape(image.shape[0], -1)
        for i in range(0, h, ph)
        for j in range(0, w, pw)
    ]
    return np.stack(tokens, axis=1)


def _prepend(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """Learnt tokens before the others; they are real.  [ATT-5]."""
    token = weights[f"{layer['name']}.token"]
    head = np.broadcast_to(token, (x.shape[0], *token.shape))
    if v.mask is not None:
        v["mask"] = v.F["join_mask"](np.ones(head.shape[:2], dtype=bool), v.mask)
    return v.F["join"](head, x), token.shape[0]


def _positions(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """``y_t = x_t + position_t``.  [ATT-4]."""
    table = weights[f"{layer['name']}.position"]
    return x + v.F["embed_position"](table, np.arange(x.shape[1])), None


def _pool(v: Values, layer: Layer, weights: Weights, x: Array) -> tuple[Array, Any]:
    """``y = sum_t w_t x_t``.  [ATT-6]."""
    mask = np.ones(x.shape[:2], dtype=bool) if v.mask is None else v.mask
    w = v.F[f"pool.{layer['how']}"](mask)  # (batch, t)
    return (w[:, :, None] * x).sum(axis=1), w


def _pool_back(v: Values, layer: Layer, w: Any, d: Array, parts: Parts) -> Array:
    """``dx_t = w_t d``."""
    return np.asarray(w[:, None, :, None] * d[:, :, None, :])


def _pool_cls(mask: Array) -> Array:
    return np.broadcast_to(np.arange(mask.shape[1]) == 0, mask.shape).astype(np.float64)


def _through(v: Values, layer: Layer, kept: Any, d: Array, parts: Parts) -> Array:
    """``dx = d``; also where nothing below has a factor."""
    return d


# ------------------------------------------------------------------------------------- tables

LEAVES: dict[str, Kind] = {
    "linear": (linear, linear_back),
    "gelu": _of_input(lambda v, x: v.F["gelu"](v, x)[0], lambda v, x: v.F["gelu_derivative"](v, x)),
    "gelu_tanh": _of_input(
        lambda v, x: v.F["gelu_tanh"](v, x)[0], lambda v, x: v.F["gelu_tanh"](v, x)[1]
    ),
    "relu": _of_input(lambda v, x: v.F["relu"](x), lambda v, x: v.F["relu_derivative"](x)),
    "tanh": _of_output("tanh", lambda v, y, d: d * v.F["tanh_derivative"](y)),
    "softmax": _of_output("softmax", lambda v, y, d: v.F["softmax_back"](y, d)),
    "log_softmax": _of_output("log_softmax", _log_softmax_back),
    "layernorm": (_layernorm, _layernorm_back),
    "embedding": (_embedding, _through),
    "patchify": (_patchify, _through),
    "prepend": (_prepend, lambda v, layer, count, d, parts: v.F["join_back"](d, count)),
    "positions": (_positions, _through),
    "pool": (_pool, _pool_back),
}
"""Kind -> (forward, back)."""

LEAVES_FORMULAS: dict[str, Formula] = {
    "scale": lambda alpha, r: alpha / r,
    "bias": lambda w: w.get("b", 0.0),
    "branch": _branch,
    "branch_back": lambda d: d,
    "shift_back": lambda dv, d: dv,
    "outer": _outer,
    "total": _total,
    "jacobian_scale": lambda scale: scale,
    "gelu": _gelu,
    "gelu_derivative": lambda v, x: v.F["gelu"](v, x)[1],
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu_derivative": lambda x: (x > 0).astype(x.dtype),
    "tanh": lambda v, x: np.tanh(x),
    "tanh_derivative": lambda y: 1 - y * y,
    "softmax": _softmax,
    "softmax_back": lambda y, d: y * (d - (y * d).sum(axis=-1, keepdims=True)),  # [LAY-7]
    "log_softmax": _log_softmax,
    "norm": _norm,
    "norm_back": _norm_back,
    "mask": lambda given, real: real if given is None else given != 0,
    "position_rows": _position_rows,
    "embed_token": lambda table, ids: table[ids],
    "embed_position": lambda table, rows: table[rows],
    "embed_type": lambda table, types: table[types],
    "patches": _patches,
    "join": lambda head, x: np.concatenate([head, x], axis=1),
    "join_back": lambda d, count: d[:, :, count:],
    "join_mask": lambda head, mask: np.concatenate([head, mask], axis=1),
    "pool.cls": _pool_cls,
    "pool.mean": lambda mask: mask / mask.sum(axis=1, keepdims=True),
}
"""Formula name -> function."""
