"""The public strategies keep what they state: shapes, conditioning, dtype, read-only arrays."""

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as hs
from support import is_array, leaves

from loko_ref import loko
from loko_ref import strategies as st
from loko_ref.conformance.user_inputs import agree
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman import observation as obs
from loko_ref.kalman import simplex
from loko_ref.network import model


def least(strategy, condition):
    """The simplest draw that meets a condition, from few examples."""
    return find(strategy, condition, settings=settings(max_examples=5000, database=None))


def kept(tree, dtype=None):
    """Every array read-only, finite, of one floating dtype."""
    found = [a for _, a in leaves(tree, is_array)]
    for a in found:
        assert not a.flags.writeable
        assert np.isfinite(a).all()
    kinds = {str(a.dtype) for a in found if a.dtype.kind == "f"}
    assert kinds <= ({dtype} if dtype else {"float64", "float32"})
    assert len(kinds) <= 1
    return found


@given(hs.integers(1, 6), hs.sampled_from([1.0, 1e2, 1e8]), st.dtypes(), hs.booleans(), hs.data())
def test_spd_matrices(m, cond, dtype, diagonal, data):
    S = data.draw(st.spd_matrices(m, cond=cond, dtype=dtype, diagonal=diagonal))
    kept(S, dtype)
    np.testing.assert_array_equal(S, S.T)
    w = np.linalg.eigvalsh(S.astype(float))
    # the cast moves every eigenvalue by at most m eps |S|
    rounding = m * float(np.finfo(dtype).eps) * w[-1]
    assert w[0] > 0
    assert (w[0] + 2 * rounding) * min(cond, st.cond_limit(m, dtype)) * (1 + 1e-12) >= w[-1]
    assert 1e-2 * 0.99 <= w[-1] <= 10 * 1.01
    if diagonal:
        assert not (S - np.diag(np.diagonal(S))).any()


@given(hs.integers(1, 5), hs.sampled_from([1.0, 1e6]), st.dtypes(), hs.data())
def test_variances(n, cond, dtype, data):
    p = data.draw(st.variances(n, cond=cond, dtype=dtype))
    kept(p, dtype)
    assert (p > 0).all()
    assert p.max() / p.min() <= cond * (1 + 1e-5)
    assert 1e-3 * (1 - 1e-5) <= p.max() <= 10 * (1 + 1e-5)


@given(hs.integers(1, 3), hs.integers(2, 4), st.dtypes(), hs.data())
def test_probabilities(batch, C, dtype, data):
    yhat = data.draw(st.probabilities(batch, C, dtype=dtype))
    kept(yhat, dtype)
    assert yhat.shape == (batch, C)
    assert (yhat >= 0).all()
    np.testing.assert_allclose(yhat.sum(axis=1), 1, rtol=2 * C * np.finfo(dtype).eps)


def test_saturated_probabilities_are_drawn():
    one_hot = least(st.probabilities(1, 3), lambda y: bool((y == 1).any()))
    assert sorted(one_hot[0]) == [0, 0, 1]
    small = least(st.probabilities(1, 3), lambda y: bool(((y > 0) & (y < 1e-15)).any()))
    assert small.min() >= np.exp(-40) * 0.3


@given(st.diagonal_problems() | st.dense_problems() | st.glm_problems())
def test_problems(problem):
    kept(problem)
    a = problem.arguments()
    n = a["theta"].shape[0]
    H = a.get("H", a.get("Z"))
    assert H.shape == (a["e"].shape[0], n)
    if "yhat" in a:
        sums = a["e"].reshape(a["yhat"].shape).sum(axis=1)
        assert np.abs(sums).max() <= 8 * a["e"].size * np.finfo(H.dtype).eps


@given(st.dtypes(), hs.data())
def test_dtype_is_kept(dtype, data):
    for strategy in (
        st.diagonal_problems(dtype=dtype),
        st.dense_problems(dtype=dtype),
        st.glm_problems(dtype=dtype),
        st.factors(dtype=dtype),
    ):
        kept(data.draw(strategy), dtype)
    net = data.draw(st.models(dtype=dtype))
    assert net.dtype == dtype
    kept(net.weights, dtype)


@given(st.models(), hs.data())
def test_models_batches_configs_and_states_belong_together(net, data):
    config = data.draw(st.configs(net))
    size = data.draw(hs.integers(1, 2))
    state = data.draw(st.states(config, batch=size))
    batch = data.draw(st.batches(net, observation=config.observation, size=size))
    kept([state, batch.x], str(net.dtype))
    assert model.pack(net).shape == state.theta.shape
    if config.observation == "softmax" or config.center:
        simplex.check_ones(state.R, net.outputs)
    try:
        new, _ = loko.step(state, batch, config)
    except NumericalError:
        return  # beta = 0 may leave R without rank
    assert new.step == state.step + 1


@given(hs.data())
def test_fixed_choices_are_taken(data):
    net = data.draw(st.models(max_width=2, max_depth=1, min_outputs=2))
    config = data.draw(st.configs(net, covariance="dense", observation="softmax", beta=0.25))
    assert (config.covariance, config.observation, config.beta) == ("dense", "softmax", 0.25)


