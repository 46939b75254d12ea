"""A run on real data: described whole, stopped and resumed without changing a bit."""

import dataclasses
import json
import math
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import device
import numpy as np
import pytest
from sampling import count

from loko_ref import arrays, loko, optimizers
from loko_ref.arrays import backends
from loko_ref.errors import BackendError, InputError, MissingExtraError, NumericalError
from loko_ref.experiments import base_network as pretraining
from loko_ref.experiments import checkpoint, evaluation, runs, stream
from loko_ref.experiments.config import RunConfig, default_options, default_shift
from loko_ref.experiments.data import bundled
from loko_ref.files import storage
from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import unpack

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"data": "iris", "epochs": 2, "hidden": (16, 16), "evaluations": 4}

LEARNERS = {
    "glm": ("loko", {}),
    "glm variational": ("loko", {"diagonal": "variational", "lam": 0.99, "q": 1e-4}),
    "softmax": ("loko", {"observation": "softmax", "p0": 0.5}),
    "softmax after": ("loko", {"observation": "softmax", "timing": "after"}),
    "logits": ("loko", {"observation": "logits", "center": True}),
    "logits residual": ("loko", {"observation": "logits", "noise": "ema_residual_hph"}),
    "p0 a site": ("loko", {"p0": {"0": 0.1, "1": 0.05, "2": 0.01}}),
    "dense": ("loko", {"covariance": "dense"}),
    "dense softmax joseph": (
        "loko",
        {"covariance": "dense", "observation": "softmax", "form": "joseph"},
    ),
    "sgd": ("sgd", {}),
    "sgd momentum": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("adagrad", {"lr": 0.1}),
    "adamw": ("adamw", {"lr": 0.01}),
}


def config(name, **changed):
    optimizer, options = LEARNERS[name]
    return RunConfig(optimizer=optimizer, options=options, **(SMALL | changed))


def assert_same_end(a, b):
    """Two entries agree in every bit but for the time they took."""
    assert a.status == b.status == "done"
    assert set(a.arrays) == set(b.arrays)
    for name in a.arrays:
        assert a.arrays[name].tobytes() == b.arrays[name].tobytes(), name
    assert a.curve == b.curve
    untimed = [{k: v for k, v in e.result.items() if k != "seconds"} for e in (a, b)]
    assert untimed[0] == untimed[1]


@pytest.mark.sampled(0.3)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_resumed_run_ends_bitwise_equal(tmp_path, name, suffix):
    path = tmp_path / f"c{suffix}"
    (whole,) = runs.run_all([config(name)])
    # a stop at an odd step, another, then the rest: each from the file alone
    (part,) = runs.run_all([config(name)], checkpoint=path, stop_after=7)
    assert part.status == "running"
    runs.run_all(resume=path, checkpoint=path, stop_after=13)
    (resumed,) = runs.run_all([config(name)], resume=path, checkpoint=path)
    assert_same_end(whole, resumed)
    # and the file holds the same end
    (kept,) = runs.read(path)
    assert_same_end(whole, kept)


@pytest.mark.sampled(1, by=lambda name, **_: name)
@pytest.mark.parametrize("changed", [{"dtype": "float32"}, {"batch": 7}, {"data": "diabetes"}])
@pytest.mark.parametrize("name", ["glm", "logits residual", "adamw"])
def test_resuming_is_exact_in_float32_stacked_and_for_regression(tmp_path, name, changed):
    given = config(name, **changed) if changed.get("data") != "diabetes" else None
    if given is None:
        optimizer, options = LEARNERS[name]
        options = {k: v for k, v in options.items() if k not in ("observation", "center")}
        given = RunConfig(optimizer=optimizer, options=options, **(SMALL | changed))
    path = tmp_path / "c.npz"
    (whole,) = runs.run_all([given])
    runs.run_all([given], checkpoint=path, stop_after=5)
    (resumed,) = runs.run_all([given], resume=path)
    assert_same_end(whole, resumed)
    assert whole.arrays["theta"].dtype == given.dtype
    kind = "rmse" if given.data == "diabetes" else "accuracy"
    assert {f"online_{kind}", f"test_{kind}"} <= set(whole.result)


