"""Output files: a regular file is replaced atomically, anything else is written to directly.

A regular file is written under another name in the same directory, flushed to the disk, and
renamed: after a crash either the old file or the new one exists, never a part. The new file keeps
the old one's mode and, if permitted, owner; without an old one the umask sets its mode. Symbolic
links are followed and kept. Of several hard links the named one gets the new content; the others
keep the old. A killed process may leave a ``.loko-ref-*.tmp`` behind.

A device, a FIFO, a terminal or a descriptor (``/dev/stdout``) is written to and never replaced.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import select
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from loko_ref.errors import InputError
from loko_ref.files.reading import kind_of

WAIT = 60.0
"""Seconds without progress after which writing to a FIFO fails."""

_HOPS = 40  # most symbolic links in a row, as in Linux


class _Place(NamedTuple):
    """The target of a path: its name with all links resolved, its status, and how it is open."""

    path: Path
    found: os.stat_result | None
    descriptor: int | None = None  # an open one of this process
    foreign: bool = False  # an open one of another process

    @property
    def replaced(self) -> bool:
        """Whether it is, or will be, a regular file under that name."""
        through = self.descriptor is not None or self.foreign
        return not through and (self.found is None or stat.S_ISREG(self.found.st_mode))


def _follow(path: str | os.PathLike[str]) -> _Place:
    """Return the target of a path, with symbolic links followed except those of descriptors.

    Raises
    ------
    OSError, ValueError
        If the path cannot be followed.
    """
    name = os.path.abspath(os.fspath(path))
    for _ in range(_HOPS):
        name = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        entry = re.fullmatch(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)", name)
        if entry and int(entry[1]) == os.getpid():
            return _Place(Path(name), os.fstat(int(entry[2])), int(entry[2]))
        if entry:
            return _Place(Path(name), os.stat(name), foreign=True)
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            return _Place(Path(name), None)
        if not stat.S_ISLNK(found.st_mode):
            return _Place(Path(name), found)
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _checked(argument: str, path: str | os.PathLike[str]) -> _Place:
    """Return the target of a path; raise if it could not be written."""
    name, existing = repr(str(path)), "a file in an existing directory"
    try:
        place = _follow(path)
        parent = os.stat(place.path.parent) if place.descriptor is None else None
    except FileNotFoundError:
        raise InputError(argument, name, existing, "a typing error in it") from None
    except (OSError, ValueError) as error:
        raise InputError(argument, name, "a writable path", _reason(error)) from None
    if parent is not None and not stat.S_ISDIR(parent.st_mode):
        raise InputError(argument, name, existing, f"{place.path.parent} is a file")
    mode = 0 if place.found is None else place.found.st_mode
    if stat.S_ISDIR(mode):
        raise InputError(argument, f"{name}, a directory", "a file", "the name of a directory")
    if stat.S_ISBLK(mode) or (stat.S_ISSOCK(mode) and place.descriptor is None):
        raise InputError(argument, f"{name}, {kind_of(mode)}", "a file", "another path")
    if place.descriptor is None:
        if place.found is not None and not os.access(place.path, os.W_OK):
            cause = "the file, or its file system, may be read-only"
            raise InputError(argument, name, "a writable file", cause)
        if place.replaced and not os.access(place.path.parent, os.W_OK | os.X_OK):
            cause = f"no new file can be created beside it, in {place.path.parent}"
            raise InputError(argument, name, "a file in a writable directory", cause)
    return place


def check_target(argument: str, path: str | os.PathLike[str], *suffixes: str) -> Path:
    """Raise if a path could not be written, before its content is computed.

    Parameters
    ----------
    path : path-like
        The file; it need not exist.
    *suffixes : str
        Allowed suffixes; none allows any.

    Returns
    -------
    pathlib.Path
        With symbolic links followed.

    Raises
    ------
    InputError
        If it has another suffix, is a directory, a socket or a disk, or cannot be written to.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise InputError(
            argument,
            repr(str(path)),
            f"a file name that ends in {' or '.join(suffixes)}",
            "a missing or unknown suffix, which selects the format",
        )
    return _checked(argument, path).path


