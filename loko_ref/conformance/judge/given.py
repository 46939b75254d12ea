"""One walk of the dataflow from the quantities that were returned.

The plain route is walked with a hook that notes what each quantity comes to and passes on what
was returned in its place: a quantity's *conditional* expectation is its formula at the returned
parents.  [TOL-6]

A run is cut into steps, each from the state that the implementation returned; where it returned
no whole state, or where there is no network, the whole run is one walk.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.declared import NONE, SMALL, Declared, OwnErrors, own_errors
from loko_ref.conformance.judge.disturb import Disturb, Still
from loko_ref.conformance.judge.hook import Given, Hook, flow_of, given, started, state
from loko_ref.conformance.judge.tolerance import (
    Units,
    _inputs,
    _root_mean_square,
    _wide,
    canonical,
    expected,
    factor,
    widening,
)
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import output_name
from loko_ref.textbook.lte import lte_step
from loko_ref.textbook.network import network
from loko_ref.textbook.operations import loko_step, measured, prior
from loko_ref.textbook.quantities import Values, evaluate, identity, inner

__all__ = ["BEFORE", "FORMS", "LEVELS", "Reading", "Step", "steps"]

LEVELS = 5
"""Parts of a unit of error, from the cheapest to all of it."""

FAR = 1e3
"""Tolerances of the whole route beyond which an error may be looked at by its size alone."""

FARTHEST = 1e6
"""Times an output's largest tolerance of the whole route, grown with its size: no error is less
than a mistake there."""

SIZE = 2.0**-8
"""Part of a quantity's size: a tolerance as wide as this judges nothing.  [TOL-3]"""

BEFORE = ("p_pred", "P_pred", "z", "Z", "yhat", "e", "H", "R_used", "S")
"""Outputs that come before a gain, so that they are the same in all its forms."""

LAST = "last."
"""What the name of an array begins with that a step of LTE starts from."""

Table = Mapping[str, Callable[..., Any]]


def _shifted(v: Values) -> Any:
    """Return ``P H' (S + t 11')^-1`` with t = 1, or of S's size where S is larger.  [OBS-5].

    A solve with it errs in proportion to the norm of S + t 11', not of S.
    """
    batch, C = v.yhat.shape
    t = np.maximum(1.0, np.trace(v.S) / len(v.S))
    ones = np.kron(np.eye(batch), np.ones((C, C)))
    return np.linalg.solve(inner(v.keep)("S", v.S + t * ones).T, v.F["pHt"](v).T).T


def _informed(v: Values) -> Any:
    """Return ``1 / (1 / p + diag(H' R^-1 H))`` of all of R, not of its contrasts alone."""
    return FORMULA_TABLE["p.variational"](Values(v, observation="logits"))


FORMS: dict[str, tuple[Table, ...]] = {
    "glm": ({}, {"K.glm": FORMULA_TABLE["K.softmax"]}, {"K.glm": _shifted}),
    "softmax": (
        {},
        {"K.softmax": FORMULA_TABLE["K"], "p.variational": _informed},
        {"K.softmax": _shifted},
    ),
}
"""Observation -> forms of gain and p that are equal in the domain, and differ at a wrong S or H."""


