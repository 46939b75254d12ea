"""Outputs: regular files whole or not at all, what is none written through, nothing lost."""

import json
import os
import socket
import stat
import threading
import time

import hostile
import pytest
from command import loko_ref

from loko_ref.errors import InputError
from loko_ref.files import writing
from loko_ref.files.writing import check_target, check_targets, make_folder, write_bytes

needs_posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="special files are POSIX's")


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_an_existing_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode_of(path) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_umasks_mode(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == 0o666 & ~mask


@needs_posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone may chown")
def test_an_existing_file_keeps_its_owner(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 65534, 65534)
    write_bytes(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "one").symlink_to("target")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "dangling").symlink_to("made")
    write_bytes(tmp_path / "two", b"new")
    write_bytes(tmp_path / "dangling", b"made")
    assert all((tmp_path / name).is_symlink() for name in ("one", "two", "dangling"))
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "made").read_bytes() == b"made"


def test_of_hard_links_the_one_named_gets_the_new_content(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "b").read_bytes() == b"old"


@needs_posix
def test_a_device_is_written_to_and_never_replaced(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in ("/dev/null", link):
        write_bytes(path, b"x" * 100_000)
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert link.is_symlink()
    if os.path.exists("/dev/full"):
        with pytest.raises(InputError, match="No space left"):
            write_bytes("/dev/full", b"x")
        assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@needs_posix
def test_a_fifo_without_a_reader_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    check_target("--json", tmp_path / "fifo")
    begun = time.monotonic()
    with pytest.raises(InputError, match="a FIFO that no program reads"):
        write_bytes(tmp_path / "fifo", b"x")
    assert time.monotonic() - begun < 5
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)


@needs_posix
def test_a_fifo_with_a_reader_gets_all_of_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    got = []

    def read():
        with os.fdopen(handle, "rb") as file:
            got.append(file.read())

    payload = bytes(range(256)) * 2000
    reader = threading.Thread(target=read)
    writer = threading.Thread(target=write_bytes, args=(tmp_path / "fifo", payload))
    writer.start()
    time.sleep(0.05)
    reader.start()
    for one in (writer, reader):
        one.join(30)
    assert got == [payload]


@needs_posix
def test_a_fifo_whose_reader_stands_still_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "WAIT", 0.05)
    os.mkfifo(tmp_path / "fifo")
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(InputError, match="its reader read nothing"):
            write_bytes(tmp_path / "fifo", bytes(2**20))
    finally:
        os.close(handle)


@hostile.needs_linux
@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_a_descriptor_is_written_to_where_it_stands(path, to):
    """Also where stdout is a file: replacing it, or writing from its start, would lose lines."""

    def speak():  # in a fork, whose stdout is a file
        come = None
        if to == "pipe":
            come, go = os.pipe()
            os.dup2(go, 1)
            os.close(go)
        print("before")
        check_target("--json", path)
        write_bytes(path, b"document\n")
        print("after", flush=True)
        return "" if come is None else os.read(come, 1000).decode()

    outcome = hostile.run(speak)
    assert outcome.kind == "accepted", outcome.text
    assert outcome.value + outcome.printed == "before\ndocument\nafter\n"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nowhere/a", "existing directory"),
        ("file/a", "Not a directory"),
        ("folder", "a directory"),
        ("loop", "symbolic links"),
        ("socket", "a socket"),
        ("nul\0", "null"),
        ("n" * 300, "too long"),
        ("dangling", "existing directory"),
        ("descriptor", "a writable path"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, name, word):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/a")
    (tmp_path / "descriptor").symlink_to("/proc/self/fd/987")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(tmp_path)
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
    before = sorted(tmp_path.iterdir())
    for call in (check_target, lambda option, path: write_bytes(path, b"x", option)):
        with pytest.raises(InputError, match=word) as caught:
            call("--json", tmp_path / name)
        assert caught.value.argument == "--json"
    assert sorted(tmp_path.iterdir()) == before


@hostile.needs_linux
def test_a_place_where_root_too_can_make_nothing_is_refused():
    with pytest.raises(InputError, match=r"a (writable path|file in a writable directory)"):
        write_bytes("/proc/loko-ref-new", b"x", "--json")


