"""The known mistakes that a stated precision hides: no case separates them from its roundoff."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.compare import compare
from loko_ref.conformance.judge.conditional import judge_given_parents
from loko_ref.conformance.judge.declared import Declared, words
from loko_ref.conformance.mistakes.registry import Mutant, all_mutants, evaluate


def noted(declared: Declared, checks: Sequence[Check], strict: bool) -> Iterator[str]:
    """Yield the notes of a report on the precision that code states.

    Parameters
    ----------
    declared : mapping of str to str
        Quantity -> format.
    strict : bool
        Whether it excuses nothing.
    """
    if not declared:
        return
    head = f"stated precision, {words(declared)}"
    if strict:
        yield f"{head}: excuses nothing, by --strict"
        return
    excused = [c for c in checks if c.imprecise is not None and c.imprecise.declared]
    yield f"{head}: excuses {len(excused)} of {len(checks)} checks"
    if ids := hidden(declared, excused):
        yield (
            f"{head}: in the cases that are there for them, these known mistakes can no longer be "
            f"distinguished from its roundoff: {', '.join(ids)}"
        )


def hidden(declared: Declared, excused: Sequence[Check]) -> list[str]:
    """Name known mistakes that the excused cases are there for, and that none of them shows.

    Parameters
    ----------
    declared : mapping of str to str
        Quantity -> format.
    excused : sequence of Check
        Checks that the stated precision excuses.
    """
    known = {one.id: one for one in all_mutants()}
    shown: dict[str, bool] = {}
    for check in excused:
        for key in check.case.recipe.covers:
            if not shown.get(key, False):
                shown[key] = _shows(known[key], check.case, check.outputs, declared)
    return [key for key, seen in shown.items() if not seen]


def _shows(one: Mutant, case: Case, returned: Mapping[str, Array], declared: Declared) -> bool:
    """Return whether a case fails by a mistake whatever the precision excuses."""
    found = evaluate(one, case, one.example)
    outputs = {name: found[name] for name in returned if name in found} if found else {}
    if not outputs or any(a.shape != returned[name].shape for name, a in outputs.items()):
        return True
    first, _ = compare(case, outputs)
    return first is not None and bool(judge_given_parents(case, outputs, first, declared).wrong)
