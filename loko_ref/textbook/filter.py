"""Every quantity of the catalogue by its plain formula, replaceable by name.

The oracle's numbers come from the package's own modules. This second, plainer route exists for two
purposes: quantities can be disturbed one by one on their way (``tolerance``: how large may a
rounding error grow?), and one formula can be exchanged for a wrong one (``mutants``: which known
mistake does this?). A test holds it equal to the oracle. The network's are in ``network``.

Shapes: theta, p (n,); P (n, n); z, yhat (batch, C) here; e (m,); Z, H (m, n); R, S (m, m);
K (n, m). ``p_pred`` is (n,) or, with a dense covariance, (n, n). Of a precision U is (n,) or
(n, n), W (n, L), wide and turned (n, L + m), gram (L + m, L + m).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import scipy.linalg

from loko_ref.arrays import Array
from loko_ref.textbook.network import NETWORK, arrays, ways
from loko_ref.textbook.quantities import Formula, Values, evaluate, inner


@cache
def _helmert(batch: int, C: int) -> Array:
    return np.kron(np.eye(batch), scipy.linalg.helmert(C))


def _contrasts(v: Values) -> Array:
    """(batch (C-1), m): orthonormal contrasts of each sample's classes.  [OBS-5]."""
    return _helmert(*v.yhat.shape)


def _centre(v: Values) -> Array:
    """(m, m): I - 1 1'/C in each sample."""
    Q = _contrasts(v)
    return Q.T @ Q


def predicted_covariance(v: Values, p: Array) -> Array:
    """``H p H'`` (m, m)."""
    return (v.H * p if p.ndim == 1 else v.H @ p) @ v.H.T


# ----------------------------------------------------------------- Kalman


def _p_pred(v: Values) -> Array:
    q = v.q if v.p.ndim == 1 else v.q * np.eye(v.p.shape[0])
    return v.p / v.lam + q


def _pHt(v: Values) -> Array:
    return v.p_pred[:, None] * v.H.T if v.p_pred.ndim == 1 else v.p_pred @ v.H.T


def _S(v: Values) -> Array:
    return v.H @ v.F["pHt"](v) + v.R_used


def _K(v: Values) -> Array:
    return np.linalg.solve(v.S.T, v.F["pHt"](v).T).T


def _K_softmax(v: Values) -> Array:
    Q = _contrasts(v)
    return np.linalg.solve((Q @ v.S @ Q.T).T, Q @ v.F["pHt"](v).T).T @ Q


def _K_glm(v: Values) -> Array:
    pZt = v.p_pred[:, None] * v.Z.T if v.p_pred.ndim == 1 else v.p_pred @ v.Z.T  # (n, m)
    J = v.R_used
    return pZt @ np.linalg.solve(np.eye(J.shape[0]) + J @ (v.Z @ pZt), _centre(v))


def _theta_post(v: Values) -> Array:
    return v.theta + v.K @ v.e


def _v(v: Values) -> Array:
    P = np.diag(v.p_pred) if v.p_pred.ndim == 1 else v.p_pred
    return fixed_point(v, v.y, v.z, v.Z @ P @ v.Z.T)


def fixed_point(
    v: Values, y: Array, z: Array, G: Array, most: int = 200, damped: bool = True
) -> Array:
    """Solve ``v = y - softmax(z + G v)`` (m,) by Newton's method from v = 0.  [OBS-9].

    A step that overshoots is halved, unless it moves no logit by 0.01; it ends where neither the
    residual nor the decrement falls.

    Parameters
    ----------
    v : mapping
        Of which the formulas and the hook are taken.
    y, z : array (batch, C)
        Rows observed, and logits.
    G : array (m, m)
        Z P Z', m = batch * C.
    damped : bool
        Whether steps are halved.
    """
    apart = getattr(v.keep, "apart", None)  # of many walks, each takes rounds of its own
    if apart is not None:
        how: dict[str, Any] = {"most": most, "damped": damped}
        return apart(lambda keep, *a: fixed_point(Values(v, keep=keep), *a, **how), y, z, G)
    same = np.kron(np.eye(len(y)), np.ones((y.shape[1], y.shape[1])))  # of one sample
    rounding = v.keep("probabilities", np.ones(z.shape))  # the same throughout

    def look(w: Array) -> tuple[Array, Array]:
        q = (rounding * v.F["softmax"](v, z + (G @ w).reshape(z.shape))).reshape(-1)
        return q, y.reshape(-1) - q - w

    w = np.zeros(y.size)
    q, r = look(w)
    best, least, lowest, idle = w, np.abs(r).max(), np.inf, 0
    for _ in range(most):
        J = np.diag(q) - np.outer(q, q) * same
        d = np.linalg.solve(np.eye(y.size) + J @ G, r)
        t, size, slope, moved = 1.0, np.abs(r).max(), float(d @ G @ r), np.abs(G @ d).max()
        q, r = look(w + d)
        while damped and t * moved > 0.01 and d @ G @ r < 0 and np.abs(r).max() > size / 2:
            t /= 2
            q, r = look(w + t * d)
        w, now = w + t * d, np.abs(r).max()
        idle = 0 if now < least or slope < lowest else idle + 1
        best, least, lowest = w if now < least else best, min(now, least), min(slope, lowest)
        if idle == 2 or now == 0:
            break
    return best if damped else w


