"""What changed since an earlier report: checks that fail now, are fixed, or fail otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import FAILED, UNSUPPORTED, Check
from loko_ref.errors import InputError, printable, shown
from loko_ref.files.documents import SCHEMAS
from loko_ref.files.strict_json import read_json

__all__ = ["Changes", "compare", "read"]

LIMIT = 64 * 2**20
"""Most bytes of a report."""

LONGEST = 200
"""Most characters of an id that is printed."""

NAMED = 6
"""Ids that a line names."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed since an earlier report.

    Attributes
    ----------
    since : mapping
        Of the earlier report: ``file``, ``target``, ``loko_ref`` and ``catalogue_digest``, None
        where it has none.
    failing, fixed : tuple of str
        Ids that fail now and did not, that failed and pass now.
    first_quantity : mapping of str to (str or None, str or None)
        Ids that fail by another first quantity: which it was, which it is.
    mistake : mapping of str to (str or None, str or None)
        Ids whose failure has another name: the id of the known mistake that was, that is.
    not_run, run : tuple of str
        Ids that ran and are declined now, and the reverse (those that fail are in `failing`).
    new, gone : tuple of str
        Ids that the earlier report has not, that are not in this one.
    """

    since: Mapping[str, str | None]
    failing: tuple[str, ...]
    fixed: tuple[str, ...]
    first_quantity: Mapping[str, tuple[str | None, str | None]]
    mistake: Mapping[str, tuple[str | None, str | None]]
    not_run: tuple[str, ...]
    run: tuple[str, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield the changes in words, one kind a line."""
        kinds = (
            ("newly failing", self.failing),
            ("fixed", self.fixed),
            ("first off is another quantity", _arrows(self.first_quantity)),
            ("another mistake is named", _arrows(self.mistake)),
            ("ran, and is declined now", self.not_run),
            ("was declined, and runs now", self.run),
            ("new in this run", self.new),
            ("no longer in this run", self.gone),
        )
        found = [(what, ids) for what, ids in kinds if ids]
        yield f"since {self.since['file']}: {'' if found else 'nothing changed'}".rstrip()
        for what, ids in found:
            more = f", and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
            named = ", ".join(printable(key, LONGEST) for key in ids[:NAMED])
            yield f"  {what} ({len(ids)}): {named}{more}"

    def as_json(self) -> dict[str, Any]:
        """Return the changes as JSON data."""
        found: dict[str, Any] = {"since": dict(self.since)}
        found |= {k: list(v) for k, v in asdict(self).items() if k != "since"}
        for name, changed in (("first_quantity", self.first_quantity), ("mistake", self.mistake)):
            found[name] = [{"id": k, "before": a, "now": b} for k, (a, b) in changed.items()]
        return found


def _arrows(changed: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    return [f"{key} ({old or 'none'}, now {new or 'none'})" for key, (old, new) in changed.items()]


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an earlier report.

    Parameters
    ----------
    path : path-like
        What ``--json`` wrote, or :meth:`Report.to_json`.

    Raises
    ------
    InputError
        If it is damaged, of another version, or no report.
    """
    document = read_json(path, "baseline", limit=LIMIT)
    kind = document.get("schema") if isinstance(document, dict) else None
    where, wanted = f"baseline, {os.fspath(path)}", SCHEMAS["verify"]
    if kind != wanted:
        earlier = isinstance(kind, str) and kind.startswith(wanted.rpartition("/")[0] + "/")
        cause = "written by another version; verify again" if earlier else "another document"
        raise InputError(where, f"schema {shown(kind)}", f"schema {wanted!r}", cause)
    checks = document.get("checks")
    known: set[str] = set()
    for at, check in enumerate(checks if isinstance(checks, list) else [None]):
        key = check.get("id") if isinstance(check, dict) else None
        if not isinstance(key, str) or key in known or not _is_check(check):
            got = f"checks[{at}] {shown(key)}" if isinstance(checks, list) else "no list 'checks'"
            required = "checks with an id of its own, a status, first_divergence and mistakes"
            raise InputError(where, got, required, "a damaged report, or one that was edited")
        known.add(key)
    return dict(document)


def _is_check(check: Mapping[str, Any]) -> bool:
    first, mistakes = check.get("first_divergence"), check.get("mistakes", [])
    return (
        isinstance(check.get("status"), str)
        and (first is None or (isinstance(first, dict) and isinstance(first.get("quantity"), str)))
        and isinstance(mistakes, list)
        and all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in mistakes)
    )


def compare(
    path: str | os.PathLike[str],
    old: Mapping[str, Any],
    checks: Sequence[Check],
    mistakes: Mapping[str, Sequence[Mistake]],
) -> Changes:
    """Compare a run with an earlier report.

    Parameters
    ----------
    path : path-like
        Name of the earlier report.
    old : mapping
        Its content, from :func:`read`.
    checks : sequence of Check
        The outcomes of the run.
    mistakes : mapping of str to sequence of Mistake
        Case id -> known mistakes that reproduce the failure, most likely first.
    """
    before = {check["id"]: check for check in old["checks"]}
    now = {check.case.id: check for check in checks}
    both = [(key, before[key], check) for key, check in now.items() if key in before]
    first: dict[str, tuple[str | None, str | None]] = {}
    names: dict[str, tuple[str | None, str | None]] = {}
    for key, was, check in both:
        if was["status"] == check.status == FAILED:
            found = check.divergence or check.finding
            quantity = None if found is None else found.quantity
            earlier = (was.get("first_divergence") or {}).get("quantity")
            if earlier != quantity:
                first[key] = (earlier, quantity)
            fits = mistakes.get(key) or ()
            name = fits[0].mutant.id if fits else None
            known = was["mistakes"][0]["id"] if was.get("mistakes") else None
            if known != name:
                names[key] = (known, name)

    def between(old_failed: bool, new_failed: bool) -> Iterator[tuple[str, str, str]]:
        for key, was, check in both:
            if (was["status"] == FAILED, check.status == FAILED) == (old_failed, new_failed):
                yield key, was["status"], check.status

    versions = old.get("versions")
    version = versions.get("loko_ref") if isinstance(versions, Mapping) else None
    since = {"target": old.get("target"), "loko_ref": version}
    since["catalogue_digest"] = old.get("catalogue_digest")
    texts = {name: value if isinstance(value, str) else None for name, value in since.items()}
    still = list(between(False, False))
    return Changes(
        since={"file": os.fspath(path), **texts},
        failing=tuple(key for key, _, _ in between(False, True)),
        fixed=tuple(key for key, _, status in between(True, False) if status != UNSUPPORTED),
        first_quantity=first,
        mistake=names,
        not_run=tuple(
            key
            for key, was, status in (*still, *between(True, False))
            if status == UNSUPPORTED != was
        ),
        run=tuple(key for key, was, status in still if was == UNSUPPORTED != status),
        new=tuple(key for key in now if key not in before),
        gone=tuple(key for key in before if key not in now),
    )
