"""One change of one formula, and the table of formulas that has it.

A change is made at a place of a formula (``instrument``): what an operand, a product or a result
comes to is replaced by a function of it and of what is in reach there.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from loko_ref.conformance.diagnose.search.instrument import RESULT, WRITTEN, Place, See, instrument
from loko_ref.conformance.diagnose.search.numbers import Number
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.filter import FORMS
from loko_ref.textbook.quantities import Formula, Values

FAMILIES = (
    ("R.ema_innovation", "R.ema_innovation_hph", "R.ema_residual_hph"),
    ("K", "K.softmax"),
    ("H.softmax", "H.glm"),
    ("HpH", "HpH.residual"),
)
"""Formulas that code computes by the same lines: a change of one is one of the others."""

_ALIASES: dict[Formula, list[str]] = defaultdict(list)
"""Formula -> its names: one formula may stand under several."""
for _name, _formula in FORMULA_TABLE.items():
    _ALIASES[_formula].append(_name)

__all__ = ["Change", "Edit", "Reach", "override", "reading"]


@dataclass
class Reach:
    """What a change may read beside the value that it replaces.

    Attributes
    ----------
    v : Values
        The quantities, or the formula's arguments by name.
    places : mapping of int to object
        What the formula's expressions came to in this call.
    before : mapping of int to object
        The same, of the call before.
    first : bool
        Whether this is the first call of a run.
    """

    v: Values
    places: dict[int, Any] = field(default_factory=dict)
    before: Mapping[int, Any] = field(default_factory=dict)
    first: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """A function of a value and of what is in reach.

    Attributes
    ----------
    text : str
        What it makes of the value, ``{x}``.
    apply : callable
        ``value, reach -> value``.
    cost : float
        How far-fetched it is: of formulas that agree the cheapest is named.
    needs : tuple of int
        Places that it reads.
    number : Number or None
        The option, size or product of some that it reads.
    """

    text: str
    apply: Callable[[Any, Reach], Any]
    cost: float = 1.0
    needs: tuple[int, ...] = ()
    number: Number | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A change at a place.

    Attributes
    ----------
    root : str
        The formula that the route calls.
    inner : str
        The one that the place is in: `root`, or one that `root` calls by the table.
    place : int
        Which of its expressions, or ``RESULT``.
    change : Change
        What becomes of it.
    """

    root: str
    inner: str
    place: int
    change: Change


def _see(edits: Sequence[Edit], reach: Reach) -> See:
    changes = {edit.place: edit.change for edit in edits}
    needed = {i for edit in edits for i in (*edit.change.needs, edit.place)}

    def see(place: int, value: Any) -> Any:
        if place in needed:
            reach.places[place] = value
        change = changes.get(place)
        return value if change is None else change.apply(value, reach)

    return see


def _edited(name: str, edits: Sequence[Edit], state: dict[str, Any]) -> Formula:
    """Return a formula with changes at its places."""
    parts = instrument(WRITTEN[name])
    last = [edit.change for edit in edits if edit.place == RESULT]
    inside = [edit for edit in edits if edit.place != RESULT]

    def formula(*arguments: Any, **keywords: Any) -> Any:
        v = reading(WRITTEN[name], arguments, state.get("v"))
        first = name not in state or v.get("t") == 1
        reach = Reach(v=v, before={} if first else state[name], first=first)
        made = parts.made(_see(inside, reach)) if inside else WRITTEN[name]
        value = made(*arguments, **keywords)
        for change in last:
            reach.places[RESULT] = value
            value = change.apply(value, reach)
        state[name] = reach.places
        return value

    return formula


def override(edits: Sequence[Edit]) -> dict[str, Formula]:
    """Return the changed formulas, by name: what takes their place in the table.

    Parameters
    ----------
    edits : sequence of Edit
        All of them are made.
    """
    by_root: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        by_root[edit.root].append(edit)
    found: dict[str, Formula] = {}
    for root, own in by_root.items():
        formula = _by_table(root, own)
        found |= dict.fromkeys(_ALIASES[FORMULA_TABLE[root]], formula)
        for name in next((names for names in FAMILIES if root in names), ()):
            alike = _moved(own, root, name) if name not in found else None
            if alike:
                found[name] = _by_table(name, alike)
    return found


def _moved(edits: Sequence[Edit], root: str, other: str) -> list[Edit] | None:
    """Return the same changes of a formula of the same kind; None where it has no such places."""
    found = []
    for edit in edits:
        if edit.inner != root:
            found.append(replace(edit, root=other))
            continue
        here, there = (instrument(FORMULA_TABLE[name]).places for name in (root, other))
        places = {place: _like(here, place, there) for place in (edit.place, *edit.change.needs)}
        if None in places.values():
            return None
        if edit.change.needs and any(new != old for old, new in places.items()):
            return None  # what it reads stands elsewhere
        found.append(replace(edit, root=other, inner=other, place=places[edit.place] or 0))
    return found


def _like(here: Sequence[Place], place: int, there: Sequence[Place]) -> int | None:
    """Find the place of another formula with the same text."""
    if place == RESULT:
        return None
    text = here[place].text
    nth = [i for i, one in enumerate(here) if one.text == text].index(place)
    found = [i for i, one in enumerate(there) if one.text == text]
    return found[nth] if nth < len(found) else None


def reading(function: Formula, arguments: Sequence[Any], v: Values | None = None) -> Values:
    """Return what a formula is given by name: the quantities, or its arguments.

    With a branch of LoRA among these, alpha and r are that branch's.
    """
    if arguments and isinstance(arguments[0], Values):
        own = {
            k: a[k]
            for a in arguments[1:2]
            if type(a) is dict and "alpha" in a
            for k in ("alpha", "r")
        }
        return Values({**arguments[0], **own}) if own else arguments[0]
    named = zip(_parameters(function), arguments, strict=False)
    return Values({**(v or {}), **dict(named)})


@cache
def _parameters(function: Formula) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _of_two_forms(*arguments: Any, **keywords: Any) -> Any:
    raise ValueError("a formula is written in one form")


def _by_table(root: str, edits: Sequence[Edit]) -> Formula:
    """Return a formula whose own places, or those of what it calls, are changed."""
    state: dict[str, Any] = {}
    form = next((edit.inner for edit in edits if edit.inner in FORMS), root)
    own = [edit for edit in edits if edit.inner == form]
    inner = {edit.inner: [e for e in edits if e.inner == edit.inner] for edit in edits}
    inner.pop(form, None)
    itself = _edited(form, own, state) if own else FORMULA_TABLE[root]
    if root in inner or any(name in FORMS for name in inner):
        return _of_two_forms
    if not inner:
        return itself
    called = {name: _edited(name, some, state) for name, some in inner.items()}

    def formula(*arguments: Any, **keywords: Any) -> Any:
        v = arguments[0]
        state["v"], table = v, v["F"]
        v["F"] = {**table, **called}
        try:
            return itself(*arguments, **keywords)
        finally:
            v["F"] = table

    return formula
