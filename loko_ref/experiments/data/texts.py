"""Text as whole numbers: words, a vocabulary, shifts; and real English without a download.

Shapes: x (samples, t) of int64, token ids; y (samples,) of int64, the class.

The bundled set asks which chapter of Python's reference a passage is from: the text is the standard
library's ``pydoc_data.topics``, a passage is 16 words in a row, a sample is [CLS] and its words.
Ids: 0 [CLS], 1 padding, 2 a word out of the vocabulary, 3 the border of two texts (where samples
are pairs), then the most frequent words of the base part.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from loko_ref.checks.values import check_choice
from loko_ref.errors import InputError
from loko_ref.experiments.data.bundled import Dataset, Request, Split, assemble

TEXTS = ("topics",)
"""Names of the text data sets."""

CHAPTERS = ("specialnames", "compound", "string-methods", "debugger")
"""The classes: the data model, compound statements, methods of str, the debugger."""

SHIFTS = ("noise", "permute", "invert", "none")
"""Noise exchanges 30 % of the words for others; permute reorders the words' ids, one order for all;
invert reads a passage backwards."""

CLS, PAD, UNKNOWN, SEP = 0, 1, 2, 3
VOCABULARY = 500
"""Rows of the bundled text's table of tokens, special ids included."""

LENGTH = 16
NOISE = 0.3


def words(text: str) -> list[str]:
    """Split into lower-case words.

    Examples
    --------
    >>> words('The "try" statement, 3 times')
    ['the', 'try', 'statement', 'times']
    """
    return re.findall(r"[a-z]+", text.lower())


def pieces(text: str) -> list[str]:
    """Split into lower-case words, numbers and single marks.

    Examples
    --------
    >>> pieces("It isn't, in 1999!")
    ['it', 'isn', "'", 't', ',', 'in', '1999', '!']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary_of(passages: Iterable[Sequence[str]], first: int, rows: int) -> dict[str, int]:
    """Assign the most frequent words numbers from `first` on, below `rows`.

    By frequency, then by letter: the order of equal counts must not depend on the machine.

    Examples
    --------
    >>> vocabulary_of([["b", "a"], ["c", "b"]], 3, 5)
    {'b': 3, 'a': 4}
    """
    counts = Counter(word for passage in passages for word in passage)
    known = sorted(counts, key=lambda word: (-counts[word], word))[: rows - first]
    return {word: first + j for j, word in enumerate(known)}


def encode_samples(
    samples: Sequence[Sequence[Sequence[str]]], vocabulary: dict[str, int], length: int
) -> NDArray[np.int64]:
    """Turn samples of one or several texts into ids (samples, t), t <= `length`.

    A sample is [CLS], the words of its texts with a border between two, and padding to the longest
    sample. Where it is too long, the longest text loses its last word, as often as needed.

    Parameters
    ----------
    samples : sequence
        For each sample, for each of its texts, its words.
    vocabulary : dict of str to int
        Ids of the known words.
    length : int
        Most tokens per sample, [CLS] and borders included, and at least one word.

    Raises
    ------
    InputError
        If the length leaves no token for a word.

    Examples
    --------
    >>> encode_samples([[["a", "b"], ["a"]], [["b"], ["c"]]], {"a": 4, "b": 5}, 8).tolist()
    [[0, 4, 5, 3, 4], [0, 5, 3, 2, 1]]
    """
    rows = []
    for texts in samples:
        if length <= len(texts):
            raise InputError(
                "length", length, f"more than {len(texts)}, [CLS] and borders", "too short a limit"
            )
        fit = [list(text) for text in texts]
        while sum(map(len, fit)) + len(fit) > length:
            max(fit, key=len).pop()
        row = [CLS]
        for j, text in enumerate(fit):
            row += [SEP] * (j > 0) + [vocabulary.get(word, UNKNOWN) for word in text]
        rows.append(row)
    ids = np.full((len(rows), max(map(len, rows), default=1)), PAD, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return ids


def shift_tokens(
    rng: np.random.Generator,
    x: NDArray[np.int64],
    shift: str,
    *,
    ordinary: NDArray[np.int64],
    fixed: Sequence[int],
) -> NDArray[np.int64]:
    """Shift texts; a new array, or `x` itself for ``none``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the permutation or the noise.
    x : array (samples, t)
        Token ids.
    shift : {"noise", "permute", "invert", "none"}
        Exchange 30 % of the tokens for ordinary ones; reorder the ordinary ids, one order for all;
        read each sample backwards.
    ordinary : array
        Ids of words.
    fixed : sequence of int
        Ids that stay where they are: [CLS], borders, padding.
    """
    check_choice("shift", shift, SHIFTS)
    moves = ~np.isin(x, np.asarray(fixed))
    if shift == "noise":
        hit = (rng.random(x.shape) < NOISE) & moves
        return np.where(hit, ordinary[rng.integers(0, len(ordinary), x.shape)], x)
    if shift == "permute":
        other = np.arange(max(int(x.max()), int(ordinary.max())) + 1)
        other[ordinary] = rng.permutation(ordinary)
        return other[x]
    if shift == "invert":
        x = x.copy()
        for row, those in zip(x, moves, strict=True):
            row[those] = row[those][::-1]
    return x


def mover(
    shift: str, ordinary: NDArray[np.int64], fixed: Sequence[int]
) -> Callable[[np.random.Generator, NDArray[np.int64]], NDArray[np.int64]]:
    """Return :func:`shift_tokens` as a function of generator and ids."""
    return lambda rng, x: shift_tokens(rng, x, shift, ordinary=ordinary, fixed=fixed)


def load(request: Request) -> Dataset:
    """Cut the chapters into passages, split them by a seed, and shift stream and test part.

    Half the passages are the base, a third the stream, the rest the test part.
    """
    topics = importlib.import_module("pydoc_data.topics").topics
    passages, labels = [], []
    for label, chapter in enumerate(CHAPTERS):
        text = words(topics[chapter])
        cut = [text[j : j + LENGTH] for j in range(0, len(text) - LENGTH + 1, LENGTH)]
        passages += cut
        labels += [label] * len(cut)
    y = np.array(labels, dtype=np.int64)
    order = request.rngs()[0].permutation(len(y))
    halves = np.split(order, [len(y) // 2, len(y) // 2 + len(y) // 3])
    base, stream, test = (part[: request.limit] for part in halves)
    first = UNKNOWN + 1  # passages have no border
    vocabulary = vocabulary_of((passages[j] for j in base), first, VOCABULARY)
    x = encode_samples([[passage] for passage in passages], vocabulary, 1 + LENGTH)
    return assemble(
        request,
        *(Split(x=x[part], y=y[part]) for part in (base, stream, test)),
        classes=len(CHAPTERS),
        move=mover(request.shift, np.arange(first, VOCABULARY), (CLS, PAD)),
        vocabulary=VOCABULARY,
        pad=PAD,
    )
