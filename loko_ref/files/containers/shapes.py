"""Checks of an array's shape and of boolean data in a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = 32
"""Most axes of an array in NumPy 1."""


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return a list or tuple as the shape of an array; raise ValueError if it is none."""
    if len(shape) > AXES:
        raise ValueError(f"{len(shape)} axes")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{size!r:.40} is not a size")
    if math.prod(max(d, 1) for d in shape) >= 2**60:  # also where another axis is empty
        raise ValueError(f"no array has shape {tuple(shape)}")
    return tuple(shape)


def are_booleans(raw: NDArray[Any]) -> bool:
    """Return whether all bytes are 0 or 1."""
    return not raw.size or int(raw.view(np.uint8).max()) <= 1
