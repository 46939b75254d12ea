"""Arrays as a page carries them: small ones in full, others as at most 64 x 64 cells.

A cell is one entry, or a block of entries by mean, least and greatest. A number of a cell is two
characters in base 91, its place between the array's least and greatest entry: to 1 / 8280 of that
range. What a reader wants exactly, the largest entries, is written beside it in full.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "FULL", "cells", "largest", "read"]

CELLS = 64
"""Cells a side at most."""

FULL = 64
"""Entries up to which an array is carried in full."""

VECTOR = 512
"""Cells of a long vector at most, laid out in rows."""

_LETTERS = "".join(chr(k) for k in range(35, 127) if chr(k) != "\\")
_BASE = len(_LETTERS)
_TABLE = np.array([a + b for a in _LETTERS for b in _LETTERS])

Numbers = NDArray[np.floating]


def _written(values: Numbers, low: float, high: float) -> str:
    width = high - low
    share = (values.ravel() - low) / width if width > 0 else np.zeros(values.size)
    return "".join(_TABLE[np.rint(share * (_BASE**2 - 1)).astype(int)])


def cells(value: Numbers, *, wide: int | None = None) -> dict[str, Any]:
    """Return an array as the page draws it.

    Parameters
    ----------
    value : array (k,), (k, l) or more
        Axes beyond the second are joined with it.
    wide : int, optional
        A vector's entries in a row; by default as few rows as do.

    Returns
    -------
    dict
        ``r`` rows and ``c`` columns of cells; ``v``, the entries, in full; or ``lo`` and ``hi``,
        the bounds, ``d``, the cells' means, and, where a cell is a block of ``b`` entries, ``n``
        and ``x``, their least and greatest; ``s``, a vector's length.
    """
    value = np.asarray(value, float)
    size = value.size
    if value.ndim < 2:
        wide = wide or (size if size <= CELLS else 32)
        found: dict[str, Any] = {"s": size}
        each = 1 if size <= VECTOR else math.ceil(size / VECTOR)
        filled = math.ceil(size / (each * wide)) * each * wide
        padded = np.full(filled, np.nan)
        padded[:size] = value.ravel()
        blocks = padded.reshape(-1, wide, each)
        found["b"] = [1, each]
    else:
        value = value.reshape(len(value), -1)
        tall, long = (math.ceil(k / CELLS) for k in value.shape)
        rows, columns = (math.ceil(k / b) for k, b in zip(value.shape, (tall, long), strict=True))
        padded = np.full((rows * tall, columns * long), np.nan)
        padded[: value.shape[0], : value.shape[1]] = value
        apart = padded.reshape(rows, tall, columns, long).transpose(0, 2, 1, 3)
        blocks = apart.reshape(rows, columns, -1)
        found = {"s": list(value.shape), "b": [tall, long]}
    found |= {"r": blocks.shape[0], "c": blocks.shape[1]}
    if size <= FULL:
        return found | {"v": value.ravel().tolist()}
    low, high = float(value.min()), float(value.max())
    found |= {"lo": low, "hi": high}
    kept = ~np.isnan(blocks).all(axis=2)  # cells beyond the end are left out: the last ones
    blocks = blocks[kept]
    if blocks.shape[1] == 1:
        return found | {"d": _written(blocks, low, high)}
    ends = {"n": np.nanmin(blocks, axis=1), "x": np.nanmax(blocks, axis=1)}
    parts = {"d": np.nanmean(blocks, axis=1), **ends}
    return found | {k: _written(part, low, high) for k, part in parts.items()}


def largest(value: Numbers, count: int = 8, *, least: bool = False) -> list[list[Any]]:
    """Return index and value of the entries largest in magnitude, or smallest, those first."""
    flat = np.argsort(value if least else -np.abs(value), axis=None, kind="stable")[:count]
    where = np.unravel_index(flat, value.shape)
    return [[*map(int, index), float(value[index])] for index in zip(*where, strict=True)]


def read(packed: dict[str, Any]) -> tuple[Numbers, Numbers, Numbers]:
    """Return the cells of :func:`cells`, as the page reads them: mean, least and greatest."""
    if "v" in packed:
        value = np.array(packed["v"])
        return value, value, value
    low, high = packed["lo"], packed["hi"]

    def numbers(text: str) -> Numbers:
        digits = np.array([_LETTERS.index(letter) for letter in text]).reshape(-1, 2)
        share = (digits @ [_BASE, 1]) / (_BASE**2 - 1)
        return np.asarray(low + (high - low) * share)

    mean, least, most = (numbers(packed.get(part, packed["d"])) for part in "dnx")
    return mean, least, most
