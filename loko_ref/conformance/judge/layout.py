"""Whether an output of a wrong shape holds the right numbers in another order."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.judge.tolerance import expected

__all__ = ["arranged"]

AXES = 5
"""Most axes of an array whose orders are tried."""


def _agrees(case: Case, name: str, array: Array) -> bool:
    found = ratios(case, {name: array})
    return name in found and float(np.max(found[name], initial=0.0)) <= 1


def arranged(case: Case, name: str, array: Array) -> str:
    """Return a hint on how an output of the wrong shape has to be rearranged to be right.

    Parameters
    ----------
    case : Case
        The case.
    name : str
        The output.
    array : array
        Its value.

    Returns
    -------
    str
        A clause for the report; empty where no order agrees.
    """
    shape = expected(case)[name].shape
    if array.dtype.kind != "f" or array.size == 0:
        return ""
    if array.size == math.prod(shape) and array.ndim <= AXES:
        for order in permutations(range(array.ndim)):
            turned = array.transpose(order)
            if not _agrees(case, name, turned.reshape(shape)):
                continue
            if order == (1, 0) and turned.shape == shape:
                return f"its transpose agrees with the expected {name}"
            moved = "" if order == tuple(sorted(order)) else f"with its axes in the order {order}"
            flat = "" if turned.shape == shape else f"reshaped to {shape}"
            how = " and ".join(part for part in (moved, flat) if part)
            return f"{how} it agrees with the expected {name}"
    if array.ndim > 1 and array.shape == (*shape, shape[-1]):
        right = _agrees(case, name, np.diagonal(array, axis1=-2, axis2=-1))
        return f"its diagonal agrees with the expected {name}" if right else ""
    if array.ndim == len(shape) + 1 and array.shape[-2:] == 2 * array.shape[-1:]:
        batch, C = array.shape[-3], array.shape[-1]
        if shape == (*array.shape[:-3], batch * C, batch * C):
            whole = np.zeros((*array.shape[:-3], batch, C, batch, C), array.dtype)
            for b in range(batch):
                whole[..., b, :, b, :] = array[..., b, :, :]
            if _agrees(case, name, whole.reshape(shape)):
                return f"as the blocks on a diagonal its samples agree with the expected {name}"
    return ""
