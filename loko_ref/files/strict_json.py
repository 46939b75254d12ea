"""Untrusted JSON: of bounded size and depth, and strictly by the standard.

An invalid value (NaN, a number of 5000 digits, a duplicate key) is reported with its path in the
document.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from loko_ref.errors import InputError
from loko_ref.files.reading import TEXT_LIMIT, read_bytes

DEPTH = 64
"""Most levels of nested lists and objects."""

CONTAINERS = 500_000
"""Most lists and objects: each takes 25 times the memory of its text."""

DIGITS = 100
"""Most digits of a whole number."""


def read_json(
    path: str | os.PathLike[str], argument: str | None = None, *, limit: int = TEXT_LIMIT
) -> Any:
    """Read a regular file that holds one JSON value.

    Raises
    ------
    InputError
        As :func:`read_bytes` and :func:`parse_json`.
    """
    data = read_bytes(path, argument, limit=limit)
    return parse_json(str(path) if argument is None else f"{argument}, {path}", data, limit=limit)


class _Fault:
    """Placeholder of a value that JSON's grammar allows, but a document may not contain."""

    def __init__(self, got: str, required: str) -> None:
        self.got, self.required = got, required


def _constant(name: str) -> Any:
    return _Fault(name, "a finite number")


def _whole(text: str) -> Any:
    if len(text) > DIGITS:
        return _Fault(f"a number of {len(text)} digits", f"at most {DIGITS} digits")
    return int(text)


def _real(text: str) -> Any:
    number = float(text)
    return number if math.isfinite(number) else _Fault(f"{text:.40}", "a number within float64")


def _unique(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    return _Fault(f"the key {max(keys, key=keys.count)!r:.80} twice", "each key once")


def _at(path: tuple[object, ...]) -> str:
    """Return a path into a document as text: ``runs[0].config``."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key!s:.40}" for key in path)
    return "".join(parts).removeprefix(".")


def parse_json(argument: str, text: str | bytes, *, limit: int = TEXT_LIMIT) -> Any:
    """Parse one untrusted JSON value.

    Parameters
    ----------
    argument : str
        The option, or the file and its field, for the error.
    text : str or bytes
        The document; bytes are UTF-8.
    limit : int
        Most bytes or characters of it.

    Returns
    -------
    object
        At most 64 levels deep, with whole numbers of at most 100 digits, finite floats, and text
        that UTF-8 can encode.

    Raises
    ------
    InputError
        If it is not JSON, has a duplicate key, contains NaN or infinity, or exceeds a bound.

    Examples
    --------
    >>> parse_json("--option", '{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    if len(text) > limit:
        got, cause = f"JSON of {len(text)} bytes", "another or a damaged file"
        raise InputError(argument, got, f"at most {limit}", cause)
    try:
        document = text.decode("utf-8") if isinstance(text, bytes) else text
        document.encode("utf-8")
        if document.count("[") + document.count("{") > CONTAINERS:
            got, cause = f"more than {CONTAINERS} lists and objects", "a malicious file"
            raise InputError(argument, got, "fewer", cause)
        value = json.loads(
            document,
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_int=_whole,
            parse_float=_real,
        )
    except RecursionError:
        value = _DEEP
    except InputError:
        raise
    except ValueError as error:
        cause = "a damaged or foreign document, or a typing error"
        raise InputError(argument, f"no JSON ({error})"[:300], "a JSON value", cause) from None
    _check_values(argument, value, surrogates="\\u" in document)
    return value


_DEEP = _Fault(f"lists or objects more than {DEPTH} levels deep", f"at most {DEPTH} levels")


def _check_values(argument: str, value: Any, surrogates: bool) -> None:
    """Raise for the first value that a document may not contain, with its path."""
    level: list[tuple[tuple[object, ...], Any]] = [((), value)]
    for depth in range(DEPTH + 1):
        inner: list[tuple[tuple[object, ...], Any]] = []
        for path, item in level:
            fault = item if isinstance(item, _Fault) else None
            if surrogates and isinstance(item, str) and not _is_text(item):
                fault = _Fault("half of a character", "text in UTF-8")
            if isinstance(item, dict):
                if surrogates and not all(map(_is_text, item)):
                    fault = _Fault("a key with half of a character", "text in UTF-8")
                inner += [((*path, key), v) for key, v in item.items() if _matters(v, surrogates)]
            elif isinstance(item, list):
                inner += [((*path, k), v) for k, v in enumerate(item) if _matters(v, surrogates)]
            if depth == DEPTH and isinstance(item, (dict, list)):
                fault = _DEEP
            if fault is not None:
                at = _at(path)
                where = f"{argument}: {at}" if at and fault is not _DEEP else argument
                cause = "a damaged or foreign document, or a typing error"
                raise InputError(where, fault.got, fault.required, cause)
        level = inner


def _matters(value: Any, surrogates: bool) -> bool:
    return isinstance(value, (dict, list, _Fault)) or (surrogates and isinstance(value, str))


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)