def test_several_runs_resume_across_their_borders(tmp_path):
    several = [config("glm"), config("adamw"), config("sgd momentum", seed=1)]
    path = tmp_path / "c.npz"
    whole = runs.run_all(several)
    part = runs.run_all(several, checkpoint=path, stop_after=17, every=5)
    rounds = 0
    while any(e.status != "done" for e in part):
        part = runs.run_all(resume=path, checkpoint=path, stop_after=17, every=5)
        rounds += 1
    assert rounds >= 8  # 150 steps by 17
    for a, b in zip(whole, part, strict=True):
        assert_same_end(a, b)


def test_a_killed_process_leaves_a_checkpoint_from_which_the_run_ends_equal(tmp_path):
    path = tmp_path / "c.npz"
    given = RunConfig(optimizer="loko", data="breast_cancer", epochs=2, seed=0)
    code = (
        "from loko_ref.experiments import runs; from loko_ref.experiments.config import RunConfig; "
        "runs.run_all([RunConfig(optimizer='loko', data='breast_cancer', epochs=2, seed=0)], "
        f"checkpoint={str(path)!r}, every=1)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if path.exists() and runs.read(path)[0].progress.get("step", 0) >= 1:
            break
        time.sleep(0.002)
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    (left,) = runs.read(path)
    assert left.progress["step"] >= 1
    (resumed,) = runs.run_all([given], resume=path)
    assert_same_end(runs.run_all([given])[0], resumed)


def test_an_interrupt_writes_a_checkpoint_of_the_last_whole_step(tmp_path):
    path = tmp_path / "c.npz"

    def watch(_, task, progress):
        if progress.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run_all([config("glm")], checkpoint=path, watch=watch)
    (left,) = runs.read(path)
    assert left.progress["step"] == 9
    assert_same_end(runs.run_all([config("glm")])[0], runs.run_all(resume=path)[0])


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path):
    path = tmp_path / "c.npz"
    runs.run_all([config("glm")], checkpoint=path, stop_after=3)
    with pytest.raises(InputError, match="run 0 with seed = 0; required seed = 1"):
        runs.run_all([config("glm", seed=1)], resume=path)
    with pytest.raises(InputError, match="run 0 with options"):
        runs.run_all([config("glm variational")], resume=path)
    with pytest.raises(InputError, match="checkpoint of 1 runs"):
        runs.run_all([config("glm"), config("sgd")], resume=path)


def test_other_data_than_the_run_began_with_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    runs.run_all([config("glm")], checkpoint=path, stop_after=3)
    raw = bundled._raw

    def other_release(name):
        x, y = raw(name)
        return x + 1e-9, y

    monkeypatch.setattr(bundled, "_raw", other_release)
    with pytest.raises(InputError, match=r"data with digest.*another release of scikit-learn"):
        runs.run_all(resume=path)


def test_a_file_of_another_kind_is_no_checkpoint(tmp_path):
    path = tmp_path / "c.npz"
    storage.save(path, {}, {}, schema="loko-ref/other/1")
    with pytest.raises(InputError, match="loko-ref/checkpoint/3"):
        runs.run_all(resume=path)
    storage.save(
        path, {}, {"command": "train", "runs": [{"config": {"who": 1}}]}, schema=checkpoint.SCHEMA
    )
    with pytest.raises(InputError, match="no field 'sha256'"):
        runs.run_all(resume=path)


@pytest.mark.parametrize(("name", "options"), [("loko", {"p0": 100.0}), ("sgd", {"lr": 1e300})])
def test_a_run_that_diverges_names_its_step_and_leaves_the_others_alone(tmp_path, name, options):
    wild = RunConfig(optimizer=name, options=options, **(SMALL | {"data": "digits"}))
    calm = config("adamw")
    failed, done = runs.run_all([wild, calm], checkpoint=tmp_path / "c.npz")
    assert failed.status == "failed"
    assert failed.result is None
    assert isinstance(failed.failure["step"], int)
    assert f"step {failed.failure['step']}:" in failed.failure["reason"]
    assert done.status == "done"
    again = runs.run_all(resume=tmp_path / "c.npz")
    assert [e.status for e in again] == ["failed", "done"]


