"""The seam: the only room that tells one array library from another, and both from balls.

Every other room computes with the arrays that it was given. It asks :func:`namespace` for the
functions of their library, and this module for the few things that libraries spell differently:
``erf``, Cholesky, triangular and general solves, the way to and from the host. What each library
offers stands in :mod:`loko_ref.arrays.backends`.

Rules kept here: arrays of two libraries are never mixed; nothing moves between host and device
unless :func:`to_host` or :func:`asarray` says so; a request for a backend by name either gets it
or raises; a failed factorisation raises on every backend.

Shapes: S (m, m); L (m, m) lower triangular; b (m,) or (m, k); Q (C - 1, C).
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from loko_ref.arrays.backends import KNOWN, Array, Backend, get_backend, register_backend
from loko_ref.errors import InputError, NumericalError, UndecidedError

__all__ = [
    "Array",
    "Backend",
    "asarray",
    "backend_of",
    "cho_solve",
    "cholesky",
    "contrast_basis",
    "eigvalsh",
    "epsilon",
    "erf",
    "erfc",
    "get_backend",
    "is_numpy",
    "namespace",
    "one_minus_power",
    "peak",
    "pi",
    "positive",
    "register_backend",
    "root",
    "scalar",
    "singular_floor",
    "solve",
    "solve_triangular",
    "to_host",
    "to_scalar",
    "where_or_zero",
]


def _library(array: object) -> str | None:
    """Name the registered library that `array` belongs to; None for a plain scalar."""
    if isinstance(array, np.ndarray | np.generic):
        return "balls" if array.dtype == object else "numpy"
    if isinstance(array, bool | int | float | complex):
        return None
    for cls in type(array).__mro__:
        module = cls.__module__.split(".", 1)[0]
        if module == "flint":
            return "balls"
        if module in KNOWN and module != "numpy":
            return module
    raise InputError(
        "array",
        type(array).__name__,
        f"an array of one of {', '.join(KNOWN)}",
        "a list, or a tensor of another framework: convert it to a NumPy or CuPy array first",
    )


def backend_of(*arrays: object) -> Backend:
    """Return the backend that all `arrays` share.

    Raises
    ------
    InputError
        If they belong to different libraries, or to one that is not registered.
    """
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
    """Tell whether `array` is a host (NumPy) array."""
    return _library(array) == "numpy"


def to_host(array: object) -> NDArray[Any]:
    """Copy an array of any backend to a NumPy array (a NumPy array is returned as it is)."""
    return backend_of(array).to_host(array)


def asarray(values: object, like: object) -> Array:
    """Bring host values to the library of `like`; its own arrays pass unchanged.

    Parameters
    ----------
    values : array or scalar
        A host array, or an array of the library of `like`.
    like : array
        The array that says which library.
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
    dtype = np.float32 if array.dtype == object else array.dtype
    return float(np.finfo(dtype).eps)


def singular_floor(S: Array) -> float:
    """Smallest eigenvalue of S's correlation matrix (m, m) that is not rounding: max(m, 8) eps.

    m eps for the factorisation, 8 eps for S's own entries, which are sums.  [KAL-8]
    """
    return max(S.shape[0], 8) * epsilon(S)


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
    """Turn an array of one element into a float, or into a ball if it is one."""
    return value if _library(value) == "balls" else float(value)


def positive(x: Array) -> Array:
    """Tell where x > 0, of the real part; raises where a ball does not decide it.  [BALL-3]."""
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


def erf(x: Array) -> Array:
    """Error function, elementwise; keeps shape and dtype."""
    y: Array = backend_of(x).erf(x)
    return y


def erfc(x: Array) -> Array:
    """Complementary error function 1 - erf, elementwise; keeps its digits for large x."""
    y: Array = backend_of(x).erfc(x)
    return y


def eigvalsh(S: Array) -> Array:
    """Eigenvalues (m,) of a symmetric matrix (m, m), ascending."""
    w: Array = backend_of(S).eigvalsh(S)
    return w


