"""Every JSON document: how it begins, and that it is what its published schema says, to the key."""

import copy
import json
import os
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
import sampling

import loko_ref
from loko_ref.errors import InputError
from loko_ref.experiments.compare import lte as compared_lte
from loko_ref.experiments.compare import lte_report, online
from loko_ref.experiments.compare.learners import GRID, LOKO
from loko_ref.fast import bench
from loko_ref.files import documents

testing = pytest.importorskip("typer.testing", reason="typer is not installed (extra 'cli')")

HEAD = ("schema", "versions", "platform")
"""The first keys of every document."""

TARGETS = os.path.join(os.path.dirname(__file__), "..", "conformance", "targets.py")


def run(*words, codes=(0,)):
    from loko_ref.cli.app import app

    done = testing.CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code in codes, (words, done.output, done.exception)
    return done.stdout


def written(path, *words, codes=(0,)):
    run(*words, path, codes=codes)
    return json.loads(path.read_text())


def train(tmp_path):
    small = ["train", "--data", "iris", "--seed", 0, "--limit", 20]
    diabetes = [*small[:2], "diabetes", *small[3:], "--optimizer", "sgd,lr=0.001"]
    yield written(tmp_path / "d.json", *diabetes, "--json")
    diverged = ["--optimizer", "loko", "--optimizer", "sgd,lr=1e200", "--optimizer", "adamw"]
    yield written(tmp_path / "f.json", *small, *diverged, "--json", codes=(1,))


def lte(tmp_path):
    small = ["lte", "--data", "iris", "--heads", 2, "--rank", 2, "--steps", 3, "--batch", 8]
    small += ["--hidden", "8", "--details", tmp_path / "details.json"]
    yield written(tmp_path / "l.json", *small, "--baseline", "lora", "--json")


def lte_details(tmp_path):
    small = ["lte", "--heads", 2, "--rank", 2, "--steps", 2, "--batch", 8, "--limit", 16]
    yield written(tmp_path / "a.json", *small, "--data", "iris", "--hidden", "8", "--details")
    vit = ["--network", "vit", "--size", "width=8", "--size", "ff=8", "--size", "layers=1"]
    loko = ["--optimizer", "loko,p0=0.01"]
    yield written(tmp_path / "b.json", *small, *vit, *loko, "--details")


def certify(tmp_path):
    pytest.importorskip("flint", reason="python-flint is not installed (extra 'certify')")
    yield written(tmp_path / "c.json", "certify", "--case", "lora.delta/tiny/*", "--json")


def verify(tmp_path):
    only = ["--only", "kalman.diagonal_update/random/float64", "--json"]
    for target, code in (("JITTER", 1), ("IMPLEMENTATION", 0), ("DECLINES", 2)):
        path = tmp_path / f"{target}.json"
        yield written(path, "verify", f"{TARGETS}:{target}", *only, codes=(code,))


def mutants(tmp_path):
    from loko_ref.conformance.assessment import score
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.mistakes.registry import all_mutants

    yield written(tmp_path / "m.json", "mutants", "--only", "R-J*", "--json")
    (one,) = [m for m in all_mutants() if m.id == "R-JITTER"]
    cases = select("kalman.diagonal_update/random/*", "float64")
    yield json.loads(json.dumps(score.as_json([score.outcome(one, cases)])))


def calibration(tmp_path):
    words = ["--case", "lora.delta/tiny/*", "--only", "SCALE-ALPHA"]
    yield written(tmp_path / "c.json", "mutants", "--calibration", *words, "--json")


def generated(tmp_path):
    words = ["--generated", 1, "--case", "lora.delta/*", "--json"]
    yield written(tmp_path / "g.json", "mutants", *words, codes=(0, 1))


def vectors(tmp_path):
    run("vectors", "export", tmp_path / "v", "--only", "lora.delta/tiny/*")
    yield json.loads((tmp_path / "v" / "manifest.json").read_text())


def compare_online(tmp_path):
    words = ["--quick", "--stream", "iris invert", "--seeds", 1, "--limit", 4, "--workers", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "learners", lambda quick: (LOKO[1], GRID[0]))
        yield written(tmp_path / "c.json", "compare", "online", *words, "--json")


def compare_lte(tmp_path):
    words = ["--quick", "--seeds", 1, "--steps", 2, "--limit", 40, "--workers", 1]
    with pytest.MonkeyPatch.context() as patch:
        for module in (compared_lte, lte_report):
            patch.setattr(module, "SETTINGS", compared_lte.SETTINGS[:4])
        yield written(tmp_path / "c.json", "compare", "lte", *words, "--json")


