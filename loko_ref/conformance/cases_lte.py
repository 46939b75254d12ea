"""Cases of LTE: a forward pass of the heads, one merge, whole runs.

Shapes as in ``operations``.
"""

from __future__ import annotations

from typing import Any

from loko_ref.conformance.cases import Draw, define
from loko_ref.model import mlp_spec, param_shapes

__all__: list[str] = []

Inputs = dict[str, Any]


def _lora(r: int, alpha: float, bias: bool = False) -> dict[str, Any]:
    return {"r": r, "alpha": alpha, "bias": bias}


_NET = mlp_spec([5, 6, 3], "tanh", _lora(2, 3.0))
_BIASED = mlp_spec([5, 6, 3], "gelu", _lora(2, 5.0, bias=True))
_MIXED = mlp_spec([5, 6, 3], "tanh", _lora(2, 3.0))
del _MIXED[2]["lora"]


def _parts(draw: Draw, spec: list[dict[str, Any]], heads: int) -> tuple[Inputs, Inputs]:
    weights, factors = {}, {}
    for name, shape in param_shapes(spec).items():
        if name.rsplit(".", 1)[1] in ("W", "b"):
            weights[name] = draw(*shape)
        else:
            factors[name] = draw(heads, *shape, size=0.7)
    return weights, factors


_FORWARD: dict[str, tuple[Any, dict[str, Any], bool, str]] = {
    "first": (_NET, {}, False, "scale; one head's factors given to another"),
    "merged": (_NET, {}, True, "the correction by what was last merged, missing or added"),
    "biased": (_BIASED, {}, True, "branch biases left out of the branch or of the correction"),
    "mhlora": (_NET, {"mode": "mhlora"}, False, "1 / heads left out"),
    "mhlora-sum": (_BIASED, {"mode": "mhlora", "scaling": "sum"}, False, "1 / heads put in"),
}

for _name, (_spec, _options, _late, _hunts) in _FORWARD.items():

    @define("lte.forward", _name, _hunts, spec=_spec, heads=3, **_options)
    def _(
        draw: Draw, dtype: str, spec: Any = _spec, o: Any = _options, late: bool = _late
    ) -> Inputs:
        weights, factors = _parts(draw, spec, 3)
        x = draw(4, 5) if o.get("mode") == "mhlora" else draw(3, 4, 5)
        old = {"merged": _parts(draw, spec, 3)[1]} if late else {}
        return {"x": x, "weights": weights, "factors": factors, **old}


_MERGE: dict[str, tuple[tuple[int, int, int, int], dict[str, Any], str]] = {
    "two-heads": ((2, 3, 2, 1), {"alpha": 2.0}, "sum for mean; what was merged before left in"),
    "four-heads": ((4, 6, 5, 3), {"alpha": 7.0}, "alpha for alpha / r; 1 / heads twice"),
    "one-head": ((1, 4, 4, 2), {"alpha": 1.0}, "a single head must telescope"),
    "reset": ((3, 5, 4, 2), {"alpha": 3.0, "reset": "B"}, "a reset that forgets the last merge"),
}

for _name, (_sizes, _options, _hunts) in _MERGE.items():

    @define("lte.merge", _name, _hunts, **_options)
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
_RUN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "sgd": (_NET, _SGD, "1 / heads in the gradient; merge by sum; the correction left out"),
    "own": (_NET, {**_SGD, "reduction": "own", "momentum": 0.9}, "1 / heads where none belongs"),
    "adamw": (_NET, _ADAMW, "optimizer state wiped at a merge; a merge a step late"),
    "adamw-fresh": (_NET, {**_ADAMW, "optimizer_state": "reset"}, "state kept at a merge"),
    "reset-B": (_NET, {**_SGD, "reset": "B"}, "a reset that leaves what was merged"),
    "reset-AB": (_NET, {"optimizer": "adagrad", "lr": 0.1, "reset": "AB"}, "A kept at a reset"),
    "biased": (_BIASED, {**_SGD, "momentum": 0.5}, "branch biases not merged"),
    "replica": (_MIXED, _SGD, "a layer without LoRA not averaged"),
    "mse": (_NET, {**_SGD, "loss": "mse", "reset": "B"}, "squared error summed over outputs"),
    "replicated": (_NET, {**_SGD, "data": "replicated", "merge_every": 1}, "chunks for all"),
    "mhlora": (_MIXED, {**_SGD, "mode": "mhlora"}, "1 / heads left out of one pass"),
}

for _name, (_spec, _options, _hunts) in _RUN.items():
    _all = {"merge_every": 2, **_options}

    @define("lte.run", _name, _hunts, spec=_spec, heads=3, **_all)
    def _(draw: Draw, dtype: str, spec: Any = _spec, o: Any = _options) -> Inputs:
        weights, factors = _parts(draw, spec, 3)
        steps, batch = 5, 6
        mse = o.get("loss") == "mse"
        y = draw(steps, batch, 3) if mse else draw.one_hot(steps, batch, C=3)
        made = {"x": draw(steps, batch, 5), "y": y, "weights": weights, "factors": factors}
        if o.get("reset") == "AB":
            names = [k for k in factors if k.endswith(".A")]
            made["redraws"] = {k: draw(2, *factors[k].shape) for k in names}
        return made
