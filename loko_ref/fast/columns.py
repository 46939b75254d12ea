"""H by its columns: as they stand, or as products of a cotangent with an input.

Where a linear has one row of input per sample (no tokens), the columns of its weight are
products: ``h[(s, c), (o, i)] = d[s, c, o] x[s, i]``. Of them S, the leverages and the step are
formed without ever forming H.  [FAST-5]

Shapes: batch samples of k cotangents, m = batch k rows; columns (n,) in the order of theta; T, S
(m, m); v (m,); p (n,). Everything here is of the scaled H, columns times sqrt(p).  [FAST-4]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from loko_ref.arrays import Array

SMALL = 64
"""Rows below which a triangle is taken whole."""

STRIPS = 5
"""Strips of rows in :func:`squares`: 3/5 of the square's work, in products large enough."""


class Columns(Protocol):
    """What the filter needs of a scaled H (m, n)."""

    def scale(self, p: Array) -> None:
        """Multiply the columns by sqrt(p); again by a ratio of variances, for another p."""

    def gram(self) -> Array:
        """``H H'`` (m, m), symmetric to the bit."""

    def pull(self, v: Array) -> Array:
        """``sqrt(p) H' v`` (n,): a step, where v is S^-1 e."""

    def squares(self, T: Array) -> Array:
        """``a_i = sum_j (T H)_ji^2`` (n,) for lower triangular T."""

    def whiten(self, N: Array) -> None:
        """Multiply the rows of each sample by its N (batch, k, k)."""

    def full(self) -> Array:
        """Form H."""


def gram(H: Array) -> Array:
    """``H H'`` (m, m), symmetric to the bit.

    Of a few rows, BLAS's symmetric product is slower than its general one, which a copy brings on.
    """
    if H.shape[0] >= 32:
        return H @ H.T
    G = H @ H.copy().T
    return 0.5 * (G + G.T)


