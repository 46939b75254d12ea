"""What ``train`` and ``lte`` leave behind: documents, and the checkpoint after an interrupt."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loko_ref import interrupt
from loko_ref.errors import InputError
from loko_ref.files import storage
from loko_ref.files.writing import check_target, check_targets, write_bytes

_NOTHING = "nothing is kept; with --checkpoint F.npz an interrupted run can be resumed"


def check_outputs(
    results: Mapping[str, Path | None], checkpoint: Path | None, resume: Path | None
) -> None:
    """Raise, before a run, where its files could not be written, or two of them are one.

    Parameters
    ----------
    results : mapping of str to path
        Option -> file; of ``--plot`` the suffix chooses the format.
    """
    for option, path in (("--checkpoint", checkpoint), ("--resume", resume)):
        if path is not None and path.suffix.lower() not in storage.SUFFIXES:
            raise InputError(
                option,
                repr(str(path)),
                f"a file name that ends in {' or '.join(storage.SUFFIXES)}",
                "a missing or unknown suffix; or a directory, as 'lte' took in an earlier version: "
                "use a file F.npz, which holds all heads",
            )
    plot = results.get("--plot")
    if plot is not None:
        check_target("--plot", plot, ".svg", ".png")
    check_targets(results, {"--resume": resume})
    check_targets({"--checkpoint": checkpoint, **results})


def begin(checkpoint: Path | None, resume: Path | None) -> None:
    """Set the text of an interrupt before a checkpoint has been written."""
    interrupt.resumes(resume)
    if checkpoint is None and resume is None:
        interrupt.keep(lambda: _NOTHING)


def go_on(checkpoint: Path) -> str:
    """Return the shell command that resumes from a checkpoint."""
    words = sys.argv[1:]
    for option in ("--resume", "--stop-after"):
        words = interrupt.without(words, option)
    return interrupt.command_line(*words, "--resume", checkpoint)


def identity(path: Path | None) -> tuple[int, int] | None:
    """Return what changes when a file is replaced or written to; None where there is none."""
    with contextlib.suppress(OSError):
        found = None if path is None else path.stat()
        return None if found is None else (found.st_ino, found.st_mtime_ns)
    return None


def kept(
    checkpoint: Path,
    standing: str,
    since: tuple[int, int] | None = None,
    otherwise: str | None = None,
) -> None:
    """Set the text of an interrupt from now on: checkpoint, progress, the command to resume.

    Parameters
    ----------
    since, otherwise : (int, int), str, optional
        The file's :func:`identity` when it was not this run's, and the text as long as it is.
    """
    text = f"kept: {checkpoint}, {standing}; resume with: {go_on(checkpoint)}"
    otherwise = otherwise or f"nothing is kept: {checkpoint} is gone"
    interrupt.keep(lambda: otherwise if identity(checkpoint) in (None, since) else text)


def write_json(option: str, path: Path | None, content: Any, indent: int | None = 2) -> None:
    """Write a document where a path is given; on one line without an indent."""
    if path is not None:
        text = json.dumps(content, indent=indent, allow_nan=False) + "\n"
        write_bytes(path, text.encode(), option)
