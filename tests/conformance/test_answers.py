"""``loko-ref vectors judge``: the verdicts of verify on outputs that were computed elsewhere."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from command import loko_ref

from loko_ref.conformance import verification, verify, verify_answers
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.implementations.protocol import encode
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.vectors import answers as offline
from loko_ref.conformance.vectors import vectors
from loko_ref.errors import InputError
from loko_ref.files.containers import pack_npz, pack_safetensors

ONLY = "kalman.diagonal_update/random*"
CASES = select(ONLY)
TINY = "lora.delta/tiny/float64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("judge") / "set"
    with pytest.MonkeyPatch.context() as patch:  # without golden values, which take long
        patch.setattr(vectors.enclosure, "available", lambda: False)
        more = [*select("lora.delta/tiny/*"), *select("loko.run/glm/float64")]
        vectors.export(place, [*CASES, *more])
    return place


def outputs(key, change=None):
    """The oracle's outputs of a case in its dtype, as an implementation elsewhere returns them."""
    (case,) = select(key)
    found = {name: a.astype(case.dtype) for name, a in expected(case).items()}
    return {**found, **(change(found) if change else {})}


def nested(arrays):
    return {name: a.tolist() for name, a in arrays.items()}


def write(path, answers):
    """Write answers by id: as a folder of one kind of file, or as one file by its suffix."""
    if path.suffix == ".json":
        path.write_text(json.dumps({key: nested(out) for key, out in answers.items()}))
    elif path.suffix:
        flat = {f"{key}/{name}": a for key, out in answers.items() for name, a in out.items()}
        pack = pack_npz if path.suffix == ".npz" else pack_safetensors
        path.write_bytes(bytes(pack(flat, {} if pack is pack_safetensors else b"")))
    return path


FORMS = {
    ".npz": lambda out: bytes(pack_npz(out)),
    ".safetensors": lambda out: bytes(pack_safetensors({f"out.{k}": out[k] for k in out}, {})),
    ".json": lambda out: json.dumps({k: encode(a) for k, a in out.items()}).encode(),
}


@pytest.mark.sampled(0.34)
@pytest.mark.parametrize("suffix", FORMS)
def test_every_form_gives_the_same_verdicts_as_verify(folder, tmp_path, suffix, monkeypatch):
    """One case is wrong, one has another dtype, one is not answered, one is wrong in a run."""
    monkeypatch.setattr(verification, "name_mistakes", lambda checks, again: {})
    wrong, absent, late, right = [case.id for case in CASES]
    answers = {right: outputs(right)}
    answers[wrong] = outputs(wrong, lambda out: {"S": out["S"] * (1 + 1e-9)})
    answers[late] = {k: a.astype("f4") for k, a in outputs(late).items()}
    answers["loko.run/glm/float64"] = outputs(
        "loko.run/glm/float64", lambda out: {"p": out["p"] * 2}
    )

    place = tmp_path / "answers"
    place.mkdir()
    for key, out in answers.items():
        (place / (key.replace("/", "--") + suffix)).write_bytes(FORMS[suffix](out))
    report = verify_answers(folder, place, only="kalman*")
    assert len(report.checks) == len(CASES)
    found = {c.case.id: c for c in report.checks}
    assert found[wrong].divergence.quantity == "S"
    assert found[late].finding.kind == "dtype"
    assert found[absent].reason == "it has no answer"
    assert found[right].status == "passed"
    assert report.summary.exit_code == 1
    own = write(tmp_path / f"all{suffix}", answers)
    again = verify_answers(folder, own, only="kalman*")
    assert [c.status for c in again.checks] == [c.status for c in report.checks]
    one = verify_answers(folder, own)
    run = next(c for c in one.checks if c.case.id == "loko.run/glm/float64")
    assert run.divergence.quantity == "p"

    def same(**given):  # what verify says of an implementation with these outputs
        key = next(c.id for c in CASES if all(np.array_equal(c.inputs()[k], given[k]) and
                   c.inputs()[k].dtype == given[k].dtype for k in ("theta", "p")))  # fmt: skip
        if key == absent:
            raise NotImplementedError
        return answers[key]

    direct = verify({"kalman.diagonal_update": same}, only=ONLY)
    assert [(c.status, c.divergence) for c in direct.checks] == [
        (c.status, c.divergence) for c in report.checks
    ]


