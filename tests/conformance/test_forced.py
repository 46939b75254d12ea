"""Teacher-forced and free-run localisation: a local mistake, or one in the state carried on."""

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.compare import compare
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import all_mutants, as_implementation
from loko_ref.conformance.reports import document as report
from loko_ref.conformance.teacher_forcing import _balanced, steps_of
from loko_ref.kalman.simplex import check_ones

pytestmark = pytest.mark.verdict

BY_ID = {m.id: m for m in all_mutants()}


def failed(key, only):
    target = Implementation(target=key, functions=as_implementation(BY_ID[key]))
    (check,) = run(target, select(only))
    assert check.status == "failed"
    return check


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("run", "steps"), [("logits", 25), ("softmax", 20)])
def test_what_is_not_carried(run, steps, dtype):
    """R reset at each step: right step by step, wrong in a free run from the second step on."""
    check = failed("NOISE-RESET", f"loko.run/{run}/{dtype}")
    assert check.divergence.index[0] == 1
    assert check.forced.divergence is None
    assert check.forced.finding is None
    assert check.forced.steps == steps
    text = f"teacher-forced: all {steps} steps are right from the oracle's state; the mistake is "
    assert check.forced.text == text + "in the state carried from step to step"
    (entry,) = report.as_json("t", [check])["checks"]
    assert entry["teacher_forced"]["first_divergence"] is None
    assert entry["teacher_forced"]["steps"] == steps


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("batch", "C"), [(1, 3), (3, 4)])
def test_a_state_of_the_softmax_is_rounded_to_one_that_a_step_takes(batch, C, dtype, rng):
    e = rng.standard_normal((20, batch, C))
    e = (e - e.mean(axis=2, keepdims=True)).reshape(20, -1)
    R = 0.3 * np.eye(batch * C) + e.T @ e / 20
    found = _balanced(R, C, dtype).astype(dtype)
    assert np.abs(found - R).max() <= 64 * np.finfo(dtype).eps * np.abs(R).max()
    assert np.array_equal(found, found.T)
    check_ones(found.astype("float64"), C)  # a float64 step takes it


def test_every_run_can_be_cut_into_steps():
    for case in select("loko.run/*"):
        for step in steps_of(case)[:3]:
            assert expected(step)


def test_a_local_mistake():
    check = failed("P-VARIATIONAL", "loko.run/glm/float64")
    assert (check.divergence.quantity, check.divergence.index[0]) == ("p", 0)
    assert (check.forced.divergence.quantity, check.forced.divergence.index[0]) == ("p", 0)
    assert check.forced.text == "teacher-forced: first off at step 0, p"


def test_a_late_local_mistake():
    """A mistake that begins at step 3 is found there, forced and free."""
    right = as_implementation(BY_ID["NOISE-RESET"])["loko.run"]  # 'gaussian' keeps R: it is right
    (case,) = select("loko.run/gaussian/float64")
    later = {s.tobytes() for s in case.inputs()["x"][3:]}

    def function(**keywords):
        out = right(**keywords)
        for t, x in enumerate(keywords["x"]):
            if x.tobytes() in later:
                out["K"][t] *= 1.001
        return out

    (check,) = run(Implementation(target="late", functions={"loko.run": function}), [case])
    assert (check.divergence.quantity, check.divergence.index[0]) == ("K", 3)
    assert (check.forced.divergence.quantity, check.forced.divergence.index[0]) == ("K", 3)
    assert check.forced.steps == 4


def test_steps_make_up_the_run():
    (case,) = select("loko.run/softmax/float64")
    free = expected(case)
    for t, step in enumerate(steps_of(case)):
        divergence, worst = compare(step, {k: v[t : t + 1] for k, v in free.items()})
        assert divergence is None
        assert worst < 0.5
