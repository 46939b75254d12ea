"""Linear algebra on balls: enclosures that stay narrow where the matrix is ill-conditioned.

Shapes: S, A (m, m); L (m, m) lower triangular; b (m,) or (m, k).

A factorisation carried out in ball arithmetic by the textbook loop multiplies radii from pivot to
pivot. Here the midpoint is factored, the ball is brought near the identity by that factor, and
only the remainder is treated as balls.  [BALL-4]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays.balls.ballarray import BallArray, balls, flint, from_mat, to_host, to_mat
from loko_ref.arrays.balls.namespace import xp
from loko_ref.errors import UndecidedError


class Factor(BallArray):
    """Cholesky factor L = L0 C of a ball matrix, which remembers how it came about."""

    S: BallArray  # the matrix
    L0_inv: BallArray  # inverse of L0, the exact factor of (about) the midpoint
    C: BallArray  # factor of L0^-1 S L0'^-1, near the identity


def _mid(array: Any) -> Any:
    return np.frompyfunc(lambda x: x.mid(), 1, 1)(np.asarray(array, dtype=object)).view(BallArray)


def _loop(S: Any) -> BallArray:
    """Cholesky column by column; raises on a pivot that is not certainly positive."""
    m = S.shape[0]
    L = xp.zeros((m, m))
    for j in range(m):
        row = L[j, :j]
        pivot = S[j, j] - (row @ row if j else 0)
        if not pivot > 0:
            if pivot <= 0:
                raise np.linalg.LinAlgError("not positive definite: a pivot is certainly <= 0")
            raise UndecidedError(
                "S",
                _lowest(S),
                f"At {flint().ctx.prec} bits it is not decided whether the matrix is positive "
                f"definite: pivot {j} lies in {pivot.str(3)}. Raise the precision, or take "
                "narrower inputs.",
            )
        L[j, j] = pivot.sqrt()
        if j + 1 < m:
            below = S[j + 1 :, j]
            if j:
                below = below - L[j + 1 :, :j] @ row
            L[j + 1 :, j] = below / L[j, j]
    return L


def _lowest(S: Any) -> float | None:
    host = to_host(S)
    return float(np.linalg.eigvalsh(host)[0]) if np.isfinite(host).all() else None


def cholesky(S: Any) -> Factor:
    """Enclose the Cholesky factor; only the lower triangle is read.

    Raises
    ------
    LinAlgError
        If the matrix is certainly not positive definite.
    UndecidedError
        If the balls are too wide to decide.
    """
    m = S.shape[0]
    lower = np.tril_indices(m, -1)
    S = S.copy().view(BallArray)
    S.T[lower] = S[lower]
    if m == 0:
        L0_inv = C = L0 = S
    else:
        try:
            middle = _loop(_mid(S))
        except (
            np.linalg.LinAlgError
        ):  # the midpoint is not: whether any member is, S itself decides
            middle = _loop(S)
        L0 = np.tril(_mid(middle)).view(BallArray)  # L0 L0' is about the midpoint of S
        L0 = _zero_above(L0)
        L0_inv = _zero_above(from_mat(to_mat(L0).inv()))
        try:
            C = _loop(L0_inv @ S @ L0_inv.T)
        except UndecidedError as error:
            raise UndecidedError("S", _lowest(S), error.cause) from None
    L = (L0 @ C if m else S).view(Factor)
    L.S, L.L0_inv, L.C = S, L0_inv, C
    return L


def _zero_above(L: Any) -> BallArray:
    L = L.copy()
    L[np.triu_indices(L.shape[0], 1)] = flint().arb(0)
    return L.view(BallArray)


def _substitute(L: Any, b: Any, transpose: bool) -> Any:
    """Forward (or backward, by L') substitution."""
    m = L.shape[0]
    x = xp.zeros(b.shape)
    order = range(m - 1, -1, -1) if transpose else range(m)
    for j in order:
        done = slice(j + 1, m) if transpose else slice(0, j)
        row = L[done, j] if transpose else L[j, done]
        known = row @ x[done] if row.shape[0] else 0
        x[j] = (b[j] - known) / L[j, j]
    return x


def solve_triangular(L: Any, b: Any, transpose: bool) -> Any:
    """``L^-1 b`` or ``L'^-1 b``; through L0 and C where L is a :class:`Factor`."""
    if isinstance(L, Factor) and hasattr(L, "C"):
        if transpose:
            return L.L0_inv.T @ _substitute(L.C, b, True)
        return _substitute(L.C, L.L0_inv @ b, False)
    return _substitute(L, b, transpose)


def cho_solve(L: Any, b: Any) -> Any:
    """``S^-1 b`` by the preconditioned solve of S itself."""
    if isinstance(L, Factor) and hasattr(L, "S"):
        return solve(L.S, b)
    return _substitute(L, _substitute(L, b, False), True)


def solve(A: Any, b: Any) -> Any:
    """``A^-1 b`` by ``arb_mat.solve`` with a preconditioner.

    Raises
    ------
    UndecidedError
        If it is not decided whether A can be inverted.
    """
    right = b[:, None] if b.ndim == 1 else b
    if 0 in right.shape:
        return xp.zeros(b.shape)
    try:
        x = from_mat(to_mat(A).solve(to_mat(right), algorithm="precond"))
    except ZeroDivisionError:
        raise UndecidedError(
            "matrix",
            None,
            f"At {flint().ctx.prec} bits it is not decided whether the matrix is singular. Raise "
            "the precision, or take narrower inputs.",
        ) from None
    return x[:, 0] if b.ndim == 1 else x


def eigvalsh(S: Any) -> np.ndarray:
    """Eigenvalues of the midpoint in float64: for the wording of an error, not an enclosure."""
    return np.linalg.eigvalsh(to_host(S))


def _stacked(function: Any) -> Any:
    """Apply a function of one matrix, and of more arguments, to each of a stack."""

    def each(A: Any, *more: Any) -> Any:
        if A.ndim == 2:
            return function(A, *more)
        parts = [function(A[k], *(b[k] for b in more)) for k in range(len(A))]
        return np.stack(parts).view(BallArray)

    return each


def eigh(S: Any) -> tuple[BallArray, BallArray]:
    """Enclose eigenvalues (k,), ascending, and eigenvectors (k, k) of a semidefinite S.  [BALL-9].

    Rows and columns that are exactly 0 have unit vectors, and come first.

    Raises
    ------
    UndecidedError
        If eigenvalues overlap, so that no vector is determined.
    """
    k, zero = len(S), flint().arb(0)
    rest = [j for j in range(k) if not all(x == 0 for x in S[j])]
    E, V = xp.zeros(k), xp.zeros((k, k))
    for at, j in enumerate(j for j in range(k) if j not in rest):
        V[j, at] = flint().arb(1)
    if not rest:
        return E, V
    try:
        values, vectors = flint().acb_mat(to_mat(S[np.ix_(rest, rest)])).eig(right=True)
    except ValueError:
        raise UndecidedError(
            "matrix",
            None,
            f"At {flint().ctx.prec} bits two eigenvalues of a symmetric matrix are not "
            "distinguished, and the columns that are cut are not determined. Raise the precision, "
            "or take other inputs.",
        ) from None
    order = sorted(range(len(rest)), key=lambda c: float(values[c].real.mid()))
    for at, c in enumerate(order, start=k - len(rest)):
        column = [vectors[j, c] for j in range(len(rest))]
        largest = max(column, key=lambda x: float(abs(x).mid()))
        real = [(x / largest).real for x in column]  # a real vector, up to a factor
        length = sum((x * x for x in real), zero).sqrt()
        E[at] = values[c].real
        for j, x in zip(rest, real, strict=True):
            V[j, at] = x / length
    return E, V


def root(value: Any) -> Any:
    """Enclose the square root of one number."""
    return balls(value).item().sqrt()


def contrast_basis(C: int) -> BallArray:
    """Helmert contrasts, enclosed: row j is (1, ..., 1, -j, 0, ...) / sqrt(j (j + 1)).  [OBS-5]"""
    Q = xp.zeros((C - 1, C))
    for j in range(1, C):
        Q[j - 1, :j] = 1 / root(j * (j + 1))
        Q[j - 1, j] = -j / root(j * (j + 1))
    return Q


class _Linalg:
    """What the package asks of ``numpy.linalg``, for balls."""

    eigh = staticmethod(eigh)
    inv = staticmethod(_stacked(lambda A: solve(A, xp.eye(len(A)))))
    solve = staticmethod(_stacked(lambda A, b: solve(A, b)))


xp.linalg = _Linalg
