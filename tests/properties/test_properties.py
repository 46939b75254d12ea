"""The properties: right code has every one, wrong code lacks some, and failures can be read."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from command import loko_ref as run

import loko_ref
from loko_ref.conformance.cases.registry import select as select_cases
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.mistakes.registry import NOTHING, all_mutants, as_implementation, idle
from loko_ref.conformance.oracle import loko as oracle
from loko_ref.conformance.user_inputs import read_case
from loko_ref.errors import InputError
from loko_ref.properties import PROFILES, all_properties, check, check_all, matrix, parametrize
from loko_ref.properties.running import select
from loko_ref.properties.trial import Trial, Unsuitable, exact, inverse

FACTS = all_properties()
ROOT = Path(__file__).parents[2]
RIGHT = Implementation(target="right", functions=as_implementation(NOTHING))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FACTS)
def test_right_code_has_every_property(name):
    """By the plain formulas, with rounding errors of its own."""
    fact = FACTS[name]
    drawn = matrix.problems(fact)
    assert drawn, "it says nothing about any problem"
    compared = 0
    for problem, _ in drawn:
        trial = Trial(fact, RIGHT, problem)
        with contextlib.suppress(Unsuitable):  # what cannot be judged differs by the rounding
            fact.check(trial)
        compared += trial.compared
    assert compared, "it compares nothing"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mistake", all_mutants(), ids=[m.id for m in all_mutants()])
def test_every_known_mistake_is_found_or_listed(mistake):
    """By properties alone: no expected value."""
    reached = {c.operation.name for c in select_cases(dtype="float64") if not idle(mistake, c)}
    rows = (matrix.row(mistake, [f]) for f in FACTS.values() if f.operation in reached)
    read = False
    for row in rows:
        read |= bool(row.read)
        if row.found:
            assert mistake.id not in matrix.UNSEEN
            return
    assert mistake.id in matrix.UNSEEN or not read


def test_the_list_of_what_is_not_found_is_short_and_explained():
    ids = [m.id for m in all_mutants()]
    assert set(matrix.UNSEEN) <= set(ids)
    assert all(matrix.UNSEEN.values())
    assert len(matrix.UNSEEN) <= (1 - matrix.LEAST) * len(ids)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FACTS)
def test_every_property_finds_a_mistake(name):
    assert any(matrix.row(m, [FACTS[name]]).found for m in all_mutants())


# ------------------------------------------------------------------------------ what users meet


def filter_by(gain=1.0, change=lambda p: p):
    """A diagonal update with one thing changed."""

    def update(theta, p, H, e, R, diagonal="decoupled"):
        if diagonal != "decoupled":
            raise NotImplementedError
        K = np.linalg.solve((H * p) @ H.T + R, H * p).T
        return {
            "theta": theta + theta.dtype.type(gain) * (K @ e),
            "p": change(p - np.einsum("nm,mn->n", K, H) * p),
        }

    return {"kalman.diagonal_update": update}


def diagonal_noise(theta, p, H, e, R):
    out = oracle.diagonal_update({"theta": theta, "p": p, "H": H, "e": e, "R": np.diag(np.diag(R))},
                                 {"diagonal": "decoupled"})  # fmt: skip
    return {name: np.asarray(out[name], theta.dtype) for name in ("theta", "p")}


CLIPPED = filter_by(change=lambda p: np.minimum(p, p.dtype.type(0.6)))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        (filter_by(gain=0.9), "residual"),
        (filter_by(gain=0.9), "stationary"),
        (filter_by(gain=0.9), "certain"),
        (filter_by(change=lambda p: np.maximum(p, p.dtype.type(0.6))), "information"),
        (CLIPPED, "information"),
        (CLIPPED, "vague"),
        (CLIPPED, "unseen"),
        ({"kalman.diagonal_update": diagonal_noise}, "stationary"),
        ({"kalman.diagonal_update": diagonal_noise}, "mixed"),
    ],
)
def test_a_mistake_is_shown_on_a_problem_that_can_be_read(wrong, fact, tmp_path):
    """At most two parameters and outputs, small whole numbers; under ten lines; a case."""
    results = check_all(wrong, only=f"kalman.diagonal_update/{fact}")
    (outcome,) = results.failures
    held = outcome.problem.inputs
    assert max(held["H"].shape) <= 2
    for array in held.values():
        assert (array == np.round(array)).all()
        assert np.abs(array).max() <= 4
    assert outcome.snippet.count("\n") < 9
    with pytest.raises(AssertionError, match=r"\[[A-Z]+-\d"):
        exec(outcome.snippet, {"IMPLEMENTATION": wrong})
    outcome.save_case(tmp_path / "case.json")
    assert loko_ref.verify(wrong, case=tmp_path / "case.json").summary.ran == 1
    with pytest.raises(AssertionError, match=r"from loko_ref\.properties import check"):
        results.raise_if_failed()


@pytest.mark.larger
@pytest.mark.sampled(1)
@pytest.mark.parametrize("fact", ["pooler", "heads permuted", "order of the norms", "padding"])
def test_an_example_of_a_transformer_is_under_ten_lines(fact):
    """By a network's maker or without what it has by default; the call repeats the failure."""

    def wrong(weights, spec, x):
        z = as_implementation(NOTHING)["model.forward"](weights=weights, spec=spec, x=x)["z"]
        terms = (
            np.sum(a * (1 + np.arange(a.size)).reshape(a.shape)) for a in (x, *weights.values())
        )
        return {"z": z + z.dtype.type(sum(terms))}

    target = {"model.forward": wrong}
    (outcome,) = check_all(target, only=f"model.forward/{fact}").failures
    assert outcome.snippet.count("\n") < 10
    with pytest.raises(AssertionError, match=r"\[[A-Z]+-\d"):
        exec(outcome.snippet, {"IMPLEMENTATION": target})


