"""GELU of a float32 by a polynomial, against SciPy's erfc in float64.  [FAST-6]."""

import numpy as np
import pytest
from numpy.polynomial import chebyshev
from scipy.special import erfcx

from loko_ref.fast.gelu import BLOCK, COEFFICIENTS, K, gelu
from loko_ref.network.layers.activation import gelu_forward, gelu_vjp

EPS = float(np.finfo(np.float32).eps)


def test_coefficients_computed_anew():
    """By interpolation in 48 points, cut after the tenth: what is left out is below u / 2."""

    def f(t):
        z = K * (1 + t) / (1 - t)
        return (1 + z) * erfcx(z)

    found = chebyshev.chebinterpolate(f, 47)
    assert np.abs(found[len(COEFFICIENTS) :]).max() < EPS / 4
    powers = chebyshev.cheb2poly(found[: len(COEFFICIENTS)])
    assert np.abs(powers - COEFFICIENTS).max() < 1e-9  # ten digits were written down


def exact(x):
    """y and slope in float64, by the readable layer."""
    y, cache = gelu_forward(x.astype(np.float64))
    return y, gelu_vjp(np.ones(x.shape), cache)


@pytest.mark.parametrize("block", [BLOCK, 1000])
def test_against_float64(block, monkeypatch):
    """Relative to y itself, so that digits lost far below 0 would show."""
    monkeypatch.setattr("loko_ref.fast.gelu.BLOCK", block)
    x = np.linspace(-9, 9, 40_001, dtype=np.float32).reshape(13, -1)
    x.flags.writeable = False
    y, slope = gelu(x)
    assert y.dtype == slope.dtype == np.float32
    y_exact, slope_exact = exact(x)
    assert (np.abs(y - y_exact) <= (4 + x**2 / 2) * EPS * np.abs(y_exact)).all()
    assert np.abs(slope - slope_exact).max() <= 2 * EPS


def test_ends_and_zeros():
    x = np.array([0.0, -0.0, 40.0, -40.0, 1e-30, -1e-30], np.float32)
    y, slope = gelu(x)
    assert y.tolist() == [0, 0, 40, 0, pytest.approx(5e-31), pytest.approx(-5e-31)]
    assert slope.tolist() == [0.5, 0.5, 1, 0, 0.5, 0.5]


def test_float64_is_that_of_the_readable_layer(rng):
    x = rng.standard_normal((3, 50))
    y, slope = gelu(x)
    y_exact, slope_exact = exact(x)
    assert (y == y_exact).all()
    assert np.abs(slope - slope_exact).max() <= 4 * np.finfo(float).eps
