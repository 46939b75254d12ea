"""Property-test a filter of your own with loko_ref's strategies: `pytest this_file.py`.

Replace `my_update`. Each draw is a whole problem (theta, p, H, e, R) of stated conditioning, its
arrays read-only, in float64 or float32; a failing one shrinks to a small, readable one.
Needs: pip install 'loko-ref[test]'
"""

import numpy as np
from hypothesis import given

from loko_ref import strategies as st
from loko_ref.kalman import diagonal


def my_update(theta, p, H, e, R):
    """A diagonal Kalman update, one loop at a time; yours goes here."""
    m, n = H.shape
    S = R.copy()
    for i in range(m):
        for j in range(m):
            for k in range(n):
                S[i, j] += H[i, k] * p[k] * H[j, k]
    K = np.linalg.solve(S, H * p).T
    theta, p = theta.copy(), p.copy()
    for k in range(n):
        theta[k] += K[k] @ e
        p[k] -= p[k] * (K[k] @ H[:, k])
    return {"theta": theta, "p": p, "K": K}


def unit(problem):
    """How far two correct updates may be apart: eps x conditioning of S x operations."""
    m, n = problem.H.shape
    S = (problem.H * problem.p) @ problem.H.T + problem.R
    worst = np.linalg.norm(S, 2) / np.linalg.eigvalsh(problem.R)[0]  # bounds cond(S)
    return 8 * m * (n + m) * float(np.finfo(S.dtype).eps) * worst


@given(st.diagonal_problems(max_n=8, cond=1e2, dtype="float64"))
def test_agrees_with_the_reference(problem):
    mine = my_update(**problem.arguments())
    reference = diagonal.update(**problem.arguments())
    rel = unit(problem)
    assert (abs(mine["p"] - reference.p) <= rel * problem.p).all()
    gain = np.linalg.norm(problem.H * problem.p, axis=0) / np.linalg.eigvalsh(problem.R)[0]
    shift = rel * gain * np.linalg.norm(problem.e) + 4 * 2.3e-16 * abs(problem.theta)
    assert (abs(mine["theta"] - reference.theta) <= shift).all()


@given(st.diagonal_problems(max_n=8, cond=1e2))
def test_no_innovation_no_movement(problem):
    still = my_update(**(problem.arguments() | {"e": np.zeros_like(problem.e)}))
    assert (still["theta"] == problem.theta).all()


@given(st.diagonal_problems(cond=1e2))
def test_dtype_is_kept(problem):
    assert {a.dtype for a in my_update(**problem.arguments()).values()} == {problem.p.dtype}
