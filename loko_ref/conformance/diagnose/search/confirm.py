"""The search: which formula gives what came back, in all cases where it is wrong?

A formula is found on one problem and confirmed on others. It may be named where it explains more
digits than chance would, on two inputs at least, and contradicts no case that is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.diagnose.search.again import fresh_cases
from loko_ref.conformance.diagnose.search.candidates import (
    Candidate,
    Trial,
    by_inputs,
    doubles,
    exchanged,
    fitted,
    known,
    reformed,
    singles,
)
from loko_ref.conformance.diagnose.search.edits import Edit
from loko_ref.conformance.diagnose.search.numbers import branches
from loko_ref.conformance.diagnose.search.problem import Problem
from loko_ref.conformance.judge.tolerance import _inputs, expected
from loko_ref.textbook.quantities import Values

__all__ = ["Named", "choice", "followed", "search", "shortened"]

CONFIRM = 4
"""Other problems on which a formula is confirmed."""

SPARE = 6.0
"""Digits that are explained beyond what the number of formulas tried explains by chance."""

CHOICES = ("observation", "noise", "timing", "covariance", "diagonal", "center", "solve",
           "nesterov", "mode", "reduction", "reset", "realisation", "optimizer",
           "replicas", BIAS := "LoRA's bias")  # fmt: skip
"""What code branches by: a formula may be wrong under some of their values alone."""

OF_OPTIMIZER = {"nesterov": "sgd"} | dict.fromkeys(
    ("observation", "noise", "timing", "diagonal", "center", "solve"), "loko"
)
"""Options of lte.run that one optimizer alone has."""

ROUNDS = 3
"""Formulas that are sought for one quantity, each where those before it do not fit."""

HINTED = 100
"""Formulas tried where one is tried that was found elsewhere."""

MOST = 400
"""Candidates of one stage that are looked at closer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """A formula that may be named.

    Attributes
    ----------
    candidate : Candidate
        The formula.
    explained : tuple of Problem
        Those that it gives.
    alike : tuple of Candidate
        Other formulas that nothing in the run tells from it.
    """

    candidate: Candidate
    explained: tuple[Problem, ...]
    alike: tuple[Candidate, ...] = ()


def _rounds(one: Candidate) -> bool:
    return any("rounded to" in edit.change.text for _, edit in one.edits)


def _judged(
    one: Candidate,
    tried: int,
    failing: Sequence[Problem],
    passing: Sequence[Problem],
    *,
    hinted: bool = False,
) -> Named | None:
    """Return a formula as it may be named, or None."""
    changes = one.changes
    explained, digits = [], 0.0
    for problem in failing:
        value = problem.value(changes())
        if value is not None and problem.fits(changes(), value):
            explained.append(problem)
            digits += problem.digits(value, one.fitted if problem is failing[0] else 0)
    inputs = len({p.case.recipe for p in explained})
    if not inputs or (inputs < min(2, len({p.case.recipe for p in failing})) and not hinted):
        return None
    if inputs < 2 and not hinted and not _many_steps(explained):
        return None
    if digits <= math.log10(max(tried, 1)) + SPARE:
        return None
    if one.mutant is not None and explained[0].belies(changes()):
        return None  # a known mistake is all of its formulas
    later = [p.later for p in explained if p.later is not None and p.later.judged]
    if not all(_gives(one, p) for p in later):
        return None
    rest = [p for p in failing if p not in explained]
    off = [
        p for p in rest
        if _acts(one, p) and not p.mostly(p.value(changes())) and _changes(one, p)
    ]  # fmt: skip
    off += [p for p in passing if _changes(one, p)]
    if off:
        scope = _scope(explained, off)
        if scope is None:
            return None
        one = replace(one, scope=scope)
    return Named(candidate=one, explained=tuple(explained))


def _gives(one: Candidate, problem: Problem) -> bool:
    """Return whether a formula gives what came, or nearly all of what is wrong in it."""
    changes = one.changes()
    return problem.fits(changes) or problem.mostly(problem.value(changes))


def _many_steps(explained: Sequence[Problem]) -> bool:
    return any(p.case.operation.stepwise and len(p.got) > 2 for p in explained)


