"""Heads on transformers: the facts of LTE where there are norms, attention, tables, patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lte_common import (
    CLOSE,
    OPTIMIZERS,
    SPECS,
    batches,
    config,
    deltas,
    effective,
    lora_only,
    names,
    stack,
    start,
    together,
)

from loko_ref import loko, lte, optimizers
from loko_ref.arrays.special import log_softmax_forward, softmax_forward
from loko_ref.errors import InputError
from loko_ref.lte import heads as net
from loko_ref.lte import nested
from loko_ref.lte.state import heads_of
from loko_ref.network import model
from loko_ref.network.model import mlp_spec

LONGER = {"rtol": 1e-9, "atol": 1e-10}  # through softmaxes and norms, and several steps of Adam


def hot(c: lte.LteConfig, y: np.ndarray) -> np.ndarray:
    return np.eye(c.outputs)[y]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"realisation": "copies"},
        {"reset": "AB"},
    ],
    ids=lambda v: "-".join(v.values()) or "shared",
)
@pytest.mark.parametrize("make", [config, lora_only])
def test_the_looped_route_is_the_stacked_one(make, changes) -> None:
    c = make(**changes)
    assert not c.nested
    s, _ = lte.run(c, start(c), batches(c, 3))
    view = heads_of(c, s)
    x, _ = batches(c, 1, each=True, seed=4)[0]
    z, cache = net.forward(c, view, x)
    again, other = nested.forward(c, view, x)
    np.testing.assert_allclose(again, z, **CLOSE)
    dz = np.random.default_rng(1).standard_normal((4, *z.shape))
    for per_sample in (False, True):
        want = net.vjp(c, view, dz, cache, per_sample=per_sample)
        got = nested.vjp(c, view, dz, other, per_sample=per_sample)
        np.testing.assert_allclose(got, want, **CLOSE)


VARIANTS = [
    {},
    {"realisation": "copies", "reset": "B"},
    {"reset": "AB", "merging": "incremental"},
    {"realisation": "copies", "replicas": "frozen"},
    {"replicas": "frozen", "data": "replicated", "reduction": "own"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()) or "shared")
@pytest.mark.parametrize("name", SPECS)
def test_forward_and_gradient_are_those_of_each_head_alone(name, variant) -> None:
    c = stack(name, **variant)
    assert c.nested
    s, _ = lte.run(c, start(c), batches(c, 5))  # past two merges, and between two
    x, y = batches(c, 1, each=True, seed=9)[0]
    z, _, g = net.gradient(c, heads_of(c, s), x, hot(c, y))
    _, Z = net.jacobian(c, heads_of(c, s), x)
    share = 2 * (c.heads if c.reduction == "all" else 1)
    for row in range(c.heads):
        alone = effective(c, s, row)
        want, cache = model.forward(alone, x[row])
        np.testing.assert_allclose(z[row], want, **LONGER)
        dz = (softmax_forward(want)[0] - hot(c, y[row])) / share
        full = {k: v[0] for k, v in model.vjp(alone, dz[None], cache).items()}
        for site in c.layout.sites.values():
            got = c.layout.site(g[row], site.name)
            if not site.lora:
                for key, value in got.items():
                    np.testing.assert_allclose(value, full[f"{site.name}.{key}"], **LONGER)
                continue
            p = {k: v[row] for k, v in c.layout.site(s.theta, site.name).items()}
            G, scale = full[f"{site.name}.W"], site.scale
            np.testing.assert_allclose(got["A"], scale * p["B"].T @ G, **LONGER)
            want_B = scale * G @ p["A"].T
            if "bA" in p:
                gb = full[f"{site.name}.b"]
                want_B = want_B + scale * np.outer(gb, p["bA"])
                np.testing.assert_allclose(got["bA"], scale * p["B"].T @ gb, **LONGER)
                np.testing.assert_allclose(got["bB"], scale * gb, **LONGER)
            np.testing.assert_allclose(got["B"], want_B, **LONGER)
        np.testing.assert_allclose(Z[row].T @ dz.reshape(-1), g[row], **LONGER)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(
    ("mode", "scaling"), [("lte", "mean"), ("mhlora", "mean"), ("mhlora", "sum")]
)
@pytest.mark.parametrize("name", SPECS)
def test_a_gradient_by_complex_step(name, mode, scaling, loss) -> None:
    """Forward mode, without a difference: the imaginary part at theta + i h d is h g'd."""
    c = stack(name, mode=mode, scaling=scaling, loss=loss)
    s, _ = lte.run(c, start(c), batches(c, 3))
    x, y = batches(c, 1, each=mode == "lte", seed=9)[0]
    y = y if loss == "mse" else hot(c, y)
    view = heads_of(c, s)
    _, _, g = net.gradient(c, view, x, y)
    d = np.random.default_rng(2).standard_normal(g.shape)
    weight = np.ones_like(g)
    if mode == "mhlora":  # a replica is one for all heads, and every row carries its gradient
        for site in c.layout.sites.values():
            if not site.lora:
                for key in site.parts:
                    c.layout.take(d, f"{site.name}.{key}")[1:] = c.layout.take(
                        d, f"{site.name}.{key}"
                    )[0]
                    c.layout.take(weight, f"{site.name}.{key}")[1:] = 0
    h = 1e-30
    z, _ = net.forward(c, replace(view, theta=view.theta + 1j * h * d), x)
    value = ((z - y) ** 2).sum() / y.size
    if loss == "cross_entropy":
        value = -(y * log_softmax_forward(z)[0]).sum() / (y.size / c.outputs)
    slope = float(value.imag) / h
    assert abs(slope - (weight * g * d).sum()) < 1e-11 * max(1, abs(slope))
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("merging", ["telescoped", "incremental"])
@pytest.mark.parametrize("realisation", ["shared", "copies"])
def test_reset_less_merges_telescope_and_leave_every_head_at_W(realisation, merging) -> None:
    c = stack(r=1, heads=2, realisation=realisation, merging=merging)
    s0 = lte.init(c, batch=2)
    state, trace = lte.run(c, s0, batches(c, 8))
    merges = [e.state for e in trace.events if e.kind == "merge"]
    assert len(merges) == state.merges == 4
    x = np.random.default_rng(5).standard_normal((4, c.inputs))
    for s in merges:
        z_merged, _ = model.forward(lte.merged_model(c, s.weights), x)
        z, _ = net.forward(c, heads_of(c, s), np.stack([x] * 2))
        for row in range(2):
            np.testing.assert_allclose(z[row], z_merged, **LONGER)
        for name in names(c):
            W, W0 = s.weights[f"{name}.W"], s0.weights[f"{name}.W"]
            np.testing.assert_allclose(W, W0 + deltas(c, s, name).mean(axis=0), **CLOSE)
            sizes = np.linalg.svd(W - W0, compute_uv=False)
            assert sizes[2:].max() < 1e-13 < 1e-5 < sizes[1]  # heads r = 2


