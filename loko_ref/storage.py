"""Named arrays and JSON-able metadata in one file, written whole or not at all.

The suffix chooses the container: ``.npz`` (NumPy's, without pickle) or ``.safetensors`` (when that
package is installed). Every file names its schema, and a reader asks for the one it expects.

A write goes to a temporary file in the same directory, is flushed to the disk, and takes the
file's place in one step: after a crash the old file or the new one stands there, never a part.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from loko_ref.arrays import to_host
from loko_ref.errors import InputError, MissingExtraError

__all__ = ["SUFFIXES", "check_target", "load", "save", "write_bytes"]

SUFFIXES = (".npz", ".safetensors")
"""Containers, by the suffix of the file."""

_HEAD = "__loko_ref__"
"""Entry that holds schema and metadata."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time: equal content gives equal bytes


def check_target(argument: str, path: str | os.PathLike[str], *suffixes: str) -> Path:
    """Refuse a path that could not be written, before the work whose result it is to hold.

    Parameters
    ----------
    argument : str
        What the path is called, for the error.
    path : path-like
        The file; it need not exist.
    *suffixes : str
        Allowed suffixes; none allows any.

    Returns
    -------
    pathlib.Path
        With symbolic links followed.
    """
    target = Path(os.path.realpath(path))
    if suffixes and target.suffix.lower() not in suffixes:
        raise InputError(
            argument,
            repr(str(path)),
            f"a file name that ends in {' or '.join(suffixes)}",
            "a missing or foreign suffix; it chooses the format",
        )
    if not target.parent.is_dir():
        raise InputError(
            argument, repr(str(path)), "a file in an existing directory", "a typing error in it"
        )
    if target.is_dir():
        raise InputError(argument, repr(str(path)), "a file", "the name of a directory")
    return target


def write_bytes(path: str | os.PathLike[str], payload: bytes, argument: str = "path") -> None:
    """Write a file atomically: temporary file, fsync, rename over the old one.

    Parameters
    ----------
    path : path-like
        The file; a symbolic link is followed.
    payload : bytes
        Its whole content.
    argument : str
        What the path is called, for the error.

    Raises
    ------
    InputError
        If the place cannot be written to (no such directory, no permission, no space). The old
        file, if any, is untouched.
    """
    target = check_target(argument, path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(partial, "xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
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
    except OSError as error:
        raise InputError(
            argument, repr(str(path)), "a place that can be written to", str(error)
        ) from error


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    schema: str,
    argument: str = "path",
) -> None:
    """Save named arrays and metadata, atomically.

    Parameters
    ----------
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.
    arrays : mapping of str to array
        Of whole numbers, floats or truth values; of any backend (copied to the host).
    metadata : mapping
        JSON-able, without NaN or infinity.
    schema : str
        Name and version of the layout, such as ``"loko-ref/checkpoint/1"``.
    argument : str
        What the path is called, for the error.

    Raises
    ------
    InputError
        If a name, an array or the metadata cannot be stored.
    MissingExtraError
        If ``.safetensors`` is asked for and the package is not installed.
    """
    target = check_target(argument, path, *SUFFIXES)
    host: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if not name or name == _HEAD or "\0" in name or "\\" in name:
            raise InputError("arrays", repr(name), "a plain name", "a name that is reserved")
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"arrays[{name!r}]",
                f"dtype {array.dtype}",
                "numbers or truth values",
                "an array of balls, objects or text, which would need pickle",
            )
        flat = np.ascontiguousarray(to_host(array))
        host[name] = flat.reshape(array.shape)  # ascontiguousarray adds an axis to a scalar
    try:
        head = json.dumps({"schema": schema, "metadata": metadata}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            "metadata", str(error), "JSON-able values, no NaN or infinity", "an array or object"
        ) from error
    if target.suffix.lower() == ".safetensors":
        payload: bytes = _safetensors().save(host, metadata={_HEAD: head})
    else:
        payload = _npz(host, head)
    write_bytes(target, payload, argument)


def _npz(arrays: Mapping[str, NDArray[Any]], head: str) -> bytes:
    buffer = io.BytesIO()
    text = np.frombuffer(head.encode(), np.uint8)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in {_HEAD: text, **arrays}.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as f:
                np.lib.format.write_array(f, array, allow_pickle=False)
    return buffer.getvalue()


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise MissingExtraError("a .safetensors file", "safetensors", "interop") from error


def load(
    path: str | os.PathLike[str], *, schema: str, argument: str = "path"
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Load what :func:`save` wrote; nothing in the file is executed.

    Parameters
    ----------
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.
    schema : str
        The layout expected.
    argument : str
        What the path is called, for the error.

    Returns
    -------
    arrays : dict of str to array
    metadata : dict

    Raises
    ------
    InputError
        If the file is missing, truncated, of another program, pickled, or of another schema.
    MissingExtraError
        If ``.safetensors`` is asked for and the package is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        check_target(argument, path, *SUFFIXES)
    try:
        payload = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            argument, repr(str(path)), "a file that can be read", str(error)
        ) from error
    arrays, head = (_read_npz if suffix == ".npz" else _read_safetensors)(argument, path, payload)
    try:
        found = json.loads(head)
        kind, metadata = found["schema"], found["metadata"]
    except (ValueError, KeyError, TypeError) as error:
        _refuse(argument, path, f"an unreadable header ({error})", "a file of another program")
    if kind != schema:
        _refuse(argument, path, f"schema {kind!r}", "another kind of file or version", schema)
    return arrays, metadata


def _refuse(
    argument: str, path: object, got: str, cause: str, schema: str | None = None
) -> NoReturn:
    wanted = "a file that loko-ref wrote" if schema is None else f"schema {schema!r}"
    raise InputError(argument, f"{str(path)!r}: {got}", wanted, cause)


def _read_npz(argument: str, path: object, payload: bytes) -> tuple[dict[str, NDArray[Any]], str]:
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            arrays = {}
            for name in archive.namelist():
                with archive.open(name) as file:  # checks the CRC on the way
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(
                        file, allow_pickle=False
                    )
    except (zipfile.BadZipFile, EOFError) as error:
        _refuse(argument, path, f"no whole archive ({error})", "a truncated or foreign file")
    except (ValueError, NotImplementedError, RuntimeError) as error:
        _refuse(argument, path, f"an entry that is no plain array ({error})", "pickled content")
    text = arrays.pop(_HEAD, None)
    if text is None or text.dtype != np.uint8:
        _refuse(argument, path, f"no entry {_HEAD!r}", "an archive of another program")
    return arrays, text.tobytes().decode(errors="replace")


def _read_safetensors(
    argument: str, path: object, payload: bytes
) -> tuple[dict[str, NDArray[Any]], str]:
    module = _safetensors()
    error_type = importlib.import_module("safetensors").SafetensorError
    try:
        arrays = module.load(payload)
        length = int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8 : 8 + length]).get("__metadata__") or {}
    except (error_type, ValueError, KeyError, TypeError) as error:
        _refuse(argument, path, f"no whole safetensors file ({error})", "a truncated file")
    if _HEAD not in header:
        _refuse(argument, path, f"no entry {_HEAD!r}", "a file of another program")
    return dict(arrays), str(header[_HEAD])
