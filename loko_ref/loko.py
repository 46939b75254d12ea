"""LoKO: fine-tuning as state estimation, one Kalman step a batch.

Shapes: theta, p (n,); P (n, n); z (batch, C); yhat, e (m,); Z, H (m, n); R, S (m, m); K (n, m);
m = batch * C, stacked sample by sample.

A functional core: ``step(state, batch, config) -> (state, record)``. The state is what the next
step needs; the record is what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from loko_ref.arrays import Array, asarray, namespace, number
from loko_ref.checks import (
    check_choice,
    check_covariance,
    check_finite,
    check_floats,
    check_positive,
    check_range,
    check_shape,
    check_symmetric,
)
from loko_ref.errors import InputError, NumericalError
from loko_ref.jacobian import jacobian
from loko_ref.kalman import dense, diagonal, noise, time
from loko_ref.kalman import observation as obs
from loko_ref.layers.activation import log_softmax_forward
from loko_ref.model import Model, forward, pack, sites, unpack

__all__ = [
    "COVARIANCES",
    "DEFAULT_NOISE",
    "Batch",
    "LokoConfig",
    "LokoRecord",
    "LokoState",
    "advance",
    "init",
    "init_at",
    "loss",
    "run",
    "step",
    "targets",
]

COVARIANCES = ("diagonal", "dense")

DEFAULT_NOISE = {
    "gaussian": ("fixed", "before"),
    "softmax": ("ema_innovation_hph", "before"),
    "logits": ("ema_innovation", "before"),
    "glm": ("glm", "before"),
}
"""Observation model -> the estimator of R, and its timing, that it takes by default."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LokoConfig:
    """Every choice that LoKO leaves open, by name.

    The defaults are the ones that learn: of the observation models, ``glm`` is the exact
    exponential-family filter, has no noise to tune, and moves where ``softmax`` saturates.  [OBS-7]

    Parameters
    ----------
    model : Model
        The network; its trainables are theta.
    observation : {"glm", "softmax", "logits", "gaussian"}
        The observation model.
    noise : {"fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph", "glm"}, optional
        The estimator of R; by default the one of ``DEFAULT_NOISE``.
    timing : {"before", "after"}, optional
        Whether R is refreshed before the gain or after it.
    beta : float
        Weight of the past in R's average, 0 <= beta < 1.
    r0 : float
        R_0 = r0 I, r0 > 0. Not read by ``glm``.
    p0 : float, mapping of str to float, or array
        Prior variance: a number; one a LoRA site (by layer name); an array (n,), or (n, n) with a
        dense covariance.  [LOKO-3]
    covariance : {"diagonal", "dense"}
        LoKO's diagonal, or the full filter for small n.  [LOKO-4]
    diagonal : {"decoupled", "variational"}
        Which diagonal is kept.
    form : {"joseph", "textbook", "information", "sequential"}
        Form of the dense update.
    lam : float
        Forgetting factor, 0 < lam <= 1.
    q : float
        Process noise variance, >= 0.
    center : bool
        For ``logits``: project H on the contrasts.

    Raises
    ------
    InputError
        If an option is unknown, out of range, or does not go with another.
    """

    model: Model
    observation: str = "glm"
    noise: str | None = None
    timing: str | None = None
    beta: float = 0.95
    r0: float = 1.0
    p0: float | Mapping[str, float] | Array = 0.05
    covariance: str = "diagonal"
    diagonal: str = "decoupled"
    form: str = "joseph"
    lam: float = 1.0
    q: float = 0.0
    center: bool = False

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on the observation model, and check everything."""
        check_choice("observation", self.observation, obs.OBSERVATIONS)
        usual, _ = DEFAULT_NOISE[self.observation]
        if self.noise is None:
            object.__setattr__(self, "noise", usual)
        if self.timing is None:
            late = self.noise == "ema_residual_hph"
            object.__setattr__(self, "timing", "after" if late else "before")
        noise.check_combination(self.observation, str(self.noise), str(self.timing))
        check_choice("covariance", self.covariance, COVARIANCES)
        check_choice("diagonal", self.diagonal, diagonal.DIAGONALS)
        check_choice("form", self.form, dense.FORMS)
        check_range("beta", self.beta, low=0, high=1, high_open=True)
        check_range("r0", self.r0, low=0, low_open=True, high_open=True)
        check_range("lam", self.lam, low=0, high=1, low_open=True)
        check_range("q", self.q, low=0, high_open=True)
        for name in ("beta", "r0", "lam", "q"):  # a NumPy float64 would widen float32
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.center and self.observation != "logits":
            raise InputError(
                "center",
                True,
                "False unless observation='logits'",
                "in 'softmax' and 'glm' H is centred already, in 'gaussian' it has no classes",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class LokoState:
    """What is carried from step to step.

    Attributes
    ----------
    theta : array (n,)
        Mean: the packed trainables.
    p : array (n,) or None
        Variances, with a diagonal covariance.
    P : array (n, n) or None
        Covariance, with a dense one.
    R : array (m, m) or None
        Noise estimate; None for ``glm``, whose R follows from yhat.
    step : int
        Steps taken.
    """

    theta: Array
    p: Array | None = None
    P: Array | None = None
    R: Array | None = None
    step: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class LokoRecord:
    """What happened in one step, in dataflow order.

    Attributes
    ----------
    p_pred : array (n,) or (n, n)
        Variances (or covariance) after the time update.
    z : array (batch, C)
        Outputs at the prior.
    loss : float
        Mean cross-entropy, or half the mean squared error (``gaussian``), at the prior.
    yhat, e : array (m,)
        Predicted observation and innovation.
    H : array (m, n)
        Linearisation.
    R_used : array (m, m)
        The noise covariance that entered S.
    S : array (m, m)
        Innovation covariance.
    K : array (n, m)
        Gain; on the simplex its rows sum to 0 over each sample's classes.
    """

    p_pred: Array
    z: Array
    loss: float
    yhat: Array
    e: Array
    H: Array
    R_used: Array
    S: Array
    K: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One batch of samples.

    Attributes
    ----------
    x : array (batch, i)
        Inputs.
    y : array (batch,) of int, or (batch, C)
        Labels, or one-hot rows; real rows for ``gaussian``.
    """

    x: Array
    y: Array


