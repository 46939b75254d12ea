"""The pytest plugin, used from outside the repository."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINE = """
def delta(A, B, alpha):
    return {"delta": FACTOR * (B @ A)}

def merge(W, A, B, alpha):
    raise NotImplementedError("later")

IMPLEMENTATION = {"lora.delta": delta, "lora.merge": merge}
"""


def pytest_in(folder, *arguments):
    installed = any(ep.name == "loko_ref" for ep in entry_points(group="pytest11"))
    load = ["-p", "no:hypothesispytest"]  # whose import takes most of such a session
    load += [] if installed else ["-p", "loko_ref.conformance.pytest_plugin"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *load, "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MINE.replace("FACTOR", "alpha / len(A)"))
    (tmp_path / "wrong.py").write_text(MINE.replace("FACTOR", "alpha"))
    return tmp_path


def test_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"loko_ref": "loko_ref.conformance.pytest_plugin"}


def test_checks_are_tests(folder):
    result = pytest_in(
        folder, "--loko-implementation", "mine", "--loko-only", "lora.*", "-rs", "-v"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 passed, 10 skipped" in result.stdout
    assert "loko-ref::lora.delta/tiny/float64 PASSED" in result.stdout
    assert "it declines (NotImplementedError: later)" in result.stdout


def test_a_failure_is_the_report(folder):
    result = pytest_in(
        folder, "--loko-implementation", "wrong.py", "--loko-dtype", "float64", "-k", "delta/random"
    )
    assert result.returncode == 1
    assert "1 failed" in result.stdout
    assert "lora.delta/random/float64: first off: delta[" in result.stdout
    assert "mistake SCALE-ALPHA: alpha for alpha / r" in result.stdout
    assert "correct formula: scale = alpha / r" in result.stdout
    assert "Traceback" not in result.stdout
    assert "implementation.py" not in result.stdout


def test_a_formula_is_confirmed_by_calling_again(folder):
    """A test holds one check: other numbers bear its name out, as in verify."""
    less = "alpha / len(A) * B @ (A - A.mean(axis=0, keepdims=True))"
    (folder / "less.py").write_text(MINE.replace("FACTOR * (B @ A)", less))
    result = pytest_in(
        folder, "--loko-implementation", "less.py", "--loko-dtype", "float64", "-k", "delta/random"
    )
    assert "1 failed" in result.stdout
    assert "less its mean" in result.stdout, result.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "fails to import: ModuleNotFoundError"),
        (("mine", "--loko-only", "nothing"), "only: got 'nothing'"),
    ],
)
def test_usage_errors(folder, arguments, message):
    result = pytest_in(folder, "--loko-implementation", *arguments)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr


def test_without_the_option_nothing_is_added(folder):
    (folder / "test_own.py").write_text("def test_own():\n    pass\n")
    result = pytest_in(folder)
    assert result.returncode == 0
    assert "1 passed" in result.stdout


def test_parametrize(folder):
    (folder / "test_own.py").write_text(
        "from loko_ref.conformance.pytest_plugin import assert_correct, parametrize\n"
        "import mine, wrong\n"
        "@parametrize('lora.delta', dtype='float64')\n"
        "def test_right(case):\n"
        "    assert_correct(case, mine.delta(**case.inputs(), **case.options))\n"
        "@parametrize('lora.delta/random/*')\n"
        "def test_wrong(case):\n"
        "    assert_correct(case, wrong.delta(**case.inputs(), **case.options))\n"
        "@parametrize('lora.delta/tiny/float64')\n"
        "def test_form(case):\n"
        "    assert_correct(case, [1.0])\n"
    )
    result = pytest_in(folder)
    assert "4 passed" in result.stdout
    assert "3 failed" in result.stdout
    assert "test_wrong[lora.delta/random/float64]" in result.stdout
    assert "mistake SCALE-ALPHA" in result.stdout
    assert "returned list in place of a mapping of named arrays" in result.stdout
