"""Recordings of runs: right ones pass, planted mistakes are found where they are made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import loko_ref

from loko_ref.conformance import recorded as trace
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import summarise
from loko_ref.conformance.implementations import recording
from loko_ref.errors import InputError
from loko_ref.interop import write_tensors

pytestmark = pytest.mark.verdict

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"noise": "ema_innovation", "beta": 0.9, "lam": 0.98, "q": 1e-4}


def run(steps=4, dtype=float, wrong=None, at=2, diagonal="decoupled"):
    """Filter in NumPy, wrong in one way from step `at` on; returns the recording."""
    rng = np.random.default_rng(3)
    theta, p, R = np.zeros(7, dtype), np.full(7, 0.5, dtype), (0.3 * np.eye(3)).astype(dtype)
    record = {}
    for k in range(steps):
        bad = wrong if k >= at else None
        record |= {f"{k}/theta": theta, f"{k}/p": p, f"{k}/R": R}
        Z, z, y = (rng.standard_normal(s).astype(dtype) for s in ((3, 7), (1, 3), (1, 3)))
        e, p_pred = (y - z)[0], (p / dtype(0.98) + dtype(1e-4)).astype(dtype)
        new = (dtype(0.9) * R + dtype(1 - 0.9) * np.outer(e, e)).astype(dtype)
        used = R if bad == "late" else new
        S = (Z * p_pred) @ Z.T + used + (1e-6 * np.eye(3, dtype=dtype) if bad == "jitter" else 0)
        K = np.linalg.solve(S, Z * p_pred).T
        post = p_pred * (1 - (K * Z.T).sum(axis=1))
        if (diagonal == "variational") != (bad == "diagonal"):
            post = 1 / (1 / p_pred + (Z * np.linalg.solve(used, Z)).sum(axis=0))
        record |= {f"{k}/{name}": a for name, a in {
            "Z": Z, "z": z, "y": y, "yhat": z[0], "e": e, "H": Z, "p_pred": p_pred,
            "R_used": used, "S": S, "K": K}.items()}  # fmt: skip
        theta, p, R = theta + K @ e, post, new
    return record | {f"{steps}/theta": theta, f"{steps}/p": p, f"{steps}/R": R}


def write(path, record, options=OPTIONS):
    if path.suffix == ".npz":
        np.savez(path, options=np.array(json.dumps(options)), **record)
    else:
        write_tensors(path, record, {"options": json.dumps(options)})
    return path


def checked(path, *given):
    return trace.check(recording.read(path, given))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("diagonal", ["decoupled", "variational"])
def test_a_right_run_passes(tmp_path, suffix, dtype, diagonal):
    path = write(tmp_path / f"t{suffix}", run(dtype=dtype, diagonal=diagonal))
    checks = checked(path, f"diagonal={diagonal}")
    assert {c.status for c in checks} == {"passed"}
    assert len(checks) == 4 * 10


@pytest.mark.parametrize(
    ("wrong", "place", "drop"),
    [
        ("diagonal", "trace/3/p", ()),
        ("jitter", "trace/2/S", ()),
        ("late", "trace/2/R_used", ()),
        ("late", "trace/2/S", ("R_used",)),
        ("jitter", "trace/2/K", ("S",)),
    ],
)
def test_a_planted_mistake_is_found_where_it_is_made(tmp_path, wrong, place, drop):
    record = {k: a for k, a in run(wrong=wrong).items() if k.split("/")[1] not in drop}
    checks = checked(write(tmp_path / "t.npz", record))
    failed = [c for c in checks if c.status == "failed"]
    assert failed[0].case.id == place
    assert failed[0].divergence.ratio > 10
    quantities = {c.case.id.split("/")[2] for c in failed}
    assert quantities <= {place.split("/")[2], "R"}  # what follows from it is not blamed


@pytest.mark.parametrize(
    ("wrong", "drop", "name"),
    [
        ("diagonal", (), "P-VARIATIONAL"),
        ("jitter", (), "S-JITTER"),
        ("late", ("R_used",), "NOISE-AFTER"),
    ],
)
def test_the_mistake_is_named(tmp_path, wrong, drop, name):
    record = {k: a for k, a in run(wrong=wrong).items() if k.split("/")[1] not in drop}
    checks = checked(write(tmp_path / "t.npz", record))
    first = next(c for c in checks if c.status == "failed")
    mistakes = name_mistakes(checks)[first.case.id]
    assert mistakes[0].mutant.id == name


@pytest.mark.parametrize("observation", ["glm", "softmax"])
@pytest.mark.parametrize("covariance", ["diagonal", "dense"])
def test_the_oracles_own_run_passes(tmp_path, observation, covariance):
    from loko_ref.conformance.cases.registry import Draw
    from loko_ref.conformance.catalogue.registry import OPERATIONS
    from loko_ref.conformance.oracle.loko import loko_step

    draw, spec = Draw("trace"), [
        {"kind": "linear", "name": "0", "in": 3, "out": 4, "bias": False,
         "lora": {"r": 2, "alpha": 4.0, "bias": False}}]  # fmt: skip
    noise = "glm" if observation == "glm" else "ema_innovation_hph"
    chosen = {"observation": observation, "noise": noise, "covariance": covariance}
    options = {o.name: o.default for o in OPERATIONS["loko.step"].options} | chosen
    big = "P" if covariance == "dense" else "p"
    state = {"theta": draw(14), big: 0.3 * (np.eye(14) if big == "P" else np.ones(14))}
    state |= {} if noise == "glm" else {"R": 0.2 * np.eye(8)}
    record = {}
    for k in range(3):
        x, y = draw(2, 3), draw.one_hot(2, C=4)
        given = {**state, "x": x, "y": y, "weights": {"0.W": draw(4, 3)}}
        out = loko_step(given, {**options, "spec": spec})
        record |= {f"{k}/{q}": a for q, a in {**out, **state, "y": y}.items()}
        state = {q: out[q] for q in state}
    record |= {f"3/{q}": a for q, a in state.items()}
    checks = checked(write(tmp_path / "t.npz", record, chosen))
    assert {c.status for c in checks} == {"passed"}, [c.reason for c in checks if c.reason]


def without(name):
    return lambda record: {k: a for k, a in record.items() if k != name}


def with_(name, change):
    return lambda record: {**record, name: change(record[name])}


def nan(a):
    a = a.copy()
    a.flat[1] = np.nan
    return a


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("1/theta"), "--trace, 1/theta: got nothing; required an array"),
        (with_("2/S", nan), "--trace, 2/S: got nan at index [0, 1]; required finite numbers"),
        (with_("2/K", np.transpose), "--trace, 2/K: got shape (3, 7); required (n, m), n = 7"),
        (with_("0/H", lambda a: a.astype("f4")), "required one dtype, float64 or float32"),
        (lambda record: {"theta": record["0/theta"]}, "an array 'theta'; required names such as"),
        (lambda record: {}, "no quantity of any step"),
    ],
)
def test_a_faulty_recording_is_refused(tmp_path, change, message):
    path = write(tmp_path / "t.npz", change(run()))
    with pytest.raises(InputError) as error:
        recording.read(path)
    assert message in str(error.value)


def test_either_byte_order_is_read(tmp_path):
    arrays = {k: a.astype(a.dtype.newbyteorder(">")) for k, a in run().items()}
    read = recording.read(write(tmp_path / "t.npz", arrays))
    assert read.dtype == "float64"
    np.testing.assert_array_equal(read.steps[0]["theta"], arrays["0/theta"])


def test_a_dtype_that_numpy_has_not_is_named(tmp_path):
    head = b'{"0/theta": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}'
    path = tmp_path / "t.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(InputError, match="dtype BF16; required one of F64, F32"):
        recording.read(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", run())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="truncated"):
        recording.read(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bet=0.9", "the closest"),
        ("beta", "NAME=VALUE"),
        ("beta=x", "a number, not nan or inf"),
        ("lam=0", "0 < lam <= 1"),
        ("noise=glm", "glm"),
        ("covariance=dense", "diagonal, as recorded"),
    ],
)
def test_a_faulty_option_is_refused(tmp_path, given, message):
    path = write(tmp_path / "t.npz", run())
    with pytest.raises(InputError, match=message):
        recording.read(path, [given])


def test_what_is_absent_is_said_to_be_unchecked(tmp_path):
    record = {k: a for k, a in run().items() if k.split("/")[1] in ("theta", "p", "R", "H", "e")}
    checks = checked(write(tmp_path / "t.npz", record))
    said = {c.case.id: c.reason for c in checks if c.status == "unsupported"}
    assert said["trace/0/S"] == "unchecked: not in the recording"
    assert said["trace/0/H"] == "unchecked: it needs Z, not in the recording"
    assert {c.case.id for c in checks if c.status == "passed"} == {
        f"trace/{k}/{q}" for k in range(1, 5) for q in ("theta", "p", "R")
    }
    alone = write(tmp_path / "u.npz", {"0/theta": np.ones(3), "1/theta": np.ones(3)})
    assert summarise(checked(alone)).exit_code == 2


def script(*arguments, **keywords):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        check=False,
        **keywords,
    )


def test_the_command(tmp_path):
    path = tmp_path / "trace.npz"
    made = script(ROOT / "examples" / "record_trace.py", path)
    assert made.returncode == 0, made.stderr
    done = loko_ref("verify", "--trace", path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "r.json"
    page = tmp_path / "r.html"
    wrong = ["--option", "diagonal=variational", "--json", report, "--html", page]
    done = loko_ref("verify", "--trace", path, *wrong)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "step 0: p is the first wrong quantity (trace/1/p)" in done.stdout
    assert "trace/1/p" in page.read_text(encoding="utf-8")
    found = json.loads(report.read_text())
    assert found["schema"] == "loko-ref/verify/2"
    failed = [c for c in found["checks"] if c["status"] == "failed"]
    assert failed[0]["id"] == "trace/1/p"
    assert failed[0]["first_divergence"]["labels"] == ["DIAG-2", "DIAG-4"]
    done = loko_ref("verify", "--trace", path, "--only", "trace/3/S")
    assert "PASSED: 1 of 1" in done.stdout
    done = loko_ref("verify", "--trace", path, "--dtype", "float32")
    assert done.returncode == 2
    assert "a recording has no cases" in done.stderr
