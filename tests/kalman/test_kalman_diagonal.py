"""The diagonal update [DIAG-1 to DIAG-6]: exact rational arithmetic, and its exact facts."""

import exact
import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as hs
from sampling import count
from support import close, eps, readonly, slack

from loko_ref import strategies as st
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman import dense, diagonal

# well conditioned in both dtypes; ill-conditioned (cond(R), max p / min p up to 1e7) in float64
WELL = st.diagonal_problems(cond=10)
ILL = st.diagonal_problems(cond=1e7, dtype="float64")
PROBLEMS = WELL | ILL
DIAGONALS = hs.sampled_from(diagonal.DIAGONALS)


def update(problem, kind="decoupled", **changes):
    """The update and its slack; a numerical failure only where no digit could be right."""
    a = problem.arguments() | changes
    sl = slack(a["H"], a["R"], a["p"])
    unit = eps(a["theta"])
    try:
        new = diagonal.update(**a, diagonal=kind)
    except NumericalError:
        if sl.rel * unit < 1:
            raise
        reject()
    return new, sl, sl.rel * unit


@given(PROBLEMS, DIAGONALS)
def test_equals_exact_arithmetic(problem, kind):
    new, sl, rel = update(problem, kind)
    truth = exact.diagonal(**problem.arguments())
    H, p, R = (np.abs(np.float64(a)) for a in (problem.H, problem.p, problem.R))
    unit = eps(problem.p)
    # one n-term dot product, factors rounded once more by sqrt and product: (n + 4) eps
    close(new.S, truth["S"], (H.shape[1] + 4) * unit * ((H * p) @ H.T + R), "S")
    close(new.K, truth["K"], rel * sl.gains[:, None], "K")
    size = np.linalg.norm(np.float64(problem.e))
    theta = np.abs(np.float64(problem.theta))
    close(new.theta, truth["theta"], rel * sl.gains * size + 2 * unit * theta, "theta")
    close(new.p, truth[kind], rel * np.float64(problem.p), "p")


@given(PROBLEMS, DIAGONALS)
def test_variances_stay_positive_and_never_grow(problem, kind):
    new, _, _ = update(problem, kind)
    assert (new.p > 0).all()
    assert (new.p <= problem.p).all()


@given(PROBLEMS, DIAGONALS)
def test_no_innovation_no_movement(problem, kind):
    new, _, _ = update(problem, kind, e=readonly(np.zeros_like(problem.e)))
    np.testing.assert_array_equal(new.theta, problem.theta)  # theta + K 0, exactly


@given(st.diagonal_problems(cond=1e4, dtype="float64"), hs.integers(0, 100), DIAGONALS)
def test_infinite_noise_teaches_nothing(problem, exponent, kind):
    s = 10.0**exponent
    new, _, rel = update(problem, kind, R=readonly(problem.R * s))
    # |K_i| <= p_i |h_i| / (s lambda_min(R)); p_i - p+_i <= p_i^2 |h_i|^2 / (s lambda_min(R))
    least = s * np.linalg.eigvalsh(problem.R)[0]
    h = np.linalg.norm(problem.H, axis=0)
    moved = problem.p * h * np.linalg.norm(problem.e) / least
    close(new.theta, problem.theta, moved * (1 + rel) + eps(problem.p) * abs(problem.theta))
    shrunk = problem.p**2 * h**2 / least
    close(new.p, problem.p, shrunk * (1 + rel) + 2 * eps(problem.p) * problem.p)


@given(PROBLEMS, DIAGONALS, hs.randoms(use_true_random=False))
def test_permuting_outputs_permutes_the_gain(problem, kind, random):
    new, sl, rel = update(problem, kind)
    order = list(range(problem.e.shape[0]))
    random.shuffle(order)
    a = {"H": problem.H[order], "e": problem.e[order], "R": problem.R[np.ix_(order, order)]}
    other, _, _ = update(problem, kind, **a)
    close(other.K, new.K[:, order], 2 * rel * sl.gains[:, None], "K")
    close(other.p, new.p, 2 * rel * np.float64(problem.p), "p")


@given(PROBLEMS)
def test_decoupled_is_the_diagonal_of_the_dense_posterior(problem):
    a = problem.arguments()
    new, sl, rel = update(problem)
    full = dense.update(**{k: v for k, v in a.items() if k != "p"}, P=np.diag(a["p"]))
    # Joseph's squares see K's error twice: 2 rel for each of F P F' and K R K'; rows mix by P
    top = float(problem.p.max())
    close(np.diagonal(full.P), new.p, 5 * rel * top, "p")
    close(full.theta, new.theta, rel * (sl.gain + sl.gains) * np.linalg.norm(problem.e) + rel)
    plain = dense.update(
        **{k: v for k, v in a.items() if k != "p"}, P=np.diag(a["p"]), form="textbook"
    )
    close(np.diagonal(plain.P), new.p, 2 * rel * np.float64(problem.p), "p")


