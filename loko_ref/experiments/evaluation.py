"""The network's outputs on many samples, some at a time, so that memory stays bounded.

Shapes: x (samples, i), or (samples, t) ids of a text; z (samples, C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from loko_ref.arrays import Array, asarray, namespace

EVALUATED = 1024
"""Samples that are evaluated together."""


def outputs(forward: Callable[[Array], Array], x: NDArray[Any], like: Array) -> Array:
    """Return the outputs z on all samples.

    Parameters
    ----------
    forward : callable
        From samples to their outputs.
    x : array (samples, i)
        On the host, at least one sample.
    like : array
        Where they are evaluated.
    """
    spans = (slice(at, at + EVALUATED) for at in range(0, x.shape[0], EVALUATED))
    parts = [forward(asarray(x[span], like)) for span in spans]
    return namespace(like).concatenate(parts)
