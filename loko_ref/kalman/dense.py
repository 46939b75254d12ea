"""Measurement update with a dense covariance: the extended Kalman filter, in four equal forms.

Shapes: theta (n,); P (n, n); H, Z (m, n); e (m,); R, S (m, m); K (n, m); yhat (batch, C).

``textbook``, ``joseph``, ``information`` and ``sequential`` are equal in exact arithmetic; each is
an independent oracle for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import Array, cho_solve, cholesky, namespace, solve_triangular
from loko_ref.checks.values import check_choice, check_floats
from loko_ref.errors import InputError, NumericalError, UndecidedError
from loko_ref.kalman import glm
from loko_ref.kalman.diagonal import check_update
from loko_ref.kalman.observation import check_probabilities, jacobian_product, project

__all__ = [
    "FORMS",
    "DenseUpdate",
    "Form",
    "glm_update",
    "glm_update_unchecked",
    "update",
    "update_unchecked",
]

Form: TypeAlias = Literal["textbook", "joseph", "information", "sequential"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseUpdate:
    """What one measurement update yields, in dataflow order.

    Attributes
    ----------
    S : array (m, m)
        Innovation covariance.
    K : array (n, m)
        Gain.
    theta : array (n,)
        Posterior mean.
    P : array (n, n)
        Posterior covariance.
    v : array (m,) or None
        Innovation at the posterior mean, where theta was solved for [OBS-9].
    """

    S: Array
    K: Array
    theta: Array
    P: Array
    v: Array | None = None


def update(
    theta: Array, P: Array, H: Array, e: Array, R: Array, *, form: Form = "joseph"
) -> DenseUpdate:
    """One dense measurement update, arguments checked.  [KAL-2, KAL-3, KAL-4, KAL-5].

    Parameters
    ----------
    theta : array (n,)
        Prior mean.
    P : array (n, n)
        Prior covariance, symmetric positive definite.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation y - yhat.
    R : array (m, m)
        Observation noise, symmetric positive definite; diagonal for ``sequential``.
    form : {"joseph", "textbook", "information", "sequential"}
        How theta and P are updated. ``joseph`` (the default) and ``information`` keep P positive
        semi-definite by form; the other two subtract, and refuse a P that rounding made indefinite.

    Returns
    -------
    DenseUpdate
        S, K, theta, P.

    Raises
    ------
    InputError
        If a shape, a dtype, a value or the option is not as stated.
    NumericalError
        If S, P or R is numerically singular where it must be factored, or the new P is indefinite.

    Notes
    -----
    On a linear model with fixed R, k updates give the ridge solution centred at the first theta
    [KAL-6]. The filter follows any linear change of outputs or parameters [KAL-7].
    """
    check_choice("form", form, FORMS)
    check_floats(theta=theta, R=R)
    check_update(theta, H, e, R, P=P)
    return update_unchecked(namespace(P), theta, P, H, e, R, form)


def update_unchecked(
    xp: Any, theta: Array, P: Array, H: Array, e: Array, R: Array, form: Form
) -> DenseUpdate:
    """Compute :func:`update` of checked arrays of the namespace `xp`."""
    PHt = P @ H.T  # (n, m)
    S = H @ PHt + R  # (m, m)  [KAL-2]
    if form == "information":
        K, P_post = _information(xp, P, H, R)
        return DenseUpdate(S=S, K=K, theta=theta + K @ e, P=P_post)
    L = cholesky(S, "S")
    K = cho_solve(L, PHt.T).T  # (n, m)  [KAL-2]
    if form == "sequential":
        theta_post, P_post = _sequential(xp, theta, P, H, e, R)
        _check_definite(P_post, form)
        return DenseUpdate(S=S, K=K, theta=theta_post, P=P_post)
    if form == "joseph":
        P_post = _joseph(xp, P, H, K, R)
    else:
        P_post = _textbook(P, PHt, L)
        _check_definite(P_post, form)
    return DenseUpdate(S=S, K=K, theta=theta + K @ e, P=P_post)


def _textbook(P: Array, PHt: Array, L: Array) -> Array:
    """``P+ = P - K H P = P - M' M``, M = L^-1 H P.  [KAL-2]."""
    M = solve_triangular(L, PHt.T)  # (m, n)
    return P - M.T @ M


def _check_definite(P: Array, form: Form) -> None:
    """Raise if a difference of covariances left P indefinite; squares cannot be.  [KAL-3]."""
    try:
        cholesky(P, "P", scaled_pivots=False)
    except UndecidedError:
        raise
    except NumericalError as error:
        raise NumericalError(
            "P",
            error.eigenvalue,
            f"form='{form}' subtracts what was learnt from P, and what is left is not positive "
            "definite: its digits are lost. form='joseph' is a sum of squares. Nothing was added "
            "to repair it.",
        ) from None


