"""The formula found beside the right one, for every report."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.diagnose.groups import Group
from loko_ref.conformance.diagnose.mistake import Mistake
from loko_ref.textbook.loko import (
    dataflow,
    noise,
    observation,
    output_name,
    precision_update,
    update,
)
from loko_ref.textbook.operations import lowrank_update
from loko_ref.textbook.quantities import Quantity

FOUND = "FORMULA-"
"""What the id of a formula begins with that was found by search."""

_WORDS = re.compile(r"\w{2,}[':,]|[a-z]{2,} [a-z]{2,}")
"""What a description begins with, and an equation's right side does not."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What the code does and the formula that it should follow; empty where that is not known."""

    found: str
    right: str


def right(case: Case, quantity: str) -> str:
    """Return the equation of an output under the options of a case.

    Examples
    --------
    >>> from loko_ref.conformance.cases.registry import select
    >>> right(select("kalman.diagonal_update/tiny/float64")[0], "p")
    'p = p o (1 - diag(K H))'
    """
    operation, o = case.operation, case.options
    area, _, kind = operation.name.partition(".")
    flow: tuple[Quantity, ...] = ()
    if area == "loko":
        flow = dataflow(o)
    elif operation.name == "kalman.diagonal_update":
        flow = update({**o, "observation": "gaussian", "covariance": "diagonal"})
    elif operation.plain is lowrank_update:
        flow = precision_update(o)
    elif area == "observation":
        flow = observation({**o, "observation": kind})
    elif area == "noise":
        flow = noise(o)
    for q in flow:
        if q.equation and output_name(q.name, o) == quantity:
            return f"{quantity} = {q.equation}"
    text = next(each.formula for each in operation.outputs if each.name == quantity)
    text = text.removeprefix("after each step: ")
    return f"{quantity}{':' if _WORDS.match(text) else ' ='} {text}"


def pairs(one: Group) -> list[Pair]:
    """Return the formula that explains failures of one kind, and the right one.

    More follow where other quantities of the check that is shown are wrong by a known formula too.
    """
    check = one.shown
    first = check.divergence or check.finding
    quantity = None if first is None else first.quantity

    def of(mistake: Mistake) -> Pair:
        if not mistake.mutant.id.startswith(FOUND):
            return Pair(found=mistake.text, right=mistake.mutant.look)
        return Pair(found=mistake.text, right=right(check.case, mistake.quantity or str(quantity)))

    if one.mistake is not None:
        return [of(mistake) for mistake in (one.mistake, *one.others)]
    found = "" if check.imprecise is None else check.imprecise.text
    return [Pair(found=found, right="" if quantity is None else right(check.case, quantity))]


def title(one: Group) -> str:
    """Return what a card is called: the known mistake, the formula found, or what is off."""
    if one.mistake is None:
        return one.what
    key = one.mistake.mutant.id
    return one.mistake.text if key.startswith(FOUND) else f"{key}: {one.mistake.text}"
