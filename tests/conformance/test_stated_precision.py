"""What a stated precision excuses, what it does not, and where a report says so.  [TOL-9]."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from command import loko_ref

from loko_ref import verify
from loko_ref.conformance import verify_recording
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.declared import read_precision
from loko_ref.conformance.judge.tolerance import _wide
from loko_ref.conformance.mistakes.registry import dtype_of, functions_by
from loko_ref.errors import InputError
from loko_ref.textbook import FORMULA_TABLE

pytestmark = pytest.mark.verdict


def coarse(*names, bits=8, **wrong):
    """Compute the named quantities, or all, with so many digits; the rest in float64."""

    def keep(name, value):
        if names and name not in names:
            return value
        fraction, exponent = np.frexp(value)
        return np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits)

    def apply(operation, inputs, options):
        out = operation.plain(_wide(inputs), options, {**FORMULA_TABLE, **wrong}, keep)
        return {k: np.asarray(v).astype(dtype_of(inputs)) for k, v in out.items()}

    return functions_by(apply)


def cut(values):
    """Round to bfloat16, towards 0."""
    return (values.astype("f4").view("u4") & 0xFFFF0000).view("f4").astype("f8")


def status(key, functions, stated):
    (check,) = run(
        Implementation(target="x", functions=functions),
        select(key),
        declared=read_precision("PRECISION", stated),
    )
    return check.status, [d.quantity for d in check.divergences]


STEP = "loko.step/softmax/float64"


def test_the_stated_quantity_is_excused_and_no_other():
    Z = coarse("Z")
    assert status(STEP, Z, {"Z": "bfloat16"}) == ("imprecise", ["Z"])
    for stated in (None, {"z": "bfloat16"}, {"Z": "float32", "S": "bfloat16"}, "float32"):
        assert status(STEP, Z, stated) == ("failed", ["Z"])
    jitter = coarse("Z", S=lambda v: FORMULA_TABLE["S"](v) + 1e-6 * np.eye(len(v.R_used)))
    assert status(STEP, jitter, {"Z": "bfloat16"}) == ("failed", ["S"])


@pytest.mark.parametrize(
    "key", ["lora.delta/random/float32", "model.jacobian/gelu/float64", "lte.merge/reset/float64"]
)
def test_what_is_coarse_throughout_is_excused_and_a_mistake_is_not(key):
    assert status(key, coarse(), "bfloat16")[0] == "imprecise"
    assert status(key, coarse(), None)[0] == "failed"
    doubled = {"scale": lambda alpha, r: 2 * alpha / r, "lte.scale": lambda alpha, r: 2 * alpha / r}
    assert status(key, coarse(**doubled), "bfloat16")[0] == "failed"


def test_every_report_says_it(tmp_path):
    functions, key = {"lora.delta": coarse()["lora.delta"]}, "lora.delta/random/float64"
    code = SimpleNamespace(IMPLEMENTATION=functions, PRECISION={"delta": "bfloat16"})
    report = verify(code, only=key)
    assert report.passed
    assert "stated precision, delta in bfloat16: excuses 1 of 1 checks" in report.notes
    assert "imprecise 1 check" in report.text
    assert report.document["precision"] == {"delta": "bfloat16"}
    assert report.document["checks"][0]["imprecise"]["declared"]
    for page in (report.to_html(), report.to_junit().decode()):
        assert "stated precision, delta in bfloat16" in page
    strict = verify(code, only=key, strict=True)
    assert not strict.passed
    assert strict.document["checks"][0]["imprecise"] is None
    assert "excuses nothing, by --strict" in strict.text


def test_what_is_hidden_is_said():
    """The root's eps is far below bfloat16's roundoff: where it stands cannot be seen any more."""
    functions = {"optimizer.adamw": coarse()["optimizer.adamw"]}
    code = SimpleNamespace(IMPLEMENTATION=functions, PRECISION="bfloat16")
    report = verify(code, only="optimizer.adamw/default/float64")
    (said,) = [note for note in report.notes if "can no longer be distinguished" in note]
    assert "ADAMW" in said


def test_a_command_and_a_recording_state_it(tmp_path):
    harness = tmp_path / "harness.py"
    harness.write_text(
        """
import base64, json, sys
import numpy as np
for line in sys.stdin:
    m = json.loads(line)
    if m["type"] == "stop":
        break
    if m["type"] == "hello":
        out = {**m, "operations": ["lora.delta"], "dtypes": ["float64"], "files": False,
               "catalogue": "operations/1", "precision": {"delta": "bfloat16"}}
        out["canary"] = {"float64": m["canary"]["float64"]}
        out.pop("folder")
    else:
        A, B = (np.frombuffer(base64.b64decode(m["inputs"][k]["data"])).reshape(
            m["inputs"][k]["shape"]) for k in "AB")
        d = m["options"]["alpha"] / len(A) * (B @ A)
        d = (d.astype("f4").view("u4") & 0xFFFF0000).view("f4").astype("f8")
        t = {"dtype": "float64", "shape": d.shape,
             "data": base64.b64encode(d.tobytes()).decode()}
        out = {"type": "result", "id": m["id"], "outputs": {"delta": t}}
    print(json.dumps(out), flush=True)
"""
    )
    import sys

    report = verify([sys.executable, str(harness)], only="lora.delta/*/float64")
    assert report.passed
    assert report.summary.imprecise == 3  # the fourth is of small whole numbers
    recorded = {"0/theta": np.array([1.0, 2.0]), "0/gradient": np.array([0.3, 0.1])}
    recorded["1/theta"] = cut(recorded["0/theta"] - 0.01 * recorded["0/gradient"])
    options = {"operation": "optimizer.sgd", "momentum": 0.0, "lr": 0.01}
    for stated, passed in (({"theta": "bfloat16"}, True), (None, False)):
        file = tmp_path / "r.npz"
        np.savez(file, options=json.dumps({**options, "precision": stated}), **recorded)
        assert verify_recording(file).passed == passed


def test_answers_state_it(tmp_path):
    loko_ref("vectors", "export", str(tmp_path / "v"), "--only", "lora.delta/random/float64")
    (case,) = select("lora.delta/random/float64")
    x = case.inputs()
    delta = cut(case.options["alpha"] / len(x["A"]) * (x["B"] @ x["A"]))
    answers = tmp_path / "a"
    answers.mkdir()
    np.savez(answers / "lora.delta--random--float64.npz", delta=delta)
    command = ("vectors", "judge", str(tmp_path / "v"), str(answers))
    assert loko_ref(*command).returncode == 1
    (answers / "precision.json").write_text('{"delta": "bfloat16"}')
    assert loko_ref(*command).returncode == 0
    assert loko_ref(*command, "--strict").returncode == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "PRECISION: got a int"),
        ("fp8", "PRECISION: got 'fp8'"),
        ({"Z": "fp8"}, "PRECISION: got 'fp8' for Z"),
        ({"Zed": "bfloat16"}, "Zed"),
        ({3: "bfloat16"}, "PRECISION: got a dict"),
    ],
)
def test_what_is_no_precision_is_refused(value, text):
    with pytest.raises(InputError, match=text):
        read_precision("PRECISION", value)
