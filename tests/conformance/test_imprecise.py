"""Right formulas by algorithms that lose digits are imprecise, not wrong.  [TOL-8]."""

import itertools
import re

import jsonschema
import numpy as np
import pytest
from command import loko_ref

from loko_ref import verify
from loko_ref.conformance import verify_recording
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import judge
from loko_ref.conformance.judge.answer import check as read
from loko_ref.conformance.reports.junit import as_xml
from loko_ref.files import documents as schema

pytestmark = pytest.mark.verdict

LONG = "optimizer.adamw/long/float32"


def adamw(theta, gradient, lr, beta1, beta2, eps, weight_decay):
    """As JAX and Keras have it: the corrections in the dtype of the arrays."""
    f, m, v = theta.dtype.type, np.zeros_like(theta), np.zeros_like(theta)
    rows = {"exp_avg": [], "exp_avg_sq": [], "theta": []}
    for t, g in enumerate(gradient, 1):
        m, v = f(beta1) * m + f(1 - beta1) * g, f(beta2) * v + f(1 - beta2) * g * g
        one, two = f(1) - f(beta1) ** f(t), f(1) - f(beta2) ** f(t)
        theta = theta * f(1 - lr * weight_decay)
        theta = theta - f(lr) * (m / one) / (np.sqrt(v / two) + f(eps))
        for name, row in (("exp_avg", m), ("exp_avg_sq", v), ("theta", theta)):
            rows[name].append(row)
    return {name: np.stack(some) for name, some in rows.items()}


def information(theta, P, H, e, R):
    """Invert P, R and the sum of their inverses."""
    R = np.linalg.inv(R)
    P = np.linalg.inv(np.linalg.inv(P) + H.T @ R @ H)
    K = P @ H.T @ R
    return {"K": K, "theta": theta + K @ e, "P": P}


def jittered(theta, P, H, e, R):
    S = H @ P @ H.T + R
    K = np.linalg.solve(
        S + S.dtype.type(1e-2 * np.finfo(S.dtype).eps ** 0.25) * np.eye(len(S), dtype=S.dtype),
        H @ P,
    ).T
    return {"S": S, "K": K, "theta": theta + K @ e, "P": P - K @ H @ P}


def test_corrections_in_float32_are_imprecise_and_every_output_says_so():
    report = verify({"optimizer.adamw": adamw}, only="optimizer.adamw")
    found = {c.case.id: c for c in report.checks}
    assert found[LONG].status == "imprecise"
    assert found[LONG].imprecise.algorithm == "1 - beta^t evaluated in float32"
    assert 1 < found[LONG].imprecise.digits < 4
    assert {c.status for key, c in found.items() if "float64" in key} == {"passed"}
    assert report.passed
    assert report.summary.exit_code == 0
    many = len(found)
    assert report.summary.text == f"PASSED: {many - 2} of {many}; 2 imprecise, 0 unsupported"
    assert "imprecise 2 checks, such as optimizer.adamw/long/float32: 1 - beta^t" in report.text
    assert report.failures == ()
    (entry,) = [c for c in report.document["checks"] if c["id"] == LONG]
    assert entry["status"] == entry["outcome"] == "imprecise"
    assert entry["imprecise"]["algorithm"] == "1 - beta^t evaluated in float32"
    assert report.document["summary"]["imprecise"] == 2
    jsonschema.validate(report.document, schema.load("verify"))
    xml = report.to_junit().decode()
    assert 'failures="0"' in xml
    assert "imprecise: 1 - beta^t evaluated in float32: about" in xml
    assert "Imprecise: 1 - beta^t evaluated in float32" in report.to_html()


def test_strict_lets_it_fail_and_an_expected_failure_covers_it():
    only, target = LONG, {"optimizer.adamw": adamw}
    report = verify(target, only=only, strict=True)
    assert report.summary.text == "FAILED: 1 of 1; 0 passed, 0 unsupported"
    assert report.summary.exit_code == 1
    assert report.failures[0].quantity == "theta"
    assert "imprecise: 1 - beta^t evaluated in float32" in report.text
    assert 'failures="1"' in report.to_junit().decode()
    for strict in (False, True):
        known = verify(target, only=only, strict=strict, xfail={only: "corrections in float32"})
        assert known.summary.verdict == "as expected"
        assert known.summary.exit_code == 0


@pytest.mark.sampled(0.34)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_information_form_is_right_or_imprecise(dtype):
    found = {}
    for case in select("kalman.dense_update", dtype):
        check = judge(case, read(information(**case.inputs()), case))
        found.setdefault(check.status, []).append(check)
    assert set(found) <= {"passed", "imprecise"}
    for check in found.get("imprecise", ()):
        assert check.imprecise.algorithm.startswith("the information form")
        assert check.imprecise.condition > 10


@pytest.mark.sampled(0.34)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_jitter_is_wrong_whatever_the_conditioning(dtype):
    report = verify({"kalman.dense_update": jittered}, only="kalman.dense_update", dtype=dtype)
    statuses = {c.status for c in report.checks}
    assert "failed" in statuses
    assert "imprecise" not in statuses
    assert all(one.quantity == "K" for one in report.failures)


def test_answers_that_differ_are_not_repeatable_and_nothing_is_named():
    calls = itertools.count()

    def delta(A, B, alpha):
        return {"delta": alpha / len(A) * (B @ A) * (1 + 1e-3 * next(calls))}

    report = verify({"lora.delta": delta}, only="lora.delta/*/float64")
    failed = [c for c in report.checks if c.status == "failed"]
    assert len(failed) > 1
    assert {c.finding.kind for c in failed} == {"not repeatable"}
    assert not any(report.mistakes.values())
    assert "the same call gave another delta when it was made again" in report.text
    assert "state kept from one call to the next" in report.to_junit().decode()


def test_nothing_far_off_is_imprecise():
    (case,) = select("optimizer.adamw/long/float32")
    out = adamw(**case.inputs(), **case.options)
    out["theta"] = out["theta"] * np.float32(1.01)
    check = judge(case, read(out, case))
    assert check.status == "failed"
    assert "imprecise" not in as_xml("t", [check], {}, {}).decode()


def test_a_recording_is_imprecise_as_its_run_is_and_strict_lets_it_fail(tmp_path):
    (case,) = select(LONG)
    x = case.inputs()
    out = adamw(**x, **case.options)
    state = {name: np.zeros_like(x["theta"]) for name in out} | {"theta": x["theta"]}
    record = {}
    for k in range(len(x["gradient"]) + 1):
        record |= {f"{k}/{name}": value for name, value in state.items()}
        if k < len(x["gradient"]):
            record[f"{k}/gradient"] = x["gradient"][k]
            state = {name: rows[k] for name, rows in out.items()}
    path = tmp_path / "run.npz"
    np.savez(path, **record)
    options = {"operation": "optimizer.adamw", **case.options}
    report = verify_recording(path, options)
    assert report.summary.exit_code == 0
    (count,) = re.findall(r"; (\d+) imprecise", report.summary.text)
    assert int(count) > 0
    assert report.checks[-1].case.operation.name.startswith("trace.")
    words = [f"--option={name}={value}" for name, value in options.items()]
    done = loko_ref("verify", "--trace", path, *words, "--strict")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED: {count} of" in done.stdout


def test_a_case_of_a_file_is_not_listed(tmp_path):
    done = loko_ref("verify", "--list", "--case", tmp_path / "none.json")
    assert done.returncode == 2
    assert "not beside --list" in done.stderr
