"""Ctrl-C at several moments: exit code 130 within a second, one line of ours, and a way to go on.

A child that is to be interrupted at a given moment stops itself there and says so; the interrupt
then comes as from a terminal. The command that the line gives is run as it stands.
"""

import errno
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from hostile import needs_linux
from sampling import LONG

from loko_ref import interrupt
from loko_ref.cli import main
from loko_ref.conformance.implementations import python
from loko_ref.experiments import base_network, runs, stream
from loko_ref.lte import serial

pytestmark = needs_linux

SECOND = 1.0 if LONG else 3.0
"""Time that an answer may take; more by default, for a machine that does other work."""

TRAIN = ["train", "--data", "iris", "--seed", "0", "--optimizer", "sgd", "--optimizer", "adagrad"]
LTE = ["lte", "--steps", "40", "--hidden", "8", "--heads", "2", "--rank", "2"]


def stop(module, name, at):
    """Have a function wait, busily, at its `at`-th call: the moment of an interrupt."""
    real, calls = getattr(module, name), []

    def stopping(*args, **more):
        calls.append(1)
        if len(calls) == at:
            os.write(1, b"now\n")
            until = time.monotonic() + 60
            while time.monotonic() < until:
                pass
        return real(*args, **more)

    setattr(module, name, stopping)


MOMENTS = {
    "base": (base_network, "loss_gradient", 20),
    "steps": (stream, "_score", 80),
    "writing": (os, "fsync", 7),
    "lte": (serial, "step", 20),
    "verify": (python, "call", 3),
}


class Child:
    """A command in a fork of this process, which stops at a moment."""

    def __init__(self, where, *words, cwd):
        come, go = os.pipe()
        self.errors = cwd / "stderr"
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(go, 1)
                os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT, 0o600), 2)
                sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
                signal.signal(signal.SIGINT, signal.default_int_handler)
                stop(*MOMENTS[where])
                code = called(*words, cwd=cwd)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(99)
        os.close(go)
        self.stdout = os.fdopen(come)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self, timeout):
        assert select.select([self.stdout], [], [], timeout)[0]
        out = self.stdout.read()
        self.stdout.close()
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        err = self.errors.read_text()
        self.errors.unlink()
        return out, err


def called(*words, cwd):
    """Run a command in this process; return its exit code."""
    before = os.getcwd(), sys.argv
    os.chdir(cwd)
    sys.argv = ["loko-ref", *map(str, words)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    finally:
        os.chdir(before[0])
        sys.argv = before[1]


def interrupted(process, number=signal.SIGINT, times=1):
    """Send an interrupt at the moment; return the exit code and the one line."""
    assert process.stdout.readline() == "now\n", process.communicate(timeout=30)[1]
    begin = time.monotonic()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02 * (times > 1))
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < SECOND
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return process.returncode, err


def ends(path):
    document = json.loads(Path(path).read_text())
    for run in document["runs"]:
        del run["seconds"]
    return document["runs"]


def gone_on(line, cwd, shell=False):
    """Run the command that the line gives: in this process, or literally in a shell."""
    command = line.split("resume with: ")[1]
    program, *words = shlex.split(command)
    assert program == "loko-ref"
    if not shell:
        assert called(*words, cwd=cwd) == 0
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


IMPORTING = """
import signal, sys, time
from loko_ref import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            print("now", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Finder())
cli.main()
"""


def test_while_importing_nothing_was_started():
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    code, line = interrupted(process)
    assert code == 130
    assert line == "loko-ref: interrupted; nothing was started\n"


def test_without_a_checkpoint_nothing_is_kept(tmp_path):
    code, line = interrupted(Child("steps", *TRAIN, cwd=tmp_path), signal.SIGTERM)
    assert code == 143
    assert line.startswith("loko-ref: terminated; nothing is kept; with --checkpoint F.npz")