@hs.composite
def changes(draw, m):
    """An invertible change of m outputs: unit lower triangular times a diagonal of +-1, +-2."""
    T = np.tril(draw(st.arrays((m, m), size=1.0)), -1)
    return (T + np.eye(m)) * draw(hs.sampled_from([1.0, -1.0, 2.0, -2.0]))


@given(hs.data(), st.diagonal_problems(cond=1e4, dtype="float64"), DIAGONALS)
def test_invariant_to_a_change_of_outputs(data, problem, kind):
    T = data.draw(changes(problem.e.shape[0]))
    new, sl, rel = update(problem, kind)
    R = T @ problem.R @ T.T
    a = {"H": T @ problem.H, "e": T @ problem.e, "R": (R + R.T) / 2}
    other, _, rel_T = update(problem, kind, **a)
    # rounding T H, T e, T R T' moves H, e by m eps cond(T) and R by 2 m eps cond(T)^2, relatively
    both = rel + rel_T + rel * 2 * np.linalg.cond(T) ** 2
    close(other.theta, new.theta, both * sl.gains * np.linalg.norm(problem.e) + eps(T) * 8, "theta")
    close(other.p, new.p, both * problem.p, "p")


@given(PROBLEMS)
def test_variational_is_at_most_decoupled(problem):
    decoupled, _, rel = update(problem)
    variational, _, _ = update(problem, "variational")
    assert (variational.p <= decoupled.p + 2 * rel * np.float64(problem.p)).all()
    np.testing.assert_array_equal(variational.theta, decoupled.theta)  # the same gain


@given(st.diagonal_problems(cond=1e3, dtype="float64"))
def test_variational_is_the_inverse_of_the_precisions_diagonal(problem):
    """1 / p+ = diag of the inverse of the dense P+.  [DIAG-2]."""
    a = problem.arguments()
    new, _, rel = update(problem, "variational")
    p = a.pop("p")
    P = dense.update(**a, P=np.diag(p), form="information").P
    precision = np.diagonal(np.linalg.inv(P))
    # the inverse of P+ multiplies its relative error by its condition
    close(1 / new.p, precision, (rel + 8 * eps(P) * np.linalg.cond(P)) * precision * 8)


def test_the_two_diagonals_differ():
    """H = (1, 1), p = 1, R = 1: decoupled 1 - 1/3, variational 1 / (1 + 1)."""
    a = {"theta": np.zeros(2), "p": np.ones(2), "H": np.ones((1, 2))}
    a |= {"e": np.zeros(1), "R": np.eye(1)}
    np.testing.assert_allclose(diagonal.update(**a).p, 2 / 3, rtol=1e-15)
    np.testing.assert_allclose(diagonal.update(**a, diagonal="variational").p, 1 / 2, rtol=1e-15)


def scalar_by_scalar(problem, order, kind):
    """One update an output, H frozen; R must be diagonal."""
    theta, p = problem.theta, problem.p
    for j in order:
        h, r = problem.H[[j]], problem.R[[j]][:, [j]]
        e = problem.e[[j]] - h @ (theta - problem.theta)
        new = diagonal.update(theta, p, h, e, r, diagonal=kind)
        theta, p = new.theta, new.p
    return theta, p


@given(st.diagonal_problems(cond=1e4, diagonal_noise=True, dtype="float64"))
def test_variational_p_agrees_in_any_order(problem):
    order = range(problem.e.shape[0])
    new, _, rel = update(problem, "variational")
    for way in (order, reversed(order)):
        _, p = scalar_by_scalar(problem, way, "variational")
        close(p, new.p, rel * problem.p, "p")


