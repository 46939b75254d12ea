"""Certified factorisations: they contain the truth, and stay narrow on ill-conditioned input."""

import numpy as np
import pytest

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

from loko_ref import arrays
from loko_ref.arrays import balls
from loko_ref.arrays.balls import linalg
from loko_ref.errors import NumericalError, UndecidedError

U = 2.0**-53


def conditioned(rng, m, cond):
    Q, _ = np.linalg.qr(rng.standard_normal((m, m)))
    S = (Q * np.geomspace(1.0, 1.0 / cond, m)) @ Q.T
    return (S + S.T) / 2


def contains(ball, exact):
    pairs = zip(ball.reshape(-1).tolist(), exact.reshape(-1).tolist(), strict=True)
    return all(a.contains(b) for a, b in pairs)


@pytest.mark.parametrize("cond", [1.0, 1e6, 1e12])
def test_factor_and_solves_of_exact_input(rng, cond):
    S, b = conditioned(rng, 6, cond), rng.standard_normal((6, 3))
    with balls.precision(256):
        B, rhs = balls.balls(S), balls.balls(b)
        L = arrays.cholesky(B, "S")
        assert contains(L @ L.T, B)
        assert contains(L @ arrays.solve_triangular(L, rhs), rhs)
        assert contains(L.T @ arrays.solve_triangular(L, rhs, transpose=True), rhs)
        assert contains(B @ arrays.cho_solve(L, rhs), rhs)
        assert contains(B @ arrays.cho_solve(L, rhs[:, 0]), rhs[:, 0])
        plain = L.copy().view(balls.BallArray)  # a factor that has forgotten its matrix
        assert contains(B @ arrays.cho_solve(plain, rhs), rhs)
        assert contains(plain.T @ arrays.solve_triangular(plain, rhs, transpose=True), rhs)
        assert all(x == 0 for x in np.asarray(L)[np.triu_indices(6, 1)].tolist())


@pytest.mark.parametrize("cond", [1e2, 1e6, 1e10])
def test_enclosure_of_an_inflated_matrix_contains_its_members(rng, cond):
    S, b = conditioned(rng, 5, cond), rng.standard_normal(5)
    with balls.precision(256):
        wide = balls.inflate(S, U)
        L = arrays.cholesky(wide, "S")
        x, half = arrays.cho_solve(L, balls.balls(b)), arrays.solve_triangular(L, balls.balls(b))
        for _ in range(5):
            signs = np.triu(rng.choice([-1.0, 1.0], S.shape))
            signs = signs + np.triu(signs, 1).T
            member = balls.balls(S) * (1 + balls.balls(signs * U) * balls.balls(0.999).item())
            M = arrays.cholesky(member, "S")
            assert contains(L, M)
            assert contains(x, arrays.cho_solve(M, balls.balls(b)))
            assert contains(half, arrays.solve_triangular(M, balls.balls(b)))


@pytest.mark.parametrize("m", [10, 30])
def test_preconditioned_forms_are_narrow_where_plain_ones_are_not(rng, m):
    """At cond 1e12 and float64's roundoff the truth moves by some 1e-4 of its size."""
    S, b = conditioned(rng, m, 1e12), balls.balls(rng.standard_normal(m))
    with balls.precision(256):
        wide = balls.inflate(S, U)
        L = arrays.cholesky(wide, "S")
        for x in (arrays.cho_solve(L, b), arrays.solve_triangular(L, b), L):
            assert balls.radius(x).max() < 2e-2 * np.abs(balls.to_host(x)).max()
        if m == 30:
            with pytest.raises(UndecidedError):
                linalg._loop(wide)


def test_only_the_lower_triangle_is_read(rng):
    S = conditioned(rng, 4, 10.0)
    with balls.precision(128):
        L = arrays.cholesky(balls.balls(S), "S")
        again = arrays.cholesky(balls.balls(np.tril(S)), "S")
    assert all(x.overlaps(y) for x, y in zip(L.reshape(-1), again.reshape(-1), strict=True))


