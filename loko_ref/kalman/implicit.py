"""The implicit glm step: the mode of the posterior whose logits are linear in theta.  [OBS-9]

``v = y - softmax(z + G v)``, ``theta+ = theta + P Z' v``, G = Z P Z': the innovation at the
posterior mean in place of the one at the prior's. v minimises a convex function, and one iteration
of Newton's method for it, from v = 0, is the step of :mod:`loko_ref.kalman.glm`.

Shapes: theta (n,); P (n,) or (n, n); Z (m, n); z, y, yhat (batch, C); v (m,), m = batch * C.
Without each sample's reference class [OBS-6]: vo, r, d (k,), Go (k, k), k = batch (C - 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import (
    Array,
    eigvalsh,
    midpoint,
    namespace,
    proven,
    resolution,
    solve,
    to_host,
    widened,
)
from loko_ref.checks.values import (
    check_covariance,
    check_finite,
    check_floats,
    check_positive,
    check_shape,
    check_some,
)
from loko_ref.errors import NumericalError
from loko_ref.kalman import glm
from loko_ref.kalman.observation import innovation_unchecked, predict_unchecked, target_rows

Solve: TypeAlias = Literal["linear", "implicit"]
SOLVES: tuple[Solve, ...] = get_args(Solve)

_MOST = 200
"""Iterations after which the solver gives up; 30 were seen."""

_PATIENCE = 4
"""Iterations without a smaller residual or decrement after which there is none to gain."""

_FLAT = 0.1
"""Share of the first slope along a damped step that its last one is brought below."""


def mean(theta: Array, P: Array, Z: Array, z: Array, y: Array) -> tuple[Array, Array]:
    """One implicit update of the mean, arguments checked.  [OBS-9].

    Parameters
    ----------
    theta : array (n,)
        Prior mean.
    P : array (n,) or (n, n)
        Prior variances, or covariance, after the time update.
    Z : array (m, n)
        Jacobian of the logits, m = batch * C.
    z : array (batch, C)
        Logits at the prior mean.
    y : array (batch,) of int, or (batch, C)
        Labels, or rows that sum to 1.

    Returns
    -------
    v : array (m,)
        The innovation at the posterior mean, y - softmax(z + G v); sums to 0 over each sample.
    theta : array (n,)
        Posterior mean, theta + P Z' v.

    Raises
    ------
    InputError
        If a shape, a dtype or a value is not as stated.
    NumericalError
        If G outgrew the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> v, _ = mean(np.zeros(2), np.full(2, 1e6), np.eye(2), np.zeros((1, 2)), np.array([0]))
    >>> float(v[0].round(8)), np.allclose(v, [1, 0] - np.exp(1e6 * v) / np.exp(1e6 * v).sum())
    (6.01e-06, True)
    """
    check_floats(theta=theta, P=P, Z=Z, z=z)
    check_shape("theta", theta, ("n",))
    n = theta.shape[0]
    check_shape("P", P, ("n",) * P.ndim if P.ndim == 1 else ("n", "n"), {"n": n})
    check_shape("z", z, ("batch", "C"))
    check_some("z", z, "sample")
    check_shape("Z", Z, ("m", "n"), {"m": z.shape[0] * z.shape[1], "n": n})
    check_finite(theta=theta, P=P, Z=Z, z=z)
    if P.ndim == 1:
        check_positive("P", P)
    else:
        check_covariance("P", P)
    y = target_rows("glm", y, z.shape[0], z.shape[1], z)
    return mean_unchecked(namespace(theta), theta, P, Z, z, y)


def mean_unchecked(
    xp: Any, theta: Array, P: Array, Z: Array, z: Array, y: Array
) -> tuple[Array, Array]:
    """Compute :func:`mean` of checked arrays of the namespace `xp`; y are rows (batch, C)."""
    yhat = predict_unchecked("glm", z)
    Zo = glm.against_reference(xp, yhat, Z)  # (k, n)
    if P.ndim == 1:
        Zos = Zo * xp.sqrt(P)
        PZot, Go = (Zo * P).T, Zos @ Zos.T
    else:
        PZot = P @ Zo.T  # (n, k)
        Go = Zo @ PZot
    v, vo = posterior_innovation(xp, z, y, yhat, Go)
    return v, theta + PZot @ vo


def posterior_innovation(
    xp: Any, z: Array, y: Array, yhat: Array, Go: Array
) -> tuple[Array, Array]:
    """Solve ``v = y - softmax(z + G v)`` by damped Newton iterations from v = 0.  [OBS-9].

    In the coordinates without the reference class, ``d = (I + Jo Go)^-1 r`` with the residual
    ``r = y - softmax(z + G v) - v``. The full step is taken unless it overshoots the minimum along
    d; then bisection on the slope finds it, and no two values of the objective are compared. It
    ends where r is its own rounding error, which grows with ``u |G| |v|``.

    Parameters
    ----------
    z, y, yhat : array (batch, C)
        Logits, rows observed, and softmax(z).
    Go : array (k, k)
        Z P Z' without each sample's reference class, k = batch (C - 1).

    Returns
    -------
    v : array (m,)
        In class coordinates.
    vo : array (k,)
        Without the reference classes.
    """
    batch, C = z.shape
    zo = glm.against_reference(xp, yhat, z.reshape(-1, 1)).reshape(batch, -1)
    others = glm.without_reference(xp, yhat, y.reshape(-1)).reshape(batch, -1)
    y_c = xp.take_along_axis(y, yhat.argmax(axis=1)[:, None], axis=1)
    y_ref = xp.concatenate([y_c, others], axis=1)  # (batch, C): the reference class first
    v0 = xp.zeros_like(zo)

    def at(zo: Array, Go: Array, v: Array) -> tuple[Array, Array]:
        """softmax(z + G v) and the innovation there, the reference class first."""
        a = zo + (Go @ v.reshape(-1)).reshape(v.shape)
        q = predict_unchecked("glm", xp.concatenate([v0[:, :1], a], axis=1))
        return q, innovation_unchecked(xp, "glm", y_ref, q)

    found = _newton(xp, midpoint(zo), midpoint(Go), v0, at)

    def enclosed() -> Array:
        e = at(zo, Go, found)[1][:, 1:]
        reach = xp.sqrt(xp.diagonal(Go))  # (k,); |r|_G <= sum of reach |r|
        return widened(e, xp.max(reach) * (reach @ xp.abs(e - found).reshape(-1)) / 2)

    vo = proven(found, enclosed)  # (batch, C - 1)
    rows = xp.empty(y.shape, dtype=y.dtype)
    order = (yhat.argmax(axis=1)[:, None] + xp.arange(C)[None, :]) % C
    rows[xp.arange(batch)[:, None], order] = xp.concatenate(
        [-vo.sum(axis=1, keepdims=True), vo], axis=1
    )
    return rows.reshape(-1), vo.reshape(-1)


def _newton(xp: Any, zo: Array, Go: Array, v: Array, at: Any) -> Array:
    """Return the v (batch, C - 1) of the least residual.  [OBS-9]."""
    shape, k, u = v.shape, Go.shape[0], resolution(Go)
    eye = xp.eye(k, dtype=Go.dtype)

    def look(v: Array) -> _Point:
        q, e = at(zo, Go, v)
        r = midpoint(e[:, 1:] - v).reshape(-1)
        return _Point(v=v, q=q, r=r, size=_largest(xp, r))

    now = look(v)
    best, lowest, idle, floor = now, float("inf"), 0, 0.0
    for _ in range(_MOST):
        J = midpoint(_curvature(xp, now.q))  # (batch, C - 1, C - 1)
        reach = xp.abs(zo).reshape(-1) + xp.abs(Go) @ xp.abs(now.v).reshape(-1)  # (k,)
        rounding = xp.abs(now.v) + (xp.abs(J) @ reach.reshape(*shape, 1)).reshape(shape)
        floor = 4 * u * _largest(xp, rounding)
        if now.size <= floor or idle >= _PATIENCE:
            break
        JG = (J @ Go.reshape(*shape, k)).reshape(k, k)
        d = midpoint(solve(eye + JG, now.r, name="I + J G"))
        decrement = float(to_host(now.r @ Go @ d))
        now = _damped(now, d.reshape(shape), Go @ d, look, u)
        falls = now.size < best.size or decrement < lowest
        idle = 0 if falls else idle + 1
        best, lowest = now if now.size < best.size else best, min(lowest, decrement)
    if not best.size <= 2**10 * floor:
        known = bool(xp.isfinite(Go).all())
        raise NumericalError(
            "G",
            float(to_host(eigvalsh(Go)).min()) if known else None,
            "G = Z P Z' overflowed, or is not positive semi-definite any more to rounding, and the "
            f"implicit step was left at a residual of {best.size:.3g}: P is too large for the "
            "dtype. Take a smaller p0, fewer samples a batch, or float64.",
        )
    return best.v


@dataclass(frozen=True, kw_only=True, eq=False)
class _Point:
    """An iterate v (batch, C - 1), softmax there q (batch, C), residual r (k,) and its size."""

    v: Array
    q: Array
    r: Array
    size: float


def _largest(xp: Any, a: Array) -> float:
    return float(to_host(xp.abs(a)).max())


def _damped(now: _Point, d: Array, Gd: Array, look: Callable[[Array], _Point], u: float) -> _Point:
    """Step along d (batch, C - 1) to its end, or to where the objective is least.  [OBS-9].

    The slope of the objective along d is ``-d'G r``.
    """

    def slope(point: _Point) -> float:
        return -float(to_host(Gd @ point.r))

    new, start = look(midpoint(now.v + d)), slope(now)
    if not slope(new) > 0 or new.size <= now.size / 2:
        return new
    low, high = 0.0, 1.0
    while high - low > u:
        t = (low + high) / 2
        new = look(midpoint(now.v + t * d))
        ahead = slope(new)
        if _FLAT * start <= ahead <= 0:
            break
        low, high = (low, t) if ahead > 0 else (t, high)
    return new


def _curvature(xp: Any, q: Array) -> Array:
    """``Jo = diag(qo) - qo qo'`` (batch, C - 1, C - 1), the first class of q (batch, C) left out.

    ``1 - q_j`` on its diagonal is summed from the others: it keeps its digits where q_j nears 1,
    which a class that is not the most probable one may do here.
    """
    C = q.shape[1]
    eye = xp.eye(C, dtype=q.dtype)
    rest = q @ (1 - eye)  # (batch, C): 1 - q
    J = (q * rest)[:, :, None] * eye - q[:, :, None] * q[:, None, :] * (1 - eye)
    return J[:, 1:, 1:]
