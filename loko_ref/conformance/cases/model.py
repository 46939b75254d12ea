"""Cases of LoRA, the network, and LoKO's steps and runs.

Shapes as in ``operations``; C classes, batch samples, m = batch * C.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.network.model import mlp_spec, param_shapes

__all__ = ["loko_inputs", "lora", "network_weights"]

Inputs = dict[str, Any]
Spec = list[dict[str, Any]]

# ------------------------------------------------------------------------- lora

for _op in ("lora.delta", "lora.merge"):

    def _factors(draw: Draw, o: int, i: int, r: int, op: str = _op) -> Inputs:
        W = {"W": draw(o, i)} if op == "lora.merge" else {}
        return {**W, "A": draw(r, i), "B": draw(o, r)}

    @define(_op, "tiny", "anything: readable by hand", alpha=3.0)
    def _(draw: Draw, dtype: str, op: str = _op) -> Inputs:
        W = {"W": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]} if op == "lora.merge" else {}
        return {**W, "A": [[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]], "B": [[1.0, 2.0], [3.0, 4.0]]}

    @define(_op, "random", "alpha for alpha / r, or alpha / sqrt r; A B for B A", alpha=8.0)
    def _(draw: Draw, dtype: str, f: Any = _factors) -> Inputs:
        return f(draw, 7, 5, 3)

    @define(_op, "rank-one", "r = 1: squeezed axes", alpha=2.0)
    def _(draw: Draw, dtype: str, f: Any = _factors) -> Inputs:
        return f(draw, 4, 6, 1)

    @define(_op, "full-rank", "r = min(i, o); a transpose that fits", alpha=0.5)
    def _(draw: Draw, dtype: str, f: Any = _factors) -> Inputs:
        return f(draw, 5, 5, 5)

    @define(_op, "untrained", "B = 0 must add nothing", alpha=16.0)
    def _(draw: Draw, dtype: str, f: Any = _factors) -> Inputs:
        x = f(draw, 6, 4, 2)
        return {**x, "B": np.zeros((6, 2))}


# ------------------------------------------------------------------------ model


def lora(r: int, alpha: float, bias: bool = False) -> dict[str, Any]:
    """Write LoRA's options as a spec has them."""
    return {"r": r, "alpha": alpha, "bias": bias}


def network_weights(draw: Draw, spec: Spec) -> dict[str, Any]:
    """Weights of order 1 / sqrt(width), no entry 0; a norm's gain 1 +- 0.4."""
    return {
        name: 1 + draw(*shape, size=0.4)
        if name.endswith(".g")
        else draw(*shape, size=math.sqrt(3 / shape[-1]))
        for name, shape in param_shapes(spec).items()
    }


_MLP = mlp_spec([5, 6, 4, 3], "tanh", lora(2, 5.0))
_SPECS: dict[str, tuple[Spec, str]] = {
    "linear": (mlp_spec([4, 3], lora=lora(2, 3.0)), "alpha for alpha / r; A and B swapped"),
    "tanh": (_MLP, "the scale left out of the Jacobian; a layer's cotangent lost"),
    "relu": (mlp_spec([5, 6, 4, 3], "relu", lora(2, 5.0)), "the mask of the wrong layer"),
    "gelu": (mlp_spec([5, 6, 3], "gelu", lora(2, 5.0)), "GELU by tanh in place of erf"),
    "lora-bias": (mlp_spec([5, 4, 3], "tanh", lora(2, 5.0, True)), "bA not scaled; order"),
    "rank-one": (mlp_spec([4, 5, 3], "tanh", lora(1, 4.0)), "r = 1: squeezed axes"),
    "full-rank": (mlp_spec([4, 4, 4], "tanh", lora(4, 2.0)), "square factors: a transpose fits"),
    "some-sites": (
        [
            {"kind": "linear", "name": "in", "in": 4, "out": 5, "bias": True},
            {"kind": "tanh"},
            {"kind": "linear", "name": "mid", "in": 5, "out": 4, "bias": False}
            | {"lora": lora(2, 1.0)},
            {"kind": "relu"},
            {"kind": "linear", "name": "out", "in": 4, "out": 3, "bias": True}
            | {"lora": lora(1, 3.0)},
        ],
        "LoRA on some linears, a linear without bias, names that are words",
    ),
    "softmax-head": (
        [*mlp_spec([4, 5, 3], "tanh", lora(2, 4.0)), {"kind": "softmax"}],
        "the Jacobian of softmax left out",
    ),
    "log-softmax-head": (
        [*mlp_spec([4, 5, 3], "tanh", lora(2, 4.0)), {"kind": "log_softmax"}],
        "the Jacobian of log-softmax left out",
    ),
}


