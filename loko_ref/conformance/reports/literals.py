"""Numbers, arrays and options as Python literals: exact, and of 80 columns at most."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array

WIDTH = 80
"""Columns of a line."""


def number(value: Any) -> str:
    """Write a number with the fewest digits that give it back in its dtype, also by way of float64.

    Examples
    --------
    >>> number(np.float32(0.1)), number(np.float64(np.float32(0.1))), number(np.float64(-0.0))
    ('0.1', '0.10000000149011612', '-0.0')
    """
    short = str(value)
    return short if value.dtype.type(float(short)) == value else repr(float(value))


def _nested(value: Array, indent: int) -> str:
    """Write an array as nested lists, a row a line; further lines are indented to the bracket."""
    if value.ndim == 0:
        return number(value[()])
    pad = " " * (indent + 1)
    if value.ndim > 1:
        return "[" + f",\n{pad}".join(_nested(row, indent + 1) for row in value) + "]"
    words = ", ".join(map(number, value))
    width = WIDTH - indent - 8  # closing brackets follow the last line
    lines = textwrap.wrap(words, width, break_on_hyphens=False, break_long_words=False)
    return "[" + f"\n{pad}".join(lines) + "]"


def literal(value: Any, make: str, indent: int) -> str:
    """Write an array as a call of `make`, a mapping as a dict of them, None as itself."""
    if isinstance(value, Mapping):
        inner = (
            f"{' ' * (indent + 4)}{json.dumps(key)}: {literal(item, make, indent + 4)},\n"
            for key, item in value.items()
        )
        return "{\n" + "".join(inner) + " " * indent + "}"
    if value is None:
        return "None"
    array = np.asarray(value)
    if array.size == 0:
        return f"{make}(np.zeros({array.shape}))"
    whole = _nested(array, 0)
    if "\n" not in whole and indent + len(whole) + 24 <= WIDTH:
        return f"{make}({whole})"
    return f"{make}(\n{' ' * (indent + 4)}{_nested(array, indent + 4)}\n{' ' * indent})"


def data(value: Any, indent: int = 0, before: int = 12) -> str:
    """Write JSON data as Python, on one line where it fits, else an item a line.

    `before` is how many columns of the first line are taken.
    """
    if isinstance(value, str):
        return json.dumps(value)
    if not isinstance(value, Mapping | list):
        return repr(value)
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    keys = [f"{json.dumps(key)}: " for key in value] if opening == "{" else [""] * len(value)
    items = list(value.values() if isinstance(value, Mapping) else value)
    whole = ", ".join(key + data(item, 0, 0) for key, item in zip(keys, items, strict=True))
    if not items or ("\n" not in whole and before + len(whole) + 3 <= WIDTH):
        return opening + whole + closing
    pad = " " * (indent + 4)
    inner = (
        f"{pad}{key}{data(item, indent + 4, indent + 4 + len(key))},\n"
        for key, item in zip(keys, items, strict=True)
    )
    return opening + "\n" + "".join(inner) + " " * indent + closing
