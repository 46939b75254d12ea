"""What a stated precision excuses: quantities computed with a coarser roundoff than the case's.

The own error of such a quantity is how far it moves, given its parents, when all that it is
computed from and everything on the way to it moves by one roundoff of its format. It is found as
TOL-1 finds a unit, and added to it; code that does not return the quantity hands it on.  [TOL-9]
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.judge.disturb import DELTA, Disturb, generators, uniform
from loko_ref.conformance.judge.hook import given
from loko_ref.conformance.judge.tolerance import _inputs, _root_mean_square, _wide, expected
from loko_ref.errors import InputError, unknown_option
from loko_ref.textbook import FORMULA_TABLE

__all__ = [
    "FORMATS",
    "NONE",
    "SMALL",
    "Declared",
    "OwnErrors",
    "own_errors",
    "read_precision",
    "roundoffs",
    "words",
]

FORMATS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11, "float32": 2.0**-24}
"""Format -> its unit roundoff."""

Declared = Mapping[str, str]
"""Quantity -> format; that of "" is all others'."""

SMALL = 2.0**-20
"""Factor by which errors are made small on the way, so that their effect is linear in them."""

NONE: Declared = {}
"""No precision stated."""

INSIDE = ("z.", "scores.", "weights.")
"""What names of quantities within a network begin with."""


def read_precision(argument: str, value: object) -> dict[str, str]:
    """Return the precision that code states, quantity by quantity; empty where it states none.

    Parameters
    ----------
    argument : str
        What the statement is called, for the error.
    value : object
        A format, or a mapping of quantity to format, or None.

    Examples
    --------
    >>> read_precision("PRECISION", "bfloat16"), read_precision("PRECISION", {"Z": "tf32"})
    ({'': 'bfloat16'}, {'Z': 'tf32'})
    """
    if value is None:
        return {}
    stated = {"": value} if isinstance(value, str) else value
    if not isinstance(stated, Mapping) or not all(isinstance(name, str) for name in stated):
        required = "a format, or a mapping of quantity to format: PRECISION = {'Z': 'bfloat16'}"
        raise InputError(argument, f"a {type(value).__name__}", required, "another form")
    known = dict.fromkeys(o.name for op in OPERATIONS.values() for o in op.outputs)
    for name, form in stated.items():
        if name and name not in known and not name.startswith(INSIDE):
            raise unknown_option(f"{argument}, quantity", name, known)
        if not isinstance(form, str) or form not in FORMATS:
            got = f"{form!r:.80}" + (f" for {name}" if name else "")
            raise InputError(argument, got, f"one of {', '.join(FORMATS)}", "a typing error")
    return dict(stated)


def words(declared: Declared) -> str:
    """Return a statement of precision as text.

    Examples
    --------
    >>> words({"Z": "bfloat16", "": "tf32"})
    'Z in bfloat16, all else in tf32'
    """
    rest = "all else" if len(declared) > 1 else "all"
    in_order = sorted(declared.items(), key=lambda item: not item[0])
    return ", ".join(f"{name or rest} in {form}" for name, form in in_order)


def roundoffs(case: Case, declared: Declared) -> dict[str, float]:
    """Return the roundoffs of a case's outputs that are stated coarser than its dtype's."""
    u = float(np.finfo(case.dtype).eps) / 2
    found = {}
    for name in expected(case):
        form = declared.get(name, declared.get(""))
        if form is not None and FORMATS[form] > u:
            found[name] = FORMATS[form]
    return found


def own_errors(case: Case, declared: Declared) -> Mapping[str, Array]:
    """Return the own error of each output of a case that is stated coarse; empty for none."""
    return _own(case, tuple(sorted(declared.items())))


@lru_cache(maxsize=1024)
def _own(case: Case, declared: tuple[tuple[str, str], ...]) -> Mapping[str, Array]:
    coarse = roundoffs(case, dict(declared))
    if not coarse:
        return {}
    inputs, o, plain = _wide(_inputs(case)), case.options, case.operation.plain

    def walk(x: Any, hook: Any) -> dict[str, Array]:
        with np.errstate(all="ignore"):
            return hook.outputs(plain(x, o, FORMULA_TABLE, hook))

    centre = walk(inputs, given(case, {}))
    seed = zlib.crc32(f"{case.id} declared".encode())

    def moved(*draws: int) -> dict[str, Any]:
        disturb = Disturb(*(seed + draw for draw in draws))
        return walk(disturb.inputs(inputs, case.exact), given(case, centre, disturb))

    found = _root_mean_square(case, centre, moved)
    return {name: found[name] * (form / DELTA) for name, form in coarse.items()}


class OwnErrors:
    """The hook that adds to quantities errors at random, of SMALL times the size of their own.

    Parameters
    ----------
    seeds : sequence of int
        One a walk, as `Disturb` takes them.
    own : mapping of str to array
        Output -> size of its error.
    """

    def __init__(self, seeds: Sequence[int], own: Mapping[str, Array]) -> None:
        self._rngs = generators(seeds)
        self._own, self._seen = own, Counter[str]()

    def __call__(self, name: str, value: Any) -> Any:
        """Move a quantity that has one."""
        name = name.removesuffix("_post")
        capital = {"p": "P", "p_pred": "P_pred"}.get(name, name)
        key = next((k for k in (name, f"{name}_step", capital) if k in self._own), None)
        if key is None or self._own[key].size % max(np.size(value), 1):
            return value
        parts = self._own[key].reshape(-1, *np.shape(value))
        at = self._seen[name] % max(len(parts), 1)
        self._seen[name] += 1
        return value + uniform(self._rngs, np.shape(value)) * parts[at] * SMALL
