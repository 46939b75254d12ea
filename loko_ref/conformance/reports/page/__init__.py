"""The report as one self-contained HTML page, which asks the network for nothing.

A kind of failure has one card, on the check that the terminal shows: the formula found beside the
right one, the quantity as matrices, and folded below them the walk and the other checks. Without
scripts it lacks the filter and the switch of light and dark, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.conformance.diagnose.groups import Group, brief, group
from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import (
    EXPECTED_FAILURE,
    FAILED,
    IMPRECISE,
    UNEXPECTED_PASS,
    Check,
    outcome,
    summarise,
)
from loko_ref.conformance.judge.answer import NOT_OFFERED
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.judge.tolerance import EXPLANATION, expected
from loko_ref.conformance.reports.document import failure
from loko_ref.conformance.reports.formulas import pairs, right, title
from loko_ref.conformance.reports.page.drawing import as_table, heat_map, matrices
from loko_ref.conformance.reports.text import amplified, command, further, reproduce, unnamed
from loko_ref.files.derivations import derivations
from loko_ref.files.pages import prose, render

__all__ = ["CARDS", "MAPS", "as_html"]

CARDS = 24
"""Kinds of failure of a section that have a card; the others are folded, a line each."""

EQUATION = 80
"""Characters of an equation that has a place beside something else."""

MAPS = 120_000
"""Characters of all heat maps; cards beyond have none."""


def _walk(check: Check) -> list[dict[str, Any]]:
    """List the outputs in dataflow order with what was found of each; of a run, at its step."""
    found = ratios(check.case, check.outputs) if check.outputs else {}
    first = check.divergence
    if first is not None and check.case.operation.stepwise:
        found = {name: ratio[first.index[0]] for name, ratio in found.items()}
    finding = check.finding.quantity if check.finding is not None else None
    wrong = {d.quantity for d in check.divergences}
    steps = []
    for output in check.case.operation.outputs:
        if output.name not in expected(check.case):
            continue  # of another option than this case's
        worst = float(np.max(found[output.name], initial=0.0)) if output.name in found else None
        mark = "none"
        text = "not judged" if output.name in check.outputs else "not returned"
        if worst is not None:
            mark = "off" if output.name in wrong or worst > 1 else "good"
            text = f"{worst:.3g} times its tolerance" if math.isfinite(worst) else "is not finite"
            if worst > 1 and output.name not in wrong:
                state = "is not judged" if output.name in check.unjudged else "follows"
                text += f"; {state} from the quantities before it"
        if finding == output.name:
            mark, text = "first", "its form is wrong"
        elif first is not None and first.quantity == output.name:
            mark = "first"
        elif check.finding is not None and worst is None:
            text = "not compared"
        sign = "✓" if mark == "good" else "" if mark == "none" else "✗"
        if mark == "off" and output.name not in wrong:
            sign = "↳"
        formula = right(check.case, output.name).removeprefix(output.name).lstrip(" =:")
        step = {"output": output, "mark": mark, "sign": sign, "formula": formula, "found": text}
        steps.append(step)
    return steps


def _element(check: Check) -> dict[str, Any] | None:
    """Write out the offending element."""
    d = check.divergence
    if d is None:
        return None
    digits = 17 if check.case.dtype == "float64" else 9
    index, step = d.index, ""
    if check.case.operation.stepwise:
        step, index = f"step {d.index[0]}, ", d.index[1:]
    return {
        "place": f"{step}{d.quantity}" + (f"[{', '.join(map(str, index))}]" if index else ""),
        "expected": f"{d.expected:.{digits}g}",
        "got": f"{d.got:.{digits}g}",
        "ratio": f"{d.ratio:.3g}" if math.isfinite(d.ratio) else "not finite",
        "entry": d.entry,
    }


def _operations(checks: Sequence[Check], known: Mapping[str, str]) -> list[dict[str, Any]]:
    table, anything = [], summarise(checks, known).ran
    for name in dict.fromkeys(check.case.operation.name for check in checks):
        part = [check for check in checks if check.case.operation.name == name]
        counts = summarise(part, known)
        worst = max((c.worst for c in part if c.status != "unsupported"), default=0.0)
        reasons = dict.fromkeys(str(c.reason) for c in part if c.status == "unsupported")
        if set(reasons) == {NOT_OFFERED} and not counts.ran and anything:
            continue
        marks = {"failed": "wrong", "as expected": "warn", "passed": "good"}
        mark = marks.get(counts.verdict, "dim")
        shown = f"{worst:.2g}" if counts.ran else ""
        row = {"name": name, "counts": counts, "worst": shown, "mark": mark}
        table.append({**row, "reasons": list(reasons)})
    return table


def _by_operation(checks: Sequence[Check]) -> list[tuple[str, list[Check]]]:
    """Put checks of one operation together, in the order run."""
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(check.case.operation.name, []).append(check)
    return list(found.items())


def _equation(check: Check, quantity: str | None) -> str:
    """Return the equation of an output, where it is one and no description."""
    text = "" if quantity is None else right(check.case, quantity)
    return text if len(text) <= EQUATION else ""


def _card(one: Group, target: str, known: Mapping[str, str]) -> dict[str, Any]:
    """Collect what the card of a kind of failure shows."""
    check, mistake = one.shown, one.mistake
    drawn, d = matrices(check), check.divergence
    formulas, *others = pairs(one)
    first = d or check.finding
    quantity = None if first is None else first.quantity
    labels = () if quantity is None else check.case.operation.labels(quantity, check.case.options)
    return {
        "check": check,
        "count": len(one.checks),
        "title": title(one),
        "brief": brief(check),
        "mistake": mistake,
        "pair": formulas,
        "pairs": others,
        "equation": _equation(check, quantity),
        "text": failure(check),
        "element": _element(check),
        "labels": labels,
        "matrices": "" if drawn is None else as_table(drawn),
        "walk": _walk(check),
        "map": None if drawn is None or drawn.whole else heat_map(check),
        "forced": "" if check.forced is None else check.forced.text,
        "expected": known.get(check.case.id, ""),
        "again": reproduce(target, check.case.id),
        "imprecise": "" if check.imprecise is None else check.imprecise.text,
        "others": [line.strip() for line in (*further(check), *unnamed(one))],
        "operations": [(name, len(some)) for name, some in _by_operation(one.checks)],
        "more": _by_operation([c for c in one.checks if c is not check]),
    }


def _derivations(labels: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return label, title and HTML of the derivations that are cited."""
    known, wanted = derivations(), set(labels)
    cited = [label for label in known if label in wanted]
    return [(label, known[label].title, prose.html(known[label].text, cited)) for label in cited]


