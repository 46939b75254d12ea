"""The implementation called once more, on inputs of no case: where one input alone shows a fault.

A name that one input bears out may be chance: other numbers of the same case confirm or belie it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from loko_ref.conformance.cases.registry import Case, Draw, Recipe
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.engine import Check, judge
from loko_ref.conformance.implementations.python import Runnable

__all__ = ["Again", "calling", "fresh_cases"]

Again = Callable[[Case], tuple[Check, ...]]
"""From a case to the checks of the same case with other numbers; none where there are no others."""

FRESH = 2
"""Other inputs of a case."""

RUNS = ("loko.run", "lte.run")
"""Operations whose cases hold many steps: each confirms the one before."""


def _giving(inputs: Any) -> Any:
    return lambda draw, dtype: inputs


def _other(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with each number a little smaller, by a factor of its own."""
    shrunk = {
        name: value * (1 - 1 / (7 + 3 * at))
        for at, (name, value) in enumerate(options.items())
        if isinstance(value, float)
    }
    return {**options, **shrunk}


def fresh_cases(case: Case, dtype: str = "float64") -> Iterator[Case]:
    """Yield a case with other numbers, at last with other options too: two may be equal by chance.

    Nothing where its numbers are no draw's.
    """
    recipe = case.recipe
    if recipe.operation not in OPERATIONS or "[" in recipe.name:
        return  # a quantity of a recording, or a step of a run
    given = case.inputs()
    for seed in range(FRESH):
        name = f"fresh-{seed}-{recipe.name}"
        inputs = recipe.build(Draw(f"{recipe.operation}/{recipe.name}/{seed}"), dtype)
        if all(np.array_equal(inputs[k], a) for k, a in given.items() if k != "weights"):
            return
        options = _other(recipe.options) if seed else recipe.options
        again: Recipe = replace(recipe, name=name, build=_giving(inputs), options=options)
        yield replace(case, id=f"{recipe.operation}/{name}/{dtype}", recipe=again, dtype=dtype)


def calling(implementation: Runnable, timeout: float | None) -> Again:
    """Return what calls an implementation with other numbers of a case, once for each case."""

    @cache
    def again(case: Case) -> tuple[Check, ...]:
        if case.operation.name in RUNS:
            return ()
        return tuple(judge(one, implementation.run(one, timeout)) for one in fresh_cases(case))

    return again
