"""Formulas found, as what a run's checks are said to do."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.diagnose.equations import equation
from loko_ref.conformance.diagnose.problems import failing, of_check, passing
from loko_ref.conformance.diagnose.search.again import Again
from loko_ref.conformance.diagnose.search.candidates import Candidate, grouped
from loko_ref.conformance.diagnose.search.confirm import Named, choice, followed, search
from loko_ref.conformance.diagnose.search.problem import Problem
from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.tolerance import tolerance
from loko_ref.conformance.mistakes.registry import Changes, Mutant

__all__ = ["Formula", "find"]

DEEP = 6
"""Quantities of a run for which fitted numbers and pairs of changes are sought too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Formula:
    """A formula found for a quantity of an operation.

    Attributes
    ----------
    quantity : str
        The quantity.
    named : Named
        The formula, and what it explains.
    mutant : Mutant
        The known mistake, or the formula as one.
    alike : tuple of Mutant
        Others that nothing in the run tells from it.
    checks : tuple of str
        Ids of the checks that it explains.
    """

    quantity: str
    named: Named
    mutant: Mutant
    alike: tuple[Mutant, ...]
    checks: tuple[str, ...]

    @property
    def rounds(self) -> bool:
        """Whether it differs by a rounding alone."""
        edits = self.named.candidate.edits
        return bool(edits) and all("rounded to" in edit.change.text for _, edit in edits)


def _mutant(quantity: str, one: Candidate) -> Mutant:
    """Return a formula in the form of a known mistake: that one, where there is one."""
    if one.mutant is not None:
        return one.mutant
    text = equation(quantity, one)

    def changes(size: float | None) -> Changes:
        return one.changes()

    return Mutant(
        id=f"FORMULA-{quantity}-{zlib.crc32(text.encode()):08x}",
        name=text,
        explanation="Found by search: this formula gives what came back, in every case where the "
        "quantity does not follow from what it is computed from.",
        look=text.split(":")[0],
        changes=changes,
    )


def find(
    checks: Sequence[Check], unnamed: Sequence[Check], again: Again | None = None
) -> list[Formula]:
    """Search the formulas of what is wrong in checks that no known mistake explains.

    Parameters
    ----------
    checks : sequence of Check
        The whole run.
    unnamed : sequence of Check
        Failed, with outputs.
    again : callable, optional
        Calls the implementation with other numbers of a case.
    """
    cases = {check.case.id: check.case for check in unnamed}
    problems = failing(unnamed)
    found: list[Formula] = []
    hints: list[Candidate] = []
    deep = DEEP
    for (operation, quantity), own in grouped(problems).items():
        operations = {cases[p.check].operation.name for p in own}  # of a run a step was searched
        right = passing(checks, operation, quantity, problems)
        alone = len({cases[p.check].recipe for p in own}) == 1
        if alone:
            own += _others(quantity, cases[own[0].check], again)
        named, left = search(own, right, hints, deep=deep > 0)
        # other inputs may tell them apart, and other options a number from one that equals it
        if not alone and any(one.alike or _stated(one) is not one for one in named):
            own = [own[0], *_others(quantity, cases[own[0].check], again), *own[1:]]
            named, left = search(own, right, hints, deep=deep > 0)
        deep -= bool(left) or any(n.candidate.fitted for n in named)
        for one in map(_stated, named):
            if one.candidate not in hints:
                hints.append(one.candidate)
            found.append(
                Formula(
                    quantity=quantity,
                    named=one,
                    mutant=_mutant(quantity, one.candidate),
                    alike=tuple(_mutant(quantity, other) for other in one.alike),
                    checks=tuple(
                        key
                        for key in dict.fromkeys(
                            _explained(one, quantity, own, operations, unnamed)
                        )
                        if key in cases
                    ),
                )
            )
    return found


def _stated(one: Named) -> Named:
    """Return a formula that names an option only where it follows it."""
    candidate = followed(one.candidate, one.explained)
    return one if candidate is one.candidate else replace(one, candidate=candidate)


def _others(quantity: str, case: Case, again: Again | None) -> list[Problem]:
    """List where a quantity is wrong with other numbers of a case."""
    checks = () if again is None else again(case)
    problems = [p for check in checks for p in of_check(check) if p.quantity == quantity]
    return [p for p in problems if p.judged]


def _explained(
    one: Named,
    quantity: str,
    own: Sequence[Problem],
    operations: set[str],
    unnamed: Sequence[Check],
) -> Iterator[str]:
    """Yield the checks that a formula explains: those searched, then the others."""
    looked = {p.check for p in own}
    yield from (p.check for p in own if _gives(one, p, closely=True))
    for check in unnamed:
        if check.case.id in looked or check.case.operation.name not in operations:
            continue
        for problem in of_check(check):
            if problem.quantity == quantity:
                bound = tolerance(check.case)[quantity]
                if bound is not None and problem.value({}) is not None:
                    run = check.case.operation.name == "loko.run"
                    problem.__dict__["_bound"] = bound[0] if run else bound
                    if _gives(one, problem):
                        yield check.case.id


def _gives(one: Named, problem: Problem, *, closely: bool = False) -> bool:
    scope, changes = one.candidate.scope, one.candidate.changes()
    if scope and choice(problem.case, scope[0]) not in scope[1]:
        return False
    value = problem.value(changes)
    if problem.mostly(value) or problem.far(value) <= 1:
        return True
    return closely and value is not None and problem.fits(changes, value)
