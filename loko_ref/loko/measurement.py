"""One measurement update under a configuration: the contrasts, the covariance, R.

Shapes: theta, p (n,); P (n, n); z, y (batch, C); yhat, e, v (m,); Z, H (m, n); R, S (m, m);
K (n, m); m = batch * C, stacked sample by sample.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

from loko_ref.arrays import Array, contrast_basis, epsilon, namespace
from loko_ref.errors import NumericalError
from loko_ref.kalman import dense, diagonal, glm, implicit, lowrank, simplex
from loko_ref.kalman import observation as obs
from loko_ref.kalman.lowrank import Precision, PrecisionUpdate
from loko_ref.loko.config import LokoConfig
from loko_ref.loko.state import on_contrasts, prior

Cov: TypeAlias = Array | Precision
"""Variances (n,), a covariance (n, n), or a precision."""


Update: TypeAlias = dense.DenseUpdate | diagonal.DiagonalUpdate | PrecisionUpdate
"""What a filter yields."""


def covariance(new: Update) -> Cov:
    """Posterior P (n, n), p (n,) or precision, whichever the filter keeps."""
    return new.p if isinstance(new, diagonal.DiagonalUpdate) else new.P


def predicted_covariance(xp: Any, H: Array, p: Cov) -> Array:
    """H p H' (m, m), p (n,), (n, n) or a precision."""
    if isinstance(p, Precision):
        return H @ p.times(H.T)
    if p.ndim == 2:
        return H @ (p @ H.T)
    Hs = H * xp.sqrt(p)
    return Hs @ Hs.T


def measure(
    xp: Any, theta: Array, p: Cov, H: Array, e: Array, R: Array, C: int, config: LokoConfig
) -> Update:
    """Update by H and R; on the contrasts where classes sum to 0.  [LOKO-1, OBS-5]."""
    if not on_contrasts(config):
        return _update(xp, theta, p, H, e, R, config)
    # 1'e = 0 and 1'H = 0 in each sample: work on the contrasts, record in class coordinates
    Q = contrast_basis(C, H)
    e_c, H_c = simplex.to_contrast(Q, e), simplex.to_contrast(Q, H)
    R_c = simplex.to_contrast(Q, simplex.to_contrast(Q, R).T)
    new = _update(xp, theta, p, H_c, e_c, R_c, config)
    K = simplex.from_contrast(Q, new.K.T).T  # (n, m)
    S = predicted_covariance(xp, H, p) + R
    return replace(new, S=S, K=K)


def _update(
    xp: Any, theta: Array, p: Cov, H: Array, e: Array, R: Array, config: LokoConfig
) -> Update:
    if isinstance(p, Precision):
        return lowrank.update_unchecked(xp, theta, p, H, e, R)
    if config.covariance == "dense":
        return dense.update_unchecked(xp, theta, p, H, e, R, config.form)
    return diagonal.update_unchecked(xp, theta, p, H, e, R, config.diagonal)


def check_windup(yhat: Array, e: Array, p: Cov, theta: Array, config: LokoConfig) -> None:
    """Raise if a filter that forgot more than it knew is certain and wrong.  [OBS-7].

    Where a class has probability 0 to the last bit and is observed, S has a zero row and e is not
    0 there: what is taken is the limit from ``yhat > 0``, a full step ``p Z' e``. With variances
    within the prior's that is what p0 asks for. Beyond it the filter wound up: it grew variances
    that no observation limits, and the step would leave every region where the linearisation holds.

    Parameters
    ----------
    yhat : array (batch, C)
        Class probabilities.
    e : array (m,)
        Innovation.
    p : array (n,) or (n, n), or Precision
        Variances, or covariance, after the time update.
    theta : array (n,)
        Prior mean.
    config : LokoConfig
        Its p0 is what p is compared with.

    Raises
    ------
    NumericalError
        With S's eigenvalue 0.
    """
    if config.lam == 1 and config.q == 0:
        return
    found = obs.impossible(yhat, e)
    if found is None:
        return
    p = p.variances() if isinstance(p, Precision) else p
    xp = namespace(p)
    first = prior(config, theta)
    now, first = (xp.diagonal(a) if a.ndim == 2 else a for a in (p, first))
    growth = float((now / first).max())
    if not growth > 1 + 64 * epsilon(p):  # the update's own rounding
        return
    raise NumericalError(
        "S",
        0.0,
        f"Class {found[1]} of sample {found[0]} was observed, and its probability is 0 to the last "
        f"bit: its row of S is 0, and the innovation is not. A variance has grown to {growth:.3g} "
        "times its prior p0: with lam < 1 it grows by 1 / lam a step, with q by q, in every "
        "direction that nothing observes. Take lam nearer to 1, or a smaller q.",
    )


def measure_glm(
    xp: Any,
    theta: Array,
    p: Cov,
    Z: Array,
    z: Array,
    y: Array,
    e: Array,
    yhat: Array,
    config: LokoConfig,
) -> Update:
    """Update by the Jacobian Z of the logits and R = J.  [LOKO-1, OBS-6, OBS-9]."""
    new: Update
    if isinstance(p, Precision):
        return _measure_glm_precision(xp, theta, p, Z, z, y, e, yhat, config)
    if config.covariance == "dense":
        new = dense.glm_update_unchecked(xp, theta, p, Z, e, yhat, config.form)
    else:
        new = diagonal.glm_update_unchecked(xp, theta, p, Z, e, yhat, config.diagonal)
    if config.solve == "linear":
        return new
    v, mean = implicit.mean_unchecked(xp, theta, p, Z, z, y)
    return replace(new, theta=mean, v=v)


def _measure_glm_precision(
    xp: Any,
    theta: Array,
    p: Precision,
    Z: Array,
    z: Array,
    y: Array,
    e: Array,
    yhat: Array,
    config: LokoConfig,
) -> PrecisionUpdate:
    """As :func:`measure_glm`, of a precision: the columns added are Zo' L, J = L L'.  [KAL-9]."""
    eo, Zo = glm.without_reference(xp, yhat, e), glm.against_reference(xp, yhat, Z)
    PZot = p.times(Zo.T)  # (n, batch (C - 1))
    Go = Zo @ PZot
    Ko = glm.gain(xp, yhat, PZot, Go)
    eye = xp.eye(e.shape[0], dtype=theta.dtype)  # (m, m)
    K = Ko @ glm.without_reference(xp, yhat, obs.project(eye, yhat.shape[1]))  # (n, m)
    H = obs.jacobian_product(xp, yhat, Z)  # (m, n)
    S = predicted_covariance(xp, H, p) + obs.jacobian_product(xp, yhat, eye)
    v, vo = None, None
    if config.solve == "implicit":
        v, vo = implicit.posterior_innovation(xp, z, y, yhat, Go)
    mean = theta + (Ko @ eo if vo is None else PZot @ vo)
    return PrecisionUpdate(S=S, K=K, theta=mean, P=p.add(glm.whiten(xp, yhat, Zo)), v=v)
