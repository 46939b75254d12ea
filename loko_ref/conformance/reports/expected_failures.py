"""Expected failures: a list of exact ids with a reason each.

A file holds one a line, ``id: reason``; empty lines and lines that begin with # are passed over.
An expected failure does not spoil the exit code; an expected failure that passes does. What each
check's outcome is in the light of the list, :mod:`loko_ref.conformance.engine` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from loko_ref.conformance.cases.registry import all_cases
from loko_ref.conformance.engine import UNSUPPORTED
from loko_ref.errors import InputError, closest
from loko_ref.files.reading import read_text

__all__ = ["not_run", "read"]

NAMED = 8
"""Ids that a note names."""


def read(path: str | Path, option: str = "--xfail") -> dict[str, str]:
    """Read a list of expected failures: id -> reason.

    Parameters
    ----------
    path : path-like
        The file.
    option : str
        What named it, for the error.

    Raises
    ------
    InputError
        If the file cannot be read, a line has no reason, or an id is unknown or given twice.
    """
    lines = read_text(path, option).splitlines()
    ids = {case.id for case in all_cases()}
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key, _, reason = (part.strip() for part in text.partition(":"))
        where = f"{option}, line {number}"
        if not reason:
            raise InputError(where, repr(text[:80]), "'id: reason'", "the reason was left out")
        if key not in ids:
            near = closest(key, ids)
            cause = f"a typing error; the closest id is '{near}'" if near else "another version"
            raise InputError(where, repr(key[:80]), "the exact id of a case", cause)
        if key in found:
            raise InputError(where, repr(key), "each id once", "a line was copied")
        found[key] = reason
    return found


def not_run(
    statuses: Iterable[tuple[str, str]], expected: Mapping[str, str], option: str = "--xfail"
) -> list[str]:
    """Return notes on the expected failures that were not run: not selected, or declined.

    Parameters
    ----------
    statuses : iterable of (str, str)
        Id and status of every check of the run.
    expected : mapping of str to str
        Id -> why it is expected to fail.
    option : str
        What named the list.
    """
    found = dict(statuses)
    absent = [key for key in expected if key not in found]
    declined = [key for key in expected if found.get(key) == UNSUPPORTED]
    notes = []
    for keys, why in ((absent, "not selected"), (declined, "declined")):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            listed = f"{', '.join(keys[:NAMED])}{more}"
            notes.append(f"{option}: listed, but {why} and so not run ({len(keys)}): {listed}")
    return notes