def test_what_permits_no_writing_is_refused_before_the_work(tmp_path, monkeypatch):
    """The answer of the system, which lets root write anywhere, is taken from another user."""
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, how: path != tmp_path / "a")
    with pytest.raises(InputError, match="may be read-only"):
        check_target("--json", tmp_path / "a")
    monkeypatch.setattr(os, "access", lambda path, how: path != tmp_path)
    with pytest.raises(InputError, match="no new file can be created beside it"):
        check_target("--json", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_two_outputs_of_one_name_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("a")
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "to-new").symlink_to("new")
    one = {"--json": tmp_path / "a", "--junit": None}
    check_targets(one | {"--html": tmp_path / "b"})
    for other in ("a", "link", "hard", "../" + tmp_path.name + "/a"):
        with pytest.raises(InputError, match="the file of --json"):
            check_targets(one | {"--html": tmp_path / other})
        with pytest.raises(InputError, match="the file of --trace"):
            check_targets(one, {"--trace": tmp_path / other})
    with pytest.raises(InputError, match="the file of --json"):
        check_targets({"--json": tmp_path / "new", "--html": tmp_path / "to-new"})
    check_targets({"--json": os.devnull, "--html": os.devnull}, {"--trace": os.devnull})


@pytest.mark.parametrize("stage", ["fsync", "replace", "open"])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch, stage):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, stage, fail)
        with pytest.raises(InputError, match="No space left"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_long_name_is_written(tmp_path):
    """The name that it is first written under is not made of its own."""
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert make_folder("--checkpoint", tmp_path / "a" / "b").is_dir()
    for name in ("file", "file/b", "n" * 300, "nul\0"):
        with pytest.raises(InputError, match="a writable directory"):
            make_folder("--checkpoint", tmp_path / name)


LIST = ("mutants", "--only", "S-JITTER", "--json")


@needs_posix
def test_a_command_writes_through_a_device_and_a_link(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o640)
    (tmp_path / "link").symlink_to("old")
    for path in ("/dev/null", tmp_path / "link"):
        done = loko_ref(*LIST, path)
        assert done.returncode == 0, done.stderr
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "link").is_symlink()
    assert mode_of(tmp_path / "old") == 0o640
    assert json.loads((tmp_path / "old").read_text())["schema"].startswith("loko-ref/mutants/")


@needs_posix
def test_a_command_gives_a_fifo_all_of_its_document(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "a FIFO that no program reads" in loko_ref(*LIST, tmp_path / "fifo").stderr
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        assert loko_ref(*LIST, tmp_path / "fifo").returncode == 0
        assert json.loads(file.read())["mutants"]


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "none.py", "--json", "a", "--html", "a"),
        ("verify", "none.py", "--junit", "a", "--html", "./a"),
        ("verify", "mine.py", "--json", "mine.py"),
        ("verify", "none.py", "--xfail", "mine.py", "--json", "mine.py"),
        ("verify", "--trace", "mine.npz", "--html", "mine.npz"),
        ("train", "--json", "a.svg", "--plot", "a.svg"),
        ("train", "--json", "a.npz", "--checkpoint", "a.npz"),
        ("train", "--resume", "mine.npz", "--json", "mine.npz"),
        ("lte", "--json", "a", "--details", "a"),
        ("lte", "--plot", "a.svg", "--details", "a.svg"),
    ],
)
def test_a_command_refuses_to_lose_a_file(tmp_path, monkeypatch, words):
    """Before the work, and so before a target that is not there is missed."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "mine.npz"):
        (tmp_path / name).write_text("mine")
    done = loko_ref(*words)
    assert done.returncode == 2
    assert "different files" in done.stderr
    assert sorted(os.listdir()) == ["mine.npz", "mine.py"]
    assert (tmp_path / "mine.npz").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "none.py", "--json"),
        ("verify", "none.py", "--junit"),
        ("verify", "none.py", "--html"),
        ("mutants", "--json"),
        ("mutants", "--score", "--json"),
        ("train", "--json"),
        ("train", "--plot"),
        ("train", "--checkpoint"),
        ("lte", "--json"),
        ("lte", "--details"),
        ("lte", "--plot"),
        ("certify", "--json"),
    ],
)
def test_every_output_is_checked_before_the_work(tmp_path, words):
    end = {"--plot": ".svg", "--checkpoint": ".npz"}.get(words[-1], "")
    (tmp_path / f"folder{end}").mkdir()
    for name, word in ((f"folder{end}", "a directory"), (f"nowhere/a{end}", "existing directory")):
        done = loko_ref(*words, tmp_path / name)
        assert done.returncode == 2
        assert word in done.stderr
        assert f"loko-ref: {words[-1]}: got" in done.stderr
