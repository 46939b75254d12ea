"""Layers [LAY-1 to LAY-10]: each vjp against a complex step, the inner-product identity, loops.

A complex step f(x + i h v) / h with h = 1e-30 is the derivative along v without cancellation: its
error is rounding alone, so 1e-12 relative to the size of the Jacobian's row is asked for.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as hs
from support import close, eps, readonly

from loko_ref import strategies as st
from loko_ref.arrays import where_or_zero
from loko_ref.network.layers import linear
from loko_ref.network.layers.activation import ACTIVATIONS

h = 1e-30
NAMES = sorted(ACTIVATIONS)
REL = 1e-12


def complex_step(f, x):
    """Jacobian (outputs, inputs) of f at x, column by column."""
    columns = []
    for j in range(x.size):
        z = x.astype(complex)
        z.reshape(-1)[j] += 1j * h
        columns.append(f(z).imag.reshape(-1) / h)
    return np.stack(columns, axis=1)


def identity_cotangents(y):
    return np.eye(y.size).reshape(y.size, *y.shape)


@pytest.mark.parametrize("name", NAMES)
@given(data=hs.data())
def test_activation_by_complex_step(name, data):
    forward, vjp = ACTIVATIONS[name]
    shape = data.draw(hs.sampled_from([(1, 3), (2, 2), (2, 3, 2)]))
    x = data.draw(st.arrays(shape, size=8.0))
    y, cache = forward(x)
    J = vjp(readonly(identity_cotangents(y)), cache).reshape(y.size, x.size)
    truth = complex_step(lambda z: forward(z)[0], x)
    # in a softmax the step itself loses 1 - y to rounding: y eps there, eps in its logarithm
    lost = 1.0 if name == "log_softmax" else np.abs(y).reshape(-1, 1)
    close(J, truth, REL * np.abs(truth).max(axis=1, keepdims=True) + 8 * eps(x) * lost)


@pytest.mark.parametrize("name", NAMES)
@given(data=hs.data())
def test_activation_by_inner_products(name, data):
    """<u, J v> = <J' u, v> in each dtype, J v by a complex step in float64."""
    forward, vjp = ACTIVATIONS[name]
    dtype = data.draw(st.dtypes())
    shape = data.draw(hs.sampled_from([(1, 4), (3, 2), (2, 2, 3)]))
    x, u, v = (data.draw(st.arrays(shape, dtype=dtype)) for _ in range(3))
    y, cache = forward(x)
    pulled = vjp(u[None], cache)
    assert y.dtype == pulled.dtype == dtype
    assert pulled.shape == (1, *shape)
    Jv = forward(x.astype(float) + 1j * h * v.astype(float))[0].imag / h
    left, right = float((u * Jv).sum()), float((pulled[0].astype(float) * v).sum())
    size = np.abs(u).sum() * np.abs(v).sum() + 1  # every factor is at most 4, every slope 1.13
    assert abs(left - right) <= 16 * x.size * eps(x) * size


def tanh_argument(x):
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


REFERENCES = {
    "tanh": lambda x: np.array([math.tanh(v) for v in x]),
    "relu": lambda x: np.array([max(v, 0.0) for v in x]),
    "gelu": lambda x: np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]),
    "gelu_tanh": lambda x: x * scipy.special.expit(2 * tanh_argument(x)),
    "softmax": lambda x: scipy.special.softmax(x),
    "log_softmax": lambda x: scipy.special.log_softmax(x),
}


@pytest.mark.parametrize("name", NAMES)
@given(x=st.arrays(4, size=16.0), dtype=st.dtypes())
def test_activation_values(name, x, dtype):
    y = ACTIVATIONS[name][0](readonly(x[None].astype(dtype)))[0][0]
    truth = REFERENCES[name](x.astype(dtype).astype(float))
    # the exponent x - c (GELU: x^2, 2 v) is rounded relatively; four terms, and the function itself
    top = np.abs(x).max()
    exponent = {"gelu": top**2, "gelu_tanh": 2 * tanh_argument(top)}.get(name, top)
    unit = 8 * (1 + exponent) * np.finfo(dtype).eps
    tiny = 16 * (1 + exponent) * float(np.finfo(dtype).smallest_subnormal)
    close(y, truth, unit * (np.abs(truth) + (name == "log_softmax")) + tiny)


