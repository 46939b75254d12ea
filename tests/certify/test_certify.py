"""``loko-ref certify``: every quantity contained, and what is wrong is found."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")
pytest.importorskip("typer", reason="typer (extra 'cli') is not installed")

from typer.testing import CliRunner

from loko_ref.arrays import balls
from loko_ref.cli.app import app
from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.judge import tolerance
from loko_ref.conformance.vectors import certify, enclosure, vectors
from loko_ref.errors import MissingExtraError

LOOSE = "loko.run/gaussian-dense/float64"
SMALL = [case for case in all_cases() if not case.operation.stepwise]


def run(*arguments):
    return CliRunner().invoke(app, ["certify", *arguments])


def test_command_writes_what_it_promises(tmp_path):
    path = tmp_path / "c.json"
    result = run("--operation", "kalman.*", "--json", str(path))
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["contained"] == report["quantities"] > 0
    assert report["undecided"] == 0
    assert report["values"] == report["correctly_rounded"] > 0
    assert set(report["max_ulp"]) == {name for name in OPERATIONS if name.startswith("kalman.")}
    for table in (report["max_ulp"], report["max_unit"]):
        assert all(set(dtypes) == {"float64", "float32"} for dtypes in table.values())
    assert f"quantities {report['quantities']}, contained {report['contained']}" in " ".join(
        result.output.split()
    )


def test_one_case_and_wrong_names(tmp_path):
    path = tmp_path / "c.json"
    case = "kalman.diagonal_update/tiny/float64"
    result = run("--case", case, "--json", str(path))
    assert result.exit_code == 0
    assert "each quantity" in result.output
    assert result.output.count("yes") == 4
    assert "each quantity" not in run("--operation", "kalman.time_update").output
    details = json.loads(path.read_text())["details"]
    assert {row["case"] for row in details} == {case}
    assert [row["quantity"] for row in details] == ["S", "K", "theta", "p"]
    for arguments in (["--case", "kalmn"], ["--operation", "kalmn"], ["--limit", "5"]):
        result = run(*arguments)
        assert result.exit_code != 0
        assert "required" in str(result.exception)


@pytest.mark.sampled(0.25)
@pytest.mark.parametrize("operation", sorted({case.operation.name for case in SMALL}))
def test_every_operation_is_contained(operation):
    found, failed = certify.certify(select(operation))
    assert not failed
    assert found
    for quantity in found:
        assert quantity.contained, quantity
        assert not quantity.undecided, quantity
        assert quantity.units < 8, quantity


def test_short_runs_are_contained():
    for name in ("loko.run/gaussian-dense/*", "loko.run/glm-stacked/*"):
        found, failed = certify.certify(select(name))
        assert not failed
        assert all(quantity.contained for quantity in found)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("kalman.diagonal_update/random/float64", "K"),
        ("observation.glm/stacked/float32", "e"),
        ("model.jacobian/gelu/float64", "Z"),
    ],
)
def test_an_oracle_that_is_off_is_not_contained(monkeypatch, name, output):
    """An error of 200 units in one element, and a NaN, are seen."""
    (case,) = select(name)
    right = case.operation.oracle

    def off(x, o, by=200.0):
        out = dict(right(x, o))
        at = tuple(0 for _ in np.shape(out[output]))
        out[output] = out[output].copy()
        out[output][at] += by * tolerance.unit(case)[output].size[at]
        return out

    # enclosure and units were computed by the right oracle, and are remembered
    certify.certify_case(case)
    for wrong in (off, lambda x, o: off(x, o, np.nan)):
        operation = replace(case.operation, oracle=wrong)
        monkeypatch.setitem(vars(case), "operation", operation)
        found = {q.name: q for q in certify.certify_case(case)}
        monkeypatch.undo()
        assert not found[output].contained
        assert all(q.contained for name, q in found.items() if name != output)


def test_what_stays_wider_than_asked_is_said(tmp_path):
    """With the precision bounded at 128 bits a run of many steps is looser than 2^-70, by name."""
    path = tmp_path / "c.json"
    result = run("--case", LOOSE, "--limit", "128", "--json", str(path))
    report = json.loads(path.read_text())
    assert report["loose"]
    assert all(name.startswith(LOOSE) for name in report["loose"])
    assert "still wider than asked" in result.output
    assert run("--case", LOOSE, "--json", str(path)).exit_code == 0
    assert json.loads(path.read_text())["loose"] == {}


def test_what_is_not_decided_is_listed():
    """At a precision that does not suffice, values are undecided and named, not guessed."""
    (case,) = select("kalman.dense_update/nearly-singular-P/float64")
    with balls.precision(64):
        outputs = {k: balls.balls(v) for k, v in enclosure.on_balls(case).items()}
    vague = balls.Enclosed(outputs=outputs, bits=64, loose={"P": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enclosure, "enclosed", lambda *a: vague)
        patch.setattr(certify, "enclosed", lambda *a: vague)
        found = certify.certify_case(case)
    report = certify.as_json(found, {})
    assert report["undecided"] == len(report["undecided_values"]) > 0
    assert report["values"] == report["undecided"] + report["correctly_rounded"]
    assert report["undecided_values"][0].startswith(case.id)


def test_what_is_decided_is_so_at_the_precision_asked_for():
    """Not at the usual one: with 128 bits at most, some of what is loose is not rounded."""
    (case,) = select("loko.run/logits/float64")
    found = certify.certify_case(case, 128)
    assert 0 < sum(len(q.undecided) for q in found) <= sum(q.loose for q in found)
    found = certify.certify_case(case)
    assert sum(len(q.undecided) for q in found) == sum(q.loose for q in found) == 0


def test_an_enclosure_too_wide_to_tell_contains_nothing(monkeypatch):
    """At 1e-9 of the inputs every float64 value lies inside its ball: that proves nothing."""
    (case,) = select("kalman.diagonal_update/random/float64")
    with balls.precision(128):
        inputs = {k: balls.inflate(v, 1e-9) for k, v in case.inputs().items()}
        wide = {k: balls.balls(v) for k, v in case.operation.oracle(inputs, case.options).items()}
    vague = balls.Enclosed(outputs=wide, bits=128, loose={k: np.size(v) for k, v in wide.items()})
    monkeypatch.setattr(enclosure, "enclosed", lambda *a: vague)
    monkeypatch.setattr(certify, "enclosed", lambda *a: vague)
    found = certify.certify_case(case)
    assert all(quantity.units == 0 for quantity in found)
    assert not any(quantity.contained for quantity in found)
    report = certify.as_json(found, {})
    assert report["contained"] == 0 < report["quantities"]
    assert report["loose"][f"{case.id} S"] == 9


def test_golden_values_are_the_nearest_floats():
    """Half an ulp at most from the exact value; the float64 oracle is within its bound of them."""
    for case in select("kalman.diagonal_update", "float64"):
        for name, gold in enclosure.golden(case).items():
            assert gold.decided.all()
            assert gold.value.dtype == np.float64
            assert np.all(gold.bound <= 0.5000001 * np.spacing(np.abs(gold.value)))
            error = np.abs(tolerance.expected(case)[name] - gold.value)
            assert np.all(error <= tolerance.tolerance(case)[name])
        narrow = enclosure.golden(case, "float32")
        assert all(gold.value.dtype == np.float32 for gold in narrow.values())


def test_the_missing_extra_is_named(monkeypatch):
    from loko_ref.arrays.balls import ballarray

    ballarray.flint.cache_clear()
    monkeypatch.setitem(sys.modules, "flint", None)
    try:
        with pytest.raises(MissingExtraError, match=r"loko-ref\[certify\]"):
            ballarray.flint()
    finally:
        monkeypatch.undo()
        ballarray.flint.cache_clear()


WITHOUT = """
import sys
sys.modules["flint"] = None
from loko_ref.conformance.judge import tolerance
from loko_ref.conformance.cases.registry import select
(case,) = select("kalman.diagonal_update/tiny/float64")
assert tolerance.tolerance(case)["K"] is not None
sys.argv = ["loko-ref", "certify"]
from loko_ref.cli import main
main()
"""


def test_a_process_without_flint_verifies_and_names_the_extra():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'loko-ref[certify]'" in done.stderr
    assert "Traceback" not in done.stderr


UNITS = """
import sys
import numpy as np
blocked = sys.argv[1] == "blocked"
if blocked:
    sys.modules["flint"] = None
