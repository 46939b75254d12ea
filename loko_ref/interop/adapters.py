"""PEFT LoRA adapters: adapter_config.json + adapter_model.safetensors, read and written.

Scale of a site: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rank-stabilised scaling; both
r and alpha may be set module by module by patterns. The spec's alpha is chosen so that alpha / r
is that scale. Whole modules may be trained beside the factors (``modules_to_save``: linears, norms,
tables), and the base model's biases: those of the sites (``bias: lora_only``), all, the norms'
among them (``all``), or none.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import to_host
from loko_ref.errors import InputError
from loko_ref.files.writing import make_folder, write_bytes
from loko_ref.interop.adapter_config import check_config
from loko_ref.interop.checkpoints import Checkpoint, join
from loko_ref.interop.families import LEAF, tables
from loko_ref.interop.fields import Fields, read_json, short, unsupported
from loko_ref.interop.targets import pattern_values, saved, targeted
from loko_ref.interop.tensors import find_tensors, read_tensors, write_tensors
from loko_ref.network.lora import FACTORS
from loko_ref.network.model import Model, param_shapes
from loko_ref.network.spec import linears, map_linears

PREFIX = "base_model.model."

UNUSED = (".original_module.", ".modules_to_save.")
"""In the names of what ``bias: all`` stores beside a module of ``modules_to_save``: copies."""

OTHERS = {
    ".lora_embedding_": "LoRA on an embedding table",
    ".lora_magnitude_vector": "DoRA, which scales the weight's columns",
    ".trainable_tokens_": "single rows of an embedding table that are trained",
    ".token_adapter.": "single rows of an embedding table that are trained",
}
"""In the names of tensors that are not among the models here -> what they are."""

_INFIX = re.compile(r"\.(lora_[AB]|modules_to_save)\.default\.")
"""The adapter's name within a tensor's: PEFT takes it out, torch's state_dict has it."""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}"


class Names:
    """Where an adapter holds each of our arrays, in one spelling of the modules.

    Parameters
    ----------
    age : int
        Which spelling of the modules: 0 the newest, 1 the one before.
    """

    def __init__(self, checkpoint: Checkpoint, age: int) -> None:
        self.module = {k: v[min(age, len(v) - 1)] for k, v in checkpoint.modules().items()}
        self.tables = tables(checkpoint.family)

    def parts(self, array: str) -> tuple[str, ...]:
        """Return the tensors that make up one of our arrays, factors aside."""
        if array in self.tables:
            return self.tables[array]
        ours, key = array.rsplit(".", 1)
        return (f"{self.module[ours]}.{LEAF[key][0]}",)

    def spelt_in(self, tensors: Iterable[str]) -> int:
        """Return how many of an adapter's tensors belong to a module of this spelling."""
        ours = set(self.module.values())
        paths = [itertools.accumulate(t.removeprefix(PREFIX).split("."), _join) for t in tensors]
        return sum(any(path in ours for path in each) for each in paths)

    def home(self, array: str) -> str:
        """Return the module that an array belongs to."""
        return self.parts(array)[0].rsplit(".", 1)[0]


def _read(folder: Path) -> dict[str, np.ndarray]:
    """Read an adapter's tensors, its own name left out; raise for those of other methods."""
    tensors: dict[str, np.ndarray] = {}
    for path in find_tensors(folder, "adapter_model"):
        tensors |= read_tensors(path)
    for name in tensors:
        for part, what in OTHERS.items():
            if part in name:
                raise unsupported(str(folder), name, "lora_A and lora_B of linears", what)
    return {_short_name(name, tensors): tensor for name, tensor in tensors.items()}


def _short_name(name: str, tensors: Mapping[str, Any]) -> str:
    bare = _INFIX.sub(lambda m: "." if "save" in m[1] else f".{m[1]}.", name)
    return name if bare in tensors else bare


