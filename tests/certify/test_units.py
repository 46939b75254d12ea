"""Units of error: correct algorithms stand within the stated factor, wrong ones outside.

The correct ones are written another way and share no code: einsum without the scaled H, a gain from
an explicit solve, a Cholesky route without a gain, eigenvalues.  [BALL-5, TOL-1]
"""

import numpy as np
import pytest
import scipy.linalg

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

from loko_ref.arrays import balls
from loko_ref.conformance.cases.registry import Case, Recipe, all_cases
from loko_ref.conformance.judge import tolerance
from loko_ref.conformance.vectors import certify
from loko_ref.kalman import diagonal


def by_solve(theta, p, H, e, R):
    S = np.einsum("in,n,jn->ij", H, p, H) + R
    K = np.linalg.solve(S, H * p).T
    return {"S": S, "K": K, "theta": theta + K @ e, "p": p - np.einsum("nm,mn->n", K, H) * p}


def without_gain(theta, p, H, e, R):
    S = R + np.einsum("in,jn->ij", H * p, H)
    L = np.linalg.cholesky(S)
    N = scipy.linalg.solve_triangular(L, H, lower=True)
    w = scipy.linalg.solve_triangular(L, e, lower=True)
    K = p[:, None] * scipy.linalg.solve_triangular(L, N, lower=True, trans=1).T
    return {"S": S, "K": K, "theta": theta + p * (N.T @ w), "p": p - p * p * (N * N).sum(axis=0)}


def by_eigenvalues(theta, p, H, e, R):
    S = (H * p) @ H.T + R
    values, V = np.linalg.eigh(S)
    K = (p[:, None] * H.T) @ ((V / values) @ V.T)
    return {"S": S, "K": K, "theta": theta + K @ e, "p": p * (1 - (K * H.T).sum(axis=1))}


def jittered(theta, p, H, e, R):
    jitter = 1e-9 if R.dtype == np.float64 else 1e-4
    return by_solve(theta, p, H, e, R + jitter * np.eye(len(e), dtype=R.dtype))


def other_diagonal(theta, p, H, e, R):
    out = by_solve(theta, p, H, e, R)
    return out | {"p": 1 / (1 / p + np.einsum("mn,mn->n", H, np.linalg.solve(R, H)))}


def teacher_forced(rng, n, m, cond, dtype):
    Q, _ = np.linalg.qr(rng.standard_normal((m, m)))
    R = (Q * np.geomspace(1, 1 / cond, m)) @ Q.T
    x = {
        "theta": rng.standard_normal(n),
        "p": rng.uniform(0.2, 2.0, n),
        "H": rng.standard_normal((m, n)) / np.sqrt(n),
        "e": rng.standard_normal(m),
        "R": (R + R.T) / 2,
    }
    return {k: v.astype(dtype) for k, v in x.items()}


def ratios(x, functions):
    """Largest error in units of BALL-5 alone, for each function and output."""
    dtype = x["p"].dtype
    u = float(np.finfo(dtype).eps) / 2
    with balls.precision(192):
        exact = vars(diagonal.update(**{k: balls.balls(v) for k, v in x.items()}))
        wide = vars(diagonal.update(**{k: balls.inflate(v, u) for k, v in x.items()}))
    found = {}
    for function in functions:
        for name, value in function(**x).items():
            centre = balls.to_host(exact[name])
            unit = np.maximum(balls.radius(wide[name]), u * np.abs(centre))
            found[function.__name__, name] = float(np.max(np.abs(value - centre) / unit))
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("n", "m"), [(50, 5), (400, 10)])
@pytest.mark.parametrize("cond", [1.0, 1e4])
def test_correct_algorithms_stand_at_a_few_units(rng, n, m, cond, dtype):
    x = teacher_forced(rng, n, m, cond, dtype)
    worst = ratios(x, [by_solve, without_gain])
    assert max(worst.values()) < 8, worst


@pytest.mark.parametrize("cond", [1.0, 1e8])
def test_wrong_ones_stand_far_outside(rng, cond):
    x = teacher_forced(rng, 50, 5, cond, "float64")
    good, bad = ratios(x, [by_solve]), ratios(x, [jittered, other_diagonal])
    assert max(good.values()) < 8, good
    assert bad["jittered", "K"] > 1e3
    assert bad["other_diagonal", "p"] > 1e6


def row_scaled(draw, dtype):
    scales = np.array([1.0, 1e-9, 1e-3, 1e-6] if dtype == "float64" else [1.0, 1e-6, 1e-2, 1e-4])
    return {
        "theta": draw(12),
        "p": draw.positive(12),
        "H": scales[:, None] * draw(4, 12),
        "e": scales * draw(4),
        "R": np.diag(scales**2) / 2,
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_row_scaled_case_is_labelled_and_does_not_fail_a_normwise_stable_solve(dtype):
    recipe = Recipe(
        operation="kalman.diagonal_update",
        name="row-scaled",
        build=row_scaled,
        options={},
    )
    case = Case(id=f"kalman.diagonal_update/row-scaled/{dtype}", recipe=recipe, dtype=dtype)
    assert tolerance.label(case) == "row-scaled"
    allowed = tolerance.tolerance(case)
    assert [name for name, bound in allowed.items() if bound is not None] == ["S"]
    units, got = tolerance.unit(case), by_eigenvalues(**case.inputs())
    error = np.abs(got["K"] - tolerance.expected(case)["K"])
    if dtype == "float64":
        assert np.max(error / units["K"].size) > 2 * tolerance.factor(case)  # it would have failed
    assert np.all(np.abs(got["S"] - tolerance.expected(case)["S"]) <= allowed["S"])
    # the oracle itself is accurate row by row, and is held to it
    found = {q.name: q for q in certify.certify_case(case)}
    assert all(q.contained and not q.excluded for q in found.values())


def test_no_case_of_the_kit_is_row_scaled():
    assert not [case.id for case in all_cases() if tolerance.label(case)]
