"""A layer's entry in the spec: wrong values raise our error, and choices are written once."""

from __future__ import annotations

import copy
import inspect
from typing import get_args

import numpy as np
import pytest

from loko_ref.errors import InputError
from loko_ref.network import layers, lora, model
from loko_ref.network.layers.activation import ACTIVATIONS, ActivationName
from loko_ref.network.spec import factor_shapes, linears, mlp_spec

PART = {"in": 4, "out": 4, "bias": True, "lora": {"r": 1, "alpha": 1.0, "bias": False}}
HEAD = [{"kind": "pool", "how": "mean"}, {"kind": "linear", "name": "out", "in": 4, "out": 2}]
FULL = {
    "linear": {"name": "a", **PART},
    "layernorm": {"name": "a", "width": 4, "eps": 1e-5, "affine": True},
    "attention": {"name": "a", "heads": 2, "causal": True, **dict.fromkeys("qkvo", PART)},
    "residual": {"layers": [{"kind": "tanh"}, {"kind": "linear", "name": "a", **PART}]},
    "embedding": {
        "name": "a",
        "vocab": 5,
        "width": 4,
        "positions": 6,
        "types": 2,
        "pad": 0,
        "start": 0,
        "inputs": ["ids", "types", "mask"],
    },
    "patchify": {"image": [1, 4, 4], "patch": [2, 2]},
    "prepend": {"name": "a", "width": 4, "count": 2},
    "positions": {"name": "a", "width": 4, "count": 5},
    "pool": {"how": "cls"},
    **{name: {} for name in ACTIVATIONS},
}
"""Each kind with every key that it has."""

WRONG = (None, True, 0, -1, 2.5, float("nan"), "x", "4", [], [1], {}, {"r": 1}, object(), 10**40)


def spec_of(kind):
    """A whole spec with every key of one kind."""
    layer = {"kind": kind, **copy.deepcopy(FULL[kind])}
    if kind == "pool":
        return [{"kind": "tanh"}, layer, HEAD[1]]
    return [layer, *HEAD]


def places(part, path=()):
    """Every place in nested mappings and lists, as a path of keys."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def put(spec, path, value):
    for key in path[:-1]:
        spec = spec[key]
    spec[path[-1]] = value


@pytest.mark.parametrize("kind", layers.KINDS)
def test_each_kind_has_the_keys_that_its_file_names(kind):
    entry = layers.KINDS[kind]
    assert FULL[kind].keys() == {*entry.required, *entry.optional}
    made = model.init_model(np.random.default_rng(0), spec_of(kind))
    own = {k.removeprefix("a.") for k in made.weights if k.startswith("a.")}
    assert kind == "residual" or own <= set(entry.params)


@pytest.mark.parametrize("kind", layers.KINDS)
def test_a_wrong_value_at_any_place_raises_our_error_or_is_read(kind):
    """What passes makes a model; nothing else than an InputError is ever raised."""
    messages = []
    for path in places([spec_of(kind)[0 if kind != "pool" else 1]]):
        for value in WRONG:
            spec = spec_of(kind)
            put(spec, (path[0] + (kind == "pool"), *path[1:]), value)
            try:
                model.init_model(np.random.default_rng(0), spec)
            except InputError as error:
                messages.append(str(error))
    assert len(messages) >= len(WRONG) - 1  # of "kind" alone
    assert not [message for message in messages if "spec" not in message]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("linear", ("bias",)),
        ("linear", ("lora", "bias")),
        ("attention", ("q", "bias")),
        ("attention", ("causal",)),
        ("layernorm", ("affine",)),
    ],
)
@pytest.mark.parametrize("value", ["false", 0, None])
def test_a_flag_is_true_or_false(kind, path, value):
    """A word is no flag: "false" would be read as true."""
    spec = spec_of(kind)
    put(spec, (0, *path), value)
    with pytest.raises(InputError, match=rf"spec\[0\]\.{'.'.join(path)}: .*required true or false"):
        model.init_model(np.random.default_rng(0), spec)


def test_choices_are_written_once():
    assert get_args(ActivationName) == tuple(ACTIVATIONS)
    assert get_args(lora.Init) == lora.INITS
    assert set(ACTIVATIONS) < set(layers.KINDS)


def test_a_layer_stands_in_one_file():
    """Forward, vjp, keys, shapes and initialization of a kind are of one module."""
    for name, kind in layers.KINDS.items():
        module = inspect.getmodule(type(kind))
        for method in ("forward", "vjp"):
            assert inspect.getmodule(getattr(type(kind), method)) is module, (name, method)
        if kind.params:
            assert inspect.getmodule(type(kind).shapes) is module, name
            own_init = inspect.getmodule(type(kind).init) is module
            assert own_init != (kind.deviation > 0), f"{name}: drawn by init, or by its deviation"


def test_factors_are_those_of_every_linear():
    spec = [{"kind": "attention", **copy.deepcopy(FULL["attention"])}, *HEAD]
    assert list(factor_shapes(spec)) == [f"a.{key}.{f}" for key in "qkvo" for f in "AB"]
    assert [layer["name"] for layer in linears(spec)] == ["a.q", "a.k", "a.v", "a.o", "out"]
    biased = mlp_spec([3, 2], lora={"r": 1, "alpha": 1.0, "bias": True})
    assert factor_shapes(biased) == {"0.A": (1, 3), "0.B": (2, 1), "0.bA": (1,), "0.bB": (2,)}
