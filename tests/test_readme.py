"""README's two commands: the one that tests is what .ci/run calls, word for word."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(text):
    """Commands in fenced shell blocks, one logical line each."""
    found = []
    for body in re.findall(r"```(?:sh|bash|shell|console)\n(.*?)```", text, flags=re.S):
        joined = re.sub(r"\\\n\s*", " ", body)
        found += [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    return [line for line in found if line and not line.startswith("#")]


def ci_commands():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines()]


@pytest.fixture
def commands():
    return blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_test_command_is_what_ci_runs(commands):
    tests = [c for c in commands if "pytest" in c and "install" in c]
    assert len(tests) == 1, "README has one command that installs and passes the tests"
    assert tests[0] in ci_commands()


def test_verify_command_is_there(commands):
    verify = [c for c in commands if "install" in c and "verify examples/my_loko.py" in c]
    assert len(verify) == 1, "README has one command that installs and verifies the example"
    assert "pip install" in verify[0]


def test_ci_lints_and_types():
    lines = ci_commands()
    assert "ruff check ." in lines
    assert any(line.startswith("ruff format --check") for line in lines)
    assert "mypy" in lines
    assert any("-m venv" in line for line in lines)
    assert any(re.match(r"LOKO_REF_LONG=1 python -m pytest\b.*-m slow", line) for line in lines)


def test_files_that_readme_names_exist(commands):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for command in commands:
        for word in re.findall(r"\bexamples/\S+\.py\b", command):
            assert (ROOT / word).exists(), word
