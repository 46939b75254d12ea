"""Loaders of files that the user has: small files of each format, and damaged ones."""

import gzip
import struct

import numpy as np
import pytest

from loko_ref.errors import InputError, MissingExtraError
from loko_ref.experiments.data.glue import glue_rows, number_labels, tokenize, tokenizer_ids
from loko_ref.experiments.data.images import read_cifar, read_idx, read_mnist


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
    images, labels = read_mnist(folder / "x", folder / "y")
    assert images.shape == (5, 1, 28, 28)
    assert images.dtype == np.uint8
    assert (images[:, 0] == x).all()
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


def test_a_truncated_gzip_is_named(mnist):
    folder, _, _ = mnist
    whole = (folder / "x").read_bytes()
    for cut in (whole[:-20], whole[:400] + b"\0" * 40 + whole[440:], whole[:10] + b"\xff" * 90):
        (folder / "x").write_bytes(cut)
        with pytest.raises(InputError, match=r"/x: got .*truncated"):
            read_idx(folder / "x")


def test_images_of_other_numbers_are_refused(mnist):
    folder, x, _ = mnist
    (folder / "x").write_bytes(idx(x.astype(">f4"), 0x0D))
    with pytest.raises(InputError, match="unsigned bytes"):
        read_mnist(folder / "x", folder / "y")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"No such file.*a wrong path"):
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
    assert (images[2].reshape(-1) == rows[2, before:]).all()
    with pytest.raises(InputError, match="multiple"):
        read_cifar([tmp_path / "a"], 110 - classes)


def test_cifar_labels_out_of_range_name_their_file(tmp_path):
    for name, label in (("one.bin", 9), ("two.bin", 10)):
        (tmp_path / name).write_bytes(bytes([label]) + bytes(3072))
    with pytest.raises(InputError, match=r"two\.bin: got label 10; required at most 9"):
        read_cifar([tmp_path / "one.bin", tmp_path / "two.bin"], 10)


TASKS = {
    "SST-2": 'sentence\tlabel\nit is "fine\t1\nno\t0\n',
    "CoLA": 'gj04\t1\t\tit is "fine\ngj04\t0\t*\tno\n',
    "QNLI": "index\tquestion\tsentence\tlabel\n0\ta b?\tc\tnot_entailment\n1\td?\te\tentailment\n",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    "1\t7\t8\ta b?\tc\r\n0\t9\t1\td?\te\r\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\ta b?\tc\tnot_entailment\n1\td?\te\tentailment",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "3\t1\t2\ta b?\tc\t1\n4\t5\t6\td?\te\t0\n",
    "MNLI": "index\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t(\ta b?\tc\tneutral\tneutral\n1\t(\td?\te\tentailment\tentailment\n",
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_glue(tmp_path, task):
    path = tmp_path / "train.tsv"
    path.write_bytes(TASKS[task].encode())
    texts, labels = glue_rows(path)
    pairs = [("a b?", "c"), ("d?", "e")]
    assert texts == ([('it is "fine',), ("no",)] if task in ("SST-2", "CoLA") else pairs)
    assert number_labels(labels).tolist() == [1, 0]


def test_glue_with_odd_line_ends(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\nover\x85two\u2028lines\t1\nb\t0\n", encoding="utf-8")
    assert glue_rows(path) == ([("over\x85two\u2028lines",), ("b",)], ["1", "0"])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty file"),
        (b"sentence\tlabel\n", "header alone"),
        (b"sentence\tlabel\nx\n", "line 2.*damaged line"),
        (b"sentence\tlabel\nx\t1\ny", "line 3"),
        (b"index\tsentence\n0\tx\n", "test part"),
        (b"index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.2\n", "STS-B"),
        (b"sentence\tlabel\nx\t-1\n", "test part"),
        (b"sentence\tlabel\nx\xff\t1\n", "UTF-8"),
    ],
)
def test_glue_refused(tmp_path, content, word):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        number_labels(glue_rows(path)[1])


def test_labels():
    assert number_labels(["10", "9"]).tolist() == [10, 9]
    assert number_labels(["b", "a", "10"]).tolist() == [2, 1, 0]


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
    assert tokenizer_ids(tmp_path / "tokenizer.json") == (4, 1, (1,))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="damaged or foreign"):
        tokenize([("a",)], tmp_path / "tokenizer.json", 4)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="<pad>"):
        tokenizer_ids(tmp_path / "tokenizer.json")
