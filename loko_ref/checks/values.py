"""The public edge: what every function checks of its arguments before it computes.

Each check names the argument, what was got, what is required and the likely cause
(:class:`loko_ref.errors.InputError`), and returns nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from loko_ref.arrays import Array, backend_of, cholesky, eigvalsh, epsilon, namespace
from loko_ref.arrays.backends import KNOWN
from loko_ref.arrays.seam import conversion
from loko_ref.errors import InputError, NumericalError, UndecidedError, shown, unknown_option

Class = TypeVar("Class", bound=type)


def known_keywords(cls: Class) -> Class:
    """Make a dataclass raise for a keyword that it has no field for, naming the closest.

    Examples
    --------
    >>> @known_keywords
    ... @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Config:
    ...     observation: str = "glm"
    >>> Config(obsrvation="glm")
    Traceback (most recent call last):
    loko_ref.errors.InputError: a keyword of Config: got 'obsrvation'; required one of \
observation. Likely cause: a typing error; the closest known name is 'observation'.
    """
    init = cls.__init__  # type: ignore[misc]
    known = [field.name for field in dataclasses.fields(cls) if field.init]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in known:
                raise unknown_option(f"a keyword of {cls.__name__}", name, known)
        init(self, *args, **given)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


Format: TypeAlias = Literal["float64", "float32"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""The floating formats that everything here computes in."""


def check_choice(argument: str, got: object, allowed: Iterable[str]) -> None:
    """Raise unless an option name is one of `allowed`, naming the closest."""
    names = tuple(allowed)
    if not isinstance(got, str) or got not in names:
        raise unknown_option(argument, got, names)


def check_range(
    argument: str,
    got: Any,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise unless a number is real and within an interval (NumPy scalars are numbers)."""
    required = f"a number in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    if isinstance(got, bool) or not isinstance(got, Real):
        raise InputError(
            argument, shown(got), required, f"a {type(got).__name__} in place of a number"
        )
    try:
        x = float(got)
    except OverflowError:
        raise InputError(argument, shown(got), required, "a number beyond float64") from None
    inside = (x > low if low_open else x >= low) and (x < high if high_open else x <= high)
    if not inside:
        raise InputError(argument, shown(got), required, "a value outside the method's range")


MOST = 2**31 - 1
"""Largest count of anything: samples, steps, heads, widths."""


def check_whole(argument: str, got: object, *, low: int = 1, high: int = MOST) -> None:
    """Raise unless a value is a Python whole number in [low, high]."""
    required = f"a whole number from {low} to {high}"
    if isinstance(got, bool) or not isinstance(got, int):
        raise InputError(
            argument, shown(got), required, f"a {type(got).__name__} in place of a whole number"
        )
    if not low <= got <= high:
        cause = "a value below the least" if got < low else "a value beyond the largest"
        raise InputError(argument, shown(got), required, cause)


def check_seed(argument: str, got: object) -> None:
    """Raise unless a value is a whole number in [0, 2^64)."""
    check_whole(argument, got, low=0, high=2**64 - 1)


MEMORY = 8 * 2**30
"""Bytes of arrays that a run may ask for, by an estimate that is made before any is allocated."""


def check_memory(argument: str, got: object, count: int, dtype: Any = "float64") -> None:
    """Raise where `count` numbers of a dtype take more than ``MEMORY`` bytes.

    Parameters
    ----------
    argument, got : str, object
        The option that asks for them, and its value.
    count : int
        How many numbers the arrays have in all, of any size.
    dtype : dtype
        float64 or float32.
    """
    size = count * (4 if "32" in str(dtype) else 8)
    if size > MEMORY:
        raise InputError(
            argument,
            f"{shown(got)}, for which arrays of {size / 2**30:,.4g} GiB are needed"
            if size < 2**100
            else f"{shown(got)}, for which no memory suffices",
            f"at most {MEMORY // 2**30} GiB in all",
            "a size with a digit too many, or a problem for another machine",
        )


def read_whole(argument: str, text: str, *, low: int = 1, high: int = MOST) -> int:
    """Read a whole number in [low, high], in decimal digits.

    Examples
    --------
    >>> read_whole("--heads", "4")
    4
    """
    required = f"a whole number from {low} to {high}"
    digits = text.strip().removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit()):
        raise InputError(
            argument, shown(text), required, "a typing error, or another kind of value"
        )
    if len(digits.lstrip("0")) > len(str(high)) or not low <= int(text) <= high:
        cause = (
            "a value below the least"
            if "-" in text or int(digits[:40]) < low
            else "a digit too many"
        )
        raise InputError(argument, shown(text), required, cause)
    return int(text)


def read_number(argument: str, text: str) -> float:
    """Read a finite number that float64 can hold.

    Examples
    --------
    >>> read_number("--lr", "1e-3")
    0.001
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            argument, shown(text), "a number, not nan or inf", "a typing error, or an overflow"
        )
    mantissa = text.lower().partition("e")[0]
    if value == 0 and any(c.isdigit() and c != "0" for c in mantissa):
        raise InputError(
            argument, shown(text), "a number that float64 can hold", "an underflow to 0"
        )
    return value


