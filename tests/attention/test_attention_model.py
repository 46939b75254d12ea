"""Whole encoders as data: Jacobians by complex step, masks, pruning, and what a spec refuses."""

import json

import numpy as np
import pytest

from loko_ref.errors import InputError
from loko_ref.network.jacobian import gradient, jacobian
from loko_ref.network.model import (
    Model,
    add_lora,
    forward,
    init_model,
    merge_lora,
    pack,
    param_shapes,
    sites,
    unpack,
)

EPS = np.finfo(float).eps
D = 6
LORA = {"r": 2, "alpha": 4.0, "bias": True}


def lin(i, o, lora=None):
    return {"in": i, "out": o, **({"lora": dict(lora)} if lora else {})}


def block(j, pre, causal=False):
    parts = {key: lin(D, D, LORA if key in "qv" else None) for key in "qkvo"}
    att = {"kind": "attention", "name": f"{j}", "heads": 2, "causal": causal, **parts}
    ff = [
        {"kind": "linear", "name": f"{j}.f1", **lin(D, 8, LORA)},
        {"kind": "gelu"},
        {"kind": "linear", "name": f"{j}.f2", **lin(8, D)},
    ]
    n1, n2 = ({"kind": "layernorm", "name": f"{j}.{k}", "width": D} for k in ("n1", "n2"))
    if pre:
        return [
            {"kind": "residual", "layers": [n1, att]},
            {"kind": "residual", "layers": [n2, *ff]},
        ]
    return [
        {"kind": "residual", "layers": [att]},
        n1,
        {"kind": "residual", "layers": ff},
        n2,
    ]


EMBEDDING = {"kind": "embedding", "name": "emb", "vocab": 11, "width": D, "positions": 9}
HEAD = [{"kind": "linear", "name": "head", **lin(D, 3)}]
SPECS = {
    "text post-norm mean": [
        {**EMBEDDING, "types": 2, "pad": 1, "start": 1, "inputs": ["ids", "types"]},
        *block(0, False),
        *block(1, False),
        {"kind": "pool", "how": "mean"},
        *HEAD,
    ],
    "text causal cls": [
        {**EMBEDDING, "inputs": ["ids", "mask"]},
        *block(0, True, causal=True),
        {"kind": "layernorm", "name": "last", "width": D, "affine": False},
        {"kind": "pool", "how": "cls"},
        *HEAD,
    ],
    "image pre-norm cls": [
        {"kind": "patchify", "image": [2, 4, 6], "patch": [2, 3]},
        {"kind": "linear", "name": "patch", **lin(12, D)},
        {"kind": "prepend", "name": "cls", "width": D},
        {"kind": "positions", "name": "pos", "width": D, "count": 5},
        *block(0, True),
        {"kind": "pool", "how": "cls"},
        *HEAD,
    ],
    "features": [*block(0, False), {"kind": "pool", "how": "mean"}, *HEAD],
}


def inputs(spec, rng, batch=2):
    first = spec[0]
    if first["kind"] == "patchify":
        return rng.standard_normal((batch, 2, 4, 6))
    if first["kind"] != "embedding":
        return rng.standard_normal((batch, 5, D))
    ids = rng.integers(2, 11, (batch, 5))
    ids[-1, 3:] = 1
    second = (ids != 1) if "mask" in first["inputs"] else rng.integers(0, 2, (batch, 5))
    return np.stack([ids, second.astype(int)], axis=1)


def model_of(spec, rng, trainable=None):
    weights = {k: rng.standard_normal(s) * 0.5 for k, s in param_shapes(spec).items()}
    chosen = {} if trainable is None else {"trainable": trainable}
    return Model(spec=spec, weights=weights, **chosen)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("everything", [False, True])
def test_jacobian_by_complex_step(name, everything, rng):
    spec = SPECS[name]
    model = model_of(spec, rng, tuple(param_shapes(spec)) if everything else None)
    x = inputs(spec, rng)
    z, Z = jacobian(model, x)
    assert z.shape == (2, 3)
    assert Z.shape == (6, model.n)
    theta = pack(model)
    for j in range(model.n):
        moved = theta.astype(complex)
        moved[j] += 1e-30j
        column = forward(unpack(model, moved), x)[0].imag.reshape(-1) / 1e-30
        assert np.abs(column - Z[:, j]).max() <= 1e-12 * np.abs(Z).max()


@pytest.mark.parametrize("name", SPECS)
def test_gradient_is_the_jacobian_pulled_back(name, rng):
    model = model_of(SPECS[name], rng)
    x, dz = inputs(SPECS[name], rng), rng.standard_normal((2, 3))
    _, Z = jacobian(model, x)
    g = gradient(model, x, dz)
    assert np.abs(g - Z.T @ dz.reshape(-1)).max() <= 1e3 * EPS * np.abs(g).max()


