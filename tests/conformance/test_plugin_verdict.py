"""The plugin's exit code and options: a run that checked nothing is an error, however it came."""

from pathlib import Path

import pytest

from loko_ref.conformance import pytest_plugin  # noqa: F401
from loko_ref.conformance.cases.registry import all_cases
from loko_ref.conformance.diagnose import naming  # noqa: F401
from loko_ref.conformance.implementations import python as implementation  # noqa: F401

# pytester forgets what a run imports; the kit is imported once, before
from loko_ref.conformance.reports import expected_failures as expectations  # noqa: F401

pytest_plugins = ["pytester"]
all_cases()

TARGETS = Path(__file__).parent / "targets.py"

ONLY = "kalman.diagonal_update/random*"
RANDOM = "kalman.diagonal_update/random/float64"
OWN = "import pytest\n@pytest.mark.mine\ndef test_own():\n    pass\n"


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest in this process on the checks of a target: (exit code, stdout, stderr)."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makeini("[pytest]\nmarkers =\n    mine\n")

    def call(target, *words):
        plugins = ["-p", "loko_ref.conformance.pytest_plugin", "-p", "no:cacheprovider"]
        target = [] if target is None else ["--loko-implementation", f"{TARGETS}:{target}"]
        only = [] if any("--loko-only" in word for word in words) or not target else [ONLY]
        only = [word for glob in only for word in ("--loko-only", glob)]
        done = pytester.runpytest_inprocess(*plugins, "--assert=plain", *target, *only, *words)
        return done.ret, "\n".join(done.outlines), "\n".join(done.errlines)

    return call


def test_cases_are_chosen_by_options(run):
    only = ["--loko-only", "noise.update"]
    code, out, _ = run("IMPLEMENTATION", *only, "--loko-option", "noise=fixed", "--collect-only")
    assert code == 0
    assert "noise.update/fixed/float64" in out
    assert "noise.update/ema" not in out
    code, _, err = run("IMPLEMENTATION", *only, "--loko-option", "noise=none")
    assert code == 4
    assert "--loko-option noise: got 'none'; required one of" in err


@pytest.mark.parametrize(
    ("target", "own", "words", "unsupported"),
    [
        ("DECLINES", False, [], 4),
        ("DECLINES", True, [], 4),
        ("DECLINES_FLOAT32", True, ["-k", "own or float32"], 2),
        ("IMPLEMENTATION", True, ["-k", "own"], 0),
        ("IMPLEMENTATION", True, ["-m", "mine"], 0),
        ("IMPLEMENTATION", False, ["-k", "no_such_test"], 0),
        ("IMPLEMENTATION", True, ["--deselect", "loko-ref::"], 0),
    ],
)
def test_nothing_checked_is_an_error(run, pytester, target, own, words, unsupported):
    if own:
        pytester.makepyfile(OWN)
    code, out, _ = run(target, *words)
    assert code == 2
    assert f"NOTHING RAN: {unsupported} unsupported" in out
    assert ("1 passed" in out) == own


def test_one_check_is_enough_and_a_failure_stays_a_failure(run, pytester):
    pytester.makepyfile("def test_own():\n    assert False\n")
    code, out, _ = run("DECLINES_FLOAT32", "-k", "diagonal_update/random/")
    assert code == 0
    assert "PASSED: 1 of 1; 1 unsupported" in out
    assert run("DECLINES")[0] == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("word", ["--collect-only", "--fixtures", "--setup-plan"])
def test_where_no_test_was_to_run_nothing_is_said(run, word):
    code, out, _ = run("DECLINES", word)
    assert code == 0
    assert "NOTHING RAN" not in out


def test_runxfail_takes_expected_failures_for_failures(run, pytester):
    pytester.path.joinpath("x.txt").write_text(f"{RANDOM}: known\n")
    code, out, _ = run("JITTER", "--loko-xfail", "x.txt", "--runxfail", "-k", "random/float64")
    assert code == 1
    assert "FAILED: 1 of 1; 0 passed, 0 unsupported" in out


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("DECLINES", ["--loko-xfail", "absent.txt"], "--loko-xfail: got 'absent.txt'"),
        ("DECLINES", ["--loko-xfail", "x.txt"], "--loko-xfail, line 2: got"),
        ("DECLINES", ["--loko-only=no-such"], "--loko-only: got 'no-such'"),
        ("DECLINES", ["--loko-dtype", "float16"], "--loko-dtype: got 'float16'"),
        ("NO_SUCH", [], "--loko-implementation: got"),
        (None, ["--loko-xfail", "x.txt"], "--loko-xfail needs --loko-implementation"),
        (None, ["--loko-only=lora.*"], "--loko-only needs --loko-implementation"),
    ],
)
def test_usage_errors_name_the_plugins_own_option(run, pytester, target, words, message):
    pytester.path.joinpath("x.txt").write_text("# one line without a reason\nlora.delta\n")
    code, out, err = run(target, *words)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert message in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("target", ["DECLINES", pytest.param("JITTER", marks=pytest.mark.slow)])
def test_the_verdict_under_xdist(run, pytester, target):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    pytester.path.joinpath("x.txt").write_text(f"{RANDOM}: known\n")
    code, out, _ = run(target, "-p", "xdist", "-n", "1", "--loko-xfail", "x.txt")
    if target == "DECLINES":
        assert code == 2
        assert "NOTHING RAN: 4 unsupported" in out
        assert f"note expected to fail, but declined and so not run (1): {RANDOM}" in out
    else:
        assert code == 1
        assert "FAILED: 1 of 4; 2 passed, 1 expected failure, 0 unsupported" in out