def test_a_right_filter_passes_and_what_it_declines_is_counted():
    results = check_all(filter_by(), only="kalman.diagonal_update/[os]*")
    assert results.passed
    (declined,) = [o for o in results.outcomes if o.status == "unsupported"]
    assert declined.fact.name == "kalman.diagonal_update/one by one"


def test_a_failure_that_comes_and_goes_is_no_error_of_ours():
    calls = []

    def update(**a):
        calls.append(0)
        out = filter_by()["kalman.diagonal_update"](**a)
        return out | {"theta": out["theta"] + (len(calls) % 7 == 0)}

    results = check_all({"kalman.diagonal_update": update}, only="*/stationary")
    assert results.failures
    assert "on some calls with the same inputs" in results.failures[0].reason


@parametrize(filter_by(), only="kalman.diagonal_update/s*")
def test_the_decorator_makes_a_test_of_each(holds):
    holds()


def test_the_decorator_fails_with_the_example():
    (_, (tests,), _), ids = _mark(parametrize(filter_by(gain=0.9), only="*/residual"))
    assert ids == ["kalman.diagonal_update/residual"]
    with pytest.raises(AssertionError, match=r"R S\^-1 e  \[KAL-2\](.|\n)*theta=\[0\], p=\[1\]"):
        tests()


def _mark(decorator):
    mark = decorator.mark
    return ("", (mark.args[1][0],), ""), mark.kwargs["ids"]


def test_the_profiles_have_no_deadline_and_are_repeatable():
    assert list(PROFILES) == ["dev", "ci", "thorough"]
    for profile in PROFILES.values():
        assert profile.deadline is None
        assert profile.derandomize
    with pytest.raises(InputError, match=r"profile: .*the closest known name is 'dev'"):
        check_all(filter_by(), profile="devv")


@pytest.mark.larger
def test_the_share_of_generated_mistakes_is_printed():
    done = run("properties", "--generated", "3", "--seed", "1", "--only", "kalman.time_update")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith("of 3 generated mistakes (100.0%)")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--generated", "0"], "--generated: got 0"),
        (["--generated", "2", "--seed", "-1"], "--seed: got '-1'"),
        (["--generated", "2", "--matrix"], "--matrix: got True"),
        (["--seed", "2"], "--seed: got 2; required given with --generated"),
    ],
)
def test_questions_of_the_kit_itself_do_not_mix(words, told):
    done = run("properties", *words)
    assert done.returncode == 2
    assert told in done.stderr


def test_errors_are_one_sentence():
    with pytest.raises(InputError, match=r"property: .*closest known name is 'kalman.diagonal_u"):
        check("kalman.diagonal_update/residul", {})
    with pytest.raises(InputError, match="R diagonal; dense, or variational"):
        check("kalman.diagonal_update/one by one", filter_by(), theta=[0], p=[1], H=[[1]], e=[1],
              R=[[1]])  # fmt: skip
    with pytest.raises(InputError, match="only: "):
        select("no.such/*")


def test_every_property_is_stated_with_its_derivation_and_domain():
    known = (ROOT / "derivations" / "README.md").read_text(encoding="utf-8")
    for fact in FACTS.values():
        assert fact.labels
        assert all(f"| {label} |" in known for label in fact.labels), fact.name
        assert fact.domain
        assert "\n" not in fact.statement
        assert len(fact.statement) < 100


def test_arithmetic_of_a_property_is_exact():
    a = exact(np.array([[0.1, 0.2], [0.3, 0.7]]))
    assert (inverse(a) @ a == np.eye(2)).all()
    assert exact(0.1)[()] == 3602879701896397 / 2**55


def test_a_saved_case_survives_and_a_damaged_one_is_an_input_error(tmp_path):
    place = tmp_path / "case.json"
    (failure,) = check_all(filter_by(gain=0.9), only="*/residual").failures
    failure.save_case(place)
    case = read_case(place)
    assert case.id == "kalman.diagonal_update/own/float64"
    for name, array in case.inputs().items():
        np.testing.assert_array_equal(array, failure.problem.inputs[name])
    held = json.loads(place.read_text())
    for change, word in [
        ({"schema": "loko-ref/verify/2"}, "loko-ref/verify/2"),
        ({"operation": "no.such"}, "no.such"),
        ({"inputs": {"theta": 3}}, "inputs"),
        ({"options": {"no": 1}}, "no"),
    ]:
        place.write_text(json.dumps(held | change))
        with pytest.raises(InputError, match=word):
            read_case(place)


def test_the_command(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from loko_ref.conformance.mistakes.registry import all_mutants, as_implementation\n"
        "(m,) = [m for m in all_mutants() if m.id == 'THETA-SIGN']\n"
        "name = 'kalman.diagonal_update'\n"
        "IMPLEMENTATION = {name: as_implementation(m)[name]}\n"
    )
    saved = tmp_path / "case.json"
    done = run("properties", str(file), "--only", "*/residual", "--save", str(saved))
    assert done.returncode == 1
    assert "FAILED: 1 of 1" in done.stdout
    assert f'"{file}"' in done.stdout
    done = run("verify", str(file), "--case", str(saved))
    assert done.returncode == 1
    assert "THETA-SIGN" in done.stdout
    done = run("properties", "--list", "--only", "kalman.time_update")
    assert done.stdout.startswith("kalman.time_update/identity\t[KAL-1]\tall\tlam = 1")
    done = run("properties", "--matrix", "--only", "kalman.time_update/identity")
    assert done.returncode == 1
    assert "not found: TIME-MULTIPLIED" in done.stdout
    for words in (["properties"], ["properties", str(file), "--cmd", "x"]):
        done = run(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
