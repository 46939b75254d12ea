"""Cases at an edge: dense forgetting, kinks, queries without keys, small p, whole weights."""

from pathlib import Path

import numpy as np
import pytest

from loko_ref import loko
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.user_inputs import agree, user_case
from loko_ref.errors import InputError
from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import Model, init_model, mlp_spec, unpack
from loko_ref.network.spec import param_shapes, trained_shapes
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.network import arrays, packing, ways
from loko_ref.textbook.quantities import Values, evaluate, identity

EXAMPLES = Path(__file__).parents[2] / "examples"
MINE = load(str(EXAMPLES / "my_loko.py")).functions


def forward(case):
    """Every quantity of the forward pass of a case."""
    flow = (
        arrays(case.options["spec"], packed="theta" in case.inputs()),
        *ways(case.options["spec"])[0],
    )
    v = Values(case.inputs(), **case.options, F=FORMULA_TABLE, keep=identity)
    evaluate(v, flow)
    return v


def checks(name, change, cases):
    target = Implementation(target="x", functions={name: change(MINE[name])})
    return {c.case.recipe.name: c.status for c in run(target, cases)}


def deaf(*ignored):
    """Ignore options of a dense filter."""

    def change(function):
        def called(**given):
            if given["covariance"] == "dense":
                given |= {k: {"lam": 1.0, "q": 0.0}[k] for k in ignored}
            return function(**given)

        return called

    return change


@pytest.mark.parametrize("ignored", [("lam",), ("q",), ("lam", "q")], ids="-".join)
@pytest.mark.parametrize("operation", ["loko.step", "loko.run"])
def test_a_dense_filter_that_forgets_nothing_fails(operation, ignored):
    names = {"loko.step": "glm-dense-* softmax-dense-time", "loko.run": "*-dense-[ft]*"}[operation]
    cases = [c for n in names.split() for c in select(f"{operation}/{n}/float64")]
    found = checks(operation, deaf(*ignored), cases)
    for case in cases:
        o = case.options
        acts = ("lam" in ignored and o["lam"] != 1) or ("q" in ignored and o["q"] != 0)
        assert found[case.recipe.name] == ("failed" if acts else "passed"), case.id


def test_lam_and_q_act_on_dense_filters_of_every_kind():
    """In steps and runs: together and alone, and for every observation."""
    for operation in ("loko.step", "loko.run"):
        found = {
            (c.options["observation"], c.options["lam"] < 1, c.options["q"] > 0)
            for c in select(f"{operation}/*/float64")
            if c.options["covariance"] == "dense"
        }
        for pair in ((True, False), (False, True), (True, True)):
            assert any(one[1:] == pair for one in found), (operation, pair)
        assert {one[0] for one in found if one[1] or one[2]} == {
            *("gaussian", "softmax", "logits", "glm")
        }


def test_dense_time_update_of_ones_own():
    P = np.diag([1.0, 2.0]) + 0.5

    def update(P, lam, q):
        return {"P_pred": P / lam + q * np.eye(2)}

    agree(update, "kalman.time_update", {"P": P}, lam=0.9, q=0.1)
    with pytest.raises(AssertionError, match="P_pred"):
        agree(lambda P, lam, q: {"P_pred": P / lam + q}, "kalman.time_update", {"P": P}, q=0.1)
    both = user_case("kalman.time_update", {"P": P, "p": np.ones(2)})
    with pytest.raises(InputError, match=r"required p \(n,\) or P \(n, n\), one of them"):
        expected(both)


@pytest.mark.parametrize("key", ["model.jacobian/relu-at-zero", "loko.step/glm-relu-at-zero"])
def test_a_unit_at_the_kink_is_exactly_0_in_every_order_of_sums(key):
    case = select(f"{key}/float64")[0]
    weights = forward(case)["arrays"]
    for name in ("0", "1"):
        for array in ("W", "b", "B"):
            assert not weights[f"{name}.{array}"][1:3].any()
        assert not forward(case)[f"z.{name}"][:, 1:3].any()
    # and its derivative by B is what tells 0 from 1 there
    Z, at = expected(case)["Z"], 0
    for name, shape in packing(FORMULA_TABLE, case.options["spec"]).items():
        part = Z[:, at : at + np.prod(shape)].reshape(-1, *shape)
        if name in ("0.B", "1.B"):
            assert not part[:, 1:3].any()
            assert part.any()
        at += np.prod(shape)


@pytest.mark.parametrize("key", ["model.forward/text-unseen", "loko.step/transformer-unseen"])
def test_a_query_that_sees_no_key_reaches_an_output(key):
    case = select(f"{key}/float64")[0]
    v = forward(case)
    assert not v["weights.0"][0, :, 0].any()
    assert v["weights.0"][1].any(axis=-1).all()
    pool = next(name for name in v if name.startswith("pool."))
    assert v[pool][0, 0] == 1  # the first token alone, whose query it is, is read out


