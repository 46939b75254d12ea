"""A hundred thousand steps: the contrast space holds, and nothing raises.

The digits stream with 10 % of its labels wrong, repeated; `softmax`, beta = 0.9. By default a share
of it; --long runs it in full (3 to 4 minutes on one core).
"""

import numpy as np
import pytest
from sampling import count

from loko_ref import loko
from loko_ref.arrays import contrast_basis
from loko_ref.experiments import stream
from loko_ref.experiments.config import RunConfig
from loko_ref.kalman.simplex import to_contrast


def soak(steps, **changed):
    """Take the steps; return the worst departure from the contrast space of e, H and R.

    Each is relative to the largest entry of the array itself, not of y or Z: when the network is
    sure, e and H are tiny, and must still sum to zero to their own rounding.
    """
    options = {"observation": "softmax", "beta": 0.9}
    config = RunConfig(optimizer="loko", options=options, label_noise=0.1, **changed)
    task = stream.prepare(config)
    learner = task.learner
    batches = [stream.stream_batch(task, k) for k in range(task.steps)]
    state = loko.init(learner)
    C = task.dataset.outputs
    worst = dict.fromkeys("eHR", 0.0)
    for k in range(steps):
        state, record = loko.step(state, batches[k % len(batches)], learner)
        ones_R = to_contrast(contrast_basis(C, record.R_used), record.R_used.sum(axis=1))  # Q R 1
        for name, sums, whole in (
            ("e", record.e.sum(), record.e),  # 1'e
            ("H", record.H.sum(axis=0), record.H),  # 1'H
            ("R", ones_R, record.R_used),
        ):
            size = max(np.abs(whole).max(), np.finfo(whole.dtype).tiny)
            worst[name] = max(worst[name], float(np.abs(sums).max() / size))
    assert state.step == steps
    assert (state.p > 0).all()
    return worst


def check(worst, C=10):
    # e: its likeliest entry is minus the rounded sum of the others, so summing all again errs by
    # at most two sums of C terms, each at most C max |e|: 2 (C u)(C max |e|) = C^2 eps max |e|.
    # H: one rounded mean and one product a row, C rows: the same count. R: a convex sum of
    # outer products of such e, H: C^2 eps for its own sum, and as much inherited for e, H.
    eps = np.finfo(float).eps
    bound = {"e": C**2 * eps, "H": C**2 * eps, "R": 3 * C**2 * eps}
    assert all(worst[name] <= bound[name] for name in bound), worst


@pytest.mark.parametrize("shift", ["rotate90", "none"])
def test_contrast_space_holds(shift):
    check(soak(count(250, 2000), shift=shift))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_contrast_space_holds_for_100_000_steps():
    check(soak(100_000, shift="rotate90"))
