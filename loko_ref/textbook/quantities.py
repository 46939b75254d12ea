"""What the table of quantities is made of: a quantity, its parents, its formula, its equation.

:mod:`loko_ref.textbook.loko` lists those of LoKO, :mod:`loko_ref.textbook.network` those of a
network, layer by layer, :mod:`loko_ref.textbook.optimizers` those of the optimizers,
:mod:`loko_ref.textbook.lte` those of LTE. A formula is named, and stands in a table in which a
known mistake replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Formula = Callable[..., Any]


def identity(name: str, value: Any) -> Any:
    """Keep a quantity as it is."""
    return value


def scalar(v: Values, name: str, value: float) -> float:
    """Return a number computed from options alone; a hook may move it.  [TOL-7]."""
    moved: float = getattr(v.keep, "scalar", identity)(name, value)
    return moved


def inner(keep: Formula, head: int | None = None) -> Formula:
    """Return the hook for what is computed within a quantity, or for one head's quantities.

    A hook that distinguishes the quantities of a step has a method ``inner``.
    """
    found: Formula = getattr(keep, "inner", lambda head: keep)(head)
    return found


class Values(dict[str, Any]):
    """Named inputs, options and quantities of one evaluation; ``v.S`` reads ``v["S"]``.

    ``v.F`` is the table of formulas; ``v.keep(name, array)`` is called on each quantity as it
    arises and may replace it.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity of the dataflow."""

    name: str  # its name on the way; `_post` marks what the step hands on
    parents: tuple[str, ...]  # what it is computed from
    # its entry in the table of formulas, which a known mistake replaces; "" for a copy
    formula: str
    equation: str  # the right-hand side, in the letters of the derivations
    labels: tuple[str, ...]  # where it is derived
    shape: str = ""  # its axes, by the letters of its module
    # `(values) -> value`, where the formula is no function of the values as a whole
    rule: Formula | None = None
    # whether it is a copy, or its rounding error is counted in what it is made of or goes into
    exact: bool = False
    hidden: bool = False  # whether no operation returns it
    network: bool = False  # whether it takes a run of the network, which a recording does not hold
    # formula, then parents, by which a returned value is judged where they differ: an
    # implementation returns S and not what a better conditioned form of K is made of
    returned: tuple[str, ...] = ()

    @property
    def given_returned(self) -> tuple[str, tuple[str, ...]]:
        """Formula and parents by which a returned value is judged."""
        if self.returned:
            return self.returned[0], self.returned[1:]
        return self.formula, self.parents

    def compute(self, v: Values, formula: str = "") -> Any:
        """Compute it from the values, by the formula of its name or another; kept by the hook."""
        value = self.rule(v) if self.rule else v.F[formula or self.formula](v)
        keep = getattr(v.keep, "exact", identity) if self.exact else v.keep
        return keep(self.name, value)


def quantity(
    name: str, parents: str, formula: str, equation: str, labels: str, **more: Any
) -> Quantity:
    """Write a quantity; parents and labels stand side by side in a string."""
    return Quantity(
        name=name,
        parents=tuple(parents.split()),
        formula=formula,
        equation=equation,
        labels=tuple(labels.split()),
        **more,
    )


def evaluate(v: Values, flow: Iterable[Quantity]) -> dict[str, Any]:
    """Compute quantities in order by the table of formulas, each kept by the hook.

    Returns
    -------
    dict
        Each as it was when it arose: a mistaken formula may change what was there before it.
    """
    found, keep = {}, v["keep"]
    exact = getattr(keep, "exact", identity)
    for q in flow:  # as ``compute`` does, at half its cost
        value = q.rule(v) if q.rule is not None else v["F"][q.formula](v)
        found[q.name] = v[q.name] = (exact if q.exact else keep)(q.name, value)
    return found


class Lazy(Values):
    """Values of which some are given; what is asked for and not there is computed by a table.

    So each quantity can be had from the parents that it came with: those that are given are taken
    as they are.
    """

    def __init__(self, flow: Iterable[Quantity], *given: Mapping[str, Any], **more: Any) -> None:
        super().__init__()
        self._table = {q.name: q for q in flow}
        for values in (*given, more):
            self.update(values)

    def __missing__(self, name: str) -> Any:
        if name not in self._table:
            raise KeyError(name)
        needed, stack = {name}, [name]
        while stack:
            for parent in self._table[stack.pop()].given_returned[1]:
                if parent in self._table and parent not in self and parent not in needed:
                    needed.add(parent)
                    stack.append(parent)
        for key, q in self._table.items():  # in their order: a deep network is no deep recursion
            if key in needed and key not in self:
                if q.network:
                    raise KeyError(key)
                self[key] = q.compute(self, q.given_returned[0])
        return self[name]

    def follow(self, name: str, otherwise: Mapping[str, Any] | None = None) -> Any:
        """Compute a quantity anew from its parents; `otherwise` holds what else is not there."""
        q = self._table[name]
        for parent in q.given_returned[1]:
            if parent in self._table:
                _ = self[parent]
        for other, value in (otherwise or {}).items():
            self.setdefault(other, value)
        self[name] = q.compute(self, q.given_returned[0])
        return self[name]


def origins(name: str, flow: Iterable[Quantity]) -> tuple[str, ...]:
    """List what a quantity comes from, with what no operation returns resolved."""
    by_name = {q.name: q for q in flow}
    found: dict[str, None] = {}
    seen: set[str] = set()

    def add(parents: Iterable[str]) -> None:
        for parent in parents:
            q = by_name.get(parent)
            if q is None or not q.hidden:
                found[parent] = None
            elif parent not in seen:
                seen.add(parent)
                add(q.given_returned[1])

    add(by_name[name].given_returned[1])
    return tuple(found)


def missing(name: str, have: Iterable[str], flow: Iterable[Quantity]) -> list[str]:
    """List what a quantity needs that is neither given nor computed without the network."""
    table = {q.name: q for q in flow}
    found: dict[str, None] = {}
    seen = set(have)

    def add(parents: Iterable[str]) -> None:
        for parent in parents:
            if parent not in seen:
                seen.add(parent)
                q = table.get(parent)
                if q is None or q.network:
                    found[parent] = None
                else:
                    add(q.given_returned[1])

    add(table[name].given_returned[1])
    return list(found)


_FAMILIES = ("LAY", "ATT", "LORA", "KAL", "DIAG", "OBS", "NOISE", "LOKO")


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort derivation labels by family, then number."""
    pairs = (one.split("-") for one in labels)
    key = sorted((_FAMILIES.index(family), int(number)) for family, number in pairs)
    return [f"{_FAMILIES[family]}-{number}" for family, number in key]
