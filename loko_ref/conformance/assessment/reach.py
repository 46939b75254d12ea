"""Which cases run which lines of the textbook: a generated mistake runs on a few of those."""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, zip_longest
from types import FrameType
from typing import Any

import numpy as np

from loko_ref.conformance.assessment.syntax import MODULES, Change, Formula
from loko_ref.conformance.cases.registry import Case, Draw
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

MOST, WHOLE = 4, 8
"""Most cases of an operation that a mistake runs on, and of all operations."""

TRIED = 12
"""Cases of an operation among which those that show a mistake are looked for."""


class Reach:
    """Which cases run which lines of the textbook's formulas.

    Parameters
    ----------
    cases : sequence of Case
        Of float64.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        modules = [sys.modules[f"loko_ref.textbook.{part}"] for part in MODULES]
        files = {inspect.getsourcefile(module) for module in modules}
        self._all = cases
        self._of: dict[tuple[str, int], list[Case]] = defaultdict(list)
        for case in cases:
            seen: set[tuple[str, int]] = set()

            def line(frame: FrameType, event: str, _: Any, seen: Any = seen) -> Any:
                seen.add((frame.f_code.co_filename, frame.f_lineno))
                return line

            def call(frame: FrameType, event: str, _: Any, line: Any = line) -> Any:
                code = frame.f_code
                if code.co_filename not in files:
                    return None
                # what writes quantities is no formula: its lambdas run, or do not, by themselves
                nested = code.co_name.startswith("<")
                return line(frame, event, None) if nested or _formula(frame) else None

            before = sys.gettrace()
            sys.settrace(call)
            try:
                case.operation.plain(float64(case.inputs()), case.options, FORMULA_TABLE, identity)
            finally:
                sys.settrace(before)
            for place in seen:
                self._of[place].append(case)

    def cases(self, change: Change) -> list[Case]:
        """Return those that run one of the lines of a change, in the catalogue's order."""
        file = inspect.getsourcefile(change.formula.module)
        assert file is not None
        _, first, last = change.scope
        found = {c.id for line in range(first, last + 1) for c in self._of.get((file, line), ())}
        return [case for case in self._all if case.id in found]

    def __contains__(self, formula: Formula) -> bool:
        """Return whether a case runs one of its lines."""
        file = inspect.getsourcefile(formula.module)
        lines = range(formula.node.lineno, (formula.node.end_lineno or 0) + 1)
        return any((file, line) in self._of for line in lines)


def _formula(frame: FrameType) -> bool:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount]
    return "v" in names or not {"net", "spec", "o", "layer"} & set(names)


def few(cases: Sequence[Case], seed: str, shows: Callable[[Case], bool]) -> list[Case]:
    """Draw a few cases, of each operation in turn; in the order of the catalogue.

    Parameters
    ----------
    shows : callable
        Whether a case shows the mistake: of each operation all but one of those that are drawn do,
        if there are such. Who verifies runs them all.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for k in np.argsort(Draw(seed)(len(cases))):
        groups[cases[k].operation.name].append(cases[k])
    drawn = []
    for group in groups.values():
        kept: dict[bool, list[Case]] = {True: [], False: []}
        for at, case in enumerate(group):  # until one shows it, as who verifies runs them all
            if len(kept[True]) < (MOST if at < TRIED else 1):
                kept[shows(case)].append(case)
        first, others = kept[True], kept[False]
        drawn.append([*first[: MOST - 1], *others[:1], *first[MOST - 1 :], *others[1:]][:MOST])
    turns = (case for turn in zip_longest(*drawn) for case in turn if case is not None)
    found = {case.id for case in islice(turns, WHOLE)}
    return [case for case in cases if case.id in found]


def float64(value: Any) -> Any:
    """Return inputs in float64."""
    if isinstance(value, Mapping):
        return {name: float64(item) for name, item in value.items()}
    return np.asarray(value, dtype=np.float64)
