"""Formulas that may be what the code computes, each as a change of the table of formulas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.diagnose.search.changes import edits_at, pools, replaced
from loko_ref.conformance.diagnose.search.edits import Edit, override
from loko_ref.conformance.diagnose.search.fitted import STEP, at, fit, forms, plain
from loko_ref.conformance.diagnose.search.instrument import RESULT
from loko_ref.conformance.diagnose.search.numbers import numbers
from loko_ref.conformance.diagnose.search.problem import Problem
from loko_ref.conformance.diagnose.search.sites import Site, formed, sites
from loko_ref.conformance.mistakes.registry import Mutant, all_mutants
from loko_ref.textbook.quantities import Formula

__all__ = ["Candidate", "Trial", "doubles", "exchanged", "fitted", "known", "reformed", "singles"]


WORK = 60_000
"""Quantities that are computed in one stage of a search: it ends there, found or not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A formula.

    Attributes
    ----------
    edits : tuple of (Site, Edit)
        What differs from the right one; empty for a known mistake.
    mutant : Mutant or None
        The known mistake.
    size : float or None
        Its size, or the fitted number.
    fitted : int
        How many numbers were fitted.
    scope : tuple
        Name of an option and the values under which it is wrong; empty: under all.
    """

    edits: tuple[tuple[Site, Edit], ...] = ()
    mutant: Mutant | None = None
    size: float | None = None
    fitted: int = 0
    scope: tuple[str, frozenset[Any]] | tuple[()] = ()

    @property
    def cost(self) -> float:
        """How far-fetched it is."""
        if self.mutant is not None:
            return 0.1 * self.fitted
        return sum(edit.change.cost for _, edit in self.edits) + 0.5 * (len(self.edits) - 1)

    @property
    def text(self) -> str:
        """What differs."""
        if self.mutant is not None:
            return self.mutant.name
        parts = [edit.change.text.replace("{x}", site.text) for site, edit in self.edits]
        return ", and ".join(dict.fromkeys(parts))

    def changes(self) -> dict[str, Formula]:
        """Return the formulas that it changes, by name."""
        if self.mutant is not None:
            return dict(self.mutant.changes(self.size))
        return override([edit for _, edit in self.edits])


@dataclass(eq=False)
class Trial:
    """What was tried on one problem.

    Attributes
    ----------
    problem : Problem
        The problem.
    tried : int
        How many formulas.
    effects : list of (Candidate, array)
        Single changes that make a difference, one for each value.
    """

    problem: Problem
    tried: int = 0
    effects: list[tuple[Candidate, Array]] = field(default_factory=list)
    places: list[Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = list(sites(self.problem))


def known(trial: Trial) -> Iterator[Candidate]:
    """Yield the known mistakes that give what came back."""
    problem = trial.problem
    called = {name for s in trial.places for name in (s.call.root, s.call.inner)}
    for one in all_mutants():
        if one.roundoff or called.isdisjoint(one.changes(one.example)):
            continue
        trial.tried += 1
        if not one.sizes:
            changes = one.changes(None)
            value = problem.value(changes)
            if value is not None and problem.fits(changes, value):
                yield Candidate(mutant=one)
            continue
        size = _size(problem, one)
        if size is not None and problem.fits(one.changes(size)):
            yield Candidate(mutant=one, size=size, fitted=1)


def _size(problem: Problem, one: Mutant) -> float | None:
    """Fit the logarithm of a known mistake's size."""

    def residual(log: float) -> Any:
        value = problem.value(one.changes(float(np.exp(log))))
        return None if value is None else ((value - problem.got) / problem.bound).reshape(-1)

    tried = [(float(np.log1p(r * r).sum()), float(np.log(s))) for s in one.sizes
             if (r := residual(float(np.log(s)))) is not None]  # fmt: skip
    best: tuple[float, float] | None = None
    for _, log in sorted(tried)[:2]:
        for _ in range(10):
            r = residual(log)
            if r is None:
                break
            worst = float(np.max(np.abs(r)))
            if best is None or worst < best[0]:
                best = (worst, log)
            moved = residual(log + STEP)
            if worst <= 0.1 or moved is None:
                break
            d = (moved - r) / STEP
            if not (norm := float(d @ d)) > 0 or not np.isfinite(norm):
                break
            log += float(np.clip(-float(d @ r) / norm, -3, 3))
        if best is not None and best[0] <= 1:
            break
    return None if best is None else float(np.exp(best[1]))


