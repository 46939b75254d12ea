"""The diagonal measurement update without the gain: scaled H, triangular products.

Shapes: Hs (m, n) = H diag(sqrt p); S, L, R (m, m); v (m,); p (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg.blas
import scipy.linalg.lapack

from loko_ref.arrays import Array, cholesky, epsilon

__all__ = ["decoupled", "factor", "inverse_factor", "leverages", "variational"]


BLOCK = 2**21
"""Bytes of a block of columns in :func:`leverages`."""


def factor(S: Array, name: str) -> Array:
    """Lower Cholesky factor, with the test of :func:`loko_ref.arrays.cholesky`.  [KAL-8]."""
    m = S.shape[0]
    try:
        L = np.linalg.cholesky(S)
    except np.linalg.LinAlgError:
        return cholesky(S, name)  # raises, and says why
    d = L.diagonal()
    if not (d * d > m * epsilon(S) * S.diagonal()).all():
        return cholesky(S, name)
    return L


def inverse_factor(L: Array) -> Array:
    """``L^-1`` (m, m), lower triangular, of a Cholesky factor.  [FAST-4].

    The one inverse of the package: a triangular inverse is as stable as the substitutions that it
    stands for, and its product with Hs is a matrix product in place of n of them.
    """
    trtri: Any = scipy.linalg.lapack.strtri if L.dtype == np.float32 else scipy.linalg.lapack.dtrtri
    inverse, info = trtri(L, lower=1)
    if info:  # a zero on the diagonal: a Cholesky factor has none
        raise ZeroDivisionError("a triangular factor with a zero on its diagonal")
    return inverse


def leverages(T: Array, Hs: Array) -> Array:
    """``a_i = sum_j (T Hs)_ji^2`` (n,) for lower triangular T.  [DIAG-1, FAST-4]."""
    m, n = Hs.shape
    if m < 32:
        M = T @ Hs
        return np.einsum("ji,ji->i", M, M)
    trmm: Any = scipy.linalg.blas.strmm if T.dtype == np.float32 else scipy.linalg.blas.dtrmm
    a, width = np.empty(n, dtype=Hs.dtype), max(64, BLOCK // (m * Hs.itemsize))
    for j in range(0, n, width):  # blocks of columns stay in the cache
        # BLAS counts columns first: Hs' T' there is T Hs here
        block = Hs[:, j : j + width].copy()  # trmm writes over it
        M = trmm(1.0, T.T, block.T, side=1, lower=0, overwrite_b=1).T
        np.einsum("ji,ji->i", M, M, out=a[j : j + width])
    return a


def decoupled(p: Array, root: Array, Hs: Array, L_inv: Array, R: Array | None) -> Array:
    """``p+ = p (1 - a)``; the few with a > 1/2 as sums of squares.  [DIAG-1, DIAG-5].

    Parameters
    ----------
    p, root : array (n,)
        Prior variances and deviations.
    Hs : array (m, n)
        Scaled linearisation.
    L_inv : array (m, m)
        Inverse of the Cholesky factor of S.
    R : array (m, m) or None
        Noise; None for the identity.
    """
    a = leverages(L_inv, Hs)
    p_post: Array = 1 - a
    p_post *= p
    if float(a.max()) > 0.5:
        (few,) = np.nonzero(a > 0.5)
        near = root[few]
        # rows of K, K = sqrt p Hs' S^-1
        K = near[:, None] * ((L_inv @ Hs[:, few]).T @ L_inv)  # (few, m)
        F = -(K @ Hs)  # (few, n): (I - K H) diag(sqrt p)
        F[np.arange(few.shape[0]), few] += near
        N = K if R is None else K @ cholesky(R, "R", scaled_pivots=False)
        p_post[few] = np.einsum("ij,ij->i", F, F) + np.einsum("ij,ij->i", N, N)
    return p_post


def variational(p: Array, Hs: Array, R: Array | None) -> Array:
    """``1/p+ = 1/p + diag(H' R^-1 H)``.  [DIAG-2]."""
    if R is None:
        b = np.einsum("ji,ji->i", Hs, Hs)
    else:
        b = leverages(inverse_factor(factor(R, "R")), Hs)
    return p / (1 + b)