def test_order_matters_where_it_should():
    """theta in `variational`, theta and p in `decoupled`: a fixed problem, visibly different."""
    problem = st.DiagonalProblem(
        theta=np.zeros(2),
        p=np.array([1.0, 2.0]),
        H=np.array([[1.0, 1.0], [1.0, -2.0]]),
        e=np.array([1.0, -1.0]),
        R=np.diag([0.5, 0.25]),
    )
    for kind in diagonal.DIAGONALS:
        theta_01, p_01 = scalar_by_scalar(problem, (0, 1), kind)
        theta_10, p_10 = scalar_by_scalar(problem, (1, 0), kind)
        assert abs(theta_01 - theta_10).max() > 1e-2
        same = np.allclose(p_01, p_10, rtol=1e-14)
        assert same == (kind == "variational")
        joint = diagonal.update(**problem.arguments(), diagonal=kind)
        assert abs(theta_01 - joint.theta).max() > 1e-2
        assert np.allclose(p_01, joint.p, rtol=1e-14) == (kind == "variational")


@pytest.mark.parametrize("kind", diagonal.DIAGONALS)
def test_not_covariant_under_a_change_of_parameters(kind):
    """theta = T phi with T a rotation by 45 degrees: a diagonal prior stays p I, the result not."""
    c = np.sqrt(0.5)
    T = np.array([[c, -c], [c, c]])
    theta, p = np.array([0.5, -1.0]), np.ones(2)
    H, e, R = np.array([[1.0, 0.25]]), np.array([1.0]), np.eye(1) / 4
    first = diagonal.update(theta, p, H, e, R, diagonal=kind)
    in_phi = diagonal.update(T.T @ theta, p, H @ T, e, R, diagonal=kind)
    # one step's mean still agrees, as the prior p I is the same in both; the next step's does not
    np.testing.assert_allclose(T @ in_phi.theta, first.theta, rtol=1e-14)
    H, e = np.array([[-0.5, 1.0]]), np.array([1.0])
    second = diagonal.update(first.theta, first.p, H, e, R, diagonal=kind)
    in_phi = diagonal.update(in_phi.theta, in_phi.p, H @ T, e, R, diagonal=kind)
    assert abs(T @ in_phi.theta - second.theta).max() > 1e-2


def extreme(rng):
    """n = 4, m <= 3; p and H's columns over 16 orders of magnitude, R down to 1e-18 of H p H'."""
    m = int(rng.integers(1, 4))
    p = 10 ** rng.uniform(-8, 8, 4)
    H = rng.standard_normal((m, 4)) * 10 ** rng.uniform(-8, 8, 4)
    size = ((H * H) @ p) * 10 ** rng.uniform(-18, 0, m)
    return p, H, np.diag(size)


def test_variances_stay_positive_in_extreme_draws():
    """The plain form p - diag(KH) p loses its sign in many of them; ours in none.  [DIAG-5].

    4,000 draws; 20,000 with --long.
    """
    draws = count(4_000, 20_000)
    rng = np.random.default_rng(0)
    plain_lost, refused, kept = 0, 0, 0
    for _ in range(draws):
        p, H, R = extreme(rng)
        try:
            new = diagonal.update_unchecked(np, np.zeros(4), p, H, np.zeros(len(H)), R, "decoupled")
        except NumericalError:
            refused += 1
            continue
        assert (new.p > 0).all(), (p, H, R)
        kept += 1
        plain_lost += bool((p - (new.K * H.T).sum(axis=1) * p <= 0).any())
    assert plain_lost > draws / 200, plain_lost
    assert kept > 0.75 * draws, (kept, refused)


@given(st.glm_problems(margin=5.0) | st.glm_problems(margin=100.0), DIAGONALS)
def test_glm_equals_exact_arithmetic(problem, kind):
    """Differences of classes in rational arithmetic: an independent route, at any margin."""
    a = problem.arguments()
    new = diagonal.glm_update(**a, diagonal=kind)
    truth = exact.glm(**a)
    Z, p, e = (np.float64(problem.__dict__[k]) for k in ("Z", "p", "e"))
    m, n = Z.shape
    # the whitened system I + L' G L is well conditioned up to its norm (<= 1 + |G|), and I + J G
    # is similar to it; yhat itself is rounded: its rows sum to 1 within C eps, as the truth's do
    top = 1 + np.linalg.norm((Z * p) @ Z.T, 2)
    unit = eps(problem.p)
    rel = 16 * m * (n + m) * unit * top
    close(new.p, truth[kind], rel * p, "p")
    gains = p * np.linalg.norm(Z, axis=0)
    size = np.abs(np.float64(problem.theta))
    close(new.theta, truth["theta"], rel * gains * np.linalg.norm(e) + 2 * unit * size, "theta")


