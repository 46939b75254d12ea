"""Named arrays in a file: NumPy's ``.npz`` and ``.safetensors``, read without trust.

Nothing in a file is executed, and none of its claims is believed: sizes, shapes, dtypes and places
are checked against the file before an array is made. What a compressed ``.npz`` unpacks to is at
most 64 MiB, or 64 times the file's size.

A safetensors file is: eight bytes, the length of the head (little-endian); the head, JSON: name ->
dtype, shape, data_offsets (and ``__metadata__``, strings); then the data, without gaps.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError
from loko_ref.reading import parse_json, refuse

__all__ = ["DTYPES", "pack_npz", "pack_safetensors", "parse_npz", "parse_safetensors", "text_of"]

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

AXES = 32
"""Axes that NumPy 1 can hold."""

HEAD_LIMIT = 16 * 2**20
"""Bytes of the head of a safetensors file; the largest checkpoints' have less than one MiB."""

DIRECTORY_LIMIT = 12 * 2**20
"""Bytes of the directory of an ``.npz``: about 150,000 arrays."""

UNPACKED = 64 * 2**20
"""Bytes that any ``.npz`` may unpack to; beyond, at most `RATIO` times its size."""

RATIO = 64

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time: equal content gives equal bytes
_DTYPE = re.compile(r"[<>|=]?(?:[fiubc](?:1|2|4|8|16|32)|[US]\d{1,7})")
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError,
    RuntimeError, ValueError, OverflowError, IndexError,
)  # fmt: skip
"""What zipfile raises on archives that are cut, damaged, encrypted or of another kind."""


def _sized(shape: Any) -> tuple[int, ...]:
    """Check that a list or tuple is the shape of an array; raise ValueError else."""
    if len(shape) > AXES:
        raise ValueError(f"{len(shape)} axes")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{size!r:.40} is no size")
    if math.prod(max(d, 1) for d in shape) >= 2**60:  # also where another axis is empty
        raise ValueError(f"no array has shape {tuple(shape)}")
    return tuple(shape)


def _truths(raw: NDArray[Any]) -> bool:
    """Whether bytes hold truth values: 0 and 1."""
    return not raw.size or int(raw.view(np.uint8).max()) <= 1


# npz


def pack_npz(arrays: Mapping[str, NDArray[Any]], comment: bytes = b"") -> bytearray:
    """Pack arrays as ``.npz``, uncompressed; equal content gives equal bytes.

    Parameters
    ----------
    arrays : mapping of str to array
        Host arrays of numbers, truth values or text.
    comment : bytes
        Ends the archive.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as f:
                np.lib.format.write_array(f, array, allow_pickle=False)
        archive.comment = comment
    return bytearray(buffer.getbuffer())


def parse_npz(
    file: BinaryIO, path: str | os.PathLike[str], argument: str | None, texts: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read every array of an ``.npz``.

    Parameters
    ----------
    file : binary file
        As :func:`loko_ref.reading.open_file` opens it.
    path : path-like
        Its name, for the error.
    argument : str or None
        The option that it was given by, for the error.
    texts : collection of str
        Names of arrays that may hold text; all others hold numbers or truth values.

    Raises
    ------
    InputError
        If it is no archive of plain arrays, or says of itself what is not so.
    """
    size = os.fstat(file.fileno()).st_size
    wanted = "an .npz archive of plain arrays"
    try:
        if not _is_small(file, size):
            got, cause = "an archive of too many entries", "a file made to harm"
            raise refuse(path, argument, got, f"at most {DIRECTORY_LIMIT} bytes of names", cause)
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, size)
            total = sum(entry.file_size for entry in entries.values())
            most = max(UNPACKED, RATIO * size)
            if total > most:
                got, cause = f"entries of {total} bytes", "a damaged file, or one made to harm"
                cause += "; what is real and packs so well is to be saved uncompressed"
                raise refuse(path, argument, got, f"at most {most}, by its size", cause)
            found = {}
            for name, entry in entries.items():
                try:
                    with archive.open(entry) as member:
                        found[name] = _array(member, entry.file_size, name in texts)
                except _UNREADABLE as error:
                    if isinstance(error, InputError):
                        raise
                    got = f"entry {name!r:.80}, which cannot be read ({error})"
                    cause = "pickled content, or a damaged, cut or foreign file"
                    raise refuse(path, argument, got, wanted, cause) from None
            return found
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        got, cause = f"no whole archive ({error})", "a truncated, damaged or foreign file"
        raise refuse(path, argument, got, wanted, cause) from None


