"""The pytest plugin: every check of the kit as a test, and the cases for use in other tests.

``pytest --loko-implementation my_module`` runs each check as a test with the same id. A declined
one is skipped with its reason, one listed in ``--loko-xfail F`` is strictly expected to fail. The
verdict is that of ``loko-ref verify``; where no check ran, the exit code is 2 as there. The cases
in a test of your project::

    from loko_ref.conformance.pytest_plugin import assert_correct, parametrize

    @parametrize("kalman.diagonal_update", dtype="float64")
    def test_my_filter(case):
        assert_correct(case, my_filter(**case.inputs(), **case.options))

Importing this module does not import the kit, which is loaded on first use.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from loko_ref.conformance.cases.registry import Case
    from loko_ref.conformance.diagnose.search.again import Again
    from loko_ref.conformance.engine import Check, Summary


TARGET = "--loko-implementation"
"""The option that adds the checks."""


class _CheckFailed(AssertionError):
    """A check failed; its text is the report."""


def _report(check: Check, again: Again | None = None) -> str:
    """Return the report on a failed check: what is wrong, where, and which mistake explains it.

    Parameters
    ----------
    again : callable, optional
        Calls the implementation once more, which confirms a name.
    """
    from loko_ref.conformance.diagnose.groups import group
    from loko_ref.conformance.diagnose.naming import name_mistakes
    from loko_ref.conformance.reports.text import describe

    (one,) = group([check], name_mistakes([check], again))
    return "\n".join(line.removeprefix("  ") for line in describe(one))


def parametrize(
    only: str | None = None, *, dtype: str | None = None, catalogue: str = "operations/1"
) -> pytest.MarkDecorator:
    """Parametrize a test's argument ``case`` with the cases that match.

    Parameters
    ----------
    only : str, optional
        A glob of ids or operations.
    dtype : str, optional
        float64 or float32; both by default.
    catalogue : str
        The version that the test was written for: cases with later inputs or options are left out.
    """
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.implementations.target import stated_catalogue

    version = stated_catalogue("catalogue", catalogue)
    cases = [replace(c, version=version) for c in select(only, dtype) if not c.newer(version)]
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def assert_correct(case: Case, outputs: Any) -> None:
    """Raise, failing the test, unless outputs agree with the oracle; name the first wrong quantity.

    Parameters
    ----------
    case : Case
        From :func:`parametrize`.
    outputs : mapping of str to array
        Any subset of the operation's outputs.
    """
    from loko_ref.conformance.engine import judge
    from loko_ref.conformance.judge.answer import check

    outcome = judge(case, check(outputs, case))
    if outcome.status not in ("passed", "imprecise"):
        __tracebackhide__ = True
        raise _CheckFailed(_report(outcome) if outcome.status == "failed" else outcome.reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("loko-ref", "correctness of LoKO and LTE implementations")
    group.addoption(
        TARGET,
        metavar="TARGET",
        help="run loko-ref's checks on this file, module or module:attribute",
    )
    group.addoption("--loko-only", metavar="GLOB", help="only ids or operations that match")
    group.addoption("--loko-dtype", metavar="DTYPE", help="float64 or float32")
    group.addoption(
        "--loko-option",
        metavar="NAME=VALUE",
        action="append",
        help="repeatable: an option that the implementation has one value of",
    )
    group.addoption(
        "--loko-xfail",
        metavar="FILE",
        help="file of expected failures, one 'id: reason' per line; one that passes is an error",
    )
    group.addoption(
        "--loko-strict",
        action="store_true",
        help="let imprecise results fail: right formulas by an algorithm that loses digits",
    )


_TARGET = pytest.StashKey[Any]()
_PREFIX = "loko-ref::"
_OPTIONS = {
    "TARGET": TARGET,
    "only": "--loko-only",
    "dtype": "--loko-dtype",
    "options": "--loko-option",
    "xfail": "--loko-xfail",
}
"""Name of an argument in an error of the kit -> the option that set it."""

_NOT_RUNS = ("collectonly", "setuponly", "showfixtures", "show_fixtures_per_test")
"""Options of pytest under which no test is run."""


def pytest_configure(config: pytest.Config) -> None:
    """Load the implementation once; a target that cannot be used is a usage error."""
    target = config.getoption(TARGET, None)
    if target is None:
        for option in ("--loko-only", "--loko-dtype", "--loko-option", "--loko-xfail"):
            if config.getoption(option, None) is not None:
                raise pytest.UsageError(f"{option} needs {TARGET} beside it, which was left out")
        return
    from loko_ref.conformance.cases.chosen import choose, read_options
    from loko_ref.conformance.implementations.python import load
    from loko_ref.conformance.reports import expected_failures
    from loko_ref.conformance.verification import naming
    from loko_ref.errors import InputError

    listed = config.getoption("--loko-xfail")
    try:
        with naming(**_OPTIONS):
            options = read_options("options", config.getoption("--loko-option") or [])
            only, dtype = config.getoption("--loko-only"), config.getoption("--loko-dtype")
            if "+" not in (only or ""):  # no case that the implementation's own options build
                choose(options, only, dtype)  # raises before code that is not ours is run
            expected = {} if listed is None else expected_failures.read(listed)
            target = load(target).having(options)
            cases = choose(target.options, only, dtype)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_TARGET] = target, cases, expected
    if not hasattr(config, "workerinput") and not any(config.getoption(k) for k in _NOT_RUNS):
        config.pluginmanager.register(_Verdict(config, expected), "loko-ref-verdict")


class _Verdict:
    """Collects the statuses of the checks, in xdist's workers too, and prints the verdict."""

    def __init__(self, config: pytest.Config, expected: dict[str, str]) -> None:
        # with --runxfail pytest counts expected failures as failures
        self.expected = {} if config.getoption("runxfail") else expected
        self.statuses: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the status of a check; one ended from outside, such as by a time-out, failed."""
        if not report.nodeid.startswith(_PREFIX):
            return
        key, status = report.nodeid.removeprefix(_PREFIX), getattr(report, "loko_status", None)
        if status is None and report.failed:
            status = "failed"
        elif status is None and report.skipped:
            status = "unsupported"
        if status is not None:
            self.statuses[key] = status

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End with exit code 2, as ``loko-ref verify`` does, where no check ran."""
        well = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if not self._summary().ran and session.exitstatus in well:
            session.exitstatus = self._summary().exit_code

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the verdict, and the expected failures that were not run."""
        from loko_ref.conformance.reports.expected_failures import not_run

        terminalreporter.section("loko-ref")
        for note in not_run(self.statuses.items(), self.expected):
            terminalreporter.write_line(f"note {note}")
        summary = self._summary()
        colour = {"failed": "red", "passed": "green"}.get(summary.verdict, "yellow")
        terminalreporter.write_line(summary.text, **{colour: True})

    def _summary(self) -> Summary:
        from loko_ref.conformance.engine import count, outcome

        return count(outcome(key, status, self.expected) for key, status in self.statuses.items())


class LokoItem(pytest.Item):
    """One check as a test."""

    def __init__(
        self, *, implementation: Any, case: Case, expected: str | None, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.implementation = implementation
        self.case = case
        self.status: str | None = None
        if expected is not None:
            mark = pytest.mark.xfail(reason=expected, strict=True, raises=_CheckFailed)
            self.add_marker(mark)

    def runtest(self) -> None:
        """Run the check."""
        from loko_ref.conformance.diagnose.search.again import calling
        from loko_ref.conformance.engine import TIMEOUT, run, settle
        from loko_ref.conformance.reports.text import amplified, imprecise

        strict = bool(self.config.getoption("--loko-strict"))
        declared = {} if strict else self.implementation.precision
        checks = run(
            self.implementation, [self.case], timeout=TIMEOUT, again=True, declared=declared
        )
        (check,) = settle(checks, strict=strict)
        self.status = check.status
        if check.status == "unsupported":
            pytest.skip(str(check.reason))
        if check.status == "failed":
            raise _CheckFailed(_report(check, calling(self.implementation, TIMEOUT)))
        if check.status == "imprecise":
            self.user_properties.append(("imprecise", imprecise(check)))
        if check.amplified is not None:
            self.user_properties.append(("amplified", amplified(check)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the report, not a traceback through this package."""
        if isinstance(excinfo.value, _CheckFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Return the heading of the test in pytest's report."""
        return "loko-ref", None, f"loko-ref {self.case.id}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the status of a check to pytest's report of it."""
    report = yield
    if isinstance(item, LokoItem) and call.when == "call":
        report.loko_status = item.status  # type: ignore[attr-defined]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the checks, before -k and -m choose among all tests."""
    if _TARGET not in config.stash:
        return
    implementation, cases, expected = config.stash[_TARGET]
    for case in cases:
        item = LokoItem.from_parent(
            session,
            name=case.id,
            nodeid=f"{_PREFIX}{case.id}",
            implementation=implementation,
            case=case,
            expected=expected.get(case.id),
        )
        items.append(item)
