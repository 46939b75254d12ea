"""Images that the user has as files: MNIST (idx), CIFAR (binary).

Shapes: images (samples, channels, h, w) of unsigned bytes; labels (samples,) of int64.

Nothing is downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError
from loko_ref.files.reading import read_bytes

Images = NDArray[Any]
Labels = NDArray[np.int64]

IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
AXES = 8
"""Most axes of an idx file; images have three."""

CIFAR_ROWS = 100_000
"""Most samples of a CIFAR file; the published ones have 50,000 at most."""


def read_idx(path: str | Path) -> NDArray[np.generic]:
    """Read one idx file, gzipped or not: MNIST's container.

    Raises
    ------
    InputError
        If the file is missing, foreign or truncated.
    """
    data = read_bytes(path, unpack=True, length=lambda head: _idx_head(path, head)[0])
    _, dtype, shape = _idx_head(path, data)
    return np.frombuffer(data, dtype, offset=4 + 4 * len(shape)).reshape(shape)


def _idx_head(path: str | Path, data: bytes) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """Read the head of an idx file: bytes of the whole, dtype, shape."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX:
        raise InputError(str(path), f"first bytes {data[:4]!r}", "an idx file", "a foreign file")
    axes = data[3]
    if not 1 <= axes <= AXES:
        raise InputError(
            str(path), f"an array of {axes} axes", f"1 to {AXES}", "a damaged or foreign file"
        )
    if len(data) < 4 + 4 * axes:
        raise InputError(str(path), f"{len(data)} bytes", "a whole head", "a truncated file")
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    if 0 in shape:
        raise InputError(
            str(path), f"an array of shape {shape}", "samples of some size", "an empty set"
        )
    dtype = np.dtype(IDX[data[2]])
    return 4 + 4 * axes + math.prod(shape) * dtype.itemsize, dtype, shape


def read_mnist(images: str | Path, labels: str | Path) -> tuple[Images, Labels]:
    """Read MNIST's (or Fashion-MNIST's) two files: (samples, 1, 28, 28), and labels.

    Parameters
    ----------
    images, labels : path-like
        idx files of unsigned bytes, gzipped or not.
    """
    x, y = read_idx(images), read_idx(labels)
    for path, array in ((images, x), (labels, y)):
        if array.dtype != np.uint8:
            raise InputError(
                str(path), f"an idx file of {array.dtype}", "unsigned bytes", "another data set"
            )
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise InputError(
            f"{images}, {labels}",
            f"shapes {x.shape} and {y.shape}",
            "(samples, h, w) and (samples,)",
            "images and labels of different parts, or exchanged",
        )
    return x[:, None], y.astype(np.int64)


def read_cifar(paths: Sequence[str | Path], classes: int = 10) -> tuple[Images, Labels]:
    """Read CIFAR's binary files: (samples, 3, 32, 32), and labels.

    Parameters
    ----------
    paths : sequence of path-like
        ``data_batch_1.bin`` and so on, or ``train.bin``; stacked in this order.
    classes : {10, 100}
        CIFAR-100 puts a coarse label before the fine one, which is the one returned.
    """
    if classes not in (10, 100):
        raise InputError("classes", classes, "10 or 100", "another data set")
    before = 1 if classes == 10 else 2
    row = before + 3 * 32 * 32
    parts = []
    for path in paths:
        data = read_bytes(path, limit=CIFAR_ROWS * row, unpack=True)
        if not data or len(data) % row:
            raise InputError(
                str(path),
                f"{len(data)} bytes",
                f"a multiple of {row}",
                "a cut file, the pickled version of the set, or the other number of classes",
            )
        part = np.frombuffer(data, np.uint8).reshape(-1, row)
        if (top := int(part[:, before - 1].max())) >= classes:
            raise InputError(
                str(path),
                f"label {top}",
                f"at most {classes - 1}",
                "a damaged file, or one of the other CIFAR",
            )
        parts.append(part)
    if not parts:
        raise InputError("paths", "no file", "at least one", "an empty list")
    both = np.concatenate(parts)
    labels = both[:, before - 1].astype(np.int64)
    return both[:, before:].reshape(-1, 3, 32, 32), labels
