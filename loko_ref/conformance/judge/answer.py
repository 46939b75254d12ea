"""The answer of an implementation to one case: its form is checked here, its numbers are not.

A result is a mapping of known names to arrays of the right shape and dtype; anything else becomes
a finding.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array, read_array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.layout import arranged
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.errors import closest, printable

__all__ = ["NOT_OFFERED", "Answer", "Finding", "check", "describe", "words"]

NOT_OFFERED = "the implementation has no such operation"
"""Why a case is declined whose operation is not offered at all."""

TEXT = 2000
"""Most characters of a message."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault other than a wrong number.

    Attributes
    ----------
    kind : str
        ``raised``, ``timeout``, ``signature``, ``result``, ``output``, ``shape``, ``dtype`` or
        ``mutated``; of a command also ``crashed`` and ``protocol``.
    message : str
        One sentence; control characters in what it quotes are escaped.
    quantity : str or None
        The output concerned.
    index : tuple of int or None
        The element concerned.
    """

    kind: str
    message: str
    quantity: str | None = None
    index: tuple[int, ...] | None = None
    expected: str | float | None = None
    got: str | float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message, TEXT))


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The answer for one case: outputs, or the reason why it was declined, or a finding.

    ``returned`` holds all outputs where one has a wrong shape that no reordering of the expected
    values explains; ``lacking`` names the options for which a function that declines has no
    parameter.
    """

    outputs: Mapping[str, Array] = field(default_factory=dict)
    returned: Mapping[str, Array] = field(default_factory=dict)
    declined: str | None = None
    finding: Finding | None = None
    lacking: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.declined is not None:
            object.__setattr__(self, "declined", printable(self.declined, TEXT))


def words(error: BaseException) -> str:
    """Return an exception's text, printable and short, even where its `str` raises."""
    try:
        return printable(str(error), 300)
    except Exception as other:
        return f"(its text fails with {type(other).__name__})"


def describe(error: BaseException, own: str) -> str:
    """Return an error as text, with the last line outside the file `own` in its traceback."""
    where, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name not in (own, importlib.__file__) and not name.startswith("<frozen"):
            where = f" ({printable(Path(name).name, 100)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    text = words(error)
    return f"{printable(type(error).__name__, 80)}{': ' if text else ''}{text}{where}"


def check(result: Any, case: Case) -> Answer:
    """Check the form of a result: a mapping of known names to arrays of right shape and dtype."""
    if not isinstance(result, Mapping):
        message = f"returned {type(result).__name__} in place of a mapping of named arrays"
        return Answer(finding=Finding(kind="result", message=message))
    case = case.holding(result)
    result = _multiplied(result, case)
    wanted = expected(case)
    known = [output.name for output in case.operation.outputs]
    outputs: dict[str, Array] = {}
    for name in result:
        if name not in known:
            near = closest(str(name), known)
            message = f"returned {name!r}, which is no output of {case.operation.name}" + (
                f"; the closest is '{near}'" if near else f" ({', '.join(known)})"
            )
            return Answer(finding=Finding(kind="output", message=message))
    for name in wanted:  # in dataflow order
        if name not in result:
            continue
        array = _array(result[name])
        if isinstance(array, str):
            return Answer(finding=Finding(kind="output", message=f"{name}: {array}", quantity=name))
        finding = _form(name, array, wanted[name], case.dtype)
        if finding is not None and finding.kind == "shape":
            hint = arranged(case, name, array)
            if hint:
                finding = replace(finding, message=f"{finding.message}; {hint}")
            arrays = {} if hint else {k: _array(result[k]) for k in wanted if k in result}
            returned = {
                k: a for k, a in arrays.items() if not isinstance(a, str) and a.dtype == case.dtype
            }
            return Answer(outputs=outputs, finding=finding, returned=returned)
        if finding is not None:
            return Answer(outputs=outputs, finding=finding)
        outputs[name] = array
    if not outputs:
        message = "returned none of " + ", ".join(wanted) + "; raise NotImplementedError to decline"
        return Answer(finding=Finding(kind="result", message=message))
    return Answer(outputs=outputs)


def _multiplied(result: Mapping[Any, Any], case: Case) -> Mapping[Any, Any]:
    """Replace each factor that came back by its product with its own transpose."""
    for factor, product in case.operation.factors.items():
        if factor not in result:
            continue
        rest = {name: value for name, value in result.items() if name != factor}
        W = _array(result[factor])
        if product not in result and product in expected(case):
            if not isinstance(W, str) and W.ndim > 1 and W.dtype.kind == "f":
                wide = W.astype(np.float64)
                with np.errstate(all="ignore"):
                    W = (wide @ np.swapaxes(wide, -1, -2)).astype(W.dtype)
            rest[product] = result[factor] if isinstance(W, str) else W
        result = rest
    return result


def _array(value: Any) -> Array | str:
    """Return a NumPy array, or the reason why there is none."""
    if not (isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__")):
        return f"a {type(value).__name__} in place of an array"
    try:
        array = np.array(read_array(value))
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    except Exception as error:
        return f"cannot be read as a NumPy array: {describe(error, __file__)}"


def _form(name: str, array: Array, wanted: Array, dtype: str) -> Finding | None:
    if array.shape != wanted.shape:
        return Finding(
            kind="shape",
            message=f"{name} has shape {array.shape}, not {wanted.shape}",
            quantity=name,
            expected=f"shape {wanted.shape}",
            got=f"shape {array.shape}",
        )
    if array.dtype != np.dtype(dtype):
        return Finding(
            kind="dtype",
            message=f"{name} has dtype {array.dtype}, not {dtype} as the inputs",
            quantity=name,
            expected=dtype,
            got=str(array.dtype),
        )
    return None
