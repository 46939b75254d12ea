"""Every quantity is judged by its own parents, as they came or as they should be.  [TOL-6]."""

from dataclasses import replace

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import judge
from loko_ref.conformance.engine import run as engine_run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.answer import check as read
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.conformance.mistakes.registry import NOTHING, all_mutants, as_implementation
from loko_ref.conformance.reports import document as report
from loko_ref.conformance.reports import junit, page, text
from loko_ref.conformance.reports.report import Report
from loko_ref.textbook import FORMULA_TABLE

pytestmark = pytest.mark.verdict

DENSE = "kalman.dense_update/random/float64"
STEPS = ("loko.step/glm-dense/float64", "loko.step/softmax/float32", "loko.step/glm/float64")
IMPLICIT = "loko.step/implicit-time/float64"
RIGHT = Implementation(target="right", functions=as_implementation(NOTHING))


def case_of(key):
    (case,) = select(key)
    return case


def update(x, *, solved=0.0, logged=None, P=lambda P: P):
    """Answer with S + solved I in the gain, another S in what is returned, and a P changed."""
    H, S = x["H"], x["H"] @ x["P"] @ x["H"].T + x["R"]
    eye = np.eye(len(S), dtype=S.dtype)
    K = np.linalg.solve(S + solved * eye, H @ x["P"]).T
    S = S if logged is None else logged(S)
    return {"S": S, "K": K, "theta": x["theta"] + K @ x["e"], "P": P(x["P"] - K @ H @ x["P"])}


def wrong(case, outputs):
    check = judge(case, read(outputs, case))
    return check.status, [d.quantity for d in check.divergences]


def test_one_mistake_is_one_wrong_quantity_and_two_are_two():
    case = case_of(DENSE)
    x = case.inputs()
    jitter = lambda S: S + 1e-6 * np.eye(len(S))  # noqa: E731
    assert wrong(case, update(x)) == ("passed", [])
    assert wrong(case, update(x, solved=1e-6)) == ("failed", ["K"])
    assert wrong(case, update(x, solved=1e-6, logged=jitter)) == ("failed", ["S"])
    assert wrong(case, update(x, logged=jitter)) == ("failed", ["S"])
    assert wrong(case, update(x, P=lambda P: 1.001 * P)) == ("failed", ["P"])
    twice = update(x, solved=1e-6, P=lambda P: 1.001 * P)
    assert wrong(case, twice) == ("failed", ["K", "P"])
    (K, P) = judge(case, read(twice, case)).divergences
    assert P.got == twice["P"][P.index]
    assert P.got / P.expected == pytest.approx(1.001)  # the right P of the K that came
    assert K.expected == expected(case)["K"][K.index]


def test_a_small_jitter_is_found_where_it_is():
    case = case_of(DENSE)
    assert wrong(case, update(case.inputs(), solved=1e-12)) == ("failed", ["K"])


@pytest.mark.sampled(0.25)
@pytest.mark.parametrize("lie", ["noise", "constant", "scaled"])
@pytest.mark.parametrize("key", [DENSE, *STEPS, IMPLICIT])
def test_one_quantity_is_no_true_one(key, lie):
    """What else came back follows from the others, or from what it should have been."""
    case = case_of(key)
    rng = np.random.default_rng(3)
    out = RIGHT.run(case).outputs
    for name, value in out.items():
        if tolerance(case)[name] is None or not np.any(value):
            continue
        made = {
            "noise": lambda v: rng.standard_normal(v.shape),
            "constant": np.ones_like,
            "scaled": lambda v: v * 1.001,
        }[lie](value)
        status, found = wrong(case, {**out, name: made.astype(case.dtype)})
        assert status == "failed"
        assert found == [name]


def test_a_wrong_quantity_of_an_implicit_step_is_wrong_alone():
    case = case_of(IMPLICIT)
    right = RIGHT.run(case).outputs
    for name in ("yhat", "v", "theta"):
        assert wrong(case, {**right, name: 1.001 * right[name]}) == ("failed", [name])


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize(("mistake", "first"), [("S-R-SQUARED", "S"), ("P-VARIATIONAL", "p")])
def test_a_right_number_among_wrong_ones_hides_nothing(mistake, first):
    (one,) = [m for m in all_mutants() if m.id == mistake]
    case = case_of("loko.step/glm/float64")
    if mistake == "S-R-SQUARED":
        case = case_of("loko.step/softmax/float64")
    made = as_implementation(one)["loko.step"](**case.inputs(), **case.options)
    right = {k: a.astype(case.dtype) for k, a in expected(case).items()}
    assert first in wrong(case, made)[1]
    for name in made:
        status, found = wrong(case, {**made, name: right[name]})
        others = [k for k in found if k != name]
        if name != first:
            assert status == "failed"
            assert first in found
        assert name not in found or name != first
        assert status == "failed" or not others


