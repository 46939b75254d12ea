"""The dense update in its four forms [KAL-1 to KAL-8]: exact arithmetic, ridge, exact facts."""

import exact
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as hs
from support import close, eps, norm, readonly, slack

from loko_ref import strategies as st
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman import dense, time

WELL = st.dense_problems(cond=10)
ILL = st.dense_problems(cond=1e6, dtype="float64")
PROBLEMS = WELL | ILL
SCALAR = st.dense_problems(cond=10, diagonal_noise=True) | st.dense_problems(
    cond=1e4, diagonal_noise=True, dtype="float64"
)
FORMS = hs.sampled_from(["joseph", "textbook", "information"])


def update(problem, form="joseph", **changes):
    """The update, its slack and its relative error; failures only where no digit could be right."""
    a = problem.arguments() | changes
    # `information` divides by R and `joseph` by nothing more: cond(R) bounds the extra of both
    sl = slack(a["H"], a["R"], a["P"], factor=float(np.linalg.cond(np.float64(a["R"]))) ** 0.5)
    rel = sl.rel * eps(a["P"])
    try:
        new = dense.update(**a, form=form)
    except NumericalError:
        if rel < 1:
            raise
        reject()
    return new, sl, rel


@given(PROBLEMS | SCALAR, hs.sampled_from(dense.FORMS))
def test_equals_exact_arithmetic(problem, form):
    if form == "sequential" and np.count_nonzero(problem.R - np.diag(np.diagonal(problem.R))):
        with pytest.raises(InputError, match="diagonal matrix for form='sequential'"):
            dense.update(**problem.arguments(), form=form)
        return
    new, sl, rel = update(problem, form)
    truth = exact.dense(**problem.arguments())
    a = {k: np.abs(np.float64(v)) for k, v in problem.arguments().items()}
    unit, n = eps(problem.P), len(problem.theta)
    # two n-term dot products
    close(new.S, truth["S"], (2 * n + 3) * unit * (a["H"] @ a["P"] @ a["H"].T + a["R"]), "S")
    close(new.K, truth["K"], rel * sl.gain, "K")
    shift = rel * sl.gain * norm(problem.e) + 2 * unit * a["theta"]
    close(new.theta, truth["theta"], shift, "theta")
    # Joseph sees the error of K in both factors of both squares, and |I - KH| <= 1 + kappa^1/2
    close(new.P, truth["P"], 4 * rel * norm(problem.P), "P")


@given(PROBLEMS, FORMS)
def test_posterior_is_between_zero_and_the_prior(problem, form):
    new, _, rel = update(problem, form)
    least = rel * 4 * norm(problem.P)
    assert np.linalg.eigvalsh(np.float64(new.P))[0] >= -least
    assert np.linalg.eigvalsh(np.float64(problem.P) - np.float64(new.P))[0] >= -least
    if form != "textbook":  # sums of squares: the diagonal cannot lose its sign
        assert (np.diagonal(new.P) > 0).all()
        close(new.P, new.P.T, 0.0)  # symmetric to the last bit


@given(PROBLEMS, hs.sampled_from(["joseph", "textbook", "information"]))
def test_no_innovation_no_movement(problem, form):
    new, _, _ = update(problem, form, e=readonly(np.zeros_like(problem.e)))
    np.testing.assert_array_equal(new.theta, problem.theta)


@given(st.dense_problems(cond=1e3, dtype="float64"), hs.integers(0, 60), FORMS)
def test_infinite_noise_teaches_nothing(problem, exponent, form):
    s = 10.0**exponent
    new, _, rel = update(problem, form, R=readonly(problem.R * s))
    least = s * np.linalg.eigvalsh(problem.R)[0]
    moved = norm(problem.P @ problem.H.T) * norm(problem.e) / least
    close(new.theta, problem.theta, moved * (1 + rel) + eps(problem.P) * abs(problem.theta))
    shrunk = norm(problem.P @ problem.H.T) ** 2 / least
    n = len(problem.theta)  # forming P anew from its factor costs (n + 1) eps |P| by itself
    rounding = 4 * (n + 1) * eps(problem.P) * norm(problem.P) * n
    close(new.P, problem.P, shrunk * (1 + rel) + rounding)


@given(PROBLEMS, FORMS, hs.randoms(use_true_random=False))
def test_permuting_outputs_permutes_the_gain(problem, form, random):
    new, sl, rel = update(problem, form)
    order = list(range(problem.e.shape[0]))
    random.shuffle(order)
    a = {"H": problem.H[order], "e": problem.e[order], "R": problem.R[np.ix_(order, order)]}
    other, _, _ = update(problem, form, **a)
    close(other.K, new.K[:, order], 2 * rel * sl.gain, "K")
    close(other.P, new.P, 8 * rel * norm(problem.P), "P")


