"""The implicit glm step on balls: enclosed by its own residual, and the floats within."""

import numpy as np
import pytest

from loko_ref.arrays import balls
from loko_ref.kalman import implicit

pytest.importorskip("flint", reason="needs the extra certify")


@pytest.mark.parametrize(("p", "margin"), [(1e-6, 1.0), (1.0, 3.0), (1e3, 30.0), (1e6, 300.0)])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_float_lies_within_its_rounding_of_a_proven_ball(p, margin, batch):
    rng = np.random.default_rng([int(margin), batch])
    n, C = 6, 3
    Z = rng.uniform(-1, 1, (batch * C, n))
    P, z = p * rng.uniform(0.5, 2, n), rng.uniform(-margin, margin, (batch, C))
    theta, y = rng.uniform(-1, 1, n), np.eye(C)[rng.integers(0, C, batch)]
    v, mean = implicit.mean(theta, P, Z, z, y)

    def enclosure():
        made = (balls.balls(a) for a in (theta, P, Z, z, y))
        return dict(zip(("v", "theta"), implicit.mean_unchecked(balls.xp, *made), strict=True))

    found = balls.enclose(enclosure, relative_bits=60)
    assert not found.loose
    exact = {name: balls.to_host(a) for name, a in found.outputs.items()}
    G = np.abs(Z * P) @ np.abs(Z.T)
    u = 2.0**-53 * (1 + margin + (G @ np.abs(v)).max())
    assert np.abs(v - exact["v"]).max() <= 16 * u
    assert (np.abs(mean - exact["theta"]) <= 16 * u * np.sqrt(P) * np.sqrt(G.max())).all()