def test_right_values_returned_and_wrong_ones_used():
    """A filter that logs the right S, K and p and goes on with others is wrong in what follows."""
    case = case_of("loko.run/gaussian/float64")
    right = {k: a.astype(case.dtype) for k, a in expected(case).items()}
    for name in ("S", "K", "p"):
        drifted = {k: a.copy() for k, a in right.items()}
        drifted["theta"] = drifted["theta"] * (1 + 1e-6)
        assert wrong(case, {**drifted, name: right[name]})[1][0] == "theta"


@pytest.mark.sampled(0.25)
@pytest.mark.parametrize("name", ["gaussian", "glm-relu", "glm-stacked", "gaussian-residual"])
def test_a_bias_far_below_the_tolerance_of_a_step_adds_up(name):
    """Every p_pred of a run is off by 18 units of roundoff, which no single step reveals."""
    case = case_of(f"loko.run/{name}/float64")
    formula = FORMULA_TABLE["p_pred"]
    biased = replace(NOTHING, changes=lambda size: {"p_pred": lambda v: formula(v) * (1 + 2e-15)})
    out = as_implementation(biased)["loko.run"](**case.inputs(), **case.options)
    check = judge(case, read(out, case))
    assert check.status == "failed"
    assert [d.quantity for d in check.divergences] == ["p_pred"]
    assert 1 < check.divergence.ratio < 10
    assert judge(case, RIGHT.run(case)).worst < 0.3


def amplifying():
    """A right filter whose S is off by less than its tolerance, in the direction that K likes."""
    case = case_of("kalman.dense_update/ill-conditioned-S/float64")
    x = case.inputs()
    S = x["H"] @ x["P"] @ x["H"].T + x["R"]
    w = np.linalg.eigh(S)[1][:, 0]
    S = S + 0.9 * tolerance(case)["S"] * np.sign(np.outer(w, w))
    K = np.linalg.solve(S, x["H"] @ x["P"]).T
    out = {"S": S, "K": K, "theta": x["theta"] + K @ x["e"], "P": x["P"] - K @ x["H"] @ x["P"]}
    return judge(case, read(out, case))


def test_a_case_that_amplifies_rounding_passes_and_every_report_says_so():
    check = amplifying()
    assert check.status == "passed"
    assert check.divergence is None
    assert check.amplified.quantity == "K"
    assert check.worst > 1
    (entry,) = report.as_json("t", [check])["checks"]
    assert entry["amplified"]["quantity"] == "K"
    assert entry["divergences"] == []
    said = "it amplifies rounding, which is no failure"
    assert said in "".join(rest for _, _, rest in text.lines("t", [check]))
    assert said in junit.as_xml("t", [check], {}, {}).decode()
    assert said in page.as_html("t", [check])
    assert Report(target="t", checks=(check,)).passed


def test_every_report_lists_every_wrong_quantity():
    case = case_of(DENSE)
    out = update(case.inputs(), solved=1e-6, P=lambda P: 1.001 * P)
    check = judge(case, read(out, case))
    (entry,) = report.as_json("t", [check], (), {case.id: []})["checks"]
    assert [d["quantity"] for d in entry["divergences"]] == ["K", "P"]
    assert entry["first_divergence"] == entry["divergences"][0]
    rest = "also wrong, given what came before it: P["
    assert rest in Report(target="t", checks=(check,)).text
    assert rest in junit.as_xml("t", [check], {}, {}).decode()
    assert rest in page.as_html("t", [check])
    assert Report(target="t", checks=(check,)).failures[0].wrong == ("K", "P")


@pytest.mark.parametrize(("factor", "quantities"), [(1.0, ["H"]), (2.0, ["H", "p"])])
def test_the_variational_p_of_a_wrong_h_is_that_of_all_of_r(factor, quantities):
    """H = yhat Z is not of the contrasts alone, to which R may be reduced where H is right."""
    changes = {
        "H.softmax": lambda v: v.yhat.reshape(-1)[:, None] * v.Z,
        "p.variational": lambda v: (
            factor / (1 / v.p_pred + (v.H * np.linalg.solve(v.R_used, v.H)).sum(axis=0))
        ),
    }
    made = as_implementation(replace(NOTHING, changes=lambda size: changes))
    case = case_of("loko.step/softmax-fixed-before-variational/float64")
    (check,) = engine_run(Implementation(target="made", functions=made), [case])
    assert [d.quantity for d in check.divergences] == quantities