def test_online_accuracy_is_of_predictions_before_learning():
    """A plain loop over loko.step gives the same counts and the same end."""
    given = config("logits")
    task = stream.prepare(given)
    learner = loko.LokoConfig(model=task.model, **given.options)
    state, right = loko.init(learner), 0
    for k in range(task.steps):
        x, y = task.dataset.stream.x[k : k + 1], task.dataset.stream.y[k : k + 1]
        state, record = loko.step(state, loko.Batch(x=x, y=y), learner)
        right += int(record.z[0].argmax() == y[0])
    (entry,) = runs.run_all([given])
    assert entry.result["online_accuracy"] == right / task.steps
    assert entry.arrays["theta"].tobytes() == state.theta.tobytes()
    assert entry.result["steps"] == task.steps == len(task.dataset.stream)
    assert entry.curve[-1].samples == task.steps
    assert entry.curve[-1].test == entry.result["test_accuracy"]


def test_baselines_get_the_gradient_that_loko_weighs():
    """-Z'e / batch, with Z and e from the filter's own record."""
    task = stream.prepare(config("adamw", batch=5))
    batch = stream.stream_batch(task, 0)
    learner = loko.LokoConfig(model=task.model, observation="logits")
    _, record = loko.step(loko.init(learner, batch=5), batch, learner)
    z, g = pretraining.loss_gradient(task.model, batch.x, batch.y, "logits")
    Z = jacobian(task.model, batch.x)[1]
    want = -Z.T @ record.e / 5
    # sums of 15 products, taken in another order: 15 u on the sum of absolute values
    slack = 30 * np.finfo(float).eps * (np.abs(Z.T) @ np.abs(record.e) / 5)
    assert (np.abs(g - want) <= slack).all()
    assert (z == record.z).all()


@pytest.mark.sampled(0.34)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "name", ["glm", "glm variational", "softmax", "softmax after", "logits", "logits residual"]
)
def test_both_routes_end_the_run_alike(tmp_path, name, batch):
    """The same states up to rounding; the fast run resumes bit for bit too."""
    readable = runs.run_all([config(name, batch=batch)])[0]
    given = config(name, batch=batch, route="fast")
    (whole,) = runs.run_all([given])
    for key, a in readable.arrays.items():
        b = whole.arrays[key]
        assert b.dtype == a.dtype
        # 50 steps, each equal to about 1e-13, of a filter that contracts
        assert np.abs(a - b).max() <= 1e-9 * np.abs(a).max(), key
    assert whole.curve[-1].online == readable.curve[-1].online
    runs.run_all([given], checkpoint=tmp_path / "c.npz", stop_after=5)
    (resumed,) = runs.run_all([given], resume=tmp_path / "c.npz")
    assert_same_end(whole, resumed)


def test_the_fast_route_is_taken_where_it_is_asked_for(monkeypatch):
    asked = []
    prepare = pretraining.fast.prepare
    monkeypatch.setattr(pretraining.fast, "prepare", lambda c: asked.append(c) or prepare(c))
    runs.run_all([config("glm"), config("glm", route="fast"), config("adamw")])
    assert len(asked) == 1  # once a run, not once a step


def test_every_run_starts_from_the_same_network():
    a, b = stream.prepare(config("glm")), stream.prepare(config("adamw"))
    for name, w in a.model.weights.items():
        assert (w == b.model.weights[name]).all()
    assert {k.rsplit(".", 1)[1] for k in a.model.trainable} == {"A", "B"}
    # LoRA on every linear, and at first it adds nothing
    assert sum(k.endswith(".A") for k in a.model.trainable) == 3
    assert all((w == 0).all() for k, w in a.model.weights.items() if k.endswith(".B"))


def test_narrow_layers_get_the_rank_that_fits_with_the_same_scale():
    task = stream.prepare(RunConfig(optimizer="loko", data="diabetes", epochs=1))
    last = task.model.spec[-1]
    assert last["lora"] == {"r": 1, "alpha": 1.0, "bias": False}
    assert task.model.spec[0]["lora"] == {"r": 4, "alpha": 4.0, "bias": False}


def test_the_base_has_learned_the_unshifted_digits():
    given = RunConfig(optimizer="loko", data="digits", shift="none")
    task = stream.prepare(given)
    assert [k["out"] for k in task.model.spec if k["kind"] == "linear"] == [128, 128, 10]
    theta = stream.begin(task).state.theta
    assert stream.evaluate(task, theta) > 0.93


