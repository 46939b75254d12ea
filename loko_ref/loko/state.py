"""What LoKO carries from step to step, what it is given, and what it records.

Shapes: theta, p (n,); P (n, n); z (batch, C); yhat, e (m,); Z, H (m, n); R, S (m, m); K (n, m);
m = batch * C, stacked sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks.signatures import check_type, takes
from loko_ref.checks.values import (
    check_array,
    check_covariance,
    check_finite,
    check_floats,
    check_memory,
    check_positive,
    check_range,
    check_shape,
    check_symmetric,
    check_whole,
)
from loko_ref.errors import InputError, shown
from loko_ref.kalman.lowrank import PRECISIONS, Group, Precision, groups_of
from loko_ref.kalman.simplex import check_ones
from loko_ref.loko.config import LokoConfig
from loko_ref.network.lora import FACTORS
from loko_ref.network.model import Model, pack


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
    U, W : array or None
        With ``lowrank`` and ``block`` the precision ``B + W W'``: B's diagonal (n,), or its blocks'
        entries one after the other; W (n, L).  [KAL-9, KAL-10]
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
    U: Array | None = None
    W: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LokoRecord:
    """What happened in one step, in dataflow order.

    Attributes
    ----------
    p_pred : array (n,) or (n, n)
        Variances (or covariance) after the time update; with ``lowrank`` and ``block`` its
        diagonal.
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
    v : array (m,) or None
        With ``solve="implicit"``, the innovation at the posterior mean.
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
    v: Array | None = None


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


def prior(config: LokoConfig, theta: Array) -> Array:
    """p0 as an array (n,), or (n, n) where it was given so.  [LOKO-3]."""
    p0: Any = config.p0
    n = theta.shape[0]
    if isinstance(p0, Mapping):
        return asarray(_by_name(p0, config.model).astype(theta.dtype), theta)
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


def _by_name(p0: Mapping[str, Any], model: Model) -> Array:
    """Variances (n,) by the keys ``A``, ``B``, ``SITE``, ``SITE.A``; the last that fits.  [LOKO-3].

    bA follows A, and bB follows B; the trainables of a layer without LoRA follow its name.
    """
    fit: dict[str, tuple[str, ...]] = {}  # trainable -> keys that fit it
    for name in model.trainable:
        layer, part = name.rsplit(".", 1)
        factor = part[-1:] if part in FACTORS else ""
        fit[name] = (factor, layer, f"{layer}.{factor}") if factor else (layer,)
    layers = {name.rsplit(".", 1)[0] for name in model.trainable}
    factors = {key for keys in fit.values() if len(keys) == 3 for key in (keys[0], keys[2])}
    for key in p0:
        if key in layers and key in factors:
            raise InputError(
                "p0",
                f"the key {shown(key)}",
                f"another name of the layer {shown(key)}",
                f"the key means every factor {key[-1]} of a site, or the layer: give an array (n,)",
            )
    covered = all(set(keys) & set(p0) for keys in fit.values())
    if not covered or not set(p0) <= layers | factors:
        raise InputError(
            "p0",
            f"keys {sorted(p0)}",
            f"one number a site: {sorted(layers)}, or a factor: A, B, or SITE.A, SITE.B",
            "a layer's name misspelt, or a site or a factor left out",
        )
    for key, value in p0.items():
        check_range(f"p0[{key!r}]", value, low=0, low_open=True, high_open=True)
    p, at = np.empty(model.n), 0
    for name, keys in fit.items():
        stop = at + math.prod(model.weights[name].shape)
        p[at:stop] = p0[next(key for key in reversed(keys) if key in p0)]
        at = stop
    return p


def init(config: LokoConfig, batch: int = 1) -> LokoState:
    """State before the first step: theta from the model, p0, R_0 = r0 I.  [LOKO-1, NOISE-1].

    Parameters
    ----------
    config : LokoConfig
        The choices.
    batch : int
        Samples a step, at least 1; R is (m, m) with m = batch * C.
    """
    check_type("config", config, LokoConfig, "arguments in another order: init(config, batch)")
    check_whole("batch", batch)
    return init_at(config, pack(config.model), batch)


