"""The formula that code computes is found where no known mistake is it, and no other is named."""

from dataclasses import replace

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import Draw, select
from loko_ref.conformance.diagnose import formulas, problems
from loko_ref.conformance.diagnose.equations import _outside, equation
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.diagnose.search.candidates import (
    Candidate,
    Trial,
    by_inputs,
    exchanged,
    singles,
)
from loko_ref.conformance.diagnose.search.confirm import Named, shortened
from loko_ref.conformance.diagnose.search.edits import Change, Edit, override
from loko_ref.conformance.diagnose.search.instrument import RESULT, instrument
from loko_ref.conformance.diagnose.search.numbers import numbers
from loko_ref.conformance.diagnose.search.problem import Problem
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.answer import Answer
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.kalman.filter import times
from loko_ref.conformance.mistakes.registry import NOTHING, all_mutants, as_implementation
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import Values, identity

pytestmark = pytest.mark.verdict


def update(theta, P, H, e, R, jitter=0.0, power=1, sign=1.0):
    """Return the dense update with mistakes."""
    Q = P if power == 1 else P @ P
    S = H @ Q @ H.T + R
    K = np.linalg.solve(S + jitter * np.eye(len(S)), H @ P).T
    out = {"S": S, "K": K, "theta": theta + sign * K @ e, "P": P - K @ H @ P}
    return {name: value.astype(theta.dtype) for name, value in out.items()}


def named(**mistakes):
    target = Implementation(
        target="made", functions={"kalman.dense_update": lambda **k: update(**k, **mistakes)}
    )
    checks = run(target, select("kalman.dense_update", "float64"))
    found = name_mistakes(checks)
    return {(m.quantity, m.equation, m.mutant.id) for fits in found.values() for m in fits}, found


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("size", ["1e-10", "1e-09"])
def test_a_jitter_in_the_solve_alone_is_no_lost_precision(size):
    """Named under every kernel: the number is fitted by a slope above its roundoff."""
    found, by_check = named(jitter=float(size))
    assert {(q, text) for q, text, _ in found} == {("K", f"K = diag(p) H' S^-1: S + {size} I")}
    assert all(by_check.values())


def test_two_mistakes_are_both_named_and_reproduced():
    found, by_check = named(power=2, sign=-1.0)
    assert {q for q, _, _ in found} == {"S", "theta"}
    assert {key for q, _, key in found if q == "theta"} == {"THETA-SIGN"}
    (case,) = select("kalman.dense_update/wide/float64")
    inputs = case.recipe.build(Draw("other numbers"), "float64")  # that the search never saw
    formula = next(m for fits in by_check.values() for m in fits if m.quantity == "S")
    out = case.operation.plain(
        inputs, case.options, {**FORMULA_TABLE, **formula.changes()}, identity
    )
    np.testing.assert_allclose(out["S"], update(**inputs, power=2)["S"], rtol=1e-12, atol=1e-14)


def test_a_pseudo_inverse_that_cuts_is_not_taken_for_lost_digits():
    def cutting(theta, P, H, e, R):
        S = H @ P @ H.T + R
        K = P @ H.T @ np.linalg.pinv(S, rcond=1e-3)
        return {"S": S, "K": K, "theta": theta + K @ e, "P": P - K @ H @ P}

    target = Implementation(target="pinv", functions={"kalman.dense_update": cutting})
    found = name_mistakes(run(target, select("kalman.dense_update", "float64")))
    assert found
    assert not any(found.values()), found


@pytest.mark.parametrize("name", ["K.softmax", "p.variational", "adamw.theta", "attend", "outer"])
def test_every_expression_of_a_formula_is_in_reach(name):
    assert len(instrument(FORMULA_TABLE[name]).places) > 10


def test_formulas_seen_place_by_place_give_the_same_numbers():
    seen = {k: instrument(f).made(lambda place, value: value) for k, f in FORMULA_TABLE.items()}
    for case in select("*/*/float64")[::40]:
        if case.operation.name == "lte.run":
            continue
        inputs = case.inputs()
        right = case.operation.plain(inputs, case.options, FORMULA_TABLE, identity)
        again = case.operation.plain(inputs, case.options, seen, identity)
        assert all(np.array_equal(right[k], again[k], equal_nan=True) for k in right)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("quantity", "changed", "text"),
    [
        ("v", lambda v: FORMULA_TABLE["v"](Values(v, p_pred=0.5 * v.p_pred)), "halved"),
        ("theta", lambda v: v.theta + 2 * times(v.p_pred, v.Z) @ v.v, "doubled"),
    ],
)
def test_a_mistake_in_the_implicit_step_is_found_in_its_equation_not_in_its_solver(
    quantity, changed, text
):
    formula = {"v": "v", "theta": "theta_post.implicit"}[quantity]
    wrong = replace(NOTHING, changes=lambda size: {formula: changed})
    target = Implementation(target="made", functions=as_implementation(wrong))
    found = name_mistakes(run(target, select("loko.step/implicit-[ts]*", "float64")))
    assert found
    assert {m.quantity for fits in found.values() for m in fits} == {quantity}
    assert all(text in m.equation for fits in found.values() for m in fits)


