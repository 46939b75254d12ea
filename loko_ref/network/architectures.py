"""Specs of whole published architectures: encoder, text and image classifiers.

Shapes of the inputs: features (batch, t, width); ids (batch, t) or (batch, channels, t); images
(batch, channels, h, w) or flat.

Layers are named as follows (j counts blocks from 0): attention ``j`` with ``j.q`` ``j.k`` ``j.v``
``j.o``; feed-forward ``j.f1`` ``j.f2``; norms ``j.n1`` ``j.n2``; the head ``head.dense`` (with an
activation) and ``head.out``. Texts begin with ``emb`` and ``emb.norm``; images with ``patch``,
``cls``, ``pos`` and end in ``norm``. There is no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args

from loko_ref.checks.signatures import takes
from loko_ref.checks.values import check_choice, check_whole
from loko_ref.errors import InputError, shown
from loko_ref.network.layers.activation import ACTIVATIONS, ActivationName
from loko_ref.network.layers.embedding import Channel
from loko_ref.network.layers.pool import Pooling

__all__ = ["SMALL", "bert_spec", "blocks", "encoder_spec", "patch_side", "roberta_spec", "vit_spec"]

SMALL: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "ff": 64}
"""Size of the transformers that are trained from scratch here."""

DEEPEST = 10_000
"""Most blocks of a stack."""

PATCHES = 8
"""Most patches along a side of an image."""

Target = Literal["q", "k", "v", "o", "f1", "f2"]
"""Linears of a block that may carry LoRA."""

TARGETS: tuple[Target, ...] = get_args(Target)

NormOrder = Literal["post", "pre"]
"""Norm after each sum (BERT), or before each branch (ViT)."""

Lora = Mapping[str, Any] | None
Layers = list[dict[str, Any]]


@takes(targets=Sequence, lora=(Mapping, NoneType))
def blocks(
    *,
    layers: int,
    width: int,
    heads: int,
    ff: int,
    norm: NormOrder,
    lora: Lora = None,
    targets: Sequence[Target] = ("q", "v"),
    activation: ActivationName = "gelu",
    eps: float = 1e-5,
    causal: bool = False,
    bias: bool = True,
) -> Layers:
    """Stack transformer blocks, tokens to tokens.  [ATT-7].

    Parameters
    ----------
    layers, width, heads, ff : int
        Number of blocks, width of a token, heads, width of the feed-forward's middle.
    norm : {"post", "pre"}
        Norm after each sum (BERT), or before each branch (ViT).
    lora : mapping, optional
        ``{"r", "alpha"}`` and perhaps ``"bias"``, put on the targets.
    targets : sequence of str
        Of q, k, v, o, f1, f2.
    activation, eps, causal
        Of the feed-forward; of the norms; of the attention.
    bias : bool
        Whether q, k, v have biases.
    """
    check_choice("norm", norm, get_args(NormOrder))
    for target in targets:
        check_choice("targets", target, TARGETS)
    check_whole("layers", layers, high=DEEPEST)
    for name, value in (("width", width), ("heads", heads), ("ff", ff)):
        check_whole(name, value)
    check_choice("activation", activation, ACTIVATIONS)

    def lin(key: str, i: int, o: int) -> dict[str, Any]:
        spec: dict[str, Any] = {"in": i, "out": o}
        spec["bias"] = bias if key in ("q", "k", "v") else True
        if lora is not None and key in targets:
            spec["lora"] = dict(lora)
        return spec

    stack: Layers = []
    for j in range(layers):
        projections = {key: lin(key, width, width) for key in ("q", "k", "v", "o")}
        attention = {"kind": "attention", "name": f"{j}", "heads": heads, **projections}
        if causal:
            attention["causal"] = True
        forward = [
            {"kind": "linear", "name": f"{j}.f1", **lin("f1", width, ff)},
            {"kind": activation},
            {"kind": "linear", "name": f"{j}.f2", **lin("f2", ff, width)},
        ]
        n1, n2 = (_norm(f"{j}.{key}", width, eps) for key in ("n1", "n2"))
        if norm == "post":
            first, second = [attention], forward
            stack += [_residual(first), n1, _residual(second), n2]
        else:
            stack += [_residual([n1, attention]), _residual([n2, *forward])]
    return stack


def _residual(layers: Layers) -> dict[str, Any]:
    return {"kind": "residual", "layers": layers}


def _norm(name: str, width: int, eps: float) -> dict[str, Any]:
    return {"kind": "layernorm", "name": name, "width": width, "eps": eps}


def _head(width: int, outputs: int, dense: bool, activation: str) -> Layers:
    head: Layers = []
    if dense:
        head += [{"kind": "linear", "name": "head.dense", "in": width, "out": width}]
        head += [{"kind": activation}]
    return [*head, {"kind": "linear", "name": "head.out", "in": width, "out": outputs}]


def encoder_spec(
    *,
    layers: int,
    width: int,
    heads: int,
    ff: int,
    outputs: int,
    norm: NormOrder = "post",
    pool: Pooling = "mean",
    dense: bool = False,
    dense_activation: ActivationName = "tanh",
    **options: Any,
) -> Layers:
    """Build an encoder classifier on features (batch, t, width).

    Parameters
    ----------
    layers, width, heads, ff : int
        As in :func:`blocks`.
    outputs : int
        C.
    norm : {"post", "pre"}
        Order of norm and branch; ``pre`` ends in a norm of its own.
    pool : {"mean", "cls"}
        How tokens become one vector.
    dense : bool
        Whether the head has another linear before the last one.
    dense_activation : str
        Between the two: tanh (BERT, RoBERTa), or relu (DistilBERT).
    **options
        ``lora``, ``targets``, ``activation``, ``eps``, ``causal``, ``bias`` of :func:`blocks`.

    Examples
    --------
    >>> spec = encoder_spec(layers=1, width=4, heads=2, ff=8, outputs=3)
    >>> [layer["kind"] for layer in spec]
    ['residual', 'layernorm', 'residual', 'layernorm', 'pool', 'linear']
    """
    stack = blocks(layers=layers, width=width, heads=heads, ff=ff, norm=norm, **options)
    if norm == "pre":
        stack.append(_norm("norm", width, options.get("eps", 1e-5)))
    return [*stack, {"kind": "pool", "how": pool}, *_head(width, outputs, dense, dense_activation)]


def bert_spec(
    *,
    vocab: int,
    positions: int,
    layers: int,
    width: int,
    heads: int,
    ff: int,
    outputs: int,
    types: int = 2,
    pad: int | None = 0,
    start: int | None = None,
    inputs: Sequence[Channel] = ("ids",),
    eps: float = 1e-12,
    pool: Pooling = "cls",
    dense: bool = True,
    **options: Any,
) -> Layers:
    """BERT classifier: embeddings, norm, post-norm blocks, [CLS], tanh pooler, linear.

    Parameters
    ----------
    vocab, positions, types : int
        Rows of the three tables; types 0 for none.
    layers, width, heads, ff, outputs : int
        As in :func:`encoder_spec`.
    pad : int or None
        Id of padding, hidden from attention.
    start : int or None
        RoBERTa's numbering of positions (:func:`loko_ref.network.layers.embedding.positions`).
    inputs : sequence of str
        Channels of the integer input, of ids, types, mask.
    eps, pool, dense
        Of every norm; how tokens become one vector; whether there is a tanh pooler.
    **options
        ``lora``, ``targets``, ``activation`` of :func:`blocks`; ``dense_activation`` of
        :func:`encoder_spec`.
    """
    embedding: dict[str, Any] = {
        "kind": "embedding",
        "name": "emb",
        "vocab": vocab,
        "width": width,
        "positions": positions,
    }
    channels = None if tuple(inputs) == ("ids",) else list(inputs)
    given = {"types": types or None, "pad": pad, "start": start, "inputs": channels}
    embedding |= {key: value for key, value in given.items() if value is not None}
    encoder = encoder_spec(
        layers=layers,
        width=width,
        heads=heads,
        ff=ff,
        outputs=outputs,
        pool=pool,
        dense=dense,
        eps=eps,
        **options,
    )
    return [embedding, _norm("emb.norm", width, eps), *encoder]


def roberta_spec(*, pad: int = 1, types: int = 1, eps: float = 1e-5, **options: Any) -> Layers:
    """RoBERTa classifier: BERT's with positions numbered from ``pad + 1`` over real tokens.

    Examples
    --------
    >>> size = dict(layers=1, width=4, heads=2, ff=8, outputs=2)
    >>> spec = roberta_spec(vocab=10, positions=8, **size)
    >>> spec[0]["start"]
    1
    """
    return bert_spec(pad=pad, start=pad, types=types, eps=eps, **options)


@takes(image=Sequence, patch=Sequence)
def vit_spec(
    *,
    image: Sequence[int],
    patch: Sequence[int],
    layers: int,
    width: int,
    heads: int,
    ff: int,
    outputs: int,
    tokens: int = 1,
    eps: float = 1e-12,
    pool: Pooling = "cls",
    **options: Any,
) -> Layers:
    """ViT classifier: patches, [CLS], positions, pre-norm blocks, norm, linear.  [ATT-5].

    Parameters
    ----------
    image : (int, int, int)
        Channels, height, width.
    patch : (int, int)
        Height and width of a patch.
    layers, width, heads, ff, outputs : int
        As in :func:`encoder_spec`.
    tokens : int
        Learnt tokens put first: 1 ([CLS]), 2 (DeiT's distillation token too), or 0.
    eps, pool
        Of every norm; how tokens become one vector.
    **options
        ``lora``, ``targets``, ``activation``, ``bias`` of :func:`blocks`.

    Examples
    --------
    >>> size = dict(layers=1, width=4, heads=2, ff=8, outputs=3)
    >>> spec = vit_spec(image=(1, 8, 8), patch=(2, 2), **size)
    >>> spec[3]["count"]
    17
    """
    for name, sizes, count in (("image", image, 3), ("patch", patch, 2)):
        if len(sizes) != count:
            required = f"{count} whole numbers"
            raise InputError(name, shown(sizes), required, "a side left out, or one for both")
        for size in sizes:
            check_whole(name, size)
    (channels, h, w), (ph, pw) = image, patch
    count = (h // ph) * (w // pw) + tokens
    stack: Layers = [
        {"kind": "patchify", "image": [channels, h, w], "patch": [ph, pw]},
        {"kind": "linear", "name": "patch", "in": channels * ph * pw, "out": width},
    ]
    if tokens:
        stack.append({"kind": "prepend", "name": "cls", "width": width, "count": tokens})
    stack.append({"kind": "positions", "name": "pos", "width": width, "count": count})
    encoder = encoder_spec(
        layers=layers,
        width=width,
        heads=heads,
        ff=ff,
        outputs=outputs,
        norm="pre",
        pool=pool,
        eps=eps,
        **options,
    )
    return [*stack, *encoder]


def patch_side(side: int) -> int:
    """Side of a patch: the smallest divisor that is no single pixel and leaves few patches.

    Parameters
    ----------
    side : int
        Pixels along the image, at least 2.

    Examples
    --------
    >>> [patch_side(side) for side in (8, 28, 32)]
    [2, 4, 4]
    """
    check_whole("side", side, low=2)
    parts = next(k for k in range(PATCHES, 0, -1) if side % k == 0 and side // k >= 2)
    return side // parts
