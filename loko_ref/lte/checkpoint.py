"""Checkpoints: one directory a merge, one file a head, whole or not at all; no pickle.

``DIR/merge-00000012/`` holds ``head-0000.npz``, ... (each written by the rank that holds the head)
and ``shared.npz`` (the merged weights, every counter, the curves, the configuration, and the
SHA-256 of every head's file). The set is written under another name, and renamed when it is
complete: a directory of that name is a whole checkpoint. A set is read by any number of ranks.

Ranks on several machines need a directory that all of them see.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref import storage
from loko_ref.arrays import Array, asarray
from loko_ref.errors import InputError
from loko_ref.lte.config import LteConfig
from loko_ref.lte.experiment import History
from loko_ref.lte.state import LteState, head_arrays, shared_arrays
from loko_ref.lte.team import Team, span
from loko_ref.reading import hash_file

__all__ = ["KEEP", "SCHEMA", "load", "newest", "save"]

SCHEMA = "loko-ref/lte-checkpoint/1"
KEEP = 2
"""Complete sets that are kept."""

_NAME = re.compile(r"merge-(\d{8})")


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
    except OSError as error:
        raise InputError(
            "checkpoint", repr(str(root)), "a directory that can be written to", str(error)
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
    if team.rank != 0:
        return
    metadata = {
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
    }
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


def _compare(path: Path, saved: Any, asked: Any) -> None:
    """Refuse a checkpoint of other choices, naming the first that differs."""
    found = _differing("", saved, asked)
    if found is not None:
        where, was, now = found
        raise InputError(
            "resume",
            f"{str(path)!r}, made with {where} = {was!r}",
            f"{where} = {now!r}, as asked for now",
            "a checkpoint of another run; a resumed run takes the same arguments",
        )


def _differing(where: str, saved: Any, asked: Any) -> tuple[str, Any, Any] | None:
    """Find the first leaf of `asked` that is another in `saved`: its place, and both values."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        pairs: Any = ((f".{k}", saved.get(k), asked[k]) for k in asked)
    elif isinstance(saved, list) and isinstance(asked, list):
        if len(saved) != len(asked):
            return f"number of {where.removeprefix('.')}", len(saved), len(asked)
        pairs = ((f"[{j}]", a, b) for j, (a, b) in enumerate(zip(saved, asked, strict=True)))
    else:
        return None if saved == asked else (where.removeprefix("."), saved, asked)
    return next((d for k, a, b in pairs if (d := _differing(where + k, a, b))), None)


def _fits(file: Path, arrays: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Refuse arrays that are not those of such a run: names, shapes, dtypes, finite numbers."""
    for name in sorted(arrays.keys() | wanted.keys()):
        got = f"{arrays[name].dtype} {arrays[name].shape}" if name in arrays else "nothing"
        want = f"{wanted[name].dtype} {wanted[name].shape}" if name in wanted else "nothing"
        if got == want and not np.isfinite(arrays[name]).all():
            got, want = "NaN or infinite", "finite numbers"
        if got != want:
            raise InputError("resume", f"{str(file)!r} with {name} {got}", want, "a foreign file")


def _told(
    path: Path, config: LteConfig, metadata: Mapping[str, Any]
) -> tuple[dict[str, int], History]:
    """Read counters and curves; a set is written at a merge, or where mhlora would have one."""
    try:
        counters = {key: int(metadata[key]) for key in ("step", "merges", "optimizer_step")}
        told = metadata["history"]
        history = History(
            loss=[float(value) for value in told["loss"]],
            evaluations=[(int(a), float(b), c) for a, b, c in told["evaluations"]],
            sent=int(told["sent"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "resume", f"{str(path)!r}: {error!r}", "counters and curves", "a foreign file"
        ) from error
    intervals, rest = divmod(counters["step"], config.merge_every)
    fresh = config.optimizer_state == "reset"
    merges = intervals if config.mode == "lte" else 0
    wanted = {"merges": merges, "optimizer_step": 0 if fresh else counters["step"]}
    if intervals < 1 or rest or counters != counters | wanted:
        raise InputError(
            "resume",
            f"{str(path)!r} with {counters}",
            f"a step that is a multiple of merge_every = {config.merge_every}, counted alike",
            "a foreign file",
        )
    return counters, history


def load(
    directory: str | os.PathLike[str],
    config: LteConfig,
    run: Mapping[str, Any],
    team: Team,
    begun: LteState,
) -> tuple[LteState, History]:
    """Read the newest set for the heads that this rank holds.

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
        If a file is missing, truncated, altered or foreign, or a choice differs.
    """
    path = newest(directory)
    shared, metadata = storage.load(path / "shared.npz", schema=SCHEMA, argument="resume")
    for key in ("config", "run", "files"):
        if not isinstance(metadata.get(key), dict):
            raise InputError("resume", f"{str(path)!r} without '{key}'", "all keys", "damage")
    # a set written before there was a choice was made with what is now the default
    _compare(path, {"replicas": "train"} | metadata["config"], config.as_json())
    _compare(path, {"backend": "numpy"} | metadata["run"], dict(run))
    counters, history = _told(path, config, metadata)
    _fits(path / "shared.npz", shared, shared_arrays(config, begun))
    wanted = head_arrays(config, begun, 0)
    if config.mode == "lte" and config.reset == "none":
        wanted["merged"] = wanted["theta"]
    own = span(config.heads, team.rank, team.size)
    rows: list[dict[str, Array]] = []
    for head in range(config.heads):  # every rank reads the rows last merged of all heads
        name = f"head-{head:04d}.npz"
        file = path / name
        if not file.is_file() or _hash(file) != metadata["files"].get(name):
            raise InputError(
                "resume",
                f"{str(file)!r} {'altered' if file.is_file() else 'missing'}",
                "the file whose SHA-256 stands in shared.npz",
                "a truncated or exchanged file, or a set copied in part",
            )
        arrays, _ = storage.load(file, schema=SCHEMA, argument="resume")
        _fits(file, arrays, wanted)
        keep = own.start <= head < own.stop
        rows.append(arrays if keep else {k: arrays[k] for k in ("theta", "merged") if k in arrays})
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
