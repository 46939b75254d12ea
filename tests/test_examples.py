"""Examples run as their readers would run them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sampling

ROOT = Path(__file__).resolve().parents[1]
FEW = """
from hypothesis import settings

settings.register_profile("few", max_examples={count}, deadline=None, derandomize=True)
settings.load_profile("few")
"""


@pytest.fixture
def folder(tmp_path):
    """A folder whose conftest asks Hypothesis for few examples; for its usual 100 with --long."""
    (tmp_path / "conftest.py").write_text(FEW.format(count=sampling.count(10, 100)))
    return tmp_path


def test_property_test_of_a_filter(folder):
    file = folder / "test_my_filter.py"
    file.write_text((ROOT / "examples" / "property_test_my_filter.py").read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


def test_property_test_catches_a_wrong_filter(folder):
    """The decoupled variance without its factor p: found, and shrunk to one parameter."""
    text = (ROOT / "examples" / "property_test_my_filter.py").read_text(encoding="utf-8")
    wrong = text.replace("p[k] -= p[k] * (K[k] @ H[:, k])", "p[k] -= K[k] @ H[:, k]")
    assert wrong != text
    file = folder / "test_my_filter.py"
    file.write_text(wrong)
    some = "agrees or rescaled or dtype"  # each failure is shrunk, which takes its time
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", some, str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED test_my_filter.py::test_agrees_with_the_reference" in done.stdout
    assert re.search(r"kalman.diagonal_update/own/float\d\d: first off: p\[\d+\]: ", done.stdout)
    assert "FAILED test_my_filter.py::test_has_every_fact[rescaled]" in done.stdout
    assert "FAILED test_my_filter.py::test_dtype_is_kept" not in done.stdout
