"""The score over generated mistakes: how many are caught, and named by an equivalent formula?

A mistake is one change of a formula's syntax tree (:mod:`syntax`), or two of different formulas.
It becomes an implementation as the known ones do, in two forms: one returns everything, one its
results alone. It runs on a seeded few of the cases that reach the changed line. A name is right if
the plain route under the named formula agrees with the mistaken program on fresh inputs of other
shapes (:mod:`fresh`), which the search has not seen.
"""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.assessment.fresh import Fresh, fresh
from loko_ref.conformance.assessment.reach import Reach, few, float64
from loko_ref.conformance.assessment.syntax import Change, drawn
from loko_ref.conformance.cases.registry import Case, Draw
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.mistakes.registry import Mutant, as_implementation
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

FORMS = ("everything", "results")
"""What an implementation returns: every output, or its results alone."""

INPUTS = 32
"""Fresh inputs that a name is held against, over the operations that bear it; at least 4 of each.
"""

ENOUGH = 12
"""Of these, about how many are asked whether a mistake changes a number at all."""

NOISE = 2.0**-43
"""Relative size of the disturbance that shows which those are."""

RELATIVE, OF_LARGEST = 1e-7, 1e-11
"""Two results agree where they differ by no more than this part of an element, and of the largest:
rounding on the fresh inputs, which are well conditioned, stays below a tenth of it."""

_RAISED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError),
    *(RuntimeError, TypeError, ValueError),
)
"""What a changed formula may raise."""


@dataclass(frozen=True, eq=False)
class Mistake:
    """One change, or two of different formulas."""

    changes: tuple[Change, ...]

    @cached_property
    def table(self) -> dict[str, Callable[..., Any]]:
        """The changed entries of the table of formulas."""
        return {key: f for change in self.changes for key, f in change.table().items()}

    @cached_property
    def outputs(self) -> dict[Any, dict[str, Array] | None]:
        """What :func:`evaluated` has computed, by inputs and by whether they were moved."""
        return {}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the rules that are changed for a while."""
        with contextlib.ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.in_place())
            yield

    def implementation(self, form: str) -> Implementation:
        """Turn it into an implementation of every operation, with rounding errors of its own."""
        one = Mutant(id="GENERATED", name="", explanation="", look="", changes=lambda _: self.table)

        def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(**keywords: Any) -> dict[str, Any]:
                with self.in_place():
                    out = function(**keywords)
                kept = results(name, out) if form == "results" else tuple(out)
                return {key: out[key] for key in kept}

            return call

        functions = {name: wrapped(name, f) for name, f in as_implementation(one).items()}
        return Implementation(target="generated", functions=functions)


def results(operation: str, names: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Return the outputs of an operation that code which keeps nothing on the way returns.

    Examples
    --------
    >>> results("loko.step", ["p_pred", "z", "Z", "S", "K", "theta", "p", "R"])
    ('theta', 'p', 'R')
    >>> results("observation.softmax", ["yhat", "e", "H"])
    ('e', 'H')
    """
    wanted = {"observation": ("e", "H", "R"), "model": ("Z",)}.get(operation.split(".")[0])
    found = tuple(name for name in names if name in (wanted or ("theta", "p", "P", "R", "W")))
    return found or tuple(names)


# ------------------------------------------------------------------------------ evaluation


def plain(
    operation: Operation,
    inputs: Any,
    options: Mapping[str, Any],
    table: Mapping[str, Any],
    keep: Callable[[str, Any], Any] = identity,
) -> dict[str, Array] | None:
    """Run the plain route; None where a formula raises."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            out = operation.plain(inputs, dict(options), table, keep)
            return {name: np.asarray(value, dtype=np.float64) for name, value in out.items()}
        except _RAISED:
            return None


@lru_cache(maxsize=4096)
def _right(one: Fresh) -> dict[str, Array]:
    out = plain(one.operation, one.inputs, one.options, FORMULA_TABLE)
    assert out is not None
    return out


def evaluated(
    mistake: Mistake, one: Fresh, keep: Callable[[str, Any], Any] = identity
) -> dict[str, Array] | None:
    """Compute the mistaken program's outputs; None where it raises."""
    if (one, keep) in mistake.outputs:
        return mistake.outputs[one, keep]
    with mistake.in_place():
        table = {**FORMULA_TABLE, **mistake.table}
        out = plain(one.operation, one.inputs, one.options, table, keep)
    if keep in (identity, moved):  # other hooks note what passes: those have to be called
        mistake.outputs[one, keep] = out
    return out


