"""Where no known mistake explains a check, or one does but by halves, its formula is sought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from loko_ref.conformance.diagnose.formulas import find
from loko_ref.conformance.diagnose.mistake import Mistake
from loko_ref.conformance.diagnose.search.again import Again
from loko_ref.conformance.engine import FAILED, Check
from loko_ref.conformance.mistakes.registry import Mutant, idle

__all__ = ["with_formulas"]

AGREE = 1e-2
"""How near sizes are, relatively, that are one size."""


def with_formulas(
    checks: Sequence[Check], named: dict[str, list[Mistake]], again: Again | None = None
) -> dict[str, list[Mistake]]:
    """Add the formulas found for what no known mistake explains."""
    doubtful, rare = _doubtful(checks, named), _rare(checks, named)
    unnamed = []
    wrong = {
        (c.case.operation.name, d.quantity)
        for c in checks
        if c.status == FAILED
        for d in c.divergences
    }
    for c in checks:
        fits = named.get(c.case.id)
        if fits is None or c.divergence is None:
            continue
        alone = (c.case.operation.name, c.divergence.quantity) not in wrong
        if c.imprecise is not None and c.imprecise.condition is None and alone:
            continue  # no matrix in which a jitter may be, and nothing in the run belies it
        key = c.case.operation.name, fits[0].mutant.id if fits else ""
        if not _explains(fits) or key in doubtful or key in rare:
            unnamed.append(c)
    formulas = find(checks, unnamed, again)
    for check in unnamed:
        own = [f for f in formulas if check.case.id in f.checks]
        if named[check.case.id] and all(f.rounds for f in own):
            own = []  # lost digits have a name
        added = [
            Mistake(
                mutant=f.mutant,
                size=f.named.candidate.size if f.named.candidate.mutant else None,
                ratio=1.0,
                explained=len(f.checks),
                failed=len(unnamed),
                alike=tuple(m.name for m in f.alike),
                quantity=f.quantity,
            )
            for f in own
        ]
        if added:
            named[check.case.id] = added
        elif _explains(fits := named[check.case.id]) and (
            fits[0].mutant.sizes or (check.case.operation.name, fits[0].mutant.id) in doubtful
        ):  # in doubt, and nothing better found
            named[check.case.id] = []
    return named


def _doubtful(
    checks: Sequence[Check], named: Mapping[str, Sequence[Mistake]]
) -> set[tuple[str, str]]:
    """Collect the operations and mistakes that do not explain what they should.

    Their size is another in every check, or most checks in which they act are of another kind.
    """
    operations: dict[str, list[Check]] = {}
    for check in checks:
        if check.divergence is not None:
            operations.setdefault(check.case.operation.name, []).append(check)
    few = set()
    for name, own in operations.items():
        first = {c.case.id: next(iter(named.get(c.case.id, ())), None) for c in own}
        for one in {m.mutant.id: m.mutant for m in first.values() if m is not None}.values():
            shown = {
                c.divergence and c.divergence.quantity for c in own if _leads(one, first[c.case.id])
            }
            acts = [
                c
                for c in own
                if c.divergence is not None
                and c.divergence.quantity in shown
                and not idle(one, c.case)
            ]
            if 2 * sum(_leads(one, first[c.case.id]) for c in acts) < len(acts):
                few.add((name, one.id))
    sizes: dict[tuple[str, str], list[float]] = {}
    for check in checks:
        for mistake in named.get(check.case.id, ())[:1]:
            if mistake.size is not None and check.case.dtype == "float64":
                key = check.case.operation.name, mistake.mutant.id
                sizes.setdefault(key, []).append(mistake.size)
    return few | {
        key
        for key, own in sizes.items()
        if len(own) > 1 and sum(_near(a, float(np.median(own))) for a in own) < len(own) / 2
    }


def _rare(checks: Sequence[Check], named: Mapping[str, Sequence[Mistake]]) -> set[tuple[str, str]]:
    """Collect the operations and mistakes that explain less than half of what is like it.

    Of all operations of a kind: of each by itself there may be too few checks to tell.
    """
    families: dict[str, list[Check]] = {}
    for check in checks:
        if check.divergence is not None:
            families.setdefault(check.case.operation.name.split(".")[0], []).append(check)
    found = set()
    for own in families.values():
        led: dict[str, list[Check]] = {}
        for check in own:
            for mistake in named.get(check.case.id, ())[:1]:
                led.setdefault(mistake.mutant.id, []).append(check)
        for key, some in led.items():
            one = named[some[0].case.id][0].mutant
            shown = {c.divergence.quantity for c in some if c.divergence is not None}
            like = [
                c for c in own if c.divergence is not None and c.divergence.quantity in shown
                and not idle(one, c.case)
            ]  # fmt: skip
            if 2 * len(some) < len(like):
                found |= {(c.case.operation.name, key) for c in some}
    return found


def _leads(one: Mutant, mistake: Mistake | None) -> bool:
    return mistake is not None and mistake.mutant.id == one.id


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=AGREE)


def _explains(fits: Sequence[Mistake]) -> bool:
    """Return whether a known mistake explains a check by more than lost digits."""
    return bool(fits) and not fits[0].mutant.roundoff
