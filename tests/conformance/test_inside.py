"""Layers' outputs, attention's scores and weights are judged: a fault is found in its layer."""

import numpy as np
import pytest

from loko_ref import verify
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.network.model import Model, forward
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

OPERATIONS = ("model.forward", "model.jacobian", "loko.step", "loko.run")


def answering(operation, change=lambda out: out, **wrong):
    """Return the textbook's outputs, layers and all, with wrong formulas and a change."""
    table = {**FORMULA_TABLE, **wrong}

    def function(**given):
        inputs = {k: a for k, a in given.items() if k in {i.name for i in operation.inputs}}
        dtype = given["x"].dtype
        wide = {
            k: {n: v.astype(float) for n, v in a.items()}
            if isinstance(a, dict)
            else a.astype(float)
            for k, a in inputs.items()
        }
        options = {k: a for k, a in given.items() if k not in inputs}
        out = operation.plain(wide, options, table, identity, inside=True)
        return change({k: np.asarray(a).astype(dtype) for k, a in out.items()})

    return Implementation(target="x", functions={operation.name: function})


@pytest.mark.parametrize(
    "key",
    [
        "model.forward/text-learnt-tokens/float32",
        "model.jacobian/attention-saturated/float64",
        "loko.step/transformer-text/float64",
        "loko.run/glm-glm-before-dense/float32",
    ],
)
def test_layers_are_judged_where_they_are_returned(key):
    (case,) = select(key)
    (check,) = run(answering(case.operation), [case])
    assert check.status == "passed", check.divergence or check.finding
    inside = [q for q in check.quantities if "." in q]
    assert inside
    if "attention" in str(case.options["spec"]):
        assert any(q.startswith("scores.") for q in inside)
        assert any(q.startswith("weights.") for q in inside)
    assert check.quantities.index(inside[-1]) == check.quantities.index("z") - 1
    # what is judged of the others stays what it was
    for name, value in expected(case).items():
        np.testing.assert_array_equal(expected(check.case)[name], value)
        np.testing.assert_array_equal(tolerance(check.case)[name], tolerance(case)[name])


@pytest.mark.parametrize("name", ["layernorm", "text-mean", "block-post", "image"])
def test_a_layers_output_is_the_packages(name):
    """Expected by the textbook, held to the package's own forward pass cut behind each layer."""
    (case,) = select(f"model.forward/{name}/float64")
    spec, x = case.options["spec"], case.inputs()
    found = expected(case.holding(["z." + spec[-1]["name"]]))
    layers = [q for q in found if q.startswith("z.")]
    whole = Model(spec=spec, weights=x["weights"])
    given = x["x"].astype(int) if spec[0]["kind"] == "embedding" else x["x"]
    values = [found[q] for q in layers]
    from loko_ref.network.layers import Context
    from loko_ref.network.layers import run as through

    for count in range(1, len(spec) + 1):
        z, _ = through(spec[:count], whole.weights, given, Context())
        same = [np.allclose(z, v, rtol=1e-12, atol=1e-13) for v in values if v.shape == z.shape]
        assert any(same), (name, count)
    np.testing.assert_allclose(forward(whole, given)[0], found["z"], rtol=1e-12, atol=1e-13)


FAULTS = {
    "scores.0": ("attention-heads", {"score_scale": lambda c: 1.0}),
    "weights.0": ("attention-causal", {"causal": lambda t: np.tri(t, k=1, dtype=bool)}),
    "z.norm": ("layernorm", {"norm.deviation": lambda var, eps: 1 / (np.sqrt(var) + eps)}),
    "z.1:relu": ("relu", {"relu": lambda x: np.where(x > 0, x, 0.1 * x)}),
}


@pytest.mark.sampled(0.34)
@pytest.mark.parametrize("quantity", FAULTS)
def test_a_fault_is_found_in_its_layer(quantity):
    name, wrong = FAULTS[quantity]
    (case,) = select(f"model.jacobian/{name}/float64")
    (check,) = run(answering(case.operation, **wrong), [case])
    assert check.divergence.quantity == quantity
    assert check.divergence.labels
    report = verify(answering(case.operation, **wrong).functions, only=case.id)
    assert report.failures[0].quantity == quantity
    # that output alone is enough
    only = answering(case.operation, lambda out: {quantity: out[quantity]}, **wrong)
    (check,) = run(only, [case])
    assert check.divergence.quantity == quantity


def test_an_unknown_name_is_an_error_as_before():
    (case,) = select("model.forward/relu/float64")
    for more, text in (("z.7", "'z.7', which is no output"), ("scores.0", "'scores.0', which is")):
        target = answering(case.operation, lambda out, more=more: {**out, more: out["z"]})
        (check,) = run(target, [case])
        assert text in check.finding.message
    (case,) = select("lora.delta/tiny/float64")
    target = Implementation(target="x", functions={"lora.delta": lambda A, B, alpha: {"z.0": A}})
    (check,) = run(target, [case])
    assert "which is no output of lora.delta" in check.finding.message


def test_a_layer_of_another_shape_is_named():
    (case,) = select("model.forward/relu/float64")
    target = answering(case.operation, lambda out: {**out, "z.0": out["z.0"][:, :-1]})
    (check,) = run(target, [case])
    assert check.finding.quantity == "z.0"
    assert check.status == "failed"


def test_a_tiny_weight_has_a_unit():
    """Squares of disturbances below 1e-154 do not underflow to a unit of roundoff alone."""
    (case,) = select("model.jacobian/attention-saturated/float64")
    whole = case.holding(["weights.0"])
    weights, allowed = expected(whole)["weights.0"], tolerance(whole)["weights.0"]
    tiny = (weights > 0) & (weights < 1e-160) & (weights > 1e-290)
    assert tiny.any()
    size = np.abs(expected(whole)["scores.0"]).max()
    assert (allowed[tiny] / weights[tiny] > np.finfo(float).eps * size / 4).all()
