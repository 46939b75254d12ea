"""The short programs of examples/ are the library's algorithms, number for number."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from loko_ref import loko, lte
from loko_ref.lte.state import draw_factors
from loko_ref.network.model import Model, mlp_spec
from loko_ref.optimizers import SGD

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_tiny_loko_is_loko():
    file = EXAMPLES / "tiny_loko.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 100
    example = runpy.run_path(str(file))
    rng = np.random.default_rng(1)
    layers = example["make_network"](rng, [4, 5, 3], 2, 3.0)
    for layer in layers:
        layer["b"] = rng.standard_normal(layer["b"].shape)
    weights = {f"{k}.{name}": layer[name] for k, layer in enumerate(layers) for name in "WbAB"}
    model = Model(spec=mlp_spec([4, 5, 3], "tanh", {"r": 2, "alpha": 3.0}), weights=weights)
    config = loko.LokoConfig(model=model)
    xs, labels = rng.standard_normal((6, 4)), rng.integers(3, size=6)
    batches = [loko.Batch(x=x[None], y=np.array([k])) for x, k in zip(xs, labels, strict=True)]
    state, records = loko.run(loko.init(config), batches, config)
    theta, p, right = example["run"](layers, xs, labels)
    np.testing.assert_allclose(theta, state.theta, rtol=1e-9)
    np.testing.assert_allclose(p, state.p, rtol=1e-9)
    guessed = [record.z[0].argmax() for record in records]
    assert right == np.mean(np.array(guessed) == labels)


@pytest.mark.parametrize("reset", ["none", "AB"])
def test_tiny_lte_is_lte(reset):
    file = EXAMPLES / "tiny_lte.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 100
    example = runpy.run_path(str(file))
    rng = np.random.default_rng(2)
    N, r, k, i, o, steps = 3, 2, 4, 6, 5, 9
    spec = mlp_spec([i, o], lora={"r": r, "alpha": 3.0 * r})
    spec[0]["bias"] = False
    config = lte.LteConfig(
        spec=spec, heads=N, merge_every=3, reset=reset, optimizer=SGD(lr=0.1), seed=5
    )
    state = lte.init(config)
    xs, labels = rng.standard_normal((steps, N * k, i)), rng.integers(o, size=(steps, N * k))

    def redraw(number):
        return np.array([draw_factors(config, head, number)["0.A"] for head in range(N)])

    W, A, B = example["train"](
        state.weights["0.W"],
        redraw(0),
        xs,
        np.eye(o)[labels],
        scale=3.0,
        lr=0.1,
        merge_every=3,
        redraw=redraw if reset == "AB" else None,
    )
    after, _ = lte.run(config, state, zip(xs, labels, strict=True))
    own = config.layout.site(after.theta, "0")
    for got, right in ((W, after.weights["0.W"]), (A, own["A"]), (B, own["B"])):
        np.testing.assert_allclose(got, right, rtol=1e-9, atol=1e-12)
