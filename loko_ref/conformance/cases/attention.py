"""Cases of transformers: attention, norms, blocks, texts, images, and LoKO's steps on them.

Shapes as in ``operations``; t counts tokens. Token ids are whole numbers in the case's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.conformance.cases.model import loko_inputs, lora, network_weights
from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.network.architectures import (
    NormOrder,
    bert_spec,
    encoder_spec,
    roberta_spec,
    vit_spec,
)

__all__: list[str] = []

Inputs = dict[str, Any]
Spec = list[dict[str, Any]]
Read = Callable[[Draw, str], Any]
"""Makes x."""

# ---------------------------------------------------------------------------------- specs


def _attention(d: int, inner: int, heads: int, sites: Mapping[str, Any], **more: Any) -> Spec:
    """One attention layer and a pool; q, k, v: d -> inner, o: inner -> d."""
    layer: dict[str, Any] = {"kind": "attention", "name": "0", "heads": heads}
    for key in "qkvo":
        i, o = (inner, d) if key == "o" else (d, inner)
        layer[key] = {"in": i, "out": o} | ({"lora": sites[key]} if key in sites else {})
    return [layer | more, {"kind": "pool", "how": "mean"}]


def _block(norm: NormOrder = "pre", layers: int = 1, targets: str = "q v", **more: Any) -> Spec:
    options: dict[str, Any] = {
        "width": 4,
        "heads": 2,
        "ff": 6,
        "outputs": 3,
        "lora": lora(2, 3.0),
    } | more
    return encoder_spec(layers=layers, norm=norm, targets=targets.split(), **options)


def _text(build: Any = bert_spec, **more: Any) -> Spec:
    size = {"vocab": 7, "positions": 7, "layers": 1, "width": 4, "heads": 2, "ff": 5, "outputs": 3}
    made: Spec = build(**size | {"lora": lora(2, 3.0), "eps": 1e-5} | more)
    return made


def _image(image: tuple[int, ...], patch: tuple[int, ...], **more: Any) -> Spec:
    size = {"layers": 1, "width": 4, "heads": 2, "ff": 5, "outputs": 3, "eps": 1e-5}
    spec: Spec = vit_spec(image=image, patch=patch, **size | {"lora": lora(1, 2.0)} | more)
    spec[1]["lora"] = lora(2, 3.0)
    return spec


def _normed(**norm: Any) -> Spec:
    """Linear, norm, linear: on single vectors."""
    return [
        {"kind": "linear", "name": "in", "in": 3, "out": 5, "lora": lora(2, 3.0)},
        {"kind": "layernorm", "name": "norm", "width": 5} | norm,
        {"kind": "linear", "name": "out", "in": 5, "out": 3, "lora": lora(2, 3.0)},
    ]


_NORM_FIRST = _normed()[1:]
_HEADS = _attention(5, 6, 2, {"q": lora(2, 3.0), "v": lora(2, 3.0)})
_CLS: Spec = [_HEADS[0], {"kind": "pool", "how": "cls"}]
_PRE = _block()
_TEXT = _text()
_ROBERTA = _text(roberta_spec)
_CHANNELS = _text(pad=None, inputs=["ids", "types", "mask"])
_LEARNT = _text(pool="mean", dense=False)
_LEARNT[2:2] = [
    {"kind": "prepend", "name": "learnt", "width": 4, "count": 2},
    {"kind": "positions", "name": "places", "width": 4, "count": 8},
]
_VIT = _image((2, 4, 4), (2, 2))
_DEIT = _image((1, 4, 6), (2, 3), tokens=2, pool="mean")

# ----------------------------------------------------------------------------------- inputs


def _tokens(*shape: int, size: float = 1.0) -> Read:
    return lambda draw, dtype: draw(*shape, size=size)


def _ids(*rows: Any) -> Read:
    return lambda draw, dtype: np.array(rows, dtype=float)


def _near_constant(draw: Draw, dtype: str) -> Any:
    """Rows of a common offset, ten thousand (float64) or some hundred times their spread."""
    offset, spread = (1024.0, 0.125) if dtype == "float64" else (64.0, 0.25)
    return offset + draw(2, 5, size=spread)


def _one_constant(draw: Draw, dtype: str) -> Any:
    x = draw(2, 5)
    x[0] = 2.0
    return x


def _saturate(weights: dict[str, Any], dtype: str) -> None:
    """Make scores some hundreds, in place: exp overflows where the largest is not taken out."""
    for key in "qk":
        weights[f"0.{key}.W"] = weights[f"0.{key}.W"] * (40.0 if dtype == "float64" else 12.0)


_BOTH: dict[str, tuple[Spec, Read, str, str]] = {
    "attention-heads": (
        _HEADS,
        _tokens(2, 3, 5),
        "SCORES-SCALE-WIDTH HEADS-INTERLEAVED HEADS-UNSWAPPED HEADS-MERGED-UNSWAPPED HEADS-ONE "
        "LORA-ON-KEYS",
        "QUERIES-JACOBIAN-MISSING SCORES-JACOBIAN-UNSCALED SCORES-JACOBIAN-MISSING "
        "ATTEND-JACOBIAN-DIAGONAL ATTEND-JACOBIAN-MISSING ATTEND-JACOBIAN-NO-SUM",
    ),
    "attention-causal": (
        _attention(4, 4, 2, {"q": lora(2, 3.0), "k": lora(2, 3.0)}, causal=True),
        _tokens(2, 4, 4),
        "CAUSAL-MISSING CAUSAL-STRICT CAUSAL-AHEAD CAUSAL-REVERSED",
        "KEYS-JACOBIAN-MISSING KEYS-JACOBIAN-NOT-TURNED ORDER-KEYS-FIRST",
    ),
    "attention-saturated": (_HEADS, _tokens(2, 3, 5), "SCORES-SWAPPED", ""),
    "attention-one-token": (
        _CLS,
        _tokens(1, 1, 5),
        "HEADS-BIASES-MISSING",
        "VALUES-JACOBIAN-MISSING ATTEND-JACOBIAN-MISSING ATTEND-JACOBIAN-NO-SUM",
    ),
    "layernorm": (
        _normed(),
        _tokens(2, 3),
        "NORM-UNBIASED NORM-RMS NORM-GAIN-MISSING NORM-SHIFT-MISSING NORM-GAIN-PLUS-ONE",
        "NORM-JACOBIAN-NO-GAIN NORM-JACOBIAN-NO-MEAN NORM-JACOBIAN-NO-VARIANCE "
        "NORM-JACOBIAN-NO-STATISTICS",
    ),
    "layernorm-plain": (
        _normed(affine=False, eps=0.0625),
        _tokens(2, 3),
        "NORM-EPS-OUTSIDE NORM-EPS-OTHER",
        "NORM-JACOBIAN-NO-MEAN NORM-JACOBIAN-NO-VARIANCE NORM-JACOBIAN-NO-STATISTICS",
    ),
    "layernorm-near-constant": (_NORM_FIRST, _near_constant, "NORM-ONE-PASS", ""),
    "layernorm-constant": (_NORM_FIRST, _one_constant, "NORM-EPS-MISSING", ""),
    "block-pre": (
        _PRE,
        _tokens(2, 3, 4),
        "BLOCK-NORM-LAST BLOCK-RESIDUAL-NORMED NORM-FINAL-MISSING NORM-AXIS",
        "NORM-JACOBIAN-NO-GAIN",
    ),
    "block-post": (
        _block("post"),
        _tokens(2, 3, 4),
        "BLOCK-NORM-FIRST RESIDUAL-MISSING RESIDUAL-TWICE",
        "RESIDUAL-JACOBIAN-MISSING RESIDUAL-JACOBIAN-SKIP-ONLY",
    ),
    "text": (
        _TEXT,
        _ids([5, 2, 3, 1], [5, 6, 0, 0]),
        "MASK-ATTENTION-IGNORED MASK-INVERTED EMBEDDING-SCALED NORM-EMBEDDING-MISSING "
        "POOLER-TANH-MISSING POOL-MEAN-FOR-CLS POOL-LAST-FOR-CLS",
        "",
    ),
    "text-mean": (
        _text(pool="mean", dense=False),
        _ids([5, 2, 3, 1], [5, 6, 0, 0]),
        "MASK-IGNORED POOL-PADDING POOL-LENGTH POOL-SUM POOL-CLS-FOR-MEAN",
        "",
    ),
    "text-positions": (
        _ROBERTA,
        _ids([0, 4, 3, 2], [0, 6, 1, 2]),
        "POSITION-FROM-PAD POSITION-FROM-ZERO POSITION-FROM-ONE POSITION-OVER-PADDING",
        "",
    ),
    "text-channels": (
        _CHANNELS,
        _ids([[5, 2, 3], [0, 1, 1], [1, 1, 1]], [[0, 6, 1], [1, 0, 0], [1, 0, 1]]),
        "TYPE-MISSING TYPE-ZERO MASK-FROM-IDS",
        "",
    ),
    "text-left-padded": (
        _text(pool="mean", causal=True),
        _ids([0, 0, 3, 1], [4, 6, 2, 2]),
        "CAUSAL-AHEAD CAUSAL-REVERSED MASK-AFTER-SOFTMAX MASK-FINITE MASK-FINITE-ADDED "
        "POSITION-REAL-ALONE POSITION-REAL-FROM-ONE",
        "",
    ),
    "text-first-hidden": (_TEXT, _ids([0, 5, 2, 3], [0, 0, 6, 1]), "MASK-QUERIES", ""),
    "text-learnt-tokens": (
        _LEARNT,
        _ids([5, 2, 3, 1], [5, 6, 0, 0]),
        "MASK-NOT-MOVED CLS-LAST POSITION-BEFORE-CLS",
        "",
    ),
    "image": (
        _VIT,
        _tokens(2, 2, 4, 4),
        "PATCH-CHANNELS-LAST PATCH-TURNED PATCH-COLUMNS POSITION-MISSING",
        "",
    ),
    "image-flat": (_DEIT, _tokens(2, 24), "PATCH-TURNED PATCH-COLUMNS POSITION-BEFORE-CLS", ""),
}
"""For model.forward and model.jacobian: name -> spec, x, covers, and what the latter adds."""

_JACOBIAN: dict[str, tuple[Spec, Read, str]] = {
    **{
        f"block-lora-{key}": (_block(targets=key, lora=lora(2, 3.0)), _tokens(1, 3, 4), covers)
        for key, covers in {
            "q": "QUERIES-JACOBIAN-MISSING SCORES-JACOBIAN-UNSCALED ATTEND-JACOBIAN-DIAGONAL",
            "k": "KEYS-JACOBIAN-MISSING KEYS-JACOBIAN-NOT-TURNED SCORES-JACOBIAN-MISSING",
            "v": "VALUES-JACOBIAN-MISSING VALUES-JACOBIAN-NOT-TURNED",
            "o": "HEADS-MERGED-UNSWAPPED TOKENS-FIRST TOKENS-LAST TOKENS-MEAN",
            "f1": "GELU-TANH GELU-JACOBIAN-NO-DENSITY",
            "f2": "TOKENS-FIRST TOKENS-LAST TOKENS-MEAN",
        }.items()
    },
    "block-gelu-tanh": (
        _block("post", targets="f1 f2", lora=lora(2, 3.0), activation="gelu_tanh"),
        _tokens(1, 3, 4),
        "GELU-ERF",
    ),
    "block-lora-bias": (
        _block("post", targets="q v f1", lora=lora(2, 3.0, True)),
        _tokens(2, 3, 4),
        "ORDER-BIASES-FIRST LORA-BIAS-UNSCALED",
    ),
    "block-rank-one": (
        _block(targets="q k v o", lora=lora(1, 4.0)),
        _tokens(1, 2, 4),
        "ORDER-KEYS-FIRST ORDER-SORTED",
    ),
    "block-full-rank": (
        _block("post", targets="q k v o", lora=lora(4, 2.0), activation="relu"),
        _tokens(1, 3, 4),
        "ORDER-SORTED FLATTEN-COLUMNS RELU-LEAKY",
    ),
    "blocks-deep": (
        _block(layers=2, targets="q k v o f1 f2", lora=lora(1, 2.0), bias=False),
        _tokens(2, 3, 4),
        "ORDER-SITES RESIDUAL-JACOBIAN-MISSING RESIDUAL-JACOBIAN-SKIP-ONLY",
    ),
}
"""For model.jacobian alone."""


@define(
    "model.jacobian",
    "attention-tiny",
    "SCORES-UNSCALED SCORES-SCALED-TWICE ATTEND-QUERIES VALUES-JACOBIAN-NOT-TURNED",
    spec=_attention(2, 2, 1, {"v": lora(1, 1.0)}),
)
@define(
    "model.forward",
    "attention-tiny",
    "SCORES-UNSCALED SCORES-SCALED-TWICE ATTEND-QUERIES",
    spec=_attention(2, 2, 1, {"v": lora(1, 1.0)}),
)
def _(draw: Draw, dtype: str) -> Inputs:
    eye, zero = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]
    weights: Inputs = {f"0.{key}.W": eye for key in "qko"} | {f"0.{k}.b": zero for k in "qkvo"}
    weights |= {"0.v.W": [[1.0, 2.0], [3.0, 4.0]], "0.v.A": [[1.0, 1.0]], "0.v.B": [[1.0], [0.0]]}
    return {"x": [[[1.0, 0.0], [0.0, 2.0]]], "weights": weights}


for _name, (_spec, _read, _covers, _of_Z) in _BOTH.items():
    for _op in ("model.forward", "model.jacobian"):
        _all = f"{_covers} {_of_Z * (_op == 'model.jacobian')}"

        @define(_op, _name, _all, spec=_spec)
        def _(
            draw: Draw, dtype: str, name: str = _name, s: Spec = _spec, x: Read = _read
        ) -> Inputs:
            weights = network_weights(draw, s)
            if name == "attention-saturated":
                _saturate(weights, dtype)
            return {"x": x(draw, dtype), "weights": weights}


for _name, (_spec, _read, _covers) in _JACOBIAN.items():

    @define("model.jacobian", _name, _covers, spec=_spec)
    def _(draw: Draw, dtype: str, s: Spec = _spec, x: Read = _read) -> Inputs:
        return {"weights": network_weights(draw, s), "x": x(draw, dtype)}


# ------------------------------------------------------------------------------------- loko

TINY = _block(lora=lora(1, 2.0), ff=4)
_SHORT = _text(lora=lora(1, 2.0))
_SOFT: dict[str, Any] = {"observation": "softmax", "noise": "ema_innovation_hph"}
_LOGITS: dict[str, Any] = {"observation": "logits", "noise": "ema_innovation"}
_RESIDUAL: dict[str, Any] = {
    "observation": "gaussian",
    "noise": "ema_residual_hph",
    "timing": "after",
}
_PADDED = _ids([5, 2, 3, 1], [5, 6, 0, 0])

_STEPS: dict[str, tuple[str, Spec, Read, dict[str, Any], int]] = {
    "transformer": ("S-PER-TENSOR ORDER-SITES LORA-ON-KEYS", TINY, _tokens(2, 3, 4), {}, 2),
    "transformer-text": (
        "MASK-ATTENTION-IGNORED NORM-EMBEDDING-MISSING EMBEDDING-SCALED",
        _SHORT,
        _PADDED,
        _SOFT,
        2,
    ),
    "transformer-residual": (
        "NOISE-INNOVATION-FOR-RESIDUAL NOISE-PRIOR-FOR-RESIDUAL",
        TINY,
        _tokens(1, 3, 4),
        _RESIDUAL,
        1,
    ),
    "vit-dense": (
        "P-DENSE-DIAGONAL POSITION-MISSING CLS-LAST",
        _image((1, 4, 4), (2, 2)),
        _tokens(1, 1, 4, 4),
        {"covariance": "dense"},
        1,
    ),
}
for _name, (_covers, _spec, _read, _options, _batch) in _STEPS.items():

    @define("loko.step", _name, _covers, spec=_spec, **({"noise": "glm"} | _options))
    def _(
        draw: Draw,
        dtype: str,
        s: Spec = _spec,
        x: Read = _read,
        o: dict[str, Any] = _options,
        batch: int = _batch,
    ) -> Inputs:
        return loko_inputs(draw, s, o, batch) | {"x": x(draw, dtype)}


@define("loko.run", "transformer", "P-NOT-CARRIED P-PRED-CARRIED", spec=TINY, noise="glm")
def _(draw: Draw, dtype: str) -> Inputs:
    return loko_inputs(draw, TINY, {}, 1, 6) | {"x": draw(6, 1, 3, 4)}


@define("loko.run", "transformer-text", "MASK-IGNORED NOISE-RESET", spec=_SHORT, **_LOGITS)
def _(draw: Draw, dtype: str) -> Inputs:
    rows = [[[5, 2, 3, 1]], [[5, 6, 0, 0]], [[4, 4, 2, 0]], [[5, 1, 6, 2]]]
    return loko_inputs(draw, _SHORT, _LOGITS, 1, 4) | {"x": np.array(rows, dtype=float)}
