"""What a checkpoint of ``train`` holds of each run, and what it may hold.

Every run's configuration and status; of the run under way the network before the stream
(``0/weights/0.W``), the state (``0/theta``, ``0/p`` or ``0/P``, ``0/R``; ``0/slots/exp_avg``),
counters and curve, and the digest of its data; of a finished one its state and result. Whatever
does not fit is refused by file and field. The format is :mod:`loko_ref.experiments.checkpoint`'s.

Shapes: theta (n,); p, slots (n,); P (n, n); R (m, m), m = batch * C.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from numpy.typing import NDArray

from loko_ref import loko, optimizers
from loko_ref.arrays import Array, asarray, to_host
from loko_ref.checks.fields import (
    SCALAR,
    SHA256,
    Floats,
    Items,
    Kind,
    Maybe,
    Place,
    Record,
    Table,
    choice,
    real,
    text,
    whole,
)
from loko_ref.errors import InputError
from loko_ref.experiments import checkpoint, stream
from loko_ref.experiments.config import BASELINES, RunConfig
from loko_ref.experiments.data.registry import regression
from loko_ref.experiments.stream import Point, Progress, Task

_STATE = ("theta", "p", "P", "U", "W", "R")


def _kind(hint: Any) -> Kind:
    """Return what a value of a type hint looks like in JSON; its range is the constructor's."""
    inner = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        return choice(*get_args(hint))
    if get_origin(hint) in (UnionType, Union):
        return Maybe(_kind(inner[0]))
    if get_origin(hint) in (Sequence, Mapping):
        item = SCALAR if inner[-1] is Any else _kind(inner[-1])
        return Items(item) if get_origin(hint) is Sequence else Table(item)
    kinds: dict[Any, Kind] = {int: whole(), float: real(), str: text()}
    return kinds[hint]


_CONFIG = {name: _kind(hint) for name, hint in get_type_hints(RunConfig).items()}
_STATUS = ("waiting", "running", "done", "failed")
_RUN = ("config", "status", "digest", "progress", "failure")
_CURVE = Items(Items(real(0), length=3))


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One run's standing."""

    config: RunConfig
    status: str = "waiting"  # {"waiting", "running", "done", "failed"}: where it is
    digest: str = ""  # identity of its data, once loaded
    # `step`, `score`, `seconds` and `curve` (triples samples, online, test)
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # its state; while it runs also its network
    arrays: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    failure: dict[str, Any] | None = None  # `step` and `reason`, when it diverged

    @property
    def result(self) -> dict[str, Any] | None:
        """As :func:`loko_ref.experiments.stream.result` has it, when done."""
        if self.status != "done":
            return None
        steps, seconds = self.progress["step"], self.progress["seconds"]
        return stream.result(self.config, steps, seconds, self.curve[-1])

    @property
    def curve(self) -> list[Point]:
        """The learning curve so far."""
        triples = self.progress.get("curve", [])
        return [Point(samples=s, online=o, test=t) for s, o, t in triples]


