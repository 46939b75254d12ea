"""Hugging Face classifiers as models: RoBERTa, BERT, ViT, DeiT, from config.json + safetensors.

A checkpoint's tensors are found by name; each name has one spelling a generation (transformers 5
renamed ViT's modules in memory, older BERT files say gamma and beta), and all are known here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.architectures import bert_spec, roberta_spec, vit_spec
from loko_ref.checks import check_choice
from loko_ref.errors import InputError
from loko_ref.interop.tensors import as_floats, find_tensors, read_tensors
from loko_ref.model import Model, param_shapes

__all__ = ["FAMILIES", "Checkpoint", "load_classifier", "modules", "read_json"]

FAMILIES = ("roberta", "bert", "vit", "deit")

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""transformers' name of an activation -> ours."""

LIMIT = 2**31 - 1
"""Largest size that a config.json may name."""

DEPTH = 10_000
"""Most blocks that a config.json may name: the spec lists each."""

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Tensors that old checkpoints hold and no model needs: counters, not weights."""

OTHER_HEADS = ("lm_head.", "cls.", "pooler.", "decoder.", "classifier.", "pre_classifier.")
"""What a checkpoint may hold beside the encoder when a fresh head is asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model with what its files said.

    Attributes
    ----------
    model : Model
        The network.
    family : str
        One of ``FAMILIES``.
    config : mapping
        config.json.
    adapter : mapping
        adapter_config.json, where an adapter was loaded.
    """

    model: Model
    family: str
    config: Mapping[str, Any]
    adapter: Mapping[str, Any] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or say what is wrong with the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(path), "no such file", "a JSON file", "a wrong folder") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            str(path), f"{type(error).__name__}: {error}", "a JSON object", "a damaged file"
        ) from None
    if not isinstance(data, dict):
        raise InputError(str(path), type(data).__name__, "a JSON object", "a foreign file")
    return data


def modules(family: str, layers: int) -> dict[str, tuple[str, ...]]:
    """Our layer name -> the checkpoint's module names, the newest spelling first.

    Examples
    --------
    >>> modules("vit", 1)["0.q"]
    ('vit.layers.0.attention.q_proj', 'vit.encoder.layer.0.attention.attention.query')
    """
    found: dict[str, tuple[str, ...]] = {}
    if family in ("roberta", "bert"):
        found["emb.norm"] = (f"{family}.embeddings.LayerNorm",)
        inner = {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "o": "attention.output.dense",
            "n1": "attention.output.LayerNorm",
            "f1": "intermediate.dense",
            "f2": "output.dense",
            "n2": "output.LayerNorm",
        }
        for j in range(layers):
            for key, name in inner.items():
                found[f"{j}.{key}"] = (f"{family}.encoder.layer.{j}.{name}",)
        if family == "roberta":
            found["head.dense"], found["head.out"] = ("classifier.dense",), ("classifier.out_proj",)
        else:
            found["head.dense"], found["head.out"] = ("bert.pooler.dense",), ("classifier",)
        return found
    both = {
        "q": ("attention.q_proj", "attention.attention.query"),
        "k": ("attention.k_proj", "attention.attention.key"),
        "v": ("attention.v_proj", "attention.attention.value"),
        "o": ("attention.o_proj", "attention.output.dense"),
        "n1": ("layernorm_before", "layernorm_before"),
        "f1": ("mlp.fc1", "intermediate.dense"),
        "f2": ("mlp.fc2", "output.dense"),
        "n2": ("layernorm_after", "layernorm_after"),
    }
    found["patch"] = (f"{family}.embeddings.patch_embeddings.projection",)
    for j in range(layers):
        for key, (new, old) in both.items():
            found[f"{j}.{key}"] = (
                f"{family}.layers.{j}.{new}",
                f"{family}.encoder.layer.{j}.{old}",
            )
    found["norm"] = (f"{family}.layernorm",)
    found["head.out"] = ("classifier",)
    return found


def _tables(family: str) -> dict[str, tuple[str, ...]]:
    """Our array name -> the checkpoint's tensors that make it up, one below the other."""
    at = f"{family}.embeddings."
    if family in ("roberta", "bert"):
        return {
            "emb.token": (at + "word_embeddings.weight",),
            "emb.position": (at + "position_embeddings.weight",),
            "emb.type": (at + "token_type_embeddings.weight",),
        }
    tokens = (at + "cls_token",) + ((at + "distillation_token",) if family == "deit" else ())
    return {"cls.token": tokens, "pos.position": (at + "position_embeddings",)}


