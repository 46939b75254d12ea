"""Checkpoints: one directory a merge, one file a head, whole or not at all; no pickle.

``DIR/merge-00000012/`` holds ``head-0000.npz``, ... (each written by the rank that holds the head)
and ``shared.npz`` (the merged weights, every counter, the curves, the configuration, the SHA-256 of
every head's file, of the whole state (:func:`loko_ref.lte.state.fingerprint`), and of all of these
fields). The set is written under another name, and renamed when it is
complete: a directory of that name is a whole checkpoint. A set is read by any number of ranks.

Ranks on several machines need a directory that all of them see.
"""

from __future__ import annotations

import os
import re
import reprlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks.fields import (
    SHA256,
    Floats,
    Items,
    Kind,
    Maybe,
    Place,
    Real,
    Scalar,
    Table,
    Whole,
    difference,
    digest,
    seal,
)
from loko_ref.errors import InputError
from loko_ref.experiments.lte.train import History
from loko_ref.files import storage
from loko_ref.files.reading import hash_file
from loko_ref.files.writing import make_folder
from loko_ref.lte.config import LteConfig
from loko_ref.lte.serial import bytes_per_merge
from loko_ref.lte.state import LteState, combine, fingerprint, head_arrays, shared_arrays
from loko_ref.lte.team import Team, span

__all__ = ["KEEP", "SCHEMA", "check_place", "load", "newest", "save"]

SCHEMA = "loko-ref/lte-checkpoint/2"
KEEP = 2
"""Complete sets that are kept."""

_NAME = re.compile(r"merge-(\d{8})")


_COUNTERS = ("step", "merges", "optimizer_step")
_SHARED = ("config", "run", "files", *_COUNTERS, "history", "state_sha256", "sha256")
_HOLDS = {"slots.p": "positive", "R": "covariance"}
_HOLDS |= {"slots.exp_avg_sq": "nonnegative", "slots.sum": "nonnegative"}


