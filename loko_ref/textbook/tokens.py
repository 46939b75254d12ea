"""A network's quantities where tokens begin and end: tables, positions, patches, pooling.

Kinds of layer as in ``layers``. Shapes: ids, rows, mask (batch, t); x, z (batch, t, width), behind
a pool (batch, width); d (batch, C, t, width); a derivative by a table (batch, C, *shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.textbook.layers import Back, Kind, Layer, Net
from loko_ref.textbook.quantities import Formula, Values


def _channels(layer: Layer, x: Array) -> tuple[dict[str, Array], Array]:
    """Token ids and what comes beside them, by name; which tokens are real."""
    x, names = x.astype(np.int64), tuple(layer.get("inputs") or ("ids",))
    given = {"ids": x} if len(names) == 1 else {key: x[:, j] for j, key in enumerate(names)}
    pad = layer.get("pad")
    real = np.ones(given["ids"].shape, dtype=bool) if pad is None else given["ids"] != pad
    return {"types": np.zeros_like(given["ids"]), **given}, real


def _embedding(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``y = token[id] + position[row] + type[type]``; the mask besides.  [ATT-4]."""
    w = net.own(layer["name"])

    def mask(v: Values, x: Array) -> Any:
        given, real = _channels(layer, x)
        return v.F["mask"](given.get("mask"), None if layer.get("pad") is None else real)

    def rows(v: Values, x: Array) -> dict[str, Array]:
        given, real = _channels(layer, x)
        at = {"token": given["ids"], "position": v.F["position_rows"](real, layer.get("start"))}
        return at | ({"type": given["types"]} if layer.get("types") else {})

    def output(v: Values, w: Any, rows: Any) -> Array:
        y = v.F["embed_token"](w["token"], rows["token"])
        y = y + v.F["embed_position"](w["position"], rows["position"])
        return y + v.F["embed_type"](w["type"], rows["type"]) if "type" in rows else y

    net.mask = net.put(
        f"mask.{place}", [x], mask, "which tokens count", "ATT-4", "mask", exact=True
    )
    at = net.put(f"rows.{place}", [x], rows, "rows of the tables", "ATT-4", exact=True)
    z = net.put(f"z.{place}", [w, at], output, "token[id] + position[row] + type[type]", "ATT-4")
    tables = ("token", "position", *(("type",) if layer.get("types") else ()))
    return z, lambda d: _by_tables(net, place, tables, w, at, d)


def _by_tables(net: Net, place: str, tables: Sequence[str], w: str, at: str, d: str) -> str:
    """Write the derivatives by tables, summed row by row; dx = d, as nothing below has a factor."""

    def summed(key: str) -> Formula:
        def rule(v: Values, w: Any, rows: Any, d: Array) -> Array:
            G = np.zeros_like(d, shape=(*d.shape[:2], *w[key].shape))
            for b, own in enumerate(np.broadcast_to(rows[key], (len(d), d.shape[2]))):
                for t, row in enumerate(own):
                    G[b, :, row] += d[b, :, t]
            return G

        return rule

    for key in tables if net.tables else ():
        net.put(f"G.{place}.{key}", [w, at, d], summed(key), "sum_t of each row's d", "ATT-4")
    return d


def _position_rows(real: Array, start: int | None) -> Array:
    """0, 1, 2, ...; by RoBERTa's rule start + 1, start + 2, ... over real tokens, else start."""
    if start is None:
        return np.broadcast_to(np.arange(real.shape[1]), real.shape)
    return np.cumsum(real, axis=1) * real + start


def _patchify(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """Images to tokens: patches row by row, each flattened (channels, ph, pw).  [ATT-5]."""

    def output(v: Values, x: Array) -> Any:
        return v.F["patches"](x.reshape(x.shape[0], *layer["image"]), *layer["patch"])

    return net.put(f"z.{place}", [x], output, "patches", "ATT-5", "patches"), lambda d: d


def _patches(image: Array, ph: int, pw: int) -> Array:
    h, w = image.shape[2:]
    tokens = [
        image[:, :, i : i + ph, j : j + pw].reshape(image.shape[0], -1)
        for i in range(0, h, ph)
        for j in range(0, w, pw)
    ]
    return np.stack(tokens, axis=1)


def _prepend(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """Learnt tokens before the others; they are real.  [ATT-5]."""
    w = net.own(layer["name"])

    def head(w: Any, x: Array) -> Array:
        return np.broadcast_to(w["token"], (x.shape[0], *w["token"].shape))

    def mask(v: Values, w: Any, x: Array, old: Any) -> Any:
        ones = np.ones(head(w, x).shape[:2], dtype=bool)
        return None if old is None else v.F["join_mask"](ones, old)

    def back(d: str) -> str:
        if net.tables:
            net.put(f"G.{place}.token", [d, w], lambda v, d, w: d[:, :, : len(w["token"])],
                    "the first tokens' d", "ATT-5", exact=True)  # fmt: skip
        return net.put(f"dx.{place}", [d, w], lambda v, d, w: v.F["join_back"](d, len(w["token"])),
                       "the others' d", "ATT-5", "join_back", exact=True)  # fmt: skip

    net.mask = net.put(f"mask.{place}", [w, x, net.mask], mask, "[1; mask]", "ATT-5", "join_mask",
                       exact=True)  # fmt: skip
    z = net.put(f"z.{place}", [w, x], lambda v, w, x: v.F["join"](head(w, x), x), "[token; x]",
                "ATT-5", "join")  # fmt: skip
    return z, back


def _positions(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``y_t = x_t + position_t``.  [ATT-4]."""
    w = net.own(layer["name"])
    at = net.put(f"rows.{place}", [x], lambda v, x: {"position": np.arange(x.shape[1])}, "0, 1, ..",
                 "ATT-4", exact=True)  # fmt: skip

    def output(v: Values, x: Array, w: Any, rows: Any) -> Any:
        return x + v.F["embed_position"](w["position"], rows["position"])

    z = net.put(f"z.{place}", [x, w, at], output, "x + position", "ATT-4", "embed_position")
    return z, lambda d: _by_tables(net, place, ["position"], w, at, d)


def _pool(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``y = sum_t w_t x_t``, ``dx_t = w_t d``.  [ATT-6]."""
    how = f"pool.{layer['how']}"

    def shares(v: Values, x: Array, mask: Array | None) -> Any:
        return v.F[how](np.ones(x.shape[:2], dtype=bool) if mask is None else mask)  # (batch, t)

    w = net.put(f"pool.{place}", [x, net.mask], shares, "1 at the first token, or mask / sum(mask)",
                "ATT-6", how, exact=True)  # fmt: skip
    z = net.put(f"z.{place}", [x, w], lambda v, x, w: (w[:, :, None] * x).sum(axis=1),
                "sum_t w_t x_t", "ATT-6", how)  # fmt: skip
    return z, lambda d: net.put(
        f"dx.{place}", [w, d], lambda v, w, d: w[:, None, :, None] * d[:, :, None, :], "w_t d",
        "ATT-6", exact=True,
    )  # fmt: skip


def _pool_cls(mask: Array) -> Array:
    return np.broadcast_to(np.arange(mask.shape[1]) == 0, mask.shape).astype(np.float64)


ENDS: dict[str, Kind] = {
    "embedding": _embedding,
    "patchify": _patchify,
    "prepend": _prepend,
    "positions": _positions,
    "pool": _pool,
}
"""Kind -> what writes its quantities."""

ENDS_FORMULAS: dict[str, Formula] = {
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