@pytest.mark.parametrize("name", NAMES)
def test_activation_far_out(name, dtype):
    """No overflow, no NaN, and the limits, at +-1e4 (warnings are errors)."""
    forward, vjp = ACTIVATIONS[name]
    x = readonly(np.array([[-1e4, 0.0, 1e4]], dtype))
    y, cache = forward(x)
    dx = vjp(np.ones((1, 1, 3), dtype), cache)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    limits = {
        "tanh": ([-1, 0, 1], [0, 1, 0]),
        "relu": ([0, 0, 1e4], [0, 0, 1]),
        "gelu": ([0, 0, 1e4], [0, 0.5, 1]),
        "gelu_tanh": ([0, 0, 1e4], [0, 0.5, 1]),
        "softmax": ([0, 0, 1], [0, 0, 0]),
        "log_softmax": ([-2e4, -1e4, 0], [1, 1, -2]),
    }
    np.testing.assert_array_equal(y[0], np.array(limits[name][0], dtype))
    np.testing.assert_array_equal(dx[0, 0], np.array(limits[name][1], dtype))


@pytest.mark.parametrize("margin", [1.0, 20.0, 36.0, 40.0, 200.0])
def test_softmax_slopes_keep_their_digits(margin):
    """y (1 - y) at a saturated y: 1 - y is the sum of the others, not a difference.  [LAY-7]."""
    x = np.array([[margin, 0.0, 0.5]])
    others = math.exp(-margin) + math.exp(0.5 - margin)  # relatively to the likeliest
    unlikely = others / (1 + others)
    for name, slope in (("softmax", unlikely / (1 + others)), ("log_softmax", unlikely)):
        _, cache = ACTIVATIONS[name][0](x)
        dx = ACTIVATIONS[name][1](np.array([[[1.0, 0.0, 0.0]]]), cache)
        np.testing.assert_allclose(dx[0, 0, 0], slope, rtol=(8 + 2 * margin) * eps(x))
        np.testing.assert_allclose(dx[0, 0, 1:].sum(), -slope, rtol=(8 + 2 * margin) * eps(x))


@pytest.mark.parametrize("x", [0.5, 5.0, 15.0, 19.0, 30.0, 300.0])
def test_tanh_slope_keeps_its_digits(x):
    """1 / cosh^2 x, where 1 - y^2 has none left.  [LAY-4]."""
    _, cache = ACTIVATIONS["tanh"][0](np.array([x, -x]))
    slope = ACTIVATIONS["tanh"][1](np.ones((1, 2)), cache)
    np.testing.assert_allclose(slope[0], math.cosh(x) ** -2.0, rtol=(8 + 4 * x) * eps(cache))


def test_relu_is_flat_at_its_kink():
    """0 at 0, as torch and JAX have it."""
    y, cache = ACTIVATIONS["relu"][0](np.zeros((1, 2)))
    assert not ACTIVATIONS["relu"][1](np.ones((1, 1, 2)), cache).any()
    assert not y.any()


@hs.composite
def sites(draw, dtype="float64"):
    """x, the parameters of one linear (every subset of the optional ones), and scale."""
    site = draw(st.factors(dtype=dtype, max_width=4))
    i, o = site["A"].shape[1], site["B"].shape[0]
    params = {"W": draw(st.arrays((o, i), dtype=dtype))}
    if draw(hs.booleans()):
        params["b"] = draw(st.arrays(o, dtype=dtype))
    if draw(hs.booleans()):
        params |= site
    lead = draw(hs.sampled_from([(1,), (2,), (2, 3)]))  # with a token axis in the last
    x = draw(st.arrays((*lead, i), dtype=dtype))
    return x, params, draw(hs.sampled_from([1.0, 2.0, 0.5]))


