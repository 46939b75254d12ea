"""Input files named by a user: regular files of bounded size.

A FIFO, a device, a directory or a socket is rejected before it is read, since reading one may never
end. The size of an unpacked file is bounded by the size that it declares, or by that of the file.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError

LIMIT = 2**31
"""Most bytes of a file that is read whole, unless the caller sets another bound."""

TEXT_LIMIT = 8 * 2**20
"""Most bytes of a text or a JSON document, unless the caller sets another bound."""

UNPACKED = 4 * 2**20
"""Bytes that any gzipped file may unpack to; a larger one at most `RATIO` times its size."""

RATIO = 64
"""Real data (MNIST 5, GLUE 3) is far below it; a decompression bomb reaches 1000."""

_HEAD = 4096
_PART = 2**20

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
}

_CAUSES = {
    "a directory": "a directory instead of a file in it",
    "a FIFO": "a pipe such as <(...): write its content to a file first",
}


def kind_of(mode: int) -> str:
    """Return the kind of file of a mode: ``a FIFO``."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def refuse(
    path: str | os.PathLike[str], argument: str | None, got: str, required: str, cause: str
) -> InputError:
    """Return an error about a file, under the name of an option or of the file itself.

    Parameters
    ----------
    argument : str or None
        The option that named it; None to name the file alone.
    got, required, cause : str
        As in :class:`InputError`.
    """
    name = str(os.fspath(path))
    if argument is None:
        return InputError(name if name.isprintable() else repr(name), got, required, cause)
    return InputError(argument, f"{name!r}: {got}", required, cause)


def _cannot(path: str | os.PathLike[str], argument: str | None, error: Exception) -> InputError:
    missing = isinstance(error, FileNotFoundError)
    got = (error.strerror if isinstance(error, OSError) else None) or str(error)
    cause = "a wrong path or a typing error in it" if missing else "its permissions or its place"
    return refuse(path, argument, got, "a file that can be read", cause)


def is_file_name(name: object) -> bool:
    """Return whether this is a plain file name: printable, without a folder, not empty.

    Examples
    --------
    >>> [is_file_name(name) for name in ("a.npz", "", ".", "..", "a/b", "a" + chr(0), 3)]
    [True, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str) and name.isprintable() and Path(name).name == name not in ("", "..")
    )


def open_file(
    path: str | os.PathLike[str], argument: str | None = None, limit: int | None = None
) -> BinaryIO:
    """Open a regular file for reading; symbolic links are followed.

    Parameters
    ----------
    argument : str, optional
        The option that named it, for the error.
    limit : int, optional
        Most bytes of it.

    Raises
    ------
    InputError
        If it is missing, cannot be read, is not a regular file, or is too large.
    """
    try:
        mode = os.stat(path).st_mode  # before it is opened: opening a device may have effects
        if stat.S_ISREG(mode):
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            handle = os.open(path, flags)
            try:
                mode = os.fstat(handle).st_mode
                size = os.fstat(handle).st_size
            except BaseException:
                os.close(handle)
                raise
            if stat.S_ISREG(mode) and (limit is None or size <= limit):
                return os.fdopen(handle, "rb")
            os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise _cannot(path, argument, error) from None
    if not stat.S_ISREG(mode):
        kind = kind_of(mode)
        cause = _CAUSES.get(kind, "another path")
        raise refuse(path, argument, kind, "a regular file", cause)
    cause = "another or a damaged file"
    raise refuse(path, argument, f"{size} bytes", f"at most {limit} bytes", cause)


def read_bytes(
    path: str | os.PathLike[str],
    argument: str | None = None,
    *,
    limit: int = LIMIT,
    unpack: bool = False,
    length: Callable[[bytes], int] | None = None,
) -> bytes:
    """Read a regular file whole.

    Parameters
    ----------
    argument : str, optional
        The option that named it, for the error.
    limit : int
        Most bytes of its content.
    unpack : bool
        Whether a gzipped file is unpacked: to at most 4 MiB, or 64 times its size.
    length : callable, optional
        Returns the required length of the content from its first 4096 bytes; a content of another
        length is rejected before it is read.

    Raises
    ------
    InputError
        As :func:`open_file`; if it is too large, of another length, truncated or damaged.
    """
    with open_file(path, argument, limit) as file:
        size = os.fstat(file.fileno()).st_size
        packed = unpack and file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            if not packed:
                return _content(path, argument, file, size, limit, length)
            with gzip.GzipFile(fileobj=file, mode="rb") as inner:
                most = min(limit, max(UNPACKED, RATIO * size))
                return _content(path, argument, inner, None, most, length)
        except EOFError:
            got, cause = "a truncated gzipped file", "an incomplete download"
            raise refuse(path, argument, got, "a whole file", cause) from None
        except (OSError, zlib.error) as error:
            cause = "a damaged or truncated file"
            raise refuse(path, argument, str(error), "a readable file", cause) from None


def _content(
    path: str | os.PathLike[str],
    argument: str | None,
    file: BinaryIO | gzip.GzipFile,
    size: int | None,
    limit: int,
    length: Callable[[bytes], int] | None,
) -> bytes:
    """Read at most `limit` bytes, and exactly `length` of them if that is known."""
    head = file.read(_HEAD)
    wanted = length(head) if length is not None else None
    most = limit if wanted is None else min(wanted, limit)
    if wanted is not None and wanted > limit:
        got, required = f"a header that declares {wanted} bytes", f"at most {limit} bytes"
        raise refuse(path, argument, got, required, "a damaged header, or a malicious file")
    required = f"at most {most} bytes" if wanted is None else f"{most} bytes, by its header"
    if size is not None and wanted is not None and size != wanted:
        raise refuse(path, argument, f"{size} bytes", required, "a truncated file")
    parts, left = [head], most - len(head)
    while left > 0 and (part := file.read(min(left, _PART))):  # read(n) takes n bytes at once
        parts.append(part)
        left -= len(part)
    data = b"".join(parts)
    if left < 0 or file.read(1):
        cause = "a damaged or malicious file"
        raise refuse(path, argument, f"more than {most} bytes", required, cause)
    if wanted is not None and len(data) != wanted:
        raise refuse(path, argument, f"{len(data)} bytes", required, "a truncated file")
    return data


def map_file(file: BinaryIO) -> NDArray[np.uint8]:
    """Return the bytes of an open file as a read-only memory-mapped array."""
    if os.fstat(file.fileno()).st_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(file, np.uint8, "r")


def read_text(
    path: str | os.PathLike[str],
    argument: str | None = None,
    *,
    limit: int = TEXT_LIMIT,
    unpack: bool = False,
) -> str:
    """Read a regular file of UTF-8 text; a byte order mark is dropped.

    Raises
    ------
    InputError
        As :func:`read_bytes`; if it is not UTF-8, or contains NUL.
    """
    data = read_bytes(path, argument, limit=limit, unpack=unpack)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        cause = "a foreign or damaged file"
        raise refuse(path, argument, str(error), "text in UTF-8", cause) from None
    if "\0" in text:
        got, cause = f"NUL at character {text.index(chr(0))}", "a foreign or damaged file"
        raise refuse(path, argument, got, "text in UTF-8", cause)
    return text
