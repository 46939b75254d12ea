"""The catalogue and its cases: complete, deterministic, judged, and the two routes agree."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loko_ref.conformance.cases import combinations
from loko_ref.conformance.cases.registry import DTYPES, Draw, all_cases, define, select
from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS, get
from loko_ref.conformance.judge import tolerance
from loko_ref.conformance.mistakes.registry import all_mutants
from loko_ref.errors import InputError
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import choices

CASES = all_cases()


def of(case):
    return case.operation.name, case.dtype


def test_names():
    assert CATALOGUE == "operations/3"
    kinds = ("gaussian", "softmax", "logits", "glm")
    assert set(OPERATIONS) >= {
        "kalman.dense_update",
        "kalman.diagonal_update",
        "kalman.time_update",
        *(f"observation.{kind}" for kind in kinds),
        "noise.update",
        "lora.delta",
        "lora.merge",
        "model.forward",
        "model.jacobian",
        "loko.step",
        "loko.run",
        *(f"optimizer.{kind}" for kind in ("sgd", "adagrad", "adamw")),
    }


def test_diagonal_update_is_described_as_promised():
    operation = get("kalman.diagonal_update")
    assert [i.name for i in operation.inputs] == ["theta", "p", "H", "e", "R"]
    (option,) = operation.options
    assert (option.name, option.default) == ("diagonal", "decoupled")
    assert option.choices == ("decoupled", "variational")
    assert [o.name for o in operation.outputs] == ["S", "K", "theta", "p"]


def test_a_step_is_described_without_gaps():
    """What an implementer could not know from the formulas' names is said."""
    options = {o.name: o.text for o in get("loko.step").options}
    outputs = {o.name: o.formula for o in get("loko.step").outputs}
    assert "H still the prior's" in options["noise"]
    assert "timing after only" in options["noise"]
    assert "observation glm goes with noise glm and no other" in options["noise"]
    assert "relu's derivative at 0 is 0" in options["spec"]
    assert "p here is p_pred" in options["diagonal"]
    assert "(I + J Z P_pred Z')^-1" in outputs["K"]
    assert "beta1^t" in get("optimizer.adamw").outputs[-1].formula


def test_combinations_of_the_cases_are_those_described():
    for case in CASES:
        if not case.operation.name.startswith("loko."):
            continue
        o = case.options
        assert (o["observation"] == "glm") == (o["noise"] == "glm")
        assert o["noise"] != "ema_residual_hph" or o["timing"] == "after"
        assert not o["center"] or o["observation"] == "logits"


def test_R_keeps_constants_where_described():
    for case in CASES:
        o = case.options
        if case.operation.name not in ("loko.step", "loko.run") or o["noise"] == "glm":
            continue
        if o["observation"] == "softmax" or o["center"]:
            x = case.inputs()
            batch, C = x["y"].shape[-2:]
            constants = np.kron(np.eye(batch), np.ones((C, 1)))
            moved = (x["R"] @ constants).reshape(batch, C, batch)
            np.testing.assert_allclose(moved, moved[:, :1] + 0 * moved, rtol=1e-6)


def test_unknown_operation_names_the_closest():
    with pytest.raises(InputError, match=r"closest known name is 'kalman\.dense_update'"):
        get("kalman.dense_updat")


def test_ids_are_unique_and_every_operation_has_cases_in_both_dtypes():
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids) >= 40
    for operation in OPERATIONS:
        assert {c.dtype for c in CASES if c.operation.name == operation} == set(DTYPES)


def test_every_case_covers_a_known_mistake_and_every_mistake_is_covered_twice():
    """Combinations of options, which are generated, are named by their options instead."""
    covered = Counter()
    for recipe in {case.recipe for case in CASES}:
        assert recipe.covers or recipe.text
        assert len(set(recipe.covers)) == len(recipe.covers)
        covered.update(recipe.covers)
    known = {one.id for one in all_mutants()}
    assert set(covered) == known
    assert min(covered.values()) >= 2, covered.most_common()[-1]


