"""A training run on given arrays: the order of the data, the curves, and the baselines.

Shapes: x (samples, i), or what else the first layer takes; y (samples,) labels or (samples, C)
real; one step takes ``batch`` samples. Data stay on the host; batches go to where the state is.

The data of step t depend on seed and t alone (each epoch's permutation is drawn from its number),
so a resumed run, and every rank, goes on with the same samples.  [LTE-9]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from loko_ref.arrays import Array, asarray, namespace, to_host
from loko_ref.errors import InputError, NumericalError
from loko_ref.experiments.evaluation import outputs
from loko_ref.kalman.observation import one_hot
from loko_ref.lte import heads as net
from loko_ref.lte.config import LteConfig
from loko_ref.lte.serial import Event, iterate
from loko_ref.lte.state import LteState, heads_of, merged_model, without_lora
from loko_ref.lte.team import Team
from loko_ref.network import model

BASELINES = ("full", "lora")
"""Full-weight training; plain LoRA (one head, never merged)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What is trained on and what is tested on."""

    x: Array  # (samples, i): to train on
    y: Array  # (samples,) or (samples, C)
    x_test: Array  # to test on
    y_test: Array


@dataclass(kw_only=True, eq=False)
class History:
    """A run's curves."""

    # of every step: the mean over the heads' own losses, before the step
    loss: list[float] = field(default_factory=list)
    # step, test loss and test accuracy (None for regression), at the start and after each merge, or
    # in mhlora as often
    evaluations: list[tuple[int, float, float | None]] = field(default_factory=list)
    sent: int = 0  # logical bytes of factors


def schedule(
    seed: int, data: Data, batch: int, first: int, steps: int
) -> Iterator[tuple[Array, Array]]:
    """Batches of the steps `first`, ..., `steps` - 1; an epoch's rest is left out.

    Raises
    ------
    InputError
        If there are fewer samples than a batch has.
    """
    samples = data.x.shape[0]
    each = samples // batch if batch > 0 else 0
    if each == 0:
        raise InputError("batch", batch, f"1 to {samples} samples", "a batch larger than the data")
    epoch, order = -1, np.empty(0, np.intp)
    for at in range(first, steps):
        if at // each != epoch:
            epoch = at // each
            order = np.random.default_rng([seed, 2, epoch]).permutation(samples)
        pick = order[(at % each) * batch : (at % each + 1) * batch]
        yield data.x[pick], data.y[pick]


def evaluate(config: LteConfig, state: LteState, x: Array, y: Array) -> tuple[float, float | None]:
    """Mean loss and accuracy of the merged network (mhlora: of the one network).

    Raises
    ------
    NumericalError
        If a merged weight is not finite.
    """
    if config.mode == "mhlora":
        heads = heads_of(config, state)
        z = outputs(lambda x: net.forward(config, heads, x)[0], x, state.theta)
    else:
        for name, W in state.weights.items():
            if not bool(namespace(W).isfinite(W).all()):
                cause = "The run diverged: take a smaller learning rate, or p0."
                raise NumericalError(name, None, cause, state.step)
        merged = merged_model(config, state.weights)
        z = outputs(lambda x: model.forward(merged, x)[0], x, state.theta)
    y = asarray(y, state.theta)
    if config.loss == "mse":
        loss, _ = net.losses(config, z, y)
        return float(loss[0]), None
    loss, _ = net.losses(config, z, one_hot(y, z.shape[1], z))
    return float(loss[0]), float((z.argmax(axis=1) == y).mean())


def train(
    config: LteConfig,
    state: LteState,
    data: Data,
    *,
    steps: int,
    batch: int,
    team: Team,
    history: History,
    merged: Callable[[LteState, History], None] = lambda state, history: None,
    stepped: Callable[[Event], None] = lambda event: None,
) -> LteState:
    """Train from the state's step to `steps`; a last merge closes a run that ends between two.

    Parameters
    ----------
    config, state, data
        The choices, where to begin, and what on.
    steps, batch : int
        Steps in all; samples of a step, over all heads.
    merged : callable
        Called after each merge (and its reset) that falls on the interval: the place to save.
    stepped : callable
        Called after each event.
    """
    pending: list[Array] = []
    before = history.sent - team.sent

    def settle(now: LteState) -> None:
        parts = team.collect([to_host(a) for a in pending])
        pending.clear()
        whole = parts[:1] if config.mode == "mhlora" else parts
        for at in zip(*whole, strict=True):
            history.loss.append(float(np.concatenate(at).mean()))
        history.sent = before + team.sent
        if team.rank == 0:  # the other ranks' curves are not read
            loss, accuracy = evaluate(config, now, data.x_test, data.y_test)
            history.evaluations.append((now.step, loss, accuracy))

    if state.step == 0:
        settle(state)
    drawn = schedule(config.seed, data, batch, state.step, steps)
    batches = ((asarray(x, state.theta), asarray(y, state.theta)) for x, y in drawn)
    for event in iterate(config, state, batches, team=team, close=True):
        state = event.state
        if event.record is not None:
            pending.append(event.record.loss)
        stepped(event)
        last = event.kind == ("merge" if config.reset == "none" else "reset")
        if config.mode == "mhlora":
            last = state.step % config.merge_every == 0
        if last:
            settle(state)
            if state.step % config.merge_every == 0:
                merged(state, history)
    if pending:
        settle(state)
    return state


def baseline_config(config: LteConfig, name: str) -> LteConfig:
    """Full-weight training, or plain LoRA, with the same optimizer, start and data.

    ``full``: no LoRA, every array is trained. ``lora``: one head, never merged; layers without LoRA
    are trained, or frozen, as in the run compared with.
    """
    full = name == "full"
    return replace(
        config,
        spec=without_lora(config) if full else config.spec,
        replicas="train" if full else config.replicas,
        heads=1,
        mode="mhlora",
        realisation="shared",
        reset="none",
        optimizer_state="keep",
        filter_merge="keep",
        data="replicated",
        reduction="all",
        scaling="mean",
    )