@pytest.mark.parametrize("reset", ["B", "AB"])
@pytest.mark.parametrize("realisation", ["shared", "copies"])
def test_resets_leave_every_head_at_W_and_go_beyond_the_rank(reset, realisation) -> None:
    c = stack(r=1, heads=2, reset=reset, realisation=realisation)
    s0 = lte.init(c, batch=2)
    state, trace = lte.run(c, s0, batches(c, 12))
    W = dict(s0.weights)
    for event in trace.events:
        s = event.state
        for name in names(c):
            key = f"{name}.W"
            if event.kind == "merge":  # each merge adds what this interval learned, once
                W[key] = W[key] + deltas(c, s, name).mean(axis=0)
                np.testing.assert_allclose(s.weights[key], W[key], **CLOSE)
            if event.kind == "reset":
                assert not c.layout.take(s.theta, f"{name}.B").any()
        if event.kind == "reset":
            for row in range(2):
                plain = effective(c, s, row)
                for key in c.frozen:
                    np.testing.assert_array_equal(plain.weights[key], s.weights[key])
    for name in names(c):
        sizes = np.linalg.svd(state.weights[f"{name}.W"] - s0.weights[f"{name}.W"])[1]
        assert (sizes > 1e-9 * sizes[0]).sum() > 2


@pytest.mark.parametrize(("reduction", "slower"), [("all", 1), ("own", 3)])
def test_merging_every_step_with_one_batch_for_all_is_mhlora(reduction, slower) -> None:
    """Of the factors: a replica's mean moves by 1/heads of what mhlora's one copy does."""
    each = stack(
        optimizer=optimizers.SGD(lr=0.1 / slower),
        merge_every=1,
        data="replicated",
        reduction=reduction,
        replicas="frozen",
        bias=False,
    )
    one = replace(
        each,
        mode="mhlora",
        data="chunks",
        reduction="all",
        optimizer=optimizers.SGD(lr=0.1),
    )
    begin = lte.init(each, batch=6)
    a, _ = lte.run(each, begin, batches(each, 6))
    b, _ = lte.run(one, lte.init(one, batch=6), batches(one, 6))
    np.testing.assert_allclose(a.theta, b.theta, **LONGER)
    assert np.abs(a.theta - begin.theta).max() > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adamw"])
