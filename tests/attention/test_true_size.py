"""One step at the size of RoBERTa-base and ViT-B/16, by both routes; the figures: attention.md.

12 s and 0.7 GB: with --long.
"""

import numpy as np
import pytest

from loko_ref import loko
from loko_ref.fast import prepare
from loko_ref.fast.bench import problem


@pytest.mark.slow
@pytest.mark.parametrize(("name", "m"), [("roberta", 2), ("vit", 10)])
def test_both_routes_take_the_same_step(name, m):
    config, prior, batch = problem(name, "float32")
    assert config.model.n == 294_912
    fast, _ = prepare(config).step(prior, batch)
    slow, record = loko.step(prior, batch, config)
    assert record.H.shape == (m, config.model.n)
    for key in ("theta", "p", "R"):
        a, b = getattr(slow, key), getattr(fast, key)
        assert a.dtype == b.dtype == np.float32
        # sums of 3,072 terms through 12 blocks, each within a few roots of that many units
        assert np.abs(a - b).max() <= 1e3 * np.finfo(np.float32).eps * np.abs(a).max(), key
    assert np.abs(slow.theta - prior.theta).max() > 0
    assert (slow.p > 0).all()
    assert (slow.p <= prior.p).all()
