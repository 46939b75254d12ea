"""The float64 oracle's own accuracy where plain formulas lose digits.  [BALL-7]

Bounds: exp at a margin of g carries a relative error of about g u (its argument was rounded), and
a handful of roundings follow; ``(4 g + 32) u`` is asserted. The plain forms miss it by far.
"""

import numpy as np
import pytest

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

from loko_ref.arrays import balls
from loko_ref.errors import NumericalError
from loko_ref.kalman import dense, diagonal, observation
from loko_ref.network.layers.activation import ACTIVATIONS

U = 2.0**-53


def worst(value, exact):
    """Largest relative error of an entry whose exact value is a normal number."""
    centre = balls.to_host(exact)
    normal = np.abs(centre) > 1e-290
    assert normal.any()
    return np.max(np.abs(value - centre)[normal] / np.abs(centre)[normal])


def both(function, *inputs):
    with balls.precision(2400):
        return function(*inputs), function(*(balls.balls(a) for a in inputs))


@pytest.mark.parametrize("size", [0.01, 1.0, 5.0, 20.0, 300.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tanh_slope(size, sign):
    new, exact = both(lambda x: ACTIVATIONS["tanh"][0](x)[1], np.array([sign * size]))
    assert worst(new, exact) <= (4 * size + 32) * U


@pytest.mark.parametrize("margin", [1.0, 5.0, 20.0, 35.0, 100.0, 600.0])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_and_log_softmax(rng, name, margin):
    forward, vjp = ACTIVATIONS[name]
    z = np.array([[0.3, margin, -0.2, 0.1], [margin, margin + 0.5, 0.0, 1.0]])
    dy = rng.standard_normal((3, 2, 4))
    dy[0] = np.eye(4)[[1, 1]]  # the cotangent of the likeliest class
    bound = (4 * margin + 32) * U
    new, exact = both(lambda x: forward(x)[0], z)
    assert worst(new, exact) <= bound
    new, exact = both(lambda x, d: vjp(d, forward(x)[1]), z, dy)
    # dy_j - <y, dy> may cancel for honest reasons: judge an entry beside y_j |dy|
    error = np.abs(new - balls.to_host(exact))
    y = ACTIVATIONS["softmax"][0](z)[0]
    top = np.arange(4) == 1
    unlikely = np.where(top, y[:, ~top].sum(axis=1, keepdims=True), y)
    if name == "softmax":
        assert np.all(error <= 8 * bound * unlikely)
    else:
        assert np.all(error[0] <= bound * np.where(top, unlikely, 4.0))
        assert np.all(error <= 4 * bound)


@pytest.mark.parametrize("margin", [1.0, 20.0, 35.0, 100.0, 600.0])
def test_innovation_and_jacobian_product(rng, margin):
    z = np.array([[0.3, margin, -0.2]])
    Z, y = rng.uniform(1.0, 2.0, (3, 4)) * np.array([[1.0], [-1.0], [3.0]]), np.eye(3)[[1]]

    def observe(z, Z, y):
        seen = observation.observe("softmax", z, Z, y)
        return np.concatenate([seen.e[:, None], seen.H], axis=1)

    new, exact = both(observe, z, Z, y)
    assert worst(new, exact) <= (8 * margin + 200) * U


@pytest.mark.parametrize("kind", [*diagonal.DIAGONALS, "joseph"])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e8, 1e12, 1e16])
def test_glm_update_for_any_size_of_p(rng, kind, size):
    """The exact value from the exact logits; (I + J G)^-1 in class coordinates loses size u."""
    for batch, spread in ((1, 1.5), (2, 10.0)):
        n, C = 12, 4
        z, Z = spread * rng.standard_normal((batch, C)), rng.standard_normal((batch * C, n))
        y, theta, p = np.eye(C)[rng.integers(0, C, batch)], np.zeros(n), np.full(n, size)

        def update(z, Z, y, theta, p, P):
            yhat = observation.predict("glm", z)
            e = observation.innovation("glm", y, yhat).reshape(-1)
            if kind == "joseph":
                new = dense.glm_update(theta, P, Z, e, yhat, form=kind)
                return new.theta, np.diagonal(new.P)
            new = diagonal.glm_update(theta, p, Z, e, yhat, diagonal=kind)
            return new.theta, new.p

        (theta, p_post), exact = both(update, z, Z, y, theta, p, np.diag(p))
        centre, variances = (balls.to_host(a) for a in exact)
        # 8 outputs, 12 parameters, margins to 20: some hundred units, whatever the size of p
        assert np.max(np.abs(theta - centre)) <= 1e-13 * np.max(np.abs(centre))
        assert np.max(np.abs(p_post / variances - 1)) <= 1e-13


def extreme(rng, m, n, high):
    p = 10.0 ** rng.uniform(-4, high, n)
    H, R = rng.standard_normal((m, n)), np.diag(10.0 ** rng.uniform(-2, 2, m))
    return np.zeros(n), p, H, np.ones(m), R


def test_accuracy_at_extreme_leverage(rng):
    """p over 16 decades: p+ within a few units."""
    for _ in range(40):
        inputs = extreme(rng, 3, 12, 12)
        new = diagonal.update(*inputs).p
        with balls.precision(400):
            exact = diagonal.update(*(balls.balls(a) for a in inputs)).p
            wide = diagonal.update(*(balls.inflate(a, U) for a in inputs)).p
        centre = balls.to_host(exact)
        unit = np.maximum(balls.radius(wide), U * centre)
        assert np.all(np.abs(new - centre) <= 16 * unit)


def test_positivity_by_form(rng):
    """p over 20 decades, fewer parameters than outputs: the plain form has p+ <= 0 in some."""
    negative = drawn = 0
    for _ in range(1500):
        inputs = extreme(rng, 5, 3, 16)
        try:
            new = diagonal.update(*inputs)
        except NumericalError:  # S has no digit left: refused, not repaired
            continue
        drawn += 1
        assert np.all(new.p > 0)
        negative += int(np.any(inputs[1] * (1 - np.einsum("im,mi->i", new.K, inputs[2])) <= 0))
    assert drawn > 100
    assert negative > 0
