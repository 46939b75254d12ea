"""A precision of blocks plus low rank: ``P^-1 = B + W W'``, B block-diagonal.  [KAL-9, KAL-10].

With blocks of one entry it is LO-FI's, a diagonal plus L columns; with L = 0 it is the variational
diagonal, or r x r blocks; with every column kept it is the dense filter.

Shapes: U (n,), or the blocks' entries one after the other; W (n, L); X (n, k); H (m, n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import Array, cho_solve, cholesky, namespace, root, solve_triangular
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import (
    check_covariance,
    check_finite,
    check_floats,
    check_positive,
    check_shape,
    check_some,
)

Blocks: TypeAlias = Literal["unit", "tensor"]
BLOCKS: tuple[Blocks, ...] = get_args(Blocks)

PRECISIONS = ("lowrank", "block")
"""Covariances that are kept as a precision."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The blocks of one tensor: `units` of them, each over `size` entries of theta."""

    start: int  # where the tensor begins in theta; it has units * size entries
    # number of blocks and their size
    units: int
    size: int
    # whether a block is a column of the tensor, (size, units) row-major, and not a row
    across: bool = False

    def split(self, X: Array) -> Array:
        """Rows of X (n, k) by blocks: (units, size, k)."""
        rows = X[self.start : self.start + self.units * self.size]
        if self.across:
            return rows.reshape(self.size, self.units, -1).swapaxes(0, 1)
        return rows.reshape(self.units, self.size, -1)

    def join(self, blocks: Array) -> Array:
        """Undo :meth:`split`: (units * size, k)."""
        rows = blocks.swapaxes(0, 1) if self.across else blocks
        return rows.reshape(self.units * self.size, -1)


