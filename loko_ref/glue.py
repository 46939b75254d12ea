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
from loko_ref.files import read_bytes

__all__ = ["GLUE", "glue_rows", "number_labels", "read_glue", "tokenize", "tokenizer_ids"]

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


def glue_rows(
    path: str | Path, text: str | Sequence[str] | None = None, label: str | None = None
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Read a GLUE task's tsv: texts (one or two a sample), and labels as they stand.

    Parameters
    ----------
    path : path-like
        ``train.tsv`` or ``dev.tsv``.
    text, label : str or sequence of str, str
        Columns; by default those of the task in ``GLUE`` whose columns the header has, or CoLA's
        (four columns, the second 0 or 1, no header).

    Raises
    ------
    InputError
        If the file is missing, not UTF-8, has no known columns or no row, or a line is damaged.
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig").split("\n")  # other line ends are text
    except UnicodeDecodeError as error:
        raise InputError(str(path), str(error), "UTF-8", "a foreign or damaged file") from None
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if rows[-1] == [""]:
        del rows[-1]
    if not rows:
        raise InputError(str(path), "an empty file", "rows of a GLUE task", "a cut file")
    head, first = rows[0], 1
    columns = [text] if isinstance(text, str) else list(text or ("sentence",))
    if text is None and label is None:
        if len(head) == 4 and head[1] in ("0", "1"):
            head, first = ["source", "label", "mark", "sentence"], 0
        columns, label = _columns(path, head)
    label = label or "label"
    for name in (*columns, label):
        if name not in head:
            raise InputError(
                str(path), f"columns {head}", f"a column '{name}'", "another task, or a test part"
            )
    for number, row in enumerate(rows[first:], start=first + 1):
        if len(row) != len(head):
            raise InputError(
                f"{path}, line {number}",
                f"{len(row)} columns",
                f"{len(head)}",
                "a damaged line, or a cut file",
            )
    if len(rows) == first:
        raise InputError(str(path), "a header alone", "at least one row", "a cut file")
    at, answer = [head.index(name) for name in columns], head.index(label)
    body = rows[first:]
    return [tuple(row[j] for j in at) for row in body], [row[answer] for row in body]


def _columns(path: str | Path, head: Sequence[str]) -> tuple[list[str], str]:
    """Columns of the first task that a header fits."""
    for columns, label in GLUE.values():
        if {*columns, label} <= set(head):
            return list(columns), label
    raise InputError(
        str(path),
        f"columns {', '.join(head)}"[:200],
        f"those of {', '.join(GLUE)} or CoLA, with labels",
        "a test part, which has no labels, a regression (STS-B), or no GLUE file",
    )


def number_labels(names: Sequence[str]) -> Labels:
    """Turn labels into numbers: whole ones stay, words (``entailment``) go by the alphabet.

    Parameters
    ----------
    names : sequence of str
        One a sample; all parts of a set together, so that they share an order.

    Raises
    ------
    InputError
        If a number is negative.

    Examples
    --------
    >>> number_labels(["not_entailment", "entailment"]), number_labels(["2", "0"])
    (array([1, 0]), array([2, 0]))
    """
    order = {name: j for j, name in enumerate(sorted(set(names)))}
    if not all(name.removeprefix("-").isdecimal() for name in order):
        return np.array([order[name] for name in names], dtype=np.int64)
    labels = np.array([int(name) for name in names], dtype=np.int64)
    if labels.size and labels.min() < 0:
        raise InputError("label", labels.min(), "0 or more", "a test part, which has no labels")
    return labels


def read_glue(
    path: str | Path, text: str | Sequence[str] | None = None, label: str | None = None
) -> tuple[list[tuple[str, ...]], Labels]:
    """Read a GLUE task's tsv: texts (one or two a sample), and labels as numbers.

    Parameters
    ----------
    path, text, label
        As for :func:`glue_rows`; for a task not recognised name both columns.
    """
    samples, names = glue_rows(path, text, label)
    return samples, number_labels(names)


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
        Tokens a sample, more than the special ones.

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
    if not path.is_file():
        raise InputError("tokenizer", str(path), "a tokenizer.json", "a wrong path")
    try:
        made = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            "tokenizer", f"{path}: {error}", "a tokenizer.json", "a damaged or foreign file"
        ) from None
    pad = next((t for t in ("<pad>", "[PAD]") if made.token_to_id(t) is not None), None)
    if pad is None:
        raise InputError("tokenizer", str(path), "a token <pad> or [PAD]", "another model's")
    added = made.get_added_tokens_decoder()
    special = {j for j, token in added.items() if token.special} | {made.token_to_id(pad)}
    return made, pad, tuple(sorted(special))
