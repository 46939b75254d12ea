"""Hugging Face classifiers as models, from config.json + safetensors.

The families are those of :mod:`loko_ref.interop.families`: RoBERTa (and XLM-RoBERTa, CamemBERT),
BERT, DistilBERT, ViT, DeiT. A checkpoint's tensors are found by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.checks.values import FORMATS, check_choice, check_whole
from loko_ref.errors import InputError
from loko_ref.interop.families import FAMILIES, modules, spellings
from loko_ref.interop.fields import Fields, read_json, short
from loko_ref.interop.model_config import (
    build_spec,
    check_classifier,
    check_depth,
    depth,
    family_of,
    outputs_of,
)
from loko_ref.interop.tensors import as_floats, find_tensors, read_tensors
from loko_ref.network.layers.embedding import Channel
from loko_ref.network.model import Model, param_shapes

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Tensors that old checkpoints hold and no model needs: counters, not weights."""

OTHER_HEADS = (
    *("lm_head.", "cls.", "pooler.", "decoder.", "classifier.", "pre_classifier."),
    *("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "qa_outputs."),
    *("cls_classifier.", "distillation_classifier."),
)
"""What a checkpoint may hold beside the encoder when a fresh head is asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model with the contents of its configuration files.

    Attributes
    ----------
    model : Model
        The network.
    family : str
        config.json's model_type, one of ``families.FAMILIES``.
    config : mapping
        config.json.
    adapter : mapping
        adapter_config.json, where an adapter was loaded.
    """

    model: Model
    family: str
    config: Mapping[str, Any]
    adapter: Mapping[str, Any] = field(default_factory=dict)

    def modules(self) -> dict[str, tuple[str, ...]]:
        """Our layer name -> the checkpoint's module names, the newest spelling first."""
        return modules(self.family, depth(Fields("config.json", self.config), self.family))


def load_classifier(
    folder: str | Path,
    *,
    dtype: str = "float64",
    inputs: Sequence[Channel] = ("ids",),
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
        Number of classes; by default that of the configuration.
    head : numpy.random.Generator, optional
        Draw a fresh head (normal, deviation 0.02, biases 0), for a checkpoint without one.

    Returns
    -------
    Checkpoint
        Its model has nothing to train yet: load an adapter, or put LoRA on it
        (:func:`loko_ref.network.model.add_lora`).

    Raises
    ------
    InputError
        If the configuration is of another kind, a file is damaged or pickled, or a tensor is
        missing, surplus or misshapen: named.
    """
    check_choice("dtype", dtype, FORMATS)
    if outputs is not None:
        check_whole("outputs", outputs)
    folder = Path(folder)
    config = Fields(str(folder / "config.json"), read_json(folder / "config.json"))
    family = family_of(config)
    if head is None:
        check_classifier(config)
    tensors: dict[str, np.ndarray] = {}
    for path in find_tensors(folder, "model"):
        tensors |= read_tensors(path)
    check_depth(config, family, len(tensors))
    spec = build_spec(config, family, inputs, outputs_of(config) if outputs is None else outputs)
    names_of = spellings(family, depth(config, family))
    shapes = param_shapes(spec)
    fresh = {ours: s for ours, s in shapes.items() if head and ours.startswith("head.")}
    weights, used, missing = {}, set(), []
    for ours, shape in shapes.items():
        if ours in fresh:
            continue
        parts = []
        for names in names_of[ours]:
            name = next((n for n in names if n in tensors), None)
            if name is None:
                missing.append(names[0])
            else:
                used.add(name)
                parts.append((name, tensors[name]))
        if len(parts) == len(names_of[ours]):
            weights[ours] = join(parts, shape, dtype)
    prefix = f"{FAMILIES[family].prefix}."
    surplus = sorted(
        name
        for name in tensors.keys() - used
        if not name.endswith(BUFFERS)
        and not (fresh and name.removeprefix(prefix).startswith(OTHER_HEADS))
    )
    if missing or surplus:
        raise InputError(
            str(folder),
            f"missing {short(missing) if missing else 'nothing'}, "
            f"surplus {short(surplus) if surplus else 'nothing'}"
            + (f" (and {more} more)" if (more := len(missing[8:]) + len(surplus[8:])) else ""),
            f"the tensors of a {family} classifier",
            "a checkpoint without a classifier's head (head=numpy.random.default_rng(seed) draws "
            "a fresh one), or of another architecture",
        )
    for ours, shape in fresh.items():
        assert head is not None
        drawn = np.zeros(shape) if ours.endswith(".b") else 0.02 * head.standard_normal(shape)
        weights[ours] = drawn.astype(dtype)
    return Checkpoint(model=Model(spec=spec, weights=weights), family=family, config=config.data)


def join(parts: Sequence[tuple[str, np.ndarray]], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Make our array of the tensors that it consists of, one below the other.

    Parameters
    ----------
    parts : sequence of (str, array)
        Name and tensor: as ours, a convolution's kernel, or with axes of length 1 before it.
    dtype : dtype
        Of our array; the tensors are floats.
    """
    rows = shape if len(parts) == 1 else (shape[0] // len(parts), *shape[1:])
    arrays = []
    for name, tensor in parts:
        squeezed = tuple(d for d in tensor.shape if d != 1)
        flat = (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.ndim == 4 else squeezed
        if flat != rows and squeezed != tuple(d for d in rows if d != 1):
            raise InputError(
                name,
                f"shape {tensor.shape}",
                f"{rows}",
                "another base model, or a configuration that is not these tensors'",
            )
        arrays.append(as_floats(name, tensor, dtype).reshape(rows))
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
