"""LoKO in torch and in JAX: independent, right in both dtypes; their buggy sisters are named."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.frameworks import build_module
from loko_ref.conformance.implementations.python import load
from loko_ref.errors import InputError
from loko_ref.network.architectures import bert_spec, roberta_spec, vit_spec
from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import Model, forward, init_model
from loko_ref.network.spec import param_shapes

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
# some of each: `loko-ref verify examples/torch_loko.py` takes all
SOME = (
    "loko.step/glm-bias/*",
    "loko.step/glm-stacked/*",
    "loko.step/softmax/*",
    "loko.step/logits-after/*",
    "loko.run/gaussian/*",
    "loko.run/glm-stacked/*",
    "loko.step/transformer-text/*",
    "loko.run/transformer/*",
)
SIZE = {"layers": 1, "width": 4, "heads": 2, "ff": 3, "outputs": 3, "lora": {"r": 1, "alpha": 2.0}}
CHANNELS = ["ids", "types", "mask"]
NETWORKS = {
    "image": (vit_spec(image=(2, 4, 6), patch=(2, 3), tokens=2, **SIZE), (2, 2, 4, 6)),
    "flat image": (vit_spec(image=(2, 4, 6), patch=(2, 3), pool="mean", **SIZE), (2, 48)),
    "roberta": (
        roberta_spec(vocab=7, positions=7, pool="mean", activation="gelu_tanh", **SIZE),
        [[5, 1, 2, 0], [1, 6, 3, 1]],
    ),
    "a query that sees no key": (
        bert_spec(vocab=7, positions=7, inputs=CHANNELS, causal=True, pad=None, **SIZE),
        [[[5, 1, 2], [0, 1, 1], [0, 1, 1]], [[6, 0, 3], [1, 1, 0], [1, 0, 1]]],
    ),
}


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_right(library):
    pytest.importorskip(library, reason=f"{library} is not installed (extra 'interop')")
    implementation = load(str(EXAMPLES / f"{library}_loko.py"))
    checks = run(implementation, [case for only in SOME for case in select(only)])
    assert len(checks) == 16
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


@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("library", ["torch", "jax", "einsum"])
def test_networks_agree(library, key):
    """What no case of ``loko.step`` has: the right outputs of each by a direct comparison."""
    spec, x_ = NETWORKS[key]
    rng = np.random.Generator(np.random.PCG64(7))
    weights = {name: rng.standard_normal(s) for name, s in param_shapes(spec).items()}
    x = np.array(x_, float) if isinstance(x_, list) else rng.standard_normal(x_)
    z, Z = jacobian(Model(spec=spec, weights=weights), x.astype(int) if isinstance(x_, list) else x)
    if library == "einsum":
        got, found = (
            load(str(HERE / "einsum_loko.py"))
            .functions["model.jacobian"](x=x, weights=weights, spec=spec)
            .values()
        )
        np.testing.assert_allclose(found, Z, rtol=1e-11, atol=1e-12 * abs(Z).max())
    elif library == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed (extra 'interop')")
        got = build_module(spec, weights)(torch.from_numpy(x)).detach().numpy()
    else:
        jax = pytest.importorskip("jax", reason="jax is not installed (extra 'interop')")
        load(str(EXAMPLES / "jax_loko.py"))
        network = sys.modules["loko_ref_target_jax_loko"].Network
        names = Model(spec=spec, weights=weights).trainable
        theta = jax.numpy.asarray(np.concatenate([weights[name].ravel() for name in names]))
        got = [network(theta, weights)(spec, jax.numpy.asarray(row)) for row in x]
    np.testing.assert_allclose(np.array(got), z, rtol=1e-11, atol=1e-12)


def test_a_module_names_its_parameters_as_weights_are():
    """Nested specs too: a linear sits where its name says, in packing order."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra 'interop')")
    size = {"layers": 2, "width": 4, "heads": 2, "ff": 6, "outputs": 3}
    lora = {"r": 2, "alpha": 3.0, "bias": True}
    spec = bert_spec(
        vocab=7, positions=5, **size, lora=lora, targets=("q", "k", "v", "o", "f1", "f2")
    )
    model = init_model(np.random.Generator(np.random.PCG64(1)), spec)
    module = build_module(spec, model.weights)
    parameters = dict(module.named_parameters())
    assert tuple(parameters) == model.trainable
    for name, value in parameters.items():
        assert np.array_equal(value.detach().numpy(), model.weights[name])
    assert {b.dtype for b in module.buffers()} == {torch.float64}
    seen = []
    module.get_submodule("1.v").register_forward_hook(lambda *a: seen.append(a[2].shape))
    ids = np.array([[5, 2, 0], [1, 6, 3]])
    z = module(torch.from_numpy(ids.astype(float))).detach().numpy()
    assert seen == [(2, 3, 4)]
    np.testing.assert_allclose(z, forward(model, ids)[0], rtol=1e-12, atol=1e-13)
    # factors that are not given are 0, and a copy stands on its own
    frozen = {name: a for name, a in model.weights.items() if name not in model.trainable}
    other = copy.deepcopy(build_module(spec, frozen))
    assert not any(value.any() for value in other.parameters())
    other.get_submodule("head.out").W.zero_()
    assert module(torch.from_numpy(ids.astype(float))).detach().numpy().any()


def test_a_module_of_a_faulty_spec_is_refused():
    with pytest.raises(InputError, match=r"spec\[0\].kind: got 'gelo'.*'gelu'"):
        build_module([{"kind": "gelo"}], {})
