"""``loko-ref mutants --generated``: mistakes from syntax trees, and right names."""

import itertools
import json
from dataclasses import dataclass
from types import MappingProxyType

import jsonschema
import numpy as np
import pytest

pytest.importorskip("typer", reason="typer (extra 'cli') is not installed")

import sampling
from typer.testing import CliRunner

from loko_ref.cli.app import app
from loko_ref.conformance.assessment import generated, generated_score, verdict
from loko_ref.conformance.assessment.fresh import fresh
from loko_ref.conformance.assessment.reach import Reach, few
from loko_ref.conformance.assessment.replacements import KINDS
from loko_ref.conformance.assessment.syntax import changes_of, drawn, formulas
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.files import documents
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

BY_NAME = {formula.name: formula for formula in formulas()}
UNCHANGED = {"R.fixed"}  # R, copied
DIAGONAL = select("kalman.diagonal_update", "float64")


def run(*arguments):
    return CliRunner().invoke(app, ["mutants", *map(str, arguments)])


def change(formula, text):
    """Return the change of a formula after which it returns an expression."""
    (found,) = (
        one for one in changes_of(BY_NAME[formula]) if one.diff.endswith(f"+    return {text}")
    )
    return found


NO_R = change("S", "v.H @ v.F['pHt'](v)")
DOWN = change("theta_post", "v.theta - v.K @ v.e")


@dataclass
class Named:
    """A candidate of a search."""

    text: str
    table: dict
    quantity: str = ""

    def changes(self):
        return self.table


def test_every_formula_of_the_table_is_changed():
    assert {key for formula in formulas() for key in formula.keys} == set(FORMULA_TABLE)
    part = sampling.sample(formulas(), 0.2, name=lambda f: f.name)
    assert {one.kind for formula in part for one in changes_of(formula)} <= set(KINDS)
    assert {formula.name for formula in part if not changes_of(formula)} <= UNCHANGED


def test_the_draw_is_the_seed_s():
    def some(seed):
        of_filter = drawn(seed, lambda f: f.module.__name__.endswith("filter"))
        return [(c.formula.name, c.text) for c in itertools.islice(of_filter, 100)]

    assert some(1) == some(1)
    assert some(1) != some(2)
    assert len(set(some(1))) == 100


@pytest.mark.parametrize(
    "one", sampling.sample(formulas(), 0.1, name=lambda f: f.name), ids=lambda f: f.name
)
def test_a_change_is_a_changed_table(one):
    """Each compiles; an entry stands in the table, a rule is exchanged and comes back."""
    for found in sampling.sample(changes_of(one), 3, name=lambda c: c.text):
        table, function = found.table(), None
        if one.keys:
            assert set(table) == set(one.keys)
            assert all(table[key] is not FORMULA_TABLE[key] for key in table)
        else:
            assert set(table) == {"layers"}
            function = getattr(one.module, one.node.name)
            right = function.__code__
        with found.in_place():
            assert function is None or function.__code__ is not right
        assert function is None or function.__code__ is right
        assert found.diff.count("\n") >= 1


def test_what_changes_a_number_does_so_by_its_table():
    """By hand: S without R, and a rule of the network."""
    case = DIAGONAL[2]
    x = case.inputs()
    out = case.operation.plain(x, case.options, {**FORMULA_TABLE, **NO_R.table()}, identity)
    assert np.allclose(out["S"], x["H"] @ np.diag(x["p"]) @ x["H"].T)
    (case,) = select("model.forward/tanh/float64")
    rule = next(c for c in changes_of(BY_NAME["layers.linear"]) if "-v.F['bias'](w)" in c.diff)
    mistake, one = generated.Mistake((rule,)), fresh(case, 0)
    right = one.operation.plain(one.inputs, one.options, FORMULA_TABLE, identity)["z"]
    wrong = generated.evaluated(mistake, one)["z"]
    assert not np.allclose(right, wrong)
    again = one.operation.plain(one.inputs, one.options, FORMULA_TABLE, identity)["z"]
    assert np.array_equal(right, again)