def reformed(trial: Trial) -> Iterator[Candidate]:
    """Yield the single changes of a formula's other forms that give what came back."""
    yield from singles(trial, list(formed(trial.places)))


def singles(trial: Trial, places: Sequence[Site] = ()) -> Iterator[Candidate]:
    """Yield the single changes that give what came back; note what all others give.

    The plainest are tried first, until `WORK` is done.

    Parameters
    ----------
    trial : Trial
        What was tried so far.
    places : sequence of Site
        Where; everywhere in the formulas of the table where none is given.
    """
    problem, seen = trial.problem, set()
    places = places or trial.places
    reach: dict[int, Any] = {}
    tries: list[Candidate] = []
    callers: dict[str, list[str]] = defaultdict(list)
    for site in places:
        callers[site.call.inner].append(site.call.root)
    for site in places:
        if id(site.call) not in reach:
            reach[id(site.call)] = (pools(site.call), numbers(site.call.v))
        stepwise = problem.case.operation.stepwise
        for edit in edits_at(site, *reach[id(site.call)], stepwise=stepwise):
            tries.append(Candidate(edits=((site, edit),)))
            name, roots = edit.inner, callers[edit.inner]
            if edit.root == roots[0] != roots[-1] and name not in roots:
                everywhere = replace(edit, root=name)  # wrong in all formulas that call it
                tries.append(Candidate(edits=((site, everywhere),)))
    start = problem.spent
    for one in sorted(tries, key=lambda one: one.cost):
        if problem.spent - start > WORK:
            break
        trial.tried += 1
        changes = one.changes()
        value = problem.value(changes)
        if value is None or np.array_equal(value, problem.right):
            continue
        if problem.near(value) and problem.fits(changes, value):
            yield one
        key = _key(value)
        if key not in seen:
            seen.add(key)
            trial.effects.append((one, value))


def exchanged(trial: Trial) -> Iterator[Candidate]:
    """Yield what comes of a formula that has one quantity for another, wherever it stands.

    Of two for each other: beta1 for beta2 and beta2 for beta1.
    """
    problem = trial.problem
    named: dict[Any, dict[str, list[Site]]] = defaultdict(lambda: defaultdict(list))
    for site in trial.places:
        name = site.text.removeprefix("v.")
        if (
            name in site.call.v
            and site.place != RESULT
            and np.asarray(site.value).dtype.kind == "f"
        ):
            named[site.call][name].append(site)
    for places in named.values():
        for a, b in permutations(places, 2):
            if np.shape(places[a][0].value) != np.shape(places[b][0].value):
                continue
            for_b = tuple((site, replaced(site, b)) for site in places[a])
            for_a = tuple((site, replaced(site, a)) for site in places[b])
            for edits in ((for_b,) if len(for_b) > 1 else ()) + ((for_b + for_a,) if a < b else ()):
                one = Candidate(edits=edits)
                trial.tried += 1
                value = problem.value(one.changes())
                if problem.near(value) and problem.fits(one.changes(), value):
                    yield one


def _key(value: Array) -> bytes:
    return np.round(value, 9).tobytes()


def fitted(trial: Trial) -> Iterator[Candidate]:
    """Yield single changes with one fitted number that give what came back."""
    problem = trial.problem
    start = problem.spent
    for site in trial.places:
        for form in forms(site):
            if problem.spent - start > WORK:
                return
            trial.tried += 1
            c = fit(problem, site, form)
            if c is None:
                continue
            if problem.fits(override([at(site, form, c)])):
                edit = plain(problem, site, form, c)
                yield Candidate(edits=((site, edit),), size=c, fitted=1)
                for number in numbers(site.call.v):
                    if abs(number.at(site.call.v) - c) <= 1e-5 * abs(c):
                        edit = at(site, form, number)
                        yield Candidate(edits=((site, edit),), size=c)


