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
Change = Callable[[dict[str, Any], str], None]
"""Makes the weights what the case is about, in place."""

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
    """Scores of some hundreds: exp overflows where the largest is not taken out."""
    for key in "qk":
        weights[f"0.{key}.W"] = weights[f"0.{key}.W"] * (40.0 if dtype == "float64" else 12.0)


def _as_it_is(weights: dict[str, Any], dtype: str) -> None:
    pass


_BOTH: dict[str, tuple[Spec, Read, str, Change]] = {
    "attention-heads": (
        _HEADS,
        _tokens(2, 3, 5),
        "1 / sqrt d for 1 / sqrt c; heads interleaved in place of side by side",
        _as_it_is,
    ),
    "attention-causal": (
        _attention(4, 4, 2, {"q": lora(2, 3.0), "k": lora(2, 3.0)}, causal=True),
        _tokens(2, 4, 4),
        "the causal mask left out, upside down, or shutting out a token's own key",
        _as_it_is,
    ),
    "attention-saturated": (
        _HEADS,
        _tokens(2, 3, 5),
        "exp without the largest score taken out: overflow",
        _saturate,
    ),
    "attention-one-token": (
        _CLS,
        _tokens(1, 1, 5),
        "batch 1 and one token: squeezed axes; a softmax of one key moves",
        _as_it_is,
    ),
    "layernorm": (
        _normed(),
        _tokens(2, 3),
        "the variance over width - 1; the gain left out of the Jacobian",
        _as_it_is,
    ),
    "layernorm-plain": (
        _normed(affine=False, eps=0.0625),
        _tokens(2, 3),
        "eps outside the root, or another than the one given",
        _as_it_is,
    ),
    "layernorm-near-constant": (
        _NORM_FIRST,
        _near_constant,
        "the variance in one pass, <x^2> - <x>^2: its digits cancel",
        _as_it_is,
    ),
    "layernorm-constant": (_NORM_FIRST, _one_constant, "0 / 0 without eps", _as_it_is),
    "block-pre": (
        _PRE,
        _tokens(2, 3, 4),
        "the norm after the sum in place of before the branch; the last norm left out",
        _as_it_is,
    ),
    "block-post": (
        _block("post"),
        _tokens(2, 3, 4),
        "the norm before the branch in place of after the sum; the branch without x",
        _as_it_is,
    ),
    "text": (
        _TEXT,
        _ids([5, 2, 3, 1], [5, 6, 0, 0]),
        "padding seen as a key; the tanh of the pooler left out; another token than the first",
        _as_it_is,
    ),
    "text-mean": (
        _text(pool="mean", dense=False),
        _ids([5, 2, 3, 1], [5, 6, 0, 0]),
        "padding averaged in",
        _as_it_is,
    ),
    "text-positions": (
        _ROBERTA,
        _ids([0, 4, 3, 2], [0, 6, 1, 2]),
        "RoBERTa's numbering: positions counted from 0, or over padding",
        _as_it_is,
    ),
    "text-channels": (
        _CHANNELS,
        _ids([[5, 2, 3], [0, 1, 1], [1, 1, 1]], [[0, 6, 1], [1, 0, 0], [1, 0, 1]]),
        "the table of types left out; the mask in another channel, or taken from the ids",
        _as_it_is,
    ),
    "text-left-padded": (
        _text(pool="mean", causal=True),
        _ids([0, 0, 3, 1], [4, 6, 2, 2]),
        "NaN from a query that sees no key",
        _as_it_is,
    ),
    "text-first-hidden": (
        _TEXT,
        _ids([0, 5, 2, 3], [0, 0, 6, 1]),
        "the mask on the queries in place of the keys: [CLS] is padding and still sees",
        _as_it_is,
    ),
    "text-learnt-tokens": (
        _LEARNT,
        _ids([5, 2, 3, 1], [5, 6, 0, 0]),
        "a mask that does not move on with tokens put first, or hides them; fewer tokens than "
        "positions",
        _as_it_is,
    ),
    "image": (
        _VIT,
        _tokens(2, 2, 4, 4),
        "patches column by column; channels last; [CLS] at the end; positions from 1",
        _as_it_is,
    ),
    "image-flat": (
        _DEIT,
        _tokens(2, 24),
        "height for width: neither image nor patch is square; one learnt token for two",
        _as_it_is,
    ),
}
"""For model.forward and model.jacobian: name -> spec, x, what it hunts, weights."""