@pytest.mark.parametrize("case", sampling.sample(select(dtype="float64"), 0.02), ids=lambda c: c.id)
def test_fresh_inputs_are_valid_and_no_case_s(case):
    """The oracle takes them, and agrees with the plain route to well below what is compared."""
    for number in range(2):
        one = fresh(case, number)
        right = {k: np.asarray(v) for k, v in one.operation.oracle(one.inputs, one.options).items()}
        plain = one.operation.plain(one.inputs, one.options, FORMULA_TABLE, identity)
        kept = [name for name in right if name != "K"]
        assert generated.agree(plain, right, kept)
        assert all(np.isfinite(right[name]).all() for name in right)
        assert not generated.agree({k: 1.000001 * v for k, v in right.items()}, right, kept)


def test_lines_are_reached_where_they_run():
    reach = Reach(select("kalman.*", "float64"))
    dense = change("p.dense", "v.K @ v.H @ v.p_pred")
    assert {case.operation.name for case in reach.cases(dense)} == {"kalman.dense_update"}
    updates = {name for name in OPERATIONS if name.endswith("_update")} - {"kalman.time_update"}
    assert {c.operation.name for c in reach.cases(NO_R)} == updates
    assert BY_NAME["softmax"] not in reach
    cases = [c for c in reach.cases(NO_R) if "dense" in c.id or "diagonal" in c.operation.name]

    def some(seed):
        return [c.id for c in few(cases, seed, lambda case: "tiny" in case.id)]

    assert some("a") == some("a") != some("b")
    assert len(some("a")) == 8
    shown = [c.id for c in cases if "tiny" in c.id]
    dense = [c.id for c in few(cases, "a", lambda case: "dense" in case.id)]
    assert len([key for key in dense if "dense" in key]) == 4
    assert len(shown) == 3


RIGHT = {"S": lambda v: (v.H * v.p_pred) @ v.H.T}
"""S without R in other words."""
AT_12 = {"S": lambda v: (v.H * v.p_pred) @ v.H.T * (v.H.shape[1] / 12)}
"""The same at 12 parameters alone, as many as two of the cases have."""


@pytest.mark.parametrize(
    ("named", "form", "right"),
    [
        (RIGHT, "everything", True),
        (RIGHT, "results", True),
        (AT_12, "everything", False),
        (AT_12, "results", False),
        ({}, "everything", False),  # a name that changes nothing
        ({"p_pred": lambda v: v.p / 2}, "everything", False),
        ({"S": lambda v: v.no_such}, "everything", False),
    ],
)
def test_a_name_is_right_if_it_agrees_on_fresh_inputs(named, form, right):
    mistake = generated.Mistake((NO_R,))
    found = verdict._is([Named("", named)], mistake, DIAGONAL[2:3], form)
    assert found is right
    if named is AT_12:  # which the case itself does not show
        (case,) = DIAGONAL[2:3]
        tables = ({**FORMULA_TABLE, **table} for table in (named, mistake.table))
        one, other = (
            case.operation.plain(case.inputs(), case.options, t, identity) for t in tables
        )
        assert generated.agree(one, other, tuple(one))


DOWNWARDS = {"theta_post": lambda v: v.theta - v.K @ v.e}


def test_where_a_roundoff_moves_much_equality_to_the_bit_decides():
    """A program that diverges is told from another one by what it returns, to the bit."""
    far = {"theta": np.array([1e300])}
    moved = {"theta": np.array([-1e280])}
    near = {"theta": np.array([np.nextafter(1e300, 0)])}
    assert verdict._same(far, moved, {"theta": far["theta"].copy()}, ("theta",)) is True
    assert verdict._same(far, moved, near, ("theta",)) is None
    assert verdict._same(far, moved, None, ("theta",)) is None
    assert verdict._same(far, far, near, ("theta",)) is True
    assert verdict._same(far, far, moved, ("theta",)) is False


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([RIGHT | DOWNWARDS], "named"),
        ([RIGHT, DOWNWARDS], "named"),
        ([RIGHT], "in part"),
        ([RIGHT, AT_12], "wrong"),
        ([], "unnamed"),
    ],
)
def test_verdict_on_a_double_mistake(monkeypatch, names, expected):
    """Both are named by one formula for both, or by one each."""

    def given(checks, again=None):
        return {
            check.case.id: [Named(str(k % len(names)), names[k % len(names)])] if names else []
            for k, check in enumerate(checks)
        }

    monkeypatch.setattr(verdict, "name_mistakes", given)
    mistake = generated.Mistake((NO_R, DOWN))
    found = verdict.verdict(mistake, DIAGONAL[2:6], "everything")
    assert found["verdict"] == expected
    assert found["failed"] == found["checks"] == 4
    if expected == "named":  # in less than half of what failed it is not named
        few_names = MappingProxyType(
            dict(
                list(given(verdict.run(mistake.implementation("results"), DIAGONAL[2:6])).items())[
                    :1
                ]
            )
        )
        monkeypatch.setattr(verdict, "name_mistakes", lambda checks, again: few_names)
        found = verdict.verdict(mistake, DIAGONAL[2:6], "everything")
        assert found["verdict"] == "unnamed"


