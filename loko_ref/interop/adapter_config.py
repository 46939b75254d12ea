"""What adapter_config.json may hold: the options computed here, and values of their kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loko_ref.checks.fields import real
from loko_ref.interop.fields import Fields, fitting, short, size_kind, unsupported

BIASES = ("none", "lora_only", "all")
"""PEFT's ``bias``: which of the base model's biases an adapter holds."""

REFUSED = {
    "use_dora": "DoRA, which scales the weight's columns",
    "use_qalora": "QA-LoRA, which pools the input",
    "use_bdlora": "block-diagonal factors",
    "alora_invocation_tokens": "activated LoRA, whose branch depends on the prompt",
    "arrow_config": "a mixture of several adapters",
    "layer_replication": "layers that are repeated",
    "target_parameters": "adapted parameters that are no module's weight",
    "kasa_config": "KaSA, which takes singular values out of the weight",
    "trainable_token_indices": "single rows of an embedding table that are trained",
    "monteclora_config": "factors that are random",
    "velora_config": "gradients that are compressed",
}
"""Options that change the function computed, and are not among the models here."""

INITS = (True, False, None, "gaussian", "orthogonal", "eva")
"""PEFT's ``init_lora_weights`` that leave the base's weights as they are, and train both factors.

The others take something out of the weight that they are put on (pissa, olora, corda, loftq,
lora_ga), again at each loading, or freeze a factor (mica).
"""

FLAGS = ("use_rslora", "lora_bias", "fan_in_fan_out", "inference_mode", "ensure_weight_tying")
"""True or false. ``fan_in_fan_out`` refers to GPT-2's layers: PEFT resets it on a linear."""

TEXTS = ("task_type", "peft_version", "base_model_name_or_path", "revision", "megatron_core")

KNOWN = frozenset(
    (
        *(*FLAGS, *TEXTS, *REFUSED),
        *("peft_type", "auto_mapping", "megatron_config", "runtime_config"),
        *("r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights"),
        *("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"),
        *("layers_to_transform", "layers_pattern", "qalora_group_size"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    )
)
"""Options that are read here, or that change nothing that is computed."""


def check_config(file: str, data: Mapping[str, Any]) -> Fields:
    """Raise for what is no LoRA, an option not computed here, or a value of another kind."""
    config = Fields(file, data)
    if data.get("peft_type") is None:
        raise config.bad("peft_type", "LORA", "a foreign file")
    config.choice("peft_type", "LORA", ("LORA",), "an adapter of another method")
    config.refuse(REFUSED)
    init = data.get("init_lora_weights")
    if not isinstance(init, bool | str | None):
        raise config.bad("init_lora_weights", "true, false or a name")
    if init not in INITS:
        raise unsupported(
            config.at("init_lora_weights"),
            init,
            "true, false, 'gaussian', 'orthogonal' or 'eva'",
            "PEFT changes the base's weights at loading, or freezes a factor; PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) writes plain LoRA",
        )
    for key in sorted(data.keys() - KNOWN):
        if data[key]:
            raise unsupported(config.at(key), data[key], "an option known here", "a newer PEFT")
    for key in FLAGS:
        config.flag(key, False)
    for key in TEXTS:
        config.text(key)
    config.choice("bias", "none", BIASES, "a newer PEFT, or a name of another field")
    config.whole("r")
    config.real("lora_alpha")
    config.real("lora_dropout", 0.0, low=0)
    for pattern, value in config.object("rank_pattern").items():
        fitting(f"{config.at('rank_pattern')}: {short(pattern)}", value, size_kind())
    for pattern, value in config.object("alpha_pattern").items():
        fitting(f"{config.at('alpha_pattern')}: {short(pattern)}", value, real())
    _check_names(config)
    return config


def _check_names(config: Fields) -> None:
    data = config.data
    target = data.get("target_modules")
    if not target:
        raise config.bad("target_modules", "names of modules, or a regular expression", "no LoRA")
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        if not isinstance(data.get(key), str):
            config.texts(key)
    for name in config.texts("modules_to_save"):
        if not re.fullmatch(r"[\w.-]+", name):  # PEFT reads it as a name, and as a pattern
            raise config.bad("modules_to_save", "names of modules", "a pattern, or a damaged file")
    chosen = data.get("layers_to_transform")
    for layer in chosen if isinstance(chosen, list) else [chosen]:
        if chosen is not None:
            fitting(config.at("layers_to_transform"), layer, size_kind(0))
    if chosen is None and data.get("layers_pattern"):
        raise config.bad("layers_pattern", "layers_to_transform beside it", "PEFT's rule")
    if chosen not in (None, []) and isinstance(target, str):
        raise config.bad(
            "layers_to_transform",
            "a list of names as target_modules",
            "PEFT's rule: a pattern chooses the layers itself",
        )
