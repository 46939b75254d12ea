"""A quantity that came out wrong, and what any formulas give for it at the parents that came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case, Recipe
from loko_ref.conformance.judge.given import LEVELS, Reading, Step
from loko_ref.conformance.judge.hook import given, started, state
from loko_ref.conformance.judge.tolerance import _inputs, _wide, canonical, factor, tolerance
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import dataflow, output_name
from loko_ref.textbook.operations import lowrank_update, measured, precision_values, prior
from loko_ref.textbook.quantities import Formula, Quantity, Values, evaluate, identity

__all__ = ["EARLIER", "ERRORS", "MOVED", "Problem", "cut"]

Table = Mapping[str, Formula]
Calls = list[tuple[list[Any], dict[str, Any]]]

MOVED = 1 + 2.0**-12
"""Factor by which a formula's result is moved, to see what depends on it."""

ERRORS = (ArithmeticError, AttributeError, IndexError, KeyError, MemoryError, NameError,
          RecursionError, TypeError, ValueError, np.linalg.LinAlgError)  # fmt: skip
"""What a formula may raise that a change makes meaningless."""

EARLIER = " of the step before"
"""What the name of a quantity of the step before ends with; at the first step it is this one's."""

LEFT = 1e-6
"""Part of an error that a formula may leave where tolerances are too fine for it."""

NEAR = 1e4
"""Largest tolerances of the right formula within which a candidate's own are found."""


def cut(case: Case, outputs: Mapping[str, Array], step: int) -> tuple[Case, dict[str, Array]]:
    """Return one step of a run as a case of its own, from the state that the last one returned."""
    inputs = dict(_inputs(case))
    inputs |= {k: inputs[k][step] for k in ("x", "y")}
    if step:
        before = {k: outputs[k][step - 1] for k in state(case) if k in outputs}
        inputs = started(inputs, before)
    recipe = Recipe(operation="loko.step", name=f"{case.recipe.name}[{step}]",
                    build=lambda draw, dtype: inputs, options=case.recipe.options)  # fmt: skip
    one = Case(id=f"{case.id}[{step}]", recipe=recipe, dtype=case.dtype)
    return one, {name: value[step] for name, value in outputs.items()}


