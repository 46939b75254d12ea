"""Cases by options: for code that makes one choice of each, selected or built."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command import loko_ref

from loko_ref import verify
from loko_ref.conformance.cases.chosen import choose, read_options, written
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.implementations.python import load
from loko_ref.conformance.judge.tolerance import expected, unit
from loko_ref.errors import InputError

MINE = load(str(Path(__file__).parents[2] / "examples" / "my_loko.py")).functions["loko.step"]
PAPER = {"observation": "softmax", "noise": "ema_innovation"}
WHOLE = PAPER | {"timing": "before", "covariance": "diagonal", "diagonal": "decoupled"}
SOURCE = """
import importlib.util
spec = importlib.util.spec_from_file_location("mine", {path!r})
mine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mine)

def loko_step(x, y, theta, weights, p, R, spec, lam, q, beta):
    return mine.loko_step(x, y, theta, weights, p=p, R=R, spec=spec, observation="softmax",
        noise="ema_innovation", timing="before", covariance="diagonal", diagonal="decoupled",
        beta=beta, lam=lam, q=q, center=False)

IMPLEMENTATION = {{"loko.step": loko_step}}
"""


@pytest.fixture
def plain(tmp_path):
    """A plain reading of the paper: a step without one option."""
    path = tmp_path / "plain.py"
    here = Path(__file__).parents[2] / "examples" / "my_loko.py"
    path.write_text(SOURCE.format(path=str(here)), encoding="utf-8")
    return path


def step(x, y, theta, weights, p, R, spec, lam, q, beta):
    rest = {"timing": "before", "covariance": "diagonal", "diagonal": "decoupled", "center": False}
    return MINE(x, y, theta, weights, p=p, R=R, spec=spec, lam=lam, q=q, beta=beta, **PAPER, **rest)


def words(options):
    return [word for pair in written(options) for word in ("--option", pair)]


def test_options_are_selected_and_built_on_every_network():
    cases = choose(WHOLE, "loko.step")
    assert all({k: c.options[k] for k in WHOLE} == WHOLE for c in cases)
    names = {c.recipe.name for c in cases}
    stem = "softmax-ema_innovation-before-decoupled"
    kinds = ("tanh", "relu", "gelu", "transformer")
    assert {stem, *(f"{stem}+{kind}" for kind in kinds)} <= names
    assert {c.inputs()["y"].shape[0] for c in cases} == {1, 2}
    plain = choose({}, "loko.step")
    assert [c.id for c in plain] == [c.id for c in select("loko.step")]
    # operations without the options keep theirs; whole kinds are not multiplied
    assert choose(WHOLE, "lora.delta") == select("lora.delta")
    assert len(choose({"observation": "softmax"}, "loko.step")) < len(plain)


def test_a_number_that_no_case_has_is_put_into_cases():
    cases = choose({"lr": 0.2, "momentum": 0.5}, "optimizer.sgd", "float64")
    assert {c.id for c in cases} >= {"optimizer.sgd/plain+lr=0.2+momentum=0.5/float64"}
    assert all(c.options["lr"] == 0.2 and c.options["momentum"] == 0.5 for c in cases)
    assert expected(cases[0])["theta"].shape
    cases = choose(PAPER | {"beta": 0.9, "lam": 0.99}, "loko.step")
    assert {(c.options["beta"], c.options["lam"]) for c in cases} == {(0.9, 0.99)}
    wide, narrow = cases[:2]
    assert (wide.dtype, narrow.dtype) == ("float64", "float32")
    assert narrow.twin.dtype == "float64"
    assert set(unit(narrow)) == set(unit(wide))
    again = choose(PAPER | {"beta": 0.9, "lam": 0.99}, wide.id)
    assert [c.id for c in again] == [wide.id]
    np.testing.assert_array_equal(again[0].inputs()["theta"], wide.inputs()["theta"])


def test_an_option_stated_needs_no_parameter():
    report = verify({"loko.step": step}, options=PAPER, dtype="float64", only="loko.step")
    assert report.passed
    assert report.summary.ran == 5  # of the other timing, diagonal and covariance it declines
    report = verify({"loko.step": step}, options=written(WHOLE), only="loko.step/*64")
    assert (report.summary.ran, report.summary.unsupported) == (5, 0)


def test_a_failure_is_reproduced_with_its_options(plain):
    text = plain.read_text(encoding="utf-8").replace("beta=beta", "beta=beta / 0")
    plain.write_text(text, encoding="utf-8")
    only = ("--only", "*+gelu+beta=0.9/float64")
    result = loko_ref("verify", plain, *words(WHOLE | {"beta": 0.9}), *only)
    assert result.returncode == 1
    line = next(t for t in result.stdout.splitlines() if t.strip().startswith("reproduce:"))
    assert "--option observation=softmax --option noise=ema_innovation --option timing=" in line
    typed = line.split("loko-ref ", 1)[1].split()
    again = loko_ref(*typed)
    assert again.returncode == 1
    assert "FAILED: 1 of 1" in again.stdout


def test_nothing_ran_and_the_report_says_what_to_type(plain):
    result = loko_ref("verify", plain)
    assert result.returncode == 2
    text = " ".join(result.stdout.split())
    assert "options that stood in the way: observation, noise, timing, diagonal" in text
    assert "--option observation=glm|gaussian|softmax|logits" in text
    result = loko_ref("verify", plain, *words(WHOLE), "--dtype", "float64")
    assert result.returncode == 0, result.stdout
    assert "stood in the way" not in result.stdout


def test_an_adapter_states_its_options_once(plain, tmp_path):
    text = plain.read_text(encoding="utf-8") + f"\nOPTIONS = {WHOLE!r}\n"
    plain.write_text(text, encoding="utf-8")
    out = tmp_path / "r.json"
    result = loko_ref("verify", plain, "--json", out, "--dtype", "float64")
    assert result.returncode == 0, result.stdout
    ran = [c for c in json.loads(out.read_text())["checks"] if c["status"] == "passed"]
    assert len(ran) == 5
    harness = Path(__file__).parents[2] / "examples" / "harness.py"
    command = [sys.executable, str(harness), str(plain)]
    assert verify(command, dtype="float64", only="loko.step/*+gelu/*").passed
    # what is typed counts more
    only = ("--only", "loko.step/*+relu/float64")
    result = loko_ref("verify", plain, "--option", "noise=fixed", *only)
    assert result.returncode == 1
    plain.write_text(text.replace("'noise'", "'noize'"), encoding="utf-8")
    result = loko_ref("verify", plain)
    assert result.returncode == 2
    assert "OPTIONS: got 'noize'; required one of" in result.stderr


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"obs": "softmax"}, "options: got 'obs'; required one of"),
        ({"observation": "sofmax"}, "options observation: got 'sofmax'; required one of"),
        ({"beta": "x"}, "options beta: got 'x'; required a number"),
        ({"beta": [0.1]}, "options beta: got"),
        ({"beta": True}, "options beta: got True; required a number"),
        ({"center": "maybe"}, "options center: got 'maybe'; required true or false"),
        (["beta"], "options: got 'beta'; required NAME=VALUE"),
        (PAPER | {"noise": "glm"}, "noise='glm' with observation='glm'"),
        ({"spec": []}, "options: got 'spec'; required one of"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused(given, text):
    with pytest.raises(InputError) as error:
        read_options("options", given)
    assert text in str(error.value)
    with pytest.raises(InputError):
        verify({"loko.step": step}, options=given)


def test_options_that_no_case_has_are_refused():
    asked = {"covariance": "dense", "diagonal": "variational"}
    with pytest.raises(InputError, match=r"options: got .*diagonal=variational; required options"):
        choose(asked, "loko.step")
    with pytest.raises(InputError, match="only: got 'nothing'"):
        choose(PAPER, "nothing")
    result = loko_ref("verify", "--list", "--option", "observation=softmax", "--only", "loko.step")
    assert result.returncode == 0
    assert "loko.step/softmax-fixed-before-dense/float64" in result.stdout
    assert "loko.step/gaussian" not in result.stdout
