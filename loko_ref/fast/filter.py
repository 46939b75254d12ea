"""The diagonal measurement update without the gain: scaled H, triangular products.

Large products and factorisations all go through NumPy's BLAS: SciPy brings one of its own, and two
pools of threads that wait for work by spinning take the cores from each other.

Shapes: Hs (m, n) = H diag(sqrt p); S, L, R (m, m); v (m,); p (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg.lapack

from loko_ref.arrays import Array, cholesky, epsilon

__all__ = ["decoupled", "gram", "inverse_factor", "leverages", "root_inverse", "variational"]


SMALL = 64
"""Rows below which a triangle is taken whole."""

STRIPS = 5
"""Strips of rows in :func:`leverages`: 3/5 of the square's work, in products large enough."""


def root_inverse(S: Array, name: str) -> Array:
    """``L^-1`` of ``S = L L'``, with the test of :func:`loko_ref.arrays.cholesky`.  [KAL-8]."""
    try:
        T = inverse_factor(np.linalg.cholesky(S))
    except np.linalg.LinAlgError:
        return inverse_factor(cholesky(S, name))  # raises, and says why
    X = T * np.sqrt(S.diagonal())
    if not S.shape[0] * epsilon(S) * float(np.einsum("ij,ij->", X, X)) < 1:  # true for NaN
        cholesky(S, name)  # looks closer
    return T


def gram(Hs: Array) -> Array:
    """``Hs Hs'`` (m, m), symmetric to the bit.

    Of a few rows, BLAS's symmetric product is slower than its general one, which a copy brings on.
    """
    if Hs.shape[0] >= 32:
        return Hs @ Hs.T
    G = Hs @ Hs.copy().T
    return 0.5 * (G + G.T)


def inverse_factor(L: Array) -> Array:
    """``L^-1`` (m, m), lower triangular, of a Cholesky factor.  [FAST-4].

    The one inverse of the package: a triangular inverse is as stable as the substitutions that it
    stands for, and its product with Hs is a matrix product in place of n of them. By halves,
    ``[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]``, down to blocks that SciPy inverts
    in one thread.
    """
    m = L.shape[0]
    if m <= SMALL:
        trtri: Any = (
            scipy.linalg.lapack.strtri if L.dtype == np.float32 else scipy.linalg.lapack.dtrtri
        )
        inverse, info = trtri(L, lower=1)
        if info:  # a zero on the diagonal: a Cholesky factor has none
            raise ZeroDivisionError("a triangular factor with a zero on its diagonal")
        return inverse
    h = m // 2
    T = np.zeros_like(L)
    T[:h, :h], T[h:, h:] = inverse_factor(L[:h, :h]), inverse_factor(L[h:, h:])
    T[h:, :h] = -(T[h:, h:] @ (L[h:, :h] @ T[:h, :h]))
    return T


def leverages(T: Array, Hs: Array) -> Array:
    """``a_i = sum_j (T Hs)_ji^2`` (n,) for lower triangular T.  [DIAG-1, FAST-4].

    By strips of T's rows, whose zeros behind the diagonal are left out.
    """
    m, n = Hs.shape
    a = np.zeros(n, dtype=Hs.dtype)
    strip = max(SMALL, -(-m // STRIPS))
    for j in range(0, m, strip):
        M = T[j : j + strip, : j + strip] @ Hs[: j + strip]
        a += np.einsum("ji,ji->i", M, M)
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
        b = leverages(root_inverse(R, "R"), Hs)
    return p / (1 + b)
