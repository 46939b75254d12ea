"""The command line as such: what it does with a closed pipe, and with places it cannot write to."""

import os
import subprocess
import sys

import pytest
from command import loko_ref

COMMAND = [sys.executable, "-m", "loko_ref"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run(*arguments):
    return loko_ref(*arguments, columns=100)


def without_reader(child):
    """Close the child's stdout; return its exit code and stderr. One that hangs is killed."""
    child.stdout.close()
    child.stdout = None
    try:
        error = child.communicate(timeout=60)[1]
    finally:
        child.kill()
        child.wait(timeout=60)
    return child.returncode, error


@pytest.mark.sampled(0.2)
@pytest.mark.parametrize(
    "arguments",
    [("operations",), ("mutants",), ("verify", "--list"), ("protocol",), ("schema", "verify")],
)
def test_a_reader_that_goes_away_ends_it_quietly(arguments):
    """As `| head -1` does, but closed before the first line: 128 + SIGPIPE, and not a word."""
    child = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
    )
    assert without_reader(child) == (141, b"")


def test_a_reader_that_goes_away_costs_no_file(tmp_path):
    """The JSON report is written before the terminal's."""
    target, out = tmp_path / "mine.py", tmp_path / "r.json"
    target.write_text(
        "def delta(A, B, alpha):\n    return {'delta': alpha / len(A) * (B @ A)}\n"
        "IMPLEMENTATION = {'lora.delta': delta}\n"
    )
    words = ["verify", str(target), "--only", "lora.*", "--dtype", "float64", "--json", str(out)]
    child = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
    )
    assert without_reader(child) == (141, b"")
    assert '"passed": 4' in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("verify", "absent.py"), "--json"),
        (("verify", "absent.py"), "--html"),
        (("verify", "absent.py"), "--junit"),
        (("verify", "--trace", "absent.npz"), "--json"),
        (("mutants", "--score"), "--json"),
        (("certify",), "--json"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_at_the_start(arguments, flag):
    """Before the work: before it is even seen that there is no absent.py."""
    result = run(*arguments, flag, "/no/such/folder/f.x")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"loko-ref: {flag}: got '/no/such/folder/f.x'; required a file")


def test_operations_by_glob():
    result = run("operations", "observation.*")
    assert result.returncode == 0
    named = [line for line in result.stdout.splitlines() if line.startswith("observation.")]
    assert [line.split(":")[0] for line in named] == [
        f"observation.{k}" for k in ("gaussian", "softmax", "logits", "glm")
    ]
    assert "kalman.dense_update:" not in result.stdout
    assert run("operations", "lora.delta").stdout.count("\nlora.") == 1
    result = run("operations", "observatoin.*")
    assert result.returncode == 2
    assert "operation: got 'observatoin.*'" in result.stderr


def test_a_lack_of_memory_is_one_line(monkeypatch):
    from loko_ref.cli import app

    def hungry(prog_name):
        raise MemoryError("8 GiB for an array")

    monkeypatch.setattr(app, "app", hungry)
    done = run("operations")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("loko-ref: not enough memory (8 GiB for an array); take a smaller")
