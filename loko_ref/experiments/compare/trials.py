"""Trials: one learner on one stream with one seed; many of them on all cores.

A trial that diverges keeps what it had predicted; the rest of the stream counts as wrong.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.errors import InputError, NumericalError, extras
from loko_ref.experiments.base_network import Task, prepare
from loko_ref.experiments.compare.learners import Learner
from loko_ref.experiments.compare.streams import Stream
from loko_ref.experiments.stream import evaluate, mean, stream_batch

__all__ = ["EVALUATIONS", "Job", "Trial", "run", "trial"]

EVALUATIONS = 40
"""Points of a curve on the test part, evenly along the stream; half of them for a transformer."""

SILENCE = 1800.0
"""Most seconds without any trial's end; a job takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one learner reached.

    Attributes
    ----------
    stream, learner, seed : str, str, int
        Which.
    online, final : float or None
        Accuracy over the stream, each sample before it was learned, and on the test part at its
        end; of a regression root mean squared errors. None for an error without bound.
    curve : tuple of float or None
        On the test part, at EVALUATIONS points or half as many.
    diverged : int or None
        The step at which it did.
    ms : float
        Milliseconds of processor time a step.
    """

    stream: str
    learner: str
    seed: int
    online: float | None
    final: float | None
    curve: tuple[float | None, ...]
    diverged: int | None
    ms: float

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
    learner : Learner
        Who learns.
    task : Task
        Of :meth:`Learner.config`, with the stream's data.
    stream : Stream
        Which.
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
            batch, begun = stream_batch(task, k), time.process_time()
            try:
                z, theta = step(batch, k)
                if not (np.isfinite(z).all() and np.isfinite(theta).all()):
                    raise NumericalError("theta", None, "The run diverged.", k)
            except NumericalError:
                diverged = k
                break
            seconds += time.process_time() - begun
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
        online=None if lost and real else mean(score, total, real),
        final=worst if lost else curve[-1],
        curve=tuple(curve),
        diverged=diverged,
        ms=1e3 * seconds / max(1, total if diverged is None else diverged),
    )


def _tested(task: Task, theta: Any, step: int) -> float | None:
    try:
        return evaluate(task, theta, step)
    except NumericalError:  # finite weights whose outputs are not
        return None if task.dataset.regression else 0.0


def _job(job: Job) -> list[Trial]:
    found: list[Trial] = []
    first: Task | None = None
    for learner in job.learners:
        config = learner.config(seed=job.seed, limit=job.limit, **job.stream.about)
        if first is None:
            first = prepare(config, dataset=job.stream.dataset(config))
        found.append(trial(learner, dataclasses.replace(first, config=config), job.stream))
    return found


def one_thread() -> Any:
    """Return a context in which BLAS takes one thread; entered or not, it begins now."""
    limits = extras.load("threadpoolctl", "one BLAS thread for each process")
    return limits.threadpool_limits(1, user_api="blas")


def _start(parent: int) -> None:
    """Prepare a worker: one thread, no interrupt of its own, an end where the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(
    jobs: Sequence[Job], *, workers: int, ended: Callable[[Job, Sequence[Trial]], None]
) -> None:
    """Run jobs on all cores; each result is handed over as soon as it is there.

    Parameters
    ----------
    jobs : sequence of Job
        The long ones first, so that no core waits at the end.
    workers : int
        Processes, each with one thread; 1 runs them here.
    ended : callable
        Called with a job and its trials.

    Raises
    ------
    InputError
        If nothing ends for half an hour.
    """
    if workers == 1:
        with one_thread():
            for job in jobs:
                ended(job, _job(job))
        return
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(),),
    )
    try:
        left: dict[Future[list[Trial]], Job] = {pool.submit(_job, job): job for job in jobs}
        for future in _as_ended(left):
            ended(left[future], future.result())
    finally:
        for child in multiprocessing.active_children():
            child.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _as_ended(left: Mapping[Future[list[Trial]], Job]) -> Iterator[Future[list[Trial]]]:
    pending = set(left)
    while pending:
        done, pending = wait(pending, timeout=SILENCE, return_when=FIRST_COMPLETED)
        if not done:
            got = f"no trial that ended within {SILENCE:g} s"
            raise InputError("--workers", got, "one at least", "a machine that stands still")
        yield from done
