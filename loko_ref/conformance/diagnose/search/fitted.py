"""One fitted number: an operand or a result plus c I, plus c, times c, floored or capped at c."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from loko_ref.conformance.diagnose.search.edits import Change, Edit, override
from loko_ref.conformance.diagnose.search.numbers import Number
from loko_ref.conformance.diagnose.search.problem import Problem
from loko_ref.conformance.diagnose.search.sites import Site

__all__ = ["STEP", "Form", "at", "fit", "forms", "plain"]

Form = tuple[str, Callable[[Any, Any], Any], tuple[float, ...], float]
"""Text, function of value and number, numbers to begin from, cost."""

ROUNDS = 10
"""Steps of Gauss-Newton from each start."""

STEP = 1e-4
"""Relative difference by which a slope is taken: small to the number, large to its rounding; of a
jitter of 1e-9 one of 1e-6 moved a result by no more than roundoff does, and the last step failed
under some kernels."""

SMALL = tuple(10.0**k for k in range(-12, 0, 2))


def _eye(x: Any, c: Any) -> Any:
    return x + c * np.eye(x.shape[-1])


def forms(site: Site) -> Iterator[Form]:
    """Yield what may be done with a number at a place."""
    a = site.value
    if isinstance(a, bool | int | np.bool_) or np.asarray(a).dtype.kind == "b":
        return
    if np.ndim(a) == 0:
        yield "{c} in place of {x}", lambda x, c: x * 0 + c, (float(a),), 1.5
        return
    size = float(np.sqrt(np.mean(np.square(a)))) or 1.0
    if np.ndim(a) >= 2 and a.shape[-1] == a.shape[-2] > 1:
        yield "{x} + {c} I", _eye, (1e-3 * size, 0.5 * size), 1.4
    yield "{x} times {c}", lambda x, c: x * c, (0.9, -0.5, 3.0), 1.5
    yield "{x} + {c}", lambda x, c: x + c, (1e-3 * size, 0.5 * size), 1.6
    low, high = float(np.min(a)), float(np.max(a))
    spread = [low + f * (high - low) for f in (0.1, 0.3, 0.5, 0.7, 0.9)]
    floors = (*(s for s in SMALL if s > low), *spread)
    yield "{x}, at least {c}", np.maximum, floors, 1.7
    yield "{x}, at most {c}", np.minimum, tuple(spread), 1.7
    if low < 0 < high:
        most = float(np.max(np.abs(a)))
        ends = tuple(f * most for f in (0.1, 0.3, 0.5, 0.7, 0.9))
        yield "{x} clipped to +-{c}", lambda x, c: np.clip(x, -abs(c), abs(c)), ends, 1.8


def at(site: Site, form: Form, number: float | Number) -> Edit:
    """Return the change of a form with its number."""
    text, f, _, cost = form
    if isinstance(number, Number):
        known: Number = number
        change = Change(text=text.replace("{c}", known.text), cost=cost + known.cost - 0.5,
                        apply=lambda x, r: f(x, known.at(r.v)), number=known)  # fmt: skip
    else:
        c = float(number)
        change = Change(text=text.replace("{c}", f"{c:.6g}"), cost=cost,
                        apply=lambda x, r: f(x, c))  # fmt: skip
    return Edit(root=site.call.root, inner=site.call.inner, place=site.place, change=change)


def fit(problem: Problem, site: Site, form: Form) -> float | None:
    """Fit the number by Gauss-Newton to every element of a quantity.

    Returns
    -------
    float or None
        The number with which the formula comes near to what came back; None where none does.
    """
    text, _, starts, _ = form

    def residual(c: float) -> Any:
        value = problem.value(override([at(site, form, c)]))
        return None if value is None else ((value - problem.got) / problem.bound).reshape(-1)

    bounded = "least" in text or "most" in text or "clipped" in text
    best: tuple[float, float] | None = None
    if bounded:  # no slope where nothing is cut: begin from the nearest few
        tried = [(far(r), c) for c in starts if (r := residual(c)) is not None]
        starts = tuple(c for _, c in sorted(tried)[:2])
    for start in starts:
        c = start
        for _ in range(ROUNDS):
            r = residual(c)
            if r is None:
                break
            worst = float(np.max(np.abs(r)))
            if best is None or worst < best[0]:
                best = (worst, c)
            if worst <= 0.1:
                break
            h = STEP * (abs(c) or 1e-6)
            moved = residual(c + h)
            if moved is None:
                break
            d = (moved - r) / h
            norm = float(d @ d)
            if not norm > 0 or not math.isfinite(norm):
                break
            step = -float(d @ r) / norm
            if abs(step) <= 1e-15 * abs(c):
                break
            c += step
        if best is not None and best[0] <= 1:
            break
    return None if best is None else best[1]


def plain(problem: Problem, site: Site, form: Form, c: float) -> Edit:
    """Return the change with the shortest number that fits as well."""
    for digits in range(1, 7):
        edit = at(site, form, float(f"{c:.{digits}g}"))
        if problem.fits(override([edit])):
            return edit
    return at(site, form, c)


def far(residual: Any) -> float:
    """Return how far a residual is, large elements not counted for more than their digits."""
    return float(np.log1p(residual**2).sum())
