"""A command that checked nothing says so, and does not end with 0."""

import json

import pytest

from loko_ref.conformance.vectors import certify
from loko_ref.conformance.vectors.certify import Quantity
from loko_ref.files import documents

testing = pytest.importorskip("typer.testing", reason="typer is not installed (extra 'cli')")


def run(*words):
    from loko_ref.cli.app import app

    return testing.CliRunner().invoke(app, [*map(str, words)])


def test_certify_where_nothing_can_be_judged(tmp_path, monkeypatch):
    pytest.importorskip("flint", reason="python-flint is not installed (extra 'certify')")
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    one = Quantity(
        case="lora.delta/tiny/float64",
        name="delta",
        bits=128,
        values=6,
        radius=0.0,
        ulps=0.0,
        units=0.0,
        bound=32.0,
        loose=0,
        contained=True,
        undecided=(),
        excluded="the unit of error leaves no digit in this dtype",
    )
    monkeypatch.setattr(certify, "certify", lambda *a, **k: ([one], {}))
    path = tmp_path / "c.json"
    done = run("certify", "--case", "lora.delta/tiny/float64", "--json", path)
    assert done.exit_code == 2
    assert "nothing could be judged" in done.stderr
    jsonschema.validate(json.loads(path.read_text()), documents.load("certify"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify", "--case", "kalmn"], "--case: got 'kalmn'"),
        (["certify", "--operation", "kalmn"], "--operation: got 'kalmn'"),
        (["verify", "any.py", "--only", "kalmn"], "--only: got 'kalmn'"),
        (["vectors", "export", "DIR", "--only", "kalmn"], "--only: got 'kalmn'"),
        (["mutants", "--only", "kalmn"], "--only: got 'kalmn'"),
        (["mutants", "--score", "--only", "kalmn"], "--only: got 'kalmn'"),
    ],
)
def test_a_selection_of_nothing_names_its_option(words, message, tmp_path, monkeypatch):
    if words[0] == "certify":
        pytest.importorskip("flint", reason="python-flint is not installed (extra 'certify')")
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code != 0
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
