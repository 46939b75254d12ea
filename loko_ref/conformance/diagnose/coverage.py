"""What a run could reveal: which known mistakes, and which combinations of LoKO's options.

A case that ran with all its outputs shows every known mistake that it is there for. Where outputs
were not returned, a mistake is visible if it changes one that was, beyond its tolerance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loko_ref import __version__
from loko_ref.conformance.cases.combinations import named
from loko_ref.conformance.cases.digest import catalogue_digest
from loko_ref.conformance.cases.registry import Case, all_cases
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.engine import PASSED, UNSUPPORTED, Check, Summary
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance
from loko_ref.conformance.mistakes.registry import Mutant, all_mutants, evaluate
from loko_ref.textbook.loko import choices

__all__ = ["Coverage", "Missing", "citation", "coverage"]

DIGITS = 16
"""Digits of the catalogue's digest that a citation has; JSON has all."""

NAMED = 6
"""Outputs that a line names."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Outputs of an operation that were not returned, and what they would show.

    Attributes
    ----------
    operation, output : str
        Which one to return.
    mistakes : tuple of str
        Ids of known mistakes that become visible.
    """

    operation: str
    output: str
    mistakes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a run could reveal.

    Attributes
    ----------
    visible : tuple of str
        Ids of the known mistakes that would have failed a check that ran.
    missing : tuple of Missing
        What to return beside what came back, that with most mistakes first.
    not_run : tuple of str
        Ids of those whose cases did not run (not offered, declined, not selected), or raised.
    combinations : tuple of str
        Combinations of LoKO's options with a check that passed, and none that failed.
    possible : int
        Number of valid combinations.
    offered : bool
        Whether ``loko.step`` or ``loko.run`` ran.
    """

    visible: tuple[str, ...]
    missing: tuple[Missing, ...]
    not_run: tuple[str, ...]
    combinations: tuple[str, ...]
    possible: int
    offered: bool

    def as_json(self) -> dict[str, Any]:
        """Return what could be revealed as JSON data."""
        return {
            "visible": len(self.visible),
            "known": len({*self.visible, *self.not_run, *self._hidden}),
            "missing": [{**asdict(one), "mistakes": list(one.mistakes)} for one in self.missing],
            "not_run": list(self.not_run),
            "combinations": {"passed": list(self.combinations), "possible": self.possible},
            "text": self.text,
        }

    @property
    def _hidden(self) -> set[str]:
        return {key for one in self.missing for key in one.mistakes}

    @property
    def text(self) -> str:
        """What it could not reveal, in words; empty where that is nothing.

        Examples
        --------
        >>> one = Missing(operation="kalman.gain", output="S", mistakes=("A", "B"))
        >>> made = {"visible": ("C",), "combinations": (), "possible": 57, "offered": False}
        >>> print(Coverage(missing=(one,), not_run=(), **made).text)
        return S (kalman.gain) too and 2 more known mistakes become visible
        """
        parts = []
        hidden = self._hidden
        if hidden:
            by: dict[str, list[str]] = {}
            for one in self.missing[:NAMED]:
                by.setdefault(one.operation, []).append(one.output)
            names = ", ".join(f"{', '.join(found)} ({key})" for key, found in by.items())
            more = len(self.missing) - NAMED
            names += f", and {more} more outputs (--json lists them)" if more > 0 else ""
            become = "mistakes become" if len(hidden) > 1 else "mistake becomes"
            parts.append(f"return {names} too and {len(hidden)} more known {become} visible")
        if self.not_run:
            total = len(self.visible) + len(hidden) + len(self.not_run)
            parts.append(
                f"{len(self.not_run)} of {total} known mistakes are shown by cases that did not run"
                " or returned nothing"
            )
        return "; ".join(parts)


def _shown(one: Mutant, case: Case) -> Iterator[str]:
    """Yield the outputs of a case that a mistake changes beyond their tolerance, in order."""
    out = evaluate(one, case, one.example)
    for name, bound in tolerance(case).items():
        if out is None or bound is None:
            continue
        wanted = expected(case)[name]
        if name not in out or out[name].shape != wanted.shape:
            yield name
            continue
        with np.errstate(all="ignore"):
            off = ~(np.abs(canonical(case, name, out[name]) - wanted) <= bound)
        if off.any():
            yield name


def coverage(checks: Sequence[Check]) -> Coverage:
    """Find what a run could reveal.

    Parameters
    ----------
    checks : sequence of Check
        The outcomes of cases of the catalogue; others are passed over, and of a recording alone
        nothing is said.
    """
    known = {case.id for case in all_cases()}
    ran = [c for c in checks if c.status != UNSUPPORTED and c.case.id in known]
    answered = [c for c in ran if c.outputs or c.returned]  # others raised, and returned nothing
    mutants = {one.id: one for one in all_mutants()}
    covered = {key for case in all_cases() for key in case.recipe.covers}
    visible: set[str] = set()
    partly: dict[str, list[Check]] = {}
    for check in sorted(answered, key=lambda c: c.case.dtype != "float64"):
        judged = [name for name, bound in tolerance(check.case).items() if bound is not None]
        whole = set(judged) <= set(check.quantities) and check.case.dtype == "float64"
        for key in check.case.recipe.covers:
            if whole:
                visible.add(key)
            else:
                partly.setdefault(key, []).append(check)
    hidden: dict[str, set[tuple[str, str]]] = {}
    for key, some in partly.items():
        if key in visible:
            continue
        for check in some:
            shown = list(_shown(mutants[key], check.case))
            if set(shown) & set(check.quantities):
                visible.add(key)
                hidden.pop(key, None)
                break
            places = {(check.case.operation.name, name) for name in shown}
            hidden.setdefault(key, set()).update(places)
    hidden = {key: places for key, places in hidden.items() if places}
    combinations, possible, offered = _combinations(ran)
    return Coverage(
        visible=tuple(sorted(visible)),
        missing=tuple(_fewest(hidden)),
        not_run=tuple(sorted(covered - visible - hidden.keys())) if ran else (),
        combinations=combinations,
        possible=possible,
        offered=offered,
    )


def _fewest(hidden: Mapping[str, set[tuple[str, str]]]) -> Iterator[Missing]:
    """Yield outputs that show all mistakes, each the one that shows most of what is left."""
    left = dict(hidden)
    while left:
        counts = Counter(place for places in left.values() for place in sorted(places))
        best = min(counts, key=lambda place: (-counts[place], place))
        found = tuple(sorted(key for key, places in left.items() if best in places))
        yield Missing(operation=best[0], output=best[1], mistakes=found)
        left = {key: places for key, places in left.items() if key not in found}


def _combination(o: Mapping[str, Any]) -> str:
    return named({**o, "center": False})


def _combinations(ran: Sequence[Check]) -> tuple[tuple[str, ...], int, bool]:
    """Return the combinations that passed, how many there are, and whether any ran."""
    known = dict.fromkeys(map(_combination, choices()))
    outcomes: dict[str, set[str]] = {}
    for check in ran:
        if check.case.operation.name in ("loko.step", "loko.run"):
            outcomes.setdefault(_combination(check.case.options), set()).add(check.status)
    passed = tuple(key for key in known if outcomes.get(key) == {PASSED})
    return passed, len(known), bool(outcomes)


def citation(found: Coverage, summary: Summary) -> str:
    """Return what may be cited of a run, in one line; empty where nothing ran."""
    if not summary.ran:
        return ""
    word = "not verified" if summary.verdict == "failed" else "verified"
    digest = catalogue_digest().rpartition(":")[2][:DIGITS]
    parts = [f"{word} with loko_ref {__version__}", f"{CATALOGUE} digest {digest}"]
    parts.append(f"{summary.passed} of {summary.ran} checks")
    if found.offered:
        parts.append(f"{len(found.combinations)} of {found.possible} combinations")
    return ", ".join(parts)
