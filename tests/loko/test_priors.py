"""Prior variances by the names of sites and factors."""

import json

import numpy as np
import pytest
from command import loko_ref

from loko_ref import loko
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.network.model import Model, mlp_spec, param_shapes


def network(names=("0", "2"), bias=True):
    spec = mlp_spec([3, 4, 2], "tanh", {"r": 2, "alpha": 2.0, "bias": bias})
    linears = [layer for layer in spec if layer["kind"] == "linear"]
    for layer, name in zip(linears, names, strict=True):
        layer["name"] = name
    shapes = param_shapes(spec)
    return Model(spec=spec, weights={k: np.zeros(s) for k, s in shapes.items()})


def by_name(model, p0):
    """p, cut up by the trainables' names."""
    p, found, at = loko.init(loko.LokoConfig(model=model, p0=p0)).p, {}, 0
    for name in model.trainable:
        part = p[at : at + model.weights[name].size]
        at += part.size
        (found[name],) = set(part)
    assert at == p.size
    return found


def test_a_bias_follows_its_factor():
    found = by_name(network(), {"A": 0.25, "B": 1.0})
    assert found == {
        f"{site}.{part}": value
        for site in ("0", "2")
        for part, value in (("A", 0.25), ("B", 1.0), ("bA", 0.25), ("bB", 1.0))
    }


def test_the_most_specific_name_wins_in_any_order():
    p0 = {"2.B": 8.0, "A": 1.0, "2": 4.0, "B": 2.0}
    for names in (p0, dict(reversed(p0.items()))):
        found = by_name(network(bias=False), names)
        assert found == {"0.A": 1.0, "0.B": 2.0, "2.A": 4.0, "2.B": 8.0}


@pytest.mark.parametrize(
    "p0",
    [
        {"A": 1.0},
        {"A": 1.0, "0": 1.0},
        {"A": 1.0, "B": 1.0, "C": 1.0},
        {"A": 1.0, "B": 1.0, "0.bA": 1.0},
        {"a": 1.0, "B": 1.0},
        {},
    ],
)
def test_a_name_that_is_missing_or_unknown_is_an_error(p0):
    with pytest.raises(InputError, match=r"p0: got keys .*required one number a site"):
        by_name(network(), p0)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan, "1", None, True])
def test_a_value_is_a_positive_number(bad):
    with pytest.raises(InputError, match=r"p0\['0.A'\]"):
        by_name(network(), {"A": 1.0, "B": 1.0, "0.A": bad})


@pytest.mark.parametrize(("names", "key"), [(("A", "2"), "A"), (("0", "0.B"), "0.B")])
def test_a_layer_that_is_called_as_a_factor_is_an_error(names, key):
    model = network(names)
    with pytest.raises(InputError, match=rf"the key '{key}'; required another name of the layer"):
        by_name(model, {"A": 1.0, "B": 1.0, key: 2.0})
    assert set(by_name(model, 0.5).values()) == {0.5}


def test_on_the_command_line_the_other_factor_keeps_its_default(tmp_path):
    assert RunConfig(optimizer="loko", options={"p0": {"A": 0.2}}).options["p0"] == {
        "A": 0.2,
        "B": RunConfig(optimizer="loko").options["p0"],
    }
    out = tmp_path / "out.json"
    command = "train --data iris --optimizer loko --variant p0.A=.2,p0.0.B=3 --seed 0 --epochs 1"
    result = loko_ref(*command.split(), "--json", str(out))
    assert result.returncode == 0, result.stderr
    (run,) = json.loads(out.read_text())["runs"]
    assert run["config"]["options"]["p0"] == {"A": 0.2, "B": 0.05, "0.B": 3.0}
