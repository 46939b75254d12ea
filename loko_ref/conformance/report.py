"""What a verification says: JSON for machines, a page in the terminal for people."""

from __future__ import annotations

import json
import math
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loko_ref.conformance.cases import Case
from loko_ref.conformance.naming import Mistake
from loko_ref.conformance.operations import CATALOGUE
from loko_ref.conformance.tolerance import EXPLANATION, unit
from loko_ref.conformance.verify import Check, Summary, summarise
from loko_ref.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA", "as_json", "failure", "print_report", "write_json"]

SCHEMA = "loko-ref/verify/1"


IN_FULL = 3
"""Failures of an operation that are printed with what they hunt and how to repeat them."""


def _number(value: float | str | None) -> float | str | None:
    """JSON has no NaN and no infinity: they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _first(check: Check) -> dict[str, Any] | None:
    if check.divergence is not None:
        d = check.divergence
        return {
            "quantity": d.quantity,
            "index": list(d.index),
            "expected": _number(d.expected),
            "got": _number(d.got),
            "ratio": d.ratio if math.isfinite(d.ratio) else None,
            "labels": list(d.labels),
        }
    if check.finding is not None and check.finding.quantity is not None:
        f = check.finding
        return {
            "quantity": f.quantity,
            "index": None if f.index is None else list(f.index),
            "expected": _number(f.expected),
            "got": _number(f.got),
            "ratio": None,
            "labels": list(check.case.operation.labels(str(f.quantity))),
        }
    return None


def how_found(case: Case) -> str:
    """Tell how a case's units of error came about.  [TOL-1, BALL-5]."""
    return next(iter(unit(case).values())).how


def _forced(check: Check) -> dict[str, Any]:
    """Report the forced walk of a failed run."""
    forced = check.forced
    assert forced is not None
    walked = replace(check, divergence=forced.divergence, finding=forced.finding)
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
    }


def as_json(
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
) -> dict[str, Any]:
    """Build the report ``loko-ref/verify/1``.

    ``first_divergence`` is null for a check that did not fail by a quantity; ``ratio`` is null
    where the number that came is not finite, or the form is wrong. ``mistakes`` of a failed check
    are the known ones that reproduce it, most likely first; where none does, the list is empty.
    """
    named = mistakes or {}
    summary = summarise(checks)
    return {
        "schema": SCHEMA,
        "catalogue": CATALOGUE,
        "target": target,
        "tolerance": EXPLANATION,
        "notes": list(notes),
        "summary": {
            "ran": summary.ran,
            "passed": summary.passed,
            "failed": summary.failed,
            "unsupported": summary.unsupported,
        },
        "checks": [
            {
                "id": check.case.id,
                "operation": check.case.operation.name,
                "status": check.status,
                "first_divergence": _first(check),
                "finding": None
                if check.finding is None
                else {"kind": check.finding.kind, "message": check.finding.message},
                "reason": check.reason,
                "hunts": check.case.hunts,
                **({"teacher_forced": _forced(check)} if check.forced is not None else {}),
                **(
                    {"mistakes": [_mistake(m) for m in named.get(check.case.id, ())]}
                    if check.status == "failed"
                    else {}
                ),
                "quantities": list(check.quantities),
                "worst_ratio": check.worst if math.isfinite(check.worst) else None,
                "unit": None if check.status == "unsupported" else how_found(check.case),
            }
            for check in checks
        ],
    }


def write_json(path: str | Path, document: Any) -> None:
    """Write JSON beside its place, then move it there: a reader never sees half a file."""
    place = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.name, suffix=".part")
    except OSError as error:
        raise InputError(
            "--json", str(path), "a file in a folder that can be written", error.strerror or "?"
        ) from None
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1, allow_nan=False)
        stream.write("\n")
    os.chmod(name, 0o644)
    os.replace(name, place)


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
    d = check.divergence
    assert d is not None
    operation = check.case.operation
    place = f"{d.quantity}{_index(d.index)}"
    if operation.stepwise:
        place = f"step {d.index[0]}, {d.quantity}{_index(d.index[1:])}"
    digits = 17 if check.case.dtype == "float64" else 9
    off = "is not finite" if not math.isfinite(d.ratio) else f"{d.ratio:.3g} times its tolerance"
    labels = " ".join(f"[{label}]" for label in d.labels)
    entry = f", at {d.entry}" if d.entry else ""
    return (
        f"first off: {place}: expected {d.expected:.{digits}g}, got {d.got:.{digits}g}: {off}  "
        f"{labels}{entry}"
    )


