"""The one format of checkpoints, of ``train`` and of ``lte``: written and read, sealed, compared.

The schema ``loko-ref/checkpoint/3``: the command, a list of runs as JSON data, arrays, and a
SHA-256 of all of these. A file is written whole or not at all (:mod:`loko_ref.files.storage`).
What a run holds, and the checks of its fields: :mod:`loko_ref.experiments.runfile` for ``train``,
:mod:`loko_ref.experiments.lte.checkpoint` for ``lte``.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from loko_ref.arrays import Array
from loko_ref.checks.fields import SHA256, Place, choice, difference, seal
from loko_ref.errors import InputError
from loko_ref.files import storage

SCHEMA = "loko-ref/checkpoint/3"

HOLDS = {"p": "positive", "P": "symmetric", "R": "covariance"}
HOLDS |= {"exp_avg_sq": "nonnegative", "sum": "nonnegative"}
"""Array of a learner's state -> what its entries must be."""


def write(
    path: str | os.PathLike[str],
    command: str,
    runs: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, Array],
) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.
    command : {"train", "lte"}
        Whose.
    runs : sequence of mapping
        JSON data.
    arrays : mapping of str to array
        Of all runs.

    Raises
    ------
    InputError
        If the file cannot be written, such as on a full disk.
    """
    content = {"command": command, "runs": list(runs)}
    metadata = content | {"sha256": seal(content, arrays)}
    storage.save(path, arrays, metadata, schema=SCHEMA, argument="checkpoint")


def read(
    path: str | os.PathLike[str], command: str
) -> tuple[Place, list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Read a checkpoint, and check it against its seal; the runs' fields are not checked here.

    Returns
    -------
    place : Place
        Names the file in errors.
    runs : list of dict
        At least one.
    arrays : dict of str to array

    Raises
    ------
    InputError
        If it is no such checkpoint, truncated, altered, or of the other command.
    """
    arrays, metadata = storage.load(path, schema=SCHEMA, argument="resume")
    place = Place(argument="resume", path=str(path))
    place.names("", metadata, ("command", "runs", "sha256"))
    place.check("sha256", metadata["sha256"], SHA256)
    place.check("command", metadata["command"], choice("train", "lte"))
    content = {"command": metadata["command"], "runs": metadata["runs"]}
    if seal(content, arrays) != metadata["sha256"]:
        got, required = f"{metadata['sha256'][:12]}...", "the SHA-256 of the runs and arrays"
        raise place.error("sha256", got, f"{required} in the file")
    if metadata["command"] != command:
        cause = f"a checkpoint of 'loko-ref {metadata['command']}'"
        raise place.error("command", repr(metadata["command"]), repr(command), cause)
    runs = metadata["runs"]
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise place.error("runs", "no list of runs", "a list of at least one run")
    return place, runs, arrays


def check_same(
    place: Place, saved: Sequence[Mapping[str, Any]], requested: Sequence[Mapping[str, Any]]
) -> None:
    """Raise unless the runs of a checkpoint are those requested, naming the first difference.

    Parameters
    ----------
    saved, requested : sequence of mapping
        Complete descriptions of the runs, as JSON data.
    """
    path = repr(place.path)
    if len(saved) != len(requested):
        raise InputError(
            place.argument,
            f"{path}, a checkpoint of {len(saved)} runs",
            f"one of the {len(requested)} runs requested",
            "other optimizers, variants or seeds than when the checkpoint was written",
        )
    for k, (have, want) in enumerate(zip(saved, requested, strict=True)):
        found = difference("", have, want)
        if found is not None:
            where, was, now = found
            raise InputError(
                place.argument,
                f"{path}, run {k} with {where} = {reprlib.repr(was)}",
                f"{where} = {reprlib.repr(now)}, as requested",
                "a checkpoint of another command; a resumed run takes the same options",
            )
