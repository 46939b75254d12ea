"""A missing extra: the first and only output is the line that names it, on stderr, exit code 2."""

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

import pytest
from hostile import needs_linux, run

from loko_ref.cli.needs import EXTRA
from loko_ref.errors import MissingExtraError, extras

pytestmark = needs_linux
importlib.import_module("loko_ref.cli.app")  # once, not in every fork

FEATURES = Path(__file__).resolve().parents[1] / "derivations" / "site" / "features.md"

TRACE = ["verify", "--trace"]
CASES = [
    (["train"], "sklearn"),
    (["train", "--data", "topics", "--plot", "f.svg"], "matplotlib"),
    (["train", "--data", "glue:f.tsv", "--tokenizer", "f.json"], "tokenizers"),
    (["explain"], "sklearn"),
    (["explain", "--data", "wine"], "sklearn"),
    (["lte"], "sklearn"),
    (["lte"], "threadpoolctl"),
    (["lte", "--data", "topics", "--plot", "f.svg"], "matplotlib"),
    (["lte", "--data", "glue:f.tsv", "--tokenizer", "f.json"], "tokenizers"),
    (["certify"], "flint"),
    (["certify", "--operation", "kalman.*"], "flint"),
    (["verify", "mine.py", "--html", "f.html"], "jinja2"),
    ([*TRACE, "f.npz", "--html", "f.html"], "jinja2"),
    *(([command], name) for command in ("verify", "train", "lte") for name in ("typer", "rich")),
]


def block(*names):
    """Make packages missing, in this process."""
    for module in list(sys.modules):
        again = module.startswith("loko_ref.cli") and {"typer", "rich"} & set(names)
        if module.split(".")[0] in names or again:
            del sys.modules[module]
    for name in names:
        sys.modules[name] = None


def command(words):
    """Run a command; return its exit code and what it printed on stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            sys.argv = ["loko-ref", *words]
            importlib.import_module("loko_ref.cli").main()
        except SystemExit as stop:
            return stop.code, out.getvalue()
    return 0, out.getvalue()


@pytest.mark.parametrize(
    ("words", "package"), CASES, ids=lambda x: x if str(x) == x else "-".join(x)
)
def test_a_missing_package_is_the_first_thing_said(words, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def without():
        block(package)
        return command(words)

    done = run(without)
    assert done.value == (2, ""), done
    name, extra = extras.EXTRAS[package]
    line = rf"loko-ref: [^\n]*needs the package '{name}', which is not installed: pip install "
    assert re.fullmatch(rf"{line}'loko-ref\[{extra}\]'\n", done.printed), done.printed
    assert not any(tmp_path.iterdir()), "a file was written"


@pytest.mark.parametrize("name", sorted(EXTRA))
def test_the_extra_of_each_command_is_what_it_asks_for(name):
    def without():
        block(*(module for module, (_, extra) in extras.EXTRAS.items() if extra != "cli"))
        return command([name])

    done = run(without)
    assert done.value == (2, "")
    assert f"pip install 'loko-ref[{EXTRA[name]}]'" in done.printed


SPECIAL = {"torch_loko.py": "interop"}
SPECIAL |= dict.fromkeys(("mnist:DIR", "explain tiny", "explain KAL-2"), "cli")
SPECIAL |= dict.fromkeys(("compare online", "compare lte"), "data")
"""What an example needs that its command does not, or the reverse."""


def test_the_documentation_names_the_extra_of_each_row():
    text = FEATURES.read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("|") and "`loko-ref " in row]
    assert len(rows) > 12
    for row in rows:
        *_, extra, tried = (cell.strip() for cell in row.strip("|").split("|"))
        name = re.match(r"`(?:.*&& )?loko-ref (\w+)", tried)[1]
        special = next((e for words, e in SPECIAL.items() if words in tried), None)
        assert extra == f"`[{special or EXTRA.get(name, 'cli')}]`", row


def test_an_mpi4py_without_a_library_is_told_as_that(monkeypatch):
    """Installed, but ``from mpi4py import MPI`` fails: not "mpi4py is not installed"."""
    for error in (
        ImportError("libmpi.so.12: cannot open shared object file: No such file or directory"),
        RuntimeError("cannot load MPI library\nlibmpi.so: not found"),
    ):

        def launched(error=error):
            class Broken:
                def find_spec(self, name, path=None, target=None):
                    if name == "mpi4py.MPI":
                        raise error

            block()
            sys.meta_path.insert(0, Broken())
            sys.modules.pop("mpi4py.MPI", None)
            return command(["lte", "--steps", "2"])

        monkeypatch.setenv("PMI_SIZE", "2")
        done = run(launched)
        assert done.value == (2, "")
        assert done.printed == (
            "loko-ref: a run under mpiexec needs an MPI library: mpi4py is installed, but finds "
            f"none to load ({str(error).splitlines()[0]}): pip install mpich (pip install "
            "'loko-ref[mpi]' brings both), or load your cluster's own\n"
        )


def test_under_mpiexec_a_missing_mpi4py_is_named(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")

    def without():
        block("mpi4py")
        return command(["lte"])

    done = run(without)
    assert done.value == (2, "")
    assert done.printed.endswith("not installed: pip install 'loko-ref[mpi]'\n")


def test_doors_of_python_name_the_extra_before_they_work():
    """The functions behind the commands, by blocked packages too."""

    def doors():
        block("sklearn", "matplotlib", "flint", "jinja2")
        from loko_ref.arrays.balls import ballarray, precision
        from loko_ref.conformance import Report
        from loko_ref.experiments import stream
        from loko_ref.experiments.config import RunConfig
        from loko_ref.experiments.data import registry
        from loko_ref.experiments.plots import draw, learning_curves
        from loko_ref.explain.steps import explain

        ballarray.flint.cache_clear()  # another test may have loaded it
        config = RunConfig(optimizer="loko")
        point = [[stream.Point(samples=1, online=0.5, test=0.5)]]
        return [
            refused(lambda: registry.load("digits")),
            refused(lambda: stream.prepare(config)),
            refused(lambda: next(explain(config))),
            refused(lambda: precision(64)),
            refused(lambda: Report(target="x", checks=()).write(html="f.html")),
            refused(lambda: draw(learning_curves({"a": point}))),
        ]

    done = run(doors)
    assert done.value == ["data", "data", "data", "certify", "cli", "data"], done


def refused(work):
    with pytest.raises(MissingExtraError) as caught:
        work()
    return caught.value.extra


def test_a_package_that_fails_to_import_is_told_as_that(monkeypatch):
    def broken(name):
        raise ImportError("numpy.core.multiarray failed to import")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match=r"installed but fails to import \(numpy\.core"):
        extras.load("matplotlib.figure", "a plot")