def triangular(data, n):
    """An invertible n x n matrix: unit lower triangular, entries in [-1, 1]."""
    return np.tril(data.draw(st.arrays((n, n), size=1.0)), -1) + np.eye(n)


@given(hs.data(), st.dense_problems(cond=1e4, dtype="float64"), FORMS)
def test_invariant_to_a_change_of_outputs(data, problem, form):
    T = triangular(data, problem.e.shape[0])
    new, sl, rel = update(problem, form)
    R = T @ problem.R @ T.T
    a = {"H": T @ problem.H, "e": T @ problem.e, "R": (R + R.T) / 2}
    other, _, rel_T = update(problem, form, **a)
    # rounding T H, T e, T R T' moves H, e by m eps cond(T) and R by 2 m eps cond(T)^2, relatively
    both = rel + rel_T + 2 * rel * np.linalg.cond(T) ** 2
    close(other.theta, new.theta, both * sl.gain * norm(problem.e) + 8 * eps(T), "theta")
    close(other.P, new.P, 4 * both * norm(problem.P), "P")


@given(hs.data(), st.dense_problems(cond=1e4, dtype="float64"), FORMS)
def test_covariant_under_a_change_of_parameters(data, problem, form):
    """theta = T phi: P = T P_phi T', H_phi = H T, and the posteriors map the same way."""
    T = triangular(data, problem.theta.shape[0])
    P = T @ problem.P @ T.T
    a = {"theta": T @ problem.theta, "P": (P + P.T) / 2, "H": problem.H}
    in_theta, sl, rel = update(problem, form, **a)
    in_phi, sl_phi, rel_phi = update(problem, form, H=problem.H @ T)
    size = norm(T) ** 2 * np.linalg.cond(T) ** 2
    both = (rel + rel_phi) * (1 + size)
    shift = both * (sl.gain + norm(T) * sl_phi.gain) * norm(problem.e)
    close(in_theta.theta, T @ in_phi.theta, shift + 8 * eps(T) * (1 + norm(a["theta"])), "theta")
    close(in_theta.P, T @ in_phi.P @ T.T, 4 * both * norm(a["P"]), "P")


@given(SCALAR)
def test_one_vector_update_is_m_scalar_updates(problem):
    """R diagonal, H frozen, e_j - H_j (theta - theta_prior): in any order, in each form."""
    new, sl, rel = update(problem, "textbook")
    m = problem.e.shape[0]
    for order in (range(m), reversed(range(m))):
        theta, P = problem.theta, problem.P
        for j in order:
            h, r = problem.H[[j]], problem.R[[j]][:, [j]]
            one = dense.update(theta, P, h, problem.e[[j]] - h @ (theta - problem.theta), r)
            theta, P = one.theta, one.P
        shift = 4 * rel * sl.gain * norm(problem.e) * (1 + sl.kappa**0.5)
        close(theta, new.theta, shift + 2 * m * eps(P) * np.abs(problem.theta), "theta")
        close(P, new.P, 4 * m * rel * norm(problem.P), "P")


