"""LoKO's step: time update, observation, measurement update, noise estimate.

Shapes: theta, p (n,); P (n, n); z (batch, C); yhat, e (m,); Z, H (m, n); R, S (m, m); K (n, m);
m = batch * C, stacked sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from loko_ref.arrays import Array, to_scalar
from loko_ref.arrays.special import log_softmax_forward
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_choice, check_floats, check_shape
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman import noise, time
from loko_ref.kalman import observation as obs
from loko_ref.kalman.lowrank import PRECISIONS, Precision
from loko_ref.loko.config import LokoConfig
from loko_ref.loko.measurement import (
    Cov,
    Update,
    check_windup,
    covariance,
    measure,
    measure_glm,
    predicted_covariance,
)
from loko_ref.loko.state import (
    Batch,
    LokoRecord,
    LokoState,
    check_noise,
    check_state,
    groups_for,
)
from loko_ref.network.jacobian import jacobian_unchecked
from loko_ref.network.model import check_inputs, forward_unchecked, unpack_unchecked


def targets(y: Array, z: Array, observation: obs.ObservationModel) -> Array:
    """Return an observation as rows (batch, C): labels become one-hot, real rows pass.

    Parameters
    ----------
    y : array (batch,) or (batch, C)
        Labels, or rows.
    z : array (batch, C)
        The network's outputs: sizes, library and dtype.
    observation : {"gaussian", "softmax", "logits", "glm"}
        The observation model.

    Raises
    ------
    InputError
        If labels are out of range, or rows have another shape than z, or are no distribution where
        one is needed.
    """
    check_floats(z=z)
    check_shape("z", z, ("batch", "C"))
    check_choice("observation", observation, obs.OBSERVATIONS)
    return obs.target_rows(observation, y, z.shape[0], z.shape[1], z)


def loss(z: Array, y: Array, observation: obs.ObservationModel) -> Array:
    """Mean over the batch of the cross-entropy, or of half the squared error (``gaussian``).

    Parameters
    ----------
    z, y : array (batch, C)
        Outputs and targets.
    observation : {"gaussian", "softmax", "logits", "glm"}
        The observation model.
    """
    check_floats(z=z, y=y)
    check_choice("observation", observation, obs.OBSERVATIONS)
    check_shape("z", z, ("batch", "C"))
    check_shape("y", y, tuple(z.shape))
    return loss_unchecked(z, y, observation)


def loss_unchecked(z: Array, y: Array, observation: obs.ObservationModel) -> Array:
    """Compute :func:`loss` of checked arguments."""
    if observation == "gaussian":
        return 0.5 * ((y - z) ** 2).sum(axis=1).mean()
    return -(y * log_softmax_forward(z)[0]).sum(axis=1).mean()


def _check_bounded(xp: Any, **arrays: Array) -> None:
    """Raise if a run diverged: outputs, theta and R may not overflow."""
    for name, array in arrays.items():
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
        If a covariance becomes numerically singular or outgrows the dtype, theta or the outputs
        overflow, or a `glm` filter that wound up is certain and wrong; names the step and the
        eigenvalue.
    """
    if type(state) is not LokoState or type(batch) is not Batch or type(config) is not LokoConfig:
        _check_types(state, batch, config)
    model, xp = config.model, check_state(state, config)
    check_floats(weights=next(iter(model.weights.values())), theta=state.theta)
    check_inputs(model, batch.x)
    size, C = batch.x.shape[0], model.outputs
    y = obs.target_rows(config.observation, batch.y, size, C, state.theta)
    check_noise(state, size * C, config)

    def outputs(theta: Array) -> Array:
        return forward_unchecked(unpack_unchecked(model, theta), batch.x)[0]

    try:
        z, Z = jacobian_unchecked(xp, unpack_unchecked(model, state.theta), batch.x)
        return _step(xp, state, config, z, Z, y, outputs)
    except NumericalError as error:
        raise error.at_step(state.step) from None


def _check_types(state: object, batch: object, config: object) -> None:
    """Raise where :func:`step` is given its arguments in another order, or other objects."""
    order = "the arguments in another order: step(state, batch, config)"
    check_type("state", state, LokoState, order)
    check_type("batch", batch, Batch, order)
    check_type("config", config, LokoConfig, order)