def _prior(config: LokoConfig, theta: Array) -> Array:
    """p0 as an array (n,), or (n, n) where it was given so.  [LOKO-3]."""
    p0: Any = config.p0
    n = theta.shape[0]
    if isinstance(p0, Mapping):
        named = {name for name, _, _ in sites(config.model)}
        if named != set(p0):
            raise InputError(
                "p0",
                f"keys {sorted(p0)}",
                f"one number a site: {sorted(named)}",
                "a layer's name misspelt, or a site left out",
            )
        p = np.empty(n)
        for name, _, span in sites(config.model):
            check_range(f"p0[{name!r}]", p0[name], low=0, low_open=True, high_open=True)
            p[span] = p0[name]
        return asarray(p.astype(theta.dtype), theta)
    if hasattr(p0, "shape") and not isinstance(p0, Real):
        check_floats(theta=theta, p0=p0)
        square = p0.ndim == 2 and config.covariance == "dense"
        check_shape("p0", p0, ("n", "n") if square else ("n",), {"n": n})
        check_finite(p0=p0)
        if square:
            check_covariance("p0", p0)
        else:
            check_positive("p0", p0)
        return p0
    check_range("p0", p0, low=0, low_open=True, high_open=True)
    return namespace(theta).full_like(theta, float(p0))


def init(config: LokoConfig, batch: int = 1) -> LokoState:
    """State before the first step: theta from the model, p0, R_0 = r0 I.  [LOKO-1, NOISE-1].

    Parameters
    ----------
    config : LokoConfig
        The choices.
    batch : int
        Samples a step, at least 1; R is (m, m) with m = batch * C.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError("batch", repr(batch), "a whole number >= 1", "an empty batch")
    return init_at(config, pack(config.model), batch)


def init_at(config: LokoConfig, theta: Array, batch: int = 1) -> LokoState:
    """State before the first step, at a mean theta (n,) of the caller's.  [LOKO-1, NOISE-1].

    As :func:`init`, for filters that share a configuration, such as LTE's heads.
    """
    xp = namespace(theta)
    p = _prior(config, theta)
    m = batch * config.model.outputs
    R = None if config.observation == "glm" else config.r0 * xp.eye(m, dtype=theta.dtype)
    if config.covariance == "dense":
        return LokoState(theta=theta, P=xp.diag(p) if p.ndim == 1 else p, R=R)
    return LokoState(theta=theta, p=p, R=R)


def targets(y: Array, z: Array, observation: str) -> Array:
    """Observation as rows (batch, C): labels become one-hot, real rows pass.

    Raises
    ------
    InputError
        If labels are out of range, or rows have another shape than z.
    """
    if not hasattr(y, "ndim"):
        raise InputError("y", type(y).__name__, "an array", "a list or a scalar: wrap it")
    if y.ndim == 1 and observation != "gaussian":
        rows = obs.one_hot(y, z.shape[1], z)
    else:
        rows = y[:, None] if y.ndim == 1 else y
    check_shape("y", rows, ("batch", "C"), {"batch": z.shape[0], "C": z.shape[1]})
    return rows


def loss(z: Array, y: Array, observation: str) -> Array:
    """Mean over the batch of the cross-entropy, or of half the squared error (``gaussian``).

    Parameters
    ----------
    z, y : array (batch, C)
        Outputs and targets.
    observation : str
        The observation model.
    """
    if observation == "gaussian":
        return 0.5 * ((y - z) ** 2).sum(axis=1).mean()
    return -(y * log_softmax_forward(z)[0]).sum(axis=1).mean()


def _check_state(state: LokoState, config: LokoConfig) -> None:
    n = config.model.n
    check_shape("state.theta", state.theta, ("n",), {"n": n})
    if config.covariance == "dense":
        name, cov, shape = "state.P", state.P, ("n", "n")
    else:
        name, cov, shape = "state.p", state.p, ("n",)  # type: ignore[assignment]
    if cov is None:
        raise InputError(
            name,
            "None",
            f"an array for covariance='{config.covariance}'",
            "a state made for the other covariance",
        )
    check_shape(name, cov, shape, {"n": n})
    check_floats(theta=state.theta, **{name: cov})
    check_finite(theta=state.theta, **{name: cov})
    if cov.ndim == 1:
        check_positive(name, cov)
    else:
        check_symmetric(name, cov)


def _check_bounded(z: Array, Z: Array) -> None:
    """Tell a run that diverged from bad input: the model's outputs must not overflow."""
    xp = namespace(z)
    for name, array in (("z", z), ("Z", Z)):
        if not bool(xp.isfinite(array).all()):
            raise NumericalError(
                name,
                None,
                "The filter diverged: its steps left the region where the linearisation holds. "
                "Take a smaller p0 (or alpha).",
            )