@pytest.mark.larger
def test_loko_beats_adamw_each_at_its_documented_default_over_seeds_0_1_2():
    seeds = range(count(1, 3))
    both = [RunConfig(optimizer=o, seed=s) for s in seeds for o in ("loko", "adamw")]
    assert both[0].shift == "rotate90"
    entries = runs.run_all(both)
    mean = {
        o: np.mean([e.result["test_accuracy"] for e in entries if e.config.optimizer == o])
        for o in ("loko", "adamw")
    }
    assert mean["loko"] > mean["adamw"] + 0.1  # measured: 0.77 and 0.39
    assert mean["loko"] > 0.7


@pytest.mark.parametrize("data", ["iris", "diabetes"])
def test_a_test_part_is_evaluated_in_pieces_and_whole_alike(monkeypatch, data):
    task = stream.prepare(RunConfig(optimizer="adamw", **(SMALL | {"data": data})))
    theta = stream.begin(task).state.theta
    whole = stream.evaluate(task, theta)
    monkeypatch.setattr(evaluation, "EVALUATED", 7)
    assert len(task.dataset.test) > 7
    assert stream.evaluate(task, theta) == pytest.approx(whole, rel=1e-12)


def test_regression_learns():
    given = RunConfig(optimizer="loko", data="diabetes", seed=0)
    task = stream.prepare(given)
    before = stream.evaluate(task, stream.begin(task).state.theta)
    (entry,) = runs.run_all([given])
    assert entry.result["test_rmse"] < 0.7 * before  # measured: 69 of 133
    assert given.shift == "invert"


def test_a_config_is_json_and_describes_the_same_run():
    for name in LEARNERS:
        given = config(name)
        again = RunConfig(**json.loads(json.dumps(given.as_dict())))
        assert again == given


def test_defaults_are_torch_s_and_the_filter_s_own():
    assert default_options("adamw", False) == dataclasses.asdict(optimizers.AdamW())
    assert default_options("adamw", False)["lr"] == 1e-3
    ours = default_options("loko", False)
    assert (ours["observation"], ours["noise"], ours["p0"]) == ("glm", "glm", 0.05)
    assert default_options("loko", True)["observation"] == "gaussian"
    assert default_options("loko", False, {"covariance": "dense"})["form"] == "textbook"
    residual = default_options(
        "loko", False, {"observation": "logits", "noise": "ema_residual_hph"}
    )
    assert residual["timing"] == "after"
    assert default_shift("wine") == "invert"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"optimizer": "adam"}, "closest known name is 'adamw'"),
        ({"optimizer": "adamw", "options": {"rate": 1}}, "adamw's option"),
        ({"optimizer": "adamw", "options": {"lr": -1.0}}, "lr"),
        ({"optimizer": "loko", "options": {"observation": "probit"}}, "observation"),
        ({"optimizer": "loko", "options": {"observation": "gaussian"}}, "real targets"),
        ({"optimizer": "loko", "data": "diabetes", "options": {"observation": "glm"}}, "diabetes"),
        ({"optimizer": "loko", "data": "mnist"}, "'mnist:DIR'"),
        ({"optimizer": "loko", "data": "minst:x"}, "closest known name is 'mnist'"),
        ({"optimizer": "loko", "limit": 0}, "limit"),
        ({"optimizer": "loko", "route": "quick"}, "route"),
        ({"optimizer": "adamw", "route": "fast"}, "optimizer 'adamw'"),
        ({"optimizer": "loko", "route": "fast", "backend": "cupy"}, "backend 'cupy'"),
        (
            {"optimizer": "loko", "route": "fast", "options": {"covariance": "dense"}},
            "covariance 'dense'",
        ),
        ({"optimizer": "loko", "batch": 0}, "batch"),
        ({"optimizer": "loko", "batch": 2.0}, "batch"),
        ({"optimizer": "loko", "activation": "swish"}, "activation"),
        ({"optimizer": "loko", "activation": ""}, "activation"),
        ({"optimizer": "loko", "init": "xavier"}, "init"),
        ({"optimizer": "loko", "targets": "q"}, "targets"),
        ({"optimizer": "loko", "hidden": 5}, "hidden"),
        ({"optimizer": "loko", "size": {"layers": 1}}, "nothing with network 'mlp'"),
        ({"optimizer": "loko", "network": "vit", "size": {"depth": 1}}, "size"),
        ({"optimizer": "loko", "network": "vit", "hidden": (5,)}, "hidden"),
        ({"optimizer": "loko", "rank": 0}, "rank"),
        ({"optimizer": "loko", "alpha": "4"}, "alpha"),
    ],
)
def test_a_faulty_config_is_refused_by_name(given, word):
    with pytest.raises(InputError, match=word):
        RunConfig(**given)