def by_loops(x, params, scale):
    """y = W x + b + scale (B (A x + bA) + bB), one number at a time."""
    W, o = params["W"], params["W"].shape[0]
    y = np.zeros((*x.shape[:-1], o))
    for at in itertools.product(*map(range, x.shape[:-1])):
        for k in range(o):
            total = sum(float(W[k, j]) * float(x[at][j]) for j in range(x.shape[-1]))
            total += float(params["b"][k]) if "b" in params else 0.0
            if "A" in params:
                inner = float(params["bB"][k]) if "bB" in params else 0.0
                for q in range(params["A"].shape[0]):
                    u = float(params["bA"][q]) if "bA" in params else 0.0
                    u += sum(float(params["A"][q, j]) * float(x[at][j]) for j in range(len(x[at])))
                    inner += float(params["B"][k, q]) * u
                total += scale * inner
            y[(*at, k)] = total
    return y


@given(sites() | sites(dtype="float32"))
def test_linear_by_loops(drawn):
    x, params, scale = drawn
    y, _ = linear.forward(x, params, scale)
    assert y.dtype == x.dtype
    size = by_loops(np.abs(x), {k: np.abs(v) for k, v in params.items()}, scale)
    close(y, by_loops(x, params, scale), 16 * eps(x) * size)  # at most 5 + 5 + 3 roundings in a row


@given(sites())
def test_linear_by_complex_step(drawn):
    """Every parameter and the input, at once: the Jacobian by m cotangents."""
    x, params, scale = drawn
    y, cache = linear.forward(x, params, scale)
    dx, dparams = linear.vjp(identity_cotangents(y), cache, linear.PARAMS)
    assert set(dparams) == set(params)
    truth = complex_step(lambda z: linear.forward(z, params, scale)[0], x)
    close(dx.reshape(y.size, -1), truth, REL * (1 + np.abs(truth)))
    for name in params:
        truth = complex_step(
            lambda z, name=name: linear.forward(x, params | {name: z}, scale)[0], params[name]
        )
        close(dparams[name].reshape(y.size, -1), truth, REL * (1 + np.abs(truth)), name)


@given(sites(), hs.data())
def test_linear_one_cotangent_is_the_case_k_1(drawn, data):
    """Gradient and Jacobian are the same code; per_sample keeps what the sum adds up.  [LAY-9]."""
    x, params, scale = drawn
    y, cache = linear.forward(x, params, scale)
    dy = data.draw(st.arrays((3, *y.shape)))
    dx, dparams = linear.vjp(dy, cache, linear.PARAMS)
    dx_each, each = linear.vjp(dy, cache, linear.PARAMS, per_sample=True)
    np.testing.assert_array_equal(dx, dx_each)
    for name, total in dparams.items():
        assert each[name].shape == (3, x.shape[0], *params[name].shape)
        unit = 16 * x.size * eps(x) * 16 * 16 * scale * 4
        close(each[name].sum(axis=1), total, unit, name)
    for k in range(3):
        one, grads = linear.vjp(dy[k][None], cache, linear.PARAMS)
        close(one[0], dx[k], 16 * 16 * eps(x) * 64)
        for name, g in grads.items():
            close(g[0], dparams[name][k], 16 * x.size * eps(x) * 256 * scale * 4, name)


def test_linear_gives_what_is_asked_for_alone():
    params = {"W": np.eye(2), "A": np.ones((1, 2)), "B": np.ones((2, 1))}
    y, cache = linear.forward(np.ones((1, 2)), params)
    dx, dparams = linear.vjp(y[None], cache, ("B", "bB"), need_dx=False)
    assert dx is None
    assert list(dparams) == ["B"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(5, 9), (9,)])
def test_keep_is_where_to_the_bit(dtype, shape):
    special = [1, -1, np.inf, -np.inf, np.nan, -0.0, 0, 5e-324, 1e30]
    x = np.tile(np.array(special, dtype=dtype), (5, 1))
    mask = np.random.default_rng(0).random(shape) > 0.5
    for held in (x, np.asfortranarray(x)):
        assert (
            where_or_zero(mask, held).tobytes()
            == np.where(mask, held, np.zeros_like(held)).tobytes()
        )
    ones = np.ones((5, 9)) + 1e-30j  # complex goes the general way
    assert np.array_equal(where_or_zero(mask, ones), np.where(mask, ones, 0))
