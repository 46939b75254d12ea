"""Checkpoints: complete or absent, read by any number of ranks, refused with a reason."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lte_common import OPTIMIZERS, config, lora_only, stack, together

from loko_ref import lte
from loko_ref.checks import fields
from loko_ref.errors import InputError
from loko_ref.experiments.lte import checkpoint
from loko_ref.experiments.lte.train import Data, History, train
from loko_ref.files import storage
from loko_ref.lte.state import combine, head_arrays
from loko_ref.lte.team import Alone

STEPS, BATCH = 11, 6  # 5 merges, and one that closes the run


def data(c: lte.LteConfig) -> Data:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((40, c.inputs))
    y = rng.integers(0, c.outputs, 40)
    return Data(x=x[:30], y=y[:30], x_test=x[30:], y_test=y[30:])


RUN = {"batch": BATCH, "data": "x"}


def whole(c, team=None, *, directory=None, resume=None, steps=STEPS):
    """Run to the end from the start, or from the newest set in a directory."""
    team = Alone() if team is None else team
    each = BATCH if c.mode == "mhlora" else BATCH // c.heads
    state, history = lte.init(c, batch=each, team=team), History()
    if resume is not None:
        state, history = checkpoint.load(resume, c, RUN, team, state)
        team.sent = history.sent

    def save(state: lte.LteState, history: History) -> None:
        if directory is not None:
            checkpoint.save(directory, c, state, history, RUN, team)

    state = train(
        c, state, data(c), steps=steps, batch=BATCH, team=team, history=history, merged=save
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
        place = tmp_path / f"{writers}{readers}"
        together(writers, lambda t, p=place: whole(c, t, directory=p, steps=7))
        found = together(readers, lambda t, p=place: whole(c, t, resume=p))
        assert {digest for digest, _ in found} == {want}
        history = found[0][1]
        assert history.loss == curves.loss
        assert history.evaluations == curves.evaluations
        assert history.sent == curves.sent


def test_a_set_is_complete_or_not_there(tmp_path, monkeypatch) -> None:
    c = config()
    whole(c, directory=tmp_path, steps=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merge-00000001", "merge-00000002"]
    names = sorted(p.name for p in (tmp_path / "merge-00000002").iterdir())
    assert names == ["head-0000.npz", "head-0001.npz", "head-0002.npz", "shared.npz"]
    for p in (tmp_path / "merge-00000002").iterdir():
        with np.load(p, allow_pickle=False) as archive:
            assert all(archive[k].dtype.kind in "fiu" for k in archive.files)

    real = os.replace

    def crash(a, b):
        if str(b).endswith("merge-00000003"):
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        whole(c, directory=tmp_path, resume=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".merge-*"))  # an interrupt leaves nothing half written
    (tmp_path / ".merge-00000003.tmp").mkdir()  # a killed process does, and the next run clears it
    assert checkpoint.newest(tmp_path).name == "merge-00000002"
    digest, _ = whole(c, directory=tmp_path, resume=tmp_path)
    assert digest == whole(c)[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merge-00000004", "merge-00000005"]


@pytest.mark.parametrize("broken", ["mkdir", "replace"])
def test_a_disk_that_fills_up_is_told_by_name(broken, tmp_path, monkeypatch) -> None:
    real = getattr(os, broken)

    def full(path, *rest, **more):
        if "merge-00000002" in f"{path}":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest, **more)

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(InputError, match=r"checkpoint: got .*No space left") as caught:
        whole(config(), directory=tmp_path)
    assert caught.value.argument == "checkpoint"
    assert checkpoint.newest(tmp_path).name == "merge-00000001"


def spoil(name: str, path: Path) -> None:
    file = path / ("head-0001.npz" if "head" in name else "shared.npz")
    payload = file.read_bytes()
    if "truncated" in name:
        file.write_bytes(payload[: len(payload) // 2])
    elif "missing" in name:
        file.unlink()
    elif "altered" in name:
        changed = bytearray(payload)
        changed[len(changed) // 2] ^= 1
        file.write_bytes(bytes(changed))
    elif "foreign" in name:
        np.savez(file, a=np.zeros(3))
    elif "pickled" in name:
        np.savez(file, a=np.array([{}], dtype=object))
    elif "exchanged" in name:
        shutil.copy(path / "head-0000.npz", file)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("head truncated", "altered"),
        ("head missing", "missing"),
        ("head altered", "altered"),
        ("head exchanged", "altered"),
        ("shared truncated", "a truncated file"),
        ("shared altered", "another SHA-256"),
        ("shared missing", "shared.npz"),
        ("shared foreign", "another program"),
        ("shared pickled", "no digest"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_a_reason(name, reason, tmp_path) -> None:
    c = config()
    whole(c, directory=tmp_path, steps=4)
    spoil(name, tmp_path / "merge-00000002")
    with pytest.raises(InputError, match=reason) as caught:
        whole(c, resume=tmp_path)
    assert caught.value.argument == "resume"
    # the set before it is whole still, and can be named
    assert whole(c, resume=tmp_path / "merge-00000001")[0] == whole(c)[0]


ONE = np.eye(2)


def forge(path: Path, change, sealed: bool = True) -> None:
    """Change what a set holds and rewrite its hashes: whole files, with other content."""
    c, files = config(optimizer=lte.Loko()), {}
    for file in sorted(path.iterdir()):
        files[file.stem] = storage.load(file, schema=checkpoint.SCHEMA)
    (shared, told), heads = files.pop("shared"), files
    change(shared, heads["head-0001"][0], told)
    for stem, (arrays, more) in heads.items():
        file = path / f"{stem}.npz"
        storage.save(file, arrays, more, schema=checkpoint.SCHEMA)
        told.get("files", {})[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    if sealed:
        order = head_arrays(c, lte.init(c, batch=2), 0).keys() - {"merged"}
        order = ["theta", "merged", *sorted(order - {"theta"}, key=lambda k: (k == "R", k))]
        digests = [
            fields.digest({k: arrays[k] for k in order if k in arrays})
            for arrays, _ in heads.values()
        ]
        counters = (told.get("step"), told.get("merges"), told.get("optimizer_step"))
        told["state_sha256"] = combine(counters, fields.digest(shared), digests)
        told["sha256"] = checkpoint._seal(told)
    storage.save(path / "shared.npz", shared, told, schema=checkpoint.SCHEMA)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (r"weights.0.W: got no array", lambda shared, head, told: shared.pop("weights.0.W")),
        ("base.0.W: got float64 ", lambda shared, head, told: shared.update({"base.0.W": ONE})),
        ("NaN", lambda shared, head, told: shared["weights.0.W"].fill(np.nan)),
        ("theta: got float32", lambda s, head, told: head.update(theta=np.float32(head["theta"]))),
        ("merged: got no array", lambda shared, head, told: head.pop("merged")),
        ("slots.p: got float64", lambda shared, head, told: head.update({"slots.p": np.ones(3)})),
        ("slots.p: got an entry 0", lambda shared, head, told: head["slots.p"].fill(0)),
        ("extra: got an array of", lambda shared, head, told: head.update(extra=np.ones(3))),
        ("step: got 3; required a multiple", lambda shared, head, told: told.update(step=3)),
        ("step: got -4; required a whole", lambda shared, head, told: told.update(step=-4)),
        ("step: got 4.0; required a whole", lambda shared, head, told: told.update(step=4.0)),
        ("merges: got None; required 2", lambda shared, head, told: told.update(merges=None)),
        ("optimizer_step: got 2;", lambda shared, head, told: told.update(optimizer_step=2)),
        ("history: got no field 'sent'", lambda shared, head, told: told["history"].pop("sent")),
        ("history: got \\[]; required named", lambda shared, head, told: told.update(history=[])),
        ("config: got \\[]; required named", lambda shared, head, told: told.update(config=[])),
        ("run: got None; required named", lambda shared, head, told: told.update(run=None)),
        ("an unknown field 'who'", lambda shared, head, told: told.update(who=1)),
        ("got no field 'files'", lambda shared, head, told: told.pop("files")),
        ("loss: got 3 entries", lambda shared, head, told: told["history"]["loss"].pop()),
        (
            r"\[1\]\[0\]: got 3",
            lambda s, h, told: (
                told["history"]["evaluations"][1].insert(0, 3)
                or told["history"]["evaluations"][1].pop(1)
            ),
        ),
    ],
)
def test_whole_files_that_are_not_of_such_a_run_are_refused(reason, change, tmp_path) -> None:
    c = config(optimizer=lte.Loko())
    whole(c, directory=tmp_path, steps=4)
    newest = tmp_path / "merge-00000002"
    before = (newest / "shared.npz").read_bytes()
    forge(newest, lambda *said: None)
    assert (newest / "shared.npz").read_bytes() == before  # the forger's hashes are the true ones
    forge(newest, change)
    with pytest.raises(InputError, match=reason) as caught:
        whole(c, resume=tmp_path)
    assert caught.value.argument.startswith("resume ")


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("state_sha256", lambda shared, head, told: head["merged"].__imul__(2)),
        ("state_sha256", lambda shared, head, told: shared["weights.0.W"].__imul__(2)),
        ("sha256", lambda shared, head, told: told["history"]["loss"].__setitem__(0, 0.5)),
    ],
)
def test_content_that_fits_and_is_not_what_was_saved_is_refused(reason, change, tmp_path) -> None:
    """The hashes of the files are rewritten; those of the content are not."""
    c = config(optimizer=lte.Loko())
    whole(c, directory=tmp_path, steps=4)
    forge(tmp_path / "merge-00000002", change, sealed=False)
    with pytest.raises(InputError, match=f"{reason}: got .*required the SHA-256 of"):
        whole(c, resume=tmp_path)


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
    whole(c, directory=tmp_path, steps=4)
    name = next(iter(change))
    with pytest.raises(InputError, match=rf"{name}(\.kind)? = "):
        whole(replace(c, **change), resume=tmp_path)


def test_of_a_network_the_first_part_that_differs_is_named(tmp_path) -> None:
    c = config()
    whole(c, directory=tmp_path, steps=4)
    other = [dict(layer) for layer in c.spec]
    other[0] |= {"lora": {**other[0]["lora"], "alpha": 7.0}}
    with pytest.raises(InputError, match=r"spec\[0\]\.lora\.alpha = 7\.0") as caught:
        whole(replace(c, spec=other), resume=tmp_path)
    assert len(str(caught.value)) < 500
    with pytest.raises(InputError, match="number of spec = "):
        whole(replace(c, spec=[*other, {"kind": "tanh"}]), resume=tmp_path)


def test_an_empty_directory_is_no_checkpoint(tmp_path) -> None:
    with pytest.raises(InputError, match="complete checkpoint"):
        whole(config(), resume=tmp_path)
