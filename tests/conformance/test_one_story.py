"""One verdict, five reports: terminal, JSON, HTML, JUnit and pytest say the same of one run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from loko_ref.conformance import pytest_plugin  # noqa: F401
from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose import naming  # noqa: F401
from loko_ref.conformance.implementations import python as implementation  # noqa: F401

# pytester forgets what a run imports; the kit is imported once, before
from loko_ref.conformance.reports import expected_failures as expectations  # noqa: F401
from loko_ref.files import documents

pytest_plugins = ["pytester"]  # for pytest in this process
testing = pytest.importorskip("typer.testing", reason="typer is not installed (extra 'cli')")

TARGETS = Path(__file__).parent / "targets.py"
ONLY = "kalman.diagonal_update/random*"
IDS = [case.id for case in select(ONLY)]  # two cases in float64, then in float32
RANDOM = "kalman.diagonal_update/random/float64"
VARIATIONAL = "kalman.diagonal_update/random-variational/float64"
DECLINED = "kalman.diagonal_update/random/float32"
REASON = "see <ticket> & 7: [later]"
ALL_PASS, NO_FLOAT32, NOTHING = "IMPLEMENTATION", "DECLINES_FLOAT32", "DECLINES"

# JITTER fails both cases in float64 and passes both in float32
SCENARIOS = {
    "all pass": (ALL_PASS, None, "passed", 0, {"passed": IDS}),
    "some fail": (
        *("JITTER", None, "failed", 1),
        {"failed": [RANDOM, VARIATIONAL], "passed": IDS[1::2]},
    ),
    "only expected failures": (
        *("JITTER", [RANDOM, VARIATIONAL], "as expected", 0),
        {"expected failure": [RANDOM, VARIATIONAL], "passed": IDS[1::2]},
    ),
    "one expected, one not": (
        *("JITTER", [RANDOM], "failed", 1),
        {"expected failure": [RANDOM], "failed": [VARIATIONAL], "passed": IDS[1::2]},
    ),
    "unexpected pass": (
        *(ALL_PASS, [RANDOM], "failed", 1),
        {"unexpected pass": [RANDOM], "passed": [key for key in IDS if key != RANDOM]},
    ),
    "expected and declined": (
        *(NO_FLOAT32, [DECLINED], "passed", 0),
        {"passed": [RANDOM, VARIATIONAL], "unsupported": IDS[1::2]},
    ),
    "nothing ran": (NOTHING, None, "nothing ran", 2, {"unsupported": IDS}),
    "nothing ran, though expected": (NOTHING, [RANDOM], "nothing ran", 2, {"unsupported": IDS}),
}
HEADLINE = {
    "passed": "PASSED",
    "as expected": "PASSED",
    "failed": "FAILED",
    "nothing ran": "NOTHING RAN",
}
COUNTED = ("passed", "failed", "expected failure", "unexpected pass", "unsupported")
VERDICT = re.compile(
    r"(FAILED|PASSED|NOTHING RAN): (?:(\d+) of (\d+)(?: \((\d+) unexpected pass(?:es)?\))?; )?"
    r"(?:(\d+) passed, )?(?:(\d+) expected failures?, )?(\d+) unsupported"
)


def counts_in(text):
    """Read headline and counts; a count that is not named is 0."""
    (found,) = {match.groups() for match in VERDICT.finditer(" ".join(text.split()))}
    headline = found[0]
    some, ran, surprising, passed, expected, unsupported = (int(x or 0) for x in found[1:])
    if headline == "PASSED":
        passed, some = some, 0
    numbers = (passed, some - surprising, expected, surprising, unsupported)
    assert ran == sum(numbers[:4])
    return headline, dict(zip(COUNTED, numbers, strict=True))


class Text(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.text, self.sections, self.tag = "", {}, ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tag = tag

    def handle_data(self, data):
        if self.tag == "h2" and data.strip():
            self.sections[data] = ""
        elif self.sections:
            self.sections[list(self.sections)[-1]] += data
        self.text += data


@pytest.fixture(params=list(SCENARIOS))
def scenario(request, tmp_path):
    target, listed, *rest = SCENARIOS[request.param]
    more = []
    if listed is not None:
        (tmp_path / "x.txt").write_text("".join(f"{key}: {REASON}\n" for key in listed))
        more = [str(tmp_path / "x.txt")]
    return f"{TARGETS}:{target}", more, listed or [], *rest


def test_five_reports_tell_one_story(scenario, tmp_path, monkeypatch, pytester):
    from loko_ref.cli.app import app

    target, path, listed, verdict, code, outcomes = scenario
    monkeypatch.setenv("COLUMNS", "300")
    counts = {k: len(outcomes.get(k, ())) for k in COUNTED}
    expected = outcomes.get("expected failure", [])
    surprising = outcomes.get("unexpected pass", [])
    unseen = [key for key in listed if key in outcomes.get("unsupported", ())]
    files = {k: tmp_path / f"r.{k}" for k in ("json", "html", "junit")}
    words = ["verify", target, "--only", ONLY, *(["--xfail", *path] if path else [])]
    words += [word for k, file in files.items() for word in (f"--{k}", str(file))]
    done = testing.CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output

    # the terminal
    assert counts_in(done.stdout) == (HEADLINE[verdict], counts)
    assert re.findall(r"^expected failure (\S+): (.*)$", done.stdout, re.M) == [
        (key, REASON) for key in expected
    ]
    assert re.findall(
        r"^UNEXPECTED PASS (\S+): was expected to fail: (.*)$", done.stdout, re.M
    ) == [(key, REASON) for key in surprising]
    assert ("FAILED " in done.stdout) == bool(counts["failed"])
    note = f"expected to fail, but declined and so not run (1): {unseen[0]}" if unseen else ""
    assert ("note expected" in done.stdout) == bool(unseen)
    assert note in done.stdout

    # JSON
    document = json.loads(files["json"].read_text())
    jsonschema.validate(document, documents.load("verify"))
    assert document["verdict"]["outcome"] == verdict
    assert document["verdict"]["exit_code"] == code
    assert counts_in(document["verdict"]["text"]) == (HEADLINE[verdict], counts)
    summary = document["summary"] | document["verdict"]
    for name in ("passed", "failed", "unsupported"):
        assert summary[name] == counts[name]
    assert summary["expected_failures"] == len(expected)
    assert summary["unexpected_passes"] == len(surprising)
    found = {key: [c["id"] for c in document["checks"] if c["outcome"] == key] for key in COUNTED}
    assert {k: v for k, v in found.items() if v} == outcomes
    reasons = {c["id"]: c["expected_failure"] for c in document["checks"]}
    assert reasons == {key: REASON if key in listed else None for key in IDS}
    assert any(note and note in line for line in document["notes"]) == bool(unseen)

    # HTML
    page = Text(files["html"].read_text())
    headline, numbers = counts_in(page.text)
    assert (headline, numbers) == (HEADLINE[verdict], counts)
    assert page.text.count(f"Expected to fail: {REASON}") == len(expected)
    for key in IDS:
        assert (key in page.sections.get("Failures", "")) == (key in outcomes.get("failed", ()))
        assert (key in page.sections.get("Expected failures", "")) == (key in expected)
        marked = f"Unexpected pass: {key} was expected to fail: {REASON}" in page.text
        assert marked == (key in surprising)
    assert note in page.text

    # JUnit
    suite = ElementTree.parse(files["junit"]).getroot()[0]
    properties = [(p.get("name"), p.get("value")) for p in suite.iter("property")]
    assert counts_in(dict(properties)["verdict"]) == (HEADLINE[verdict], counts)
    way = [v for k, v in properties if k == "note" and "options that stood in the way" in v]
    assert bool(way) == (verdict == "nothing ran")
    notes = [v for k, v in properties if k == "note" and v not in way]
    assert [v.endswith(note) for v in notes] == [True] * bool(unseen)
    got = {}
    for case in suite.iter("testcase"):
        kinds = [(node.tag, node.get("message")) for node in case]
        got[case.get("name")] = kinds[0] if kinds else ("passed", "")
    for key in IDS:
        tag = got[key][0]
        assert (tag == "passed") == (key in outcomes.get("passed", ()))
        assert (tag == "failure") == (key in [*outcomes.get("failed", ()), *surprising])
        assert (got[key] == ("skipped", f"expected to fail: {REASON}")) == (key in expected)
    assert int(suite.get("failures")) == counts["failed"] + counts["unexpected pass"]
    assert (
        int(suite.get("errors"))
        == (verdict == "nothing ran")
        == sum(tag == "error" for tag, _ in got.values())
    )
    assert int(suite.get("tests")) == len(got)

    # pytest
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    words = ["-p", "loko_ref.conformance.pytest_plugin", "--assert=plain", "-rxXf"]
    words += ["--loko-implementation", target, "--loko-only", ONLY]
    words += ["--loko-xfail", *path] if path else []
    ran = pytester.runpytest_inprocess(*words)
    assert ran.ret == code
    said = "\n".join(ran.outlines)
    assert counts_in(said.rpartition("= loko-ref =")[2]) == (HEADLINE[verdict], counts)
    totals = ran.parseoutcomes()
    assert totals.get("passed", 0) == counts["passed"]
    assert totals.get("failed", 0) == counts["failed"] + counts["unexpected pass"]
    assert totals.get("xfailed", 0) == counts["expected failure"]
    assert totals.get("skipped", 0) == counts["unsupported"]
    for key in expected:
        assert f"loko-ref::{key} - {REASON}" in said
    assert said.count(f"[XPASS(strict)] {REASON}") == 2 * len(surprising)  # block, summary
    assert ("note expected" in said) == bool(unseen)
    assert note in said
