"""The engine: run cases on an implementation and judge each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loko_ref.arrays import Array
from loko_ref.conformance.answer import Answer, Finding
from loko_ref.conformance.cases import Case
from loko_ref.conformance.compare import Divergence, compare
from loko_ref.conformance.forced import Forced, force
from loko_ref.conformance.implementation import Runnable
from loko_ref.conformance.tolerance import tolerance

__all__ = ["TIMEOUT", "Check", "Summary", "judge", "run", "summarise"]

TIMEOUT = 60.0
"""Seconds that one check may take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """The outcome of one case.

    Attributes
    ----------
    case : Case
        The case.
    status : {"passed", "failed", "unsupported"}
        Its outcome.
    divergence : Divergence or None
        For a failed one: the first quantity that is off.
    finding : Finding or None
        For a failed one: what is wrong other than a number.
    reason : str or None
        For an unsupported one: why.
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
    divergence: Divergence | None = None
    finding: Finding | None = None
    reason: str | None = None
    worst: float = 0.0
    quantities: tuple[str, ...] = ()
    outputs: Mapping[str, Array] = field(default_factory=dict)
    returned: Mapping[str, Array] = field(default_factory=dict)
    forced: Forced | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts: ran = passed + failed; unsupported ones did not run."""

    ran: int
    passed: int
    failed: int
    unsupported: int

    @property
    def exit_code(self) -> int:
        """0 all that ran passed and something ran, 1 something failed, 2 nothing ran."""
        return 1 if self.failed else 0 if self.ran else 2


def judge(case: Case, answer: Answer) -> Check:
    """Turn an answer into a check."""
    if answer.declined is not None:
        return Check(case=case, status="unsupported", reason=answer.declined)
    divergence, worst = compare(case, answer.outputs)
    judged = tuple(name for name in answer.outputs if tolerance(case)[name] is not None)
    if divergence is not None:  # numbers before a later output's form: dataflow order
        return Check(
            case=case,
            status="failed",
            divergence=divergence,
            worst=worst,
            quantities=judged,
            outputs=answer.outputs,
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
    return Check(case=case, status="passed", worst=worst, quantities=judged, outputs=answer.outputs)


def run(
    implementation: Runnable,
    cases: Sequence[Case],
    *,
    timeout: float | None = TIMEOUT,
    progress: Callable[[Check], None] | None = None,
) -> list[Check]:
    """Run every case in turn.

    Parameters
    ----------
    implementation : Runnable
        The code under test.
    cases : sequence of Case
        What to run.
    timeout : float, optional
        Seconds a check, the forced steps of a failed run included.
    progress : callable, optional
        Called with each check as it is done.
    """
    checks = []
    for case in cases:
        deadline = None if timeout is None else time.monotonic() + timeout
        check = judge(case, implementation.run(case, timeout))
        if case.operation.name == "loko.run" and check.divergence is not None:
            check = replace(check, forced=force(implementation, case, deadline))
        checks.append(check)
        if progress is not None:
            progress(checks[-1])
    return checks


def summarise(checks: Sequence[Check]) -> Summary:
    """Count the outcomes."""
    count = {
        status: sum(check.status == status for check in checks)
        for status in ("passed", "failed", "unsupported")
    }
    return Summary(ran=count["passed"] + count["failed"], **count)
