"""Which known mistakes the properties find, and which property finds which; and generated ones.

A mistake is turned into an implementation of every operation, with rounding errors of its own, and
each property that reads one of its formulas is checked on it. No expected value takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings

from loko_ref.conformance.assessment.generated import chosen, differs, mistakes
from loko_ref.conformance.assessment.reach import Reach
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.mistakes.registry import Mutant, as_implementation, dtype_of, functions_by
from loko_ref.properties.running import LARGE, PROFILES
from loko_ref.properties.trial import Declined, Problem, Property, Refuted, Trial, Unsuitable
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

LEAST = 0.9
"""Share of the known mistakes that the properties have to find."""

_UNSEEN: Mapping[str, tuple[str, ...]] = {
    "a smooth function like it: only its values differ, no exact fact of a network": (
        "GELU-TANH",
        "GELU-ERF",
        "GELU-SIGMOID",
    ),
    "a convention at one point, 0, that no drawn network meets": (
        "RELU-JACOBIAN-ONE-AT-ZERO",
        "RELU-JACOBIAN-HALF-AT-ZERO",
    ),
    "the one fact of its size takes alpha = r, where a scale of seven digits is exact": (
        "SCALE-SINGLE",
    ),
    "a query that no key is left to: every drawn text begins with a token": (
        "UNSEEN-UNIFORM",
        "UNSEEN-ALL",
        "UNSEEN-LOWERED-4",
        "UNSEEN-LOWERED-9",
    ),
    "the rows of padding that stands before a text: every drawn text begins with a token": (
        "POSITION-REAL-ALONE",
    ),
    "no fact of a run takes AdamW with a state begun anew at a merge": ("LTE-COUNT-KEPT",),
    "the largest average of squares is the last one where gradients do not shrink": (
        "ADAMW-AMSGRAD",
        "ADAMW-AMSGRAD-CORRECTED",
    ),
    "which head's copy of a layer without LoRA is evaluated is a choice, and in no fact": (
        "LTE-EVAL-COPY-MEAN",
        "LTE-EVAL-COPY-LAST",
    ),
}

UNSEEN: Mapping[str, str] = {one: why for why, ids in _UNSEEN.items() for one in ids}
"""Known mistakes that no property finds: id -> why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One known mistake."""

    mistake: str  # its id
    read: tuple[str, ...]  # the properties that read a formula which it changes
    found: tuple[str, ...]  # those of them that fail


def _wide(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _wide(item) for name, item in value.items()}
    return np.asarray(value, dtype=np.float64)


@cache
def problems(fact: Property) -> tuple[tuple[Problem, frozenset[str]], ...]:
    """Draw a property's problems, each with the formulas that the right code calls on it."""
    drawn: list[Problem] = []
    for small in (True, False):
        some = PROFILES["dev"].max_examples // (2 if fact.operation.startswith(LARGE) else 1)
        profile = settings(PROFILES["dev"], max_examples=some, phases=[Phase.generate])
        profile(given(problem=fact.problems(small))(lambda problem: drawn.append(problem)))()
    called: set[str] = set()

    def noted(name: str, formula: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            called.add(name)
            return formula(*arguments, **keywords)

        return call

    table = {name: noted(name, formula) for name, formula in FORMULA_TABLE.items()}

    def apply(operation: Operation, inputs: Mapping[str, Any], options: Any) -> dict[str, Any]:
        out, dtype = operation.plain(_wide(inputs), options, table, identity), dtype_of(inputs)
        return {name: np.asarray(value).astype(dtype) for name, value in out.items()}

    right = Implementation(target="plain formulas", functions=functions_by(apply))
    found = []
    for problem in drawn:
        called.clear()
        if _holds(fact, right, problem) is not None:
            found.append((problem, frozenset(called)))
    return tuple(found)


def _holds(fact: Property, target: Implementation, problem: Problem) -> bool | None:
    """Return whether a property holds on a problem; None where it does not apply."""
    try:
        fact.check(Trial(fact, target, problem))
    except Refuted:
        return False
    except (Declined, Unsuitable):
        return None
    return True


def row(mistake: Mutant, facts: Sequence[Property]) -> Row:
    """Check properties on a known mistake."""
    wrong = Implementation(target=mistake.id, functions=as_implementation(mistake, mistake.example))
    changed = frozenset(mistake.changes(mistake.example))
    read, found = [], []
    for fact in facts:
        reached = [p for p, called in problems(fact) if mistake.roundoff or changed & called]
        if reached:
            read.append(fact.name)
            if any(_holds(fact, wrong, problem) is False for problem in reached):
                found.append(fact.name)
    return Row(mistake=mistake.id, read=tuple(read), found=tuple(found))


def generated(
    count: int, facts: Sequence[Property], *, seed: int = 0
) -> Iterator[tuple[str, str | None]]:
    """Yield generated mistakes that change a number, each with the first property that finds it.

    Parameters
    ----------
    facts : sequence of Property
        The properties; mistakes are drawn in what their operations compute.
    """
    operations = {fact.operation for fact in facts}
    reach = Reach([c for c in select(dtype="float64") if c.operation.name in operations])
    for mistake in mistakes(seed, False, reach):
        (change,) = mistake.changes
        cases = reach.cases(change)
        if not (differs(mistake, chosen(mistake, cases, seed)) or {}).get("everything"):
            continue  # an equivalent formula, or one that cannot be computed
        wrong, keys = mistake.implementation("everything"), set(change.formula.keys)
        reached = {case.operation.name for case in cases}
        found = (
            fact.name
            for fact in facts
            if fact.operation in reached
            for problem, called in problems(fact)
            if (not keys or keys & called) and _holds(fact, wrong, problem) is False
        )
        yield f"{change.formula.name}: {' '.join(change.diff.split())}", next(found, None)
        count -= 1
        if not count:
            return


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Which known mistakes a set of properties finds."""

    rows: tuple[Row, ...]  # of the mistakes in what the properties read
    unseen: tuple[str, ...]  # those that no property finds
    idle: tuple[str, ...]  # properties that find none

    @property
    def share(self) -> float:
        """The share of the mistakes that is found."""
        return 1 - len(self.unseen) / max(len(self.rows), 1)

    @property
    def good(self) -> bool:
        """Whether there are mistakes, 90 % are found, and every property finds one."""
        return bool(self.rows) and self.share >= LEAST and not self.idle

    @property
    def lines(self) -> list[str]:
        """The matrix as text: the properties that find each mistake, and what is not found."""
        text = [f"{r.mistake}: {', '.join(r.found) or 'no property'}" for r in self.rows]
        text += [f"not found: {key}: {UNSEEN.get(key, 'unexplained')}" for key in self.unseen]
        text += [f"finds no mistake: {name}" for name in self.idle]
        found, total = len(self.rows) - len(self.unseen), len(self.rows)
        return [*text, f"found {found} of {total} mistakes ({self.share:.1%})"]


def summary(rows: Sequence[Row], facts: Sequence[Property]) -> Matrix:
    """Join the rows of all mistakes."""
    met = tuple(r for r in rows if r.read)
    return Matrix(
        rows=met,
        unseen=tuple(r.mistake for r in met if not r.found),
        idle=tuple(f.name for f in facts if not any(f.name in r.found for r in met)),
    )
