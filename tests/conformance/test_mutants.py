"""The catalogue of mistakes: each is caught, and named first; right code is never accused."""

import io
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from command import loko_ref
from rich.console import Console
from sampling import LONG, SHARE, sample

from loko_ref.conformance.assessment import score
from loko_ref.conformance.cases import registry as cases
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.diagnose.naming import fit, name_mistakes
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.mistakes.registry import (
    NOTHING,
    all_mutants,
    as_implementation,
    evaluate,
    idle,
    mutant,
)
from loko_ref.conformance.reports import document as report
from loko_ref.conformance.reports import junit, page
from loko_ref.conformance.reports.terminal import print_report
from loko_ref.files import documents as schema

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
MUTANTS = all_mutants()
BY_ID = {m.id: m for m in MUTANTS}
# of the long runs the short ones suffice here, of LTE's one of each kind; `loko-ref mutants
# --score` takes all
FEW = {
    "loko.run": ("glm-stacked", "glm-forgetting", "logits-after", "gaussian-residual"),
    "lte.run": (
        *("sgd", "adamw", "adamw-fresh", "reset-B", "biased", "mse", "mhlora", "mhlora-sum"),
        *("copies", "copies-reset-AB", "rates", "reset-at", "evaluated", "evaluated-reset"),
        *("loko", "loko-reset", "loko-shrink", "loko-prior", "loko-fresh"),
    ),
}
CASES = [
    c
    for c in all_cases()
    if c.dtype == "float64" and c.recipe.name in FEW.get(c.operation.name, (c.recipe.name,))
]


def test_catalogue():
    assert len(MUTANTS) >= 200
    assert len(BY_ID) == len(MUTANTS)
    for m in MUTANTS:
        assert m.name
        assert m.explanation.endswith(".")
        assert m.look
        assert (m.example is not None) == bool(m.sizes)


def test_an_id_is_not_given_twice():
    with pytest.raises(AssertionError, match="defined twice"):
        mutant("S-JITTER", "", "", "")


COVERED = [
    pytest.param(case, key, id=f"{case.id}-{key}")
    for case in all_cases()
    for key in case.recipe.covers
    if case.dtype == "float64"
]


def caught(key, case):
    target = as_implementation(BY_ID[key], BY_ID[key].example)
    (check,) = run(Implementation(target=key, functions=target), [case])
    return check.status in ("failed", "imprecise")


@pytest.mark.verdict
@pytest.mark.sampled(0.03)
@pytest.mark.parametrize(("case", "key"), COVERED)
def test_a_case_catches_each_mistake_that_it_covers(case, key):
    assert caught(key, case)


@pytest.mark.verdict
@pytest.mark.sampled(0.02)
@pytest.mark.parametrize("one", MUTANTS, ids=lambda m: m.id)
def test_a_mistake_is_caught_in_float32_by_a_case_that_covers_it(one):
    cases = [c for c in all_cases() if c.dtype == "float32" and one.id in c.recipe.covers]
    # what has no more digits than float32 is seen in float64 alone
    assert any(caught(one.id, c) for c in cases) == (one.id not in ("SINGLE", "SCALE-SINGLE"))


@pytest.mark.verdict
@pytest.mark.sampled(0.02)
@pytest.mark.parametrize("one", MUTANTS, ids=lambda m: m.id)
def test_caught_and_named_first(one):
    # of the long runs, whose units take long, by default those alone in which the mistake acts
    everywhere = LONG or SHARE > 1
    cases = [c for c in CASES if everywhere or c.operation.name != "lte.run" or not idle(one, c)]
    outcome = score.outcome(one, cases)
    if outcome.first != one.id and cases != CASES:  # what passes elsewhere tells mistakes apart
        outcome = score.outcome(one, CASES)
    assert outcome.failed > 0
    stated = {i for group in score.INDISTINGUISHABLE for i in group}
    assert outcome.first == one.id or one.id in stated, outcome


def test_the_mutation_machinery_itself_changes_nothing():
    """With no formula changed, the noisy implementation that the score is made of passes."""
    cases = sample(all_cases(), 0.12, by=lambda c: (c.operation.name, c.dtype))
    checks = run(Implementation(target="none", functions=as_implementation(NOTHING)), cases)
    assert {c.status for c in checks} == {"passed"}
    assert name_mistakes(checks) == {}


