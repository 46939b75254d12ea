"""Examples run as their readers would run them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sampling

from loko_ref import strategies

ROOT = Path(__file__).resolve().parents[1]


def property_test():
    """The example, with few Hypothesis examples, always the same; its usual 100 with --long."""
    text = (ROOT / "examples" / "property_test_my_filter.py").read_text(encoding="utf-8")
    few = f"deadline=None, derandomize=True, max_examples={sampling.count(10, 100)})"
    assert text.count('register_profile("any machine", deadline=None)') == 1
    return text.replace("deadline=None)", few)


def test_property_test_of_a_filter(tmp_path):
    file = tmp_path / "test_my_filter.py"
    file.write_text(property_test())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


def test_property_test_catches_a_wrong_filter(tmp_path):
    """The decoupled variance without its factor p: found, and shrunk to one parameter."""
    text = property_test()
    wrong = text.replace("p[k] -= p[k] * (K[k] @ H[:, k])", "p[k] -= K[k] @ H[:, k]")
    assert wrong != text
    file = tmp_path / "test_my_filter.py"
    file.write_text(wrong)
    some = "rescaled or dtype"  # each failure is shrunk, which takes its time
    some += " or agrees" if sampling.LONG else ""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", some, str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    if sampling.LONG:
        assert "FAILED test_my_filter.py::test_agrees_with_the_reference" in done.stdout
        off = r"kalman.diagonal_update/own/float\d\d: first off: p\[\d+\]: "
        assert re.search(off, done.stdout)
    assert "FAILED test_my_filter.py::test_has_every_fact[rescaled]" in done.stdout
    assert "FAILED test_my_filter.py::test_dtype_is_kept" not in done.stdout


def test_the_property_test_has_no_deadline():
    """It would measure how loaded the machine is; a copy carries its own profile."""
    text = (ROOT / "examples" / "property_test_my_filter.py").read_text(encoding="utf-8")
    code = "from hypothesis import settings; assert settings().deadline is None"
    done = subprocess.run(
        [sys.executable, "-c", f"{text}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "deadline=None" in (strategies.__doc__ or "")


def test_the_recording_goes_to_a_temporary_folder_or_where_it_is_told(tmp_path):
    example = str(ROOT / "examples" / "record_trace.py")
    cwd, temporary = tmp_path / "checkout", tmp_path / "tmp"
    cwd.mkdir()
    temporary.mkdir()
    for arguments in ([], ["told.npz"]):
        done = subprocess.run(
            [sys.executable, example, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=cwd,
            timeout=120,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        place = re.search(r"loko-ref verify --trace (\S+)", done.stdout)[1]
        assert (cwd / place).is_file()
        assert [file.name for file in cwd.iterdir()] == arguments
    assert len(list(temporary.rglob("trace.npz"))) == 1


def test_verification_in_python_needs_no_extra():
    """It finds the mistake, with the packages of the extras blocked."""
    example = ROOT / "examples" / "verify_in_python.py"
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(['rich', 'typer', 'jinja2', 'threadpoolctl'])\n"
        f"runpy.run_path({str(example)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED: 6 of 16; 10 passed" in done.stdout
    assert done.stdout.count("SCALE-ALPHA: delta[") == 6
    assert "PASSED: 4 of 4; " in done.stdout


WRITERS = {"save", "savez", "savefig", "write_text", "write_bytes", "tofile", "dump", "mkdir"}


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda f: f.name)
def test_no_example_writes_to_a_place_of_its_own(file):
    """No call that writes has a literal path: it is an argument, or a temporary folder."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        literal = node.args and isinstance(node.args[0], ast.Constant)
        writes = name in WRITERS or (
            name == "open"
            and any(isinstance(a, ast.Constant) and "w" in str(a.value) for a in node.args[1:])
        )
        assert not (literal and writes), f"line {node.lineno}"
