"""Code that takes complex numbers is held to its Jacobian's own tolerance, not to differences'."""

import numpy as np
import pytest

from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import Model, forward, init_model, unpack
from loko_ref.properties import check

SPEC = [
    {"kind": "linear", "name": "0", "in": 2, "out": 3, "lora": {"r": 1, "alpha": 2.0}},
    {"kind": "tanh"},
    {"kind": "linear", "name": "1", "in": 3, "out": 2, "lora": {"r": 1, "alpha": 2.0}},
]


def implementation(off=0.0, how="computes"):
    """A Jacobian off by a factor 1 + off; code that refuses complex numbers, or drops a part."""

    def function(x, weights, spec):
        net = Model(spec=spec, weights={k: a.real.copy() for k, a in weights.items()})
        if any(np.iscomplexobj(a) for a in weights.values()) and how != "drops":
            if how == "refuses":
                raise TypeError("complex numbers")
            theta = np.concatenate([weights[k].reshape(-1) for k in net.trainable])
            return {"z": forward(unpack(net, theta), x)[0]}
        z, Z = jacobian(net, x)
        return {"z": z, "Z": Z * (1 + off)}

    return {"model.jacobian": function}


def holds(target):
    net = init_model(np.random.default_rng(5), SPEC)
    weights = {k: a + 0.125 for k, a in net.weights.items()}
    name = "model.jacobian/derivative of an activation"
    check(name, target, x=[[0.5, -0.25]], weights=weights, spec=SPEC)


@pytest.mark.parametrize("how", ["computes", "refuses", "drops"])
def test_right_code_has_it_whatever_it_does_with_complex_numbers(how):
    holds(implementation(how=how))


def test_a_complex_step_sees_what_differences_do_not():
    with pytest.raises(AssertionError, match="Z v is the derivative"):
        holds(implementation(off=1e-11))
    holds(implementation(off=1e-11, how="refuses"))
    with pytest.raises(AssertionError, match="Z v is the derivative"):
        holds(implementation(off=1e-4, how="refuses"))
