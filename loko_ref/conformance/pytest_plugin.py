"""The pytest plugin: every check of the kit as a test, and the cases for tests of one's own.

``pytest --loko-implementation my_module`` runs each check as a test with the same id (a declined
one is skipped with its reason). In a test of one's own::

    from loko_ref.conformance.pytest_plugin import assert_correct, parametrize

    @parametrize("kalman.diagonal_update", dtype="float64")
    def test_my_filter(case):
        assert_correct(case, my_filter(**case.inputs(), **case.options))

Importing this module imports nothing of the kit: that waits until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from loko_ref.conformance.cases import Case
    from loko_ref.conformance.verify import Check

__all__ = ["LokoItem", "assert_correct", "parametrize"]


class _CheckFailed(AssertionError):
    """A check failed; its text is the report."""


def _report(check: Check) -> str:
    """Say what is wrong, where, and which known mistake does it."""
    from loko_ref.conformance.naming import name_mistakes
    from loko_ref.conformance.report import failure

    lines = [f"{check.case.id}: {failure(check)}", f"this case hunts: {check.case.hunts}"]
    if check.forced is not None:
        lines.append(check.forced.text)
    for mistake in name_mistakes([check]).get(check.case.id, [])[:3]:
        m = mistake.mutant
        lines.append(f"reproduced by {m.id}: {mistake.text}. {m.explanation}")
        lines.append(f"look at: {m.look}")
    return "\n".join(lines)


def parametrize(only: str | None = None, *, dtype: str | None = None) -> pytest.MarkDecorator:
    """Parametrize a test's argument ``case`` with the cases that match.

    Parameters
    ----------
    only : str, optional
        A glob of ids or operations.
    dtype : str, optional
        float64 or float32; both by default.
    """
    from loko_ref.conformance.cases import select

    cases = select(only, dtype)
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def assert_correct(case: Case, outputs: Any) -> None:
    """Fail the test where outputs are not the oracle's, naming the first quantity that is off.

    Parameters
    ----------
    case : Case
        From :func:`parametrize`.
    outputs : mapping of str to array
        Any subset of the operation's outputs.
    """
    from loko_ref.conformance.answer import check
    from loko_ref.conformance.verify import judge

    outcome = judge(case, check(outputs, case))
    if outcome.status != "passed":
        raise _CheckFailed(_report(outcome) if outcome.status == "failed" else outcome.reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("loko-ref", "correctness of LoKO and LTE implementations")
    group.addoption(
        "--loko-implementation",
        metavar="TARGET",
        help="run loko-ref's checks on this file, module or module:attribute",
    )
    group.addoption("--loko-only", metavar="GLOB", help="only ids or operations that match")
    group.addoption("--loko-dtype", metavar="DTYPE", help="float64 or float32")


_TARGET = pytest.StashKey[Any]()


def pytest_configure(config: pytest.Config) -> None:
    """Load the implementation once; a target that cannot be used is a usage error."""
    target = config.getoption("--loko-implementation", None)
    if target is None:
        return
    from loko_ref.conformance.cases import select
    from loko_ref.conformance.implementation import load
    from loko_ref.errors import InputError

    try:
        cases = select(config.getoption("--loko-only"), config.getoption("--loko-dtype"))
        config.stash[_TARGET] = (load(target), cases)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None


class LokoItem(pytest.Item):
    """One check as a test."""

    def __init__(self, *, implementation: Any, case: Case, **rest: Any) -> None:
        super().__init__(**rest)
        self.implementation = implementation
        self.case = case

    def runtest(self) -> None:
        """Run the check."""
        from loko_ref.conformance.verify import TIMEOUT, run

        (check,) = run(self.implementation, [self.case], timeout=TIMEOUT)
        if check.status == "unsupported":
            pytest.skip(str(check.reason))
        if check.status == "failed":
            raise _CheckFailed(_report(check))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the report, not a traceback through this package."""
        if isinstance(excinfo.value, _CheckFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Say what a line of the test report is about."""
        return "loko-ref", None, f"loko-ref {self.case.id}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the checks, before -k and -m choose among all tests."""
    if _TARGET not in config.stash:
        return
    implementation, cases = config.stash[_TARGET]
    for case in cases:
        item = LokoItem.from_parent(
            session,
            name=case.id,
            nodeid=f"loko-ref::{case.id}",
            implementation=implementation,
            case=case,
        )
        items.append(item)
