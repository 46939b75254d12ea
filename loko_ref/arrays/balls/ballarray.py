"""Arrays of balls: a midpoint and a radius an entry, the exact number proven to lie between.

:class:`BallArray` is a NumPy array of dtype object whose entries are ``flint.arb``. It answers the
operators and methods of an array, so the plain code of the other packages runs on it unchanged; its
products go through ``arb_mat``.  [BALL-1]

Two rules: a float array never meets a ball array (a rounded constant would enter an exact
computation unseen), but a plain number does, and means exactly the float64 that it is; a
comparison of balls is true only where it is certain.  [BALL-2, BALL-3]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from loko_ref.errors import InputError, extras


@cache
def flint() -> Any:
    """Import python-flint, or name the extra that brings it."""
    return extras.load("flint", "ball arithmetic")


def precision(bits: int) -> Any:
    """Context within which balls are computed with `bits` bits of midpoint."""
    return flint().ctx.workprec(bits)


def bits() -> int:
    """Return the bits of midpoint that balls are computed with now."""
    return int(flint().ctx.prec)


def one_ball(value: Any) -> Any:
    """One number as an exact ball (a ball passes)."""
    arb = flint().arb
    if isinstance(value, arb):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    return arb(int(value)) if isinstance(value, bool) else arb(value)


@cache
def _ball_ufunc() -> Any:
    return np.frompyfunc(one_ball, 1, 1)


def balls(values: Any) -> BallArray:
    """Host numbers as exact balls: each is taken for the very number that its dtype stores."""
    array = np.asarray(values)
    if isinstance(values, BallArray):
        return values
    made = np.empty(array.shape, dtype=object)
    if array.size:
        made[...] = _ball_ufunc()(array)
    return made.view(BallArray)


def inflate(values: Any, u: float) -> BallArray:
    """Balls around host numbers with relative radius u: ``x (1 ± u)``; 0 stays exact.  [BALL-5]"""
    return balls(values) * flint().arb(1, u)


def is_balls(array: object) -> bool:
    """Return whether `array` holds balls (or is one)."""
    if isinstance(array, np.ndarray):
        return array.dtype == object
    return type(array).__module__.split(".", 1)[0] == "flint"


class BallArray(np.ndarray):
    """A NumPy array of dtype object, each entry a ``flint.arb``."""

    def argmax(self, axis: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Where the largest midpoint stands."""
        return np.argmax(to_host(self), axis=axis, **kwargs)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        """Route roots, exponentials, extrema and products to balls; the rest is object NumPy."""
        plain = [_plain(x) for x in inputs]
        name = ufunc.__name__
        if name == "matmul" and method == "__call__":
            result = matmul(*plain)
        elif name in _UNARY and method == "__call__":
            result = elementwise(name)(plain[0])
            if name in ("isfinite", "isnan"):
                result = np.asarray(result, dtype=bool)
        elif method == "__call__" and _squares(name, inputs):
            result = elementwise("square")(plain[0])
        elif name == "real":  # of objects a ufunc from NumPy 2.5 on: a ball is a real number
            result = plain[0]
        elif name in ("maximum", "minimum"):
            kwargs.pop("initial", None)
            kwargs.pop("where", None)
            if method == "reduce":
                result = _reduce(_extremum(name), plain[0], **kwargs)
            else:
                result = getattr(_extremum(name), method)(*plain)
        elif name not in ARITHMETIC:
            raise no_counterpart(name)
        else:
            kwargs.pop("casting", None)
            result = getattr(ufunc, method)(*plain, **kwargs)
        if out is not None:
            (target,) = out
            view(target)[...] = result
            return target
        return wrap(result)


_FIELD = ["add", "subtract", "multiply", "divide", "true_divide", "negative", "power"]
_COMPARE = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
ARITHMETIC = frozenset([*_FIELD, *_COMPARE])


def no_counterpart(name: str) -> InputError:
    """Build the error for a NumPy function of which no enclosure is known."""
    return InputError(
        "array",
        f"numpy.{name} of balls",
        "a function that has a ball counterpart",
        "a line of code that no enclosure is known for; add it to loko_ref.arrays.balls",
    )


def _squares(name: str, inputs: tuple[Any, ...]) -> bool:
    """Distinguish a square, which cannot be negative, from a product of two independent balls."""
    if name == "power":
        return isinstance(inputs[1], int) and inputs[1] == 2
    return name == "multiply" and inputs[0] is inputs[1]


def _reduce(extremum: Any, array: Any, axis: Any = 0, keepdims: bool = False, **_: Any) -> Any:
    """Reduce over one axis, several, or all (None)."""
    if axis is None:
        axis = tuple(range(array.ndim))
    for at in sorted({a % array.ndim for a in np.atleast_1d(axis)}, reverse=True):
        array = extremum.reduce(array, axis=at, keepdims=keepdims)
    return array


def view(array: Any) -> Any:
    """Strip the subclass: a plain object array on the same memory."""
    return array.view(np.ndarray) if isinstance(array, BallArray) else array


