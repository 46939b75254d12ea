"""Derivatives by extrapolated central differences, with a bound on their error.  [LAY-9]"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loko_ref.arrays import Array

__all__ = ["derivative"]

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
    step : float
        The largest h.
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
