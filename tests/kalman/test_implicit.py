"""The implicit glm step: its fixed point, over p, margins and dtypes, and what it is equal to."""

from dataclasses import replace

import numpy as np
import pytest
from sampling import sample
from scipy.optimize import minimize

from loko_ref import fast, loko
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman import diagonal, implicit
from loko_ref.network.model import Model, mlp_spec, param_shapes

SIZES = [
    (C, batch, p, margin)
    for C in (2, 3, 6)
    for batch in (1, 3)
    for p in 10.0 ** np.arange(-6, 7, 2)
    for margin in (1, 30, 300)
]


def problem(rng, C, batch, p, margin, dtype="float64", n=24):
    Z = rng.uniform(-1, 1, (batch * C, n)).astype(dtype)
    P = (p * 10 ** rng.uniform(-1, 1, n)).astype(dtype)
    z = rng.uniform(-margin, margin, (batch, C)).astype(dtype)
    return rng.uniform(-1, 1, n).astype(dtype), P, Z, z, rng.integers(0, C, batch)


def residual(P, Z, z, y, v):
    """Of the fixed point, in float64, and the rounding of z + G v in it."""
    P, Z, z, v = (np.asarray(a, dtype=np.float64) for a in (P, Z, z, v))
    G = (Z * P) @ Z.T if P.ndim == 1 else Z @ P @ Z.T
    a = z + (G @ v).reshape(z.shape)
    q = np.exp(a - a.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    r = (np.eye(z.shape[1])[y] - q).reshape(-1) - v
    return np.abs(r).max(), 1 + np.abs(z).max() + (np.abs(G) @ np.abs(v)).max()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("C", "batch", "p", "margin"), sample(SIZES, 24, name=str))
def test_it_ends_at_its_fixed_point(C, batch, p, margin, dtype):
    rng = np.random.default_rng([C, batch, int(margin)])
    theta, P, Z, z, y = problem(rng, C, batch, p, margin, dtype)
    v, mean = implicit.mean(theta, P, Z, z, y)
    assert v.dtype == mean.dtype == dtype
    assert np.isfinite(v).all()
    assert np.isfinite(mean).all()
    off, rounding = residual(P, Z, z, y, v)
    assert off <= 8 * np.finfo(dtype).eps * rounding
    sums = v.reshape(batch, C).sum(axis=1)
    assert np.abs(sums).max() <= 4 * C * np.finfo(dtype).eps


@pytest.mark.parametrize("p", [1e-3, 1.0, 30.0])
def test_the_mean_is_the_mode_of_the_posterior(p):
    theta, P, Z, z, y = problem(np.random.default_rng(5), 4, 2, p, 3.0, n=6)

    def objective(x):
        a = z + (Z @ (x - theta)).reshape(z.shape)
        lse = np.log(np.exp(a - a.max(axis=1, keepdims=True)).sum(axis=1)) + a.max(axis=1)
        return 0.5 * ((x - theta) ** 2 / P).sum() + (lse - a[[0, 1], y]).sum()

    _, mean = implicit.mean(theta, P, Z, z, y)
    found = minimize(objective, theta, method="BFGS", options={"gtol": 1e-7})
    assert objective(mean) <= found.fun + 1e-12
    np.testing.assert_allclose(mean, found.x, rtol=1e-4, atol=1e-5 * np.sqrt(p))


def test_diagonal_and_dense_agree():
    theta, P, Z, z, y = problem(np.random.default_rng(2), 3, 2, 1.0, 3.0)
    v, mean = implicit.mean(theta, P, Z, z, y)
    again, same = implicit.mean(theta, np.diag(P), Z, z, y)
    np.testing.assert_allclose(again, v, rtol=1e-12)
    np.testing.assert_allclose(same, mean, rtol=1e-12)


