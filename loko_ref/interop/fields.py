"""A JSON object out of a file, read field by field: every value's kind is checked before its use.

A field that is well formed but asks for something that is not computed here is refused as *not
supported*; a value of another kind is refused as such.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loko_ref.errors import InputError
from loko_ref.files import strict_json

__all__ = ["Fields", "read_json", "short", "unsupported"]

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
    """Read a JSON object, or name what is wrong with the file."""
    data = strict_json.read_json(path)
    if not isinstance(data, dict):
        raise InputError(str(path), type(data).__name__, "a JSON object", "a foreign file")
    return data


class Fields:
    """The fields of one file's JSON object.

    Parameters
    ----------
    file : str
        Its name, for errors.
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
        if self.data.get(key, default) is None:
            raise self.bad(key, "a whole number", "another kind of model, or a field left out")
        return self.check_whole(self.at(key), self.data.get(key, default), low=low)

    def number(self, key: str, default: float | None = None, *, low: float = -math.inf) -> float:
        """Return a finite number >= low; a default of None makes the field required."""
        if self.data.get(key, default) is None:
            raise self.bad(key, "a number", "a field left out")
        return self.check_number(self.at(key), self.data.get(key, default), low=low)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; null stands for the default."""
        value = self.data.get(key)
        if not isinstance(value, bool | None):
            raise self.bad(key, "true or false", "a word in quotes, or a number")
        return default if value is None else value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a string, or the default where there is none."""
        value = self.data.get(key)
        if not isinstance(value, str | None):
            raise self.bad(key, "a string")
        return default if value is None else value

    def texts(self, key: str) -> list[str]:
        """Return a list of strings, empty where there is none."""
        value = self.data.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.bad(key, "a list of names")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """Return an object, empty where there is none."""
        value = self.data.get(key)
        if not isinstance(value, dict | None):
            raise self.bad(key, "an object")
        return value or {}

    def choice(self, key: str, default: str, supported: Iterable[str], why: str) -> str:
        """Return a name that is supported here."""
        value = self.text(key, default)
        names = tuple(supported)
        if value not in names:
            raise unsupported(self.at(key), value, f"one of {', '.join(names)}", why)
        return value

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Refuse each field of `reasons` that is set, as not supported, with its reason."""
        for key, why in reasons.items():
            if self.data.get(key):
                raise unsupported(self.at(key), self.data[key], "its default", why)

    @staticmethod
    def check_whole(where: str, value: Any, *, low: int = 1) -> int:
        """Return the value, if it is a whole number in [low, 2^31 - 1]."""
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= LIMIT:
            required = f"a whole number, at least {low} and at most {LIMIT}"
            raise InputError(where, short(value), required, "a damaged file")
        return value

    @staticmethod
    def check_number(where: str, value: Any, *, low: float = -math.inf) -> float:
        """Return the value as a float, if it is a finite number >= low."""
        try:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            if fits and math.isfinite(value) and value >= low:
                return float(value)
        except OverflowError:  # a whole number beyond float64
            pass
        required = "a finite number" + ("" if low == -math.inf else f" >= {low:g}")
        raise InputError(where, short(value), required, "a damaged file")
