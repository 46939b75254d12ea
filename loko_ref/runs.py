"""Several training runs in turn, with a checkpoint from which the rest goes on bit for bit.

A checkpoint (schema ``loko-ref/checkpoint/1``) holds every run's configuration and status; of the
run under way the network before the stream (``0/weights/0.W``), the state (``0/theta``, ``0/p`` or
``0/P``, ``0/R``; ``0/slots/exp_avg``), counters and curve, and the digest of its data; of a
finished one its state and result. A resumed run asks for the same configuration and the same data.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref import loko, optimizers, storage, training
from loko_ref.arrays import Array, asarray, to_host
from loko_ref.errors import InputError, NumericalError
from loko_ref.runconfig import RunConfig
from loko_ref.training import Point, Progress, Task

__all__ = ["CHECKPOINT", "Entry", "read", "run_all", "write"]

CHECKPOINT = "loko-ref/checkpoint/1"

_STATE = ("theta", "p", "P", "R")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One run's standing.

    Attributes
    ----------
    config : RunConfig
        The run.
    status : {"waiting", "running", "done", "failed"}
        Where it is.
    digest : str
        Identity of its data, once loaded.
    progress : dict
        ``step``, ``score``, ``seconds`` and ``curve`` (triples samples, online, test).
    arrays : mapping of str to array
        Its state; while it runs also its network.
    result : dict or None
        As :func:`loko_ref.training.result` has it, when done.
    failure : dict or None
        ``step`` and ``reason``, when it diverged.
    """

    config: RunConfig
    status: str = "waiting"
    digest: str = ""
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None

    @property
    def curve(self) -> list[Point]:
        """The learning curve so far."""
        triples = self.progress.get("curve", [])
        return [Point(samples=int(s), online=o, test=t) for s, o, t in triples]


def _pack(progress: Progress, task: Task, digest: str, status: str) -> Entry:
    state = progress.state
    names = {name: getattr(state, name, None) for name in _STATE}
    arrays = {name: to_host(a) for name, a in names.items() if a is not None}
    if isinstance(state, optimizers.OptimizerState):
        arrays |= {f"slots/{name}": to_host(a) for name, a in state.slots.items()}
    if status == "running":
        arrays |= {f"weights/{name}": to_host(w) for name, w in task.model.weights.items()}
    return Entry(
        config=task.config,
        status=status,
        digest=digest,
        progress={
            "step": progress.step,
            "score": progress.score,
            "seconds": progress.seconds,
            "curve": [dataclasses.astuple(point) for point in progress.curve],
        },
        arrays=arrays,
        result=training.result(progress, task) if status == "done" else None,
    )


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _unpack(entry: Entry, argument: str) -> tuple[Task, Progress]:
    """Rebuild a run under way; refuse other data than it began with."""
    task = training.prepare(entry.config, _under(entry.arrays, "weights/"))
    if task.dataset.digest() != entry.digest:
        raise InputError(
            argument,
            f"data with digest {task.dataset.digest()[:12]}",
            f"the data that the run began with, digest {entry.digest[:12]}",
            "other files, or another release of scikit-learn or NumPy, which splits or bundles the "
            "set differently",
        )
    like = next(iter(task.model.weights.values()))
    kept: dict[str, Array] = {
        name: asarray(entry.arrays[name], like) for name in _STATE if name in entry.arrays
    }
    slots = {name: asarray(a, like) for name, a in _under(entry.arrays, "slots/").items()}
    step = int(entry.progress["step"])
    fresh = training.begin(task).state
    state: loko.LokoState | optimizers.OptimizerState
    if isinstance(fresh, loko.LokoState):
        state = loko.LokoState(**kept, step=step)
    else:
        state = optimizers.OptimizerState(theta=kept["theta"], slots=slots, step=step)
    progress = Progress(
        state=state,
        step=step,
        score=float(entry.progress["score"]),
        seconds=float(entry.progress["seconds"]),
        curve=tuple(entry.curve),
    )
    return task, progress


