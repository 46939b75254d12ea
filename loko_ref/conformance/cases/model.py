"""Cases of LoRA, the network, and LoKO's steps and runs.

Shapes as in ``operations``; C classes, batch samples, m = batch * C.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.kalman.lowrank import PRECISIONS, Blocks, groups_of
from loko_ref.network.spec import mlp_spec, param_shapes, trained_shapes

Inputs = dict[str, Any]
Spec = list[dict[str, Any]]

# ------------------------------------------------------------------------- lora

_LORA = {
    "random": ((7, 5, 3), 8.0, "SCALE-ALPHA SCALE-ROOT"),
    "rank-one": ((4, 6, 1), 2.0, "SCALE-TWICE SCALE-NONE"),
    "full-rank": ((5, 5, 5), 0.5, "SCALE-ROOT SCALE-FACTOR"),  # a transpose fits
}

for _op in ("lora.delta", "lora.merge"):
    _of_merge = "" if _op == "lora.delta" else " MERGE-SUBTRACTED MERGE-ONLY-DELTA"

    @define(_op, "tiny", "SCALE-FACTOR" + _of_merge, alpha=3.0)
    def _(draw: Draw, dtype: str, op: str = _op) -> Inputs:
        W = {"W": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]} if op == "lora.merge" else {}
        return {**W, "A": [[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]], "B": [[1.0, 2.0], [3.0, 4.0]]}

    for _name, (_sizes, _alpha, _covers) in _LORA.items():

        @define(_op, _name, _covers + _of_merge, alpha=_alpha)
        def _(
            draw: Draw, dtype: str, op: str = _op, sizes: tuple[int, int, int] = _sizes
        ) -> Inputs:
            o, i, r = sizes
            W = {"W": draw(o, i)} if op == "lora.merge" else {}
            return {**W, "A": draw(r, i), "B": draw(o, r)}


@define("lora.merge", "untrained", "MERGE-ONLY-DELTA", alpha=16.0)
def _(draw: Draw, dtype: str) -> Inputs:
    return {"W": draw(6, 4), "A": draw(2, 4), "B": np.zeros((6, 2))}


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
_SPECS: dict[str, tuple[Spec, str, str]] = {
    "linear": (mlp_spec([4, 3], lora=lora(2, 3.0)), "SCALE-ALPHA SCALE-ROOT", "ORDER-B-A"),
    "tanh": (_MLP, "BIAS-MISSING", "JACOBIAN-NO-SCALE JACOBIAN-NO-BRANCH TANH-DERIVATIVE"),
    "relu": (mlp_spec([5, 6, 4, 3], "relu", lora(2, 5.0)), "RELU-LEAKY", "JACOBIAN-NO-BRANCH"),
    "gelu": (
        mlp_spec([5, 6, 3], "gelu", lora(2, 5.0)),
        "GELU-TANH GELU-SIGMOID",
        "GELU-JACOBIAN-NO-DENSITY",
    ),
    "lora-bias": (
        mlp_spec([5, 4, 3], "tanh", lora(2, 5.0, True)),
        "LORA-BIAS-UNSCALED",
        "ORDER-BIASES-FIRST",
    ),
    "rank-one": (mlp_spec([4, 5, 3], "tanh", lora(1, 4.0)), "SCALE-TWICE SCALE-NONE", "ORDER-B-A"),
    "full-rank": (mlp_spec([4, 4, 4], "tanh", lora(4, 2.0)), "SCALE-FACTOR", "FLATTEN-COLUMNS"),
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
        "BIAS-MISSING",
        "ORDER-SITES",
    ),
    "softmax-head": (
        [*mlp_spec([4, 5, 3], "tanh", lora(2, 4.0)), {"kind": "softmax"}],
        "SOFTMAX-OVER-BATCH TEMPERATURE",
        "SOFTMAX-HEAD-DIAGONAL",
    ),
    "log-softmax-head": (
        [*mlp_spec([4, 5, 3], "tanh", lora(2, 4.0)), {"kind": "log_softmax"}],
        "SCALE-FACTOR",
        "JACOBIAN-NO-SCALE TANH-DERIVATIVE",
    ),
}


for _op in ("model.forward", "model.jacobian"):
    _more = _op == "model.jacobian"

    for _name, (_spec, _covers, _of_Z) in _SPECS.items():

        @define(_op, _name, f"{_covers} {_of_Z * _more}", spec=_spec)
        def _(draw: Draw, dtype: str, spec: Spec = _spec) -> Inputs:
            return {"x": draw(1, spec[0]["in"]), "weights": network_weights(draw, spec)}

    @define(_op, "stacked", "BIAS-MISSING" + " STACK-CLASS-MAJOR" * _more, spec=_MLP)
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"x": draw(4, 5), "weights": network_weights(draw, _MLP)}

    @define(_op, "untrained", "BIAS-MISSING" + " ORDER-B-A FLATTEN-COLUMNS" * _more, spec=_MLP)
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


def blocks_of(spec: Spec, kind: Blocks) -> list[int]:
    """Return the number of each parameter's block, of a network's factors.  [KAL-10]."""
    shapes = [(name.rsplit(".", 1)[1], s) for name, s in trained_shapes(spec).items()]
    found: list[int] = []
    for group in groups_of(shapes, kind):
        own = max(found, default=-1) + 1 + np.arange(group.units)
        whole = np.tile(own, group.size) if group.across else np.repeat(own, group.size)
        found += whole.tolist()
    return found


def precision(draw: Draw, n: int, blocks: list[int], L: int | None) -> Inputs:
    """Draw a precision of about 10, on blocks where there are such; L None: nothing of low rank."""
    low = {} if L is None else {"W": draw(n, L, size=4.0)}
    if not blocks:
        return {"U": draw.positive(n, low=5.0, high=20.0), **low}
    labels, U = np.array(blocks), np.zeros((n, n))
    for k in sorted(set(blocks)):
        own = labels == k
        U[np.ix_(own, own)] = 20 * draw.spd(int(own.sum()), 5.0)
    return {"U": U, **low}


def loko_inputs(
    draw: Draw, spec: Spec, options: Inputs, batch: int, steps: int = 0, L: int | None = None
) -> Inputs:
    """Draw the inputs of a step or of a run, x of single vectors; of a precision L columns."""
    trained = trained_shapes(spec, options.get("train", "factors"))
    n = sum(map(math.prod, trained.values()))
    C = next(k["out"] for k in reversed(spec) if k["kind"] == "linear")
    lead = (steps, batch) if steps else (batch,)
    gaussian = options.get("observation") == "gaussian"
    weights = {k: a for k, a in network_weights(draw, spec).items() if k not in trained}
    x: Inputs = {
        "x": draw(*lead, spec[0].get("in", 1)),
        "y": draw(*lead, C) if gaussian else draw.one_hot(*lead, C=C),
        "theta": draw(n, size=0.6),
        "weights": weights,
    }
    if options.get("covariance") in PRECISIONS:
        x |= precision(draw, n, options.get("blocks") or [], L)
    elif options.get("covariance") == "dense":
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
    "glm": ("GLM-R-IDENTITY GLM-R-DIAGONAL H-NO-J E-SIGN", _NET, {}, 1),
    "glm-stacked": (
        "BATCH-AVERAGED BATCH-AVERAGED-R-FIRST BATCH-REPEATED STACK-CLASS-MAJOR",
        _NET,
        {},
        3,
    ),
    "glm-variational": ("P-DECOUPLED GAIN-POSTERIOR-R", _NET, {"diagonal": "variational"}, 1),
    "glm-bias": ("ORDER-BIASES-FIRST LORA-BIAS-UNSCALED", _BIAS, {}, 2),
    "glm-relu": ("S-PER-TENSOR RELU-LEAKY", _RELU, {}, 1),
    "glm-dense": ("P-DENSE-DIAGONAL", _NET, {"covariance": "dense"}, 2),
    "glm-time": (
        "GAIN-STALE-P P-STALE TIME-AFTER TIME-LAM-ON-R TIME-Q-DIVIDED",
        _NET,
        {"lam": 0.9, "q": 0.01},
        1,
    ),
    "gaussian": ("NOISE-ALWAYS-REFRESHED S-R-DIAGONAL S-R-SQUARED P-VARIATIONAL", _NET, _GAUSS, 1),
    "gaussian-stacked": (
        "BATCH-AVERAGED-R-FIRST BATCH-AVERAGED-R-MEAN BATCH-REPEATED",
        _LINEAR,
        _GAUSS,
        4,
    ),
    "gaussian-variational": ("P-DECOUPLED", _NET, _GAUSS | {"diagonal": "variational"}, 1),
    "gaussian-dense": ("P-DENSE-DIAGONAL", _LINEAR, _GAUSS | {"covariance": "dense"}, 1),
    "gaussian-ema-after": (
        "NOISE-BEFORE NOISE-SCALAR",
        _NET,
        {"observation": "gaussian", "noise": "ema_innovation", "timing": "after"},
        1,
    ),
    "gaussian-residual": (
        "NOISE-INNOVATION-FOR-RESIDUAL NOISE-PRIOR-FOR-RESIDUAL NOISE-RESIDUAL-LINEAR "
        "NOISE-RESIDUAL-LINEAR-LOGITS",
        _NET,
        {"observation": "gaussian", "noise": "ema_residual_hph", "timing": "after"},
        2,
    ),
    "softmax": ("NOISE-AFTER H-J-DIAGONAL H-J-OF-LABELS", _NET, _SOFT, 1),
    "softmax-after": (
        "NOISE-BEFORE NOISE-POSTERIOR-P NOISE-REFRESHED-TWICE",
        _NET,
        _SOFT | {"timing": "after"},
        1,
    ),
    "softmax-time": (
        "NOISE-STALE-P NOISE-POSTERIOR-P NOISE-REFRESHED-TWICE TIME-AFTER",
        _NET,
        _SOFT | {"timing": "after", "lam": 0.9, "q": 0.02},
        1,
    ),
    "softmax-stacked": (
        "BATCH-AVERAGED-R-MEAN BATCH-AVERAGED-YHAT BATCH-AVERAGED-J BATCH-AVERAGED-LOGITS "
        "NOISE-DIAGONAL",
        _NET,
        _SOFT | {"beta": 0.5},
        2,
    ),
    "softmax-fixed": (
        "NOISE-ALWAYS-REFRESHED",
        _NET,
        {"observation": "softmax", "noise": "fixed"},
        1,
    ),
    "softmax-variational": ("P-DECOUPLED", _NET, _SOFT | {"diagonal": "variational"}, 1),
    "softmax-residual": (
        "NOISE-INNOVATION-FOR-RESIDUAL NOISE-PRIOR-FOR-RESIDUAL NOISE-RESIDUAL-LINEAR "
        "NOISE-RESIDUAL-LINEAR-LOGITS NOISE-RESIDUAL-RAW",
        _NET,
        {"observation": "softmax", "noise": "ema_residual_hph", "timing": "after"},
        1,
    ),
    "softmax-dense": ("P-DENSE-DIAGONAL", _NET, _SOFT | {"covariance": "dense"}, 1),
    "logits": (
        "H-J-IN-LOGITS H-ALWAYS-CENTRED NOISE-BETA-SWAPPED NOISE-AFTER NOISE-BEFORE-AND-AFTER",
        _NET,
        _LOGITS,
        1,
    ),
    "logits-after": ("NOISE-BEFORE NOISE-BEFORE-AND-AFTER", _NET, _LOGITS | {"timing": "after"}, 1),
    "logits-centred": ("H-NOT-CENTRED H-CENTRED-OVER-BATCH", _NET, _LOGITS | {"center": True}, 2),
    "logits-hph": (
        "NOISE-NO-HPH NOISE-HPH-SUBTRACTED",
        _NET,
        {"observation": "logits", "noise": "ema_innovation_hph", "beta": 0.8},
        1,
    ),
    "logits-time": (
        "NOISE-STALE-P GAIN-STALE-P P-STALE TIME-NO-Q TIME-Q-SQUARED TIME-Q-TIMES-P "
        "TIME-Q-SUBTRACTED",
        _NET,
        {"observation": "logits", "noise": "ema_innovation_hph", "lam": 0.8, "q": 0.05},
        1,
    ),
}

for _name, (_covers, _spec, _options, _batch) in _STEPS.items():

    @define("loko.step", _name, _covers, spec=_spec, **({"noise": "glm"} | _options))
    def _(
        draw: Draw,
        dtype: str,
        spec: Spec = _spec,
        options: dict[str, Any] = _options,
        batch: int = _batch,
    ) -> Inputs:
        return loko_inputs(draw, spec, options, batch)


@define("loko.step", "glm-untrained", "JACOBIAN-NO-SCALE ORDER-B-A", spec=_NET)
def _(draw: Draw, dtype: str) -> Inputs:
    return _at_start(loko_inputs(draw, _NET, {}, 1), _NET)


@define("loko.step", "glm-saturated", "YHAT-CLIPPED", spec=_NET)
def _(draw: Draw, dtype: str) -> Inputs:
    x = loko_inputs(draw, _NET, {}, 1)
    x["weights"]["1.b"] = np.array([12.0, 0.0, -6.0]) / (1 if dtype == "float64" else 3)
    x["y"] = np.array([[0.0, 1.0, 0.0]])
    return x


_RUNS: dict[str, tuple[str, Spec, dict[str, Any], int, int]] = {
    "glm": (
        "P-NOT-CARRIED P-PRED-CARRIED NETWORK-NOT-UPDATED NETWORK-STALE-THETA NETWORK-STALE-X "
        "NETWORK-STALE OUTPUTS-STALE JACOBIAN-STALE JACOBIAN-FIRST JACOBIAN-STALE-THETA "
        "JACOBIAN-FIRST-THETA",
        _NET,
        {},
        1,
        40,
    ),
    "glm-relu": ("P-NOT-CARRIED RELU-LEAKY", _RELU, {}, 1, 15),
    "glm-stacked": (
        "P-PRED-CARRIED BATCH-AVERAGED-YHAT BATCH-AVERAGED-J BATCH-AVERAGED-LOGITS "
        "NETWORK-NOT-UPDATED NETWORK-STALE-THETA NETWORK-STALE-X NETWORK-STALE OUTPUTS-STALE "
        "JACOBIAN-STALE JACOBIAN-FIRST JACOBIAN-STALE-THETA JACOBIAN-FIRST-THETA",
        _NET,
        {},
        2,
        10,
    ),
    "glm-forgetting": (
        "TIME-AFTER TIME-LAM-ON-R TIME-MULTIPLIED TIME-NO-FORGETTING TIME-LAM-SQUARED",
        _NET,
        {"lam": 0.98, "q": 1e-4},
        1,
        20,
    ),
    "glm-variational": ("P-DECOUPLED", _NET, {"diagonal": "variational"}, 1, 20),
    "logits": ("NOISE-RESET NOISE-BIAS-CORRECTED", _NET, _LOGITS, 1, 25),
    "logits-after": ("NOISE-BEFORE NOISE-RESET", _NET, _LOGITS | {"timing": "after"}, 1, 12),
    "softmax": ("NOISE-RESET", _NET, _SOFT, 1, 20),
    "gaussian": ("P-NOT-CARRIED", _LINEAR, _GAUSS, 2, 20),
    "gaussian-dense": ("P-DENSE-DIAGONAL", _LINEAR, _GAUSS | {"covariance": "dense"}, 1, 15),
    "gaussian-residual": (
        "NOISE-INNOVATION-FOR-RESIDUAL NOISE-RESET",
        _NET,
        {"observation": "gaussian", "noise": "ema_residual_hph", "timing": "after"},
        1,
        12,
    ),
}

for _name, (_covers, _spec, _options, _batch, _count) in _RUNS.items():

    @define("loko.run", _name, _covers, spec=_spec, **({"noise": "glm"} | _options))
    def _(
        draw: Draw,
        dtype: str,
        spec: Spec = _spec,
        options: dict[str, Any] = _options,
        batch: int = _batch,
        steps: int = _count,
    ) -> Inputs:
        return loko_inputs(draw, spec, options, batch, steps)