@pytest.mark.sampled(0.07, by=of)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case):
    """Inputs as described, deterministic; the plain route within tolerance of the oracle."""
    inputs, again = case.inputs(), case.inputs()
    described = {i.name: i for i in case.operation.inputs}
    assert set(inputs) <= set(described)
    assert set(described) - set(inputs) <= {n for n, i in described.items() if i.optional}
    for name, value in inputs.items():
        for a, b in (
            [(value, again[name])]
            if isinstance(value, np.ndarray)
            else [(value[k], again[name][k]) for k in value]
        ):
            assert a.dtype == case.dtype
            assert a.tobytes() == b.tobytes()
            assert np.isfinite(a).all()
            assert a is not b
    assert set(case.options) == {o.name for o in case.operation.options}

    wanted, allowed = tolerance.expected(case), tolerance.tolerance(case)
    plain = case.operation.plain(
        tolerance._wide(inputs), case.options, FORMULA_TABLE, lambda name, value: value
    )
    order = [o.name for o in case.operation.outputs if o.name in wanted]
    assert list(wanted) == order
    assert list(plain) == order
    u = np.finfo(case.dtype).eps / 2
    for name in wanted:
        assert allowed[name] is not None, "every case is made so that it can be judged"
        # both routes are float64's: they agree to the float64 tolerance in either dtype
        bound = allowed[name] * (np.finfo(np.float64).eps / 2 / u)
        got = tolerance.canonical(case, name, plain[name])
        bound = np.maximum(bound, 4e-308)
        assert (np.abs(got - wanted[name]) <= 0.5 * bound).all(), name


@pytest.mark.sampled(0.07, by=of)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_tolerance_is_tight(case):
    """Half of the digits at least: no tolerance beyond sqrt(u)-ish of the quantity's size."""
    limit = {"float64": 1e-4, "float32": 0.12}[case.dtype]
    for name, allowed in tolerance.tolerance(case).items():
        size = np.abs(tolerance.expected(case)[name]).max()
        assert size == 0 or np.median(allowed) <= limit * size, name


def test_tolerance_is_deterministic():
    case = select("kalman.diagonal_update/random/float64")[0]
    first = tolerance.unit(case)
    tolerance.unit.cache_clear()
    for name, unit in tolerance.unit(case).items():
        assert unit.size.tobytes() == first[name].size.tobytes()


def test_conditioning_widens_the_unit():
    random = select("kalman.diagonal_update/random/float64")[0]
    hard = select("kalman.diagonal_update/ill-conditioned-S/float64")[0]
    relative = {
        case.id: np.median(tolerance.unit(case)["K"].size / np.abs(tolerance.expected(case)["K"]))
        for case in (random, hard)
    }
    assert relative[hard.id] > 1e3 * relative[random.id]


def test_a_hopeless_quantity_is_not_judged():
    name = "made-hopeless-for-a-test"

    @define("kalman.diagonal_update", name, "")
    def _(draw: Draw, dtype: str):
        x = {"theta": draw(6), "p": draw.positive(6), "H": 1e-9 * draw(3, 6), "e": draw(3)}
        return {**x, "R": draw.spd(3, 1e12)}

    from loko_ref.conformance.cases.registry import _RECIPES, Case

    recipe = _RECIPES.pop(f"kalman.diagonal_update/{name}")
    case = Case(id=f"kalman.diagonal_update/{name}/float32", recipe=recipe, dtype="float32")
    moved = tolerance.unit.__wrapped__  # the oracle refuses such an S in float32's digits or not
    assert moved(case)["K"].size.min() > 0
    assert tolerance.tolerance(case)["K"] is None
    assert tolerance.tolerance(case)["S"] is not None


def test_a_case_is_not_defined_twice():
    for name in ("tiny", "untrained"):  # the latter is withdrawn
        with pytest.raises(AssertionError, match="defined twice"):
            define("lora.delta", name, "")(lambda draw, dtype: {})


def test_select():
    assert {c.operation.name for c in select("observation.*")} == {
        n for n in OPERATIONS if n.startswith("observation.")
    }
    assert {c.dtype for c in select(dtype="float32")} == {"float32"}
    with pytest.raises(InputError, match="only: got 'nothing'"):
        select("nothing")
    with pytest.raises(InputError, match="dtype: got 'float16'"):
        select(dtype="float16")


def test_labels_of_a_case_are_those_of_its_options():
    """Each is an output's label, or a layer's; what the options rule out is not among them."""
    for case in select(dtype="float64")[::6]:
        for output in case.operation.outputs:
            if output.name not in tolerance.expected(case):
                continue
            found = case.operation.labels(output.name, case.options)
            assert found, (case.id, output.name)
            if output.name != "z" or case.operation.name.startswith("lte"):
                assert set(found) <= set(output.labels), (case.id, output.name)
            if case.operation.name == "lte.run":
                assert ("LTE-4" in found) <= (case.options["realisation"] == "copies")
                assert ("LTE-6" in found) <= (case.options["reset"] != "none")
    for key, name, labels in (
        ("kalman.diagonal_update/random/float64", "p", ("DIAG-1", "DIAG-4")),
        ("kalman.diagonal_update/random-variational/float64", "p", ("DIAG-2", "DIAG-4")),
        ("model.forward/tanh/float64", "z", ("LAY-1", "LAY-2", "LAY-3", "LAY-4")),
        ("lte.merge/reset/float64", "seen", ("LTE-3", "LTE-5", "LTE-6")),
    ):
        (case,) = select(key)
        assert case.operation.labels(name, case.options) == labels, key


