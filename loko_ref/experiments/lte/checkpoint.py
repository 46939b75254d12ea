"""Checkpoints of LTE: one file that holds all heads, written at a merge, read by any team.

Rank 0 writes what the others send it; every rank reads the file and keeps its own heads. The format
is :mod:`loko_ref.experiments.checkpoint`'s. Its one run holds ``config``, ``run`` (what a resumed
run must share: batch, data and the like) and ``progress`` (counters and curves); its arrays are the
shared ones, ``weights.0.W`` and ``base.0.W``, and of the heads ``theta``, ``merged``,
``copies.0.W``, ``slots.exp_avg``, ``R``, stacked in head order.

Ranks on several machines need a file that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.arrays import Array, asarray, namespace, to_host
from loko_ref.checks.fields import SCALAR, Floats, Items, Kind, Maybe, Place, real, whole
from loko_ref.experiments.checkpoint import HOLDS, check_same, read, write
from loko_ref.experiments.lte.train import History
from loko_ref.lte.config import LteConfig
from loko_ref.lte.serial import bytes_per_merge
from loko_ref.lte.state import LteState, head_arrays, shared_arrays
from loko_ref.lte.team import Team, span

_PROGRESS = ("step", "merges", "optimizer_step", "loss", "evaluations", "sent")


def save(
    path: str | os.PathLike[str],
    config: LteConfig,
    state: LteState,
    history: History,
    run: Mapping[str, Any],
    team: Team,
) -> None:
    """Write the state of one merge; every rank calls it.

    Parameters
    ----------
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.
    config, state, history
        What is saved.
    run : mapping
        JSON data that a resumed run must share: batch, data and the like.
    team : Team
        Which rank holds which heads.

    Raises
    ------
    InputError
        If the file cannot be written, such as on a full disk.
    """
    team.log(state.step, "checkpoint")
    rows = range(state.theta.shape[0])
    own = [{k: to_host(a) for k, a in head_arrays(config, state, row).items()} for row in rows]
    heads = [head for part in team.collect(own) for head in part]
    if team.rank != 0:
        return
    arrays: dict[str, Array] = {k: to_host(a) for k, a in shared_arrays(config, state).items()}
    arrays |= {name: np.stack([head[name] for head in heads]) for name in heads[0]}
    counters = {name: getattr(state, name) for name in _PROGRESS[:3]}
    curves = {name: getattr(history, name) for name in _PROGRESS[3:]}
    content = {"config": config.as_json(), "run": dict(run), "progress": counters | curves}
    write(path, "lte", [content], arrays)


def load(
    path: str | os.PathLike[str],
    config: LteConfig,
    run: Mapping[str, Any],
    team: Team,
    initial: LteState,
) -> tuple[LteState, History]:
    """Read the heads that this rank holds.

    Every rank reads the whole file, and checks it alone: no rank waits for another here.

    Parameters
    ----------
    config, run
        What is requested now; it must be what was saved.
    team : Team
        Which rank holds which heads: any number of ranks.
    initial : LteState
        The state before the first step, of the heads held: it has the shapes, and the library.

    Raises
    ------
    InputError
        If the file is missing, truncated, altered or foreign, a field or an array does not fit, or
        a choice differs; names file and field.
    """
    place, (about, *others), arrays = read(path, "lte")
    place = replace(place, terms=config.layout.n)
    if others:
        raise place.error("runs", f"{1 + len(others)} runs", "one run of all heads")
    place.names("runs[0]", about, ("config", "run", "progress"))
    expected = {"config": config.as_json(), "run": dict(run)}
    for name, fields in expected.items():
        place.names(f"runs[0].{name}", about[name], tuple(fields))
    check_same(place, [{name: about[name] for name in expected}], [expected])
    progress = about["progress"]
    _check_progress(place, config, progress, initial.theta.dtype.itemsize)
    _check_arrays(place, config, initial, arrays)
    own = span(config.heads, team.rank, team.size)

    def take(name: str, part: slice = own) -> Array:
        return asarray(arrays[name][part], initial.theta)

    merged = None
    if config.mode == "mhlora" or "merged" in arrays:
        merged = take("theta" if config.mode == "mhlora" else "merged", slice(None))
    weights, base = (
        {k: take(f"{kind}.{k}", slice(None)) for k in config.frozen} for kind in ("weights", "base")
    )
    state = LteState(
        weights=weights,
        base=base,
        theta=take("theta"),
        merged=merged,
        copies={k: take(f"copies.{k}") for k in initial.copies},
        slots={k: take(f"slots.{k}") for k in initial.slots},
        R=take("R") if "R" in arrays else None,
        first=own.start,
        **{name: progress[name] for name in _PROGRESS[:3]},
    )
    evaluations = [(at, loss, share) for at, loss, share in progress["evaluations"]]
    return state, History(loss=progress["loss"], evaluations=evaluations, sent=progress["sent"])


def _check_progress(place: Place, config: LteConfig, found: Any, itemsize: int) -> None:
    """Check counters and curves; a file is written at a merge, or where mhlora would have one."""
    name, every = "runs[0].progress", config.merge_every
    place.names(name, found, _PROGRESS)
    place.check(f"{name}.step", found["step"], whole(1))
    step = found["step"]
    if step % every:
        raise place.error(f"{name}.step", step, f"a multiple of merge_every = {every}")
    merges = step // every if config.mode == "lte" else 0
    gathered = merges if config.mode == "lte" else step
    fixed = {
        "merges": merges,
        "optimizer_step": 0 if config.optimizer_state == "reset" else step,
        "sent": gathered * bytes_per_merge(config, itemsize),
    }
    for key, value in fixed.items():
        place.same(f"{name}.{key}", found[key], value)
    place.check(f"{name}.loss", found["loss"], Items(real(), length=step))
    triples = Items(Items(SCALAR, length=3), length=1 + step // every)
    place.check(f"{name}.evaluations", found["evaluations"], triples)
    accuracy: Kind = Maybe(real(0, 1)) if config.loss == "mse" else real(0, 1)
    for k, (at, loss, share) in enumerate(found["evaluations"]):
        where = f"{name}.evaluations[{k}]"
        place.same(f"{where}[0]", at, k * every)
        place.check(f"{where}[1]", loss, real())
        place.check(f"{where}[2]", share, accuracy)
        if config.loss == "mse":
            place.same(f"{where}[2]", share, None)


def _check_arrays(
    place: Place, config: LteConfig, initial: LteState, arrays: dict[str, NDArray[Any]]
) -> None:
    """Require the arrays that such a run has after a merge."""
    after = initial
    if config.mode == "lte" and config.reset == "none":  # a merge leaves the rows that it merged
        zeros = namespace(initial.theta).zeros((config.heads, config.layout.n))
        after = replace(initial, merged=asarray(zeros, initial.theta))
    dtype, wanted = initial.theta.dtype, {}
    for name, a in shared_arrays(config, initial).items():
        wanted[name] = Floats(dtype=dtype, shape=tuple(a.shape))
    for name, a in head_arrays(config, after, 0).items():
        holds = "" if name == "R" else HOLDS.get(name.rsplit(".", 1)[-1], "")
        wanted[name] = Floats(dtype=dtype, shape=(config.heads, *a.shape), holds=holds)
    place.arrays(arrays, wanted)
    if "R" in wanted:
        one = Floats(dtype=dtype, shape=wanted["R"].shape[1:], holds=HOLDS["R"])
        each = {f"R[{head}]": R for head, R in enumerate(arrays["R"])}
        place.arrays(each, dict.fromkeys(each, one))
