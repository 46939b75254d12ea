"""Data sets that the user has as files: MNIST (idx), CIFAR (binary), GLUE (tsv).

Shapes: images (samples, channels, h, w) in [0, 1]; labels (samples,) of int64.

Nothing is downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loko_ref.checks import check_choice
from loko_ref.errors import InputError, MissingExtraError

__all__ = ["read_cifar", "read_glue", "read_idx", "read_mnist", "tokenize"]

Images = NDArray[np.floating]
Labels = NDArray[np.int64]

IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _bytes(path: str | Path) -> bytes:
    path = Path(path)
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:  # zlib's errors are OSErrors here
        raise InputError(
            str(path), f"{type(error).__name__}: {error}", "a readable file", "a wrong path"
        ) from None


def read_idx(path: str | Path) -> NDArray[np.generic]:
    """Read one idx file, gzipped or not: MNIST's container.

    Raises
    ------
    InputError
        If the file is missing, foreign or truncated.
    """
    data = _bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX:
        raise InputError(str(path), f"first bytes {data[:4]!r}", "an idx file", "a foreign file")
    dims = data[3]
    if len(data) < 4 + 4 * dims:
        raise InputError(str(path), f"{len(data)} bytes", "a whole head", "a truncated file")
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    dtype = np.dtype(IDX[data[2]])
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    body = data[4 + 4 * dims :]
    if len(body) != wanted:
        raise InputError(
            str(path), f"{len(body)} bytes of data", f"{wanted} for shape {shape}", "truncated"
        )
    return np.frombuffer(body, dtype).reshape(shape)


def read_mnist(
    images: str | Path, labels: str | Path, dtype: str = "float64"
) -> tuple[Images, Labels]:
    """Read MNIST's (or Fashion-MNIST's) two files: (samples, 1, 28, 28) in [0, 1], and labels."""
    check_choice("dtype", dtype, ("float64", "float32"))
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise InputError(
            "images, labels",
            f"shapes {x.shape} and {y.shape}",
            "(samples, h, w) and (samples,)",
            "images and labels of different parts, or exchanged",
        )
    return x[:, None].astype(dtype) / 255, y.astype(np.int64)


def read_cifar(
    paths: Sequence[str | Path], classes: int = 10, dtype: str = "float64"
) -> tuple[Images, Labels]:
    """Read CIFAR's binary files: (samples, 3, 32, 32) in [0, 1], and labels.

    Parameters
    ----------
    paths : sequence of path-like
        ``data_batch_1.bin`` and so on, or ``train.bin``; stacked in this order.
    classes : {10, 100}
        CIFAR-100 puts a coarse label before the fine one, which is the one returned.
    dtype : {"float64", "float32"}
        Of the images.
    """
    check_choice("dtype", dtype, ("float64", "float32"))
    if classes not in (10, 100):
        raise InputError("classes", classes, "10 or 100", "another data set")
    before = 1 if classes == 10 else 2
    row = before + 3 * 32 * 32
    parts = []
    for path in paths:
        data = _bytes(path)
        if not data or len(data) % row:
            raise InputError(
                str(path),
                f"{len(data)} bytes",
                f"a multiple of {row}",
                "the pickled version of the set, or the other number of classes",
            )
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, row))
    if not parts:
        raise InputError("paths", "no file", "at least one", "an empty list")
    both = np.concatenate(parts)
    labels = both[:, before - 1].astype(np.int64)
    if labels.max() >= classes:
        raise InputError(
            "classes", classes, f"more than {labels.max()}", "a file of the other CIFAR"
        )
    return both[:, before:].reshape(-1, 3, 32, 32).astype(dtype) / 255, labels


def read_glue(
    path: str | Path, text: str | Sequence[str] = "sentence", label: str = "label"
) -> tuple[list[tuple[str, ...]], Labels]:
    """Read a GLUE task's tsv with a header: texts (one or two a sample), and labels.

    Parameters
    ----------
    path : path-like
        ``train.tsv`` or ``dev.tsv``.
    text : str or sequence of str
        Columns of the text: ``sentence`` (SST-2), or ``("sentence1", "sentence2")`` (RTE, MRPC).
    label : str
        Column of the label; words (``entailment``) are numbered in alphabetical order.
    """
    columns = [text] if isinstance(text, str) else list(text)
    lines = _bytes(path).decode("utf-8-sig", errors="strict").splitlines()
    rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        raise InputError(str(path), "an empty file", "a header and rows", "a truncated file")
    head = rows[0]
    for name in (*columns, label):
        if name not in head:
            raise InputError(
                str(path), f"columns {head}", f"a column '{name}'", "another task, or a test part"
            )
    at, answer = [head.index(name) for name in columns], head.index(label)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(head):
            raise InputError(
                f"{path}, line {number}", f"{len(row)} columns", f"{len(head)}", "a damaged line"
            )
    names = [row[answer] for row in rows[1:]]
    numbered = all(name.lstrip("-").isdigit() for name in names)
    order = {name: j for j, name in enumerate(sorted(set(names)))}
    labels = [int(name) if numbered else order[name] for name in names]
    return [tuple(row[j] for j in at) for row in rows[1:]], np.array(labels, dtype=np.int64)


def tokenize(
    samples: Sequence[tuple[str, ...]], tokenizer: str | Path, length: int
) -> NDArray[np.int64]:
    """Ids (samples, length) of raw text by a ``tokenizer.json``, cut and padded to `length`.

    Parameters
    ----------
    samples : sequence of tuple of str
        One or two texts each.
    tokenizer : path-like
        ``tokenizer.json`` of the checkpoint.
    length : int
        Tokens a sample.

    Raises
    ------
    MissingExtraError
        If ``tokenizers`` is not installed.
    """
    try:
        library = importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise MissingExtraError("raw text", "tokenizers", "interop") from error
    path = Path(tokenizer)
    if not path.is_file():
        raise InputError("tokenizer", str(path), "a tokenizer.json", "a wrong path")
    made = library.Tokenizer.from_file(str(path))
    made.enable_truncation(length)
    pad = next((t for t in ("<pad>", "[PAD]") if made.token_to_id(t) is not None), None)
    if pad is None:
        raise InputError("tokenizer", str(path), "a token <pad> or [PAD]", "another model's")
    made.enable_padding(length=length, pad_id=made.token_to_id(pad), pad_token=pad)
    batch = made.encode_batch([s if len(s) > 1 else s[0] for s in samples])
    return np.array([encoding.ids for encoding in batch], dtype=np.int64)
