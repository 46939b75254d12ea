"""Whatever a file holds, its reader refuses it by our error, or takes no more than is there.

`inputs` damages small valid files of every format: bytes, JSON, heads, archives; puts what is no
file in their place; and makes bombs. What a reader accepts is harmless where a few plain lines,
here, find the same in the file; a file that carries a digest is never accepted once it is changed.
"""

import contextlib
import functools
import gzip
import io
import json
import lzma
import random
import re
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import hostile_inputs as damage
import numpy as np
import pytest
import sampling

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose import baseline
from loko_ref.conformance.implementations import python, recording, recording_runs
from loko_ref.conformance.recorded import check as check_recording
from loko_ref.conformance.recorded_runs import check as check_run
from loko_ref.conformance.reports import expected_failures
from loko_ref.conformance.vectors import answers as offline
from loko_ref.conformance.vectors import vectors
from loko_ref.errors import InputError, printable
from loko_ref.experiments.data import glue, images, registry
from loko_ref.files import documents, storage
from loko_ref.files.strict_json import DEPTH, parse_json
from loko_ref.interop import read_tensors
from loko_ref.interop.fields import read_json
from loko_ref.interop.tensors import find_tensors

pytestmark = hostile.needs_linux

SCHEMA = "loko-ref/test/1"


COUNT = sampling.count(60, 800)


def plain(value):
    """Return a value that can be compared: arrays by dtype, shape and bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.newbyteorder("=").str, value.shape, np.ascontiguousarray(value).tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


# A valid file of each format, its reader, and what plain lines find in a file of that format.


def arrays():
    return {"x": np.arange(6.0).reshape(2, 3), "flags": np.array([True, False]), "k": np.arange(3)}


def trace(options='{"noise": "fixed", "lam": 0.9}'):
    found = {"0/theta": np.zeros(2), "0/p": np.ones(2), "0/R": np.eye(1), "1/theta": np.ones(2)}
    return found | {"options": np.array(options)}


def npz(content, compression=zipfile.ZIP_STORED):
    """Pack entries (name -> bytes or array) as an archive, as one likes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, value in content.items() if isinstance(content, dict) else content:
            data = value
            if not isinstance(value, bytes):
                stream = io.BytesIO()
                np.lib.format.write_array(stream, np.asarray(value), allow_pickle=True)
                data = stream.getvalue()
            archive.writestr(name if "." in name else f"{name}.npy", data)
    return buffer.getvalue()


def npy(shape, dtype="<f8", data=b"", order="False", extra=""):
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, {extra}}}"
    text = text.ljust(118 - len(text) % 64 + 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def tensors(head, data=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


HEAD = {
    "__metadata__": {"options": '{"noise": "fixed"}'},
    "0/p": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]},
    "0/theta": {"dtype": "F64", "shape": [2], "data_offsets": [16, 32]},
    "1/theta": {"dtype": "F64", "shape": [2], "data_offsets": [32, 48]},
}
BODY = np.array([1.0, 1, 0, 0, 1, 1]).tobytes()


