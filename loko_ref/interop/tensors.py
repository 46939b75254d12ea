"""Checkpoints' safetensors files: found in a folder, read and written with NumPy.

The format is read by :mod:`loko_ref.files.containers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.errors import InputError
from loko_ref.files.containers import pack_safetensors, parse_safetensors
from loko_ref.files.reading import is_file_name, map_file, open_file
from loko_ref.files.strict_json import read_json
from loko_ref.files.writing import write_bytes

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def _bad(path: Path, got: str, required: str, cause: str) -> InputError:
    return InputError(str(path), got, required, cause)


def _refuse_pickle(path: Path, start: bytes) -> None:
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
    stem : str
        ``model`` or ``adapter_model``.
    """
    folder = Path(folder)
    one, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if one.exists():
        return [one]
    if index.exists():
        named = read_json(index)
        weights = named.get("weight_map") if isinstance(named, dict) else None
        if not isinstance(weights, dict) or not weights:
            raise _bad(index, "no 'weight_map'", "one: tensor -> file", "a damaged file")
        for shard in weights.values():
            if not is_file_name(shard):
                raise _bad(index, f"{shard!r:.80}", "file names without a path", "a foreign index")
        shards = sorted(set(weights.values()))
        return [folder / shard for shard in shards]
    for path in sorted(folder.glob("*")):
        if path.name.startswith((stem, "pytorch_model")) and path.is_file():  # shards too
            with open_file(path) as file:
                _refuse_pickle(path, file.read(9))
    raise _bad(folder, "no such file", f"{stem}.safetensors in it", "a wrong folder")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file; the arrays are read-only views of the file.

    Raises
    ------
    InputError
        If the file is missing, pickled, truncated or damaged; names the tensor where it can.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise _bad(path, "no such file", "a .safetensors file", "a wrong path or a missing shard")
    with open_file(path) as file:
        _refuse_pickle(path, file.read(9))
        return parse_safetensors(map_file(file), path, widen=True)[0]


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


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, tensors in the order of their names.

    Parameters
    ----------
    path : path-like
        The file; its folder exists.
    tensors : mapping of str to array
        Host arrays.
    metadata : mapping of str to str, optional
        For ``__metadata__``; ``{"format": "pt"}`` is what torch's readers expect.
    """
    payload = pack_safetensors(tensors, metadata or {"format": "pt"})
    write_bytes(path, bytes(payload))
