"""The published schemas: what is written fits them whole, what is faulty does not."""

import copy
import json
from functools import lru_cache
from pathlib import Path

import jsonschema
import pytest
from command import loko_ref

from loko_ref.conformance.assessment import score
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import load
from loko_ref.conformance.reports import document as report
from loko_ref.conformance.vectors import vectors
from loko_ref.errors import InputError
from loko_ref.files import documents as schema

HERE = Path(__file__).parent
TARGETS = HERE / "targets.py"
BUGGY = HERE.parents[1] / "examples" / "my_buggy_loko.py"
OP = "kalman.diagonal_update"


@lru_cache(maxsize=1)
def document(target, only):
    checks = run(load(str(target)), select(only))
    made = report.as_json(str(target), checks, (), name_mistakes(checks))
    return json.loads(json.dumps(made, allow_nan=False))


def undescribed(value, rule, root, where=""):
    """List the keys of a document that its schema says nothing of."""
    while "$ref" in rule:
        rule = root["$defs"][rule["$ref"].rsplit("/", 1)[1]]
    if "oneOf" in rule and value is not None:
        (rule,) = [r for r in rule["oneOf"] if r.get("type") != "null"]
        return undescribed(value, rule, root, where)
    if isinstance(value, dict):
        known = rule.get("properties", {})
        return [
            miss
            for key, item in value.items()
            for miss in (
                undescribed(item, known[key], root, f"{where}.{key}")
                if key in known
                else [f"{where}.{key}"]
            )
        ]
    if isinstance(value, list):
        return [m for item in value for m in undescribed(item, rule["items"], root, where)]
    return []


@pytest.mark.parametrize("name", schema.NAMES)
def test_each_is_a_schema(name):
    jsonschema.Draft202012Validator.check_schema(schema.load(name))


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize(
    ("target", "only"),
    [
        (TARGETS, f"{OP}*"),
        (f"{TARGETS}:JITTER", f"{OP}*"),
        (f"{TARGETS}:NAN", f"{OP}*"),
        (f"{TARGETS}:SHAPE", f"{OP}*"),
        (f"{TARGETS}:RAISES", f"{OP}*"),
        (f"{TARGETS}:DECLINES", f"{OP}*"),
        (BUGGY, "loko.run/glm/float64"),
    ],
    ids=lambda value: str(value).rpartition("/")[2],
)
def test_a_real_report_fits_and_is_described_whole(target, only):
    made, rule = document(target, only), schema.load("verify")
    jsonschema.validate(made, rule)
    assert undescribed(made, rule, rule) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(schema="loko-ref/verify/1"),
        lambda d: d["summary"].pop("unsupported"),
        lambda d: d["checks"][0].pop("mistakes"),
        lambda d: d["checks"][0].update(status="skipped"),
        lambda d: d["checks"][0].update(status="passed"),
        lambda d: d["checks"][0]["first_divergence"].update(ratio=-1),
        lambda d: d["checks"][0]["first_divergence"].update(index=[0, -1]),
        lambda d: d["checks"][0]["first_divergence"].pop("labels"),
        lambda d: d["checks"][0]["mistakes"][0].pop("look"),
        lambda d: d["checks"][0]["mistakes"][0].pop("alike"),
        lambda d: d["checks"][0].pop("unit"),
    ],
)
def test_a_faulty_report_does_not_fit(spoil):
    made = document(f"{TARGETS}:JITTER", f"{OP}/random/float64")
    faulty = copy.deepcopy(made)
    spoil(faulty)
    jsonschema.validate(made, schema.load("verify"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(faulty, schema.load("verify"))


def test_the_mutants_fit(tmp_path):
    made = score.as_json([score.Outcome(id="A", failed=2, named=1, first=None, others=("B",))])
    jsonschema.validate(made, schema.load("mutants"))
    out = tmp_path / "m.json"
    assert loko_ref("mutants", "--only", "R-J*", "--json", out).returncode == 0
    jsonschema.validate(json.loads(out.read_text()), schema.load("mutants"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": "loko-ref/mutants/1"}, schema.load("mutants"))


def test_the_manifest_s_constants_are_the_code_s():
    top = schema.load("vectors")["properties"]
    assert top["version"]["const"] == vectors.VERSION
    assert top["catalogue"]["const"] == CATALOGUE
    entry = top["cases"]["items"]["properties"]
    assert entry["bytes"]["maximum"] == vectors.FILE_LIMIT


def test_cli_prints_it():
    done = loko_ref("schema", "verify")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == schema.load("verify")
    done = loko_ref("schema", "verfy")
    assert done.returncode == 2
    assert "the closest known name is 'verify'" in done.stderr
    with pytest.raises(InputError):
        schema.load("../vectors")