SUFFIX = {"W": ("weight",), "b": ("bias", "beta"), "g": ("weight", "gamma")}


def _spellings(family: str, layers: int) -> dict[str, list[tuple[str, ...]]]:
    """Our array name -> for each part of it, every name under which a file may hold it."""
    prefix = f"{family}."

    def bare(names: Sequence[str]) -> tuple[str, ...]:  # a bare encoder is saved without prefix
        return (*names, *(n[len(prefix) :] for n in names if n.startswith(prefix)))

    found: dict[str, list[tuple[str, ...]]] = {
        ours: [bare((part,)) for part in parts] for ours, parts in _tables(family).items()
    }
    for ours, theirs in modules(family, layers).items():
        for key, suffixes in SUFFIX.items():
            found[f"{ours}.{key}"] = [bare([f"{m}.{s}" for m in theirs for s in suffixes])]
    return found


def _want(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    if config.get(key, default) is None:
        raise InputError(f"config.json: {key}", "nothing", "a value", "another kind of model")
    return config.get(key, default)


def _size(config: Mapping[str, Any], key: str, default: Any = None) -> int:
    """Read a size: a layer's width, a number of layers; bounded, since each layer takes memory."""
    value = _want(config, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not value <= LIMIT:
        required = f"a whole number, at most {LIMIT}"
        raise InputError(f"config.json: {key}", repr(value), required, "a damaged file")
    if key == "num_hidden_layers" and value > DEPTH:
        raise InputError(f"config.json: {key}", value, f"at most {DEPTH}", "a damaged file")
    return value


def _sides(config: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Height and width, which may be one number."""
    value = _want(config, key)
    pair = value if isinstance(value, list) else [value, value]
    sizes = tuple(_size({key: side}, key) for side in pair)
    if len(sizes) != 2 or min(sizes) < 1:
        raise InputError(f"config.json: {key}", repr(value), "one or two sides", "a damaged file")
    return sizes


def _outputs(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    if labels and not isinstance(labels, dict):
        raise InputError("config.json: id2label", repr(labels), "an object", "a damaged file")
    return len(labels) if labels else _size(config, "num_labels", 2)


def build_spec(config: Mapping[str, Any], inputs: Sequence[str], outputs: int) -> tuple[str, Any]:
    """Family and spec that a config.json describes; refuses what the oracle does not compute."""
    family = str(config.get("model_type"))
    check_choice("config.json: model_type", family, FAMILIES)
    activation = config.get("hidden_act", "gelu")
    check_choice("config.json: hidden_act", activation, ACTIVATIONS)
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        raise InputError(
            "config.json: architectures", repr(architectures), "a list of names", "a damaged file"
        )
    for architecture in map(str, architectures):
        if architecture.endswith("WithTeacher"):
            raise InputError(
                "config.json: architectures",
                architecture,
                "DeiTForImageClassification",
                "a head on the distillation token too, which is not among the models here",
            )
    size = {
        "layers": _size(config, "num_hidden_layers"),
        "width": _size(config, "hidden_size"),
        "heads": _size(config, "num_attention_heads"),
        "ff": _size(config, "intermediate_size"),
        "outputs": outputs,
        "eps": _want(config, "layer_norm_eps", 1e-12),
        "activation": ACTIVATIONS[activation],
    }
    if family in ("vit", "deit"):
        bias = config.get("qkv_bias", True)
        if not isinstance(bias, bool):
            raise InputError("config.json: qkv_bias", repr(bias), "true or false", "a damaged file")
        return family, vit_spec(
            image=(_size(config, "num_channels", 3), *_sides(config, "image_size")),
            patch=_sides(config, "patch_size"),
            tokens=1 if family == "vit" else 2,
            bias=bias,
            **size,
        )
    kind = config.get("position_embedding_type") or "absolute"
    check_choice("config.json: position_embedding_type", kind, ("absolute",))
    if config.get("is_decoder"):
        raise InputError("config.json: is_decoder", True, "False", "a model with causal attention")
    make: Callable[..., Any] = roberta_spec if family == "roberta" else bert_spec
    return family, make(
        vocab=_size(config, "vocab_size"),
        positions=_size(config, "max_position_embeddings"),
        types=_size(config, "type_vocab_size", 2),
        pad=_size(config, "pad_token_id", 1 if family == "roberta" else 0),
        inputs=inputs,
        **size,
    )


def load_classifier(
    folder: str | Path,
    *,
    dtype: str = "float64",
    inputs: Sequence[str] = ("ids",),
    outputs: int | None = None,
    head: np.random.Generator | None = None,
) -> Checkpoint:
    """Read a sequence or image classifier saved by transformers.

    Parameters
    ----------
    folder : path-like
        With config.json and model.safetensors (or its shards).
    dtype : {"float64", "float32"}
        Of the model; the file's numbers are cast, float16 and bfloat16 exactly.
    inputs : sequence of str
        Channels of the integer input of a text model, of ids, types, mask. Without ``mask``,
        tokens equal to the configuration's pad_token_id are padding.
    outputs : int, optional
        Number of classes; by default what the configuration says.
    head : numpy.random.Generator, optional
        Draw a fresh head (normal, deviation 0.02, biases 0), for a checkpoint without one.

    Returns
    -------
    Checkpoint
        Its model has nothing to train yet: load an adapter, or put LoRA on it
        (:func:`loko_ref.model.add_lora`).

    Raises
    ------
    InputError
        If the configuration is of another kind, a file is damaged or pickled, or a tensor is
        missing, surplus or misshapen: named.
    """
    check_choice("dtype", dtype, ("float64", "float32"))
    folder = Path(folder)
    config = read_json(folder / "config.json")
    family, spec = build_spec(config, inputs, _outputs(config) if outputs is None else outputs)
    tensors: dict[str, np.ndarray] = {}
    for path in find_tensors(folder, "model"):
        tensors |= read_tensors(path)
    spellings = _spellings(family, config["num_hidden_layers"])
    fresh: Mapping[str, Any] = {}
    if head is not None:
        fresh = {
            key: np.zeros(s) if key.endswith(".b") else 0.02 * head.standard_normal(s)
            for key, s in param_shapes(spec).items()
            if key.startswith("head.")
        }
    weights, used, missing = {}, set(), []
    for ours, shape in param_shapes(spec).items():
        if ours in fresh:
            weights[ours] = fresh[ours].astype(dtype)
            continue
        parts = []
        for names in spellings[ours]:
            name = next((n for n in names if n in tensors), None)
            if name is None:
                missing.append(names[0])
            else:
                used.add(name)
                parts.append((name, as_floats(name, tensors[name], dtype)))
        if len(parts) == len(spellings[ours]):
            weights[ours] = _join(parts, shape)
    surplus = sorted(
        name
        for name in tensors.keys() - used
        if not name.endswith(BUFFERS)
        and not (fresh and name.removeprefix(f"{family}.").startswith(OTHER_HEADS))
    )
    if missing or surplus:
        raise InputError(
            str(folder),
            f"missing {missing[:8] or 'nothing'}, surplus {surplus[:8] or 'nothing'}"
            + (f" (and {more} more)" if (more := len(missing[8:]) + len(surplus[8:])) else ""),
            f"the tensors of a {family} classifier",
            "a checkpoint without a classifier's head (head=numpy.random.default_rng(seed) draws "
            "a fresh one), or of another architecture",
        )
    return Checkpoint(model=Model(spec=spec, weights=weights), family=family, config=config)


def _join(parts: Sequence[tuple[str, np.ndarray]], shape: tuple[int, ...]) -> np.ndarray:
    """Reshape a tensor to ours (a convolution kernel, a token with leading ones), or stack some."""
    rows = shape if len(parts) == 1 else (shape[0] // len(parts), *shape[1:])
    arrays = []
    for name, tensor in parts:
        squeezed = tuple(d for d in tensor.shape if d != 1)
        flat = (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.ndim == 4 else squeezed
        if flat != rows and squeezed != tuple(d for d in rows if d != 1):
            raise InputError(
                name, f"shape {tensor.shape}", f"{rows}", "a checkpoint that its config.json belies"
            )
        arrays.append(tensor.reshape(rows))
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