for _op in ("model.forward", "model.jacobian"):
    for _name, (_spec, _hunts) in _SPECS.items():

        @define(_op, _name, _hunts, spec=_spec)
        def _(draw: Draw, dtype: str, spec: Spec = _spec) -> Inputs:
            return {"x": draw(1, spec[0]["in"]), "weights": network_weights(draw, spec)}

    @define(_op, "stacked", "outputs of a batch stacked class-major", spec=_MLP)
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"x": draw(4, 5), "weights": network_weights(draw, _MLP)}

    @define(_op, "untrained", "B = 0: only B's part of the Jacobian is not 0", spec=_MLP)
    def _(draw: Draw, dtype: str) -> Inputs:
        weights = network_weights(draw, _MLP)
        for key in weights:
            if key.endswith(".B"):
                weights[key] = 0 * weights[key]
        return {"x": draw(2, 5), "weights": weights}


# ------------------------------------------------------------------------- loko


def _circulant(C: int, batch: int) -> np.ndarray[Any, Any]:
    """Return an R with R 1 = 1 exactly in both dtypes, not diagonal, coupling the samples."""
    block = 0.5 * np.eye(C) + 0.0625 * (np.ones((C, C)) - np.eye(C))
    block = block + np.eye(C) * (0.5 - 0.0625 * (C - 1))
    return np.kron(np.eye(batch) + 0.125 * (np.ones((batch, batch)) - np.eye(batch)), block)


def loko_inputs(
    draw: Draw, spec: Spec, options: dict[str, Any], batch: int, steps: int = 0
) -> Inputs:
    """Draw the inputs of a step or of a run, x of single vectors."""
    shapes = param_shapes(spec)
    factors = [k for k in shapes if k.rsplit(".", 1)[1] in ("A", "B", "bA", "bB")]
    n = sum(math.prod(shapes[k]) for k in factors)
    C = next(k["out"] for k in reversed(spec) if k["kind"] == "linear")
    lead = (steps, batch) if steps else (batch,)
    gaussian = options.get("observation") == "gaussian"
    weights = {k: a for k, a in network_weights(draw, spec).items() if k not in factors}
    x: Inputs = {
        "x": draw(*lead, spec[0].get("in", 1)),
        "y": draw(*lead, C) if gaussian else draw.one_hot(*lead, C=C),
        "theta": draw(n, size=0.6),
        "weights": weights,
    }
    if options.get("covariance") == "dense":
        x["P"] = 0.1 * draw.spd(n)
    else:
        x["p"] = draw.positive(n, low=0.02, high=0.2)
    if options.get("noise", "glm") != "glm":
        if options["observation"] == "softmax" or options.get("center"):
            x["R"] = _circulant(C, batch)
        else:
            x["R"] = draw.spd(batch * C)
    return x


def _at_start(x: Inputs, spec: Spec) -> Inputs:
    """Set every B (and bias) of theta to 0."""
    at = 0
    for name, shape in param_shapes(spec).items():
        key = name.rsplit(".", 1)[1]
        if key in ("A", "B", "bA", "bB"):
            size = math.prod(shape)
            if key != "A":
                x["theta"][at : at + size] = 0
            at += size
    return x


_NET = mlp_spec([4, 5, 3], "tanh", lora(2, 3.0))
_RELU = mlp_spec([6, 8, 5, 3], "relu", lora(2, 4.0))
_LINEAR = mlp_spec([4, 2], lora=lora(2, 3.0))
_BIAS = mlp_spec([4, 4, 3], "gelu", lora(1, 2.0, True))

