"""What LoKO carries from step to step, what it is given, and what it records.

Shapes: theta, p (n,); P (n, n); z (batch, C); yhat, e (m,); Z, H (m, n); R, S (m, m); K (n, m);
m = batch * C, stacked sample by sample.
"""

from __future__ import annotations

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
from loko_ref.errors import InputError
from loko_ref.kalman.simplex import check_ones
from loko_ref.loko.config import LokoConfig
from loko_ref.network.model import pack, sites

__all__ = [
    "Batch",
    "LokoRecord",
    "LokoState",
    "check_noise",
    "check_state",
    "init",
    "init_at",
    "on_contrasts",
    "prior",
]


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
    dense = config.covariance == "dense"
    check_memory("batch", batch, 3 * m * m + 2 * m * n, theta.dtype)  # R, S and its factor; H, K
    if dense:
        check_memory("covariance", f"'dense' with n = {n}", 3 * n * n, theta.dtype)
    p = prior(config, theta)
    R = None if config.observation == "glm" else config.r0 * xp.eye(m, dtype=theta.dtype)
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
