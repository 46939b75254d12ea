"""One step of LoKO by the fast route: the same states as :func:`loko_ref.loko.step`.

Shapes: theta, p (n,); z (batch, C); e (m,), m = batch * C; H (rows, n) where rows = batch * (C - 1)
on the simplex, else m; R (m, m).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loko_ref.arrays import Array, cho_solve, cholesky, contrast_basis, is_numpy, solve
from loko_ref.errors import InputError, NumericalError
from loko_ref.fast.filter import decoupled, inverse_factor, variational
from loko_ref.fast.network import Network
from loko_ref.kalman import noise, time
from loko_ref.kalman import observation as obs
from loko_ref.loko import Batch, LokoConfig, LokoState, loss, targets
from loko_ref.model import check_inputs

__all__ = ["FastRecord", "Stepper", "prepare"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FastRecord:
    """What the fast route tells of a step.

    Attributes
    ----------
    z : array (batch, C)
        Outputs at the prior.
    loss : float
        As in :class:`loko_ref.loko.LokoRecord`.
    yhat, e : array (m,)
        Predicted observation and innovation.
    """

    z: Array
    loss: float
    yhat: Array
    e: Array


def prepare(config: LokoConfig) -> Stepper:
    """Make a configuration ready for many fast steps.

    Parameters
    ----------
    config : LokoConfig
        With a diagonal covariance, NumPy weights, trainables of linears.

    Raises
    ------
    InputError
        If only the readable route runs it.
    """
    if config.covariance != "diagonal":
        raise InputError(
            "covariance", config.covariance, "'diagonal'", "the dense filter has one route only"
        )
    if not is_numpy(next(iter(config.model.weights.values()))):
        raise InputError(
            "model", "weights on a device", "NumPy arrays", "the fast route is tuned for BLAS"
        )
    return Stepper(config)


class Stepper:
    """Takes fast steps; holds buffers, so one Stepper serves one run at a time."""

    def __init__(self, config: LokoConfig) -> None:
        self.config = config
        self.network = Network(config.model)
        self.H: Array | None = None

    def step(self, state: LokoState, batch: Batch) -> tuple[LokoState, FastRecord]:
        """Take one step: the state that :func:`loko_ref.loko.step` gives.  [LOKO-1, FAST-4].

        Raises
        ------
        InputError
            If the batch or the state is not as stated.
        NumericalError
            If S is numerically singular or the run diverged; names the step.
        """
        try:
            return self._step(state, batch)
        except NumericalError as error:
            raise error.at_step(state.step) from None

    def _step(self, state: LokoState, batch: Batch) -> tuple[LokoState, FastRecord]:
        config = self.config
        theta, prior = state.theta, state.p
        if prior is None or theta.shape != (self.network.n,) or prior.shape != theta.shape:
            raise InputError(
                "state", "other shapes", f"theta and p ({self.network.n},)", "another model's state"
            )
        check_inputs(config.model, batch.x)
        p = prior if config.lam == 1 and config.q == 0 else time.update(prior, config.lam, config.q)
        z, now = self.network.forward(theta, batch.x)
        if not np.isfinite(z).all():
            raise NumericalError("z", None, "The filter diverged: take a smaller p0 (or alpha).")
        y = targets(batch.y, z, config.observation)
        yhat = obs.predict(config.observation, z)  # (batch, C)
        e = (y - yhat).reshape(-1)
        Hs = self.H = self.network.backward(self._seeds(z, yhat), now, self.H)
        Hs *= np.sqrt(p)
        if config.observation == "glm":
            theta_post, p_post = self._glm(theta, p, Hs, e, yhat)
            R = None
        else:
            theta_post, p_post, R = self._update(theta, p, Hs, e, y, batch.x, state.R)
        if not np.isfinite(theta_post).all():
            raise NumericalError(
                "theta", None, "The filter diverged: take a smaller p0 (or alpha)."
            )
        after = LokoState(theta=theta_post, p=p_post, R=R, step=state.step + 1)
        record = FastRecord(
            z=z, loss=float(loss(z, y, config.observation)), yhat=yhat.reshape(-1), e=e
        )
        return after, record

    def _seeds(self, z: Array, yhat: Array) -> Array:
        """Cotangents (batch, k, C) whose pullback is the H that the update needs.  [FAST-1]."""
        batch, C = z.shape
        kind = self.config.observation
        if kind in ("softmax", "glm"):
            Q = contrast_basis(C, z)  # (C - 1, C)
            if kind == "glm":
                return np.broadcast_to(Q, (batch, *Q.shape))
            Qy = Q @ yhat.T  # (C - 1, batch)
            return yhat[:, None] * (Q[None] - Qy.T[:, :, None])  # Q J
        eye = np.eye(C, dtype=z.dtype)
        if self.config.center:
            eye = eye - 1 / C
        return np.broadcast_to(eye, (batch, C, C))

    def _update(
        self, theta: Array, p: Array, Hs: Array, e: Array, y: Array, x: Array, R: Array | None
    ) -> tuple[Array, Array, Array]:
        config, C, m = self.config, y.shape[1], e.shape[0]
        if R is None or R.shape != (m, m):
            raise InputError(
                "state.R",
                None if R is None else f"shape {R.shape}",
                f"({m}, {m}) = (batch * C, batch * C)",
                "a batch of another size than R's: call init(config, batch=...) anew",
            )
        simplex = config.observation == "softmax"
        G = Hs @ Hs.T  # (rows, rows)
        spread = _both(G, C) if simplex else G
        if config.timing == "before":
            R = noise.update(str(config.noise), R, e, spread, config.beta)
        if simplex:
            obs.check_ones(R, C)
        R_seen = obs.to_contrast(obs.to_contrast(R, C).T, C) if simplex else R
        e_seen = obs.to_contrast(e, C) if simplex else e
        S = G + R_seen  # [KAL-2]
        L = cholesky(S, "S")
        root = np.sqrt(p)
        theta_post = theta + root * (cho_solve(L, e_seen) @ Hs)  # K e = sqrt p Hs' S^-1 e
        if config.diagonal == "decoupled":
            p_post = decoupled(p, Hs, S, inverse_factor(L), R_seen)
        else:
            p_post = variational(p, Hs, R_seen)
        if config.timing == "after":
            seen = e
            if config.noise == "ema_residual_hph":
                z_post, _ = self.network.forward(theta_post, x)
                seen = (y - obs.predict(config.observation, z_post)).reshape(-1)
                Hs *= np.sqrt(p_post / p)
                G = Hs @ Hs.T
                spread = _both(G, C) if simplex else G
            R = noise.update(str(config.noise), R, seen, spread, config.beta)
        return theta_post, p_post, R

    def _glm(self, theta: Array, p: Array, Zs: Array, e: Array, yhat: Array) -> tuple[Array, Array]:
        """``K e = p Z' (I + J G)^-1 e`` and the whitened leverages, on contrasts.  [OBS-6, FAST-4].

        Zs (batch (C - 1), n) is the contrasts of Z, scaled.
        """
        batch, C = yhat.shape
        c = C - 1
        if c == 0:
            return theta, p
        Q = contrast_basis(C, Zs)
        G = Zs @ Zs.T  # (rows, rows)
        J = (Q * yhat[:, None]) @ Q.T - _rows(Q, yhat)  # (batch, c, c): Q J Q'
        JG = (J @ G.reshape(batch, c, -1)).reshape(G.shape)
        w = solve(np.eye(batch * c, dtype=G.dtype) + JG, obs.to_contrast(e, C))
        theta_post = theta + np.sqrt(p) * (w @ Zs)
        # L' Q' (batch, C, c), L' = diag(sqrt yhat)(I - 1 yhat'): whitened H~ = L' Z
        Qy = yhat @ Q.T  # (batch, c)
        N = np.sqrt(yhat)[:, :, None] * (Q.T[None] - Qy[:, None])
        N = np.linalg.qr(N, mode="r")  # (batch, c, c): the same squares, c rows
        Ws = (N @ Zs.reshape(batch, c, -1)).reshape(Zs.shape)
        if self.config.diagonal == "variational":
            return theta_post, variational(p, Ws, None)
        S = Ws @ Ws.T
        S[np.diag_indices(batch * c)] += 1
        return theta_post, decoupled(p, Ws, S, inverse_factor(cholesky(S, "S")), None)


def _rows(Q: Array, yhat: Array) -> Array:
    """``(Q yhat)(Q yhat)'`` a sample: (batch, C - 1, C - 1)."""
    Qy = yhat @ Q.T
    return Qy[:, :, None] * Qy[:, None]


def _both(G: Array, C: int) -> Array:
    """From contrasts (rows, rows) back to classes (m, m).  [OBS-5]."""
    return obs.from_contrast(obs.from_contrast(G, C).T, C)
