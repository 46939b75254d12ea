"""Exact facts of LTE, each by another route than the code's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lte_common import CLOSE, OPTIMIZERS, batches, config, deltas, effective, lora_only, start

from loko_ref import loko, lte, optimizers
from loko_ref.arrays.special import softmax_forward
from loko_ref.experiments.lte.diagnostics import effective_weights
from loko_ref.lte import heads as net
from loko_ref.lte.state import heads_of, without_lora
from loko_ref.network import model

VARIANTS = [
    {"realisation": realisation, "reset": reset, "merging": merging}
    for realisation in ("shared", "copies")
    for reset in ("none", "B", "AB")
    for merging in ("telescoped", "incremental")
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_forward_and_gradient_are_those_of_each_head_alone(variant, optimizer) -> None:
    c = config(optimizer=OPTIMIZERS[optimizer], **variant)
    s, _ = lte.run(c, start(c), batches(c, 5))  # 5 steps: past two merges, and between two
    (x, y) = batches(c, 1, each=True, seed=9)[0]
    z, _, g = net.gradient(c, heads_of(c, s), x, np.eye(c.outputs)[y])
    _, Z = net.jacobian(c, heads_of(c, s), x)
    for row in range(c.heads):
        alone = effective(c, s, row)
        want, cache = model.forward(alone, x[row])
        np.testing.assert_allclose(z[row], want, **CLOSE)
        hot = np.eye(c.outputs)[y[row]]
        dz = (softmax_forward(want)[0] - hot) / 2 / c.heads
        full = {k: v[0] for k, v in model.vjp(alone, dz[None], cache).items()}
        got = c.layout.site(g[row], "1")
        np.testing.assert_allclose(got["W"], full["1.W"], **CLOSE)
        np.testing.assert_allclose(got["b"], full["1.b"], **CLOSE)
        for name in ("0", "2"):
            got = c.layout.site(g[row], name)
            p = {k: v[row] for k, v in c.layout.site(s.theta, name).items()}
            G, gb, scale = full[f"{name}.W"], full[f"{name}.b"], c.layout.sites[name].scale
            np.testing.assert_allclose(got["A"], scale * p["B"].T @ G, **CLOSE)
            np.testing.assert_allclose(
                got["B"], scale * (G @ p["A"].T + np.outer(gb, p["bA"])), **CLOSE
            )
            np.testing.assert_allclose(got["bA"], scale * p["B"].T @ gb, **CLOSE)
            np.testing.assert_allclose(got["bB"], scale * gb, **CLOSE)
        np.testing.assert_allclose(Z[row].T @ dz.reshape(-1), g[row], **CLOSE)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("reduction", ["all", "own"])
def test_loss_cotangent_by_central_difference(loss, reduction) -> None:
    c = config(loss=loss, reduction=reduction)
    rng = np.random.default_rng(3)
    z, y = rng.standard_normal((2, 3, 5, 4))
    if loss == "cross_entropy":
        y = np.eye(4)[rng.integers(0, 4, (3, 5))]
    _, dz = net.losses(c, z, y)
    h = 1e-6
    for at in np.ndindex(z.shape):
        e = np.zeros_like(z)
        e[at] = h
        up, down = (net.losses(c, z + sign * e, y)[0] for sign in (1, -1))
        slope = (up - down).sum() / (2 * h) / (c.heads if reduction == "all" else 1)
        # truncation h^2 |f'''| / 6 < 1e-12, rounding u |f| / h < 1e-9
        assert abs(slope - dz[at]) < 1e-8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("realisation", ["shared", "copies"])
@pytest.mark.parametrize("merging", ["telescoped", "incremental"])
def test_reset_less_merges_telescope_and_leave_every_head_at_W(optimizer, realisation, merging):
    c = lora_only(optimizer=OPTIMIZERS[optimizer], realisation=realisation, merging=merging)
    s0 = lte.init(c, batch=2)
    state, trace = lte.run(c, s0, batches(c, 8))
    merges = [e.state for e in trace.events if e.kind == "merge"]
    assert len(merges) == state.merges == 4
    x = np.random.default_rng(5).standard_normal((4, c.inputs))
    for s in merges:
        z_merged, _ = model.forward(lte.merged_model(c, s.weights), x)
        z, _ = net.forward(c, heads_of(c, s), np.stack([x] * 3))
        for row in range(3):
            np.testing.assert_allclose(z[row], z_merged, **CLOSE)
        for name in ("0", "1"):
            W, W0 = s.weights[f"{name}.W"], s0.weights[f"{name}.W"]
            np.testing.assert_allclose(W, W0 + deltas(c, s, name).mean(axis=0), **CLOSE)
            sizes = np.linalg.svd(W - W0, compute_uv=False)
            assert sizes[6:].max() < 1e-13 < 1e-4 < sizes[5]  # heads r = 6 of 12 and 13


@pytest.mark.parametrize("reset", ["B", "AB"])
@pytest.mark.parametrize("realisation", ["shared", "copies"])
@pytest.mark.parametrize("merging", ["telescoped", "incremental"])
def test_resets_leave_every_head_at_W_and_go_beyond_the_rank(reset, realisation, merging):
    c = lora_only(reset=reset, realisation=realisation, merging=merging)
    s0 = lte.init(c, batch=2)
    W = s0.weights["0.W"]
    state, trace = lte.run(c, s0, batches(c, 8))
    before = s0
    for event in trace.events:
        s = event.state
        if event.kind == "merge":  # each merge adds what this interval learned, once
            W = W + deltas(c, s, "0").mean(axis=0)
            np.testing.assert_allclose(s.weights["0.W"], W, **CLOSE)
        if event.kind == "reset":
            p = c.layout.site(s.theta, "0")
            assert not p["B"].any()
            same = np.array_equal(p["A"], c.layout.site(before.theta, "0")["A"])
            assert same == (reset == "B")
            view = heads_of(c, s)
            assert view.merged is None
            for row in range(3):
                plain = effective(c, s, row)
                np.testing.assert_array_equal(plain.weights["0.W"], s.weights["0.W"])
        before = s
    sizes = np.linalg.svd(state.weights["0.W"] - s0.weights["0.W"], compute_uv=False)
    # B alone: the A stay put but for what the optimizer moves; redrawn: 4 merges of rank 6
    assert (sizes > 1e-9 * sizes[0]).sum() > 6


def test_the_faulty_reset_takes_the_last_merge_out_again() -> None:
    """The known mistake: A', B' outlive the reset, so heads see W - delta'."""
    c = lora_only(reset="B", merging="incremental")
    s, _ = lte.run(replace(c, reset="none"), lte.init(c, batch=2), batches(c, 2))
    right = lte.reset(c, s)
    faulty = replace(right, merged=s.merged)
    seen = effective(c, faulty, 1).weights["0.W"]
    np.testing.assert_allclose(seen, s.weights["0.W"] - deltas(c, s, "0")[1], **CLOSE)
    again = lte.merge(c, faulty)
    np.testing.assert_allclose(again.weights["0.W"], s.base["0.W"], **CLOSE)  # merge 1 is gone
    np.testing.assert_array_equal(lte.merge(c, right).weights["0.W"], s.weights["0.W"])


