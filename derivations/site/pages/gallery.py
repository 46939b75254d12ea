"""The examples, run while the site is built, with what they print."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pages import notebooks
from pages.markdown import block, page, table, text, toctree

ROOT = Path(__file__).resolve().parents[3]
LANGUAGES = {".py": "python", ".cpp": "cpp", ".rs": "rust", ".js": "javascript"}
LINES = 60
"""Lines of an output that are shown."""

SOME = "--only 'kalman.*' --dtype float64"
COMMANDS = {
    "answer_vectors.py": [
        "loko-ref vectors export vectors --only kalman.time_update",
        "python examples/answer_vectors.py vectors answers.npz",
        "loko-ref vectors judge vectors answers.npz",
    ],
    "harness.cpp": [
        "g++ -std=c++17 -O2 -o harness_cpp examples/harness.cpp",
        f"loko-ref verify --cmd ./harness_cpp {SOME}",
    ],
    "harness.js": [f"loko-ref verify --cmd 'node examples/harness.js' {SOME}"],
    "harness.py": [
        f"loko-ref verify --cmd 'python examples/harness.py examples/my_loko.py' {SOME}"
    ],
    "harness.rs": [
        "rustc --edition 2021 -O -o harness_rs examples/harness.rs",
        f"loko-ref verify --cmd ./harness_rs {SOME}",
    ],
    "jax_buggy_loko.py": ["loko-ref verify examples/jax_buggy_loko.py --only loko.step"],
    "jax_loko.py": ["loko-ref verify examples/jax_loko.py --only loko.step"],
    "lte_cost.py": ["python examples/lte_cost.py"],
    "lte_replay.py": ["python examples/lte_replay.py"],
    "my_buggy_loko.py": ["loko-ref verify examples/my_buggy_loko.py --only model --dtype float64"],
    "my_loko.py": ["loko-ref verify examples/my_loko.py --only model --dtype float64"],
    "online_digits.py": ["python examples/online_digits.py"],
    "property_test_my_filter.py": [
        "python -m pytest -q -p no:cacheprovider examples/property_test_my_filter.py"
    ],
    "record_adamw.py": [
        "python examples/record_adamw.py adamw.npz",
        "loko-ref verify --trace adamw.npz",
    ],
    "record_trace.py": [
        "python examples/record_trace.py trace.npz",
        "loko-ref verify --trace trace.npz",
    ],
    "torch_buggy_loko.py": ["loko-ref verify examples/torch_buggy_loko.py --only loko.step"],
    "torch_loko.py": ["loko-ref verify examples/torch_loko.py --only loko.step"],
    "verify_in_python.py": ["python examples/verify_in_python.py"],
}
"""Example -> how it is run; another is run by itself."""

QUICK = "a build without --quick"
"""What an example needs in a quick build."""

NEEDS = {"jax": "interop", "torch": "interop", "pytest": "test"}


def missing(name: str, commands: Sequence[str] = ("python",)) -> str:
    """Return what an example needs and is not there, or nothing."""
    for package, extra in NEEDS.items():
        if (package in name or package in commands[0]) and find_spec(package) is None:
            return f"the extra `[{extra}]`"
    programs = [shlex.split(c)[0] for c in commands if not c.startswith(("loko-ref", "python"))]
    programs += ["node"] if "node" in commands[0] else []
    return next((f"`{p}`" for p in programs if shutil.which(p) is None), "")


def run(command: str, folder: str) -> str:
    """Run a command; return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "90", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        text=True,
        timeout=600,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode not in (0, 1):  # 1: a mistake was found, as it should be
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    more = f"\n... {len(lines) - LINES} more lines" if len(lines) > LINES else ""
    return "\n".join(lines[:LINES]).replace(folder, ".") + more


def _summary(words: str) -> str:
    """Return the first sentence of an example's head."""
    head = re.match(r'"""(.*?)(?:\n\n|""")|((?://.*\n)+?)//\n', words, flags=re.DOTALL)
    return " ".join((head[1] or head[2].replace("// ", "")).split()) if head else ""


def _example(file: Path, target: Path, folder: str, quick: bool) -> str:
    """Write an example's page; return its summary."""
    words = file.read_text(encoding="utf-8")
    commands = COMMANDS.get(file.name, [f"python examples/{file.name}"])
    needs = QUICK if quick else missing(file.name, commands)
    parts = [f"{text(_summary(words))}\n", "## Run it\n"]
    if needs:
        parts += [block("\n".join(commands), "sh"), f"Not run for this page: needs {needs}.\n"]
    else:
        for command in commands:
            parts += [block(command, "sh"), block(run(command, folder) or "(prints nothing)")]
    parts += ["## The program\n", block(words, LANGUAGES[file.suffix])]
    page(target / f"{file.name}.md", text(file.name), *parts)
    return _summary(words)


def write(source: Path, quick: bool) -> None:
    """Write a page for each example, with its output unless the build is quick."""
    target = source / "examples"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        for file in sorted((ROOT / "examples").iterdir()):
            if file.suffix == ".ipynb":
                needs = QUICK if quick else missing(file.name)
                summary = notebooks.write(file, target, folder, needs)
            elif file.suffix in LANGUAGES:
                summary = _example(file, target, folder, quick)
            else:
                continue
            rows.append((file.name, summary))
    lines = [(f"[{text(name)}]({name}.md)", text(summary)) for name, summary in rows]
    words = "Each is one file to read and to run; the outputs are of this version.\n"
    names = [f"{name}" for name, _ in rows]
    page(
        target / "index.md",
        "Examples",
        words,
        table(("file", "what it does"), lines),
        toctree(names),
    )
