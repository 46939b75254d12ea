"""Damage for the tests of hostile inputs: to bytes, to JSON, and files that are no files.

Every function takes a `random.Random`, so that a seed gives the same inputs anywhere, and gives a
label with the damage: a failing test names it.
"""

from __future__ import annotations

import copy
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "LEAVES",
    "SPECIALS",
    "broken_json",
    "damage_bytes",
    "damage_json",
    "json_paths",
    "replaced",
    "special_file",
]

LEAVES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e-320, 1e308, 2**31, 2**63, -(2**63) - 1, 10**20,
    10**60, "", "x", "1", "nan", "inf", "\0", "é\u202e", "\ud800", "x" * 10_000, [], {}, [[]],
    [None], ["x"], {"x": None}, [0] * 1000, {"": {"": []}},
)  # fmt: skip
"""Values to put in the place of another: of every type, of the ends of every range."""

SPECIALS = ("fifo", "zero", "null", "directory", "socket", "dangling", "loop", "missing", "empty")
"""Kinds of :func:`special_file`."""


def json_paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value, its own first."""
    yield at
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from json_paths(item, (*at, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with another value at a path."""
    if not path:
        return new
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return whole


def damage_json(rng: random.Random, value: Any) -> tuple[str, Any]:
    """Change one place of a JSON value: another leaf, a key lost, added or renamed, a list cut."""
    path = rng.choice(list(json_paths(value)))
    inner = value
    for key in path:
        inner = inner[key]
    where = "/".join(map(str, path)) or "(all)"
    how = rng.choice(("leaf", "leaf", "leaf", "structure"))
    if how == "structure" and isinstance(inner, dict) and inner:
        key = rng.choice(list(inner))
        new = copy.deepcopy(inner)
        kind = rng.choice(("lose", "add", "rename"))
        if kind != "add":
            old = new.pop(key)
        if kind != "lose":
            new[f"{key}_"] = 0 if kind == "add" else old
        return f"{where}: {kind} {key!r}", replaced(value, path, new)
    if how == "structure" and isinstance(inner, list) and inner:
        new = rng.choice((inner[:-1], inner[1:], [*inner, inner[0]], inner[::-1]))
        return f"{where}: {len(inner)} items to {len(new)}", replaced(value, path, new)
    if isinstance(inner, (int, float)) and not isinstance(inner, bool) and rng.random() < 0.4:
        near = rng.choice((inner + 1, inner - 1, -inner, inner * 2, inner + 0.5, str(inner)))
        return f"{where} = {near!r}", replaced(value, path, near)
    new = rng.choice(LEAVES)
    return f"{where} = {new!r:.40}", replaced(value, path, copy.deepcopy(new))


BROKEN: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "nothing": lambda rng, text: b"",
    "cut": lambda rng, text: text[: rng.randrange(len(text) or 1)],
    "text after it": lambda rng, text: text + b" x",
    "twice": lambda rng, text: text + text,
    "nested lists": lambda rng, text: b"[" * 100_000 + b"]" * 100_000,
    "nested objects": lambda rng, text: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "nested inside": lambda rng, text: (
        text.rstrip()[:-1] + b',"z":' + b"[" * 9000 + b"]" * 9000 + b"}"
    ),
    "a number of 5000 digits": lambda rng, text: b'{"a": ' + b"7" * 5000 + b"}",
    "a number of 400 digits": lambda rng, text: b'{"a": ' + b"7" * 400 + b"}",
    "NaN": lambda rng, text: b'{"a": NaN}',
    "1e999": lambda rng, text: b'{"a": 1e999}',
    "a key twice": lambda rng, text: b'{"a": 1, "a": 2}',
    "not UTF-8": lambda rng, text: b'{"a": "\xff\xfe"}',
    "NUL": lambda rng, text: b"\0" + text,
    "a byte order mark": lambda rng, text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda rng, text: text.decode("utf-8", "replace").encode("utf-16"),
    "a lone surrogate": lambda rng, text: b'{"\\ud800": "\\udfff"}',
}  # fmt: skip
"""Ways in which a text is no JSON object that a program may take."""


def broken_json(rng: random.Random, text: bytes) -> tuple[str, bytes]:
    """Damage the text of a JSON object beyond what a value can hold."""
    kind = rng.choice(list(BROKEN))
    return kind, BROKEN[kind](rng, text)


def damage_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Flip, cut, double, exchange or add bytes."""
    kind = rng.choice(("flip", "flip", "flip", "cut", "grow", "zero", "ones", "swap", "before"))
    size = len(data)
    if kind == "cut" or not size:
        stop = rng.randrange(size) if size else 0
        return f"cut to {stop} of {size} bytes", data[:stop]
    at = rng.choice((rng.randrange(size), rng.randrange(min(size, 64)), size - 1))
    if kind == "flip":
        bit = 1 << rng.randrange(8)
        return f"bit {bit} of byte {at} flipped", data[:at] + bytes([data[at] ^ bit]) + data[
            at + 1 :
        ]
    if kind in ("zero", "ones"):
        stop = min(size, at + rng.choice((1, 4, 8)))
        new = (b"\0" if kind == "zero" else b"\xff") * (stop - at)
        return f"bytes {at} to {stop} all {kind}", data[:at] + new + data[stop:]
    if kind == "swap":
        half = size // 2
        return "halves exchanged", data[half:] + data[:half]
    extra = rng.randbytes(rng.choice((1, 8, 100)))
    if kind == "before":
        return f"{len(extra)} bytes before it", extra + data
    return f"{len(extra)} bytes after it", data + extra


def special_file(kind: str, place: Path) -> Path:
    """Make what is no regular file, or none with content, at a place; return what to open."""
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(place.parent)  # a socket's address is short
            try:
                one.bind(place.name)
            finally:
                os.chdir(here)
    elif kind == "zero":
        place.symlink_to("/dev/zero")
    elif kind == "null":
        place.symlink_to("/dev/null")
    elif kind == "dangling":
        place.symlink_to(place.with_name("nowhere"))
    elif kind == "loop":
        place.symlink_to(place.name)
    elif kind == "empty":
        place.write_bytes(b"")
    return place
