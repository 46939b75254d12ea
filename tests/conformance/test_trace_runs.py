"""Recordings of LTE and of the optimizers: right ones pass, mistakes show where they are made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import loko_ref

from loko_ref.conformance import verify_recording
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import all_mutants, evaluate
from loko_ref.errors import InputError
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.lte_heads import trained
from loko_ref.textbook.lte_state import array, flat, schedule, start
from loko_ref.textbook.quantities import Values, identity

pytestmark = pytest.mark.verdict

ROOT = Path(__file__).resolve().parents[2]
STATES = ("W", "theta", "p", "R", "merged", "copies", "momentum", "sum", "exp_avg", "exp_avg_sq")


def run_of(case, outputs=None):
    """A run of LTE as someone records it: states before a step, all else in it."""
    x, o, out = case.inputs(), case.options, outputs or expected(case)
    record = {}
    for k in range(len(x["x"])):
        record |= {f"{k}/x": x["x"][k], f"{k}/y": x["y"][k]}
        record |= {f"{k}/evaluation": x["evaluation"]} if "evaluation" in x else {}
        record |= {f"{k + (name in STATES)}/{name}": a[k] for name, a in out.items()}
        if schedule(o, k + 1)["merges"] > (done := schedule(o, k)["merges"]):
            drawn = x.get("redraws", {}).items()
            record |= {f"{k}/redraws.{name}": a[done] for name, a in drawn}
    v = Values(o=Values(o), F=FORMULA_TABLE, keep=identity, given=x)
    v["names"] = trained(o, x["weights"])
    first = start(v)
    states = [name for name in out if name in STATES and name != "W"]
    record |= {f"0/{name}": array(v, first, name) for name in states}
    record["0/W"] = flat(first.weights)
    record = {name: np.asarray(a, dtype=case.dtype) for name, a in record.items()}
    return record, {**o, "operation": "lte.run"}


def descent_of(case, outputs=None):
    x, out = case.inputs(), outputs or expected(case)
    record = {f"{k}/gradient": g for k, g in enumerate(x["gradient"])}
    record |= {f"{k + 1}/{name}": row for name, a in out.items() for k, row in enumerate(a)}
    record["0/theta"] = x["theta"]
    record = {name: np.asarray(a, dtype=case.dtype) for name, a in record.items()}
    return record, {**case.options, "operation": case.operation.name}


def verified(path, recorded, *more, **options):
    record, chosen = recorded
    np.savez(path, options=np.array(json.dumps(chosen)), **record)
    return verify_recording(path, *more, **options)


def upto(recorded, steps, first=0):
    """Some steps of a recording, and the prior."""
    record, options = recorded
    kept = {k: a for k, a in record.items() if first <= int(k.split("/")[0]) < steps}
    kept |= {k: a for k, a in record.items() if k == "0/p"}
    kept |= {"0/theta": record["0/theta"]} if "0/p" in kept else {}
    states = {k: a for k, a in record.items() if k.split("/")[0] == str(steps)}
    return kept | {k: a for k, a in states.items() if k.split("/")[1] in STATES}, options


LTE = select("lte.run")
DESCENTS = select("optimizer")


@pytest.mark.sampled(0.01)
@pytest.mark.parametrize("case", LTE, ids=lambda c: c.id)
def test_a_right_run_of_lte_passes(tmp_path, case):
    report = verified(tmp_path / "t.npz", upto(run_of(case), 2, first=1))  # where a merge is due
    assert report.passed, report.text
    reasons = {c.reason for c in report.checks if c.case.id.startswith("trace/2/")} - {None}
    judged = {check.case.operation.name for check in report.checks if check.status == "passed"}
    assert reasons <= {"no output of this case can be judged in this dtype"}
    assert {"trace.z", "trace.loss", "trace.theta"} <= judged


@pytest.mark.sampled(0.3)
@pytest.mark.parametrize("case", DESCENTS, ids=lambda c: c.id)
def test_a_right_run_of_an_optimizer_passes(tmp_path, case):
    report = verified(tmp_path / "t.npz", upto(descent_of(case), 2))
    assert report.passed, report.text
    assert not [check.reason for check in report.checks if check.reason]
    assert len(report.checks) >= 2 * len(expected(case))


MUTANTS = {one.id: one for one in all_mutants()}


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize(
    ("key", "case", "first", "drop"),
    [
        ("ADAMW-EPS-INSIDE", "optimizer.adamw/eps/float64", "trace/1/theta", ()),
        ("ADAMW-L2", "optimizer.adamw/decay/float64", "trace/1/exp_avg", ()),
        ("ADAMW-L2", "optimizer.adamw/decay/float64", "trace/1/theta", ("exp_avg", "exp_avg_sq")),
        ("SGD-FIRST-DAMPED", "optimizer.sgd/dampening/float64", "trace/1/momentum", ()),
        ("LTE-MERGE-SUM", "lte.run/reset-B/float64", "trace/2/W", ()),
        ("LTE-RESET-B-KEPT", "lte.run/reset-B/float64", "trace/2/theta", ()),
    ],
)
def test_a_planted_mistake_is_found_where_it_is_made(tmp_path, key, case, first, drop):
    (case,) = select(case)
    one = MUTANTS[key]
    outputs = evaluate(one, case, one.example)
    make = run_of if case.operation.name == "lte.run" else descent_of
    record, options = upto(make(case, outputs), 2)
    record = {k: a for k, a in record.items() if k.split("/")[1] not in drop}
    report = verified(tmp_path / "t.npz", (record, options))
    assert report.failures[0].case == first
    quantity = first.split("/")[2]
    later = {failure.quantity for failure in report.failures}
    assert later <= ({"theta", "exp_avg", "exp_avg_sq"} if key == "ADAMW-L2" else {quantity})
    if not drop:
        assert key in {m.mutant.id for m in report.mistakes[first]}


@pytest.mark.sampled(0.1)
def test_a_wrong_step_of_half_precision_s_size_is_no_lost_precision(tmp_path):
    """The moments before it were recorded right to the last digit: no half precision is inside."""
    (case,) = select("optimizer.adamw/default/float64")
    record, options = upto(descent_of(case), 2)
    record["1/theta"] = record["1/theta"] * (1 + 2e-4)
    report = verified(tmp_path / "t.npz", (record, options))
    assert {failure.quantity for failure in report.failures} == {"theta"}
    named = {m.mutant.id for mistakes in report.mistakes.values() for m in mistakes}
    assert named.isdisjoint(m.id for m in all_mutants() if m.roundoff)


def test_a_parent_that_was_recorded_wrongly_accuses_no_child(tmp_path):
    """A moment is logged wrong and used right: the moment alone is wrong."""
    (case,) = select("optimizer.adamw/decay/float64")
    record, options = upto(descent_of(case), 2)
    record["1/exp_avg"] = record["1/exp_avg"] * 2
    report = verified(tmp_path / "t.npz", (record, options))
    failed = [failure.case for failure in report.failures]
    assert failed[0] == "trace/1/exp_avg"
    assert "trace/1/theta" not in failed


def test_the_start_is_checked_and_may_be_left_out(tmp_path):
    (case,) = select("optimizer.adagrad/all-options/float64")
    record, options = upto(descent_of(case), 2)
    first = np.full_like(record["0/theta"], options["initial_accumulator_value"])
    report = verified(tmp_path / "t.npz", (record | {"0/sum": first}, options))
    assert report.passed, report.text
    assert "trace/0/sum" in {check.case.id for check in report.checks}
    report = verified(tmp_path / "t.npz", (record | {"0/sum": 0 * first}, options))
    assert report.failures[0].case == "trace/0/sum"
    (case,) = select("lte.run/copies/float64")
    record, options = upto(run_of(case), 1)
    record["0/copies"] = record["0/copies"] * 2
    report = verified(tmp_path / "t.npz", (record, options), only="trace/0/copies")
    assert [failure.quantity for failure in report.failures] == ["copies"]


def test_what_is_absent_is_unchecked(tmp_path):
    (case,) = select("lte.run/reset-AB/float64")
    record, options = upto(run_of(case), 2)
    less = {k: a for k, a in record.items() if "redraws" not in k and k != "1/x"}
    report = verified(tmp_path / "t.npz", (less, options))
    reasons = {check.case.id: check.reason for check in report.checks if check.reason}
    assert reasons["trace/1/z"] == "unchecked: it needs x, not in the recording"
    assert "redraws.0.A" in reasons["trace/2/theta"]
    assert report.passed
    (case,) = select("lte.run/loko-prior/float64")
    record, options = upto(run_of(case), 2)
    less = {k: a for k, a in record.items() if k not in ("0/p", "0/z", "0/Z", "0/loss")}
    report = verified(tmp_path / "t.npz", (less, options), only="trace/2/[pR]")
    reasons = {check.case.id: check.reason for check in report.checks if check.reason}
    assert reasons["trace/2/p"] == "unchecked: it needs p of step 0, not in the recording"
    (case,) = select("optimizer.adamw/decay/float64")
    record, options = upto(descent_of(case), 2)
    less = {k: a for k, a in record.items() if k != "1/exp_avg"}
    report = verified(tmp_path / "t.npz", (less, options))
    reasons = {check.case.id: check.reason for check in report.checks if check.reason}
    assert reasons["trace/1/exp_avg"] == "unchecked: not in the recording"
    assert reasons["trace/2/theta"] == "unchecked: it needs exp_avg, not in the recording"
    assert report.passed


def without(name):
    return lambda record, options: record.pop(name)


def changed(name, change):
    return lambda record, options: record.__setitem__(name, change(record[name]))


def option(**given):
    return lambda record, options: options.update(given)


HUGE = [{"kind": "linear", "name": "0", "in": 2**30, "out": 2**20, "lora": {"r": 1, "alpha": 1.0}}]


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (option(operation="lte.rum"), "--option operation"),
        (option(heads=2.5), "--option heads"),
        (option(optimizer="adams"), "--option optimizer"),
        (option(spec=HUGE), "required (3, 1074790400)"),
        (option(spec="x"), "--option spec"),
        (option(colour=1), "--option"),
        (option(rates=[0.1]), "--option rates: got 1 rates; required one for each of 2 steps"),
        (lambda record, options: options.pop("heads"), "--option heads: got nothing"),
        (option(mode="mhlora", realisation="copies"), "--option "),
        (changed("0/theta", np.transpose), "--trace, 0/theta: got shape"),
        (changed("1/W", lambda a: a[1:]), "--trace, 1/W: got shape"),
        (changed("0/x", lambda a: a[1:]), "--trace, 0/y: got shape"),
        (changed("0/y", lambda a: a[:, :1]), "--trace, 0/y"),
        (changed("0/gradient", lambda a: a[:, 1:]), "--trace, 0/gradient: got shape"),
        (changed("0/z", lambda a: a * np.nan), "--trace, 0/z: got nan"),
        (changed("0/z", lambda a: a.astype("f4")), "one dtype, float64 or float32"),
        (changed("0/z", lambda a: a[0, 0, 0]), "--trace, 0/z: got shape ()"),
    ],
)
def test_a_faulty_recording_is_refused(tmp_path, change, words):
    (case,) = select("lte.run/reset-B/float64")
    record, options = upto(run_of(case), 2)
    change(record, options)
    with pytest.raises(InputError) as error:
        verified(tmp_path / "t.npz", (record, options))
    assert words.replace("--trace", "path").replace("--option", "options") in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("1/R", lambda a: a[0, 0, 0]), "path, 1/R: got shape ()"),
        (changed("0/R", lambda a: a[:, :-1, :-1]), "path, 0/R: got shape"),
        (lambda record, o: [record.pop(f"{k}/y") for k in (0, 1)], "path, 0/x: got x of"),
    ],
)
def test_a_faulty_R_is_refused(tmp_path, change, words):
    (case,) = select("lte.run/loko-shrink/float64")
    record, options = upto(run_of(case), 2)
    change(record, options)
    with pytest.raises(InputError) as error:
        verified(tmp_path / "t.npz", (record, options))
    assert words in str(error.value)


def test_what_needs_x_without_it_is_unchecked(tmp_path):
    (case,) = select("lte.run/mhlora/float64")
    record, options = upto(run_of(case), 1)
    del record["0/x"]
    report = verified(tmp_path / "t.npz", (record, options))
    assert {check.reason for check in report.checks if check.reason} == {
        "unchecked: it needs x, not in the recording"
    }


def test_a_faulty_recording_of_an_optimizer_is_refused(tmp_path):
    (case,) = select("optimizer.adamw/eps/float64")
    for change, words in (
        (changed("0/theta", lambda a: a[None]), "got shape (1, "),
        (changed("1/exp_avg", lambda a: a[1:]), "required (n,)"),
        (option(eps="x"), "eps"),
        (option(eps=float("inf")), "Infinity"),
    ):
        record, options = upto(descent_of(case), 2)
        change(record, options)
        with pytest.raises(InputError) as error:
            verified(tmp_path / "t.npz", (record, options))
        assert words in str(error.value)


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("name", ["record_adamw.py", "lte_replay.py"])
def test_the_examples(tmp_path, name):
    words = [str(ROOT / "examples" / name)]
    words += ["--trace", str(tmp_path)] if name == "lte_replay.py" else [str(tmp_path / "a.npz")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], check=True, timeout=200, env=environment)
    for place in sorted(tmp_path.glob("*.npz"))[:1]:
        only = ["--only", "trace/3/*"] if name == "lte_replay.py" else []
        done = loko_ref("verify", "--trace", place, *only)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PASSED: " in done.stdout
    if name == "record_adamw.py":
        done = loko_ref("verify", "--trace", place, "--option", "weight_decay=0.1")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "step 0: theta is the first wrong quantity (trace/1/theta)" in done.stdout