def check_targets(
    outputs: Mapping[str, str | os.PathLike[str] | None],
    inputs: Mapping[str, str | os.PathLike[str] | None] | None = None,
) -> None:
    """Raise if outputs could not be written, or would overwrite one another or an input.

    Parameters
    ----------
    outputs : mapping of str to path-like or None
        Option -> path; None if the option is not given. A path that is not a regular file
        (``/dev/null``) may be given twice.
    inputs : mapping of str to path-like or None, optional
        Option -> path of a file that is read.

    Raises
    ------
    InputError
        As :func:`check_target`; if two options name the same file.
    """
    taken: dict[object, str] = {}
    for option, path in (inputs or {}).items():
        if path is not None and os.path.isfile(path):
            found = os.stat(path)
            taken[found.st_dev, found.st_ino] = option
    for option, path in outputs.items():
        if path is None:
            continue
        place = _checked(option, path)
        if not place.replaced:
            continue
        old = place.found
        key = str(place.path) if old is None else (old.st_dev, old.st_ino)
        if key in taken:
            raise InputError(
                option,
                f"{str(path)!r}, the file of {taken[key]}",
                "different files",
                "one name given twice, or a link to it; one of them would be overwritten",
            )
        taken[key] = option


def make_folder(argument: str, path: str | os.PathLike[str]) -> Path:
    """Create a directory and its parents unless they exist; raise if it is not writable.

    Raises
    ------
    InputError
        If it is a file, cannot be created, or is not writable.
    """
    place = Path(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
        permitted = os.access(place, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        required = "a writable directory"
        raise InputError(argument, repr(str(path)), required, _reason(error)) from None
    if not permitted:
        cause = "no permission, or a read-only file system"
        raise InputError(argument, repr(str(path)), "a writable directory", cause)
    return place


def write_bytes(path: str | os.PathLike[str], payload: bytes, argument: str = "path") -> None:
    """Write a file: a regular one atomically, anything else directly.

    Parameters
    ----------
    path : path-like
        The file; symbolic links are followed.

    Raises
    ------
    InputError
        If it cannot be written (no such directory, no permission, no space, a FIFO that no program
        reads). An existing regular file is then unchanged.
    """
    place = _checked(argument, path)
    try:
        if place.replaced:
            _replace(place, payload)
        else:
            _write_through(place, payload)
    except OSError as error:
        fifo = error.errno == errno.ENXIO
        cause = "a FIFO that no program reads" if fifo else _reason(error)
        raise InputError(argument, repr(str(path)), "a writable path", cause) from error


def _replace(place: _Place, payload: bytes) -> None:
    target, old = place.path, place.found
    partial = target.with_name(f".loko-ref-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(partial, flags, 0o666 if old is None else 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            if old is not None:
                _copy_status(handle, old)
            os.fsync(handle)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the rename itself durable
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _copy_status(handle: int, old: os.stat_result) -> None:
    """Set the owner, if permitted, and the mode of a file to those of the one that it replaces."""
    mode = stat.S_IMODE(old.st_mode)
    new = os.fstat(handle)
    if hasattr(os, "fchown") and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except PermissionError:
            mode &= 0o777  # no set-user-ID or set-group-ID for another owner
    if hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def _write_through(place: _Place, payload: bytes) -> None:
    if place.descriptor is not None:
        for stream in (sys.stdout, sys.stderr):  # keep the order of the output
            if stream is not None:
                stream.flush()
        _write_all(place.descriptor, payload)
        return
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | (os.O_APPEND if place.foreign else 0)
    handle = os.open(place.path, flags)
    try:
        _write_all(handle, payload)
    finally:
        os.close(handle)


def _write_all(handle: int, payload: bytes) -> None:
    rest = memoryview(payload)
    while rest:
        try:
            rest = rest[os.write(handle, rest[: 2**16]) :]
        except BlockingIOError:
            if not select.select([], [handle], [], WAIT)[1]:
                raise OSError(errno.ETIMEDOUT, f"its reader read nothing for {WAIT:g} s") from None