def as_html(
    target: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    known: Mapping[str, str] | None = None,
    closing: Sequence[str] = (),
) -> str:
    """Build the page.

    Parameters
    ----------
    mistakes : mapping, optional
        Check id -> known mistakes that reproduce it.
    known : mapping, optional
        Check id -> why it was expected to fail.
    closing : sequence of str
        Lines on the run as a whole: what changed, what it could not reveal, what to cite.

    Raises
    ------
    MissingExtraError
        If the extra ``[cli]`` is not installed.
    """
    named, known = mistakes or {}, known or {}

    def section(heading: str, kind: str) -> dict[str, Any]:
        """Return the cards of the failures of a kind, and what is left beyond CARDS."""
        some = [c for c in checks if outcome(c.case.id, c.status, known) == kind]
        groups = group(some, named, (FAILED, IMPRECISE))
        cards = [_card(one, target, known) for one in groups[:CARDS]]
        drawn = 0
        for card in cards:
            drawn += 0 if card["map"] is None else sum(len(d) for _, d in card["map"].paths)
            card["map"] = card["map"] if drawn <= MAPS else None
        rest = _by_operation([check for one in groups[CARDS:] for check in one.checks])
        key = heading.split()[0].lower()
        return {"heading": heading, "key": key, "cards": cards, "rest": rest}

    sections = [
        section("Failures", FAILED),
        section("Imprecise", IMPRECISE),
        section("Expected failures", EXPECTED_FAILURE),
    ]
    return render(
        __name__,
        "page.html.jinja",
        ["page.css", "matrices.css"],
        ["page.js"],
        why="the HTML report",
        command=command(target),
        summary=summarise(checks, known),
        notes=notes,
        closing=closing,
        operations=_operations(checks, known),
        sections=sections,
        derivations=_derivations(
            label for one in sections for card in one["cards"] for label in card["labels"]
        ),
        brief=brief,
        long=EQUATION,
        passes=[c for c in checks if outcome(c.case.id, c.status, known) == UNEXPECTED_PASS],
        amplified=[(c.case.id, amplified(c)) for c in checks if c.amplified is not None],
        known=known,
        explanation=EXPLANATION,
    )