def step_from_jacobian(
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
    order = "the arguments in another order: step_from_jacobian(state, config, z, Z, y, outputs)"
    check_type("state", state, LokoState, order)
    check_type("config", config, LokoConfig, order)
    check_floats(z=z, Z=Z)
    check_shape("z", z, ("batch", "C"), {"C": config.model.outputs})
    m = z.shape[0] * z.shape[1]
    check_shape("Z", Z, ("m", "n"), {"m": m, "n": config.model.n})
    if not callable(outputs):
        raise InputError("outputs", f"a {type(outputs).__name__}", "a function theta -> z", order)
    xp = check_state(state, config)
    check_floats(theta=state.theta, z=z)
    rows = obs.target_rows(config.observation, y, z.shape[0], z.shape[1], z)
    check_noise(state, m, config)
    try:
        return _step(xp, state, config, z, Z, rows, outputs)
    except NumericalError as error:
        raise error.at_step(state.step) from None


def _step(
    xp: Any,
    state: LokoState,
    config: LokoConfig,
    z: Array,
    Z: Array,
    y: Array,
    outputs: Callable[[Array], Array],
) -> tuple[LokoState, LokoRecord]:
    """Compute a step of checked arguments; y are rows (batch, C)."""
    theta = state.theta
    p_pred: Cov
    if config.covariance in PRECISIONS:
        assert state.U is not None
        assert state.W is not None
        precision = Precision(U=state.U, W=state.W, groups=groups_for(config))
        name, p_pred = "U", precision.predict(config.lam, config.q)  # [KAL-9]
        seen_p = p_pred.variances()
    else:
        prior = state.P if config.covariance == "dense" else state.p
        assert prior is not None
        name = "P" if config.covariance == "dense" else "p"
        p_pred = seen_p = time.update_unchecked(xp, prior, config.lam, config.q)  # [KAL-1]
    if not bool(xp.isfinite(seen_p).all()):
        raise NumericalError(
            name,
            None,
            f"{name} outgrew the dtype: with lam < 1 it grows by 1 / lam a step in every direction "
            "that nothing observes. Take process noise q in place of lam, or lam nearer to 1.",
        )
    _check_bounded(xp, z=z, Z=Z)
    seen = obs.observe_unchecked(xp, config.observation, z, Z, y, config.center)
    e, H = seen.e, seen.H

    new: Update
    if config.observation == "glm":
        yhat = seen.yhat.reshape(z.shape)
        if config.solve == "linear":
            check_windup(yhat, e, p_pred, theta, config)
        new = measure_glm(xp, theta, p_pred, Z, z, y, e, yhat, config)
        R = None
        R_used = obs.jacobian_product(xp, yhat, xp.eye(e.shape[0], dtype=z.dtype))
    else:
        R, estimator = state.R, config.noise
        assert R is not None
        assert estimator is not None
        if config.timing == "before":
            HpH = predicted_covariance(xp, H, p_pred)
            R = noise.update_unchecked(estimator, R, e, HpH, config.beta)
        R_used = R
        new = measure(xp, theta, p_pred, H, e, R, z.shape[1], config)
        if config.timing == "after":
            r = e
            p_seen: Cov = p_pred
            if estimator == "ema_residual_hph":
                _check_bounded(xp, theta=new.theta)
                z_post = outputs(new.theta)
                _check_bounded(xp, z=z_post)
                yhat_post = obs.predict_unchecked(config.observation, z_post)
                r = obs.innovation_unchecked(xp, config.observation, y, yhat_post).reshape(-1)
                p_seen = covariance(new)
            HpH = predicted_covariance(xp, H, p_seen)
            R = noise.update_unchecked(estimator, R, r, HpH, config.beta)

    _check_bounded(xp, theta=new.theta, **({} if R is None else {"R": R}))
    kept = covariance(new)
    arrays = {"U": kept.U, "W": kept.W} if isinstance(kept, Precision) else {name: kept}
    after = LokoState(theta=new.theta, R=R, step=state.step + 1, **arrays)
    record = LokoRecord(
        p_pred=seen_p,
        z=z,
        loss=to_scalar(loss_unchecked(z, y, config.observation)),
        yhat=seen.yhat,
        e=e,
        H=H,
        R_used=R_used,
        S=new.S,
        K=new.K,
        v=new.v,
    )
    return after, record


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
    if isinstance(batches, Batch | LokoState | LokoConfig) or not isinstance(batches, Iterable):
        hint = (
            "one batch in place of a list of them, or run(state, batches, config) in another order"
        )
        raise InputError("batches", f"a {type(batches).__name__}", "an iterable of Batch", hint)
    records: list[LokoRecord] = []
    for batch in batches:
        state, record = step(state, batch, config)
        records.append(record)
    return state, records
