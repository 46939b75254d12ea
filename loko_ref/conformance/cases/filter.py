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
    return {
        "theta": [1.0, -1.0],
        "p": [0.5, 2.0],
        "H": [[1.0, 2.0]],
        "e": [3.0],
        "R": [[0.5]],
    }


define(_D, "tiny", "anything: two parameters, one output, readable by hand")(_tiny_diagonal)
define(_D, "tiny-variational", "decoupled for variational", diagonal="variational")(_tiny_diagonal)


@define(_D, "random", "a wrong index or transpose: no two sizes are equal")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 12, 3)


@define(_D, "random-variational", "decoupled for variational", diagonal="variational")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 12, 3)


@define(_D, "wide", "sums cut short, float32 accumulation")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 60, 6)


@define(_D, "one-output", "m = 1: squeezed axes")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 7, 1)


@define(_D, "more-outputs", "m > n: H taken for its transpose")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 4, 7)


@define(_D, "ill-conditioned-S", "jitter added to S, a clipped or symmetrised S")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 12, 4, _hard(dtype))
    x["H"] = x["H"] * _hard(dtype) ** -0.5
    return x


@define(_D, "nearly-singular-R", "jitter added to R before its inverse", diagonal="variational")
def _(draw: Draw, dtype: str) -> Inputs:
    return _diagonal(draw, 12, 4, _hard(dtype))


@define(_D, "high-leverage", "p clipped; the digits of 1 - diag(KH) lost")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 10, 2)
    x["p"][0] = 1e4 if dtype == "float64" else 1e2
    return x


@define(_D, "spread-p", "p over nine decades: an absolute clip, floor or jitter")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 12, 3)
    x["p"] = np.logspace(-6, 3, 12)
    return x


@define(_D, "spread-p-variational", "p over nine decades: a floor", diagonal="variational")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 12, 3)
    x["p"] = np.logspace(-6, 3, 12)
    return x


@define(_D, "zero-innovation", "e = 0 must leave theta, not p")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_diagonal(draw, 8, 3), "e": np.zeros(3)}


@define(_D, "zero-column", "a parameter that is not observed must keep its p")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _diagonal(draw, 8, 3)
    x["H"][:, 2] = 0
    return x


@define(_D, "correlated-R", "R taken for its diagonal; S per output")
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


@define(_P, "tiny", "anything: two parameters, one output, readable by hand")
def _(draw: Draw, dtype: str) -> Inputs:
    return {
        "theta": [1.0, -1.0],
        "P": [[2.0, 0.5], [0.5, 1.0]],
        "H": [[1.0, 2.0]],
        "e": [3.0],
        "R": [[0.5]],
    }


@define(_P, "random", "a wrong index or transpose: no two sizes are equal")
def _(draw: Draw, dtype: str) -> Inputs:
    return _dense(draw, 10, 3)


@define(_P, "wide", "sums cut short, float32 accumulation")
def _(draw: Draw, dtype: str) -> Inputs:
    return _dense(draw, 30, 5)


@define(_P, "one-output", "m = 1: squeezed axes")
def _(draw: Draw, dtype: str) -> Inputs:
    return _dense(draw, 6, 1)


@define(_P, "square", "m = n: transposes that go unnoticed in shape")
def _(draw: Draw, dtype: str) -> Inputs:
    return _dense(draw, 5, 5)


@define(_P, "ill-conditioned-S", "jitter added to S")
def _(draw: Draw, dtype: str) -> Inputs:
    x = _dense(draw, 10, 4, _hard(dtype))
    x["H"] = x["H"] * _hard(dtype) ** -0.5
    return x


@define(_P, "nearly-singular-P", "P symmetrised, clipped or repaired")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_dense(draw, 8, 3), "P": draw.spd(8, _hard(dtype))}


@define(_P, "zero-innovation", "e = 0 must leave theta, not P")
def _(draw: Draw, dtype: str) -> Inputs:
    return {**_dense(draw, 8, 3), "e": np.zeros(3)}


# ---------------------------------------------------------- kalman.time_update

_T = "kalman.time_update"


def _p(draw: Draw, dtype: str) -> Inputs:
    return {"p": draw.positive(9, low=1e-3, high=10.0)}


define(_T, "default", "lam = 1, q = 0 must change nothing")(_p)
define(_T, "forgetting", "p multiplied by lam", lam=0.9)(_p)
define(_T, "process-noise", "q left out, or its root", q=0.25)(_p)
define(_T, "both", "q divided by lam too", lam=0.5, q=0.125)(_p)

# ------------------------------------------------------------------ observation


