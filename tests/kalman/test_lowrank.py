"""A precision of blocks plus low rank: what it is equal to, at no column and at all of them."""

import numpy as np
import pytest

from loko_ref import fast, loko
from loko_ref.errors import InputError
from loko_ref.kalman import lowrank
from loko_ref.kalman.lowrank import Group, Precision
from loko_ref.network.model import Model, mlp_spec, param_shapes

SPEC = mlp_spec([4, 5, 3], "tanh", {"r": 2, "alpha": 3.0, "bias": True})
VARIANTS = [
    {"observation": "glm"},
    {"observation": "glm", "solve": "implicit"},
    {"observation": "softmax", "noise": "fixed", "r0": 0.5},
    {"observation": "logits", "noise": "ema_innovation", "beta": 0.5},
    {"observation": "gaussian", "noise": "ema_residual_hph"},
]


def network():
    rng = np.random.default_rng(0)
    return Model(spec=SPEC, weights={k: rng.normal(size=s) for k, s in param_shapes(SPEC).items()})


def run(covariance, steps=6, size=1, **options):
    rng = np.random.default_rng(1)
    model = network()
    config = loko.LokoConfig(model=model, covariance=covariance, p0=0.3, **options)
    real = config.observation == "gaussian"
    batches = [
        loko.Batch(
            x=rng.normal(size=(size, 4)),
            y=rng.normal(size=(size, 3)) if real else rng.integers(0, 3, size),
        )
        for _ in range(steps)
    ]
    return loko.run(loko.init(config, size), batches, config)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("more", [{}, {"lam": 0.9}, {"lam": 0.9, "q": 0.02}], ids=str)
