"""Problems of a run: which quantities of which checks are wrong given their parents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loko_ref.conformance.diagnose.search.problem import Problem, cut
from loko_ref.conformance.engine import Check

__all__ = ["failing", "passing"]

CHECKS = 8
"""Failed checks of an operation whose quantities are judged by their parents."""

STATE = ("theta", "p", "P", "U", "WW", "R")
"""Outputs of a step that the next one is given."""

RIGHT = 6
"""Passed checks of an operation that a formula may not contradict."""


def _cost(check: Check) -> tuple[bool, bool, int]:
    sizes = [value.size for value in check.outputs.values()]
    return check.case.dtype != "float64", max(sizes) > 3000, -min(max(sizes), 300)


def _spread(checks: Sequence[Check], most: int) -> list[Check]:
    """Take checks by turns from those with different options and first quantities."""
    kinds: dict[tuple[str, ...], list[Check]] = defaultdict(list)
    for check in sorted(checks, key=_cost):
        o = check.case.options
        chosen = ("observation", "noise", "covariance", "diagonal", "timing")
        first = "" if check.divergence is None else check.divergence.quantity
        kinds[first, *(str(o.get(k)) for k in chosen)].append(check)
    found: list[Check] = []
    while len(found) < most and any(kinds.values()):
        for kind in list(kinds):
            if kinds[kind] and len(found) < most:
                found.append(kinds[kind].pop(0))
    return found


def failing(checks: Sequence[Check]) -> list[Problem]:
    """List what is wrong given its parents, in dataflow order of each check."""
    return [
        problem
        for own in _by_operation(checks).values()
        for check in _spread(own, CHECKS)
        for problem in of_check(check)
        if problem.judged
    ]


def _by_operation(checks: Sequence[Check]) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = defaultdict(list)
    for check in checks:
        if check.outputs:
            found[check.case.operation.name].append(check)
    return found


def of_check(check: Check) -> list[Problem]:
    """List the quantities of a check that are wrong given their parents."""
    if not all(np.isfinite(value).all() for value in check.outputs.values()):
        return []
    outputs = dict(check.outputs)
    if check.case.operation.name == "loko.run":
        last = len(check.case.inputs()["y"]) - 1
        return [
            replace(
                _of_step(check, d.quantity, d.index[0]),
                later=_of_step(check, d.quantity, last) if d.index[0] < last else None,
            )
            for d in check.divergences
        ]
    return [
        Problem(case=check.case, quantity=d.quantity, outputs=outputs, check=check.case.id,
                taken=frozenset(outputs))
        for d in check.divergences
    ]  # fmt: skip


def _of_step(check: Check, quantity: str, step: int) -> Problem:
    """Return a quantity of a step of a run of LoKO."""
    case, outputs = cut(check.case, dict(check.outputs), step)
    came = {"y": check.case.inputs()["y"], **check.outputs} if step else {}
    earlier = {
        k: np.asarray(a[step - 1], dtype=np.float64)
        for k, a in came.items()
        if k not in STATE  # what this step starts from
    }
    return Problem(case=case, quantity=quantity, outputs=outputs, check=check.case.id,
                   taken=frozenset(outputs), earlier=earlier)  # fmt: skip


def passing(
    checks: Sequence[Check], operation: str, quantity: str, wrong: Sequence[Problem]
) -> list[Problem]:
    """List where a quantity of an operation is right: in passed checks, and in failed ones."""
    own = [
        c for c in checks
        if c.case.operation.name == operation and c.status == "passed" and quantity in c.outputs
        and c.case.dtype == "float64"
    ]  # fmt: skip
    found = [
        Problem(case=c.case, quantity=quantity, outputs=c.outputs, check=c.case.id,
                taken=frozenset(c.outputs))
        for c in _spread(own, RIGHT)
    ]  # fmt: skip
    checked = {p.check for p in wrong if p.quantity == quantity}
    for problem in wrong:  # right in a check that another quantity fails
        if (
            problem.check not in checked
            and problem.case.operation.name == operation
            and quantity in problem.outputs
        ):
            checked.add(problem.check)
            found.append(
                Problem(case=problem.case, quantity=quantity, outputs=problem.outputs,
                        check=problem.check, taken=problem.taken)
            )  # fmt: skip
    return [p for p in found if "[" not in p.case.id or p.judged]  # of steps, that alone may lack
