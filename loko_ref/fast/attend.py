"""Attention of the fast route: views in place of copies, cotangents side by side.

Shapes: x (batch * t, d); q, k, v by heads (batch, heads, t, c); a (batch, heads, tq, t); d (batch *
tq * k, d) where k, as everywhere in this package, counts cotangents (keys are ``keys`` here).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from loko_ref.arrays import Array
from loko_ref.fast.nodes import Fresh, Lin, Run
from loko_ref.network.layers.attention import allowed


class Attend(Fresh):
    """Multi-head self-attention.  [ATT-2, ATT-3].

    Parameters
    ----------
    parts : mapping
        The linears q, k, v, o.
    causal : bool
        Whether a query sees no later key.
    rows : int or None
        Number of queries wanted, the first ones; None for all.  [FAST-2]
    """

    def __init__(
        self, parts: Mapping[str, Lin], heads: int, causal: bool, rows: int | None = None
    ) -> None:
        self.parts, self.heads, self.causal, self.rows = parts, heads, causal, rows
        self.trained = any(part.trained for part in parts.values())

    def bind(self, theta: Array) -> None:
        """Bind the projections."""
        for part in self.parts.values():
            part.bind(theta)

    def _heads(self, rows: Array, batch: int) -> Array:
        """(batch * t, d) -> a view (batch, heads, t, c)."""
        return rows.reshape(batch, -1, self.heads, rows.shape[1] // self.heads).transpose(
            0, 2, 1, 3
        )

    def forward(self, x: Array, run: Run) -> Array:
        """Return ``o(a v)`` with ``a = softmax(q k' / sqrt c)``."""
        b, parts = run.batch, self.parts
        t = x.shape[0] // b
        tq = t if self.rows is None else min(self.rows, t)
        first = x if tq == t else x.reshape(b, t, -1)[:, :tq].reshape(b * tq, -1)
        q, keys, v = (
            parts[key].forward(rows, run) for key, rows in (("q", first), ("k", x), ("v", x))
        )
        q *= 1 / math.sqrt(q.shape[1] // self.heads)
        q, keys, v = (self._heads(rows, b) for rows in (q, keys, v))
        a = np.matmul(q, keys.transpose(0, 1, 3, 2))  # (b, heads, tq, t)
        see = allowed(run.mask, t, t, self.causal, a)
        if see is not None:
            np.copyto(a, -math.inf, where=~see[:, :, :tq])
            top = a.max(axis=-1, keepdims=True)
            blind = np.isneginf(top)
            np.copyto(top, 0, where=blind)
            a -= top
            np.exp(a, out=a)
            total = a.sum(axis=-1, keepdims=True)
            np.copyto(total, 1, where=blind)
        else:
            a -= a.max(axis=-1, keepdims=True)
            np.exp(a, out=a)
            total = a.sum(axis=-1, keepdims=True)
        np.divide(1, total, out=total)
        a *= total
        y = np.empty((b, tq, self.heads, v.shape[3]), dtype=a.dtype)
        np.matmul(a, v, out=y.transpose(0, 2, 1, 3))
        self.kept = (q, keys, v, a, y)
        return parts["o"].forward(y.reshape(b * tq, -1), run)

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """Undo the steps; q was scaled, so dk needs no scale, and dq takes it from the keys."""
        b, k, parts, h = run.batch, run.k, self.parts, self.heads
        want = {key: need_dx or parts[key].trained for key in ("q", "k", "v")}
        dy = parts["o"].backward(d, run, any(want.values()))
        if dy is None:
            return None
        q, keys, v, a, y = self.kept
        tq, t, c = a.shape[2], a.shape[3], v.shape[3]
        dy5 = dy.reshape(b, tq, k, h, c)
        dx: Array | None = None
        if want["v"]:
            dv = np.empty((b, t, k, h, c), dtype=d.dtype)
            np.matmul(
                a.transpose(0, 1, 3, 2)[:, :, None],  # (b, h, 1, t, tq)
                dy5.transpose(0, 3, 2, 1, 4),  # (b, h, k, tq, c)
                out=dv.transpose(0, 3, 2, 1, 4),
            )
            dx = parts["v"].backward(dv.reshape(b * t * k, h * c), run, need_dx)
            del dv  # free its memory
        if not (want["q"] or want["k"]):
            return dx
        # ds = a (da - <a, da>), and <a, da> = <y, dy> head by head
        da = np.matmul(
            dy.reshape(b, tq * k, h, c).transpose(0, 2, 1, 3), v.transpose(0, 1, 3, 2)
        )  # (b, h, tq k, t)
        ds = da.reshape(b, h, tq, k, t)
        along = np.matmul(dy5.transpose(0, 1, 3, 2, 4), y[..., None])  # (b, tq, h, k, 1)
        ds -= along.transpose(0, 2, 1, 3, 4)
        ds *= a[:, :, :, None]
        if want["k"]:
            dk = np.empty((b, t, k, h, c), dtype=d.dtype)
            np.matmul(
                ds.transpose(0, 1, 3, 4, 2),  # (b, h, k, t, tq)
                q[:, :, None],  # (b, h, 1, tq, c)
                out=dk.transpose(0, 3, 2, 1, 4),
            )
            part = parts["k"].backward(dk.reshape(b * t * k, h * c), run, need_dx)
            dx = _sum(dx, part)
            del dk, part
        if want["q"]:
            dq = np.empty((b, tq * k, h, c), dtype=d.dtype)
            np.matmul(da, keys * (1 / math.sqrt(c)), out=dq.transpose(0, 2, 1, 3))
            del da, ds
            part = parts["q"].backward(dq.reshape(b * tq * k, h * c), run, need_dx)
            if dx is not None and part is not None and tq < t:
                head = dx.reshape(b, t, -1)[:, :tq]
                head += part.reshape(head.shape)
            else:
                dx = _sum(dx, part)
        return dx


def _sum(a: Array | None, b: Array | None) -> Array | None:
    """Add b to a, where there are both."""
    if a is None or b is None:
        return b if a is None else a
    a += b
    return a
