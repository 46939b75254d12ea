"""Each quantity judged from its parents as they came.  [TOL-6].

A quantity is right if it follows, within tolerance, from its parents, each parent found wrong
taken as it was returned or as it should be: code need not go on with what it returns, and a child
of a wrong parent is not wrong for that. It is wrong if it follows from no such choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.compare import Divergence, diverging, plainly, ratios, worst_of
from loko_ref.conformance.judge.declared import NONE, Declared
from loko_ref.conformance.judge.given import BEFORE, FORMS, LEVELS, Reading, Step, steps
from loko_ref.conformance.judge.hook import state
from loko_ref.conformance.judge.tolerance import canonical, tolerance

__all__ = ["MOST", "Judgement", "judge_given_parents"]

SUM = 0.5
"""Tolerances of a step, times the root of their number, that a sum over steps may come to."""

MOST = 3
"""Wrong parents that are tried both ways; a quantity with more is not judged."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was found of each quantity of a case, given its parents.

    Attributes
    ----------
    wrong : tuple of Divergence
        Each that follows from no choice of its parents, at its worst element.
    unjudged : tuple of str
        Those whose parents are wrong, and outside the domain of their formula or too many.
    """

    wrong: tuple[Divergence, ...] = ()
    unjudged: tuple[str, ...] = ()


def judge_given_parents(
    case: Case, outputs: Mapping[str, Array], first: Divergence, declared: Declared = NONE
) -> Judgement:
    """Find every quantity that does not follow from its parents.

    Parameters
    ----------
    case : Case
        The case.
    outputs : mapping of str to array
        What came back, of the right shapes.
    first : Divergence
        The first quantity that is off along the whole route.
    declared : mapping of str to str
        The precision that is stated, which may excuse what is off.

    Returns
    -------
    Judgement
        Of a run each wrong quantity at the first step at which it is wrong.
    """
    several = case.operation.name.startswith("loko.") and case.options["observation"] in FORMS
    if len(outputs) == 1 and not (declared or several):
        return Judgement(wrong=(first,))
    found, bound = ratios(case, outputs), tolerance(case)
    names = [name for name, ratio in found.items() if float(np.max(ratio, initial=0.0)) > 1]
    judged = {k: b for k, b in bound.items() if b is not None}
    cut = steps(case, outputs, found, judged, declared)
    wrong: dict[str, Divergence] = {}
    unjudged: dict[str, None] = {}
    should: dict[str, Array] = {}  # state found wrong -> what it should have been
    for step in cut:
        left = [
            k for k in names if k not in wrong and float(np.max(step.plainly[k], initial=0.0)) > 1
        ]
        outcome = _from_another_state(_Outcome(step, left), should)
        for name, reading in outcome.wrong.items():
            wrong[name] = _divergence(outcome.step, name, reading, first)
        unjudged |= dict.fromkeys(outcome.unjudged)
        if step.at is not None:
            should = outcome.as_it_should_be(wrong.keys() & set(state(case)))
    for name in names if not declared else ():
        if name not in wrong and name not in unjudged:
            biased = _bias(cut, name)
            if biased is not None:
                wrong[name] = biased
    if unjudged and not wrong:
        wrong[first.quantity] = first
    order = list(found)
    rows = sorted(
        wrong.values(),
        key=lambda d: (d.index[0] if case.operation.stepwise else 0, order.index(d.quantity)),
    )
    return Judgement(wrong=tuple(rows), unjudged=tuple(k for k in unjudged if k not in wrong))


def _from_another_state(outcome: _Outcome, should: Mapping[str, Array]) -> _Outcome:
    """Return what is left wrong of a step if state found wrong before is as it should have been.

    Code need not go on with what it returns. Of the choices the first that leaves least is taken.
    """
    for count in range(1, len(should) + 1) if len(should) <= MOST else ():
        for chosen in combinations(sorted(should), count):
            left = [*outcome.wrong, *outcome.unjudged]
            if not left:
                return outcome
            step = outcome.step.starting({name: should[name] for name in chosen})
            other = _Outcome(step, left)
            if len(other.wrong) + len(other.unjudged) < len(left):
                outcome = other
    return outcome


class _Outcome:
    """What was found of the quantities of one step.

    Attributes
    ----------
    wrong : dict of str to Reading
        Each wrong quantity with the choice of parents that it is judged by: as they came.
    unjudged : list of str
        What cannot be judged at its parents.
    """

    def __init__(self, step: Step, names: list[str]) -> None:
        self.step, self.everything = step, frozenset(step.came)
        left = [k for k in names if not self._follows(k, self.everything, frozenset(), False)]
        far = frozenset(k for k in left if self._beyond(k))
        off = far
        for _ in range(len(left) + 1):
            now = frozenset(
                k for k in left if k in far or not self._follows(k, self.everything, off, True)
            )
            if now == off:
                break
            off = now
        self.wrong: dict[str, Reading] = {}
        self.unjudged: list[str] = []
        for name in left:
            if name in off and not self._explained(name, off):
                reading = step.reading(self.everything, off, 0, full=name not in far)
                parents = step.ancestors(name) & off
                if parents and (len(parents) > MOST or not self._in_domain(name, reading, parents)):
                    self.unjudged.append(name)
                else:
                    self.wrong[name] = reading

    def as_it_should_be(self, names: Collection[str]) -> dict[str, Array]:
        """Return what some outputs should be, whatever came of them."""
        reading = self.step.reading(self.everything - set(names), frozenset(), 0, full=False)
        return {name: reading.expected(name) for name in names if reading.defined(name)}

    def _follows(self, name: str, taken: frozenset[str], wrong: frozenset[str], full: bool) -> bool:
        if self.step.alone(name):
            return False  # the whole route says so
        forms = range(len(self.step.forms))
        return any(self.step.reading(taken, wrong, form, full=full).follows(name) for form in forms)

    def _beyond(self, name: str) -> bool:
        if self.step.alone(name):
            return True
        forms = range(len(self.step.forms))
        readings = [self.step.reading(self.everything, frozenset(), k, full=False) for k in forms]
        return all(not one.defined(name) or one.beyond(name) for one in readings)

    def _explained(self, name: str, off: frozenset[str]) -> bool:
        """Return whether another choice of its parents explains a quantity."""
        parents = self.step.ancestors(name) & off
        if len(parents) > MOST:
            return False
        return any(
            self._follows(name, taken, off, True)
            for taken in self._choices(parents)
            if taken != self.everything
        )

    def _choices(self, parents: set[str]) -> Iterator[frozenset[str]]:
        """Yield sets of outputs to take as returned: right ones all or none, wrong by choice."""
        for count in range(len(parents) + 1):
            for left_out in combinations(sorted(parents), count):
                yield self.everything - set(left_out)
                yield frozenset(parents) - set(left_out)

    def _in_domain(self, name: str, reading: Reading, parents: set[str]) -> bool:
        """Return whether a quantity's wrong parents are of the kind that its formula takes."""
        if not reading.defined(name):
            return False
        case, came = self.step.case, self.step.came
        if case.options.get("observation") not in ("softmax", "glm") or name not in ("K", "theta"):
            return True
        C = self.step.inputs["y"].shape[-1]
        return all(_sums_to_zero(came[k], C) for k in parents & {"H", "e"})


