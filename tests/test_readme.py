"""README's two commands are what .ci/run calls, word for word, before anything else."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from loko_ref.experiments.compare import headline
from loko_ref.files import documents

ROOT = Path(__file__).resolve().parents[1]


def blocks(text):
    """Commands in fenced shell blocks, one logical line each."""
    found = []
    for body in re.findall(r"```(?:sh|bash|shell|console)\n(.*?)```", text, flags=re.S):
        joined = re.sub(r"\\\n\s*", " ", body)
        found += [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    return [line for line in found if line and not line.startswith("#")]


def ci_commands():
    """What .ci/run calls: (environment, its commands), in order."""
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    one = r"^ *(?:in_|beside) (\w+) [^\n]*<<'?COMMAND'?\n(.*?)^COMMAND$"
    calls = re.findall(one, text, flags=re.S | re.M)
    return [(where, body.splitlines()) for where, body in calls]


@pytest.fixture
def commands():
    return blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_both_commands_are_what_ci_runs_first(commands):
    verify = [c for c in commands if "install" in c and "verify examples/my_loko.py" in c]
    assert len(verify) == 1, "README has one command that installs and verifies the example"
    tests = [c for c in commands if "pytest" in c and "install" in c]
    assert len(tests) == 1, "README has one command that installs and passes the tests"
    assert all(c.startswith("pip install ") for c in verify + tests)
    (first, calls), (second, others) = ci_commands()[:2]
    assert (calls, others) == (verify, tests)
    assert first != second, "each has an environment of its own"


def test_ci_takes_the_verdicts_under_three_kernels_then_larger_samples_then_lint():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(
        r"for kernel in Haswell SkylakeX Nehalem; do\n(?: +.*\n){2} +beside tests ", text
    )
    lines = [line for _, calls in ci_commands()[2:] for line in calls]
    verdicts = [k for k in lines if "OPENBLAS_CORETYPE=$kernel" in k and "-m verdict" in k]
    assert len(verdicts) == 1
    assert "OMP_NUM_THREADS=$threads" in verdicts[0]
    assert sum("LOKO_REF_SHARE=" in k and "LOKO_REF_SEED=$seed" in k for k in lines) == 1
    marked = [
        p for p in (ROOT / "tests").rglob("test_*.py") if "mark.verdict" in p.read_text("utf-8")
    ]
    assert {p.parent.name for p in marked} == {"conformance", "tests"}  # this file names it too
    assert {"ruff check .", "ruff format --check .", "mypy"} <= set(lines)


RESULTS = ROOT / "derivations" / "site" / "compared"


@pytest.mark.parametrize("name", ["online", "lte"])
def test_readme_has_what_the_kept_comparison_says(name):
    file = RESULTS / f"{name}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if kept is not None:
        jsonschema.validate(kept, documents.load(f"compare-{name}"))
        assert file.stat().st_size < 200_000
    said = getattr(headline, name)(kept)[0]
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert said in words, f"README has to say: {said}"


def test_readme_has_two_screens():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 120


def test_files_that_readme_names_exist(commands):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for command in commands:
        for word in re.findall(r"\bexamples/\S+\.py\b", command):
            assert (ROOT / word).exists(), word
