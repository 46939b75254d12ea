"""What ball arithmetic says of a case: its exact outputs, and how far its inputs' roundoff reaches.

The oracle's own code is run on balls (:mod:`loko_ref.balls`): on the case's inputs as they stand,
which gives each output with a proven enclosure; and on inputs inflated by one unit roundoff of the
dtype, whose radii bound what that roundoff can do.  [BALL-1, BALL-5]

Needs the extra ``certify``; :func:`available` tells whether it is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from loko_ref import balls
from loko_ref.arrays import Array
from loko_ref.conformance.cases import OWN, Case
from loko_ref.errors import InputError, NumericalError, UndecidedError

__all__ = ["Golden", "available", "enclosed", "golden", "on_balls", "widths"]

BITS = 192
"""Precision at which inflated inputs are evaluated: their own radii are far wider."""


def available() -> bool:
    """Tell whether python-flint is installed."""
    return importlib.util.find_spec("flint") is not None


def _convert(value: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: _convert(item, f) for name, item in value.items()}
    array = np.asarray(value)
    return f(array) if array.dtype.kind == "f" else array


def on_balls(case: Case, u: float = 0.0) -> dict[str, Any]:
    """Run the oracle on balls, at the precision in force.

    Parameters
    ----------
    case : Case
        The case.
    u : float
        Relative radius of the inputs; 0 takes them exactly.
    """

    def made(a: Array) -> Any:
        return balls.inflate(a, u) if u else balls.balls(a)

    inputs = {
        name: value if name in case.exact else _convert(value, made)
        for name, value in case.inputs().items()
    }
    return dict(case.operation.oracle(inputs, case.options))


@lru_cache(maxsize=1024)
def enclosed(case: Case, limit: int = 2048) -> balls.Enclosed:
    """Enclose every output of a case: precision doubles until each is narrow.  [BALL-6]."""
    return balls.enclose(lambda: on_balls(case), limit=limit)


@lru_cache(maxsize=1024)
def widths(case: Case) -> tuple[Mapping[str, Array], str]:
    """Radii of the outputs when every input is inflated by the dtype's roundoff.  [BALL-5].

    Returns
    -------
    mapping of str to array
        Output name -> radius; empty where balls do not serve.
    str
        Why not; empty where they do.
    """
    if not available():
        return {}, "the extra 'certify' is not installed"
    if case.operation.name.startswith("trace."):
        return {}, "a recording is judged without them"
    if case.recipe.name == OWN:
        return {}, "inputs of one's own are judged without them"
    if case.operation.stepwise:
        return {}, "over many steps enclosures grow wider than errors do"
    u = float(np.finfo(case.dtype).eps) / 2
    try:
        with balls.precision(BITS):
            wide = on_balls(case, u)
            return {name: balls.radius(value) for name, value in wide.items()}, ""
    except UndecidedError as error:
        return {}, f"inputs inflated by u leave a branch undecided ({error.quantity})"
    except (InputError, NumericalError) as error:
        return {}, f"inputs inflated by u leave the operation's domain ({type(error).__name__})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """Correctly rounded values of one output.

    Attributes
    ----------
    value : array
        The nearest float of the format, an element.
    bound : array
        Proven: the exact number is no further than this away.
    decided : array of bool
        Whether `value` is proven to be the nearest.
    """

    value: Array
    bound: Array
    decided: Array


def golden(case: Case, dtype: str = "float64") -> dict[str, Golden]:
    """Round every output of a case correctly, or say where that is not decided.  [BALL-6].

    Parameters
    ----------
    case : Case
        The case; its inputs are taken as they stand in its own dtype.
    dtype : {"float64", "float32"}
        The format of the values.
    """
    found = {}
    for name, ball in enclosed(case).outputs.items():
        shape = np.shape(ball)
        rounds = [balls.rounded(x, dtype) for x in np.asarray(ball, dtype=object).reshape(-1)]
        found[name] = Golden(
            value=np.array([r.value for r in rounds], dtype=dtype).reshape(shape),
            bound=np.array([r.bound for r in rounds]).reshape(shape),
            decided=np.array([r.decided for r in rounds], dtype=bool).reshape(shape),
        )
    return found