@pytest.mark.parametrize("key", ["SCORES-UNSCALED", "NORM-AXIS", "RELU-LEAKY", "ADAMW-L2"])
def test_where_a_mutant_is_idle_it_is_right_code_to_the_bit(key):
    one = BY_ID[key]
    still = [c for c in CASES if idle(one, c)]
    assert 0 < len(still) < len(CASES)
    for case in still[::5]:
        right, got = evaluate(NOTHING, case), evaluate(one, case, one.example)
        assert all(np.array_equal(right[name], got[name]) for name in right)
    assert not any(idle(BY_ID["SINGLE"], c) for c in CASES)  # it changes what every formula gives


@pytest.mark.verdict
@pytest.mark.parametrize(
    ("key", "size"), [("S-JITTER", 1e-9), ("P-FLOOR", 0.1), ("THETA-LEARNING-RATE", 0.5)]
)
def test_a_size_is_fitted(key, size):
    functions = as_implementation(BY_ID[key], size)
    checks = run(
        Implementation(target=key, functions=functions),
        select("kalman.diagonal_update", "float64"),
    )
    named = name_mistakes(checks)
    firsts = [fits[0] for fits in named.values() if fits]
    assert {m.mutant.id for m in firsts} == {key}
    assert np.median([m.size for m in firsts]) == pytest.approx(size, rel=1e-4)


@pytest.mark.verdict
def test_a_softmax_without_its_maximum_fails_where_it_overflows_and_before():
    functions = as_implementation(BY_ID["SOFTMAX-NAIVE"])
    checks = run(
        Implementation(target="naive", functions=functions), select("observation.*", "float64")
    )
    failed = [c for c in checks if c.status == "failed"]
    kinds = ("softmax", "logits", "glm")
    assert {c.case.id for c in failed} == {
        f"observation.{kind}/{name}/float64" for kind in kinds for name in ("overflow", "subnormal")
    }
    for check in failed:
        nan = np.isnan(check.outputs["yhat"])
        assert nan.any() == ("overflow" in check.case.id)
    named = name_mistakes(checks)
    assert [named[f"observation.{kind}/subnormal/float64"][0].mutant.id for kind in kinds] == [
        "SOFTMAX-NAIVE"
    ] * len(kinds)


@pytest.mark.verdict
def test_single_precision_inside_is_named():
    right = load(str(HERE / "einsum_loko.py")).functions["kalman.diagonal_update"]

    def single(**keywords):
        narrow = {
            k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in keywords.items()
        }
        return {k: v.astype(keywords["p"].dtype) for k, v in right(**narrow).items()}

    target = Implementation(target="single", functions={"kalman.diagonal_update": single})
    checks = run(target, select("kalman.diagonal_update"))
    assert {c.status for c in checks if c.case.dtype == "float32"} == {"passed"}
    named = name_mistakes(checks)
    leading = [fits[0].mutant.id if fits else None for fits in named.values()]
    assert leading.count("SINGLE") >= len(leading) - 2, leading


def _jittered(right, theta, e, **keywords):
    """As many write it: S made safe, then inverted."""
    out = right(theta=theta, e=e, **keywords)
    covariance = "p" if "p" in out else "P"
    prior = out.get("p_pred", keywords.get("P"))
    H, R = out.get("H", keywords.get("H")), out.get("R_used", keywords.get("R"))
    PH = prior[:, None] * H.T if covariance == "p" else prior @ H.T
    S = H @ PH + R + 3e-7 * np.eye(len(R))
    K = PH @ np.linalg.inv(S)
    after = prior * (1 - (K * H.T).sum(axis=1)) if covariance == "p" else prior - K @ H @ prior
    out |= {"S": S, "K": K, "theta": theta + K @ out.get("e", e), covariance: after}
    return {name: value.astype(theta.dtype) for name, value in out.items()}