def squares(T: Array, H: Array) -> Array:
    """``a_i = sum_j (T H)_ji^2`` (n,) for lower triangular T.  [DIAG-1, FAST-4].

    By strips of T's rows, whose zeros behind the diagonal are left out.
    """
    m, n = H.shape
    a = np.zeros(n, dtype=H.dtype)
    strip = max(SMALL, -(-m // STRIPS))
    for j in range(0, m, strip):
        M = T[j : j + strip, : j + strip] @ H[: j + strip]
        a += np.einsum("ji,ji->i", M, M)
    return a


class Block(NamedTuple):
    """Columns of one parameter: cotangents d (batch, k, o) of its rows, inputs x (batch, i)."""

    d: Array
    x: Array


class Places:
    """Where the entries of blocks lie among n columns; the same at every step."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        rows, ends = 0, 0
        at, inputs, starts, self.spans = [], [], [], []
        start = 0
        for o, i in shapes:
            at.append(np.repeat(np.arange(rows, rows + o), i))
            inputs.append(np.tile(np.arange(ends, ends + i), o))
            starts.append(np.arange(start, start + o * i, i))
            self.spans.append(slice(rows, rows + o))
            rows, ends, start = rows + o, ends + i, start + o * i
        self.at = np.concatenate(at)  # (n,): row of each column's cotangent
        self.inputs = np.concatenate(inputs)  # (n,): place of its input
        self.starts = np.concatenate(starts)  # (rows,): first column of each row


class OneSample:
    """One sample: column i is ``D[:, at_i] x_i``, one number and one of a few cotangents.

    Parameters
    ----------
    blocks : sequence of Block
        In the order of theta, of one sample each.
    """

    def __init__(self, blocks: Sequence[Block], places: Places) -> None:
        self.D = np.concatenate([d[0] for d, _ in blocks], axis=1)  # (k, rows)
        self.x = np.concatenate([x[0] for _, x in blocks]).take(places.inputs)  # (n,)
        self.px, self.places = self.x, places

    def scale(self, p: Array) -> None:
        """``p x`` and ``w^2 = p x^2``."""
        self.px = self.px * p
        self.w2 = self.px * self.x

    def gram(self) -> Array:
        """``D diag(g) D'``, g the sum of w^2 over the columns of a cotangent."""
        g = np.add.reduceat(self.w2, self.places.starts)
        G = (self.D * g) @ self.D.T
        return 0.5 * (G + G.T)

    def pull(self, v: Array) -> Array:
        """``p x (D' v)_at``."""
        found: Array = (v @ self.D).take(self.places.at)
        found *= self.px
        return found

    def squares(self, T: Array) -> Array:
        """``w^2 sum_j (T D)_j,at^2``."""
        M = T @ self.D
        a: Array = np.einsum("ji,ji->i", M, M).take(self.places.at)
        a *= self.w2
        return a

    def whiten(self, N: Array) -> None:
        """``N D``."""
        self.D = N[0] @ self.D

    def full(self) -> Array:
        """``D[:, at] w``."""
        return self.D[:, self.places.at] * np.copysign(np.sqrt(self.w2), self.x)


class Mixed:
    """Some columns as they stand, and blocks of products.

    Parameters
    ----------
    H : array (m, nd)
        Columns as they stand, side by side; overwritten.
    blocks : sequence of (slice of theta, Block)
        The others.
    """

    def __init__(
        self, H: Array, stand: Sequence[slice], blocks: Sequence[tuple[slice, Block]], n: int
    ) -> None:
        self.H, self.n = H, n
        self.root: Array | None = None
        self.stand = _joined(stand)
        self.spans = [span for span, _ in blocks]
        self.rows: list[slice] = []
        self.x = [block.x[None] for _, block in blocks]  # (o, batch, i), o 1 until scaled
        if blocks:
            self.d = np.concatenate([block.d for _, block in blocks], axis=2)  # (batch, k, rows)
            ends = np.cumsum([0] + [block.d.shape[2] for _, block in blocks])
            self.rows = [slice(a, b) for a, b in itertools.pairwise(ends)]

    def _standing(self, r: Array) -> Array:
        """Entries of r (n,) that belong to H's columns."""
        if len(self.stand) == 1:
            return r[self.stand[0]]
        return np.concatenate([r[span] for span in self.stand])

    def _spread(self, standing: Array, parts: Sequence[Array]) -> Array:
        """Inverse of taking apart: (n,)."""
        if not self.spans and len(self.stand) == 1:
            return standing
        out, at = np.empty(self.n, dtype=self.H.dtype), 0
        for span in self.stand:
            size = span.stop - span.start
            out[span] = standing[at : at + size]
            at += size
        for span, part in zip(self.spans, parts, strict=True):
            out[span] = part.reshape(-1)
        return out

    def scale(self, p: Array) -> None:
        """Multiply H, and the inputs: (o, batch, i) from here on."""
        r = np.sqrt(p)
        self.root = r if self.root is None else self.root * r
        if self.stand:
            self.H *= self._standing(r)
        for j, span in enumerate(self.spans):
            x = self.x[j]
            self.x[j] = x * r[span].reshape(-1, 1, x.shape[2])

    def gram(self) -> Array:
        """``H H' + sum_o d_o d_o' * (x_o x_o')``, the product of samples spread over their rows."""
        G = gram(self.H) if self.stand else np.zeros((self.H.shape[0],) * 2, dtype=self.H.dtype)
        if self.spans:
            batch, k, _ = self.d.shape
            X = np.concatenate([x @ x.transpose(0, 2, 1) for x in self.x])  # (rows, batch, batch)
            X *= 0.5
            each = np.ascontiguousarray(X.T)[:, :, None] * self.d  # (batch, batch, k, rows)
            P = self.d @ each.reshape(batch, batch * k, -1).transpose(0, 2, 1)
            P = P.reshape(G.shape)
            G += P + P.T
        return G

    def pull(self, v: Array) -> Array:
        """``H' v``, and ``x_o' (d_o' v)`` sample by sample; times sqrt(p)."""
        parts = []
        if self.spans:
            batch, k, _ = self.d.shape
            w = (v.reshape(batch, 1, k) @ self.d)[:, 0]  # (batch, rows)
            parts = [
                w.T[rows, None] @ x for rows, x in zip(self.rows, self.x, strict=True)
            ]  # (o, 1, i)
        found = self._spread(v @ self.H, parts)
        found *= self.root
        return found

    def squares(self, T: Array) -> Array:
        """``M_o = T d_o`` sample by sample (m, batch), then ``sum_j (M_o x_o)_ji^2``."""
        parts = []
        if self.spans:
            batch, k, _ = self.d.shape
            M = self.d.transpose(0, 2, 1) @ T.reshape(-1, batch, k).transpose(1, 2, 0)
            M = M.transpose(1, 2, 0)  # (rows, m, batch)
            for rows, x in zip(self.rows, self.x, strict=True):
                found = M[rows] @ x  # (o, m, i)
                parts.append(np.einsum("oji,oji->oi", found, found))
        return self._spread(squares(T, self.H), parts)

    def whiten(self, N: Array) -> None:
        """``N H``, ``N d``, sample by sample."""
        batch, k, _ = N.shape
        if self.stand:
            self.H = (N @ self.H.reshape(batch, k, -1)).reshape(self.H.shape)
        if self.spans:
            self.d = N @ self.d

    def full(self) -> Array:
        """H in the order of theta."""
        m = self.H.shape[0]
        out, at = np.empty((m, self.n), dtype=self.H.dtype), 0
        for span in self.stand:
            size = span.stop - span.start
            out[:, span] = self.H[:, at : at + size]
            at += size
        for span, rows, x in zip(self.spans, self.rows, self.x, strict=True):
            d = self.d[:, :, rows, None]  # (batch, k, o, 1)
            out[:, span] = (d * x.transpose(1, 0, 2)[:, None]).reshape(m, -1)
        return out


def _joined(spans: Sequence[slice]) -> list[slice]:
    """Neighbours as one."""
    out: list[slice] = []
    for span in spans:
        if out and out[-1].stop == span.start:
            out[-1] = slice(out[-1].start, span.stop)
        else:
            out.append(span)
    return out
