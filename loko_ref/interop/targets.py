"""Which modules an adapter_config.json means, by PEFT's rules for names and patterns.

Everywhere ``modules`` are full names of the model's modules, in the spelling that the adapter uses.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from loko_ref.interop.fields import Fields, unsupported
from loko_ref.interop.patterns import Expression, search

_ANY_LAYER = Expression("", "", r".*?\.[^.]*\.(?P<idx>\d+)\.")
"""The number of the block, where no layers_pattern is given."""


def targeted(config: Fields, modules: Sequence[str], linear: Collection[str] = ()) -> set[str]:
    """Return the modules that PEFT puts LoRA on.

    Parameters
    ----------
    linear : collection of str
        Those of them that are linears, which ``all-linear`` means.

    Examples
    --------
    >>> query = "roberta.encoder.layer.0.attention.self.query"
    >>> targeted(Fields("adapter_config.json", {"target_modules": ["query"]}), [query]) == {query}
    True
    """
    target = config.data.get("target_modules")
    if isinstance(target, str) and target.lower() == "all-linear":
        # PEFT leaves out the head, where the task has one
        head = "classifier" if config.data.get("task_type") == "SEQ_CLS" else None
        chosen = {module for module in modules if module in linear and module != head}
    else:
        chosen = _named(config, "target_modules", modules)
    chosen -= _named(config, "exclude_modules", modules)
    chosen = {module for module in chosen if not saved(config, module)}
    layers = config.data.get("layers_to_transform")
    if layers in (None, []):
        return chosen
    wanted = {layers} if isinstance(layers, int) else set(layers)
    index = _indices(config, [module for module in modules if module in chosen])
    # what is listed by its full name is chosen in any layer
    return {m for m in chosen if index.get(m) in wanted or m in config.texts("target_modules")}


def _named(config: Fields, key: str, modules: Sequence[str]) -> set[str]:
    names = config.data.get(key)
    if isinstance(names, str) and names:
        return set(search([Expression(config.at(key), names, names, full=True)], modules)[0])
    listed = set(names or ())
    return {m for m in modules if any(tail in listed for tail in _tails(m))}


def _tails(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[j:]) for j in range(len(parts))]


def _indices(config: Fields, modules: Sequence[str]) -> dict[str, int]:
    """Return the number of the block that each module lies in, by layers_pattern."""
    given, where = config.data.get("layers_pattern"), config.at("layers_pattern")
    patterns = [given] if isinstance(given, str) else given or []
    expressions = [
        Expression(where, pattern, rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.") for pattern in patterns
    ]
    found: dict[str, int] = {}
    for answer in search(expressions or [_ANY_LAYER], modules):
        found = {name: int(idx) for name, idx in answer.items() if idx is not None} | found
    return found


def pattern_values(
    config: Fields, key: str, modules: Sequence[str], default: Any
) -> dict[str, Any]:
    """Return each module's value: that of the first pattern that its name ends in."""
    values = dict.fromkeys(modules, default)
    patterns = config.object(key)
    expressions = [
        Expression(config.at(key), pattern, rf"(.*\.)?({pattern})$") for pattern in patterns
    ]
    found = search(expressions, modules)
    for value, names in reversed(list(zip(patterns.values(), found, strict=True))):
        values |= dict.fromkeys(names, value)
    return values


def saved(config: Fields, module: str) -> bool:
    """Return whether a module, or one that it lies in, is among modules_to_save.

    Raises
    ------
    InputError
        If both are: PEFT wraps one within the other, and cannot load what it writes then.
    """
    parts = module.split(".")
    wholes = [".".join(parts[: j + 1]) for j in range(len(parts))]
    found = [w for w in wholes if w.endswith(tuple(config.data.get("modules_to_save") or ()))]
    if len(found) > 1:
        raise unsupported(
            config.at("modules_to_save"),
            config.data["modules_to_save"],
            "names of which none is within another",
            f"the ending of a name: it fits {' and '.join(found[:2])}",
        )
    return bool(found)
