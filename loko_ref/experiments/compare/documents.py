"""What the documents of both comparisons share: the plan that they are gone on from, numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loko_ref.checks.fields import Items, Kind, Place, Record, Table, text
from loko_ref.errors import InputError, closest, shown
from loko_ref.experiments.compare.analysis import Difference
from loko_ref.files.documents import SCHEMAS
from loko_ref.files.strict_json import read_json

FILE_LIMIT = 2**28
"""Most bytes of a document to go on from."""


def check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise for a name that is none of those known; it has commas, so it is shown in quotes."""
    for name in names:
        if name not in known:
            near = closest(name, known)
            cause = f"a misspelt name; the closest is {near!r}" if near else "a misspelt name"
            raise InputError(option, shown(name), f"one of {', '.join(map(repr, known))}", cause)


def number(value: float) -> float | None:
    """Return a number as JSON has it: null where it is not finite."""
    return value if math.isfinite(value) else None


def as_json(found: Difference | None) -> dict[str, float | None] | None:
    """Return a difference as JSON has it."""
    if found is None:
        return None
    return {name: number(getattr(found, name)) for name in ("mean", "low", "high")}


def schema_of(path: str | os.PathLike[str]) -> str:
    """Return the schema of a comparison's document, ``compare-online`` or ``compare-lte``.

    Parameters
    ----------
    path : path-like
        A document that was written by ``--json``.

    Raises
    ------
    InputError
        If the file is none.
    """
    root = read_json(Path(path), "FILE", limit=FILE_LIMIT)
    got = root.get("schema") if isinstance(root, dict) else None
    for name in ("compare-online", "compare-lte"):
        if got == SCHEMAS[name]:
            return name
    required = "what 'compare online --json' or 'compare lte --json' wrote"
    raise InputError("FILE", f"{path}: schema {shown(got)}", required, "another file")


def read_plan(
    path: str | os.PathLike[str], name: str, kind: Record
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a document compares, and what it was made with.

    Parameters
    ----------
    path : path-like
        A document that was written by ``--json``.

    Raises
    ------
    InputError
        If the file is none, is damaged, or has another schema.
    """
    place, root = _opened(path, name, "FILE")
    place.check("plan", root.get("plan"), kind)
    seeds = root["plan"]["seeds"]
    if not seeds or seeds != list(range(len(seeds))):
        raise place.error("plan.seeds", shown(seeds), "the seeds from 0 on, one at least")
    made: dict[str, Kind] = {"versions": Table(text()), "platform": text()}
    for key, wanted in made.items():
        place.check(key, root.get(key), wanted)
    return root["plan"], {key: root[key] for key in made}


def read_rows(
    path: str | os.PathLike[str],
    name: str,
    plan: Mapping[str, Any],
    rows: str,
    kind: Record,
    argument: str = "--resume",
) -> list[dict[str, Any]]:
    """Read what an interrupted comparison had done.

    Parameters
    ----------
    path : path-like
        A document that was written by ``--json``.
    plan : mapping
        What is compared now: the same.
    rows, kind : str, Record
        The document's list, and what each entry must be.

    Raises
    ------
    InputError
        If the file is none, is damaged, or belongs to another plan.
    """
    place, root = _opened(path, name, argument)
    place.same("plan", root.get("plan"), plan)
    if rows not in root and "summary" in root:
        required, cause = (
            f"the list of {rows}",
            "what 'compare report --json' wrote of a comparison",
        )
        raise place.error(rows, "a summary alone", required, cause)
    place.check(rows, root.get(rows), Items(kind))
    found: list[dict[str, Any]] = root[rows]
    return found


def _opened(path: str | os.PathLike[str], name: str, argument: str) -> tuple[Place, dict[str, Any]]:
    place = Place(argument=argument, path=str(path))
    root = read_json(Path(path), argument, limit=FILE_LIMIT)
    place.names("", root, None)
    place.same("schema", root.get("schema"), SCHEMAS[name])
    return place, root