def test_where_p_is_small_it_is_the_linear_step():
    """The difference is of second order in p."""
    theta, P, Z, z, y = problem(np.random.default_rng(3), 4, 2, 1.0, 2.0)
    yhat = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    e, off = (np.eye(4)[y] - yhat).reshape(-1), []
    for p in (1e-4, 1e-5):
        step = diagonal.glm_update(theta, p * P, Z, e, yhat).theta - theta
        _, mean = implicit.mean(theta, p * P, Z, z, y)
        off.append(np.abs(mean - theta - step).max() / np.abs(step).max())
    assert off[0] < 1e-3
    assert off[1] == pytest.approx(off[0] / 100, rel=0.1)


def test_the_error_is_bounded_by_the_residual():
    """OBS-9, 2: for a v that is not the solution."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        theta, P, Z, z, y = problem(rng, 4, 1, 10.0 ** rng.uniform(-2, 3), 4.0)
        right, mean = implicit.mean(theta, P, Z, z, y)
        v = right + rng.uniform(-0.1, 0.1, 4)
        v -= v.mean()
        G = (Z * P) @ Z.T
        a = (z.reshape(-1) + G @ v) - (z.reshape(-1) + G @ v).max()
        r = np.eye(4)[y[0]] - np.exp(a) / np.exp(a).sum() - v
        bound = np.sqrt(r @ G @ r)
        moved = theta + P * (Z.T @ v)
        assert (np.abs(moved - mean) <= np.sqrt(P) * bound * (1 + 1e-9)).all()


def network(dtype="float64"):
    rng = np.random.default_rng(0)
    spec = mlp_spec([5, 7, 4], "tanh", {"r": 2, "alpha": 3.0})
    weights = {k: rng.normal(size=s).astype(dtype) for k, s in param_shapes(spec).items()}
    return Model(spec=spec, weights=weights)


@pytest.mark.parametrize("p0", [1e-6, 0.5, 1e6])
@pytest.mark.parametrize("diagonal", ["decoupled", "variational"])
def test_a_step_by_both_routes(p0, diagonal):
    rng = np.random.default_rng(1)
    config = loko.LokoConfig(model=network(), p0=p0, diagonal=diagonal, solve="implicit")
    batch = loko.Batch(x=rng.normal(size=(2, 5)), y=np.array([0, 3]))
    start = loko.init(config, 2)
    after, seen = loko.step(start, batch, config)
    quick, _ = fast.prepare(config).step(start, batch)
    np.testing.assert_allclose(quick.theta, after.theta, rtol=1e-9, atol=1e-9 * np.sqrt(p0))
    np.testing.assert_allclose(quick.p, after.p, rtol=1e-9)
    linear, plain = loko.step(start, batch, replace(config, solve="linear"))
    np.testing.assert_array_equal(seen.S, plain.S)
    np.testing.assert_array_equal(seen.K, plain.K)
    np.testing.assert_array_equal(after.p, linear.p)
    assert plain.v is None
    assert seen.v is not None
    assert seen.v.shape == (8,)


def test_it_goes_with_glm_alone():
    for kind in ("gaussian", "softmax", "logits"):
        with pytest.raises(InputError, match=r"solve: got 'implicit'; required 'linear' unless"):
            loko.LokoConfig(model=network(), observation=kind, solve="implicit")
    with pytest.raises(InputError, match="solve"):
        loko.LokoConfig(model=network(), solve="implicitly")


@pytest.mark.parametrize("bad", [np.inf, np.float64(1e300)])
def test_a_covariance_beyond_the_dtype_is_an_error(bad):
    theta, P, Z, z, y = problem(np.random.default_rng(0), 3, 1, 1.0, 1.0)
    P[0] = bad
    Z[:, 0] = [1e10, 1.0, -1e10]
    with np.errstate(all="ignore"), pytest.raises((InputError, NumericalError)):
        implicit.mean(theta, P, Z, z, y)


def test_a_wound_up_filter_that_is_certain_and_wrong_moves_no_further_than_the_margin():
    """The linear step of the same filter is an error [OBS-7]."""
    theta = np.zeros(2)
    Z, z, y = np.eye(2), np.array([[0.0, 900.0]]), np.array([0])
    v, mean = implicit.mean(theta, np.full(2, 1e12), Z, z, y)
    moved = z + (Z @ mean).reshape(1, 2)
    assert 0 < moved[0, 0] - moved[0, 1] < 60
    assert v[0] > 0