def test_labels_are_derivation_labels():
    label = re.compile(r"^[A-Z]+-\d+$")
    for operation in OPERATIONS.values():
        for output in operation.outputs:
            assert output.labels
            assert all(label.match(one) for one in output.labels)
            assert output.feeds
            known = {i.name for i in operation.inputs} | {o.name for o in operation.outputs}
            assert set(output.feeds) <= known, (operation.name, output.name)


def test_catalogue_labels_are_defined():
    folder = Path(__file__).parents[2] / "derivations"
    if not folder.is_dir():
        pytest.skip("the derivations are not beside the tests")
    text = "".join(path.read_text() for path in folder.glob("*.md"))
    defined = set(re.findall(r"^### \[([A-Z]+-\d+)\]", text, re.MULTILINE))
    for operation in OPERATIONS.values():
        for output in operation.outputs:
            assert set(output.labels) <= defined, (operation.name, output.name)


def test_unit_of_a_known_function():
    """W, A, B and the stored W+ each move by u: the units of lora.merge by hand.  [TOL-1]."""
    case = select("lora.merge/random/float64")[0]
    x, u = case.inputs(), np.finfo(np.float64).eps / 2
    scale = case.options["alpha"] / 3
    terms = scale**2 * (x["B"] ** 2 @ x["A"] ** 2)  # sum over r of (scale B_or A_ri)^2
    merged = x["W"] + scale * x["B"] @ x["A"]
    nu = u * np.sqrt(x["W"] ** 2 + 2 * terms + merged**2)  # W, A and B, W+ as it is stored
    ratio = tolerance.unit(case)["W"].size / nu
    assert (ratio > 1 / 3).all()
    assert (ratio < 3).all()


def network_of(case):
    kinds = [layer["kind"] for layer in case.options["spec"]]
    return next((k for k in ("relu", "tanh", "gelu") if k in kinds), "transformer")


@pytest.mark.parametrize("operation", ["loko.step", "loko.run"])
def test_every_combination_of_options_has_a_case(operation):
    """All of them by name, and each two values of an option, network, batch and forgetting meet."""
    cases = {c.recipe.name: c for c in select(f"{operation}/*/float64")}
    generated, pairs = [], set()
    for chosen in choices():
        case = cases[combinations.named(chosen)]
        assert {k: case.options[k] for k in chosen} == chosen
        generated.append(case)
    assert len(generated) == 78
    for case in generated:
        lead = case.inputs()["y"].shape
        traits = [f"{k}={case.options[k]}" for k in ("observation", "noise", "covariance")]
        traits += [network_of(case), f"batch {lead[-2]}"]
        traits += [f"lam {case.options['lam'] < 1}", f"q {case.options['q'] > 0}"]
        pairs |= {(a, b) for a in traits for b in traits}
    traits = {a for a, _ in pairs}
    networks = {"relu", "tanh", "gelu", "transformer"}
    assert networks <= traits
    for network in networks:
        for other in traits - networks:
            if other not in ("noise=glm", "observation=glm"):  # three combinations alone
                assert (network, other) in pairs, (network, other)
    for covariance in ("covariance=dense", "covariance=diagonal"):
        for other in ("lam True", "lam False", "q True", "q False", "batch 1", "batch 2"):
            assert (covariance, other) in pairs


def test_a_shared_case_has_the_same_numbers_in_both_dtypes():
    one, other = select("loko.step/glm-glm-before-decoupled/*")
    for name, value in one.inputs().items():
        if name != "weights":
            np.testing.assert_array_equal(value, other.inputs()[name])
    assert other.twin is one
    more = np.finfo("float32").eps / np.finfo("float64").eps
    alone = dataclasses.replace(other, recipe=dataclasses.replace(other.recipe, shared=False))
    for name, unit in tolerance.unit(alone).items():  # found anew, by another seed
        size = np.maximum(tolerance.unit(one)[name].size * more, np.finfo("float32").tiny)
        np.testing.assert_array_less(size / 3, unit.size)
        np.testing.assert_array_less(unit.size, 3 * size)
        np.testing.assert_array_equal(tolerance.unit(other)[name].size, size)
