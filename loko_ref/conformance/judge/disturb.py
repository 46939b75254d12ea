"""Hooks that move each quantity of a walk by a roundoff, or that move nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array

__all__ = ["DELTA", "SOLVED_WITH", "Disturb", "DisturbInNorm", "DisturbScalars", "Still"]

DELTA = 2.0**-34
"""Relative size of the perturbations; their effect, linear in them, is scaled down to u."""

BLOCK = 2048
"""Random numbers drawn at once."""

SOLVED_WITH = ("S", "R", "R_used")
"""Matrices that a gain is solved with.  [TOL-4]"""


class Disturb:
    """The hook that perturbs each quantity by DELTA, relative, by seeded random numbers."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._ready, self._factors, self._at = np.empty(0), np.empty(0), 0

    def _take(self, count: int) -> int:
        """Return where the next numbers stand; many are drawn at once: most arrays are small."""
        at = self._at
        if self._ready.size - at < count:
            fresh = self._rng.random(max(BLOCK, count))
            self._ready = np.concatenate([self._ready[at:], DELTA * 3**0.5 * (2 * fresh - 1)])
            self._factors, at = 1 + self._ready, 0
        self._at = at + count
        return at

    def noise(self, shape: tuple[int, ...]) -> Array:
        """Draw numbers of variance DELTA^2, uniform."""
        at = self._take(math.prod(shape))
        return self._ready[at : self._at].reshape(shape)

    def __call__(self, name: str, value: Any) -> Any:
        """Move a quantity."""
        shape = value.shape if type(value) is np.ndarray else np.shape(value)
        at = self._take(math.prod(shape))
        factors = self._factors[at : self._at]
        return value * (factors if len(shape) == 1 else factors.reshape(shape))

    def inputs(self, value: Any, exact: tuple[str, ...] = (), name: str = "") -> Any:
        """Perturb every input except the exact ones."""
        if isinstance(value, Mapping):
            return {
                k: item if k in exact else self.inputs(item, name=k) for k, item in value.items()
            }
        return self(name, value)


class Still:
    """The hook that moves nothing, and notes whether there are numbers made of options alone."""

    scalars = False

    def __call__(self, name: str, value: Any) -> Any:
        """Return a quantity as it is."""
        return value

    def scalar(self, name: str, value: float) -> float:
        """Note one."""
        self.scalars = True
        return value


class DisturbScalars(Disturb):
    """Perturbs the numbers made of options alone, and nothing else.  [TOL-7]."""

    def __call__(self, name: str, value: Any) -> Any:
        """Return a quantity as it is."""
        return value

    def scalar(self, name: str, value: float) -> float:
        """Perturb one."""
        return float(value * (1 + self.noise(())))


class DisturbInNorm(Disturb):
    """Perturbs the matrices of a solve, and of an eigendecomposition, by their largest entry too.

    DELTA of it is the backward error: small relative to the matrix, not to each entry.
    """

    def __call__(self, name: str, value: Any) -> Any:
        """Move a quantity, a matrix that is solved with more."""
        moved = super().__call__(name, value)
        if name in (*SOLVED_WITH, "gram"):
            largest = np.max(np.abs(value), axis=(-2, -1), keepdims=True)
            moved = moved + self.noise(np.shape(value)) * largest
        return moved
