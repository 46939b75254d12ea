"""The figures of the score over generated mistakes, as text and as a document."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from loko_ref.conformance.assessment.generated import FORMS, mistakes
from loko_ref.conformance.assessment.reach import Reach
from loko_ref.conformance.assessment.verdict import outcome
from loko_ref.conformance.cases.registry import Case
from loko_ref.errors import InputError
from loko_ref.files.documents import document
from loko_ref.files.reading import read_bytes
from loko_ref.files.strict_json import read_json

CAUGHT, NAMED, BOTH_NAMED, WRONG = 0.95, 0.75, 0.6, 0.01
"""Least share of the mistakes that are caught, are named, of double ones whose both parts are
named; most that may be named wrongly."""

VERDICTS = ("named", "in part", "wrong", "unnamed")
"""Verdicts on what is caught: named by equivalent formulas; some of its wrong quantities or, of two
mistakes, one; by a formula that is another; not at all (or in less than half of what failed)."""


def scored(
    count: int,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    double: bool = False,
    done: Sequence[Mapping[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Yield outcome after outcome, until `count` mistakes have changed a number.

    Parameters
    ----------
    count : int
        Of mistakes that change a number.
    cases : sequence of Case
        Of float64, to choose from.
    double : bool
        Whether two formulas are changed at once.
    done : sequence of mapping
        The first outcomes, from an earlier run of the same seed.
    """
    reach = Reach(cases)
    changed = sum(one["status"] == "changed" for one in done)
    drawing = islice(mistakes(seed, double, reach), len(done), None)
    while changed < count and (mistake := next(drawing, None)) is not None:
        found = outcome(mistake, reach, seed)
        changed += found["status"] == "changed"
        yield found


def summary(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count outcomes: by form the verdicts, and these by kind of change and by formula."""
    status = Counter(one["status"] for one in outcomes)
    keys = ("raised", "equivalent", "changed")
    found: dict[str, Any] = {"drawn": len(outcomes), **{key: status[key] for key in keys}}
    for form in FORMS:
        rows = [(one, one["forms"][form]) for one in outcomes if form in one["forms"]]
        counts = Counter(row["verdict"] for _, row in rows)
        tables: dict[str, dict[str, Counter[str]]] = {"kind": {}, "formula": {}}
        for one, row in rows:
            for change in one["changes"]:
                for by, table in tables.items():
                    table.setdefault(change[by], Counter())[row["verdict"]] += 1
        found[form] = {
            "mistakes": len(rows),
            "caught": len(rows) - counts["missed"],
            **{key: counts[key] for key in VERDICTS},
            **{
                f"by_{by}": {k: dict(table[k]) for k in sorted(table)}
                for by, table in tables.items()
            },
        }
    return found


def good(found: Mapping[str, Any], double: bool) -> bool:
    """Return whether a summary meets what is promised of both forms."""
    return all(
        one["caught"] >= CAUGHT * one["mistakes"]
        and one["named"] >= (BOTH_NAMED if double else NAMED) * one["mistakes"]
        and one["wrong"] <= WRONG * one["mistakes"]
        for one in (found[form] for form in FORMS)
    )


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Write a summary as text."""
    yield (
        f"drawn {found['drawn']}: {found['changed']} change a number, {found['equivalent']} are "
        f"equivalent, {found['raised']} raise, run out of time or return another shape"
    )
    for form in FORMS:
        one = found[form]
        parts = [f"{key} {_share(one[key], one['mistakes'])}" for key in ("caught", *VERDICTS)]
        yield f"returning {form}: {one['mistakes']} mistakes, {', '.join(parts)}"
        for by in ("kind", "formula"):
            for key, row in one[f"by_{by}"].items():
                if by == "kind" or set(row) - {"named"}:
                    counts = ", ".join(f"{row[k]} {k}" for k in (*VERDICTS, "missed") if k in row)
                    yield f"    {by} {key}: {counts}"


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else str(part)


def known(path: Path, what: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the outcomes that a file holds of the same run; none of any other.

    Parameters
    ----------
    path : Path
        What ``--json`` names.
    what : mapping
        The run, as :func:`run_of` describes it.
    """
    if not path.is_file():
        return []
    try:
        found = read_json(path, "--json")
    except InputError:
        return []  # another file: it is replaced, as by every command
    same = isinstance(found, dict) and all(found.get(key) == what[key] for key in what)
    return list(found["outcomes"]) if same else []


def run_of(seed: int, double: bool, cases: Sequence[Case]) -> dict[str, Any]:
    """Describe a run: its outcomes depend on this alone, and on numpy.

    ``code`` is a digest of the textbook and the kit.
    """
    root = Path(__file__).parents[2]
    digest = hashlib.sha256("\n".join(case.id for case in cases).encode())
    for part in ("textbook", "conformance"):
        for file in sorted((root / part).rglob("*.py")):
            digest.update(read_bytes(file))
    return {"seed": seed, "double": double, "cases": len(cases), "code": digest.hexdigest()[:16]}


def as_json(what: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Build the document ``loko-ref/generated/1``."""
    return document("generated", {**what, "summary": summary(outcomes), "outcomes": list(outcomes)})
