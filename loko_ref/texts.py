"""Real English without a download: which chapter of Python's reference is a passage from?

Shapes: x (samples, 1 + length) of int64, token ids; y (samples,) of int64, the chapter.

The text is the standard library's ``pydoc_data.topics``. A passage is ``length`` words in a row; a
sample is [CLS] and its words. Ids: 0 [CLS], 1 padding, 2 a word out of the vocabulary, then the
most frequent words of the base part.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from loko_ref.checks import check_choice, check_range
from loko_ref.data import Dataset, Split
from loko_ref.errors import InputError

__all__ = ["CHAPTERS", "CLS", "PAD", "SHIFTS", "TEXTS", "UNKNOWN", "VOCABULARY", "encode", "load"]

TEXTS = ("topics",)
"""Names of the text data sets."""

CHAPTERS = ("specialnames", "compound", "string-methods", "debugger")
"""The classes: the data model, compound statements, methods of str, the debugger."""

SHIFTS = ("noise", "permute", "invert", "none")
"""Noise exchanges 30 % of the words for others; permute reorders the words' ids, one order for all;
invert reads a passage backwards."""

CLS, PAD, UNKNOWN = 0, 1, 2
VOCABULARY = 500
"""Rows of the table of tokens, special ids included."""

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


def encode(passages: list[list[str]], vocabulary: dict[str, int], length: int) -> NDArray[np.int64]:
    """Turn words into ids (samples, 1 + length), [CLS] first, short passages padded.

    Parameters
    ----------
    passages : list of list of str
        Words of each sample; those beyond `length` are left out.
    vocabulary : dict of str to int
        Ids of the known words.
    length : int
        Words a sample.
    """
    ids = np.full((len(passages), 1 + length), PAD, dtype=np.int64)
    ids[:, 0] = CLS
    for row, passage in zip(ids, passages, strict=True):
        known = [vocabulary.get(word, UNKNOWN) for word in passage[:length]]
        row[1 : 1 + len(known)] = known
    return ids


def _shift(rng: np.random.Generator, x: NDArray[np.int64], shift: str) -> NDArray[np.int64]:
    first = UNKNOWN + 1
    x, body = x.copy(), x[:, 1:]
    if shift == "noise":
        hit = (rng.random(body.shape) < NOISE) & (body != PAD)
        x[:, 1:] = np.where(hit, rng.integers(first, VOCABULARY, body.shape), body)
    elif shift == "permute":
        order = np.concatenate([np.arange(first), first + rng.permutation(VOCABULARY - first)])
        x[:, 1:] = order[body]
    elif shift == "invert":
        x[:, 1:] = body[:, ::-1]
    return x


def load(
    name: str = "topics", *, shift: str = "none", seed: int = 0, label_noise: float = 0.0
) -> Dataset:
    """Cut the chapters into passages, split them by a seed, and shift stream and test part.

    Parameters
    ----------
    name : {"topics"}
        Which text.
    shift : {"noise", "permute", "invert", "none"}
        Applied to stream and test.
    seed : int
        Seeds the split, the shift and the label noise; >= 0.
    label_noise : float
        Share of the stream's labels exchanged for another class, in [0, 1).

    Returns
    -------
    Dataset
        Half the passages are the base, a third the stream, the rest the test part.
    """
    check_choice("data", name, TEXTS)
    check_choice("shift", shift, SHIFTS)
    check_range("label_noise", label_noise, low=0, high=1, high_open=True)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("seed", repr(seed), "a whole number >= 0", "a float or a missing seed")
    topics = importlib.import_module("pydoc_data.topics").topics
    passages, labels = [], []
    for label, chapter in enumerate(CHAPTERS):
        text = words(topics[chapter])
        cut = [text[j : j + LENGTH] for j in range(0, len(text) - LENGTH + 1, LENGTH)]
        passages += cut
        labels += [label] * len(cut)
    y = np.array(labels, dtype=np.int64)
    splitting, shifting, noising = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)
    )
    order = splitting.permutation(len(y))
    base, stream, test = np.split(order, [len(y) // 2, len(y) // 2 + len(y) // 3])
    counts = Counter(word for j in base for word in passages[j])
    # by frequency, then by letter: the order of equal counts must not depend on the machine
    known = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - UNKNOWN - 1]
    vocabulary = {word: UNKNOWN + 1 + j for j, word in enumerate(known)}
    x = encode(passages, vocabulary, LENGTH)
    later = np.concatenate([stream, test])
    moved = _shift(shifting, x[later], shift)
    stream_y = y[stream]
    if label_noise:
        hit = noising.random(len(stream_y)) < label_noise
        other = (stream_y + noising.integers(1, len(CHAPTERS), len(stream_y))) % len(CHAPTERS)
        stream_y = np.where(hit, other, stream_y)
    return Dataset(
        name=name,
        shift=shift,
        seed=seed,
        classes=len(CHAPTERS),
        unit=1.0,
        base=Split(x=x[base], y=y[base]),
        stream=Split(x=moved[: len(stream)], y=stream_y),
        test=Split(x=moved[len(stream) :], y=y[test]),
    )