def _joseph(xp: Any, P: Array, H: Array, K: Array, R: Array) -> Array:
    """``P+ = (I - K H) P (I - K H)' + K R K'``, as a sum of two squares.  [KAL-3]."""
    F = xp.eye(P.shape[0], dtype=P.dtype) - K @ H  # (n, n)
    FL = F @ cholesky(P, "P", scaled_pivots=False)  # (n, n)
    KL = K @ cholesky(R, "R", scaled_pivots=False)  # (n, m)
    return FL @ FL.T + KL @ KL.T


def _information(xp: Any, P: Array, H: Array, R: Array) -> tuple[Array, Array]:
    """``P+^-1 = P^-1 + H' R^-1 H`` and ``K = P+ H' R^-1``.  [KAL-4].

    With P = L_P L_P', R = L_R L_R' and N = L_R^-1 H L_P, P+ = L_P (I + N'N)^-1 L_P'.
    """
    L_P, L_R = cholesky(P, "P", scaled_pivots=False), cholesky(R, "R")
    N = solve_triangular(L_R, H @ L_P)  # (m, n)
    C = cholesky(xp.eye(P.shape[0], dtype=P.dtype) + N.T @ N, "P")  # (n, n)
    X = solve_triangular(C, L_P.T)  # (n, n): C^-1 L_P'
    P_post = X.T @ X
    return P_post @ cho_solve(L_R, H).T, P_post


def _sequential(
    xp: Any, theta: Array, P: Array, H: Array, e: Array, R: Array
) -> tuple[Array, Array]:
    """Take m scalar updates, H frozen at the prior theta.  [KAL-5].

    The j-th scalar innovation is ``e_j - H_j (theta - theta_prior)``.
    """
    off = R - xp.diag(xp.diagonal(R))
    if bool((off != 0).any()):
        raise InputError(
            "R",
            f"an off-diagonal entry of size {float(xp.max(xp.abs(off))):.3g}",
            "a diagonal matrix for form='sequential'",
            "correlated outputs: whiten them first, or use another form",
        )
    prior = theta
    for j in range(e.shape[0]):
        h = H[j]  # (n,)
        Ph = P @ h  # (n,)
        s = h @ Ph + R[j, j]
        theta = theta + Ph * ((e[j] - h @ (theta - prior)) / s)
        P = P - xp.outer(Ph, Ph) / s
    return theta, P


def glm_update(
    theta: Array, P: Array, Z: Array, e: Array, yhat: Array, *, form: Form = "joseph"
) -> DenseUpdate:
    """One dense update with R = Cov(y | yhat) = J, which is never inverted.  [OBS-4, OBS-6].

    Parameters
    ----------
    theta : array (n,)
        Prior mean.
    P : array (n, n)
        Prior covariance.
    Z : array (m, n)
        Jacobian of the logits, m = batch * C.
    e : array (m,)
        Innovation y - yhat, summing to 0 over each sample: the reference class's entry, which
        1 - yhat may have lost, is minus the sum of the others, and is not read.
    yhat : array (batch, C)
        Class probabilities.
    form : {"joseph", "textbook", "information", "sequential"}
        How P is updated, from the whitened observation (H~ = L'Z, R~ = I).

    Returns
    -------
    DenseUpdate
        S, K, theta, P.
    """
    check_choice("form", form, FORMS)
    check_update(theta, Z, e, None, P=P)
    check_probabilities(yhat, e)
    return glm_update_unchecked(namespace(P), theta, P, Z, e, yhat, form)


def glm_update_unchecked(
    xp: Any, theta: Array, P: Array, Z: Array, e: Array, yhat: Array, form: Form
) -> DenseUpdate:
    """Compute :func:`glm_update` of checked arrays of the namespace `xp`."""
    # the reference class left out: e, Z, J become eo, Zo, Jo  [OBS-6]
    eo, Zo = glm.without_reference(xp, yhat, e), glm.against_reference(xp, yhat, Z)
    PZot = P @ Zo.T  # (n, batch (C - 1))
    # the whitened observation: H~ = L' Zo, R~ = I, Jo = L L'; of its update P alone is taken
    noise = xp.eye(Zo.shape[0], dtype=P.dtype)
    P_post = update_unchecked(xp, theta, P, glm.whiten(xp, yhat, Zo), eo, noise, form).P
    Ko = glm.gain(xp, yhat, PZot, Zo @ PZot)  # (n, batch (C - 1))
    # in class coordinates: K e = Ko eo for every e whose classes sum to 0
    eye = xp.eye(e.shape[0], dtype=P.dtype)  # (m, m)
    K = Ko @ glm.without_reference(xp, yhat, project(eye, yhat.shape[1]))  # (n, m)
    H = jacobian_product(xp, yhat, Z)  # (m, n)
    S = H @ (P @ H.T) + jacobian_product(xp, yhat, eye)  # H P H' + J
    return DenseUpdate(S=S, K=K, theta=theta + Ko @ eo, P=P_post)
