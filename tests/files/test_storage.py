"""Files are whole or absent; what is not ours is refused with a reason."""

import errno
import hashlib
import os
import pickle
import sys

import numpy as np
import pytest

from loko_ref.errors import InputError
from loko_ref.files import storage
from loko_ref.files.containers import pack_npz
from loko_ref.files.writing import write_bytes

SCHEMA = "loko-ref/test/1"


@pytest.fixture(params=[".npz", ".safetensors"])
def suffix(request):
    return request.param


def arrays():
    rng = np.random.default_rng(0)
    return {
        "0/theta": rng.standard_normal((2, 3)),
        "transposed": rng.standard_normal((2, 3)).T,
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
        "labels": np.arange(5),
    }


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, suffix):
    given = arrays()
    about = {"step": 3, "score": 0.1 + 0.2, "nested": {"list": [1, None, "text é"]}}
    storage.save(tmp_path / f"a{suffix}", given, about, schema=SCHEMA)
    got, metadata = storage.load(tmp_path / f"a{suffix}", schema=SCHEMA)
    assert metadata == about
    assert set(got) == set(given)
    for name, array in given.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == np.shape(array)
        assert got[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_equal_content_gives_equal_bytes(tmp_path, suffix):
    for name in "ab":
        storage.save(tmp_path / f"{name}{suffix}", arrays(), {"k": 1}, schema=SCHEMA)
    a, b = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert a == b


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    storage.save(path, arrays(), {"k": 1}, schema=SCHEMA)
    whole = path.read_bytes()
    for cut in {*range(0, len(whole), 11), len(whole) - 1}:
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"truncated|foreign|another program"):
            storage.load(path, schema=SCHEMA)


def test_a_flipped_bit_anywhere_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    storage.save(path, {"x": np.arange(3.0), "scalar": np.float32(0.1)}, {"k": 1}, schema=SCHEMA)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(InputError, match=r"digest|SHA-256"):
            storage.load(path, schema=SCHEMA)
    for other in (whole + b"\0", b"\0" + whole, whole[1:]):
        path.write_bytes(other)
        with pytest.raises(InputError, match=r"digest|SHA-256"):
            storage.load(path, schema=SCHEMA)


def test_a_file_of_before_there_was_a_digest_is_refused_and_the_reason_given(tmp_path):
    head = np.frombuffer(b'{"schema": "loko-ref/test/1", "metadata": {}}', np.uint8)
    np.savez(tmp_path / "a.npz", __loko_ref__=head, x=np.zeros(2))
    with pytest.raises(InputError, match="an older version, which had no digest"):
        storage.load(tmp_path / "a.npz", schema=SCHEMA)


def seal(path):
    """Write into a file the digest of what is in it now, as its forger would."""
    whole = bytearray(path.read_bytes())
    at, _ = storage._digest_place(path, len(whole))
    whole[at : at + 64] = b"0" * 64
    whole[at : at + 64] = hashlib.sha256(whole).hexdigest().encode()
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize(
    ("entry", "content", "word"),
    [
        ("__loko_ref__", b'{"schema": "loko-ref/test/1", "metadata": []}', "schema and metadata"),
        ("__loko_ref__", b'{"schema": "loko-ref/test/1", "metadata": {"a": NaN}}', "NaN"),
        ("__loko_ref__", b'{"metadata": {}}', "schema and metadata"),
        ("__loko_ref__", b"[" * 100_000, "64 levels"),
        ("__loko_ref__", b"\xff", "no JSON"),
        ("other", b"{}", "no entry '__loko_ref__'"),
    ],
)
def test_a_forged_header_is_refused(tmp_path, entry, content, word):
    path = tmp_path / "a.npz"
    comment = storage._COMMENT + b"0" * 64
    path.write_bytes(pack_npz({entry: np.frombuffer(content, np.uint8)}, comment))
    seal(path)
    with pytest.raises(InputError, match=word):
        storage.load(path, schema=SCHEMA)


def test_pickled_and_foreign_files_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (sys.exit, ("unpickled",))

    plain = tmp_path / "plain.npz"
    plain.write_bytes(pickle.dumps(Bomb()))
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([Bomb()], dtype=object))
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, x=np.zeros(2))
    for path in (plain, objects, foreign):
        with pytest.raises(InputError, match="another program"):
            storage.load(path, schema=SCHEMA)


def test_another_schema_is_refused_by_name(tmp_path):
    storage.save(tmp_path / "a.npz", {}, {}, schema=SCHEMA)
    with pytest.raises(InputError, match=r"loko-ref/test/1.*required schema 'loko-ref/test/2'"):
        storage.load(tmp_path / "a.npz", schema="loko-ref/test/2")


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_whole_and_no_debris(tmp_path, monkeypatch, stage):
    path = tmp_path / "a.npz"
    storage.save(path, {"x": np.zeros(2)}, {"old": True}, schema=SCHEMA)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(InputError, match="No space left"):
        storage.save(path, {"x": np.ones(2)}, {"old": False}, schema=SCHEMA)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert storage.load(path, schema=SCHEMA)[1] == {"old": True}


def test_an_interrupt_during_a_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.npz", tmp_path / "a.npz"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "values", "about", "word"),
    [
        ("a.npy", {}, {}, "ends in .npz or .safetensors"),
        ("nowhere/a.npz", {}, {}, "existing directory"),
        ("a.npz", {"x": np.array(["text"])}, {}, "arrays"),
        ("a.npz", {"x": np.array([None])}, {}, "pickle"),
        ("a.npz", {"": np.zeros(1)}, {}, "plain name"),
        ("a.npz", {}, {"x": float("nan")}, "JSON-able"),
        ("a.npz", {}, {"x": np.zeros(1)}, "JSON-able"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, name, values, about, word):
    with pytest.raises(InputError, match=word):
        storage.save(tmp_path / name, values, about, schema=SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        storage.load(tmp_path / "none.npz", schema=SCHEMA)
