"""Numbers with what they may be off by: sums and products of outputs, each with its tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.properties.trial import Got, Trial, exact, size

__all__ = ["Near"]


class Near:
    """An array of rational numbers, and a bound on each one's error.

    The bounds of sums and products follow from those of their parts, to all orders.
    """

    def __init__(self, value: Any, off: Any = 0.0) -> None:
        held = np.asarray(value)
        self.value = held if held.dtype.hasobject else exact(held)
        self.off = np.broadcast_to(np.asarray(off, dtype=np.float64), self.value.shape)

    @classmethod
    def of(cls, got: Got, name: str) -> Near:
        """Return an output with its tolerance."""
        return cls(got[name], got.tol[name])

    @property
    def T(self) -> Near:
        """The transposed matrix."""
        return Near(self.value.T, self.off.T)

    def reshape(self, *shape: int) -> Near:
        """Return it in another shape."""
        return Near(self.value.reshape(*shape), self.off.reshape(*shape))

    def __add__(self, other: Any) -> Near:
        other = _near(other)
        return Near(self.value + other.value, self.off + other.off)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Near:
        other = _near(other)
        return Near(self.value - other.value, self.off + other.off)

    def __rsub__(self, other: Any) -> Near:
        return _near(other) - self

    def __mul__(self, other: Any) -> Near:
        other = _near(other)
        a, b = size(self.value), size(other.value)
        off = a * other.off + self.off * b + self.off * other.off
        return Near(self.value * other.value, off)

    __rmul__ = __mul__

    def __matmul__(self, other: Any) -> Near:
        other = _near(other)
        a, b = size(self.value), size(other.value)
        off = a @ other.off + self.off @ b + self.off @ other.off
        return Near(self.value @ other.value, off)

    def __rmatmul__(self, other: Any) -> Near:
        return _near(other) @ self

    def meets(self, t: Trial, name: str, other: Any) -> None:
        """Raise unless it agrees with another, up to what both may be off by."""
        other = _near(other)
        t.near(name, self.value, other.value, self.off + other.off)


def _near(value: Any) -> Near:
    return value if isinstance(value, Near) else Near(value)
