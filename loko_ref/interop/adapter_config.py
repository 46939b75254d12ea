"""What adapter_config.json may say: the options computed here, and values of their kind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loko_ref.checks import check_choice
from loko_ref.errors import InputError

__all__ = ["BIASES", "REFUSED", "check_config"]

BIASES = ("none", "lora_only", "all")
"""PEFT's ``bias``: which of the base model's biases an adapter holds."""

REFUSED = {
    "use_dora": "DoRA scales the weight's columns",
    "use_qalora": "QA-LoRA pools the input",
    "use_bdlora": "the factors are block diagonal",
    "fan_in_fan_out": "the weight is stored transposed",
    "alora_invocation_tokens": "the branch depends on the prompt",
    "arrow_config": "several adapters are mixed",
    "layer_replication": "layers are repeated",
    "target_parameters": "parameters without a module are adapted",
    "kasa_config": "the weight loses its smallest singular values",
    "trainable_token_indices": "single tokens are trained",
    "monteclora_config": "the factors are random",
    "velora_config": "gradients are compressed",
}
"""Options that change the function computed, and are not among the models here."""

INITS = (True, False, None, "gaussian", "orthogonal", "eva")
"""PEFT's ``init_lora_weights`` that leave the base's weights as they are, and train both factors.

The others take something out of the weight that they are put on (pissa, olora, corda, loftq,
lora_ga), again at each loading, or freeze a factor (mica).
"""

KNOWN = frozenset(
    (
        *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision"),
        *("auto_mapping", "inference_mode", "megatron_core", "megatron_config", "runtime_config"),
        *("r", "lora_alpha", "lora_dropout", "lora_bias", "use_rslora", "bias"),
        *("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"),
        *("layers_to_transform", "layers_pattern", "init_lora_weights", "ensure_weight_tying"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    )
)
"""Options that are read here, or that change nothing that is computed."""


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no LoRA, an option that is not computed here, or a value of another kind."""
    where = f"{folder}/adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type", config.get("peft_type"), "LORA", "another adapter")
    for key, why in REFUSED.items():
        if config.get(key):
            raise InputError(f"{where}: {key}", config[key], "its default", why)
    init = config.get("init_lora_weights")
    if init not in INITS:
        raise InputError(
            f"{where}: init_lora_weights",
            repr(init),
            "true, false, 'gaussian', 'orthogonal' or 'eva'",
            "PEFT changes the base's weights at loading, or freezes a factor; PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) writes plain LoRA",
        )
    for key in sorted(config.keys() - KNOWN - REFUSED.keys()):
        if config[key]:
            raise InputError(
                f"{where}: {key}", repr(config[key]), "an option known here", "a newer PEFT"
            )
    check_choice(f"{where}: bias", config.get("bias", "none"), BIASES)
    _check_number(f"{where}: r", config.get("r"), whole=True)
    _check_number(f"{where}: lora_alpha", config.get("lora_alpha"), whole=False)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise InputError(f"{where}: {key}", repr(patterns), "an object", "a damaged file")
        for pattern, value in patterns.items():
            _check_expression(f"{where}: {key}", pattern)
            _check_number(f"{where}: {key}: {pattern}", value, whole=key == "rank_pattern")
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        names = config.get(key)
        if isinstance(names, str) and key != "modules_to_save":
            _check_expression(f"{where}: {key}", names)
        elif names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise InputError(f"{where}: {key}", repr(names), "a list of names", "a damaged file")
    for pattern in config.get("layers_pattern") or ():
        _check_expression(f"{where}: layers_pattern", pattern)
    chosen = config.get("layers_to_transform")
    layers = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
    if not all(isinstance(j, int) and not isinstance(j, bool) for j in layers):
        required = "a whole number, or a list of them"
        raise InputError(f"{where}: layers_to_transform", repr(chosen), required, "a damaged file")
    for key in ("use_rslora", "lora_bias"):
        if not isinstance(config.get(key), bool | None):
            required = "true or false"
            raise InputError(f"{where}: {key}", repr(config[key]), required, "a word in quotes")


def _check_number(where: str, value: Any, *, whole: bool) -> None:
    kind = int if whole else int | float
    finite = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not finite or (whole and value < 1):
        required = "a whole number >= 1" if whole else "a finite number"
        raise InputError(where, repr(value), required, "a damaged file")


def _check_expression(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        got = f"{pattern!r} ({error})"
        raise InputError(where, got, "a regular expression", "a bracket left open") from None
