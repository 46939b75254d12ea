"""Trials: one learner on one stream with one seed.

A trial that diverges keeps what it had predicted; the rest of the stream counts as wrong.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.errors import NumericalError
from loko_ref.experiments.base_network import Task, prepare
from loko_ref.experiments.compare.learners import Learner
from loko_ref.experiments.compare.streams import Stream
from loko_ref.experiments.stream import evaluate, mean, stream_batch

EVALUATIONS = 40
"""Points of a curve on the test part, evenly along the stream; half of them for a transformer."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one learner reached."""

    stream: str
    learner: str
    seed: int
    # accuracy over the stream, each sample before it was learned, and on the test part at its end;
    # of a regression root mean squared errors. None for an error without bound.
    online: float | None
    final: float | None
    curve: tuple[float | None, ...]  # on the test part, at EVALUATIONS points or half as many
    diverged: int | None  # the step at which it did
    ms: float  # milliseconds of processor time a step

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes it this one."""
        return self.stream, self.seed, self.learner


@dataclass(frozen=True, kw_only=True)
class Job:
    """Learners that start from one base network, which is trained once for them."""

    stream: Stream
    seed: int
    learners: Sequence[Learner]
    limit: int | None = None


def trial(learner: Learner, task: Task, stream: Stream) -> Trial:
    """Run one learner over a stream.

    Parameters
    ----------
    task : Task
        Of :meth:`Learner.config`, with the stream's data.
    """
    real, data, total = task.dataset.regression, task.dataset, task.steps
    count = EVALUATIONS // 2 if stream.transformer else EVALUATIONS
    points = {math.ceil(total * (k + 1) / count) for k in range(count)}
    worst = None if real else 0.0
    score, seconds, diverged, theta = 0.0, 0.0, None, None
    curve: list[float | None] = []
    step = learner.begin(task)
    with np.errstate(over="ignore", invalid="ignore"):  # a divergence overflows first
        for k in range(total):
            batch, started = stream_batch(task, k), time.process_time()
            try:
                z, theta = step(batch, k)
                if not (np.isfinite(z).all() and np.isfinite(theta).all()):
                    raise NumericalError("theta", None, "The run diverged.", k)
            except NumericalError:
                diverged = k
                break
            seconds += time.process_time() - started
            miss = float((((z - batch.y) * data.unit) ** 2).sum()) if real else 0.0
            score += miss if real else float(z.argmax() == batch.y[0])
            if k + 1 in points:
                curve.append(_tested(task, theta, k))
    lost = diverged is not None
    curve += [worst] * (len(points) - len(curve))
    return Trial(
        stream=stream.name,
        learner=learner.name,
        seed=task.config.seed,
        online=None if lost and real else _bounded(mean(score, total, real)),
        final=worst if lost else curve[-1],
        curve=tuple(curve),
        diverged=diverged,
        ms=1e3 * seconds / max(1, total if diverged is None else diverged),
    )


def _bounded(score: float) -> float | None:
    """Return a score; None for an error whose square overflows, though the outputs are finite."""
    return score if math.isfinite(score) else None


def _tested(task: Task, theta: Any, step: int) -> float | None:
    try:
        return _bounded(evaluate(task, theta, step))
    except NumericalError:  # finite weights whose outputs are not
        return None if task.dataset.regression else 0.0


def work(job: Job) -> list[Trial]:
    """Train the base and run all learners of a job."""
    found: list[Trial] = []
    first: Task | None = None
    for learner in job.learners:
        config = learner.config(seed=job.seed, limit=job.limit, **job.stream.about)
        if first is None:
            first = prepare(config, dataset=job.stream.dataset(config))
        found.append(trial(learner, dataclasses.replace(first, config=config), job.stream))
    return found
