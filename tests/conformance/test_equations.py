"""Formulas in the catalogue's letters: no source code, and brackets where they are needed."""

import ast
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose import naming
from loko_ref.conformance.diagnose.equations import _source, letters
from loko_ref.conformance.diagnose.groups import group
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.diagnose.search import changes
from loko_ref.conformance.diagnose.search.instrument import instrument
from loko_ref.conformance.engine import FAILED, run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.textbook import FORMULA_TABLE


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("v.K * v.H.T", "K o H'"),
        ("v.K @ v.H.T", "K H'"),
        ("1 - (v.K * v.H.T).sum(axis=1)", "1 - (K o H').sum(axis=1)"),
        ("(1 - v.a) / (v.b * v.c)", "(1 - a) / (b c)"),
        ("v.a / v.b / v.c", "a / b / c"),
        ("v.a - (v.b - v.c)", "a - (b - c)"),
        ("v.a * (v.b / v.c)", "a (b / c)"),
        ("(v.a + v.b).T", "(a + b)'"),
        ("v.F['pHt'](v).T", "(P H')'"),
        ("np.exp(z - v.keep('lse', lse))", "exp(z - lse)"),
        ('BW @ v.keep("C^-1 W\' B^-1", np.linalg.solve(C, BW.T))', "BW C^-1 W' B^-1"),
        ("v.slot['exp_avg'] * v.beta1", "exp_avg beta1"),
        ("w['B'].T", "B'"),
        ("-v.x * v.x", "-x x"),
        ("v.r * v.r", "r^2"),
        ("v.p[:, None] * v.H.T", "p H'"),
    ],
)
def test_a_source_expression_is_written_as_an_equation(source, written):
    assert letters(f"`{source}`") == written


def test_no_place_of_a_formula_shows_how_the_textbook_is_programmed():
    for name, formula in FORMULA_TABLE.items():
        for place in instrument(formula).places:
            text = letters(f"`{place.text}`")
            if isinstance(_parsed(place.text), ast.BinOp | ast.Attribute | ast.Constant | ast.Name):
                assert not re.search(r"\bv\.|keep\(|\bF\[|''|\.T\b", text), (name, text)


def _parsed(text):
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def test_a_written_product_has_its_brackets():
    """The letters of random expressions, read again with * for a gap, have the same value."""
    random = np.random.default_rng(0)
    names = dict(zip("abcd", random.uniform(1, 2, 4), strict=True))

    def drawn(depth):
        if depth == 0:
            return random.choice(list(names))
        operator = random.choice([" + ", " - ", " * ", " / "])
        return f"({drawn(depth - 1)}{operator}{drawn(depth - 1)})"

    for _ in range(50):
        source = drawn(3)[1:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            right = eval(source, {}, names)
        if not np.isfinite(right):
            continue
        text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", _source(source)).replace("^", "**")
        assert eval(text, {}, names) == pytest.approx(right, rel=1e-9)


def test_of_a_letter_that_stands_twice_the_name_says_which():
    def update(*, R, e, HpH, noise, beta, **_):
        s = np.outer(e, e) + (HpH if noise.endswith("hph") else 0)
        return {"R": R if noise == "fixed" else (1 - beta) * s}

    implementation = Implementation(target="mine", functions={"noise.update": update})
    checks = [
        c for c in run(implementation, select("noise.update", "float64")) if c.status == FAILED
    ]
    assert checks
    found = {one.text for names in name_mistakes(checks).values() for one in names}
    assert any(
        text.startswith("R = beta R + (1 - beta) e e': beta left out (0 in its place) in beta R")
        for text in found
    ), found


def test_one_formula_in_two_operations_is_one_fault_and_counts_what_it_reproduces_in_both():
    def delta(*, A, B, alpha, **_):
        return {"delta": alpha / A.shape[1] * (B @ A)}  # the rank by the wrong axis

    def merge(*, W, A, B, alpha, **_):
        return {"W": W + delta(A=A, B=B, alpha=alpha)["delta"]}

    functions = {"lora.delta": delta, "lora.merge": merge}
    implementation = Implementation(target="mine", functions=functions)
    checks = run(implementation, select("lora.*", "float64"))
    (one,) = group(checks, name_mistakes(checks))
    failed = sum(check.status == FAILED for check in checks)
    assert {c.case.operation.name for c in one.checks} == {"lora.delta", "lora.merge"}
    assert (one.mistake.explained, one.mistake.failed) == (failed, failed)


def test_a_size_is_another_size_before_another_axis_and_no_product_of_sizes():
    def costs(text):
        site = SimpleNamespace(value=1, text=text, call=None)
        return {one.text: one.cost for one in changes._of_number(site, [])}

    size, index = costs("v.W.shape[1]"), costs("index 1 of v.W.shape")
    assert size.keys() == index.keys()
    assert max(size.values()) < min(index.values())
    assert [text for text, _ in changes._pair(3, 2)] == ["{a} + {b}", "{a} - {b}", "{b} - {a}"]
    assert "{a} / {b}" in [text for text, _ in changes._pair(3.0, 2)]


def test_what_a_candidate_warns_of_is_no_message_to_the_user(monkeypatch):
    monkeypatch.setattr(naming, "_name", lambda checks, again: {"mean": np.zeros((3, 0)).mean(1)})
    monkeypatch.setattr(naming, "with_formulas", lambda checks, named, again: named)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert np.isnan(naming.name_mistakes([])["mean"]).all()
    assert seen == []
