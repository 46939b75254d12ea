"""A failing example as a few lines of Python to paste."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loko_ref.conformance.reports.literals import data, number
from loko_ref.conformance.reports.text import PYTHON

if TYPE_CHECKING:
    from loko_ref.properties.trial import Problem

__all__ = ["snippet"]


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

    Parameters
    ----------
    name : str
        The property.
    target : str
        The implementation, as a report names it.
    problem : Problem
        Inputs and options.
    """
    first: Any = problem.inputs
    while isinstance(first, Mapping):
        first = next(iter(first.values()))
    dtype = str(np.asarray(first).dtype)
    held = "IMPLEMENTATION" if target.startswith(PYTHON) else json.dumps(target)
    items = [f"{key}={data(_numbers(value), 4, 6)}" for key, value in problem.inputs.items()]
    items += [f"{key}={data(_plain(value), 4, 6)}" for key, value in problem.options.items()]
    lines: list[str] = []
    line = ""
    for item in [*items, f'dtype="{dtype}"']:
        if line and len(line) + len(item) > 70:
            lines, line = [*lines, line], ""
        line += f"{' ' if line else ''}{item},"
    inner = "\n".join(f"    {line}" for line in [*lines, line])
    head = f"from loko_ref.properties import check\n\ncheck(\n    {json.dumps(name)}, {held},\n"
    return f"{head}{inner}\n)"


def _plain(value: Any) -> Any:
    """Return an option as JSON data: mappings are dicts, sequences lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
