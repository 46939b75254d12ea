"""Transformers under ``loko-ref train``: digits in patches, chapters of English."""

import json

import numpy as np
import pytest

from loko_ref.errors import InputError
from loko_ref.experiments import stream
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.data import registry, texts


def test_topics():
    data = registry.load("topics", shift="noise", seed=3)
    again = registry.load("topics", shift="noise", seed=3)
    assert data.digest() == again.digest()
    assert data.digest() != registry.load("topics", shift="noise", seed=4).digest()
    for part in (data.base, data.stream, data.test):
        assert part.x.shape[1] == 1 + texts.LENGTH
        assert (part.x[:, 0] == texts.CLS).all()
        assert part.x.min() >= 0
        assert part.x.max() < texts.VOCABULARY
        assert set(part.y) == set(range(len(texts.CHAPTERS)))
    plain = registry.load("topics", seed=3)
    changed = (plain.stream.x != data.stream.x)[:, 1:].mean()
    assert abs(changed - texts.NOISE) < 0.02  # 3 standard deviations of 7,456 draws at 0.3
    backwards = registry.load("topics", shift="invert", seed=3)
    assert (backwards.stream.x[:, 1:] == plain.stream.x[:, :0:-1]).all()
    renamed = registry.load("topics", shift="permute", seed=3).stream.x
    assert (np.sort(np.unique(renamed, return_counts=True)[1])).tolist() == np.sort(
        np.unique(plain.stream.x, return_counts=True)[1]
    ).tolist()


@pytest.mark.sampled(1, by=lambda optimizer, **_: optimizer)
@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({"network": "vit"}, ["0.q", "0.v", "1.q", "1.v", "head.out"]),
        ({"data": "topics"}, ["0.q", "0.v", "1.q", "1.v", "head.out"]),
    ],
)
@pytest.mark.parametrize("optimizer", ["loko", "adamw", "sgd", "adagrad"])
def test_a_short_stream(options, sites, optimizer):
    """One epoch of the base and a few batches: everything fits together, and learns something."""
    given = {"observation": "logits"} if optimizer == "loko" else {}
    config = RunConfig(optimizer=optimizer, options=given, batch=4, epochs=1, **options)
    assert RunConfig(**json.loads(json.dumps(config.as_dict()))) == config
    task = stream.prepare(config)
    named = dict.fromkeys(name.rsplit(".", 1)[0] for name in task.model.trainable)
    assert list(named) == sites
    progress = stream.begin(task)
    before = np.array(progress.state.theta)
    for _ in range(3):
        progress = stream.advance(progress, task)
    assert np.isfinite(progress.state.theta).all()
    assert (progress.state.theta != before).any()


def test_networks_refused():
    for options in ({"network": "encoder"}, {"network": "mlp", "data": "topics"}):
        with pytest.raises(InputError, match="network"):
            RunConfig(optimizer="loko", **options)
    with pytest.raises(InputError, match="network"):
        RunConfig(optimizer="loko", network="vit", data="wine")