def test_faulty_calls_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="batch"):
        stream.prepare(config("glm", batch=51))
    with pytest.raises(InputError, match="no runs"):
        runs.run_all([])
    with pytest.raises(InputError, match="every"):
        runs.run_all([config("glm")], every=0)
    with pytest.raises(InputError, match=r"\.npz or \.safetensors"):
        runs.run_all([config("glm")], checkpoint=tmp_path / "c.pickle")
    task = stream.prepare(config("glm"))
    x = task.dataset.stream.x[:1]
    with pytest.raises(InputError, match=r"labels in \[0, 2\]"):
        pretraining.loss_gradient(task.model, x, np.array([3]), "softmax")


def test_nothing_is_mutated():
    task = stream.prepare(config("adamw"))
    progress = stream.begin(task)
    theta = progress.state.theta.copy()
    progress.state.theta.flags.writeable = False
    after = stream.advance(progress, task)
    assert (progress.state.theta == theta).all()
    assert progress.step == 0
    assert after.step == 1
    assert not (unpack(task.model, after.state.theta).weights["2.B"] == 0).all()


def test_a_base_that_diverges_is_named():
    with pytest.raises(NumericalError, match="base_lr"):
        stream.prepare(config("glm", base_lr=1e9, epochs=30))


def test_a_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"loko-ref\[data\]"):
        runs.run_all([config("glm")])


def test_the_example_runs(capsys):
    example = runpy.run_path(str(ROOT / "examples" / "online_digits.py"))
    accuracy = example["main"](100)
    out = capsys.readouterr().out
    assert " 100 images: " in out
    assert "test accuracy on 297 turned images" in out
    assert math.isfinite(accuracy)


@pytest.fixture(params=["stand-in", pytest.param("CuPy", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    """The backend ``cupy``: a stand-in that refuses what CuPy refuses, or CuPy on a GPU."""
    pytest.importorskip("sklearn", reason="needs the extra [data]")
    backends._cupy.cache_clear()
    if request.param == "stand-in":
        device.fake_cupy(monkeypatch)
    try:
        yield arrays.get_backend("cupy")
    except BackendError as error:
        pytest.skip(str(error))
    backends._cupy.cache_clear()


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", ["glm", "softmax", "logits residual", "dense", "adamw", "sgd"])
def test_a_run_on_the_device_ends_as_on_the_host_and_resumes(tmp_path, cupy, name):
    path = tmp_path / "c.npz"
    (host,) = runs.run_all([config(name)])
    given = config(name, backend="cupy")
    (whole,) = runs.run_all([given])
    runs.run_all([given], checkpoint=path, stop_after=9)
    (resumed,) = runs.run_all([given], resume=path)
    assert_same_end(whole, resumed)
    # 50 steps of a learner that does not diverge: other sums, other rounding, the same run
    np.testing.assert_allclose(whole.arrays["theta"], host.arrays["theta"], rtol=0, atol=1e-8)
    assert whole.result["test_accuracy"] == host.result["test_accuracy"]


def test_a_batch_goes_to_the_device_once(cupy, monkeypatch):
    task = stream.prepare(config("glm", backend="cupy"))
    progress = stream.begin(task)
    moved = []

    def spy(values, like):
        if isinstance(values, np.ndarray):
            moved.append(values.shape)
        return arrays.asarray(values, like)

    monkeypatch.setattr(stream, "asarray", spy)
    after = stream.advance(progress, task)
    assert moved == [(1, 4), (1,)]  # x and y
    assert arrays.backend_of(after.state.theta).name == "cupy"


def test_an_empty_name_of_a_network_is_refused():
    with pytest.raises(InputError, match="network: got ''"):
        RunConfig(data="iris", optimizer="loko", network="")
