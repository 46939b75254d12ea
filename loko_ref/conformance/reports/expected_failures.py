"""Expected failures: exact ids of cases with a reason each.

In a file one per line, ``id: reason``; empty lines and lines that begin with # are passed over. An
expected failure does not change the exit code; an expected failure that passes does. The outcome of
each check in the light of the list is :func:`loko_ref.conformance.engine.outcome`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike

from loko_ref.checks.signatures import check_type
from loko_ref.conformance.cases.registry import all_cases, current
from loko_ref.conformance.engine import UNSUPPORTED
from loko_ref.errors import InputError, closest, printable, shown
from loko_ref.files.reading import read_text

NAMED = 8
"""Ids that a note names."""


def read(source: str | PathLike[str] | Mapping[str, str]) -> dict[str, str]:
    """Read expected failures: id -> reason.

    Parameters
    ----------
    source : path-like or mapping
        A file, or the ids and reasons themselves.

    Raises
    ------
    InputError
        Names ``xfail``: the file cannot be read, a reason is missing, or an id is unknown or given
        twice.
    """
    check_type("xfail", source, (str, PathLike, Mapping), "ids without their reasons")
    if isinstance(source, Mapping):
        entries = [(f"xfail[{shown(key)}]", key, why) for key, why in source.items()]
    else:
        entries = []
        for number, line in enumerate(read_text(source, "xfail").splitlines(), start=1):
            text = line.strip()
            if text and not text.startswith("#"):
                key, _, why = (part.strip() for part in text.partition(":"))
                entries.append((f"xfail, line {number}", key, why))
    ids = {case.id for case in all_cases()}
    found: dict[str, str] = {}
    for where, given, why in entries:
        key = current(given) if isinstance(given, str) else given
        if not isinstance(why, str) or not why:
            got = shown(why if isinstance(source, Mapping) else key)
            raise InputError(where, got, "'id: reason'", "the reason was left out")
        if key not in ids and "+" not in str(key):  # a case that options build has a +
            near = closest(str(key), ids)
            cause = f"a typing error; the closest id is '{near}'" if near else "another version"
            raise InputError(where, shown(key), "the exact id of a case", cause)
        if key in found:
            raise InputError(where, repr(key), "each id once", "a line was copied")
        found[key] = printable(why)
    return found


def not_run(statuses: Iterable[tuple[str, str]], expected: Mapping[str, str]) -> list[str]:
    """Return notes on the expected failures that were not run: not selected, or declined.

    Parameters
    ----------
    statuses : iterable of (str, str)
        Id and status of every check of the run.
    expected : mapping of str to str
        Id -> why it is expected to fail.
    """
    found = dict(statuses)
    absent = [key for key in expected if key not in found]
    declined = [key for key in expected if found.get(key) == UNSUPPORTED]
    notes = []
    for keys, why in ((absent, "not selected"), (declined, "declined")):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            listed = f"{', '.join(keys[:NAMED])}{more}"
            notes.append(f"expected to fail, but {why} and so not run ({len(keys)}): {listed}")
    return notes
