"""What is installed: the metadata, the extras, the console script, the public strategies' extra."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import loko_ref

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def names(requirements):
    """Distribution names, with their extras."""
    return {re.split(r"[<>=!~; ]", r, maxsplit=1)[0] for r in requirements}


def test_core_dependencies_are_numpy_and_scipy_alone():
    assert names(PROJECT["dependencies"]) == {"numpy", "scipy"}
    assert PROJECT["requires-python"] == ">=3.11"
    assert PROJECT["name"] == "loko-ref"


def test_an_extra_that_is_a_package_s_brings_what_the_package_needs():
    assert "study" not in EXTRAS
    assert EXTRAS["explain"] == ["loko-ref[cli,data]"]  # as loko_ref.cli.needs has it


def test_cli_is_included_by_every_other_extra():
    assert {"cli", "data", "test"} <= set(EXTRAS)
    assert names(EXTRAS["cli"]) == {
        "typer",
        "rich",
        "jinja2",
        "threadpoolctl",
        "markdown-it-py",
        "docutils",
    }
    for extra, requirements in EXTRAS.items():
        if extra != "cli":
            inside = [r for r in requirements if r.startswith("loko-ref[")]
            assert any("cli" in r for r in inside), f"extra {extra} lacks loko-ref[cli]"


def test_extras_named_in_errors_exist():
    """Every MissingExtraError in the source names an extra that there is."""
    found = set()
    for file in (ROOT / "loko_ref").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for call in re.findall(r"MissingExtraError\((.*?)\)", text, flags=re.S):
            parts = re.findall(r'"([^"]*)"', call)
            if len(parts) == 3:
                found.add(parts[2])
        found |= set(re.findall(r"loko-ref\[([a-z0-9]+)\]", text))
    assert "test" in found
    assert found <= set(EXTRAS), found - set(EXTRAS)


def test_installed_metadata_agrees():
    installed = importlib.metadata.metadata("loko-ref")
    assert installed["Name"] == "loko-ref"
    assert importlib.metadata.version("loko-ref") == loko_ref.__version__
    assert set(installed.get_all("Provides-Extra")) == set(EXTRAS)
    scripts = importlib.metadata.entry_points(group="console_scripts", name="loko-ref")
    assert [s.value for s in scripts] == ["loko_ref.cli:main"]
    assert (Path(loko_ref.__file__).parent / "py.typed").exists()


def test_the_command_answers():
    done = subprocess.run(
        [sys.executable, "-m", "loko_ref", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for command in ("verify", "operations", "train", "explain"):
        assert command in done.stdout


WITHOUT = """
import sys
sys.modules[{package!r}] = None
import loko_ref
try:
    {code}
except ImportError as error:
    assert type(error).__name__ == "MissingExtraError", repr(error)
    print(error)
else:
    raise SystemExit("no error")
"""


@pytest.mark.parametrize(
    ("package", "code", "extra"),
    [
        ("hypothesis", "import loko_ref.strategies", "test"),
        ("hypothesis", "from loko_ref import strategies", "test"),
        ("hypothesis", "loko_ref.strategies", "test"),
    ],
)
def test_a_missing_extra_is_named(package, code, extra):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package=package, code=code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"'{package}', which is not installed: pip install 'loko-ref[{extra}]'" in done.stdout


def test_the_strategies_are_part_of_the_package():
    """The public kit ships with the package, not with the tests."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert targets["build"]["targets"]["wheel"]["packages"] == ["loko_ref"]
    assert (ROOT / "loko_ref" / "strategies" / "__init__.py").exists()


def test_the_wheel_carries_every_derivation_and_no_page_of_the_site():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    carried = hatch["build"]["targets"]["wheel"]["force-include"]
    assert all(place == f"loko_ref/shipped/{file}" for file, place in carried.items())
    texts = {f.relative_to(ROOT).as_posix() for f in (ROOT / "derivations").glob("*.md")}
    assert {file for file in carried if file.startswith("derivations")} == texts
