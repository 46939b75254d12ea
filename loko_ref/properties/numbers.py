"""Numbers with what they may be off by: sums, products and derivatives of outputs.  [LAY-9]"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.properties.trial import Got, Trial, exact, size

LEVELS = 4


def derivative(
    f: Callable[[float], tuple[Array, Array]], step: float = 2.0**-3
) -> tuple[Array, Array]:
    """Return f'(0) by Romberg's table over halved steps, and a bound on its error.

    The entries of the table have weights that are known, so that the tolerances of f's values give
    that of each entry. What the extrapolation leaves is taken as four times the last corrections.

    Parameters
    ----------
    f : callable
        ``h -> (value, tolerance)``.
    """
    rows: list[list[Array]] = []
    slack: list[list[Array]] = []
    for k in range(LEVELS):
        h = step / 2**k
        (up, a), (down, b) = f(h), f(-h)
        row, bounds = [(up - down) / (2 * h)], [(a + b) / (2 * h)]
        for j in range(1, k + 1):
            w = 4.0**j
            row.append((w * row[j - 1] - rows[-1][j - 1]) / (w - 1))
            bounds.append((w * bounds[j - 1] + slack[-1][j - 1]) / (w - 1))
        rows.append(row)
        slack.append(bounds)
    left = 4 * (np.abs(rows[-1][-1] - rows[-2][-1]) + np.abs(rows[-1][-1] - rows[-1][-2]))
    return rows[-1][-1], slack[-1][-1] + slack[-2][-1] + left


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