@pytest.mark.parametrize("form", dense.FORMS)
def test_linear_filter_is_ridge_regression(rng, form):
    """k steps, lam = 1, q = 0, R fixed: min |L^-1(y - X theta)|^2 + |theta - theta_0|^2_P0^-1.

    n = 5, 20 steps of m = 2; the least-squares matrix has cond ~ 10, squared 100 in the normal
    equations that the filter solves: 20 steps x 100 x 10 eps ~ 4e-12; 1e-12 is met with a margin.
    """
    n, m, k = 5, 2, 20
    theta_0, G = rng.standard_normal(n), rng.standard_normal((n, n))
    P_0 = G @ G.T / n + np.eye(n) / 4
    P_0 = (P_0 + P_0.T) / 2
    R = np.diag([0.5, 0.25])
    theta, P, rows, values = theta_0, P_0, [], []
    for _ in range(k):
        X, y = rng.standard_normal((m, n)), rng.standard_normal(m)
        rows.append(X / np.sqrt(np.diagonal(R))[:, None])
        values.append(y / np.sqrt(np.diagonal(R)))
        new = dense.update(theta, P, X, y - X @ theta, R, form=form)
        theta, P = new.theta, new.P
    root = np.linalg.inv(np.linalg.cholesky(P_0))  # |root (theta - theta_0)|^2 is the penalty
    A = np.concatenate([*rows, root])
    b = np.concatenate([*values, root @ theta_0])
    ridge, *_ = np.linalg.lstsq(A, b)
    np.testing.assert_allclose(theta, ridge, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(P, np.linalg.inv(A.T @ A), rtol=1e-11, atol=1e-12)


@given(st.glm_problems(margin=5.0, dtype="float64"), hs.sampled_from(dense.FORMS), hs.data())
def test_glm_equals_exact_arithmetic(problem, form, data):
    """K e = P+ Z'e and P+ = (P^-1 + Z' J Z)^-1, in rational arithmetic.  [OBS-6]."""
    n = problem.theta.shape[0]
    P = data.draw(st.spd_matrices(n, cond=100))
    a = problem.arguments()
    del a["p"]
    new = dense.glm_update(**a, P=P, form=form)
    Z, P_x, e = exact.exact(problem.Z), exact.exact(P), exact.exact(problem.e)
    J = exact.covariance(problem.yhat)
    truth = exact.solve(exact.solve(P_x, exact.eye(n)) + Z.T.dot(J).dot(Z), exact.eye(n))
    theta = exact.exact(problem.theta) + truth.dot(Z.T.dot(e))
    m = Z.shape[0]
    top = 1 + norm(problem.Z @ P @ problem.Z.T)
    rel = 32 * m * (n + m) * eps(P) * top * np.linalg.cond(P) ** 0.5
    close(new.P, exact.floats(truth), rel * norm(P), "P")
    shift = rel * norm(P) * norm(problem.Z) * norm(problem.e)
    close(new.theta, exact.floats(theta), shift + 2 * eps(P) * abs(problem.theta), "theta")
    # the innovation covariance: H P H' + J with H = J Z
    H = J.dot(Z)
    S = exact.floats(H.dot(P_x).dot(H.T) + J)
    close(new.S, S, 16 * m * (n + m) * eps(P) * top, "S")


@given(st.dense_problems(dtype="float64"), hs.floats(0.5, 1.0), hs.floats(0, 2.0))
def test_time_update(problem, lam, q):
    """P / lam + q I, and a q of its own for each parameter.  [KAL-1]."""
    n = problem.theta.shape[0]
    close(time.update(problem.P, lam, q), problem.P / lam + q * np.eye(n), 0.0)
    each = readonly(np.arange(n) * q)
    close(time.update(problem.P, lam, each), problem.P / lam + np.diag(each), 0.0)
    p = readonly(np.diagonal(problem.P))
    close(time.update(p, lam, each), p / lam + each, 0.0)
    np.testing.assert_array_equal(time.update(p), p)


def test_joseph_keeps_p_definite_where_textbook_loses_it():
    """Two almost equal precise observations of a wide prior: P - KHP cancels to noise."""
    P, H = np.diag([1e8, 1.0]), np.array([[1.0, 1e-3]])
    theta, e, R = np.zeros(2), np.ones(1), np.array([[1e-9]])
    joseph = dense.update(theta, P, H, e, R, form="joseph").P
    truth = exact.dense(theta, P, H, e, R)["P"]
    assert np.linalg.eigvalsh(joseph)[0] > 0
    # relative to sqrt(P+_ii P+_jj), which the textbook form misses by orders of magnitude
    d = np.sqrt(np.diagonal(truth))
    assert np.abs((joseph - truth) / np.outer(d, d)).max() < 1e-6
    # the forms that subtract have no digit left, and say so
    for form in ("textbook", "sequential"):
        with pytest.raises(
            NumericalError, match=f"P: smallest eigenvalue.*form='{form}' subtracts"
        ):
            dense.update(theta, P, H, e, R, form=form)


@pytest.mark.parametrize("form", dense.FORMS)
def test_p_is_positive_semidefinite_or_refused(form, dtype):
    """Extreme draws: scales over many decades, nearly collinear rows, tiny and huge noise."""
    rng = np.random.default_rng(17)
    span = 8 if dtype == np.float64 else 4
    kept, tiny = 0, np.finfo(dtype).eps
    for _ in range(300):
        n, m = rng.integers(1, 6), rng.integers(1, 4)
        H = rng.standard_normal((m, n)) * 10 ** rng.uniform(-span / 2, span / 2, n)
        if m > 1 and rng.random() < 0.3:
            H[-1] = H[0] * (1 + 10 ** -rng.uniform(0, span))
        B = rng.standard_normal((n, n)) * 10 ** rng.uniform(-span / 4, span / 4, (n, 1))
        P = (B @ B.T + 1e-4 * np.diag((B * B).sum(axis=1))).astype(dtype)
        R = np.diag(10 ** rng.uniform(-span, span, m)).astype(dtype)
        theta, e = np.zeros(n, dtype), np.ones(m, dtype)
        try:
            new = dense.update(theta, (P + P.T) / 2, H.astype(dtype), e, R, form=form).P
        except NumericalError:
            continue
        kept += 1
        d = np.sqrt(np.diagonal(new).astype(np.float64))
        assert (d > 0).all(), (P, H, R)
        # eigenvalues of the correlations, in float64: those of squares are >= -n u
        assert np.linalg.eigvalsh(new / np.outer(d, d))[0] > -4 * n * tiny, (P, H, R)
    assert kept > 150, kept