@pytest.mark.verdict
def test_a_jitter_of_float32s_roundoff_is_not_taken_for_single_precision():
    """Its formula gives the numbers to the last digit; rounding does that by no chance."""
    right = load(str(HERE / "einsum_loko.py")).functions

    def step(theta, **keywords):
        return _jittered(lambda e, **given: right["loko.step"](**given), theta, None, **keywords)

    def update(**keywords):
        return _jittered(right["kalman.dense_update"], **keywords)

    functions = {"kalman.dense_update": update, "loko.step": step}
    names = ("glm", "glm-stacked", "glm-relu", "glm-variational")
    cases = [*select("kalman.dense*"), *(c for n in names for c in select(f"loko.step/{n}/*"))]
    checks = run(Implementation(target="jitter", functions=functions), cases)
    named = name_mistakes([c for c in checks if "variational" not in c.case.id])
    assert len(named) >= len(cases) / 2
    for fits in named.values():
        assert "SINGLE" not in [m.mutant.id for m in fits]
        assert fits[0].mutant.id == "S-JITTER"
        assert fits[0].size == pytest.approx(3e-7, rel=1e-3)


@pytest.mark.verdict
def test_what_a_run_does_not_tell_apart_is_said():
    right = load(str(HERE / "einsum_loko.py")).functions["kalman.dense_update"]
    functions = {"kalman.dense_update": lambda **given: _jittered(right, **given)}
    checks = run(Implementation(target="jitter", functions=functions), select("kalman.dense*"))
    named = name_mistakes(checks)
    first = {(fits[0].mutant.id, fits[0].alike) for fits in named.values() if fits}
    assert len(first) == 1  # one order for all checks
    ((key, alike),) = first
    assert {key, *alike} == {"S-JITTER", "R-JITTER"}
    text = io.StringIO()
    print_report(Console(file=text, width=200), "jitter", checks, (), named)
    assert f"not distinguished in this run from: {alike[0]}" in text.getvalue()
    assert f"Not distinguished in this run from: {alike[0]}." in page.as_html(
        "jitter", checks, (), named
    )
    said = f"not distinguished in this run from: {alike[0]}"
    assert said in junit.as_xml("jitter", checks, named, {}).decode()
    document = report.as_json("jitter", checks, (), named)
    jsonschema.validate(document, schema.load("verify"))
    mistakes = [m for c in document["checks"] for m in c.get("mistakes", ()) if m["id"] == key]
    assert mistakes
    assert {tuple(m["alike"]) for m in mistakes} == {alike}


@pytest.mark.verdict
def test_an_unknown_mistake_is_said_to_be_unknown():
    right = load(str(HERE / "einsum_loko.py")).functions["kalman.diagonal_update"]

    def odd(**keywords):
        out = right(**keywords)
        out["theta"] = out["theta"] + np.sin(7 * out["theta"]).astype(out["theta"].dtype)
        return out

    target = Implementation(target="odd", functions={"kalman.diagonal_update": odd})
    checks = run(target, select("kalman.diagonal_update", "float64"))
    named = name_mistakes(checks)
    assert named
    assert not any(named.values())
    document = report.as_json("odd", checks, (), named)
    failed = [c for c in document["checks"] if c["status"] == "failed"]
    assert [c["mistakes"] for c in failed] == [[]] * len(failed)


def _decayed(out):
    out["theta"] = out["theta"] * out["theta"].dtype.type(0.999)
    return out


def _smaller_gain(out):
    out["K"] = out["K"] * out["K"].dtype.type(0.999)
    return out


@pytest.mark.verdict
@pytest.mark.parametrize("odd", [_decayed, _smaller_gain])
def test_a_small_mistake_is_not_taken_for_lost_digits(odd):
    """S is right to the last digit: what comes after it is off for another reason."""
    right = load(str(HERE / "einsum_loko.py")).functions
    names = ("kalman.diagonal_update", "kalman.dense_update")
    functions = {name: lambda f=right[name], **given: odd(f(**given)) for name in names}
    checks = run(Implementation(target="odd", functions=functions), select("kalman.d*"))
    named = name_mistakes(checks)
    assert named
    for fits in named.values():  # its formula is found
        assert all(" times 0.999" in m.equation for m in fits)
    assert all(named.values())


@pytest.mark.larger
@pytest.mark.verdict
def test_half_precision_inside_is_named_where_the_time_update_is_right():
    """As with TF32: products alone lose digits."""
    right = load(str(HERE / "einsum_loko.py")).functions["kalman.diagonal_update"]

    def coarse(**keywords):
        narrow = {
            k: v.astype(np.float16).astype(v.dtype) if isinstance(v, np.ndarray) else v
            for k, v in keywords.items()
        }
        return right(**narrow)

    functions = {"kalman.diagonal_update": coarse}
    checks = run(Implementation(target="half", functions=functions), select("kalman.diagonal*"))
    named = name_mistakes(checks)
    leading = [fits[0].mutant.id if fits else None for fits in named.values()]
    assert leading.count("HALF") >= 0.75 * len(leading), leading


