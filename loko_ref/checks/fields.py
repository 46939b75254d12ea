"""What a file's metadata and arrays must hold: tables of fields, each with a check of its own.

A table names every field and what fits it; what does not fit is refused by the name of the file
and of the field. A seal ties metadata and arrays of one file together.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from loko_ref.arrays import Array, epsilon, to_host
from loko_ref.errors import InputError, closest

_CAUSE = "a file changed by hand, or put together from several"
_LARGEST = 2**63 - 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Leaf:
    """A value that holds no others: what it must be, in words, and whether a value is one."""

    meaning: str
    fits: Callable[[Any], bool]


def whole(low: int = 0, high: int = _LARGEST) -> Leaf:
    """Return the kind of a whole number from `low` to `high`, both included."""
    above = f">= {low}" if high == _LARGEST else f"from {low} to {high}"
    return Leaf(f"a whole number {above}", lambda v: _is_whole(v) and low <= v <= high)


def real(low: float = -math.inf, high: float = math.inf) -> Leaf:
    """Return the kind of a finite number from `low` to `high`, both included; whole ones too."""
    bounds = f" from {low:g}" if low > -math.inf else ""
    bounds += f" to {high:g}" if high < math.inf else ""

    def fits(value: Any) -> bool:
        finite = abs(value) <= _LARGEST if _is_whole(value) else isinstance(value, float)
        return finite and math.isfinite(value) and low <= value <= high

    return Leaf(f"a finite number{bounds}", fits)


def text(pattern: str = "(?s).*", meaning: str = "a text") -> Leaf:
    """Return the kind of a text that a regular expression matches as a whole."""
    return Leaf(meaning, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None)


def choice(*names: str) -> Leaf:
    """One of some texts."""
    return Leaf(
        f"one of {', '.join(map(repr, names))}", lambda v: isinstance(v, str) and v in names
    )


SCALAR = Leaf(
    "a finite number, a text, true, false or null",
    lambda value: value is None or isinstance(value, bool | str) or real().fits(value),
)

SHA256 = text("[0-9a-f]{64}", "a SHA-256, 64 hexadecimal digits")


@dataclass(frozen=True)
class Maybe:
    """Null, or what fits another kind."""

    of: Kind


@dataclass(frozen=True)
class Items:
    """A list of one kind; of a given length, where there is one."""

    of: Kind
    length: int | None = None


@dataclass(frozen=True)
class Table:
    """A mapping from texts to one kind; with the given keys, where there are any."""

    of: Kind
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Record:
    """A mapping with exactly these fields."""

    fields: Mapping[str, Kind]


Kind: TypeAlias = Leaf | Maybe | Items | Table | Record


@dataclass(frozen=True, kw_only=True)
class Floats:
    """An array: its dtype, its shape (None for a length that is free), and what it holds.

    `holds` is ``""`` for any finite numbers, ``"positive"``, ``"nonnegative"``, ``"symmetric"`` or
    ``"covariance"`` (symmetric and positive semidefinite, to rounding); ``"unread"`` also lets
    NaN and infinity stand.
    """

    dtype: Any
    shape: tuple[int | None, ...]
    holds: str = ""

    def __str__(self) -> str:
        shape = ", ".join("any" if d is None else str(d) for d in self.shape)
        return f"{np.dtype(self.dtype).name} of shape ({shape})"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The file that is read: what its fields are called in an error."""

    argument: str  # what the caller calls the file
    path: str  # where it is
    # products summed in an entry of a covariance, for the rounding it may carry
    terms: int = field(default=1)

    def error(self, name: str, got: object, required: str, cause: str = _CAUSE) -> InputError:
        """Build the error of one field."""
        return InputError(f"{self.argument} {self.path!r}: {name}", got, required, cause)

    def check(self, name: str, value: Any, kind: Kind) -> None:
        """Require that a value and all that it holds fit a kind.

        Raises
        ------
        InputError
            Naming the file and the first field that does not fit.
        """
        if isinstance(kind, Maybe):
            if value is not None:
                self.check(name, value, kind.of)
        elif isinstance(kind, Items):
            if not isinstance(value, list):
                raise self.error(name, reprlib.repr(value), "a list")
            if kind.length is not None and len(value) != kind.length:
                raise self.error(name, f"{len(value)} entries", f"{kind.length} entries")
            for k, item in enumerate(value):
                self.check(f"{name}[{k}]", item, kind.of)
        elif isinstance(kind, Table | Record):
            self.names(name, value, tuple(kind.fields) if isinstance(kind, Record) else kind.keys)
            for key, item in value.items():
                inner = kind.fields[key] if isinstance(kind, Record) else kind.of
                self.check(f"{name}.{key}" if name else key, item, inner)
        elif not kind.fits(value):
            raise self.error(name, reprlib.repr(value), kind.meaning)

    def names(self, name: str, value: Any, known: tuple[str, ...] | None) -> None:
        """Require a mapping, with exactly these fields where they are given."""
        where = name or "the metadata"
        if not isinstance(value, dict):
            raise self.error(where, reprlib.repr(value), "named fields")
        if known is None:
            return
        for key in value:
            if key not in known:
                near = closest(key, known)
                like = f"; the closest known one is '{near}'" if near else ""
                got = f"an unknown field {reprlib.repr(key)}{like}"
                raise self.error(where, got, f"the fields {', '.join(known)}")
        for key in known:
            if key not in value:
                raise self.error(where, f"no field '{key}'", f"the fields {', '.join(known)}")

    def same(self, name: str, got: Any, required: Any) -> None:
        """Require equal values, types included."""
        found = difference(name, got, required)
        if found is not None:
            where, was, now = found
            raise self.error(where, reprlib.repr(was), reprlib.repr(now))

    def arrays(self, found: Mapping[str, Array], wanted: Mapping[str, Floats]) -> None:
        """Require exactly these arrays.

        Raises
        ------
        InputError
            Naming the file and the first array that is missing, surplus or does not fit.
        """
        for name in sorted(found.keys() | wanted.keys()):
            if name not in wanted:
                raise self.error(
                    name, "an array of this name", f"the arrays {', '.join(sorted(wanted))}"
                )
            if name not in found:
                raise self.error(name, "no array of this name", str(wanted[name]))
            self._array(name, found[name], wanted[name])

    def _array(self, name: str, array: Array, wanted: Floats) -> None:
        fits = len(array.shape) == len(wanted.shape) and all(
            w is None or g == w for g, w in zip(array.shape, wanted.shape, strict=True)
        )
        if array.dtype != np.dtype(wanted.dtype) or not fits:
            raise self.error(name, f"{array.dtype} of shape {array.shape}", str(wanted))
        if wanted.holds == "unread":
            return
        if not np.isfinite(array).all():
            raise self.error(name, "NaN or infinity", "finite numbers")
        if wanted.holds in ("positive", "nonnegative") and array.size:
            lowest = float(array.min())
            if lowest < 0 or (wanted.holds == "positive" and lowest == 0):
                required = "entries > 0" if wanted.holds == "positive" else "entries >= 0"
                raise self.error(name, f"an entry {lowest:g}", required)
        if wanted.holds in ("symmetric", "covariance") and array.size:
            self._symmetric(name, array, wanted.holds == "covariance")

    def _symmetric(self, name: str, S: Array, definite: bool) -> None:
        m, size = S.shape[0], float(np.abs(S).max())
        if S.shape != (m, m):
            raise self.error(name, f"shape {S.shape}", "a square matrix")
        skew = float(np.abs(S - S.T).max())
        # an entry sums `terms` products, and m of them make a matrix's action on a vector
        slack = 8 * (m + self.terms) * epsilon(S) * size
        if skew > slack:
            raise self.error(name, f"max |{name} - {name}'| = {skew:.3g}", "a symmetric matrix")
        lowest = float(np.linalg.eigvalsh(S)[0]) if definite else float(S.diagonal().min())
        if lowest < -slack:
            what = "smallest eigenvalue" if definite else "smallest variance"
            raise self.error(name, f"{what} {lowest:.3g}", "a covariance matrix")


