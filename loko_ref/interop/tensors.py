"""The safetensors format, read and written with NumPy, and every way in which a file is damaged.

A file is: eight bytes, the length of the head (little-endian); the head, JSON: name -> dtype,
shape, data_offsets (and ``__metadata__``, strings); then the data, without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.errors import InputError
from loko_ref.storage import write_bytes

__all__ = ["as_floats", "find_tensors", "pack_tensors", "read_tensors", "write_tensors"]

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""Format's name -> NumPy's. BF16 is widened to float32 (exactly)."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
AXES = 32
"""Axes that NumPy 1 can hold."""
_HEAD_LIMIT = 100_000_000  # the format's own


def _bad(path: Path, got: str, required: str, cause: str) -> InputError:
    return InputError(str(path), got, required, cause)


def _refuse_pickle(path: Path) -> None:
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    # a head of 640 or 1152 bytes begins with a pickle's magic too; then its brace follows
    magic = start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04"))
    if path.suffix in PICKLED or (magic and start[8:9] != b"{"):
        raise _bad(
            path,
            "a pickled file",
            "a .safetensors file",
            "an old checkpoint: reading a pickle runs whatever code is in it. Save it again with "
            "save_pretrained(..., safe_serialization=True)",
        )


def find_tensors(folder: str | Path, stem: str) -> list[Path]:
    """Files of a checkpoint: ``stem.safetensors``, or the shards that its index names.

    Parameters
    ----------
    folder : path-like
        Where the checkpoint lies.
    stem : str
        ``model`` or ``adapter_model``.
    """
    folder = Path(folder)
    one, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if one.is_file():
        return [one]
    if index.is_file():
        try:
            shards = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise _bad(
                index, f"{type(error).__name__}: {error}", "a JSON index", "a damaged file"
            ) from None
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise _bad(index, repr(shard), "file names without a path", "a foreign index")
        return [folder / shard for shard in shards]
    for path in sorted(folder.glob("*")):
        if path.name.startswith((stem, "pytorch_model")):  # shards too
            _refuse_pickle(path)
    raise _bad(folder, "no such file", f"{stem}.safetensors in it", "a wrong folder")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file; the arrays are read-only views of the file.

    Raises
    ------
    InputError
        If the file is missing, pickled, truncated or damaged; names the tensor where it can.
    """
    path = Path(path)
    if not path.is_file():
        raise _bad(path, "no such file", "a .safetensors file", "a wrong path or a missing shard")
    _refuse_pickle(path)
    size = path.stat().st_size
    if size < 8:
        raise _bad(path, f"{size} bytes", "at least 8", "a truncated download")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    if length > min(size - 8, _HEAD_LIMIT):
        raise _bad(
            path, f"a head of {length} bytes", f"at most {size - 8}", "a truncated or foreign file"
        )
    try:
        head = json.loads(data[8 : 8 + length].tobytes().decode("utf-8"), object_pairs_hook=_unique)
        entries = {str(k): v for k, v in head.items() if k != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise _bad(
            path, f"{type(error).__name__}: {error}", "a JSON head", "a damaged file"
        ) from None
    body, tensors = data[8 + length :], {}
    at = 0
    for name, entry in sorted(entries.items(), key=_offset):
        tensors[name] = _tensor(path, name, entry, body, at)
        at = int(entry["data_offsets"][1])
    if at != body.size:
        raise _bad(path, f"{body.size} bytes of data", f"{at}", "a file with data of no tensor")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _offset(item: tuple[str, Any]) -> int:
    try:
        return _whole(item[1]["data_offsets"][0])
    except (TypeError, KeyError, ValueError, IndexError):
        return 0


def _whole(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**63:
        raise ValueError(f"{number!r:.40} is no size")
    return number


def _tensor(path: Path, name: str, entry: Any, body: np.ndarray, at: int) -> np.ndarray:
    """Cut one tensor out of the data, which must go on at byte `at`."""
    where = f"{path}: tensor '{name}'"
    try:
        kind = str(entry["dtype"])
        shape = tuple(_whole(d) for d in entry["shape"])
        start, stop = (_whole(k) for k in entry["data_offsets"])
        if len(shape) > AXES:
            raise ValueError(f"{len(shape)} axes")
        if math.prod(max(d, 1) for d in shape) >= 2**60:  # also where another axis is empty
            raise ValueError(f"no array has shape {shape}")
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            where,
            f"{type(error).__name__}: {error}",
            "dtype, shape, data_offsets",
            "a damaged head",
        ) from None
    if kind not in DTYPES and kind != "BF16":
        raise InputError(where, f"dtype {kind}", f"one of {', '.join(DTYPES)}, BF16", "quantised")
    dtype = np.dtype("<u2" if kind == "BF16" else DTYPES[kind])
    if min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise InputError(
            where,
            f"{stop - start} bytes for shape {shape}",
            f"{math.prod(shape) * dtype.itemsize}",
            "a damaged head",
        )
    if start != at or stop > body.size:
        raise InputError(
            where, f"bytes {start} to {stop}", f"from {at} up to {body.size}", "a truncated file"
        )
    raw = body[start:stop].view(np.ndarray)
    if raw.size == 0:
        return np.zeros(shape, np.float32 if kind == "BF16" else dtype)
    if start % dtype.itemsize or (raw.ctypes.data % dtype.itemsize):
        raw = raw.copy()
    array = raw.view(dtype).reshape(shape)
    if kind == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return array


def as_floats(name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """Cast a weight to the model's dtype; whole numbers, NaN and infinity are no weights."""
    if tensor.dtype.kind != "f":
        raise InputError(
            name, f"dtype {tensor.dtype}", "floats", "quantised, and nothing without its scales"
        )
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.isfinite(cast).all():
        raise InputError(
            name,
            "NaN or infinity",
            f"numbers that are finite as {np.dtype(dtype)}",
            "a run that diverged before it was saved, or numbers beyond the range",
        )
    return cast


def pack_tensors(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a safetensors file's content, tensors in the order of their names.

    Parameters
    ----------
    tensors : mapping of str to array
        Host arrays.
    metadata : mapping of str to str, optional
        For ``__metadata__``; ``{"format": "pt"}`` is what torch's readers expect.
    """
    names = {np.dtype(v): k for k, v in DTYPES.items()}
    head: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    chunks, at = [], 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        if array.dtype not in names:
            raise InputError(
                name, f"dtype {array.dtype}", f"one of {', '.join(DTYPES)}", "an object or complex"
            )
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
    return struct.pack("<Q", len(text)) + text + b"".join(chunks)


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Parameters
    ----------
    path : path-like
        The file; its folder exists.
    tensors, metadata
        As for :func:`pack_tensors`.
    """
    write_bytes(Path(path), pack_tensors(tensors, metadata))
