"""Each quantity judged from its parents as they came.

The plain route is walked with a hook that notes what each quantity comes to and passes on what
was returned in its place: a quantity's *conditional* expectation is its formula at the returned
parents, and the returned value goes on to its children and, in a run, to the next step.  [TOL-6]

A quantity is right if it follows, within tolerance, from its parents, each parent found wrong
taken as it was returned or as it should be: code need not go on with what it returns, and a child
of a wrong parent is not wrong for that. It is wrong if it follows from no such choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import (
    canonical,
    factor,
    tolerance,
    units,
)
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

__all__ = ["given_parents", "wrong_given_parents"]

MOST = 3
"""Wrong parents that are tried both ways; a quantity with more is judged by all or none."""

FAR = 1e3
"""Tolerances of the whole route beyond which a choice of parents needs no units of its own."""

Hook = Callable[[str, Any], Any]
Ratios = dict[str, Array]


class Given:
    """The hook: notes what is computed, passes on what was returned.

    Parameters
    ----------
    case : Case
        The case.
    returned : mapping of str to array
        Outputs that take the place of what is computed.
    disturb : callable
        Moves each quantity by a roundoff; the identity for the centre.
    centre : Given, optional
        The undisturbed walk. What is not in `wrong` then moves as it does in the whole route.
    wrong : collection of str
        Outputs found wrong: used as they came, and moved by a roundoff alone.
    """

    def __init__(
        self,
        case: Case,
        returned: Mapping[str, Array],
        disturb: Hook = identity,
        centre: Given | None = None,
        wrong: frozenset[str] = frozenset(),
    ) -> None:
        self._case, self._returned, self._disturb = case, returned, disturb
        self._centre, self._wrong = centre, wrong
        self._outputs = {output.name for output in case.operation.outputs}
        self._seen: Counter[str] = Counter()
        self.noted: dict[str, list[Array]] = {}

    def exact(self, name: str, value: Any) -> Any:
        """Pass on what was returned in place of a copy, which has no rounding error of its own."""
        if self._output(name) is None:
            return value
        disturb, self._disturb = self._disturb, identity
        passed = self(name, value)
        self._disturb = disturb
        return passed

    def _output(self, name: str) -> str | None:
        """Return the output that a quantity is."""
        name = name.removesuffix("_post")
        capital = {"p": "P", "p_pred": "P_pred"}.get(name, name)
        known = [one for one in (name, capital) if one in self._outputs or one in self._returned]
        return known[0] if known else ("K" if name == "K" else None)

    def __call__(self, name: str, value: Any) -> Any:
        output = self._output(name)
        if output is None:
            return self._disturb(name, value)
        at, moved = self._seen[output], np.asarray(self._disturb(name, value))
        self._seen[output] += 1
        self.noted.setdefault(output, []).append(moved)
        came = self._came(output, at, np.shape(value))
        if came is None:
            return moved
        if output in self._wrong or self._centre is None:
            return self._disturb(name, came)
        return came + (moved - self._centre.noted[output][at])

    def _came(self, output: str, at: int, shape: tuple[int, ...]) -> Array | None:
        value = self._returned.get(output)
        if value is None:
            return None
        if self._case.operation.stepwise:
            if at >= len(value):
                return None
            value = value[at]
        elif at:
            return None
        return value.reshape(shape) if value.size == np.prod(shape, dtype=int) else None

    def outputs(self, out: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output as it was computed, before what came took its place."""
        found = {}
        for name, value in out.items():
            rows = self.noted.get(name)
            if rows is None:
                found[name] = np.asarray(value)
            elif self._case.operation.stepwise and len(rows) == len(value):
                found[name] = np.stack(rows).reshape(np.shape(value))
            else:
                found[name] = rows[-1].reshape(np.shape(value)) if len(rows) == 1 else value
        return found