def check_floats(**arrays: Any) -> None:
    """Require arrays of one library and one floating dtype; nothing is widened or narrowed."""
    first = None
    for name, array in arrays.items():
        if getattr(array, "dtype", None) is None:
            raise InputError(
                name,
                type(array).__name__,
                f"an array of one of {', '.join(KNOWN)}",
                f"a list or a scalar: convert it with {conversion(array)}",
            )
    backend_of(*arrays.values())
    for name, array in arrays.items():
        dtype = array.dtype
        if dtype.kind != "O" and (dtype.kind != "f" or dtype.itemsize not in (4, 8)):
            raise InputError(
                name,
                f"dtype {dtype}",
                "float64 or float32",
                "another precision: convert with .astype('float32') or .astype('float64')"
                if dtype.kind == "f"
                else "integer input: convert with .astype(float)",
            )
        if first is None:
            first = name
        elif dtype != arrays[first].dtype:
            raise InputError(
                name,
                f"dtype {dtype}",
                f"dtype {arrays[first].dtype}, as {first} has",
                "arrays of mixed precision; nothing is widened or narrowed silently",
            )


def check_format(argument: str, dtype: object) -> None:
    """Require one of the floating formats, given by its name, as a dtype or as a scalar type."""
    name = getattr(dtype, "name", getattr(dtype, "__name__", dtype))
    if name not in FORMATS:
        raise InputError(
            argument,
            shown(dtype),
            "float64 or float32",
            "another precision, or whole numbers: everything here computes in these two",
        )


def check_array(argument: str, got: object) -> None:
    """Raise unless a value is an array of some library."""
    if not isinstance(getattr(got, "shape", None), tuple):
        cause = "a list, a scalar, or another argument: convert it to an array first"
        raise InputError(argument, f"type {type(got).__name__}", "an array", cause)


def check_shape(
    argument: str,
    array: Array,
    shape: tuple[int | str, ...],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Require a shape; a letter in `shape` stands for a size, resolved by `sizes` if given there.

    Examples
    --------
    >>> import numpy
    >>> check_shape("H", numpy.zeros((2, 3)), ("m", "n"), {"m": 2, "n": 3})
    """
    check_array(argument, array)
    known = {} if sizes is None else sizes
    want = [known.get(d, d) if isinstance(d, str) else d for d in shape]
    got = tuple(array.shape)
    fits = len(got) == len(want)
    for g, w in zip(got, want, strict=False):
        fits = fits and (isinstance(w, str) or w == g)
    if not fits:
        letters = ", ".join(str(d) for d in shape)
        meant = ", ".join(str(w) for w in want)
        required = f"shape ({letters})" + (f" = ({meant})" if meant != letters else "")
        transposed = len(got) == 2 and got[::-1] == tuple(want)
        cause = (
            "a transposed array"
            if transposed
            else "a flattened or batched array, or sizes that do not belong together"
        )
        raise InputError(argument, f"shape {got}", required, cause)


def check_finite(**arrays: Array) -> None:
    """Raise on NaN and infinity, naming the first offending index."""
    for name, array in arrays.items():
        xp = namespace(array)
        finite = xp.isfinite(array)
        if not bool(finite.all()):
            flat = int(xp.argmin(finite.reshape(-1)))
            index, size = [], flat
            for length in reversed(array.shape):
                size, rest = divmod(size, length)
                index.append(rest)
            raise InputError(
                name,
                f"{float(array.reshape(-1)[flat])} at index {tuple(reversed(index))}",
                "finite numbers",
                "a run that diverged before, or missing data",
            )


def check_some(argument: str, array: Array, what: str) -> None:
    """Raise if an array has no entries along its first axis."""
    if array.shape[0] == 0:
        raise InputError(argument, f"no {what}", f"at least one {what}", "an empty batch")


def check_positive(argument: str, array: Array) -> None:
    """Require every entry > 0 (a variance)."""
    xp = namespace(array)
    if array.size and not bool((array > 0).all()):
        flat = int(xp.argmin(array.reshape(-1)))
        raise InputError(
            argument,
            f"{float(array.reshape(-1)[flat]):g} at flat index {flat}",
            "entries > 0",
            "a variance that was clipped, or lost to cancellation in p - diag(KH) p",
        )


def check_symmetric(argument: str, S: Array) -> None:
    """Require a symmetric matrix (m, m), to rounding."""
    xp, m = namespace(S), S.shape[0]
    size = float(xp.max(xp.abs(S)))
    skew = float(xp.max(xp.abs(S - S.T)))
    if skew > 8 * m * epsilon(S) * size:  # rounding of one m-term product is below m * eps
        raise InputError(
            argument,
            f"max |{argument} - {argument}'| = {skew:.3g}",
            "a symmetric matrix",
            "a factor given in place of the covariance, or rows and columns in different order",
        )


def check_covariance(argument: str, S: Array, *, definite: bool = True) -> None:
    """Require a symmetric positive (semi)definite matrix (m, m), to rounding.

    Parameters
    ----------
    S : array (m, m)
        The matrix.
    definite : bool
        Whether eigenvalue 0 is refused too.
    """
    m = S.shape[0]
    if m == 0:
        return
    check_symmetric(argument, S)
    try:
        cholesky(S, argument, scaled_pivots=False)
    except UndecidedError:
        raise
    except NumericalError:
        lowest, xp = float(eigvalsh(S)[0]), namespace(S)
        if definite or lowest < -m * epsilon(S) * float(xp.max(xp.abs(S))):
            kind = "definite" if definite else "semidefinite"
            raise InputError(
                argument,
                f"smallest eigenvalue {lowest:.6g}",
                f"a positive {kind} matrix",
                "a noise covariance of zero, or an estimate made indefinite by subtraction",
            ) from None
