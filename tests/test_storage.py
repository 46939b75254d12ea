"""Files are whole or absent; what is not ours is refused with a reason."""

import errno
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from loko_ref import storage
from loko_ref.errors import InputError, MissingExtraError

SCHEMA = "loko-ref/test/1"


@pytest.fixture(params=[".npz", ".safetensors"])
def suffix(request):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors (extra 'interop')")
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


def test_a_flipped_byte_never_ends_in_another_error_than_ours(tmp_path):
    path = tmp_path / "a.npz"
    storage.save(path, {"x": np.arange(3.0)}, {}, schema=SCHEMA)
    whole = path.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            got, _ = storage.load(path, schema=SCHEMA)
        except InputError:
            continue
        # a byte that no reader looks at (a time stamp, say): the content must be whole
        assert all((a == np.arange(3.0)).all() for a in got.values())


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
    archive = tmp_path / "archive.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    for path, word in (
        (plain, "foreign"),
        (objects, "pickled"),
        (foreign, "another program"),
        (archive, "no plain array"),
    ):
        with pytest.raises(InputError, match=word):
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
        storage.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.npz", tmp_path / "a.npz"
    target.write_bytes(b"old")
    link.symlink_to(target)
    storage.write_bytes(link, b"new")
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


def test_a_missing_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No such file"):
        storage.load(tmp_path / "none.npz", schema=SCHEMA)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(MissingExtraError, match=r"loko-ref\[interop\]"):
        storage.save(tmp_path / "a.safetensors", {}, {}, schema=SCHEMA)
