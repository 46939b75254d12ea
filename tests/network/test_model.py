"""The stack as data: spec, weights, packing [LORA-4], forward, merging."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs
from support import close, eps, norm, readonly

from loko_ref import strategies as st
from loko_ref.errors import InputError
from loko_ref.network import lora, model
from loko_ref.network.model import (
    Model,
    add_lora,
    init_model,
    merge_lora,
    mlp_spec,
    pack,
    sites,
    unpack,
)


@given(st.models())
def test_pack_and_unpack_undo_each_other(net):
    theta = pack(net)
    assert theta.shape == (net.n,)
    assert theta.dtype == net.dtype
    again = unpack(net, theta)
    for name, value in net.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)
    shifted = readonly(theta + np.arange(net.n, dtype=theta.dtype))
    np.testing.assert_array_equal(pack(unpack(net, shifted)), shifted)


@given(st.models())
def test_packing_order(net):
    """Site by site in model order, A, B, bA, bB, each row-major.  [LORA-4]."""
    expected = []
    for layer in net.spec:
        if layer["kind"] == "linear":
            for key in ("A", "B", "bA", "bB"):
                value = net.weights.get(f"{layer['name']}.{key}")
                expected += [] if value is None else list(value.ravel(order="C"))
    np.testing.assert_array_equal(pack(net), expected)
    spans = [(name, span.start, span.stop) for name, _, span in sites(net)]
    assert spans[0][1] == 0
    assert spans[-1][2] == net.n
    assert all(a[2] == b[1] for a, b in itertools.pairwise(spans))


@given(st.models(dtype="float64"), hs.data())
def test_forward_by_hand(net, data):
    """The layers one after another, each as its own formula has it."""
    x = data.draw(st.batches(net)).x
    y, size = x, np.abs(x).max(initial=1.0)
    for layer in net.spec:
        kind = layer["kind"]
        if kind == "linear":
            w = {k.split(".")[1]: v for k, v in net.weights.items() if k.startswith(layer["name"])}
            W = w["W"] + layer["lora"]["alpha"] / layer["lora"]["r"] * (w["B"] @ w["A"])
            shift = w["b"]
            if "bA" in w:
                s = layer["lora"]["alpha"] / layer["lora"]["r"]
                shift = shift + s * (w["B"] @ w["bA"] + w["bB"])
            y = y @ W.T + shift
            size = (size + 1) * (1 + norm(np.abs(W)) + norm(np.abs(shift))) * 8
        elif kind in ("softmax", "log_softmax"):
            c = y - y.max(axis=-1, keepdims=True)
            s = np.exp(c).sum(axis=-1, keepdims=True)
            y = np.exp(c) / s if kind == "softmax" else c - np.log(s)
        elif kind == "gelu":
            from scipy.special import ndtr

            y = y * ndtr(y)
        else:
            y = np.tanh(y) if kind == "tanh" else np.maximum(y, 0)
    z, _ = model.forward(net, x)
    # every layer multiplies the error by at most its norm (activations' slopes are below 2)
    close(z, y, 64 * eps(x) * size)


@given(st.models(dtype="float64"), hs.data())
def test_merging_changes_no_output(net, data):
    x = data.draw(st.batches(net)).x
    merged = merge_lora(net)
    assert not [k for k in merged.weights if k.rsplit(".", 1)[1] in lora.FACTORS]
    z, _ = model.forward(net, x)
    y, _ = model.forward(merged, x)
    bound = 1.0
    for name, W in merged.weights.items():
        bound *= (1 + norm(W)) * 8 if name.endswith(".W") else 1 + norm(W)
    close(y, z, 64 * eps(x) * bound * (1 + norm(x)))


def test_a_spec_is_json(rng):
    spec = mlp_spec([3, 4, 2], "tanh", {"r": 2, "alpha": 4.0, "bias": True})
    again = json.loads(json.dumps(spec))
    first = init_model(np.random.default_rng(1), spec)
    second = init_model(np.random.default_rng(1), again)
    x = rng.standard_normal((2, 3))
    np.testing.assert_array_equal(model.forward(first, x)[0], model.forward(second, x)[0])


@pytest.mark.parametrize("init", lora.INITS)
@pytest.mark.parametrize("bias", [False, True])
def test_adding_lora_changes_no_output(rng, init, bias, dtype):
    net = init_model(rng, mlp_spec([4, 5, 3]), dtype=dtype)
    new = add_lora(rng, net, r=2, alpha=4.0, init=init, bias=bias)
    x = readonly(rng.standard_normal((3, 4)).astype(dtype))
    np.testing.assert_array_equal(model.forward(new, x)[0], model.forward(net, x)[0])
    assert new.dtype == dtype
    assert new.n == sum(2 * (i + o) + bias * (2 + o) for i, o in ((4, 5), (5, 3)))


def test_lora_on_chosen_targets(rng):
    net = init_model(rng, mlp_spec([4, 5, 3]))
    new = add_lora(rng, net, r=1, alpha=1.0, targets=["1"])
    assert new.trainable == ("1.A", "1.B")
    with pytest.raises(InputError, match="on '1' already"):
        add_lora(rng, new, r=1, alpha=1.0, targets=["1"])


def test_chosen_trainables(rng):
    """Any arrays may be trained, in the order given."""
    net = init_model(rng, mlp_spec([2, 3]))
    chosen = Model(spec=net.spec, weights=net.weights, trainable=("0.b", "0.W"))
    np.testing.assert_array_equal(
        pack(chosen), np.concatenate([net.weights["0.b"], net.weights["0.W"].ravel()])
    )


def test_a_model_without_trainables_does_not_pack(rng):
    with pytest.raises(InputError, match=r"no trainables.*add_lora"):
        pack(init_model(rng, mlp_spec([2, 3])))


SPEC = mlp_spec([3, 4, 2], "relu", {"r": 2, "alpha": 4.0})
LINEAR = {"kind": "linear", "name": "0", "in": 3, "out": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], r"spec: got no layers"),
        ([{"kind": "relus"}], r"spec\[0\].kind: got 'relus'.*closest known name is 'relu'"),
        ([LINEAR | {"biass": True}], r"biass: got True.*closest known key is 'bias'"),
        ([{"kind": "relu", "name": "a"}], r"spec\[0\].name"),
        ([{"kind": "linear", "name": "0", "in": 3}], r"spec\[0\].*got no out"),
        ([LINEAR, LINEAR | {"in": 2}], r"got '0'.*name of its own"),
        ([LINEAR, LINEAR | {"name": "1"}], r"got 3; required 2, the width before it"),
        ([LINEAR | {"lora": {"r": True, "alpha": 1.0}}], r"lora.r: got True"),
        ([LINEAR | {"lora": {"r": 1.5, "alpha": 1.0}}], r"lora.r: got 1.5"),
        ([LINEAR | {"lora": {"r": 0, "alpha": 1.0}}], r"lora.r: got 0"),
        ([LINEAR | {"lora": {"r": 1}}], r"got no alpha"),
        ([LINEAR | {"lora": {"r": 1, "alpha": 1.0, "dropout": 0.1}}], r"lora.dropout: got 0.1"),
        ([LINEAR | {"lora": {"r": 1, "alpha": float("nan")}}], r"alpha: got nan"),
        ([LINEAR | {"out": 0}], r"out: got 0"),
    ],
)
def test_faulty_specs(rng, spec, message):
    with pytest.raises(InputError, match=message):
        init_model(rng, spec)


def test_faulty_weights(rng):
    net = init_model(rng, SPEC)
    good = dict(net.weights)
    first = good["0.A"]
    for change, message in [
        ({"0.A": first.T}, r"0.A: got shape \(3, 2\).*a transposed array"),
        ({"0.A": first.astype("float32")}, r"0.A: got dtype float32.*mixed precision"),
        ({"0.A": first.astype(int)}, r"0.A: got dtype int64.*integer input"),
        ({"0.A": first * np.nan}, r"0.A: got nan at index \(0, 0\)"),
        ({"0.A": first.tolist()}, r"got list; required an array of one of"),
        ({"9.A": first}, r"surplus \['9.A'\]"),
    ]:
        with pytest.raises(InputError, match=message):
            Model(spec=SPEC, weights=good | change)
    with pytest.raises(InputError, match=r"missing \['0.A'\]"):
        Model(spec=SPEC, weights={k: v for k, v in good.items() if k != "0.A"})
    with pytest.raises(InputError, match=r"trainable: got '0.C'"):
        Model(spec=SPEC, weights=good, trainable=("0.C",))
    with pytest.raises(InputError, match=r"each name once"):
        Model(spec=SPEC, weights=good, trainable=("0.A", "0.A"))


def test_unpack_refuses_another_size_and_dtype(rng):
    net = init_model(rng, SPEC)
    with pytest.raises(InputError, match=r"theta: got shape \(3,\)"):
        unpack(net, np.zeros(3))
    with pytest.raises(InputError, match=r"theta: got dtype float32; required dtype float64"):
        unpack(net, np.zeros(net.n, "float32"))


def test_forward_refuses_another_width():
    net = model.init_model(np.random.default_rng(0), model.mlp_spec([3, 2]))
    with pytest.raises(InputError, match=r"^x: got shape \(2, 5\); required "):
        model.forward(net, np.ones((2, 5)))
