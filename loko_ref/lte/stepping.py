"""LTE's step: every head's own batch, gradient or filter, and update.

Shapes: x (batch, i) a whole batch, or (heads, batch, i) one per head, or what else the first layer
takes in place of i: (t, d), images, ids; theta (own heads, n).

The state records which heads are held here; no head's numbers depend on it.  [LTE-9]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from loko_ref import loko, optimizers
from loko_ref.arrays import Array, namespace
from loko_ref.checks.signatures import takes
from loko_ref.checks.values import check_array, check_finite, check_floats, check_shape
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman.observation import one_hot
from loko_ref.lte import heads as net
from loko_ref.lte.config import Loko, LteConfig
from loko_ref.lte.state import LteState, heads_of
from loko_ref.lte.team import ALONE, Team
from loko_ref.network.layers.embedding import channels
from loko_ref.network.spec import check_input, reads_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRecord:
    """What happened in one step.

    Attributes
    ----------
    z : array (own heads, batch, C); in mhlora (batch, C)
        Outputs.
    loss : array (own heads,); in mhlora (1,)
        Each head's own mean loss before the step.
    gradient : array (own heads, n) or None
        None with LoKO.
    """

    z: Array
    loss: Array
    gradient: Array | None = None


def shard_batch(config: LteConfig, state: LteState, x: Array, y: Array) -> tuple[Array, Array]:
    """Divide a batch: a contiguous chunk for each head, or the whole; targets one-hot.  [LTE-1].

    Parameters
    ----------
    x : array (batch, ...) or (heads, batch, ...)
        One batch for all, to be dealt; or one per head, as a recorded run may have it. Each sample
        as the first layer takes it: features (i,), tokens (t, d), an image, ids of whole numbers.
    y : array (batch,) of int, (batch, C), or with a leading axis of heads
        Labels, one-hot rows, or real targets.

    Returns
    -------
    x, y : arrays (own heads, batch, ...); in mhlora (batch, ...)

    Raises
    ------
    InputError
        If the batch does not divide by the heads, or a shape is not as stated.
    """
    xp = namespace(x)
    each = _one_a_head(config, state, x)
    lead = x.shape[:2] if each else x.shape[:1]
    C = config.outputs
    if y.dtype.kind in "iu" and config.loss == "cross_entropy":
        check_shape("y", y, lead)
        y = one_hot(y.reshape(-1), C, state.theta).reshape(*lead, C)
    else:
        check_shape("y", y, (*lead, C))
        check_floats(theta=state.theta, y=y)
        check_finite(y=y)
    own = state.own
    if config.mode == "mhlora":
        if each:
            raise InputError(
                "x", f"shape {tuple(x.shape)}", "(batch, ...)", "mhlora: all heads see one batch"
            )
        return x, y
    if each:
        return x[own], y[own]
    if config.data == "replicated":
        count = own.stop - own.start
        return xp.broadcast_to(x, (count, *x.shape)), xp.broadcast_to(y, (count, *y.shape))
    if x.shape[0] % config.heads:
        raise InputError(
            "batch",
            x.shape[0],
            f"a multiple of heads = {config.heads}",
            "data='chunks' gives every head an equal share; take another batch or "
            "data='replicated'",
        )
    x = x.reshape(config.heads, -1, *x.shape[1:])
    return x[own], y.reshape(config.heads, -1, C)[own]


def _one_a_head(config: LteConfig, state: LteState, x: Array) -> bool:
    """Check that the first layer can take a batch; return whether it has an axis of heads."""
    first = config.spec[0]
    if first["kind"] == "patchify":
        each = x.ndim in (3, 5)  # flat, or channels, h, w
    elif first["kind"] == "embedding":
        each = x.ndim == 3 + (len(channels(first)) > 1)
    else:
        each = x.ndim == 3 + reads_tokens(config.spec)
    if each and x.shape[0] != config.heads:
        check_shape("x", x, (config.heads, "batch", *(f"i{j}" for j in range(x.ndim - 2))))
    flat = x.reshape(-1, *x.shape[2:]) if each else x
    check_input(config.spec, state.theta, flat)
    if flat.shape[0] == 0:
        raise InputError("x", "an empty batch", "at least one sample", "a loader at its end")
    if x.dtype.kind not in "iu":
        check_finite(x=x)
    return each


@takes(config=LteConfig, state=LteState)
def step(
    config: LteConfig,
    state: LteState,
    x: Array,
    y: Array,
    team: Team = ALONE,
    *,
    lr: float | None = None,
) -> tuple[LteState, StepRecord]:
    """One optimizer step of every head held here.  [LTE-2, LTE-3, LTE-8, LTE-10].

    Parameters
    ----------
    config, state
        The choices; untouched.
    x, y : arrays
        A batch, as :func:`shard_batch` takes it.
    team : Team
        In ``mhlora`` the factors travel after each step.
    lr : float, optional
        Learning rate of this step, in place of the optimizer's: a schedule. Not with LoKO.

    Returns
    -------
    state : LteState
    record : StepRecord

    Raises
    ------
    InputError
        If the batch is not as stated.
    NumericalError
        If a gradient is no longer finite, or a filter's matrix is singular; names the step.
    """
    for name, array in (("x", x), ("y", y)):
        check_array(name, array)
    x, y = shard_batch(config, state, x, y)
    if isinstance(config.optimizer, Loko):
        if lr is not None:
            raise InputError("lr", lr, "None with LoKO", "LoKO has no learning rate")
        after, record = _filter_step(config, state, x, y)
    else:
        method = config.optimizer if lr is None else replace(config.optimizer, lr=lr)
        after, record = _gradient_step(config, state, x, y, method)
    if config.mode == "mhlora":
        after = replace(after, merged=team.gather(after.theta, config.heads))
    return after, record


def _gradient_step(
    config: LteConfig, state: LteState, x: Array, y: Array, method: optimizers.OptimizerConfig
) -> tuple[LteState, StepRecord]:
    xp = namespace(state.theta)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused just below
        z, loss, g = net.gradient(config, heads_of(config, state), x, y)
    if config.mode == "mhlora":
        g = g[state.own]
    if not (bool(xp.isfinite(g).all()) and bool(xp.isfinite(loss).all())):
        raise NumericalError(
            "gradient", None, "The run diverged: take a smaller learning rate.", state.step
        )
    theta, slots = _descend(state, g, method)
    after = replace(
        state,
        theta=theta,
        slots=slots,
        step=state.step + 1,
        optimizer_step=state.optimizer_step + 1,
    )
    return after, StepRecord(z=z, loss=loss, gradient=g)


def _descend(
    state: LteState, g: Array, config: optimizers.OptimizerConfig
) -> tuple[Array, dict[str, Array]]:
    """Step the optimizer over all rows as one; g is finite."""
    before = optimizers.OptimizerState(
        theta=state.theta.reshape(-1),
        slots={k: v.reshape(-1) for k, v in state.slots.items()},
        step=state.optimizer_step,
    )
    after = optimizers.step_unchecked(before, g.reshape(-1), config)  # [OPT-1, OPT-2, OPT-3]
    shape = state.theta.shape
    return after.theta.reshape(shape), {k: v.reshape(shape) for k, v in after.slots.items()}


def _filter_step(
    config: LteConfig, state: LteState, x: Array, y: Array
) -> tuple[LteState, StepRecord]:
    """LoKO in each head: its own linearisation, its own p and R.  [LTE-10]."""
    xp = namespace(state.theta)
    view = heads_of(config, state)
    with np.errstate(over="ignore", invalid="ignore"):  # refused by the filter
        z, Z = net.jacobian(config, view, x)
    loss, _ = net.losses(config, z, y)
    filters = config.filter(state.theta.dtype)
    shared = config.mode == "mhlora"
    theta, R = [], []
    kept: dict[str, list[Array]] = {name: [] for name in state.slots}
    for row in range(state.theta.shape[0]):
        head = state.first + row if shared else row

        def outputs(moved: Array, row: int = row, head: int = head) -> Array:
            rows = view.theta.copy()
            rows[head] = moved
            after_z, _ = net.forward(config, replace(view, theta=rows), x)
            return after_z if shared else after_z[row]

        own = loko.LokoState(
            theta=state.theta[row],
            R=None if state.R is None else state.R[row],
            step=state.step,
            **{name: rows[row] for name, rows in state.slots.items()},
        )
        new, _ = loko.step_from_jacobian(
            own, filters, z if shared else z[row], Z[head], y if shared else y[row], outputs
        )
        theta.append(new.theta)
        for name, found in kept.items():
            found.append(getattr(new, name))
        R.append(new.R)
    moved = xp.stack(theta)
    if not bool(xp.isfinite(moved).all()):
        raise NumericalError("theta", None, "The filter diverged: take a smaller p0.", state.step)
    after = replace(
        state,
        theta=moved,
        slots={name: xp.stack(found) for name, found in kept.items()},
        R=None if state.R is None else xp.stack(R),
        step=state.step + 1,
        optimizer_step=state.optimizer_step + 1,
    )
    return after, StepRecord(z=z, loss=loss)
