"""PEFT LoRA adapters: adapter_config.json + adapter_model.safetensors, read and written.

Scale of a site: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rank-stabilised scaling; both
r and alpha may be set module by module by patterns. The spec's alpha is chosen so that alpha / r
is that scale. The base model's biases are trained too, those of the sites (``bias: lora_only``) or
all, the norms' among them (``all``), or none.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import to_host
from loko_ref.errors import InputError
from loko_ref.interop.adapter_config import check_config
from loko_ref.interop.checkpoints import Checkpoint, modules, read_json
from loko_ref.interop.tensors import as_floats, find_tensors, read_tensors, write_tensors
from loko_ref.model import Model, param_shapes
from loko_ref.spec import linears, map_linears
from loko_ref.storage import write_bytes

__all__ = ["load_adapter", "save_adapter", "targeted"]

PREFIX = "base_model.model."

UNUSED = (".original_module.", ".modules_to_save.")
"""In the names of what ``bias: all`` stores beside a module of ``modules_to_save``: copies."""


def targeted(config: Mapping[str, Any], module: str, last: Collection[str] = ()) -> bool:
    """Whether PEFT puts LoRA on a module, by its name.

    Parameters
    ----------
    config : mapping
        adapter_config.json.
    module : str
        The module's full name.
    last : collection of str
        Modules that ``all-linear`` leaves out: the head.

    Examples
    --------
    >>> targeted({"target_modules": ["query"]}, "roberta.encoder.layer.0.attention.self.query")
    True
    """
    target, out = config.get("target_modules"), config.get("exclude_modules")
    if _matches(out, module):
        return False
    if target == "all-linear":
        return module not in last
    if not _matches(target, module):
        return False
    chosen = config.get("layers_to_transform")
    if chosen in (None, []) or isinstance(target, str):
        return True
    pattern = config.get("layers_pattern") or ()
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    index: re.Match[str] | None = None
    if not patterns:
        index = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    for one in patterns:
        index = index or re.match(rf".*\.{one}\.(\d+)\.", module)
    layers = [chosen] if isinstance(chosen, int) else list(chosen)
    return index is not None and int(index.group(1)) in layers


def _matches(names: Any, module: str) -> bool:
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Value of the first pattern that a module's name ends in, as PEFT reads rank_pattern."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _saved(config: Mapping[str, Any], module: str) -> bool:
    """Whether a module, or one that it lies in, is among modules_to_save."""
    parts = module.split(".")
    wholes = [".".join(parts[: j + 1]) for j in range(len(parts))]
    return any(w.endswith(name) for w in wholes for name in config.get("modules_to_save") or ())


def load_adapter(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
    """Put a PEFT LoRA adapter on a checkpoint.

    What the adapter trains becomes the model's trainables: the factors, the weights and biases of
    ``modules_to_save``, and the biases that ``bias`` names, in model order, each layer's W, b
    before its A, B.

    Parameters
    ----------
    checkpoint : Checkpoint
        From :func:`loko_ref.interop.load_classifier`, without LoRA.
    folder : path-like
        With adapter_config.json and adapter_model.safetensors.

    Returns
    -------
    Checkpoint
        With the factors in its model and the configuration kept.

    Raises
    ------
    InputError
        If the adapter is of another kind, uses an option that is not computed here, or a tensor is
        missing, surplus or misshapen: named.
    """
    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    check_config(folder, config)
    tensors: dict[str, np.ndarray] = {}
    for path in find_tensors(folder, "adapter_model"):
        tensors |= read_tensors(path)
    model = checkpoint.model
    dtype = model.dtype
    names = modules(checkpoint.family, checkpoint.config["num_hidden_layers"])
    # which spelling of the modules' names this adapter uses: the one that its tensors have
    age = max(
        range(2),
        key=lambda g: sum(f"{PREFIX}{_at(v, g)}." in k for v in names.values() for k in tensors),
    )
    last = [_at(v, age) for k, v in names.items() if k == "head.out"]
    weights, used, missing = dict(model.weights), set(), []
    trained: set[str] = set()

    def take(shape: tuple[int, ...], *names: str) -> np.ndarray:
        full = next((PREFIX + name for name in names if PREFIX + name in tensors), None)
        if full is None:
            missing.append(PREFIX + names[0])
            return np.zeros(shape, dtype)
        used.add(full)
        tensor = tensors[full]
        if tensor.ndim == 4:  # of the convolution that cuts patches  [ATT-5]
            tensor = tensor.reshape(tensor.shape[0], -1)
        if tensor.shape != shape:
            raise InputError(full, f"shape {tensors[full].shape}", f"{shape}", "another base model")
        return as_floats(full, tensor, dtype)

    def set_to(name: str, shape: tuple[int, ...], *theirs: str) -> None:
        weights[name] = take(shape, *theirs)
        trained.add(name)

    def bias(ours: str, module: str) -> None:
        if f"{ours}.b" in weights:  # on a site the base's own layer lies one deeper
            theirs = (f"{module}.base_layer.bias", f"{module}.bias")
            set_to(f"{ours}.b", weights[f"{ours}.b"].shape, *theirs)

    def change(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        ours, i, o = layer["name"], layer["in"], layer["out"]
        module = _at(names[ours], age)
        if layer.get("lora"):
            raise InputError("checkpoint", f"LoRA on '{ours}' already", "none", "loaded twice")
        if _saved(config, module):
            for key, suffix in (("W", "weight"), ("b", "bias")):
                if f"{ours}.{key}" in weights:
                    shape = weights[f"{ours}.{key}"].shape
                    set_to(f"{ours}.{key}", shape, f"{module}.{suffix}")
            return layer
        if config.get("bias") == "all":
            bias(ours, module)
        if not targeted(config, module, last):
            return layer
        if config.get("bias") == "lora_only":
            bias(ours, module)
        r = int(_pattern(config.get("rank_pattern"), module, config["r"]))
        alpha = float(_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
        site = {"r": r, "alpha": alpha * math.sqrt(r) if config.get("use_rslora") else alpha}
        set_to(f"{ours}.A", (r, i), f"{module}.lora_A.weight")
        set_to(f"{ours}.B", (o, r), f"{module}.lora_B.weight")
        if config.get("lora_bias"):  # PEFT's bias is B's alone
            site["bias"] = True
            weights[f"{ours}.bA"] = np.zeros(r, dtype)
            set_to(f"{ours}.bB", (o,), f"{module}.lora_B.bias")
        return {**layer, "lora": site}

    spec = map_linears(model.spec, change)
    if config.get("bias") == "all":
        for ours in sorted(names.keys() - {layer["name"] for layer in linears(spec)}):
            bias(ours, _at(names[ours], age))  # a norm
        used |= {name for name in tensors if any(part in name for part in UNUSED)}
    surplus = sorted(tensors.keys() - used)
    if missing or surplus:
        raise InputError(
            str(folder),
            f"missing {missing[:8] or 'nothing'}, surplus {surplus[:8] or 'nothing'}",
            "the tensors that adapter_config.json's target_modules and modules_to_save name",
            "an adapter of another base model, or a damaged file",
        )
    if not trained:
        raise InputError(
            str(folder),
            f"target_modules {config.get('target_modules')}",
            f"names that the {checkpoint.family} model has",
            "an adapter of another base model",
        )
    trainable = tuple(name for name in param_shapes(spec) if name in trained)
    new = Model(spec=spec, weights=weights, trainable=trainable)
    return Checkpoint(model=new, family=checkpoint.family, config=checkpoint.config, adapter=config)


def _at(spellings: tuple[str, ...], age: int) -> str:
    return spellings[min(age, len(spellings) - 1)]


def save_adapter(
    checkpoint: Checkpoint, folder: str | Path, *, generation: int = 5, task: str | None = None
) -> None:
    """Write a model's LoRA factors as an adapter that ``peft`` loads.

    Trainables that are no factors must be whole layers, which become ``modules_to_save``, or the
    biases of all sites (``bias: lora_only``), or all biases (``all``).

    Parameters
    ----------
    checkpoint : Checkpoint
        Whose model carries LoRA.
    folder : path-like
        Made where it does not exist.
    generation : {5, 4}
        Whose module names ViT's tensors get: transformers 5's or 4's.
    task : str, optional
        PEFT's task_type, such as ``SEQ_CLS``.
    """
    if generation not in (4, 5):
        raise InputError("generation", generation, "4 or 5", "another transformers")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = checkpoint.model
    names = modules(checkpoint.family, checkpoint.config["num_hidden_layers"])
    age = 0 if generation == 5 else 1
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    biased = set()
    saved: list[str] = []
    for layer in linears(model.spec):
        ours = layer["name"]
        module = _at(names[ours], age)
        if layer.get("lora"):
            ranks[module], alphas[module] = layer["lora"]["r"], layer["lora"]["alpha"]
            biased.add(bool(layer["lora"].get("bias")))
            for key, part in (
                ("A", "lora_A.weight"),
                ("B", "lora_B.weight"),
                ("bB", "lora_B.bias"),
            ):
                if f"{ours}.{key}" in model.weights:
                    tensors[f"{PREFIX}{module}.{part}"] = _theirs(model, f"{ours}.{key}")
            shift = model.weights.get(f"{ours}.bA")
            if shift is not None and bool((shift != 0).any()):
                raise InputError(f"{ours}.bA", "not 0", "0", "a bias that PEFT's LoRA has not")
        if f"{ours}.W" in model.trainable:
            saved.append(module)
            for key, part in (("W", "weight"), ("b", "bias")):
                if f"{ours}.{key}" in model.weights:
                    tensors[f"{PREFIX}{module}.{part}"] = _theirs(model, f"{ours}.{key}")
    if not ranks:
        raise InputError("checkpoint", "no LoRA site", "at least one", "add_lora was not called")
    if len(biased) > 1:
        raise InputError("checkpoint", "LoRA biases on some sites", "on all or none", "PEFT's way")
    extra = [
        k for k in model.trainable if k.rsplit(".", 1)[1] not in ("W", "b", "A", "B", "bA", "bB")
    ]
    if extra:
        raise InputError(
            "trainable", extra, "linears only", "a table or norm, which is not written"
        )
    bias, loose = _loose_biases(model, names)
    for ours in loose:
        module = _at(names[ours], age)
        inner = ".base_layer" if module in ranks else ""
        tensors[f"{PREFIX}{module}{inner}.bias"] = to_host(model.weights[f"{ours}.b"])
    r, alpha = (
        Counter(ranks.values()).most_common(1)[0][0],
        Counter(alphas.values()).most_common(1)[0][0],
    )
    whole = {_top(module, checkpoint.family) for module in saved}
    if "classifier" in whole and checkpoint.family == "roberta":  # saved whole or not at all
        for ours in ("head.dense", "head.out"):
            for key, part in (("W", "weight"), ("b", "bias")):
                tensors[f"{PREFIX}{names[ours][0]}.{part}"] = to_host(
                    model.weights[f"{ours}.{key}"]
                )
    config = {
        "peft_type": "LORA",
        "task_type": task if task is not None else checkpoint.adapter.get("task_type"),
        "base_model_name_or_path": checkpoint.adapter.get("base_model_name_or_path"),
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "lora_bias": biased == {True},
        "use_rslora": False,
        "bias": bias,
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        "rank_pattern": {re.escape(k): v for k, v in ranks.items() if v != r},
        "alpha_pattern": {re.escape(k): v for k, v in alphas.items() if v != alpha},
        "modules_to_save": sorted(whole) or None,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_bytes(folder / "adapter_config.json", text.encode("utf-8"))
    write_tensors(folder / "adapter_model.safetensors", tensors)


def _theirs(model: Model, name: str) -> np.ndarray:
    """Give an array the shape that it has in their file: patches are a convolution's.  [ATT-5]."""
    array, first = np.asarray(to_host(model.weights[name])), model.spec[0]
    if name in ("patch.W", "patch.A"):
        return array.reshape(-1, first["image"][0], *first["patch"])
    return array[:, :, None, None] if name == "patch.B" else array


def _loose_biases(model: Model, names: Collection[str]) -> tuple[str, list[str]]:
    """PEFT's word for the biases that are trained without their weight, and their layers."""
    trained = set(model.trainable)
    loose = [k for k in names if f"{k}.b" in trained and f"{k}.W" not in trained]
    sites = {layer["name"] for layer in linears(model.spec) if layer.get("lora")}
    held = {k for k in names if f"{k}.b" in model.weights and f"{k}.W" not in trained}
    if not loose:
        return "none", []
    for word, those in (("lora_only", held & sites), ("all", held)):
        if set(loose) == those:
            return word, loose
    raise InputError(
        "trainable",
        f"the biases of {loose[:8]}",
        "those of every LoRA site, or all, or none",
        "a choice that PEFT's configuration has no word for",
    )


def _top(module: str, family: str) -> str:
    """Name a saved module as PEFT expects it: a head of several layers is saved as one."""
    if family == "roberta" and module.startswith("classifier."):
        return "classifier"
    return module