def followed(one: Candidate, problems: Sequence[Problem]) -> Candidate:
    """Return a formula that names an option only where its number follows that option.

    Parameters
    ----------
    one : Candidate
        The formula.
    problems : sequence of Problem
        Those that it explains.

    Returns
    -------
    Candidate
        The formula itself; or, where the options that it reads are the same in all the problems,
        one that states the number, and what it is equal to there.
    """
    options = [p.case.options for p in problems]

    def stated(edit: Edit) -> Edit:
        number = edit.change.number
        read = (
            [name for name in number.used if isinstance(options[0].get(name), float)]
            if number
            else []
        )
        if (
            number is None
            or not read
            or any(o.get(k) != options[0][k] for o in options for k in read)
        ):
            return edit
        try:
            c = number.at(Values({**problems[0].inputs, **options[0]}))
        except KeyError:  # of a size that only the formula has at hand
            return edit
        text = edit.change.text.replace(number.text, f"{c:.6g} (equals {number.text} here)")
        return replace(edit, change=replace(edit.change, text=text))

    edits = tuple((site, stated(edit)) for site, edit in one.edits)
    same = all(new is old for (_, new), (_, old) in zip(edits, one.edits, strict=True))
    return one if same else replace(one, edits=edits)


def _acts(one: Candidate, problem: Problem) -> bool:
    """Return whether a formula gives another number in a case than the right one does."""
    value = problem.value(one.changes())
    return value is None or not np.array_equal(value, problem.right)


def _changes(one: Candidate, problem: Problem) -> bool:
    """Return whether a formula makes a difference, beyond tolerance, to a case."""
    value = problem.value(one.changes())
    if value is None:
        return True
    wide = 4 * problem.loose
    return bool(np.any(np.abs(value - problem.got) > wide))


def choice(case: Case, name: str) -> Any:
    """Return what a case has of a choice; None where that is without effect there."""
    o = case.options
    if name == BIAS:
        return any(lora.get("bias", False) for lora in branches(o.get("spec", ())))
    if case.operation.name == "lte.run" and o["optimizer"] != OF_OPTIMIZER.get(
        name, o["optimizer"]
    ):
        return None
    return o.get(name)


def _scope(explained: Sequence[Problem], off: Sequence[Problem]) -> Any:
    """Find an option by whose value what is explained and what is not come apart."""
    for name in CHOICES:
        own = {choice(p.case, name) for p in explained}
        others = {choice(p.case, name) for p in off}
        if own.isdisjoint(others):
            return name, frozenset(own)
    return None


def _fresh(problems: Sequence[Problem]) -> Iterator[Problem]:
    """Yield the same cases with other numbers, as the oracle has them."""
    seen = set()
    for problem in problems:
        recipe = problem.case.recipe
        if recipe in seen or recipe.operation != problem.case.operation.name:
            continue
        seen.add(recipe)
        for case in fresh_cases(problem.case):
            try:
                outputs = dict(expected(case))
            except (ValueError, ArithmeticError, np.linalg.LinAlgError):
                continue
            if problem.quantity in outputs:
                yield Problem(case=case, quantity=problem.quantity, outputs=outputs,
                              check=case.id, taken=problem.taken)  # fmt: skip


def _equal(one: Candidate, other: Candidate, fresh: Sequence[Problem]) -> bool:
    """Return whether two formulas give the same on inputs that the search never saw."""
    for problem in fresh:
        a, b = problem.value(one.changes()), problem.value(other.changes())
        if a is None or b is None:
            if (a is None) != (b is None):
                return False
            continue
        scale = np.maximum(np.abs(a), np.abs(b))
        if np.any(np.abs(a - b) > 1e-7 * np.maximum(scale, 1e-6 * np.max(scale, initial=0.0))):
            return False
    return True


def _best(found: list[Named], fresh: Sequence[Problem]) -> Named | None:
    """Take the plainest of those that explain most; note those that differ from it."""
    if not found:
        return None
    found = sorted(found, key=lambda n: (-len(n.explained), n.candidate.cost))
    first = found[0]
    others: list[Candidate] = []
    for other in found[1:60]:
        if (
            len(other.explained) < len(first.explained)
            or other.candidate.cost > first.candidate.cost + 1.2
        ):
            continue
        if not any(_equal(other.candidate, one, fresh) for one in (first.candidate, *others)):
            others.append(other.candidate)
    return replace(first, alike=tuple(others[:4]))