def test_a_formula_found_on_steps_of_runs_is_that_of_every_run_that_it_explains(monkeypatch):
    (wrong,) = (one for one in all_mutants() if one.id == "P-KEPT")
    target = Implementation(target="made", functions=as_implementation(wrong))
    checks = run(target, select("loko.run/softmax-*-before-decoupled*", "float64"))
    monkeypatch.setattr(problems, "CHECKS", 1)  # searched; the others are held to what is found
    monkeypatch.setattr(
        formulas,
        "search",
        lambda failing, *rest, **o: (
            [Named(candidate=Candidate(mutant=wrong), explained=tuple(failing))],
            [],
        ),
    )
    (found,) = formulas.find(checks, checks)
    assert len(checks) > 2
    assert set(found.checks) == {check.case.id for check in checks}


def test_two_options_put_for_each_other_are_found_wherever_they_stand():
    def swapped(v):
        return FORMULA_TABLE["adamw.hats"](Values(v, beta1=v.beta2, beta2=v.beta1))

    wrong = replace(NOTHING, changes=lambda size: {"adamw.hats": swapped})
    target = Implementation(target="made", functions=as_implementation(wrong))
    (one,) = problems.failing(run(target, select("optimizer.adamw/default/float64")))
    (found,) = exchanged(Trial(shortened(one)))
    assert one.quantity == "theta"
    assert equation("theta", found).endswith(
        "beta2 in place of beta1 within adamw.hats, and beta1 in place of beta2 within adamw.hats"
    )


def test_the_scale_that_one_derivative_lacks_is_that_of_its_own_layer():
    """Layers of image have scales of their own: a number made of alpha and r is of the layer."""
    outer = FORMULA_TABLE["factor.A"]
    wrong = replace(
        NOTHING,
        changes=lambda size: {
            "factor.A": lambda v, lora, du, x: outer(v, lora, du, x) * lora["r"] / lora["alpha"]
        },
    )
    target = Implementation(target="made", functions=as_implementation(wrong))
    (one,) = problems.failing(run(target, select("model.jacobian/image/float64")))
    number = next(n for n in numbers(Values(alpha=1.0, r=1.0)) if n.text == "r / alpha")
    change = Change(text="", apply=lambda a, reach: a * number.at(reach.v))
    edit = Edit(root="factor.A", inner="factor.A", place=RESULT, change=change)
    assert one.fits(override([edit]))


def test_of_problems_that_bear_a_formula_out_the_cheapest_is_searched():
    wrong = replace(NOTHING, changes=lambda size: {"jacobian_scale": lambda scale: 1.0})
    target = Implementation(target="made", functions=as_implementation(wrong))
    cases = [select(f"model.jacobian/{name}/float64")[0] for name in ("image", "tanh", "linear")]
    found = by_inputs(problems.failing(run(target, cases)))
    assert [one.case.recipe.name for one in found] == ["linear", "tanh", "image"]


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("1 - (K H').sum(axis=1)", "1 - .sum"),
        ("sqrt(a + b)", "sqrt"),
        ("(a + (b - c))", ""),
        ("p_pred[:, None] * v", "p_pred * v"),
    ],
)
def test_an_expression_is_put_in_brackets_by_what_stands_outside_its_own(text, outside):
    """1 - (K H').sum(axis=1) squared is read as the square of the sum."""
    assert _outside(text) == outside


def test_what_a_step_of_a_run_has_of_the_step_before_is_in_reach():
    (case,) = select("loko.run/gaussian/float64")
    y, outputs = case.inputs()["y"], dict(expected(case))
    late = np.concatenate([y[:1], y[:-1]])
    outputs["e"] = outputs["e"] + (late - y).reshape(outputs["e"].shape)
    check = judge(case, Answer(outputs=outputs))
    one = next(p for p in problems.of_check(check) if p.quantity == "e")
    assert one.case.id.endswith("[1]")
    found = next(c for c in singles(Trial(one)) if "step before" in c.text)
    assert found.text == "y of the step before in place of v.y"
    (step,) = select("loko.step/gaussian-fixed-before-decoupled/float64")
    right = dict(expected(step))
    first = Problem(
        case=step, quantity="e", outputs=right, check=step.id, taken=frozenset(right)
    )  # which has no step before
    np.testing.assert_array_equal(first.value(found.changes()), first.right)


def test_a_factor_of_all_of_a_quantity_is_not_the_quantity():
    """The tanh of a pooler: all of Z goes through it, and is doubled where its derivative is."""
    changes = {"tanh_derivative": lambda y: 1 - y}
    wrong = replace(NOTHING, changes=lambda size: changes)
    target = Implementation(target="made", functions=as_implementation(wrong))
    (one,) = problems.failing(run(target, select("model.jacobian/text/float64")))
    assert one.fits(changes)
