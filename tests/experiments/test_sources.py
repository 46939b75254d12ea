"""Files of the user's as data sets: small ones in the real formats, loaded and trained on."""

import gzip
import json
import struct
import sys

import numpy as np
import pytest

from loko_ref.cli import main
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.data import registry
from loko_ref.experiments.data.texts import CLS, PAD, SEP, UNKNOWN
from loko_ref.experiments.stream import begin, evaluate, prepare

COUNTS = {"train": 60, "t10k": 21}


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["loko-ref", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return stopped.value.code or 0, out, err

    return call


def pictures(rng, shape, y):
    """Bytes in which class j is a bright column j, in every channel."""
    x = rng.integers(0, 60, (len(y), *shape), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[..., 2 * int(label)] = 250
    return x


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path, rng):
    """Images gzipped as they are published, labels unpacked, one name with a dot."""
    raw = {}
    for part, count in COUNTS.items():
        y = np.arange(count, dtype=np.uint8) % 10
        x = pictures(rng, (28, 28), y)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
        sign = "." if part == "t10k" else "-"
        (tmp_path / f"{part}-labels{sign}idx1-ubyte").write_bytes(idx(y))
        raw[part] = x, y
    return tmp_path, raw


def cifar_rows(rng, classes, count):
    y = np.arange(count, dtype=np.uint8) % min(classes, 12)
    x = pictures(rng, (3, 32, 32), y).reshape(count, -1)
    coarse = [] if classes == 10 else [(y // 5)[:, None]]
    return np.concatenate([*coarse, y[:, None], x], axis=1).astype(np.uint8)


@pytest.fixture
def cifar10(tmp_path, rng):
    for j in (1, 2):
        rows = cifar_rows(rng, 10, 30)
        (tmp_path / f"data_batch_{j}.bin").write_bytes(rows.tobytes())
    (tmp_path / "test_batch.bin").write_bytes(cifar_rows(rng, 10, 20).tobytes())
    return tmp_path


GOOD = ["a fine film", "bright, warm and funny", "the best of 1999", "a joy!", "fun for all"]
BAD = ["a dull film", "long, grey and empty", "the worst of 1999", "no joy.", "a bore for all"]


def sst2(path, copies=6):
    rows = [f"{text}\t{label}" for label, some in ((1, GOOD), (0, BAD)) for text in some] * copies
    path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")


def cola(path):
    rows = [f"gj04\t{j % 2}\t{'' if j % 2 else '*'}\t{text}" for j, text in enumerate(GOOD + BAD)]
    path.write_text("\n".join(rows * 3) + "\n")


def qnli(path):
    pairs = zip(GOOD, BAD, ("entailment", "not_entailment") * 3, strict=False)
    rows = [f"{j}\twhat is {a}?\t{b}\t{label}" for j, (a, b, label) in enumerate(pairs)]
    path.write_text("\n".join(["index\tquestion\tsentence\tlabel", *rows * 5]))


def mrpc(path):
    rows = [
        f"{j % 2}\t{j}\t{j + 9}\t{a}\t{b}" for j, (a, b) in enumerate(zip(GOOD, BAD, strict=True))
    ]
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    path.write_text("\r\n".join([head, *rows * 5]) + "\r\n", encoding="utf-8")


TASKS = {"SST-2": sst2, "CoLA": cola, "QNLI": qnli, "MRPC": mrpc}


def test_mnist_keeps_every_image_and_its_label(mnist):
    folder, raw = mnist
    got = registry.load(f"mnist:{folder}", seed=3)
    assert [len(part) for part in (got.base, got.stream, got.test)] == [36, 24, 21]
    assert got.image == (1, 28, 28)
    assert got.classes == 10
    x = np.concatenate([got.base.x, got.stream.x])
    y = np.concatenate([got.base.y, got.stream.y])
    for parts, (images, labels) in (
        ((x, y), raw["train"]),
        ((got.test.x, got.test.y), raw["t10k"]),
    ):
        found = {
            (np.rint(a * 255).astype(np.uint8).tobytes(), int(b))
            for a, b in zip(*parts, strict=True)
        }
        assert found == {(a.tobytes(), int(b)) for a, b in zip(images, labels, strict=True)}
    assert got.digest() == registry.load(f"mnist:{folder}", seed=3).digest()
    assert got.digest() != registry.load(f"mnist:{folder}", seed=4).digest()


def test_a_limit_takes_a_part_of_each_part(mnist):
    folder, _ = mnist
    whole, few = (registry.load(f"mnist:{folder}", limit=k, dtype="float32") for k in (None, 7))
    for part in ("base", "stream", "test"):
        a, b = getattr(few, part), getattr(whole, part)
        assert len(a) == 7
        assert a.x.dtype == np.float32
        assert (a.x == b.x[:7]).all()
        assert (a.y == b.y[:7]).all()


def test_shifts_of_images(mnist):
    folder, _ = mnist
    plain = registry.load(f"mnist:{folder}").test.x.reshape(-1, 28, 28)
    turned = registry.load(f"mnist:{folder}", shift="rotate90")
    assert (turned.test.x.reshape(-1, 28, 28) == np.rot90(plain, axes=(1, 2))).all()
    inverted = registry.load(f"mnist:{folder}", shift="invert")
    assert (inverted.test.x.reshape(-1, 28, 28) == 1 - plain).all()
    assert (turned.base.x == inverted.base.x).all()


def test_cifar(cifar10, tmp_path, rng):
    got = registry.load(f"cifar10:{cifar10}")
    assert [len(part) for part in (got.base, got.stream, got.test)] == [36, 24, 20]
    assert got.image == (3, 32, 32)
    first = got.base.x[0].reshape(3, 32, 32)
    assert (np.rint(first[:, :, 2 * got.base.y[0]] * 255) == 250).all()
    for part in ("train", "test"):
        (tmp_path / f"{part}.bin").write_bytes(cifar_rows(rng, 100, 40).tobytes())
    assert registry.load(f"cifar100:{tmp_path}").classes == 12  # fine labels, not coarse


@pytest.mark.parametrize("task", TASKS)
def test_glue(tmp_path, task):
    TASKS[task](tmp_path / "train.tsv")
    got = registry.load(f"glue:{tmp_path / 'train.tsv'}", seed=1)
    total = sum(map(len, (got.base, got.stream, got.test)))
    assert [len(got.base), len(got.stream)] == [total // 2, total // 3]
    x = np.concatenate([got.base.x, got.stream.x, got.test.x])
    assert (x[:, 0] == CLS).all()
    assert (np.sort((x == SEP).sum(axis=1)) == (1 if task in ("QNLI", "MRPC") else 0)).all()
    assert (x[:, -1] != PAD).any()  # no column of padding alone
    assert x.max() < got.vocabulary
    assert got.pad == PAD
    assert set(got.test.y) <= {0, 1}
    assert got.classes == 2


def test_a_folder_of_glue_keeps_train_and_dev_apart(tmp_path):
    sst2(tmp_path / "train.tsv")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nan unseen word\t1\na dull film\t0\n")
    got = registry.load(f"glue:{tmp_path}", seed=2)
    assert [len(part) for part in (got.base, got.stream, got.test)] == [36, 24, 2]
    assert (got.test.x == UNKNOWN).sum() == 3
    assert sorted(got.test.y) == [0, 1]


def test_labels_in_words_are_numbered_once_for_both_files(tmp_path):
    head = "index\tsentence1\tsentence2\tlabel\n"
    (tmp_path / "train.tsv").write_text(head + "0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n" * 4)
    (tmp_path / "dev.tsv").write_text(head + "0\ta\tb\tnot_entailment\n")
    assert registry.load(f"glue:{tmp_path}").test.y.tolist() == [1]


def test_a_length_without_room_for_a_word_is_refused(tmp_path):
    roberta_tokenizer(tmp_path / "tokenizer.json")
    mrpc(tmp_path / "train.tsv")
    name, tokenizer = f"glue:{tmp_path / 'train.tsv'}", tmp_path / "tokenizer.json"
    for length, given in ((2, None), (4, tokenizer)):  # [CLS] and a border; <s>, three </s>
        with pytest.raises(InputError, match=f"more than {length}"):
            registry.load(name, length=length, tokenizer=given)
        assert registry.load(name, length=length + 1, tokenizer=given).base.x.shape[1] == length + 1
    config = RunConfig(optimizer="loko", data=name, tokenizer=tokenizer)
    assert RunConfig(**json.loads(json.dumps(config.as_dict()))) == config


def test_long_texts_are_cut_and_shifts_leave_borders(tmp_path):
    mrpc(tmp_path / "train.tsv")
    name = f"glue:{tmp_path / 'train.tsv'}"
    assert registry.load(name, length=8).base.x.shape[1] == 8
    plain = registry.load(name)
    for shift in ("noise", "permute", "invert"):
        moved = registry.load(name, shift=shift)
        assert (moved.base.x == plain.base.x).all()
        fixed = np.isin(plain.test.x, (CLS, PAD, SEP))
        assert (moved.test.x[fixed] == plain.test.x[fixed]).all()
        assert (moved.test.x != plain.test.x).any()
        assert not np.isin(moved.test.x[~fixed], (CLS, PAD, SEP)).any()
    row, back = plain.test.x[0], moved.test.x[0]
    those = ~np.isin(row, (CLS, PAD, SEP))
    assert (back[those] == row[those][::-1]).all()


def roberta_tokenizer(path):
    """Byte-level BPE with RoBERTa's special tokens and template, trained on a few sentences."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(GOOD + BAD, trainer)
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.save(str(path))
    return made


def test_a_roberta_tokenizer(tmp_path):
    made = roberta_tokenizer(tmp_path / "tokenizer.json")
    mrpc(tmp_path / "train.tsv")
    got = registry.load(
        f"glue:{tmp_path / 'train.tsv'}",
        tokenizer=str(tmp_path / "tokenizer.json"),
        shift="permute",
    )
    assert (got.vocabulary, got.pad) == (made.get_vocab_size(), 1)
    known = {
        tuple(made.encode(a, b).ids): label
        for label, a, b in zip((0, 1, 0, 1, 0), GOOD, BAD, strict=True)
    }
    for row, label in zip(got.base.x, got.base.y, strict=True):
        ids = tuple(int(k) for k in row[row != 1])
        assert ids[0] == 0  # <s> a </s></s> b </s>
        assert ids.count(2) == 3
        assert known[ids] == label
    fixed = np.isin(got.test.x, range(5))
    assert {0, 2} <= set(got.test.x[fixed])
    assert not {tuple(int(k) for k in row[row != 1]) for row in got.test.x} & known.keys()


@pytest.mark.parametrize(("network", "limit"), [("mlp", 20), ("vit", 6)])
def test_train_on_mnist_by_every_learner(cli, mnist, tmp_path, network, limit):
    folder, _ = mnist
    words = ("train", "--data", f"mnist:{folder}", "--network", network, "--seed", 0, "--batch", 2)
    words = (*words, "--limit", limit, "--json", tmp_path / "r.json")
    learners = ("loko", "sgd", "adagrad", "adamw")
    variants = (
        "glm",
        "softmax,diagonal=variational",
        "logits,noise=ema_residual_hph",
        "glm,lam=.9",
    )
    code, _, err = cli(
        *words,
        *(word for name in learners for word in ("--optimizer", name)),
        *(word for name in variants for word in ("--variant", name)),
    )
    assert (code, err) == (0, "")
    runs = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [run["optimizer"] for run in runs] == ["loko"] * 4 + ["sgd", "adagrad", "adamw"]
    for run in runs:
        assert run["steps"] == limit // 2
        assert run["config"]["network"] == network
        assert run["config"]["shift"] == "rotate90"
        assert 0 <= run["test_accuracy"] <= 1
    code, _, err = cli(*words, "--optimizer", "loko,glm", "--route", "fast")
    assert (code, err) == (0, "")
    (fast,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert fast["config"]["route"] == "fast"
    for name in ("online_accuracy", "test_accuracy", "steps"):
        assert fast[name] == runs[0][name]


def test_train_on_cifar_stops_and_resumes(cli, cifar10, tmp_path):
    words = ("train", "--data", f"cifar10:{cifar10}", "--seed", 1, "--limit", 16, "--batch", 4)
    words = (*words, "--optimizer", "loko")
    kept = tmp_path / "c.npz"
    cli(*words, "--json", tmp_path / "whole.json")
    code, _, err = cli(*words, "--checkpoint", kept, "--stop-after", 3)
    assert code == 0
    assert "--resume" in err
    code, _, err = cli("train", "--resume", kept, "--json", tmp_path / "part.json")
    assert (code, err) == (0, "")
    whole, part = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "part"))
    for run in (*whole["runs"], *part["runs"]):
        del run["seconds"]
    assert whole == part
    (cifar10 / "test_batch.bin").write_bytes(bytes(3073))  # another file than the checkpoint's
    code, _, err = cli("train", "--resume", kept)
    assert code == 2
    assert "other files" in err


def test_train_a_vision_transformer_on_cifar(cli, cifar10):
    words = ("train", "--data", f"cifar10:{cifar10}", "--network", "vit", "--seed", 1)
    code, out, err = cli(*words, "--limit", 4, "--batch", 2, "--optimizer", "adamw")
    assert (code, err) == (0, "")
    assert "adamw" in out


@pytest.mark.parametrize("task", TASKS)
def test_train_on_glue(cli, tmp_path, task):
    TASKS[task](tmp_path / "train.tsv")
    code, _, err = cli(
        *("train", "--data", f"glue:{tmp_path / 'train.tsv'}", "--seed", 0, "--batch", 2),
        *("--optimizer", "loko", "--optimizer", "adamw", "--json", tmp_path / "r.json"),
    )
    assert (code, err) == (0, "")
    runs = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [run["config"]["network"] for run in runs] == ["encoder"] * 2
    assert all(run["config"]["shift"] == "noise" for run in runs)


def test_the_base_learns_what_the_files_hold(mnist):
    """A bright column a class: the images come with their own labels, in train and in test."""
    folder, _ = mnist
    task = prepare(RunConfig(optimizer="loko", data=f"mnist:{folder}", shift="none"))
    assert evaluate(task, begin(task).state.theta) > 0.9


def test_train_on_raw_text_by_a_tokenizer(cli, tmp_path):
    roberta_tokenizer(tmp_path / "tokenizer.json")
    sst2(tmp_path / "train.tsv")
    words = ("train", "--data", f"glue:{tmp_path / 'train.tsv'}", "--seed", 0, "--batch", 5)
    words = (*words, "--tokenizer", tmp_path / "tokenizer.json", "--length", 12, "--limit", 20)
    code, _, err = cli(
        *words, "--optimizer", "loko", "--route", "fast", "--json", tmp_path / "r.json"
    )
    assert (code, err) == (0, "")
    (run,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert run["config"]["length"] == 12


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--data", "mnist"], "'mnist:DIR'"),
        (["--data", "glue:"], "'glue:DIR'"),
        (["--data", "cifar:x"], "closest known name is 'cifar10'"),
        (["--data", "mnist:{d}/none"], "no such directory"),
        (["--data", "mnist:{d}/empty"], "train-images-idx3-ubyte.gz"),
        (["--data", "cifar10:{d}"], "pickled (python) version"),
        (["--data", "cifar100:{d}"], "train.bin: got no such file"),
        (["--data", "glue:{d}/none.tsv"], "No such file"),
        (["--data", "glue:{d}"], "train.tsv: got No such file"),
        (["--data", "mnist:{d}/cut"], "by its header"),
        (["--data", "mnist:{d}/foreign"], "an idx file"),
        (["--data", "mnist:{d}/good", "--network", "encoder"], "network"),
        (["--data", "glue:{d}/a.tsv", "--network", "vit"], "network"),
        (["--data", "glue:{d}/a.tsv", "--shift", "rotate90"], "shift"),
        (["--data", "glue:{d}/a.tsv", "--tokenizer", "{d}/none.json"], "tokenizer"),
        (["--data", "glue:{d}/a.tsv", "--length", "0"], "length"),
        (["--data", "iris", "--length", "9"], "raw text"),
        (["--data", "mnist:{d}/good", "--tokenizer", "t.json"], "raw text"),
        (["--data", "mnist:{d}/good", "--limit", "0"], "limit"),
        (["--data", "mnist:{d}/good", "--optimizer", "adamw", "--route", "fast"], "LoKO was left"),
        (["--data", "iris", "--variant", "covariance=dense", "--route", "fast"], "'readable'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_exit_code_2(cli, tmp_path, mnist, words, needle):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    folder, _ = mnist
    for name in ("empty", "good", "cut", "foreign"):
        (tmp_path / name).mkdir()
        for file in () if name == "empty" else sorted(folder.glob("*ubyte*")):
            data = file.read_bytes()
            if file.name.startswith("t10k-labels"):
                data = {"cut": data[:-1], "foreign": b"PK" + data[2:]}.get(name, data)
            (tmp_path / name / file.name).write_bytes(data)
    sst2(tmp_path / "a.tsv")
    code, out, err = cli("train", "--seed", 0, *(w.replace("{d}", str(tmp_path)) for w in words))
    assert code == 2
    assert needle in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1


def test_two_sets_are_not_mixed(mnist, rng):
    folder, _ = mnist
    small = idx(pictures(rng, (20, 20), np.zeros(21, np.uint8)))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(small)
    with pytest.raises(InputError, match="two data sets"):
        registry.load(f"mnist:{folder}")


@pytest.mark.parametrize("labels", ["00000000", "11111111", "aaaaaaaa"])
def test_a_set_of_one_class_is_refused(tmp_path, labels):
    path = tmp_path / "train.tsv"
    rows = "".join(f"a b\t{label}\n" for label in labels)
    path.write_text("sentence\tlabel\n" + rows)
    with pytest.raises(InputError, match="8 samples of one class"):
        registry.load(f"glue:{path}")


def test_a_set_of_too_few_samples_is_refused(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\na\t0\nb\t1\n")
    with pytest.raises(InputError, match="no sample for the stream part"):
        registry.load(f"glue:{path}")