def idx(shape=(4, 2, 2), code=8, data=None):
    body = bytes(range(int(np.prod(shape)))) if data is None else data
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def plain_tensors(data):
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    head.pop("__metadata__", None)
    body, found = data[8 + length :], {}
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
             "U64": "<u8", "U8": "u1", "I8": "i1", "BOOL": "?"}  # fmt: skip
    for name, entry in head.items():
        start, stop = entry["data_offsets"]
        found[name] = np.frombuffer(body[start:stop], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


def plain_npz(data):
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def steps(found):
    """Find the quantities of a recording, as one array each, float64."""
    return {
        key: np.asarray(array).astype("f8")
        for key, array in found.items()
        if key.partition("/")[2] in recording.SHAPES
    }


def read_recording(path):
    got = recording.read(path)
    return {f"{k}/{q}": a.astype("f8") for k, step in got.steps.items() for q, a in step.items()}


OF_LTE = {f"/{name}" for name in ("W", "theta", "x", "y")}
OF_ADAMW = {f"/{name}" for name in ("theta", "exp_avg", "exp_avg_sq", "gradient")}


def adamw():
    options = {"operation": "optimizer.adamw", "lr": 0.01}
    found = {"0/theta": np.zeros(2), "0/gradient": np.ones(2), "1/exp_avg": np.ones(2) / 10}
    return found | {"1/theta": np.zeros(2) - 0.01, "options": np.array(json.dumps(options))}


def lte():
    linear = {"kind": "linear", "name": "0", "in": 2, "out": 1, "bias": False}
    spec = [linear | {"lora": {"r": 1, "alpha": 1.0}}]
    options = {"operation": "lte.run", "spec": spec, "heads": 2, "loss": "mse", "lr": 0.01}
    found = {"0/W": np.zeros(2), "0/theta": np.ones((2, 3)), "0/x": np.ones((2, 2))}
    return found | {"0/y": np.ones((2, 1)), "options": np.array(json.dumps(options))}


def read_run(path):
    got = recording_runs.read(path)
    if isinstance(got, recording.Recording):  # without an operation: of LoKO, a format of its own
        check_recording(got)
        assert any(note.startswith("ignored: ") for note in got.notes)  # it says what it left
        raise InputError("options", "no operation", "one of a run", "the format above")
    check_run(got)
    return {f"{k}/{q}": a.astype("f8") for k, step in got.steps.items() for q, a in step.items()}


def plain_idx(data):
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    kind = {8: "u1", 9: "i1", 0xB: ">i2", 0xC: ">i4", 0xD: ">f4", 0xE: ">f8"}[data[2]]
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    return np.frombuffer(data[4 + 4 * data[3] :], kind).reshape(shape)


def plain_cifar(data):
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    rows = np.frombuffer(data, "u1").reshape(-1, 3073)
    assert rows[:, 0].max() < 10
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype("i8")


def plain_glue(data):
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    lines = data.decode("utf-8-sig").split("\n")
    if lines[-1] in ("", "\r"):
        lines.pop()
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    head = rows[0]
    column, label = head.index("sentence"), head.index("label")
    assert {len(row) for row in rows} == {len(head)}
    names = [row[label] for row in rows[1:]]
    if all(name.removeprefix("-").isdecimal() for name in names):
        assert max(map(int, names)) < 1000
        numbers = np.array([int(name) for name in names])
    else:
        numbers = np.array([sorted(set(names)).index(name) for name in names])
    return [(row[column],) for row in rows[1:]], numbers


XFAIL = "# known\nlora.delta/tiny/float64: later\nlora.merge/tiny/float64: too\n"


def plain_xfail(data):
    lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
    return {key.strip(): printable(reason.strip()) for key, _, reason in pairs}


def strict_json(data):
    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(data, object_pairs_hook=once)


CONFIG = {"model_type": "vit", "hidden_size": 8, "eps": 1e-12, "labels": {"0": "a", "1": "b"}}
SHARDS = {"metadata": {"total": 8}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}


@functools.cache
def saved(suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        storage.save(path, arrays(), {"step": 3, "list": [1, None]}, schema=SCHEMA)
        return path.read_bytes()


@functools.cache
def vector_set():
    with tempfile.TemporaryDirectory() as folder:
        vectors.export(Path(folder) / "set", select("lora.delta/tiny/float64"))
        return {p.name: p.read_bytes() for p in sorted((Path(folder) / "set").iterdir())}


@dataclass(frozen=True)
class Format:
    """A reader, a valid file for it, and what a changed file may be accepted as.

    `digest`: the file carries one, or another file does for it: no change is accepted.
    """

    name: str
    valid: Any  # () -> bytes
    read: Any  # path -> value
    found: Any = None  # bytes -> the value, by other means
    digest: bool = False
    text: Any = None  # a JSON value: the file is its text, or `wrap` of it
    wrap: Any = None  # bytes of JSON -> file
    packed: bool = False  # whether gzip may be around it


def read_set(path):
    """Read a set of vectors, of which one file is this one."""
    folder = path.parent / "set"
    folder.mkdir()
    for name, content in vector_set().items():
        if name == "manifest.json":
            (folder / name).write_bytes(content)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.rename(folder / name)
    return vectors.read(folder)


TINY = "lora.delta/tiny/float64"
ANSWERS = {TINY: {"delta": [[1.0, 2.5], [3, 4e-5]]}}


def read_answers(path):
    found = offline.read_answers(path, select(TINY))
    return {f"{key}/{name}": a for key, out in found.items() for name, a in out.items()}


REPORT = {
    "schema": documents.SCHEMAS["verify"],
    "checks": [
        {"id": TINY, "status": "failed", "first_divergence": {"quantity": "delta"}, "mistakes": []},
        {"id": "lora.merge/tiny/float64", "status": "passed", "first_divergence": None},
    ],
}


def vector_file():
    return next(c for n, c in vector_set().items() if not n.startswith("manifest"))


def read_glue(path):
    texts, names = glue.glue_rows(path)
    return texts, glue.number_labels(names)


def mnist(path):
    """Read a whole data set, of which one file is this one."""
    folder = path.parent / "set"
    folder.mkdir()
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").symlink_to(path)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx((4,), data=bytes([0, 1, 0, 1])))
    found = registry.load(f"mnist:{folder}")
    return sum(len(part) for part in (found.base, found.stream, found.test))


FORMATS = [
    Format("a.npz", lambda: saved(".npz"), lambda p: storage.load(p, schema=SCHEMA), digest=True),
    Format(
        "a.safetensors",
        lambda: saved(".safetensors"),
        lambda p: storage.load(p, schema=SCHEMA),
        digest=True,
    ),
    Format("vector.safetensors", vector_file, read_set, digest=True),
    Format(
        "trace.npz",
        lambda: npz(trace()),
        read_recording,
        lambda data: steps(plain_npz(data)),
        text=json.loads(trace()["options"].item()),
        wrap=lambda text: npz(trace() | {"options": np.array(text)}),
    ),
    Format(
        "trace.safetensors",
        lambda: tensors(HEAD, BODY),
        read_recording,
        lambda data: steps(plain_tensors(data)),
        text=HEAD,
        wrap=lambda text: tensors(text, BODY),
    ),
    Format(
        "model.safetensors",
        lambda: tensors(HEAD, BODY),
        read_tensors,
        plain_tensors,
        text=HEAD,
        wrap=lambda text: tensors(text, BODY),
    ),
    Format("images", idx, images.read_idx, plain_idx, packed=True),
    Format("mnist", idx, mnist, lambda data: 2 * len(plain_idx(data)), packed=True),
    Format(
        "cifar",
        lambda: (b"\3" + bytes(3072)) * 2,
        lambda p: images.read_cifar([p], 10),
        plain_cifar,
        packed=True,
    ),
    Format(
        "train.tsv",
        lambda: b"sentence\tlabel\nit is fine\t1\nno\t0\n",
        read_glue,
        plain_glue,
        packed=True,
    ),
    Format(
        "adamw.npz",
        lambda: npz(adamw()),
        read_run,
        lambda data: {k: a.astype("f8") for k, a in plain_npz(data).items() if k[1:] in OF_ADAMW},
        text=json.loads(adamw()["options"].item()),
        wrap=lambda text: npz(adamw() | {"options": np.array(text)}),
    ),
    Format(
        "lte.npz",
        lambda: npz(lte()),
        read_run,
        lambda data: {k: a.astype("f8") for k, a in plain_npz(data).items() if k[1:] in OF_LTE},
        text=json.loads(lte()["options"].item()),
        wrap=lambda text: npz(lte() | {"options": np.array(text)}),
    ),
    Format(
        "answers.npz",
        lambda: npz({f"{TINY}/delta.npy": np.ones((2, 3))}),
        read_answers,
        lambda data: {key: np.asarray(a) for key, a in plain_npz(data).items()},
    ),
    Format(
        "answers.json",
        lambda: json.dumps(ANSWERS).encode(),
        read_answers,
        lambda data: {
            f"{key}/{name}": np.asarray(a, "f8")
            for key, out in strict_json(data).items()
            for name, a in out.items()
        },
        text=ANSWERS,
    ),
    Format(
        "baseline.json",
        lambda: json.dumps(REPORT).encode(),
        baseline.read,
        strict_json,
        text=REPORT,
    ),
    Format("xfail", XFAIL.encode, lambda p: expected_failures.read(p), plain_xfail),
    Format("config.json", lambda: json.dumps(CONFIG).encode(), read_json, strict_json, text=CONFIG),
    Format(
        "model.safetensors.index.json",
        lambda: json.dumps(SHARDS).encode(),
        lambda p: [f.name for f in find_tensors(p.parent, "model")],
        lambda data: sorted(set(strict_json(data)["weight_map"].values())),
        text=SHARDS,
    ),
]

# Bombs and lies, by the name of the format.


@functools.cache
def bomb(head=b""):
    """Gzip a head and 64 MB of zeros."""
    return gzip.compress(head + bytes(2**26), 6)


def encrypted():
    data = bytearray(npz({"0/theta": np.zeros(2)}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def overlapping():
    """Let the directory's two entries name one place."""
    data = bytearray(npz({"0/theta": np.zeros(2), "1/theta": np.zeros(2)}))
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def resized(data, size):
    """Let every entry announce another size."""
    data, at = bytearray(data), 0
    while (at := data.find(b"PK\1\2", at)) >= 0:
        data[at + 24 : at + 28] = struct.pack("<L", size)
        at += 4
    return bytes(data)


def many_entries():
    one = b"PK\1\2".ljust(46, b"\0")
    directory = one * (2**24 // len(one))
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, len(directory), 0, 0)


@functools.cache
def lies():
    """Format -> label -> content; each has to be refused."""
    theta = trace()
    structured = np.zeros(2, [("a", "f8"), ("b", "f8")])
    archives = {
        "bz2": npz(theta, zipfile.ZIP_BZIP2),
        "lzma": npz(theta, zipfile.ZIP_LZMA),
        "a deflated bomb": npz(
            {"0/theta": npy((10 * 2**20,), data=bytes(80 * 2**20))}, zipfile.ZIP_DEFLATED
        ),
        "shape 10^12": npz({"0/theta": npy((10**12,))}),
        "shape 10^12 deflated": npz({"0/theta": npy((10**12,))}, zipfile.ZIP_DEFLATED),
        "a shape beyond 64 bits": npz({"0/theta": npy((2**62, 2**62, 0))}),
        "a negative shape": npz({"0/theta": npy((-1,))}),
        "a shape of floats": npz({"0/theta": npy((2.0,), data=bytes(16))}),
        "a shape of truth": npz({"0/theta": npy((True,), data=bytes(8))}),
        "99 axes": npz({"0/theta": npy((1,) * 99, data=bytes(8))}),
        "a short entry": npz({"0/theta": npy((3,), data=bytes(16))}),
        "a long entry": npz({"0/theta": npy((1,), data=bytes(16))}),
        "a foreign key": npz({"0/theta": npy((2,), data=bytes(16), extra="'x': 1,")}),
        "a key twice": npz({"0/theta": npy((2,), data=bytes(16), extra="'shape': (1,),")}),
        "objects": npz({"0/theta": np.array([{}, []], dtype=object)}),
        "structured": npz({"0/theta": structured}),
        "a nested dtype": npz({"0/theta": npy((2,), dtype="(2,)f8", data=bytes(32))}),
        "code": npz({"0/theta": npy("__import__('os').getpid()", data=bytes(16))}),
        "deep": npz({"0/theta": npy("(" * 80 + ")" * 80)}),
        "complex": npz({"0/theta": np.zeros(2, complex)}),
        "float16": npz({"0/theta": np.zeros(2, "f2")}),
        "text": npz({"0/theta": np.array(["a", "b"])}),
        "NaN": npz({"0/theta": np.full(2, np.nan)}),
        "a name twice": npz([("0/theta.npy", np.zeros(2)), ("0/theta.npy", np.ones(2))]),
        "no .npy": npz([("0/theta.txt", b"hello")]),
        "a folder": npz([("0/theta.npy/", b"")]),
        "step 00": npz({"0/theta": np.zeros(2), "00/theta": np.ones(2)}),
        "a step of 5000 digits": npz({"7" * 5000 + "/theta": np.zeros(2)}),
        "encrypted": encrypted(),
        "overlapping": overlapping(),
        "a size of 0": resized(npz(theta), 0),
        "a size of 4 GB": resized(npz(theta), 2**32 - 2),
        "many entries": many_entries(),
        "no entry": npz({}),
        "options that are numbers": npz(theta | {"options": np.arange(3)}),
        "options beyond Unicode": npz(theta | {"options": npy((), "<U1", b"\xff\xff\xff\x7f")}),
    }
    for kind in ("nested lists", "nested objects", "a number of 5000 digits", "NaN", "a key twice"):
        text = damage.BROKEN[kind](random.Random(0), b"{}").decode()
        archives[f"options: {kind}"] = npz(theta | {"options": np.array(text)})
    head = HEAD["0/theta"]
    single = {
        "shape 10^12": {"a": head | {"shape": [10**12]}},
        "a shape of floats": {"a": head | {"shape": [2.0]}},
        "a negative size": {"a": head | {"shape": [-2, -1]}},
        "offsets backwards": {"a": head | {"data_offsets": [32, 16]}},
        "offsets beyond": {"a": head | {"data_offsets": [0, 2**62], "shape": [2**59]}},
        "99 axes": {"a": head | {"shape": [1] * 99}},
        "an unknown dtype": {"a": head | {"dtype": "F128"}},
        "a gap": {"a": head | {"data_offsets": [8, 24]}},
        "metadata of numbers": HEAD | {"__metadata__": {"a": 1}},
        "metadata a list": HEAD | {"__metadata__": []},
    }
    trees = {label: tensors(text, BODY) for label, text in single.items()}
    trees["a head of 2^63 bytes"] = struct.pack("<Q", 2**63) + b"{}"
    trees["a head of spaces"] = tensors(b" " * 1000)
    trees["booleans of 2"] = tensors(
        {"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2"
    )
    idxs = {
        "255 axes": bytes([0, 0, 8, 255]) + struct.pack(">255I", *(1,) * 255) + b"\0",
        "no axes": bytes([0, 0, 8, 0]) + b"\0",
        "an overflowing product": idx((2**31, 2**31, 4), data=bytes(64)),
        "a product of 2^64": idx((2**31, 2**31, 4), data=b""),
        "an empty set": idx((0, 28, 28), data=b""),
        "an empty axis": idx((4, 0, 2**32 - 1), data=b""),
        "a bomb": bomb(idx((4, 2, 2))),
        "a bomb that announces itself": bomb(idx((2**26, 1, 1), data=b"")),
        "gzip and more": gzip.compress(idx()) + b"garbage",
        "gzip without its end": gzip.compress(idx())[:-4],
        "gzip with another checksum": gzip.compress(idx())[:-8] + bytes(8),
        "lzma": lzma.compress(idx()),
    }
    rows = b"sentence\tlabel\n"
    return {
        "trace.npz": archives,
        "trace.safetensors": trees,
        "model.safetensors": trees,
        "images": idxs,
        "mnist": idxs | {
            "one sample": idx((1, 2, 2)),
            "one axis": idx((4,)),
            "floats": idx((4, 1, 1), 13, bytes(16)),
        },
        "cifar": {"a bomb": bomb(b"\3"), "labels of 10": (b"\x0a" + bytes(3072)) * 2},
        "train.tsv": {
            "a bomb": bomb(rows),
            "label 1e9": rows + b"a\t1000000000\nb\t0\n",
            "label 1e20": rows + b"a\t100000000000000000000\nb\t0\n",
            "a label of 5000 digits": rows + b"a\t" + b"7" * 5000 + b"\nb\t0\n",
            "label -1": rows + b"a\t-1\nb\t0\n",
            "label 1000": rows + b"a\t1000\nb\t0\n",
            "5000 labels": rows + b"".join(b"a\tword%d\n" % j for j in range(5000)),
            "an empty label": rows + b"a\t\nb\t0\n",
            "no label": b"sentence\tother\na\t0\n",
            "no UTF-8": rows + b"\xff\t0\n",
            "NUL": rows + b"a\0\t0\nb\t1\n",
            "a cell too many": rows + b"a\t0\t1\n",
            "a cell too few": rows + b"a\n",
            "a header alone": rows,
            "empty lines": rows + b"\n" * 100_000,
            "UTF-16": rows.decode().encode("utf-16"),
        },
        "xfail": {
            "no reason": b"lora.delta/tiny/float64\n",
            "twice": XFAIL.encode() * 2,
            "16 MB": bytes(2**24),
        },
        "model.safetensors.index.json": {
            "a path": json.dumps({"weight_map": {"a": "../x"}}).encode(),
            "no name": json.dumps({"weight_map": {"a": ""}}).encode(),
            "the folder above": json.dumps({"weight_map": {"a": ".."}}).encode(),
            "an invisible name": json.dumps({"weight_map": {"a": "a\0"}}).encode(),
            "a list": json.dumps({"weight_map": {"a": ["x"]}}).encode(),
            "no map": json.dumps({"weight_map": 3}).encode(),
            "many lists": b'{"weight_map": [' + b"[]," * 2**20 + b"[]]}",
        },
        "config.json": {"many lists": b'{"a": [' + b"[]," * 2**20 + b"[]]}", "16 MB": b" " * 2**24},
    }  # fmt: skip


@dataclass(frozen=True)
class Input:
    """One hostile input: a format, what is wrong, and how it comes to be there."""

    form: Format
    label: str
    content: bytes | None = None
    special: str | None = None
    refused: bool = False  # it has to be


def inputs(seed, count):
    """Make hostile inputs: every special file and lie in turn, and as many random damages.

    Parameters
    ----------
    seed : object
        Of all that is drawn.
    count : int
        How many; from about 400 on every special file and every lie is among them.
    """
    rng = random.Random(f"{seed}/readers")
    specials = ((form, kind) for form in FORMATS for kind in damage.SPECIALS)
    fixed = [
        Input(form, "empty file", b"")  # some formats are whole without a byte
        if kind == "empty"
        else Input(form, f"{kind} file", special=kind, refused=True)
        for form, kind in specials
    ]
    by_name = {form.name: form for form in FORMATS}
    for name, some in lies().items():
        fixed += [Input(by_name[name], f"lie: {k}", c, refused=True) for k, c in some.items()]
    rng.shuffle(fixed)
    fixed.sort(key=lambda one: not re.search(r"bomb|many|10\^12|16 MB", one.label))  # always there
    fixed = fixed[: count // 2]
    drawn = []
    while len(fixed) + len(drawn) < count:
        form = FORMATS[len(drawn) % len(FORMATS)]
        whole = form.valid()
        kind = rng.choice(("bytes", "bytes", "json", "broken", "gzip"))
        if kind == "gzip" and form.packed:
            label, content = damage.damage_bytes(rng, gzip.compress(whole, mtime=0))
            drawn.append(Input(form, f"gzip, {label}", content))
        elif kind in ("json", "broken") and form.text is not None:
            text = json.dumps(form.text).encode()
            if kind == "json":
                label, value = damage.damage_json(rng, form.text)
                text = json.dumps(value).encode()
            else:
                label, text = damage.broken_json(rng, text)
            wrap = form.wrap or (lambda text: text)
            try:
                drawn.append(Input(form, f"{kind}: {label}", wrap(text)))
            except (UnicodeError, ValueError):  # NumPy's text cannot hold it
                continue
        else:
            drawn.append(Input(form, *damage.damage_bytes(rng, whole)))
    return fixed + drawn


def judge(one, folder):
    """Run one input; return its outcome, and what is wrong with that, if anything."""
    path = folder / one.form.name
    if one.special is not None:
        damage.special_file(one.special, path)
    else:
        path.write_bytes(one.content)
    outcome = hostile.run(lambda: plain(one.form.read(path)))
    if outcome.kind == "refused":
        message = outcome.text
        if not message.isprintable() or len(message) > 2000:
            return outcome, f"an error that cannot be read: {message[:200]!r}"
        return outcome, None
    if outcome.kind != "accepted":
        return outcome, f"{outcome.kind}: {outcome.text}"
    if one.content == one.form.valid():
        return outcome, None
    if one.refused or one.form.digest:
        return outcome, "accepted"
    try:
        honest = plain(one.form.found(one.content))
    except Exception as error:  # whatever is wrong with it, a few plain lines cannot read it
        return outcome, f"accepted, and is unreadable: {error!r}"
    return outcome, None if honest == outcome.value else f"accepted as {outcome.value!r:.200}"


def test_hostile_files_are_refused_or_harmless(tmp_path, record_property):
    seen, faults = Counter(), []
    begun = time.monotonic()
    for number, one in enumerate(inputs(sampling.SEED, COUNT)):
        (folder := tmp_path / str(number)).mkdir()
        outcome, fault = judge(one, folder)
        seen[outcome.kind] += 1
        if fault is not None:
            faults.append(f"{one.form.name}, {one.label}: {fault}")
    record_property("seconds", time.monotonic() - begun)
    print(f"seed {sampling.SEED}: {sum(seen.values())} inputs, {dict(seen)}")
    assert not faults, f"seed {sampling.SEED}: {len(faults)} faults\n" + "\n".join(faults[:20])
    assert seen["refused"] > COUNT // 2


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_valid_file_is_read(form, tmp_path):
    """What is damaged here is whole, and the plain lines find the same in it."""
    path = tmp_path / form.name
    path.write_bytes(form.valid())
    got = plain(form.read(path))
    if form.found is not None:
        assert got == plain(form.found(form.valid()))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_either_byte_order_and_layout_is_read(tmp_path, order, layout):
    path = tmp_path / "trace.npz"
    R = np.array([[2.0, 0.5], [0.5, 1.0]]).astype(f"{order}f8", order=layout)
    np.savez_compressed(path, **(trace() | {"0/R": R}))
    assert (recording.read(path).steps[0]["R"] == R).all()


def test_an_implementation_that_is_no_file_is_refused_at_once(tmp_path):
    for kind in damage.SPECIALS:
        place = damage.special_file(kind, tmp_path / f"{kind}.py")
        outcome = hostile.run(lambda place=place: python.load(str(place)))
        assert outcome.kind == "refused", (kind, outcome)


def test_what_is_given_to_parse_json_is_bounded():
    for kind, spoil in damage.BROKEN.items():
        text = spoil(random.Random(1), b'{"a": 1}')
        outcome = hostile.run(lambda text=text: parse_json("--option", text))
        assert outcome.kind == "refused", kind
        assert outcome.text.startswith("--option: "), outcome.text
    deep = b"[" * DEPTH + b"]" * DEPTH
    assert parse_json("x", deep)
    for text in (b"[" + deep + b"]", b'{"a":' + deep + b"}"):
        with pytest.raises(InputError, match="64 levels"):
            parse_json("x", text)


@pytest.mark.parametrize("far", [False, True], ids=["zip", "zip64"])
def test_an_archives_directory_is_bounded_before_it_is_read(tmp_path, far):
    """zipfile takes seven times its size for it."""
    data = many_entries()
    if far:  # the size stands in another record, the end refers to it
        size = len(data) - 22
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, size, 0)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 0, 0)
        data = data[:-22] + record + locator + end
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert len(archive.infolist()) == size // 46
    path = tmp_path / "trace.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match="an archive of too many entries"):
        recording.read(path)