@takes(config=LokoConfig)
def init_at(config: LokoConfig, theta: Array, batch: int = 1) -> LokoState:
    """State before the first step, at a mean theta (n,) of the caller's.  [LOKO-1, NOISE-1].

    As :func:`init`, for filters that share a configuration, such as LTE's heads.
    """
    check_floats(theta=theta)
    check_shape("theta", theta, ("n",), {"n": config.model.n})
    check_whole("batch", batch)
    xp = namespace(theta)
    m, n = batch * config.model.outputs, theta.shape[0]
    groups = groups_for(config)
    dense = config.covariance == "dense"
    check_memory("batch", batch, 3 * m * m + 2 * m * n, theta.dtype)  # R, S and its factor; H, K
    if dense:
        check_memory("covariance", f"'dense' with n = {n}", 3 * n * n, theta.dtype)
    if config.covariance in PRECISIONS:
        blocks = sum(g.units * g.size**2 for g in groups) or n
        wide = 3 * (blocks + n * (config.kept + m))  # with what an update makes of them
        check_memory("covariance", f"'{config.covariance}', {blocks} entries", wide, theta.dtype)
    p = prior(config, theta)
    R = None if config.observation == "glm" else config.r0 * xp.eye(m, dtype=theta.dtype)
    if config.covariance in PRECISIONS:
        made = Precision.prior(p, config.kept, groups)
        return LokoState(theta=theta, U=made.U, W=made.W, R=R)
    if dense:
        return LokoState(theta=theta, P=xp.diag(p) if p.ndim == 1 else p, R=R)
    return LokoState(theta=theta, p=p, R=R)


def check_state(state: LokoState, config: LokoConfig) -> Any:
    """Return the namespace of a state's arrays, checked to belong to the configuration.

    Raises
    ------
    InputError
        If an array is missing, misshapen, of another library or dtype, or holds impossible values.
    """
    n = config.model.n
    check_shape("state.theta", state.theta, ("n",), {"n": n})
    if config.covariance in PRECISIONS:
        return _check_precision(state, config)
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
    return namespace(state.theta)


def _check_precision(state: LokoState, config: LokoConfig) -> Any:
    n, L, groups = config.model.n, config.kept, groups_for(config)
    entries = sum(g.units * g.size**2 for g in groups) or n
    for name, array, shape in (("U", state.U, (entries,)), ("W", state.W, (n, L))):
        if array is None or tuple(array.shape) != shape:
            got = None if array is None else f"shape {tuple(array.shape)}"
            cause = "a state made for another covariance, or another number of columns"
            raise InputError(f"state.{name}", got, f"an array {shape}", cause)
        check_floats(theta=state.theta, **{f"state.{name}": array})
        check_finite(**{f"state.{name}": array})
    assert state.U is not None
    if not groups:
        check_positive("state.U", state.U)
    return namespace(state.theta)


def groups_for(config: LokoConfig) -> tuple[Group, ...]:
    """List the blocks of a configuration's precision; none unless ``block``.  [KAL-10]."""
    if config.covariance != "block":
        return ()
    model = config.model
    shapes = [(k.rsplit(".", 1)[1], tuple(model.weights[k].shape)) for k in model.trainable]
    return groups_of(shapes, config.blocks)


def on_contrasts(config: LokoConfig) -> bool:
    """Return whether both e and H sum to 0 over each sample's classes.  [OBS-3, OBS-5]."""
    return config.observation == "softmax" or config.center


def check_noise(state: LokoState, m: int, config: LokoConfig) -> None:
    """Raise if a state's R (m, m) is missing, misshapen, or coupled with the ones.  [OBS-5]."""
    if config.observation == "glm":
        return
    R = state.R
    if R is None:
        raise InputError(
            "state.R",
            "None",
            f"an array for observation='{config.observation}'",
            "a state made for observation='glm'",
        )
    check_array("state.R", R)
    if tuple(R.shape) != (m, m):
        raise InputError(
            "state.R",
            f"shape {tuple(R.shape)}",
            f"({m}, {m}) = (batch * C, batch * C)",
            "a batch of another size than R's; drop the last, smaller one or call "
            "init(config, batch=...) anew",
        )
    check_floats(theta=state.theta, R=R)
    check_finite(R=R)
    check_symmetric("R", R)
    if on_contrasts(config):
        check_ones(R, config.model.outputs)