def groups_of(shapes: Sequence[tuple[str, tuple[int, ...]]], blocks: Blocks) -> tuple[Group, ...]:
    """List the blocks of the trainables in packing order.  [KAL-10].

    Parameters
    ----------
    shapes : sequence of (str, tuple of int)
        Part of the layer (``A``, ``B``, ``bA``, ``bB``, or another) and shape.
    blocks : {"unit", "tensor"}
        One block per input of A and output of B, bA one, and one per entry of the others; or one
        per tensor.
    """
    found, at = [], 0
    for part, shape in shapes:
        size = 1
        for s in shape:
            size *= s
        if blocks == "tensor" or part == "bA":
            group = Group(start=at, units=1, size=size)
        elif part in ("A", "B"):
            r = shape[0] if part == "A" else shape[1]
            group = Group(start=at, units=size // r, size=r, across=part == "A")
        else:
            group = Group(start=at, units=size, size=1)
        found.append(group)
        at += size
    return tuple(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Precision:
    """``P^-1 = B + W W'``; no method changes it, or an array of it."""

    # of B the diagonal (n,), or the blocks (sum of units * size^2,), by tensor, each row-major
    U: Array
    W: Array  # (n, L): the low-rank part; determined up to a rotation of its columns
    groups: tuple[Group, ...] = ()  # the blocks; empty where B is diagonal

    @classmethod
    def prior(cls, p: Array, L: int, groups: tuple[Group, ...] = ()) -> Precision:
        """Return ``B = diag(1 / p)``, W = 0."""
        xp = namespace(p)
        W = xp.zeros((p.shape[0], L), dtype=p.dtype)
        made = cls(U=1 / p, W=W, groups=groups)
        if not groups:
            return made
        eyes = (g.split(made.U[:, None]) * xp.eye(g.size, dtype=p.dtype) for g in groups)
        return replace(made, U=xp.concatenate([eye.reshape(-1) for eye in eyes]))

    def _each(self) -> list[tuple[Group, Array]]:
        """List each group with its blocks (units, size, size)."""
        found, at = [], 0
        for g in self.groups:
            entries = g.units * g.size**2
            found.append((g, self.U[at : at + entries].reshape(g.units, g.size, g.size)))
            at += entries
        return found

    def blocks(self) -> list[Array]:
        """List the blocks of B, each (size, size); of a diagonal none."""
        return [block for _, each in self._each() for block in each]

    def _base(self, rows: Array) -> Array:
        """``B^-1 X`` by rows: X' (k, n), which are contiguous, to (B^-1 X)' (k, n)."""
        if not self.groups:
            return rows / self.U
        xp = namespace(rows)
        parts = [g.join(xp.linalg.solve(b, g.split(rows.T))).T for g, b in self._each()]
        return xp.concatenate(parts, axis=1)

    def times(self, X: Array) -> Array:
        """``P X = B^-1 X - B^-1 W (I + W' B^-1 W)^-1 W' B^-1 X`` (n, k).  [KAL-9]."""
        k, L = X.shape[1], self.W.shape[1]
        xp = namespace(X)
        rows = xp.concatenate([X.T, self.W.T])  # (k + L, n)
        both = self._base(rows)
        if not L:
            return both.T
        cross = rows[k:] @ both.T  # (L, k + L): W' B^-1 [X, W]
        C = cholesky(xp.eye(L, dtype=X.dtype) + cross[:, k:], "I + W' B^-1 W")
        return (both[:k] - cho_solve(C, cross[:, :k]).T @ both[k:]).T

    def variances(self) -> Array:
        """Return the diagonal of P (n,)."""
        xp = namespace(self.W)
        if self.groups:
            each = [
                g.join(xp.diagonal(xp.linalg.inv(b), axis1=1, axis2=2)[:, :, None])
                for g, b in self._each()
            ]
            p = xp.concatenate(each)[:, 0]
        else:
            p = 1 / self.U
        if not self.W.shape[1]:
            return p
        rows = xp.concatenate([self.W.T])  # (L, n)
        BW = self._base(rows)
        C = cholesky(xp.eye(len(rows), dtype=p.dtype) + rows @ BW.T, "I + W' B^-1 W")
        return p - (solve_triangular(C, BW) ** 2).sum(axis=0)

    def predict(self, lam: float, q: float) -> Precision:
        """Return the precision of ``P / lam + q I``, of the same rank.  [KAL-9].

        ``B <- lam B``, ``W <- sqrt(lam) W``; then, with D = (I + q B)^-1, ``B <- D B`` and
        ``W <- D W C^-T``, C C' = I + q W' D W.
        """
        if lam == 1 and q == 0:
            return self
        P = replace(self, U=lam * self.U, W=root(lam, self.W) * self.W)
        if q == 0:
            return P
        xp = namespace(P.W)
        if P.groups:
            parts, moved = [], []
            for g, b in P._each():
                inner = xp.eye(g.size, dtype=b.dtype) + q * b  # symmetric; commutes with b
                parts.append(xp.linalg.solve(inner, b).reshape(-1))
                moved.append(g.join(xp.linalg.solve(inner, g.split(P.W))))
            U, DW = xp.concatenate(parts), xp.concatenate(moved)
        else:
            d = 1 / (1 + q * P.U)
            U, DW = d * P.U, d[:, None] * P.W
        C = cholesky(xp.eye(P.W.shape[1], dtype=U.dtype) + q * (P.W.T @ DW), "I + q W' D W")
        W = solve_triangular(C, DW.T).T if P.W.shape[1] else DW
        return replace(P, U=U, W=W)

    def add(self, H: Array) -> Precision:
        """Return ``P+^-1 = P^-1 + H' H`` for rows H (m, n) of unit noise, its rank cut.  [KAL-9].

        ``W~ = [W, H']``, ``W~' W~ = V D V'``: of the columns of W~ V the L largest are kept, and
        the others go into B, as far as it has entries: w w' on its blocks. A tie at the cut is
        not decided: which of two equally large columns is kept depends on rounding.
        """
        xp, L = namespace(H), self.W.shape[1]
        wide = xp.concatenate([self.W.T, H])  # (L + m, n): W~'
        cut = wide.shape[0] - L
        if L:
            _, V = xp.linalg.eigh(wide @ wide.T)  # ascending
            wide = V.T @ wide
        gone, W = wide[:cut], wide[cut:].T
        if not self.groups:
            return replace(self, U=self.U + (gone * gone).sum(axis=0), W=W)
        parts = []
        for g, b in self._each():
            w = g.split(gone.T)  # (units, size, cut)
            parts.append((b + w @ w.swapaxes(1, 2)).reshape(-1))
        return replace(self, U=xp.concatenate(parts), W=W)

    def dense(self) -> Array:
        """``B + W W'`` (n, n), for small n."""
        xp = namespace(self.W)
        eye = xp.eye(self.W.shape[0], dtype=self.W.dtype)
        if not self.groups:
            B = xp.diag(self.U)
        else:
            # column by column of the identity: B e_j
            B = xp.concatenate([g.join(b @ g.split(eye)) for g, b in self._each()])
        return B + self.W @ self.W.T


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionUpdate:
    """What a filter yields that keeps a precision: as the others, P a :class:`Precision`."""

    S: Array
    K: Array
    theta: Array
    P: Precision
    v: Array | None = None


def update(theta: Array, P: Precision, H: Array, e: Array, R: Array) -> PrecisionUpdate:
    """One measurement update of a precision, arguments checked.  [KAL-2, KAL-9, KAL-10].

    Parameters
    ----------
    theta : array (n,)
        Prior mean.
    P : Precision
        Of the prior, after :meth:`Precision.predict` where there is a time update.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation y - yhat.
    R : array (m, m)
        Observation noise, symmetric positive definite.

    Returns
    -------
    PrecisionUpdate
        S, K, theta, and P of as many columns.

    Raises
    ------
    InputError
        If a shape, a dtype or a value is not as stated.
    NumericalError
        If S or R is numerically singular.

    Examples
    --------
    >>> import numpy as np
    >>> new = update(
    ...     np.zeros(2), Precision.prior(np.ones(2), 1), np.ones((1, 2)), np.ones(1), np.eye(1)
    ... )
    >>> new.theta.round(4), new.P.dense().round(4)
    (array([0.3333, 0.3333]), array([[2., 1.],
           [1., 2.]]))
    """
    check_type("P", P, Precision, "an array in place of a Precision")
    check_floats(theta=theta, U=P.U, W=P.W, H=H, e=e, R=R)
    check_shape("theta", theta, ("n",))
    n = theta.shape[0]
    entries = sum(g.units * g.size**2 for g in P.groups) or n
    check_shape("U", P.U, (entries,))
    check_shape("W", P.W, ("n", "L"), {"n": n})
    check_shape("e", e, ("m",))
    check_some("e", e, "output")
    m = e.shape[0]
    check_shape("H", H, ("m", "n"), {"m": m, "n": n})
    check_finite(theta=theta, U=P.U, W=P.W, H=H, e=e, R=R)
    check_shape("R", R, ("m", "m"), {"m": m})
    check_covariance("R", R)
    if P.groups:
        for block in P.blocks():
            check_covariance("a block of U", block)
    else:
        check_positive("U", P.U)
    return update_unchecked(namespace(theta), theta, P, H, e, R)


def update_unchecked(
    xp: Any, theta: Array, P: Precision, H: Array, e: Array, R: Array
) -> PrecisionUpdate:
    """Compute :func:`update` of checked arrays of the namespace `xp`."""
    PHt = P.times(H.T)  # (n, m)
    S = H @ PHt + R  # (m, m)  [KAL-2]
    K = cho_solve(cholesky(S, "S"), PHt.T).T  # (n, m)
    Hw = solve_triangular(cholesky(R, "R"), H)  # R^-1/2 H: unit noise
    return PrecisionUpdate(S=S, K=K, theta=theta + K @ e, P=P.add(Hw))  # [KAL-9]