def test_no_column_is_the_variational_diagonal(options, more):
    after, seen = run("lowrank", columns=0, size=2, **options, **more)
    right, plain = run("diagonal", diagonal="variational", size=2, **options, **more)
    np.testing.assert_allclose(after.theta, right.theta, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(1 / after.U, right.p, rtol=1e-9)
    np.testing.assert_allclose(seen[-1].S, plain[-1].S, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(seen[-1].K, plain[-1].K, rtol=1e-8, atol=1e-10)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("covariance", ["lowrank", "block"])
@pytest.mark.parametrize("more", [{}, {"lam": 0.9}, {"lam": 0.9, "q": 0.02}], ids=str)
def test_every_column_is_the_dense_filter(options, covariance, more):
    after, seen = run(covariance, columns=40, size=2, **options, **more)
    right, plain = run("dense", size=2, **options, **more)
    np.testing.assert_allclose(after.theta, right.theta, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(seen[-1].p_pred, np.diag(plain[-1].p_pred), rtol=1e-8)
    np.testing.assert_allclose(seen[-1].K, plain[-1].K, rtol=1e-7, atol=1e-9)


def test_blocks_of_the_whole_tensor_are_those_of_the_dense_precision():
    """After one step from a diagonal prior the others are dropped, and these are exact."""
    after, _ = run("block", steps=1, blocks="tensor")
    right, _ = run("dense", steps=1)
    dense, at, spent = np.linalg.inv(right.P), 0, 0
    for name in network().trainable:
        size = network().weights[name].size
        block = after.U[spent : spent + size**2].reshape(size, size)
        own = dense[at : at + size, at : at + size]
        np.testing.assert_allclose(block, own, rtol=1e-7, atol=1e-8)
        at, spent = at + size, spent + size**2
    assert spent == after.U.size


def test_unit_blocks_are_those_of_inputs_of_a_and_outputs_of_b():
    after, _ = run("block", steps=1)
    right, _ = run("dense", steps=1)
    dense, at, spent = np.linalg.inv(right.P), 0, 0
    for name in network().trainable:
        part, shape = name.rsplit(".", 1)[1], network().weights[name].shape
        where = at + np.arange(np.prod(shape)).reshape(shape)
        rows = {"A": where.T, "bA": where[None], "B": where}.get(part)
        rows = where[:, None] if rows is None else rows
        for row in rows:
            block = after.U[spent : spent + row.size**2].reshape(row.size, row.size)
            np.testing.assert_allclose(block, dense[np.ix_(row, row)], rtol=1e-7, atol=1e-8)
            spent += row.size**2
        at += where.size
    assert spent == after.U.size


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(
    "kind",
    [
        {"covariance": "lowrank", "columns": 3},
        {"covariance": "block", "columns": 2},
        {"covariance": "block", "blocks": "tensor"},
    ],
    ids=str,
)
def test_both_routes_agree(kind, options):
    rng, real = np.random.default_rng(5), options["observation"] == "gaussian"
    config = loko.LokoConfig(model=network(), lam=0.95, q=1e-3, p0=0.2, **kind, **options)
    slow = quick = loko.init(config, 2)
    stepper = fast.prepare(config)
    for _ in range(4):
        y = rng.normal(size=(2, 3)) if real else rng.integers(0, 3, 2)
        batch = loko.Batch(x=rng.normal(size=(2, 4)), y=y)
        slow, _ = loko.step(slow, batch, config)
        quick, _ = stepper.step(quick, batch)
        np.testing.assert_allclose(quick.theta, slow.theta, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(quick.U, slow.U, rtol=1e-7, atol=1e-9)
        WW, right = quick.W @ quick.W.T, slow.W @ slow.W.T
        np.testing.assert_allclose(WW, right, rtol=1e-6, atol=1e-9)
        if slow.R is not None:
            np.testing.assert_allclose(quick.R, slow.R, rtol=1e-8, atol=1e-10)


def precision(rng, n=6, L=2, groups=()):
    P = Precision.prior(rng.uniform(0.5, 2, n), L, groups).add(rng.normal(size=(3, n)))
    return P.add(rng.normal(size=(2, n)))


GROUPS = (Group(start=0, units=2, size=2, across=True), Group(start=4, units=2, size=1))


@pytest.mark.parametrize("groups", [(), GROUPS], ids=["diagonal", "blocks"])
@pytest.mark.parametrize("L", [0, 2])
def test_products_variances_and_time_update_are_the_dense_ones(groups, L):
    rng = np.random.default_rng(3)
    P = precision(rng, L=L, groups=groups)
    right, X = np.linalg.inv(P.dense()), rng.normal(size=(6, 4))
    np.testing.assert_allclose(P.times(X), right @ X, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(P.variances(), np.diag(right), rtol=1e-9)
    for lam, q in ((0.9, 0.0), (1.0, 0.3), (0.8, 0.3)):
        later = np.linalg.inv(P.predict(lam, q).dense())
        np.testing.assert_allclose(later, right / lam + q * np.eye(6), rtol=1e-9, atol=1e-11)


def test_what_is_dropped_keeps_its_squares_and_a_rotation_of_w_changes_nothing():
    rng = np.random.default_rng(4)
    P, H = precision(rng), rng.normal(size=(3, 6))
    Q = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    after = P.add(H)
    turned = Precision(U=P.U, W=P.W @ Q).add(H)
    np.testing.assert_allclose(turned.U, after.U, rtol=1e-10)
    np.testing.assert_allclose(turned.W @ turned.W.T, after.W @ after.W.T, rtol=1e-9, atol=1e-12)
    exact = P.dense() + H.T @ H
    np.testing.assert_allclose(np.diag(after.dense()), np.diag(exact), rtol=1e-10)
    # the largest columns are kept: no other two of the same span leave less out
    left = np.linalg.eigvalsh((exact - np.diag(P.U)) - after.W @ after.W.T)
    kept = np.linalg.eigvalsh(P.W @ P.W.T + H.T @ H)
    assert left.max() == pytest.approx(kept[-3], rel=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_keeps_the_dtype(dtype):
    model = Model(spec=SPEC, weights={k: a.astype(dtype) for k, a in network().weights.items()})
    for options in ({"covariance": "lowrank", "columns": 3}, {"covariance": "block"}):
        config = loko.LokoConfig(model=model, lam=0.9, q=0.1, solve="implicit", **options)
        x = np.ones((1, 4), dtype)
        after, _ = loko.step(loko.init(config), loko.Batch(x=x, y=np.array([1])), config)
        assert {str(a.dtype) for a in (after.theta, after.U, after.W)} == {dtype}


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"covariance": "diagonal", "columns": 3}, "columns"),
        ({"covariance": "dense", "columns": 0}, "columns"),
        ({"covariance": "lowrank", "columns": -1}, "columns"),
        ({"covariance": "lowrank", "columns": 1.5}, "columns"),
        ({"covariance": "lowrank", "blocks": "tensor"}, "blocks"),
        ({"covariance": "lowrank", "diagonal": "variational"}, "diagonal"),
        ({"covariance": "block", "blocks": "row"}, "blocks"),
        ({"covariance": "block", "form": "textbook"}, "form"),
    ],
)
def test_options_that_do_not_belong_are_errors(options, argument):
    with pytest.raises(InputError, match=argument):
        loko.LokoConfig(model=network(), **options)


def test_a_state_of_another_covariance_is_an_error():
    config = loko.LokoConfig(model=network(), covariance="lowrank", columns=2)
    other = loko.LokoConfig(model=network())
    batch = loko.Batch(x=np.ones((1, 4)), y=np.array([1]))
    with pytest.raises(InputError, match=r"state\.U"):
        loko.step(loko.init(other), batch, config)
    with pytest.raises(InputError, match=r"state\.p"):
        loko.step(loko.init(config), batch, other)


def test_the_groups_cover_theta_once():
    shapes = [("A", (2, 4)), ("B", (5, 2)), ("bA", (2,)), ("bB", (5,)), ("W", (3, 2))]
    for kind in lowrank.BLOCKS:
        groups = lowrank.groups_of(shapes, kind)
        assert [g.start for g in groups] == [0, 8, 18, 20, 25]
        assert [g.units * g.size for g in groups] == [8, 10, 2, 5, 6]
    assert [g.size for g in lowrank.groups_of(shapes, "unit")] == [2, 2, 2, 1, 1]
