"""No accusation of right code: other algebra, other layouts of the arrays that come back."""

import einsum_loko
import einsum_network
import numpy as np
import pytest
from other_algebra import FILTERS, NETWORKS, updates
from sampling import sample

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.mistakes.registry import NOTHING, as_implementation

pytestmark = pytest.mark.verdict

DTYPES = ["float64", "float32"]
HOLDS = {"merged": "lora", "flash": "attention", "welford": "layernorm"}
"""Network -> what it does in its own way."""


def accused(functions, cases):
    checks = run(Implementation(target="right", functions=functions), cases)
    assert any(c.status == "passed" for c in checks)
    return [c.case.id for c in checks if c.status not in ("passed", "unsupported") or c.amplified]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FILTERS)
def test_a_filter_of_another_form_is_right(form, dtype):
    cases = select("kalman.d*", dtype)
    assert accused(updates(FILTERS[form]), sample(cases, 0.2, name=lambda c: c.id)) == []


@pytest.mark.sampled(0.17)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", NETWORKS)
def test_a_network_of_another_form_is_right(form, dtype, monkeypatch):
    monkeypatch.setattr(einsum_network, "Network", NETWORKS[form])
    cases = [*select("model.*", dtype), *select("loko.step", dtype), *select("loko.run/*", dtype)]
    cases = [c for c in cases if HOLDS[form] in str(c.options["spec"])]
    cases = [c for c in cases if c.options.get("train") != "weights"]  # einsum_loko trains factors
    few = sample(cases, 0.015, by=lambda c: c.operation.name, name=lambda c: c.id)
    assert accused(einsum_loko.IMPLEMENTATION, few) == []


class NeedsGradient:
    """An array that gives its numbers only apart from its gradient, as torch's do."""

    def __init__(self, array):
        self.array = array

    def __array__(self, *arguments, **keywords):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    def detach(self):
        return self.array


BUFFER = {}


def reused(value):
    """The same memory for every answer of a shape."""
    found = BUFFER.setdefault((value.shape, value.dtype.str), np.empty_like(value))
    found[...] = value
    return found


LAYOUTS = {
    "big-endian": lambda v: v.astype(v.dtype.newbyteorder(">")),
    "columns first": np.asfortranarray,
    "strided": lambda v: np.repeat(v, 2, axis=-1)[..., ::2],
    "backwards": lambda v: v[..., ::-1].copy()[..., ::-1],
    "read-only": lambda v: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape),
    "masked": np.ma.masked_array,
    "needs a gradient": NeedsGradient,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_an_array_is_no_mistake(layout, dtype):
    right = as_implementation(NOTHING)["kalman.dense_update"]

    def update(**keywords):
        return {k: LAYOUTS[layout](a) for k, a in right(**keywords).items()}

    cases = select("kalman.dense_update/*", dtype)[:3]
    assert accused({"kalman.dense_update": update}, cases) == []


def test_memory_that_is_used_again_is_no_mistake():
    right = as_implementation(NOTHING)["lora.delta"]

    def delta(**keywords):
        return {"delta": reused(right(**keywords)["delta"])}

    assert accused({"lora.delta": delta}, select("lora.delta")) == []