def case(tmp_path):
    for key in ("lora.delta/tiny/float64", "loko.step/glm/float32"):
        yield written(tmp_path / "one.json", "case", key, "--json")


def timing(tmp_path):
    line = run("bench", "mlp_b1", "--min-time", 0.001)
    yield json.loads(line)
    row = {k: v for k, v in json.loads(line).items() if k not in HEAD}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure", lambda *a, **k: row)
        yield json.loads(run("bench", "--json"))


def curves(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        if not sampling.LONG:  # they take a minute
            point = {"r": 4, "n": 8192, "T": 64, "cpu_ms": 1.5}
            patch.setattr(bench, "curves", lambda dtype: {"n": [point], "T": [point]})
        yield json.loads(run("bench", "--curves"))


MAKERS = {
    **{
        f.__name__: f
        for f in (verify, mutants, generated, calibration, vectors, case, certify, train, lte)
    },
    "lte-details": lte_details,
    "bench": timing,
    "bench-curves": curves,
    "compare-online": compare_online,
    "compare-lte": compare_lte,
}


def test_the_names_are_the_schemas_that_there_are():
    there = {path.name for path in files("loko_ref.files").joinpath("schemas").iterdir()}
    assert there == {f"{name}.json" for name in documents.NAMES}
    assert set(documents.NAMES) == set(documents.WRITTEN_BY) == set(MAKERS)
    for name in documents.NAMES:
        schema = documents.load(name)
        jsonschema.Draft202012Validator.check_schema(schema)
        for one in schema.get("oneOf", [schema]):
            assert set(HEAD) <= set(one["required"])
            assert one["properties"]["schema"] == {"const": documents.SCHEMAS[name]}


def objects(schema):
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for item in schema.values():
            yield from objects(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from objects(item)


@pytest.mark.parametrize("name", documents.NAMES)
def test_every_object_of_a_schema_lists_its_keys_or_types_them(name):
    found = list(objects(documents.load(name)))
    assert found
    for one in found:
        if set(one) == {"type"} and name == "vectors":
            continue  # options: which there are is the operation's, and `vectors check` derives it
        rest = one["additionalProperties"]
        assert rest is False or (isinstance(rest, dict) and rest), one
        assert set(one.get("required", ())) <= set(one.get("properties", ()))


def inner(value, path=()):
    """Paths of all objects in a document."""
    if isinstance(value, dict):
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        if isinstance(item, dict | list):
            yield from inner(item, (*path, key))


@pytest.mark.parametrize("name", documents.NAMES)
def test_a_real_document_fits_its_schema_to_the_key(name, tmp_path):
    rules = jsonschema.Draft202012Validator(documents.load(name))
    for made in MAKERS[name](tmp_path):
        rules.validate(made)
        assert list(made)[:3] == list(HEAD)
        assert made["schema"] == documents.SCHEMAS[name]
        assert made["versions"]["loko_ref"] == loko_ref.__version__
        assert made["versions"]["numpy"] == np.__version__
        assert made["platform"]
        for key in HEAD:
            assert not rules.is_valid({k: v for k, v in made.items() if k != key})
        paths = list(inner(made))
        for path in paths[:: max(1, len(paths) // 20)]:  # a field that no one has heard of
            spoilt = copy.deepcopy(made)
            at = spoilt
            for key in path:
                at = at[key]
            at["no such field"] = {"nested": "text"}
            opened = "options" in path and name in ("vectors", "case")  # the operation's own
            assert opened or not rules.is_valid(spoilt), path


def test_the_command_lists_the_schemas_and_prints_each():
    listed = [line.split("\t") for line in run("schema").splitlines()]
    assert dict(listed) == documents.WRITTEN_BY
    for name in documents.NAMES:
        assert json.loads(run("schema", name)) == documents.load(name)
    with pytest.raises(InputError, match="the closest known name is 'lte-details'"):
        documents.load("lte-detail")


def test_what_is_not_finite_is_null_in_a_certificate():
    from loko_ref.conformance.vectors.certify import Quantity, as_json

    one = Quantity(
        case="lora.delta/tiny/float64",
        name="delta",
        bits=128,
        values=6,
        radius=np.inf,
        ulps=np.inf,
        units=np.inf,
        bound=32.0,
        loose=1,
        contained=False,
        undecided=(),
    )
    made = as_json([one], {"x": "why"})
    jsonschema.validate(json.loads(json.dumps(made, allow_nan=False)), documents.load("certify"))
    assert made["details"][0]["radius"] is made["max_ulp"]["lora.delta"]["float64"] is None
