"""Linear algebra on arrays of any library; a failed factorisation raises on every one of them.

Shapes: S (m, m); L (m, m) lower triangular; b (m,) or (m, k); Q (C - 1, C).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from loko_ref.arrays.backends import Array
from loko_ref.arrays.seam import asarray, backend_of, epsilon
from loko_ref.errors import NumericalError, UndecidedError


def singular_floor(S: Array) -> float:
    """Smallest eigenvalue of S's correlation matrix (m, m) that is not rounding: max(m, 8) eps.

    m eps for the factorisation, 8 eps for S's own entries, which are sums.  [KAL-8]
    """
    return max(S.shape[0], 8) * epsilon(S)


def eigvalsh(S: Array) -> Array:
    """Eigenvalues (m,) of a symmetric matrix (m, m), ascending."""
    return backend_of(S).eigvalsh(S)


def cholesky(S: Array, name: str, *, scaled_pivots: bool = True) -> Array:
    """Lower Cholesky factor of a symmetric positive definite matrix.  [KAL-8]

    Only the lower triangle is read. Nothing is added to the diagonal, ever.

    Parameters
    ----------
    S : array (m, m)
        Symmetric.
    name : str
        What the matrix is called, for the error.
    scaled_pivots : bool
        Whether a numerically singular S is refused: the smallest eigenvalue of its correlation
        matrix must exceed :func:`singular_floor`. It bounds from below every pivot ratio
        ``L_jj^2 / S_jj``, in whatever order the outputs are taken, and does not depend on their
        units.

    Returns
    -------
    array (m, m)
        L with L L' = S.

    Raises
    ------
    NumericalError
        If S is indefinite or numerically singular; carries the smallest eigenvalue. If S is not
        finite, without one. Its subclass UndecidedError if balls are too wide to decide.
    """
    lib = backend_of(S)
    xp = lib.xp
    m = S.shape[0]
    if not bool(xp.isfinite(S).all()):  # LAPACK passes NaN through without a word
        raise NumericalError(
            name, None, f"{name} overflowed: H, p or R is too large for the dtype, or their ratio."
        )
    try:
        L: Array = lib.cholesky(S)
    except UndecidedError as error:
        raise UndecidedError(name, error.eigenvalue, error.cause) from None
    except np.linalg.LinAlgError:
        lowest = float(eigvalsh(S)[0])
        raise NumericalError(
            name,
            lowest,
            f"{name} is not positive definite (Cholesky fails): a direction that nothing observes "
            "with noise, or an indefinite input. Nothing was added to repair it.",
        ) from None
    if scaled_pivots and m > 0 and lib.name != "balls":  # a ball's factor is certified
        X = lib.solve_triangular(L, xp.diag(xp.sqrt(xp.diagonal(S))), False)  # (m, m)
        floor = singular_floor(S)
        # X'X is the inverse of the correlation matrix; its trace bounds its largest eigenvalue
        if not 1 / float((X * X).sum()) > floor:
            scaled = 1 / float(lib.eigvalsh(X.T @ X)[-1])
            if not scaled > floor:
                raise NumericalError(
                    name,
                    float(eigvalsh(S)[0]),
                    f"{name} is numerically singular: its correlation matrix has the smallest "
                    f"eigenvalue {scaled:.3g}, not above max(m, 8) eps = {floor:.3g}, so the "
                    "update would have no correct digit. Nothing was added to repair it.",
                )
    return L


def solve_triangular(L: Array, b: Array, *, transpose: bool = False) -> Array:
    """Solve L x = b (or L' x = b) for lower triangular L (m, m) and b (m,) or (m, k)."""
    return backend_of(L, b).solve_triangular(L, b, transpose)


def cho_solve(L: Array, b: Array) -> Array:
    """Solve S x = b by the Cholesky factor L of S; b (m,) or (m, k)."""
    direct = backend_of(L, b).cho_solve
    if direct is not None:
        return direct(L, b)
    return solve_triangular(L, solve_triangular(L, b), transpose=True)


def solve(A: Array, b: Array, *, name: str = "A") -> Array:
    """Solve A x = b for a general square A (m, m) by LU with partial pivoting; b (m,) or (m, k).

    `name` is what the matrix is called in the error: NumericalError if a pivot is exactly 0, its
    subclass UndecidedError if balls are too wide to decide.
    """
    try:
        x: Array = backend_of(A, b).solve(A, b)
    except UndecidedError as error:
        raise UndecidedError(name, error.eigenvalue, error.cause) from None
    except np.linalg.LinAlgError:
        raise NumericalError(
            name, 0.0, f"{name} is singular: a pivot of its LU factorisation is exactly 0."
        ) from None
    return x


@cache
def _helmert(C: int) -> NDArray[np.float64]:
    return np.asarray(scipy.linalg.helmert(C), dtype=np.float64)


def contrast_basis(C: int, like: Array) -> Array:
    """Orthonormal basis of the contrasts of C classes: Q Q' = I, Q 1 = 0.  [OBS-5]

    Parameters
    ----------
    C : int
        Number of classes, at least 1.
    like : array
        Gives library and dtype.

    Returns
    -------
    array (C - 1, C)
        The Helmert contrasts, one per row.

    Examples
    --------
    >>> import numpy
    >>> contrast_basis(2, numpy.zeros(1)).round(3)
    array([[ 0.707, -0.707]])
    """
    own = backend_of(like).contrast_basis
    if own is not None:
        return own(C)
    Q = _helmert(C) if C > 1 else np.zeros((0, 1))
    return asarray(Q.astype(like.dtype), like)