_SOFT = {"observation": "softmax", "noise": "ema_innovation_hph"}
_LOGITS = {"observation": "logits", "noise": "ema_innovation"}
_GAUSS = {"observation": "gaussian", "noise": "fixed"}
_STEPS: dict[str, tuple[str, Spec, dict[str, Any], int]] = {
    "glm": ("R = J inverted or jittered; the sign of the innovation", _NET, {}, 1),
    "glm-stacked": ("samples averaged in place of stacked", _NET, {}, 3),
    "glm-variational": ("decoupled for variational", _NET, {"diagonal": "variational"}, 1),
    "glm-bias": ("order of A, B, bA, bB in theta", _BIAS, {}, 2),
    "glm-relu": ("S per tensor in place of one S for all sites", _RELU, {}, 1),
    "glm-dense": ("the dense filter", _NET, {"covariance": "dense"}, 2),
    "glm-time": ("q divided by lam; stale p in S", _NET, {"lam": 0.9, "q": 0.01}, 1),
    "gaussian": ("regression", _NET, _GAUSS, 1),
    "gaussian-stacked": ("samples averaged in place of stacked", _LINEAR, _GAUSS, 4),
    "gaussian-variational": (
        "decoupled for variational",
        _NET,
        _GAUSS | {"diagonal": "variational"},
        1,
    ),
    "gaussian-dense": ("the dense filter", _LINEAR, _GAUSS | {"covariance": "dense"}, 1),
    "gaussian-ema-after": (
        "R refreshed before the gain",
        _NET,
        {"observation": "gaussian", "noise": "ema_innovation", "timing": "after"},
        1,
    ),
    "gaussian-residual": (
        "the innovation for the residual; the prior p for the posterior",
        _NET,
        {"observation": "gaussian", "noise": "ema_residual_hph", "timing": "after"},
        2,
    ),
    "softmax": ("R refreshed after the gain; J left out", _NET, _SOFT, 1),
    "softmax-after": ("R refreshed before the gain", _NET, _SOFT | {"timing": "after"}, 1),
    "softmax-stacked": ("R one block a sample", _NET, _SOFT | {"beta": 0.5}, 2),
    "softmax-fixed": ("R refreshed at all", _NET, {"observation": "softmax", "noise": "fixed"}, 1),
    "softmax-variational": (
        "decoupled for variational",
        _NET,
        _SOFT | {"diagonal": "variational"},
        1,
    ),
    "softmax-residual": (
        "the innovation for the residual; the prior p for the posterior",
        _NET,
        {"observation": "softmax", "noise": "ema_residual_hph", "timing": "after"},
        1,
    ),
    "softmax-dense": ("the dense filter", _NET, _SOFT | {"covariance": "dense"}, 1),
    "logits": ("J put in; beta taken for 1 - beta", _NET, _LOGITS, 1),
    "logits-after": ("R refreshed before the gain", _NET, _LOGITS | {"timing": "after"}, 1),
    "logits-centred": ("center left out", _NET, _LOGITS | {"center": True}, 2),
    "logits-hph": (
        "H p H' left out of R",
        _NET,
        {"observation": "logits", "noise": "ema_innovation_hph", "beta": 0.8},
        1,
    ),
    "logits-time": (
        "p in place of p_pred in S or in R",
        _NET,
        {"observation": "logits", "noise": "ema_innovation_hph", "lam": 0.8, "q": 0.05},
        1,
    ),
}

for _name, (_hunts, _spec, _options, _batch) in _STEPS.items():

    @define("loko.step", _name, _hunts, spec=_spec, **({"noise": "glm"} | _options))
    def _(
        draw: Draw,
        dtype: str,
        spec: Spec = _spec,
        options: dict[str, Any] = _options,
        batch: int = _batch,
    ) -> Inputs:
        return loko_inputs(draw, spec, options, batch)


@define("loko.step", "glm-untrained", "B = 0, as training begins", spec=_NET)
def _(draw: Draw, dtype: str) -> Inputs:
    return _at_start(loko_inputs(draw, _NET, {}, 1), _NET)


@define("loko.step", "glm-saturated", "J inverted at a large margin", spec=_NET)
def _(draw: Draw, dtype: str) -> Inputs:
    x = loko_inputs(draw, _NET, {}, 1)
    x["weights"]["1.b"] = np.array([12.0, 0.0, -6.0]) / (1 if dtype == "float64" else 3)
    x["y"] = np.array([[0.0, 1.0, 0.0]])
    return x


_RUNS: dict[str, tuple[str, Spec, dict[str, Any], int, int]] = {
    "glm": ("drift over a long free run", _NET, {}, 1, 40),
    "glm-relu": ("drift, three sites", _RELU, {}, 1, 15),
    "glm-stacked": ("the last batch's state reused", _NET, {}, 2, 10),
    "glm-forgetting": ("forgetting applied once only", _NET, {"lam": 0.98, "q": 1e-4}, 1, 20),
    "glm-variational": ("the diagonals mixed", _NET, {"diagonal": "variational"}, 1, 20),
    "logits": ("R reset at each step", _NET, _LOGITS, 1, 25),
    "logits-after": ("R used one step late", _NET, _LOGITS | {"timing": "after"}, 1, 12),
    "softmax": ("R's average lost between steps", _NET, _SOFT, 1, 20),
    "gaussian": ("p not carried on", _LINEAR, _GAUSS, 2, 20),
    "gaussian-dense": ("P's correlations lost", _LINEAR, _GAUSS | {"covariance": "dense"}, 1, 15),
    "gaussian-residual": (
        "R's average of residuals",
        _NET,
        {"observation": "gaussian", "noise": "ema_residual_hph", "timing": "after"},
        1,
        12,
    ),
}

for _name, (_hunts, _spec, _options, _batch, _count) in _RUNS.items():

    @define("loko.run", _name, _hunts, spec=_spec, **({"noise": "glm"} | _options))
    def _(
        draw: Draw,
        dtype: str,
        spec: Spec = _spec,
        options: dict[str, Any] = _options,
        batch: int = _batch,
        steps: int = _count,
    ) -> Inputs:
        return loko_inputs(draw, spec, options, batch, steps)