def difference(name: str, got: Any, required: Any) -> tuple[str, Any, Any] | None:
    """Find the first leaf that differs, in value or type: its name, and both values.

    Examples
    --------
    >>> difference("a", {"b": [1, 2]}, {"b": [1, 2.0]})
    ('a.b[1]', 2, 2.0)
    """
    pairs: Any
    if isinstance(got, Mapping) and isinstance(required, Mapping):
        keys = dict.fromkeys([*required, *got])
        pairs = ((f".{key}", got.get(key), required.get(key)) for key in keys)
    elif isinstance(got, list | tuple) and isinstance(required, list | tuple):
        if len(got) != len(required):
            return f"number of {name}", len(got), len(required)
        both = zip(got, required, strict=True)
        pairs = ((f"[{k}]", a, b) for k, (a, b) in enumerate(both))
    else:
        equal = type(got) is type(required) and got == required
        return None if equal else (name, got, required)
    found = (difference(f"{name}{key}".lstrip("."), a, b) for key, a, b in pairs)
    return next((d for d in found if d is not None), None)


def digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of each array in order."""
    h = hashlib.sha256()
    for name, array in arrays.items():
        host = np.ascontiguousarray(to_host(array))
        little = host.astype(host.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name} {little.dtype.str} {list(host.shape)}\n".encode())
        h.update(little.tobytes())
    return h.hexdigest()


def seal(metadata: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 of metadata and arrays together: what ties the content of one file together.

    Parameters
    ----------
    metadata : mapping
        JSON-able; the order of the keys does not matter.
    arrays : mapping of str to array
        In any order.
    """
    text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    whole = f"{text}\n{digest(dict(sorted(arrays.items())))}"
    return hashlib.sha256(whole.encode()).hexdigest()
