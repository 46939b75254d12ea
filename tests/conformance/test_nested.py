"""Attention, transformers and images in the catalogue: described, covered, hunted, localised."""

import itertools
import math
import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from loko_ref.conformance.cases.registry import DTYPES, all_cases, select
from loko_ref.conformance.catalogue import network_text as operations_network
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.engine import judge, run, summarise
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.judge import tolerance
from loko_ref.conformance.judge.answer import Answer
from loko_ref.conformance.reports import document as report
from loko_ref.files import documents as schema
from loko_ref.network.layers import KINDS
from loko_ref.network.model import init_model
from loko_ref.network.spec import linears
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.filter import FORMULAS as F
from loko_ref.textbook.quantities import identity

EXAMPLES = Path(__file__).parents[2] / "examples"
FLAT = {"linear", "relu", "tanh", "gelu", "softmax", "log_softmax"}


def walk(spec):
    for layer in spec:
        yield layer
        yield from walk(layer.get("layers", ()))


def kinds_of(case):
    return {layer["kind"] for layer in walk(case.options.get("spec") or ())}


NESTED = [
    case
    for case in all_cases()
    if case.operation.name.startswith(("model.", "loko.")) and not kinds_of(case) <= FLAT
]


# ------------------------------------------------------------------------------ described


def section(kind):
    """The paragraph of a kind."""
    (text,) = re.findall(
        rf"^  (?! )(?:[\w, ]*, )?{kind}(?:,[^:]*)?:.*?(?=\n\n)",
        operations_network.LAYERS,
        re.M | re.S,
    )
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_every_kind_is_described(kind):
    text = section(kind)
    for key in KINDS[kind].required:
        assert re.search(rf"\b{key}\b", text), key
    for key in KINDS[kind].optional:
        assert re.search(rf"\[{key} = ", text), key


def test_every_array_is_described():
    spec = [layer for case in NESTED for layer in walk(case.options["spec"])]
    seen = set()
    for layer in spec:
        for name in KINDS[layer["kind"]].shapes(layer):
            if layer["kind"] == "residual":
                continue
            short = name.removeprefix(layer.get("name", "") + ".")
            place = section("linear" if layer["kind"] == "attention" else layer["kind"])
            assert f"NAME.{short.removeprefix('q.')[-1:] if '.' in short else short}" in place
            seen.add(short)
    assert {"W", "q.A", "g", "b", "token", "position", "type"} <= seen


def test_defaults_are_the_ones_described():
    """A key left out means what the text says: the oracle agrees with it given."""
    norm = {"kind": "layernorm", "name": "n", "width": 3}
    attend = {k: {"in": 3, "out": 3} for k in "qkvo"}
    attention = {"kind": "attention", "name": "a", "heads": 1, **attend}
    given = {"layernorm": {"eps": 1e-5, "affine": True}, "attention": {"causal": False}}
    x = np.random.default_rng(0).normal(size=(1, 2, 3))
    outputs = OPERATIONS["model.forward"].oracle
    for layer in (norm, attention):
        for more in ({}, given[layer["kind"]]):
            spec = [{**layer, **more}, {"kind": "pool", "how": "mean"}]
            weights = init_model(np.random.default_rng(1), spec).weights
            z = outputs({"x": x, "weights": weights}, {"spec": spec})["z"]
            before = z if not more else before  # noqa: F821
        np.testing.assert_array_equal(z, before)


def test_operations_print_the_layers():
    for name in ("model.forward", "model.jacobian", "loko.step", "loko.run"):
        (spec,) = [o for o in OPERATIONS[name].options if o.name == "spec"]
        assert spec.text == operations_network.SPEC
    assert max(map(len, operations_network.LAYERS.splitlines())) <= 100


# -------------------------------------------------------------------------------- covered


