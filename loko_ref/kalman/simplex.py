"""The contrasts of classes whose sum is known, and the noise of an observation on the simplex.

Shapes: R (m, m); M (m, k) or (m,) stacked sample by sample, m = batch * C; Q (C - 1, C), the
contrast basis: Q Q' = I, Q 1 = 0.
"""

from __future__ import annotations

from loko_ref.arrays import Array, cho_solve, cholesky, contrast_basis, epsilon, namespace, root
from loko_ref.checks.values import check_covariance, check_finite, check_floats, check_shape
from loko_ref.errors import InputError

__all__ = ["check_ones", "condition_on_simplex", "from_contrast", "to_contrast"]


def to_contrast(Q: Array, M: Array) -> Array:
    """``(I_batch ⊗ Q) M``: from classes (m, k) to contrasts (batch (C-1), k).  [OBS-5].

    Q (C-1, C) is :func:`loko_ref.arrays.contrast_basis`.
    """
    C = Q.shape[1]
    rows = M.reshape(M.shape[0] // C, C, -1)  # (batch, C, k)
    return (Q @ rows).reshape(-1, *M.shape[1:])


def from_contrast(Q: Array, M: Array) -> Array:
    """``(I_batch ⊗ Q') M``: from contrasts (batch (C-1), k) back to classes (m, k).  [OBS-5]."""
    rows = M.reshape(M.shape[0] // Q.shape[0], Q.shape[0], -1)
    return (Q.T @ rows).reshape(-1, *M.shape[1:])


def check_ones(R: Array, C: int) -> None:
    """Raise if R couples contrasts with the all-ones directions.  [OBS-5, NOISE-6]."""
    xp = namespace(R)
    m = R.shape[0]
    ones = R.reshape(m, m // C, C).sum(axis=2)  # (m, batch): R times each sample's ones
    cross = float(xp.max(xp.abs(to_contrast(contrast_basis(C, R), ones)))) if C > 1 else 0.0
    if cross > 8 * m * C**0.5 * epsilon(R) * float(xp.max(xp.abs(R))):
        raise InputError(
            "R",
            f"|contrasts of R 1| = {cross:.3g}",
            "R 1 proportional to 1 within each sample, as R_0 = r0 I and its averages have it",
            "a general R: reduce it first with loko_ref.kalman.simplex.condition_on_simplex",
        )


def condition_on_simplex(R: Array, C: int) -> Array:
    """Noise covariance of the contrasts, given that each sample's classes sum to 1.  [OBS-8].

    The Schur complement ``R_cc - R_c1 R_11^-1 R_1c`` on the contrast space, in class coordinates
    (m, m); its all-ones part is 0.

    Parameters
    ----------
    R : array (m, m)
        A general symmetric positive definite noise covariance, m = batch * C.
    C : int
        Number of classes.

    Raises
    ------
    InputError
        If R is not symmetric positive definite or m is no multiple of C.
    """
    check_floats(R=R)
    check_shape("R", R, ("m", "m"), {"m": R.shape[0]})
    m = R.shape[0]
    if C < 2 or m % C:
        raise InputError("C", C, f"a divisor of m = {m}, at least 2", "a wrong number of classes")
    check_finite(R=R)
    check_covariance("R", R)
    Q = contrast_basis(C, R)
    R_c = to_contrast(Q, R)  # (contrasts, m)
    ones = R.reshape(m, m // C, C).sum(axis=2) / root(C, R)  # (m, batch): R U'
    R_cc = to_contrast(Q, R_c.T)
    R_c1 = to_contrast(Q, ones)  # (contrasts, batch)
    R_11 = ones.reshape(m // C, C, m // C).sum(axis=1) / root(C, R)  # (batch, batch)
    L = cholesky(R_11, "R")
    reduced = R_cc - R_c1 @ cho_solve(L, R_c1.T)
    return from_contrast(Q, from_contrast(Q, reduced).T)
