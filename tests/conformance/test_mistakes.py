"""Mistakes of the network made in other code are named too, and mutants differ as code would."""

import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.mistakes.registry import all_mutants, idle
from loko_ref.network.spec import trained_shapes
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

pytestmark = pytest.mark.verdict
SOURCE = Path(__file__).with_name("einsum_network.py").read_text(encoding="utf-8")
BY_ID = {m.id: m for m in all_mutants()}
BLOCKS = ("block-pre", "block-post", "blocks-deep", "block-lora-q", "block-lora-k", "layernorm")
TEXTS = ("text", "text-mean", "text-left-padded", "text-first-hidden", "block-pre")
# id: what stands in einsum_network, what is put there, cases
MADE = {
    "SCORES-UNSCALED": ("np.sqrt(self.dtype.type(c))", "self.dtype.type(1)", BLOCKS),
    "SCORES-SCALE-WIDTH": (
        "self.dtype.type(c)",
        "self.dtype.type(q.shape[-1])",
        (*BLOCKS, "attention-heads"),  # in the others c^2 is the width: twice the scale is as much
    ),
    "HEADS-INTERLEAVED": ("slice(h * c, (h + 1) * c)", 'slice(h, None, layer["heads"])', BLOCKS),
    "KEYS-JACOBIAN-MISSING": (
        'Ts + ein("bqc,bkcn->bqkn", q[..., at], Tk[:, :, at])',
        "Ts",
        ("block-full-rank", "block-lora-k", "block-rank-one", "attention-causal", "block-pre"),
    ),
    "SCORES-JACOBIAN-MISSING": ("Ta = a[", "Ta = 0 * a[", BLOCKS),
    "RESIDUAL-MISSING": ("y + x, Ty + T", "y, Ty", BLOCKS),
    "RESIDUAL-JACOBIAN-MISSING": ("y + x, Ty + T", "y + x, Ty", BLOCKS),
    "NORM-EPS-MISSING": ('layer.get("eps", 1e-5)', "0", BLOCKS),
    "NORM-JACOBIAN-NO-MEAN": ("T - T.sum(axis=-2, keepdims=True) / d", "T", BLOCKS),
    "NORM-JACOBIAN-NO-VARIANCE": (
        "T - x[..., None] * (Tv /",
        "T - 0 * x[..., None] * (Tv /",
        BLOCKS,
    ),
    "MASK-ATTENTION-IGNORED": ("see &= self.mask[:, None]", "pass", TEXTS),
    "MASK-QUERIES": ("self.mask[:, None]", "self.mask[:, :, None]", TEXTS),
    "POOL-PADDING": ("if self.mask is None else self.mask", "if 1 else 0", TEXTS),
    "CAUSAL-STRICT": (
        "np.tri(t, dtype=bool)",
        "np.tri(t, k=-1, dtype=bool)",
        ("attention-causal", "attention-heads", "text-left-padded"),
    ),
    "POSITION-FROM-ZERO": (
        'if layer.get("start") is not None',
        "if False",
        ("text-positions", "text"),
    ),
    "PATCH-CHANNELS-LAST": (
        "j : j + pw].reshape",
        "j : j + pw].transpose(0, 2, 3, 1).reshape",
        ("image", "image-flat"),
    ),
}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("key", MADE)
def test_a_mistake_in_other_code_is_named(key):
    old, new, names = MADE[key]
    assert SOURCE.count(old) == 1
    module = types.ModuleType("einsum_with_a_mistake")
    exec(compile(SOURCE.replace(old, new), "einsum_network.py", "exec"), module.__dict__)

    def model_jacobian(*, x, weights, spec):
        z, Z = module.network(spec, weights, x)
        return {"z": z, "Z": Z}

    target = Implementation(target=key, functions={"model.jacobian": model_jacobian})
    checks = run(target, [c for name in names for c in select(f"model.jacobian/{name}/*")])
    named = name_mistakes(checks)
    assert named
    leading = Counter(fits[0].mutant.id if fits else None for fits in named.values())
    assert leading.most_common(1)[0][0] == key, leading


