"""Cases of the Kalman updates, observation models, noise estimators and baselines.

Shapes as in ``operations``; C classes, batch samples, m = batch * C.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.cases.registry import Draw, define

__all__: list[str] = []

Inputs = dict[str, Any]


def _hard(dtype: str) -> float:
    """Return a condition number that leaves half of the digits: 1e8 in float64, 1e3 in float32."""
    return 1e8 if dtype == "float64" else 1e3


# ------------------------------------------------------- kalman.diagonal_update


def _diagonal(draw: Draw, n: int, m: int, condition: float = 10.0) -> Inputs:
    return {
        "theta": draw(n),
        "p": draw.positive(n),
        "H": draw(m, n),
        "e": draw(m),
        "R": draw.spd(m, condition),
    }


_D = "kalman.diagonal_update"


def _tiny_diagonal(draw: Draw, dtype: str) -> Inputs:
    return {"theta": [1.0, -1.0], "p": [0.5, 2.0], "H": [[1.0, 2.0]], "e": [3.0], "R": [[0.5]]}


define(_D, "tiny", "THETA-SIGN P-KEPT")(_tiny_diagonal)
define(_D, "tiny-variational", "P-DECOUPLED", diagonal="variational")(_tiny_diagonal)


_VARIATIONAL = {"diagonal": "variational"}
_BY_SIZE: tuple[tuple[str, int, int, dict[str, Any], str], ...] = (
    ("random", 12, 3, {},
     "P-VARIATIONAL GAIN-NO-P P-NO-S P-JOSEPH-NO-R THETA-POSTERIOR-P THETA-POSTERIOR-S"),
    ("random-variational", 12, 3, _VARIATIONAL, "P-DECOUPLED GAIN-POSTERIOR-R"),
    ("wide", 60, 6, {}, "SINGLE HALF"),
    ("one-output", 7, 1, {}, "S-NO-R THETA-LEARNING-RATE"),
    ("more-outputs", 4, 7, {}, "OUTPUTS-ONE-BY-ONE GAIN-S-DIAGONAL"),
)  # fmt: skip
for _name, _n, _m, _options, _covers in _BY_SIZE:

    @define(_D, _name, _covers, **_options)
    def _(draw: Draw, dtype: str, n: int = _n, m: int = _m) -> Inputs:
        return _diagonal(draw, n, m)


@define(_D, "ill-conditioned-S", "S-JITTER R-JITTER")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 12, 4, _hard(dtype))
    x["H"] = x["H"] * _hard(dtype) ** -0.5
    return x


@define(_D, "nearly-singular-R", "R-JITTER GAIN-POSTERIOR-R", diagonal="variational")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 12, 4, _hard(dtype))


@define(_D, "high-leverage", "P-CEILING SINGLE")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 10, 2)
    x["p"][0] = 1e4 if dtype == "float64" else 1e2
    return x


def _spread(draw: Draw, dtype: str) -> Inputs:
    return {**_diagonal(draw, 12, 3), "p": np.logspace(-6, 3, 12)}


define(_D, "spread-p", "P-FLOOR P-CEILING S-JITTER")(_spread)
define(_D, "spread-p-variational", "P-FLOOR", diagonal="variational")(_spread)


@define(_D, "zero-innovation", "P-KEPT")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_diagonal(draw, 8, 3), "e": np.zeros(3)}


@define(_D, "zero-column", "P-CEILING")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 8, 3)
    x["H"][:, 2] = 0
    return x


@define(_D, "correlated-R", "S-R-DIAGONAL S-DIAGONAL OUTPUTS-ONE-BY-ONE")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_diagonal(draw, 9, 4), "R": 0.1 * np.eye(4) + 0.9}


# --------------------------------------------------------- kalman.dense_update

_P = "kalman.dense_update"


def _dense(draw: Draw, n: int, m: int, condition: float = 10.0) -> Inputs:
    return {
        "theta": draw(n),
        "P": draw.spd(n, 10.0),
        "H": draw(m, n),
        "e": draw(m),
        "R": draw.spd(m, condition),
    }


@define(_P, "tiny", "THETA-SIGN P-KEPT P-DENSE-DIAGONAL")
def _(draw: Draw, dtype: str) -> Inputs:
    return {
        "theta": [1.0, -1.0],
        "P": [[2.0, 0.5], [0.5, 1.0]],
        "H": [[1.0, 2.0]],
        "e": [3.0],
        "R": [[0.5]],
    }


for _name, _n, _m, _covers in (
    ("random", 10, 3, "S-R-SQUARED S-DIAGONAL GAIN-NO-P P-NO-S P-JOSEPH-NO-R THETA-POSTERIOR-P "
                      "THETA-POSTERIOR-S"),
    ("wide", 30, 5, "SINGLE HALF"),
    ("one-output", 6, 1, "S-NO-R THETA-LEARNING-RATE"),
    ("square", 5, 5, "P-DENSE-DIAGONAL GAIN-S-DIAGONAL"),
):  # fmt: skip

    @define(_P, _name, _covers)
    def _(draw: Draw, dtype: str, n: int = _n, m: int = _m) -> Inputs:
        return _dense(draw, n, m)


@define(_P, "ill-conditioned-S", "S-JITTER R-JITTER")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _dense(draw, 10, 4, _hard(dtype))
    x["H"] = x["H"] * _hard(dtype) ** -0.5
    return x


@define(_P, "nearly-singular-P", "P-JOSEPH-NO-R P-DENSE-DIAGONAL")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_dense(draw, 8, 3), "P": draw.spd(8, _hard(dtype))}


@define(_P, "zero-innovation", "P-KEPT")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_dense(draw, 8, 3), "e": np.zeros(3)}


# ---------------------------------------------------------- kalman.time_update

_T = "kalman.time_update"


def _p(draw: Draw, dtype: str) -> Inputs:
    return {"p": draw.positive(9, low=1e-3, high=10.0)}


define(_T, "default", "SINGLE HALF")(_p)
define(_T, "forgetting", "TIME-MULTIPLIED TIME-NO-FORGETTING TIME-LAM-SQUARED", lam=0.9)(_p)
define(_T, "process-noise", "TIME-NO-Q TIME-Q-SQUARED TIME-Q-TIMES-P TIME-Q-SUBTRACTED", q=0.25)(_p)
define(_T, "both", "TIME-Q-DIVIDED", lam=0.5, q=0.125)(_p)

# ------------------------------------------------------------------ observation


def _seen(draw: Draw, kind: str, batch: int, C: int, n: int = 6, size: float = 2.0) -> Inputs:
    y = draw(batch, C) if kind == "gaussian" else draw.one_hot(batch, C=C)
    return {"z": draw(batch, C, size=size), "Z": draw(batch * C, n), "y": y}


_ONE = {
    "gaussian": "E-SIGN",
    "softmax": "E-SIGN H-NO-J H-J-DIAGONAL",
    "logits": "H-J-IN-LOGITS H-ALWAYS-CENTRED",
    "glm": "GLM-R-IDENTITY GLM-R-DIAGONAL H-J-OF-LABELS",
}

for _kind, _covers in _ONE.items():
    _op = f"observation.{_kind}"

    @define(_op, "one-sample", _covers)
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return _seen(draw, kind, 1, 4)

    _axis = "" if _kind == "gaussian" else " SOFTMAX-OVER-BATCH"

    @define(_op, "stacked", "BATCH-AVERAGED E-MEAN H-MEAN" + _axis)
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return _seen(draw, kind, 3, 4)

    if _kind == "gaussian":
        continue

    @define(_op, "tiny", "E-PREDICTED-CLASS TEMPERATURE")
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"z": [[0.0, 1.0]], "Z": [[1.0, 0.0], [0.0, 2.0]], "y": [[1.0, 0.0]]}

    @define(_op, "saturated", "YHAT-CLIPPED")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        x = _seen(draw, kind, 2, 3)
        x["z"] = [[120.0, 100.0, -3.0], [-200.0, 5.0, -5.0 if dtype == "float64" else 2.0]]
        return x

    @define(_op, "overflow", "SOFTMAX-NAIVE")  # inf / inf and 0 / 0
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        x = _seen(draw, kind, 2, 3)
        return {**x, "z": [[1000.0, 998.5, 997.75], [-1000.0, -1002.0, -1001.25]]}

    @define(_op, "subnormal", "SOFTMAX-NAIVE")  # few digits in float64
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return {**_seen(draw, kind, 2, 3), "z": [[-740.0, -741.5, -742.25], [1.0, -0.5, 0.25]]}

    @define(_op, "soft-labels", "Y-HARDENED Y-SMOOTHED")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return {**_seen(draw, kind, 2, 3), "y": [[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]}


@define("observation.logits", "centred", "H-NOT-CENTRED H-CENTRED-OVER-BATCH", center=True)
def _(draw: Draw, dtype: str) -> Inputs:
    return _seen(draw, "logits", 3, 4)


# ----------------------------------------------------------------- noise.update


def _noise(draw: Draw, m: int) -> Inputs:
    H = draw(m, 5)
    return {"R": draw.spd(m), "e": draw(m), "HpH": (H * draw.positive(5)) @ H.T}


_ESTIMATORS = {
    "fixed": "NOISE-ALWAYS-REFRESHED",
    "ema_innovation": "NOISE-SCALAR NOISE-HPH-ADDED NOISE-DIAGONAL NOISE-BETA-SWAPPED",
    "ema_innovation_hph": "NOISE-NO-HPH NOISE-HPH-SUBTRACTED NOISE-ADDED",
    "ema_residual_hph": "NOISE-NO-HPH NOISE-HPH-SUBTRACTED NOISE-BIAS-CORRECTED",
}

for _kind, _covers in _ESTIMATORS.items():

    @define("noise.update", _kind, _covers, noise=_kind)
    def _(draw: Draw, dtype: str) -> Inputs:
        return _noise(draw, 4)


@define(
    "noise.update",
    "beta-half-one-output",
    "NOISE-BETA NOISE-ADDED NOISE-HPH-ADDED",
    noise="ema_innovation",
    beta=0.5,
)
def _(draw: Draw, dtype: str) -> Inputs:
    return _noise(draw, 1)


@define(
    "noise.update",
    "forgets-all",
    "NOISE-BETA NOISE-BETA-SWAPPED",
    noise="ema_innovation_hph",
    beta=0.0,
)
def _(draw: Draw, dtype: str) -> Inputs:
    return _noise(draw, 3)


# ------------------------------------------------------------------- optimizers


def _descent(draw: Draw, dtype: str) -> Inputs:
    return {"theta": draw(7), "gradient": draw(6, 7)}


_O = "optimizer."
define(_O + "sgd", "plain", "DESCENT-SIGN", lr=0.1)(_descent)
define(
    _O + "sgd",
    "momentum",
    "SGD-AVERAGE SGD-AVERAGE-FROM-ZERO SGD-NESTEROV-ALWAYS",
    lr=0.1,
    momentum=0.9,
)(_descent)
define(_O + "sgd", "dampening", "SGD-FIRST-DAMPED", lr=0.1, momentum=0.9, dampening=0.5)(_descent)
define(_O + "sgd", "nesterov", "SGD-NO-NESTEROV", lr=0.1, momentum=0.9, nesterov=True)(_descent)
define(
    _O + "sgd", "decay", "SGD-DECOUPLED-DECAY SGD-NO-DECAY", lr=0.1, momentum=0.5, weight_decay=0.1
)(_descent)
define(_O + "adagrad", "plain", "ADAGRAD-EPS-INSIDE ADAGRAD-AVERAGE ADAGRAD-MEAN", lr=0.1)(_descent)
define(
    _O + "adagrad",
    "all-options",
    "ADAGRAD-DECAY-FROM-ONE ADAGRAD-EPS-INSIDE ADAGRAD-FROM-ZERO ADAGRAD-NO-DECAY ADAGRAD-LATE",
    lr=0.1,
    lr_decay=0.5,
    weight_decay=0.1,
    initial_accumulator_value=0.5,
    eps=0.25,
)(_descent)
define(
    _O + "adagrad", "decay", "ADAGRAD-NO-DECAY ADAGRAD-DECOUPLED-DECAY", lr=0.1, weight_decay=0.1
)(_descent)
define(
    _O + "adamw",
    "default",
    "ADAMW-UNCORRECTED ADAMW-FIRST-UNCORRECTED ADAMW-SECOND-UNCORRECTED ADAMW-AMSGRAD-CORRECTED "
    "ADAMW-NADAM ADAMW-NADAM-ONE-CORRECTION ADAMW-NADAM-SCHEDULED ADAMW-BELIEF",
)(_descent)
define(_O + "adamw", "eps", "ADAMW-EPS-INSIDE ADAMW-EPS-EARLY ADAMW-BELIEF-EPS", lr=0.1, eps=0.5)(
    _descent
)
define(
    _O + "adamw",
    "decay",
    "ADAMW-L2 ADAMW-NO-DECAY ADAMW-DECAY-UNSCALED ADAMW-DECAY-DIVIDED",
    lr=0.1,
    beta1=0.5,
    beta2=0.75,
    weight_decay=0.5,
)(_descent)


@define(_O + "adamw", "long", "ADAMW-CORRECTED-LATE ADAMW-AMSGRAD", lr=0.05)
def _(draw: Draw, dtype: str) -> Inputs:
    return {"theta": draw(4), "gradient": draw(50, 4)}