_JACOBIAN: dict[str, tuple[Spec, Read, str]] = {
    **{
        f"block-lora-{key}": (
            _block(targets=key, lora=lora(2, 3.0)),
            _tokens(1, 3, 4),
            f"the cotangent that reaches {what}",
        )
        for key, what in {
            "q": "the queries: the keys' for the queries', 1 / sqrt c left out",
            "k": "the keys: ds not transposed",
            "v": "the values: a not transposed",
            "o": "the output projection: the heads not merged",
            "f1": "the feed-forward's first linear: GELU by tanh in place of erf",
            "f2": "the feed-forward's second linear: a sum over tokens left out",
        }.items()
    },
    "block-gelu-tanh": (
        _block("post", targets="f1 f2", lora=lora(2, 3.0), activation="gelu_tanh"),
        _tokens(1, 3, 4),
        "GELU by erf where the approximation by tanh is asked for",
    ),
    "block-lora-bias": (
        _block("post", targets="q v f1", lora=lora(2, 3.0, True)),
        _tokens(2, 3, 4),
        "bA, bB: their order in theta, their sum over tokens",
    ),
    "block-rank-one": (
        _block(targets="q k v o", lora=lora(1, 4.0)),
        _tokens(1, 2, 4),
        "r = 1: squeezed axes",
    ),
    "block-full-rank": (
        _block("post", targets="q k v o", lora=lora(4, 2.0), activation="relu"),
        _tokens(1, 3, 4),
        "square factors: a transpose fits; order q, k, v, o in theta",
    ),
    "blocks-deep": (
        _block(layers=2, targets="q k v o f1 f2", lora=lora(1, 2.0), bias=False),
        _tokens(2, 3, 4),
        "the order of blocks in theta; q's, k's and v's cotangents not summed; biases that q, k, "
        "v have not",
    ),
}
"""For model.jacobian alone."""


@define(
    "model.jacobian",
    "attention-tiny",
    "anything: one head, two tokens, readable by hand",
    spec=_attention(2, 2, 1, {"v": lora(1, 1.0)}),
)
@define(
    "model.forward",
    "attention-tiny",
    "anything: one head, two tokens, readable by hand",
    spec=_attention(2, 2, 1, {"v": lora(1, 1.0)}),
)
def _(draw: Draw, dtype: str) -> Inputs:
    eye, zero = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]
    weights: Inputs = {f"0.{key}.W": eye for key in "qko"} | {f"0.{k}.b": zero for k in "qkvo"}
    weights |= {"0.v.W": [[1.0, 2.0], [3.0, 4.0]], "0.v.A": [[1.0, 1.0]], "0.v.B": [[1.0], [0.0]]}
    return {"x": [[[1.0, 0.0], [0.0, 2.0]]], "weights": weights}


for _name, (_spec, _read, _hunts, _change) in _BOTH.items():
    for _op in ("model.forward", "model.jacobian"):

        @define(_op, _name, _hunts, spec=_spec)
        def _(
            draw: Draw, dtype: str, s: Spec = _spec, x: Read = _read, change: Change = _change
        ) -> Inputs:
            weights = network_weights(draw, s)
            change(weights, dtype)
            return {"x": x(draw, dtype), "weights": weights}


for _name, (_spec, _read, _hunts) in _JACOBIAN.items():

    @define("model.jacobian", _name, _hunts, spec=_spec)
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
    "transformer": (
        "theta cut at other places than the sites': attention's q, k, v, o",
        TINY,
        _tokens(2, 3, 4),
        {},
        2,
    ),
    "transformer-text": (
        "padding seen; frozen tables among what is trained",
        _SHORT,
        _PADDED,
        _SOFT,
        2,
    ),
    "transformer-residual": (
        "the second pass at the prior theta",
        TINY,
        _tokens(1, 3, 4),
        _RESIDUAL,
        1,
    ),
    "vit-dense": (
        "the dense filter on an image model",
        _image((1, 4, 4), (2, 2)),
        _tokens(1, 1, 4, 4),
        {"covariance": "dense"},
        1,
    ),
}
for _name, (_hunts, _spec, _read, _options, _batch) in _STEPS.items():

    @define("loko.step", _name, _hunts, spec=_spec, **({"noise": "glm"} | _options))
    def _(
        draw: Draw,
        dtype: str,
        s: Spec = _spec,
        x: Read = _read,
        o: dict[str, Any] = _options,
        batch: int = _batch,
    ) -> Inputs:
        return loko_inputs(draw, s, o, batch) | {"x": x(draw, dtype)}


@define("loko.run", "transformer", "drift on attention, six steps", spec=TINY, noise="glm")
def _(draw: Draw, dtype: str) -> Inputs:
    return loko_inputs(draw, TINY, {}, 1, 6) | {"x": draw(6, 1, 3, 4)}


@define("loko.run", "transformer-text", "the last batch's mask kept", spec=_SHORT, **_LOGITS)
def _(draw: Draw, dtype: str) -> Inputs:
    rows = [[[5, 2, 3, 1]], [[5, 6, 0, 0]], [[4, 4, 2, 0]], [[5, 1, 6, 2]]]
    return loko_inputs(draw, _SHORT, _LOGITS, 1, 4) | {"x": np.array(rows, dtype=float)}
