"""A name that one input bears out is confirmed on others; what has no name is described."""

from dataclasses import replace

import einsum_loko
import numpy as np
import pytest

from loko_ref import verify
from loko_ref.conformance.assessment.fresh import fresh
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose import problems
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.diagnose.search.again import calling, fresh_cases
from loko_ref.conformance.diagnose.search.candidates import Candidate
from loko_ref.conformance.diagnose.search.confirm import _judged as judged
from loko_ref.conformance.diagnose.search.confirm import choice
from loko_ref.conformance.diagnose.search.relation import observed
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.answer import check as answer
from loko_ref.conformance.judge.hook import output_names
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import NOTHING, as_implementation
from loko_ref.conformance.reports.text import lines, reproduce
from loko_ref.conformance.user_inputs import save_case, user_case

pytestmark = pytest.mark.verdict


def raw(z, Z, y):
    """Return yhat = z: the softmax left out."""
    e = (y - z).reshape(-1)
    return {"yhat": z.reshape(-1), "e": e, "H": Z}


def names_of(functions, cases, *, again=True):
    target = Implementation(target="made", functions=functions)
    found = name_mistakes(run(target, cases), calling(target, None) if again else None)
    return {key: {m.text for m in fits} for key, fits in found.items()}


def test_a_size_that_many_others_fit_as_well_is_not_named():
    """Where softmax is saturated every temperature near 0 gives what came."""
    (case,) = select("observation.logits/tiny/float64")
    found = names_of({"observation.logits": raw}, [case])
    assert found
    assert not any("scaled" in text for texts in found.values() for text in texts), found


def plus_mean(A, B, alpha):
    """Return a delta that no known mistake has: A less its mean."""
    return {"delta": alpha / len(A) * B @ (A - A.mean(axis=0, keepdims=True))}


def test_one_input_is_enough_where_the_code_can_be_called_again():
    cases = select("lora.delta/random/float64")
    assert not any(names_of({"lora.delta": plus_mean}, cases, again=False).values())
    (texts,) = names_of({"lora.delta": plus_mean}, cases).values()
    assert any("less its mean" in text for text in texts)


def test_a_known_mistake_that_other_numbers_belie_is_not_named():
    (case,) = select("lora.delta/random/float64")
    given = case.inputs()

    def delta(A, B, alpha):  # the rank left out, for these numbers alone
        one = np.array_equal(A, given["A"])
        return {"delta": alpha * B @ A if one else np.cos(B @ A)}

    assert all(names_of({"lora.delta": delta}, [case], again=False).values())
    (texts,) = names_of({"lora.delta": delta}, [case]).values()
    assert not texts


def test_a_branch_of_a_later_step_is_searched():
    """The momentum is not met in the first step."""

    def sgd(theta, gradient, lr, momentum, dampening, weight_decay, nesterov):
        buffer, rows, buffers = None, [], []
        for g in gradient:
            d = g + weight_decay * theta
            buffer = d if buffer is None else buffer + (1 - dampening) * d
            theta = theta - lr * (d + momentum * buffer if nesterov else buffer)
            rows.append(theta)
            buffers.append(buffer)
        return {"momentum": np.stack(buffers), "theta": np.stack(rows)}

    cases = [*select("optimizer.sgd/momentum/float64"), *select("optimizer.sgd/decay/float64")]
    found = names_of({"optimizer.sgd": sgd}, cases)
    assert all(any("in place of" in text for text in texts) for texts in found.values()), found


def test_fresh_numbers_are_others_and_a_case_that_draws_none_has_none():
    (case,) = select("lora.delta/random/float64")
    one, other = fresh_cases(case)
    assert not np.array_equal(one.inputs()["A"], other.inputs()["A"])
    assert not np.array_equal(one.inputs()["A"], case.inputs()["A"])
    assert not list(
        fresh_cases(user_case("lora.delta", case.inputs(), alpha=case.options["alpha"]))
    )
    dense, *_ = select("kalman.time_update/dense-both/float64")
    assert set(fresh(dense, 0).inputs) == {"P"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda P: -P, "right but for its sign"),
        (lambda P: 1.5 * P, "1.5 times what is right"),
        (lambda P: P + 0.25, "what is right plus 0.25"),
        (lambda P: P + 0.25 * np.eye(len(P)), "what is right plus 0.25 I"),
        (lambda P: P[::-1], "right but for the order of its elements"),
        (lambda P: 2 * np.sign(P) * np.abs(P) ** 1.5, "2 |what is right|^1.5"),
        (lambda P: P + np.arange(len(P)) ** 2 * P, "ruled out: its sign, another order, a factor"),
        (lambda P: P + np.eye(len(P))[0], "at 0 of axis 1 only"),
    ],
)
def test_what_has_no_name_is_described(change, text):
    (case,) = select("kalman.dense_update/square/float64")
    right = dict(expected(case))
    check = judge(case, answer({**right, "P": change(right["P"])}, case))
    assert text in observed(check)