@pytest.mark.verdict
def test_one_number_alone_does_not_prove_a_size():
    """Some beta gives any R of one entry: of a floor under R nothing is known."""
    right = load(str(HERE / "einsum_loko.py")).functions["noise.update"]

    def floored(**keywords):
        R = right(**keywords)["R"]
        return {"R": R + R.dtype.type(0.2) * np.eye(len(R), dtype=R.dtype)}

    target = Implementation(target="floor", functions={"noise.update": floored})
    checks = run(target, select("noise.update", "float64"))
    assert any(c.status == "failed" and c.outputs["R"].size == 1 for c in checks)
    named = name_mistakes(checks)
    assert not any(named.values()), named


def test_a_size_that_belies_more_than_it_explains_is_not_named():
    """An innovation clipped where it is large looks like labels smoothed, in a case or two."""
    right = load(str(EXAMPLES / "my_loko.py")).functions

    def clipped(kind):
        def function(**keywords):
            out = right[kind](**keywords)
            return out | {"e": np.clip(out["e"], -0.5, 0.5)}

        return function

    kinds = ("observation.softmax", "observation.logits", "observation.glm")
    target = Implementation(target="clip", functions={k: clipped(k) for k in kinds})
    named = name_mistakes(run(target, select("observation.*", "float64")))
    assert named
    equations = {m.equation for fits in named.values() for m in fits}
    assert equations == {"e = (y - yhat) clipped to +-0.5"}  # no known mistake: the formula itself


def test_a_fit_needs_every_output():
    """A right S with another K than the mutant's is not that mutant."""
    (case,) = select("kalman.diagonal_update/random/float64")
    from loko_ref.conformance.engine import judge
    from loko_ref.conformance.judge.answer import Answer

    outputs = dict(evaluate(BY_ID["S-NO-R"], case))
    assert fit(BY_ID["S-NO-R"], judge(case, Answer(outputs=outputs))) is not None
    outputs["p"] = outputs["p"] * 1.001
    assert fit(BY_ID["S-NO-R"], judge(case, Answer(outputs=outputs))) is None


def cli(*arguments):
    return loko_ref(*arguments)


def test_verify_names_the_mistake(tmp_path):
    out = tmp_path / "r.json"
    target = EXAMPLES / "my_buggy_loko.py"
    result = cli("verify", target, "--only", "model.jacobian", "--json", out)
    assert result.returncode == 1
    assert "JACOBIAN-NO-SCALE: scale missing in the Jacobian; it reproduces" in result.stdout
    assert "correct formula: dB = scale * outer(dy, A x)" in result.stdout
    document = json.loads(out.read_text())
    schema = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["id", "name", "explanation"],
            "properties": {k: {"type": "string"} for k in ("id", "name", "explanation", "look")},
        },
    }
    for check in document["checks"]:
        if check["status"] == "failed":
            jsonschema.validate(check["mistakes"], schema)
            assert check["mistakes"][0]["id"] == "JACOBIAN-NO-SCALE"
        else:
            assert "mistakes" not in check


@pytest.mark.larger
def test_cli_mutants(tmp_path, monkeypatch):
    out = tmp_path / "m.json"
    result = cli("mutants", "--json", out)
    assert result.returncode == 0
    assert "S-JITTER: jitter added to S" in result.stdout
    assert len(json.loads(out.read_text())["mutants"]) == len(MUTANTS)
    few = CASES if LONG else [c for c in CASES if c.operation.name.startswith(("kalman", "loko"))]
    monkeypatch.setattr(cases, "select", lambda dtype: few)  # it takes all: minutes of units
    result = cli("mutants", "--score", "--only", "TIME-Q-*", "--json", out)
    assert result.returncode == 0, result.stdout
    document = json.loads(out.read_text())
    assert (document["mutants"], document["caught"], document["named_first"]) == (5, 5, 5)
    assert document["indistinguishable"] == []
    assert "mutants 5, caught 5, named first 5" in result.stdout
    assert cli("mutants", "--only", "nothing").returncode == 2
