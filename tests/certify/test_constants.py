"""No rounded constant enters an exact evaluation: each formula against one written out in arb.

A float64 constant in place of an enclosed one would be off by some 1e-17; 1e-60 is asked.  [BALL-2]
"""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

from flint import arb

from loko_ref import optimizers
from loko_ref.arrays import balls, one_minus_power
from loko_ref.kalman import noise, simplex, time
from loko_ref.lte import heads, nested
from loko_ref.lte.config import LteConfig
from loko_ref.lte.heads import Heads
from loko_ref.lte.merging import merge, merge_weights
from loko_ref.lte.state import init
from loko_ref.network import lora
from loko_ref.network.layers import attention
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.model import Model, forward, mlp_spec


@pytest.fixture(autouse=True)
def _bits():
    with balls.precision(256):
        yield


def same(got, expected):
    got = np.asarray(got, dtype=object).reshape(-1).tolist()
    expected = np.asarray(expected, dtype=object).reshape(-1).tolist()
    for x, y in zip(got, expected, strict=True):
        assert float((x - y).abs_upper()) < 1e-60, (x, y)


def one(value):
    return balls.balls(np.array([value]))


def test_gelu():
    x = arb(0.7)
    forward, vjp = ACTIVATIONS["gelu"]
    y, cache = forward(one(0.7))
    Phi = (1 + (x / arb(2).sqrt()).erf()) / 2
    same(y, [x * Phi])
    phi = (-x * x / 2).exp() / (2 * arb.pi()).sqrt()
    same(vjp(one(1.0)[None], cache), [Phi + x * phi])


def test_softmax_is_free_of_its_shift():
    z = [arb(0.3), arb(-1.7), arb(2.1)]
    total = z[0].exp() + z[1].exp() + z[2].exp()
    x = balls.balls(np.array([[0.3, -1.7, 2.1]]))
    same(ACTIVATIONS["softmax"][0](x)[0], [v.exp() / total for v in z])
    same(ACTIVATIONS["log_softmax"][0](x)[0], [v - total.log() for v in z])


def test_beta_is_the_float_that_it_is():
    R = balls.balls(np.array([[2.0]]))
    new = noise.update("ema_innovation", R, one(3.0), R, 0.1)
    same(new, [arb(0.1) * 2 + (1 - arb(0.1)) * 9])


def test_forgetting_divides_exactly():
    same(time.update(one(2.0), 0.3, 0.1), [arb(2) / arb(0.3) + arb(0.1)])


def test_scale_is_a_quotient():
    A, B = balls.balls(np.ones((3, 4))), balls.balls(np.ones((4, 3)))
    same(lora.delta(A, B, 0.1)[0, 0], arb(0.1) / 3 * 3)
    spec = mlp_spec([4, 4], lora={"r": 3, "alpha": 0.1})
    weights = {"0.W": balls.balls(np.zeros((4, 4))), "0.b": balls.balls(np.zeros(4))}
    model = Model(spec=spec, weights={**weights, "0.A": A, "0.B": B})
    z, _ = forward(model, balls.balls(np.eye(1, 4)))
    same(z[0, 0], arb(0.1) / 3 * 3)


def test_lte_merge_divides_by_the_heads():
    spec = mlp_spec([2, 2], lora={"r": 1, "alpha": 1.0})
    config = LteConfig(spec=spec, heads=3)
    ones = {"A": balls.balls(np.ones((3, 1, 2))), "B": balls.balls(np.ones((3, 2, 1)))}
    ones["A"][1:] = balls.balls(np.zeros((2, 1, 2)))
    site = config.layout.sites["0"]
    W, _ = merge_weights(config, site, balls.balls(np.zeros((2, 2))), None, ones, None)
    same(W[0, 0], arb(1) / 3)


def test_lte_merge_and_copies_take_the_scale_as_a_quotient():
    config = LteConfig(
        spec=mlp_spec([4, 4], lora={"r": 3, "alpha": 0.1, "bias": True}),
        heads=1,
        realisation="copies",
    )
    state = init(config)
    theta, zeros = balls.balls(np.ones((1, config.layout.n))), balls.balls(np.zeros((4, 4)))
    weights = {"0.W": zeros, "0.b": zeros[0]}
    copies = {k: v[None] for k, v in weights.items()}
    state = replace(state, theta=theta, weights=weights, base=weights, copies=copies, slots={})
    after = merge(config, state)
    scale = arb(0.1) / 3
    same(after.weights["0.W"][0, 0], scale * 3)
    same(after.weights["0.b"][0], scale * 4)  # B bA + bB
    same(after.copies["0.W"][0, 0, 0], scale * 3 - scale * 3)
    same(after.copies["0.b"][0, 0], scale * 4 - scale * 4)


