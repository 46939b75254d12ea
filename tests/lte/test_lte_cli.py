"""``loko-ref lte`` in one process: what it prints, writes and refuses; diagnostics."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from lte_common import config, lora_only
from typer.testing import CliRunner

from loko_ref import lte
from loko_ref.cli.app import app
from loko_ref.errors import InputError, NumericalError
from loko_ref.experiments.lte import diagnostics
from loko_ref.network.spec import linears

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = {"test_accuracy", "loss", "steps", "merges", "bytes_sent", "rank_of_update", "state_sha256"}


def call(*arguments: str):
    result = CliRunner().invoke(app, ["lte", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


TINY = [f"--size={k}" for k in ("layers=1", "width=8", "heads=2", "ff=12")]
SHORT = ["--batch", "16", "--rank", "3", "--steps", "20"]
SMALL = ["--hidden", "24,16", *SHORT]


def test_the_json_has_the_promised_form_and_the_run_learns(tmp_path) -> None:
    file, plot, details = (tmp_path / name for name in ("a.json", "a.svg", "d.json"))
    out = call(
        *("--steps", "96", "--hidden", "32,32", "--baseline", "full", "--baseline", "lora"),
        *("--json", str(file), "--plot", str(plot), "--details", str(details)),
    )
    found = json.loads(file.read_text())
    assert found["schema"] == "loko-ref/lte/1"
    assert set(found) == {"schema", "versions", "platform", "baselines"} | KEYS
    assert [b["name"] for b in found["baselines"]] == ["full", "lora"]
    for b in found["baselines"]:
        assert set(b) == {"name"} | KEYS
    assert found["steps"] == 96
    assert found["merges"] == 12
    assert found["rank_of_update"] <= 4 * 4
    assert found["baselines"][1]["rank_of_update"] <= 4
    assert found["test_accuracy"] > 0.5
    # 4 heads, rank 4, 64-32-32-10, float64: 8 bytes each, once a merge
    assert found["bytes_sent"] == 12 * 8 * 4 * 4 * (96 + 64 + 42)
    full = (64 * 32 + 32) + (32 * 32 + 32) + (32 * 10 + 10)
    assert found["baselines"][0]["bytes_sent"] == 96 * 4 * 8 * full
    assert found["state_sha256"] in out
    assert plot.read_text().count("<svg") == 1
    told = json.loads(details.read_text())
    assert [len(r["loss"]) for r in told["runs"]] == [96, 96, 96]
    assert len(told["runs"][0]["layers"]["0"]["angles"]) == 6  # pairs of 4 heads


@pytest.mark.sampled(0.3)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode", "mhlora"],
        ["--mode", "mhlora", "--scaling", "sum", "--optimizer", "loko,p0=0.01"],
        ["--realisation", "copies", "--reset", "B", "--dense-last", "--lora-bias"],
        ["--data-split", "replicated", "--reduction", "own", "--optimizer", "adagrad"],
        ["--optimizer", "loko,glm", "--reset", "AB", "--filter-merge", "prior"],
        ["--data", "diabetes", "--optimizer", "loko", "--hidden", "12"],
        [
            "--data",
            "wine",
            "--dtype",
            "float32",
            "--optimizer",
            "sgd,nesterov=true,momentum=0.9",
            "--lr",
            "0.01",
        ],
        ["--steps", "21"],
        ["--network", "vit", *TINY, "--reset", "AB", "--lora-bias", "--dtype", "float32"],
        ["--network", "vit", *TINY, "--targets", "q", "--targets", "0.f1", "--optimizer", "loko"],
        ["--data", "topics", *TINY, "--mode", "mhlora", "--replicas", "frozen", "--limit", "60"],
    ],
    ids=lambda a: "-".join(k for k in a if "size" not in k).replace("--", ""),
)
def test_variants_run_and_repeat_to_the_same_hash(arguments, tmp_path) -> None:
    hashes = set()
    for k in range(2):
        file = tmp_path / f"{k}.json"
        call(*(SHORT if TINY[0] in arguments else SMALL), *arguments, "--json", str(file))
        found = json.loads(file.read_text())
        hashes.add(found["state_sha256"])
        assert np.isfinite(found["loss"])
    assert len(hashes) == 1


@pytest.mark.parametrize("data", ["wine", "iris", "breast_cancer", "diabetes"])
def test_every_data_set_runs_with_the_default_options(data, tmp_path) -> None:
    """A narrower layer takes the rank that fits, with the same scale alpha / rank."""
    file, details = tmp_path / "a.json", tmp_path / "d.json"
    call("--data", data, "--steps", "8", "--json", str(file), "--details", str(details))
    assert json.loads(file.read_text())["merges"] == 1
    spec = json.loads(details.read_text())["config"]["spec"]
    with_lora = [layer for layer in linears(spec) if "lora" in layer]
    for layer in with_lora:
        r = min(4, layer["in"], layer["out"])
        assert layer["lora"] == {"r": r, "alpha": 2.0 * r, "bias": False}
    assert len(with_lora) > 1


def test_a_rank_that_was_asked_for_must_fit(tmp_path) -> None:
    for more in ([], ["--alpha", "3"]):
        with pytest.raises(InputError, match=r"rank: got 4; required at most 3, .* layer 2"):
            call("--data", "wine", "--rank", "4", *more)
    details = tmp_path / "d.json"
    call("--data", "wine", "--epochs", "2", "--rank", "3", "--alpha", "5", "--details", details)
    found = json.loads(details.read_text())
    assert found["run"]["steps"] == 2 * ((89 + 59) // 32)  # two passes over base and stream
    loras = [layer["lora"] for layer in linears(found["config"]["spec"])]
    assert loras == [{"r": 3, "alpha": 5.0, "bias": False}] * 3
    with pytest.raises(InputError, match="steps or epochs, not both"):
        call("--data", "wine", "--steps", "8", "--epochs", "1")


def test_train_and_lte_speak_one_dialect() -> None:
    commands = typer.main.get_command(app).commands
    train, lte_ = ({p.name: p for p in commands[name].params} for name in ("train", "lte"))
    own = {"help", "seed", "optimizer", "epochs"}  # several runs, and a base before the stream
    shared = (train.keys() & lte_.keys()) - own
    assert {"data", "rank", "alpha", "p0", "lr", "size", "checkpoint", "resume"} <= shared
    for name in shared:
        assert (train[name].opts, train[name].help) == (lte_[name].opts, lte_[name].help), name


def test_a_text_of_ones_own_is_trained_on(tmp_path) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["a", "fine", "dull", "film", "plot", "no"])
    rows = [f"{' '.join(rng.choice(words, 6))}\t{k % 2}" for k in range(40)]
    tsv = tmp_path / "train.tsv"
    tsv.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    file = tmp_path / "a.json"
    glue = ["--data", f"glue:{tsv}", "--length", "5", *TINY, "--rank", "2", "--batch", "8"]
    call(*glue, "--steps", "9", "--json", str(file))
    assert json.loads(file.read_text())["merges"] == 2
    with pytest.raises(InputError, match="length"):
        call(*SMALL, "--length", "5")


def test_a_last_merge_closes_a_run_between_two(tmp_path) -> None:
    for steps, merges in ((16, 2), (17, 3), (24, 3)):
        file = tmp_path / f"{steps}.json"
        call(*SMALL, "--steps", str(steps), "--json", str(file))
        assert json.loads(file.read_text())["merges"] == merges


def test_a_run_resumes_from_the_command_line_to_the_same_json(tmp_path) -> None:
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    call(*SMALL, "--json", str(whole))
    call(*SMALL, "--steps", "16", "--checkpoint", str(tmp_path / "c.npz"))
    call(*SMALL, "--resume", str(tmp_path / "c.npz"), "--json", str(again))
    assert again.read_text() == whole.read_text()


@pytest.mark.larger
def test_a_transformer_learns_from_scratch_beside_its_baselines(tmp_path) -> None:
    file, details, plot = (tmp_path / name for name in ("a.json", "d.json", "p.svg"))
    out = call(
        *("--network", "vit", "--size", "layers=1", "--size", "width=16", "--size", "ff=24"),
        *("--steps", "72", "--lr", "0.005", "--baseline", "full", "--baseline", "lora"),
        *("--json", str(file), "--details", str(details), "--plot", str(plot)),
    )
    found, told = json.loads(file.read_text()), json.loads(details.read_text())
    rows = [found, *found["baselines"]]
    assert all(row["test_accuracy"] > 0.3 for row in rows)
    linears = ["patch", *(f"0.{k}" for k in ("q", "k", "v", "o", "f1", "f2")), "head.out"]
    assert [list(run["layers"]) for run in told["runs"]] == [linears] * 3
    assert found["rank_of_update"] == 16
    assert found["baselines"][1]["rank_of_update"] == 4
    # norms, [CLS] and positions travel with the factors: 8 bytes, 4 heads, 9 merges
    r, d, ff = 4, 16, 24
    factors = r * ((4 + d) + 4 * 2 * d + 2 * (d + ff) + (d + 10))
    assert found["bytes_sent"] == 9 * 8 * 4 * (factors + 3 * 2 * d + d + 17 * d)
    assert "head.out" in out


def test_the_backend_asked_for_is_given_or_refused(monkeypatch, tmp_path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import device

    from loko_ref.arrays import backends

    with pytest.raises(InputError, match="backend: got 'balls'"):
        call(*SMALL, "--backend", "balls")
    backends._cupy.cache_clear()
    device.fake_cupy(monkeypatch)
    vit = ["--network", "vit", *TINY, "--steps", "12", "--batch", "16", "--rank", "2"]
    for k, arguments in enumerate((SMALL, [*SMALL, "--mode", "mhlora"], vit)):
        hashes = []
        for backend in ("numpy", "cupy"):
            file = tmp_path / f"{k}{backend}.json"
            more = ("--baseline", "lora", "--checkpoint", str(tmp_path / f"{k}{backend}.npz"))
            call(*arguments, "--backend", backend, "--json", str(file), *more)
            hashes.append(file.read_text())
        assert hashes[0] == hashes[1]
        with pytest.raises(InputError, match="backend = 'cupy'"):
            call(*arguments, "--resume", str(tmp_path / f"{k}cupy.npz"))
    backends._cupy.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--optimizer", "adam"], "closest known name is 'adamw'"),
        (["--mode", "lora"], "mode: got 'lora'"),
        (["--heads", "0"], "heads: got 0"),
        (["--heads", "3", "--batch", "16"], "a multiple of heads = 3"),
        (["--rank", "11"], "at most 10"),
        (["--baseline", "ful"], "closest known name is 'full'"),
        (["--optimizer", "sgd,momentun=0.9"], "closest known name is 'momentum'"),
        (["--hidden", "12,x"], "widths such as"),
        (["--merge-every", "0"], "merge_every: got 0"),
        (["--mode", "mhlora", "--reset", "B"], "never merges"),
        (["--filter-merge", "shrink"], "an option of LoKO alone"),
        (["--optimizer", "loko", "--lr", "0.1"], "p0 takes its place"),
        (["--optimizer", "loko", "--filter-merge", "prior"], "covariance is 'block'"),
        (["--steps", "0"], "steps"),
        (["--batch", "5000"], "1 to 1500 samples"),
        (["--plot", "x.pdf"], ".svg or .png"),
        (["--json", "/nowhere/at/all.json"], "json"),
        (["--resume", "/nowhere"], "use a file F.npz"),
        (["--checkpoint", "ckpt"], "use a file F.npz"),
        (["--option", "eps=1e-6"], "use --optimizer adamw,eps=1e-6"),
        (["--lr", "sgd=0.1"], "a rate for one that runs"),
        (["--p0", "0.1"], "LoKO was left out"),
        (["--resume", "/nowhere.npz"], "No such file"),
        (["--network", "vti"], "closest known name is 'vit'"),
        (["--network", "encoder"], "cannot read these data"),
        (["--data", "wine", "--network", "vit"], "cannot read these data"),
        (["--network", "vit", "--size", "depth=2"], "size"),
        (["--size", "layers=2"], "nothing with network 'mlp'"),
        (["--network", "vit", "--hidden", "9"], "nothing with network 'vit'"),
        (["--network", "vit", "--size", "layers=two"], "NAME=NUMBER"),
        (["--network", "vit", "--size", "patch=3"], "a divisor of the image"),
        (["--network", "vit", "--rank", "8"], "at most 4, the smaller side of layer patch"),
        (["--targets", "3"], "targets"),
        (["--replicas", "no"], "replicas: got 'no'"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_run_is_refused_with_a_reason(arguments, reason) -> None:
    with pytest.raises(InputError, match=reason):
        call(*arguments)


def test_a_spec_that_is_faulty_is_refused_by_name() -> None:
    spec = [
        {"kind": "linear", "name": "0", "in": 6, "out": 6, "lora": {"r": 2, "alpha": 4.0}},
        {"kind": "layernorm", "name": "1", "width": 6},
    ]
    assert lte.LteConfig(spec=spec, heads=2).nested
    with pytest.raises(InputError, match=r"spec\[1\].kind: got 'batchnorm'"):
        lte.LteConfig(spec=[spec[0], {**spec[1], "kind": "batchnorm"}], heads=2)
    del spec[1]["width"]
    with pytest.raises(InputError, match="no width"):
        lte.LteConfig(spec=spec, heads=2)


def test_a_run_that_diverges_names_the_step() -> None:
    with pytest.raises(NumericalError, match=r"step \d+: gradient: not finite. The run diverged"):
        call(*SMALL, "--data", "wine", "--optimizer", "sgd", "--lr", "3", "--dtype", "float32")


def test_mpi4py_is_imported_by_one_module_only_and_not_without_a_launcher() -> None:
    modules = [
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "loko_ref").rglob("*.py")
        if ("mpi4py" in p.read_text() and 'import_module("mpi4py' in p.read_text())
        or "import mpi4py" in p.read_text()
        or "from mpi4py" in p.read_text()
    ]
    assert modules == ["loko_ref/lte/mpi.py"]
    code = "import sys, loko_ref.cli.app, loko_ref.lte.mpi; assert 'mpi4py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_bytes_counted_are_the_formulas() -> None:
    for c in (config(), lora_only(mode="mhlora")):
        from lte_common import batches, start

        team = lte.team.Alone()
        _, trace = lte.run(c, start(c, team=team), batches(c, 5), team=team)
        times = sum(e.kind == ("step" if c.mode == "mhlora" else "merge") for e in trace.events)
        assert team.sent == times * lte.bytes_per_merge(c, 8)


def test_spectra_ranks_and_angles() -> None:
    rng = np.random.default_rng(0)
    W_0 = rng.standard_normal((20, 30))
    B, A = rng.standard_normal((20, 3)), rng.standard_normal((3, 30))
    assert diagnostics.numerical_rank(W_0 + B @ A, W_0) == 3
    assert diagnostics.numerical_rank(W_0, W_0) == 0
    assert diagnostics.numerical_rank((W_0 + B @ A).astype("f"), W_0.astype("f")) == 3
    s = diagnostics.update_spectrum(W_0 + B @ A, W_0)
    np.testing.assert_allclose(s[:3], np.linalg.svd(B @ A, compute_uv=False)[:3], rtol=1e-12)
    assert diagnostics.effective_rank(np.ones(7)) == pytest.approx(7, rel=1e-14)
    assert diagnostics.effective_rank(np.zeros(7)) == 0
    Q = np.eye(6)
    turned = np.stack([Q[:2], Q[2:4], np.stack([(Q[0] + Q[4]) / 2**0.5, Q[1]])])
    angles = diagnostics.principal_angles(turned)
    np.testing.assert_allclose(angles, [[90, 90], [45, 0], [90, 90]], atol=1e-12)


def test_the_cost_models_limits() -> None:
    cost = runpy.run_path(str(ROOT / "examples/lte_cost.py"))
    network = cost["Network"](bandwidth=1e9, latency=1e-5, flops=1e12)
    sizes = {"0": (64, 128), "1": (10, 64)}

    def at(**changes):
        usual = {"nodes": 8, "heads": 8, "r": 4, "merge_every": 8, "batch": 32}
        return cost["costs"](sizes, network=network, **(usual | changes))

    assert at(nodes=1).lte == at(nodes=1).data_parallel == 0
    assert at(merge_every=16).lte == pytest.approx(at().lte / 2, rel=1e-14)
    # the bytes that leave the wire are those that a run counts, once round the ring
    spec = [
        {"kind": "linear", "name": k, "in": i, "out": o, "lora": {"r": 4, "alpha": 8}}
        for k, (o, i) in sizes.items()
    ]
    per_merge = lte.bytes_per_merge(lte.LteConfig(spec=spec, heads=8), 4)
    assert at().lte_bytes * 8 == pytest.approx(per_merge * 7 / 8, rel=1e-14)


def test_the_example_of_costs_runs(tmp_path, capsys, monkeypatch) -> None:
    drawn = tmp_path / "cost.svg"
    monkeypatch.setattr(sys, "argv", ["lte_cost.py", str(drawn)])
    runpy.run_path(str(ROOT / "examples/lte_cost.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert " 1024" in out
    assert "<svg" in drawn.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "9 steps agree"),
        pytest.param(["--fault"], "reproduced by LTE-RESET-FORGETS", marks=pytest.mark.larger),
    ],
)
def test_the_example_of_a_replay_runs(flags, said, tmp_path) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples/lte_replay.py"), *flags],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(said) == 2, ended.stdout  # AdaGrad, LoKO