def test_the_cases_span_what_a_spec_can_say():
    assert len({case.id.rsplit("/", 1)[0] for case in NESTED}) >= 40
    assert set.union(*map(kinds_of, NESTED)) >= set(KINDS) - {"softmax", "log_softmax"}
    for operation in ("model.forward", "model.jacobian", "loko.step", "loko.run"):
        mine = [case for case in NESTED if case.operation.name == operation]
        assert {case.dtype for case in mine} == set(DTYPES)
        assert {case.inputs()["x"].shape[operation == "loko.run"] for case in mine} >= {1}
    layers = [layer for case in NESTED for layer in walk(case.options["spec"])]
    for kind, knower in KINDS.items():
        found = [layer for layer in layers if layer["kind"] == kind]
        for key in knower.optional:
            values = {str(layer.get(key)) for layer in found}
            assert len(values) > 1 or kind == "linear", (kind, key)
    sites = [one for case in NESTED for one in linears(case.options["spec"]) if one.get("lora")]
    assert {one["name"].rsplit(".", 1)[-1] for one in sites} >= {*"qkvo", "f1", "f2", "patch"}
    assert {one["lora"]["r"] == min(one["in"], one["out"]) for one in sites} == {True, False}
    assert {one["lora"]["bias"] for one in sites} == {True, False}


def test_token_ids_are_whole_numbers_and_have_no_roundoff():
    texts = [case for case in NESTED if case.options["spec"][0]["kind"] == "embedding"]
    assert {case.exact for case in texts} == {("x", "evaluation")}
    assert all(case.exact == () for case in NESTED if case not in texts)
    for case in texts:
        x = case.inputs()["x"]
        assert str(x.dtype) == case.dtype
        assert (x == np.round(x)).all()
        moved = tolerance._Disturb(1).inputs(case.inputs(), case.exact)
        assert moved["x"] is not None
        np.testing.assert_array_equal(moved["x"], x)
        assert (moved["weights"]["emb.token"] != case.inputs()["weights"]["emb.token"]).all()


# --------------------------------------------------------------------------------- hunted


def norm(variance, root):
    return {"norm.variance": lambda v, x, mu: variance(x), "norm.deviation": root}


def variance(x):
    return x.var(axis=-1, keepdims=True)


def in_one_pass(x):
    x = x.astype(np.float32 if ROUND else np.float64)
    m = x.mean(axis=-1, keepdims=True)
    return (x * x).mean(axis=-1, keepdims=True) - m * m


ROUND = False


def root(var, eps):
    return 1 / np.sqrt(var + eps)


def interleaved(x, heads):
    return np.moveaxis(x.reshape(*x.shape[:-1], -1, heads), -1, -3)


def careless(v, s, seen):
    s = s.astype(np.float32 if ROUND else np.float64)
    w = np.exp(np.where(seen, s, -np.inf))
    return (w / w.sum(axis=-1, keepdims=True),)


def like_a_framework(v, s, seen):
    s = np.where(seen, s, -np.inf)
    w = np.exp(s - s.max(axis=-1, keepdims=True))
    return (w / w.sum(axis=-1, keepdims=True),)


def gelu_tanh(v, x):
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 0.134145 * x * x)


def patches(order, last=False):
    def wrong(image, ph, pw):
        (h, w), pairs = image.shape[2:], itertools.product
        at = [(i, j) for i, j in pairs(range(0, h, ph), range(0, w, pw))]
        cut = [image[:, :, i : i + ph, j : j + pw] for i, j in sorted(at, key=order)]
        cut = [np.moveaxis(p, 1, -1) if last else p for p in cut]
        return np.stack([p.reshape(len(p), -1) for p in cut], axis=1)

    return {"patches": wrong}


def mixed(scores):
    return {"scores_back": scores}


def rows_first(a, values, dy):
    return dy @ np.swapaxes(values, -1, -2), a @ dy


def swapped_sites(spec):
    """Sites with o before q."""
    sites = F["sites"](spec)
    return sorted(sites, key=lambda s: (s["name"].split(".")[0], s["name"]))