def step(state: LokoState, batch: Batch, config: LokoConfig) -> tuple[LokoState, LokoRecord]:
    """One step of LoKO.  [LOKO-1, LOKO-2].

    Time update; outputs and Jacobian at the prior; observation; R refreshed where its timing is
    ``before``; gain, mean and (co)variance; R refreshed where it is ``after``. In ``softmax`` (and
    centred ``logits``) the update is made on the contrast space, since each sample's innovations,
    and the columns of H, sum to 0.  [OBS-5]

    Parameters
    ----------
    state : LokoState
        Untouched.
    batch : Batch
        One sample (online) or several, stacked into one observation.
    config : LokoConfig
        The choices.

    Returns
    -------
    state : LokoState
    record : LokoRecord

    Raises
    ------
    InputError
        If the batch or the state is not as stated; a batch of another size than R's is an error.
    NumericalError
        If a covariance becomes numerically singular; names the step and the eigenvalue.
    """
    try:
        return _step(state, batch, config)
    except NumericalError as error:
        raise error.at_step(state.step) from None


def _step(state: LokoState, batch: Batch, config: LokoConfig) -> tuple[LokoState, LokoRecord]:
    _check_state(state, config)
    z, Z = jacobian(unpack(config.model, state.theta), batch.x)  # (batch, C), (m, n)

    def outputs(theta: Array) -> Array:
        return forward(unpack(config.model, theta), batch.x)[0]

    return _advance(state, config, z, Z, batch.y, outputs)


def advance(
    state: LokoState,
    config: LokoConfig,
    z: Array,
    Z: Array,
    y: Array,
    outputs: Callable[[Array], Array],
) -> tuple[LokoState, LokoRecord]:
    """One step from outputs and Jacobian that the caller has formed.  [LOKO-1, LTE-10].

    Parameters
    ----------
    state, config
        As for :func:`step`; of ``config.model`` only the shapes are read.
    z, Z : array (batch, C), (m, n)
        Outputs and their Jacobian at ``state.theta``.
    y : array
        Labels or rows, as in :class:`Batch`.
    outputs : callable
        theta (n,) -> z (batch, C): the network at another theta; called by ``ema_residual_hph``.
    """
    _check_state(state, config)
    try:
        return _advance(state, config, z, Z, y, outputs)
    except NumericalError as error:
        raise error.at_step(state.step) from None


