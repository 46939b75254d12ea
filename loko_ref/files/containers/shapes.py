"""What a file may say of an array: its shape, and truth values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AXES", "are_truths", "sized"]

AXES = 32
"""Axes that NumPy 1 can hold."""


def sized(shape: Any) -> tuple[int, ...]:
    """Check that a list or tuple is the shape of an array; raise ValueError else."""
    if len(shape) > AXES:
        raise ValueError(f"{len(shape)} axes")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{size!r:.40} is no size")
    if math.prod(max(d, 1) for d in shape) >= 2**60:  # also where another axis is empty
        raise ValueError(f"no array has shape {tuple(shape)}")
    return tuple(shape)


def are_truths(raw: NDArray[Any]) -> bool:
    """Whether bytes hold truth values: 0 and 1."""
    return not raw.size or int(raw.view(np.uint8).max()) <= 1