MADE = {
    "1/sqrt d": ("attention-heads", {"score_scale": lambda c: 1 / math.sqrt(6)}),
    "interleaved": ("attention-heads", {"split_heads": interleaved}),
    "no causal mask": ("attention-causal", {"causal": lambda t: np.ones((t, t), dtype=bool)}),
    "upside down": ("attention-causal", {"causal": lambda t: np.tri(t, dtype=bool).T}),
    "own key hidden": ("attention-causal", {"causal": lambda t: np.tri(t, k=-1, dtype=bool)}),
    "overflow": ("attention-saturated", {"attend": careless}),
    "softmax of one moves": ("attention-one-token", {"attend_back": lambda da, a: a * da}),
    "over d - 1": ("layernorm", norm(lambda x: x.var(axis=-1, ddof=1, keepdims=True), root)),
    "no gain back": ("layernorm", {"norm_back": lambda nu, s, g, d: F["norm_back"](nu, s, 1, d)}),
    "eps outside": ("layernorm-plain", norm(variance, lambda var, eps: 1 / (np.sqrt(var) + eps))),
    "another eps": ("layernorm-plain", norm(variance, lambda var, eps: root(var, 1e-5))),
    "one pass": ("layernorm-near-constant", norm(in_one_pass, root)),
    "no eps": ("layernorm-constant", norm(variance, lambda var, eps: 1 / np.sqrt(var))),
    "no residual": ("block-post", {"add": lambda x, y: y, "add_back": lambda d, inner: inner}),
    "residual not back": ("block-pre", {"add_back": lambda d, inner: inner}),
    "padding seen": ("text", {"seen": lambda v, mask, t, causal: np.ones((1, 1, 1, t), bool)}),
    "last token": ("text", {"pool.cls": lambda mask: F["pool.cls"](mask)[:, ::-1]}),
    "padding averaged": ("text-mean", {"pool.mean": lambda mask: np.ones(mask.shape) / 4}),
    "from 0": (
        "text-positions",
        {"position_rows": lambda real, start: F["position_rows"](real, None)},
    ),
    "over padding": (
        "text-positions",
        {"position_rows": lambda real, start: np.cumsum(np.ones_like(real, int), axis=1) + start},
    ),
    "no types": ("text-channels", {"embed_type": lambda table, types: 0.0}),
    "mask not read": ("text-channels", {"mask": lambda given, real: real}),
    "nan": ("text-left-padded", {"attend": like_a_framework}),
    "mask stays": (
        "text-learnt-tokens",
        {"seen": lambda v, mask, t, causal: F["seen"](v, np.roll(mask, -2, axis=1), t, causal)},
    ),
    "learnt tokens hidden": (
        "text-learnt-tokens",
        {"pool.mean": lambda mask: F["pool.mean"](mask & (np.arange(6) > 1))},
    ),
    "columns": ("image", patches(lambda at: at[::-1])),
    "channels last": ("image", patches(lambda at: at, last=True)),
    "[CLS] last": ("image", {"join": lambda head, x: np.concatenate([x, head], axis=1)}),
    "from 1": ("image", {"embed_position": lambda table, rows: table[(rows + 1) % len(table)]}),
    "width first": ("image-flat", patches(lambda at: at[::-1])),
    "q unscaled": (
        "block-lora-q",
        mixed(lambda v, q, k, ds: (ds @ k, F["scores_back"](v, q, k, ds)[1])),
    ),
    "k not transposed": (
        "block-lora-k",
        mixed(lambda v, q, k, ds: (F["scores_back"](v, q, k, ds)[0], ds @ q / math.sqrt(2))),
    ),
    "v not transposed": ("block-lora-v", {"values_back": rows_first}),
    "heads not merged": ("block-lora-o", {"merge_heads": lambda x: x.reshape(*x.shape[:-3], 3, 4)}),
    "gelu by erf": ("block-gelu-tanh", {"gelu_tanh": F["gelu"]}),
    "gelu by tanh": ("block-lora-f1", {"gelu": gelu_tanh}),
    "first token only": (
        "block-lora-f2",
        {"outer": lambda d, x: F["outer"](d[:, :, :1], x[:, :1])},
    ),
    "biases first": ("block-lora-bias", {"order": lambda names: [*names[2:], *names[:2]]}),
    "o before q": ("block-full-rank", {"sites": swapped_sites}),
    "blocks reversed": ("blocks-deep", {"sites": lambda spec: F["sites"](spec)[::-1]}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", MADE)
def test_a_case_catches_a_mistake_written_for_it(mistake, dtype, monkeypatch):
    name, changes = MADE[mistake]
    monkeypatch.setitem(globals(), "ROUND", dtype == "float32")
    (case,) = select(f"model.jacobian/{name}/{dtype}")
    table = {**FORMULA_TABLE, **changes}
    with np.errstate(all="ignore"):
        out = case.operation.plain(tolerance._wide(case.inputs()), case.options, table, identity)
        outputs = {key: np.asarray(value).astype(dtype) for key, value in out.items()}
    assert judge(case, Answer(outputs=outputs)).status in ("failed", "imprecise")


def test_a_wrong_entry_is_named_by_its_factor():
    (case,) = select("model.jacobian/block-pre/float64")
    outputs = {name: value.copy() for name, value in tolerance.expected(case).items()}
    # sites 0.q, 0.v, each A (2, 4) then B (4, 2): column 16 + 8 + 3 is B[1, 1] of 0.v
    outputs["Z"][2, 27] += 1
    check = judge(case, Answer(outputs=outputs))
    assert check.divergence.index == (2, 27)
    assert check.divergence.entry == "0.v.B[1, 1]"
    assert check.divergence.factors == ("0.v.B",)
    assert report.failure(check).endswith("[LORA-4], at 0.v.B[1, 1]; off in 0.v.B")
    document = report.as_json("t", [check], (), {case.id: ()})
    jsonschema.validate(document, schema.load("verify"))
    assert document["checks"][0]["first_divergence"]["entry"] == "0.v.B[1, 1]"
    assert document["checks"][0]["first_divergence"]["factors"] == ["0.v.B"]
    outputs["Z"][5, 1] -= 1e6
    check = judge(case, Answer(outputs=outputs))
    assert (check.divergence.entry, check.divergence.factors) == ("0.q.A[0, 1]", ("0.q.A", "0.v.B"))
    (case,) = select("loko.run/transformer/float64")
    outputs = {name: value.copy() for name, value in tolerance.expected(case).items()}
    outputs["K"][3, 5, 0] += 1
    outputs["K"][4] += np.eye(len(outputs["K"][4]), 3)
    wrong = judge(case, Answer(outputs=outputs)).divergence
    assert (wrong.index[0], wrong.entry) == (3, "0.q.B[1, 0]")
    assert wrong.factors == ("0.q.B",)  # of this step alone
    outputs = {name: value.copy() for name, value in tolerance.expected(case).items()}
    outputs["p"][2, 5] *= 2
    assert judge(case, Answer(outputs=outputs)).divergence.entry == "0.q.B[1, 0]"
    outputs["z"][1] += 1
    assert judge(case, Answer(outputs=outputs)).divergence.entry == ""


def test_a_mistake_at_one_site_is_found_there():
    """The keys' cotangent not transposed: only the factors of k, and those below, are off."""
    (case,) = select("model.jacobian/blocks-deep/float64")
    right = F["scores_back"]

    def wrong(v, q, k, ds):
        dq, dk = right(v, q, k, ds)
        return dq, 2 * dk

    table = {**FORMULA_TABLE, "scores_back": wrong}
    inputs = tolerance._wide(case.inputs())
    out = case.operation.plain(inputs, case.options, table, identity)
    off = judge(case, Answer(outputs=out)).divergence.factors
    assert {"1.k.A", "1.k.B"} <= set(off)
    assert not {"1.q.A", "1.q.B", "1.v.A", "1.o.A", "1.f1.A", "1.f2.B"} & set(off)


def test_who_does_not_know_a_kind_declines():
    right = load(str(EXAMPLES / "my_loko.py")).functions

    def flat_alone(*, spec, **rest):
        for layer in spec:
            if layer["kind"] not in FLAT:
                raise NotImplementedError(f"no layer of kind '{layer['kind']}'")
        return right["model.jacobian"](spec=spec, **rest)

    target = Implementation(target="flat", functions={"model.jacobian": flat_alone})
    cases = [case for case in all_cases() if case.operation.name == "model.jacobian"]
    done = run(target, cases)
    assert {check.case.id for check in done if check.status == "unsupported"} == {
        case.id for case in cases if case in NESTED
    }
    assert {check.status for check in done if check.case not in NESTED} == {"passed"}
    summary = summarise(done)
    assert summary.unsupported == len(done) - summary.passed > 40
    reason = "it declines (NotImplementedError: no layer of kind 'attention')"
    assert reason in {check.reason for check in done}


def test_a_harness_that_does_not_know_a_kind_declines():
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    with Command(shlex.join(["node", str(EXAMPLES / "harness.js")])) as command:
        done = run(command, select("loko.step/transformer*"))
    assert {check.status for check in done} == {"unsupported"}
    assert {check.reason.split("kind ")[1] for check in done} >= {"residual", "embedding"}
