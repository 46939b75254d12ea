"""Known mistakes: each a variant of the plain route that differs in one formula.

A mutant has an id that is never reused, a name, an explanation and the line to look at. Where it
has a size (a jitter, a clip, a factor), that one number is fitted to what is seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.judge.tolerance import _Disturb, _inputs, _wide
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

__all__ = [
    "NOTHING",
    "Apply",
    "Changes",
    "Mutant",
    "all_mutants",
    "as_implementation",
    "dtype_of",
    "evaluate",
    "formulas_of",
    "functions_by",
    "idle",
    "mutant",
]

Changes = Mapping[str, Callable[..., Any]]
"""Formula name -> the wrong formula."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mutant:
    """A realistic mistake.

    Attributes
    ----------
    id, name, explanation : str
        What it is called and what it does.
    look : str
        The right line, where the wrong one would stand.
    changes : callable
        From the size (None where there is none) to the changed formulas.
    sizes : tuple of float
        Sizes to begin a fit from; empty where it has none.
    example : float or None
        A size at which it is shown.
    roundoff : float
        For a mistake of precision: its unit roundoff; 0 else.
    """

    id: str
    name: str
    explanation: str
    look: str
    changes: Callable[[float | None], Changes]
    sizes: tuple[float, ...] = ()
    example: float | None = None
    roundoff: float = 0.0


_MUTANTS: dict[str, Mutant] = {}

_PARTS = (
    *(
        f"kalman.{part}"
        for part in ("filter", "time", "observation", "implicit", "batch", "noise", "lowrank")
    ),
    *("lte", "lte_run"),
    *(f"network.{part}" for part in ("norm", "attention", "block", "ends", "model")),
    *("descent", "runs"),
    "edges",
)


def mutant(
    key: str,
    name: str,
    explanation: str,
    look: str,
    changes: Changes | Callable[[float], Changes] | None = None,
    *,
    sizes: tuple[float, ...] = (),
    example: float | None = None,
    roundoff: float = 0.0,
) -> None:
    """Register a mutant; `changes` is a table, or a function of the size."""
    if key in _MUTANTS:
        raise AssertionError(f"mutant {key} is defined twice")

    def table(size: float | None) -> Changes:
        if callable(changes):
            assert size is not None
            return changes(size)
        return changes or {}

    _MUTANTS[key] = Mutant(
        id=key,
        name=name,
        explanation=explanation,
        look=look,
        changes=table,
        sizes=sizes,
        example=example,
        roundoff=roundoff,
    )


@cache
def all_mutants() -> tuple[Mutant, ...]:
    """Every mutant, in the order of the dataflow."""
    for part in _PARTS:
        import_module(f"loko_ref.conformance.mistakes.{part}")  # which registers its own
    return tuple(_MUTANTS.values())


class _Lower:
    """The hook that rounds each quantity to a coarser float."""

    def __init__(self, roundoff: float) -> None:
        self._bits = round(-np.log2(roundoff))

    def __call__(self, name: str, value: Any) -> Any:
        fraction, exponent = np.frexp(value)
        return np.ldexp(np.round(np.ldexp(fraction, self._bits)), exponent - self._bits)


@lru_cache(maxsize=1024)
def formulas_of(case: Case) -> frozenset[str]:
    """Name the formulas that a case calls: a mutant of others alone changes nothing in it."""
    called: set[str] = set()

    def noted(name: str, formula: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            called.add(name)
            return formula(*arguments, **keywords)

        return call

    table = {name: noted(name, formula) for name, formula in FORMULA_TABLE.items()}
    case.operation.plain(_wide(_inputs(case)), case.options, table, identity)
    return frozenset(called)


def idle(one: Mutant, case: Case) -> bool:
    """Return whether a case calls none of the formulas that a mutant changes."""
    return not one.roundoff and formulas_of(case).isdisjoint(one.changes(one.example))


@lru_cache(maxsize=4096)
def evaluate(
    one: Mutant, case: Case, size: float | None = None, disturbance: int | None = None
) -> Mapping[str, Array] | None:
    """Compute a mutant's outputs on a case, float64; None where it does not apply.

    Parameters
    ----------
    one : Mutant
        The mistake.
    case : Case
        Its inputs.
    size : float, optional
        Of the mistake.
    disturbance : int, optional
        Seed of a disturbance by ``tolerance.DELTA``, for its unit of error.
    """
    table = {**FORMULA_TABLE, **one.changes(size)}
    inputs: Any = _wide(_inputs(case))
    keep: Any = _Lower(one.roundoff) if one.roundoff else identity
    if disturbance is not None:
        keep = _Disturb(zlib.crc32(case.id.encode()) + disturbance)
        inputs = keep.inputs(inputs, case.exact)
    try:
        with np.errstate(all="ignore"):
            out = case.operation.plain(inputs, case.options, table, keep)
    except (AttributeError, KeyError, ValueError, IndexError, np.linalg.LinAlgError):
        return None
    return {name: np.asarray(value, dtype=np.float64) for name, value in out.items()}


Apply = Callable[[Operation, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
"""From an operation, its inputs and its options to its outputs."""


def functions_by(apply: Apply) -> dict[str, Callable[..., Any]]:
    """Return an implementation of every operation, as a function of keywords each, by one rule."""

    def function_of(operation: Operation) -> Callable[..., Any]:
        taken = {i.name for i in operation.inputs}

        def function(**keywords: Any) -> dict[str, Any]:
            inputs = {k: a for k, a in keywords.items() if k in taken}
            return apply(operation, inputs, {k: a for k, a in keywords.items() if k not in taken})

        return function

    return {name: function_of(operation) for name, operation in OPERATIONS.items()}


def dtype_of(inputs: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the dtype of the first input that is an array."""
    found: np.dtype[Any] = next(a for a in inputs.values() if not isinstance(a, Mapping)).dtype
    return found


def as_implementation(one: Mutant, size: float | None = None) -> dict[str, Callable[..., Any]]:
    """Turn a mutant into an implementation of every operation, with rounding errors of its own.

    Each quantity is moved at random by up to a unit roundoff of the case's dtype, so that it does
    not agree to the last bit with what :func:`evaluate` gives.
    """
    table = {**FORMULA_TABLE, **one.changes(size)}

    def apply(operation: Operation, inputs: Mapping[str, Any], options: Any) -> dict[str, Any]:
        dtype = dtype_of(inputs)
        u = float(np.finfo(dtype).eps) / 2
        rng = np.random.Generator(np.random.PCG64(1))
        lower = _Lower(one.roundoff) if one.roundoff > u else identity

        def keep(key: str, value: Any) -> Any:
            noise = 1 + u * (2 * rng.random(np.shape(value)) - 1)
            return lower(key, value) * noise

        with np.errstate(all="ignore"):
            out = operation.plain(_wide(inputs), options, table, keep)
        return {key: np.asarray(value).astype(dtype) for key, value in out.items()}

    return functions_by(apply)


NOTHING = Mutant(id="NONE", name="", explanation="", look="", changes=lambda size: {})
"""The mistake that changes no formula: right code with rounding errors of its own."""