def cholesky(S: Array, name: str, *, scaled_pivots: bool = True) -> Array:
    """Lower Cholesky factor of a symmetric positive definite matrix.  [KAL-8]

    Only the lower triangle is read. Nothing is added to the diagonal, ever.

    Parameters
    ----------
    S : array (m, m)
        Symmetric.
    name : str
        What the matrix is called, for the error.
    scaled_pivots : bool
        Whether a numerically singular S is refused: the smallest eigenvalue of its correlation
        matrix must exceed :func:`singular_floor`. It bounds from below every pivot ratio
        ``L_jj^2 / S_jj``, in whatever order the outputs are taken, and does not depend on their
        units.

    Returns
    -------
    array (m, m)
        L with L L' = S.

    Raises
    ------
    NumericalError
        If S is indefinite or numerically singular; carries the smallest eigenvalue. If S is not
        finite, without one. Its subclass UndecidedError if balls are too wide to tell.
    """
    lib = backend_of(S)
    xp = lib.xp
    m = S.shape[0]
    if not bool(xp.isfinite(S).all()):  # LAPACK passes NaN through without a word
        raise NumericalError(
            name, None, f"{name} overflowed: H, p or R is too large for the dtype, or their ratio."
        )
    try:
        L: Array = lib.cholesky(S)
    except UndecidedError as error:
        raise UndecidedError(name, error.eigenvalue, error.cause) from None
    except np.linalg.LinAlgError:
        lowest = float(eigvalsh(S)[0])
        raise NumericalError(
            name,
            lowest,
            f"{name} is not positive definite (Cholesky fails): a direction that nothing observes "
            "with noise, or an indefinite input. Nothing was added to repair it.",
        ) from None
    if scaled_pivots and m > 0 and lib.name != "balls":  # a ball's factor is certified
        X = lib.solve_triangular(L, xp.diag(xp.sqrt(xp.diagonal(S))), False)  # (m, m)
        floor = singular_floor(S)
        # X'X is the inverse of the correlation matrix; its trace bounds its largest eigenvalue
        if not 1 / float((X * X).sum()) > floor:
            scaled = 1 / float(lib.eigvalsh(X.T @ X)[-1])
            if not scaled > floor:
                raise NumericalError(
                    name,
                    float(eigvalsh(S)[0]),
                    f"{name} is numerically singular: its correlation matrix has the smallest "
                    f"eigenvalue {scaled:.3g}, not above max(m, 8) eps = {floor:.3g}, so the "
                    "update would have no correct digit. Nothing was added to repair it.",
                )
    return L


def solve_triangular(L: Array, b: Array, *, transpose: bool = False) -> Array:
    """Solve L x = b (or L' x = b) for lower triangular L (m, m) and b (m,) or (m, k)."""
    x: Array = backend_of(L, b).solve_triangular(L, b, transpose)
    return x


def cho_solve(L: Array, b: Array) -> Array:
    """Solve S x = b by the Cholesky factor L of S; b (m,) or (m, k)."""
    direct = backend_of(L, b).cho_solve
    if direct is not None:
        x: Array = direct(L, b)
        return x
    return solve_triangular(L, solve_triangular(L, b), transpose=True)


def solve(A: Array, b: Array, *, name: str = "A") -> Array:
    """Solve A x = b for a general square A (m, m) by LU with partial pivoting; b (m,) or (m, k).

    `name` is what the matrix is called in the error: NumericalError if a pivot is exactly 0, its
    subclass UndecidedError if balls are too wide to tell.
    """
    try:
        x: Array = backend_of(A, b).solve(A, b)
    except UndecidedError as error:
        raise UndecidedError(name, error.eigenvalue, error.cause) from None
    except np.linalg.LinAlgError:
        raise NumericalError(
            name, 0.0, f"{name} is singular: a pivot of its LU factorisation is exactly 0."
        ) from None
    return x


@cache
def _helmert(C: int) -> NDArray[np.float64]:
    return np.asarray(scipy.linalg.helmert(C), dtype=np.float64)


def contrast_basis(C: int, like: Array) -> Array:
    """Orthonormal basis of the contrasts of C classes: Q Q' = I, Q 1 = 0.  [OBS-5]

    Parameters
    ----------
    C : int
        Number of classes, at least 1.
    like : array
        Gives library and dtype.

    Returns
    -------
    array (C - 1, C)
        The Helmert contrasts, one a row.

    Examples
    --------
    >>> import numpy
    >>> contrast_basis(2, numpy.zeros(1)).round(3)
    array([[ 0.707, -0.707]])
    """
    own = backend_of(like).contrast_basis
    if own is not None:
        basis: Array = own(C)
        return basis
    Q = _helmert(C) if C > 1 else np.zeros((0, 1))
    return asarray(Q.astype(like.dtype), like)
