"""Long runs stay positive, symmetric and near the exact trajectory.  [BALL-8]

By default a share; --long runs longer ones (about two minutes); the full lengths
(1,000,000 and 100,000 steps) are ``python tests/certify/soak.py``.
"""

import numpy as np
import pytest
from sampling import count

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
soak = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(soak)


@pytest.mark.parametrize("kind", ["decoupled", "variational"])
def test_small_problem(kind):
    steps = count(1_500, 100_000)
    found = soak.small(steps, kind)
    assert found["asymmetry"] <= 2.0**-52  # S is formed as Hs Hs' + R
    # the precision of each parameter grows by at most sum of H' R^-1 H: p falls like 1 / steps
    assert np.all(found["p"] < 20 / steps)
    assert np.all(found["p"] > 0.01 / steps)


@pytest.mark.parametrize("name", list(soak.DRIFTS))
def test_drifting_problem(name):
    steps = count(300, 5_000)
    found = soak.drifting(steps, every=100, **soak.DRIFTS[name])
    # each is rounding of one product, u times a few terms, however long the run
    for key in ("asymmetry S", "asymmetry R", "asymmetry P"):
        assert found[key] <= 64 * 2.0**-53, (key, found)


def test_a_dense_filter_that_forgets_what_no_class_shows_raises():
    """P grows by 1 / lam a step along what softmax cannot see, and the run ends with an error."""
    found = soak.windup(5_000, lam=0.98)
    assert (found["quantity"], found["eigenvalue"]) == ("S", 0.0)
    assert 100 < found["step"] < 5_000
    assert found["says"].startswith(f"step {found['step']}: S: smallest eigenvalue 0. Class ")
    first, *_, last = found["P"].items()
    for _, seen in (first, last):
        assert seen["common"] > 1 - 1e-6
    # 1e-6 of q a step is added, and multiplied on
    growth = last[1]["largest"][0] / first[1]["largest"][0]
    assert growth == pytest.approx(0.98 ** (first[0] - last[0]), rel=0.01)


@pytest.mark.parametrize("form", ["joseph", "textbook"])
def test_dense_covariance_stays_symmetric(form):
    assert soak.dense_small(count(600, 20_000), form, every=100) <= 16 * 2.0**-53


@pytest.mark.parametrize("how", [{}, {"lam": 0.999, "q": 1e-6}], ids=["static", "forgetting"])
@pytest.mark.parametrize("kind", ["decoupled", "variational"])
def test_distance_to_the_certified_trajectory(how, kind):
    steps = count(200, 5_000)
    marks = {10, 100, steps}
    found = soak.certified(steps, marks, kind, **how)
    for mark, distance in found.items():
        assert distance["lost"] < 256  # the enclosure is far narrower than what it measures
        # rounding errors of k steps add like a random walk at worst like k; 30 u a step allows
        # for one step's own conditioning (cond(S) is below 30)
        assert distance["p"] < 30 * mark**0.5 + 60, (mark, distance)
        assert distance["theta"] < 30 * mark**0.5 + 60, (mark, distance)


def test_the_certified_trajectory_sees_a_wrong_constant():
    """A relative error of 1e-12 in R, 1e4 units of roundoff, shows."""
    found = soak.certified(100, {100}, R=soak.Stream().R * (1 + 1e-12))
    assert found[100]["p"] > 1e3
