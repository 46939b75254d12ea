"""Expected failures: a list of exact ids with a reason each, and what becomes of a run by it.

A file holds one a line, ``id: reason``; empty lines and lines that begin with # are passed over.
An expected failure does not spoil the exit code; an expected failure that passes does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loko_ref.conformance.cases import all_cases
from loko_ref.conformance.verify import Check
from loko_ref.errors import InputError, closest
from loko_ref.reading import read_text

__all__ = ["exit_code", "read", "unexpected_passes"]


def read(path: str | Path) -> dict[str, str]:
    """Read a list of expected failures: id -> reason.

    Raises
    ------
    InputError
        If the file cannot be read, a line has no reason, or an id is unknown or given twice.
    """
    lines = read_text(path, "--xfail").splitlines()
    ids = {case.id for case in all_cases()}
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key, _, reason = (part.strip() for part in text.partition(":"))
        where = f"--xfail, line {number}"
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


def unexpected_passes(checks: Sequence[Check], expected: Mapping[str, str]) -> list[str]:
    """Ids that passed although they were expected to fail."""
    return [c.case.id for c in checks if c.status == "passed" and c.case.id in expected]


def exit_code(checks: Sequence[Check], expected: Mapping[str, str]) -> int:
    """Return 0 where all is as expected and something ran, 1 where not, 2 where nothing ran."""
    surprises = [c for c in checks if c.status == "failed" and c.case.id not in expected]
    if surprises or unexpected_passes(checks, expected):
        return 1
    return 0 if any(c.status != "unsupported" for c in checks) else 2