def _theta_implicit(v: Values) -> Array:
    P = np.diag(v.p_pred) if v.p_pred.ndim == 1 else v.p_pred
    return v.theta + P @ v.Z.T @ v.v


def _p_decoupled(v: Values) -> Array:
    return v.p_pred * (1 - (v.K * v.H.T).sum(axis=1))


def _p_variational(v: Values) -> Array:
    if v.observation == "glm":
        information = (v.Z * (v.R_used @ v.Z)).sum(axis=0)
    elif v.observation == "softmax":
        Q = _contrasts(v)
        Hc = Q @ v.H
        information = (Hc * np.linalg.solve(Q @ v.R_used @ Q.T, Hc)).sum(axis=0)
    else:
        information = (v.H * np.linalg.solve(v.R_used, v.H)).sum(axis=0)
    return 1 / (1 / v.p_pred + information)


def _p_dense(v: Values) -> Array:
    return v.p_pred - v.K @ v.H @ v.p_pred


# ------------------------------------------------ a precision of blocks plus low rank


def _one_plus(q: float, U: Array) -> Array:
    """``I + q B``, of a diagonal (n,) or blocks (n, n)."""
    return 1 + q * U if U.ndim == 1 else np.eye(len(U)) + q * U


def _divided(U: Array, X: Array) -> Array:
    """``B^-1 X`` (n, k)."""
    return X / U[:, None] if U.ndim == 1 else np.linalg.solve(U, X)


def _U_pred(v: Values) -> Array:
    U = v.lam * v.U
    one = _one_plus(v.q, U)
    return U / one if U.ndim == 1 else np.linalg.solve(one, U)


def _W_pred(v: Values) -> Array:
    W = np.sqrt(v.lam) * v.W
    DW = _divided(_one_plus(v.q, v.lam * v.U), W)
    C = np.linalg.cholesky(np.eye(W.shape[1]) + v.q * W.T @ DW)
    return np.linalg.solve(C, DW.T).T


def _P_of_precision(v: Values) -> Array:
    inverse = v.keep("B^-1", _divided(v.U_pred, np.eye(len(v.U_pred))))
    BW = v.keep("B^-1 W", _divided(v.U_pred, v.W_pred))
    C = v.keep("C", np.eye(BW.shape[1]) + v.W_pred.T @ BW)
    return inverse - BW @ v.keep("C^-1 W' B^-1", np.linalg.solve(C, BW.T))


def _P_after(v: Values) -> Array:
    w = Values(v, keep=inner(v.keep), U_pred=v.U_post, W_pred=v.F["kept"](v))
    return v.F["P.precision"](w)


def _whitened(v: Values) -> Array:
    """Return rows Hw with ``Hw' Hw = H' R^-1 H``, for glm ``Z' J Z``: J is never inverted."""
    kind = v.get("observation")
    if kind == "glm":
        sizes, V = np.linalg.eigh(v.R_used)
        return np.sqrt(np.maximum(sizes, 0))[:, None] * (V.T @ v.Z)
    if kind == "softmax":
        Q = _contrasts(v)
        return np.linalg.solve(np.linalg.cholesky(Q @ v.R_used @ Q.T), Q @ v.H)
    return np.linalg.solve(np.linalg.cholesky(v.R_used), v.H)


def _wide(v: Values) -> Array:
    return np.concatenate([v.W_pred, v.Hw.T], axis=1)


def _turned(v: Values) -> Array:
    return v.wide @ np.linalg.eigh(v.gram)[1]


def _cut(v: Values) -> Array:
    return v.turned[:, : v.turned.shape[1] - v.W.shape[1]]


def _kept(v: Values) -> Array:
    return v.turned[:, v.turned.shape[1] - v.W.shape[1] :]


def _U_diagonal(v: Values) -> Array:
    gone = v.F["cut"](v)
    return v.U_pred + (gone * gone).sum(axis=1)


def _same_block(v: Values) -> Array:
    block = np.array(v.blocks or np.zeros(len(v.U)))
    return np.equal.outer(block, block)


def _U_blocks(v: Values) -> Array:
    gone = v.F["cut"](v)
    return v.U_pred + gone @ gone.T * v.F["same_block"](v)


def _WW(v: Values) -> Array:
    kept = v.F["kept"](v)
    return kept @ kept.T


# ------------------------------------------------------------ observation


def _yhat(v: Values) -> Array:
    return v.z if v.observation == "gaussian" else v.F["softmax"](v, v.z)


def _e(v: Values) -> Array:
    return (v.y - v.yhat).reshape(-1)


