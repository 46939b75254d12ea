"""The safetensors format, read with NumPy as untrusted input.

A file consists of eight bytes, the length of the header (little-endian); the header, JSON: name ->
dtype, shape, data_offsets (and ``__metadata__``, strings); and the data, without gaps.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError
from loko_ref.files.containers.shapes import are_booleans, check_shape
from loko_ref.files.reading import refuse
from loko_ref.files.strict_json import parse_json

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""safetensors' name -> NumPy's."""

HEAD_LIMIT = 16 * 2**20
"""Most bytes of the header; those of the largest checkpoints have less than one MiB."""


def parse_safetensors(
    data: NDArray[np.uint8],
    path: str | os.PathLike[str],
    argument: str | None = None,
    *,
    widen: bool = False,
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the tensors of a safetensors file, as views of it if alignment permits.

    Parameters
    ----------
    data : array (bytes,) of uint8
        The whole file, such as a memory map.
    argument : str, optional
        The option that named it, for the error.
    widen : bool
        Whether BF16 is converted to float32, exactly; otherwise it is an error, since NumPy has no
        such dtype.

    Returns
    -------
    tensors : dict of str to array
    metadata : dict of str to str
        The content of ``__metadata__``.

    Raises
    ------
    InputError
        If the file is truncated or damaged; with the tensor's name if it is known.
    """
    if data.size < 8:
        raise refuse(path, argument, f"{data.size} bytes", "at least 8", "a truncated download")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    most = min(data.size - 8, HEAD_LIMIT)
    if not 2 <= length <= most:
        got, cause = f"a head of {length} bytes", "a truncated or foreign file"
        raise refuse(path, argument, got, f"2 to {most}", cause)
    name = str(Path(path)) if argument is None else f"{argument}, {path}"
    head = parse_json(f"{name}: head", data[8 : 8 + length].tobytes(), limit=HEAD_LIMIT)
    about = head.pop("__metadata__", {}) if isinstance(head, dict) else None
    if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
        required = "a JSON object, its __metadata__ one of strings"
        raise refuse(path, argument, "another head", required, "a damaged or foreign file")
    body, tensors = data[8 + length :], {}
    at = 0
    for key, entry in sorted(head.items(), key=_offset):
        tensors[key] = _tensor(f"{name}: tensor {key!r:.120}", entry, body, at, widen)
        at = int(entry["data_offsets"][1])
    if at != body.size:
        cause = "a file with data of no tensor"
        raise refuse(path, argument, f"{body.size} bytes of data", f"{at}", cause)
    return tensors, about


def _offset(item: tuple[str, Any]) -> int:
    try:
        return check_shape(item[1]["data_offsets"])[0]
    except (TypeError, KeyError, ValueError, IndexError):
        return 0


def _tensor(where: str, entry: Any, body: NDArray[np.uint8], at: int, widen: bool) -> NDArray[Any]:
    """Return one tensor of the data, which must start at byte `at`."""
    try:
        kind = str(entry["dtype"])
        shape = check_shape(entry["shape"])
        start, stop = entry["data_offsets"]
        for offset in (start, stop):
            check_shape([offset])
    except (TypeError, KeyError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
        raise InputError(where, got, "dtype, shape, data_offsets", "a damaged head") from None
    if kind not in DTYPES and not (widen and kind == "BF16"):
        known = f"one of {', '.join(DTYPES)}" + (", BF16" if widen else "")
        raise InputError(where, f"dtype {kind:.80}", known, "quantised weights, or a damaged head")
    dtype = np.dtype("<u2" if kind == "BF16" else DTYPES[kind])
    size = math.prod(shape) * dtype.itemsize
    if stop - start != size:
        got = f"{stop - start} bytes for shape {shape}"
        raise InputError(where, got, f"{size}", "a damaged head")
    if start != at or stop > body.size:
        got, required = f"bytes {start} to {stop}", f"from {at} up to {body.size}"
        raise InputError(where, got, required, "a truncated file")
    raw = body[start:stop].view(np.ndarray)
    if raw.size == 0:
        return np.zeros(shape, np.float32 if kind == "BF16" else dtype)
    if kind == "BOOL" and not are_booleans(raw):
        raise InputError(where, "a byte that is neither 0 nor 1", "booleans", "damaged data")
    if start % dtype.itemsize or raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    array = raw.view(dtype).reshape(shape)
    if kind == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return array


def pack_safetensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytearray:
    """Pack host arrays as a safetensors file, in the order of their names.

    Parameters
    ----------
    tensors : mapping of str to array
        Host arrays.
    metadata : mapping of str to str
        For ``__metadata__``, the first entry of the header.

    Raises
    ------
    InputError
        If an array has a dtype that the format does not support.
    """
    names = {np.dtype(v): k for k, v in DTYPES.items()}
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    chunks, at = [], 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        if array.dtype not in names:
            known = f"one of {', '.join(DTYPES)}"
            raise InputError(name, f"dtype {array.dtype}", known, "an object or complex")
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        head[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(raw)],
        }
        chunks.append(raw)
        at += len(raw)
    text = json.dumps(head, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return bytearray(struct.pack("<Q", len(text)) + text + b"".join(chunks))
