"""Networks, LTE and runs: every quantity is judged by its own parents.  [TOL-6]."""

import numpy as np
import pytest
from test_inside import answering

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.answer import check as read
from loko_ref.conformance.judge.tolerance import tolerance
from loko_ref.conformance.mistakes.registry import NOTHING, Mutant, all_mutants, as_implementation

pytestmark = pytest.mark.verdict

RIGHT = Implementation(target="right", functions=as_implementation(NOTHING))


def case_of(key):
    (case,) = select(key)
    return case


def found(case, outputs):
    check = judge(case, read({k: a.astype(case.dtype) for k, a in outputs.items()}, case))
    return check.status, [d.quantity for d in check.divergences]


def by_mistakes(key, *ids):
    """Return what is found wrong of a program with several known mistakes at once."""
    changes = {}
    for one in all_mutants():
        changes |= one.changes(one.example) if one.id in ids else {}
    both = Mutant(id="", name="", explanation="", look="", changes=lambda size: changes)
    case = case_of(key)
    return found(
        case, as_implementation(both)[case.operation.name](**case.inputs(), **case.options)
    )


# --------------------------------------------------------------------------------- networks

WRONG = {
    "model.jacobian/attention-heads/float64": ({"score_scale": lambda c: 1.0}, ["scores.0", "Z"]),
    "loko.step/transformer-text/float64": ({"score_scale": lambda c: 1.0}, ["scores.0", "Z"]),
    "loko.run/glm-glm-before-dense/float64": (
        {"relu": lambda x: np.where(x > 0, x, 0.1 * x)},
        ["z.1:relu"],
    ),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_layer_is_wrong_and_those_behind_it_are_right(key):
    wrong, quantities = WRONG[key]
    case = case_of(key)
    (check,) = run(answering(case.operation, **wrong), [case])
    assert (check.status, [d.quantity for d in check.divergences]) == ("failed", quantities)


def test_wrong_layers_are_all_found_and_what_is_not_used_blames_nothing():
    case = case_of("model.jacobian/attention-heads/float64")

    def change(out):
        return {**out, "weights.0": out["weights.0"] * 1.001, "z.0": out["z.0"] + 1e-6}

    (check,) = run(answering(case.operation, change), [case])
    assert [d.quantity for d in check.divergences] == ["weights.0", "z.0"]


def test_a_slope_is_taken_at_the_output_that_came():
    """Tanh of an input that is rounded: its output is wrong, and Z is the slope's at that."""
    case = case_of("model.jacobian/tanh/float64")

    def tanh(v, x):
        return np.tanh(np.round(x, 3))

    (check,) = run(answering(case.operation, tanh=tanh), [case])
    layers = {d.quantity for d in check.divergences}
    assert layers
    assert "Z" not in layers
    assert layers <= {"z.1:tanh", "z.3"}, layers


# -------------------------------------------------------------------------------------- LTE


def test_what_a_head_sees_is_judged_by_the_weight_that_came():
    case = case_of("lte.merge/two-heads/float64")
    assert by_mistakes(case.id, "LTE-MERGE-SUM") == ("failed", ["W"])
    assert by_mistakes(case.id, "LTE-HEAD-UNCORRECTED") == ("failed", ["seen"])
    assert by_mistakes(case.id, "LTE-MERGE-SUM", "LTE-HEAD-UNCORRECTED")[1] == ["W", "seen"]
    out = dict(RIGHT.run(case).outputs)
    assert found(case, {**out, "W": out["W"] * 1.001}) == ("failed", ["W"])


RUNS = {
    "lte.run/adamw": (("LTE-MERGE-SUM",), ["W"]),
    "lte.run/sgd": (("LTE-OWN-MEAN", "LTE-MERGE-SUM"), ["gradient", "W"]),
    "lte.run/copies": (("LTE-COPY-ADDED",), ["copies"]),
    "lte.run/loko": (("P-VARIATIONAL", "LTE-MERGE-SUM"), ["p_step", "W"]),
    "lte.run/reset-AB": (("LTE-RESET-A-KEPT", "LTE-STATE-WIPED"), ["sum", "theta"]),
}


@pytest.mark.sampled(0.2)
@pytest.mark.parametrize("key", RUNS)
def test_a_run_is_cut_into_steps_from_the_state_that_came(key):
    mistakes, quantities = RUNS[key]
    status, wrong = by_mistakes(f"{key}/float64", *mistakes)
    assert status == "failed"
    assert set(quantities) <= set(wrong)
    assert wrong[0] == quantities[0]


# --------------------------------------------------------------- liars, and states not whole

LIARS = {
    "lte.run/adamw/float64": "merged",
    "lte.run/loko/float64": "p",
    "lte.run/copies-reset-AB/float64": "copies",
    "loko.run/gaussian-residual/float64": "R",
    "loko.run/softmax/float64": "p",
    "loko.run/implicit-run/float64": "p",
    "optimizer.adamw/default/float64": "exp_avg",
}
"""Case -> what is held back, so that the state is not whole."""


@pytest.mark.sampled(0.09)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("key", LIARS)
def test_one_wrong_log_blames_nothing_else(key, whole):
    """Right values are used, and one of them is returned otherwise, at every step."""
    case = case_of(key)
    out = dict(RIGHT.run(case).outputs)
    if not whole:
        out.pop(LIARS[key])
    for name, value in out.items():
        if tolerance(case)[name] is not None and np.any(value):
            assert found(case, {**out, name: value * 1.001}) == ("failed", [name])
