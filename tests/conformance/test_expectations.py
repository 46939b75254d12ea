"""Expected failures and the JUnit report."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command import loko_ref

from loko_ref.conformance.reports import expected_failures as expectations
from loko_ref.errors import InputError

TARGETS = Path(__file__).parent / "targets.py"
ONLY = "kalman.diagonal_update/random*/float64"
RANDOM = "kalman.diagonal_update/random/float64"
VARIATIONAL = "kalman.diagonal_update/random-variational/float64"


def cli(*arguments):
    return loko_ref("verify", "--only", ONLY, *arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RANDOM, "line 1: got"),
        ("# a remark\n\nkalman.diagonal_update/randon/float64: why", "the closest id is"),
        (f"{RANDOM}: a\n{RANDOM}: b", "line 2: got"),
    ],
)
def test_a_faulty_list_is_refused(tmp_path, text, message):
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        expectations.read(path)
    assert message in str(error.value)
    with pytest.raises(InputError, match="xfail: got"):
        expectations.read(tmp_path / "absent")


def test_expected_failures_do_not_spoil_the_exit_code(tmp_path):
    path, out = tmp_path / "x.txt", tmp_path / "j.xml"
    path.write_text(f"# known\n{RANDOM}: see ticket 7\n{VARIATIONAL}: see ticket 7\n")
    result = cli(f"{TARGETS}:JITTER", "--xfail", path, "--junit", out)
    assert result.returncode == 0, result.stdout
    assert f"expected failure {RANDOM}: see ticket 7" in result.stdout
    suite = ElementTree.parse(out).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "2")


def test_an_unexpected_pass_is_an_error(tmp_path):
    path, out = tmp_path / "x.txt", tmp_path / "j.xml"
    path.write_text(f"{RANDOM}: see ticket 7\n")
    result = cli(TARGETS, "--xfail", path, "--junit", out)
    assert result.returncode == 1
    assert f"UNEXPECTED PASS {RANDOM}: was expected to fail: see ticket 7" in result.stdout
    suite = ElementTree.parse(out).getroot()[0]
    assert suite.get("failures") == "1"


def test_junit_holds_the_failure_and_the_mistake(tmp_path):
    out, document = tmp_path / "j.xml", tmp_path / "r.json"
    result = cli(f"{TARGETS}:JITTER", "--junit", out, "--json", document)
    assert result.returncode == 1
    cases = ElementTree.parse(out).getroot()[0].findall("testcase")
    assert [c.get("name") for c in cases] == [RANDOM, VARIATIONAL]
    assert [c.get("name") for c in cases] == [
        c["id"] for c in json.loads(document.read_text())["checks"]
    ]
    node = cases[0].find("failure")
    assert node.get("message").startswith("first off: S[")
    assert "jitter added to" in node.text