class Step:
    """What came back of one step, or of a whole run, and what it should be given its parents.

    Parameters
    ----------
    case : Case
        The case.
    inputs : mapping
        Inputs of the step, float64, its state among them.
    came : mapping of str to array
        What came back of it, float64.
    plainly : mapping of str to array
        Error over tolerance of the whole route.
    bound : mapping of str to array
        Tolerance of the whole route.
    at : int, optional
        The step of a run.
    declared : mapping of str to str
        The precision that is stated.
    """

    def __init__(
        self,
        case: Case,
        inputs: Mapping[str, Any],
        came: Mapping[str, Array],
        plainly: Mapping[str, Array],
        bound: Mapping[str, Array],
        at: int | None = None,
        declared: Declared = NONE,
    ) -> None:
        self.declared = declared
        own = own_errors(case, declared).items() if declared else ()
        self.own = {name: size if at is None else size[at] for name, size in own}
        self.case, self.came, self.plainly, self.bound, self.at = case, came, plainly, bound, at
        name = case.operation.name
        self.networked = not case.inside and (
            name == "loko.step" or (name == "loko.run" and at is not None)
        )
        self.rows = case.operation.stepwise and at is None
        self.forms = FORMS.get(str(case.options.get("observation")), ({},))
        if not name.startswith("loko."):
            self.forms = self.forms[:1]
        self._start = inputs
        self._readings: dict[tuple[Any, ...], Reading] = {}
        self._moves: dict[tuple[int, ...], Mapping[str, Any]] = {}

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """Inputs, with z and Z of the network where there is one."""
        return self._run(self._start, identity) if self.networked else self._start

    def _run(self, inputs: Mapping[str, Any], disturb: Hook) -> dict[str, Any]:
        """Run the network; z and Z then take the place of what it is made of."""
        o = self.case.options
        v = Values(inputs, **o, F=FORMULA_TABLE, keep=disturb)
        evaluate(v, network(o["spec"], packed=True, train=o.get("train", "factors")))
        again = ("weights", "x") if o["noise"] != "ema_residual_hph" else ()
        return {k: a for k, a in inputs.items() if k not in again} | {"z.own": v.z, "Z.own": v.Z}

    def moved(self, draws: Sequence[int], kind: type[Disturb]) -> tuple[Any, Hook]:
        """Disturb the inputs; the network's part is kept for the next choice of parents."""
        seed = zlib.crc32(f"{self.case.id}#{self.at}".encode())
        first, key = [seed + draw for draw in draws], tuple(draws)
        if key not in self._moves:
            disturb = kind(*first)
            self._moves[key] = self._run(disturb.inputs(self._start, self.case.exact), disturb)
        return self._moves[key], kind(*(one + 3 * 2**20 for one in first))

    def walk(self, form: Table, inputs: Any, hook: Given, *, full: bool) -> dict[str, Array]:
        """Evaluate every output by a hook."""
        table, o = {**FORMULA_TABLE, **form}, self.case.options
        with np.errstate(all="ignore"):
            if not self.networked and self.at is None:
                out = dict(self.case.operation.plain(inputs, o, table, hook))
            elif self.case.operation.name == "lte.run":
                out = lte_step(inputs, o, table, hook, int(self.at or 0) + 1)
            elif not self.networked:
                out = loko_step(inputs, o, table, hook, inside=True)
            else:
                note = hook.exact if full else hook  # their roundoffs are the network's already
                v = Values(inputs, **o, F=table, keep=hook)
                v |= {k: note(k, inputs[f"{k}.own"]) for k in ("z", "Z")}
                out = measured(prior(v))
        leads = "K" in hook.noted and "K" not in out  # on the way, and no output
        return {**({"K": hook.noted["K"][0]} if leads else {}), **hook.outputs(out)}

    def reading(
        self, taken: frozenset[str], wrong: frozenset[str], form: int, *, full: bool
    ) -> Reading:
        """Take parents as they were returned, or as they should be, in one form of the gain."""
        key = (taken, wrong & taken, form, full)
        if key not in self._readings:
            self._readings[key] = Reading(self, *key)
        return self._readings[key]

    def starting(self, state: Mapping[str, Array]) -> Step:
        """Return the step as it is from another state, or another part of it."""
        last = LAST if self.case.operation.name == "lte.run" else ""
        inputs = started(self._start, {f"{last}{name}": value for name, value in state.items()})
        return Step(self.case, inputs, self.came, self.plainly, self.bound, self.at, self.declared)

    @cached_property
    def _feeds(self) -> dict[str, set[str]]:
        """Quantity, by the outputs' names -> what it is computed from."""
        case, o = self.case, self.case.options
        flow = flow_of(case)
        if not flow:
            taken = {one.name for one in case.operation.inputs}
            if self.rows:  # a step starts from what the last one returned
                taken -= {one.name for one in case.operation.outputs}
            return {q.name: set(q.feeds) - taken for q in case.operation.outputs}
        feeds: dict[str, set[str]] = {}
        known = {q.name for q in flow}
        if self.rows:
            filtered = case.operation.name == "loko.run"
            known |= {"theta", "p", "U", "R"} if filtered else set(state(case))
        for q in flow:
            parents = {k.removeprefix(LAST) for k in (*q.parents, *q.given_returned[1])} & known
            if q.name.startswith("seen."):
                parents = {f"z.{q.name.removeprefix('seen.')}"}
            own = {output_name(parent, o) for parent in parents}
            feeds.setdefault(output_name(q.name, o), set()).update(own)
        return feeds

    def ancestors(self, name: str) -> set[str]:
        """Find the outputs that came back and that a quantity is computed from at once."""
        feeds = self._feeds
        found, seen, stack = set(), {name}, list(feeds.get(name, ()))
        while stack:
            one = stack.pop()
            if one in seen:
                continue
            seen.add(one)
            if one in self.came:
                found.add(one)
            else:
                stack += feeds.get(one, ())
        return found

    def alone(self, name: str) -> bool:
        """Return whether nothing came that an output is computed from, so that none is given."""
        if self.own or self.rows or self.at is not None or self.ancestors(name):
            return False
        return len(self.forms) == 1 or name in BEFORE


NOTHING = Units(centre={}, size={}, how="")
"""Units where the formulas have no value."""