def test_failures_shrink_to_something_readable():
    """The least problem: one parameter, one output, units."""
    problem = least(st.diagonal_problems(), lambda problem: True)
    assert problem.theta.shape == (1,)
    assert problem.R.shape == (1, 1)
    assert not problem.H.any()
    assert float(least(st.arrays((3, 3)), lambda a: a.max() >= 1).sum()) == 1.0


def test_a_writing_implementation_is_caught_on_the_spot():
    def update(theta, p, H, e, R):
        theta += 1.0

    problem = least(st.diagonal_problems(), lambda problem: True)
    with pytest.raises(ValueError, match="read-only"):
        update(**problem.arguments())


def test_bad_conditioning():
    with pytest.raises(InputError, match=r"cond: got 0.5; required a number >= 1"):
        least(st.spd_matrices(2, cond=0.5), lambda S: True)


@given(st.transformer_specs(), hs.data())
def test_transformers_chain_and_read_what_is_drawn_for_them(spec, data):
    assert any(layer["kind"] in ("residual", "patchify", "embedding") for layer in spec)
    net = data.draw(st.transformers(max_layers=1))
    batch = data.draw(st.batches(net, observation="glm"))
    z = model.forward(net, batch.x)[0]
    assert z.shape == (len(batch.y), net.outputs)
    assert np.isfinite(z).all()
    kept(net.weights, str(net.dtype))
    assert not batch.x.flags.writeable


@pytest.mark.parametrize(
    ("kind", "first"), [("features", "residual"), ("text", "embedding"), ("image", "patchify")]
)
def test_a_kind_of_transformer_is_taken_as_given(kind, first):
    assert least(st.transformer_specs(kinds=(kind,)), lambda spec: True)[0]["kind"] == first
    with pytest.raises(InputError, match="the closest known name is 'text'"):
        least(st.transformer_specs(kinds=("texts",)), lambda spec: True)


def test_every_way_of_a_text_is_drawn():
    """A mask channel, types, padding, RoBERTa's rule: each occurs."""
    text = st.transformer_specs(kinds=("text",), max_layers=1)
    for wanted in (
        lambda e: "mask" in e.get("inputs", ()),
        lambda e: "types" in e.get("inputs", ()),
        lambda e: e.get("start") == 1,
        lambda e: e.get("pad") is None,
    ):
        spec = least(text, lambda spec, wanted=wanted: wanted(spec[0]))
        assert wanted(spec[0])


STEPS = {"flat": None, "transformers": st.transformers(max_layers=1, max_width=2)}


@pytest.mark.parametrize("networks", STEPS)
@given(hs.data())
def test_step_problems_are_loko_steps_of_the_catalogue(networks, data):
    """The package's own step, given what the catalogue says, agrees with the plain route."""
    problem = data.draw(st.step_problems(networks=STEPS[networks], cond=10.0))
    kept(problem.state)

    def step(**arguments):
        new, record = loko.step(problem.state, problem.batch, problem.config)
        out = {"yhat": record.yhat, "e": record.e, "S": record.S, "theta": new.theta}
        return out | ({"p": new.p} if new.P is None else {"P": new.P})

    agree(step, "loko.step", problem.arguments())


@pytest.mark.parametrize("kind", obs.OBSERVATIONS)
@given(hs.data())
def test_observation_problems_are_the_catalogues(kind, data):
    problem = data.draw(st.observation_problems(observation=kind))
    kept(problem)
    if kind != "gaussian":
        sums = problem.y.sum(axis=1)
        assert np.abs(sums - 1).max() <= 8 * np.finfo(problem.y.dtype).eps

    def observe(z, Z, y):
        seen = obs.observe(kind, z, Z, y)
        return {"yhat": seen.yhat, "e": seen.e, "H": seen.H}

    agree(observe, f"observation.{kind}", problem.arguments())


@given(st.lte_runs())
def test_lte_runs_are_runs_of_the_catalogue(run):
    """The package's own run, in the drawn dtype, agrees with the plain route on all of them."""
    kept([run.weights, run.factors, run.redraws, run.x, run.y])

    def mine(**arguments):
        rows = []
        for event in run.run()[1].events:
            if event.kind == "step":
                rows.append({})
            W = [event.state.weights[k].reshape(-1) for k in arguments["weights"]]
            rows[-1] |= {"theta": event.state.theta, "W": np.concatenate(W)}
        return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

    assert agree(mine, "lte.run", run.arguments()).status == "passed"


@given(st.lte_runs(heads=2, reset="AB", mode="lte", max_steps=2))
def test_lte_runs_take_what_is_fixed(run):
    assert (run.config.heads, run.config.reset) == (2, "AB")
    assert set(run.redraws) == {name for name in run.factors if name.endswith(".A")}
    assert run.arguments()["optimizer"] in ("sgd", "adagrad", "adamw")