def test_one_head_is_plain_lora_for_ever(optimizer) -> None:
    c = stack(heads=1, optimizer=OPTIMIZERS[optimizer], bias=False)
    s0 = start(c)
    own = {k: c.layout.take(s0.theta, k)[0] for k in c.layout.names}
    plain = model.Model(spec=c.spec, weights=s0.weights | own, trainable=c.layout.names)
    state = optimizers.init(model.pack(plain), c.optimizer)
    for x, y in batches(c, 9):
        now = model.unpack(plain, state.theta)
        z, cache = model.forward(now, x)
        dz = (softmax_forward(z)[0] - hot(c, y)) / x.shape[0]
        g = np.concatenate([v.reshape(-1) for v in model.vjp(now, dz[None], cache).values()])
        state = optimizers.step(state, g, c.optimizer)
    s, _ = lte.run(c, s0, batches(c, 9))
    np.testing.assert_allclose(s.theta[0], state.theta, **LONGER)


@pytest.mark.parametrize("observation", ["glm", "softmax", "logits"])
@pytest.mark.parametrize("mode", ["lte", "mhlora"])
def test_one_head_with_a_filter_is_plain_loko_for_ever(observation, mode) -> None:
    options = {"observation": observation, "p0": 0.01, "beta": 0.9}
    c = stack(heads=1, mode=mode, optimizer=lte.Loko(**options))
    s0 = start(c)
    own = {k: c.layout.take(s0.theta, k)[0] for k in c.layout.names}
    plain = model.Model(spec=c.spec, weights=s0.weights | own, trainable=c.layout.names)
    filters = loko.LokoConfig(model=plain, **options)
    data = [loko.Batch(x=x, y=y) for x, y in batches(c, 6)]
    want, _ = loko.run(loko.init(filters, batch=2), data, filters)
    s, _ = lte.run(c, s0, batches(c, 6))
    np.testing.assert_allclose(s.theta[0], want.theta, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(s.slots["p"][0], want.p, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "loko"])
@pytest.mark.parametrize("reset", ["none", "B", "AB"])
def test_shared_weight_and_copies_are_equal_realisations(optimizer, reset) -> None:
    # no branch biases: a key's is felt by rounding alone, which AdaGrad divides by itself
    c = stack(optimizer=OPTIMIZERS[optimizer], reset=reset, bias=False)
    a, _ = lte.run(c, start(c), batches(c, 5))
    d = replace(c, realisation="copies")
    b, _ = lte.run(d, start(d), batches(d, 5))
    np.testing.assert_allclose(a.theta, b.theta, rtol=1e-7, atol=1e-8)
    for name in c.frozen:
        np.testing.assert_allclose(a.weights[name], b.weights[name], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "loko"])
@pytest.mark.parametrize("name", SPECS)
def test_a_permutation_of_heads_with_their_chunks_changes_rounding_only(name, optimizer) -> None:
    c = stack(name, optimizer=OPTIMIZERS[optimizer])
    order = [2, 0, 1]
    s0, data = start(c), batches(c, 5, each=True)
    a, _ = lte.run(c, s0, data)
    moved = replace(s0, theta=s0.theta[order])
    b, _ = lte.run(c, moved, [(x[order], y[order]) for x, y in data])
    np.testing.assert_allclose(a.theta[order], b.theta, rtol=1e-8, atol=1e-9)
    for key in c.frozen:
        np.testing.assert_allclose(a.weights[key], b.weights[key], rtol=1e-8, atol=1e-9)


def test_replicas_are_merged_as_means_or_stay_as_they_began() -> None:
    c = stack("roberta")
    s0 = start(c)
    replicas = [k for k in c.layout.names if k.rsplit(".", 1)[1] not in ("A", "B", "bA", "bB")]
    assert replicas == [
        *("emb.token", "emb.position", "emb.norm.g", "emb.norm.b"),
        *("0.n1.g", "0.n1.b", "0.n2.g", "0.n2.b"),
    ]
    _, trace = lte.run(c, s0, batches(c, 4))
    last = s0
    for event in trace.events:
        s = event.state
        if event.kind == "merge":
            for name in replicas:
                mean = c.layout.take(last.theta, name).mean(axis=0)
                np.testing.assert_allclose(s.weights[name], mean, **CLOSE)
                for value in c.layout.take(s.theta, name):
                    np.testing.assert_array_equal(value, s.weights[name])
        last = s
    assert all(np.abs(last.weights[k] - s0.weights[k]).max() > 1e-3 for k in replicas)
    d = replace(c, replicas="frozen")
    assert d.layout.n == d.layout.factors == c.layout.factors < c.layout.n
    s, _ = lte.run(d, start(d), batches(d, 4))
    for name in replicas:
        np.testing.assert_array_equal(s.weights[name], s0.weights[name])