# id: what stands in einsum_loko, what is put there, checks that have to be named
FILTER = {
    "YHAT-CLIPPED": (
        "else softmax(z)",
        "else np.clip(softmax(z), 1e-4, 1 - 1e-4).astype(z.dtype)",
        "observation.",  # where it acts; loko.step/glm, where it does not, passes
    ),
    "THETA-POSTERIOR-S": (
        '"theta": theta + ein("aj,j", K, e), "p": new}',
        '"theta": theta + gain(new, H, R)[1] @ e, "p": new}',
        "kalman.diagonal_update/",
    ),
    "GAIN-POSTERIOR-R": (
        'new = posterior(p, K, H, R) if diagonal == "decoupled" else variational(p, H, R)',
        """new = posterior(p, K, H, R) if diagonal == "decoupled" else variational(p, H, R)
    K = K if diagonal == "decoupled" else np.linalg.solve(R, H * new).T""",
        "kalman.diagonal_update/",
    ),
}


@pytest.mark.parametrize("key", FILTER)
def test_a_mistake_in_another_filter_is_named(key):
    old, new, names = FILTER[key]
    path = Path(__file__).with_name("einsum_loko.py")
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1
    module = types.ModuleType("einsum_loko_with_a_mistake")
    module.__file__ = str(path)
    exec(compile(source.replace(old, new), "einsum_loko.py", "exec"), module.__dict__)
    target = Implementation(target=key, functions=module.IMPLEMENTATION)
    cases = [c for n in ("observation.*", "kalman.d*", "loko.step/glm*") for c in select(n)]
    named = {k: fits for k, fits in name_mistakes(run(target, cases)).items() if names in k}
    leading = Counter(fits[0].mutant.id if fits else None for fits in named.values())
    assert set(leading) <= {key, None}  # a wrong name would be worse than none
    assert leading[key] >= max(6, 0.8 * len(named)), leading


def test_the_source_as_it_stands_is_right():
    module = types.ModuleType("einsum_as_it_stands")
    exec(compile(SOURCE, "einsum_network.py", "exec"), module.__dict__)
    (case,) = select("model.jacobian/blocks-deep/float64")
    inputs = case.inputs()
    _, Z = module.network(case.options["spec"], inputs["weights"], inputs["x"])
    np.testing.assert_allclose(Z, expected(case)["Z"], rtol=1e-11, atol=1e-12)


PARTS = ("norm", "attention", "block", "ends")


def whose(one):
    """Name the files that a mutant's formulas stand in."""
    return {f.__module__.rsplit("_", 1)[1] for f in one.changes(one.example).values()}


FORWARD = [
    key
    for key, one in BY_ID.items()
    if (whose(one) & set(PARTS) or key.startswith(("POOL", "LORA", "GELU", "SCALE", "RELU")))
    and "JACOBIAN" not in key
    and not key.startswith(("TOKENS", "ORDER"))
]


@pytest.mark.sampled(0.2)
@pytest.mark.parametrize("key", FORWARD)
def test_a_mistake_forward_has_the_derivative_of_what_it_computes(key):
    """As automatic differentiation would give it to who makes the mistake; by differences."""
    table = {**FORMULA_TABLE, **BY_ID[key].changes(BY_ID[key].example)}
    seen = 0
    for case in select("model.jacobian/*", "float64"):
        if idle(BY_ID[key], case) or "constant" in case.id or "at-zero" in case.id:
            continue
        inputs, options = case.inputs(), case.options

        def evaluate(weights, case=case, inputs=inputs, options=options):
            return case.operation.plain({**inputs, "weights": weights}, options, table, identity)

        out = evaluate(inputs["weights"])
        if np.max(np.abs(out["z"] - expected(case)["z"])) < 1e-9:
            continue
        rng, h = np.random.Generator(np.random.PCG64(seen)), 1e-5
        to = {
            k: rng.standard_normal(s)
            for k, s in trained_shapes(options["spec"], options["train"]).items()
        }
        ahead, behind = (
            evaluate({k: a + s * to[k] if k in to else a for k, a in inputs["weights"].items()})[
                "z"
            ]
            for s in (h, -h)
        )
        moved = out["Z"] @ np.concatenate([a.ravel() for a in to.values()])
        # differences err by h^2 and by u / h of the largest
        size = max(np.max(np.abs(moved)), 1e-3)
        np.testing.assert_allclose(moved, (ahead - behind).ravel() / (2 * h), atol=1e-6 * size)
        seen += 1
        if seen == 3:
            break
    if key not in ("NORM-ONE-PASS", "SCALE-SINGLE"):  # which are right but for rounding
        assert seen
