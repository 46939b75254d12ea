"""The short programs of examples/ are the library's algorithms, number for number."""

import runpy
from pathlib import Path

import numpy as np

from loko_ref import loko
from loko_ref.network.model import Model, mlp_spec

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
