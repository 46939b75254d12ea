"""Property tests of a filter: `pytest this_file.py`.

Replace `my_update`. Every exact fact about a measurement update is one test; a failing one shows
the smallest problem found, as Python to paste. How far two correct updates may be apart is computed
from the problem itself.

The facts of networks, optimizers, LoKO and LTE: `loko-ref properties --list`.
Strategies for tests of your own: `help(loko_ref.strategies)`.
Needs: pip install 'loko-ref[test]'
"""

import numpy as np
from hypothesis import given, settings

from loko_ref import properties
from loko_ref import strategies as st
from loko_ref.conformance.user_inputs import agree

# dev, ci or thorough: how many problems are drawn. None has a deadline, which would measure the
# machine, not the filter. A test that hangs is stopped by pytest-timeout.
PROFILE = "dev"
settings.register_profile(PROFILE, properties.PROFILES[PROFILE])
settings.load_profile(PROFILE)


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


@properties.parametrize({"kalman.diagonal_update": my_update}, profile=PROFILE)
def test_property(holds):
    """Without a reference: e = 0 leaves theta, the order of the outputs changes nothing, ..."""
    holds()


@given(st.diagonal_problems(max_n=8, cond=1e6))
def test_agrees_with_the_reference(problem):
    """Quantity by quantity: a failure names the first one that is off."""
    agree(my_update, "kalman.diagonal_update", problem.arguments())


@given(st.diagonal_problems(cond=1e2))
def test_dtype_is_kept(problem):
    """A property stated here."""
    assert {a.dtype for a in my_update(**problem.arguments()).values()} == {problem.p.dtype}
