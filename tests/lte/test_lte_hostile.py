"""`lte --resume` of well-formed sets with wrong content: refused by field, or the same run.

The hashes of the files are rewritten, so that every file is whole; those of the content are not.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from hostile import needs_linux, run
from hostile_inputs import damage_json
from lte_common import OPTIMIZERS, config, lora_only
from sampling import LONG, SEED
from test_hostile_resume import damage_arrays
from test_lte_checkpoint import whole

from loko_ref.experiments.lte import checkpoint
from loko_ref.files import storage

CASES = {
    "loko": {"optimizer": OPTIMIZERS["loko"]},
    "adamw": {"optimizer": OPTIMIZERS["adamw"], "realisation": "copies", "reset": "AB"},
    "sgd": {"optimizer": OPTIMIZERS["sgd"], "optimizer_state": "reset"},
    "adagrad": {"optimizer": OPTIMIZERS["adagrad"], "mode": "mhlora"},
}
INPUTS = 250 if LONG else 50


@functools.cache
def original(name: str):
    """The configuration, every file of a set after two merges, and how the run ends."""
    import tempfile

    case = CASES[name]
    c = (lora_only if case.get("mode") == "mhlora" else config)(**case)
    with tempfile.TemporaryDirectory() as folder:
        whole(c, directory=folder, steps=4)
        (place,) = Path(folder).glob("merge-00000002")
        files = {
            file.name: storage.load(file, schema=checkpoint.SCHEMA) for file in place.iterdir()
        }
        return c, files, ending(c, folder)


def ending(c, folder):
    digest, history = whole(c, resume=folder)
    return digest, history.loss, history.evaluations, history.sent


def write(place: Path, files) -> None:
    """Write a set, with the hashes of its files as they are now."""
    place.mkdir()
    arrays, told = files["shared.npz"]
    for name, (head, about) in files.items():
        if name != "shared.npz":
            storage.save(place / name, head, about, schema=checkpoint.SCHEMA)
            hashes = told.get("files") if isinstance(told, dict) else None
            if isinstance(hashes, dict) and isinstance(hashes.get(name), str):
                hashes[name] = hashlib.sha256((place / name).read_bytes()).hexdigest()
    storage.save(place / "shared.npz", arrays, told, schema=checkpoint.SCHEMA)


def damage(rng: random.Random, files):
    """Change one field, one array, or which head stands where."""
    files = copy.deepcopy(files)
    name = rng.choice(["shared.npz"] * 3 + sorted(files))
    how = rng.choice(("field", "field", "array", "array", "heads"))
    arrays, about = files[name]
    if how == "field":
        what, about = damage_json(rng, about)
    elif how == "array":
        what, arrays = damage_arrays(rng, arrays)
    else:
        heads = sorted(set(files) - {"shared.npz"})
        one, other = rng.sample(heads, 2)
        what = rng.choice(("lost", "copied", "exchanged"))
        if what == "lost":
            del files[one]
        elif what == "copied":
            files[one] = files[other]
        else:
            files[one], files[other] = files[other], files[one]
        return f"{one} {what}", files
    files[name] = arrays, about
    return f"{name}: {what}", files


@needs_linux
def test_no_change_of_a_set_goes_unnoticed(tmp_path: Path) -> None:
    seen = dict.fromkeys(("refused", "accepted"), 0)
    for k in range(INPUTS):
        rng = random.Random(f"{SEED} {k}")
        c, files, ends = original(rng.choice(sorted(CASES)))
        what, files = damage(rng, files)
        folder = tmp_path / str(k)
        folder.mkdir()
        write(folder / "merge-00000002", files)
        label = f"input {k} of seed {SEED}, {what}"
        end = run(lambda folder=folder, c=c: ending(c, folder))
        assert end.kind in seen, f"{label}: {end}"
        seen[end.kind] += 1
        if end.kind == "refused":
            assert str(folder) in end.text, f"{label}: {end.text}"
            assert len(end.text) < 2000
        else:
            assert end.value == ends, f"{label}: accepted, and ends otherwise"
    assert seen["refused"] > 0.9 * INPUTS


@pytest.mark.parametrize("name", CASES)
def test_the_set_as_it_was_goes_on_to_the_same_end(name: str, tmp_path: Path) -> None:
    c, files, ends = original(name)
    write(tmp_path / "merge-00000002", copy.deepcopy(files))
    assert ending(c, tmp_path) == ends
    assert np.isfinite(ends[1]).all()
