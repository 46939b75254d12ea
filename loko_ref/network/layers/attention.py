"""Scaled dot-product attention over several heads: forward and vjp side by side.

Shapes: q (batch, tq, heads * c); k, v (batch, t, heads * c); mask (batch, t) true where a key may
be seen; s, a (batch, heads, tq, t) scores and weights; y (batch, tq, heads * c); dy with a
leading axis of cotangents (here called ``lead``, since k is the keys).

The projections to q, k, v and from y are linears of their own
(:mod:`loko_ref.network.layers.linear`), with or without LoRA. There is no dropout: the oracle is a
deterministic function of its inputs.
"""

from __future__ import annotations

from loko_ref.arrays import Array, namespace, peak, root
from loko_ref.arrays.special import softmax_vjp

__all__ = ["Cache", "allowed", "forward", "merge_heads", "split_heads", "vjp"]

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
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    *,
    mask: Array | None = None,
    causal: bool = False,
) -> tuple[Array, Cache]:
    """``s = q k' / sqrt c``, ``a = softmax(s)`` over the keys allowed, ``y = a v``.  [ATT-2, ATT-3]

    A key that is not allowed has weight exactly 0, and a query that may see no key at all gives 0.

    Parameters
    ----------
    q : array (batch, tq, heads * c)
        Queries.
    k, v : array (batch, t, heads * c)
        Keys and values.
    heads : int
        Number of heads.
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