@pytest.mark.parametrize("name", SPECS)
def test_merge_keeps_the_outputs(name, rng):
    model, x = model_of(SPECS[name], rng), inputs(SPECS[name], rng)
    z, merged = forward(model, x)[0], forward(merge_lora(model), x)[0]
    assert np.abs(z - merged).max() <= 1e3 * EPS * np.abs(z).max()


def test_padding_equals_a_shorter_text(rng):
    spec = SPECS["text post-norm mean"]
    model, x = model_of(spec, rng), inputs(spec, rng)
    z, Z = jacobian(model, x)
    short, Z_short = jacobian(model, x[-1:, :, :3])
    assert np.abs(z[-1] - short[0]).max() <= 100 * EPS * np.abs(z).max()
    assert np.abs(Z[-3:] - Z_short).max() <= 1e3 * EPS * np.abs(Z).max()


def test_causal_attention_does_not_look_ahead(rng):
    """[CLS] pooling reads the first token, which sees only itself."""
    spec = SPECS["text causal cls"]
    model, x = model_of(spec, rng), inputs(spec, rng)
    other = x.copy()
    other[:, 0, 1:3] = (other[:, 0, 1:3] + 1) % 11
    assert (forward(model, x)[0] == forward(model, other)[0]).all()


def test_packing_order_and_sites(rng):
    model = model_of(SPECS["features"], rng)
    assert model.trainable[:8] == tuple(f"0.{k}.{f}" for k in "qv" for f in ("A", "B", "bA", "bB"))
    assert [name for name, _, _ in sites(model)] == ["0.q", "0.v", "0.f1"]
    assert pack(unpack(model, pack(model))).tolist() == pack(model).tolist()


def test_specs_are_json(rng):
    for spec in SPECS.values():
        assert json.loads(json.dumps(spec)) == spec


def test_add_lora_reaches_projections(rng):
    bare = [*block(0, True), {"kind": "pool", "how": "mean"}, *HEAD]
    bare = json.loads(json.dumps(bare))
    for layer in bare[:2]:
        for inner in layer["layers"]:
            for part in (inner, *(inner.get(k) or {} for k in "qkvo")):
                part.pop("lora", None)
    model = init_model(rng, bare)
    new = add_lora(rng, model, r=2, alpha=2.0, targets=["0.k", "0.f2"])
    assert new.trainable == ("0.k.A", "0.k.B", "0.f2.A", "0.f2.B")
    x = rng.standard_normal((2, 5, D))
    assert (forward(new, x)[0] == forward(model, x)[0]).all()


BAD = {
    "a head that does not divide": ({"heads": 4}, "heads"),
    "a foreign key": ({"dropout": 0.1}, "dropout"),
    "a projection of another width": ({"k": lin(D, 4)}, "k"),
    "an output that does not chain": ({"o": lin(4, D)}, "o.in"),
}


@pytest.mark.parametrize("case", BAD)
def test_attention_refuses(case, rng):
    change, where = BAD[case]
    layers = [{**block(0, False)[0]["layers"][0], **change}, {"kind": "pool", "how": "mean"}]
    with pytest.raises(InputError, match=r"spec\[0\]\." + where):
        init_model(rng, layers)


def test_specs_refuse(rng):
    pool = {"kind": "pool", "how": "mean"}
    with pytest.raises(InputError, match="tokens at the end"):
        init_model(rng, block(0, True))
    with pytest.raises(InputError, match="after pooling"):
        init_model(rng, [*block(0, True), pool, *block(1, True)])
    with pytest.raises(InputError, match="cannot be added"):
        init_model(
            rng, [{"kind": "residual", "layers": [{"kind": "linear", "name": "0", **lin(4, 3)}]}]
        )
    with pytest.raises(InputError, match="inside the stack"):
        init_model(rng, [*block(0, True), EMBEDDING, pool])
    with pytest.raises(InputError, match="a name of its own"):
        init_model(rng, [*block(0, True), *block(0, True), pool])


def test_inputs_refused(rng):
    text = SPECS["text post-norm mean"]
    model, x = model_of(text, rng), inputs(text, rng)
    with pytest.raises(InputError, match="whole numbers"):
        jacobian(model, x.astype(float))
    with pytest.raises(InputError, match=r"x \(ids\)"):
        jacobian(model, x + 100)
    with pytest.raises(InputError, match="position table"):
        jacobian(model, np.repeat(x, 2, axis=2))
    image = SPECS["image pre-norm cls"]
    with pytest.raises(InputError, match="shape"):
        jacobian(model_of(image, rng), rng.standard_normal((2, 2, 4, 5)))
    with pytest.raises(InputError, match="shape"):
        jacobian(model_of(SPECS["features"], rng), rng.standard_normal((2, D)))
