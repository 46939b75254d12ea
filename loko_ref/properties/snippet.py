"""A failing example as a few lines of Python to paste."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loko_ref.conformance.catalogue.registry import get
from loko_ref.conformance.reports.literals import number
from loko_ref.conformance.reports.text import PYTHON
from loko_ref.network.layers import KINDS
from loko_ref.strategies.transformers import Built

if TYPE_CHECKING:
    from loko_ref.properties.trial import Problem

WIDTH = 100
"""Columns of a line."""


def _numbers(value: Any) -> Any:
    """Return nested lists of numbers with the fewest digits; whole ones without a point."""
    if isinstance(value, Mapping):
        return {name: _numbers(item) for name, item in value.items()}
    array = np.asarray(value)
    if array.ndim:
        return [_numbers(row) for row in array]
    shortest = float(number(array[()]))
    return int(shortest) if shortest == int(shortest) and abs(shortest) < 1e6 else shortest


def snippet(name: str, target: str, problem: Problem) -> str:
    """Return a call of :func:`loko_ref.properties.check` that repeats a failure.

    What is so by default is left out: weights of 0, float64, and what a layer has of itself.

    Parameters
    ----------
    target : str
        The implementation, as a report names it.
    """
    first: Any = problem.inputs
    while isinstance(first, Mapping):
        first = next(iter(first.values()))
    dtype = str(np.asarray(first).dtype)
    held = "IMPLEMENTATION" if target.startswith(PYTHON) else json.dumps(target)
    defaults = {option.name: option.default for option in get(name.split("/")[0]).options}
    chosen = {k: v for k, v in problem.options.items() if v != defaults.get(k)}
    given = {**_numbers(problem.inputs), **_plain(chosen)}
    head = "from loko_ref.properties import check\n"
    if "spec" in chosen:
        given["weights"] = {k: a for k, a in given["weights"].items() if np.any(a)}
        given["spec"] = [_layer(layer) for layer in given["spec"]]
    words = {key: repr(value) for key, value in given.items()}
    if isinstance(spec := chosen.get("spec"), Built):
        head = f"from loko_ref.network.architectures import {spec.name}\n{head}"
        words["spec"] = spec.call
    if dtype != "float64":
        words["dtype"] = repr(dtype)
    names, body = _named(", ".join(f"{key}={value}" for key, value in words.items()))
    text = f"check({json.dumps(name)}, {held}, {body})".replace(": ", ":\0")  # where none breaks
    lines = textwrap.wrap(
        re.sub(r"\[[^\[\]]{,60}\]", lambda row: row[0].replace(", ", ",\0"), text),
        WIDTH,
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{head}\n{names}" + "\n".join(lines).replace("\0", " ") + "\n"


def _named(body: str) -> tuple[str, str]:
    """Name each part of a spec that occurs in it more than once; longest first."""
    parts = set(re.findall(r"(?=(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}))", body))
    lines = ""
    for part in sorted(parts, key=len, reverse=True):
        if body.count(part) > 1 and len(part) > 20:
            name = "LMNOPQRSTUVWXYZ"[lines.count("\n")]
            lines += f"{name} = {part}\n"
            body = body.replace(part, name)
    return lines, body


def _layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer of a spec without what it has by default."""
    kind = KINDS[layer.get("kind", "linear")]  # a projection of attention is a linear
    found = {k: v for k, v in layer.items() if k not in kind.optional or v != kind.optional[k]}
    for key, value in found.items():
        if key == "layers":
            found[key] = [_layer(inner) for inner in value]
        elif key == "lora":
            kept = {k: v for k, v in value.items() if (k, v) != ("bias", False)}
            found[key] = {k: int(v) if v == int(v) else v for k, v in kept.items() if k != "bias"}
            found[key] |= {k: v for k, v in kept.items() if k == "bias"}
        elif isinstance(value, Mapping):
            found[key] = _layer(value)
    return found


def _plain(value: Any) -> Any:
    """Return an option as JSON data: mappings are dicts, sequences lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
