"""The network and LTE on balls: norm, attention, tables, pooling, LTE's heads and merge."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

import importlib.util
from pathlib import Path

from loko_ref import lte
from loko_ref.arrays import balls
from loko_ref.lte.heads import Heads, gradient, jacobian
from loko_ref.lte.merging import merge
from loko_ref.lte.state import heads_of
from loko_ref.network.architectures import encoder_spec
from loko_ref.network.layers import attention, embedding, norm, patchify, pool, prepend
from loko_ref.network.model import mlp_spec

_spec = importlib.util.spec_from_file_location(
    "test_backend_shared", Path(__file__).with_name("test_backend.py")
)
_backend = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_backend)
agree = _backend.agree


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_layer_norm(rng, eps):
    def both(x, g, b, dy):
        y, cache = norm.forward(x, g, b, eps=eps)
        dx, found = norm.vjp(dy, cache, ("g", "b"), per_sample=True)
        return {"y": y, "dx": dx, **found}

    inputs = {"x": rng.standard_normal((2, 3, 5)), "dy": rng.standard_normal((2, 2, 3, 5))}
    agree(both, inputs | {"g": rng.standard_normal(5), "b": rng.standard_normal(5)})


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_layer_norm_keeps_the_digits_of_the_variance(rng, offset):
    """Inputs are exact, so the offset costs nothing: some d u of the result, at any offset."""
    x = offset + rng.standard_normal((4, 16))
    y = norm.forward(x, eps=0.0)[0]
    with balls.precision(256):
        exact = balls.to_host(norm.forward(balls.balls(x), eps=0.0)[0])
    assert np.abs(y - exact).max() <= 16 * 2.0**-53 * np.abs(exact).max()
    one_pass = np.sqrt((x * x).mean(axis=1) - x.mean(axis=1) ** 2 + 0j).real
    if offset == 1e6:
        assert np.abs(one_pass / x.std(axis=1) - 1).max() > 1e-6  # the wrong way


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(rng, causal, masked):
    mask = np.array([[True, True, False], [False, False, False]]) if masked else None

    def both(q, k, v, dy):
        y, cache = attention.forward(q, k, v, 2, mask=mask, causal=causal)
        dq, dk, dv = attention.vjp(dy, cache)
        return {"y": y, "dq": dq, "dk": dk, "dv": dv}

    inputs = {name: rng.standard_normal((2, 3, 4)) for name in "qkv"}
    agree(both, inputs | {"dy": rng.standard_normal((2, 2, 3, 4))})


def test_embedding_and_pooling(rng):
    index = np.array([[0, 2, 2], [1, 0, 3]])
    mask = np.array([[True, True, False], [True, True, True]])

    def both(table, dy, image, token):
        y, cache = embedding.lookup_forward(table, index)
        z = prepend.forward(y, token)
        out = {"y": y, "z": z, "dtable": embedding.lookup_vjp(dy, cache)}
        for how in ("cls", "mean"):
            out[how] = pool.forward(y, how, mask)
            out["d" + how] = pool.vjp(dy[:, :, 0], how, 3, mask)
        return out | {"patches": patchify.forward(image, (2, 2))}

    agree(
        both,
        {
            "table": rng.standard_normal((4, 5)),
            "dy": rng.standard_normal((2, 2, 3, 5)),
            "image": rng.standard_normal((2, 3, 4, 4)),
            "token": rng.standard_normal((1, 5)),
        },
    )


def team(rng, **changes):
    spec = mlp_spec([5, 4, 4, 3], "tanh", {"r": 2, "alpha": 3.0, "bias": True})
    del spec[2]["lora"]
    config = lte.LteConfig(**({"spec": spec, "heads": 3, "merge_every": 2} | changes))
    state = lte.init(config, batch=2)
    moved = state.theta + 0.3 * rng.standard_normal(state.theta.shape)
    return config, dataclasses.replace(state, theta=moved)


@pytest.mark.parametrize(
    "changes",
    [{}, {"realisation": "copies"}, {"mode": "mhlora"}, {"loss": "mse", "reduction": "own"}],
    ids=str,
)
def test_lte_forward_gradient_and_jacobian(rng, changes):
    config, state = team(rng, **changes)
    heads = heads_of(config, state)
    lead = (6,) if config.mode == "mhlora" else (3, 2)

    def run(x, y, theta, weights, merged=None):
        now = Heads(theta=theta, merged=merged, weights=weights)
        z, loss, g = gradient(config, now, x, y)
        return {"z": z, "loss": loss, "g": g, "Z": jacobian(config, now, x)[1]}

    inputs = {"x": rng.standard_normal((*lead, 5)), "y": np.eye(3)[rng.integers(0, 3, lead)]}
    inputs |= {"theta": heads.theta, "weights": dict(heads.weights)}
    if heads.merged is not None:
        inputs["merged"] = heads.merged + 0.1 * rng.standard_normal(heads.merged.shape)
    agree(run, inputs)


@pytest.mark.parametrize("mode", ["lte", "mhlora"])
def test_lte_on_a_transformer(rng, mode):
    spec = encoder_spec(layers=1, width=4, heads=2, ff=3, outputs=2, lora={"r": 1, "alpha": 0.3})
    config = lte.LteConfig(spec=spec, heads=3, mode=mode)
    theta = 0.3 * rng.standard_normal((3, config.layout.n))
    lead = (2,) if mode == "mhlora" else (3, 2)

    def run(x, y, theta, weights, merged=None):
        now = Heads(theta=theta, merged=merged, weights=weights)
        z, loss, g = gradient(config, now, x, y)
        return {"z": z, "loss": loss, "g": g}

    inputs = {"x": rng.standard_normal((*lead, 3, 4)), "y": np.eye(2)[rng.integers(0, 2, lead)]}
    inputs |= {"theta": theta, "weights": dict(lte.init(config).weights)}
    agree(run, inputs | ({"merged": theta + 0.1} if mode == "lte" else {}))


@pytest.mark.parametrize("merging", ["telescoped", "incremental"])
@pytest.mark.parametrize("realisation", ["shared", "copies"])
def test_lte_merge(rng, merging, realisation):
    config, state = team(rng, merging=merging, realisation=realisation)

    def run(theta, merged, weights, base, copies):
        before = dataclasses.replace(
            state, theta=theta, merged=merged, weights=weights, base=base, copies=copies
        )
        after = merge(config, before)
        return {
            "theta": after.theta,
            **after.weights,
            **{"c" + k: v for k, v in after.copies.items()},
        }

    inputs = {"theta": state.theta, "weights": dict(state.weights), "base": dict(state.base)}
    merged = np.zeros_like(state.theta) if state.merged is None else state.merged
    agree(run, inputs | {"merged": merged + 0.1, "copies": dict(state.copies)})
