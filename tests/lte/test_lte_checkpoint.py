"""Checkpoints: complete or absent, read by any number of ranks, refused with a reason."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lte_common import OPTIMIZERS, config, lora_only, stack, together

from loko_ref import lte
from loko_ref.checks import fields
from loko_ref.errors import InputError
from loko_ref.experiments import checkpoint
from loko_ref.experiments.lte.checkpoint import load, save
from loko_ref.experiments.lte.train import Data, History, train
from loko_ref.files import storage
from loko_ref.lte.team import Alone

STEPS, BATCH = 11, 6  # 5 merges, and one that closes the run


def data(c: lte.LteConfig) -> Data:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((40, c.inputs))
    y = rng.integers(0, c.outputs, 40)
    return Data(x=x[:30], y=y[:30], x_test=x[30:], y_test=y[30:])


RUN = {"batch": BATCH, "data": "x"}


def whole(c, team=None, *, path=None, resume=None, steps=STEPS):
    """Run to the end from the start, or from a checkpoint."""
    team = Alone() if team is None else team
    each = BATCH if c.mode == "mhlora" else BATCH // c.heads
    state, history = lte.init(c, batch=each, team=team), History()
    if resume is not None:
        state, history = load(resume, c, RUN, team, state)
        team.sent = history.sent

    def merged(state: lte.LteState, history: History) -> None:
        if path is not None:
            save(path, c, state, history, RUN, team)

    state = train(
        c, state, data(c), steps=steps, batch=BATCH, team=team, history=history, merged=merged
    )
    return lte.fingerprint(c, state, team), history


CASES = {
    "shared": {},
    "copies": {"realisation": "copies", "reset": "AB"},
    "B": {"reset": "B", "merging": "incremental"},
    "mhlora": {"mode": "mhlora"},
    "fresh": {"optimizer_state": "reset"},
    "stack": {"realisation": "copies", "reset": "B"},
}
MAKE = {"mhlora": lora_only, "stack": stack}


@pytest.mark.sampled(0.25)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_bits_on_any_number_of_ranks(case, optimizer, tmp_path):
    c = MAKE.get(case, config)(optimizer=OPTIMIZERS[optimizer], **CASES[case])
    want, curves = whole(c)
    for writers, readers in ((1, 3), (3, 2), (2, 1)):
        path = tmp_path / f"{writers}{readers}.npz"
        together(writers, lambda t, p=path: whole(c, t, path=p, steps=7))
        found = together(readers, lambda t, p=path: whole(c, t, resume=p))
        assert {digest for digest, _ in found} == {want}
        history = found[0][1]
        assert history.loss == curves.loss
        assert history.evaluations == curves.evaluations
        assert history.sent == curves.sent


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_is_complete_or_not_there(suffix, tmp_path, monkeypatch) -> None:
    """An interrupt and a full disk leave the checkpoint before, and no temporary file."""
    c, path = config(), tmp_path / f"c{suffix}"
    whole(c, path=path, steps=4)
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, seen in ((KeyboardInterrupt(), KeyboardInterrupt), (full, InputError)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", raising(error))
            with pytest.raises(seen) as caught:
                whole(c, path=path, resume=path)
        if seen is InputError:
            assert caught.value.argument == "checkpoint"
            assert "No space left" in str(caught.value)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before
    assert whole(c, path=path, resume=path)[0] == whole(c)[0]
    assert path.read_bytes() != before


def raising(error: BaseException):
    def fail(*arguments, **named):
        raise error

    return fail


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated", "a truncated file"),
        ("missing", "No such file"),
        ("altered", "a damaged, truncated or altered file"),
        ("foreign", "another program"),
        ("pickled", "no digest"),
        ("of train", "'loko-ref train'"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_a_reason(name, reason, tmp_path) -> None:
    c, path = config(), tmp_path / "c.npz"
    whole(c, path=path, steps=4)
    payload = bytearray(path.read_bytes())
    if name == "truncated":
        path.write_bytes(payload[: len(payload) // 2])
    elif name == "missing":
        path.unlink()
    elif name == "altered":
        payload[len(payload) // 2] ^= 1
        path.write_bytes(payload)
    elif name == "of train":
        checkpoint.write(path, "train", [{}], {})
    else:
        np.savez(path, a=np.zeros(3) if name == "foreign" else np.array([{}], dtype=object))
    with pytest.raises(InputError, match=reason) as caught:
        whole(c, resume=path)
    assert caught.value.argument.startswith("resume")


def forge(path: Path, change, sealed: bool = True) -> None:
    """Change what a checkpoint holds, and write it as a whole file, with a seal of its own."""
    arrays, metadata = storage.load(path, schema=checkpoint.SCHEMA)
    change(arrays, metadata["runs"][0])
    if sealed:
        content = {k: v for k, v in metadata.items() if k != "sha256"}
        metadata["sha256"] = fields.seal(content, arrays)
    storage.save(path, arrays, metadata, schema=checkpoint.SCHEMA)


def skewed(arrays, told) -> None:
    arrays["R"] = arrays["R"].copy()
    arrays["R"][1, 0, 1] += 1.0


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("weights.0.W: got no array", lambda a, told: a.pop("weights.0.W")),
        ("base.0.W: got float64 ", lambda a, told: a.update({"base.0.W": np.eye(2)})),
        ("NaN", lambda a, told: a["weights.0.W"].fill(np.nan)),
        ("theta: got float32", lambda a, told: a.update(theta=np.float32(a["theta"]))),
        ("theta: got float64", lambda a, told: a.update(theta=a["theta"][:-1])),
        ("merged: got no array", lambda a, told: a.pop("merged")),
        ("slots.p: got float64", lambda a, told: a.update({"slots.p": np.ones(3)})),
        ("slots.p: got an entry 0", lambda a, told: a["slots.p"].fill(0)),
        (r"R\[1\]: got max", skewed),
        ("extra: got an array of", lambda a, told: a.update(extra=np.ones(3))),
        ("step: got 3; required a multiple", lambda a, told: told["progress"].update(step=3)),
        ("step: got -4; required a whole", lambda a, told: told["progress"].update(step=-4)),
        ("step: got 4.0; required a whole", lambda a, told: told["progress"].update(step=4.0)),
        ("merges: got None; required 2", lambda a, told: told["progress"].update(merges=None)),
        ("optimizer_step: got 2;", lambda a, told: told["progress"].update(optimizer_step=2)),
        ("progress: got no field 'sent'", lambda a, told: told["progress"].pop("sent")),
        ("progress: got \\[]; required named", lambda a, told: told.update(progress=[])),
        ("config: got \\[]; required named", lambda a, told: told.update(config=[])),
        ("run: got None; required named", lambda a, told: told.update(run=None)),
        ("an unknown field 'who'", lambda a, told: told.update(who=1)),
        ("got no field 'progress'", lambda a, told: told.pop("progress")),
        ("loss: got 3 entries", lambda a, told: told["progress"]["loss"].pop()),
        (
            r"\[1\]\[0\]: got 3",
            lambda a, told: told["progress"]["evaluations"][1].__setitem__(0, 3),
        ),
    ],
)
def test_whole_files_that_are_not_of_such_a_run_are_refused(reason, change, tmp_path) -> None:
    c, path = config(optimizer=lte.Loko(observation="logits")), tmp_path / "c.npz"
    whole(c, path=path, steps=4)
    before = path.read_bytes()
    forge(path, lambda *same: None)
    assert path.read_bytes() == before  # the forged hashes are the true ones
    forge(path, change)
    with pytest.raises(InputError, match=reason) as caught:
        whole(c, resume=path)
    assert caught.value.argument.startswith("resume ")


@pytest.mark.parametrize(
    "change",
    [
        lambda a, told: a["merged"].__imul__(2),
        lambda a, told: a["weights.0.W"].__imul__(2),
        lambda a, told: told["progress"]["loss"].__setitem__(0, 0.5),
    ],
)
def test_content_that_fits_and_is_not_what_was_saved_is_refused(change, tmp_path) -> None:
    """The hash of the file is rewritten; the seal of its content is not."""
    c, path = config(optimizer=lte.Loko()), tmp_path / "c.npz"
    whole(c, path=path, steps=4)
    forge(path, change, sealed=False)
    with pytest.raises(InputError, match=r"sha256: got .*required the SHA-256 of"):
        whole(c, resume=path)


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 2},
        {"merge_every": 4},
        {"seed": 1},
        {"reset": "B"},
        {"realisation": "copies"},
        {"optimizer": OPTIMIZERS["sgd"]},
        {"optimizer": lte.Loko(p0=0.03)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_run_is_refused_by_the_choice_that_differs(change, tmp_path):
    c = config()
    whole(c, path=tmp_path / "c.npz", steps=4)
    name = next(iter(change))
    with pytest.raises(InputError, match=rf"{name}(\.kind)? = "):
        whole(replace(c, **change), resume=tmp_path / "c.npz")


def test_of_a_network_the_first_part_that_differs_is_named(tmp_path) -> None:
    c = config()
    whole(c, path=tmp_path / "c.npz", steps=4)
    other = [dict(layer) for layer in c.spec]
    other[0] |= {"lora": {**other[0]["lora"], "alpha": 7.0}}
    with pytest.raises(InputError, match=r"spec\[0\]\.lora\.alpha = 7\.0") as caught:
        whole(replace(c, spec=other), resume=tmp_path / "c.npz")
    assert len(str(caught.value)) < 500
    with pytest.raises(InputError, match=r"number of config\.spec = "):
        whole(replace(c, spec=[*other, {"kind": "tanh"}]), resume=tmp_path / "c.npz")
