"""Text that the user has as files: GLUE (tsv), and a tokenizer.json that turns it into ids.

Shapes: ids (samples, length) and labels (samples,) of int64.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import InputError, MissingExtraError
from loko_ref.files.reading import read_text

Labels = NDArray[np.int64]

GLUE = {
    "MNLI": (("sentence1", "sentence2"), "gold_label"),
    "MRPC": (("#1 String", "#2 String"), "Quality"),
    "QNLI": (("question", "sentence"), "label"),
    "QQP": (("question1", "question2"), "is_duplicate"),
    "RTE or WNLI": (("sentence1", "sentence2"), "label"),
    "SST-2": (("sentence",), "label"),
}
"""GLUE's tasks of classification: columns of the text, column of the label. CoLA has no header."""

CLASSES = 1000
"""Most classes; GLUE's tasks have two or three."""

LIMIT = 2**28
"""Bytes of a file; the largest of GLUE's (MNLI) has 76 MB."""

HOLES = 1000
"""Ids of a vocabulary that no token has, beyond as many as there are tokens."""


def glue_rows(path: str | Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """Read a GLUE task's tsv: texts (one or two per sample), and labels as they stand.

    Parameters
    ----------
    path : path-like
        ``train.tsv`` or ``dev.tsv`` of a task in ``GLUE``, known by its columns, or CoLA's (four
        columns, the second 0 or 1, no header).

    Raises
    ------
    InputError
        If the file is missing, not UTF-8, has no known columns or no row, or a line is damaged.
    """
    lines = read_text(path, limit=LIMIT, unpack=True).split("\n")  # other line ends are text
    if lines[-1] in ("", "\r"):
        del lines[-1]
    if not lines:
        raise InputError(str(path), "an empty file", "rows of a GLUE task", "a cut file")
    head, first = _cells(lines[0]), 1
    if len(head) == 4 and head[1] in ("0", "1"):
        head, first = ["source", "label", "mark", "sentence"], 0
    columns, label = _columns(path, head)
    if len(lines) == first:
        raise InputError(str(path), "a header alone", "at least one row", "a cut file")
    at, answer = [head.index(name) for name in columns], head.index(label)
    samples, labels = [], []
    for number, line in enumerate(lines[first:], start=first + 1):
        row = _cells(line)
        if len(row) != len(head):
            raise InputError(
                f"{path}, line {number}",
                f"{len(row)} columns",
                f"{len(head)}",
                "a damaged line, or a cut file",
            )
        if not row[answer].strip():
            raise InputError(
                f"{path}, line {number}", "an empty label", "a label", "a test part, or a cut line"
            )
        samples.append(tuple(row[j] for j in at))
        labels.append(row[answer])
    return samples, labels


def _cells(line: str) -> list[str]:
    return line.removesuffix("\r").split("\t")


def _columns(path: str | Path, head: Sequence[str]) -> tuple[list[str], str]:
    """Columns of the first task that a header fits."""
    for columns, label in GLUE.values():
        if {*columns, label} <= set(head):
            return list(columns), label
    raise InputError(
        str(path),
        f"columns {', '.join(head)!r}"[:200],
        f"those of {', '.join(GLUE)} or CoLA, with labels",
        "a test part, which has no labels, a regression (STS-B), or no GLUE file",
    )


def number_labels(names: Sequence[str]) -> Labels:
    """Turn labels into numbers: whole ones stay, words (``entailment``) go by the alphabet.

    Parameters
    ----------
    names : sequence of str
        One per sample; all parts of a set together, so that they share an order.

    Raises
    ------
    InputError
        If a number is negative or beyond the most classes that are taken, or there are more
        different labels than that.

    Examples
    --------
    >>> number_labels(["not_entailment", "entailment"]), number_labels(["2", "0"])
    (array([1, 0]), array([2, 0]))
    """
    order = {name: j for j, name in enumerate(sorted(set(names)))}
    if len(order) > CLASSES:
        raise InputError(
            "label",
            f"{len(order)} different labels",
            f"at most {CLASSES}",
            "a column of text, or of real numbers",
        )
    if not all(name.removeprefix("-").isdecimal() for name in order):
        return np.array([order[name] for name in names], dtype=np.int64)
    for name in order:
        if name.startswith("-") and name.strip("-0"):
            raise InputError(
                "label", f"{name:.40}", "0 or more", "a test part, which has no labels"
            )
        if len(name.strip("-")) > len(str(CLASSES)) or int(name) >= CLASSES:
            raise InputError(
                "label",
                f"{name:.40}" + ("..." if len(name) > 40 else ""),
                f"below {CLASSES}: the network has one output per class",
                "a column of ids, or a damaged line",
            )
    return np.array([int(name) for name in names], dtype=np.int64)


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
        Tokens per sample, more than the special ones.

    Raises
    ------
    InputError
        If the file is missing or foreign, or has no token of padding, or the length is too small.
    MissingExtraError
        If ``tokenizers`` is not installed.
    """
    made, pad, _ = _tokenizer(tokenizer)
    own = max(made.num_special_tokens_to_add(len(sample) > 1) for sample in samples)
    if length <= own:
        raise InputError(
            "length", length, f"more than {own}, a sample's special tokens", "too short a limit"
        )
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=made.token_to_id(pad), pad_token=pad)
    batch = made.encode_batch([s if len(s) > 1 else s[0] for s in samples])
    return np.array([encoding.ids for encoding in batch], dtype=np.int64)


def tokenizer_ids(tokenizer: str | Path) -> tuple[int, int, tuple[int, ...]]:
    """Rows of the table that a ``tokenizer.json`` asks for, the id of padding, the special ids.

    Raises
    ------
    InputError, MissingExtraError
        As for :func:`tokenize`.
    """
    made, pad, special = _tokenizer(tokenizer)
    rows = max(made.get_vocab(with_added_tokens=True).values()) + 1
    return rows, int(made.token_to_id(pad)), special


def _tokenizer(tokenizer: str | Path) -> tuple[Any, str, tuple[int, ...]]:
    """Load a tokenizer: the library's object, its token of padding, its special ids."""
    try:
        library = importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise MissingExtraError("raw text by a tokenizer", "tokenizers", "interop") from error
    path = Path(tokenizer)
    text = read_text(path, "tokenizer", limit=2**27)
    try:
        made = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            "tokenizer", f"{path}: {error}", "a tokenizer.json", "a damaged or foreign file"
        ) from None
    known = made.get_vocab(with_added_tokens=True)
    rows = max(known.values(), default=-1) + 1
    if rows > 2 * len(known) + HOLES:
        raise InputError(
            "tokenizer",
            f"{path}: an id {rows - 1} among {len(known)} tokens",
            f"ids below {2 * len(known) + HOLES}",
            "a damaged vocabulary: the table of tokens has one row per id",
        )
    pad = next((t for t in ("<pad>", "[PAD]") if made.token_to_id(t) is not None), None)
    if pad is None:
        raise InputError("tokenizer", str(path), "a token <pad> or [PAD]", "another model's")
    added = made.get_added_tokens_decoder()
    special = {j for j, token in added.items() if token.special} | {made.token_to_id(pad)}
    return made, pad, tuple(sorted(special))