def moved(name: str, value: Any) -> Any:
    """Move a quantity by a thousand roundoffs: what changes much by that can name nothing."""
    return value * (1 + NOISE * Draw(name)(*np.shape(value)))


def agree(a: Mapping[str, Array] | None, b: Mapping[str, Array] | None, names: Any) -> bool:
    """Return whether two sets of outputs agree in those of some names, to rounding."""
    if a is None or b is None:
        return a is b
    for name in names:
        x, y = a[name], b.get(name, np.zeros(0))
        if x.shape != y.shape:
            return False
        size = np.max(np.abs(y), initial=0.0, where=np.isfinite(y))
        if not np.allclose(x, y, rtol=RELATIVE, atol=OF_LARGEST * size, equal_nan=True):
            return False
    return True


def judged(form: str, one: Fresh, out: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the outputs that a form is compared by; of K on the simplex a part is a convention."""
    kept = results(one.operation.name, out) if form == "results" else tuple(out)
    soft = one.options.get("observation") in ("softmax", "glm")
    return tuple(name for name in kept if not (soft and name == "K"))


def fresh_inputs(cases: Sequence[Case]) -> list[Fresh]:
    """Return fresh inputs made from cases, of each operation about as many."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.operation.name].append(case)
    each = max(4, -(-INPUTS // max(1, len(groups))))
    return [
        fresh(group[k % len(group)], k // len(group))
        for group in groups.values()
        for k in range(each)
    ]


def differs(mistake: Mistake, cases: Sequence[Case]) -> dict[str, bool] | None:
    """Return by form whether fresh inputs show a difference; None where most raise."""
    found, raised, inputs = dict.fromkeys(FORMS, False), 0, fresh_inputs(cases)
    inputs = inputs[:: -(-len(inputs) // ENOUGH)]
    for one in inputs:
        right, wrong = _right(one), evaluated(mistake, one)
        if wrong is None or any(wrong[name].shape != a.shape for name, a in right.items()):
            raised += 1
            continue
        for form in FORMS:
            found[form] |= not agree(right, wrong, judged(form, one, right))
    return None if 2 * raised > len(inputs) else found


# ---------------------------------------------------------------------------------- the draw


def chosen(mistake: Mistake, cases: Sequence[Case], seed: int) -> list[Case]:
    """Draw a few of the cases for a mistake, most of which show it."""

    def shows(case: Case) -> bool:
        one = _given(case)
        return not agree(evaluated(mistake, one), right := _right(one), right)

    return few(cases, f"{seed} {_key(mistake)}", shows)


@lru_cache(maxsize=4096)
def _given(case: Case) -> Fresh:
    inputs = float64(case.inputs())
    return Fresh(operation=case.operation, inputs=inputs, options=case.options)


def _key(mistake: Mistake) -> int:
    return zlib.crc32("\n".join(c.formula.name + c.diff for c in mistake.changes).encode())


def mistakes(seed: int, double: bool, reach: Reach) -> Iterator[Mistake]:
    """Draw mistakes, single or double; the two of a double one share a case."""
    alone: list[Change] = []
    for change in drawn(seed, lambda formula: formula in reach):
        ids = {case.id for case in reach.cases(change)}
        if not ids:
            continue
        if not double:
            yield Mistake((change,))
            continue
        if not _shows(Mistake((change,)), reach):
            continue
        for k, other in enumerate(alone):
            shared = ids & {case.id for case in reach.cases(other)}
            if shared and other.formula is not change.formula:
                yield Mistake((alone.pop(k), change))
                break
        else:
            alone.append(change)


def _shows(mistake: Mistake, reach: Reach) -> bool:
    """Return whether one change changes a number, and raises nothing."""
    found = differs(mistake, chosen(mistake, reach.cases(mistake.changes[0]), 0))
    return found is not None and all(found.values())
