"""A failing example as a few lines of Python to paste."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loko_ref.conformance.catalogue.registry import get
from loko_ref.conformance.reports.literals import number
from loko_ref.conformance.reports.text import PYTHON

if TYPE_CHECKING:
    from loko_ref.properties.trial import Problem

WIDTH = 92
"""Columns of a line, without its indent."""


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
    given = {**_numbers(problem.inputs), **_plain(chosen), "dtype": dtype}
    body = ", ".join(f"{key}={value!r}" for key, value in given.items())
    lines = textwrap.wrap(body, WIDTH, break_long_words=False, break_on_hyphens=False)
    inner = "".join(f"    {line}\n" for line in lines)
    return (
        "from loko_ref.properties import check\n\n"
        f"check(\n    {json.dumps(name)}, {held},\n{inner})"
    )


def _plain(value: Any) -> Any:
    """Return an option as JSON data: mappings are dicts, sequences lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