def _J(v: Values) -> Array:
    batch, C = v.yhat.shape
    J = np.zeros_like(v.yhat, shape=(batch * C, batch * C))
    for b, row in enumerate(v.yhat):
        J[b * C : (b + 1) * C, b * C : (b + 1) * C] = np.diag(row) - np.outer(row, row)
    return J


def _H_linear(v: Values) -> Array:
    return _centre(v) @ v.Z if v.center else v.Z


def _H_softmax(v: Values) -> Array:
    return v.F["J"](v) @ v.Z


# ------------------------------------------------------------------ noise


def _fixed(v: Values) -> Array:
    return v.R.copy()


def _ema_innovation(v: Values) -> Array:
    return v.beta * v.R + (1 - v.beta) * np.outer(v.r, v.r)


def _ema_hph(v: Values) -> Array:
    return v.beta * v.R + (1 - v.beta) * (np.outer(v.r, v.r) + v.HpH)


def _residual(v: Values) -> Array:
    """``y - h(theta+)`` (m,); h is ``v.outputs`` where LTE's heads have it.  [NOISE-4]."""
    w = Values(v, keep=inner(v.keep))
    if "outputs" in v:
        w["z"] = v.outputs(v.theta_post)
    else:
        w["theta"], spec = v.theta_post, v.F["layers"](v.spec)
        evaluate(w, (arrays(spec, packed=True), *ways(spec)[0]))
    return (v.y - v.F["yhat"](w)).reshape(-1)


# ------------------------------------------------------------------- LoRA


def _delta(v: Values) -> Array:
    return v.F["scale"](v.alpha, v.A.shape[0]) * (v.B @ v.A)


def _merged(v: Values) -> Array:
    return v.W + v.F["delta"](v)


FORMULAS: dict[str, Formula] = {
    **NETWORK,
    "p_pred": _p_pred,
    "pHt": _pHt,
    "S": _S,
    "K": _K,
    "K.softmax": _K_softmax,
    "K.glm": _K_glm,
    "theta_post": _theta_post,
    "theta_post.implicit": _theta_implicit,
    "v": _v,
    "p.decoupled": _p_decoupled,
    "p.variational": _p_variational,
    "p.dense": _p_dense,
    "U_pred": _U_pred,
    "W_pred": _W_pred,
    "P.precision": _P_of_precision,
    "P.posterior": _P_after,
    "Hw": _whitened,
    "wide": _wide,
    "gram": lambda v: v.wide.T @ v.wide,
    "turned": _turned,
    "cut": _cut,
    "kept": _kept,
    "same_block": _same_block,
    "U.diagonal": _U_diagonal,
    "U.blocks": _U_blocks,
    "WW": _WW,
    "yhat": _yhat,
    "e": _e,
    "J": _J,
    "H.gaussian": _H_linear,
    "H.logits": _H_linear,
    "H.softmax": _H_softmax,
    "H.glm": _H_softmax,
    "R.glm": lambda v: v.F["J"](v),
    "R.fixed": _fixed,
    "R.ema_innovation": _ema_innovation,
    "R.ema_innovation_hph": _ema_hph,
    "R.ema_residual_hph": _ema_hph,
    "R.standing": lambda v: v.R,
    "R.kept": lambda v: v.R_used,
    "timing": lambda v: v.timing,
    "carried": lambda state, start: state["R"],
    "innovation_given": lambda v: v.e,
    "innovation_seen": lambda v: v.e,
    "covariance_seen": lambda v: v.p_pred,
    "covariance_residual": lambda v: v.p_post,
    "HpH": lambda v: predicted_covariance(v, v.F["covariance_seen"](v)),
    "HpH.residual": lambda v: predicted_covariance(v, v.F["covariance_residual"](v)),
    "residual": _residual,
    "delta": _delta,
    "W_post": _merged,
}
"""Formula name -> function. A mutant is a table that differs in one entry."""


# ------------------------------------------------------ other forms of the same formulas


def _joseph(v: Values) -> Array:
    """``F P F' + K R K'``, ``F = I - K H``.  [KAL-2]."""
    F = np.eye(v.K.shape[0]) - v.K @ v.H
    P = np.diag(v.p_pred) if v.p_pred.ndim == 1 else v.p_pred
    return F @ P @ F.T + v.K @ v.R_used @ v.K.T


def _joseph_diagonal(v: Values) -> Array:
    return np.diag(_joseph(v))


_JOSEPH = "F P F' + K R K',  F = I - K H"

FORMS: dict[str, tuple[str, Formula, str]] = {
    "p.dense (Joseph)": ("p.dense", _joseph, _JOSEPH),
    "p.decoupled (Joseph)": ("p.decoupled", _joseph_diagonal, f"diag({_JOSEPH})"),
}
"""Other forms, equal at right parents; a mistake in one need be no change of the table's formula.
Name -> the table's formula, the function, the equation."""
