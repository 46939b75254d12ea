"""The fast route against the readable one: states over several steps, and the Jacobian."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from loko_ref import loko
from loko_ref.errors import InputError
from loko_ref.fast import columns, prepare
from loko_ref.fast.network import Network
from loko_ref.kalman.noise import combinations
from loko_ref.loko import Batch, LokoConfig
from loko_ref.network.architectures import encoder_spec, roberta_spec, vit_spec
from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import Model, mlp_spec, pack, param_shapes

LORA = {"r": 2, "alpha": 4.0}
BIASED = {**LORA, "bias": True}
SIZE = {"layers": 2, "width": 6, "heads": 2, "ff": 8, "outputs": 3, "lora": LORA}
ALL = ("q", "k", "v", "o", "f1", "f2")
TEXT = {"vocab": 11, "positions": 9, **SIZE}
SPECS = {
    "mlp relu": mlp_spec([5, 7, 6, 3], "relu", LORA),
    "mlp gelu biased": mlp_spec([5, 7, 3], "gelu", BIASED),
    "mlp gelu by tanh": mlp_spec([5, 7, 3], "gelu_tanh", LORA),
    "mlp tanh wide rank": mlp_spec([5, 7, 3], "tanh", {"r": 3, "alpha": 1.0}),
    "mlp tanh rank above the widths": mlp_spec([5, 4, 3], "tanh", {"r": 8, "alpha": 3.0}),
    "post-norm mean": encoder_spec(**SIZE, norm="post"),
    "post-norm cls": encoder_spec(**SIZE, norm="post", pool="cls", dense=True),
    "pre-norm cls all": encoder_spec(**SIZE, norm="pre", pool="cls", targets=ALL),
    "causal k": encoder_spec(**SIZE, norm="pre", pool="mean", causal=True, targets=("k",)),
    "biased": encoder_spec(**{**SIZE, "lora": BIASED}, pool="cls", targets=ALL),
    "roberta": roberta_spec(**TEXT),
    "vit": vit_spec(image=(1, 4, 4), patch=(2, 2), **SIZE),
    "deit": vit_spec(image=(1, 4, 4), patch=(2, 2), tokens=2, **SIZE),
}


def model_of(spec, rng, dtype="float64", trainable=()):
    weights = {
        k: (rng.standard_normal(s) * 0.5).astype(dtype) for k, s in param_shapes(spec).items()
    }
    for key in weights:
        if key.endswith(".g"):
            weights[key] += 1
    return Model(spec=spec, weights=weights, trainable=trainable)


def inputs(model, rng, batch):
    first = model.spec[0]
    if first["kind"] == "embedding":
        ids = rng.integers(2, 11, (batch, 5))
        ids[0, 3:] = 1
        return ids
    shape = (5,) if first["kind"] == "linear" else (5, 6)
    shape = (16,) if first["kind"] == "patchify" else shape
    return rng.standard_normal((batch, *shape)).astype(model.dtype)


def formed(H, n):
    """The columns at p = 1."""
    H.scale(np.ones(n))
    return H.full()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("batch", [1, 3])
def test_jacobian(name, batch, rng):
    """The same sums in another order: a few hundred terms deep, sizes near 1."""
    model = model_of(SPECS[name], rng)
    x = inputs(model, rng, batch)
    z, Z = jacobian(model, x)
    network = Network(model)
    got, now = network.forward(pack(model), x)
    C = z.shape[1]
    H = formed(network.backward(np.broadcast_to(np.eye(C), (batch, C, C)), now), model.n)
    tolerance = 1e3 * np.finfo(float).eps
    assert np.abs(got - z).max() <= tolerance * np.abs(z).max()
    assert np.abs(H - Z).max() <= tolerance * np.abs(Z).max()


def test_jacobian_with_a_trained_head(rng):
    spec = SPECS["vit"]
    factors = model_of(spec, rng).trainable
    model = model_of(spec, rng, trainable=(*factors, "head.out.W", "head.out.b", "1.f1.W"))
    x = inputs(model, rng, 2)
    _, Z = jacobian(model, x)
    network = Network(model)
    _, now = network.forward(pack(model), x)
    H = formed(network.backward(np.broadcast_to(np.eye(3), (2, 3, 3)), now), model.n)
    assert np.abs(H - Z).max() <= 1e3 * np.finfo(float).eps * np.abs(Z).max()


def follow(config, model, rng, batch, steps=4, rtol=1e-9):
    """Both routes over a few steps; each fast step starts from the readable state."""
    stepper = prepare(config)
    state = loko.init(config, batch)
    C = model.outputs
    for _ in range(steps):
        x = inputs(model, rng, batch)
        if config.observation == "gaussian":
            y = rng.standard_normal((batch, C)).astype(model.dtype)
        else:
            y = rng.integers(0, C, batch)
        data = Batch(x=x, y=y)
        expected, record = loko.step(state, data, config)
        got, fast = stepper.step(state, data)
        for name in ("theta", "p", "R"):
            a, b = getattr(expected, name), getattr(got, name)
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                assert np.abs(a - b).max() <= rtol * np.abs(a).max(), name
        assert np.abs(got.p / expected.p - 1).max() <= rtol
        assert abs(fast.loss - record.loss) <= rtol * max(1.0, record.loss)
        assert (got.p > 0).all()
        assert got.step == expected.step
        state = expected


@pytest.mark.parametrize("combination", combinations(), ids="-".join)
@pytest.mark.parametrize("diagonal", ["decoupled", "variational"])
def test_every_variant(combination, diagonal, rng):
    """Conditioning of S is below 1e3 here: 1e-9 leaves three digits; a wrong term exceeds it."""
    observation, noise, timing = combination
    model = model_of(SPECS["mlp relu"], rng)
    for batch in (1, 3):
        config = LokoConfig(
            model=model, observation=observation, noise=noise, timing=timing, diagonal=diagonal
        )
        follow(config, model, rng, batch)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("observation", ["glm", "softmax"])
def test_every_architecture(name, observation, rng):
    model = model_of(SPECS[name], rng)
    follow(LokoConfig(model=model, observation=observation), model, rng, 2)


def test_center_lam_q_and_wide_p(rng):
    model = model_of(SPECS["mlp relu"], rng)
    config = LokoConfig(model=model, observation="logits", center=True, lam=0.9, q=1e-3)
    follow(config, model, rng, 2)
    # leverages above one half: the entries that are sums of squares
    wide = LokoConfig(model=model, observation="softmax", p0=50.0, r0=0.01)
    for batch in (1, 2):
        follow(LokoConfig(model=model, p0=50.0), model, rng, batch, rtol=1e-7)
        follow(wide, model, rng, batch, rtol=1e-7)
    follow(wide, model, rng, 9, rtol=1e-7)


def test_large_batch_uses_the_triangular_product(rng):
    model = model_of(SPECS["mlp relu"], rng)
    follow(LokoConfig(model=model, observation="softmax"), model, rng, 24)
    follow(LokoConfig(model=model), model, rng, 24)


@pytest.mark.parametrize("p0", [0.05, 1e8, 1e12])
def test_saturated(rng, p0):
    """A logit margin of 40 on the wrong class: where contrasts lose digits.  [OBS-6]."""
    model = model_of(mlp_spec([5, 3], lora=LORA), rng)
    weights = dict(model.weights) | {"0.b": np.array([40.0, 0.0, 0.0])}
    model = Model(spec=model.spec, weights=weights)
    config = LokoConfig(model=model, p0=p0)
    state, data = loko.init(config), Batch(x=inputs(model, rng, 1), y=np.array([1]))
    expected, _ = loko.step(state, data, config)
    got, _ = prepare(config).step(state, data)
    moved = np.abs(expected.theta - state.theta).max()
    assert np.abs(got.theta - expected.theta).max() <= 1e-9 * moved
    assert np.abs(got.p / expected.p - 1).max() <= 1e-9


def test_float32(rng):
    model = model_of(SPECS["post-norm cls"], rng, "float32")
    follow(LokoConfig(model=model, observation="softmax"), model, rng, 2, rtol=1e-3)
    follow(LokoConfig(model=model), model, rng, 2, rtol=1e-3)


def test_inputs_are_left_alone(rng):
    model = model_of(SPECS["roberta"], rng)
    config = LokoConfig(model=model)
    stepper, state = prepare(config), loko.init(config, 2)
    for array in (state.theta, state.p, *model.weights.values()):
        array.flags.writeable = False
    x = inputs(model, rng, 2)
    x.flags.writeable = False
    first, _ = stepper.step(state, Batch(x=x, y=np.array([0, 1])))
    theta, p = first.theta.copy(), first.p.copy()
    stepper.step(first, Batch(x=x, y=np.array([2, 1])))
    assert (first.theta == theta).all()
    assert (first.p == p).all()


def test_what_only_the_readable_route_runs(rng):
    model = model_of(SPECS["mlp relu"], rng)
    with pytest.raises(InputError, match="dense"):
        prepare(LokoConfig(model=model, covariance="dense"))
    normed = model_of(SPECS["post-norm mean"], rng, trainable=("0.n1.g", "0.q.A"))
    with pytest.raises(InputError, match="readable route"):
        prepare(LokoConfig(model=normed))


def test_cotangents_in_runs(rng, monkeypatch):
    """The Jacobian does not depend on how many cotangents are pulled back together."""
    model = model_of(SPECS["vit"], rng)
    x = inputs(model, rng, 2)
    _, Z = jacobian(model, x)
    for chunk in (1, 1500, 3000):
        monkeypatch.setattr("loko_ref.fast.network.CHUNK", chunk)
        network = Network(model)
        _, now = network.forward(pack(model), x)
        H = formed(network.backward(np.broadcast_to(np.eye(3), (2, 3, 3)), now), model.n)
        assert np.abs(H - Z).max() <= 1e3 * np.finfo(float).eps * np.abs(Z).max()


@pytest.mark.parametrize("m", [1, 40, 64, 65, 130, 321])
def test_triangles_by_strips_and_halves(rng, m):
    from loko_ref.fast.filter import root_inverse

    Hs = rng.standard_normal((m, 301))
    G = columns.gram(Hs)
    assert np.array_equal(G, G.T)
    S = Hs @ Hs.T + 1e2 * np.eye(m)
    assert np.abs(G - (Hs @ Hs.T)).max() <= 1e-12 * np.abs(G).max()
    L = np.linalg.cholesky(S)
    T = root_inverse(S, "S")
    assert np.array_equal(T, np.tril(T))
    assert np.abs(T @ L - np.eye(m)).max() <= 1e-13
    expected = ((T @ Hs) ** 2).sum(axis=0)
    assert np.abs(columns.squares(T, Hs) - expected).max() <= 1e-13 * expected.max()


def columns_of(rng, batch, k, shapes, standing):
    """Blocks of the shapes (o, i), in turn with standing columns; and H as both say it is."""
    blocks, stand, parts, formed, at = [], [], [], [], 0
    for o, i in shapes:
        d, x = rng.standard_normal((batch, k, o)), rng.standard_normal((batch, i))
        blocks.append((slice(at, at + o * i), columns.Block(d=d, x=x)))
        parts.append(np.einsum("sco,si->scoi", d, x).reshape(batch * k, -1))
        at += o * i
        if standing:
            H = rng.standard_normal((batch * k, standing))
            stand.append(slice(at, at + standing))
            parts.append(H)
            formed.append(H)
            at += standing
    H = np.concatenate(parts, axis=1)
    if batch == 1 and not standing:
        return columns.OneSample([b for _, b in blocks], columns.Places(shapes)), H
    formed = np.concatenate(formed, axis=1) if formed else np.empty((batch * k, 0))
    return columns.Mixed(formed, stand, blocks, at), H


@pytest.mark.parametrize("standing", [0, 3])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shapes", [[(2, 5)], [(2, 5), (6, 4), (3, 7)]])
def test_products_are_never_formed_and_give_the_same(rng, batch, standing, shapes):
    k = 3
    found, H = columns_of(rng, batch, k, shapes, standing)
    m, n = H.shape
    T, v = np.tril(rng.standard_normal((m, m))), rng.standard_normal(m)
    N, r = rng.standard_normal((batch, k, k)), 0.5 + rng.random(n)

    def same():
        assert np.abs(found.full() - H).max() <= 1e-14 * np.abs(H).max()
        G = found.gram()
        assert np.array_equal(G, G.T)
        assert np.abs(G - H @ H.T).max() <= 1e-13 * np.abs(G).max()
        step = np.sqrt(p) * (H.T @ v)
        assert np.abs(found.pull(v) - step).max() <= 1e-13 * np.abs(step).max()
        a = ((T @ H) ** 2).sum(axis=0)
        assert np.abs(found.squares(T) - a).max() <= 1e-13 * a.max()

    p = np.ones(n)
    for ratio in (r, 1 / r + 1):  # twice: the diagonal after a step replaces the one before
        found.scale(ratio)
        H, p = H * np.sqrt(ratio), p * ratio
        same()
    found.whiten(N)
    H = (N @ H.reshape(batch, k, n)).reshape(m, n)
    same()


FAULTS = """
import resource
from loko_ref import fast
from loko_ref.fast import bench
config, state, batch = bench.problem("mlp_b32", "float64")
stepper = fast.prepare(config)
for _ in range(5):
    stepper.step(state, batch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    stepper.step(state, batch)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_takes_no_new_pages():
    """A page is 4 KB; H alone has 600 of them, and each step's temporaries 1,800."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) < 50
