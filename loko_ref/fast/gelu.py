"""GELU and its slope: by SciPy's erfc, or in float32 by a polynomial that takes half the time.

Shapes: x, y, slope alike, contiguous. SciPy computes a float32 erfc in float64, one number at a
time; eleven coefficients reach float32's precision, many numbers at a time.  [FAST-6]
"""

from __future__ import annotations

import math

import numpy as np

from loko_ref.arrays import Array, erfc

K = 2.0
"""The point that goes to the middle of the polynomial's interval."""

COEFFICIENTS = (
    *(0.7661870350, -0.2599745732, 0.0378134571, 0.0425308336, -0.0252384036, -0.000485272621),
    *(0.00391582466, 6.06012016e-05, -0.000664824123, -3.68168945e-05, 8.17086587e-05),
)
"""Of (1 + z) erfcx(z) in powers of t = (z - K) / (z + K): Chebyshev's, up to degree 10."""

BLOCK = 2**15
"""Numbers taken at a time: what a cache near the core holds of five arrays."""


def gelu(x: Array) -> tuple[Array, Array]:
    """Return ``y = x Phi(x)`` and ``Phi(x) + x phi(x)``.  [LAY-6].

    Parameters
    ----------
    x : array
        float64, float32, C-contiguous.

    Examples
    --------
    >>> y, slope = gelu(np.array([0.0, 1.0], np.float32))
    >>> [round(float(v), 5) for v in (*y, *slope)]
    [0.0, 0.84134, 0.5, 1.08332]
    """
    if x.dtype != np.float32:
        Phi = erfc(x * -math.sqrt(0.5))
        Phi *= 0.5
        slope = _x_phi(x, x * x)
        slope += Phi
        Phi *= x
        return Phi, slope
    y, slope = np.empty_like(x), np.empty_like(x)
    flat = [array.reshape(-1) for array in (x, y, slope)]
    buffers = np.empty((2, min(BLOCK, x.size)), dtype=x.dtype)
    for j in range(0, x.size, BLOCK):
        part = [array[j : j + BLOCK] for array in flat]
        _by_polynomial(*part, *buffers[:, : part[0].size])
    return y, slope


def _x_phi(x: Array, squares: Array) -> Array:
    """``x exp(-x^2 / 2) / sqrt(2 pi)``, where the squares are."""
    squares *= -0.5
    np.exp(squares, out=squares)
    squares *= x
    squares *= 1 / math.sqrt(2 * math.pi)
    return squares


def _by_polynomial(x: Array, y: Array, slope: Array, z: Array, t: Array) -> None:
    """``Q = exp(-x^2 / 2) erfcx(z) / 2`` with z = |x| / sqrt 2; then y and slope.  [FAST-6]."""
    np.abs(x, out=z)
    z *= math.sqrt(0.5)
    np.add(z, K, out=t)
    np.subtract(z, K, out=y)
    np.divide(y, t, out=t)  # t in [-1, 1)
    z += 1
    Q = np.multiply(t, COEFFICIENTS[-1], out=y)
    for c in COEFFICIENTS[-2:0:-1]:
        Q += c
        Q *= t
    Q += COEFFICIENTS[0]
    Q /= z
    E = np.multiply(x, x, out=slope)
    E *= -0.5
    np.exp(E, out=E)
    Q *= E
    Q *= 0.5
    E *= x
    E *= 1 / math.sqrt(2 * math.pi)
    np.copysign(Q, x, out=t)
    slope -= t  # Phi is 1 - Q where x has no sign, Q where it has
    slope += ~np.signbit(x)
    np.abs(x, out=t)
    Q *= t
    np.subtract(np.maximum(x, 0, out=t), Q, out=y)