def test_a_harness_under_verification_is_interrupted(tmp_path):
    (tmp_path / "mine.py").write_text("IMPLEMENTATION = {'lte.forward': lambda **k: 1}\n")
    code, line = interrupted(Child("verify", "verify", "mine.py", cwd=tmp_path))
    assert code == 130
    assert line == (
        "loko-ref: interrupted; this command saves no intermediate results: start it again\n"
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    assert called(*TRAIN, "--json", "r.json", cwd=place) == 0
    return ends(place / "r.json")


@pytest.mark.parametrize(
    ("where", "times", "standing"),
    [
        ("base", 1, ["waiting", "waiting"]),
        ("steps", 2, ["done", "running"]),
        ("writing", 1, ["running", "waiting"]),
    ],
)
def test_the_line_gives_the_command_that_goes_on(tmp_path, uninterrupted, where, times, standing):
    """With a file name that a shell would split; twice, as people press it."""
    words = [*TRAIN, "--checkpoint", "my 'c'.npz", "--json", "my r.json"]
    code, line = interrupted(
        Child(where, *words, "--checkpoint-every", 10, cwd=tmp_path), times=times
    )
    assert code == 130
    assert "interrupted; kept: my 'c'.npz, " in line
    entries = runs.read(tmp_path / "my 'c'.npz")
    assert [entry.status for entry in entries] == standing
    if where == "steps":
        step = entries[1].progress["step"]
        assert step % 10  # written at the interrupt, not at the interval before
        assert f"1 of 2 runs ended, the next at step {step};" in line
    assert os.listdir(tmp_path) == ["my 'c'.npz"]  # no temporary file
    gone_on(line, tmp_path, shell=where == "base")
    assert ends(tmp_path / "my r.json") == uninterrupted


def test_lte_goes_on_from_its_last_merge(tmp_path):
    words = [*LTE, "--json", "r.json", "--checkpoint", "a b.npz"]
    code, line = interrupted(Child("lte", *words, cwd=tmp_path))
    assert code == 130
    assert line.startswith("loko-ref: interrupted; kept: a b.npz, as of a merge; resume with: ")
    assert shlex.split(line.split("resume with: ")[1])[1:] == [*words, "--resume", "a b.npz"]
    gone_on(line, tmp_path)
    resumed = json.loads((tmp_path / "r.json").read_text())
    assert called(*LTE, "--json", "whole.json", cwd=tmp_path) == 0
    assert resumed == json.loads((tmp_path / "whole.json").read_text())


@pytest.mark.parametrize("what", ["train", "lte"])
@pytest.mark.parametrize("how", ["full", "gone"])
def test_a_place_that_fails_midway_leaves_the_last_checkpoint_whole(
    what, how, tmp_path, monkeypatch, capsys
):
    """A full disk; a directory that vanished: the error says what is kept, if anything is."""
    (tmp_path / "x").mkdir()
    if what == "train":
        words, kept = [*TRAIN, "--checkpoint-every", "10", "--checkpoint", "x/c.npz"], "x/c.npz, "
    else:
        words, kept = [*LTE, "--checkpoint", "x/c.npz"], "x/c.npz, as of a merge;"
    real, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == (4 if what == "train" else 3):
            if how == "gone":
                shutil.rmtree(tmp_path / "x")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    assert called(*words, cwd=tmp_path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "loko-ref: checkpoint: got" in err
    assert "No space left on device" in err
    if how == "gone":
        assert "Kept" not in err
        return
    assert f" Kept: {kept}" in err
    monkeypatch.undo()
    if how == "full":
        assert not [name for name in os.listdir(tmp_path / "x") if name.startswith(".")]
        assert called(*shlex.split(err.split("resume with: ")[1])[1:], cwd=tmp_path) == 0


@pytest.mark.parametrize("words", [["train"], LTE])
def test_an_error_before_a_run_says_of_nothing_that_it_is_kept(words, tmp_path, capsys):
    (tmp_path / "c.npz").write_bytes(b"x")
    assert called(*words, "--resume", "c.npz", cwd=tmp_path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "c.npz" in err
    assert "ept: " not in err


def test_the_command_line_is_quoted_and_names_the_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/no/where/loko-ref"])
    words = ("train", "--resume", "a b'c.npz")
    assert interrupt.command_line(*words) == "/no/where/loko-ref train --resume 'a b'\"'\"'c.npz'"
    monkeypatch.setattr(sys, "argv", ["/x/loko_ref/__main__.py"])
    monkeypatch.setenv("PATH", "")
    assert shlex.split(interrupt.command_line("lte"))[1:] == ["-m", "loko_ref", "lte"]
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "3")
    words = shlex.split(interrupt.command_line("lte"))
    assert words[1:3] == ["-n", "3"]
    assert words[4:] == ["-m", "mpi4py", "-m", "loko_ref", "lte"]


def test_an_error_says_what_is_kept(monkeypatch):
    monkeypatch.setattr(interrupt._State, "kept", lambda: "kept: c.npz; resume with: x")
    assert interrupt.after("It failed.") == "It failed. Kept: c.npz; resume with: x"
    monkeypatch.setattr(interrupt._State, "kept", lambda: "nothing is kept")
    assert interrupt.after("It failed.") == "It failed."


def test_importing_the_command_line_loads_no_array_library():
    """Until `main` runs nothing answers an interrupt: before it comes the least there is."""
    code = "import sys, loko_ref.cli; print(*{m.split('.')[0] for m in sys.modules})"
    words = [sys.executable, "-I", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert {"loko_ref"} <= set(done.stdout.split())
    assert not {"numpy", "scipy", "typer", "rich", "typing"} & set(done.stdout.split())
