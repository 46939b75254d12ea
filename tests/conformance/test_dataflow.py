"""The table of LoKO's quantities: complete, in order, and equal to the oracle, one at a time."""

import re
from pathlib import Path

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.loko import LokoConfig
from loko_ref.network.model import Model, forward, param_shapes
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import choices, dataflow, output_name, summary
from loko_ref.textbook.lte import RUN, run
from loko_ref.textbook.lte_heads import trained
from loko_ref.textbook.network import network
from loko_ref.textbook.operations import prior
from loko_ref.textbook.quantities import Lazy, Values, identity, missing, origins

GIVEN = {"x", "y", "weights", "theta", "p", "R", "U", "W"}
PRECISE = [
    {**o, "covariance": covariance, "lam": lam, "q": 0.0}
    for o in choices()
    if o["covariance"] == "dense"
    for covariance, lam in (("lowrank", 1.0), ("lowrank", 0.9), ("block", 1.0))
]


@pytest.mark.parametrize("o", [*choices(), *PRECISE], ids=lambda o: "-".join(map(str, o.values())))
def test_every_quantity_follows_its_parents(o):
    have = set(GIVEN)
    for q in dataflow(o):
        assert set(q.parents) | set(q.given_returned[1]) <= have, q.name
        assert q.network or q.rule or {q.formula, q.given_returned[0]} <= set(FORMULA_TABLE)
        assert q.name not in have
        assert not set(origins(q.name, dataflow(o))) & {"r", "HpH"}
        have.add(q.name)
    assert {"S", "K", "theta_post", "U_post" if "lam" in o else "p_post"} <= have


def test_the_choices_are_those_that_the_package_accepts():
    assert len({tuple(o.values()) for o in choices()}) == len(choices()) == 78
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
    assert summary("S") == ("KAL-2", "H p_pred R_used P_pred U W")
    assert set(summary("R_used")[1].split()) == {
        "R",
        "e",
        "H",
        "p_pred",
        "P_pred",
        "U",
        "W",
        "yhat",
    }


CASES = [c for c in select("loko.step") if c.dtype == "float64"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.recipe.name)
def test_each_quantity_from_the_oracles_parents_is_the_oracles(case):
    """The oracle is computed by the package's own modules, the table by plain formulas."""
    x, o, right = case.inputs(), case.options, expected(case)
    batch, C = x["y"].shape
    start = dict(prior(Values(x, **o, F=FORMULA_TABLE)))
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


def followed(flow, values, right, allowed, names):
    """Each quantity from the oracle's other quantities is the oracle's."""
    checked = 0
    for name in names:
        got = Lazy(flow, values).follow(name)
        if allowed[name] is not None:
            assert (np.abs(np.reshape(got, right[name].shape) - right[name]) <= allowed[name]).all()
            checked += 1
    return checked


MODEL = [c for c in select("model.jacobian") if c.dtype == "float64"]


@pytest.mark.sampled(0.2)
@pytest.mark.parametrize("case", MODEL, ids=lambda c: c.recipe.name)
def test_each_layer_of_a_network_is_the_packages_own(case):
    """Layer by layer against :mod:`loko_ref.network`; each quantity after its parents."""
    x, spec, right = case.inputs(), case.options["spec"], expected(case)
    flow = network(spec, packed=False, train=case.options["train"])
    have = {"x", "weights"}
    for q in flow:
        assert set(q.parents) <= have, q.name
        assert q.name not in have
        assert q.labels
        assert not q.formula or q.formula in FORMULA_TABLE, q.formula
        have.add(q.name)
    v = Lazy(flow, x, F=FORMULA_TABLE, keep=identity)
    assert followed(flow, v, right, tolerance(case), ("z", "Z")) == 2
    ids = x["x"].astype(np.int64) if spec[0]["kind"] == "embedding" else x["x"]
    for k, layer in enumerate(spec):
        apart = f"{k}:{layer['kind']}"
        place = layer.get("name") or (apart if f"z.{apart}" in have else str(k))
        part, got = spec[: k + 1], v[f"z.{place}"]
        if got.ndim == 3:  # the package's own networks end in one vector a sample
            part, got = [*part, {"kind": "pool", "how": "cls"}], got[:, 0]
        own = {name: x["weights"][name] for name in param_shapes(part)}
        if not own:
            continue  # patches alone: no model
        theirs, _ = forward(Model(spec=part, weights=own), ids)
        np.testing.assert_allclose(got, theirs, rtol=1e-9, atol=1e-12, err_msg=place)