MINUS = {"S": lambda v: v.R_used - (v.H * v.p_pred) @ v.H.T}
MINUS_GAIN = {"K": lambda v: -np.linalg.solve(v.S.T, v.H * v.p_pred).T}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"S": MINUS, "K": MINUS_GAIN}, "named"),
        ({"S": MINUS}, "in part"),
        ({"K": MINUS_GAIN}, "in part"),
        ({"S": RIGHT, "K": MINUS_GAIN}, "wrong"),
        ({"S": MINUS_GAIN, "K": MINUS_GAIN}, "wrong"),
    ],
)
def test_each_wrong_quantity_has_a_name_of_its_own(monkeypatch, names, expected):
    """-p H' in place of p H': S is wrong, and K given S; each name is judged by what came back."""
    text = "-v.p_pred[:, None] * v.H.T if v.p_pred.ndim == 1 else v.p_pred @ v.H.T"
    mistake = generated.Mistake((change("pHt", text),))
    found = [Named(key, table, key) for key, table in names.items()]
    monkeypatch.setattr(
        verdict, "name_mistakes", lambda checks, again: {c.case.id: found for c in checks}
    )
    done = verdict.verdict(mistake, DIAGONAL[2:4], "everything")
    assert done["verdict"] == expected, done


def test_what_raises_counts_apart():
    raising = change("S", "v.H @ v.F['pHt'](v) + v.theta")
    reach = Reach(DIAGONAL)
    assert verdict.outcome(generated.Mistake((raising,)), reach, 0)["status"] == "raised"
    same = change("K", "np.linalg.solve(v.S, v.F['pHt'](v).T).T")
    assert verdict.outcome(generated.Mistake((same,)), reach, 0)["status"] == "equivalent"


def test_the_command_goes_on_where_it_stopped(tmp_path):
    path, whole = tmp_path / "part.json", tmp_path / "whole.json"
    chosen = ("--case", "kalman.time_update", "--seed", "5")
    run("--generated", "1", *chosen, "--json", path)
    before = json.loads(path.read_text())["outcomes"]
    done = run("--generated", "3", *chosen, "--json", path)
    assert done.exit_code in (0, 1), done.output
    assert run("--generated", "3", *chosen, "--json", whole).output == done.output
    document = json.loads(path.read_text())
    assert document == json.loads(whole.read_text())
    jsonschema.validate(document, documents.load("generated"))
    assert document["outcomes"][: len(before)] == before
    found = document["summary"]
    assert found["changed"] == 3
    assert found["drawn"] == len(document["outcomes"])
    assert found["everything"] == found["results"]  # p_pred is all that there is
    assert f"drawn {found['drawn']}: 3 change a number" in done.output
    run("--generated", "1", *chosen[:3], "6", "--json", path)  # another seed: another run
    assert json.loads(path.read_text())["outcomes"] != before


def test_the_exit_code_is_the_promise_s():
    form = {"mistakes": 100, "caught": 95, "named": 75, "wrong": 1}
    assert generated_score.good({"everything": form, "results": form}, double=False)
    for worse in ({"caught": 94}, {"named": 74}, {"wrong": 2}):
        found = {"everything": form, "results": form | worse}
        assert not generated_score.good(found, double=False)
    both = {"everything": form | {"named": 60}, "results": form}
    assert generated_score.good(both, double=True)
    assert not generated_score.good(both, double=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--generated", "0"], "--generated: got 0"),
        (["--generated", "3", "--score"], "one of them"),
        (["--generated", "3", "--only", "S-*"], "--only: got S-*"),
        (["--generated", "3", "--correct", "a.py"], "--calibration beside it"),
        (["--double"], "--generated beside it"),
        (["--seed", "0"], "--generated beside it"),
    ],
)
def test_options_that_do_not_go_together(arguments, text):
    done = run(*arguments)
    assert done.exit_code != 0
    assert text in done.output + str(done.exception)
