"""Several training runs in turn, with a checkpoint from which the rest goes on bit for bit.

What a checkpoint holds: :mod:`loko_ref.experiments.runfile`. A resumed run asks for the same
configuration and the same data.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.arrays import to_host
from loko_ref.checks.fields import Place
from loko_ref.errors import InputError, NumericalError
from loko_ref.experiments import stream
from loko_ref.experiments.checkpoint import check_same
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.runfile import Entry, pack, read, unpack, write
from loko_ref.experiments.stream import Progress, Task
from loko_ref.files import storage
from loko_ref.files.writing import check_target


def run_all(
    configs: Sequence[RunConfig] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 50,
    resume: str | os.PathLike[str] | None = None,
    stop_after: int | None = None,
    watch: Callable[[int, Task, Progress], None] | None = None,
    saved: Callable[[Sequence[Entry]], None] | None = None,
) -> list[Entry]:
    """Run several configurations one after the other; one that diverges leaves the others alone.

    Parameters
    ----------
    configs : sequence of RunConfig, optional
        The runs; may be left out with `resume`.
    checkpoint : path-like, optional
        Written at the start, every `every` steps, at the end of each run and at an interruption,
        atomically: once this call has started to learn, there is a file to go on from.
    every : int
        Steps between checkpoints, >= 1.
    resume : path-like, optional
        A checkpoint to go on from; given `configs` must equal its own.
    stop_after : int, optional
        Stop after this many steps of this call, as if interrupted.
    watch : callable, optional
        Called as ``watch(number of the run, task, progress)`` before and after each step.
    saved : callable, optional
        Called with all runs each time that the checkpoint has been written.

    Returns
    -------
    list of Entry
        One per run, in order.

    Raises
    ------
    InputError
        If a path, the checkpoint or a number cannot be used.
    """
    for name, value in (("every", every), ("stop_after", stop_after)):
        if value is not None and (isinstance(value, bool) or value < 1):
            raise InputError(name, repr(value), "a whole number >= 1", "a zero or negative count")
    if checkpoint is not None:
        check_target("checkpoint", checkpoint, *storage.SUFFIXES)
    place = Place(argument="resume", path=str(resume))
    if resume is not None:
        entries = read(resume)
        if configs is not None:
            saved_configs = [entry.config.as_dict() for entry in entries]
            check_same(place, saved_configs, [config.as_dict() for config in configs])
    elif configs:
        entries = [Entry(config=config) for config in configs]
    else:
        raise InputError("configs", "no runs", "at least one, or resume", "an empty list")

    def keep(k: int = 0, entry: Entry | None = None) -> None:
        entries[k] = entry or entries[k]
        if checkpoint is not None:
            write(checkpoint, entries)
            if saved is not None:
                saved(entries)

    running = {k: unpack(e, k, place) for k, e in enumerate(entries) if e.status == "running"}
    keep()
    left = stop_after
    networks: dict[str, Mapping[str, NDArray[Any]]] = {}
    for k, entry in enumerate(entries):
        if entry.status in ("done", "failed"):
            continue
        if left == 0:
            break
        if k in running:
            task, progress = running.pop(k)
        else:
            task = _prepare(entry.config, networks)
            progress = stream.begin(task)
        digest = task.dataset.digest()
        try:
            if watch is not None:
                watch(k, task, progress)
            while not stream.finished(progress, task) and left != 0:
                progress = stream.advance(progress, task)
                left = None if left is None else left - 1
                if watch is not None:
                    watch(k, task, progress)
                if progress.step % every == 0:
                    keep(k, pack(progress, task, digest, "running"))
            status = "done" if stream.finished(progress, task) else "running"
            keep(k, pack(progress, task, digest, status))
        except NumericalError as error:
            failed = pack(progress, task, digest, "failed")
            failure = {"step": error.step, "reason": str(error)}
            keep(k, dataclasses.replace(failed, failure=failure))
        except KeyboardInterrupt:
            ended = entries[k].status == "done"
            keep(k, entries[k] if ended else pack(progress, task, digest, "running"))
            raise
    return entries


def _prepare(config: RunConfig, networks: dict[str, Mapping[str, NDArray[Any]]]) -> Task:
    """Prepare a task, training each base once although several optimizers start from it."""
    about = config.as_dict()
    for name in ("optimizer", "options", "batch", "backend", "evaluations", "route"):
        del about[name]
    key = repr(about)
    task = stream.prepare(config, networks.get(key))
    if key not in networks:
        networks[key] = {name: np.asarray(to_host(w)) for name, w in task.model.weights.items()}
    return task
