"""`train --resume` of well-formed files with wrong content: refused by field, or the same run.

The files are written by :func:`loko_ref.files.storage.save`, so that their bytes are whole. In the
first part the seal over the content is left as it was: no change may go unnoticed. In the second it
is made anew, as by someone who knows how: each field must then be refused by a check of its own.
"""

import copy
import functools
import operator
import random

import numpy as np
import pytest
from hostile import needs_linux, run
from hostile_inputs import damage_json, json_paths, replaced
from sampling import LONG, SEED

from loko_ref.checks import fields
from loko_ref.checks.fields import Place
from loko_ref.errors import InputError
from loko_ref.experiments import checkpoint, runfile, runs
from loko_ref.experiments.config import RunConfig
from loko_ref.files import storage

SMALL = {"data": "iris", "epochs": 1, "hidden": (5,), "rank": 2, "evaluations": 4}
RUNNING = {
    "loko": {"observation": "logits", "p0": {"0": 0.5, "1": 0.4}},
    "adamw": {},
}
INPUTS = 500 if LONG else 90


@functools.cache
def original(name):
    """Arrays and metadata of a checkpoint with a run of each status; and how its runs end."""
    import tempfile

    several = [
        RunConfig(optimizer="adagrad", **SMALL),
        RunConfig(optimizer="sgd", options={"lr": 1e200}, **SMALL),
        RunConfig(optimizer=name, options=RUNNING[name], **SMALL),
        RunConfig(optimizer="sgd", options={"momentum": 0.5}, **SMALL),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/c.npz"
        left = runs.run_all(several, checkpoint=path, stop_after=75)
        assert [entry.status for entry in left] == ["done", "failed", "running", "waiting"]
        assert left[2].curve
        ends = ending(runs.run_all(resume=path))
        return *storage.load(path, schema=checkpoint.SCHEMA), ends


def ending(entries):
    """Everything of how runs ended, but the time they took."""
    untimed = [{k: v for k, v in (e.result or {}).items() if k != "seconds"} for e in entries]
    arrays = [fields.digest(dict(sorted(e.arrays.items()))) for e in entries]
    return [
        (e.status, e.curve, u, a, e.failure)
        for e, u, a in zip(entries, untimed, arrays, strict=True)
    ]


def damage_arrays(rng, arrays):
    """Lose, add, exchange, retype, reshape or spoil one array."""
    name = rng.choice(sorted(arrays))
    new, a = dict(arrays), arrays[name]
    how = rng.choice(("lose", "add", "exchange", "dtype", "shape", "one bit", "value"))
    if how == "lose":
        del new[name]
    elif how == "add":
        new[f"{name}_"] = a
    elif how == "exchange":
        other = rng.choice(sorted(arrays))
        new[name], new[other] = new[other], new[name]
        how += f" with {other}"
    elif how == "dtype":
        with np.errstate(all="ignore"):  # a run that diverged leaves large numbers
            new[name] = a.astype(rng.choice(("float32", "int64", "bool", "uint8")))
    elif how == "shape":
        new[name] = rng.choice((a[:-1], a[..., None], a.reshape(-1), a[None], a[:0], np.tile(a, 2)))
    elif how == "one bit":
        word = a.copy().reshape(-1).view("uint64")
        word[rng.randrange(word.size)] ^= np.uint64(1)
        new[name] = word.view("float64").reshape(a.shape)
    else:
        value = rng.choice((np.nan, np.inf, -np.inf, -1.0, 0.0, 1e300))
        new[name] = a.copy()
        new[name].reshape(-1)[rng.randrange(a.size)] = value
        how += f" {value}"
    return f"{name}: {how}", new


@needs_linux
def test_no_change_of_a_checkpoint_goes_unnoticed(tmp_path):
    seen = dict.fromkeys(("refused", "accepted"), 0)
    for k in range(INPUTS):
        rng = random.Random(f"{SEED} {k}")
        arrays, metadata, ends = original(rng.choice(sorted(RUNNING)))
        if rng.random() < 0.7:
            what, metadata = damage_json(rng, metadata)
        else:
            what, arrays = damage_arrays(rng, arrays)
        path = tmp_path / f"{k}.npz"
        storage.save(path, arrays, metadata, schema=checkpoint.SCHEMA)
        label = f"input {k} of seed {SEED}, {what}"
        end = run(lambda path=path: ending(runs.run_all(resume=path)))
        assert end.kind in seen, f"{label}: {end}"
        seen[end.kind] += 1
        if end.kind == "refused":
            assert str(path) in end.text, f"{label}: {end.text}"
            assert len(end.text) < 2000
        else:
            assert end.value == ends, f"{label}: accepted, and ends otherwise"
        path.unlink()
    assert seen["refused"] > 0.9 * INPUTS


WRONG = (
    None, True, -1, 1.5, 2**70, -1e300, "", "nan", "x", [], ["x"], {}, {"x": 1},
    functools.reduce(lambda inner, _: [inner], range(300), 1),
)  # fmt: skip
"""Values for the place of any other."""

FITTING = {
    # what a field may also be: it is another run's then, and the seal's to notice
    "limit": (None,),
    "rank": (None,),
    "targets": (["x"],),
    "tokenizer": (None,),
    "length": (None,),
    "seconds": (1.5,),
    "score": (),
    "r0": (1.5,),
    "lam": (),
    "test": (),
    "label_noise": (),
    "failure/step": (None,),
    "reason": ("nan", "x"),
    "alpha": (-1, 1.5, -1e300),
    "base_lr": (1.5,),
    "lr": (1.5,),
    "lr_decay": (1.5,),
    "eps": (1.5,),
    "weight_decay": (1.5,),
    "initial_accumulator_value": (1.5,),
    "dampening": (-1, 1.5, -1e300),
    "momentum": (1.5,),
    "nesterov": (True,),
    "center": (True,),
    "q": (1.5,),
    "p0": (1.5,),
    "0": (1.5,),
    "1": (1.5,),
}


def sealed(path, arrays, metadata):
    content = {k: v for k, v in metadata.items() if k != "sha256"}
    metadata["sha256"] = fields.seal(content, arrays)
    storage.save(path, arrays, metadata, schema=checkpoint.SCHEMA)


def read_all(path):
    """Read a checkpoint and build the run under way, without a step."""
    for k, entry in enumerate(runs.read(path)):
        if entry.status == "running":
            runfile.unpack(entry, k, Place(argument="resume", path=str(path)))


def refusal(path):
    """Return the error that a file is refused with; "accepted" where it is not."""
    try:
        read_all(path)
    except InputError as error:
        return str(error)
    return "accepted"


def test_every_leaf_of_the_metadata_has_a_check_of_its_own(tmp_path):
    """With the seal made anew: 14 wrong values for each of the leaves, and what holds them."""
    path, count, accepted = tmp_path / "c.npz", 0, []
    for name in RUNNING:
        arrays, metadata, _ = original(name)
        paths = [p for p in json_paths(metadata) if len(p) > 1]
        for at in paths if LONG else random.Random(f"{SEED} {name}").sample(paths, 6):
            old = functools.reduce(operator.getitem, at, metadata)
            for new in WRONG:
                if new == old and type(new) is type(old):
                    continue
                fits = (at[-1], "/".join(map(str, at[-2:])))
                if any(new == v and type(new) is type(v) for f in fits for v in FITTING.get(f, ())):
                    continue
                wrong = replaced(metadata, at, copy.deepcopy(new))
                sealed(path, arrays, wrong)
                count += 1
                text = refusal(path)
                # what is nested too deep is refused before there is a leaf
                if not text.startswith((f"resume {str(path)!r}: ", f"resume, {str(path)!r}: ")):
                    accepted.append(f"{'/'.join(map(str, at))} = {new!r:.40}: {text}")
    assert not accepted, "\n".join(accepted)
    assert count > 120


CHANGES = {
    "runs[2].progress.step: got 3.5; required a whole number": ("step", 3.5),
    "runs[2].progress.step: got 51; required a whole number from 0 to 50": ("step", 51),
    "runs[2].progress.score: got 99; required a finite number from 0 to 24": ("score", 99),
    "runs[2].progress.score: got 2.5; required a whole number of predictions": ("score", 2.5),
    "runs[2].progress.curve: got 2 entries; required 1 entries": ("curve", 2),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_the_run_under_way_is_refused_by_its_field(tmp_path, reason):
    arrays, metadata, _ = copy.deepcopy(original("loko"))
    progress = metadata["runs"][2]["progress"]
    assert progress["step"] == 24
    key, value = CHANGES[reason]
    if key == "curve":
        progress["curve"] = [[6, progress["curve"][0][1], 0.5], *progress["curve"]]
    else:
        progress[key] = value
    sealed(tmp_path / "c.npz", arrays, metadata)
    with pytest.raises(InputError) as caught:
        read_all(tmp_path / "c.npz")
    assert f"{reason}" in str(caught.value)


def spoil_R(a):
    a["2/R"] = -a["2/R"]


def skew_R(a):
    a["2/R"] = a["2/R"] + np.triu(np.ones_like(a["2/R"]), 1)


@pytest.mark.parametrize(
    ("name", "reason", "change"),
    [
        ("loko", "2/p: got an entry 0; required entries > 0", lambda a: a["2/p"].fill(0)),
        ("loko", "2/p: got no array", lambda a: a.pop("2/p")),
        ("loko", "2/R: got smallest eigenvalue", spoil_R),
        ("loko", "2/R: got max", skew_R),
        ("loko", "2/theta: got NaN", lambda a: a["2/theta"].fill(np.nan)),
        ("loko", "required float64 of shape", lambda a: a.update({"2/theta": a["2/theta"][:-1]})),
        ("loko", "3/theta: got an array of this name", lambda a: a.update({"3/theta": a["2/p"]})),
        ("loko", "2/weights/0.W: got shape", lambda a: a.update({"2/weights/0.W": np.eye(2)})),
        ("loko", "2/weights: got missing ['0.W']", lambda a: a.pop("2/weights/0.W")),
        ("loko", "2/weights/0.W", lambda a: a["2/weights/0.W"].fill(np.inf)),
        (
            "adamw",
            "2/slots/exp_avg_sq: got an entry -1",
            lambda a: a["2/slots/exp_avg_sq"].fill(-1),
        ),
        ("adamw", "0/slots/sum: got an entry -1", lambda a: a["0/slots/sum"].fill(-1)),
    ],
)
def test_every_array_has_a_check_of_its_own(tmp_path, name, reason, change):
    arrays, metadata, _ = copy.deepcopy(original(name))
    change(arrays)
    sealed(tmp_path / "c.npz", arrays, metadata)
    with pytest.raises(InputError) as caught:
        read_all(tmp_path / "c.npz")
    assert reason in str(caught.value)


def test_runs_are_ended_then_running_then_waiting(tmp_path):
    arrays, metadata, _ = copy.deepcopy(original("adamw"))
    metadata["runs"] = [metadata["runs"][k] for k in (3, 0)]
    sealed(tmp_path / "c.npz", {k: a for k, a in arrays.items() if k[0] == "9"}, metadata)
    with pytest.raises(InputError, match="got the statuses waiting, done"):
        runs.read(tmp_path / "c.npz")


@pytest.mark.sampled(1 / 3)
@pytest.mark.parametrize("noise", ["ema_innovation", "ema_innovation_hph", "ema_residual_hph"])
@pytest.mark.parametrize("observation", ["softmax", "logits", "gaussian"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_honest_state_is_refused(tmp_path, observation, noise, dtype):
    data = "diabetes" if observation == "gaussian" else "iris"
    options = {"observation": observation, "noise": noise, "beta": 0.5}
    given = RunConfig(
        optimizer="loko", options=options, **SMALL | {"data": data, "dtype": dtype, "rank": 1}
    )
    path = tmp_path / "c.npz"
    runs.run_all([given], checkpoint=path, stop_after=3)
    while runs.run_all(resume=path, checkpoint=path, stop_after=9)[0].status == "running":
        pass
