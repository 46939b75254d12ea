"""LTE on a device: the stand-in of tests/device.py, every mode, the bits that NumPy gives."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lte_common import OPTIMIZERS, batches, config, lora_only, stack, start, together

from loko_ref import arrays, lte
from loko_ref.arrays import backends
from loko_ref.experiments.lte import checkpoint
from loko_ref.experiments.lte.train import Data, History, train
from loko_ref.lte.state import draw_weights, head_arrays, shared_arrays
from loko_ref.lte.team import Alone

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import device

CASES = {
    "shared": {},
    "copies": {"realisation": "copies", "reset": "AB", "merging": "incremental"},
    "B": {"reset": "B", "data": "replicated", "reduction": "own", "optimizer_state": "reset"},
    "mhlora": {"mode": "mhlora", "scaling": "sum"},
}


@pytest.fixture
def lib():
    """The stand-in under the name of a module of its own."""
    found = device.backend("strict_device")
    arrays.register_backend("strict_device", lambda: found)
    yield found
    del backends.KNOWN["strict_device"]


def make(kind: str, case: str, optimizer: str) -> lte.LteConfig:
    changes = {"optimizer": OPTIMIZERS[optimizer], **CASES[case]}
    if kind == "stack":
        return stack(**changes, **({"replicas": "frozen"} if case == "mhlora" else {}))
    return (lora_only if case == "mhlora" else config)(**changes)


def begin(c: lte.LteConfig, lib) -> lte.LteState:
    """The state of `start`, made on the device from the first."""
    host = start(c)
    factors = {
        f"{site.name}.{key}": lib.asarray(c.layout.take(host.theta, f"{site.name}.{key}"))
        for site in c.layout.sites.values()
        if site.lora
        for key in site.parts
    }
    weights = {k: lib.asarray(v) for k, v in draw_weights(c).items()}
    samples = 6 if c.mode == "mhlora" or c.data == "replicated" else 2
    return lte.init(c, weights=weights, factors=factors, batch=samples)


def everything(c: lte.LteConfig, s: lte.LteState) -> dict:
    found = shared_arrays(c, s)
    for row in range(s.theta.shape[0]):
        found |= {f"{row} {k}": v for k, v in head_arrays(c, s, row).items()}
    return found


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["flat", "stack"])
def test_steps_merges_and_resets_stay_on_the_device(kind, case, optimizer, lib) -> None:
    c = make(kind, case, optimizer)
    want, _ = lte.run(c, start(c), batches(c, 5), close=True)
    data = [(lib.asarray(x), lib.asarray(y)) for x, y in batches(c, 5)]
    got, trace = lte.run(c, begin(c, lib), data, close=True)
    cls = type(lib.asarray(np.zeros(1)))
    for name, array in everything(c, got).items():
        assert isinstance(array, cls), name
    for event in trace.events:
        if event.record is not None:
            assert isinstance(event.record.z, cls)
            assert isinstance(event.record.loss, cls)
    assert lte.fingerprint(c, got) == lte.fingerprint(c, want)


@pytest.mark.parametrize("kind", ["flat", "stack"])
def test_a_run_is_trained_saved_and_resumed_there(kind, lib, tmp_path) -> None:
    c = make(kind, "copies", "adamw")
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((40, c.inputs)), rng.integers(0, c.outputs, 40)
    data = Data(x=x[:30], y=y[:30], x_test=x[30:], y_test=y[30:])
    like = lib.asarray(np.zeros(1))

    def whole(steps: int, like, resume=None) -> tuple[str, History]:
        state, history, team = lte.init(c, batch=2, like=like), History(), Alone()
        if resume is not None:
            state, history = checkpoint.load(resume, c, {}, team, state)
            team.sent = history.sent

        def save(now: lte.LteState, told: History) -> None:
            checkpoint.save(tmp_path / "c.npz", c, now, told, {}, team)

        state = train(c, state, data, steps=steps, batch=6, team=team, history=history, merged=save)
        assert isinstance(state.theta, type(like))
        return lte.fingerprint(c, state), history

    want, curves = whole(9, np.zeros(1))
    whole(6, like)
    got, again = whole(9, like, tmp_path / "c.npz")
    assert got == want
    assert (again.loss, again.evaluations, again.sent) == (
        curves.loss,
        curves.evaluations,
        curves.sent,
    )


def test_ranks_with_a_device_each_gather_on_it(lib) -> None:
    """The thread team gathers host arrays, as MPI does; the rows come back where they were."""
    c = replace(config(), heads=3)
    want, _ = lte.run(c, start(c), batches(c, 4))

    class Moving:
        def __init__(self, team) -> None:
            self.team, self.rank, self.size, self.sent = team, team.rank, team.size, 0

        def gather(self, rows, heads):
            return arrays.asarray(self.team.gather(arrays.to_host(rows), heads), rows)

        def __getattr__(self, name):
            return getattr(self.team, name)

    def work(team):
        team = Moving(team)
        like = lib.asarray(np.zeros(1))
        state = start(c, team=team)
        state = replace(
            state,
            theta=lib.asarray(state.theta),
            weights={k: lib.asarray(v) for k, v in state.weights.items()},
            base={k: lib.asarray(v) for k, v in state.base.items()},
            slots={k: lib.asarray(v) for k, v in state.slots.items()},
        )
        data = [(arrays.asarray(x, like), arrays.asarray(y, like)) for x, y in batches(c, 4)]
        state, _ = lte.run(c, state, data, team=team)
        return lte.fingerprint(c, state, team)

    assert set(together(2, work)) == {lte.fingerprint(c, want)}
