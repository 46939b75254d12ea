"""Property tests of a filter with loko_ref's strategies: `pytest this_file.py`.

Replace `my_update`. Each draw is a whole problem (theta, p, H, e, R) of stated conditioning, its
arrays read-only, in float64 or float32; a failing one shrinks to a small, readable one. How far two
correct updates may be apart is computed from the problem itself.

Strategies for whole steps, transformers and LTE runs: `help(loko_ref.strategies)`.
Needs: pip install 'loko-ref[test]'
"""

import numpy as np
import pytest
from hypothesis import given, settings

from loko_ref import strategies as st
from loko_ref.conformance.user_inputs import agree

# A deadline would measure the machine, not the filter: other work on it, or the first call of a
# library, takes longer than Hypothesis's 200 ms. A test that hangs is stopped by pytest-timeout.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


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
    return {"S": S, "K": K, "theta": theta, "p": p}


@given(st.diagonal_problems(max_n=8, cond=1e6))
def test_agrees_with_the_reference(problem):
    """Quantity by quantity: a failure names the first one that is off."""
    agree(my_update, "kalman.diagonal_update", problem.arguments())


@pytest.mark.parametrize("fact", st.facts.DIAGONAL)
@given(problem=st.diagonal_problems(max_n=8, cond=1e6))
def test_has_every_fact(fact, problem):
    """Without a reference: e = 0 leaves theta, the order of the outputs changes nothing, ..."""
    st.facts.DIAGONAL[fact](my_update, problem)


@given(st.diagonal_problems(cond=1e2))
def test_dtype_is_kept(problem):
    """A property stated here."""
    assert {a.dtype for a in my_update(**problem.arguments()).values()} == {problem.p.dtype}