def _seen(draw: Draw, kind: str, batch: int, C: int, n: int = 6, size: float = 2.0) -> Inputs:
    y = draw(batch, C) if kind == "gaussian" else draw.one_hot(batch, C=C)
    return {"z": draw(batch, C, size=size), "Z": draw(batch * C, n), "y": y}


for _kind in ("gaussian", "softmax", "logits", "glm"):
    _op = f"observation.{_kind}"

    @define(_op, "one-sample", "the sign of the innovation; J left out or put in")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return _seen(draw, kind, 1, 4)

    @define(_op, "stacked", "samples averaged in place of stacked; softmax across samples")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return _seen(draw, kind, 3, 4)

    if _kind == "gaussian":
        continue

    @define(_op, "tiny", "anything: two classes, readable by hand")
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"z": [[0.0, 1.0]], "Z": [[1.0, 0.0], [0.0, 2.0]], "y": [[1.0, 0.0]]}

    @define(_op, "saturated", "exp that overflows; probabilities clipped")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        x = _seen(draw, kind, 2, 3)
        x["z"] = [[120.0, 100.0, -3.0], [-200.0, 5.0, -5.0 if dtype == "float64" else 2.0]]
        return x

    @define(_op, "overflow", "exp without the row's maximum taken off: inf / inf and 0 / 0")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        x = _seen(draw, kind, 2, 3)
        return {**x, "z": [[1000.0, 998.5, 997.75], [-1000.0, -1002.0, -1001.25]]}

    @define(_op, "subnormal", "exp without the row's maximum taken off: few digits in float64")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return {**_seen(draw, kind, 2, 3), "z": [[-740.0, -741.5, -742.25], [1.0, -0.5, 0.25]]}

    @define(_op, "soft-labels", "labels taken for class numbers")
    def _(draw: Draw, dtype: str, kind: str = _kind) -> Inputs:
        return {**_seen(draw, kind, 2, 3), "y": [[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]}


@define("observation.logits", "centred", "center left out, or over the whole batch", center=True)
def _(draw: Draw, dtype: str) -> Inputs:
    return _seen(draw, "logits", 3, 4)


# ----------------------------------------------------------------- noise.update


def _noise(draw: Draw, m: int) -> Inputs:
    H = draw(m, 5)
    return {"R": draw.spd(m), "e": draw(m), "HpH": (H * draw.positive(5)) @ H.T}


for _kind in ("fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph"):

    @define("noise.update", _kind, "beta taken for 1 - beta; H p H' left out", noise=_kind)
    def _(draw: Draw, dtype: str) -> Inputs:
        return _noise(draw, 4)


@define(
    "noise.update", "beta-half-one-output", "m = 1; beta fixed", noise="ema_innovation", beta=0.5
)
def _(draw: Draw, dtype: str) -> Inputs:
    return _noise(draw, 1)


@define("noise.update", "forgets-all", "beta = 0", noise="ema_innovation_hph", beta=0.0)
def _(draw: Draw, dtype: str) -> Inputs:
    return _noise(draw, 3)


# ------------------------------------------------------------------- optimizers


def _descent(draw: Draw, dtype: str) -> Inputs:
    return {"theta": draw(7), "gradient": draw(6, 7)}


_O = "optimizer."
define(_O + "sgd", "plain", "the sign of the step", lr=0.1)(_descent)
define(_O + "sgd", "momentum", "lr inside the buffer", lr=0.1, momentum=0.9)(_descent)
define(_O + "sgd", "dampening", "the first step damped", lr=0.1, momentum=0.9, dampening=0.5)(
    _descent
)
define(_O + "sgd", "nesterov", "plain momentum", lr=0.1, momentum=0.9, nesterov=True)(_descent)
define(_O + "sgd", "decay", "decay decoupled", lr=0.1, momentum=0.5, weight_decay=0.1)(_descent)
define(_O + "adagrad", "plain", "the root left out", lr=0.1)(_descent)
define(
    _O + "adagrad",
    "all-options",
    "decay counted from 1, eps under the root",
    lr=0.1,
    lr_decay=0.5,
    weight_decay=0.1,
    initial_accumulator_value=0.5,
    eps=0.25,
)(_descent)
define(_O + "adamw", "default", "bias correction left out")(_descent)
define(_O + "adamw", "eps", "eps under the root, or before the correction", lr=0.1, eps=0.5)(
    _descent
)
define(
    _O + "adamw",
    "decay",
    "decay in the gradient (Adam with L2), or after the step",
    lr=0.1,
    beta1=0.5,
    beta2=0.75,
    weight_decay=0.5,
)(_descent)


@define(_O + "adamw", "long", "the correction's power of beta counted from 0", lr=0.05)
def _(draw: Draw, dtype: str) -> Inputs:
    return {"theta": draw(4), "gradient": draw(50, 4)}
