"""NumPy's ``.npz``, read as untrusted input, written with equal bytes for equal content.

A compressed archive unpacks to at most 64 MiB, or 64 times the file's size.
"""

from __future__ import annotations

import ast
import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError
from loko_ref.files.containers.shapes import are_booleans, check_shape
from loko_ref.files.reading import refuse

DIRECTORY_LIMIT = 12 * 2**20
"""Most bytes of the directory of an ``.npz``: about 150,000 arrays."""

UNPACKED = 64 * 2**20
"""Bytes that any ``.npz`` may unpack to; a larger one at most `RATIO` times its size."""

RATIO = 64

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time: equal content gives equal bytes
_DTYPE = re.compile(r"[<>|=]?(?:[fiubc](?:1|2|4|8|16|32)|[US]\d{1,7})")
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError,
    RuntimeError, ValueError, OverflowError, IndexError,
)  # fmt: skip
"""Raised by zipfile for archives that are truncated, damaged, encrypted or of another kind."""


def pack_npz(arrays: Mapping[str, NDArray[Any]], comment: bytes = b"") -> bytearray:
    """Pack arrays as ``.npz``, uncompressed; equal content gives equal bytes.

    Parameters
    ----------
    arrays : mapping of str to array
        Host arrays of numbers, booleans or text.
    comment : bytes
        The last bytes of the archive.
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
        As returned by :func:`loko_ref.files.reading.open_file`.
    argument : str or None
        The option that named it, for the error.
    texts : collection of str
        Names of arrays that may hold text; all others hold numbers or booleans.

    Raises
    ------
    InputError
        If it is not an archive of plain arrays, or declares something false.
    """
    size = os.fstat(file.fileno()).st_size
    wanted = "an .npz archive of plain arrays"
    try:
        if not _is_small(file, size):
            got, cause = "an archive of too many entries", "a malicious file"
            raise refuse(path, argument, got, f"at most {DIRECTORY_LIMIT} bytes of names", cause)
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, size)
            total = sum(entry.file_size for entry in entries.values())
            most = max(UNPACKED, RATIO * size)
            if total > most:
                got, cause = f"entries of {total} bytes", "a damaged or malicious file"
                cause += "; save data that compresses this well uncompressed"
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
                    cause = "pickled content, or a damaged or truncated file, or another format"
                    raise refuse(path, argument, got, wanted, cause) from None
            return found
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        got = f"an incomplete archive ({error})"
        cause = "a truncated or damaged file, or another format"
        raise refuse(path, argument, got, wanted, cause) from None


def _is_small(file: BinaryIO, size: int) -> bool:
    """Return whether the archive's directory has a bounded size, by the record at its end.

    zipfile reads the whole directory when it opens an archive.
    """
    file.seek(max(0, size - 2**16 - 98))
    end = file.read()
    at = end.rfind(b"PK\5\6")
    file.seek(0)
    if at < 0 or len(end) < at + 22:
        return True  # not an archive: zipfile raises
    length: int = struct.unpack_from("<L", end, at + 12)[0]
    far = end.rfind(b"PK\6\6", 0, at)
    if length == 0xFFFFFFFF and far >= 0 and len(end) >= far + 48:
        length = struct.unpack_from("<Q", end, far + 40)[0]
    return length <= DIRECTORY_LIMIT


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return entries by the name of their array; raise ValueError if one is inconsistent."""
    found: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for entry in sorted(archive.infolist(), key=lambda e: e.header_offset):
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or entry.is_dir():
            raise ValueError(f"entry {entry.filename!r:.80} is not a plain array")
        if name in found:
            raise ValueError(f"array {name!r:.80} occurs twice")
        if entry.flag_bits & 1:
            raise ValueError(f"array {name!r:.80} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {name!r:.80} is compressed as NumPy does not")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if stored and entry.compress_size != entry.file_size:
            raise ValueError(f"array {name!r:.80} has two sizes")
        if not found and entry.header_offset:
            raise ValueError(f"{entry.header_offset} bytes before the archive")
        if entry.header_offset < end:
            raise ValueError(f"array {name!r:.80} begins inside another")
        end = entry.header_offset + 30 + entry.compress_size
        if end > size:
            raise ValueError(f"array {name!r:.80} ends beyond the file")
        found[name] = entry
    return found


def _array(member: Any, size: int, text: bool) -> NDArray[Any]:
    """Read one ``.npy``, whose header must declare exactly the bytes that follow."""
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
            raise EOFError("its data is truncated")
        at += part
    if member.read(1):  # also checks the checksum
        raise ValueError("more data than declared")
    if dtype.kind == "b" and not are_booleans(array):
        raise ValueError("booleans that are neither 0 nor 1")
    return array.reshape(shape, order="F" if fortran else "C")


def _head(member: Any) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Read the header of a ``.npy``: dtype, order, shape, and the offset of the data."""
    start = member.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("no .npy header")
    form = "<H" if start[6] == 1 else "<I"
    (length,) = struct.unpack(form, member.read(struct.calcsize(form)))
    if length > 10_000:
        raise ValueError(f"a header of {length} bytes")
    text = member.read(length).decode("ascii")
    if sum(map(text.count, "([{")) > 8 or text.count(":") != 3:
        raise ValueError(f"the header {text[:80]!r}, which does not describe a plain array")
    try:
        header = ast.literal_eval(text.strip())
        kind, fortran = header["descr"], header["fortran_order"]
        if not isinstance(kind, str) or not _DTYPE.fullmatch(kind):
            raise ValueError(f"dtype {kind!r:.80}, which is not a plain number")
        if not isinstance(fortran, bool) or not isinstance(header["shape"], tuple):
            raise ValueError("a malformed header")
        shape, dtype = check_shape(header["shape"]), np.dtype(kind)
    except (SyntaxError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"a damaged header ({type(error).__name__}: {error})"[:200]) from None
    return dtype, fortran, shape, 8 + struct.calcsize(form) + length


def text_of(array: NDArray[Any]) -> str:
    """Return the string in an array of a single string.

    Raises
    ------
    ValueError
        If it has another number of elements, or another dtype.
    """
    if array.size != 1 or array.dtype.kind not in "US":
        raise ValueError(
            f"an array of shape {array.shape} and dtype {array.dtype}, which is not one text"
        )
    if array.dtype.kind == "U":
        points = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if ((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise ValueError("text beyond Unicode")
    value = array.item()
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