@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,)),
                                    ((2, 3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)),
                                    ((5, 3, 4), (4,)),
                                    ((0, 4), (4, 2)), ((3, 0), (0, 2))])  # fmt: skip
def test_matmul_follows_numpy(rng, shapes):
    a, b = (rng.integers(-9, 9, shape).astype(float) for shape in shapes)
    product = balls.balls(a) @ balls.balls(b)
    expected = a @ b
    assert np.shape(product) == expected.shape
    assert np.array_equal(balls.to_host(product), expected)


def test_reductions_follow_numpy(rng):
    a = rng.integers(-9, 9, (3, 4, 5)).astype(float)
    B = balls.balls(a)
    for name in ("sum", "max", "min", "mean"):
        for axis in (None, 0, -1, (0, 2)):
            for keep in (False, True):
                got = getattr(B, name)(axis=axis, keepdims=keep)
                want = getattr(a, name)(axis=axis, keepdims=keep)
                assert np.allclose(balls.to_host(got), want, rtol=1e-15), (name, axis)
                assert np.shape(got) == np.shape(want)
    assert np.array_equal(balls.xp.diag(B[0, 0, :3]), balls.xp.diag(B[0, 0, :3]))
    assert np.array_equal(balls.to_host(balls.xp.abs(B)), np.abs(a))


def test_a_midpoint_below_zero_decides_nothing_where_the_ball_reaches_above(rng):
    """The midpoint is certainly indefinite; members of the ball are positive definite."""
    with balls.precision(128):
        S = balls.inflate(np.diag([2.0, 1.0]), 1e-2) - balls.balls(np.diag([1.0, 1.001]))
        with pytest.raises(UndecidedError, match="not decided whether the matrix is positive"):
            arrays.cholesky(S, "S")
        surely = balls.inflate(np.diag([1.0, -1.0]), 1e-2)
        with pytest.raises(NumericalError) as caught:
            arrays.cholesky(surely, "S")
        assert not isinstance(caught.value, UndecidedError)


def test_what_is_undecided_names_the_matrix_own_lowest_eigenvalue():
    """Not that of the matrix near the identity in which it is looked for."""
    S = balls.inflate(np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]]), 1e-6)
    with pytest.raises(UndecidedError) as caught:
        arrays.cholesky(S, "S")
    assert caught.value.eigenvalue == pytest.approx(5e-10, rel=1e-3)


def test_eigenvectors_are_enclosed_and_zeros_come_first(rng):
    W = np.zeros((6, 5))
    W[:, [0, 2, 3]] = rng.standard_normal((6, 3))
    with balls.precision(128):
        G = balls.balls(W).T @ balls.balls(W)
        E, V = linalg.eigh(G)
        assert contains(V.T @ V, balls.balls(np.eye(5)))
        assert contains(V @ linalg.xp.diag(E) @ V.T, G)
        np.testing.assert_allclose(balls.to_host(E), np.linalg.eigvalsh(W.T @ W), atol=1e-14)
        assert all(x == 0 for x in E[:2])
        assert balls.radius(V).max() < 1e-30
        assert contains(linalg.eigh(balls.balls(np.zeros((2, 2))))[1], balls.balls(np.eye(2)))


def test_a_tie_of_eigenvalues_is_undecided():
    with balls.precision(128), pytest.raises(UndecidedError, match="not distinguished"):
        linalg.eigh(balls.balls(np.eye(2)))


def test_stacks_are_solved_one_by_one(rng):
    A, b = rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3, 1))
    with balls.precision(128):
        A, b = balls.balls(A), balls.balls(b)
        x, inv = linalg.xp.linalg.solve(A, b), linalg.xp.linalg.inv(A)
        for k in range(2):
            assert contains(A[k] @ x[k], b[k])
            assert contains(A[k] @ inv[k], balls.balls(np.eye(3)))