def write(path: str | os.PathLike[str], entries: Sequence[Entry]) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.
    entries : sequence of Entry
        Every run, in order.
    """
    arrays: dict[str, NDArray[Any]] = {}
    about: list[dict[str, Any]] = []
    for k, entry in enumerate(entries):
        arrays |= {f"{k}/{name}": a for name, a in entry.arrays.items()}
        about.append(
            {
                "config": entry.config.as_dict(),
                "status": entry.status,
                "digest": entry.digest,
                "progress": entry.progress,
                "result": entry.result,
                "failure": entry.failure,
            }
        )
    storage.save(path, arrays, {"runs": about}, schema=CHECKPOINT, argument="checkpoint")


def read(path: str | os.PathLike[str], argument: str = "resume") -> list[Entry]:
    """Read a checkpoint.

    Raises
    ------
    InputError
        If it is no checkpoint, or truncated, or written by an incompatible version.
    """
    arrays, metadata = storage.load(path, schema=CHECKPOINT, argument=argument)
    try:
        return [
            Entry(
                **about | {"config": RunConfig(**about["config"])}, arrays=_under(arrays, f"{k}/")
            )
            for k, about in enumerate(metadata["runs"])
        ]
    except (AttributeError, InputError, KeyError, TypeError) as error:
        raise InputError(
            argument, f"{str(path)!r}: {error}", "a whole checkpoint", "another version wrote it"
        ) from error


def check_same(asked: Sequence[RunConfig], found: Sequence[Entry], argument: str) -> None:
    """Refuse a checkpoint of other runs, naming the first difference."""
    if len(asked) != len(found):
        raise InputError(
            argument,
            f"a checkpoint of {len(found)} runs",
            f"one of the {len(asked)} runs asked for",
            "other optimizers, variants or seeds than when the checkpoint was written",
        )
    for k, (config, entry) in enumerate(zip(asked, found, strict=True)):
        want, have = config.as_dict(), entry.config.as_dict()
        for key in want:
            if want[key] != have[key]:
                raise InputError(
                    argument,
                    f"run {k} with {key} = {have[key]!r}",
                    f"{key} = {want[key]!r}, as asked for",
                    "a checkpoint of another command; leave the options out to take its own",
                )


def run_all(
    configs: Sequence[RunConfig] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 50,
    resume: str | os.PathLike[str] | None = None,
    stop_after: int | None = None,
    watch: Callable[[int, Task, Progress], None] | None = None,
) -> list[Entry]:
    """Carry out runs one after the other; one that diverges leaves the others alone.

    Parameters
    ----------
    configs : sequence of RunConfig, optional
        The runs; may be left out with `resume`.
    checkpoint : path-like, optional
        Written every `every` steps and at the end of each run, atomically.
    every : int
        Steps between checkpoints, >= 1.
    resume : path-like, optional
        A checkpoint to go on from; given `configs` must equal its own.
    stop_after : int, optional
        Stop after this many steps of this call, as if interrupted.
    watch : callable, optional
        Called as ``watch(number of the run, task, progress)`` before and after each step.

    Returns
    -------
    list of Entry
        One a run, in order.

    Raises
    ------
    InputError
        If a path, the checkpoint or a number cannot be used.
    """
    for name, value in (("every", every), ("stop_after", stop_after)):
        if value is not None and (isinstance(value, bool) or value < 1):
            raise InputError(name, repr(value), "a whole number >= 1", "a zero or negative count")
    if checkpoint is not None:
        storage.check_target("checkpoint", checkpoint, *storage.SUFFIXES)
    if resume is not None:
        entries = read(resume)
        if configs is not None:
            check_same(configs, entries, "resume")
    elif configs:
        entries = [Entry(config=config) for config in configs]
    else:
        raise InputError("configs", "no runs", "at least one, or resume", "an empty list")

    def keep() -> None:
        if checkpoint is not None:
            write(checkpoint, entries)

    left = stop_after
    networks: dict[str, Mapping[str, NDArray[Any]]] = {}
    for k, entry in enumerate(entries):
        if entry.status in ("done", "failed"):
            continue
        if left == 0:
            break
        if entry.status == "running":
            task, progress = _unpack(entry, "resume")
        else:
            task = _prepare(entry.config, networks)
            progress = training.begin(task)
        digest = task.dataset.digest()
        if watch is not None:
            watch(k, task, progress)
        try:
            while not training.finished(progress, task) and left != 0:
                progress = training.advance(progress, task)
                left = None if left is None else left - 1
                if watch is not None:
                    watch(k, task, progress)
                if checkpoint is not None and progress.step % every == 0:
                    entries[k] = _pack(progress, task, digest, "running")
                    keep()
        except NumericalError as error:
            failed = _pack(progress, task, digest, "failed")
            failure = {"step": error.step, "reason": str(error)}
            entries[k] = dataclasses.replace(failed, failure=failure)
            keep()
            continue
        except KeyboardInterrupt:
            entries[k] = _pack(progress, task, digest, "running")
            keep()
            raise
        status = "done" if training.finished(progress, task) else "running"
        entries[k] = _pack(progress, task, digest, status)
        keep()
    return entries


def _prepare(config: RunConfig, networks: dict[str, Mapping[str, NDArray[Any]]]) -> Task:
    """Prepare a task, training each base once although several optimizers start from it."""
    about = config.as_dict()
    for name in ("optimizer", "options", "batch", "backend", "evaluations", "route"):
        del about[name]
    key = repr(about)
    task = training.prepare(config, networks.get(key))
    if key not in networks:
        networks[key] = {name: np.asarray(to_host(w)) for name, w in task.model.weights.items()}
    return task