def test_the_command_names_the_file_of_a_case(tmp_path):
    file = tmp_path / "my case.npz"
    (case,) = select("lora.delta/random/float64")
    save_case(file, "lora.delta", case.inputs(), alpha=case.options["alpha"])
    report = verify({"lora.delta": plus_mean}, case=file)
    text = "\n".join(part[1] + part[2] for part in lines(report.target, report.checks))
    assert f"reproduce: loko_ref.verify(..., case={str(file)!r})" in text
    assert reproduce("a b.py --case mine.json", "lora.delta/own/float64").endswith(
        "verify 'a b.py' --case mine.json"
    )


def adagrad(keep=1.0, decayed=True):
    """Return AdaGrad that forgets, or whose sum is of the gradient without weight decay."""

    def run(theta, gradient, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
        total, sums, thetas = np.full_like(theta, initial_accumulator_value), [], []
        for t, g in enumerate(gradient):
            d = g + weight_decay * theta
            total = keep * (total + (d if decayed else g) ** 2)
            theta = theta - lr / (1 + t * lr_decay) * d / (np.sqrt(total) + eps)
            sums.append(total)
            thetas.append(theta)
        return {"sum": np.array(sums), "theta": np.array(thetas)}

    return {"optimizer.adagrad": run}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("again", [True, False])
def test_a_number_is_named_by_an_option_only_where_it_follows_the_option(again):
    """Where lr is 0.1 everywhere, 0.9 is 1 - lr: other options belie that, if there are any."""
    cases = select("optimizer.adagrad", "float64")
    texts = {t for own in names_of(adagrad(keep=0.9), cases, again=again).values() for t in own}
    assert texts
    assert all("times 0.9" in text for text in texts)
    assert all("times 0.9 (equals (1 - lr) here)" in text for text in texts) is not again


def test_a_known_mistake_is_not_named_where_another_quantity_that_it_changes_is_right():
    """The sum alone is without decay; ADAGRAD-NO-DECAY takes it out of the step too."""
    cases = select("optimizer.adagrad", "float64")
    found = names_of(adagrad(decayed=False), cases)
    assert found
    for texts in found.values():
        assert texts
        assert all("weight_decay left out" in text for text in texts), texts


def test_an_option_without_effect_is_not_that_under_which_a_formula_is_wrong():
    (sgd,) = select("lte.run/sgd/float64")
    (loko,) = select("lte.run/loko/float64")
    (biased,) = select("lte.run/biased/float64")
    assert [choice(sgd, name) for name in ("observation", "solve", "reset")] == [None, None, "none"]
    assert choice(loko, "observation") == loko.options["observation"]
    assert choice(loko, "nesterov") is None
    assert [choice(case, "LoRA's bias") for case in (sgd, biased)] == [False, True]


def test_a_case_in_which_a_formula_acts_not_at_all_does_not_contradict_it():
    """Another formula is wrong there: no option is needed to keep it out."""
    wrong = {
        "p.decoupled": lambda v: v.p - (v.K * v.H.T).sum(axis=1),
        "p.variational": lambda v: 2 * v.p,
    }
    both = replace(NOTHING, changes=lambda size: wrong)
    first = replace(NOTHING, changes=lambda size: {"p.decoupled": wrong["p.decoupled"]})
    target = Implementation(target="made", functions=as_implementation(both))
    checks = run(target, select("kalman.diagonal_update", "float64"))
    failing = [one for one in problems.failing(checks) if one.quantity == "p"]
    assert len({one.case.options["diagonal"] for one in failing}) == 2
    named = judged(Candidate(mutant=first), 1, failing, ())
    assert named is not None
    assert named.candidate.scope == ()
    assert {one.case.options["diagonal"] for one in named.explained} == {"decoupled"}


def test_a_formula_of_the_first_wrong_step_holds_in_the_last_too():
    """A mean in place of the average: 1 - beta is 1, then 1/2, 1/3; "beta left out" fits once."""

    def averaged(*, x, y, theta, p=None, P=None, R=None, beta, **rest):
        state, rows = {"theta": theta, "p": p, "P": P, "R": R}, []
        for t, (xs, ys) in enumerate(zip(x, y, strict=True)):
            one = min(beta, t / (t + 1))
            rows.append(einsum_loko.loko_step(x=xs, y=ys, beta=one, **state, **rest))
            state = {k: rows[-1].get(k) for k in state}
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    names = (
        "softmax-ema_innovation-before-variational",
        "gaussian-ema_innovation_hph-before-dense",
        "gaussian-ema_innovation-before-decoupled",
    )
    cases = [c for name in names for c in select(f"loko.run/{name}/float64")]
    found = names_of({"loko.run": averaged}, cases)
    assert len(found) == 3
    assert not any("beta left out" in text for texts in found.values() for text in texts), found


def test_the_outputs_of_a_step_by_its_options_are_the_oracles():
    for case in select("loko.step"):
        step = replace(case, recipe=replace(case.recipe, name=f"{case.recipe.name}[0]"))
        assert output_names(step) == set(expected(case))
