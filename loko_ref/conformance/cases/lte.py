"""Cases of LTE: a forward pass of the heads, one merge, whole runs.

Shapes as in ``operations``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.cases.model import lora
from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.network.spec import linears, mlp_spec, param_shapes
from loko_ref.textbook.lte_heads import FACTORS

__all__: list[str] = []

Inputs = dict[str, Any]


_NET = mlp_spec([5, 6, 3], "tanh", lora(2, 3.0))
_BIASED = mlp_spec([5, 6, 3], "gelu", lora(2, 5.0, bias=True))
_MIXED = mlp_spec([5, 6, 3], "tanh", lora(2, 3.0))
del _MIXED[2]["lora"]
_DEEP = [
    layer
    for j, kind in enumerate(("relu", "softmax", "gelu_tanh", "log_softmax", ""))
    for layer in (
        {
            "kind": "linear",
            "name": str(j),
            "in": (5, 6, 4, 6, 5)[j],
            "out": (6, 4, 6, 5, 3)[j],
            "bias": j != 1,
            "lora": lora(2, 3.0),
        },
        {"kind": kind},
    )
    if layer["kind"]
]
_NORM = {"kind": "layernorm", "width": 4}
_ENCODER: list[dict[str, Any]] = [
    {"kind": "embedding", "name": "embed", "vocab": 7, "width": 4, "positions": 5, "pad": 0},
    {
        "kind": "residual",
        "layers": [
            {**_NORM, "name": "norm"},
            {
                "kind": "attention",
                "name": "attend",
                "heads": 2,
                "q": {"in": 4, "out": 4, "lora": lora(1, 2.0)},
                "k": {"in": 4, "out": 4, "bias": False},  # its gradient would be 0  [LTE-12]
                "v": {"in": 4, "out": 4, "lora": lora(1, 2.0, bias=True)},
                "o": {"in": 4, "out": 4},
            },
        ],
    },
    {"kind": "pool", "how": "mean"},
    {"kind": "linear", "name": "head", "in": 4, "out": 3, "lora": lora(2, 2.0)},
]


def _ids(draw: Draw, *shape: int) -> Any:
    """Token ids below 7; 0 is padding, but at the first place."""
    x = np.floor(3.5 + 3.5 * draw(*shape))
    x[..., 0] = np.maximum(x[..., 0], 1)
    return x


def _replicas(spec: list[dict[str, Any]], weights: Inputs, frozen: bool) -> list[Any]:
    """Arrays of the layers without LoRA, where they are trained."""
    low_rank = {layer["name"] for layer in linears(spec) if layer.get("lora")}
    return [a for k, a in weights.items() if not frozen and k.rsplit(".", 1)[0] not in low_rank]


def _parts(draw: Draw, spec: list[dict[str, Any]], heads: int) -> tuple[Inputs, Inputs]:
    weights, factors = {}, {}
    for name, shape in param_shapes(spec).items():
        if name.rsplit(".", 1)[1] in FACTORS:
            factors[name] = draw(heads, *shape, size=0.7)
        else:
            weights[name] = draw(*shape)
    return weights, factors


_FORWARD: dict[str, tuple[Any, dict[str, Any], bool, str]] = {
    "first": (_NET, {}, False, "LTE-SCALE-ALPHA"),
    "merged": (_NET, {}, True, "LTE-HEAD-UNCORRECTED"),
    "biased": (_BIASED, {}, True, "LTE-BIAS-UNMERGED LTE-BIAS-WITHOUT-B"),
    "mhlora": (_NET, {"mode": "mhlora"}, False, "LTE-MHLORA-OTHER"),
    "mhlora-sum": (_BIASED, {"mode": "mhlora", "scaling": "sum"}, False, "LTE-MHLORA-OTHER"),
    "replica": (_MIXED, {}, True, "LTE-HEAD-UNCORRECTED"),
    "transformer": (_ENCODER, {}, True, "LTE-BIAS-UNMERGED LTE-BIAS-WITHOUT-B"),
}

for _name, (_spec, _options, _late, _covers) in _FORWARD.items():

    @define("lte.forward", _name, _covers, spec=_spec, heads=3, **_options)
    def _(
        draw: Draw, dtype: str, spec: Any = _spec, o: Any = _options, late: bool = _late
    ) -> Inputs:
        weights, factors = _parts(draw, spec, 3)
        if spec is _ENCODER:
            x = _ids(draw, 3, 4, 4)
        else:
            x = draw(4, 5) if o.get("mode") == "mhlora" else draw(3, 4, 5)
        old = {"merged": _parts(draw, spec, 3)[1]} if late else {}
        return {"x": x, "weights": weights, "factors": factors, **old}


_MERGE: dict[str, tuple[tuple[int, int, int, int], dict[str, Any], str]] = {
    "two-heads": (
        (2, 3, 2, 1),
        {"alpha": 2.0},
        "LTE-MERGE-SUM LTE-MERGE-TWICE-MEAN LTE-MERGE-UNCORRECTED",
    ),
    "four-heads": ((4, 6, 5, 3), {"alpha": 7.0}, "LTE-SCALE-ALPHA LTE-MERGE-TWICE-MEAN"),
    "one-head": ((1, 4, 4, 2), {"alpha": 1.0}, "LTE-HEAD-UNCORRECTED LTE-REMEMBERS-NOTHING"),
    "reset": (
        (3, 5, 4, 2),
        {"alpha": 3.0, "reset": "B"},
        "LTE-RESET-FORGETS LTE-RESET-B-KEPT LTE-RESET-A-FOR-B LTE-RESET-BOTH",
    ),
}

for _name, (_sizes, _options, _covers) in _MERGE.items():

    @define("lte.merge", _name, _covers, **_options)
    def _(draw: Draw, dtype: str, sizes: Any = _sizes) -> Inputs:
        heads, out, i, r = sizes
        return {
            "W": draw(out, i),
            "A": draw(heads, r, i),
            "B": draw(heads, out, r),
            "A_merged": draw(heads, r, i),
            "B_merged": draw(heads, out, r),
        }


_SGD = {"optimizer": "sgd", "lr": 0.1}
# a large eps: where a gradient all but cancels, Adam's quotient would have few digits to judge
_ADAMW = {"optimizer": "adamw", "lr": 0.1, "eps": 0.1, "weight_decay": 0.01}
_ADAGRAD = {"optimizer": "adagrad", "lr": 0.1}
_RUN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "sgd": (
        _NET,
        _SGD,
        "LTE-OWN-MEAN LTE-MERGE-SUM LTE-MERGE-UNCORRECTED LTE-CHUNKS-INTERLEAVED "
        "LTE-CHUNKS-REVERSED LTE-GRADIENT-AT-DIFFERENCE",
    ),
    "own": (
        _NET,
        {**_SGD, "reduction": "own", "momentum": 0.9},
        "LTE-REDUCED-TWICE LTE-CHUNKS-INTERLEAVED LTE-CHUNKS-REVERSED SGD-AVERAGE",
    ),
    "adamw": (
        _NET,
        _ADAMW,
        "LTE-STATE-WIPED LTE-COUNT-WIPED LTE-MERGE-LATE LTE-MERGE-NEVER ADAMW-EPS-INSIDE "
        "ADAMW-EPS-EARLY",
    ),
    "adamw-fresh": (
        _NET,
        {**_ADAMW, "optimizer_state": "reset"},
        "LTE-STATE-KEPT LTE-COUNT-KEPT ADAMW-UNCORRECTED ADAMW-CORRECTED-LATE",
    ),
    "reset-B": (
        _NET,
        {**_SGD, "reset": "B"},
        "LTE-RESET-FORGETS LTE-RESET-B-KEPT LTE-RESET-A-FOR-B LTE-RESET-BOTH",
    ),
    "reset-AB": (_NET, {**_ADAGRAD, "reset": "AB"}, "LTE-RESET-A-KEPT LTE-REDRAW-SAME"),
    "biased": (_BIASED, {**_SGD, "momentum": 0.5}, "LTE-BIAS-UNMERGED LTE-STATE-WIPED"),
    "replica": (_MIXED, _SGD, "LTE-REPLICA-FIRST LTE-MERGE-LATE LTE-MERGE-NEVER"),
    "mse": (_NET, {**_SGD, "loss": "mse", "reset": "B"}, "LTE-MSE-SUMMED"),
    "replicated": (
        _NET,
        {**_SGD, "data": "replicated", "merge_every": 1},
        "LTE-OWN-MEAN LTE-REDUCED-TWICE",
    ),
    "mhlora": (_MIXED, {**_SGD, "mode": "mhlora"}, "LTE-MHLORA-OTHER DESCENT-SIGN"),
}

# 1 - beta2^t with a beta2 near 1 has few digits to judge
_ADAM = {**_ADAMW, "beta2": 0.9}
_LOKO: dict[str, Any] = {"optimizer": "loko"}
_SOFTMAX = {**_LOKO, "observation": "softmax", "noise": "ema_innovation_hph"}
_RUN |= {
    "copies": (_NET, {**_ADAM, "realisation": "copies"}, "LTE-COPY-WHOLE LTE-COPY-ADDED"),
    "copies-reset-AB": (
        _BIASED,
        {**_SGD, "realisation": "copies", "reset": "AB"},
        "LTE-RESET-BIAS-A-KEPT LTE-RESET-BIAS-B-KEPT LTE-COPY-WHOLE LTE-COPY-ADDED",
    ),
    "activations": (_DEEP, {**_SGD, "merge_every": 3}, "GELU-ERF SOFTMAX-HEAD-DIAGONAL RELU-LEAKY"),
    "nesterov": (
        _NET,
        {**_SGD, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
        "SGD-NO-NESTEROV SGD-NO-DECAY SGD-DECOUPLED-DECAY",
    ),
    "dampened": (
        _BIASED,
        {**_SGD, "momentum": 0.8, "dampening": 0.3, "optimizer_state": "reset"},
        "SGD-FIRST-DAMPED LTE-STATE-KEPT",
    ),
    "adagrad-decay": (
        _MIXED,
        {
            "optimizer": "adagrad",
            "lr": 0.2,
            "lr_decay": 0.3,
            "initial_accumulator_value": 0.5,
            "eps": 1e-6,
            "optimizer_state": "reset",
        },
        "ADAGRAD-FROM-ZERO ADAGRAD-DECAY-FROM-ONE LTE-STATE-KEPT",
    ),
    "rates": (
        _NET,
        {**_ADAM, "rates": [0.02, 0.1, 0.08, 0.05, 0.01], "merge_at": [1, 4]},
        "LTE-RATE-CONSTANT LTE-RATE-LATE",
    ),
    "reset-at": (
        _BIASED,
        {**_SGD, "momentum": 0.5, "reset": "AB", "merge_at": [1, 2, 4, 5], "reset_at": [2, 4]},
        "LTE-RESET-EVERY LTE-RESET-LATE LTE-RESET-BY-MERGES LTE-REDRAW-BY-RESETS "
        "LTE-RESET-BIAS-A-KEPT",
    ),
    "reset-at-rates": (
        _NET,
        {
            "optimizer": "adagrad",
            "rates": [0.2, 0.1, 0.05, 0.02, 0.1],
            "reset": "AB",
            "realisation": "copies",
            "merge_at": [1, 3, 4],
            "reset_at": [3],
        },
        "LTE-RATE-CONSTANT LTE-RATE-LATE LTE-RESET-EVERY LTE-RESET-LATE LTE-RESET-BY-MERGES "
        "LTE-REDRAW-BY-RESETS",
    ),
    "own-copies": (
        _MIXED,
        {**_ADAGRAD, "reduction": "own", "realisation": "copies"},
        "LTE-REPLICA-FIRST LTE-REMEMBERS-FIRST",
    ),
    "mhlora-sum": (
        _BIASED,
        {**_ADAM, "mode": "mhlora", "scaling": "sum"},
        "LTE-MHLORA-OTHER ADAMW-L2 ADAMW-NO-DECAY ADAMW-DECAY-UNSCALED",
    ),
    "mhlora-adagrad": (_NET, {**_ADAGRAD, "mode": "mhlora", "loss": "mse"}, "LTE-MSE-SUMMED"),
    "frozen": (
        _MIXED,
        {**_SGD, "replicas": "frozen"},
        "LTE-REMEMBERS-FIRST LTE-REMEMBERS-NOTHING LTE-GRADIENT-AT-DIFFERENCE",
    ),
    "evaluated": (
        _MIXED,
        {**_SGD, "merge_every": 3},
        "LTE-EVAL-MERGED-ALONE LTE-EVAL-SUM LTE-EVAL-UNCORRECTED LTE-EVAL-FIRST-HEAD "
        "LTE-EVAL-UNMERGED LTE-EVAL-COPY-MEAN LTE-EVAL-COPY-LAST",
    ),
    "evaluated-reset": (
        _BIASED,
        {**_SGD, "reset": "AB", "realisation": "copies"},
        "LTE-EVAL-STALE LTE-EVAL-UNMERGED",
    ),
    "evaluated-mhlora": (
        _BIASED,
        {**_SGD, "mode": "mhlora"},
        "LTE-MHLORA-OTHER LTE-BIAS-WITHOUT-B",
    ),
    "loko": (
        _NET,
        {**_LOKO},
        "LTE-LOKO-ONE-FILTER LTE-LOKO-P-RESET LTE-LOKO-P-AVERAGED LTE-LOKO-E-REDUCED "
        "LTE-LOKO-SHRUNK",
    ),
    "loko-reset": (
        _NET,
        {**_LOKO, "reset": "AB"},
        "LTE-LOKO-PRIOR-UNASKED LTE-RESET-A-KEPT LTE-REDRAW-SAME",
    ),
    "loko-shrink": (
        _BIASED,
        {
            **_LOKO,
            "observation": "logits",
            "noise": "ema_innovation",
            "beta": 0.7,
            "r0": 0.6,
            "lam": 0.9,
            "q": 0.01,
            "filter_merge": "shrink",
        },
        "LTE-LOKO-SHRINK-IGNORED LTE-LOKO-SHRINK-ROOT LTE-LOKO-R-OTHER LTE-LOKO-R-RESET",
    ),
    "loko-prior": (
        _BIASED,
        {**_SOFTMAX, "beta": 0.8, "r0": 0.4, "reset": "B", "filter_merge": "prior"},
        "LTE-LOKO-PRIOR-ALL LTE-LOKO-PRIOR-IGNORED LTE-LOKO-R-RESET",
    ),
    "loko-fresh": (
        _NET,
        {
            **_LOKO,
            "observation": "gaussian",
            "loss": "mse",
            "noise": "ema_residual_hph",
            "timing": "after",
            "beta": 0.6,
            "r0": 0.8,
            "optimizer_state": "reset",
            "reset": "AB",
            "realisation": "copies",
        },
        "LTE-LOKO-P-KEPT LTE-LOKO-R-KEPT",
    ),
    "loko-shrink-glm": (
        _NET,
        {**_LOKO, "reset": "B", "filter_merge": "shrink"},
        "LTE-LOKO-SHRINK-IGNORED LTE-LOKO-SHRINK-ROOT",
    ),
    "loko-prior-AB": (
        _MIXED,
        {**_LOKO, "reset": "AB", "filter_merge": "prior"},
        "LTE-LOKO-PRIOR-ALL LTE-LOKO-PRIOR-IGNORED",
    ),
    "loko-fresh-softmax": (
        _MIXED,
        {**_SOFTMAX, "beta": 0.7, "r0": 0.5, "optimizer_state": "reset"},
        "LTE-LOKO-P-KEPT LTE-LOKO-R-KEPT",
    ),
    "loko-replica": (
        _MIXED,
        {
            **_LOKO,
            "observation": "gaussian",
            "loss": "mse",
            "noise": "fixed",
            "r0": 0.5,
            "diagonal": "variational",
            "data": "replicated",
        },
        "LTE-REPLICA-FIRST LTE-LOKO-P-AVERAGED LTE-LOKO-P-RESET LTE-LOKO-SHRUNK",
    ),
    "loko-mhlora": (
        _NET,
        {
            **_LOKO,
            "mode": "mhlora",
            "observation": "logits",
            "noise": "ema_residual_hph",
            "timing": "after",
            "center": True,
            "beta": 0.7,
        },
        "LTE-LOKO-ONE-FILTER LTE-LOKO-R-OTHER LTE-LOKO-E-REDUCED",
    ),
    "loko-implicit": (
        _NET,
        {**_LOKO, "solve": "implicit", "lam": 0.8, "q": 0.05},
        "LTE-LOKO-ONE-FILTER IMPLICIT-PRIOR-P IMPLICIT-ONE-ITERATION",
    ),
    "transformer": (
        _ENCODER,
        {**_SGD, "momentum": 0.5},
        "LTE-EVAL-MERGED-ALONE LTE-EVAL-SUM LTE-EVAL-UNCORRECTED LTE-EVAL-FIRST-HEAD "
        "LTE-EVAL-STALE LTE-EVAL-COPY-MEAN LTE-EVAL-COPY-LAST",
    ),
    "transformer-frozen": (
        _ENCODER,
        {**_LOKO, "replicas": "frozen", "reset": "B"},
        "LTE-LOKO-PRIOR-UNASKED LTE-RESET-BIAS-B-KEPT",
    ),
}

for _name, (_spec, _options, _covers) in _RUN.items():
    _all = {"merge_every": 2, **_options}

    @define("lte.run", _name, _covers, spec=_spec, heads=3, **_all)
    def _(
        draw: Draw, dtype: str, name: str = _name, spec: Any = _spec, o: Any = _options
    ) -> Inputs:
        weights, factors = _parts(draw, spec, 3)
        steps, batch = 5, 6
        mse = o.get("loss") == "mse"
        y = draw(steps, batch, 3) if mse else draw.one_hot(steps, batch, C=3)
        if spec is _ENCODER:
            x = _ids(draw, steps, batch, 4)
        else:
            x = draw(steps, batch, 5)
        made = {"x": x, "y": y, "weights": weights, "factors": factors}
        if o.get("reset") == "AB":
            names = [k for k in factors if k.endswith(".A")]
            merges = len(o.get("merge_at", ())) or 2
            made["redraws"] = {k: draw(merges, *factors[k].shape) for k in names}
        if o.get("optimizer") == "loko":
            frozen = o.get("replicas") == "frozen"
            n = sum(a[0].size for a in factors.values())
            made["p"] = draw.positive(n + sum(map(np.size, _replicas(spec, weights, frozen))))
        if name.startswith("evaluated"):
            made["evaluation"] = draw(4, 5)
        if name == "transformer":
            made["evaluation"] = _ids(draw, 2, 4)
        return made
