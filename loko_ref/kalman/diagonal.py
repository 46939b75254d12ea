"""Measurement update with a diagonal covariance: LoKO's filter, linear in n.

Shapes: theta, p (n,); H, Z (m, n); e (m,); R, S (m, m); K (n, m); yhat (batch, C), m = batch * C.

There are two different diagonals, never to be mixed: ``decoupled`` is the diagonal of the exact
posterior of a diagonal prior (LoKO's); ``variational`` is the inverse of the posterior precision's
diagonal.  [DIAG-1, DIAG-2]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import Array, cho_solve, cholesky, namespace, solve_triangular
from loko_ref.checks.values import (
    check_choice,
    check_covariance,
    check_finite,
    check_floats,
    check_positive,
    check_shape,
    check_some,
)
from loko_ref.kalman import glm
from loko_ref.kalman.observation import check_probabilities, jacobian_product, project

__all__ = [
    "DIAGONALS",
    "DiagonalUpdate",
    "check_update",
    "glm_update",
    "glm_update_unchecked",
    "update",
    "update_unchecked",
]

DiagonalKind: TypeAlias = Literal["decoupled", "variational"]
DIAGONALS: tuple[DiagonalKind, ...] = get_args(DiagonalKind)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalUpdate:
    """What one measurement update yields, in dataflow order.

    Attributes
    ----------
    S : array (m, m)
        Innovation covariance.
    K : array (n, m)
        Gain.
    theta : array (n,)
        Posterior mean.
    p : array (n,)
        Posterior variances.
    v : array (m,) or None
        Innovation at the posterior mean, where theta was solved for [OBS-9].
    """

    S: Array
    K: Array
    theta: Array
    p: Array
    v: Array | None = None


def check_update(theta: Array, H: Array, e: Array, R: Array | None, **covariance: Array) -> None:
    """Check the arguments that every measurement update shares."""
    ((name, cov),) = covariance.items()
    noise = {} if R is None else {"R": R}
    check_floats(theta=theta, **covariance, H=H, e=e, **noise)
    check_shape("theta", theta, ("n",))
    n = theta.shape[0]
    check_shape(name, cov, ("n",) if name == "p" else ("n", "n"), {"n": n})
    check_shape("e", e, ("m",))
    check_some("e", e, "output")
    m = e.shape[0]
    check_shape("H", H, ("m", "n"), {"m": m, "n": n})
    check_finite(theta=theta, **covariance, H=H, e=e, **noise)
    if R is not None:
        check_shape("R", R, ("m", "m"), {"m": m})
        check_covariance("R", R)
    if name == "p":
        check_positive("p", cov)
    else:
        check_covariance(name, cov)


def update(
    theta: Array, p: Array, H: Array, e: Array, R: Array, *, diagonal: DiagonalKind = "decoupled"
) -> DiagonalUpdate:
    """One diagonal measurement update, arguments checked.  [KAL-2, DIAG-1, DIAG-2].

    ``S = H diag(p) H' + R``, ``K = diag(p) H' S^-1``, ``theta+ = theta + K e``, and p+ by the
    diagonal asked for.

    Parameters
    ----------
    theta, p : array (n,)
        Prior mean and variances, p > 0.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation y - yhat.
    R : array (m, m)
        Observation noise, symmetric positive definite.
    diagonal : {"decoupled", "variational"}
        Which diagonal of the posterior is kept.

    Returns
    -------
    DiagonalUpdate
        S, K, theta, p.

    Raises
    ------
    InputError
        If a shape, a dtype, a value or the option is not as stated.
    NumericalError
        If S is numerically singular.

    Notes
    -----
    0 < p+ <= p for either diagonal [DIAG-4], and the variational one is the smaller, entry by
    entry [DIAG-3]. An invertible change of the outputs (e, H and R together) changes neither theta
    nor p [KAL-7]; splitting one update into scalar ones, in any order, changes them both in
    ``decoupled`` and theta alone in ``variational`` [DIAG-6].

    Examples
    --------
    >>> import numpy as np
    >>> new = update(np.zeros(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([3.0]), np.eye(1))
    >>> new.theta, new.p.round(4)
    (array([1., 1.]), array([0.6667, 0.6667]))
    """
    check_choice("diagonal", diagonal, DIAGONALS)
    check_floats(theta=theta, R=R)
    check_update(theta, H, e, R, p=p)
    return update_unchecked(namespace(p), theta, p, H, e, R, diagonal)


def update_unchecked(
    xp: Any, theta: Array, p: Array, H: Array, e: Array, R: Array, diagonal: DiagonalKind
) -> DiagonalUpdate:
    """Compute :func:`update` of checked arrays of the namespace `xp`; for long runs [BALL-8]."""
    Hs = H * xp.sqrt(p)  # (m, n)
    S = Hs @ Hs.T + R  # (m, m)  [KAL-2]
    L = cholesky(S, "S")
    K = cho_solve(L, H * p).T  # (n, m)  [KAL-2]
    if diagonal == "decoupled":
        p_post = _decoupled(xp, p, H, Hs, K, L, R)
    else:
        L_R = cholesky(R, "R")
        p_post = p / (1 + (solve_triangular(L_R, Hs) ** 2).sum(axis=0))  # [DIAG-2]
    return DiagonalUpdate(S=S, K=K, theta=theta + K @ e, p=p_post)


def _decoupled(
    xp: Any, p: Array, H: Array, Hs: Array, K: Array, L: Array, R: Array | None
) -> Array:
    """``p+ = p (1 - diag(K H))``, positive by form.  [DIAG-1, DIAG-5].

    With ``M = L^-1 H diag(sqrt p)`` the leverage of entry i is ``a_i = sum_j M_ji^2 = (K H)_ii``,
    and the leverages sum to less than m. Where ``a_i <= 1/2`` the plain form keeps its digits; the
    fewer than 2m others are sums of squares (Joseph): ``sum_k (delta_ik - (K H)_ik)^2 p_k +
    |L_R' K_i'|^2``. R None stands for the identity.
    """
    M = solve_triangular(L, Hs)  # (m, n)
    a = (M * M).sum(axis=0)  # (n,)
    p_post = p * (1 - a)
    (few,) = xp.nonzero(a > 0.5)
    if few.shape[0]:
        F = -(K[few] @ H)  # (few, n)
        F[xp.arange(few.shape[0]), few] += 1  # rows of I - K H
        N = K[few] if R is None else K[few] @ cholesky(R, "R", scaled_pivots=False)  # (few, m)
        p_post[few] = (F * F) @ p + (N * N).sum(axis=1)
    return p_post


def glm_update(
    theta: Array, p: Array, Z: Array, e: Array, yhat: Array, *, diagonal: DiagonalKind = "decoupled"
) -> DiagonalUpdate:
    """One diagonal update with R = Cov(y | yhat) = J, which is never inverted.  [OBS-4, OBS-6].

    Parameters
    ----------
    theta, p : array (n,)
        Prior mean and variances.
    Z : array (m, n)
        Jacobian of the logits, m = batch * C.
    e : array (m,)
        Innovation y - yhat, summing to 0 over each sample: the reference class's entry, which
        1 - yhat may have lost, is minus the sum of the others, and is not read.
    yhat : array (batch, C)
        Class probabilities.
    diagonal : {"decoupled", "variational"}
        Which diagonal of the posterior is kept.

    Returns
    -------
    DiagonalUpdate
        S (m, m) = H p H' + J, singular along each sample's ones; K = p H' S^+; theta; p.
    """
    check_choice("diagonal", diagonal, DIAGONALS)
    check_update(theta, Z, e, None, p=p)
    check_probabilities(yhat, e)
    return glm_update_unchecked(namespace(p), theta, p, Z, e, yhat, diagonal)


def glm_update_unchecked(
    xp: Any, theta: Array, p: Array, Z: Array, e: Array, yhat: Array, diagonal: DiagonalKind
) -> DiagonalUpdate:
    """Compute :func:`glm_update` of checked arrays of the namespace `xp`."""
    # the reference class left out: e, Z, J become eo, Zo, Jo  [OBS-6]
    eo, Zo = glm.without_reference(xp, yhat, e), glm.against_reference(xp, yhat, Z)
    Zos = Zo * xp.sqrt(p)  # (batch (C - 1), n)
    # the whitened observation: H~ = L' Zo, R~ = I, Jo = L L'
    Hw, Hws = glm.whiten(xp, yhat, Zo), glm.whiten(xp, yhat, Zos)  # (batch (C - 1), n)
    L = cholesky(xp.eye(Hw.shape[0], dtype=p.dtype) + Hws @ Hws.T, "S")  # eigenvalues >= 1
    Ko = glm.gain(xp, yhat, (Zo * p).T, Zos @ Zos.T)  # (n, batch (C - 1))
    if diagonal == "decoupled":
        Kw = cho_solve(L, Hw * p).T  # (n, batch (C - 1))
        p_post = _decoupled(xp, p, Hw, Hws, Kw, L, None)
    else:
        p_post = p / (1 + (Hws * Hws).sum(axis=0))  # 1/p+ = 1/p + diag(Z' J Z)  [DIAG-2]
    # in class coordinates: K e = Ko eo for every e whose classes sum to 0
    eye = xp.eye(e.shape[0], dtype=p.dtype)  # (m, m)
    K = Ko @ glm.without_reference(xp, yhat, project(eye, yhat.shape[1]))  # (n, m)
    Hs = jacobian_product(xp, yhat, Z * xp.sqrt(p))  # (m, n): J Z diag(sqrt p)
    S = Hs @ Hs.T + jacobian_product(xp, yhat, eye)  # H P H' + J
    return DiagonalUpdate(S=S, K=K, theta=theta + Ko @ eo, p=p_post)
