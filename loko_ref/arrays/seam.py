"""The seam: the only package that distinguishes array libraries, and both from balls.

Every other package computes with the arrays that it was given. It asks :func:`namespace` for the
functions of their library, and this one for the few things that libraries spell differently:
``erf``, the way to and from the host, and in :mod:`loko_ref.arrays.linalg` Cholesky, triangular and
general solves. What each library offers stands in :mod:`loko_ref.arrays.backends`.

Rules kept here: arrays of two libraries are never mixed; nothing moves between host and device
unless :func:`to_host` or :func:`asarray` is called; a request for a backend by name either gets it
or raises.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.arrays.backends import KNOWN, NUMPY, Array, Backend, get_backend
from loko_ref.errors import InputError


def _library(array: object) -> str | None:
    """Return the name of the registered library of `array`; None for a plain scalar."""
    if isinstance(array, np.ndarray | np.generic):
        return "balls" if array.dtype.kind == "O" else "numpy"
    if isinstance(array, bool | int | float | complex):
        return None
    for cls in type(array).__mro__:
        module = cls.__module__.split(".", 1)[0]
        if module == "flint":
            return "balls"
        if module in KNOWN and module != "numpy":
            return module
    raise InputError("array", type(array).__name__, f"an array of one of {', '.join(KNOWN)}",
                     f"{_origin(array)}: convert it with {conversion(array)}")  # fmt: skip


CONVERSIONS = {
    "torch": "a.detach().cpu().numpy()",
    "jax": "numpy.asarray(a), outside of jit, grad and vmap, inside which it holds no numbers",
    "jaxlib": "numpy.asarray(a)",
    "tensorflow": "a.numpy()",
}
"""Library of an array -> how it becomes a NumPy array."""


def _origin(array: object) -> str:
    """Return what an array that is not taken is, in words."""
    library = _framework(array)
    return f"a tensor of {library.removesuffix('lib')}" if library else "a list, or a foreign array"


def _framework(array: object) -> str:
    modules = (cls.__module__.split(".", 1)[0] for cls in type(array).__mro__)
    return next((name for name in modules if name in CONVERSIONS), "")


def conversion(array: object) -> str:
    """Return what turns an array of another library into one of NumPy, as code.

    Examples
    --------
    >>> conversion([1.0])
    'numpy.asarray(a)'
    """
    return CONVERSIONS.get(_framework(array), "numpy.asarray(a)")


def read_array(array: Any) -> NDArray[Any]:
    """Return the numbers of any library's array in NumPy; one that needs a gradient is detached.

    Parameters
    ----------
    array : array-like
        Of NumPy, CuPy, torch, JAX or whatever else NumPy can read; on any device.

    Raises
    ------
    Exception
        Whatever the library raises where it has no numbers to give.
    """
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    if hasattr(array, "detach"):  # what holds a gradient gives its numbers only apart from it
        array = array.detach()
    if _framework(array) == "torch":
        array = array.cpu()
    elif "cupy" in {cls.__module__.split(".", 1)[0] for cls in type(array).__mro__}:
        array = to_host(array)
    return np.asarray(array)


def backend_of(*arrays: object) -> Backend:
    """Return the backend that all `arrays` share.

    Raises
    ------
    InputError
        If they belong to different libraries, or to one that is not registered.
    """
    for array in arrays:
        if type(array) is not np.ndarray or array.dtype.kind == "O":
            break
    else:
        return NUMPY
    found = {name for name in map(_library, arrays) if name is not None}
    if len(found) > 1:
        raise InputError(
            "arrays",
            f"arrays of {' and '.join(sorted(found))}",
            "arrays of one library",
            "some inputs were moved to the device and others were not",
        )
    return get_backend(found.pop() if found else "numpy")


def namespace(*arrays: object) -> Any:
    """Return the NumPy-like namespace that all `arrays` share.

    Examples
    --------
    >>> import numpy
    >>> namespace(numpy.zeros(2)) is numpy
    True
    """
    return backend_of(*arrays).xp


def is_numpy(array: object) -> bool:
    """Return whether `array` is a host (NumPy) array."""
    return _library(array) == "numpy"


def to_host(array: object) -> NDArray[Any]:
    """Copy an array of any backend to a NumPy array (a NumPy array is returned as it is)."""
    return backend_of(array).to_host(array)


def asarray(values: object, like: object) -> Array:
    """Convert host values to the library of `like`; its own arrays pass unchanged.

    Parameters
    ----------
    values : array or scalar
        A host array, or an array of the library of `like`.
    like : array
        The array that determines the library.
    """
    target = backend_of(like)
    if not isinstance(values, np.ndarray) and _library(values) == target.name:
        return values  # type: ignore[return-value]
    result: Array = target.asarray(np.asarray(values))
    return result


def epsilon(array: Array) -> float:
    """Machine epsilon of the array's dtype (2u, u the unit roundoff).

    For balls float32's, the coarsest format that their inputs come in: it is asked for only where
    an input is checked to be symmetric, or to sum to one, up to its own rounding.
    """
    return _epsilon(np.dtype(np.float32) if array.dtype.kind == "O" else array.dtype)


@cache
def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).eps)


def scalar(value: float, like: object) -> Any:
    """Return a number as it is to be computed with beside `like`.

    A float, except beside balls: there the exact number that the float stands for, so that
    ``1 - scalar(beta, like)`` is not rounded.  [BALL-2]

    Examples
    --------
    >>> import numpy
    >>> scalar(0.1, numpy.zeros(1))
    0.1
    """
    return backend_of(like).asarray(value).item() if _library(like) == "balls" else value


def one_minus_power(beta: float, t: int, like: object) -> Any:
    """``1 - beta^t`` for 0 <= beta < 1, t >= 1.  [BALL-7].

    ``-expm1(t log1p(beta - 1))``: rounding beta^t first would cost u / (1 - beta^t) of it.

    Examples
    --------
    >>> import numpy
    >>> one_minus_power(0.5, 2, numpy.zeros(1))
    0.75
    """
    if _library(like) == "balls":
        return 1 - scalar(beta, like) ** t
    return -math.expm1(t * math.log1p(beta - 1)) if beta else 1.0


def root(value: Any, like: object) -> Any:
    """Square root of a number >= 0: a float, or its enclosure beside balls.  [BALL-2]."""
    return scalar(value, like).sqrt() if _library(like) == "balls" else math.sqrt(value)


def pi(like: object) -> Any:
    """Return pi: a float, or its enclosure beside balls.  [BALL-2]."""
    return backend_of(like).xp.pi if _library(like) == "balls" else math.pi


def to_scalar(value: Array) -> Any:
    """Return an array of one element as a float, or as a ball if it is one."""
    return value if _library(value) == "balls" else float(value)


def positive(x: Array) -> Array:
    """Return where x > 0, of the real part; raise where a ball does not decide it.  [BALL-3]."""
    if _library(x) == "balls":
        mask: Array = importlib.import_module("loko_ref.arrays.balls").positive(x)
        return mask
    return x.real > 0


_WORDS = {np.dtype(np.float64): np.int64, np.dtype(np.float32): np.int32}


def where_or_zero(mask: Array, x: Array) -> Array:
    """``x`` where `mask` holds, else 0: `where`, without its branch at every entry.

    Parameters
    ----------
    mask : array of bool
        Broadcastable to x.
    x : array
        Any values, also infinite ones. NumPy's real floats are selected by their bits.
    """
    if is_numpy(x) and x.dtype in _WORDS and is_numpy(mask):
        word = _WORDS[x.dtype]
        bits = np.negative(mask, dtype=word, casting="unsafe")  # 0, or all ones
        kept: Array = (np.ascontiguousarray(x).view(word) & bits).view(x.dtype)
        return kept
    xp = namespace(x)
    return xp.where(mask, x, xp.zeros_like(x))


def peak(x: Array, where: Array | None = None) -> Array:
    """Return the maximum over the last axis (kept), of the real part.

    For balls it is the largest midpoint, an exact number: it serves as a shift that cancels, and
    any shift does.  [BALL-3]

    Parameters
    ----------
    x : array (..., d)
        Real, complex or balls.
    where : array of bool, optional
        Shape of x: the entries that count; where none does the result is minus infinity.
    """
    if _library(x) == "balls":
        top: Array = importlib.import_module("loko_ref.arrays.balls").peak(x, where)
        return top
    real = x.real if where is None else namespace(x).where(where, x.real, -math.inf)
    return real.max(axis=-1, keepdims=True)


def midpoint(x: Array) -> Array:
    """Return an array without the radii of its balls: exact numbers, to iterate on.  [BALL-3]."""
    if _library(x) == "balls":
        middle: Array = importlib.import_module("loko_ref.arrays.balls").midpoint(x)
        return middle
    return x


def resolution(array: Array) -> float:
    """Return the unit roundoff u of an array's computation; of balls, their midpoints'."""
    if _library(array) == "balls":
        bits: int = importlib.import_module("loko_ref.arrays.balls").bits()
        return math.ldexp(1.0, -bits)
    return epsilon(array) / 2


def proven(x: Array, enclosure: Callable[[], Array]) -> Array:
    """Return what an iteration ended at; beside balls its proven enclosure in its place.  [BALL-3].

    Parameters
    ----------
    x : array
        What the iteration ended at.
    enclosure : callable
        Without arguments: balls that hold the exact result. Not called for floats.
    """
    return enclosure() if _library(x) == "balls" else x


def widened(x: Array, bound: Array) -> Array:
    """Widen every ball of x by the largest number of the ball `bound`.  [BALL-3]."""
    wider: Array = importlib.import_module("loko_ref.arrays.balls").widened(x, bound)
    return wider


def erf(x: Array) -> Array:
    """Error function, elementwise; keeps shape and dtype."""
    y: Array = backend_of(x).erf(x)
    return y


def erfc(x: Array) -> Array:
    """Complementary error function 1 - erf, elementwise; keeps its digits for large x."""
    y: Array = backend_of(x).erfc(x)
    return y
