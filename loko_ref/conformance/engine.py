"""The engine: run cases on an implementation and judge each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.implementations.python import Runnable
from loko_ref.conformance.judge.answer import Answer, Finding
from loko_ref.conformance.judge.compare import Divergence, compare
from loko_ref.conformance.judge.conditional import Judgement, judge_given_parents
from loko_ref.conformance.judge.declared import NONE, Declared, roundoffs
from loko_ref.conformance.judge.imprecise import Imprecise, explain, stated
from loko_ref.conformance.judge.tolerance import canonical, tolerance
from loko_ref.conformance.teacher_forcing import Forced, force

TIMEOUT = 60.0
"""Seconds that one check may take."""

PASSED, FAILED, UNSUPPORTED, IMPRECISE = "passed", "failed", "unsupported", "imprecise"
EXPECTED_FAILURE, UNEXPECTED_PASS = "expected failure", "unexpected pass"
"""Outcomes of a check in the light of a list of expected failures, beside the four of any run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """The outcome of one case.

    Attributes
    ----------
    case : Case
        The case.
    status : {"passed", "imprecise", "failed", "unsupported"}
        Its outcome.
    divergences : tuple of Divergence
        For a failed or imprecise one: every quantity that is wrong given its parents, in dataflow
        order.
    unjudged : tuple of str
        What cannot be judged since its parents are wrong; never counted as right.
    amplified : Divergence or None
        Where every quantity follows from its parents, and the first one along the whole route is
        off all the same: the case amplifies rounding, which is no failure.
    imprecise : Imprecise or None
        Where the right formula, by an algorithm that loses digits, explains all that is off.
    finding : Finding or None
        For a failed one: what is wrong other than a number.
    reason : str or None
        For an unsupported one: why.
    lacking : tuple of str
        For an unsupported one: the options that the function takes no parameter for.
    worst : float
        The largest ratio of error to tolerance.
    quantities : tuple of str
        What was judged.
    outputs : mapping
        What came back.
    returned : mapping
        Where outputs have a shape of their own: everything that came back, as it came.
    forced : Forced or None
        For a failed run: what each step does from the oracle's state.
    """

    case: Case
    status: str
    divergences: tuple[Divergence, ...] = ()
    unjudged: tuple[str, ...] = ()
    amplified: Divergence | None = None
    imprecise: Imprecise | None = None
    finding: Finding | None = None
    reason: str | None = None
    lacking: tuple[str, ...] = ()
    worst: float = 0.0
    quantities: tuple[str, ...] = ()
    outputs: Mapping[str, Array] = field(default_factory=dict)
    returned: Mapping[str, Array] = field(default_factory=dict)
    forced: Forced | None = None

    @property
    def divergence(self) -> Divergence | None:
        """The first wrong quantity in dataflow order, where there is one."""
        return self.divergences[0] if self.divergences else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The verdict on a run: every report takes counts, headline and exit code from here.

    Attributes
    ----------
    passed, failed, expected_failures, unexpected_passes, unsupported, imprecise : int
        Number of checks of each :func:`outcome`.
    """

    passed: int
    failed: int
    expected_failures: int
    unexpected_passes: int
    unsupported: int
    imprecise: int = 0

    @property
    def ran(self) -> int:
        """Number of checks that ran: all but the unsupported ones."""
        right = self.passed + self.imprecise
        return right + self.failed + self.expected_failures + self.unexpected_passes

    @property
    def verdict(self) -> str:
        """One of ``failed``, ``nothing ran``, ``as expected``, ``passed``.

        An unexpected pass counts as a failure: the list of expected failures is out of date. What
        is imprecise is none.
        """
        if self.failed or self.unexpected_passes:
            return "failed"
        if not self.ran:
            return "nothing ran"
        return "as expected" if self.expected_failures else "passed"

    @property
    def exit_code(self) -> int:
        """0 all that ran passed or failed as expected, 1 something else failed, 2 nothing ran."""
        return {"failed": 1, "nothing ran": 2}.get(self.verdict, 0)

    @property
    def headline(self) -> str:
        """The verdict in words."""
        return {"failed": "FAILED", "nothing ran": "NOTHING RAN"}.get(self.verdict, "PASSED")

    @property
    def text(self) -> str:
        """The headline and the counts, in one line.

        Examples
        --------
        >>> count(["failed", "passed", "passed", "unsupported"]).text
        'FAILED: 1 of 3; 2 passed, 1 unsupported'
        """
        rest = [f"{self.unsupported} unsupported"]
        if self.expected_failures:
            rest.insert(0, _counted(self.expected_failures, "expected failure", "s"))
        if self.imprecise:
            rest.insert(0, f"{self.imprecise} imprecise")
        if not self.ran:
            return f"{self.headline}: {rest[0]}"
        if self.verdict != "failed":
            return f"{self.headline}: {self.passed} of {self.ran}; {', '.join(rest)}"
        wrong = f"{self.failed + self.unexpected_passes} of {self.ran}"
        if self.unexpected_passes:
            wrong += f" ({_counted(self.unexpected_passes, 'unexpected pass', 'es')})"
        return f"{self.headline}: {wrong}; {', '.join([f'{self.passed} passed', *rest])}"


def _counted(number: int, name: str, plural: str) -> str:
    return f"{number} {name}{plural if number > 1 else ''}"


def judge(case: Case, answer: Answer, declared: Declared = NONE) -> Check:
    """Turn an answer into a check, in the light of the precision that is stated."""
    if answer.declined is not None:
        reason, lacking = answer.declined, answer.lacking
        return Check(case=case, status="unsupported", reason=reason, lacking=lacking)
    off = answer.finding.quantity if answer.finding is not None else None
    case = case.holding([*answer.outputs, *answer.returned, *([off] if off else [])])
    first, worst = compare(case, answer.outputs)
    judged = tuple(name for name in answer.outputs if tolerance(case)[name] is not None)
    found = Judgement() if first is None else judge_given_parents(case, answer.outputs, first)
    common: dict[str, Any] = {
        "case": case,
        "worst": worst,
        "quantities": judged,
        "outputs": answer.outputs,
    }
    wrong, cause = found.wrong, None
    if first is not None and answer.finding is None:
        cause = explain(case, answer.outputs, numbers=not wrong)
        wrong = wrong or ((first,) if cause else ())
        if wrong and cause is None and (coarse := roundoffs(case, declared)):
            left = judge_given_parents(case, answer.outputs, first, declared)
            cause = None if left.wrong else stated(case, declared, coarse)
            found = left if left.wrong else found
            wrong = left.wrong or wrong
    if wrong:  # numbers before a later output's form: dataflow order
        return Check(
            **common,
            status=FAILED if cause is None else IMPRECISE,
            divergences=wrong,
            unjudged=found.unjudged,
            imprecise=cause,
        )
    if answer.finding is not None:
        return Check(
            case=case,
            status="failed",
            finding=answer.finding,
            quantities=judged,
            returned=answer.returned,
        )
    if not judged:
        reason = "no output of this case can be judged in this dtype"
        return Check(case=case, status="unsupported", reason=reason, outputs=answer.outputs)
    return Check(**common, status="passed", amplified=first)


def run(
    implementation: Runnable,
    cases: Sequence[Case],
    *,
    timeout: float | None = TIMEOUT,
    progress: Callable[[Check], None] | None = None,
    again: bool = False,
    declared: Declared = NONE,
) -> list[Check]:
    """Run every case in turn.

    Parameters
    ----------
    timeout : float, optional
        Seconds a check, the forced steps of a failed run included.
    progress : callable, optional
        Called with each check as it is done.
    again : bool
        Whether what failed by a number is run a second time, in the opposite order: where the
        answer differs, the check fails as not repeatable.
    declared : mapping of str to str
        The precision that is stated: what it excuses is imprecise.
    """
    checks = []
    for case in cases:
        deadline = None if timeout is None else time.monotonic() + timeout
        check = judge(case, implementation.run(case, timeout), declared)
        if case.operation.name == "loko.run" and check.divergence is not None:
            check = replace(check, forced=force(implementation, case, deadline))
        checks.append(check)
        if progress is not None:
            progress(checks[-1])
    for at in reversed(range(len(checks))) if again else ():
        if checks[at].divergence is not None:
            checks[at] = _repeated(checks[at], implementation.run(checks[at].case, timeout))
    return checks


def _repeated(check: Check, answer: Answer) -> Check:
    """Return a check as it is where a second answer agrees with the first."""
    case, first = check.case, check.divergence
    assert first is not None
    for name, got in check.outputs.items():
        second, bound = answer.outputs.get(name), tolerance(case)[name]
        if second is not None and bound is not None:
            with np.errstate(invalid="ignore"):
                apart = np.abs(canonical(case, name, got.astype(np.float64) - second)) > bound
            if not np.any(apart & ~((got == second) | (np.isnan(got) & np.isnan(second)))):
                continue
        elif second is not None:
            continue
        message = (
            f"not repeatable: first {first.quantity}{list(first.index)} came as {first.got:.9g}, "
            f"where {first.expected:.9g} is right, and the same call gave another {name} when it "
            "was made again; likely cause: state kept from one call to the next, or random numbers"
        )
        wrong = Finding(kind="not repeatable", message=message)
        return replace(
            check, status=FAILED, divergences=(), unjudged=(), imprecise=None, finding=wrong
        )
    return check


def settle(
    checks: Sequence[Check], *, named: Collection[str] = (), strict: bool = False
) -> list[Check]:
    """Settle what is imprecise in the light of a whole run.

    Parameters
    ----------
    named : collection of str
        Ids of checks that a mistake reproduces to the last digits.
    strict : bool
        Whether what is imprecise fails.

    Returns
    -------
    list of Check
        A check is no longer imprecise but failed where it is named, or where the same output of
        the operation is wrong in another case, which the algorithm does not explain.
    """
    wrong = {
        (check.case.operation.name, d.quantity)
        for check in checks
        if check.status == FAILED
        for d in check.divergences
    }

    def settled(check: Check) -> Check:
        if check.status != IMPRECISE:
            return check
        own = {(check.case.operation.name, d.quantity) for d in check.divergences}
        declared = check.imprecise is not None and check.imprecise.declared
        if check.case.id in named or (own & wrong and not declared):
            return replace(check, status=FAILED, imprecise=None)
        return replace(check, status=FAILED) if strict else check

    return [settled(check) for check in checks]


def outcome(key: str, status: str, expected: Mapping[str, str]) -> str:
    """Return what a check's status means in the light of the expected failures.

    Parameters
    ----------
    status : {"passed", "imprecise", "failed", "unsupported"}
        That of the check.
    expected : mapping of str to str
        Id -> why it is expected to fail.

    Returns
    -------
    str
        The status, or ``EXPECTED_FAILURE``, or ``UNEXPECTED_PASS``.
    """
    if key not in expected:
        return status
    expected_ones = {FAILED: EXPECTED_FAILURE, IMPRECISE: EXPECTED_FAILURE}
    return {**expected_ones, PASSED: UNEXPECTED_PASS}.get(status, status)


def count(outcomes: Iterable[str]) -> Summary:
    """Count outcomes."""
    found = Counter(outcomes)
    return Summary(
        passed=found[PASSED],
        failed=found[FAILED],
        expected_failures=found[EXPECTED_FAILURE],
        unexpected_passes=found[UNEXPECTED_PASS],
        unsupported=found[UNSUPPORTED],
        imprecise=found[IMPRECISE],
    )


def summarise(checks: Sequence[Check], expected: Mapping[str, str] | None = None) -> Summary:
    """Count the outcomes of checks.

    Parameters
    ----------
    expected : mapping of str to str, optional
        Id -> why it is expected to fail.
    """
    return count(outcome(check.case.id, check.status, expected or {}) for check in checks)
