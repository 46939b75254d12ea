"""The table of LoKO's quantities: complete, in order, and equal to the oracle, one at a time."""

import re
from pathlib import Path

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.loko import LokoConfig
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import choices, dataflow, output_name, summary
from loko_ref.textbook.quantities import Lazy, identity, missing, origins

GIVEN = {"x", "y", "weights", "theta", "p", "R"}


@pytest.mark.parametrize("o", choices(), ids=lambda o: "-".join(map(str, o.values())))
def test_every_quantity_follows_its_parents(o):
    have = set(GIVEN)
    for q in dataflow(o):
        assert set(q.parents) | set(q.given_returned[1]) <= have, q.name
        assert q.network or {q.formula, q.given_returned[0]} <= set(FORMULA_TABLE)
        assert q.name not in have
        assert not set(origins(q.name, dataflow(o))) & {"r", "HpH"}
        have.add(q.name)
    assert {"S", "K", "theta_post", "p_post"} <= have


def test_the_choices_are_those_that_the_package_accepts():
    assert len({tuple(o.values()) for o in choices()}) == len(choices()) == 75
    fields = LokoConfig.__dataclass_fields__
    assert set(choices()[0]) <= set(fields)


def test_labels_are_headings_of_the_derivations():
    folder = Path(__file__).parents[2] / "derivations"
    if not folder.is_dir():
        pytest.skip("the derivations are not beside the tests")
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.md"))
    defined = set(re.findall(r"^### \[([A-Z]+-\d+)\]", text, re.MULTILINE))
    assert {label for o in choices() for q in dataflow(o) for label in q.labels} <= defined


def test_what_an_output_comes_from_has_no_intermediate():
    assert summary("S") == ("KAL-2", "H p_pred R_used P_pred")
    assert set(summary("R_used")[1].split()) == {"R", "e", "H", "p_pred", "P_pred", "yhat"}


CASES = [c for c in select("loko.step") if c.dtype == "float64"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.recipe.name)
def test_each_quantity_from_the_oracles_parents_is_the_oracles(case):
    """The oracle is computed by the package's own modules, the table by plain formulas."""
    x, o, right = case.inputs(), case.options, expected(case)
    batch, C = x["y"].shape
    start = {**x, "p": x["P" if o["covariance"] == "dense" else "p"]}
    values = {q.name: right[name] for q in dataflow(o) if (name := output_name(q.name, o)) in right}
    checked = 0
    for q in dataflow(o):
        if q.name not in values or q.name in ("z", "Z"):
            continue
        before = {k: a for k, a in values.items() if k != q.name and not k.endswith("_post")}
        before |= {k: values[k] for k in ("theta_post", "p_post") if k in q.parents}
        flow = dataflow({k: a for k, a in o.items() if k != "spec"})
        if missing(q.name, {**start, **before}, flow):
            continue
        v = Lazy(flow, {**start, **before}, **o, F=FORMULA_TABLE, keep=identity)
        if "yhat" in v:
            v["yhat"] = v.yhat.reshape(batch, C)
        name = output_name(q.name, o)
        # by the well-conditioned form: a K made of a rounded S has fewer digits where saturated
        got = np.reshape(FORMULA_TABLE[q.formula](v), right[name].shape)
        if name == "K" and o["observation"] in ("softmax", "glm"):
            rows = got.reshape(len(got), batch, C)
            got = (rows - rows.mean(axis=-1, keepdims=True)).reshape(got.shape)
        allowed = tolerance(case)[name]
        if allowed is None:
            continue
        assert (np.abs(got - right[name]) <= allowed).all(), name
        checked += 1
    assert checked >= 6
