"""Which data a name stands for: a bundled set, or files that the user has.

Shapes: as in :class:`loko_ref.experiments.data.bundled.Dataset`; images are flat, x (samples,
channels * h * w).

==================  ==========  ===================================================================
name                kind        files
==================  ==========  ===================================================================
digits              image       bundled with scikit-learn, as are the tables
topics              text        bundled with Python
mnist:DIR           image       train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-...,
                                t10k-labels-..., each with or without .gz (Fashion-MNIST likewise)
cifar10:DIR         image       the binary version: data_batch_1.bin and so on, test_batch.bin
cifar100:DIR        image       the binary version: train.bin, test.bin
glue:FILE.tsv       text        one file with labels, split 1/2, 1/3, the rest
glue:DIR            text        train.tsv, and dev.tsv as the test part
==================  ==========  ===================================================================

A training file is split 3/5 base, 2/5 stream; the test file is the test part. Nothing is
downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.checks.values import check_choice, check_memory, check_whole
from loko_ref.errors import InputError
from loko_ref.experiments.data import bundled, glue, images, texts
from loko_ref.experiments.data.bundled import Dataset, Request, Split, assemble, shift_features

FILES = {"mnist": "image", "cifar10": "image", "cifar100": "image", "glue": "text"}
"""Sets read from files: the word before the colon -> what a sample is."""

WORDS = 5000
"""Most rows of the table of tokens without a tokenizer, special ids included."""

LENGTH = 64
"""Most tokens per sample of a text, by default."""


def kind_of(name: str) -> str:
    """Return what a sample of a set is: ``image``, ``table`` or ``text``.

    Raises
    ------
    InputError
        If the name is unknown, or a set of files is named without its place.

    Examples
    --------
    >>> kind_of("digits"), kind_of("wine"), kind_of("glue:SST-2/train.tsv")
    ('image', 'table', 'text')
    """
    word, colon, path = str(name).partition(":")
    if word in FILES and not path.strip():
        raise InputError(
            "data",
            repr(name),
            f"'{word}:DIR', DIR the directory that holds its files",
            "a set that is read from files, none of which is downloaded",
        )
    if colon:
        check_choice("data", word, FILES)
        return FILES[word]
    check_choice("data", name, (*bundled.DATASETS, *texts.TEXTS))
    if name in texts.TEXTS:
        return "text"
    return "image" if name == "digits" else "table"


def regression(name: str) -> bool:
    """Whether the targets of a set are real numbers."""
    return name == "diabetes"


def check_options(name: str, shift: str, tokenizer: str | None, length: int | None) -> None:
    """Raise for options that a set does not have, before it is read."""
    if not name.startswith("glue:") and (tokenizer is not None or length is not None):
        raise InputError(
            "length" if tokenizer is None else "tokenizer",
            length if tokenizer is None else tokenizer,
            "glue:FILE.tsv as data",
            "an option of raw text, with other data",
        )
    check_choice("shift", shift, texts.SHIFTS if kind_of(name) == "text" else bundled.SHIFTS)


def load(
    name: str = "digits",
    *,
    shift: str = "none",
    seed: int = 0,
    dtype: str = "float64",
    label_noise: float = 0.0,
    limit: int | None = None,
    tokenizer: str | None = None,
    length: int | None = None,
) -> Dataset:
    """Load, split, scale and shift a set, bundled or from files.

    Parameters
    ----------
    shift : str
        One of :data:`loko_ref.experiments.data.bundled.SHIFTS`, or for a text of
        :data:`loko_ref.experiments.data.texts.SHIFTS`.
    seed, dtype, label_noise, limit
        As in :class:`loko_ref.experiments.data.bundled.Request`.
    tokenizer : path-like, optional
        For ``glue``: the ``tokenizer.json`` that turns text into ids; without it the built-in one,
        whose words are the most frequent of the base part.
    length : int, optional
        For ``glue``: most tokens per sample, by default 64.

    Raises
    ------
    InputError
        If a name or value is not one of these, or a file is missing, damaged, cut or foreign.
    MissingExtraError
        If scikit-learn, or for a tokenizer ``tokenizers``, is not installed.
    """
    kind = kind_of(name)
    word, colon, path = name.partition(":")
    if length is not None:
        check_whole("length", length)
    check_options(name, shift, tokenizer, length)
    request = Request(
        name=name, shift=shift, seed=seed, dtype=dtype, label_noise=label_noise, limit=limit
    )
    if not colon:
        return texts.load(request) if kind == "text" else bundled.load(request)
    if word == "glue":
        return _glue(request, Path(path), tokenizer, LENGTH if length is None else length)
    parts = _mnist(Path(path)) if word == "mnist" else _cifar(Path(path), int(word[5:]))
    return _images(request, *parts)


Part = tuple[NDArray[Any], NDArray[np.int64]]


def _find(folder: Path, names: Sequence[str], cause: str) -> Path:
    """Return the file of a directory that goes by one of several names."""
    found = [folder / name for name in names if os.path.lexists(folder / name)]
    if not found:
        got = "no such file" if folder.is_dir() else "no such directory"
        raise InputError(str(folder / names[0]), got, f"one of {', '.join(names)}", cause)
    return found[0]


def _mnist(folder: Path) -> list[Part]:
    parts = []
    for part in ("train", "t10k"):
        pair = []
        for what, dims in (("images", 3), ("labels", 1)):
            stems = [f"{part}-{what}{sign}idx{dims}-ubyte" for sign in "-."]
            names = [stem + end for stem in stems for end in ("", ".gz")]
            pair.append(_find(folder, names, "another directory, or a file not yet there"))
        parts.append(images.read_mnist(*pair))
    return parts


def _cifar(folder: Path, classes: int) -> list[Part]:
    cause = "another directory, or the pickled (python) version of the set: take the binary one"
    names = {"train": ["train.bin"], "test": ["test.bin"]}
    if classes == 10:
        last = sum(1 for _ in folder.glob("data_batch_*.bin"))
        names = {
            "train": [f"data_batch_{j}.bin" for j in range(1, max(1, last) + 1)],
            "test": ["test_batch.bin"],
        }
    return [
        images.read_cifar([_find(folder, [name], cause) for name in some], classes)
        for some in names.values()
    ]


def _images(request: Request, train: Part, test: Part) -> Dataset:
    """Draw the parts first, then scale: the whole set in floats need not fit."""
    (x, y), (x_test, y_test) = train, test
    _check_classes(request, y, y_test)
    if x.shape[1:] != x_test.shape[1:]:
        raise InputError(
            request.name,
            f"training images {x.shape[1:]}, test images {x_test.shape[1:]}",
            "one shape",
            "files of two data sets",
        )
    rng, *_ = request.rngs()
    order, cut = rng.permutation(len(x)), 3 * len(x) // 5
    picks = [order[:cut], order[cut:], rng.permutation(len(x_test))]
    picks = [pick[: request.limit] for pick in picks]

    def scaled(x: NDArray[Any], y: NDArray[np.int64], pick: NDArray[np.int64]) -> Split:
        return Split(x=x[pick].reshape(len(pick), -1).astype(request.dtype) / 255, y=y[pick])

    image = tuple(int(d) for d in x.shape[1:])
    assert len(image) == 3
    return assemble(
        request,
        scaled(x, y, picks[0]),
        scaled(x, y, picks[1]),
        scaled(x_test, y_test, picks[2]),
        classes=int(max(y.max(initial=0), y_test.max(initial=0))) + 1,
        move=lambda rng, later: shift_features(rng, later, request.shift, image=image),
        image=image,
    )


def _check_classes(request: Request, *labels: NDArray[np.int64]) -> None:
    """Raise if all samples are of one class: nothing can be learned from them."""
    if len(np.unique(np.concatenate(labels))) < 2:
        raise InputError(
            request.name,
            f"{sum(map(len, labels))} samples of one class",
            "two classes or more",
            "a cut file, or another column than that of the labels",
        )


def _glue(request: Request, path: Path, tokenizer: str | None, length: int) -> Dataset:
    rng, *_ = request.rngs()
    if path.is_dir():
        both = [glue.glue_rows(path / name) for name in ("train.tsv", "dev.tsv")]
        count = len(both[0][1])
        order, cut = rng.permutation(count), 3 * count // 5
        picks = [order[:cut], order[cut:], count + rng.permutation(len(both[1][1]))]
    else:
        both = [glue.glue_rows(path)]
        count = len(both[0][1])
        picks = np.split(rng.permutation(count), [count // 2, count // 2 + count // 3])
    samples = [sample for some, _ in both for sample in some]
    y = glue.number_labels([name for _, some in both for name in some])
    _check_classes(request, y)
    if len({len(sample) for sample in samples}) > 1:
        raise InputError(
            request.name, "one text and two texts per sample", "one task", "mixed files"
        )
    parts = [pick[: request.limit] for pick in picks]
    chosen = np.concatenate(parts)
    check_memory("length", length, len(chosen) * length)
    some = [samples[j] for j in chosen]
    ends = np.cumsum([len(part) for part in parts])
    if tokenizer is None:
        split = [[texts.pieces(text) for text in sample] for sample in some]
        base_words = [text for sample in split[: ends[0]] for text in sample]
        first = texts.SEP + 1
        vocabulary = texts.vocabulary_of(base_words, first, WORDS)
        x, pad = texts.encode_samples(split, vocabulary, length), texts.PAD
        rows = first + len(vocabulary)
        ordinary = np.arange(first, first + len(vocabulary))
        fixed: tuple[int, ...] = (texts.CLS, texts.PAD, texts.SEP)
    else:
        rows, pad, fixed = glue.tokenizer_ids(tokenizer)
        x = glue.tokenize(some, tokenizer, length)
        x = x[:, : 1 + int(np.flatnonzero((x != pad).any(axis=0)).max(initial=0))]
        ordinary = np.setdiff1d(np.arange(rows), fixed)
    if not ordinary.size:
        raise InputError(request.name, "no word in the base part", "words", "rows of empty texts")
    splits = [
        Split(x=part, y=y[pick]) for part, pick in zip(np.split(x, ends[:-1]), parts, strict=True)
    ]
    return assemble(
        request,
        *splits,
        classes=int(y.max()) + 1,
        move=texts.mover(request.shift, ordinary, fixed),
        vocabulary=rows,
        pad=pad,
    )