def load_adapter(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
    """Put a PEFT LoRA adapter on a checkpoint.

    What the adapter trains becomes the model's trainables: the factors, the weights and biases of
    ``modules_to_save`` (norms and tables too), and the biases that ``bias`` names, in model order,
    each layer's W, b before its A, B.

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
        If the adapter is of another kind or uses an option that is not supported, a pattern in it
        takes too long, or a tensor is missing, surplus or misshapen: named.
    """
    folder = Path(folder)
    file = str(folder / "adapter_config.json")
    config = check_config(file, read_json(folder / "adapter_config.json"))
    tensors = _read(folder)
    model = checkpoint.model
    if any(layer.get("lora") for layer in linears(model.spec)):
        raise InputError("checkpoint", "a model with LoRA already", "none", "loaded twice")
    # which spelling of the modules' names this adapter uses: the one that its tensors have
    names = max(
        (Names(checkpoint, age) for age in range(2)), key=lambda names: names.spelt_in(tensors)
    )
    weights, used, missing = dict(model.weights), set(), []
    trained: set[str] = set()

    def take(array: str, shape: tuple[int, ...], *choices: tuple[str, ...]) -> bool:
        """Read an array from the first of its spellings that is there."""
        for parts in choices:
            full = [PREFIX + part for part in parts]
            if all(name in tensors for name in full):
                used.update(full)
                weights[array] = join([(name, tensors[name]) for name in full], shape, model.dtype)
                return True
        return False

    def train(array: str, shape: tuple[int, ...], *choices: tuple[str, ...]) -> None:
        trained.add(array)
        if not take(array, shape, *choices):
            missing.append(PREFIX + choices[0][0])

    sites = _sites(config, names, [layer["name"] for layer in linears(model.spec)])
    for array, value in model.weights.items():
        ours, parts = array.rsplit(".", 1)[0], names.parts(array)
        if saved(config, names.home(array)):
            train(array, value.shape, parts)
        elif array.endswith(".b") and config.data.get("bias") in ("all", "lora_only"):
            if config.data["bias"] == "all" or ours in sites:
                # on a site the base's own layer lies one deeper
                train(array, value.shape, (f"{names.module[ours]}.base_layer.bias",), parts)
        elif array == "emb.token":  # PEFT's save_embedding_layers: stored, not trained
            take(array, value.shape, parts)

    def put(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        ours, i, o = layer["name"], layer["in"], layer["out"]
        if ours not in sites:
            return layer
        site, module = sites[ours], names.module[ours]
        r = site["r"]
        train(f"{ours}.A", (r, i), (f"{module}.lora_A.weight",))
        train(f"{ours}.B", (o, r), (f"{module}.lora_B.weight",))
        if site.get("bias"):  # PEFT's bias is B's alone
            if f"{ours}.B" in weights:  # r is no larger than the file's arrays
                weights[f"{ours}.bA"] = np.zeros(r, model.dtype)
            train(f"{ours}.bB", (o,), (f"{module}.lora_B.bias",))
        return {**layer, "lora": site}

    spec = map_linears(model.spec, put)
    if config.data.get("bias") == "all":
        used |= {name for name in tensors if any(part in name for part in UNUSED)}
    surplus = sorted(tensors.keys() - used)
    if missing or surplus:
        raise InputError(
            str(folder),
            f"missing {short(missing) if missing else 'nothing'}, "
            f"surplus {short(surplus) if surplus else 'nothing'}",
            "the tensors that adapter_config.json's target_modules and modules_to_save name",
            "an adapter of another base model, or a damaged file",
        )
    if not sites:
        raise InputError(
            config.at("target_modules"),
            short(config.data["target_modules"]),
            f"names that the {checkpoint.family} model has",
            "an adapter of another base model",
        )
    trainable = tuple(name for name in param_shapes(spec) if name in trained)
    return Checkpoint(
        model=Model(spec=spec, weights=weights, trainable=trainable),
        family=checkpoint.family,
        config=checkpoint.config,
        adapter=config.data,
    )


def _sites(config: Fields, names: Names, linear: list[str]) -> dict[str, dict[str, Any]]:
    """Our name of each linear that gets LoRA -> its entry in the spec."""
    ours = {module: name for name, module in names.module.items()}
    ours |= {names.home(array): array for array in names.tables}
    modules, of_linears = list(ours), {names.module[name] for name in linear}
    chosen = targeted(config, modules, of_linears)
    for module in modules:
        if module in chosen and module not in of_linears:
            raise unsupported(
                config.at("target_modules"),
                config.data["target_modules"],
                "names of linears",
                f"LoRA on the table or norm {module}",
            )
    found = [module for module in modules if module in chosen]
    ranks = pattern_values(config, "rank_pattern", found, config.data["r"])
    alphas = pattern_values(config, "alpha_pattern", found, config.data["lora_alpha"])
    sites = {}
    for module in found:
        r, alpha = ranks[module], float(alphas[module])
        site = {
            "r": r,
            "alpha": alpha * math.sqrt(r) if config.flag("use_rslora", False) else alpha,
        }
        sites[ours[module]] = {**site, "bias": True} if config.flag("lora_bias", False) else site
    return sites


def save_adapter(
    checkpoint: Checkpoint, folder: str | Path, *, generation: int = 5, task: str | None = None
) -> None:
    """Write a model's LoRA factors as an adapter that ``peft`` loads.

    Trainables that are no factors must be whole modules, which become ``modules_to_save``, or the
    biases of all sites (``bias: lora_only``), or all biases (``all``). A head of two layers is
    written whole, as PEFT saves it.

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
    folder, model = Path(folder), checkpoint.model
    names = Names(checkpoint, 5 - generation)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    biased = set()
    for layer in linears(model.spec):
        ours, module = layer["name"], names.module[layer["name"]]
        if not layer.get("lora"):
            continue
        ranks[module], alphas[module] = layer["lora"]["r"], layer["lora"]["alpha"]
        biased.add(bool(layer["lora"].get("bias")))
        for key, part in (("A", "lora_A.weight"), ("B", "lora_B.weight"), ("bB", "lora_B.bias")):
            if f"{ours}.{key}" in model.weights:
                tensors[f"{module}.{part}"] = _theirs(model, f"{ours}.{key}")
        shift = model.weights.get(f"{ours}.bA")
        if shift is not None and bool((shift != 0).any()):
            raise InputError(f"{ours}.bA", "not 0", "0", "a bias that PEFT's LoRA does not have")
    if not ranks:
        raise InputError("checkpoint", "no LoRA site", "at least one", "add_lora was not called")
    if len(biased) > 1:
        raise InputError(
            "checkpoint", "LoRA biases on some sites", "on all or none", "one switch in PEFT"
        )
    bias, loose = _loose_biases(model)
    for array in loose:
        ours = array.rsplit(".", 1)[0]
        inner = ".base_layer" if names.module[ours] in ranks else ""
        tensors[f"{names.module[ours]}{inner}.bias"] = to_host(model.weights[array])
    whole = _whole_modules(model, names, loose)
    for module in ranks:
        if saved(whole, module):
            raise InputError(
                "trainable",
                f"LoRA on {module}, which belongs to a module that is trained whole",
                "one or the other",
                "a head of two layers, which PEFT saves as one",
            )
    for array in model.weights:
        if array.rsplit(".", 1)[1] not in FACTORS and saved(whole, names.home(array)):
            parts = names.parts(array)
            rows = np.split(_theirs(model, array), len(parts))
            tensors |= dict(zip(parts, rows, strict=True))
    r, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
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
        "modules_to_save": whole.data["modules_to_save"] or None,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    make_folder("folder", folder)
    write_bytes(folder / "adapter_config.json", text.encode("utf-8"))
    write_tensors(folder / "adapter_model.safetensors", {PREFIX + k: v for k, v in tensors.items()})


def _theirs(model: Model, name: str) -> np.ndarray:
    """Return an array in the shape of PEFT's file: patches are a convolution's.  [ATT-5]."""
    array, first = np.asarray(to_host(model.weights[name])), model.spec[0]
    if name in ("patch.W", "patch.A"):
        return array.reshape(-1, first["image"][0], *first["patch"])
    if name == "patch.B":
        return array[:, :, None, None]
    if name == "cls.token":
        return array[:, None]
    return array[None] if name == "pos.position" else array


def _loose_biases(model: Model) -> tuple[str, list[str]]:
    """Return PEFT's word for the biases that are trained without their weight, and these."""
    trained = set(model.trainable)

    def whole(ours: str) -> bool:
        return f"{ours}.W" in trained or f"{ours}.g" in trained

    held = [k for k in model.weights if k.endswith(".b") and not whole(k[:-2])]
    loose = [k for k in held if k in trained]
    if not loose:
        return "none", []
    sites = {layer["name"] for layer in linears(model.spec) if layer.get("lora")}
    for word, those in (("lora_only", [k for k in held if k[:-2] in sites]), ("all", held)):
        if loose == those:
            return word, loose
    raise InputError(
        "trainable",
        f"the biases of {[k[:-2] for k in loose[:8]]}",
        "those of every LoRA site, or all, or none",
        "a choice that PEFT's configuration cannot express",
    )


def _whole_modules(model: Model, names: Names, loose: list[str]) -> Fields:
    """Name the modules that are trained whole, as ``modules_to_save``."""
    trained = [k for k in model.trainable if k.rsplit(".", 1)[1] not in FACTORS and k not in loose]
    homes = {names.home(array) for array in trained}
    if names.module["head.out"].startswith("classifier."):  # RoBERTa's head is one module
        homes = {"classifier" if home.startswith("classifier.") else home for home in homes}
    outer = [h for h in homes if not any(h.startswith(f"{other}.") for other in homes)]
    whole = Fields("trainable", {"modules_to_save": sorted(outer)})
    for array in model.weights:
        if array.rsplit(".", 1)[1] in FACTORS or array in trained or array.startswith("head."):
            continue
        if saved(whole, names.home(array)):
            raise InputError(
                "trainable",
                f"'{array}' not trained",
                f"all of the module {names.home(array)}, or nothing of it",
                "PEFT's modules_to_save are whole modules",
            )
    return whole