def test_small_variances_are_small():
    for case in select("kalman.diagonal_update/small-p*"):
        assert 1e-12 < case.inputs()["p"].min() < case.inputs()["p"].max() < 1e-9
        moved = expected(case)["p"] / case.inputs()["p"]
        assert moved.min() < 0.7  # it learns something
    (case,) = select("loko.step/glm-small-p/float64")
    assert case.inputs()["p"].max() < 1e-9


def test_a_third_in_float32_fails():
    def single(function):
        def called(spec, **given):
            lora = [layer["lora"] for layer in spec if layer.get("lora")]
            spec = [dict(layer) for layer in spec]
            for layer in spec:
                if layer.get("lora"):
                    r = layer["lora"]["r"]
                    scale = float(np.float32(layer["lora"]["alpha"] / r))
                    layer["lora"] = layer["lora"] | {"alpha": scale * r}
            assert lora
            return function(spec=spec, **given)

        return called

    for name, case in (("model.forward", "thirds"), ("loko.step", "glm-relu-at-zero")):
        cases = select(f"{name}/{case}/*")
        found = run(Implementation(target="x", functions={name: single(MINE[name])}), cases)
        assert {c.case.dtype: c.status for c in found} == {"float64": "failed", "float32": "passed"}


# ------------------------------------------------------------------------------ whole weights

WHOLE = sorted({c.recipe.name for c in select("model.jacobian/weights-*")})


def test_by_default_the_factors_are_trained():
    rng = np.random.default_rng(0)
    spec = mlp_spec([3, 4, 2], "tanh", {"r": 1, "alpha": 2.0})
    net = init_model(rng, spec)
    names = ("0.A", "0.B", "1.A", "1.B")
    assert net.trainable == names
    same = Model(spec=spec, weights=net.weights, trainable="factors")
    whole = Model(spec=spec, weights=net.weights, trainable="weights")
    assert same.trainable == names
    assert whole.trainable == ("0.W", "0.b", "1.W", "1.b")
    assert set(trained_shapes(spec, "weights")) | set(names) == set(param_shapes(spec))
    with pytest.raises(InputError, match="trainable: got 'all'; required one of factors, weights"):
        Model(spec=spec, weights=net.weights, trainable="all")


@pytest.mark.parametrize("name", WHOLE)
def test_the_jacobian_by_whole_weights_is_the_derivative(name):
    """By differences of the package's own forward pass, and as packed."""
    (case,) = select(f"model.jacobian/{name}/float64")
    x, spec = case.inputs(), case.options["spec"]
    ids = spec[0]["kind"] == "embedding"
    net = Model(spec=spec, weights=x["weights"], trainable="weights")
    given = x["x"].astype(int) if ids else x["x"]
    Z = jacobian(net, given)[1]
    theta = np.concatenate([x["weights"][k].reshape(-1) for k in net.trainable])
    assert list(net.trainable) == list(packing(FORMULA_TABLE, spec, "weights"))
    rng = np.random.default_rng(1)
    for _ in range(3):
        to, h = rng.standard_normal(theta.size), 1e-6
        ahead, behind = (
            jacobian(unpack(net, theta + s * to), given)[0].reshape(-1) for s in (h, -h)
        )
        np.testing.assert_allclose(Z @ to, (ahead - behind) / (2 * h), atol=1e-7 * np.abs(Z).max())
    np.testing.assert_allclose(Z, expected(case)["Z"], atol=1e-12)


def test_a_filter_of_whole_weights_in_the_package():
    """LokoConfig takes the model: an extended Kalman filter without LoRA; it learns."""
    rng = np.random.default_rng(3)
    net = init_model(rng, mlp_spec([3, 5, 2], "tanh"))
    config = loko.LokoConfig(model=Model(spec=net.spec, weights=net.weights, trainable="weights"))
    x, y = rng.standard_normal((30, 3)), np.zeros((30, 2))
    y[np.arange(30), (x[:, 0] > 0).astype(int)] = 1
    state, first = loko.run(
        loko.init(config),
        [loko.Batch(x=a[None], y=b[None]) for a, b in zip(x, y, strict=True)],
        config,
    )
    assert state.theta.shape == (5 * 3 + 5 + 2 * 5 + 2,)
    assert np.mean([r.loss for r in first[-10:]]) < np.mean([r.loss for r in first[:10]])


def test_the_weights_left_to_give_are_loras_alone():
    cases = [
        c for c in all_cases() if c.options.get("train") == "weights" and "theta" in c.inputs()
    ]
    assert cases
    for case in cases:
        assert case.inputs()["weights"] == {}
        x, o = case.inputs(), {k: v for k, v in case.options.items() if k != "spec"}
        own = user_case(case.operation.name, x | {"spec": case.options["spec"]}, **o)
        np.testing.assert_array_equal(expected(own)["theta"], expected(case)["theta"])