class Reading:
    """What a step's outputs should be by one choice of their parents, and their units.

    Parameters
    ----------
    step : Step
        The step.
    taken : frozenset of str
        Outputs taken as they were returned.
    wrong : frozenset of str
        Those of them that were found wrong.
    form : int
        Which of the step's forms.
    full : bool
        Whether right parents move by units of their own, not by a roundoff.
    """

    def __init__(
        self, step: Step, taken: frozenset[str], wrong: frozenset[str], form: int, full: bool
    ) -> None:
        self.step, case = step, step.case
        came = {name: value for name, value in step.came.items() if name in taken}
        centre = given(case, came)
        networked = step.networked

        def walk(inputs: Any, disturb: Hook) -> dict[str, Array]:
            if isinstance(disturb, Still):
                hook = centre.watched(disturb)
            else:
                hook = given(case, came, disturb, centre if full else None, wrong)
            return step.walk(step.forms[form], inputs, hook, full=full)

        self._found: list[Units] = []
        self._broken = False
        self._parts: Iterator[Units] = widening(
            case,
            walk,
            inputs=step.inputs,
            moved=step.moved if full and networked else None,
            single=networked or step.at is not None,
        )
        self._last = LEVELS if full else 2

        def moved(*draws: int) -> dict[str, Array]:
            hook = given(case, came, OwnErrors(draws, unreturned))
            return step.walk(step.forms[form], step.inputs, hook, full=False)

        unreturned = {name: size for name, size in step.own.items() if name not in step.came}
        self._moved = moved if unreturned else None

    def units(self, level: int) -> Units:
        """Return the units up to a level, or all that there is."""
        while len(self._found) <= min(level, self._last - 1):
            try:
                self._found.append(next(self._parts))
            except StopIteration:
                self._last = len(self._found)
            except np.linalg.LinAlgError:  # a matrix as it came, or one next to it, is singular
                self._broken, self._last = True, max(len(self._found), 1)
                break
        return self._found[min(level, self._last - 1)] if self._found else NOTHING

    @cached_property
    def _stated(self) -> Mapping[str, Array]:
        """What stated precision adds to each unit: an own error, and those that did not come."""
        own, step = dict(self.step.own), self.step
        if self._moved is not None:
            centre, once = self.units(0).centre, step.case.options.get("solve") != "implicit"
            found = _root_mean_square(step.case, centre, self._moved, together=once)
            own = {name: own.get(name, 0.0) + move / SMALL for name, move in found.items()}
        return own

    def expected(self, name: str) -> Array:
        """Return what an output should be."""
        return canonical(self.step.case, name, np.asarray(self.units(0).centre[name]))

    def signed(self, name: str, level: int) -> Array:
        """Return error over tolerance with the error's sign; infinite where it is not finite."""
        case, got = self.step.case, canonical(self.step.case, name, self.step.came[name])
        with np.errstate(all="ignore"):
            size = self.units(level).size[name]
            size = size + self._stated.get(name, 0.0) if self.step.own else size
            found = (got - self.expected(name)) / (factor(case) * size)
        return np.where(np.isfinite(got), found, np.inf)

    def beyond(self, name: str) -> bool:
        """Return whether no tolerance that judges anything could explain the error."""
        if self.step.own:
            return False
        should = self.expected(name)
        got = canonical(self.step.case, name, self.step.came[name])
        bound = self.step.bound[name]
        with np.errstate(all="ignore"):
            error = np.abs(got - should)
            size = float(np.max(np.abs(should), initial=0.0))
            far = (error > SIZE * size) & (error > FAR * bound)
            usual = expected(self.step.case)[name]
            usual = usual if self.step.at is None else usual[self.step.at]
            grown = max(1.0, size / max(float(np.max(np.abs(usual), initial=0.0)), 1e-300))
            far |= error > FARTHEST * grown * float(np.max(bound, initial=0.0))
        return bool(np.any(far | ~np.isfinite(got)))

    def defined(self, name: str) -> bool:
        """Return whether the formula has a value at these parents."""
        self.units(0) if not self._broken else None
        return not self._broken and bool(np.isfinite(self.expected(name)).all())

    def follows(self, name: str) -> bool:
        """Return whether all elements are within tolerance; no more is computed than it takes."""
        if not self.defined(name):
            return False
        for level in range(LEVELS):
            if level == 1 and self.beyond(name):
                return False
            if level >= self._last or not self.defined(name):
                break
            if float(np.max(np.abs(self.signed(name, level)), initial=0.0)) <= 1:
                return True
        return False


def steps(
    case: Case,
    outputs: Mapping[str, Array],
    found: Mapping[str, Array],
    bound: Mapping[str, Array],
    declared: Declared = NONE,
) -> list[Step]:
    """Cut what came back into steps, each from the state that came back.

    Parameters
    ----------
    case : Case
        The case.
    outputs : mapping of str to array
        What came back.
    found, bound : mapping of str to array
        Error over tolerance, and tolerance, of the whole route.
    declared : mapping of str to str
        The precision that is stated.
    """
    came = {name: np.asarray(a, dtype=np.float64) for name, a in outputs.items()}
    inputs = _wide(_inputs(case))
    held = state(case)
    if case.options.get("noise") == "fixed":
        held = [k for k in held if k != "R" or k in came]
    if not case.operation.name.endswith(".run") or not set(held) <= set(came):
        return [Step(case, inputs, came, found, bound, None, declared)]
    cut = []
    for t in range(len(inputs["x"])):
        of_step = {**inputs, "x": inputs["x"][t], "y": inputs["y"][t]}
        row, plainly, allowed = (
            {k: a[t] for k, a in some.items()} for some in (came, found, bound)
        )
        step = Step(case, of_step, row, plainly, allowed, t, declared)
        cut.append(step.starting({k: came[k][t - 1] for k in held}) if t else step)
    return cut