def print_report(
    console: Console,
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
) -> None:
    """Print a table by operation, each failure, what reproduces it, and how tolerances arose."""
    from rich.markup import escape
    from rich.table import Table

    summary = summarise(checks)
    table = Table(title=f"loko-ref verify {escape(target)}", title_justify="left")
    table.add_column("operation", no_wrap=True)
    for head in ("ran", "passed", "failed", "unsupported", "error/tol."):
        table.add_column(head, justify="right")
    for name in dict.fromkeys(check.case.operation.name for check in checks):
        part = [check for check in checks if check.case.operation.name == name]
        counts = summarise(part)
        worst = max((c.worst for c in part if c.status != "unsupported"), default=0.0)
        mark = "red" if counts.failed else "green" if counts.ran else "yellow"
        table.add_row(
            f"[{mark}]{name}[/]",
            *map(str, (counts.ran, counts.passed, counts.failed, counts.unsupported)),
            f"{worst:.2g}" if any(c.quantities for c in part) else "",
        )
    console.print(table)
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    shown: dict[str, int] = {}
    for check in (c for c in checks if c.status == "failed"):
        name = check.case.operation.name
        shown[name] = shown.get(name, 0) + 1
        console.print(f"[red]FAILED[/] {escape(check.case.id)}", soft_wrap=True)
        console.print(f"  {escape(failure(check))}", soft_wrap=True, highlight=False)
        if check.forced is not None:
            console.print(f"  {escape(check.forced.text)}", soft_wrap=True, highlight=False)
        for mistake in (mistakes or {}).get(check.case.id, ())[:2]:
            console.print(
                f"  reproduced by [bold]{mistake.mutant.id}[/]: {escape(mistake.text)}",
                soft_wrap=True,
            )
        if shown[name] <= IN_FULL:
            console.print(f"  this case hunts: {escape(check.case.hunts)}", soft_wrap=True)
            quoted = target if target.startswith(("--cmd ", "--trace ")) else shlex.quote(target)
            again = f"loko-ref verify {quoted} --only {shlex.quote(check.case.id)}"
            console.print(f"  alone: {escape(again)}", soft_wrap=True, highlight=False)
    if mistakes is not None and summary.failed:
        _print_mistakes(console, mistakes)
    reasons: dict[tuple[str, str], int] = {}
    for check in checks:
        if check.status == "unsupported":
            key = (check.case.operation.name, str(check.reason))
            reasons[key] = reasons.get(key, 0) + 1
    for (name, reason), count in reasons.items():
        text = f"{name} ({count}): {reason}"
        console.print(f"[yellow]unsupported[/] {escape(text)}", soft_wrap=True)
    console.print(f"\n{EXPLANATION}", style="dim")
    ran = [check for check in checks if check.status != "unsupported"]
    for how, count in Counter(how_found(check.case) for check in ran).most_common():
        console.print(f"{count} cases: {how}", style="dim", highlight=False)
    console.print(_verdict(summary))


def _print_mistakes(console: Console, mistakes: Mapping[str, Sequence[Mistake]]) -> None:
    """Name the mistakes that explain most, each once."""
    from rich.markup import escape

    leading: dict[str, Mistake] = {}
    for fits in mistakes.values():
        if fits:
            leading.setdefault(fits[0].mutant.id, fits[0])
    for mistake in sorted(leading.values(), key=lambda m: m.contradicted - m.explained):
        m = mistake.mutant
        count = f"it reproduces {mistake.explained} of {mistake.failed} wrong results"
        console.print(f"\n[bold]{m.id}[/] {escape(mistake.text)}: {count}", soft_wrap=True)
        console.print(f"  {escape(m.explanation)}", soft_wrap=True)
        console.print(f"  look at: {escape(m.look)}", soft_wrap=True, highlight=False)
    unnamed = sum(not fits for fits in mistakes.values())
    if unnamed:
        console.print(f"\nNo known mistake reproduces {unnamed} of the wrong results.")


def _verdict(summary: Summary) -> str:
    counts = (
        f"{summary.ran} ran, {summary.passed} passed, {summary.failed} failed, "
        f"{summary.unsupported} unsupported"
    )
    if summary.failed:
        return f"[bold red]WRONG[/] {counts}"
    if not summary.ran:
        return f"[bold yellow]NOTHING RAN[/] {counts}"
    return f"[bold green]all that ran passed[/]: {counts}"
