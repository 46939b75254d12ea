"""What a run leaves out is drawn by a seed and stated; what it needs is in the extra `[test]`."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import sampling

TESTS = Path(__file__).resolve().parent
SUITE = """
import pytest, sampling

@pytest.mark.sampled(0.2, by=lambda n: n % 3)
@pytest.mark.parametrize("n", range(30))
def test_some(n):
    assert sampling.count(2, 50) == {count}
    assert n != {wrong}

@pytest.mark.slow
def test_slow():
    pass
"""


@pytest.fixture
def drawn_by(monkeypatch):
    """Set what is drawn by, and leave it as it was."""
    kept = sampling.LONG, sampling.SEED, sampling.SHARE

    def use(**named):
        for name, value in {"LONG": False, "SEED": "0", "SHARE": 1.0, **named}.items():
            monkeypatch.setattr(sampling, name, value)

    use()
    yield use
    monkeypatch.undo()
    assert kept == (sampling.LONG, sampling.SEED, sampling.SHARE)


def test_a_sample_is_seeded_nested_and_has_every_kind(drawn_by):
    items = [f"{kind}{k}" for kind in "abc" for k in range(20)]
    few = sampling.sample(items, 0.1, by=lambda item: item[0])
    assert few == sampling.sample(items, 0.1, by=lambda item: item[0])
    assert [sum(item[0] == kind for item in few) for kind in "abc"] == [2, 2, 2]
    assert len(sampling.sample(items, 1, by=lambda item: item[0])) == 3
    assert sampling.sample(items, 0.01)
    assert sampling.sample([], 0.5) == []
    drawn_by(SHARE=3.0)
    more = sampling.sample(items, 0.1, by=lambda item: item[0])
    assert len(more) == 18
    assert set(few) < set(more)
    drawn_by(SEED="1")
    assert sampling.sample(items, 0.1, by=lambda item: item[0]) != few
    drawn_by(LONG=True)
    assert sampling.sample(items, 0.1) == items


def test_a_count_grows_with_the_share_up_to_the_whole(drawn_by):
    assert sampling.count(5, 100) == 5
    drawn_by(SHARE=3.0)
    assert (sampling.count(5, 100), sampling.count(50, 100)) == (15, 100)
    drawn_by(LONG=True)
    assert sampling.count(5, 100) == 100


def run(folder, *words, count=2, wrong=-1, workers=0):
    """Run a suite under this conftest in a process of its own; give what it prints."""
    for name in ("conftest.py", "sampling.py", "browser.py"):
        (folder / name).write_text((TESTS / name).read_text(encoding="utf-8"))
    (folder / "test_it.py").write_text(SUITE.format(count=count, wrong=wrong))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LOKO_REF_", "PYTEST_"))}
    markers = ["-o", "markers=sampled: x\nslow: x", "-p", "no:cacheprovider"]
    spread = ["-n", str(workers)] if workers else ["-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *markers, *spread, "-rA", *words],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def ran(text):
    return sorted(map(int, re.findall(r"(?:PASS|FAIL)ED test_it.py::test_some\[(\d+)\]", text)))


def drawn():
    """What the suite's run is to draw, by what is set here."""
    return sampling.sample(range(30), 0.2, by=lambda n: n % 3, name=str)


def test_what_does_not_run_is_counted_and_can_be_repeated(drawn_by, tmp_path):
    text = run(tmp_path, wrong=drawn()[0])
    assert "a sample, drawn by LOKO_REF_SEED=0" in text
    assert "a sample ran: 6 of 31 tests; not drawn 24, only with --long 1" in text
    assert ran(text) == drawn()
    assert "to repeat one of the failures: LOKO_REF_SEED=0 python -m pytest 'NODEID'" in text
    # a test that is asked for by name runs, drawn or not
    other = next(n for n in range(30) if n not in drawn())
    assert ran(run(tmp_path, f"test_it.py::test_some[{other}]")) == [other]


@pytest.mark.larger
def test_workers_draw_the_same_under_another_seed(drawn_by, tmp_path):
    text = run(tmp_path, "--sample-seed", "7", workers=1)
    usual = drawn()
    drawn_by(SEED="7")
    assert ran(text) == drawn() != usual
    assert "a sample, drawn by LOKO_REF_SEED=7" in text
    assert "a sample ran: 6 of 31 tests; not drawn 24, only with --long 1" in text


@pytest.mark.larger
def test_long_takes_all(tmp_path):
    text = run(tmp_path, "--long", count=50)
    assert "31 passed" in text
    assert "a sample ran" not in text


# ------------------------------------------------------- nothing is needed that `[test]` lacks

PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"scikit-learn": "sklearn", "python-flint": "flint"}


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def needs(extra):
    """Import names of an extra's packages, and of the extras in it."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name, inside = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name == "loko-ref":
            found = found.union(*map(needs, inside.split(",")))
        else:
            found.add(IMPORTED_AS.get(name, name.replace("-", "_")))
    return found


def test_files_import_what_the_extra_test_brings_or_ask_first():
    """What else a test imports stands below an `importorskip` of it, in the file or function."""
    here = {path.stem for path in TESTS.rglob("*.py")} | {"gpu", "loko_ref", "numpy", "scipy"}
    allowed = here | {"xdist"} | needs("test") | set(sys.stdlib_module_names)
    assert {"pytest", "hypothesis", "sklearn", "flint", "typer"} <= allowed
    assert not {"torch", "jax", "transformers", "peft", "tokenizers", "cupy"} & allowed
    files = [p for p in TESTS.rglob("*.py") if "benchmarks" not in p.parts]
    assert len(files) > 80
    for path in files:
        tree = parsed(path)
        asked = {
            (node.args[0].value.split(".")[0], node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "importorskip"
            and isinstance(node.args[0], ast.Constant)
        }
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - allowed:
                before = [line for package, line in asked if package == name]
                where = f"{path.relative_to(TESTS)}, line {node.lineno}"
                assert before, f"{where}: imports {name} without pytest.importorskip"
                assert min(before) < node.lineno, where


def test_files_that_start_a_program_look_for_it_first():
    """Compilers, node, git: a fresh machine may have none."""
    programs = {"git", "node", "g++", "gcc", "cc", "clang", "rustc", "cargo", "make", "go", "julia"}
    seen = 0
    for path in TESTS.rglob("*.py"):
        if path == Path(__file__):
            continue
        tree = parsed(path)
        first = {
            node.elts[0].value
            for node in ast.walk(tree)
            if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant)
        }
        looked = any(isinstance(n, ast.Attribute) and n.attr == "which" for n in ast.walk(tree))
        assert looked or not first & programs, f"{path}: {first & programs} without shutil.which"
        seen += bool(first & programs)
    assert seen >= 2  # the harnesses in C++, Rust and JavaScript
