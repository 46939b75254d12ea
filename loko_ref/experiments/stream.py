"""One pass over a stream of real data: LoKO and first-order baselines, the same network and order.

Shapes: x (batch, i); y (batch,) labels or (batch, 1) targets; z (batch, C); theta, gradient (n,).

A run is described whole by a :class:`loko_ref.experiments.config.RunConfig`. It trains a base
network on unshifted data, puts LoRA on every linear, and streams the shifted data once: each batch
is first predicted (that is the online accuracy), then learned from. Everything that a run carries
from batch to batch is one frozen :class:`Progress`, so that stopping and resuming changes no bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref import loko, optimizers
from loko_ref.arrays import Array, asarray, to_host
from loko_ref.experiments.base_network import (
    Task,
    check_bounded,
    loss_gradient,
    observation_of,
    prepare,
)
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.data.bundled import Dataset
from loko_ref.experiments.data.registry import regression
from loko_ref.experiments.evaluation import outputs
from loko_ref.network.model import forward, pack, unpack

__all__ = [
    "Point",
    "Progress",
    "Task",
    "advance",
    "begin",
    "evaluate",
    "evaluated",
    "finished",
    "mean",
    "prepare",
    "result",
    "stream_batch",
]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the learning curve.

    Attributes
    ----------
    samples : int
        Streamed so far.
    online, test : float
        Accuracy so far on the stream, each sample before it was learned; accuracy on the test
        part now. For regression root mean squared errors in the target's unit.
    """

    samples: int
    online: float
    test: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """Everything that a run carries from step to step.

    Attributes
    ----------
    state : LokoState or OptimizerState
        The learner's.
    step : int
        Batches learned.
    score : float
        Sum over the stream of correct predictions, or of squared errors.
    seconds : float
        Spent in steps (evaluation excluded).
    curve : tuple of Point
        So far.
    """

    state: loko.LokoState | optimizers.OptimizerState
    step: int = 0
    score: float = 0.0
    seconds: float = 0.0
    curve: tuple[Point, ...] = ()


def begin(task: Task) -> Progress:
    """Return the progress before the first batch."""
    options = task.learner
    if isinstance(options, loko.LokoConfig):
        return Progress(state=loko.init(options, batch=task.config.batch))
    return Progress(state=optimizers.init(pack(task.model), options))


def stream_batch(task: Task, step: int) -> loko.Batch:
    """Return one batch of the stream, on the backend.

    Parameters
    ----------
    task : Task
        Model and data.
    step : int
        Number of the batch, from 0.
    """
    like = next(iter(task.model.weights.values()))
    span = slice(step * task.config.batch, (step + 1) * task.config.batch)
    part = task.dataset.stream
    return loko.Batch(x=asarray(part.x[span], like), y=asarray(part.y[span], like))


def finished(progress: Progress, task: Task) -> bool:
    """Return whether the stream is at its end."""
    return progress.step >= task.steps


def _targets(task: Task, step: int) -> NDArray[Any]:
    return task.dataset.stream.y[step * task.config.batch : (step + 1) * task.config.batch]


def _knob(config: RunConfig) -> str:
    return "p0" if config.optimizer == "loko" else "lr"


def _score(z: NDArray[Any], y: NDArray[Any], dataset: Dataset) -> float:
    """Sum of correct predictions, or of squared errors in the target's unit."""
    if dataset.regression:
        return float((((z - y) * dataset.unit).astype(np.float64) ** 2).sum())
    return float((z.argmax(axis=1) == y).sum())


def mean(score: float, samples: int, regression: bool) -> float:
    """Accuracy of a count of correct predictions; root of the mean of a sum of squared errors."""
    return math.sqrt(score / samples) if regression else score / samples


def evaluated(steps: int, config: RunConfig) -> range:
    """Return the steps of a whole run after which the test part is evaluated, but the last."""
    every = -(-steps // config.evaluations)
    return range(every, steps, max(1, every))


def advance(progress: Progress, task: Task) -> Progress:
    """Predict one batch, learn from it, and perhaps evaluate.

    Parameters
    ----------
    progress : Progress
        Untouched.
    task : Task
        What is learned.

    Raises
    ------
    NumericalError
        If the learner diverges or a covariance becomes singular; names the step.
    """
    config, dataset = task.config, task.dataset
    started = time.perf_counter()
    batch = stream_batch(task, progress.step)
    state: loko.LokoState | optimizers.OptimizerState
    # a run that diverges overflows first; what it leaves is found by the checks for finiteness
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(progress.state, loko.LokoState):
            state, record = task.loko_step(progress.state, batch)
            z = record.z
        else:
            model = unpack(task.model, progress.state.theta)
            about = observation_of(dataset)
            z, g = loss_gradient(model, batch.x, batch.y, about, step=progress.step)
            state = optimizers.step(progress.state, g, task.learner)
        for name, array in (("z", z), ("theta", state.theta)):
            check_bounded(array, progress.step, _knob(config), name)
    z = to_host(z)
    seconds = progress.seconds + time.perf_counter() - started
    step, score = (
        progress.step + 1,
        progress.score + _score(z, _targets(task, progress.step), dataset),
    )
    curve = progress.curve
    if step == task.steps or step in evaluated(task.steps, config):
        online = mean(score, step * config.batch, dataset.regression)
        test = evaluate(task, state.theta, step - 1)
        curve = (*curve, Point(samples=step * config.batch, online=online, test=test))
    return Progress(state=state, step=step, score=score, seconds=seconds, curve=curve)


def evaluate(task: Task, theta: Array, step: int = 0) -> float:
    """Accuracy on the test part at theta, or root mean squared error in the target's unit.

    Parameters
    ----------
    task : Task
        Model and data.
    theta : array (n,)
        Trainables.
    step : int
        Named by the error if the outputs are not finite.
    """
    part, model = task.dataset.test, unpack(task.model, theta)
    with np.errstate(over="ignore", invalid="ignore"):
        z = outputs(lambda x: forward(model, x)[0], part.x, theta)
    check_bounded(z, step, _knob(task.config), "z")
    score = _score(to_host(z), part.y, task.dataset)
    return mean(score, len(part), task.dataset.regression)


def result(config: RunConfig, step: int, seconds: float, last: Point) -> dict[str, Any]:
    """Summarise a finished run, as the schema ``loko-ref/train/2`` has it.

    Parameters
    ----------
    config : RunConfig
        The run.
    step, seconds : int, float
        Batches learned, and the time spent in steps.
    last : Point
        The learning curve's end.

    Returns
    -------
    dict
        ``optimizer``, ``config``, ``online_accuracy`` and ``test_accuracy`` (for regression
        ``online_rmse`` and ``test_rmse``), ``steps``, ``seconds``.
    """
    kind = "rmse" if regression(config.data) else "accuracy"
    return {
        "optimizer": config.optimizer,
        "config": config.as_dict(),
        f"online_{kind}": last.online,
        f"test_{kind}": last.test,
        "steps": step,
        "seconds": seconds,
    }
