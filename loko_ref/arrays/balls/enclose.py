"""From balls to answers: precision that doubles until it suffices, and correct rounding.  [BALL-6]

:func:`enclose` evaluates a function of exact inputs at 128, 256, ... bits until every output's
ball is narrow enough to be rounded, or a bound is hit, and then states which are not.
:func:`rounded` gives the float nearest to the exact number, with a proven bound on its distance,
or that the ball does not decide it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays.balls.ballarray import BallArray, balls, precision
from loko_ref.errors import InputError, UndecidedError

_FORMATS = {"float64": (53, -1074, 1024), "float32": (24, -149, 128)}
_GONE = -1100  # log2 of a distance far below half the smallest subnormal of float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Enclosed:
    """What :func:`enclose` found."""

    outputs: Mapping[str, BallArray]  # a proven enclosure per element
    bits: int  # precision of the last evaluation
    # output name -> number of elements still wider than asked; empty where all is well
    loose: Mapping[str, int]


def loose(array: Any, relative_bits: int) -> int:
    """Count the elements whose radius exceeds ``2^-relative_bits |midpoint|``.

    A ball inside ±2^-1100 is narrow in any case: it rounds to zero.
    """
    return sum(
        not (x.rel_accuracy_bits() >= relative_bits or _negligible(x))
        for x in np.asarray(array, dtype=object).reshape(-1).tolist()
    )


def _negligible(x: Any) -> bool:
    if not x.is_finite():
        return False
    man, exp = x.abs_upper().man_exp()
    return man == 0 or int(man).bit_length() + int(exp) < _GONE


def enclose(
    function: Callable[[], Mapping[str, Any]],
    *,
    start: int = 128,
    limit: int = 2048,
    relative_bits: int = 70,
) -> Enclosed:
    """Evaluate in balls, doubling the precision until every output is narrow enough.

    Parameters
    ----------
    function : callable
        Without arguments; makes balls of its (exact) inputs and returns named outputs.
    start, limit : int
        First and last precision, in bits.
    relative_bits : int
        An output is narrow enough when its radius is at most ``2^-relative_bits`` of its
        midpoint: 70 decides the rounding of all but one in about 2^17 float64 values.

    Returns
    -------
    Enclosed
        ``loose`` counts what the last precision left too wide.

    Raises
    ------
    UndecidedError
        If a branch or a definiteness is undecided even at the last precision.
    """
    if not 2 <= start <= limit:
        raise InputError("start", start, f"bits in [2, limit = {limit}]", "limit below start")
    bits = start
    while True:
        last = 2 * bits > limit
        try:
            with precision(bits):
                outputs = {name: balls(value) for name, value in function().items()}
        except UndecidedError:
            if last:
                raise
        else:
            wide = {name: loose(value, relative_bits) for name, value in outputs.items()}
            wide = {name: count for name, count in wide.items() if count}
            if not wide or last:
                return Enclosed(outputs=outputs, bits=bits, loose=wide)
        bits *= 2


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """The float nearest to an exact number known by its ball."""

    value: float  # nearest to the midpoint; nearest to the exact number where `decided`
    bound: float  # proven: the exact number is no further than this from `value` (rounded up)
    decided: bool  # whether every number of the ball rounds to `value` (ties to even)


def _exact(x: Any) -> tuple[int, int]:
    man, exp = x.man_exp()
    return int(man), int(exp)


def _nearest(man: int, exp: int, dtype: str) -> float:
    """``man 2^exp`` to the nearest float of the dtype, ties to even, subnormals included."""
    digits, lowest, highest = _FORMATS[dtype]
    if man == 0:
        return 0.0
    sign, man = (-1.0, -man) if man < 0 else (1.0, man)
    top = man.bit_length() + exp
    if top < lowest - 1:
        return 0.0 * sign
    if top > highest:
        return math.inf * sign
    quantum = max(top - digits, lowest)
    shift = quantum - exp
    if shift <= 0:
        n = man << -shift
    else:
        n, rest = man >> shift, man & ((1 << shift) - 1)
        half = 1 << (shift - 1)
        n += rest > half or (rest == half and n & 1)
    if n.bit_length() + quantum > highest:
        return math.inf * sign
    return sign * math.ldexp(n, quantum)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Add ``man 2^exp`` exactly."""
    (m, e), (n, f) = a, b
    if m == 0 or n == 0:
        return b if m == 0 else a
    low = min(e, f)
    return (m << (e - low)) + (n << (f - low)), low


def rounded(x: Any, dtype: str = "float64") -> Rounded:
    """Round a ball correctly, or return that it is too wide to.

    Parameters
    ----------
    dtype : {"float64", "float32"}
        The format.

    Examples
    --------
    >>> third = balls(1.0).item() / 3
    >>> rounded(third).value == 1 / 3
    True
    """
    if not x.is_finite():
        return Rounded(value=math.nan, bound=math.inf, decided=False)
    mid, rad = _exact(x.mid()), _exact(x.rad())
    if abs(mid[1]) > 1 << 20 or abs(rad[1]) > 1 << 20:  # beyond any float: do not shift that far
        if _negligible(x):
            return Rounded(value=0.0, bound=math.ulp(0.0), decided=True)
        return Rounded(value=math.nan, bound=math.inf, decided=False)
    value = _nearest(*mid, dtype)
    low, high = _sum(mid, (-rad[0], rad[1])), _sum(mid, rad)
    decided = _nearest(*low, dtype) == _nearest(*high, dtype) and math.isfinite(value)
    bound = math.inf
    if math.isfinite(value):
        man, exp = math.frexp(value)
        minus = (-int(math.ldexp(man, 53)), exp - 53)
        ends = (_sum(low, minus), _sum(high, minus))
        bound = max(_upward(abs(m), e) for m, e in ends)
    return Rounded(value=value, bound=bound, decided=decided)


def _upward(man: int, exp: int) -> float:
    """Return a float64 not below ``man 2^exp`` >= 0."""
    return math.nextafter(_nearest(man, exp, "float64"), math.inf) if man else 0.0


def radius(array: Any) -> np.ndarray:
    """Radii as float64, rounded up; infinity where there is no enclosure."""

    def one(x: Any) -> float:
        if not x.is_finite():
            return math.inf
        man, exp = _exact(x.rad())
        return _upward(man, exp)

    flat = np.asarray(array, dtype=object)
    made = np.empty(flat.shape)
    made[...] = np.frompyfunc(one, 1, 1)(flat.view(np.ndarray))
    return made
