"""Is a generated mistake caught, is it named, and is the name an equivalent formula?

A name is right if the plain route under it agrees with the mistaken program on fresh inputs: the
names of one check taken together; or each by itself, where the quantity that it is for follows by
it from what the mistaken program returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.assessment.fresh import Fresh
from loko_ref.conformance.assessment.generated import (
    FORMS,
    Mistake,
    agree,
    chosen,
    differs,
    evaluated,
    fresh_inputs,
    judged,
    moved,
    plain,
    results,
)
from loko_ref.conformance.assessment.reach import Reach
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.diagnose.search.again import Again, calling
from loko_ref.conformance.engine import FAILED, IMPRECISE, Check, run
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.textbook import FORMULA_TABLE

APART = {"timeout", "raised", "shape", "result", "output"}
"""Findings that show themselves: a mistake with one of them in most of its checks counts apart."""

TIMEOUT = 20.0
"""Seconds that one check may take."""

LEAST = 4
"""How few of the fresh inputs may decide, well conditioned in the mistaken program or equal to the
bit: of the others nothing follows."""


@dataclass(frozen=True, eq=False)
class _Names:
    """The first name of each wrong quantity of some checks, all of them alike."""

    candidates: tuple[Any, ...]
    checks: list[Check]

    @property
    def cases(self) -> list[Case]:
        return [check.case for check in self.checks]

    @property
    def complete(self) -> bool:
        """Whether each wrong quantity has a name."""
        named = {one.quantity for one in self.candidates}
        return all({d.quantity for d in check.divergences} <= named for check in self.checks)


def _first_names(checks: Sequence[Check], again: Again) -> list[_Names]:
    found: dict[tuple[str, ...], _Names] = {}
    named = name_mistakes(checks, again)
    for check in checks:
        first: dict[str, Any] = {}
        for candidate in named.get(check.case.id, ()):
            first.setdefault(candidate.quantity, candidate)
        if first:
            key = tuple(one.text for one in first.values())
            found.setdefault(key, _Names(tuple(first.values()), [])).checks.append(check)
    return list(found.values())


def _is(candidates: Sequence[Any], mistake: Mistake, cases: Sequence[Case], form: str) -> bool:
    """Return whether named formulas, taken together, are the mistaken program on fresh inputs."""
    table = dict(FORMULA_TABLE)
    for candidate in candidates:
        table |= candidate.changes()
    compared = 0
    for one in fresh_inputs(cases):
        wrong, disturbed = evaluated(mistake, one), evaluated(mistake, one, moved)
        if wrong is None:  # S without R, of more outputs than parameters, is singular
            continue
        names = judged(form, one, wrong)
        named = plain(one.operation, one.inputs, one.options, table)
        same = _same(wrong, disturbed, named, names)
        if same is False:
            return False
        compared += same is not None
    return compared >= LEAST


def _same(
    wrong: dict[str, Array],
    disturbed: dict[str, Array] | None,
    named: dict[str, Array] | None,
    names: Sequence[str],
) -> bool | None:
    """Return whether a named formula is the mistaken program on an input; None: undecided.

    Where a roundoff moves the mistaken program's outputs much, only equality to the bit decides.
    """
    if agree(wrong, disturbed, names):
        return agree(wrong, named, names)
    equal = named is not None and all(
        name in named and np.array_equal(wrong[name], named[name], equal_nan=True) for name in names
    )
    return True if equal else None


def _returned_as(name: str, outputs: Sequence[str]) -> str:
    """Return the output that a quantity of the route is."""
    name = name.removesuffix("_post")
    if name not in outputs and name in ("p", "p_pred"):
        return name.replace("p", "P", 1)
    return name


class _Given:
    """The hook that notes quantities in turn, or passes on those that were noted."""

    def __init__(self, noted: dict[str, list[Any]] | None = None) -> None:
        self.values: dict[str, list[Any]] = {}
        self._noted = noted or {}

    def __call__(self, name: str, value: Any) -> Any:
        taken = self.values.setdefault(name, [])
        known = self._noted.get(name, [])
        value = known[len(taken)] if len(taken) < len(known) else value
        taken.append(value)
        return value


def _follows(candidate: Any, mistake: Mistake, cases: Sequence[Case], form: str) -> bool:
    """Return whether a quantity follows by its name from what the mistaken program returns."""
    compared, table = 0, {**FORMULA_TABLE, **candidate.changes()}
    for one in fresh_inputs(cases):
        note = _Given()
        wrong, disturbed = evaluated(mistake, one, note), evaluated(mistake, one, moved)
        if wrong is None or candidate.quantity not in wrong:
            continue
        given = _Given(_parents(note, one, wrong, form, candidate.quantity))
        named = plain(one.operation, one.inputs, one.options, table, given)
        same = _same(wrong, disturbed, named, (candidate.quantity,))
        if same is False:
            return False
        compared += same is not None
    return compared >= LEAST


def _parents(
    note: _Given, one: Fresh, wrong: dict[str, Array], form: str, quantity: str
) -> dict[str, list[Any]]:
    """Return what was noted of the quantities that come back, but the one that is judged."""
    outputs = tuple(wrong)
    back = judged(form, one, wrong)
    found = {}
    for name, values in note.values.items():
        as_output = _returned_as(name, outputs)
        if as_output in back and as_output != quantity:
            found[name] = values
    return found


def verdict(mistake: Mistake, cases: Sequence[Case], form: str) -> dict[str, Any]:
    """Verify one form of a mistake.

    Returns
    -------
    dict
        How many checks there were and failed, the names, and the ``verdict``: ``missed``,
        ``unnamed``, ``wrong``, ``in part`` (of two mistakes or quantities not all are named),
        ``named``; or the finding that most checks end with.
    """
    implementation = mistake.implementation(form)
    checks = run(implementation, cases, timeout=TIMEOUT)
    failed = [check for check in checks if check.status in (FAILED, IMPRECISE)]
    apart = Counter(check.finding.kind for check in failed if check.finding is not None)
    found: dict[str, Any] = {"checks": len(checks), "failed": len(failed), "names": []}
    if 2 * sum(apart[kind] for kind in APART) > len(checks):
        return found | {"verdict": max(APART, key=lambda kind: apart[kind])}
    if not failed:
        return found | {"verdict": "missed"}
    single = len(mistake.changes) == 1
    singles = [mistake] if single else [Mistake((change,)) for change in mistake.changes]
    done: set[int] = set()
    whole, good, bearing = False, True, 0
    for names in _first_names(checks, calling(implementation, TIMEOUT)):
        bearing += len(names.checks)
        all_of_it = _is(names.candidates, mistake, names.cases, form)
        right = []
        same = single and len(names.candidates) == 1
        for one in names.candidates:
            parts = {
                k
                for k, part in enumerate(singles)
                if (all_of_it if same else _is([one], part, names.cases, form))
            }
            done |= parts
            right.append(all_of_it or bool(parts))
            if not right[-1] and one.quantity:
                right[-1] = _follows(one, mistake, names.cases, form)
            row = {"text": one.text, "checks": len(names.checks), "right": right[-1]}
            found["names"].append(row)
        good &= all(right)
        whole |= all_of_it or (all(right) and names.complete)
    if not good:
        return found | {"verdict": "wrong"}
    if 2 * bearing < len(failed):
        return found | {"verdict": "unnamed"}  # here and there is not yet named
    whole |= len(done) == len(singles)
    return found | {"verdict": "named" if whole else "in part"}


def outcome(mistake: Mistake, reach: Reach, seed: int) -> dict[str, Any]:
    """Judge a generated mistake, in both forms.

    Parameters
    ----------
    reach : Reach
        Which cases run which lines.

    Returns
    -------
    dict
        JSON data: the changes; the ids of the cases; ``status``: ``raised`` (or another shape, or
        out of time), ``equivalent`` or ``changed``; of what changes a number, by form, the verdict.
    """
    described = [
        {"formula": c.formula.name, "kind": c.kind, "line": c.scope[1], "diff": c.diff}
        for c in mistake.changes
    ]
    found: dict[str, Any] = {"changes": described, "status": "raised", "forms": {}}
    common = [{case.id for case in reach.cases(change)} for change in mistake.changes]
    shared = [c for c in reach.cases(mistake.changes[0]) if all(c.id in ids for ids in common)]
    cases = chosen(mistake, shared, seed)
    shown = differs(mistake, cases)
    if shown is None:
        return found
    found["cases"] = [case.id for case in cases]
    alone = all(_all_are_results(case) for case in cases)
    for form in FORMS:
        one = found["forms"].get(FORMS[0]) if alone else None
        one = one or verdict(mistake, cases, form)
        if one["verdict"] in APART:
            return found | {"forms": {}}
        if shown[form] or one["failed"]:
            found["forms"][form] = one
    return found | {"status": "changed" if found["forms"] else "equivalent"}


def _all_are_results(case: Case) -> bool:
    names = tuple(expected(case))
    return results(case.operation.name, names) == names
