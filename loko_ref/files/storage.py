"""Named arrays and JSON-able metadata in one file, written whole or not at all.

The suffix selects the container: ``.npz`` (NumPy's, without pickle) or ``.safetensors``. Every file
names its schema, which has to be the one that the reader expects.

Every file holds a SHA-256 of all its other bytes, as the comment at the end of an ``.npz`` and as
the first metadata of a ``.safetensors``, which detects every changed bit. Files of the version
without it (``loko-ref/storage/1``) are rejected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from loko_ref.arrays import to_host
from loko_ref.errors import InputError
from loko_ref.files.containers import pack_npz, pack_safetensors, parse_npz, parse_safetensors
from loko_ref.files.reading import map_file, open_file, refuse
from loko_ref.files.strict_json import parse_json
from loko_ref.files.writing import check_target, write_bytes

SUFFIXES = (".npz", ".safetensors")
"""Containers, by the suffix of the file."""

LIMIT = 2**34
"""Most bytes of a file."""

HEAD_LIMIT = 64 * 2**20
"""Most bytes of its schema and metadata."""

_HEAD = "__loko_ref__"
"""Entry with schema and metadata."""

_DIGEST = "loko-ref/storage/2 sha256"
_COMMENT = f"{_DIGEST} ".encode()
_FIRST = f'{{"__metadata__":{{"{_DIGEST}":"'.encode()
"""The bytes before the digest in either container."""

_DIGITS = 64  # of a SHA-256, in hexadecimal


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
        Of integers, floats or booleans; of any backend (copied to the host).
    metadata : mapping
        JSON-able, without NaN or infinity.
    schema : str
        Name and version of the layout, such as ``"loko-ref/checkpoint/1"``.

    Raises
    ------
    InputError
        If a name, an array or the metadata cannot be stored.
    """
    target = check_target(argument, path, *SUFFIXES)
    host: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if not name or name == _HEAD or "\0" in name or "\\" in name:
            raise InputError("arrays", repr(name), "a plain name", "a reserved name")
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"arrays[{name!r}]",
                f"dtype {array.dtype}",
                "numbers or booleans",
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
    blank = "0" * _DIGITS
    if target.suffix.lower() == ".safetensors":
        payload = pack_safetensors(host, {_DIGEST: blank, _HEAD: head})
    else:
        text = np.frombuffer(head.encode(), np.uint8)
        payload = pack_npz({_HEAD: text, **host}, _COMMENT + blank.encode())
    at, _ = _digest_place(target, len(payload))
    payload[at : at + _DIGITS] = hashlib.sha256(payload).hexdigest().encode()
    write_bytes(path, bytes(payload), argument)


def _digest_place(path: Path, size: int) -> tuple[int, bytes]:
    """Return the position of the digest in a file, and the bytes before it."""
    if path.suffix.lower() == ".safetensors":
        return 8 + len(_FIRST), _FIRST
    return size - _DIGITS, _COMMENT


def _check_digest(file: BinaryIO, path: Path, argument: str) -> None:
    """Raise if a file's bytes do not match its digest."""
    size = os.fstat(file.fileno()).st_size
    at, before = _digest_place(path, size)
    file.seek(max(0, at - len(before)))
    if at < len(before) or file.read(len(before)) != before:
        raise refuse(
            path,
            argument,
            "no digest in its place",
            "a file written by loko-ref (loko-ref/storage/2)",
            "a truncated file, one of another program, or one of an older version, which had no "
            "digest",
        )
    found = file.read(_DIGITS)
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(min(2**20, at - file.tell())):
        digest.update(part)
    digest.update(b"0" * _DIGITS)
    file.seek(at + _DIGITS)
    while part := file.read(2**20):
        digest.update(part)
    file.seek(0)
    if found != digest.hexdigest().encode():
        got, required = "a SHA-256 other than that of its content", "the file as it was written"
        raise refuse(path, argument, got, required, "a damaged, truncated or altered file")


def load(
    path: str | os.PathLike[str], *, schema: str, argument: str = "path"
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Load a file written by :func:`save`; nothing in it is executed.

    Parameters
    ----------
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.

    Returns
    -------
    arrays : dict of str to array
    metadata : dict

    Raises
    ------
    InputError
        If the file is missing, truncated, altered, of another program, or of another schema.
    """
    place = Path(path)
    if place.suffix.lower() not in SUFFIXES:
        required = f"a file name that ends in {' or '.join(SUFFIXES)}"
        raise InputError(argument, repr(str(path)), required, "a missing or unknown suffix")
    with open_file(place, argument, LIMIT) as file:
        _check_digest(file, place, argument)
        if place.suffix.lower() == ".safetensors":
            views, about = parse_safetensors(map_file(file), place, argument)
            arrays = {name: np.array(view) for name, view in views.items()}
            head: bytes | str | None = about.get(_HEAD)
        else:
            arrays = parse_npz(file, place, argument)
            text = arrays.pop(_HEAD, None)
            head = None if text is None or text.dtype != np.uint8 else text.tobytes()
    if head is None:
        got, cause = f"no entry {_HEAD!r}", "an archive of another program"
        raise refuse(place, argument, got, "a file written by loko-ref", cause)
    found = parse_json(f"{argument}, {str(path)!r}: {_HEAD}", head, limit=HEAD_LIMIT)
    if (
        not isinstance(found, dict)
        or found.keys() != {"schema", "metadata"}
        or not isinstance(found["metadata"], dict)
    ):
        got, cause = f"another entry {_HEAD!r}", "a file of another program"
        raise refuse(place, argument, got, "an object with schema and metadata", cause)
    if found["schema"] != schema:
        got, cause = f"schema {found['schema']!r:.80}", "another kind of file or version"
        raise refuse(place, argument, got, f"schema {schema!r}", cause)
    return arrays, found["metadata"]