@pytest.mark.parametrize("margin", [0.0, 5.0, 20.0, 35.0, 40.0, 100.0, 700.0])
@pytest.mark.parametrize("kind", diagonal.DIAGONALS)
def test_glm_keeps_its_digits_at_any_margin(margin, kind):
    """Contrasts alone lose 2 % at a margin of 35; the form without J's inverse loses nothing.

    Two outputs, n = 3: |G| ~ 10, so 1e-14 is a few hundred units of rounding relative to p.
    """
    z = np.array([margin, 0.0, -1.0])
    s = np.exp(z - z.max())
    yhat = (s / s.sum())[None]
    Z = np.array([[1.0, -0.5, 0.25], [0.5, 1.0, -1.0], [-0.25, 0.75, 1.0]])
    theta, p = np.array([0.25, -0.5, 1.0]), np.array([0.5, 1.0, 2.0])
    e = np.array([0.0, 1.0, 0.0]) - yhat[0]
    new = diagonal.glm_update(theta, p, Z, e, yhat, diagonal=kind)
    truth = exact.glm(theta, p, Z, e, yhat)
    np.testing.assert_allclose(new.theta, truth["theta"], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(new.p, truth[kind], rtol=1e-14)
    # p - p+ is the whole of what was learnt, and J ~ exp(-margin) of it: it keeps its size too
    learnt, expected = p - new.p, p - truth[kind]
    np.testing.assert_allclose(learnt, expected, rtol=1e-13, atol=4 * eps(p) * p.max())


@pytest.mark.parametrize("kind", diagonal.DIAGONALS)
def test_glm_refuses_where_nothing_is_left_of_the_noise(kind):
    """Three outputs of two directions that dwarf J: beside them I is lost, in either diagonal."""
    Z, yhat = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), np.full((1, 3), 1 / 3)
    Z[1] = Z[0] * 0.5  # one direction of parameters, two of outputs
    e = np.array([0.0, 0.0, 1.0]) - yhat[0]
    with pytest.raises(NumericalError, match=r"^S: smallest eigenvalue"):
        diagonal.glm_update(np.zeros(2), np.array([1e18, 1.0]), Z, e, yhat, diagonal=kind)


def test_glm_refuses_an_innovation_that_is_none():
    yhat = np.array([[0.5, 0.25, 0.25]])
    for e in ([1.0, 1.0, 1.0], [0.5, -0.25, -0.25 + 1e-12]):
        with pytest.raises(InputError, match="e: got classes that sum to"):
            diagonal.glm_update(np.zeros(2), np.ones(2), np.ones((3, 2)), np.array(e), yhat)


@given(st.glm_problems(dtype="float64", margin=20.0))
def test_glm_gain_sees_contrasts_only(problem):
    new = diagonal.glm_update(**problem.arguments())
    batch, C = problem.yhat.shape
    sums = new.K.reshape(-1, batch, C).sum(axis=2)
    # C terms, each in error by cond(I + JG) u relative to |K|
    top = 1 + np.linalg.norm((problem.Z * problem.p) @ problem.Z.T, 2)
    size = problem.p * np.linalg.norm(problem.Z, axis=0) * top
    close(sums, np.zeros_like(sums), 16 * C * eps(problem.p) * size[:, None])


@given(st.glm_problems(dtype="float64", margin=5.0))
def test_glm_equals_an_invertible_noise_added_along_the_ones(problem):
    """R = J + 1 1' in each sample: the all-ones direction carries nothing, any R does."""
    assume((problem.yhat.max(axis=1) < 0.999).all() and (problem.yhat > 1e-4).all())
    batch, C = problem.yhat.shape
    blocks = [np.diag(y) - np.outer(y, y) + np.ones((C, C)) for y in problem.yhat]
    J = [b - np.ones((C, C)) for b in blocks]
    R, H = np.zeros((batch * C, batch * C)), np.zeros_like(problem.Z)
    for b in range(batch):
        at = slice(b * C, (b + 1) * C)
        R[at, at], H[at] = blocks[b], J[b] @ problem.Z[at]
    sl = slack(H, R, problem.p)
    for kind in diagonal.DIAGONALS:
        new = diagonal.glm_update(**problem.arguments(), diagonal=kind)
        plain = diagonal.update(problem.theta, problem.p, H, problem.e, R, diagonal=kind)
        rel = 2 * sl.rel * eps(R)
        # J Z is rounded relatively to |Z|, also where it is 0
        gains = problem.p * np.linalg.norm(problem.Z, axis=0) / np.linalg.eigvalsh(R)[0]
        close(new.theta, plain.theta, rel * gains * np.linalg.norm(problem.e) + 8 * eps(R))
        close(new.p, plain.p, rel * problem.p)