@dataclass(eq=False)
class Problem:
    """A quantity of one check.

    Attributes
    ----------
    case : Case
        Its inputs and options; of a run of LoKO, one step.
    quantity : str
        Which output.
    outputs : mapping of str to array
        What came back.
    check : str
        Id of the check.
    taken : frozenset of str
        Parents that are taken as they were returned.
    earlier : mapping of str to array
        Of a step of a run, what the step before it was given and returned.
    later : Problem or None
        The same quantity in the last step of the run: a formula holds there too.
    spent : int
        Work done so far: quantities computed.
    """

    case: Case
    quantity: str
    outputs: Mapping[str, Array]
    check: str
    taken: frozenset[str]
    earlier: Mapping[str, Array] = field(default_factory=dict)
    later: Problem | None = None
    _direct: dict[str, Calls | None] = field(default_factory=dict)
    spent: int = 0

    @cached_property
    def inputs(self) -> Any:
        """Inputs in float64."""
        return _wide(_inputs(self.case))

    @cached_property
    def came(self) -> dict[str, Array]:
        """What takes the place of what is computed."""
        return {k: self.outputs[k].astype(np.float64) for k in self.taken if k in self.outputs}

    @cached_property
    def got(self) -> Array:
        """What came back of the quantity."""
        return canonical(self.case, self.quantity, self.outputs[self.quantity].astype(np.float64))

    @cached_property
    def _walked(self) -> tuple[Values, tuple[Quantity, ...]] | None:
        """Values at what came, and the quantities that lead to this one.

        Of a step of LoKO whose network's outputs came, and of an update of a precision.
        """
        case, o = self.case, self.case.options
        hook = given(case, self.came)
        if case.operation.plain is lowrank_update:
            v, quantities = precision_values(self.inputs, o, FORMULA_TABLE, hook)
            with suppress(*ERRORS):  # what has no value at what came is not there
                evaluate(v, quantities)
        elif case.operation.name == "loko.step" and {"z", "Z"} <= set(self.came):
            if self.quantity in ("z", "Z"):
                return None
            v = Values(self.inputs, **o, F=FORMULA_TABLE, keep=hook)
            v["z"] = self.came["z"].reshape(-1, self.inputs["y"].shape[-1])
            v["Z"] = self.came["Z"]
            with suppress(*ERRORS):
                measured(prior(v))
            quantities = dataflow({k: a for k, a in o.items() if k != "spec"})
        else:
            return None
        v["keep"] = identity
        flow = {q.name: q for q in quantities}
        named = {output_name(name, o): name for name in flow}
        wanted, stack = {named[self.quantity]}, [named[self.quantity]]
        while stack:
            for parent in flow[stack.pop()].parents:
                q = flow.get(parent)
                if q is None or q.network or parent in wanted:
                    continue
                if q.hidden or output_name(parent, o) not in self.came:
                    wanted.add(parent)
                    stack.append(parent)
        own = list(flow).index(named[self.quantity])
        for name in (*wanted, *list(flow)[own:]):  # nothing that it is, or that comes of it
            v.pop(name, None)
        known = {k: a for k, a in v.items() if k == "y" or output_name(k, o) in self.came}
        before = {k: np.reshape(a, np.shape(known.get(k, a))) for k, a in self.earlier.items()}
        v |= {k + EARLIER: a for k, a in {**known, **before}.items()}
        return v, tuple(q for name, q in flow.items() if name in wanted)

    def _step(self, table: Table) -> Any:
        """Compute the quantity from what came, without the network."""
        assert self._walked is not None
        v, flow = self._walked
        w = Values(v)
        w["F"] = table
        for q in flow:
            w[q.name] = q.compute(w)
        return w[flow[-1].name]

    def value(self, changes: Table, watch: Callable[[Table], Table] = dict) -> Array | None:
        """Compute the quantity with some formulas changed; None where that has no meaning.

        Parameters
        ----------
        changes : mapping of str to callable
            The formulas.
        watch : callable, optional
            Wraps the table.
        """
        if watch is dict and len(set(changes.values())) == 1:
            root, formula = self._own(changes)
            if self._direct[root] is not None:
                return self._at_once(formula, self._direct[root] or [])
        self.spent += self.walk
        table = watch({**FORMULA_TABLE, **changes})
        hook = given(self.case, self.came)
        plain, o = self.case.operation.plain, self.case.options
        try:
            with np.errstate(all="ignore"):
                if self._walked is not None:
                    return self._finished(np.reshape(self._step(table), self.got.shape))
                out = hook.outputs(plain(self.inputs, o, table, hook))
        except ERRORS:
            return None
        return self._finished(out.get(self.quantity))

    def every(self, changes: Table) -> dict[str, Any]:
        """Compute all quantities at what came, with some formulas changed; none without meaning."""
        hook = given(self.case, self.came)
        try:
            with np.errstate(all="ignore"):
                table = {**FORMULA_TABLE, **changes}
                return dict(
                    hook.outputs(
                        self.case.operation.plain(self.inputs, self.case.options, table, hook)
                    )
                )
        except ERRORS:
            return {}

    def belies(self, changes: Table) -> bool:
        """Return whether changed formulas alter another quantity, and not to what came of it."""
        right, changed = self.every({}), self.every(changes)
        for name in self.outputs:
            if name == self.quantity or name not in right or name not in changed:
                continue
            other = Problem(case=self.case, quantity=name, outputs=self.outputs,
                            check=self.check, taken=self.taken)  # fmt: skip
            a, b = (other._finished(found[name]) for found in (right, changed))
            if a is None or b is None or np.array_equal(a, b):
                continue
            if np.any(np.abs(other.got - b) > 4 * other.loose) and not other.fits(changes, b):
                return True
        return False

    def _finished(self, found: Any) -> Array | None:
        if found is None or np.shape(found) != self.got.shape or np.iscomplexobj(found):
            return None
        found = np.asarray(found, dtype=np.float64)
        return canonical(self.case, self.quantity, found) if np.isfinite(found).all() else None

    def _own(self, changes: Table) -> tuple[str, Formula]:
        """Return the one of some names of a formula that the quantity has."""
        for root in changes:
            if root not in self._direct:
                self._direct[root] = self._calls(root)
        named = next((r for r in changes if self._direct[r] is not None), next(iter(changes)))
        return named, changes[named]

    def _calls(self, root: str) -> Calls | None:
        """Return with what a formula is called whose result is the quantity itself, or None."""
        formula, found = FORMULA_TABLE.get(root), []
        if formula is None or self.case.operation.name == "lte.run":  # there, of one head
            return None

        def noted(*arguments: Any, **keywords: Any) -> Any:
            own = [Values(a) if type(a) is Values else a for a in arguments]
            value = formula(*arguments, **keywords)
            found.append((own, keywords))
            return value * MOVED if isinstance(value, np.ndarray) else value

        moved = self.value({root: noted}, watch=lambda table: dict(table))
        rows = len(self.got) if self.case.operation.stepwise else 1
        if moved is None or len(found) != rows or not self.right.any():
            return None
        if not np.allclose(moved, self.right * MOVED, rtol=1e-12, atol=0):
            return None
        itself = self._at_once(formula, found)  # not a factor of all of it
        same = itself is not None and np.allclose(itself, self.right, rtol=1e-12, atol=0)
        return found if same else None

    def _at_once(self, formula: Formula, calls: Calls) -> Array | None:
        """Compute the quantity by its own formula alone."""
        self.spent += len(calls)
        try:
            with np.errstate(all="ignore"):
                given = [np.asarray(formula(*a, **k)) for a, k in calls]
                if any(np.iscomplexobj(row) for row in given):
                    return None
                rows = [row.astype(np.float64) for row in given]
                shape = self.got.shape[1:] if self.case.operation.stepwise else self.got.shape
                rows = [row.reshape(shape) for row in rows]
        except ERRORS:
            return None
        return self._finished(np.stack(rows) if self.case.operation.stepwise else rows[0])

    @cached_property
    def walk(self) -> int:
        """Quantities that one walk computes."""
        if self._walked is not None:
            return len(self._walked[1])
        kept: list[str] = []

        def keep(name: str, value: Any) -> Any:
            kept.append(name)
            return value

        with np.errstate(all="ignore"):
            self.case.operation.plain(self.inputs, self.case.options, FORMULA_TABLE, keep)
        return len(kept)

    @cached_property
    def right(self) -> Array:
        """What the quantity should be."""
        found = self.value({})
        assert found is not None
        return found

    @cached_property
    def _judged(self) -> Step:
        return Step(
            self.case,
            self.inputs,
            {name: np.asarray(a, dtype=np.float64) for name, a in self.outputs.items()},
            {},
            {},
        )

    def units(self, changes: Table) -> Array | None:
        """Return tolerances of the quantity by changed formulas."""
        step, wrong = self._judged, frozenset({self.quantity})
        forms = step.forms
        step.forms = (*forms, changes)
        try:
            reading = Reading(step, self.taken, wrong, len(forms), full=True)
            with np.errstate(all="ignore"):
                size = reading.units(LEVELS).size.get(self.quantity)
        except ERRORS:
            return None
        finally:
            step.forms = forms
        return None if size is None else factor(self.case) * size

    @cached_property
    def _bound(self) -> Array | None:
        return None if self.value({}) is None else self.units({})

    @property
    def judged(self) -> bool:
        """Whether the right formulas have a value, and tolerances, at what came."""
        return self._bound is not None

    @property
    def bound(self) -> Array:
        """Tolerances by the right formulas."""
        assert self._bound is not None
        return self._bound

    @cached_property
    def loose(self) -> Array:
        """Tolerances of the whole route where the case has them: no finer than these count."""
        found = None if "[" in self.case.id else tolerance(self.case).get(self.quantity)
        return self.bound if found is None else found

    def far(self, value: Array | None) -> float:
        """Return the largest error of a candidate's value, in the right formula's tolerances."""
        if value is None:
            return float("inf")
        return float(np.max(np.abs(self.got - value) / self.bound, initial=0.0))

    def near(self, value: Array | None) -> bool:
        """Return whether a candidate is worth finding its own tolerances."""
        if value is None:
            return False
        error = np.abs(self.got - value)
        scale = max(float(self.bound.max(initial=0.0)), 1e-300)
        u = float(np.finfo(self.case.dtype).eps)
        own = 1e2 * u * float(np.abs(value).max(initial=0.0))
        return bool(error.max(initial=0.0) <= NEAR * scale + own)

    def fits(self, changes: Table, value: Array | None = None) -> bool:
        """Return whether changed formulas give what came back, within their own tolerances."""
        value = self.value(changes) if value is None else value
        if not self.near(value):
            return False
        if self.far(value) <= 1:
            return True
        own = self.units(changes)
        if own is None or own.shape != self.got.shape:
            return False
        error = np.abs(self.got - value) / np.maximum(own, self.bound)
        return bool(np.max(error, initial=0.0) <= 1)

    def mostly(self, value: Array | None) -> bool:
        """Return whether a candidate leaves next to nothing of the error: less than `LEFT`."""
        if value is None:
            return False
        error = float(np.linalg.norm((self.got - value) / self.bound))
        return error <= LEFT * float(np.linalg.norm((self.right - value) / self.bound))

    def digits(self, value: Array, fitted: int = 0) -> float:
        """Count digits that a candidate explains and the right formula does not.

        Each element on which they differ by more than tolerance adds the logarithm of by how
        much; of a fitted number the best element proves nothing.
        """
        scale = np.abs(self.right - value)
        left = np.maximum(np.abs(self.got - value), self.bound)
        with np.errstate(all="ignore"):
            each = np.log10(np.where(scale > left, scale / left, 1.0)).reshape(-1)
        each = np.sort(each)[::-1]
        return float(each[fitted:].sum())