def _is_small(file: BinaryIO, size: int) -> bool:
    """Whether the archive's directory is of a bounded size, as its end says.

    zipfile reads all of it before anything can be asked of it.
    """
    file.seek(max(0, size - 2**16 - 98))
    end = file.read()
    at = end.rfind(b"PK\5\6")
    file.seek(0)
    if at < 0 or len(end) < at + 22:
        return True  # no archive: zipfile says so
    length: int = struct.unpack_from("<L", end, at + 12)[0]
    far = end.rfind(b"PK\6\6", 0, at)
    if length == 0xFFFFFFFF and far >= 0 and len(end) >= far + 48:
        length = struct.unpack_from("<Q", end, far + 40)[0]
    return length <= DIRECTORY_LIMIT


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by the name of their array; raise ValueError where one cannot be what it says."""
    found: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for entry in sorted(archive.infolist(), key=lambda e: e.header_offset):
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or entry.is_dir():
            raise ValueError(f"entry {entry.filename!r:.80} is no plain array")
        if name in found:
            raise ValueError(f"array {name!r:.80} is there twice")
        if entry.flag_bits & 1:
            raise ValueError(f"array {name!r:.80} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {name!r:.80} is compressed as NumPy does not")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if stored and entry.compress_size != entry.file_size:
            raise ValueError(f"array {name!r:.80} has two sizes")
        if entry.header_offset < end:
            raise ValueError(f"array {name!r:.80} begins inside another")
        end = entry.header_offset + 30 + entry.compress_size
        if end > size:
            raise ValueError(f"array {name!r:.80} ends behind the file")
        found[name] = entry
    return found


def _array(member: Any, size: int, text: bool) -> NDArray[Any]:
    """Read one ``.npy``, whose head must announce just the bytes that there are."""
    dtype, fortran, shape, start = _head(member)
    if dtype.kind in "US" and not text:
        raise ValueError(f"dtype {dtype}, which is text")
    count = math.prod(shape)
    if count * dtype.itemsize != size - start:
        raise ValueError(f"{size - start} bytes of data for shape {shape} and dtype {dtype}")
    array = np.empty(count, dtype)
    raw = array.view(np.uint8) if array.nbytes else np.empty(0, np.uint8)
    at = 0
    while at < raw.size:
        part = member.readinto(raw[at:])
        if not part:
            raise EOFError("its data is cut")
        at += part
    if member.read(1):  # and the checksum is looked at
        raise ValueError("more data than announced")
    if dtype.kind == "b" and not _truths(array):
        raise ValueError("truth values that are neither 0 nor 1")
    return array.reshape(shape, order="F" if fortran else "C")


def _head(member: Any) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Read the head of a ``.npy``: dtype, order, shape, and where the data begins."""
    start = member.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("no .npy head")
    form = "<H" if start[6] == 1 else "<I"
    (length,) = struct.unpack(form, member.read(struct.calcsize(form)))
    if length > 10_000:
        raise ValueError(f"a head of {length} bytes")
    text = member.read(length).decode("ascii")
    if sum(map(text.count, "([{")) > 8 or text.count(":") != 3:
        raise ValueError(f"the head {text[:80]!r}, which describes no plain array")
    try:
        said = ast.literal_eval(text.strip())
        kind, fortran = said["descr"], said["fortran_order"]
        if not isinstance(kind, str) or not _DTYPE.fullmatch(kind):
            raise ValueError(f"dtype {kind!r:.80}, which is no plain number")
        if not isinstance(fortran, bool) or not isinstance(said["shape"], tuple):
            raise ValueError("a foreign head")
        shape, dtype = _sized(said["shape"]), np.dtype(kind)
    except (SyntaxError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"a damaged head ({type(error).__name__}: {error})"[:200]) from None
    return dtype, fortran, shape, 8 + struct.calcsize(form) + length


def text_of(array: NDArray[Any]) -> str:
    """Return the text that an array of one text holds.

    Raises
    ------
    ValueError
        If it holds several, or none that is text.
    """
    value = array.item()
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"dtype {array.dtype} is no text")
    return text


# safetensors


def parse_safetensors(
    data: NDArray[np.uint8],
    path: str | os.PathLike[str],
    argument: str | None = None,
    *,
    widen: bool = False,
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Cut the tensors out of a safetensors file; they are views of it where they can be.

    Parameters
    ----------
    data : array (bytes,) of uint8
        The whole file, such as a memory map.
    path : path-like
        Its name, for the error.
    argument : str, optional
        The option that it was given by, for the error.
    widen : bool
        Whether BF16 becomes float32, exactly; else it is refused, as NumPy has no such dtype.

    Returns
    -------
    tensors : dict of str to array
    metadata : dict of str to str
        What stands under ``__metadata__``.

    Raises
    ------
    InputError
        If the file is truncated or damaged; names the tensor where it can.
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
    about = head.pop("__metadata__", None) or {} if isinstance(head, dict) else None
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
        return _sized(item[1]["data_offsets"])[0]
    except (TypeError, KeyError, ValueError, IndexError):
        return 0


def _tensor(where: str, entry: Any, body: NDArray[np.uint8], at: int, widen: bool) -> NDArray[Any]:
    """Cut one tensor out of the data, which must go on at byte `at`."""
    try:
        kind = str(entry["dtype"])
        shape = _sized(entry["shape"])
        start, stop = entry["data_offsets"]
        for offset in (start, stop):
            _sized([offset])
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
    if kind == "BOOL" and not _truths(raw):
        raise InputError(where, "a byte that is neither 0 nor 1", "truth values", "damaged data")
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
        For ``__metadata__``, which stands first in the head.

    Raises
    ------
    InputError
        If an array has a dtype that the format has not.
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
