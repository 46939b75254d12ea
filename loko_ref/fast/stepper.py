"""One step of LoKO by the fast route: the same states as :func:`loko_ref.loko.step`.

Shapes: theta, p (n,); z (batch, C); e (m,), m = batch * C; H (rows, n) where rows = batch * (C - 1)
on the simplex, else m; R (m, m).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loko_ref.arrays import Array, contrast_basis, is_numpy, solve
from loko_ref.arrays.backends import keep_freed_memory
from loko_ref.errors import InputError, NumericalError
from loko_ref.fast.columns import Columns
from loko_ref.fast.filter import decoupled, root_inverse, variational
from loko_ref.fast.network import Network
from loko_ref.kalman import glm, implicit, simplex, time
from loko_ref.kalman import observation as obs
from loko_ref.kalman.lowrank import PRECISIONS, Precision
from loko_ref.loko import Batch, LokoConfig, LokoState, loss, targets
from loko_ref.loko.measurement import check_windup
from loko_ref.loko.state import check_state, groups_for
from loko_ref.network.model import check_inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class FastRecord:
    """What the fast route records of a step.

    Attributes
    ----------
    z : array (batch, C)
        Outputs at the prior.
    y : array (batch, C)
        The observation as rows.
    yhat, e : array (m,)
        Predicted observation and innovation.
    observation : str
        The observation model.
    """

    z: Array
    y: Array
    yhat: Array
    e: Array
    observation: obs.ObservationModel

    @property
    def loss(self) -> float:
        """As in :class:`loko_ref.loko.LokoRecord`."""
        return float(loss(self.z, self.y, self.observation))


def prepare(config: LokoConfig) -> Stepper:
    """Make a configuration ready for many fast steps.

    Parameters
    ----------
    config : LokoConfig
        With any covariance but a dense one, NumPy weights, trainables of linears.

    Raises
    ------
    InputError
        If only the readable route runs it.
    """
    if config.covariance == "dense":
        cause = "the dense filter has one route only"
        raise InputError("covariance", "dense", "'diagonal', 'lowrank' or 'block'", cause)
    if not is_numpy(next(iter(config.model.weights.values()))):
        raise InputError(
            "model", "weights on a device", "NumPy arrays", "the fast route is tuned for BLAS"
        )
    keep_freed_memory()
    return Stepper(config)


class Stepper:
    """Takes fast steps; holds buffers, so one Stepper serves one run at a time."""

    def __init__(self, config: LokoConfig) -> None:
        self.config = config
        self.network = Network(config.model)
        self.C = config.model.outputs
        like = next(iter(config.model.weights.values()))
        self.dtype = like.dtype
        self.eye = np.eye(self.C, dtype=like.dtype)
        self.Q = contrast_basis(self.C, like)  # (C - 1, C)
        self.simplex = config.observation in ("softmax", "glm")
        self.groups = groups_for(config)
        self.R_seen: tuple[Array | None, ...] = ()  # whose all-ones part is known to be apart
        self.x_seen: object = None  # kind of input that was checked last

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
        config, theta, x = self.config, state.theta, batch.x
        p = self._prior(state)
        kind = (getattr(x, "shape", None), getattr(x, "dtype", None))
        if kind != self.x_seen or x.dtype.kind != "f":  # ids are checked anew: their range
            check_inputs(config.model, x, finite=False)
            self.x_seen = kind
        z, now = self.network.forward(theta, x)
        if not np.isfinite(z).all():
            check_inputs(config.model, x)
            raise NumericalError("z", None, _DIVERGED)
        y = self._targets(batch.y, z)
        yhat = z
        if config.observation != "gaussian":
            yhat = np.exp(z - z.max(axis=1, keepdims=True))  # [LAY-7]
            yhat /= yhat.sum(axis=1, keepdims=True)
        e = (y - yhat).reshape(-1)
        H = self.network.backward(self._seeds(yhat), now)
        if isinstance(p, Precision):
            return self._precision(state, p, H, z, y, yhat, e, x)
        H.scale(p)
        if config.observation == "glm":
            R = None
            theta_post, p_post = self._glm(theta, p, H, e, yhat, z, y)
        else:
            theta_post, p_post, R = self._update(theta, p, H, e, y, x, state.R)
        if not np.isfinite(theta_post).all():
            raise NumericalError("theta", None, _DIVERGED)
        after = LokoState(theta=theta_post, p=p_post, R=R, step=state.step + 1)
        record = FastRecord(z=z, y=y, yhat=yhat.reshape(-1), e=e, observation=config.observation)
        return after, record

    def _prior(self, state: LokoState) -> Array | Precision:
        """Variances, or a precision, after the time update.  [KAL-1, KAL-9]."""
        config, theta = self.config, state.theta
        if config.covariance in PRECISIONS:
            check_state(state, config)
            assert state.U is not None
            assert state.W is not None
            return Precision(U=state.U, W=state.W, groups=self.groups).predict(config.lam, config.q)
        prior = state.p
        if prior is None or theta.shape != (self.network.n,) or prior.shape != theta.shape:
            raise InputError(
                "state", "other shapes", f"theta and p ({self.network.n},)", "another model's state"
            )
        for name, array in (("state.theta", theta), ("state.p", prior)):
            if array.dtype != self.dtype:
                raise InputError(name, f"dtype {array.dtype}", f"{self.dtype}", "mixed precision")
        if config.lam == 1 and config.q == 0:
            return prior
        return time.update(prior, config.lam, config.q)

    def _precision(
        self,
        state: LokoState,
        P: Precision,
        columns: Columns,
        z: Array,
        y: Array,
        yhat: Array,
        e: Array,
        x: Array,
    ) -> tuple[LokoState, FastRecord]:
        """Update a precision: S, no gain, and the columns added.  [KAL-9, FAST-4]."""
        config, R = self.config, state.R
        columns.scale(np.ones(self.network.n, dtype=self.dtype))
        H = columns.full()  # (rows, n)
        PHt = P.times(H.T)  # (n, rows)
        G = H @ PHt
        if config.observation == "glm":
            if config.solve == "implicit":
                v = implicit.posterior_innovation(np, z, y, yhat, G)[1]
            else:
                check_windup(yhat, e, P, state.theta, config)
                eo = glm.without_reference(np, yhat, e)
                v = solve(glm.information(np, yhat, G), eo, name="I + J G")
            Hw = glm.whiten(np, yhat, H)
        else:
            R = self._noise(R, e)
            if config.timing == "before":
                R = self._refresh(R, e, G)
            R_down = self._down(R)
            L_inv = root_inverse(G + R_down, "S")  # [KAL-2]
            v = (L_inv @ self._down(e)) @ L_inv
            Hw = root_inverse(R_down, "R") @ H
        theta = state.theta + PHt @ v
        if not np.isfinite(theta).all():
            raise NumericalError("theta", None, _DIVERGED)
        after = P.add(Hw)
        if R is not None and config.timing == "after":
            seen = e
            if config.noise == "ema_residual_hph":
                z_post, _ = self.network.forward(theta, x)
                seen = (y - obs.predict(config.observation, z_post)).reshape(-1)
                G = H @ after.times(H.T)
            R = self._refresh(R, seen, G)
        record = FastRecord(z=z, y=y, yhat=yhat.reshape(-1), e=e, observation=config.observation)
        step = state.step + 1
        return LokoState(theta=theta, U=after.U, W=after.W, R=R, step=step), record

    def _noise(self, R: Array | None, e: Array) -> Array:
        """Return R, checked to be that of the batch."""
        m = e.shape[0]
        if R is None or R.shape != (m, m) or R.dtype != self.dtype:
            raise InputError(
                "state.R",
                None if R is None else f"{R.dtype} of shape {R.shape}",
                f"{self.dtype} of shape ({m}, {m}) = (batch * C, batch * C)",
                "a batch of another size than R's: call init(config, batch=...) anew",
            )
        if self.simplex and not any(R is known for known in self.R_seen):
            simplex.check_ones(R, self.C)
        return R

    def _targets(self, y: Array, z: Array) -> Array:
        """One-hot rows by a table; anything unusual goes the readable way."""
        usual = y.ndim == 1 and y.dtype.kind in "iu" and self.config.observation != "gaussian"
        if usual and y.shape[0] == z.shape[0] and y.min() >= 0 and y.max() < self.C:
            return self.eye[y]
        return targets(y, z, self.config.observation)

    def _seeds(self, yhat: Array) -> Array:
        """Cotangents (batch, k, C) whose pullback is the H that the update needs.  [FAST-1]."""
        batch, C = yhat.shape
        if self.config.observation == "softmax":  # Q J
            return yhat[:, None] * (self.Q - (yhat @ self.Q.T)[:, :, None])
        if self.config.observation == "glm":  # each class but the reference class, less that one
            each = glm.against_reference(np, yhat, np.tile(self.eye, (batch, 1)))
            return each.reshape(batch, C - 1, C)
        eye = self.eye - 1 / C if self.config.center else self.eye
        return np.broadcast_to(eye, (batch, C, C))

    def _down(self, M: Array) -> Array:
        """Classes (m, m) or (m,) to contrasts, where the update works on them.  [OBS-5]."""
        if self.config.observation != "softmax":
            return M
        if M.ndim == 1:
            return (M.reshape(-1, self.C) @ self.Q.T).reshape(-1)
        m = M.shape[0]
        M = self.Q @ M.reshape(-1, self.C, m)
        return (M.reshape(-1, self.C) @ self.Q.T).reshape(M.size // m, -1)

    def _up(self, G: Array) -> Array:
        """Contrasts back to classes (m, m)."""
        if self.config.observation != "softmax":
            return G
        rows = G.shape[0]
        G = self.Q.T @ G.reshape(-1, self.C - 1, rows)
        return (G.reshape(-1, self.C - 1) @ self.Q).reshape(G.size // rows, -1)

    def _refresh(self, R: Array, e: Array, G: Array) -> Array:
        """Estimate R anew.  [NOISE-1, NOISE-2, NOISE-3, NOISE-4]."""
        kind, beta = self.config.noise, self.config.beta
        if kind == "fixed":
            return R
        sample = e[:, None] * e
        if kind != "ema_innovation":
            sample += self._up(G)
        sample *= 1 - beta
        sample += beta * R
        return sample

    def _update(
        self, theta: Array, p: Array, H: Columns, e: Array, y: Array, x: Array, R: Array | None
    ) -> tuple[Array, Array, Array]:
        config = self.config
        given = R = self._noise(R, e)
        G = H.gram()  # (rows, rows)
        if config.timing == "before":
            R = self._refresh(R, e, G)
        R_down, e_down = self._down(R), self._down(e)
        S = G + R_down  # [KAL-2]
        L_inv = root_inverse(S, "S")
        theta_post = H.pull((L_inv @ e_down) @ L_inv)  # P H' S^-1 e
        theta_post += theta
        if config.diagonal == "decoupled":
            p_post = decoupled(p, H, L_inv, R_down)
        else:
            p_post = variational(p, H, R_down)
        if config.timing == "after":
            seen = e
            if config.noise == "ema_residual_hph":
                z_post, _ = self.network.forward(theta_post, x)
                seen = (y - obs.predict(config.observation, z_post)).reshape(-1)
                H.scale(p_post / p)
                G = H.gram()
            R = self._refresh(R, seen, G)
        self.R_seen = (given, R)
        return theta_post, p_post, R

    def _glm(
        self, theta: Array, p: Array, Z: Columns, e: Array, yhat: Array, z: Array, y: Array
    ) -> tuple[Array, Array]:
        """``K e = p Zo' (I + Jo G)^-1 eo`` and the whitened leverages.  [OBS-6, OBS-9, FAST-4].

        Z (batch (C - 1), n) holds Zo, scaled, and is whitened in place.
        """
        batch, C = yhat.shape
        c = C - 1
        if c == 0:
            return theta, p
        G = Z.gram()  # (rows, rows)
        if self.config.solve == "implicit":
            v = implicit.posterior_innovation(np, z, y, yhat, G)[1]
        else:
            check_windup(yhat, e, p, theta, self.config)
            eo = glm.without_reference(np, yhat, e)
            v = solve(glm.information(np, yhat, G), eo, name="I + J G")
        theta_post = Z.pull(v)
        theta_post += theta
        eye = np.eye(batch * c, dtype=self.dtype)
        each = np.tile(eye[:c, :c], (batch, 1))  # (rows, c)
        Z.whiten(glm.whiten(np, yhat, each).reshape(batch, c, c))  # H~ = L' Zo
        if self.config.diagonal == "variational":
            return theta_post, variational(p, Z, eye)
        return theta_post, decoupled(p, Z, root_inverse(Z.gram() + eye, "S"), eye)


_DIVERGED = (
    "The filter diverged: its steps left the region where the linearisation holds. "
    "Take a smaller p0 (or alpha)."
)
