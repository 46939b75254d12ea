"""Examples run as their readers would run them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sampling
from command import loko_ref

from loko_ref import strategies

ROOT = Path(__file__).resolve().parents[1]


def property_test():
    """The example; with --long, more problems."""
    text = (ROOT / "examples" / "property_test_my_filter.py").read_text(encoding="utf-8")
    assert text.count('PROFILE = "dev"') == 1
    return text.replace('"dev"', '"ci"') if sampling.LONG else text


def test_property_tests_pass_a_right_filter_and_catch_a_wrong_one(tmp_path):
    """The decoupled variance without its factor p: found, and shrunk to one parameter."""
    text = property_test()
    wrong = text.replace("p[k] -= p[k] * (K[k] @ H[:, k])", "p[k] -= K[k] @ H[:, k]")
    assert wrong != text
    (tmp_path / "test_right.py").write_text(text)
    (tmp_path / "test_wrong.py").write_text(wrong)
    some = ["test_property[kalman.diagonal_update/information]", "test_dtype_is_kept"]
    some += ["test_agrees_with_the_reference"] if sampling.LONG else []
    files = ["test_right.py", *(f"test_wrong.py::{name}" for name in some)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    # all of the right one, and the wrong one's dtype
    assert f"{1 + sampling.LONG} failed, 17 passed, 1 skipped" in done.stdout
    assert "FAILED test_wrong.py::test_property[kalman.diagonal_update/information]" in done.stdout
    if sampling.LONG:
        assert "FAILED test_wrong.py::test_agrees_with_the_reference" in done.stdout
        off = r"kalman.diagonal_update/own/float\d\d: first off: p\[\d+\]: "
        assert re.search(off, done.stdout)
    assert re.search(r"theta=\[0\], p=\[2\], H=\[\[1\]\], e=\[0\],[\sE]+R=\[\[1\]\]", done.stdout)


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


def test_vectors_are_answered_without_the_package(tmp_path):
    """The example runs where loko_ref cannot be imported, and its answers pass."""
    example = ROOT / "examples" / "answer_vectors.py"
    vectors, answers = tmp_path / "vectors", tmp_path / "answers.npz"
    assert loko_ref("vectors", "export", vectors, "--only", "kalman.time_update").returncode == 0
    code = (
        "import runpy, sys; sys.modules['loko_ref'] = None; "
        f"sys.argv[1:] = [{str(vectors)!r}, {str(answers)!r}]; "
        f"runpy.run_path({str(example)!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    done = loko_ref("vectors", "judge", vectors, answers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"PASSED: (\d+) of \1; 0 unsupported", done.stdout)


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