def _sums_to_zero(value: Array, C: int) -> bool:
    """Return whether a quantity's rows sum to 0 over each sample's classes."""
    sums = value.reshape(-1, C, *value.shape[1:]).sum(axis=1)
    size = float(np.max(np.abs(value), initial=0.0))
    return bool(np.max(np.abs(sums), initial=0.0) <= 1e-3 * size)


def _divergence(step: Step, name: str, reading: Reading, first: Divergence) -> Divergence:
    """Describe a wrong quantity at its worst element, judged by its parents as they came."""
    if name == first.quantity and step.at in (None, first.index[0]):
        return first  # all before it is right: the whole route says the same
    if step.alone(name):
        return plainly(step.case, name, step.came[name], step.plainly[name], None)
    if not reading.defined(name):
        reading = step.reading(frozenset(), frozenset(), 0, full=False)
    ratio = np.abs(reading.signed(name, LEVELS))
    return _at(step, name, reading, ratio)


def _at(step: Step, name: str, reading: Reading, ratio: Array) -> Divergence:
    case, row = step.case, step.rows
    got, should = canonical(case, name, step.came[name]), reading.expected(name)
    if row:  # of a run in one walk: the first step that is off
        t = int(np.argmax(ratio.reshape(len(ratio), -1).max(axis=1) > 1))
        got, should, ratio = got[t], should[t], ratio[t]
    inside = worst_of(ratio)
    lead = (t,) if row else () if step.at is None else (step.at,)
    return diverging(
        case,
        name,
        (*lead, *inside),
        (float(should[inside]), float(got[inside]), float(ratio[inside])),
        ratio > 1,
    )


def _bias(cut: list[Step], name: str) -> Divergence | None:
    """Return a quantity whose errors of the single steps add up to more than they may.

    What a right run errs by in one step is independent of the next: the sum of T errors grows like
    the root of T, that of a bias like T. It is looked at where the end is off, which is evidence
    already: half a tolerance of a step is allowed, twice what right programs come to.
    """
    (first, *_), rows = cut, len(cut) == 1
    if rows and not first.rows:
        return None
    levels = ((False, 0), (False, 1), (True, LEVELS))
    forms = range(1 if name in BEFORE else len(first.forms))
    for (full, level), form in product(levels, forms):
        readings = [s.reading(frozenset(s.came), frozenset(), form, full=full) for s in cut]
        if not all(one.defined(name) for one in readings):
            return None
        each = [one.signed(name, level) for one in readings]
        signed = each[0] if rows else np.stack(each)
        signed = np.where(np.abs(signed) <= 1, signed, 0.0)  # what follows in another way
        total = np.abs(signed.sum(axis=0)) / (SUM * len(signed) ** 0.5)
        if float(np.max(total, initial=0.0)) <= 1:
            return None
    inside = worst_of(total)
    t = int(np.argmax(np.abs(np.moveaxis(signed, 0, -1)[inside])))
    step, reading = (first, readings[0]) if rows else (cut[t], readings[t])
    at = (t, *inside) if rows else inside
    got = canonical(step.case, name, step.came[name])
    numbers = float(reading.expected(name)[at]), float(got[at]), float(total[inside])
    return diverging(step.case, name, (t, *inside), numbers, total > 1)
