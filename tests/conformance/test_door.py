"""Verification from Python: the command's verdicts, on NumPy and SciPy alone."""

import importlib
import inspect
import json
import os
import shlex
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import targets
from command import loko_ref as command

import loko_ref
from loko_ref.conformance import Report, VerificationError, verify, verify_recording
from loko_ref.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TARGETS = Path(__file__).with_name("targets.py")
HARNESS = ROOT / "examples" / "harness.py"
ONLY = "kalman.diagonal_update/random*"
RANDOM = "kalman.diagonal_update/random/float64"

MINE = f"""
import sys
sys.path.insert(0, {str(TARGETS.parent)!r})
from targets import JITTER as IMPLEMENTATION
"""


class Holder:
    """An object with functions by the operations' names."""

    @staticmethod
    def kalman_diagonal_update(**keywords):
        return targets.JITTER["kalman.diagonal_update"](**keywords)


def jitter():
    return verify(targets.JITTER, only=ONLY)


def plain(report):
    """The document but for the target."""
    return {k: v for k, v in json.loads(report.to_json()).items() if k != "target"}


def test_every_way_to_name_an_implementation_has_the_command_s_verdict(tmp_path):
    file = tmp_path / "r.json"
    done = command("verify", f"{TARGETS}:JITTER", "--only", RANDOM, "--json", file)
    assert done.returncode == 1
    document = json.loads(file.read_text())
    wanted = {k: v for k, v in document.items() if k != "target"}
    assert wanted["summary"]["failed"] == 1
    module = types.ModuleType("mine")
    module.IMPLEMENTATION = targets.JITTER
    for given in (
        targets.JITTER,
        types.MappingProxyType(targets.JITTER),
        module,
        types.SimpleNamespace(IMPLEMENTATION=targets.JITTER),
        Holder(),
        f"{TARGETS}:JITTER",
    ):
        report = verify(given, only=RANDOM)
        assert plain(report) == wanted, given
        assert report.document["target"] == report.target
    assert file.read_text() == verify(f"{TARGETS}:JITTER", only=RANDOM).to_json()
    own = tmp_path / "mine.py"
    own.write_text(MINE)
    for given in (own, str(own)):
        report = verify(given, only=RANDOM)
        assert (plain(report), report.target) == (wanted, str(own))


def test_a_module_is_named_as_the_command_names_it():
    report = verify(targets, only=ONLY)
    assert (report.target, report.passed) == ("targets", True)


