"""Multi-head attention: forward, vjp, entry in the spec with its four projections.

Shapes: q (batch, tq, heads * c); k, v (batch, t, heads * c); mask (batch, t) true where a key may
be seen; s, a (batch, heads, tq, t) scores and weights; y (batch, tq, heads * c); dy with a
leading axis of cotangents (here called ``lead``, since k is the keys).

The projections to q, k, v and from y are linears of their own
(:mod:`loko_ref.network.layers.linear`), with or without LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from loko_ref.arrays import Array, namespace, peak, root
from loko_ref.arrays.special import softmax_vjp
from loko_ref.checks.signatures import check_type
from loko_ref.errors import InputError
from loko_ref.network.layers import linear
from loko_ref.network.layers.base import (
    Context,
    Flow,
    Grads,
    Kind,
    Layer,
    Params,
    Request,
    Shapes,
    check_entry,
    own,
    wanted,
)
from loko_ref.network.layers.linear import LINEAR
from loko_ref.network.lora import Init

PROJECTIONS = ("q", "k", "v", "o")
"""An attention layer's linears, in model order."""

Cache = tuple[Array, Array, Array, Array]


def split_heads(x: Array, heads: int) -> Array:
    """(..., t, heads * c) -> (..., heads, t, c), heads in runs of c columns.  [ATT-2]."""
    *lead, t, d = x.shape
    return namespace(x).swapaxes(x.reshape(*lead, t, heads, d // heads), -3, -2)


def merge_heads(x: Array) -> Array:
    """(..., heads, t, c) -> (..., t, heads * c); undoes :func:`split_heads`.  [ATT-2]."""
    *lead, heads, t, c = x.shape
    return namespace(x).swapaxes(x, -3, -2).reshape(*lead, t, heads * c)


def allowed(mask: Array | None, tq: int, t: int, causal: bool, like: Array) -> Array | None:
    """Which key each query may see, broadcastable to (batch, 1, tq, t); None for all.  [ATT-3]."""
    xp = namespace(like)
    see = None if mask is None else mask[:, None, None, :]
    if causal:
        # query j of tq stands at position t - tq + j
        late = xp.arange(t)[None, :] <= xp.arange(t - tq, t)[:, None]
        see = late[None, None] if see is None else see & late
    return see


def forward(
    q: Array, k: Array, v: Array, heads: int, *, mask: Array | None = None, causal: bool = False
) -> tuple[Array, Cache]:
    """``s = q k' / sqrt c``, ``a = softmax(s)`` over the keys allowed, ``y = a v``.  [ATT-2, ATT-3]

    A key that is not allowed has weight exactly 0, and a query that may see no key at all gives 0.

    Parameters
    ----------
    q : array (batch, tq, heads * c)
        Queries.
    k, v : array (batch, t, heads * c)
        Keys and values.
    mask : array (batch, t) of bool, optional
        True where a key is real, False where it is padding.
    causal : bool
        Whether a query sees no key behind its own position.

    Returns
    -------
    y : array (batch, tq, heads * c)
    cache : tuple
        q, k, v by heads, and a.
    """
    xp = namespace(q, k, v)
    q, k, v = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
    s = q @ xp.swapaxes(k, -1, -2) * (1 / root(q.shape[-1], q))  # (batch, heads, tq, t)
    see = allowed(mask, s.shape[-2], s.shape[-1], causal, s)
    if see is None:
        w = xp.exp(s - peak(s))
        a = w / w.sum(axis=-1, keepdims=True)
    else:
        see = xp.broadcast_to(see, s.shape)
        blind = ~see.any(axis=-1, keepdims=True)  # a query that sees nothing
        top = xp.where(blind, 0, peak(s, see))
        # where a key is hidden exp(0) is computed and thrown away
        w = xp.where(see, xp.exp(xp.where(see, s - top, 0)), 0)
        total = w.sum(axis=-1, keepdims=True)
        a = w / xp.where(blind, 1, total)
    return merge_heads(a @ v), (q, k, v, a)


def vjp(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Pull cotangents back to q, k, v.  [ATT-2]

    ``da = dy v'``, ``dv = a' dy``, ``ds = a (da - <a, da>)``, ``dq = ds k / sqrt c``,
    ``dk = ds' q / sqrt c``.

    Parameters
    ----------
    dy : array (lead, batch, tq, heads * c)
        Cotangents of the output.
    cache : tuple
        From :func:`forward`.

    Returns
    -------
    dq : array (lead, batch, tq, heads * c)
    dk, dv : array (lead, batch, t, heads * c)
    """
    q, k, v, a = cache
    xp = namespace(dy, q)
    dy = split_heads(dy, a.shape[1])  # (lead, batch, heads, tq, c)
    # y = a v
    da = dy @ xp.swapaxes(v, -1, -2)  # (lead, batch, heads, tq, t)
    dv = xp.swapaxes(a, -1, -2) @ dy
    # a = softmax(s)
    ds = softmax_vjp(da, a)
    # s = q k' / sqrt c
    ds = ds * (1 / root(q.shape[-1], q))
    dq, dk = ds @ k, xp.swapaxes(ds, -1, -2) @ q
    return merge_heads(dq), merge_heads(dk), merge_heads(dv)


def projections(layer: Layer) -> dict[str, Layer]:
    """Return the linears q, k, v, o of an attention layer, with their full names."""
    return {
        key: {"kind": "linear", **layer[key], "name": f"{layer['name']}.{key}"}
        for key in PROJECTIONS
    }


class Attention(Kind):
    """Multi-head self-attention with its four projections.  [ATT-2, ATT-3]."""

    required = ("name", "heads", *PROJECTIONS)
    optional: ClassVar = {"causal": False}
    params = tuple(f"{key}.{name}" for key in PROJECTIONS for name in linear.PARAMS)
    sizes = ("heads",)
    needs_tokens = True

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """q, k, v read the same width; heads divide it; o reads what v returns."""
        out: dict[str, int] = {}
        for key in PROJECTIONS:
            at, part = f"{where}.{key}", layer[key]
            check_type(at, part, Mapping, "a width in place of a linear")
            size = ("in", "out")
            check_entry(at, part, size, LINEAR.optional, size, "projection")
            before = Flow(out["v"], True) if key == "o" else flow
            out[key] = LINEAR.check(part, at, before).width or 0
            if key != "o" and (part["in"], out[key]) != (layer["q"]["in"], out["q"]):
                raise InputError(
                    at,
                    f"{part['in']} -> {out[key]}",
                    f"{layer['q']['in']} -> {out['q']}, as q has it",
                    "projections of different widths",
                )
        if out["q"] % layer["heads"]:
            raise InputError(
                f"{where}.heads", layer["heads"], f"a divisor of {out['q']}", "a wrong head count"
            )
        return Flow(out["o"], True)

    def width_in(self, layer: Layer) -> int | None:
        """``in`` of q."""
        return LINEAR.width_in(layer["q"])

    def shapes(self, layer: Layer) -> Shapes:
        """Those of q, k, v, o."""
        return {
            f"{key}.{name}": shape
            for key in PROJECTIONS
            for name, shape in LINEAR.shapes(layer[key]).items()
        }

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Yield q, k, v, o."""
        yield from projections(layer).values()

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Change q, k, v, o."""
        new = dict(layer)
        for key, part in projections(layer).items():
            new[key] = {k: v for k, v in change(part).items() if k not in ("kind", "name")}
        return new

    def init(
        self, layer: Layer, rng: np.random.Generator, init: Init, dtype: str
    ) -> dict[str, Any]:
        """Draw q, k, v, o in turn."""
        return {
            f"{key}.{name}": value
            for key in PROJECTIONS
            for name, value in LINEAR.init(layer[key], rng, init, dtype).items()
        }

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Project, attend, project."""
        part = {key: own(f"{key}.", linear.PARAMS, params) for key in PROJECTIONS}
        out, cache = {}, {}
        for key in ("q", "k", "v"):
            out[key], cache[key] = LINEAR.forward(x, part[key], layer[key], context)
        mask, causal = context.mask, self.option(layer, "causal")
        y, cache["attend"] = forward(**out, heads=layer["heads"], mask=mask, causal=causal)
        y, cache["o"] = LINEAR.forward(y, part["o"], layer["o"], context)
        return y, cache

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """Undo the steps in reverse; a projection of which nothing is wanted is left out."""
        need = {key: wanted(f"{key}.", linear.PARAMS, request.need) for key in PROJECTIONS}
        through = [key for key in ("q", "k", "v") if request.need_dx or need[key]]
        found: Grads = {}

        def back(key: str, d: Array, need_dx: bool) -> Array | None:
            inner = replace(request, need=need[key], need_dx=need_dx)
            dx, got = LINEAR.vjp(d, cache[key], layer[key], inner)
            found.update({f"{key}.{name}": value for name, value in got.items()})
            return dx

        dattend = back("o", dy, bool(through))
        if dattend is None:
            return None, found
        total: Array | None = None
        for key, d in zip("qkv", vjp(dattend, cache["attend"]), strict=True):
            if key in through:
                part = back(key, d, request.need_dx)
                total = part if total is None or part is None else total + part
        return total, found
