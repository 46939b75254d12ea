"""`loko-ref train` as a person meets it: output, files, exit codes, one sentence an error."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest

from loko_ref.cli import main, options
from loko_ref.errors import InputError
from loko_ref.experiments import plots
from loko_ref.experiments.config import RunConfig, default_options
from loko_ref.experiments.stream import Point
from loko_ref.experiments.terminal import progress_bars
from loko_ref.files import documents


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["loko-ref", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return stopped.value.code or 0, out, err

    return call


def validated(path, kind="accuracy"):
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema (extra 'test')")
    document = json.loads(path.read_text())
    jsonschema.validate(document, documents.load("train"))
    assert all(f"online_{kind}" in run for run in document["runs"])
    return document


@pytest.mark.larger
def test_the_run_on_digits_prints_a_table_and_writes_json_and_plot(cli, tmp_path):
    code, out, err = cli(
        *("train", "--data", "digits", "--shift", "rotate90", "--seed", 0),
        *("--optimizer", "loko", "--optimizer", "adamw"),
        *("--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg"),
    )
    assert code == 0
    assert err == ""  # no progress bar where stderr is no terminal
    for word in ("online accuracy", "test accuracy", "steps", "seconds", "loko", "adamw", "600"):
        assert word in out
    first, second = validated(tmp_path / "r.json")["runs"]
    assert (first["optimizer"], second["optimizer"]) == ("loko", "adamw")
    assert first["test_accuracy"] > second["test_accuracy"]
    assert f"{first['test_accuracy']:.3f}" in out
    svg = (tmp_path / "r.svg").read_text()
    assert svg.startswith("<?xml")
    for word in ("loko", "adamw", "samples streamed", "accuracy on the test part"):
        assert word in svg


def test_seeds_default_to_three_and_their_mean_is_shown(cli, tmp_path):
    code, out, _ = cli("train", "--data", "iris", "--json", tmp_path / "r.json")
    assert code == 0
    assert out.count("mean of 3") == 2
    found = validated(tmp_path / "r.json")["runs"]
    assert [(r["config"]["seed"], r["optimizer"]) for r in found] == [
        (s, o) for s in (0, 1, 2) for o in ("loko", "adamw")
    ]


def test_a_reported_config_repeats_the_run(cli, tmp_path):
    from loko_ref.experiments import runs

    words = ("train", "--data", "wine", "--seed", 4, "--shift", "permute", "--optimizer", "loko")
    cli(
        *words, "--variant", "logits,noise=ema_residual_hph,beta=0.8", "--json", tmp_path / "r.json"
    )
    (reported,) = validated(tmp_path / "r.json")["runs"]
    (again,) = runs.run_all([RunConfig(**reported["config"])])
    for name in ("online_accuracy", "test_accuracy", "steps"):
        assert again.result[name] == reported[name]


def test_regression_reports_rmse(cli, tmp_path):
    code, out, _ = cli("train", "--data", "diabetes", "--seed", 0, "--json", tmp_path / "r.json")
    assert code == 0
    assert "test RMSE" in out
    document = validated(tmp_path / "r.json", "rmse")
    assert document["runs"][0]["config"]["options"]["observation"] == "gaussian"


def test_stop_and_resume_end_as_the_uninterrupted_run(cli, tmp_path):
    words = ("train", "--data", "iris", "--seed", 0)
    cli(*words, "--json", tmp_path / "whole.json", "--checkpoint", tmp_path / "whole.npz")
    kept = tmp_path / "part.npz"
    code, _, err = cli(*words, "--checkpoint", kept, "--stop-after", 20)
    assert code == 0
    assert f"--resume {kept}" in err
    # the options are the checkpoint's own, or the same ones once more
    code, _, err = cli("train", "--resume", kept, "--checkpoint", kept, "--stop-after", 40)
    assert code == 0
    code, out, err = cli(*words, "--resume", kept, "--json", tmp_path / "part.json")
    assert code == 0
    assert err == ""
    assert "adamw" in out
    whole, part = (validated(tmp_path / f"{n}.json")["runs"] for n in ("whole", "part"))
    for run in (*whole, *part):
        del run["seconds"]
    assert whole == part


def test_a_checkpoint_of_another_command_is_refused(cli, tmp_path):
    kept = tmp_path / "c.npz"
    cli("train", "--data", "iris", "--seed", 0, "--checkpoint", kept, "--stop-after", 5)
    code, _, err = cli("train", "--data", "wine", "--seed", 0, "--resume", kept)
    assert code == 2
    assert "data = 'iris'" in err
    assert "data = 'wine'" in err


def test_a_divergence_is_exit_code_1_and_keeps_the_other_results(cli, tmp_path):
    code, out, err = cli(
        *("train", "--data", "digits", "--seed", 0, "--optimizer", "sgd,lr=1e6"),
        *("--optimizer", "adamw", "--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg"),
    )
    assert code == 1
    assert re.search(r"diverged: sgd lr=1e\+06, seed 0: step \d+: ", err)
    assert "adamw" in out
    document = json.loads((tmp_path / "r.json").read_text())
    assert [r["optimizer"] for r in document["runs"]] == ["adamw"]
    assert [f["optimizer"] for f in document["failures"]] == ["sgd"]
    assert isinstance(document["failures"][0]["step"], int)


def test_all_divergent_runs_still_write_json(cli, tmp_path):
    words = ("train", "--data", "digits", "--seed", 0, "--optimizer", "loko", "--p0", 100)
    code, out, err = cli(*words, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg")
    assert code == 1
    assert out == ""
    assert "smaller p0" in err
    assert json.loads((tmp_path / "r.json").read_text())["runs"] == []


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--data", "digit"], "closest known name is 'digits'"),
        (["--data", "wine", "--shift", "rotate90"], "no pixels"),
        (["--optimizer", "adam"], "closest known name is 'adamw'"),
        (["--optimizer", "sgd,moment=0.9"], "closest known name is 'momentum'"),
        (["--variant", "glmm"], "closest known name is 'glm'"),
        (["--variant", "diagonals=variational"], "closest known name is 'diagonal'"),
        (["--variant", "diagonal=variable"], "closest known name is 'variational'"),
        (["--variant", "softmax,noise=glm"], "noise='glm'"),
        (["--variant", "softmax,beta=x"], "a number"),
        (["--variant", "beta=0.9", "--variant", "beta=0.8"], "repeated"),
        (["--variant", "center=maybe"], "true or false"),
        (["--variant", ","], "at least one word"),
        (["--variant", "p0=1,p0.0=2"], "not both"),
        (["--variant", "p0.9=2"], "one number a site"),
        (["--optimizer", "adamw", "--variant", "glm"], "LoKO was left out"),
        (["--optimizer", "adamw", "--p0", "1"], "LoKO was left out"),
        (["--lr", "adamw=fast"], "a number"),
        (["--lr", "adam=1"], "closest known name is 'adamw'"),
        (["--lr", "sgd=1"], "one that runs"),
        (["--p0", "0"], "p0"),
        (["--lr", "-1"], "lr"),
        (["--seed", "-1"], "seed"),
        (["--batch", "0"], "batch"),
        (["--dtype", "float16"], "dtype"),
        (["--backend", "torch"], "backend"),
        (["--backend", "balls"], "backend: got 'balls'; required one of numpy, cupy"),
        (["--json", "/nowhere/r.json"], "existing directory"),
        (["--plot", "r.pdf"], ".svg or .png"),
        (["--checkpoint", "c.pkl"], ".npz or .safetensors"),
        (["--stop-after", "3"], "--checkpoint F too"),
        (["--resume", "/nowhere/c.npz"], "No such file"),
        (["--checkpoint-every", "0"], "every"),
        (["--label-noise", "1.5"], "label_noise"),
        (["--rank", "4"], "rank: got 4; required at most 3, the smaller side of layer 2"),
        (["--rank", "0"], "rank"),
        (["--lr", "0.1", "--optimizer", "loko"], "p0 takes its place"),
        (["--lr", "0.1", "--optimizer", "sgd,lr=0.2"], "given twice"),
        (["--p0", "1", "--optimizer", "loko,p0=2"], "given twice"),
        (["--hidden", "8,,8"], "widths such as"),
        (["--size", "layers=2"], "nothing with network 'mlp'"),
        (["--targets", "5"], "targets"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_exit_code_2(cli, words, needle):
    base = ["train", "--data", "iris"] if "--data" not in words else ["train"]
    code, out, err = cli(*base, *words)
    assert code == 2
    assert needle in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_cupy_asked_for_and_absent_is_said(cli):
    code, _, err = cli("train", "--data", "iris", "--backend", "cupy")
    assert code == 2
    assert "backend 'cupy': not installed" in err


@pytest.mark.parametrize(
    ("module", "words"),
    [("sklearn", []), ("matplotlib.figure", ["--plot"])],
)
def test_a_missing_package_names_its_extra(cli, monkeypatch, tmp_path, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    paths = [tmp_path / "r.svg"] if words else []
    code, _, err = cli("train", "--data", "iris", "--seed", 0, *words, *paths)
    assert code == 2
    assert "loko-ref[data]" in err


def test_variants_are_runs_of_their_own(cli, tmp_path):
    code, out, _ = cli(
        *("train", "--data", "iris", "--seed", 0, "--optimizer", "loko"),
        *("--variant", "glm", "--variant", "glm,diagonal=variational"),
        *("--variant", "observation=logits", "--json", tmp_path / "r.json"),
    )
    # the third text has no bare name, so it adds to the second variant, where it contradicts
    assert code == 2
    code, out, _ = cli(
        *("train", "--data", "iris", "--seed", 0, "--optimizer", "loko", "--lr", "adamw=0.01"),
        *("--optimizer", "adamw", "--variant", "glm", "--variant", "logits"),
        *("--variant", "beta=0.9,p0=1", "--json", tmp_path / "r.json"),
    )
    assert code == 0
    glm, logits, adamw = (r["config"]["options"] for r in validated(tmp_path / "r.json")["runs"])
    assert (glm["observation"], logits["observation"]) == ("glm", "logits")
    assert (logits["beta"], logits["p0"]) == (0.9, 1.0)
    assert adamw["lr"] == 0.01
    assert "loko logits beta=0.9 p0=1" in " ".join(out.split())


def test_every_option_of_loko_can_be_written():
    text = (
        "softmax,noise=ema_innovation,timing=after,beta=0.9,r0=2,p0=0.1,covariance=block,"
        "diagonal=decoupled,form=joseph,lam=0.99,q=1e-5,center=false,solve=linear,columns=0,"
        "blocks=tensor"
    )
    (found,) = options.parse_variants([text])
    assert set(found) == set(default_options("loko", False))
    assert RunConfig(optimizer="loko", options=found).options == found


def test_words_of_sgd_are_read_by_their_kind():
    ((name, found),) = options.parse_optimizers(["sgd,lr=1e-1,momentum=0.9,nesterov=true"])
    assert (name, found) == ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True})


def test_equal_curves_are_drawn_as_equal_bytes_and_none_is_refused():
    pytest.importorskip("matplotlib", reason="needs Matplotlib (extra 'data')")
    line = [Point(samples=k, online=k / 10, test=k / 20) for k in range(1, 6)]
    several = {"a": [line], "b": [line, line]}
    one, two = (plots.draw(plots.learning_curves(several), title="t") for _ in range(2))
    assert one == two
    assert plots.draw(plots.learning_curves({"a": [line]}), kind="png").startswith(b"\x89PNG")
    with pytest.raises(InputError, match="curves"):
        plots.draw(plots.learning_curves({"a": [[]]}))


def test_network_and_lora_are_chosen_as_in_lte(cli, tmp_path):
    words = ("train", "--seed", 0, "--limit", 8, "--optimizer", "loko", "--epochs", 1)
    json_file = ("--json", tmp_path / "r.json")
    mlp = ("--data", "iris", "--hidden", "6,5", "--rank", "2", "--targets", "0", "--targets", "1")
    assert cli(*words, *mlp, "--init", "orthogonal", *json_file)[0] == 0
    found = validated(tmp_path / "r.json")["runs"][0]["config"]
    asked = {"hidden": [6, 5], "rank": 2, "alpha": 2.0, "targets": ["0", "1"], "epochs": 1}
    assert asked.items() <= found.items()
    vit = ("--data", "digits", "--network", "vit", "--size", "layers=1", "--size", "width=8")
    assert cli(*words, *vit, "--alpha", "2", *json_file)[0] == 0
    found = validated(tmp_path / "r.json")["runs"][0]["config"]
    assert found["size"] == {"layers": 1, "width": 8, "heads": 4, "ff": 64}
    assert (found["rank"], found["alpha"], found["activation"]) == (None, 2.0, "gelu")
    assert found["targets"] == ["q", "v", "head.out"]


def test_float32_is_kept_and_reported(cli, tmp_path):
    kept = tmp_path / "c.npz"
    code, _, _ = cli(
        *("train", "--data", "iris", "--seed", 0, "--dtype", "float32"),
        *("--checkpoint", kept, "--json", tmp_path / "r.json"),
    )
    assert code == 0
    with np.load(kept) as file:
        assert {file[k].dtype.name for k in file.files if k != "__loko_ref__"} == {"float32"}
    assert validated(tmp_path / "r.json")["runs"][0]["config"]["dtype"] == "float32"


def test_progress_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("TERM", "xterm")
        with progress_bars() as update:
            update("loko", 0, 7)
            update("loko", 7, 7, "online 0.5")
        shown = capsys.readouterr().err
        assert ("loko" in shown and "7/7" in shown and "online 0.5" in shown) is terminal, shown
    with progress_bars(shown=False) as update:
        update("loko", 7, 7)
    assert capsys.readouterr().err == ""
