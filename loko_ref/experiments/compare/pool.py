"""Jobs on all cores, each process with one BLAS thread; none outlives the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

from loko_ref.checks.values import check_whole
from loko_ref.errors import InputError, extras

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST = 1024
"""Most processes."""

SILENCE = 1800.0
"""Most seconds without the end of any job; a job takes minutes."""


def count(workers: int | None) -> int:
    """Return how many processes are meant: one for each core by default.

    Raises
    ------
    InputError
        If it is out of range.
    """
    if workers is None:
        return os.cpu_count() or 1
    check_whole("--workers", workers, high=MOST)
    return workers


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
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    ended: Callable[[Job, Result], None],
) -> None:
    """Run jobs; each result is handed over as soon as it is there.

    Parameters
    ----------
    work : callable
        From a job to its result; a function of a module, and both can be pickled.
    jobs : sequence
        The long ones first, so that no core waits at the end.
    workers : int
        Processes; 1 runs the jobs here.
    ended : callable
        Called with a job and its result.

    Raises
    ------
    InputError
        If no job ends for half an hour.
    """
    if workers == 1 or len(jobs) == 1:
        with one_thread():
            for job in jobs:
                ended(job, work(job))
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(),),
    )
    try:
        left: dict[Future[Result], Job] = {pool.submit(work, job): job for job in jobs}
        for future in _as_ended(left):
            ended(left[future], future.result())
    finally:
        for child in multiprocessing.active_children():
            child.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _as_ended(left: Mapping[Future[Result], Any]) -> Iterator[Future[Result]]:
    pending = set(left)
    while pending:
        done, pending = wait(pending, timeout=SILENCE, return_when=FIRST_COMPLETED)
        if not done:
            got = f"no job that ended within {SILENCE:g} s"
            raise InputError(
                "--workers", got, "one at least", "a machine that is overloaded or suspended"
            )
        yield from done
