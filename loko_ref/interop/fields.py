"""A JSON object out of another package's file: each field is checked before its use.

A field may be missing, and unknown fields are left to the caller. What is well formed but not
computed here raises *not supported*; a value of another kind raises with what is required.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loko_ref.checks.fields import Leaf, real, whole
from loko_ref.errors import InputError
from loko_ref.files import strict_json

LIMIT = 2**31 - 1
"""Largest size that a file may name."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlong, _SHORT.maxlist = 40, 8


def short(value: Any) -> str:
    """Return the value's repr, cut where it is long: a file may hold anything."""
    return _SHORT.repr(value)


def unsupported(argument: str, got: Any, supported: str, why: str) -> InputError:
    """Build the error for what is well formed, but is not computed here.

    Examples
    --------
    >>> print(unsupported("config.json: hidden_act", "silu", "gelu or relu", "another activation"))
    config.json: hidden_act: got 'silu', which is not supported; required gelu or relu. \
Likely cause: another activation.
    """
    return InputError(argument, f"{short(got)}, which is not supported", supported, why)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise with what is wrong with the file."""
    data = strict_json.read_json(path)
    if not isinstance(data, dict):
        raise InputError(str(path), type(data).__name__, "a JSON object", "a foreign file")
    return data


class Fields:
    """The fields of one file's JSON object.

    Parameters
    ----------
    data : mapping
        The object.
    """

    def __init__(self, file: str, data: Mapping[str, Any]) -> None:
        self.file, self.data = file, data

    def at(self, key: str) -> str:
        """Return the field's name with its file's."""
        return f"{self.file}: {key}"

    def bad(self, key: str, required: str, cause: str = "a damaged file") -> InputError:
        """Build the error for a field of another kind or range than required."""
        got = short(self.data[key]) if key in self.data else "nothing"
        return InputError(self.at(key), got, required, cause)

    def whole(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """Return a whole number in [low, 2^31 - 1]; a default of None makes the field required."""
        return int(self._required(key, default, size_kind(low)))

    def real(self, key: str, default: float | None = None, *, low: float = -math.inf) -> float:
        """Return a finite number >= low; a default of None makes the field required."""
        return float(self._required(key, default, real(low)))

    def _required(self, key: str, default: float | None, kind: Leaf) -> Any:
        value = self.data.get(key, default)
        if value is None:
            raise self.bad(key, kind.meaning, "another kind of model, or a field left out")
        return fitting(self.at(key), value, kind)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; null stands for the default."""
        value = self._optional(key, bool, "true or false", "a word in quotes, or a number")
        return default if value is None else bool(value)

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a string, or the default where there is none."""
        value = self._optional(key, str, "a string")
        return default if value is None else str(value)

    def texts(self, key: str) -> list[str]:
        """Return a list of strings, empty where there is none."""
        names = list(self._optional(key, list, "a list of names") or ())
        if not all(isinstance(name, str) for name in names):
            raise self.bad(key, "a list of names")
        return names

    def object(self, key: str) -> dict[str, Any]:
        """Return an object, empty where there is none."""
        return dict(self._optional(key, dict, "an object") or {})

    def _optional(self, key: str, kind: type, required: str, cause: str = "a damaged file") -> Any:
        value = self.data.get(key)
        if not isinstance(value, kind | None):
            raise self.bad(key, required, cause)
        return value

    def choice(self, key: str, default: str, supported: Iterable[str], why: str) -> str:
        """Return a name that is supported here."""
        value = self.text(key, default)
        names = tuple(supported)
        if value not in names:
            raise unsupported(self.at(key), value, f"one of {', '.join(names)}", why)
        return value

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Raise for each field of `reasons` that is set: not supported, with its reason."""
        for key, why in reasons.items():
            if self.data.get(key):
                raise unsupported(self.at(key), self.data[key], "its default", why)


def size_kind(low: int = 1) -> Leaf:
    """Return the kind of a whole number in [low, 2^31 - 1]."""
    return whole(low, LIMIT)


def fitting(where: str, value: Any, kind: Leaf) -> Any:
    """Return a value if it is of a kind."""
    if not kind.fits(value):
        raise InputError(where, short(value), kind.meaning, "a damaged file")
    return value