def test_the_command(folder, tmp_path):
    page, document = tmp_path / "r.html", tmp_path / "r.json"
    good = write(tmp_path / "good.json", {TINY: outputs(TINY)})
    done = loko_ref("vectors", "judge", folder, good)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: 1 of 1" in done.stdout
    bad = write(
        tmp_path / "bad.npz", {TINY: outputs(TINY, lambda out: {"delta": out["delta"] + 1})}
    )
    more = ["--json", document, "--html", page, "--only", "lora"]
    done = loko_ref("vectors", "judge", folder, bad, *more)
    assert done.returncode == 1, done.stdout + done.stderr
    again = f"loko-ref vectors judge {folder} {bad} --only {TINY}"
    assert f"reproduce: {again}" in done.stdout
    assert again in page.read_text(encoding="utf-8")
    assert json.loads(document.read_text())["target"] == f"vectors judge {folder} {bad}"
    (tmp_path / "x.txt").write_text(f"{TINY}: known\n")
    done = loko_ref("vectors", "judge", folder, bad, "--xfail", tmp_path / "x.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    done = loko_ref("vectors", "judge", folder, good, "--only", "kalman")
    assert done.returncode == 2
    assert "NOTHING RAN" in done.stdout


def test_inputs_of_another_machine_are_those_of_the_file(folder):
    """Inputs that differ by rounding are judged as they are, also where a twin has them too."""
    for key in ("loko.run/glm/float32", CASES[0].id):
        (case,) = select(key)
        inputs = case.inputs()
        inputs["theta"] = np.nextafter(inputs["theta"], np.inf)
        other = replace(case, recipe=replace(case.recipe, build=lambda draw, dtype, x=inputs: x))
        tensors = offline.flatten("in", inputs)
        moved = offline.of_file(case, tensors)
        assert moved is not case
        for name, a in expected(other).items():
            np.testing.assert_array_equal(expected(moved)[name], a)


ONE = json.dumps({"delta": [[1, 2], [3, 4]]})
FILES = {
    "unknown file": ({"x.npz": b""}, "a file 'x.npz'; required a file that answers a case of DIR"),
    "the vectors": ({"manifest.json": b"{}"}, "the vectors themselves"),
    "twice": (
        {f"lora.delta--tiny--float64.{s}": ONE.encode() for s in ("json", "npz")},
        "a second file of lora.delta/tiny/float64",
    ),
    "damaged": ({"lora.delta--tiny--float64.npz": b"PK"}, "an incomplete archive"),
    "an input": (
        {"lora.delta--tiny--float64.npz": bytes(pack_npz({"in.A": np.ones(2)}))},
        "an array 'in.A'",
    ),
    "text": ({"lora.delta--tiny--float64.json": b'{"delta": "x"}'}, "what is no number"),
    "ragged": ({"lora.delta--tiny--float64.json": b'{"delta": [[1], [2, 3]]}'}, "nested list"),
    "huge": (
        {"lora.delta--tiny--float64.json": json.dumps(
            {"delta": {"dtype": "float64", "shape": [2**30, 2**20], "data": ""}}).encode()},
        "bytes, where at most",
    ),
    "nothing": ({}, ": no answer; required the outputs of one case of DIR or more"),
    "no object": ({"lora.delta--tiny--float64.json": b"[1]"}, "without an object of outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_answer_is_refused(folder, tmp_path, name):
    files, words = FILES[name]
    place = tmp_path / "answers"
    place.mkdir()
    for file, content in files.items():
        (place / file).write_bytes(content)
    with pytest.raises(InputError) as error:
        verify_answers(folder, place)
    assert words in str(error.value)
    assert str(error.value).startswith(("answers", str(place)))


def test_one_file_of_foreign_content_is_refused(folder, tmp_path):
    for name, content, words in (
        ("a.json", '{"lora.delta/tiny/float16": {}}', "the closest is 'lora.delta/tiny/float"),
        ("b.json", '{"delta": [1]}', "an entry 'delta'"),
        ("c.json", "[]", "JSON that is no object"),
        ("nothing.json", "{}", "no answer"),
        ("d.txt", "", "required a folder, or a file that ends in .npz, .safetensors, .json"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError) as error:
            verify_answers(folder, tmp_path / name)
        assert words in str(error.value)
    write(tmp_path / "e.npz", {"lora.delta/other/float64": {"delta": np.ones(2)}})
    with pytest.raises(InputError, match=r"array 'lora\.delta/other/float64/delta'"):
        verify_answers(folder, tmp_path / "e.npz")
    place = tmp_path / "links"
    place.mkdir()
    os.symlink(tmp_path / "a.json", place / "lora.delta--tiny--float64.json")
    with pytest.raises(InputError, match="a link"):
        verify_answers(folder, place)
    os.mkfifo(tmp_path / "f.json")
    with pytest.raises(InputError, match="a FIFO"):
        verify_answers(folder, tmp_path / "f.json")


def test_vectors_of_another_version_are_refused(folder, tmp_path, monkeypatch):
    write(tmp_path / "a.json", {TINY: outputs(TINY)})
    known = [case for case in offline.all_cases() if case.id != TINY]
    monkeypatch.setattr(offline, "all_cases", lambda: known)
    with pytest.raises(InputError, match=r"a case 'lora\.delta/tiny/float64'; required cases"):
        verify_answers(folder, tmp_path / "a.json")
    (case,) = select(TINY)
    inputs = {**case.inputs(), "A": case.inputs()["A"] * 2}
    moved = replace(case, recipe=replace(case.recipe, build=lambda draw, dtype: inputs))
    monkeypatch.setattr(offline, "all_cases", lambda: [*known, moved])
    with pytest.raises(InputError, match="with other inputs"):
        verify_answers(folder, tmp_path / "a.json")