def test_frozen_replicas_of_a_perceptron_stay_too() -> None:
    c = config(replicas="frozen")
    assert c.nested
    s0 = start(c)
    s, _ = lte.run(c, s0, batches(c, 4))
    np.testing.assert_array_equal(s.weights["1.W"], s0.weights["1.W"])
    assert np.abs(s.weights["0.W"] - s0.weights["0.W"]).max() > 1e-3
    with pytest.raises(InputError, match="no layer with 'lora'"):
        lte.LteConfig(spec=mlp_spec([3, 2]), heads=1, replicas="frozen")


CASES = {
    "shared": {},
    "copies": {"realisation": "copies", "merging": "incremental"},
    "B": {"reset": "B", "replicas": "frozen"},
    "AB": {"reset": "AB", "realisation": "copies", "optimizer_state": "reset"},
    "mhlora": {"mode": "mhlora"},
}


def end(c: lte.LteConfig, steps: int, team=None, dtype: str = "float64"):
    more = {} if team is None else {"team": team}
    state, _ = lte.run(c, start(c, dtype=dtype, **more), batches(c, steps, dtype=dtype), **more)
    return lte.fingerprint(c, state, **more), state


@pytest.mark.sampled(0.3)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_split_gives_the_same_bits(case, optimizer) -> None:
    options = {"optimizer": OPTIMIZERS[optimizer], "heads": 4} | CASES[case]
    if case == "mhlora" and optimizer == "loko":
        options |= {"optimizer": lte.Loko(p0=0.005), "replicas": "frozen"}
    c = stack(**options)
    want, serial = end(c, 3)
    for size in (2, 3, 4):
        found = together(size, lambda team: end(c, 3, team))
        assert {digest for digest, _ in found} == {want}
        theta = np.concatenate([state.theta for _, state in found])
        np.testing.assert_array_equal(theta, serial.theta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["adamw", "loko"])
@pytest.mark.parametrize("mode", ["lte", "mhlora"])
def test_the_dtype_is_kept_throughout(dtype, optimizer, mode) -> None:
    c = stack(optimizer=OPTIMIZERS[optimizer], mode=mode, replicas="frozen")
    s, trace = lte.run(c, start(c, dtype=dtype), batches(c, 3, dtype=dtype))
    arrays = [s.theta, *s.weights.values(), *s.base.values(), *s.slots.values()]
    arrays += [e.record.loss for e in trace.events if e.record]
    assert {str(a.dtype) for a in arrays} == {dtype}


def test_inputs_come_in_every_form_that_the_first_layer_takes() -> None:
    c = stack()
    s = start(c)
    x, y = batches(c, 1)[0]
    flat, _ = lte.step(c, s, x, y)
    for form in (x.reshape(6, 1, 4, 4), x.reshape(3, 2, 16), x.reshape(3, 2, 1, 4, 4)):
        labels = y.reshape(form.shape[: 1 + (form.shape[0] == 3)])
        np.testing.assert_array_equal(lte.step(c, s, form, labels)[0].theta, flat.theta)
    for wrong in (x[:, :15], x[:0], x.reshape(6, 4, 4), x.astype("f"), x.reshape(2, 3, 16)):
        with pytest.raises(InputError, match=r"^(x|batch|weights)\b"):
            lte.step(c, s, wrong, y[: len(wrong)])
    t = stack("roberta")
    ids, labels = batches(t, 1)[0]
    with pytest.raises(InputError, match="whole numbers"):
        lte.step(t, start(t), ids.astype(float), labels)
    with pytest.raises(InputError, match=r"x \(ids\): got 11"):
        lte.step(t, start(t), ids + (11 - ids.max()), labels)


def test_tuples_become_lists_in_json() -> None:
    c = stack(replicas="frozen")
    spec = [{**layer} for layer in c.spec]
    spec[0]["patch"] = (2, 2)
    assert replace(c, spec=spec).as_json() == c.as_json()
