"""The diagonal measurement update without the gain: scaled H, triangular products.

Large products and factorisations all go through NumPy's BLAS: SciPy brings one of its own, and two
pools of threads that wait for work by spinning take the cores from each other.

Shapes: H (m, n), its columns scaled by sqrt(p); S, L, R (m, m); p (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg.lapack

from loko_ref.arrays import Array, cholesky, singular_floor
from loko_ref.fast.columns import SMALL, Columns


def root_inverse(S: Array, name: str) -> Array:
    """``L^-1`` of ``S = L L'``, with the test of :func:`loko_ref.arrays.cholesky`.  [KAL-8]."""
    if S.shape[0] <= SMALL:
        L, info = _lapack("potrf", S)(S, lower=1, clean=1)
        T = cholesky(S, name) if info else L  # raises, and names the cause
        T = _lapack("trtri", S)(T, lower=1)[0]
    else:
        try:
            L = np.linalg.cholesky(S)
        except np.linalg.LinAlgError:
            L = cholesky(S, name)  # raises, and names the cause
        T = inverse_factor(L)
    X = T * np.sqrt(S.diagonal())
    if not singular_floor(S) * float(np.einsum("ij,ij->", X, X)) < 1:  # true for NaN
        cholesky(S, name)  # looks closer
    return T


def inverse_factor(L: Array) -> Array:
    """``L^-1`` (m, m), lower triangular, of a Cholesky factor.  [FAST-4].

    The one inverse of the package: a triangular inverse is as stable as the substitutions that it
    stands for, and its product with H is a matrix product in place of n of them. By halves,
    ``[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]``, down to blocks that LAPACK inverts
    in one thread.
    """
    m = L.shape[0]
    if m <= SMALL:
        inverse: Array = _lapack("trtri", L)(L, lower=1)[0]
        return inverse
    h = m // 2
    T = np.zeros_like(L)
    T[:h, :h], T[h:, h:] = inverse_factor(L[:h, :h]), inverse_factor(L[h:, h:])
    np.matmul(T[h:, h:] @ L[h:, :h], -T[:h, :h], out=T[h:, :h])
    return T


def _lapack(name: str, like: Array) -> Any:
    return getattr(scipy.linalg.lapack, ("s" if like.dtype == np.float32 else "d") + name)


def decoupled(p: Array, H: Columns, L_inv: Array, R: Array) -> Array:
    """``p+ = p (1 - a)``; the few with a > 1/2 as sums of squares.  [DIAG-1, DIAG-5].

    Parameters
    ----------
    p : array (n,)
        Prior variances.
    H : Columns (m, n)
        Scaled linearisation.
    L_inv : array (m, m)
        Inverse of the Cholesky factor of S.
    R : array (m, m)
        Noise.
    """
    a = H.squares(L_inv)
    p_post: Array = 1 - a
    p_post *= p
    if float(a.max()) > 0.5:
        (few,) = np.nonzero(a > 0.5)
        Hs, near = H.full(), np.sqrt(p[few])
        # rows of K, K = sqrt p Hs' S^-1
        K = near[:, None] * ((L_inv @ Hs[:, few]).T @ L_inv)  # (few, m)
        F = -(K @ Hs)  # (few, n): (I - K H) diag(sqrt p)
        F[np.arange(few.shape[0]), few] += near
        N = K @ cholesky(R, "R", scaled_pivots=False)
        p_post[few] = np.einsum("ij,ij->i", F, F) + np.einsum("ij,ij->i", N, N)
    return p_post


def variational(p: Array, H: Columns, R: Array) -> Array:
    """``1/p+ = 1/p + diag(H' R^-1 H)``.  [DIAG-2]."""
    return p / (1 + H.squares(root_inverse(R, "R")))
