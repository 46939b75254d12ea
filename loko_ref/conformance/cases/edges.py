"""Cases at an edge: a kink, hidden queries, thirds, small variances, forgetting, whole weights.

A unit at ReLU's kink has a row of zeros and no bias: it is at exactly 0 in every order of sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.cases.attention import _block, _text
from loko_ref.conformance.cases.model import loko_inputs, lora, network_weights
from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.network.spec import mlp_spec, trained_shapes

__all__: list[str] = []

Inputs = dict[str, Any]
Spec = list[dict[str, Any]]

# ------------------------------------------------------------------- filter and optimizer

_T = "kalman.time_update"


def _dense(draw: Draw, dtype: str) -> Inputs:
    return {"P": draw.spd(6, 30.0)}


define(_T, "dense-forgetting", "TIME-MULTIPLIED TIME-NO-FORGETTING TIME-LAM-SQUARED", lam=0.9)(
    _dense
)
define(
    _T,
    "dense-process-noise",
    "TIME-Q-EVERYWHERE TIME-NO-Q TIME-Q-SQUARED TIME-Q-TIMES-P TIME-Q-SUBTRACTED",
    q=0.25,
)(_dense)
define(_T, "dense-both", "TIME-Q-EVERYWHERE TIME-Q-DIVIDED", lam=0.5, q=0.125)(_dense)

for _diagonal, _covers in (("decoupled", "P-FLOOR P-VARIATIONAL"), ("variational", "P-FLOOR")):

    @define("kalman.diagonal_update", f"small-p-{_diagonal}", _covers, diagonal=_diagonal)
    def _(draw: Draw, dtype: str) -> Inputs:
        """Variances about 1e-10, observed as exactly: what a long run ends with."""
        return {
            "theta": draw(8),
            "p": draw.positive(8, low=2e-11, high=5e-10),
            "H": draw(3, 8),
            "e": draw(3, size=1e-5),
            "R": 1e-10 * draw.spd(3),
        }


@define("kalman.dense_update", "small-P", "P-FLOOR")
def _(draw: Draw, dtype: str) -> Inputs:
    return {
        "theta": draw(8),
        "P": 1e-10 * draw.spd(8),
        "H": draw(3, 8),
        "e": draw(3, size=1e-5),
        "R": 1e-10 * draw.spd(3),
    }


for _name, _eps in (("no-decay", 1e-8), ("no-decay-eps", 0.1)):

    @define(
        "optimizer.adamw",
        _name,
        "ADAMW-DECAY-DEFAULT ADAMW-UNCORRECTED",
        lr=0.1,
        beta2=0.9,  # 1 - beta2^t with one near 1 has few digits to judge
        weight_decay=0.0,
        eps=_eps,
    )
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"theta": draw(7), "gradient": draw(6, 7)}


_SET: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.5},
    "adagrad": {"lr": 0.1},
    "adamw": {"lr": 0.1, "beta2": 0.9},
}
for _method, _given in _SET.items():

    @define(
        f"optimizer.{_method}",
        "large-gradient",
        "GRADIENT-CLIPPED GRADIENT-NORM-CLIPPED",
        **_given,
    )
    def _(draw: Draw, dtype: str) -> Inputs:
        """Gradients from 0.01 to 1000: what a threshold lets through, and what it does not."""
        return {"theta": draw(7), "gradient": draw(6, 7) * 10.0 ** np.arange(-2, 4)[:, None]}


for _name, _momentum in (("nesterov-decay", 0.9), ("nesterov-strong-decay", 0.5)):

    @define(
        "optimizer.sgd",
        _name,
        "SGD-NESTEROV-UNDECAYED SGD-NO-NESTEROV SGD-NO-DECAY",
        lr=0.1,
        momentum=_momentum,
        weight_decay=0.1 if _momentum == 0.9 else 0.5,
        nesterov=True,
    )
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"theta": draw(7), "gradient": draw(6, 7)}


# ------------------------------------------------------------------------------- networks

_KINK = mlp_spec([4, 6, 5, 3], "relu", lora(3, 5.0))
_HIDDEN = _text(causal=True, pool="cls", dense=False)
_PADDED = [[0, 0, 3, 1], [4, 6, 2, 2]]  # the first query of the first text sees no key
_WHOLE: dict[str, tuple[Spec, str]] = {
    "weights-relu": (
        mlp_spec([4, 5, 3], "relu"),
        "WEIGHTS-BIASES-FIRST WEIGHTS-BIASES-FROZEN FLATTEN-COLUMNS",
    ),
    "weights-lora": (
        mlp_spec([4, 5, 3], "tanh", lora(2, 3.0)),
        "WEIGHTS-BIASES-FIRST JACOBIAN-NO-BRANCH TANH-DERIVATIVE",
    ),
    "weights-transformer": (
        _text(lora=None, types=2, inputs=["ids", "types", "mask"], pad=None),
        "WEIGHTS-BIASES-FIRST WEIGHTS-BIASES-FROZEN ORDER-SORTED",
    ),
}


def _at_kink(arrays: Inputs) -> Inputs:
    """Set two units of each hidden layer to exactly 0, whatever comes in: rows of W, B and b."""
    for name in ("0", "1"):
        for key in {"W", "b", "B"} & {k[2:] for k in arrays if k.startswith(name)}:
            arrays[f"{name}.{key}"][1:3] = 0
    return arrays


@define("model.forward", "thirds", "SCALE-SINGLE SCALE-ALPHA BIAS-MISSING", spec=_KINK)
def _(draw: Draw, dtype: str) -> Inputs:
    return {"x": draw(2, 4), "weights": network_weights(draw, _KINK)}


@define(
    "model.jacobian",
    "relu-at-zero",
    "RELU-JACOBIAN-ONE-AT-ZERO RELU-JACOBIAN-HALF-AT-ZERO SCALE-SINGLE",
    spec=_KINK,
)
def _(draw: Draw, dtype: str) -> Inputs:
    return {"x": draw(2, 4), "weights": _at_kink(network_weights(draw, _KINK))}


for _operation in ("model.forward", "model.jacobian"):

    @define(
        _operation,
        "text-unseen",
        "UNSEEN-UNIFORM UNSEEN-ALL UNSEEN-LOWERED-4 UNSEEN-LOWERED-9 CAUSAL-MISSING",
        spec=_HIDDEN,
    )
    def _(draw: Draw, dtype: str) -> Inputs:
        return {"x": np.array(_PADDED, float), "weights": network_weights(draw, _HIDDEN)}


for _name, (_spec, _covers) in _WHOLE.items():

    @define("model.jacobian", _name, _covers, spec=_spec, train="weights")
    def _(draw: Draw, dtype: str, spec: Spec = _spec) -> Inputs:
        x = draw(2, 4)
        if spec[0]["kind"] == "embedding":
            x = np.array([[[5, 2, 3], [0, 1, 1], [1, 1, 1]], [[0, 6, 1], [1, 0, 0], [1, 0, 1]]])
        return {"x": x.astype(float), "weights": network_weights(draw, spec)}


# ----------------------------------------------------------------------------------- LoKO

_NET = mlp_spec([3, 4, 3], "tanh", lora(1, 2.0))
_PLAIN = mlp_spec([3, 4, 3], "tanh")
_BLOCK = _block(lora=None, ff=3, outputs=2)
_DENSE = {"covariance": "dense"}
_SOFT = {"observation": "softmax", "noise": "ema_innovation_hph"}
_LOGITS = {"observation": "logits", "noise": "ema_innovation"}
_WEIGHTS = {"train": "weights"}
_STEPS: dict[str, tuple[str, Spec, dict[str, Any], int]] = {
    "glm-dense-forgetting": (
        "TIME-MULTIPLIED TIME-NO-FORGETTING TIME-LAM-SQUARED TIME-AFTER",
        _NET,
        _DENSE | {"lam": 0.9},
        1,
    ),
    "glm-dense-process-noise": (
        "TIME-Q-EVERYWHERE TIME-NO-Q TIME-Q-SUBTRACTED",
        _NET,
        _DENSE | {"q": 0.02},
        2,
    ),
    "softmax-dense-time": (
        "TIME-Q-EVERYWHERE TIME-AFTER TIME-Q-DIVIDED TIME-LAM-ON-R",
        _NET,
        _SOFT | _DENSE | {"lam": 0.8, "q": 0.05},
        1,
    ),
    "glm-small-p": ("P-FLOOR", _NET, {}, 1),
    "glm-small-dense-P": ("P-FLOOR", _NET, _DENSE, 1),
    "glm-relu-at-zero": (
        "RELU-JACOBIAN-ONE-AT-ZERO RELU-JACOBIAN-HALF-AT-ZERO SCALE-SINGLE",
        _KINK,
        {},
        1,
    ),
    "transformer-unseen": ("UNSEEN-UNIFORM UNSEEN-ALL", _HIDDEN, {}, 2),
    "weights-glm": ("WEIGHTS-BIASES-FIRST WEIGHTS-BIASES-FROZEN H-NO-J", _PLAIN, _WEIGHTS, 1),
    "weights-logits-dense": (
        "WEIGHTS-BIASES-FIRST P-DENSE-DIAGONAL H-J-IN-LOGITS",
        mlp_spec([3, 3], "relu"),
        _LOGITS | _DENSE | _WEIGHTS,
        1,
    ),
    "weights-transformer": (
        "WEIGHTS-BIASES-FROZEN NOISE-PRIOR-FOR-RESIDUAL NOISE-INNOVATION-FOR-RESIDUAL",
        _BLOCK,
        {"observation": "gaussian", "noise": "ema_residual_hph", "timing": "after"} | _WEIGHTS,
        1,
    ),
}
_RUNS: dict[str, tuple[str, Spec, dict[str, Any], int]] = {
    "glm-dense-forgetting": (
        "TIME-MULTIPLIED TIME-NO-FORGETTING TIME-LAM-SQUARED TIME-AFTER",
        _NET,
        _DENSE | {"lam": 0.9},
        1,
    ),
    "logits-dense-time": (
        "TIME-Q-EVERYWHERE TIME-NO-Q TIME-AFTER",
        _NET,
        _LOGITS | _DENSE | {"lam": 0.9, "q": 0.01},
        1,
    ),
    "weights-softmax": (
        "WEIGHTS-BIASES-FIRST WEIGHTS-BIASES-FROZEN P-NOT-CARRIED",
        _PLAIN,
        _SOFT | _WEIGHTS,
        1,
    ),
}


def _cut(theta: Any, shapes: Inputs) -> Inputs:
    """Cut theta into arrays."""
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()], dtype=int)[:-1]
    parts = zip(shapes.items(), np.split(theta, ends), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in parts}


def _drawn(draw: Draw, name: str, spec: Spec, o: dict[str, Any], batch: int, steps: int) -> Inputs:
    x = loko_inputs(draw, spec, o, batch, steps)
    if spec is _HIDDEN:
        x["x"] = np.array(_PADDED, float)
    if spec is _BLOCK:
        x["x"] = draw(batch, 2, 4)
    if name in ("glm-small-p", "glm-small-dense-P"):
        x |= {key: 1e-9 * x[key] for key in ("p", "P") if key in x}
    if name == "glm-relu-at-zero":
        factors = _at_kink(_cut(x["theta"], trained_shapes(spec)))
        x["weights"] = _at_kink(x["weights"])
        x["theta"] = np.concatenate([a.reshape(-1) for a in factors.values()])
    return x


for _operation, _table, _count in (("loko.step", _STEPS, 0), ("loko.run", _RUNS, 3)):
    for _name, (_covers, _spec, _options, _batch) in _table.items():

        @define(
            _operation,
            _name,
            _covers,
            spec=_spec,
            shared=True,
            **({"observation": "glm", "noise": "glm"} | _options),
        )
        def _(
            draw: Draw,
            dtype: str,
            name: str = _name,
            spec: Spec = _spec,
            options: dict[str, Any] = _options,
            batch: int = _batch,
            steps: int = _count,
        ) -> Inputs:
            return _drawn(draw, name, spec, options, batch, steps)