@pytest.mark.parametrize("mode", ["lte", "mhlora"])
def test_lte_scale_is_a_quotient(mode):
    spec = mlp_spec([4, 4], lora={"r": 3, "alpha": 0.1})
    config = LteConfig(spec=spec, heads=1, mode=mode)
    weights = {"0.W": balls.balls(np.zeros((4, 4))), "0.b": balls.balls(np.zeros(4))}
    view = Heads(theta=balls.balls(np.ones((1, 24))), merged=None, weights=weights)
    x = balls.balls(np.eye(1, 4))
    scale = arb(0.1) / 3
    for route in (heads, nested):
        z, cache = route.forward(config, view, x if mode == "mhlora" else x[None])
        same(z.reshape(-1)[0], scale * 3)
        g = route.vjp(config, view, balls.balls(np.ones((1, *z.shape))), cache)
        same(g.reshape(-1)[0], scale * 4)  # of A's first entry, B' dy x'
    config = optimizers.AdamW(lr=0.1, beta1=0.3, beta2=0.7, eps=1e-8, weight_decay=0.1)
    state = optimizers.init(one(1.0), config)
    for _ in range(2):
        state = optimizers.step(state, one(0.5), config)
    theta, m, v = arb(1), arb(0), arb(0)
    g, b1, b2, lr, eps, decay = (arb(x) for x in (0.5, 0.3, 0.7, 0.1, 1e-8, 0.1))
    for t in (1, 2):
        theta = theta * (1 - lr * decay)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        root = (v / (1 - b2**t)).sqrt()
        theta = theta - lr * (m / (1 - b1**t)) / (root + eps)
    same(state.theta, [theta])
    same([one_minus_power(0.3, 2, one(0.0))], [1 - b1 * b1])


def test_sgd_and_adagrad():
    g, lr = arb(0.5), arb(0.1)
    sgd = optimizers.SGD(lr=0.1, momentum=0.3, dampening=0.3)
    state = optimizers.init(one(1.0), sgd)
    for _ in range(2):
        state = optimizers.step(state, one(0.5), sgd)
    second = arb(0.3) * g + (1 - arb(0.3)) * g
    same(state.theta, [1 - lr * g - lr * second])
    adagrad = optimizers.AdaGrad(lr=0.1, lr_decay=0.3, eps=1e-10)
    state = optimizers.init(one(1.0), adagrad)
    for _ in range(2):
        state = optimizers.step(state, one(0.5), adagrad)
    step = [lr / (1 + t * arb(0.3)) * g / ((t + 1) * g * g).sqrt() for t in range(2)]
    exact = 1 - sum(
        (
            s * ((t + 1) * g * g).sqrt() / (((t + 1) * g * g).sqrt() + arb(1e-10))
            for t, s in enumerate(step)
        ),
        arb(0),
    )
    same(state.theta, [exact])


def test_contrasts_of_three_classes():
    """Schur complement of R = diag(1, 2, 4) on the simplex, by the covariance given 1'y = 0."""
    R = balls.balls(np.diag([1.0, 2.0, 4.0]))
    reduced = simplex.condition_on_simplex(R, 3)
    d = [arb(1), arb(2), arb(4)]
    expected = [[(d[i] if i == j else 0) - d[i] * d[j] / 7 for j in range(3)] for i in range(3)]
    same(reduced, np.array(expected, dtype=object))


def test_attention_scale():
    q = balls.balls(np.array([[[1.0, 2.0, 3.0]]]))
    k = balls.balls(np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]))
    y, _ = attention.forward(q, k, k, 1)
    w = [(arb(s) / arb(3).sqrt()).exp() for s in (1, 2)]
    same(y[0, 0, :2], [w[0] / (w[0] + w[1]), w[1] / (w[0] + w[1])])
