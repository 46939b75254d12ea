"""Loaders of files that the user has: small files of each format, and damaged ones."""

import gzip
import struct

import numpy as np
import pytest

from loko_ref.errors import InputError, MissingExtraError
from loko_ref.files import read_cifar, read_glue, read_idx, read_mnist, tokenize


def idx(array, code):
    head = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.tobytes()


@pytest.fixture
def mnist(tmp_path, rng):
    x = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    y = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    (tmp_path / "x").write_bytes(gzip.compress(idx(x, 8)))
    (tmp_path / "y").write_bytes(idx(y, 8))
    return tmp_path, x, y


def test_mnist(mnist):
    folder, x, y = mnist
    images, labels = read_mnist(folder / "x", folder / "y", dtype="float32")
    assert images.shape == (5, 1, 28, 28)
    assert images.dtype == np.float32
    assert (np.rint(images[:, 0] * 255) == x).all()
    assert labels.tolist() == y.tolist()
    with pytest.raises(InputError, match="exchanged"):
        read_mnist(folder / "y", folder / "x")


@pytest.mark.parametrize("code", [0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_every_idx_dtype(tmp_path, code):
    kind = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}[code]
    array = np.arange(6).reshape(2, 3).astype(kind)
    (tmp_path / "a").write_bytes(idx(array, code))
    assert (read_idx(tmp_path / "a") == array).all()


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: b"PK" + d[2:], lambda d: d[:6], lambda d: d + b"0"]
)
def test_damaged_idx(mnist, damage):
    folder, _, _ = mnist
    (folder / "y").write_bytes(damage((folder / "y").read_bytes()))
    with pytest.raises(InputError, match=str(folder / "y")):
        read_idx(folder / "y")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="FileNotFoundError"):
        read_idx(tmp_path / "none")


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, rng, classes):
    before = 1 if classes == 10 else 2
    rows = rng.integers(0, 256, (4, before + 3072), dtype=np.uint8)
    rows[:, before - 1] = [7, 0, classes - 1, 3]
    (tmp_path / "a").write_bytes(rows[:3].tobytes())
    (tmp_path / "b").write_bytes(rows[3:].tobytes())
    images, labels = read_cifar([tmp_path / "a", tmp_path / "b"], classes)
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [7, 0, classes - 1, 3]
    assert (np.rint(images[2].reshape(-1) * 255) == rows[2, before:]).all()
    with pytest.raises(InputError, match="multiple"):
        read_cifar([tmp_path / "a"], 110 - classes)


def test_glue(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('sentence\tlabel\nit is "fine\t1\nno\t0\n', encoding="utf-8")
    texts, labels = read_glue(path)
    assert texts == [('it is "fine',), ("no",)]
    assert labels.tolist() == [1, 0]
    path.write_text(
        "index\tsentence1\tsentence2\tlabel\n0\ta b\tc\tnot_entailment\n1\td\te\tentailment\n"
    )
    texts, labels = read_glue(path, ("sentence1", "sentence2"))
    assert texts == [("a b", "c"), ("d", "e")]
    assert labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="a column 'sentence'"):
        read_glue(path)
    path.write_text("sentence\tlabel\nx\n")
    with pytest.raises(InputError, match="line 2"):
        read_glue(path)


def test_tokenize(tmp_path):
    with pytest.raises((InputError, MissingExtraError)):
        tokenize([("a",)], tmp_path / "none.json", 4)
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = {"<pad>": 1, "<unk>": 0, "a": 2, "b": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    ids = tokenize([("a b c",), ("b", "a")], tmp_path / "tokenizer.json", 4)
    assert ids.tolist() == [[2, 3, 0, 1], [3, 2, 1, 1]]
