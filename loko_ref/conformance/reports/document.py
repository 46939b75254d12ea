"""The report as JSON, and one failed check in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loko_ref.conformance.cases.digest import catalogue_digest
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.diagnose.baseline import Changes
from loko_ref.conformance.diagnose.coverage import Coverage, citation, coverage
from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.diagnose.search.relation import observed
from loko_ref.conformance.engine import Check, outcome, summarise
from loko_ref.conformance.judge.compare import Divergence
from loko_ref.conformance.judge.tolerance import EXPLANATION, unit
from loko_ref.files.documents import document
from loko_ref.files.writing import write_bytes

NAMED = 8
"""LoRA factors that a failure names."""


def _number(value: float | str | None) -> float | str | None:
    """JSON has no NaN and no infinity: they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _divergence(d: Divergence) -> dict[str, Any]:
    return {
        "quantity": d.quantity,
        "index": list(d.index),
        "expected": _number(d.expected),
        "got": _number(d.got),
        "ratio": d.ratio if math.isfinite(d.ratio) else None,
        "labels": list(d.labels),
        **({"entry": d.entry, "factors": list(d.factors)} if d.entry else {}),
    }


def _first(check: Check) -> dict[str, Any] | None:
    if check.divergence is not None:
        return _divergence(check.divergence)
    if check.finding is not None and check.finding.quantity is not None:
        f = check.finding
        return {
            "quantity": f.quantity,
            "index": None if f.index is None else list(f.index),
            "expected": _number(f.expected),
            "got": _number(f.got),
            "ratio": None,
            "labels": list(check.case.operation.labels(str(f.quantity), check.case.options)),
        }
    return None


def how_found(case: Case) -> str:
    """Return how a case's units of error were computed.  [TOL-1, TOL-4, TOL-5]."""
    return next(iter(unit(case).values())).how


def _forced(check: Check) -> dict[str, Any]:
    """Report the forced walk of a failed run."""
    forced = check.forced
    assert forced is not None
    walked = replace(
        check, divergences=(forced.divergence,) if forced.divergence else (), finding=forced.finding
    )
    return {"steps": forced.steps, "first_divergence": _first(walked), "text": forced.text}


def _mistake(mistake: Mistake) -> dict[str, Any]:
    return {
        "id": mistake.mutant.id,
        "name": mistake.mutant.name,
        "explanation": mistake.mutant.explanation,
        "look": mistake.mutant.look,
        "size": mistake.size,
        "ratio": mistake.ratio,
        "explained": mistake.explained,
        "contradicted": mistake.contradicted,
        "alike": list(mistake.alike),
    }


def as_json(
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    expected: Mapping[str, str] | None = None,
    found: Coverage | None = None,
    changes: Changes | None = None,
    precision: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Build the report ``loko-ref/verify/2``.

    ``divergences`` of a check are all quantities that are wrong given their parents, and
    ``first_divergence`` is the first; it is null for a check that did not fail by a quantity;
    ``ratio`` is null where the number that came is not finite, or the form is wrong.
    ``not_judged`` are quantities whose parents are wrong and outside the domain of their formula.
    ``amplified`` is information: every quantity follows from its parents, and this one is off
    along the whole route. ``imprecise`` is the algorithm that explains all that is off, or the
    stated ``precision``.
    ``mistakes`` of a failed check are the known ones that reproduce it, most likely first; where
    none does, the list is empty, and ``observed`` states where the first wrong quantity is off, and
    which plain relation to what is right it has, or which are ruled out.
    ``status`` is by the numbers alone, ``outcome`` in the light of the expected failures
    (id -> reason), and ``verdict`` that of the whole run. ``coverage`` is what the run could
    reveal, and ``changes`` what changed since an earlier report, null without one.
    """
    named, expected = mistakes or {}, expected or {}
    summary, found = summarise(checks, expected), found or coverage(checks)
    content = {
        "catalogue": CATALOGUE,
        "catalogue_digest": catalogue_digest(),
        "citation": citation(found, summary) or None,
        "target": target,
        "tolerance": EXPLANATION,
        "notes": list(notes),
        "precision": dict(precision or {}),
        "verdict": {
            "outcome": summary.verdict,
            "text": summary.text,
            "exit_code": summary.exit_code,
            "expected_failures": summary.expected_failures,
            "unexpected_passes": summary.unexpected_passes,
        },
        "summary": {
            "ran": summary.ran,
            "passed": summary.passed,
            "failed": summary.failed,
            "imprecise": summary.imprecise,
            "unsupported": summary.unsupported,
        },
        "coverage": found.as_json(),
        "changes": None if changes is None else changes.as_json(),
        "checks": [
            {
                "id": check.case.id,
                "operation": check.case.operation.name,
                "status": check.status,
                "outcome": outcome(check.case.id, check.status, expected),
                "expected_failure": expected.get(check.case.id),
                "first_divergence": _first(check),
                "divergences": [_divergence(d) for d in check.divergences],
                "not_judged": list(check.unjudged),
                "amplified": None if check.amplified is None else _divergence(check.amplified),
                "imprecise": None if check.imprecise is None else vars(check.imprecise),
                "finding": None
                if check.finding is None
                else {"kind": check.finding.kind, "message": check.finding.message},
                "reason": check.reason,
                "covers": list(check.case.recipe.covers),
                "text": check.case.recipe.text,
                **({"teacher_forced": _forced(check)} if check.forced is not None else {}),
                **(
                    {"mistakes": [_mistake(m) for m in named.get(check.case.id, ())]}
                    if check.status == "failed"
                    else {}
                ),
                **(
                    {"observed": observed(check)}
                    if check.status == "failed"
                    and check.divergence is not None
                    and not named.get(check.case.id)
                    else {}
                ),
                "quantities": list(check.quantities),
                "worst_ratio": check.worst if math.isfinite(check.worst) else None,
                "unit": None if check.status == "unsupported" else how_found(check.case),
            }
            for check in checks
        ],
    }
    return document("verify", content)


def write_json(path: str | Path, document: Any, argument: str = "--json") -> None:
    """Write a document as JSON, by :func:`loko_ref.files.writing.write_bytes`."""
    text = json.dumps(document, indent=1, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(), argument)


def _index(index: tuple[int, ...] | None) -> str:
    return "" if not index else "[" + ", ".join(map(str, index)) + "]"


def failure(check: Check) -> str:
    """One failed check in plain words.

    Returns
    -------
    str
        The first quantity that is off, where, expected, got, how far; or the finding.
    """
    if check.finding is not None:
        return check.finding.message
    assert check.divergence is not None
    return f"first off: {written(check.case, check.divergence)}"


def written(case: Case, d: Divergence) -> str:
    """Write one wrong quantity: where, expected, got, how far, and its labels."""
    operation = case.operation
    place = f"{d.quantity}{_index(d.index)}"
    if operation.stepwise:
        place = f"step {d.index[0]}, {d.quantity}{_index(d.index[1:])}"
    digits = 17 if case.dtype == "float64" else 9
    off = "is not finite" if not math.isfinite(d.ratio) else f"{d.ratio:.3g} times its tolerance"
    labels = " ".join(f"[{label}]" for label in d.labels)
    entry = ""
    if d.entry:
        more = "" if len(d.factors) <= NAMED else f" and {len(d.factors) - NAMED} more"
        entry = f", at {d.entry}; off in {', '.join(d.factors[:NAMED])}{more}"
    return (
        f"{place}: expected {d.expected:.{digits}g}, got {d.got:.{digits}g}: {off}  {labels}{entry}"
    )
