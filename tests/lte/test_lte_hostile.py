"""`lte --resume` of well-formed files with wrong content: refused by field, or the same run.

The hash of the file is rewritten, so that it is whole; the seal of its content is not.
"""

from __future__ import annotations

import copy
import functools
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

from loko_ref.experiments import checkpoint
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
    """The configuration, a checkpoint after two merges, and how the run ends."""
    import tempfile

    case = CASES[name]
    c = (lora_only if case.get("mode") == "mhlora" else config)(**case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.npz"
        whole(c, path=path, steps=4)
        return c, storage.load(path, schema=checkpoint.SCHEMA), ending(c, path)


def ending(c, path):
    digest, history = whole(c, resume=path)
    return digest, history.loss, history.evaluations, history.sent


def damage(rng: random.Random, arrays, metadata):
    """Change one field, one array, or which head stands where."""
    how = rng.choice(("field", "array", "heads"))
    if how == "field":
        what, metadata = damage_json(rng, metadata)
    elif how == "array":
        what, arrays = damage_arrays(rng, arrays)
    else:
        name = rng.choice([k for k in ("theta", "merged") if k in arrays])
        what = f"{name}: heads exchanged"
        arrays = arrays | {name: arrays[name][::-1]}
    return what, arrays, metadata


@needs_linux
def test_no_change_of_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    seen = dict.fromkeys(("refused", "accepted"), 0)
    for k in range(INPUTS):
        rng = random.Random(f"{SEED} {k}")
        c, whole_file, ends = original(rng.choice(sorted(CASES)))
        what, arrays, metadata = damage(rng, *copy.deepcopy(whole_file))
        path = tmp_path / f"{k}.npz"
        storage.save(path, arrays, metadata, schema=checkpoint.SCHEMA)
        label = f"input {k} of seed {SEED}, {what}"
        end = run(lambda path=path, c=c: ending(c, path))
        assert end.kind in seen, f"{label}: {end}"
        seen[end.kind] += 1
        if end.kind == "refused":
            assert str(path) in end.text, f"{label}: {end.text}"
            assert len(end.text) < 2000
        else:
            assert end.value == ends, f"{label}: accepted, and ends otherwise"
    assert seen["refused"] > 0.9 * INPUTS


@pytest.mark.parametrize("name", CASES)
def test_the_checkpoint_as_it_was_goes_on_to_the_same_end(name: str, tmp_path: Path) -> None:
    c, (arrays, metadata), ends = original(name)
    storage.save(tmp_path / "c.npz", arrays, metadata, schema=checkpoint.SCHEMA)
    assert ending(c, tmp_path / "c.npz") == ends
    assert np.isfinite(ends[1]).all()
