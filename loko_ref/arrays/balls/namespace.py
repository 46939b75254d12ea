"""What the package asks of NumPy, for balls: the namespace ``xp``, and the branches.

Structural functions are NumPy's own; what has no ball counterpart is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays.balls.ballarray import (
    ARITHMETIC,
    BallArray,
    balls,
    elementwise,
    flint,
    is_balls,
    no_counterpart,
    one_ball,
    to_host,
    view,
    wrap,
)
from loko_ref.errors import UndecidedError


def _ballarray(x: Any) -> Any:
    """Wrap a single ball, so that a NumPy function finds its way back here."""
    return balls(x) if is_balls(x) and not isinstance(x, BallArray) else x


class _Namespace:
    """What the package asks of NumPy, for balls; structural functions are NumPy's own."""

    pi = property(lambda self: flint().arb.pi())
    linalg: Any = None  # of loko_ref.arrays.balls.linalg, which sets it

    def zeros(self, shape: Any, dtype: Any = object) -> BallArray:
        return balls(np.zeros(shape))

    def empty(self, shape: Any, dtype: Any = object) -> BallArray:
        """Fill with NaN: an entry that is forgotten shows."""
        return balls(np.full(shape, np.nan))

    def ones(self, shape: Any, dtype: Any = object) -> BallArray:
        return balls(np.ones(shape))

    def eye(self, n: int, m: int | None = None, dtype: Any = object) -> BallArray:
        return balls(np.eye(n, m))

    def full(self, shape: Any, value: Any, dtype: Any = object) -> BallArray:
        made = np.empty(shape, dtype=object)
        made.fill(one_ball(value))
        return made.view(BallArray)

    def zeros_like(self, array: Any) -> BallArray:
        return self.zeros(np.shape(array))

    def ones_like(self, array: Any) -> BallArray:
        return self.ones(np.shape(array))

    def full_like(self, array: Any, value: Any) -> BallArray:
        return self.full(np.shape(array), value)

    def argmin(self, array: Any) -> int:
        """Where the smallest midpoint stands (for the wording of an error)."""
        return int(np.argmin(to_host(array)))

    def diag(self, array: Any) -> BallArray:
        if array.ndim == 2:
            return np.diagonal(array).view(BallArray)
        made = self.zeros((array.shape[0], array.shape[0]))
        made[np.arange(array.shape[0]), np.arange(array.shape[0])] = array
        return made

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if name in _STRUCTURE:
            return lambda *args, **kwargs: wrap(function(*args, **kwargs))
        if name in ARITHMETIC:
            return function
        if isinstance(function, np.ufunc) or name in _REDUCE:
            return lambda x, *args, **kwargs: wrap(function(_ballarray(x), *args, **kwargs))
        raise no_counterpart(name)


_STRUCTURE = frozenset(
    [
        "arange",
        "broadcast_to",
        "concatenate",
        "diagonal",
        "moveaxis",
        "nonzero",
        "outer",
        "stack",
        "swapaxes",
        "take_along_axis",
        "where",
    ]
)
_REDUCE = frozenset(["abs", "max"])


def erf(x: Any) -> Any:
    """Enclose the error function."""
    return wrap(elementwise("erf")(view(x)))


def erfc(x: Any) -> Any:
    """Enclose the complementary error function."""
    return wrap(elementwise("erfc")(view(x)))


def positive(x: Any) -> Any:
    """Return where x > 0; raises where a ball has points on both sides of the kink.  [BALL-3]"""
    mask = np.asarray(view(x) > 0)
    if not np.asarray(mask | (view(x) <= 0)).all():
        raise UndecidedError(
            "x",
            None,
            f"At {flint().ctx.prec} bits it is not decided whether an activation's input is "
            "positive, and its derivative depends on it. Raise the precision, or take an input "
            "further from the kink.",
        )
    return mask


def peak(x: Any, where: Any = None) -> BallArray:
    """Largest midpoint over the last axis (kept), an exact number; of the entries that count."""
    array = view(x)
    middle = to_host(array)
    at = np.argmax(middle if where is None else np.where(where, middle, -np.inf), axis=-1)[
        ..., None
    ]
    top = np.take_along_axis(array, at, axis=-1)
    made = np.empty(top.shape, dtype=object)
    made[...] = np.frompyfunc(lambda b: b.mid(), 1, 1)(top)
    return made.view(BallArray)


xp = _Namespace()
"""The namespace of ball arrays."""