def given_parents(
    case: Case, outputs: Mapping[str, Array], taken: frozenset[str], wrong: frozenset[str]
) -> tuple[dict[str, Array], Ratios]:
    """Evaluate every output from its parents, those in `taken` as they were returned.

    Returns
    -------
    conditional : dict of str to array
        What each output should be.
    ratios : dict of str to array
        Error over tolerance of each that was returned and can be judged.
    """
    came = {name: outputs[name].astype(np.float64) for name in taken if name in outputs}
    centre = Given(case, came)

    def evaluate(inputs: Any, disturb: Hook) -> dict[str, Array]:
        still = disturb is identity
        hook = centre if still else Given(case, came, disturb, centre, wrong)
        out = dict(case.operation.plain(inputs, case.options, FORMULA_TABLE, hook))
        if "K" in hook.noted and "K" not in out:  # on the way, and no output: it leads
            out = {"K": hook.noted["K"][0], **out}
        return hook.outputs(out)

    found = units(case, evaluate)
    conditional = {name: canonical(case, name, value) for name, value in found.centre.items()}
    ratios = {}
    for name, value in conditional.items():
        if name in outputs and tolerance(case).get(name) is not None:
            got = canonical(case, name, outputs[name].astype(np.float64))
            with np.errstate(all="ignore"):
                ratio = np.abs(got - value) / (factor(case) * found.size[name])
            ratios[name] = np.where(np.isfinite(got), ratio, np.inf)
    return conditional, ratios


def _choices(name: str, wrong: frozenset[str], all_of: frozenset[str]) -> Iterator[frozenset[str]]:
    """Yield sets of outputs to take as returned: right ones all or none, wrong ones by choice."""
    others = sorted(wrong - {name})
    right = all_of - wrong
    if len(others) > MOST:
        return
    for count in range(len(others) + 1):
        for chosen in combinations(others, count):
            yield right | set(chosen)
            yield frozenset(chosen)


def wrong_given_parents(case: Case, outputs: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Find every quantity that does not follow from its parents.

    Parameters
    ----------
    case : Case
        The case.
    outputs : mapping of str to array
        What came back, of the right shapes.

    Returns
    -------
    dict of str to (array, array)
        Quantity -> its conditional expectation and the ratios of error to tolerance, in dataflow
        order; empty where all follow.
    """
    everything = frozenset(outputs)
    cache: dict[tuple[frozenset[str], frozenset[str]], tuple[dict[str, Array], Ratios]] = {}

    def judged(taken: frozenset[str], wrong: frozenset[str]) -> tuple[dict[str, Array], Ratios]:
        key = (taken, wrong & taken)
        if key not in cache:
            cache[key] = given_parents(case, outputs, *key)
        return cache[key]

    wrong: frozenset[str] = frozenset()
    worst: dict[str, tuple[Array, Array]] = {}
    for _ in range(len(everything) + 1):
        given, plainly = judged(everything, wrong), judged(frozenset(), frozenset())
        worst = {}
        for name, ratio in given[1].items():
            if not _follows(case, name, ratio, outputs, given[0]) and not _follows(
                case, name, plainly[1][name], outputs, plainly[0]
            ):
                worst[name] = (given[0][name], ratio)
        if frozenset(worst) == wrong:
            break
        wrong = frozenset(worst)
    for name in list(worst):
        for taken in _choices(name, frozenset(worst), everything):
            conditional, ratios = judged(taken, wrong)
            if _follows(case, name, ratios[name], outputs, conditional):
                del worst[name]
                break
    return worst


def _follows(
    case: Case,
    name: str,
    ratio: Array,
    outputs: Mapping[str, Array],
    conditional: Mapping[str, Array],
) -> bool:
    """Return whether all elements are within tolerance; in a run their signed sums too.

    What a right run errs by in one step is independent of the next: the sum of T errors grows like
    the root of T, that of a bias like T.
    """
    if float(np.max(ratio, initial=0.0)) > 1:
        return False
    if not case.operation.stepwise or len(ratio) < 2:
        return True
    got = canonical(case, name, outputs[name].astype(np.float64))
    signed = np.sign(got - conditional[name]) * ratio
    return bool(np.max(np.abs(signed.sum(axis=0)), initial=0.0) <= len(ratio) ** 0.5)