@pytest.mark.skipif(os.name != "posix", reason="a command needs POSIX")
def test_a_command_is_a_list_of_words_or_as_typed(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    words = [sys.executable, HARNESS, mine]
    typed = shlex.join(map(str, words))
    first = verify(words, only=RANDOM)
    assert [one.mistake for one in first.failures] == ["S-JITTER"]
    assert first.target == f"--cmd {shlex.quote(typed)}"
    again = verify(f"--cmd {typed}", only=RANDOM, large=0)
    assert (plain(again), again.target) == (plain(first), first.target)
    with pytest.raises(InputError, match="implementation: got '/no/such/harness'"):
        verify("--cmd /no/such/harness", only=RANDOM)  # one word: as the shell takes it


def test_a_recording_is_verified_too(tmp_path):
    path = tmp_path / "trace.npz"
    state = {"theta": np.zeros(3), "p": np.full(3, 0.5), "R": np.eye(1)}
    H, e = np.array([[1.0, 2.0, 3.0]]), np.array([0.5])
    S = H * state["p"] @ H.T + state["R"]
    K = (H * state["p"]).T / S
    after = {"theta": K @ e, "p": state["p"] * (1 - (K * H.T)[:, 0]), "R": state["R"]}
    step = {**state, "H": H, "e": e, "S": S, "K": K}
    np.savez(path, **{f"{k}/{q}": a for k, s in enumerate((step, after)) for q, a in s.items()})
    report = verify_recording(path)
    assert report.passed
    assert report.summary.ran >= 4
    wrong = verify_recording(path, {"diagonal": "variational"})
    assert [one.quantity for one in wrong.failures] == ["p"]
    assert wrong.target == f"--trace {path} --option diagonal=variational"
    with pytest.raises(InputError, match="options: got 'nose'"):
        verify_recording(path, {"nose": "fixed"})
    with pytest.raises(InputError, match=r"path: got .*absent"):
        verify_recording(tmp_path / "absent.npz")


def test_the_report_is_short_and_its_failures_are_objects():
    report = jitter()
    head, first, mistake = repr(report).splitlines()
    assert head == "FAILED: 2 of 4; 2 passed, 0 unsupported  (Python: dict)"
    one = report.failures[0]
    assert (one.case, one.quantity, one.mistake) == (RANDOM, "S", "R-JITTER")
    assert len(one.index) == 2
    assert one.ratio > 100
    assert abs(one.got - one.expected) == pytest.approx(1e-9, rel=1e-3)
    assert first == str(one)
    assert mistake.startswith("R-JITTER: jitter added to R")
    assert not report.passed
    assert len(report.failures) == 2
    with pytest.raises(AttributeError):
        report.target = "other"
    right = verify(targets.IMPLEMENTATION, only=ONLY, dtype="float64")
    assert repr(right) == "PASSED: 2 of 2; 0 unsupported  (Python: dict)"
    assert (right.failures, right.passed, right.raise_if_failed()) == ((), True, None)


def test_a_failed_report_raises_what_a_test_should_show():
    with pytest.raises(VerificationError) as caught:
        jitter().raise_if_failed()
    assert isinstance(caught.value, AssertionError)
    text = str(caught.value)
    for part in (
        "FAILED: 2 of 4",
        f"{RANDOM}: first off: S[",
        f"reproduce: loko_ref.verify(..., only={RANDOM!r})",
        "mistake R-JITTER: jitter added to R",
        "correct formula: R enters as it is given",
    ):
        assert part in text, part
    with pytest.raises(VerificationError, match=r"NOTHING RAN: 4 unsupported(.|\n)*not yet"):
        verify(targets.DECLINES, only=ONLY).raise_if_failed()


def test_expected_failures_are_a_mapping_or_a_file(tmp_path):
    listed = {RANDOM: "ticket 7", RANDOM.replace("random", "random-variational"): "ticket 7"}
    report = verify(targets.JITTER, only=ONLY, xfail=listed)
    assert (report.passed, report.failures) == (True, ())
    file = tmp_path / "x.txt"
    file.write_text("".join(f"{key}: {why}\n" for key, why in listed.items()))
    assert verify(targets.JITTER, only=ONLY, xfail=file).document == report.document
    surprise = verify(targets.IMPLEMENTATION, only=RANDOM, xfail={RANDOM: "ticket 7"})
    assert [one.quantity for one in surprise.failures] == [None]
    assert "passed, but was expected to fail: ticket 7" in repr(surprise)
    assert "was expected to fail: ticket 7" in surprise._repr_html_()
    with pytest.raises(VerificationError, match="was expected to fail: ticket 7"):
        surprise.raise_if_failed()


class Raises:
    @property
    def IMPLEMENTATION(self):
        raise RuntimeError("not today")

    def __str__(self):  # its name as a parameter, the same in every process
        return "raises"


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, r"implementation: got a mapping with the keys \[\]"),
        ({"lora.delt": len}, {}, "implementation: .*the closest is 'lora.delta'"),
        ({"lora.delta": 3}, {}, r"implementation: got a mapping\['lora.delta'\] of type int"),
        (None, {}, "implementation: got 'Python: NoneType' without an attribute IMPLEMENTATION"),
        (len, {}, "implementation: got .* without an attribute IMPLEMENTATION"),
        (Raises(), {}, "implementation: got .*RuntimeError: not today"),
        ("no_such_file.py", {}, "implementation: got 'no_such_file.py'; required a file"),
        ([], {}, "implementation: got ''; required a command"),
        (["true", 3], {}, r"implementation\[1\]: got type int"),
        (["/no/such/harness"], {}, "implementation: got '/no/such/harness'"),
        ("--cmd 'open", {}, "implementation: got .*No closing quotation"),
        (targets, {"only": "nothing"}, "only: got 'nothing'"),
        (targets, {"only": ["a"]}, "only: got type list"),
        (targets, {"dtype": "float16"}, "dtype: got 'float16'"),
        (targets, {"timeout": 0}, "timeout: got 0"),
        (targets, {"timeout": float("nan")}, "timeout: got nan"),
        (targets, {"timeout": 1e300}, r"timeout: got 1e\+300"),
        (targets, {"timeout": "1"}, "timeout: got '1'"),
        (targets, {"large": 3}, "large: got 3; required bytes >= 0, with a command"),
        (["true"], {"large": -1}, "large: got -1"),
        (targets, {"xfail": {"x": "why"}}, r"xfail\['x'\]: got 'x'"),
        (targets, {"xfail": {RANDOM: ""}}, r"xfail\['.*'\]: got ''; required 'id: reason'"),
        (targets, {"xfail": [RANDOM]}, "xfail: got type list"),
        (targets, {"xfail": "absent.txt"}, "xfail: got 'absent.txt'"),
    ],
    ids=str,
)
def test_what_cannot_be_used_names_the_argument(given, options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        verify(given, **{"only": RANDOM, **options})


class Tags(HTMLParser):
    """The tags that are open, which must match, and the text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_a_card_of_each_fault_without_script():
    found = Tags(jitter()._repr_html_())
    assert not {tag for tag, _ in found.seen} & {"script", "img", "link"}
    names = {name for _, attributes in found.seen for name in attributes}
    assert names <= {"class", "open", "role", "tabindex", "aria-label", "scope"}
    for part in ("FAILED: 2 of 4", "S[", "R-JITTER: jitter added to R", "R enters as it is given"):
        assert part in found.text
    assert sum(tag == "details" for tag, _ in found.seen) == 1  # the one kind of failure
    assert sum(tag == "caption" for tag, _ in found.seen) == 3  # expected, got, difference


def test_hostile_text_is_escaped_in_a_notebook():
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\ud800\x1b[31m"

    def raises(**keywords):
        raise RuntimeError(hostile)

    report = verify({"kalman.diagonal_update": raises, hostile: raises}, only=RANDOM)
    surprise = verify(targets.IMPLEMENTATION, only=RANDOM, xfail={RANDOM: hostile})
    renamed = Report(target=hostile, checks=report.checks, notes=(hostile,))
    for one in (report, surprise, renamed):
        source = one._repr_html_()
        assert not {tag for tag, _ in Tags(source).seen} & {"script", "img"}
        assert "<script>alert(1)</script>" in Tags(source).text
        assert all(c.isprintable() for c in source)
        assert repr(one).encode()
        one.to_json().encode()


def test_many_failures_stay_short():
    def wrong(**keywords):
        raise RuntimeError("x" * 5000)

    names = [name for name in loko_ref.conformance.OPERATIONS if not name.startswith("lte")]
    report = verify(dict.fromkeys(names, wrong), only="*/tiny*/float64")
    assert len(report.failures) > 4
    assert len(repr(report).splitlines()) <= 3
    assert len(repr(report)) < 4000
    assert len(report._repr_html_()) < 10_000


ALONE = """
import sys
for name in ("rich", "typer", "jinja2", "threadpoolctl", "matplotlib", "sklearn", "hypothesis"):
    sys.modules[name] = None
import loko_ref
assert set(dir(loko_ref)) >= {"verify", "Report", "lte", "strategies", "conformance", "explain"}
from loko_ref import lte, conformance, explain, verify, Report
report = verify(TARGET, only=ONLY)
assert isinstance(report, Report) and report.failures[0].mistake == "S-JITTER"
assert repr(report) and report._repr_html_() and report.text and report.to_json()
assert report.to_junit()
for work, extra in (
    (report.print, "cli"),
    (report.to_html, "cli"),
    (lambda: report.write(html="f.html", json="f.json"), "cli"),
    (lambda: loko_ref.strategies, "test"),
    (lambda: loko_ref.properties, "test"),
):
    try:
        work()
    except loko_ref.errors.MissingExtraError as error:
        assert error.extra == extra and f"loko-ref[{extra}]" in str(error)
    else:
        raise SystemExit(f"no error: {extra}")
try:
    report.raise_if_failed()
except AssertionError:
    print("as it should")
"""


def test_all_of_it_runs_on_numpy_and_scipy_alone(tmp_path):
    code = ALONE.replace("TARGET", repr(f"{TARGETS}:JITTER")).replace("ONLY", repr(RANDOM))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "as it should\n"), done.stderr
    assert not any(tmp_path.iterdir())  # what lacks its extra writes nothing


def test_progress_counts_to_the_end():
    seen = []
    verify(targets, only=ONLY, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 4) for k in (1, 2, 3, 4)]


FACES = ["conformance", "explain", "kalman", "loko", "lte", "network", "properties", "strategies"]


@pytest.mark.parametrize("name", ["", *FACES])
def test_completion_shows_the_public_names_only(name):
    module = importlib.import_module(f"loko_ref.{name}".rstrip("."))
    shown = dir(module)
    assert shown == sorted({*module.__all__, *([] if name else ["properties", "strategies"])})
    assert module.__all__
    for one in shown:
        getattr(module, one)
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        module.no_such  # noqa: B018


def signatures(name):
    """(name, annotation) of every parameter and return value of a package's public functions."""
    module = importlib.import_module(f"loko_ref.{name}".rstrip("."))
    for key in module.__all__:
        one = getattr(module, key)
        parts = [one]
        if inspect.isclass(one):
            parts += [m for k, m in vars(one).items() if k[0] != "_" and inspect.isfunction(m)]
        for part in parts if callable(one) else ():
            if inspect.isclass(part) and issubclass(part, Exception):
                continue
            signature = inspect.signature(part)
            for p in signature.parameters.values():
                if p.kind is not p.VAR_KEYWORD and p.name != "self":
                    yield f"{key}({p.name})", p.annotation
            if part is not one or not inspect.isclass(one):
                yield f"{key} ->", signature.return_annotation


@pytest.mark.parametrize("name", ["", *FACES])
def test_public_signatures_show_types(name):
    for place, annotation in signatures(name):
        assert str(annotation) not in ("Any", "typing.Any", str(inspect.Parameter.empty)), place