from loko_ref.conformance.vectors import enclosure
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.implementations.python import load
from loko_ref.conformance.reports.document import as_json
from loko_ref.conformance.judge.tolerance import tolerance
from loko_ref.conformance.engine import run
assert enclosure.available() != blocked
cases = select("kalman.*") + select("observation.*") + select("loko.step/glm*")
for case in cases:
    for name, bound in tolerance(case).items():
        print(case.id, name, None if bound is None else np.asarray(bound).tobytes().hex())
print(as_json("x", run(load(sys.argv[2]), cases)))
"""


@pytest.mark.larger
def test_no_verdict_depends_on_the_extra():
    """Tolerances and the whole report of a run, bit for bit, with python-flint and without."""
    target = str(Path(__file__).parents[1] / "conformance" / "einsum_loko.py")
    said = [
        subprocess.run(
            [sys.executable, "-c", UNITS, which, target],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for which in ("importable", "blocked")
    ]
    assert said[0] == said[1]
    assert said[0].count("\n") > 150
    assert "'failed': 0" in said[0]


def test_vectors_carry_golden_values(tmp_path, monkeypatch):
    place = tmp_path / "set"
    manifest = vectors.export(place, select("kalman.dense_update/tiny/*"))
    found = vectors.read(place)
    for entry in manifest["cases"]:
        tensors = found[entry["id"]]
        assert entry["undecided"] == []
        for name in ("S", "K", "theta", "P"):
            gold, bound = tensors[f"gold.{name}"], tensors[f"bound.{name}"]
            assert gold.dtype == np.float64
            assert np.all(np.abs(tensors[f"out.{name}"] - gold) <= tensors[f"tol.{name}"])
            assert np.all(bound <= 0.5000001 * np.spacing(np.abs(gold)))
    assert vectors.check(place) == []
    # without the extra the golden values are carried, and not derived again
    monkeypatch.setattr(enclosure, "available", lambda: False)
    assert vectors.check(place) == []


def test_an_undecided_golden_value_is_listed(tmp_path, monkeypatch):
    (case,) = select("kalman.time_update/default/float64")
    right = enclosure.golden(case)["p_pred"]
    decided = right.decided.copy()
    decided[3] = False
    vague = enclosure.Golden(value=right.value, bound=right.bound, decided=decided)
    monkeypatch.setattr(enclosure, "golden", lambda c: {"p_pred": vague})
    manifest = vectors.export(tmp_path / "set", [case])
    assert manifest["cases"][0]["undecided"] == ["p_pred[3]"]
    gold = vectors.read(tmp_path / "set")[case.id]["gold.p_pred"]
    assert np.isnan(gold).nonzero()[0].tolist() == [3]


def test_a_changed_golden_value_is_found(tmp_path):
    """One unit in the last place of a golden value, far inside every tolerance, is a difference."""
    place = tmp_path / "set"
    (case,) = select("lora.delta/random/float64")
    right = enclosure.golden(case)["delta"]
    value = right.value.copy()
    value[0, 0] = np.nextafter(value[0, 0], np.inf)
    wrong = enclosure.Golden(value=value, bound=right.bound, decided=right.decided)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enclosure, "golden", lambda c: {"delta": wrong})
        vectors.export(place, [case])
    (difference,) = vectors.check(place)
    assert difference.endswith("gold.delta is not what ball arithmetic proves")
