"""LoKO in torch and in JAX: independent, right in both dtypes; their buggy sisters are named."""

from pathlib import Path

import pytest

from loko_ref.conformance.cases import select
from loko_ref.conformance.implementation import load
from loko_ref.conformance.naming import name_mistakes
from loko_ref.conformance.verify import run

EXAMPLES = Path(__file__).parents[2] / "examples"
# some of each: `loko-ref verify examples/torch_loko.py` takes all
SOME = (
    "loko.step/glm-bias/*",
    "loko.step/glm-stacked/*",
    "loko.step/softmax/*",
    "loko.step/logits-after/*",
    "loko.run/gaussian/*",
    "loko.run/glm-stacked/*",
)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_right(library):
    pytest.importorskip(library, reason=f"{library} is not installed (extra 'interop')")
    implementation = load(str(EXAMPLES / f"{library}_loko.py"))
    checks = run(implementation, [case for only in SOME for case in select(only)])
    assert len(checks) == 12
    assert {c.status for c in checks} == {"passed"}
    assert {c.case.dtype for c in checks} == {"float64", "float32"}
    declined = run(implementation, select("loko.step/glm-dense/*"))
    assert {c.status for c in declined} == {"unsupported"}


@pytest.mark.parametrize(
    ("library", "only", "quantity", "mistake"),
    [
        ("torch", "loko.step/gaussian/float64", "theta", "S-JITTER"),
        ("jax", "loko.step/glm-bias/float64", "z", "GELU-TANH"),
    ],
)
def test_wrong(library, only, quantity, mistake):
    pytest.importorskip(library, reason=f"{library} is not installed (extra 'interop')")
    checks = run(load(str(EXAMPLES / f"{library}_buggy_loko.py")), select(only))
    assert [c.divergence.quantity for c in checks] == [quantity]
    (fits,) = name_mistakes(checks).values()
    assert fits[0].mutant.id == mistake
    if library == "torch":
        assert fits[0].size == pytest.approx(1e-6, rel=1e-3)
    # the original is untouched by its buggy sister
    right = run(load(str(EXAMPLES / f"{library}_loko.py")), select(only))
    assert {c.status for c in right} == {"passed"}
