"""What the table of quantities is made of: a quantity, its parents, its formula, its equation.

:mod:`loko_ref.textbook.loko` lists those of LoKO, :mod:`loko_ref.textbook.optimizers` those
of the optimizers. A formula is named, and stands in a table in which a known mistake replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loko_ref.textbook.values import Values, identity

__all__ = ["HIDDEN", "Quantity", "evaluate", "in_order", "origins", "quantity"]

HIDDEN = ("r", "HpH")
"""What no operation returns: on the way to R."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity of the dataflow.

    Attributes
    ----------
    name : str
        Its name on the way; ``_post`` marks what the step hands on.
    parents : tuple of str
        What it is computed from.
    formula : str
        Its entry in the table of formulas, which a known mistake replaces.
    equation : str
        The right-hand side, in the letters of the derivations.
    labels : tuple of str
        Where it is derived.
    exact : bool
        Whether it is a copy, which has no rounding error of its own.
    network : bool
        Whether it takes a run of the network, which a recording does not hold.
    returned : tuple of str
        Formula, then parents, by which a returned value is judged where they differ: an
        implementation returns S and not what a better conditioned form of K is made of.
    """

    name: str
    parents: tuple[str, ...]
    formula: str
    equation: str
    labels: tuple[str, ...]
    exact: bool = False
    network: bool = False
    returned: tuple[str, ...] = ()

    @property
    def given_returned(self) -> tuple[str, tuple[str, ...]]:
        """Formula and parents by which a returned value is judged."""
        if self.returned:
            return self.returned[0], self.returned[1:]
        return self.formula, self.parents


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
    found = {}
    for q in flow:
        value = v.F[q.formula](v)
        keep = getattr(v.keep, "exact", identity) if q.exact else v.keep
        found[q.name] = v[q.name] = keep(q.name, value)
    return found


def origins(name: str, flow: Iterable[Quantity]) -> tuple[str, ...]:
    """List what a quantity comes from, with what no operation returns resolved."""
    by_name = {q.name: q for q in flow}
    found: dict[str, None] = {}
    for parent in by_name[name].given_returned[1]:
        hidden = parent in HIDDEN and parent in by_name
        found |= dict.fromkeys(origins(parent, by_name.values()) if hidden else [parent])
    return tuple(found)


_FAMILIES = ("LAY", "ATT", "LORA", "KAL", "DIAG", "OBS", "NOISE", "LOKO")


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort derivation labels by family, then number."""
    pairs = (one.split("-") for one in labels)
    key = sorted((_FAMILIES.index(family), int(number)) for family, number in pairs)
    return [f"{_FAMILIES[family]}-{number}" for family, number in key]
