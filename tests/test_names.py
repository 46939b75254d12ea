"""Names that people type: parts of a name, other cases, files of another language."""

import os
import stat
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from loko_ref.cli.app import app
from loko_ref.conformance import pytest_plugin
from loko_ref.conformance.cases.globs import matcher
from loko_ref.conformance.cases.registry import DTYPES, all_cases, select
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.implementations.python import load
from loko_ref.conformance.implementations.target import INTERPRETERS, SOURCES
from loko_ref.errors import InputError, closest, shown, unknown_option
from loko_ref.experiments.config import RunConfig
from loko_ref.loko import LokoConfig
from loko_ref.lte.config import CHOICES
from loko_ref.network.model import init_model

PARTS = sorted({name.split(".")[0] for name in OPERATIONS})


@pytest.mark.parametrize("part", PARTS)
def test_the_first_part_of_a_name_means_all_below_it(part):
    chosen = {case.id for case in select(part)}
    assert chosen == {case.id for case in select(f"{part}.*")}
    assert chosen == {c.id for c in all_cases() if c.operation.name.split(".")[0] == part}


def test_a_part_ends_where_a_name_does():
    case = all_cases()[0]
    assert [c.id for c in select(case.id)] == [case.id]
    both = case.id.rsplit("/", 1)[0]
    assert {c.id for c in select(both)} == {f"{both}/{d}" for d in DTYPES}
    assert not matcher("only", "kalma")("kalman.time_update")
    assert matcher("only", "kalma*")("kalman.time_update")


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loko-ref", *words])
    from loko_ref.cli import main

    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr()


def test_the_commands_take_a_part(monkeypatch, capsys):
    code, printed = run(["operations", "kalman"], monkeypatch, capsys)
    named = [line.split(":")[0] for line in printed.out.splitlines() if line.startswith("kalman.")]
    assert code == 0
    assert named == [name for name in OPERATIONS if name.startswith("kalman.")]
    code, printed = run(["verify", "--list", "--only", "kalman"], monkeypatch, capsys)
    assert code == 0
    assert len(printed.out.splitlines()) == len(select("kalman.*"))
    for words in (["operations"], ["verify", "--list", "--only"], ["certify", "--operation"]):
        code, printed = run([*words, "KALMAN"], monkeypatch, capsys)
        assert code == 2
        assert "the closest known name is 'kalman'" in printed.err, words


def test_the_plugin_takes_a_part(tmp_path):
    name = next(iter(OPERATIONS))
    (tmp_path / "fine.py").write_text(f"IMPLEMENTATION = {{{name!r}: lambda **k: {{}}}}\n")
    given = {"--loko-implementation": str(tmp_path / "fine.py"), "--loko-only": "kalman"}
    config = SimpleNamespace(
        getoption=lambda name, default=None: given.get(name),
        stash={},
        pluginmanager=SimpleNamespace(register=lambda plugin, name: None),
    )
    pytest_plugin.pytest_configure(config)
    ((_, cases, *_),) = config.stash.values()
    assert {case.id for case in cases} == {case.id for case in select("kalman.*")}


@pytest.mark.parametrize(
    ("typed", "known", "near"),
    [
        ("GLM", ["softmax", "glm"], "glm"),
        ("Float64", ["float32", "float64"], "float64"),
        ("DECOUPLET", ["decoupled", "variational"], "decoupled"),
        ("b", ["none", "B", "AB"], "B"),
    ],
)
def test_suggestions_ignore_case(typed, known, near):
    assert closest(typed, known) == near
    assert f"'{near}'" in unknown_option("x", typed, known).cause


def test_every_choice_in_capitals_is_led_back():
    for name, known in CHOICES.items():
        for choice in known:
            other = choice.swapcase()
            assert closest(other, known).casefold() == choice.casefold(), name
    spec = [{"kind": "linear", "name": "0", "in": 2, "out": 2, "lora": {"r": 1, "alpha": 1.0}}]
    net = init_model(np.random.default_rng(0), spec)
    with pytest.raises(InputError, match="upper and lower case; it is written 'glm'"):
        LokoConfig(model=net, observation="GLM")
    with pytest.raises(InputError, match="upper and lower case; it is written 'rotate90'"):
        RunConfig(optimizer="loko", shift="Rotate90")


def test_a_long_value_is_shortened():
    error = InputError("x", "y" * 10_000 + "\x1b[31m", "z", "a test")
    assert len(str(error)) < 600
    assert "(10005 characters)" in str(error)
    assert "\x1b" not in str(error)
    assert "\\x1b[31m" in str(error)
    assert shown(10**4400) == "a whole number of 4401 digits"
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list"


@pytest.mark.parametrize("suffix", sorted({*INTERPRETERS, *SOURCES}))
def test_a_file_in_another_language_is_led_to_cmd(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"my{suffix}").write_text("// not Python {\n")
    with pytest.raises(InputError, match="--cmd") as caught:
        load(f"my{suffix}")
    text = str(caught.value)
    if suffix in INTERPRETERS:
        assert f"--cmd '{INTERPRETERS[suffix].format('my' + suffix)}'" in text
    else:
        assert text.count(f"my{suffix}") >= 2
        assert "loko-ref verify --cmd ./harness" in text
    with pytest.raises(InputError, match="a file that exists"):
        load(f"absent{suffix}")


def test_javascript_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my harness.js").write_text("//\n")
    with pytest.raises(InputError, match=r"--cmd 'node '\"'\"'my harness.js'\"'\"''"):
        load("my harness.js")


def test_a_binary_and_a_foreign_file_are_led_to_cmd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "harness"
    program.write_bytes(b"\x7fELF\x02\x01\x01\x00" + bytes(64))
    with pytest.raises(InputError, match="--cmd 'COMMAND', the command that runs it"):
        load("harness")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(InputError, match=r"--cmd \./harness"):
        load("harness")
    (tmp_path / "notes.txt").write_text("x = 1\n")
    with pytest.raises(InputError, match="--cmd 'COMMAND'"):
        load("notes.txt")
    with pytest.raises(InputError, match="the name of a directory"):
        load(str(tmp_path) + os.sep)


def test_a_python_file_is_none_of_these(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(OPERATIONS))
    (tmp_path / "fine.py").write_text(f"IMPLEMENTATION = {{{name!r}: lambda **k: {{}}}}\n")
    assert list(load("fine.py").functions) == [name]
    assert app.registered_commands