def _plain(x: Any) -> Any:
    """Strip the subclass; refuse a float array, whose entries may have been rounded.  [BALL-2]"""
    if isinstance(x, np.ndarray) and x.ndim and x.dtype.kind in "fc":
        raise InputError(
            "arrays",
            f"balls and an array of dtype {x.dtype}",
            "balls alone",
            "a constant computed in floating point: enclose it with loko_ref.arrays.asarray",
        )
    if isinstance(x, np.generic):
        return x.item()
    return view(x)


def wrap(result: Any) -> Any:
    """Put the subclass back on an object array; make a ball of a whole number."""
    if isinstance(result, np.ndarray):
        return result.view(BallArray) if result.dtype == object else result
    if isinstance(result, int) and not isinstance(result, bool):
        return one_ball(result)  # the sum of nothing
    return result


def _square(x: Any) -> Any:
    x = one_ball(x)
    return (x * x).nonnegative_part() if x.contains(0) else x * x


_UNARY: dict[str, Callable[[Any], Any]] = {
    "sqrt": lambda x: one_ball(x).sqrt(),
    "exp": lambda x: one_ball(x).exp(),
    "expm1": lambda x: one_ball(x).expm1(),
    "log": lambda x: one_ball(x).log(),
    "log1p": lambda x: one_ball(x).log1p(),
    "tanh": lambda x: one_ball(x).tanh(),
    "absolute": lambda x: abs(one_ball(x)),
    "square": _square,
    "isfinite": lambda x: one_ball(x).is_finite(),
    "isnan": lambda x: one_ball(x).is_nan(),
    "erf": lambda x: one_ball(x).erf(),
    "erfc": lambda x: one_ball(x).erfc(),
}


@cache
def elementwise(name: str) -> Any:
    """Return the elementwise function of that name on balls."""
    return np.frompyfunc(_UNARY[name], 1, 1)


@cache
def _extremum(name: str) -> Any:
    """Enclosure of the larger (smaller) of two balls, which need not be decided."""
    if name == "maximum":
        return np.frompyfunc(lambda x, y: one_ball(x).max(one_ball(y)), 2, 1)
    return np.frompyfunc(lambda x, y: one_ball(x).min(one_ball(y)), 2, 1)


def _each(function: Callable[..., Any], *arrays: Any) -> BallArray:
    """Apply a function of balls entry by entry; the result keeps the first array's shape."""
    made = np.empty(arrays[0].shape, dtype=object)
    made[...] = np.frompyfunc(function, len(arrays), 1)(*(view(a) for a in arrays))
    return made.view(BallArray)


def midpoint(array: BallArray) -> BallArray:
    """Return the midpoints as exact balls."""
    return _each(lambda x: x.mid(), array)


def widened(array: BallArray, bound: Any) -> BallArray:
    """Widen every ball by the largest number of the ball `bound`."""
    reach = one_ball(bound).abs_upper()
    return _each(lambda x: x + flint().arb(0, reach), array)


def to_mat(array: Any) -> Any:
    """Turn a two-dimensional array into an ``arb_mat``."""
    return flint().arb_mat(array.shape[0], array.shape[1], array.ravel().tolist())


def from_mat(mat: Any) -> BallArray:
    """Turn an ``arb_mat`` into an array."""
    made = np.empty(mat.nrows() * mat.ncols(), dtype=object)
    made[:] = mat.entries()
    return made.reshape(mat.nrows(), mat.ncols()).view(BallArray)


def matmul(a: Any, b: Any) -> Any:
    """Form ``a @ b`` by NumPy's rules, each product of two matrices an ``arb_mat`` product."""
    if a.ndim == 1 or b.ndim == 1:
        left = a[None, :] if a.ndim == 1 else a
        right = b[:, None] if b.ndim == 1 else b
        product = matmul(left, right)
        if a.ndim == 1:
            product = product[..., 0, :]
        return product[..., 0] if b.ndim == 1 else product
    k, rows, columns = a.shape[-1], a.shape[-2], b.shape[-1]
    if k != b.shape[-2]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not chain")
    if b.ndim == 2 and a.ndim > 2:
        return matmul(a.reshape(-1, k), b).reshape(*a.shape[:-1], columns)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if 0 in (*lead, rows, columns, k):
        return balls(np.zeros((*lead, rows, columns)))
    if not lead:
        return from_mat(to_mat(a) * to_mat(b))
    product = np.empty((*lead, rows, columns), dtype=object)
    a, b = np.broadcast_to(a, (*lead, rows, k)), np.broadcast_to(b, (*lead, k, columns))
    for at in np.ndindex(lead):
        product[at] = from_mat(to_mat(a[at]) * to_mat(b[at]))
    return product.view(BallArray)


def to_host(array: Any) -> np.ndarray:
    """Midpoints as float64 (the radii are left behind)."""
    flat = np.asarray(array, dtype=object)
    host = np.empty(flat.shape)
    host[...] = np.frompyfunc(float, 1, 1)(flat.view(np.ndarray))
    return host
