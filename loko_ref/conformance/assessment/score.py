"""The score of the catalogue of mistakes: is each caught, and is each named first?

Every mutant is turned into an implementation with rounding errors of its own and verified like a
user's. It is named where its own id is the leading name of most of its failed checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import Check, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.mistakes.registry import NOTHING, Mutant, as_implementation, idle
from loko_ref.files.documents import document

INDISTINGUISHABLE: dict[frozenset[str], str] = {}
"""Groups of mutants that no case can distinguish, and why."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one mutant."""

    id: str  # the mutant's
    failed: int  # checks that caught it
    named: int  # of these, how many name it first
    first: str | None  # the id most often named first
    others: tuple[str, ...]  # ids that are named at all, beside its own


@lru_cache(maxsize=1024)
def _unchanged(case: Case) -> Check:
    """Verify right code with rounding errors of its own: what an idle mutant is, to the bit."""
    return run(Implementation(target="none", functions=as_implementation(NOTHING)), [case])[0]


def outcome(one: Mutant, cases: Sequence[Case]) -> Outcome:
    """Verify one mutant; in the cases where it is idle right code stands for it."""
    target = Implementation(target=one.id, functions=as_implementation(one, one.example))
    checks = [_unchanged(case) if idle(one, case) else run(target, [case])[0] for case in cases]
    named = name_mistakes(checks)
    leading = Counter(fits[0].mutant.id for fits in named.values() if fits)
    return Outcome(
        id=one.id,
        failed=sum(check.status in ("failed", "imprecise") for check in checks),
        named=leading[one.id],
        first=leading.most_common(1)[0][0] if leading else None,
        others=tuple(
            dict.fromkeys(
                m.mutant.id for fits in named.values() for m in fits if m.mutant.id != one.id
            )
        ),
    )


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Build the score: counts, and the groups that cannot be distinguished."""
    content = {
        "mutants": len(outcomes),
        "caught": sum(o.failed > 0 for o in outcomes),
        "named_first": sum(o.first == o.id for o in outcomes),
        "indistinguishable": [
            {"ids": sorted(group), "why": why} for group, why in INDISTINGUISHABLE.items()
        ],
        "outcomes": [vars(o) | {"others": list(o.others)} for o in outcomes],
    }
    return document("mutants", content)