@pytest.mark.parametrize(("reduction", "slower"), [("all", 1), ("own", 3)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_merging_every_step_with_one_batch_for_all_is_mhlora(reduction, slower, momentum) -> None:
    each = lora_only(
        optimizer=optimizers.SGD(lr=0.1 / slower, momentum=momentum),
        merge_every=1,
        data="replicated",
        reduction=reduction,
    )
    one = replace(
        each,
        mode="mhlora",
        data="chunks",
        reduction="all",
        optimizer=optimizers.SGD(lr=0.1, momentum=momentum),
    )
    begin = lte.init(each, batch=6)  # B = 0: with other factors nothing is merged yet at step 1
    a, _ = lte.run(each, begin, batches(each, 6))
    b, _ = lte.run(one, lte.init(one, batch=6), batches(one, 6))
    np.testing.assert_allclose(a.theta, b.theta, **CLOSE)
    assert np.abs(a.theta - begin.theta).max() > 1e-3


@pytest.mark.parametrize("scaling", ["mean", "sum"])
def test_the_weights_that_mhlora_stands_for_give_its_outputs(scaling) -> None:
    c = replace(config(mode="mhlora"), scaling=scaling)
    s = start(c)
    s = replace(s, theta=s.theta + 0.1)  # B is 0 at the start
    x, y = batches(c, 1)[0]
    z, _, _ = net.gradient(c, heads_of(c, s), x, np.eye(4)[y])
    one = model.Model(spec=without_lora(c), weights=effective_weights(c, s))
    np.testing.assert_allclose(model.forward(one, x)[0], z, **CLOSE)


@pytest.mark.parametrize("scaling", ["mean", "sum"])
def test_mhlora_is_the_sum_of_the_heads_branches(scaling) -> None:
    c = replace(config(mode="mhlora"), scaling=scaling)
    s = start(c)
    x, y = batches(c, 1)[0]
    view = heads_of(c, s)
    z, loss, g = net.gradient(c, view, x, np.eye(4)[y])
    share = 1 / 3 if scaling == "mean" else 1.0

    def plain(theta: np.ndarray) -> np.ndarray:
        h = x
        for layer in c.spec:
            if layer["kind"] == "tanh":
                h = np.tanh(h)
                continue
            site = c.layout.sites[layer["name"]]
            p = c.layout.site(theta, site.name)
            if not site.lora:
                h = h @ p["W"][0].T + p["b"][0]
                continue
            y_ = h @ s.weights[f"{site.name}.W"].T + s.weights[f"{site.name}.b"]
            for k in range(3):
                u = h @ p["A"][k].T + p["bA"][k]
                y_ = y_ + share * site.scale * (u @ p["B"][k].T + p["bB"][k])
            h = y_
        return h

    np.testing.assert_allclose(z, plain(s.theta), **CLOSE)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(s.theta.shape)
    replica = c.layout.take(direction, "1.W"), c.layout.take(direction, "1.b")
    for r in replica:
        r[1:] = r[0]  # one layer for all heads

    def value(t: float) -> float:
        q = plain(s.theta + t * direction)
        q = q - np.log(np.exp(q).sum(axis=1, keepdims=True))
        return float(-(q * np.eye(4)[y]).sum() / 6)

    weight = np.ones_like(g)
    for name in ("1.W", "1.b"):
        c.layout.take(weight, name)[1:] = 0  # each head's row carries the shared layer's gradient
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert abs(slope - (weight * g * direction).sum()) < 1e-8 * max(1, abs(slope))
    np.testing.assert_allclose(loss, [value(0.0)], **CLOSE)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adamw"])
def test_one_head_is_plain_lora_for_ever(optimizer) -> None:
    c = lora_only(heads=1, optimizer=OPTIMIZERS[optimizer])
    s0 = start(c)
    plain = model.Model(
        spec=c.spec,
        weights={**s0.weights, **{k: c.layout.take(s0.theta, k)[0] for k in c.layout.names}},
    )
    state = optimizers.init(model.pack(plain), c.optimizer)
    for x, y in batches(c, 9):
        now = model.unpack(plain, state.theta)
        z, cache = model.forward(now, x)
        dz = (softmax_forward(z)[0] - np.eye(c.outputs)[y]) / x.shape[0]
        g = np.concatenate([v.reshape(-1) for v in model.vjp(now, dz[None], cache).values()])
        state = optimizers.step(state, g, c.optimizer)
    s, _ = lte.run(c, s0, batches(c, 9))
    np.testing.assert_allclose(s.theta[0], state.theta, **CLOSE)


@pytest.mark.parametrize("observation", ["glm", "softmax", "logits"])
@pytest.mark.parametrize("mode", ["lte", "mhlora"])
def test_one_head_with_a_filter_is_plain_loko_for_ever(observation, mode) -> None:
    options = {"observation": observation, "p0": 0.02, "beta": 0.9}
    c = lora_only(heads=1, mode=mode, optimizer=lte.Loko(**options))
    s0 = start(c)
    plain = model.Model(
        spec=c.spec,
        weights={**s0.weights, **{k: c.layout.take(s0.theta, k)[0] for k in c.layout.names}},
    )
    filters = loko.LokoConfig(model=plain, **options)
    data = [loko.Batch(x=x, y=y) for x, y in batches(c, 9)]
    want, _ = loko.run(loko.init(filters, batch=2), data, filters)
    s, _ = lte.run(c, s0, batches(c, 9))
    np.testing.assert_allclose(s.theta[0], want.theta, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(s.slots["p"][0], want.p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("reset", ["none", "B", "AB"])
def test_shared_weight_and_copies_are_equal_realisations(optimizer, reset) -> None:
    c = config(optimizer=OPTIMIZERS[optimizer], reset=reset)
    a, _ = lte.run(c, start(c), batches(c, 7))
    d = replace(c, realisation="copies")
    b, _ = lte.run(d, start(d), batches(d, 7))
    np.testing.assert_allclose(a.theta, b.theta, rtol=1e-9, atol=1e-10)
    for name in c.frozen:
        np.testing.assert_allclose(a.weights[name], b.weights[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("reset", ["none", "B"])
def test_a_permutation_of_heads_with_their_chunks_changes_rounding_only(optimizer, reset) -> None:
    c = config(optimizer=OPTIMIZERS[optimizer], reset=reset)
    order = [2, 0, 1]
    s0, data = start(c), batches(c, 6, each=True)
    a, _ = lte.run(c, s0, data)
    moved = replace(s0, theta=s0.theta[order])
    b, _ = lte.run(c, moved, [(x[order], y[order]) for x, y in data])
    np.testing.assert_allclose(a.theta[order], b.theta, rtol=1e-9, atol=1e-10)
    for name in c.frozen:
        np.testing.assert_allclose(a.weights[name], b.weights[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("reset", ["none", "B"])
def test_replicas_and_branch_biases_are_merged_as_means(reset) -> None:
    c = config(reset=reset)
    s0 = start(c)
    _, trace = lte.run(c, s0, batches(c, 4))
    b = s0.weights["0.b"]
    last = s0
    for event in trace.events:
        s = event.state
        if event.kind == "merge":
            W = np.stack([c.layout.take(last.theta[k], "1.W") for k in range(3)])
            np.testing.assert_allclose(s.weights["1.W"], W.mean(axis=0), **CLOSE)
            for k in range(3):
                np.testing.assert_array_equal(c.layout.take(s.theta[k], "1.W"), s.weights["1.W"])
            p, scale = c.layout.site(s.theta, "0"), c.layout.sites["0"].scale
            shift = np.mean([scale * (p["B"][k] @ p["bA"][k] + p["bB"][k]) for k in range(3)], 0)
            base = b if reset == "B" else s0.weights["0.b"]
            np.testing.assert_allclose(s.weights["0.b"], base + shift, **CLOSE)
            b = s.weights["0.b"]
        last = s
    assert np.abs(c.layout.take(last.theta[0], "1.W") - s0.weights["1.W"]).max() > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_is_kept_or_reset_by_name(optimizer) -> None:
    c = config(optimizer=OPTIMIZERS[optimizer], reset="AB", merge_every=3)
    kept, trace = lte.run(c, start(c), batches(c, 3))
    before = trace.events[2].state
    for name, value in kept.slots.items():
        np.testing.assert_array_equal(value, before.slots[name])
    assert kept.optimizer_step == 3
    d = replace(c, optimizer_state="reset")
    fresh, _ = lte.run(d, start(d), batches(d, 3))
    assert fresh.optimizer_step == 0
    for value in fresh.slots.values():
        assert (value == (0.02 if optimizer == "loko" else 0)).all()


def test_a_merge_may_shrink_a_filters_variance_or_give_redrawn_entries_the_prior() -> None:
    base = config(optimizer=OPTIMIZERS["loko"], reset="B", merge_every=3)
    _, trace = lte.run(base, start(base), batches(base, 3))
    p = trace.events[2].state.slots["p"]
    shrunk, _ = lte.run(replace(base, filter_merge="shrink"), start(base), batches(base, 3))
    np.testing.assert_array_equal(shrunk.slots["p"], p / 3)
    prior, _ = lte.run(replace(base, filter_merge="prior"), start(base), batches(base, 3))
    for name in base.layout.names:
        want = base.layout.take(p, name)
        got = base.layout.take(prior.slots["p"], name)
        if name in ("0.B", "0.bB", "2.B", "2.bB"):
            assert (got == 0.02).all()
            assert not (want == 0.02).any()
        else:
            np.testing.assert_array_equal(got, want)


def test_reduction_is_felt_by_sgd_alone() -> None:
    for optimizer, same in (("sgd", False), ("adamw", True)):
        ends = []
        for reduction in ("all", "own"):
            c = lora_only(optimizer=OPTIMIZERS[optimizer], reduction=reduction)
            ends.append(lte.run(c, start(c), batches(c, 4))[0].theta)
        # Adam divides the factor out, but for eps = 1e-8 beside gradients of about 1e-3
        assert (np.abs(ends[0] - ends[1]).max() < 1e-4) == same


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"realisation": "copies", "reset": "AB"}, {"mode": "mhlora"}],
    ids=["shared", "copies", "mhlora"],
)
def test_the_dtype_is_kept_throughout(dtype, optimizer, changes) -> None:
    c = lora_only(optimizer=OPTIMIZERS[optimizer], **changes)
    s, trace = lte.run(c, start(c, dtype=dtype), batches(c, 4, dtype=dtype))
    arrays = [
        s.theta,
        *s.weights.values(),
        *s.base.values(),
        *s.slots.values(),
        *s.copies.values(),
        *(e.record.loss for e in trace.events if e.record),
    ]
    assert {str(a.dtype) for a in arrays} == {dtype}
