"""``loko-ref mutants --calibration``: what is right stands below 1, what is wrong above."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

pytest.importorskip("typer", reason="typer (extra 'cli') is not installed")

from typer.testing import CliRunner

from loko_ref.cli.app import app
from loko_ref.conformance.assessment import calibration
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.mistakes.registry import all_mutants, as_implementation, formulas_of
from loko_ref.files import documents as schema
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import identity

EINSUM = str(Path(__file__).with_name("einsum_loko.py"))
TARGETS = str(Path(__file__).with_name("targets.py"))
OP = "kalman.diagonal_update"
BY_ID = {m.id: m for m in all_mutants()}


def run(*arguments):
    return CliRunner().invoke(app, ["mutants", "--calibration", *map(str, arguments)])


def test_command_writes_what_it_promises(tmp_path):
    path = tmp_path / "c.json"
    done = run("--case", OP, "--only", "[SR]-*", "--correct", EINSUM, "--json", path)
    assert done.exit_code == 0, done.output
    document = json.loads(path.read_text())
    rule = schema.load("calibration")
    jsonschema.validate(document, rule)
    assert document["schema"] == "loko-ref/calibration/3"
    assert document["cases"] == len(select(OP))
    names = {(row["name"], row["dtype"]) for row in document["correct"]}
    assert names == {
        ("oracle", "float32"),  # in float64 it is the judge
        *((name, dtype) for name in ("rounded", EINSUM) for dtype in ("float64", "float32")),
    }
    for row in document["correct"]:
        assert row["cases"] == len(select(OP, row["dtype"]))
        assert row["quantities"] == 4 * row["cases"]
        assert row["failed"] == []
        assert 0 < row["median"] <= row["high"] <= row["worst"] < 1
        assert row["at"].startswith(OP)
    for dtype, gap in document["gap"].items():
        right = max(r["worst"] for r in document["correct"] if r["dtype"] == dtype)
        wrong = {r["name"]: r["worst"] for r in document["wrong"] if r["dtype"] == dtype}
        assert gap["worst_correct"] == right
        assert gap["mildest_wrong"] == wrong[gap["mutant"]] == min(w for w in wrong.values() if w)
        assert gap["quotient"] == pytest.approx(gap["mildest_wrong"] / right)
        assert gap["unseen"] == []
        given = gap["given_parents"]
        assert given["worst_correct"] == right  # within tolerance along the whole route
        seen = {r["name"]: r["given"] for r in document["wrong"] if r["dtype"] == dtype}
        assert given["mildest_wrong"] == seen[given["mutant"]] == min(w for w in seen.values() if w)
        assert f"{dtype}: worst correct {right:.2g}" in done.output
    assert "| einsum_loko.py | float64 |" in done.output
    assert "| S-JITTER | float64 |" in done.output


def test_a_figure_is_the_largest_error_of_its_case():
    """By hand: the same implementation, the same case, one number."""
    (case,) = select(f"{OP}/random/float32")
    target = load(EINSUM)
    (found,) = calibration.of_correct(target, [case])
    errors = {k: float(np.max(r)) for k, r in ratios(case, target.run(case).outputs).items()}
    assert found.worst == max(errors.values())
    assert found.at == f"{case.id} {max(errors, key=errors.get)}"
    assert found.quantities == len(errors) == 4
    assert found.median in errors.values()


def test_a_mistake_is_measured_where_its_formula_occurs():
    cases = select("*/random/*")
    (wide, narrow) = calibration.of_mutant(BY_ID["TIME-NO-Q"], select("kalman.*"))
    assert wide.cases == narrow.cases == len(select("kalman.time_update", "float64"))
    assert wide.failed == tuple(
        c.id for c in select("kalman.time_update", "float64") if c.options["q"] > 0
    )
    assert wide.worst > 1e6
    # single precision is a mistake in float64 only
    assert [one.dtype for one in calibration.of_mutant(BY_ID["SINGLE"], cases)] == ["float64"]
    assert calibration.of_mutant(BY_ID["TIME-NO-Q"], select("lora.*")) == []
    asked = formulas_of(select("kalman.dense_update/tiny/float64")[0])
    assert {"S", "K", "pHt", "theta_post", "p.dense"} <= asked
    assert "p.decoupled" not in asked


@pytest.mark.parametrize("name", ["NAN", "SHAPE", "RAISES", "JITTER"])
def test_wrong_code_called_correct_is_found(name, tmp_path):
    path = tmp_path / "c.json"
    target = f"{TARGETS}:{name}"
    done = run("--case", f"{OP}/r*", "--only", "S-NO-R", "--correct", target, "--json", path)
    assert done.exit_code == 1
    document = json.loads(path.read_text())
    jsonschema.validate(document, schema.load("calibration"))
    for row in document["correct"]:
        if row["name"] == target:
            assert row["worst"] is None or row["worst"] > 1 or row["dtype"] == "float32"
            if name != "JITTER":  # 1e-9 is below a roundoff of float32
                assert row["worst"] is None
                assert len(row["failed"]) == row["cases"]
    assert document["gap"]["float64"]["by"] == target


def test_what_follows_from_its_parents_is_no_error():
    """A right gain whose route amplifies rounding: it follows from the S that is returned."""
    (case,) = select("loko.step/glm-saturated/float64")

    def by_contrasts(**given):
        table = {**FORMULA_TABLE, "K.glm": FORMULA_TABLE["K.softmax"]}
        return dict(case.operation.plain(case.inputs(), case.options, table, identity))

    target = Implementation(target="contrasts", functions={"loko.step": by_contrasts})
    (found,) = calibration.of_correct(target, [case])
    assert found.worst > 1
    assert found.failed == (case.id,)
    assert (found.given, found.amplified) == (0.0, 1)
    off = as_implementation(BY_ID["S-NO-R"])
    (wrong,) = calibration.of_correct(Implementation(target="wrong", functions=off), [case])
    assert wrong.given > 1
    assert wrong.amplified == 0


def test_what_declines_is_left_out():
    nothing = Implementation(target="none", functions={})
    assert calibration.of_correct(nothing, select(f"{OP}/random/*")) == []


def test_unseen_mistakes_are_named_and_not_the_mildest():
    def one(name, worst):
        return calibration.Spread(
            name=name,
            dtype="float32",
            cases=1,
            failed=(),
            quantities=1,
            median=worst,
            high=worst,
            worst=worst,
            at="x",
            given=worst / 2,
            amplified=0,
        )

    right, wrong = [one("good", 0.5)], [one("A", 0.1), one("B", math.inf), one("C", 40.0)]
    document = calibration.as_json(select(f"{OP}/random/*"), right, wrong)
    gap = document["gap"]["float32"]
    assert (gap["mutant"], gap["mildest_wrong"], gap["quotient"]) == ("C", 40.0, 80.0)
    assert gap["unseen"] == ["A"]
    assert gap["given_parents"]["quotient"] == 80.0
    assert document["wrong"][1]["worst"] is None
    json.dumps(document, allow_nan=False)
    text = "\n".join(calibration.lines(document))
    assert "float32: within tolerance everywhere: A" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score", "--calibration"], "--score: got --calibration too"),
        (["--correct", EINSUM], "--correct: got .*required --calibration beside it"),
        (["--case", OP], "--case: got .*required --calibration or --generated beside it"),
        (["--calibration", "--case", "nothing"], "--case: got 'nothing'"),
        (["--calibration", "--only", "nothing"], "only: got 'nothing'"),
        (["--calibration", "--correct", "no.py"], "TARGET: got 'no.py'"),
        (["--calibration", "--case", "lora.*", "--only", "R-J*"], "--case: got 'lora.*'"),
        (
            ["--calibration", "--case", "lora.delta/tiny/*", "--correct", f"{TARGETS}:DECLINES"],
            "--correct: got .*required an implementation that answers one of the cases",
        ),
    ],
)
def test_wrong_calls_are_refused(arguments, message):
    done = CliRunner().invoke(app, ["mutants", *arguments])
    assert done.exit_code != 0
    with pytest.raises(type(done.exception), match=message):
        raise done.exception
