"""Where a wrong formula may stand: every place that a quantity depends on, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.diagnose.search.edits import reading
from loko_ref.conformance.diagnose.search.instrument import RESULT, WRITTEN, instrument
from loko_ref.conformance.diagnose.search.problem import EARLIER, ERRORS, MOVED, Problem
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.filter import FORMS
from loko_ref.textbook.quantities import Formula, Values

__all__ = ["Call", "Site", "calls", "formed", "sites"]


ITERATED = ("v",)
"""Formulas that call another until they converge: what they call is not changed in them alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """A call of a formula: the first, or the first in which all its branches were met.

    Attributes
    ----------
    root, inner : str
        The formula that the route calls; the one that is called, by it or itself.
    v : Values
        The quantities then, or its arguments by name.
    places : mapping of int to object
        What its expressions came to.
    """

    root: str
    inner: str
    v: Values
    places: Mapping[int, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """One place of a call.

    Attributes
    ----------
    call : Call
        Whose.
    place : int
        Number of the place, or ``RESULT``.
    value : object
        An array of float64, a number or a bool.
    """

    call: Call
    place: int
    value: Any

    @property
    def text(self) -> str:
        """Return its source."""
        if self.place == RESULT:
            return self.call.inner
        return instrument(WRITTEN[self.call.inner]).places[self.place].text


def _moved(value: Any) -> Any:
    """Return something else of the same kind; None where there is none."""
    if isinstance(value, tuple):
        parts = [_moved(part) for part in value]
        return None if all(part is None for part in parts) else tuple(
            old if new is None else new for old, new in zip(value, parts, strict=True)
        )  # fmt: skip
    if isinstance(value, bool | np.bool_) or np.asarray(value).dtype.kind == "b":
        return np.logical_not(value)
    if isinstance(value, int | float | np.ndarray | np.floating):
        return value * MOVED if np.asarray(value).dtype.kind == "f" else value + 1
    return "after" if value == "before" else "before" if value == "after" else None


def _watching(
    enter: Callable[..., Any],
) -> Callable[[Mapping[str, Formula]], dict[str, Formula]]:
    """Return a wrapper of tables: `enter` is called with name and arguments of each call."""

    def watch(table: Mapping[str, Formula]) -> dict[str, Formula]:
        depth: list[str] = []

        def noted(name: str, formula: Formula) -> Formula:
            def call(*arguments: Any, **keywords: Any) -> Any:
                root = depth[0] if depth else name
                depth.append(name)
                try:
                    return enter(root, name, formula, arguments, keywords)
                finally:
                    depth.pop()

            return call

        return {name: noted(name, formula) for name, formula in table.items()}

    return watch


def calls(problem: Problem) -> list[Call]:
    """List the formulas that a quantity depends on, as they are called at what came."""
    called: dict[tuple[str, str], None] = {}

    def enter(root: str, name: str, formula: Formula, arguments: Any, keywords: Any) -> Any:
        called[root, name] = None
        return formula(*arguments, **keywords)

    problem.value({}, _watching(enter))
    matter = {root for root, _ in called if _matters(problem, root)}
    found: dict[tuple[str, str], Call] = {}
    within: dict[str, Values] = {}

    def record(root: str, name: str, formula: Formula, arguments: Any, keywords: Any) -> Any:
        iterated = root in ITERATED and name != root
        if iterated or root not in matter or name not in FORMULA_TABLE:
            return formula(*arguments, **keywords)
        if arguments and isinstance(arguments[0], Values):
            within.setdefault(root, Values(arguments[0]))
        places: dict[int, Any] = {}

        def see(place: int, value: Any) -> Any:
            places.setdefault(place, value)
            return value

        try:
            value = instrument(FORMULA_TABLE[name]).made(see)(*arguments, **keywords)
        except ERRORS:
            return formula(*arguments, **keywords)
        places[RESULT] = value
        outer = within.get(root) if root != name else None
        known = found.get((root, name))
        if known is None or not places.keys() <= known.places.keys():  # a branch of a later step
            v = Values(reading(FORMULA_TABLE[name], arguments, outer))
            places = {**(known.places if known else {}), **places}
            found[root, name] = Call(root=root, inner=name, v=v, places=places)
        return value

    problem.value({}, _watching(record))
    order = list(called)
    return sorted(found.values(), key=lambda c: -order.index((c.root, c.inner)))


def _matters(problem: Problem, root: str) -> bool:
    """Return whether a quantity depends on what a formula gives."""
    formula, able = FORMULA_TABLE.get(root), []
    if formula is None:
        return False

    def moved(*arguments: Any, **keywords: Any) -> Any:
        value = formula(*arguments, **keywords)
        new = _moved(value)
        able.append(new is not None)
        return value if new is None else new

    value = problem.value({root: moved})
    return any(able) and (value is None or not np.array_equal(value, problem.right))


def _number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_ | int | float | np.floating | np.integer):
        return True
    return isinstance(value, np.ndarray) and value.dtype.kind in "fb" and value.size > 0


def sites(problem: Problem) -> Iterator[Site]:
    """Yield every place at which a quantity's formulas hold an array, a number or a choice."""
    for call in calls(problem):
        yield from _of(call)


def _of(call: Call) -> Iterator[Site]:
    for place in sorted(call.places):
        value = call.places[place]
        if _number(value):
            yield Site(call=call, place=place, value=value)


def formed(places: Iterable[Site]) -> Iterator[Site]:
    """Yield the places of the other forms in which formulas may be written."""
    for call in dict.fromkeys(site.call for site in places if site.call.inner == site.call.root):
        for name, (root, formula, _) in FORMS.items():
            if root != call.root:
                continue
            seen: dict[int, Any] = {}
            try:
                value = instrument(formula).made(seen.setdefault)(call.v)
            except ERRORS:
                continue
            seen[RESULT] = value
            yield from _of(Call(root=root, inner=name, v=call.v, places=seen))


def arrays_of(v: Values) -> dict[str, Array]:
    """Return the arrays among the quantities."""
    return {
        name: a for name, a in v.items()
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size > 0
        and not (name.endswith(EARLIER) and a is v.get(name.removesuffix(EARLIER)))
    }  # fmt: skip
