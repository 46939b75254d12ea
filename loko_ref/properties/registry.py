"""The table of properties: name, operation, derivation, domain, problems, statement, check.

A module of facts registers its own with :func:`fact`; :func:`all_properties` reads them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module

from loko_ref.errors import unknown_option
from loko_ref.properties.trial import Problems, Property, Trial

_PROPERTIES: dict[str, Property] = {}
_PARTS = (
    *("filter", "lowrank", "observation", "lora", "optimizers", "network", "attention"),
    *("loko", "symmetry", "lte", "lte_run"),
)

Check = Callable[[Trial], None]


def fact(
    operations: str,
    name: str,
    labels: str,
    statement: str,
    problems: Callable[[str], Problems],
    domain: str = "all",
) -> Callable[[Check], Check]:
    """Register the decorated check as a property of each of the operations.

    Parameters
    ----------
    operations, labels : str
        Names, separated by blanks.
    name, statement, domain : str
        As in :class:`Property`.
    problems : callable
        Operation -> its problems.
    """

    def register(check: Check) -> Check:
        for operation in operations.split():
            key = f"{operation}/{name}"
            if key in _PROPERTIES:
                raise AssertionError(f"property {key} is defined twice")
            _PROPERTIES[key] = Property(
                name=key,
                operation=operation,
                labels=tuple(labels.split()),
                domain=domain,
                statement=statement,
                problems=problems(operation),
                check=check,
            )
        return check

    return register


@cache
def all_properties() -> Mapping[str, Property]:
    """Return every property by its name, in the order of the catalogue's operations."""
    from loko_ref.conformance.catalogue.registry import OPERATIONS

    for part in _PARTS:
        import_module(f"loko_ref.properties.facts.{part}")  # which registers its own
    order = list(OPERATIONS)
    return dict(sorted(_PROPERTIES.items(), key=lambda item: order.index(item[1].operation)))


def get(name: str) -> Property:
    """Return a property by its name; an unknown one is an InputError naming the closest."""
    known = all_properties()
    if not isinstance(name, str) or name not in known:
        raise unknown_option("property", name, known)
    return known[name]
