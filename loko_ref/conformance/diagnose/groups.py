"""Which failures are one fault, and by which check it is shown.

Failures are of one kind where the same known mistake reproduces them; of those that none
reproduces, where the same quantity is off first in operations that compute it alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loko_ref.conformance.diagnose.naming import Mistake
from loko_ref.conformance.engine import FAILED, Check

__all__ = ["Group", "brief", "group"]

FILTER = ("kalman", "observation", "noise")
"""Operations whose quantities are LoKO's."""

BRIEF = 160
"""Characters of a message that stands for a failure in a few words."""

_VARIES = re.compile(r"0x[0-9a-fA-F]+|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|-?\b(?:nan|inf)\b")
"""What differs between messages of one kind: numbers and addresses."""

_LEAD = re.compile(r"^[\w+']+: (?=[\w+']+ = )")
"""Before the equation of another quantity, the one that it shows in: W: delta = ..."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Failures of one kind.

    Attributes
    ----------
    what : str
        What they have in common.
    mistake : Mistake or None
        The known mistake that reproduces them, the most likely one.
    checks : tuple of Check
        All of them, in the order run.
    shown : Check
        The one to describe: float64 before float32, a step before a run, a case that is there for
        a known mistake before one of a combination of options, then the one of fewest words and
        smallest inputs.
    others : tuple of Mistake
        What else is known of the one shown: the mistake of each other quantity that is wrong.
    """

    what: str
    mistake: Mistake | None
    checks: tuple[Check, ...]
    shown: Check
    others: tuple[Mistake, ...] = ()


def _kind(check: Check, mistake: Mistake | None) -> tuple[str, ...]:
    """Return what makes a failure equal to another."""
    if mistake is not None:
        found = mistake.mutant.id.startswith("FORMULA-")
        return ("mistake", _LEAD.sub("", mistake.text) if found else mistake.mutant.id)
    finding, (area, _, name) = check.finding, check.case.operation.name.partition(".")
    area = name if area == "optimizer" else "loko" if area in FILTER else area
    if finding is None:
        assert check.divergence is not None
        return ("off", check.divergence.quantity, area)
    if finding.quantity is not None:
        return (finding.kind, finding.quantity, area)
    return (finding.kind, _VARIES.sub("#", finding.message))


def _what(check: Check) -> str:
    if check.divergence is not None:
        return f"{check.divergence.quantity} is off first"
    assert check.finding is not None
    quantity = check.finding.quantity
    return {
        "raised": "an error",
        "timeout": "no answer in time",
        "signature": "a parameter that is not taken",
        "result": "no mapping of outputs",
        "output": "an output that cannot be read",
        "shape": f"{quantity} has another shape",
        "dtype": f"{quantity} has another dtype",
        "mutated": "an input changed in place",
        "crashed": "the command ended",
        "protocol": "an answer against the protocol",
        "not repeatable": "answers that differ when the same call is made again",
    }.get(check.finding.kind, check.finding.kind)


def _elements(value: Any) -> int:
    return sum(map(_elements, value.values())) if isinstance(value, Mapping) else int(value.size)


def _size(check: Check) -> tuple[bool, bool, bool, int, int]:
    case = check.case
    combination = not case.recipe.covers
    words, size = case.recipe.name.count("-"), _elements(case.inputs())
    return case.dtype != "float64", case.operation.stepwise, combination, words, size


def brief(check: Check) -> str:
    """Return a failure in a few words: the quantity that is off first, and how far."""
    d = check.divergence
    if d is None:
        assert check.finding is not None
        return check.finding.message if len(check.finding.message) < BRIEF else _what(check)
    off = "is not finite" if not math.isfinite(d.ratio) else f"{d.ratio:.3g} times its tolerance"
    return f"{d.quantity}{list(d.index) if d.index else ''}: {off}"


def _others(fits: Sequence[Mistake]) -> tuple[Mistake, ...]:
    """Return the first mistake of each quantity but that of the leading one."""
    found: dict[str, Mistake] = {}
    for one in fits:
        if one.quantity:
            found.setdefault(one.quantity, one)
    return tuple(one for one in found.values() if one is not fits[0])


def _of_all(mistake: Mistake | None, checks: int) -> Mistake | None:
    """Count what the same formula reproduces in all operations, of each of which it is a name."""
    if mistake is None or checks <= mistake.explained:
        return mistake
    return replace(mistake, explained=checks, failed=max(checks, mistake.failed))


def group(
    checks: Sequence[Check],
    mistakes: Mapping[str, Sequence[Mistake]] | None = None,
    statuses: Collection[str] = (FAILED,),
) -> list[Group]:
    """Put equal failures together.

    Parameters
    ----------
    checks : sequence of Check
        The outcomes.
    mistakes : mapping, optional
        Check id -> known mistakes that reproduce it, most likely first.
    statuses : collection of str
        What counts as a failure.

    Returns
    -------
    list of Group
        The named ones first, the mistake that explains most before the others; then the others in
        the order in which they first occur.
    """
    found: dict[tuple[str, ...], list[Check]] = {}
    leading: dict[tuple[str, ...], Mistake | None] = {}
    for check in checks:
        if check.status not in statuses:
            continue
        fits = (mistakes or {}).get(check.case.id, ())
        mistake = fits[0] if fits else None
        key = _kind(check, mistake)
        found.setdefault(key, []).append(check)
        leading.setdefault(key, mistake)

    def rank(one: Group) -> tuple[bool, int, str]:
        m = one.mistake
        return (True, 0, "") if m is None else (False, m.contradicted - m.explained, m.mutant.id)

    groups = []
    for key, some in found.items():
        shown = min(some, key=_size)
        groups.append(
            Group(
                what=_what(shown),
                mistake=_of_all(leading[key], len(some)),
                checks=tuple(some),
                shown=shown,
                others=_others((mistakes or {}).get(shown.case.id, ())),
            )
        )
    return sorted(groups, key=rank)
