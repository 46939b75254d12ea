"""The exact outputs of a case, enclosed by ball arithmetic.

The oracle's own code is run on balls (:mod:`loko_ref.arrays.balls`), on the case's inputs as they
stand, which gives each output with a proven enclosure.  [BALL-1]

Needs the extra ``certify``; :func:`available` returns whether it is installed. No verdict and no
tolerance reads anything from here: they are the same without the extra.  [BALL-5]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array, balls
from loko_ref.conformance.cases.registry import Case


def available() -> bool:
    """Return whether python-flint is installed."""
    return importlib.util.find_spec("flint") is not None


def _convert(value: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: _convert(item, f) for name, item in value.items()}
    array = np.asarray(value)
    return f(array) if array.dtype.kind == "f" else array


def on_balls(case: Case) -> dict[str, Any]:
    """Run the oracle on balls, at the precision in force."""
    inputs = {
        name: value if name in case.exact else _convert(value, balls.balls)
        for name, value in case.inputs().items()
    }
    return dict(case.operation.oracle(inputs, case.options))


@lru_cache(maxsize=1024)
def enclosed(case: Case, limit: int = 2048) -> balls.Enclosed:
    """Enclose every output of a case: precision doubles until each is narrow.  [BALL-6]."""
    return balls.enclose(lambda: on_balls(case), limit=limit)


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """Correctly rounded values of one output."""

    value: Array  # the nearest float of the format, an element
    bound: Array  # proven: the exact number is no further than this away
    decided: Array  # whether `value` is proven to be the nearest


def golden(case: Case, dtype: str = "float64") -> dict[str, Golden]:
    """Round every output of a case correctly, or report where that is not decided.  [BALL-6].

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
