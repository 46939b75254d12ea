"""``loko-ref lte`` refuses before the run what it could not do, or could not leave behind."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from loko_ref.cli.app import app
from loko_ref.errors import InputError, MissingExtraError, NumericalError
from loko_ref.experiments.lte import report

SMALL = ["--hidden", "12", "--rank", "2", "--batch", "16", "--merge-every", "2"]


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["lte", *SMALL, *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--hidden", ""], "hidden: got ''; required widths"),
        (["--hidden", "8,,8"], "hidden: got '8,,8'; required widths"),
        (["--rank", "0"], "rank: got 0"),
        (["--batch", "0"], "none, or more than there are"),
        (["--optimizer", "adamw,lr=0.1", "--lr", "0.2"], "given twice"),
        (["--optimizer", "adamw,lr=0.1,lr=0.2"], "'lr' once"),
        (["--optimizer", "sgd,nesterov=3"], "nesterov: got .* true or false"),
        (["--optimizer", "loko,center=maybe"], "center: got .* true or false"),
        (["--scaling", "sum"], "scaling: got 'sum' with mode='lte'"),
        (["--mode", "mhlora", "--merging", "incremental"], "merging: got 'incremental' with"),
        (
            ["--mode", "mhlora", "--optimizer", "loko", "--filter-merge", "shrink"],
            "filter_merge: got 'shrink' with mode='mhlora'",
        ),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_would_be_read_otherwise_than_asked_is_refused(arguments, reason) -> None:
    with pytest.raises(InputError, match=reason):
        call("--steps", "2", *arguments)


def test_a_size_that_is_no_plain_number_is_refused() -> None:
    vit = ["lte", "--network", "vit", "--size", "layers=\N{SUPERSCRIPT TWO}"]
    result = CliRunner().invoke(app, vit)
    assert isinstance(result.exception, InputError)
    assert "NAME=NUMBER" in str(result.exception)


def test_a_place_for_checkpoints_that_cannot_be_one_is_refused_before_the_run(tmp_path) -> None:
    for place in (tmp_path, tmp_path / "absent" / "c.npz", tmp_path / "c.txt"):
        with pytest.raises(InputError, match=r"--checkpoint: got "):
            call("--steps", "2", "--checkpoint", str(place))


def test_a_checkpoint_in_another_dtype_is_refused_by_that_name(tmp_path) -> None:
    call("--steps", "4", "--checkpoint", str(tmp_path / "c.npz"))
    with pytest.raises(InputError, match=r"dtype = 'float64'; required run\.dtype = 'float32'"):
        call("--steps", "6", "--resume", str(tmp_path / "c.npz"), "--dtype", "float32")


def test_the_extra_that_a_plot_needs_is_named_before_the_run(tmp_path, monkeypatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(report, "execute", lambda *a: pytest.fail("the run had begun"))
    with pytest.raises(MissingExtraError, match=r"matplotlib.*loko-ref\[data\]"):
        call("--steps", "2", "--plot", str(tmp_path / "a.svg"))


@pytest.mark.parametrize("more", [[], ["--checkpoint"]], ids=["", "checkpoint"])
@pytest.mark.parametrize("steps", ["1", "2"])
def test_a_last_step_too_far_is_no_result(steps, more, tmp_path) -> None:
    """Its gradient was finite; the network that it leaves is not, nor would the JSON be JSON."""
    file, place = tmp_path / "a.json", [str(tmp_path / "c.npz")] if more else []
    # two steps at 1e300 fail in the second's gradient: the loss fails after a merge at the first
    every = ["--merge-every", "1"] if steps == "2" else []
    flags = ["--optimizer", "sgd", "--lr", "1e300", "--steps", steps, "--json", str(file)]
    diverged = pytest.raises(NumericalError, match=r"step 1: loss: not finite. The run diverged")
    with np.errstate(over="ignore", invalid="ignore"), diverged:
        call(*flags, *every, *more, *place)
    assert not file.exists()
    assert not (tmp_path / "c.npz").exists()


def test_a_baseline_that_diverges_says_that_it_is_one(tmp_path, monkeypatch) -> None:
    real = report.train

    def train(config, *arguments, **more):
        if not config.layout.factors:
            raise NumericalError("gradient", None, "The run diverged.", 3)
        return real(config, *arguments, **more)

    monkeypatch.setattr(report, "train", train)
    with pytest.raises(NumericalError, match="step 3: baseline full: gradient: not finite"):
        call("--steps", "2", "--baseline", "lora", "--baseline", "full")
    file = tmp_path / "a.json"
    call("--steps", "2", "--baseline", "lora", "--json", str(file))
    assert [b["name"] for b in json.loads(file.read_text())["baselines"]] == ["lora"]