def search(
    failing: Sequence[Problem],
    passing: Sequence[Problem],
    hints: Sequence[Candidate] = (),
    *,
    deep: bool = True,
) -> tuple[list[Named], list[Problem]]:
    """Find formulas for a quantity that is wrong.

    Parameters
    ----------
    failing : sequence of Problem
        Where it is wrong.
    passing : sequence of Problem
        Where it is right.
    hints : sequence of Candidate
        Formulas found elsewhere, which are tried first.
    deep : bool
        Whether fitted numbers and pairs of changes are sought too.

    Returns
    -------
    named : list of Named
        Formulas; of problems that come apart, one each.
    left : list of Problem
        Those that none explains.
    """
    named: list[Named] = []
    left = by_inputs(failing)
    for hint in hints:
        found = _judged(hint, HINTED, left[: CONFIRM + 2], passing, hinted=True) if left else None
        if found is not None:
            named.append(found)
            left = _unexplained(found.candidate, left)
    for _ in range(ROUNDS):
        if not left:
            break
        if len({p.case.recipe for p in left}) < 2 and not hints and not _many_steps(left):
            break
        known_by = [*hints, *(n.candidate for n in named)]
        one = _search_one(left, passing, known_by, deep=deep)
        if one is None:  # what the first shows may be another mistake, or more than one
            recipe = left[0].case.recipe
            rest = [p for p in left if p.case.recipe is not recipe]
            if len({p.case.recipe for p in rest}) > 1:
                one = _search_one(rest, passing, known_by, deep=False)
        if one is None:
            break
        named.append(one)
        left = _unexplained(one.candidate, left)
    return named, left


def _unexplained(one: Candidate, problems: Sequence[Problem]) -> list[Problem]:
    return [
        p for p in problems
        if not _in_scope(one, p.case)
        or not _gives(one, p)
    ]  # fmt: skip


def _in_scope(one: Candidate, case: Case) -> bool:
    return not one.scope or choice(case, one.scope[0]) in one.scope[1]


def _search_one(
    failing: list[Problem], passing: Sequence[Problem], hints: Sequence[Candidate], *, deep: bool
) -> Named | None:
    """Search on the first problem, confirm on the others."""
    first, others = failing[0], failing[1:]
    different = [p for p in others if p.case.recipe is not first.case.recipe]
    sample = [first, *different[:CONFIRM]]
    trial = Trial(shortened(first))
    fresh: list[Problem] | None = None
    plain = (known, singles, exchanged)
    plain_forms = (plain, (reformed,))
    for stages in (*plain_forms, (fitted,), (doubles,)) if deep else plain_forms:
        hits = []
        for stage in stages:
            for n, one in enumerate(stage(trial)):
                if n < MOST:
                    hits.append(one)
        texts = {hint.text for hint in hints if not hint.mutant}
        judged = [
            _judged(one, trial.tried, sample, passing, hinted=one.text in texts) for one in hits
        ]
        found = [one for one in judged if one is not None]
        if found:
            fresh = list(_fresh(sample)) if fresh is None else fresh
            return _best(found, fresh)
    return None


def shortened(problem: Problem) -> Problem:
    """Return a problem of an optimizer with fewer steps: until shortly after what is wrong."""
    case, got = problem.case, problem.got
    if not case.operation.name.startswith("optimizer."):
        return problem
    off = np.abs(got - problem.right) > problem.bound
    steps = max(3, int(np.argmax(off.reshape(len(got), -1).any(axis=1))) + 2)
    inputs = dict(_inputs(case))
    inputs["gradient"] = inputs["gradient"][:steps]
    recipe = replace(case.recipe, name=f"{case.recipe.name}[:{steps}]",
                     build=lambda draw, dtype: inputs)  # fmt: skip
    return Problem(
        case=Case(id=f"{case.id}[:{steps}]", recipe=recipe, dtype=case.dtype),
        quantity=problem.quantity,
        outputs={name: a[:steps] for name, a in problem.outputs.items()},
        check=problem.check,
        taken=problem.taken,
    )