def _advance(
    state: LokoState,
    config: LokoConfig,
    z: Array,
    Z: Array,
    labels: Array,
    outputs: Callable[[Array], Array],
) -> tuple[LokoState, LokoRecord]:
    theta = state.theta
    prior = state.P if config.covariance == "dense" else state.p
    assert prior is not None
    p_pred = time.update(prior, config.lam, config.q)  # [KAL-1]
    _check_bounded(z, Z)
    y = targets(labels, z, config.observation)
    seen = obs.observe(config.observation, z, Z, y, center=config.center)
    e, H = seen.e, seen.H
    C = z.shape[1]

    new: dense.DenseUpdate | diagonal.DiagonalUpdate
    if config.observation == "glm":
        new = _measure_glm(theta, p_pred, Z, e, seen.yhat.reshape(z.shape), config)
        R = None
        R_used = obs.jacobian_product(
            seen.yhat.reshape(z.shape), namespace(z).eye(e.shape[0], dtype=z.dtype)
        )
    else:
        R = _check_noise(state.R, e, C, config)
        if config.timing == "before":
            R = noise.update(str(config.noise), R, e, _spread(H, p_pred), config.beta)
        R_used = R
        new = _measure(theta, p_pred, H, e, R, C, config)
        if config.timing == "after":
            r, p_seen = e, p_pred
            if config.noise == "ema_residual_hph":
                yhat_post = obs.predict(config.observation, outputs(new.theta))
                r = obs.innovation(config.observation, y, yhat_post).reshape(-1)
                p_seen = _covariance(new)
            R = noise.update(str(config.noise), R, r, _spread(H, p_seen), config.beta)

    posterior = _covariance(new)
    name = "P" if config.covariance == "dense" else "p"
    after = LokoState(theta=new.theta, R=R, step=state.step + 1, **{name: posterior})
    record = LokoRecord(
        p_pred=p_pred,
        z=z,
        loss=number(loss(z, y, config.observation)),
        yhat=seen.yhat,
        e=e,
        H=H,
        R_used=R_used,
        S=new.S,
        K=new.K,
    )
    return after, record


def _covariance(new: dense.DenseUpdate | diagonal.DiagonalUpdate) -> Array:
    return new.P if isinstance(new, dense.DenseUpdate) else new.p


def _spread(H: Array, p: Array) -> Array:
    """H p H' (m, m), p (n,) or (n, n)."""
    if p.ndim == 2:
        return H @ (p @ H.T)
    Hs = H * namespace(p).sqrt(p)
    return Hs @ Hs.T


def _on_contrasts(config: LokoConfig) -> bool:
    """Tell whether both e and H sum to 0 over each sample's classes.  [OBS-3, OBS-5]."""
    return config.observation == "softmax" or config.center


def _check_noise(R: Array | None, e: Array, C: int, config: LokoConfig) -> Array:
    if R is None:
        raise InputError(
            "state.R",
            "None",
            f"an array for observation='{config.observation}'",
            "a state made for observation='glm'",
        )
    m = e.shape[0]
    if tuple(R.shape) != (m, m):
        raise InputError(
            "state.R",
            f"shape {tuple(R.shape)}",
            f"({m}, {m}) = (batch * C, batch * C)",
            "a batch of another size than R's; drop the last, smaller one or call "
            "init(config, batch=...) anew",
        )
    check_floats(e=e, R=R)
    check_finite(R=R)
    check_symmetric("R", R)
    if _on_contrasts(config):
        obs.check_ones(R, C)
    return R


def _measure(
    theta: Array, p: Array, H: Array, e: Array, R: Array, C: int, config: LokoConfig
) -> dense.DenseUpdate | diagonal.DiagonalUpdate:
    if not _on_contrasts(config):
        return _update(theta, p, H, e, R, config)
    # 1'e = 0 and 1'H = 0 in each sample: work on the contrasts, record in class coordinates
    e_c, H_c = obs.to_contrast(e, C), obs.to_contrast(H, C)
    R_c = obs.to_contrast(obs.to_contrast(R, C).T, C)
    new = _update(theta, p, H_c, e_c, R_c, config)
    K = obs.from_contrast(new.K.T, C).T  # (n, m)
    S = _spread(H, p) + R
    if isinstance(new, dense.DenseUpdate):
        return dense.DenseUpdate(S=S, K=K, theta=new.theta, P=new.P)
    return diagonal.DiagonalUpdate(S=S, K=K, theta=new.theta, p=new.p)


def _update(
    theta: Array, p: Array, H: Array, e: Array, R: Array, config: LokoConfig
) -> dense.DenseUpdate | diagonal.DiagonalUpdate:
    if config.covariance == "dense":
        return dense._update(theta, p, H, e, R, config.form)
    return diagonal._update(theta, p, H, e, R, config.diagonal)


def _measure_glm(
    theta: Array, p: Array, Z: Array, e: Array, yhat: Array, config: LokoConfig
) -> dense.DenseUpdate | diagonal.DiagonalUpdate:
    if config.covariance == "dense":
        return dense._glm_update(theta, p, Z, e, yhat, config.form)
    return diagonal._glm_update(theta, p, Z, e, yhat, config.diagonal)


def run(
    state: LokoState, batches: Iterable[Batch], config: LokoConfig
) -> tuple[LokoState, list[LokoRecord]]:
    """Take a step for each batch in turn.  [LOKO-1].

    Parameters
    ----------
    state : LokoState
        The first.
    batches : iterable of Batch
        In order.
    config : LokoConfig
        The choices.

    Returns
    -------
    state : LokoState
        After the last batch.
    records : list of LokoRecord
        One a batch.
    """
    records: list[LokoRecord] = []
    for batch in batches:
        state, record = step(state, batch, config)
        records.append(record)
    return state, records
