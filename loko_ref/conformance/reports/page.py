"""The report as one self-contained HTML page: no network, no script.

A kind of failure has one card, on the check that the terminal shows; the others are folded below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from loko_ref.arrays import Array
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
from loko_ref.conformance.reports.text import (
    amplified,
    command,
    further,
    reproduce,
    unnamed,
)
from loko_ref.errors import extras

__all__ = ["CARDS", "CELLS", "COLOURS", "MAPS", "HeatMap", "as_html", "heat_map"]

CARDS = 12
"""Kinds of failure that have a card; the others are folded, a line each."""

CELLS = 64
"""Cells a side of a heat map at most; beyond, a cell shows the worst of a block."""

MAPS = 120_000
"""Characters of all heat maps; cards beyond have none."""

COLOURS = (
    (-3.0, "#2c5f8a", "below 0.001"),
    (-1.0, "#6ea6cd", "0.001 to 0.1"),
    (0.0, "#c9dff0", "0.1 to 1: within"),
    (1.0, "#fdd49e", "1 to 10: off"),
    (3.0, "#fc8d59", "10 to 1000"),
    (6.0, "#d7301f", "1000 to 1e6"),
    (9.0, "#8c0d0d", "1e6 to 1e9"),
    (math.inf, "#3d0000", "beyond 1e9, or not finite"),
)
"""Upper end of log10(error/tolerance), colour, legend."""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """What the template draws of one quantity.

    Attributes
    ----------
    rows, columns : int
        Size in cells.
    paths : tuple of (str, str)
        Colour and outline of the cells that have it, in units of a cell.
    mark : tuple of int
        Row and column of the cell with the first element that is off.
    caption : str
        What rows and columns are.
    """

    rows: int
    columns: int
    paths: tuple[tuple[str, str], ...]
    mark: tuple[int, int]
    caption: str


def _plane(value: Array, index: tuple[int, ...], stepwise: bool) -> tuple[Array, Any, str]:
    """Lay a quantity out as a matrix; return it, the place of the element, and what it shows."""
    if value.ndim <= 1 and not stepwise:
        flat = value.reshape(-1)
        at = index[0] if index else 0
        if flat.size <= CELLS:
            return flat[None, :], (0, at), "one row: the elements in order"
        rows = -(-flat.size // CELLS)
        filled = np.full(rows * CELLS, -np.inf)
        filled[: flat.size] = flat
        place = divmod(at, CELLS)
        return filled.reshape(rows, CELLS), place, f"the elements in order, {CELLS} a row"
    if stepwise and value.ndim <= 2:
        at = index[1] if len(index) > 1 else 0
        return value.reshape(len(value), -1), (index[0], at), "rows: steps; columns: elements"
    lead = index[: value.ndim - 2]
    caption = "rows and columns as the quantity's"
    if lead:
        where = f"step {lead[0]}" if stepwise else f"index {list(lead)}"
        caption += f", at {where}"
    return value[lead], index[-2:], caption


def heat_map(check: Check) -> HeatMap | None:
    """Draw log10(error/tolerance) of the first quantity that is off; None where there is none."""
    d = check.divergence
    if d is None:
        return None
    ratio = ratios(check.case, check.outputs)[d.quantity]
    plane, (row, column), caption = _plane(ratio, d.index, check.case.operation.stepwise)
    tall, wide = (-(-size // CELLS) for size in plane.shape)
    if tall > 1 or wide > 1:
        caption += f"; a cell is the worst of a block of {tall} x {wide}"
        rows, columns = -(-plane.shape[0] // tall), -(-plane.shape[1] // wide)
        padded = np.full((rows * tall, columns * wide), -np.inf)
        padded[: plane.shape[0], : plane.shape[1]] = plane
        plane = padded.reshape(rows, tall, columns, wide).max(axis=(1, 3))
    drawn: dict[str, list[str]] = {}
    for i, cells in enumerate(plane):
        start = 0
        colours = [_colour(float(value)) for value in cells]
        for j in range(1, len(colours) + 1):  # neighbours of one colour are one rectangle
            if j == len(colours) or colours[j] != colours[start]:
                if colours[start]:
                    run = f"M{start} {i}h{j - start}v1h{start - j}z"
                    drawn.setdefault(colours[start], []).append(run)
                start = j
    return HeatMap(
        rows=plane.shape[0],
        columns=plane.shape[1],
        paths=tuple((colour, "".join(runs)) for colour, runs in drawn.items()),
        mark=(row // tall, column // wide),
        caption=caption,
    )


def _colour(ratio: float) -> str:
    """Pick the colour of error/tolerance; nothing for a cell beyond the quantity (-inf)."""
    if ratio < 0:
        return ""
    height = math.log10(ratio) if ratio > 0 else -math.inf
    return next(colour for top, colour, _ in COLOURS if height <= top)


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
                came = "is not judged" if output.name in check.unjudged else "follows"
                text += f"; {came} from what came before it"
        if finding == output.name:
            mark, text = "first", "its form is wrong"
        elif first is not None and first.quantity == output.name:
            mark = "first"
        elif check.finding is not None and worst is None:
            text = "not compared"
        steps.append({"output": output, "mark": mark, "found": text})
    return steps


def _element(check: Check) -> dict[str, str] | None:
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
        "error": f"{abs(d.got - d.expected):.3g}",
        "ratio": f"{d.ratio:.3g}" if math.isfinite(d.ratio) else "not finite",
        "labels": " ".join(f"[{label}]" for label in d.labels),
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
        marks = {"failed": "off", "as expected": "off", "passed": "good"}
        mark = marks.get(counts.verdict, "none")
        shown = f"{worst:.2g}" if counts.ran else ""
        row = {"name": name, "counts": counts, "worst": shown, "mark": mark}
        table.append({**row, "reasons": list(reasons)})
    return table


def _card(
    one: Group, target: str, named: Mapping[str, Sequence[Mistake]], known: Mapping[str, str]
) -> dict[str, Any]:
    """Collect what the card of a kind of failure shows."""
    check = one.shown
    return {
        "check": check,
        "text": failure(check),
        "walk": _walk(check),
        "element": _element(check),
        "map": heat_map(check),
        "forced": "" if check.forced is None else check.forced.text,
        "mistakes": named.get(check.case.id, ()),
        "expected": known.get(check.case.id, ""),
        "again": reproduce(target, check.case.id),
        "imprecise": "" if check.imprecise is None else check.imprecise.text,
        "others": [line.strip() for line in (*further(check), *unnamed(one))],
        "more": [c for c in one.checks if c is not check],
    }


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
    target : str
        What was verified.
    checks : sequence of Check
        The outcomes.
    notes : sequence of str
        Remarks on the implementation.
    mistakes : mapping, optional
        Check id -> known mistakes that reproduce it.
    known : mapping, optional
        Check id -> why it was expected to fail.
    closing : sequence of str
        Lines on the run as a whole: what changed, what it could not reveal, what to cite.

    Raises
    ------
    MissingExtraError
        If jinja2 is not installed.
    """
    jinja2 = extras.load("jinja2", "the HTML report")
    named, known = mistakes or {}, known or {}

    def section(kind: str) -> tuple[list[dict[str, Any]], list[Check]]:
        """Return the cards of the failures of a kind, and what is left beyond CARDS."""
        some = [c for c in checks if outcome(c.case.id, c.status, known) == kind]
        groups = group(some, named, (FAILED, IMPRECISE))
        cards = [_card(one, target, named, known) for one in groups[:CARDS]]
        drawn = 0
        for card in cards:
            drawn += 0 if card["map"] is None else sum(len(d) for _, d in card["map"].paths)
            card["map"] = card["map"] if drawn <= MAPS else None
        return cards, [check for one in groups[CARDS:] for check in one.checks]

    leading: dict[str, Mistake] = {}
    for fits in named.values():
        if fits:
            leading.setdefault(fits[0].mutant.id, fits[0])
    source = (
        files("loko_ref.conformance.reports")
        .joinpath("page.html.jinja")
        .read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page: str = environment.from_string(source).render(
        command=command(target),
        summary=summarise(checks, known),
        notes=notes,
        closing=closing,
        operations=_operations(checks, known),
        sections=[
            (heading, *section(kind))
            for heading, kind in (
                ("Failures", FAILED),
                ("Imprecise", IMPRECISE),
                ("Expected failures", EXPECTED_FAILURE),
            )
        ],
        brief=brief,
        leading=sorted(leading.values(), key=lambda m: m.contradicted - m.explained),
        passes=[c for c in checks if outcome(c.case.id, c.status, known) == UNEXPECTED_PASS],
        amplified=[(c.case.id, amplified(c)) for c in checks if c.amplified is not None],
        known=known,
        colours=COLOURS,
        explanation=EXPLANATION,
    )
    return page
