"""Estimators of R [NOISE-1 to NOISE-7]: recursions unrolled, what they estimate, combinations."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs
from sampling import count
from support import close, eps, readonly

from loko_ref import strategies as st
from loko_ref.errors import InputError
from loko_ref.kalman import dense, noise, simplex
from loko_ref.kalman import observation as obs

EMA = ("ema_innovation", "ema_innovation_hph", "ema_residual_hph")


@given(st.diagonal_problems(), hs.floats(0, 0.99), hs.sampled_from(noise.ESTIMATORS[:-1]))
def test_one_refresh_by_plain_loops(problem, beta, kind):
    R, e, HpH = problem.R, problem.e, readonly((problem.H * problem.p) @ problem.H.T)
    new = noise.update(kind, R, e, HpH, beta)
    assert new.dtype == R.dtype
    m = e.shape[0]
    for i, j in itertools.product(range(m), range(m)):
        sample = float(e[i]) * float(e[j])
        if kind.endswith("hph"):
            sample += float(HpH[i, j])
        want = float(R[i, j]) if kind == "fixed" else beta * float(R[i, j]) + (1 - beta) * sample
        size = abs(float(R[i, j])) + abs(float(e[i]) * float(e[j])) + abs(float(HpH[i, j]))
        assert abs(float(new[i, j]) - want) <= 6 * eps(R) * size  # six roundings


@given(st.diagonal_problems(dtype="float64"), hs.sampled_from(EMA))
def test_recursion_is_a_weighted_sum(problem, kind):
    """R_k = beta^k R_0 + (1 - beta) sum_j beta^(k-j) sample_j."""
    beta, R, total = 0.75, problem.R, problem.R
    for k in range(1, 9):
        e, HpH = readonly(problem.e * np.cos(k)), readonly(np.eye(len(problem.e)) * k)
        R = noise.update(kind, R, e, HpH, beta)
        sample = np.outer(e, e) + (HpH if kind.endswith("hph") else 0)
        total = beta * total + (1 - beta) * sample
    close(R, total, 40 * eps(R) * (np.abs(R).max() + 8))


@given(hs.integers(2, 5), hs.integers(1, 2), st.arrays((10, 10)), hs.sampled_from(EMA[:2]))
def test_the_contrast_space_is_invariant(C, batch, draws, kind):
    """From R_0 = r0 I, with 1'e = 0 and 1'H = 0: R 1 = beta^k r0 1 for ever.  [NOISE-6]."""
    m, beta, r0 = batch * C, 0.5, 2.0
    R, ones = r0 * np.eye(m), np.kron(np.eye(batch), np.ones((C, 1)))
    for k in range(1, 10):
        e, h = obs.project(draws[k % 10, :m].copy(), C), obs.project(draws[:m, k % 10].copy(), C)
        R = noise.update(kind, R, e, np.outer(h, h), beta)
        close(R @ ones, beta**k * r0 * ones, 16 * k * m * eps(R) * (1 + np.abs(R).max()))
        simplex.check_ones(R, C)


def steady_state(kind, seed=0, steps=20_000):
    """Mean of the estimate in a scalar linear filter whose true noise is R = 1, fixed gain."""
    rng = np.random.default_rng(seed)
    truth, theta, P, q, R_true = 0.0, 0.0, 1.0, 0.05, 1.0
    R, mean, innovation, count = np.eye(1), 0.0, 0.0, 0
    one = np.eye(1)
    for _ in range(20):  # Riccati's fixed point
        P_pred = P + q
        P = P_pred - P_pred**2 / (P_pred + R_true)
    P_pred = P + q
    K = P_pred / (P_pred + R_true)
    for k in range(steps):
        truth += np.sqrt(q) * rng.standard_normal()
        y = truth + rng.standard_normal()
        e = y - theta
        theta += K * e
        if kind == "ema_residual_hph":
            R = noise.update(kind, R, np.array([y - theta]), P * one, 0.9)
        else:
            R = noise.update(kind, R, np.array([e]), P_pred * one, 0.9)
        if k > 100:
            mean, innovation, count = mean + R[0, 0], innovation + e * e, count + 1
    return mean / count, P_pred


@pytest.mark.parametrize(
    ("kind", "times"), [("ema_innovation", 1), ("ema_innovation_hph", 2), ("ema_residual_hph", 0)]
)
def test_what_each_estimates_in_steady_state(kind, times):
    """R + HPH', R + 2 HPH', and R: 20,000 squares have a relative deviation of about 1 %."""
    steps = count(6_000, 20_000)
    mean, P_pred = steady_state(kind, steps=steps)
    expected = 1.0 + times * P_pred
    assert abs(mean / expected - 1) < 4 * np.sqrt(2 / steps)


def test_residual_identity():
    """Why `ema_residual_hph` is unbiased: E[r r'] + H P+ H' = R when S is the truth.  [NOISE-4].

    r = (I - H K) e, E[e e'] = S: (I - HK) S (I - HK)' + H P+ H' = R, exactly.
    """
    rng = np.random.default_rng(1)
    H, G = rng.standard_normal((2, 3)), rng.standard_normal((3, 3))
    P, R = G @ G.T + np.eye(3), np.array([[1.0, 0.25], [0.25, 0.5]])
    new = dense.update(np.zeros(3), (P + P.T) / 2, H, np.zeros(2), R)
    F = np.eye(2) - H @ new.K
    np.testing.assert_allclose(F @ new.S @ F.T + H @ new.P @ H.T, R, rtol=1e-12, atol=1e-13)


def test_combinations_are_stated_and_the_others_refused():
    valid = noise.combinations()
    assert len(valid) == len(set(valid)) == 3 * (1 + 2 + 2 + 1) + 1
    triples = itertools.product(obs.OBSERVATIONS, noise.ESTIMATORS, noise.TIMINGS)
    for triple in triples:
        if triple in valid:
            noise.check_combination(*triple)
        else:
            with pytest.raises(InputError, match=r"required (noise|timing)="):
                noise.check_combination(*triple)
