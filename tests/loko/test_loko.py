"""LoKO's step [LOKO-1 to LOKO-4] against its own recipe in plain formulas, and what it refuses."""

import pickle
import sys
from collections import Counter
from dataclasses import replace

import exact
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as hs
from support import close, eps, is_array, leaves, norm, readonly

from loko_ref import loko
from loko_ref import strategies as st
from loko_ref.errors import InputError, NumericalError
from loko_ref.fast import prepare
from loko_ref.kalman import dense, diagonal
from loko_ref.loko import Batch, LokoConfig, LokoState
from loko_ref.network import jacobian, model
from loko_ref.network.model import Model, init_model, mlp_spec

SMALL = st.models(max_width=3, max_depth=2, activations=("tanh", "gelu"), dtype="float64")
CLASSES = st.models(
    max_width=3, max_depth=2, activations=("tanh", "gelu"), min_outputs=2, dtype="float64"
)


def recipe(state, batch, c):
    """One step by the plainest formulas in class coordinates; solves by `numpy.linalg.solve`."""
    theta, dense_p = state.theta, c.covariance == "dense"
    P = state.P if dense_p else np.diag(state.p)
    P = P / c.lam + c.q * np.eye(len(theta))
    z, Z = jacobian.jacobian(model.unpack(c.model, theta), batch.x)
    B, C = z.shape
    soft = np.exp(z - z.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    J = np.zeros((B * C, B * C))
    for b in range(B):
        J[b * C : (b + 1) * C, b * C : (b + 1) * C] = np.diag(soft[b]) - np.outer(soft[b], soft[b])
    y = batch.y if c.observation == "gaussian" else np.eye(C)[batch.y]
    yhat = z if c.observation == "gaussian" else soft
    e = (y - yhat).reshape(-1)
    H = J @ Z if c.observation in ("softmax", "glm") else Z
    if c.center:
        H = np.kron(np.eye(B), np.eye(C) - 1 / C) @ H
    out = {"p_pred": P if dense_p else np.diagonal(P), "z": z, "yhat": yhat.reshape(-1)}
    out |= {"e": e, "H": H}

    def refresh(R, e, HpH):
        sample = np.outer(e, e) + (0 if c.noise == "ema_innovation" else HpH)
        return R if c.noise == "fixed" else c.beta * R + (1 - c.beta) * sample

    # where the all-ones directions carry nothing, any noise along them will do: add 1 1'
    simplex = c.observation in ("softmax", "glm") or c.center
    lift = np.kron(np.eye(B), np.ones((C, C))) * simplex
    R = J if c.noise == "glm" else state.R
    if c.timing == "before" and c.noise != "glm":
        R = refresh(R, e, H @ P @ H.T)
    R_used = R
    S = H @ P @ H.T + R
    K = np.linalg.solve(S + lift, H @ P).T
    K = K - np.repeat(K.reshape(-1, B, C).mean(axis=2), C, axis=1) * simplex
    mean = theta + K @ e
    if dense_p:
        cov = np.linalg.inv(np.linalg.inv(P) + H.T @ np.linalg.solve(R + lift, H))
    elif c.diagonal == "decoupled":
        cov = np.diagonal(P - K @ H @ P)
    else:
        cov = 1 / (1 / np.diagonal(P) + np.diagonal(H.T @ np.linalg.solve(R + lift, H)))
    out |= {"R_used": R_used, "S": S, "K": K}
    if c.timing == "after" and c.noise != "glm":
        full = cov if dense_p else np.diag(cov)
        r, spread = e, H @ P @ H.T
        if c.noise == "ema_residual_hph":
            z_post, _ = model.forward(model.unpack(c.model, mean), batch.x)
            soft = np.exp(z_post - z_post.max(axis=1, keepdims=True))
            soft /= soft.sum(axis=1, keepdims=True)
            r = (y - (z_post if c.observation == "gaussian" else soft)).reshape(-1)
            spread = H @ full @ H.T
        R = refresh(R, r, spread)
    condition = np.linalg.cond(S + lift) * np.linalg.cond(R_used + lift) ** 0.5 * np.linalg.cond(P)
    return out, mean, cov, None if c.noise == "glm" else R, condition


@given(SMALL, hs.data())
def test_step_by_the_recipe(net, data):
    """Every record and the next state, for every valid combination, online and stacked."""
    config = data.draw(st.configs(net))
    size = data.draw(hs.integers(1, 2))
    state = data.draw(st.states(config, batch=size, cond=10.0))
    batch = data.draw(st.batches(net, observation=config.observation, size=size))
    try:
        new, record = loko.step(state, batch, config)
    except NumericalError:
        reject()  # beta = 0 may leave R without rank
    try:
        truth, mean, cov, R, condition = recipe(state, batch, config)
    except np.linalg.LinAlgError:
        reject()  # beta = 0: R = e e' alone
    C, unit = net.outputs, eps(mean)
    # one solve by each route, m + n terms deep, sizes below those of the operands
    m, n = record.H.shape
    rel = 32 * m * (n + m) * unit * condition
    if rel > 1e-3:
        reject()  # nothing left to compare
    for name in ("p_pred", "z", "yhat", "e", "H", "R_used"):
        got, expected = getattr(record, name), truth[name]
        close(got, expected, 64 * m * n * unit * (1 + np.abs(expected).max()), name)
    close(record.S, truth["S"], rel * (1 + norm(truth["S"])), "S")
    gain = 1 + norm(truth["K"])
    close(record.K, truth["K"], rel * gain, "K")
    close(new.theta, mean, rel * gain * (1 + norm(truth["e"]) + norm(mean)), "theta")
    # P+ = (I - K H) P (I - K H)' + K R K' squares what K H is larger than I by
    outer = gain * (1 + norm(truth["H"]))
    covariance = new.P if config.covariance == "dense" else new.p
    close(covariance, cov, rel * (1 + norm(truth["p_pred"])) * outer, "P")
    assert new.step == state.step + 1
    if R is None:
        assert new.R is None
    else:
        close(new.R, R, rel * (1 + norm(R)) * gain * 16, "R")
    if config.observation in ("softmax", "glm") or config.center:
        sums = record.K.reshape(n, size, C).sum(axis=2)
        close(sums, np.zeros_like(sums), rel * gain, "rows of K")


@given(CLASSES, hs.data())
def test_glm_step_in_exact_arithmetic(net, data):
    """The diagonal glm step, any saturation, against rationals."""
    fixed = {"observation": "glm", "lam": 1.0, "q": 0.0, "solve": "linear"}
    config = data.draw(st.configs(net, covariance="diagonal", **fixed))
    state = data.draw(st.states(config, cond=10.0))
    batch = data.draw(st.batches(net, size=1))
    new, record = loko.step(state, batch, config)
    z, Z = jacobian.jacobian(model.unpack(net, state.theta), batch.x)
    yhat = record.yhat.reshape(z.shape)
    truth = exact.glm(state.theta, state.p, Z, record.e, yhat)
    top = 1 + norm((Z * state.p) @ Z.T)
    rel = 32 * Z.size * eps(Z) * top
    close(new.p, truth[config.diagonal], rel * state.p, "p")
    shift = rel * state.p * np.linalg.norm(Z, axis=0) * norm(record.e)
    close(new.theta, truth["theta"], shift + 2 * eps(Z) * abs(state.theta), "theta")


@given(st.models(max_width=3, max_depth=2, min_outputs=2), hs.data())
def test_runs_resume_bitwise(net, data):
    """k steps, a pickled state, k more = 2 k steps; and nothing is drawn or kept elsewhere."""
    config = data.draw(st.configs(net, observation="glm", p0=0.07))
    batches = [data.draw(st.batches(net, size=1)) for _ in range(4)]
    try:
        whole, records = loko.run(loko.init(config), batches, config)
    except NumericalError:
        reject()  # a class observed whose probability is 0 to the last bit
    half, _ = loko.run(loko.init(config), batches[:2], config)
    again, late = loko.run(pickle.loads(pickle.dumps(half)), batches[2:], config)
    for (path, a), (_, b) in zip(
        leaves([whole, records[2:]], is_array), leaves([again, late], is_array), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    assert whole.step == again.step == 4


def linear_model(rng, i, o):
    net = init_model(rng, mlp_spec([i, o]))
    return Model(spec=net.spec, weights=net.weights, trainable=("0.W", "0.b"))


@pytest.mark.parametrize("form", dense.FORMS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_linear_network_with_dense_p_is_ridge_regression(rng, form, size):
    """Gaussian, R = r0 I, P_0 = p0 I: |y - Wx - b|^2 / r0 + |theta - theta_0|^2 / p0 is least.

    30 samples of 3 features: cond of the normal equations ~ 1e2; 1e-11 is 1e3 times 30 eps 1e2.
    """
    net = linear_model(rng, 3, 2)
    config = LokoConfig(
        model=net, observation="gaussian", covariance="dense", p0=0.5, r0=0.25, form=form
    )
    x, y = rng.standard_normal((30, 3)), rng.standard_normal((30, 2))
    batches = [Batch(x=x[k : k + size], y=y[k : k + size]) for k in range(0, 30, size)]
    state, _ = loko.run(loko.init(config, batch=size), batches, config)
    features = np.concatenate([x, np.ones((30, 1))], axis=1)
    prior = np.concatenate([net.weights["0.W"].T, net.weights["0.b"][None]])  # (4, 2)
    A = features.T @ features / 0.25 + np.eye(4) / 0.5
    ridge = np.linalg.solve(A, features.T @ y / 0.25 + prior / 0.5)
    expected = np.concatenate([ridge[:3].T.ravel(), ridge[3]])
    np.testing.assert_allclose(state.theta, expected, rtol=1e-11, atol=1e-11)
    cov = np.linalg.inv(A)  # each output's own block
    np.testing.assert_allclose(state.P[:3, :3], cov[:3, :3], rtol=1e-10, atol=1e-12)


def test_stacked_batch_is_one_observation(rng):
    """With a dense P and a linear model: m stacked = one after another, in any order.  [LOKO-2]."""
    net = linear_model(rng, 2, 2)
    config = LokoConfig(model=net, observation="gaussian", covariance="dense", p0=1.0)
    x, y = rng.standard_normal((4, 2)), rng.standard_normal((4, 2))
    stacked, _ = loko.step(loko.init(config, batch=4), Batch(x=x, y=y), config)
    single, _ = loko.run(
        loko.init(config), [Batch(x=x[[k]], y=y[[k]]) for k in (2, 0, 3, 1)], config
    )
    np.testing.assert_allclose(stacked.theta, single.theta, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(stacked.P, single.P, rtol=1e-12, atol=1e-13)


NET = init_model(
    np.random.default_rng(3), mlp_spec([3, 4, 3], "tanh", {"r": 2, "alpha": 4.0, "bias": True})
)
ONE = Batch(x=readonly([[0.5, -1.0, 2.0]]), y=readonly([1]))


def test_prior_variances():
    """A number; one a site; an array; with a dense covariance also a matrix.  [LOKO-3]."""
    n = NET.n
    np.testing.assert_array_equal(loko.init(LokoConfig(model=NET, p0=0.5)).p, np.full(n, 0.5))
    spans = {name: span for name, _, span in model.sites(NET)}
    p = loko.init(LokoConfig(model=NET, p0={"0": 0.5, "1": 0.25})).p
    assert set(p[spans["0"]]) == {0.5}
    assert set(p[spans["1"]]) == {0.25}
    own = readonly(np.linspace(0.1, 1.0, n))
    np.testing.assert_array_equal(loko.init(LokoConfig(model=NET, p0=own)).p, own)
    full = LokoConfig(model=NET, p0=own, covariance="dense")
    np.testing.assert_array_equal(loko.init(full).P, np.diag(own))
    P = readonly(np.eye(n) + 0.1)
    np.testing.assert_array_equal(loko.init(replace(full, p0=P)).P, P)


def test_sites_at_zero_b_learn_b_first():
    """B = 0: the first step moves B and not A, as dz/dA = 0 there."""
    config = LokoConfig(model=NET)
    new, _ = loko.step(loko.init(config), ONE, config)
    moved = model.unpack(NET, new.theta)
    for name in NET.trainable:
        same = np.array_equal(moved.weights[name], NET.weights[name])
        assert same == (name.split(".")[1] in ("A", "bA")), name


@pytest.mark.parametrize(("observation", "count"), [("logits", 1000), ("logits+hph", 2000)])
def test_an_estimate_that_dies_is_told_by_step_and_eigenvalue(observation, count):
    """logits: R's all-ones part decays as beta^k while 1'Z is not 0, and a class is never seen."""
    rng = np.random.default_rng(0)
    config = LokoConfig(
        model=linear_model(rng, 2, 4),
        observation="logits",
        noise="ema_innovation_hph" if observation.endswith("hph") else "ema_innovation",
        beta=0.5,
        p0=1.0,
    )
    state = loko.init(config)
    for _ in range(count):
        batch = Batch(x=rng.standard_normal((1, 2)), y=rng.integers(1, 4, 1))  # never class 0
        try:
            state, _ = loko.step(state, batch, config)
        except NumericalError as caught:
            error = caught
            break
    else:
        pytest.fail("R never died")
    assert error.quantity == "S"
    assert error.step == state.step > 100
    assert str(error).startswith(
        f"step {state.step}: S: smallest eigenvalue {error.eigenvalue:.6g}"
    )
    assert "Nothing was added to repair it" in str(error)
    # the S that was refused, formed anew
    z, Z = jacobian.jacobian(model.unpack(config.model, state.theta), batch.x)
    e = np.eye(4)[batch.y[0]] - np.exp(z[0]) / np.exp(z[0]).sum()
    HpH = (Z * state.p) @ Z.T
    R = 0.5 * state.R + 0.5 * (np.outer(e, e) + (HpH if "hph" in config.noise else 0))
    w = np.linalg.eigvalsh(HpH + R)
    assert abs(w[0] - error.eigenvalue) <= 64 * 4 * eps(w) * w[-1]
    d = np.sqrt(np.diagonal(HpH + R))
    assert np.linalg.cond((HpH + R) / np.outer(d, d)) > 1e12  # honestly singular, in any units


def test_a_rank_one_estimate_is_told_at_once():
    """beta = 0: R = e e' has rank 1, H p H' rank n = 1; four classes cannot be told apart."""
    net = init_model(np.random.default_rng(0), mlp_spec([1, 4]))
    net = Model(spec=net.spec, weights=net.weights, trainable=("0.W",))
    spec = [{"kind": "linear", "name": "a", "in": 1, "out": 1, "bias": True}, *net.spec]
    weights = {"a.W": np.eye(1), "a.b": np.zeros(1), **net.weights}
    net = Model(spec=spec, weights=weights, trainable=("a.b",))
    for observation in ("softmax", "logits"):
        config = LokoConfig(model=net, observation=observation, noise="ema_innovation", beta=0.0)
        with pytest.raises(NumericalError, match=r"^step 0: [SR]: smallest eigenvalue"):
            loko.step(loko.init(config), Batch(x=np.ones((1, 1)), y=np.array([2])), config)


def test_a_run_that_diverges_is_told():
    weights = {k: v * 1e100 for k, v in NET.weights.items()}
    net = Model(
        spec=[k if k["kind"] == "linear" else {"kind": "relu"} for k in NET.spec], weights=weights
    )
    config = LokoConfig(model=net)
    state = replace(loko.init(config), theta=np.full(net.n, 1e150), step=7)
    with np.errstate(all="ignore"), pytest.raises(NumericalError) as told:
        loko.step(state, ONE, config)
    assert told.value.step == 7
    assert told.value.eigenvalue is None
    assert "diverged" in str(told.value)


def test_softmax_keeps_e_h_r_in_the_contrast_space():
    """A thousand steps at beta = 0.9: nothing drifts off, nothing raises.  [NOISE-6]."""
    rng = np.random.default_rng(2)
    config = LokoConfig(model=NET, observation="softmax", beta=0.9)
    state, worst = loko.init(config), 0.0
    for _ in range(1000):
        x = rng.standard_normal((1, 3))
        batch = Batch(x=x, y=np.array([int(x.sum() > 0) if rng.random() > 0.1 else 2]))
        state, record = loko.step(state, batch, config)
        for a in (record.e[:, None], record.H, record.K.T):
            worst = max(worst, np.abs(a.sum(axis=0)).max() / max(np.abs(a).max(), 1e-300))
    assert worst < 64 * eps(state.theta)
    ones = state.R @ np.ones(3)  # beta^1000 r0 = 1.7e-46: below the rounding of R's entries
    assert np.abs(ones).max() <= 1000 * eps(state.R) * np.abs(state.R).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": "logit"}, r"observation: got 'logit'.*closest known name is 'logits'"),
        ({"noise": "ema"}, r"noise: got 'ema'"),
        ({"noise": "glm", "observation": "softmax"}, r"noise: got .*required noise='glm' with"),
        ({"noise": "fixed", "observation": "glm"}, r"noise: got .*required noise='glm' with"),
        (
            {"noise": "ema_residual_hph", "observation": "softmax", "timing": "before"},
            r"timing: got .*required timing='after'",
        ),
        ({"noise": "fixed", "observation": "softmax", "timing": "after"}, r"timing='before'"),
        ({"timing": "befor"}, r"closest known name is 'before'"),
        ({"covariance": "full"}, r"covariance: got 'full'"),
        ({"diagonal": "decouplet"}, r"closest known name is 'decoupled'"),
        ({"form": "josef"}, r"closest known name is 'joseph'"),
        (
            {"covariance": "dense", "diagonal": "variational"},
            r"diagonal: got 'variational'; required 'decoupled', the default, with .*dense",
        ),
        ({"form": "textbook"}, r"form: got 'textbook'; required 'joseph', the default, with"),
        ({"beta": 1.0}, r"beta: got 1.0; required a number in \[0, 1\)"),
        ({"beta": float("nan")}, r"beta: got nan"),
        ({"r0": 0.0}, r"r0: got 0.0; required a number in \(0, inf\)"),
        ({"r0": float("inf")}, r"r0: got inf"),
        ({"lam": 0.0}, r"lam: got 0.0; required a number in \(0, 1\]"),
        ({"lam": 1.5}, r"lam: got 1.5"),
        ({"q": -1e-9}, r"q: got -1e-09"),
        ({"center": True}, r"center: got True; required False unless observation='logits'"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(InputError, match=message):
        LokoConfig(model=NET, **change)


@pytest.mark.parametrize(
    ("p0", "message"),
    [
        (0.0, r"p0: got 0.0; required a number in \(0, inf\)"),
        (-1.0, r"p0: got -1.0"),
        (float("nan"), r"p0: got nan"),
        ("0.1", r"p0: got '0.1'.*a str in place of a number"),
        ({"0": 0.1}, r"p0: got keys \['0'\]; required one number a site: \['0', '1'\]"),
        ({"0": 0.1, "1": -1.0}, r"p0\['1'\]: got -1.0"),
        (np.ones(3), r"p0: got shape \(3,\)"),
        (np.zeros(NET.n), r"p0: got 0 at flat index 0; required entries > 0"),
        (np.full(NET.n, np.nan), r"p0: got nan at index \(0,\)"),
        (np.ones(NET.n, "float32"), r"p0: got dtype float32"),
        (np.eye(NET.n), r"p0: got shape"),
    ],
)
def test_bad_priors(p0, message):
    with pytest.raises(InputError, match=message):
        loko.init(LokoConfig(model=NET, p0=p0))


def test_bad_dense_priors():
    skew = np.eye(NET.n)
    skew[0, 1] = 0.5
    for P, message in [
        (skew, r"p0: got max \|p0 - p0'\| = 0.5; required a symmetric matrix"),
        (-np.eye(NET.n), r"p0: got smallest eigenvalue -1; required a positive definite"),
    ]:
        with pytest.raises(InputError, match=message):
            loko.init(LokoConfig(model=NET, p0=P, covariance="dense"))


X = ONE.x


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(x=X[:0], y=ONE.y[:0]), r"x: got an empty batch; required at least one sample"),
        (Batch(x=X[0], y=ONE.y), r"x: got shape \(3,\)"),
        (Batch(x=X.T, y=ONE.y), r"x: got shape \(3, 1\).*"),
        (Batch(x=X.astype("float32"), y=ONE.y), r"x: got dtype float32; required dtype float64"),
        (Batch(x=X.astype(int), y=ONE.y), r"x: got dtype int64; required float64 or float32"),
        (Batch(x=X * np.nan, y=ONE.y), r"x: got nan at index \(0, 0\); required finite"),
        (Batch(x=X.tolist(), y=ONE.y), r"got list; required an array"),
        (Batch(x=X, y=np.array([3])), r"y: got label 3; required labels in \[0, 2\].*from 1"),
        (Batch(x=X, y=np.array([-1])), r"y: got label -1"),
        (Batch(x=X, y=np.array([1.0])), r"y: got dtype float64.*read as floats"),
        (Batch(x=X, y=np.array([0, 1])), r"y: got shape \(2, 3\)"),
        (Batch(x=X, y=np.array([[0.5, 0.5, 0.5]])), r"y: got a row that is no distribution"),
        (Batch(x=X, y=np.array([[-1.0, 1.0, 1.0]])), r"y: got a row that is no distribution"),
        (Batch(x=X, y=np.array([[0.0, np.nan, 1.0]])), r"y: got nan at index \(0, 1\)"),
        (Batch(x=X, y=np.array([[0, 1, 0]])), r"y: got dtype int64"),
        (Batch(x=X, y=np.eye(3, dtype="float32")[[0]]), r"y: got dtype float32"),
        (Batch(x=X, y=[1]), r"y: got list|got list; required an array"),
    ],
)
def test_bad_batches(batch, message):
    config = LokoConfig(model=NET)
    with pytest.raises(InputError, match=message):
        loko.step(loko.init(config), batch, config)


def test_bad_states():
    config = LokoConfig(model=NET, observation="softmax")
    good = loko.init(config)
    p_bad = good.p.copy()
    p_bad[2] = -1.0
    skew = np.eye(3)
    skew[0, 1] = 0.5
    for change, message in [
        ({"p": None}, r"state.p: got None; required an array for covariance='diagonal'"),
        ({"R": None}, r"state.R: got None"),
        ({"theta": good.theta[1:]}, r"state.theta: got shape"),
        ({"p": good.p[1:]}, r"state.p: got shape"),
        ({"p": p_bad}, r"state.p: got -1 at flat index 2; required entries > 0"),
        ({"p": good.p * np.nan}, r"state.p: got nan"),
        ({"theta": np.full(NET.n, -np.inf)}, r"theta: got -inf at index \(0,\)"),
        ({"p": good.p.astype("float32")}, r"state.p: got dtype float32"),
        ({"theta": good.theta.astype("float32"), "p": good.p.astype("float32")}, r"dtype float32"),
        (
            {"R": np.eye(6)},
            r"state.R: got shape \(6, 6\); required \(3, 3\).*another size than R's",
        ),
        ({"R": np.eye(3, dtype="float32")}, r"R: got dtype float32"),
        ({"R": np.diag([1.0, 2.0, 3.0])}, r"R: got .*condition_on_simplex"),
        ({"R": np.eye(3) * np.nan}, r"R: got nan"),
        ({"R": skew}, r"R: got "),
    ]:
        with np.errstate(all="ignore"), pytest.raises(InputError, match=message):
            loko.step(replace(good, **change), ONE, config)
    for batch in (0, -1, 1.5, True, None):
        with pytest.raises(InputError, match="batch: got"):
            loko.init(config, batch=batch)


def test_nothing_is_compared_by_value():
    """eq=False: a generated == on arrays would raise; identity is what is compared."""
    config = LokoConfig(model=NET)
    state = loko.init(config)
    assert state == state
    assert state != LokoState(theta=state.theta, p=state.p)
    assert diagonal.DiagonalUpdate.__eq__ is object.__eq__


def test_centred_logits_stay_on_the_contrasts():
    """With center, R's all-ones part dies unobserved: the update must not read it."""
    rng = np.random.default_rng(0)
    net = model.init_model(rng, model.mlp_spec([6, 8, 4], lora={"r": 2, "alpha": 2.0}))
    config = LokoConfig(
        model=net, observation="logits", center=True, noise="ema_innovation", beta=0.5, p0=0.05
    )
    state = loko.init(config)
    x = rng.standard_normal((50, 6))
    y = x[:, :4].argmax(axis=1)
    for k in range(1100):  # 0.5**1100 underflows
        at = slice(k % 50, k % 50 + 1)
        state, record = loko.step(state, Batch(x=x[at], y=y[at]), config)
    assert state.R is not None
    assert abs(state.R.sum()) <= 1e-12 * np.abs(state.R).max()  # the ones died
    # each row of K sums to 0 over the classes, to the rounding of its C = 4 terms
    assert np.abs(record.K.sum(axis=1)).max() <= 4 * 2**-52 * np.abs(record.K).max()


def test_a_theta_that_overflows_names_the_step():
    """A posterior mean beyond the floats is a finding of the step that made it."""
    net = model.init_model(
        np.random.default_rng(0), model.mlp_spec([2, 1], lora={"r": 1, "alpha": 1.0})
    )
    config = LokoConfig(model=net, observation="gaussian", p0=1e40, r0=1.0)
    far = Batch(x=np.full((1, 2), 1e-20), y=np.array([[1e300]]))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(NumericalError, match=r"^step 0: theta: not finite\. The filter diverged"),
    ):
        loko.step(loko.init(config), far, config)


def certain(dtype="float64", **options):
    """A filter whose first prediction is class 0 of 2 to the last bit, and its first state."""
    net = model.init_model(
        np.random.default_rng(0), model.mlp_spec([2, 2], lora={"r": 1, "alpha": 1.0}), dtype=dtype
    )
    weights = {**net.weights, "0.b": np.array([900.0, 0.0], dtype)}
    config = LokoConfig(model=model.Model(spec=net.spec, weights=weights), **options)
    state = loko.init(config)
    return config, LokoState(**{**vars(state), "step": 7})


@pytest.mark.parametrize("covariance", ["diagonal", "dense"])
@pytest.mark.parametrize("grow", [{"lam": 0.9}, {"q": 1e-3}])
def test_a_filter_that_wound_up_is_told(covariance, grow, dtype):
    """S has a zero row, e is not 0 there, P outgrew its prior: told with step and eigenvalue."""
    config, state = certain(dtype, covariance=covariance, **grow)
    x = np.ones((1, 2), dtype)
    with pytest.raises(
        NumericalError,
        match=r"^step 7: S: smallest eigenvalue 0\. Class 1 of sample 0 was observed.* is 0 to the",
    ) as told:
        loko.step(state, Batch(x=x, y=np.array([1])), config)
    assert (told.value.step, told.value.eigenvalue) == (7, 0.0)
    with pytest.raises(NumericalError, match=r"^step 7: S:"):
        loko.step(state, Batch(x=x, y=np.array([[0.75, 0.25]], dtype)), config)
    # the certain event tells nothing: theta stays, P is what the time update made it
    after, record = loko.step(state, Batch(x=x, y=np.array([0])), config)
    assert not record.S.any()
    np.testing.assert_array_equal(after.theta, state.theta)
    got = after.p if covariance == "diagonal" else after.P
    np.testing.assert_allclose(got, record.p_pred, rtol=8 * eps(state.theta))


@pytest.mark.parametrize("covariance", ["diagonal", "dense"])
def test_a_wrong_certainty_within_the_prior_takes_the_limit(covariance, dtype):
    """Without windup it is p0 that asks for the full step p Z'e: it is taken.  [OBS-6, OBS-7]."""
    config, state = certain(dtype, covariance=covariance)
    batch = Batch(x=np.ones((1, 2), dtype), y=np.array([1]))
    after, record = loko.step(state, batch, config)
    _, Z = jacobian.jacobian(model.unpack(config.model, state.theta), batch.x)
    full = 0.05 * Z.T @ record.e
    assert np.abs(full).max() > 0.05
    np.testing.assert_allclose(after.theta - state.theta, full, rtol=0, atol=32 * eps(state.theta))


def test_the_fast_route_tells_the_same():
    config, state = certain(lam=0.9)
    batch = Batch(x=np.ones((1, 2)), y=np.array([1]))
    with pytest.raises(NumericalError, match=r"^step 7: S: .*Class 1 of sample 0") as slow:
        loko.step(state, batch, config)
    with pytest.raises(NumericalError) as quick:
        prepare(config).step(state, batch)
    assert str(quick.value) == str(slow.value)


@pytest.mark.parametrize("name", ["P", "p"])
def test_a_covariance_that_overflows_names_the_step(name):
    """Forgetting without observation: P grows by 1 / lam a step, until it is not finite."""
    covariance = "dense" if name == "P" else "diagonal"
    config, state = certain(covariance=covariance, p0=1e300, lam=1e-9)
    batch = Batch(x=np.zeros((1, 2)), y=np.array([0]))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(NumericalError, match=rf"^step 7: {name}: not finite. {name} outgrew"),
    ):
        loko.step(state, batch, config)


def test_a_spec_is_no_model():
    with pytest.raises(
        InputError, match=r"^model: got list; required a loko_ref\.network\.model\.Model"
    ):
        LokoConfig(model=mlp_spec([2, 1]))


def test_a_step_checks_each_argument_once():
    """Few calls reach the checks and the seam: arguments are checked at the edge alone."""
    net = init_model(np.random.default_rng(0), mlp_spec([3, 4, 3], "relu", {"r": 1, "alpha": 2.0}))
    config = LokoConfig(model=net, observation="softmax", noise="ema_innovation_hph")
    state, batch = loko.init(config), Batch(x=np.ones((1, 3)), y=np.array([1]))
    loko.step(state, batch, config)  # fills the caches
    calls = Counter()

    def seen(frame, event, _):
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(("loko_ref.checks", "loko_ref.arrays")):
            calls[module.split(".")[1], frame.f_code.co_name] += 1

    sys.setprofile(seen)
    try:
        loko.step(state, batch, config)
    finally:
        sys.setprofile(None)
    assert calls["checks", "check_finite"] <= 3  # state, x, R
    assert calls["checks", "check_floats"] <= 4
    assert sum(calls.values()) <= 160, calls  # 555 where every part checked its own arguments