def test_attention_and_norm_are_in_the_table_and_given_ones_are_passed_on():
    case = next(c for c in MODEL if c.recipe.name == "block-pre")
    flow = network(case.options["spec"], packed=False)
    names = {q.name.split(".")[0] for q in flow}
    assert {"q", "k", "v", "scores", "weights", "mixed", "nu", "mu", "var", "u", "dscores"} <= names
    v = Lazy(flow, case.inputs(), F=FORMULA_TABLE, keep=identity)
    scores = next(q.name for q in flow if q.name.startswith("scores."))
    weights = scores.replace("scores", "weights")
    even = np.full_like(v[scores], 1.0)
    given = Lazy(flow, case.inputs(), F=FORMULA_TABLE, keep=identity, **{scores: even})
    np.testing.assert_allclose(given[weights], 1 / even.shape[-1], rtol=1e-12)
    assert np.abs(given["z"] - v["z"]).max() > 0


RUNS = [c for c in select("lte.run") if c.dtype == "float64"]


def schedule(o, steps):
    """Counts before each step: since the optimizer began, of merges, of resets."""
    t = merges = resets = 0
    for at in range(1, steps + 1):
        yield {"t": t, "merges": merges, "resets": resets}
        t += 1
        due = at in o["merge_at"] if o["merge_at"] else at % o["merge_every"] == 0
        if due and o["mode"] == "lte":
            merges += 1
            t = 0 if o["optimizer_state"] == "reset" else t
            hit = o["reset"] != "none" and (not o["reset_at"] or at in o["reset_at"])
            resets += hit


@pytest.mark.sampled(0.04)
@pytest.mark.parametrize("case", RUNS, ids=lambda c: c.recipe.name)
def test_each_quantity_of_a_run_from_the_oracles_parents_is_the_oracles(case):
    x, o, right, allowed = case.inputs(), case.options, expected(case), tolerance(case)
    flow = run(o, "evaluation" in x)
    names = [q.name for q in flow if not q.hidden]
    assert names == list(right)
    own = {"o": Values(o), "F": FORMULA_TABLE, "keep": identity, "given": x}
    own["names"] = trained(o, x["weights"])
    for k, counts in enumerate(schedule(o, len(x["x"]))):
        last = {f"last.{name}": right[name][k - 1] for name in names} if k else {}
        row = {name: right[name][k] for name in names}
        step = {"at": k + 1, "x": x["x"][k], "y": x["y"][k], "counts": counts}
        bounds = {name: None if (a := allowed[name]) is None else a[k] for name in names}
        assert followed(flow, {**own, **last, **step, **row}, row, bounds, names)


def test_every_quantity_of_a_run_has_its_parents_before_it():
    given = {f"last.{q.name}" for q in RUN} | {"x", "y", "evaluation"}
    for case in RUNS:
        have = set(given)
        for q in run(case.options, "evaluation" in case.inputs()):
            assert set(q.parents) <= have, (case.id, q.name)
            have.add(q.name)


def test_a_wrong_quantity_of_a_run_is_passed_on_as_it_was_given():
    """What follows from a wrong theta_step is right given it, and not the oracle's."""
    case = next(c for c in RUNS if c.options["merge_every"] == 2 and c.options["mode"] == "lte")
    x, o, right = case.inputs(), case.options, expected(case)
    at = next(k for k in range(len(x["x"])) if (k + 1) % o["merge_every"] == 0)
    last = {f"last.{name}": right[name][at - 1] for name in right} if at else {}
    v = {"o": Values(o), "F": FORMULA_TABLE, "keep": identity, "given": x, "at": at + 1, **last}
    v |= {"names": trained(o, x["weights"]), "x": x["x"][at], "y": x["y"][at]}
    moved = Lazy(run(o), v, theta_step=2 * right["theta_step"][at])
    assert np.abs(moved["W"] - right["W"][at]).max() > 1e-3
