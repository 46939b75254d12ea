"""The protocol ``loko-ref/protocol/1``: one JSON object per line, over stdin and stdout.

This module builds and parses messages, and encodes and decodes tensors; ``command`` exchanges them.
Nothing that a harness sends is trusted: every malformed line is a ``ProtocolError`` that quotes it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import reprlib
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.errors import InputError, printable
from loko_ref.files.reading import is_file_name
from loko_ref.interop.tensors import read_tensors, write_tensors

PROTOCOL = "loko-ref/protocol/1"
LINE_LIMIT = 16 * 2**20
"""Most bytes of a line."""

MARKS = 200_000
"""Most brackets, braces and commas of a line: each may become an object of many bytes."""

NAMES = 1000
"""Most names in a list of hello."""

HEAD_LIMIT = 2**20
"""Most bytes of the head of a file of tensors."""

TEXT = 300
"""Most characters shown of a message or a reason."""

LARGE = 2**20
"""Bytes from which a tensor is passed by file, if the harness reads files."""

_DTYPES = {"float64": "<f8", "float32": "<f4"}


class ProtocolError(ValueError):
    """A line or a tensor that violates the protocol."""


def quote(line: bytes) -> str:
    """Return the beginning of a line, quoted and printable."""
    short = line[:400].decode("utf-8", "backslashreplace").rstrip("\r\n")
    return repr(short[:160]) + (f" (and {len(line) - 160} more)" if len(line) > 160 else "")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxdict = 8


def show(value: Any) -> str:
    """Return a short repr of any JSON value, however deep or long."""
    return _SHORT.repr(value)


def text(message: Mapping[str, Any], key: str) -> str:
    """Return a string of a message, made printable and short; "" if it is missing.

    Raises
    ------
    ProtocolError
        If it is not a string.
    """
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise ProtocolError(f"'{key}' is not a string but {show(value)}")
    return printable(value or "", TEXT)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def parse(line: bytes) -> dict[str, Any]:
    """Parse one line as a message.

    Raises
    ------
    ProtocolError
        If it is not a JSON object with a ``type``; quotes the line.
    """
    marks = sum(map(line.count, (b"[", b"{", b",")))
    if marks > MARKS:
        raise ProtocolError(
            f"a line on stdout of {marks} brackets, braces and commas (at most {MARKS}): "
            f"{quote(line)}"
        )
    try:
        message = json.loads(
            line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise ProtocolError(f"a line on stdout that is no JSON ({reason}): {quote(line)}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError(f"a line on stdout that is no message with a type: {quote(line)}")
    return message


def encode(array: Array) -> dict[str, Any]:
    """Return a tensor as an object of dtype, shape and base64 data."""
    name = str(array.dtype)
    raw = np.ascontiguousarray(array).astype(_DTYPES[name]).tobytes()
    return {
        "dtype": name,
        "shape": list(array.shape),
        "data": base64.b64encode(raw).decode("ascii"),
    }


def decode(value: Any, where: str, folder: Path | None = None) -> Array:
    """Decode a tensor.

    Raises
    ------
    ProtocolError
        If it is malformed.
    """
    dtype, shape = _announced(value, where)
    if "file" in value:
        return _from_file(value, where, folder, dtype, shape)
    data = value.get("data")
    if not isinstance(data, str):
        raise ProtocolError(f"{where}: no data")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{where}: data is no base64 ({error})") from None
    wanted = _bytes(dtype, shape)
    if len(raw) != wanted:
        raise ProtocolError(f"{where}: {len(raw)} bytes for shape {list(shape)}, not {wanted}")
    return np.frombuffer(raw, _DTYPES[dtype]).reshape(shape).astype(dtype)


def decode_all(outputs: Mapping[str, Any], folder: Path | None, most: int) -> dict[str, Array]:
    """Decode the tensors of an answer.

    Parameters
    ----------
    outputs : mapping
        Name -> object in the message.
    folder : path or None
        Where files may lie.
    most : int
        Bound on the bytes of all together.

    Raises
    ------
    ProtocolError
        If their dtypes and shapes require more, before any is decoded; or if one is malformed.
    """
    total = sum(_bytes(*_announced(value, name)) for name, value in outputs.items())
    if total > most:
        raise ProtocolError(f"outputs of {total} bytes, where at most {most} are read")
    return {name: decode(value, name, folder) for name, value in outputs.items()}


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize


def _announced(value: Any, where: str) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and shape that a tensor object declares."""
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: no tensor object")
    dtype, shape = value.get("dtype"), value.get("shape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ProtocolError(f"{where}: dtype {show(dtype)} is not float64 or float32")
    if not isinstance(shape, list) or not all(
        isinstance(d, int) and not isinstance(d, bool) and 0 <= d < 2**31 for d in shape
    ):
        raise ProtocolError(f"{where}: shape {show(shape)} is no list of sizes")
    if len(shape) > 8:
        raise ProtocolError(f"{where}: {len(shape)} axes")
    if math.prod(max(size, 1) for size in shape) >= 2**60:  # also where another axis is empty
        raise ProtocolError(f"{where}: no array has shape {shape}")
    return dtype, tuple(shape)


def _from_file(
    value: Mapping[str, Any], where: str, folder: Path | None, dtype: str, shape: tuple[int, ...]
) -> Array:
    name, tensor = value.get("file"), value.get("tensor")
    if folder is None or not is_file_name(name) or not isinstance(tensor, str):
        raise ProtocolError(f"{where}: file {show(name)} is no plain name in the folder of hello")
    path = folder / str(name)
    try:
        _check_file(path, f"{where}: file {show(name)}")
        tensors = read_tensors(path)
    except (InputError, RecursionError, OverflowError, MemoryError, TypeError, OSError) as error:
        raise ProtocolError(f"{where}: {type(error).__name__}: {error}"[:300]) from None
    if tensor not in tensors:
        raise ProtocolError(f"{where}: {show(name)} holds no tensor {show(tensor)}")
    array = tensors[tensor]
    if str(array.dtype) != dtype or array.shape != shape:
        raise ProtocolError(f"{where}: the file holds {array.dtype}{array.shape}, not as announced")
    return np.array(array)


def _check_file(path: Path, what: str) -> None:
    """Raise unless this is a regular file, no link, whose head has a bounded size."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise ProtocolError(f"{what} is not in the folder of hello") from None
    if stat.S_ISLNK(found.st_mode):
        raise ProtocolError(f"{what} is a link")
    if not stat.S_ISREG(found.st_mode):
        raise ProtocolError(f"{what} is no regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        start = file.read(8)
    if len(start) == 8:
        (length,) = struct.unpack("<Q", start)
        if HEAD_LIMIT < length <= found.st_size:
            raise ProtocolError(f"{what} has a head of {length} bytes (at most {HEAD_LIMIT})")


def canary(dtype: str) -> Array:
    """Return numbers that a careless encoding loses: 0.1, -0.0, a subnormal, ±infinity, NaN."""
    info = np.finfo(dtype)
    tiny = info.smallest_subnormal * 3
    return np.array([0.1, -0.0, tiny, np.inf, -np.inf, np.nan], dtype=dtype)


def hello(folder: str) -> dict[str, Any]:
    """Return the first message."""
    return {
        "type": "hello",
        "protocol": PROTOCOL,
        "catalogue": CATALOGUE,
        "canary": {name: encode(canary(name)) for name in _DTYPES},
        "folder": folder,
    }


def check_hello(message: Mapping[str, Any], folder: Path) -> tuple[list[str], list[str], bool]:
    """Return operations, dtypes, and whether files are read, from a checked answer to hello.

    Raises
    ------
    ProtocolError
        If the version differs, a field is missing, or a canary differs from the one sent.
    """
    if message.get("type") != "hello":
        raise ProtocolError(f"the answer to hello has the type {show(message.get('type'))}")
    if message.get("protocol") != PROTOCOL:
        raise ProtocolError(f"protocol {show(message.get('protocol'))}, not {PROTOCOL!r}")
    lists: list[list[str]] = []
    for key in ("operations", "dtypes"):
        names = message.get(key)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ProtocolError(f"hello: '{key}' is no list of names")
        if len(names) > NAMES or len(set(names)) < len(names):
            raise ProtocolError(
                f"hello: '{key}' has {len(names)} names, {len(set(names))} different ones "
                f"(at most {NAMES}, each once)"
            )
        long = next((n for n in names if len(n) > 100 or printable(n) != n), None)
        if long is not None:
            raise ProtocolError(f"hello: '{key}' holds {show(long)}, which is not a name")
        lists.append(names)
    operations, dtypes = lists
    unknown = [name for name in dtypes if name not in _DTYPES]
    if unknown or not dtypes:
        raise ProtocolError(f"hello: dtypes {show(dtypes)}; known are float64, float32")
    returned = message.get("canary")
    for name in dtypes:
        if not isinstance(returned, dict) or name not in returned:
            raise ProtocolError(f"hello: no canary of dtype {name}")
        got, sent = decode(returned[name], f"canary.{name}", folder), canary(name)
        if got.dtype != sent.dtype or got.shape != sent.shape:
            raise ProtocolError(f"canary.{name}: returned as {got.dtype}{got.shape}")
        bits = "<u8" if name == "float64" else "<u4"
        for at in range(sent.size):
            a, b = got.view(bits)[at], sent.view(bits)[at]
            if a != b:
                raise ProtocolError(
                    f"canary.{name}: element {at} ({sent[at]}) was sent as bits {int(b):#x} and "
                    f"returned as {int(a):#x}"
                )
    return operations, dtypes, message.get("files") is True


def request(
    number: int,
    operation: str,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Path | None = None,
    least: int | None = None,
) -> dict[str, Any]:
    """Return a run message.

    Parameters
    ----------
    operation, inputs, options
        What to run.
    files : path, optional
        Folder for large tensors; without one none is passed by file.
    least : int, optional
        Bytes from which a tensor is large; ``LARGE`` by default.
    """
    large: dict[str, Array] = {}
    least = LARGE if least is None else least
    name = f"run-{number}.safetensors"

    def put(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: put(f"{key}.{inner}", item) for inner, item in value.items()}
        if files is None or value.nbytes < least:
            return encode(value)
        large[key] = value
        shape = list(value.shape)
        return {"dtype": str(value.dtype), "shape": shape, "file": name, "tensor": key}

    message = {
        "type": "run",
        "id": number,
        "operation": operation,
        "inputs": {key: put(key, value) for key, value in inputs.items()},
        "options": dict(options),
    }
    if large and files is not None:
        write_tensors(files / name, large)
    return message
