"""Heads on transformers that Hypothesis draws: what holds for every network and every choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from lte_common import effective

from loko_ref import lte
from loko_ref import strategies as drawn
from loko_ref.lte import heads as net
from loko_ref.lte.state import heads_of
from loko_ref.network import model
from loko_ref.network.spec import linears
from loko_ref.optimizers import SGD

CHOICES = st.fixed_dictionaries(
    {
        "realisation": st.sampled_from(["shared", "copies"]),
        "reset": st.sampled_from(["none", "B", "AB"]),
        "merging": st.sampled_from(["telescoped", "incremental"]),
        "replicas": st.sampled_from(["train", "frozen"]),
    }
)

# Some hundred operations on numbers of order 1; a norm whose eps is 1e-3 magnifies by up to 30
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@given(drawn.transformers(dtype="float64"), CHOICES, st.data())
def test_a_merge_leaves_every_head_at_W_and_a_head_is_a_plain_network(start, choices, data) -> None:
    branches = [k for k in linears(start.spec) if k.get("lora")]
    assume(all(k.get("bias", True) or not k["lora"].get("bias") for k in branches))
    c = lte.LteConfig(
        spec=start.spec,
        heads=2,
        data="replicated",
        optimizer=SGD(lr=0.02),
        merge_every=2,
        **choices,
    )
    weights = {k: start.weights[k] for k in c.frozen}
    factors = {k: np.stack([v, v[::-1]]) for k, v in start.weights.items() if k not in weights}
    s = lte.init(c, weights=weights, factors=factors)
    told = data.draw(drawn.batches(start, size=2))
    both = np.stack([told.x, told.x])
    for at in (1, 2, 3):
        for row in range(2):
            want, _ = model.forward(effective(c, s, row), told.x)
            z, _ = net.forward(c, heads_of(c, s), both)
            np.testing.assert_allclose(z[row], want, **CLOSE)
        s, _ = lte.step(c, s, told.x, told.y)
        if at == 2:
            s = lte.merge(c, s)
            s = s if c.reset == "none" else lte.reset(c, s)
            want, _ = model.forward(lte.merged_model(c, s.weights), told.x)
            for z in net.forward(c, heads_of(c, s), both)[0]:
                np.testing.assert_allclose(z, want, **CLOSE)


@given(drawn.transformers(dtype="float64"), st.sampled_from(["lte", "mhlora"]), st.data())
def test_the_gradient_is_the_complex_step(start, mode, data) -> None:
    branches = [k for k in linears(start.spec) if k.get("lora")]
    assume(all(k.get("bias", True) or not k["lora"].get("bias") for k in branches))
    c = lte.LteConfig(spec=start.spec, heads=2, mode=mode, replicas="frozen", loss="mse")
    told = data.draw(drawn.batches(start, size=2, observation="gaussian"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    theta, merged, d = rng.standard_normal((3, 2, c.layout.n))
    weights = {k: start.weights[k] for k in c.frozen}
    view = net.Heads(theta=theta, merged=merged if mode == "lte" else None, weights=weights)
    x, y = (np.stack([a, a]) if mode == "lte" else a for a in (told.x, told.y))
    _, _, g = net.gradient(c, view, x, y)
    h = 1e-30
    z, _ = net.forward(c, replace(view, theta=theta + 1j * h * d), x)
    slope = float(((z - y) ** 2).sum().imag) / h / y.size
    size = np.abs(g * d).sum()
    assert abs(slope - (g * d).sum()) <= 1e-10 * max(1.0, size)
