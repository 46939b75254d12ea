"""Text to options: ``glm,diagonal=variational,p0=0.1`` and its like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loko_ref import loko
from loko_ref.checks.values import read_number
from loko_ref.errors import InputError, unknown_option
from loko_ref.experiments.config import BASELINES, OPTIMIZERS, default_options
from loko_ref.kalman.observation import OBSERVATIONS

__all__ = ["describe", "parse_optimizers", "parse_pairs", "parse_variants"]


def _kinds(optimizer: str) -> dict[str, type]:
    """Give each option of an optimizer the type that its text is read as."""
    if optimizer != "loko":
        fields = dataclasses.fields(BASELINES[optimizer])
        return {f.name: type(f.default) for f in fields}
    fields = dataclasses.fields(loko.LokoConfig)
    kinds: dict[str, type] = {f.name: type(f.default) for f in fields if f.name != "model"}
    return kinds | {"noise": str, "timing": str}


def _value(argument: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise InputError(argument, repr(text), "true or false", "a value of another option")
    if kind is float:
        return read_number(argument, text)
    return text


def parse_pairs(argument: str, optimizer: str, words: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words as options of an optimizer; a bare word names an observation.

    ``p0.NAME=VALUE`` gives the prior variance of one LoRA site, by its layer's name.

    Parameters
    ----------
    argument : str
        The command's option, for errors.
    optimizer : str
        Whose options.
    words : iterable of str
        The words.

    Examples
    --------
    >>> parse_pairs("--variant", "loko", ["logits", "center=true", "p0.0=0.1", "p0.1=1"])
    {'observation': 'logits', 'center': True, 'p0': {'0': 0.1, '1': 1.0}}
    """
    kinds = _kinds(optimizer)
    found: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.strip().partition("=")
        if not sign:
            if optimizer != "loko" or key not in OBSERVATIONS:
                allowed = OBSERVATIONS if optimizer == "loko" else [f"{k}=..." for k in kinds]
                raise unknown_option(argument, key, allowed)
            found["observation"] = key
            continue
        site = key.removeprefix("p0.") if optimizer == "loko" and key.startswith("p0.") else None
        if site is not None:
            table = found.setdefault("p0", {})
            if not isinstance(table, dict):
                raise InputError(argument, repr(word), "p0 or p0.NAME, not both", "a repeated key")
            table[site] = _value(f"{argument} {key}", text, float)
            continue
        if key not in kinds:
            raise unknown_option(argument, key, kinds)
        if key in found:
            raise InputError(argument, repr(word), f"'{key}' once", "a repeated key")
        found[key] = _value(f"{argument} {key}", text, kinds[key])
    return found


def parse_variants(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Read the values of ``--variant``: options of one LoKO run, or of several.

    A text that begins with the name of an observation model begins a variant of its own; one of
    ``KEY=VALUE`` alone adds to the variant before it.

    Examples
    --------
    >>> parse_variants(["glm", "logits", "beta=0.9,p0=1"])
    [{'observation': 'glm'}, {'observation': 'logits', 'beta': 0.9, 'p0': 1.0}]
    """
    groups: list[list[str]] = []
    for text in texts:
        words = [word for word in text.split(",") if word.strip()]
        if not words:
            raise InputError("--variant", repr(text), "at least one word", "an empty value")
        if not groups or "=" not in words[0]:
            groups.append([])
        groups[-1] += words
    return [parse_pairs("--variant", "loko", words) for words in groups]


def parse_optimizers(texts: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Read the values of ``--optimizer``: ``NAME`` or ``NAME,KEY=VALUE,...``.

    Examples
    --------
    >>> parse_optimizers(["adamw", "sgd,lr=0.03,momentum=0.9"])
    [('adamw', {}), ('sgd', {'lr': 0.03, 'momentum': 0.9})]
    """
    found = []
    for text in texts:
        name, *words = text.split(",")
        name = name.strip().lower()
        if name not in OPTIMIZERS:
            raise unknown_option("--optimizer", name, OPTIMIZERS)
        found.append((name, parse_pairs("--optimizer", name, words)))
    return found


def describe(optimizer: str, options: Mapping[str, Any], regression: bool) -> str:
    """Name an optimizer with those of its options that are not the default.

    Examples
    --------
    >>> describe("adamw", default_options("adamw", False, {"lr": 0.01}), False)
    'adamw lr=0.01'
    """
    given = {"observation": options["observation"]} if "observation" in options else {}
    usual = default_options(optimizer, regression, given)
    words = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in options.items()
        if key != "observation" and value != usual[key]
    ]
    if given and options["observation"] != default_options(optimizer, regression)["observation"]:
        words.insert(0, options["observation"])
    return " ".join([optimizer, *words])