def pack(progress: Progress, task: Task, digest: str, status: str) -> Entry:
    """Put a run's state on the host, with what its status needs."""
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
    )


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def unpack(entry: Entry, k: int, place: Place) -> tuple[Task, Progress]:
    """Rebuild the run under way, number `k`; refuse other data than it began with.

    Raises
    ------
    InputError
        If the data, the network's or the state's arrays, the step or the curve are not such a
        run's; names the file and the field.
    """
    weights = _under(entry.arrays, "weights/")
    try:
        task = stream.prepare(entry.config, weights)
    except InputError as error:
        if error.argument in _CONFIG:
            where = f"runs[{k}].config.{error.argument}"
        elif error.argument == "weights" or error.argument in weights:
            where = f"{k}/weights/{error.argument}".removesuffix("/weights")
        else:  # such as a data file that is gone
            raise
        raise place.error(where, error.got, error.required, error.cause) from error
    if task.dataset.digest() != entry.digest:
        raise place.error(
            f"runs[{k}].digest",
            f"data with digest {task.dataset.digest()[:12]}",
            f"the data that the run began with, digest {entry.digest[:12]}",
            "other files, or another release of scikit-learn or NumPy, which splits or bundles the "
            "set differently",
        )
    step = entry.progress["step"]
    place.check(f"runs[{k}].progress.step", step, whole(0, task.steps))
    _check_curve(place, f"runs[{k}].progress.curve", entry, step, task.steps)
    try:
        fresh = stream.begin(task)
    except InputError as error:  # one p0 per layer, and other layers
        where = f"runs[{k}].config.options.{error.argument}"
        raise place.error(where, error.got, error.required, error.cause) from error
    wanted = pack(fresh, task, entry.digest, "running").arrays
    place.arrays(
        {f"{k}/{name}": a for name, a in entry.arrays.items()},
        {
            f"{k}/{name}": Floats(
                dtype=a.dtype,
                shape=a.shape,
                holds=checkpoint.HOLDS.get(name.rsplit("/", 1)[-1], ""),
            )
            for name, a in wanted.items()
        },
    )
    like = next(iter(task.model.weights.values()))
    kept: dict[str, Array] = {
        name: asarray(entry.arrays[name], like) for name in _STATE if name in entry.arrays
    }
    slots = {name: asarray(a, like) for name, a in _under(entry.arrays, "slots/").items()}
    state: loko.LokoState | optimizers.OptimizerState
    if isinstance(fresh.state, loko.LokoState):
        state = loko.LokoState(**kept, step=step)
    else:
        state = optimizers.OptimizerState(theta=kept["theta"], slots=slots, step=step)
    progress = Progress(
        state=state,
        step=step,
        score=entry.progress["score"],
        seconds=entry.progress["seconds"],
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
        about.append({name: getattr(entry, name) for name in _RUN})
        about[-1]["config"] = entry.config.as_dict()
    checkpoint.write(path, "train", about, arrays)


def read(path: str | os.PathLike[str]) -> list[Entry]:
    """Read a checkpoint, and check all that can be checked without its data.

    Raises
    ------
    InputError
        If it is no checkpoint, or truncated, or written by an incompatible version; or if a field
        or an array does not fit, named with the file.
    """
    place, runs, arrays = checkpoint.read(path, "train")
    entries = [_entry(place, k, about, _under(arrays, f"{k}/")) for k, about in enumerate(runs)]
    unfinished = [entry.status for entry in entries if entry.status not in ("done", "failed")]
    ended = [entry.status for entry in entries[: len(entries) - len(unfinished)]]
    if set(ended) - {"done", "failed"} or "running" in unfinished[1:]:
        raise place.error(
            "runs",
            f"the statuses {', '.join(entry.status for entry in entries)}",
            "runs that ended, then at most one that is running, then those that wait",
        )
    place.arrays(arrays, {k: v for n, e in enumerate(entries) for k, v in _expected(e, n).items()})
    return entries


def _entry(place: Place, k: int, about: Any, arrays: dict[str, NDArray[Any]]) -> Entry:
    """Check one run's metadata and build its entry."""
    name = f"runs[{k}]"
    place.names(name, about, _RUN)
    status = about["status"]
    place.check(f"{name}.status", status, choice(*_STATUS))
    config = _config(place, f"{name}.config", about["config"])
    if status != "waiting":
        place.check(f"{name}.digest", about["digest"], SHA256)
        _check_progress(place, f"{name}.progress", about["progress"], config)
    else:
        place.same(f"{name}.digest", about["digest"], "")
        place.same(f"{name}.progress", about["progress"], {})
    entry = Entry(arrays=arrays, **about | {"config": config})
    if status == "done":
        steps = about["progress"]["step"]
        _check_curve(place, f"{name}.progress.curve", entry, steps, steps)
    if status == "failed":
        steps = whole(about["progress"]["step"], about["progress"]["step"])
        reason = text("(?s).+", "what went wrong")
        kind = Record({"step": Maybe(steps), "reason": reason})
        place.check(f"{name}.failure", about["failure"], kind)
    else:
        place.same(f"{name}.failure", about["failure"], None)
    return entry


def _config(place: Place, name: str, found: Any) -> RunConfig:
    """Check a run's configuration: its own description, word for word."""
    place.names(name, found, tuple(_CONFIG))
    options, kinds = found["options"], dict(_CONFIG)
    if isinstance(options, dict) and isinstance(options.get("p0"), dict):  # one number per layer
        kinds["options"] = Record(dict.fromkeys(options, SCALAR) | {"p0": Table(real(0))})
    place.check(name, found, Record(kinds))
    try:
        config = RunConfig(**found)
    except InputError as error:
        where = f"{name}.{error.argument}"
        raise place.error(where, error.got, error.required, error.cause) from error
    place.same(name, found, config.as_dict())
    return config


def _check_progress(place: Place, name: str, found: Any, config: RunConfig) -> None:
    """Check counters and curve against each other; the stream's length is not known here."""
    rmse = regression(config.data)
    place.check(
        name,
        found,
        Record({"step": whole(), "score": real(0), "seconds": real(0), "curve": _CURVE}),
    )
    samples = found["step"] * config.batch
    most = math.inf if rmse else samples
    place.check(f"{name}.score", found["score"], real(0, most if samples else 0))
    if not rmse and found["score"] != int(found["score"]):
        raise place.error(f"{name}.score", found["score"], "a whole number of predictions")
    before = 0
    for j, (at, *values) in enumerate(found["curve"]):
        place.check(f"{name}.curve[{j}][0]", at, whole(before + 1, samples))
        before = at
        for k, value in enumerate(values, 1):
            place.check(f"{name}.curve[{j}][{k}]", value, real(0, math.inf if rmse else 1))
    if before and before == samples:
        mean = stream.mean(found["score"], samples, rmse)
        place.same(f"{name}.curve[{len(found['curve']) - 1}][1]", found["curve"][-1][1], mean)


def _check_curve(place: Place, name: str, entry: Entry, step: int, steps: int) -> None:
    """Require the evaluations that a run of `steps` steps has done by `step`."""
    due = stream.evaluated(steps, entry.config)
    count = len(due[: bisect.bisect_right(due, step)]) + (step == steps)
    place.check(name, entry.progress["curve"], Items(_CURVE.of, length=count))
    want = [*due[:count], *([steps] if step == steps else [])]
    got = [point.samples for point in entry.curve]
    place.same(f"{name} samples", got, [at * entry.config.batch for at in want])


def _expected(entry: Entry, k: int) -> dict[str, Floats]:
    """Arrays of run `k`, as far as they follow from its configuration alone."""
    if entry.status == "waiting":
        return {}
    config, dtype = entry.config, entry.config.dtype
    n = entry.arrays["theta"].shape[0] if "theta" in entry.arrays else None
    shapes: dict[str, tuple[int | None, ...]] = {"theta": (n,)}
    if config.optimizer != "loko":
        learner = BASELINES[config.optimizer](**config.options)
        shapes |= {f"slots/{slot}": (n,) for slot in optimizers.slot_names(learner)}
    else:
        kept = config.options["covariance"]
        state: dict[str, dict[str, tuple[int | None, ...]]]
        state = {"dense": {"P": (n, n)}, "diagonal": {"p": (n,)}}
        shapes |= state.get(kept, {"U": (None,), "W": (n, None)})
        if config.options["observation"] != "glm":
            m = entry.arrays["R"].shape[0] if "R" in entry.arrays else None
            shapes["R"] = (m, m)
    if entry.status == "running":  # the network's shapes follow from the data
        weights = {name: a for name, a in entry.arrays.items() if name.startswith("weights/")}
        shapes |= {name: a.shape for name, a in weights.items()}
    # what a run that diverged has left is not read again
    unread = entry.status == "failed"
    return {
        f"{k}/{name}": Floats(
            dtype=dtype,
            shape=shape,
            holds="unread" if unread else checkpoint.HOLDS.get(name.rsplit("/", 1)[-1], ""),
        )
        for name, shape in shapes.items()
    }
