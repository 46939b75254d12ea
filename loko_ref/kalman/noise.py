"""Estimators of the observation noise R, and when they may be used.

Shapes: R, HpH (m, m); e (m,).

==================  ===========================================================  ==============
estimator           R                                                            timing
==================  ===========================================================  ==============
fixed               R                                                            (none)
ema_innovation      beta R + (1 - beta) e e'                                     before, after
ema_innovation_hph  beta R + (1 - beta)(e e' + H p H')                           before, after
ema_residual_hph    the same, e the residual y - h(theta+), p the posterior      after
glm                 J, the covariance of a one-hot y given yhat                  before
==================  ===========================================================  ==============

``before``: the refreshed R enters this step's S; ``after``: the next step's.  [NOISE-5]
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from loko_ref.arrays import Array, scalar
from loko_ref.checks.values import (
    check_choice,
    check_finite,
    check_floats,
    check_range,
    check_shape,
    check_some,
    check_symmetric,
)
from loko_ref.errors import InputError
from loko_ref.kalman.observation import OBSERVATIONS, ObservationModel

__all__ = [
    "ESTIMATED",
    "ESTIMATORS",
    "TIMINGS",
    "EstimatedNoise",
    "NoiseEstimator",
    "Timing",
    "check_combination",
    "combinations",
    "update",
    "update_unchecked",
]

EstimatedNoise: TypeAlias = Literal[
    "fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph"
]
NoiseEstimator: TypeAlias = Literal[EstimatedNoise, "glm"]
Timing: TypeAlias = Literal["before", "after"]

ESTIMATED: tuple[EstimatedNoise, ...] = get_args(EstimatedNoise)
"""The estimators that keep an R of their own from step to step."""
ESTIMATORS: tuple[NoiseEstimator, ...] = get_args(NoiseEstimator)
TIMINGS: tuple[Timing, ...] = get_args(Timing)


def combinations() -> list[tuple[ObservationModel, NoiseEstimator, Timing]]:
    """Every valid (observation, estimator, timing).  [NOISE-7].

    ``glm`` observes with its own R and no other; ``fixed`` and ``glm`` have one timing, under
    which nothing changes; a residual is known only after the gain.

    Examples
    --------
    >>> ("glm", "glm", "before") in combinations()
    True
    >>> ("softmax", "ema_residual_hph", "before") in combinations()
    False
    """
    valid = []
    for observation in OBSERVATIONS:
        for noise in ESTIMATORS:
            if (noise == "glm") != (observation == "glm"):
                continue
            for timing in TIMINGS:
                if noise == "ema_residual_hph" and timing == "before":
                    continue
                if noise in ("fixed", "glm") and timing == "after":
                    continue
                valid.append((observation, noise, timing))
    return valid


def check_combination(observation: str, noise: str, timing: str) -> None:
    """Raise if observation, estimator and timing do not belong together.  [NOISE-7]."""
    check_choice("observation", observation, OBSERVATIONS)
    check_choice("noise", noise, ESTIMATORS)
    check_choice("timing", timing, TIMINGS)
    if (observation, noise, timing) in combinations():
        return
    got = f"observation='{observation}', noise='{noise}', timing='{timing}'"
    if (noise == "glm") != (observation == "glm"):
        raise InputError(
            "noise",
            got,
            "noise='glm' with observation='glm', and only there",
            "the GLM's R is Cov(y | yhat); no estimate of another kind belongs to it",
        )
    if noise == "ema_residual_hph":
        raise InputError(
            "timing", got, "timing='after'", "the residual y - h(theta+) exists only after the gain"
        )
    raise InputError("timing", got, "timing='before'", f"'{noise}' is not refreshed by a step")


def update(noise: EstimatedNoise, R: Array, e: Array, HpH: Array, beta: float) -> Array:
    """Refresh the estimate of R.  [NOISE-1, NOISE-2, NOISE-3, NOISE-4].

    Parameters
    ----------
    noise : {"fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph"}
        The estimator.
    R : array (m, m)
        The estimate so far.
    e : array (m,)
        Innovation y - yhat at the prior; for ``ema_residual_hph`` the residual y - h(theta+).
    HpH : array (m, m)
        H p H' with the prior p; for ``ema_residual_hph`` with the posterior p. Not read by
        ``fixed`` and ``ema_innovation``.
    beta : float
        Weight of the past, 0 <= beta < 1.

    Returns
    -------
    array (m, m)

    Raises
    ------
    InputError
        If the name is unknown, beta is out of range, m differs from R's, or R or an HpH that is
        read is not symmetric.
    """
    check_choice("noise", noise, ESTIMATED)
    check_range("beta", beta, low=0, high=1, high_open=True)
    check_floats(R=R, e=e, HpH=HpH)
    check_shape("e", e, ("m",))
    check_some("e", e, "output")
    m = e.shape[0]
    for name, array in (("R", R), ("HpH", HpH)):
        check_shape(name, array, ("m", "m"), {"m": m})
    check_finite(R=R, e=e, HpH=HpH)
    check_symmetric("R", R)
    if noise.endswith("_hph"):
        check_symmetric("HpH", HpH)
    return update_unchecked(noise, R, e, HpH, float(beta))  # a NumPy float64 would widen float32


def update_unchecked(noise: NoiseEstimator, R: Array, e: Array, HpH: Array, beta: float) -> Array:
    """Compute :func:`update` of checked arguments."""
    if noise == "fixed":
        return R
    sample = e[:, None] * e[None, :]  # (m, m)
    if noise != "ema_innovation":
        sample = sample + HpH
    return beta * R + (1 - scalar(beta, R)) * sample
