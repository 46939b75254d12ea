"""What config.json may hold: the family, its sizes and options, as a spec.

A field that changes the function is read, or refused as not supported; what only training or a
loss uses (dropout, problem_type, initializer_range, ...) is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loko_ref.errors import InputError
from loko_ref.interop.families import FAMILIES, Family
from loko_ref.interop.fields import Fields, fitting, short, size_kind, unsupported
from loko_ref.network.architectures import bert_spec, vit_spec
from loko_ref.network.layers.activation import ActivationName
from loko_ref.network.layers.embedding import Channel

ACTIVATIONS: dict[str, ActivationName] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}
"""transformers' name of an activation -> ours."""

REFUSED = {
    "is_decoder": "a decoder, whose attention is causal",
    "is_encoder_decoder": "an encoder with a decoder behind it",
    "add_cross_attention": "a decoder, which attends to another model's states",
    "pruned_heads": "attention heads were taken out of single layers",
    "quantization_config": "quantised weights; save the model again in floating point",
    "auto_map": "a model with Python code of its own beside it",
}
"""Fields that change the function, and are not among the models here."""

CLASSES = 100_000
"""Most classes that one number may ask for: a fresh head takes memory for each."""

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
"""How the classes end whose head is loaded."""


def family_of(config: Fields) -> str:
    """Return the family's name, or raise: not supported."""
    model_type = config.text("model_type")
    if model_type is None:
        raise config.bad("model_type", f"one of {', '.join(FAMILIES)}", "a foreign file")
    return config.choice(
        "model_type", model_type, FAMILIES, "a model of a family that is not computed here"
    )


def depth(config: Fields, family: str) -> int:
    """Return the number of blocks."""
    return config.whole(FAMILIES[family].sizes["layers"])


def outputs_of(config: Fields) -> int:
    """Return the number of classes."""
    labels = config.object("id2label")
    if labels:
        return len(labels)
    classes = config.whole("num_labels", 2)
    if classes > CLASSES:
        raise config.bad("num_labels", f"at most {CLASSES} without their names in id2label")
    return classes


def check_classifier(config: Fields) -> None:
    """Raise if a checkpoint was saved by a class with another head than a classifier's."""
    names = config.texts("architectures")
    if names and not any(name.endswith(CLASSIFIERS) for name in names):
        raise unsupported(
            config.at("architectures"),
            names,
            f"a class that ends in {' or '.join(CLASSIFIERS)}",
            "a checkpoint without a classifier's head (head=numpy.random.default_rng(seed) draws "
            "a fresh one on its encoder), or with a head of another kind",
        )


def build_spec(config: Fields, family: str, inputs: Sequence[Channel], outputs: int) -> Any:
    """Return the spec that a config.json describes; raise for what is not computed here."""
    config.refuse(REFUSED)
    config.texts("architectures")
    own = FAMILIES[family]
    size: dict[str, Any] = {
        key: config.whole(own.sizes[key]) for key in ("layers", "width", "heads", "ff")
    }
    if size["width"] % size["heads"]:
        raise config.bad(
            own.sizes["heads"],
            f"a divisor of {own.sizes['width']} {size['width']}",
            "sizes of different models",
        )
    activation = config.choice(
        own.sizes["activation"], "gelu", ACTIVATIONS, "an activation that is not computed here"
    )
    size |= {"outputs": outputs, "activation": ACTIVATIONS[activation]}
    if family == "distilbert":  # the norms' eps and the head's relu are fixed in its code
        size |= {"eps": 1e-12, "dense_activation": "relu"}
    else:
        size["eps"] = config.real("layer_norm_eps", 1e-12, low=0)
    return _image(config, family, size) if own.image else _text(config, own, inputs, size)


def _image(config: Fields, family: str, size: dict[str, Any]) -> Any:
    image, patch = _sides(config, "image_size"), _sides(config, "patch_size")
    for side, part in zip(image, patch, strict=True):
        if side % part:
            raise unsupported(
                config.at("patch_size"),
                config.data["patch_size"],
                f"a divisor of image_size {short(config.data['image_size'])}",
                "patches that leave a border of the image unread",
            )
    return vit_spec(
        image=(config.whole("num_channels", 3), *image),
        patch=patch,
        tokens=len(FAMILIES[family].tables["cls.token"]),
        bias=config.flag("qkv_bias", True),
        **size,
    )


def _sides(config: Fields, key: str) -> tuple[int, int]:
    """Height and width, which may be one number."""
    value = config.data.get(key)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2:
        raise config.bad(key, "one or two sides")
    height, width = (fitting(config.at(key), side, size_kind()) for side in pair)
    return height, width


def _text(config: Fields, own: Family, inputs: Sequence[Channel], size: dict[str, Any]) -> Any:
    config.choice(
        "position_embedding_type", "absolute", ("absolute",), "attention with relative positions"
    )
    vocab = config.whole("vocab_size")
    pad = None
    if own.rule or config.data.get("pad_token_id", 0) is not None:
        pad = config.whole("pad_token_id", 1 if own.rule else 0, low=0)
        if pad >= vocab:
            raise config.bad("pad_token_id", f"an id below vocab_size {vocab}")
    return bert_spec(
        vocab=vocab,
        positions=config.whole("max_position_embeddings"),
        types=config.whole("type_vocab_size", 2) if "emb.type" in own.tables else 0,
        pad=pad,
        start=pad if own.rule else None,
        inputs=inputs,
        **size,
    )


def check_depth(config: Fields, family: str, tensors: int) -> None:
    """Raise if there are more blocks than tensors in the checkpoint, before a spec is made."""
    layers = depth(config, family)
    if layers > tensors:
        raise InputError(
            config.at(FAMILIES[family].sizes["layers"]),
            layers,
            f"at most {tensors}, the number of the checkpoint's tensors",
            "a config.json of another checkpoint, or a damaged file",
        )