BRUTE = 1500
"""Pairs of changes that are tried one by one, the plainest first."""


def doubles(trial: Trial) -> Iterator[Candidate]:
    """Yield pairs of changes that give what came back.

    Changes of terms add up, changes of factors multiply: of such pairs each is found by what the
    other leaves. Of the others the plainest are tried.
    """
    problem, effects = trial.problem, trial.effects
    if not effects or problem.got.size < 2:
        return
    pairs: dict[tuple[int, int], None] = {}
    right, got = problem.right.reshape(-1), problem.got.reshape(-1)
    values = np.stack([value.reshape(-1) for _, value in effects])
    rng = np.random.Generator(np.random.PCG64(1))
    weights = rng.random(got.size)
    pairs |= _sums((values - right) @ weights, float((got - right) @ weights))
    if right.all() and got.all():
        with np.errstate(all="ignore"):
            logs = np.log(np.abs(values / right)) @ weights
            pairs |= _sums(logs, float(np.log(np.abs(got / right)) @ weights))
    order = sorted(range(len(effects)), key=lambda i: effects[i][0].cost)
    plain = [(i, j) for total in range(len(order)) for i, j in _at_sum(total)]
    pairs |= dict.fromkeys((order[i], order[j]) for i, j in plain[:BRUTE] if j < len(order))
    trial.tried += len(effects) ** 2 // 2
    start = problem.spent
    for i, j in pairs:
        if problem.spent - start > WORK:
            return
        one = Candidate(edits=effects[i][0].edits + effects[j][0].edits)
        places = {(e.inner, e.place) for _, e in one.edits}
        if len(places) < 2:
            continue
        changes = one.changes()
        value = problem.value(changes)
        if problem.near(value) and problem.fits(changes, value):
            yield one


def _at_sum(total: int) -> list[tuple[int, int]]:
    return [(i, total - i) for i in range((total + 1) // 2)] if total < 120 else []


def _sums(parts: Array, whole: float) -> dict[tuple[int, int], None]:
    """Find pairs whose sum is a number, to its first digits."""
    finite = np.flatnonzero(np.isfinite(parts))
    order = finite[np.argsort(parts[finite])]
    sorted_parts = parts[order]
    found: dict[tuple[int, int], None] = {}
    slack = 1e-7 * max(abs(whole), 1e-300)
    low = np.searchsorted(sorted_parts, whole - parts[finite] - slack)
    high = np.searchsorted(sorted_parts, whole - parts[finite] + slack)
    for i, a, b in zip(finite, low, high, strict=True):
        for k in range(a, min(b, a + 20)):
            if i < order[k]:
                found[int(i), int(order[k])] = None
    return found


ENOUGH = 24
"""Elements that bear a formula out: of problems with so many the cheapest is searched."""


def by_inputs(problems: Sequence[Problem]) -> list[Problem]:
    """Sort problems: those that tell most first, of these those in which most can be tried."""

    def key(problem: Problem) -> tuple[bool, bool, bool, int, int]:
        size = problem.got.size
        coarse, unfit = problem.case.dtype != "float64", not 4 <= size <= 400
        return coarse, unfit, size < ENOUGH, problem.walk.bit_length(), -min(size, 60)

    return sorted(problems, key=key)


Groups = Mapping[tuple[str, str], Sequence[Problem]]


def grouped(problems: Sequence[Problem]) -> dict[tuple[str, str], list[Problem]]:
    """Group problems by operation and quantity."""
    found: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        found[problem.case.operation.name, problem.quantity].append(problem)
    return dict(found)


Stage = Callable[[Trial], Iterator[Candidate]]
