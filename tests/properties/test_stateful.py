"""Whole runs of LoKO and LTE, stopped, saved, rewound and resumed at random, against a model.

The model is the same run without interruption, of which each LoKO step is judged by the plain
formulas, and of LTE the weights at a merge by the sum of what the heads added.
"""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import sampling
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loko_ref import lte
from loko_ref.conformance.user_inputs import agree
from loko_ref.experiments import base_network, stream
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.lte.checkpoint import load, save
from loko_ref.experiments.lte.train import Data, History, train
from loko_ref.experiments.runs import run_all
from loko_ref.lte.team import Alone
from loko_ref.network.model import mlp_spec
from loko_ref.optimizers import SGD
from loko_ref.properties import PROFILES

FEW = settings(PROFILES["dev"], max_examples=sampling.count(1, 25), stateful_step_count=6)

LOKO = [
    RunConfig(optimizer="loko", options=o, data="iris", limit=6, hidden=(3,), epochs=1, rank=1)
    for o in (
        {"observation": "glm", "p0": 0.1},
        {"observation": "logits", "noise": "ema_innovation", "diagonal": "variational"},
        {"observation": "glm", "covariance": "dense", "p0": 0.1, "lam": 0.99},
    )
]


@cache
def loko_model(k):
    """The states of an uninterrupted run, each step judged by the plain formulas."""
    task = base_network.prepare(LOKO[k])
    progress = stream.begin(task)
    states = [progress.state]
    config = task.learner
    named = ("observation", "noise", "timing", "beta", "covariance", "diagonal", "lam", "q")
    while not stream.finished(progress, task):
        before, batch = progress.state, stream.stream_batch(task, progress.step)
        progress = stream.advance(progress, task)
        after = progress.state
        held = {"theta": before.theta, "p": before.p, "P": before.P, "R": before.R}
        weights = task.model.weights
        y = np.eye(task.model.outputs)[np.asarray(batch.y)]
        out = {k: getattr(after, k) for k in ("theta", "p", "P", "R")}
        agree(
            lambda out=out, **inputs: {k: a for k, a in out.items() if a is not None},
            "loko.step",
            {"x": batch.x, "y": y, **{k: a for k, a in held.items() if a is not None},
             "weights": {k: a for k, a in weights.items() if k not in task.model.trainable}},
            spec=[dict(layer) for layer in task.model.spec],
            **{name: getattr(config, name) for name in named},
        )  # fmt: skip
        states.append(after)
    return states


class LokoRuns(RuleBasedStateMachine):
    """`train`, stopped after some steps, and gone on with from a file."""

    @initialize(
        k=st.sampled_from(range(len(LOKO))), suffix=st.sampled_from([".npz", ".safetensors"])
    )
    def begin(self, k, suffix):
        self.k, self.folder = k, Path(tempfile.mkdtemp())
        self.path, self.saved = self.folder / f"run{suffix}", []
        (entry,) = run_all([LOKO[k]], checkpoint=self.path, stop_after=1)
        self.steps, self.entry = 1, entry

    @rule(steps=st.integers(1, 3))
    def go_on(self, steps):
        (self.entry,) = run_all(resume=self.path, checkpoint=self.path, stop_after=steps)
        self.steps = min(self.steps + steps, len(loko_model(self.k)) - 1)

    @rule()
    def keep(self):
        place = self.folder / f"kept{len(self.saved)}{self.path.suffix}"
        shutil.copy(self.path, place)
        self.saved.append((place, self.steps))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def go_back(self, data):
        place, self.steps = data.draw(st.sampled_from(self.saved))
        (self.entry,) = run_all(resume=place, checkpoint=self.path, stop_after=1)
        self.steps = min(self.steps + 1, len(loko_model(self.k)) - 1)

    @invariant()
    def is_the_run_without_interruption(self):
        wanted = loko_model(self.k)[self.steps]
        assert self.entry.progress["step"] == self.steps
        assert self.entry.status == (
            "done" if self.steps == len(loko_model(self.k)) - 1 else "running"
        )
        for name in ("theta", "p", "P", "R"):
            array = getattr(wanted, name)
            if array is not None and self.entry.status == "running":
                np.testing.assert_array_equal(self.entry.arrays[name], array)
        if wanted.p is not None:
            assert (wanted.p > 0).all()

    def teardown(self):
        shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)


SPEC = mlp_spec([3, 4, 2], "tanh", {"r": 1, "alpha": 2.0})
LTE = [
    lte.LteConfig(spec=SPEC, heads=2, merge_every=2, optimizer=SGD(lr=0.1, momentum=0.5)),
    lte.LteConfig(spec=SPEC, heads=2, merge_every=2, optimizer=lte.Loko(p0=0.05), reset="AB"),
    lte.LteConfig(spec=SPEC, heads=3, merge_every=1, optimizer=SGD(lr=0.1), realisation="copies"),
]
RUN, BATCH, STEPS = {"data": "drawn"}, 6, 8


@cache
def lte_data():
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((20, 3)), rng.integers(0, 2, 20)
    return Data(x=x[:12], y=y[:12], x_test=x[12:], y_test=y[12:])


def lte_start(c):
    return lte.init(c, batch=BATCH // c.heads), History()


@cache
def lte_model(k):
    """Step of each merge -> fingerprint, of an uninterrupted run; the heads' sum at each."""
    c, found = LTE[k], {}
    state, history = lte_start(c)
    start = {name: a.copy() for name, a in state.weights.items()}

    def merged(now, history):
        found[now.step] = lte.fingerprint(c, now, Alone()), list(history.loss)
        if c.reset == "none":
            for name, W in now.weights.items():
                if name.endswith(".W"):
                    rank = np.linalg.matrix_rank(W - start[name], tol=1e-10)
                    assert rank <= c.heads  # of rank 1 each, however many merges

    train(
        c, state, lte_data(), steps=STEPS, batch=BATCH, team=Alone(), history=history, merged=merged
    )
    return found


class LteRuns(RuleBasedStateMachine):
    """`lte`, gone on with from the file of any merge before."""

    @initialize(
        k=st.sampled_from(range(len(LTE))), suffix=st.sampled_from([".npz", ".safetensors"])
    )
    def begin(self, k, suffix):
        self.k, self.suffix, self.folder = k, suffix, Path(tempfile.mkdtemp())
        self.seen, self.files = {}, {}
        self.run(*lte_start(LTE[k]), LTE[k].merge_every)

    def run(self, state, history, steps):
        def merged(now, told):
            self.seen[now.step] = lte.fingerprint(LTE[self.k], now, Alone()), list(told.loss)
            path = self.folder / f"{now.step}{self.suffix}"
            save(path, LTE[self.k], now, told, RUN, Alone())
            self.files[now.step] = path

        train(LTE[self.k], state, lte_data(), steps=steps, batch=BATCH, team=Alone(),
              history=history, merged=merged)  # fmt: skip

    @rule(data=st.data(), merges=st.integers(1, 2))
    def go_on(self, data, merges):
        c = LTE[self.k]
        at = data.draw(st.sampled_from(sorted(self.files)))
        state, history = load(self.files[at], c, RUN, Alone(), lte_start(c)[0])
        assert state.step == at
        self.run(state, history, min(at + merges * c.merge_every, STEPS))

    @invariant()
    def is_the_run_without_interruption(self):
        for step, found in self.seen.items():
            assert found == lte_model(self.k)[step]

    def teardown(self):
        shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)


TestLoko = LokoRuns.TestCase
TestLoko.settings = FEW
TestLte = LteRuns.TestCase
TestLte.settings = FEW