def _seal(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but itself: the hashes of files and state among them."""
    return seal({key: value for key, value in metadata.items() if key != "sha256"}, {})


def _hash(path: Path) -> str:
    return hash_file(path, "resume")


def save(
    directory: str | os.PathLike[str],
    config: LteConfig,
    state: LteState,
    history: History,
    run: Mapping[str, Any],
    team: Team,
) -> None:
    """Write the set of one merge; every rank calls it.

    Parameters
    ----------
    directory : path-like
        Made where it is not there.
    config, state, history
        What is saved.
    run : mapping
        JSON data that a resumed run must share: batch, data and the like.
    team : Team
        Who holds what.

    Raises
    ------
    InputError
        If the directory cannot be written to, such as on a full disk.
    """
    team.log(state.step, "checkpoint")
    root = Path(directory)
    try:
        _write(root, config, state, history, run, team)
    except BaseException as error:  # an interrupt too: no half-written set is left behind
        if team.rank == 0:
            for left in root.glob(".merge-*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(
            "checkpoint", repr(str(root)), "a writable directory", str(error)
        ) from error


def _write(
    root: Path,
    config: LteConfig,
    state: LteState,
    history: History,
    run: Mapping[str, Any],
    team: Team,
) -> None:
    count = state.merges if config.mode == "lte" else state.step // config.merge_every
    final = root / f"merge-{count:08d}"
    partial = root / f".{final.name}.tmp"
    if team.rank == 0:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".merge-*.tmp"):  # what a killed run left behind
            shutil.rmtree(left)
        partial.mkdir()
    team.collect(None)
    own = {}
    for row in range(state.theta.shape[0]):
        name = f"head-{state.first + row:04d}.npz"
        arrays = head_arrays(config, state, row)
        head = {"head": state.first + row}
        storage.save(partial / name, arrays, head, schema=SCHEMA, argument="checkpoint")
        own[name] = _hash(partial / name)
    files = {k: v for part in team.collect(own) for k, v in part.items()}
    state_sha256 = fingerprint(config, state, team)
    if team.rank != 0:
        return
    metadata: dict[str, Any] = {
        "config": config.as_json(),
        "run": dict(run),
        "files": files,
        "step": state.step,
        "merges": state.merges,
        "optimizer_step": state.optimizer_step,
        "history": {
            "loss": history.loss,
            "evaluations": history.evaluations,
            "sent": history.sent,
        },
        "state_sha256": state_sha256,
    }
    metadata["sha256"] = _seal(metadata)
    shared = shared_arrays(config, state)
    storage.save(partial / "shared.npz", shared, metadata, schema=SCHEMA, argument="checkpoint")
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    for old in sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name))[:-KEEP]:
        shutil.rmtree(old)


def newest(directory: str | os.PathLike[str]) -> Path:
    """Return the newest complete set in a directory, or the directory itself if it is a set.

    Raises
    ------
    InputError
        If there is none.
    """
    root = Path(directory)
    if (root / "shared.npz").is_file():
        return root
    found = sorted(p for p in root.glob("merge-*") if _NAME.fullmatch(p.name) and p.is_dir())
    if not found:
        raise InputError(
            "resume",
            repr(str(directory)),
            "a directory with a complete checkpoint (merge-00000001, ...)",
            "a run that ended before its first merge, or another directory",
        )
    return found[-1]


def _compare(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other choices, naming the first that differs."""
    found = difference("", saved, asked)
    if found is not None:
        where, was, now = found
        raise InputError(
            "resume",
            f"{str(path)!r}, made with {where} = {reprlib.repr(was)}",
            f"{where} = {reprlib.repr(now)}, as asked for now",
            "a checkpoint of another run; a resumed run takes the same arguments",
        )


def _read_shared(
    place: Place, config: LteConfig, metadata: dict[str, Any], itemsize: int
) -> tuple[dict[str, int], History]:
    """Check counters and curves; a set is written at a merge, or where mhlora would have one."""
    names = tuple(f"head-{head:04d}.npz" for head in range(config.heads))
    place.check("files", metadata["files"], Table(SHA256, names))
    for key in ("state_sha256", "sha256"):
        place.check(key, metadata[key], SHA256)
    place.check("step", metadata["step"], Whole(1))
    step, every = metadata["step"], config.merge_every
    if step % every:
        raise place.error("step", step, f"a multiple of merge_every = {every}")
    merges = step // every if config.mode == "lte" else 0
    place.same("merges", metadata["merges"], merges)
    fresh = config.optimizer_state == "reset"
    place.same("optimizer_step", metadata["optimizer_step"], 0 if fresh else step)
    history = metadata["history"]
    gathered = merges if config.mode == "lte" else step
    sent = gathered * bytes_per_merge(config, itemsize)
    accuracy: Kind = Maybe(Real(0, 1)) if config.loss == "mse" else Real(0, 1)
    place.names("history", history, ("loss", "evaluations", "sent"))
    place.check("history.loss", history["loss"], Items(Real(), length=step))
    triples = Items(Items(Scalar(), length=3), length=1 + step // every)
    place.check("history.evaluations", history["evaluations"], triples)
    for k, (at, loss, share) in enumerate(history["evaluations"]):
        name = f"history.evaluations[{k}]"
        place.same(f"{name}[0]", at, k * every)
        place.check(f"{name}[1]", loss, Real())
        place.check(f"{name}[2]", share, accuracy)
        if config.loss == "mse":
            place.same(f"{name}[2]", share, None)
    place.same("history.sent", history["sent"], sent)
    counters = {"step": step, "merges": merges, "optimizer_step": metadata["optimizer_step"]}
    return counters, History(
        loss=history["loss"],
        evaluations=[(at, loss, share) for at, loss, share in history["evaluations"]],
        sent=sent,
    )


def _wanted(arrays: Mapping[str, Array]) -> dict[str, Floats]:
    """Describe what each array of a file must be, by one of such a run."""
    return {
        name: Floats(dtype=a.dtype, shape=tuple(a.shape), holds=_HOLDS.get(name, ""))
        for name, a in arrays.items()
    }


def load(
    directory: str | os.PathLike[str],
    config: LteConfig,
    run: Mapping[str, Any],
    team: Team,
    begun: LteState,
) -> tuple[LteState, History]:
    """Read the newest set for the heads that this rank holds.

    Every rank reads every file, and checks them alone: no rank waits for another here.

    Parameters
    ----------
    directory : path-like
        Of the run, or of one set.
    config, run
        What is asked for now; it must be what was saved.
    team : Team
        Who holds what: any number of ranks.
    begun : LteState
        The state before the first step, of the heads held: it has the shapes, and the library.

    Raises
    ------
    InputError
        If a file is missing, truncated, altered or foreign, a field or an array does not fit, or a
        choice differs; names file and field.
    """
    path = newest(directory)
    shared, metadata = storage.load(path / "shared.npz", schema=SCHEMA, argument="resume")
    place = Place(argument="resume", path=str(path / "shared.npz"), terms=config.layout.n)
    place.names("", metadata, _SHARED)
    for name, asked in (("config", config.as_json()), ("run", dict(run))):
        place.names(name, metadata[name], tuple(asked))
        _compare(path, metadata[name], asked)
    counters, history = _read_shared(place, config, metadata, begun.theta.dtype.itemsize)
    model = shared_arrays(config, begun)
    place.arrays(shared, _wanted(model))
    wanted = _wanted(head_arrays(config, replace(begun, merged=_merged_rows(config, begun)), 0))
    own = span(config.heads, team.rank, team.size)
    rows: list[dict[str, Array]] = []
    digests = []
    for head in range(config.heads):  # every rank reads the rows last merged of all heads
        arrays = _load_head(path, head, metadata["files"], wanted, config.layout.n)
        digests.append(digest({name: arrays[name] for name in wanted}))
        keep = own.start <= head < own.stop
        rows.append(arrays if keep else {k: arrays[k] for k in ("theta", "merged") if k in arrays})
    ordered = {name: shared[name] for name in model}
    numbers = (counters["step"], counters["merges"], counters["optimizer_step"])
    for key, found, what in (
        ("state_sha256", combine(numbers, digest(ordered), digests), "the arrays and counters"),
        ("sha256", _seal(metadata), "the other fields"),
    ):
        if metadata[key] != found:
            raise place.error(key, f"{metadata[key][:12]}...", f"the SHA-256 of {what} in the set")
    mine = rows[own]

    def stack(name: str, rows: list[dict[str, Array]] = mine) -> Array:
        return asarray(np.stack([row[name] for row in rows]), begun.theta)

    merged = None
    if config.mode == "mhlora":
        merged = stack("theta", rows)
    elif "merged" in wanted:
        merged = stack("merged", rows)
    copies, slots = (
        {name.removeprefix(kind): stack(name) for name in wanted if name.startswith(kind)}
        for kind in ("copies.", "slots.")
    )
    weights, base = (
        {k: asarray(shared[f"{kind}.{k}"], begun.theta) for k in config.frozen}
        for kind in ("weights", "base")
    )
    state = LteState(
        weights=weights,
        base=base,
        theta=stack("theta"),
        merged=merged,
        copies=copies,
        slots=slots,
        R=stack("R") if "R" in wanted else None,
        first=own.start,
        **counters,
    )
    return state, history


def _merged_rows(config: LteConfig, begun: LteState) -> Array | None:
    """Rows of the shape that a merge leaves, where one is remembered."""
    if config.mode == "mhlora" or config.reset != "none":
        return begun.merged
    return namespace(begun.theta).zeros((config.heads, config.layout.n), dtype=begun.theta.dtype)


def _load_head(
    path: Path, head: int, files: Mapping[str, str], wanted: Mapping[str, Floats], terms: int
) -> dict[str, Array]:
    """Read one head's file, and check it against the set's hash and the run's shapes."""
    file = path / f"head-{head:04d}.npz"
    if not file.is_file() or _hash(file) != files[file.name]:
        raise InputError(
            "resume",
            f"{str(file)!r} {'altered' if file.is_file() else 'missing'}",
            "the file whose SHA-256 stands in shared.npz",
            "a truncated or exchanged file, or a set copied in part",
        )
    arrays, metadata = storage.load(file, schema=SCHEMA, argument="resume")
    place = Place(argument="resume", path=str(file), terms=terms)
    place.names("", metadata, ("head",))
    place.same("head", metadata["head"], head)
    place.arrays(arrays, wanted)
    return arrays


def check_place(place: Path | None, resume: Path | None) -> None:
    """Raise, before a run, where its checkpoints could not be written.

    Parameters
    ----------
    place : path or None
        The directory that is to hold them; it is made.
    resume : path or None
        Where the run goes on from: the one place whose sets are this run's own.

    Raises
    ------
    InputError
        If it cannot be made or written to, or holds the sets of another run.
    """
    if place is None:
        return
    make_folder("checkpoint", place)
    begun = None if resume is None else resume.resolve()
    sets = sorted(place.glob("merge-*"))
    if sets and (begun is None or place.resolve() not in (begun, begun.parent)):
        raise InputError(
            "checkpoint",
            f"{str(place)!r}, which holds {sets[-1].name} of another run",
            "a new or empty directory, or the one resumed from",
            "a run before this one; the sets with the highest numbers are kept, and these are its",
        )
