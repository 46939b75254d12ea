"""Check properties on an implementation: draw, shrink, report.

Small problems are drawn first, so that a mistake that shows on one is reported on one: n and m at
most 2, whole numbers, R = I. Only then come larger and worse conditioned ones, in both dtypes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.errors import FlakyFailure

from loko_ref.arrays import read_array
from loko_ref.checks.signatures import NoneType, check_type
from loko_ref.checks.values import check_choice
from loko_ref.conformance.cases.globs import matcher, nothing_matches
from loko_ref.conformance.engine import FAILED, PASSED, TIMEOUT, UNSUPPORTED, Summary, count
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.user_inputs import save_case, split, user_case
from loko_ref.conformance.verification import open_implementation
from loko_ref.errors import InputError
from loko_ref.network.spec import check_spec, param_shapes, trained_shapes
from loko_ref.properties.registry import all_properties, get
from loko_ref.properties.snippet import snippet
from loko_ref.properties.trial import Declined, Problem, Property, Refuted, Trial, Unsuitable

if TYPE_CHECKING:
    import pytest

Opened = Implementation | Command

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "report_multiple_bugs": False,
    "verbosity": Verbosity.quiet,
    "phases": [Phase.generate, Phase.shrink],
    "suppress_health_check": list(HealthCheck),
}

PROFILES: Mapping[str, settings] = {
    name: settings(max_examples=examples, **COMMON)
    for name, examples in {"dev": 10, "ci": 50, "thorough": 500}.items()
}
"""Name -> Hypothesis settings: as many problems of each size. None has a deadline, which would
measure the machine; the draws are the same each time. ``@PROFILES["dev"]`` takes one for a test."""


LARGE = ("model.", "loko.", "lte.")
"""Operations whose problems take long: half as many of them are drawn."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A property checked on an implementation.

    Attributes
    ----------
    fact : Property
        What was checked.
    status : {"passed", "failed", "unsupported"}
        ``unsupported`` where every problem was declined, or nothing could be compared.
    target : str
        The implementation, as a report names it.
    reason : str
        Of a failed one the fact, with the worst element; of an unsupported one why.
    problem : Problem or None
        Of a failed one: the smallest problem found.
    """

    fact: Property
    status: str
    target: str
    reason: str = ""
    problem: Problem | None = None

    @property
    def snippet(self) -> str:
        """Python that repeats the failure; "" where there is none."""
        return "" if self.problem is None else snippet(self.fact.name, self.target, self.problem)

    def save_case(self, path: str | os.PathLike[str]) -> None:
        """Write the example as a case that ``loko-ref verify TARGET --case F`` reads."""
        if self.problem is None:
            raise InputError("save_case", self.status, "a failed property", "it has no example")
        save_case(path, self.fact.operation, self.problem.inputs, **self.problem.options)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The outcomes of all properties checked on one implementation."""

    target: str
    outcomes: tuple[Outcome, ...]

    @cached_property
    def summary(self) -> Summary:
        """The verdict, as that of ``loko-ref verify``."""
        return count(outcome.status for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The failed ones."""
        return tuple(o for o in self.outcomes if o.status == FAILED)

    @property
    def passed(self) -> bool:
        """Whether something was checked, and nothing failed."""
        return self.summary.exit_code == 0

    def __str__(self) -> str:
        """Return each failure with its example, and the counts."""
        parts = [f"{o.fact.name}\n  {o.reason}\n\n{o.snippet}\n" for o in self.failures]
        return "\n".join([*parts, f"{self.target}: {self.summary.text}"])

    def raise_if_failed(self) -> None:
        """Raise an AssertionError with the report unless :attr:`passed`."""
        if not self.passed:
            raise AssertionError(str(self))


def _settings(profile: str) -> settings:
    check_choice("profile", profile, PROFILES)
    return PROFILES[profile]


def _offered(target: Opened) -> set[str]:
    return set(target.functions if isinstance(target, Implementation) else target.operations)


def select(only: str | None = None, *, argument: str = "only") -> list[Property]:
    """Return the properties whose name or operation matches a glob; an InputError if none does."""
    chosen = matcher(argument, only)
    known = all_properties()
    found = [p for p in known.values() if chosen(p.name) or chosen(p.operation)]
    if not found:
        raise nothing_matches(argument, only, known, "loko-ref properties --list")
    return found


def _examine(
    fact: Property, target: Opened, shown: str, profile: settings, timeout: float | None
) -> Outcome:
    """Check one property: small problems, then others."""
    failed: list[Outcome] = []
    compared, declined, total = 0, "", 0
    outcome = Outcome(fact=fact, status=PASSED, target=shown)

    def body(problem: Problem) -> None:
        nonlocal compared, declined, total
        total += 1
        trial = Trial(fact, target, problem, timeout)
        try:
            fact.check(trial)
        except Unsuitable:
            return
        except Declined as error:
            declined = str(error)
        except Refuted as error:
            failed.append(replace(outcome, status=FAILED, reason=str(error), problem=problem))
            raise
        finally:
            compared += trial.compared

    if fact.operation.startswith(LARGE):
        profile = settings(profile, max_examples=max(profile.max_examples // 2, 1))
    for small in (True, False):
        try:
            profile(given(problem=fact.problems(small))(body))()
        except Refuted:
            return failed[-1]
        except FlakyFailure:
            reason = f"{failed[0].reason}; on some calls with the same inputs, and not on others"
            return replace(failed[0], reason=reason)
    if not compared:
        reason = declined or "none of its quantities was returned, or could be judged"
        return replace(outcome, status=UNSUPPORTED, reason=reason)
    return outcome


@contextlib.contextmanager
def _opened(implementation: object, timeout: float | None) -> Iterator[tuple[Opened, str]]:
    found, shown = open_implementation(implementation, timeout, None)
    with found if isinstance(found, Command) else contextlib.nullcontext():
        yield found, shown


def check_all(
    implementation: object,
    *,
    only: str | None = None,
    profile: str = "dev",
    timeout: float | None = TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Check every property of the operations that an implementation offers.

    Parameters
    ----------
    implementation
        As for :func:`loko_ref.verify`: a mapping, a module, a path, or a command.
    only : str, optional
        Glob of names or operations.
    profile : {"dev", "ci", "thorough"}
        How many problems: :data:`PROFILES`.
    timeout : float, optional
        Seconds that one call may take.
    progress : callable, optional
        Called after each property with the number done and that of all.

    Returns
    -------
    Results

    Raises
    ------
    InputError
        If an argument cannot be used.

    Examples
    --------
    >>> def delta(A, B, alpha):
    ...     return {"delta": alpha * (B @ A)}
    >>> [o.fact.name for o in check_all({"lora.delta": delta}).failures]
    ['lora.delta/unit scale', 'lora.delta/repeated']
    """
    check_type("only", only, (str, NoneType), "a list of globs in place of one")
    chosen, outcomes = _settings(profile), []
    with _opened(implementation, timeout) as (target, shown):
        offered = _offered(target)
        facts = [fact for fact in select(only) if fact.operation in offered]
        for fact in facts:
            outcomes.append(_examine(fact, target, shown, chosen, timeout))
            if progress is not None:
                progress(len(outcomes), len(facts))
    return Results(target=shown, outcomes=tuple(outcomes))


def check(name: str, implementation: object, *, dtype: str = "float64", **arguments: Any) -> None:
    """Check one property on one problem: what the report of a failure gives to paste.

    Parameters
    ----------
    name : str
        The property.
    implementation
        As for :func:`check_all`.
    dtype : {"float64", "float32"}
        Of the inputs.
    **arguments
        The operation's inputs, as arrays or lists, and its options. Weights of a network that are
        left out are 0.

    Raises
    ------
    AssertionError
        If it does not hold.
    InputError
        If an argument cannot be used, or the property does not apply to this problem.
    """
    fact = get(name)
    check_choice("dtype", dtype, ("float64", "float32"))

    def cast(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cast(item) for key, item in value.items()}
        return np.asarray(read_array(value), dtype=dtype)

    inputs, options = split(fact.operation, arguments)
    inputs = {key: cast(value) for key, value in inputs.items()}
    if "spec" in options and isinstance(inputs.get("weights"), Mapping):
        check_spec(options["spec"])
        spec, filtered = options["spec"], fact.operation.startswith("loko.")
        packed = trained_shapes(spec, options.get("train", "factors")) if filtered else {}
        shapes = {k: v for k, v in param_shapes(spec).items() if k not in packed}
        zeros = {k: np.zeros(v, dtype) for k, v in shapes.items()}
        inputs["weights"] = {**zeros, **inputs["weights"]}
    user_case(fact.operation, inputs, **options)  # which checks them
    with _opened(implementation, TIMEOUT) as (target, _):
        try:
            fact.check(Trial(fact, target, Problem(inputs=inputs, options=options), TIMEOUT))
        except (Unsuitable, Declined) as error:
            raise InputError(name, str(error), fact.domain, "a problem of another kind") from None


class _Test:
    """A property of one implementation, as what a test calls."""

    def __init__(self, fact: Property, target: Opened, shown: str, profile: settings) -> None:
        self._held = fact, target, shown, profile

    def __call__(self) -> None:
        """Raise with the smallest example found unless the property holds; skip if declined."""
        __tracebackhide__ = True  # pytest shows the test's own line, and the example
        outcome = _examine(*self._held, TIMEOUT)
        if outcome.status == UNSUPPORTED:
            import pytest

            pytest.skip(outcome.reason)
        if outcome.status == FAILED:
            raise AssertionError(f"{outcome.reason}\n\n{outcome.snippet}")


def parametrize(
    implementation: object, *, only: str | None = None, profile: str = "dev"
) -> pytest.MarkDecorator:
    """Parametrize a test's argument ``holds`` with the properties of what is implemented::

        @loko_ref.properties.parametrize(IMPLEMENTATION)
        def test_property(holds):
            holds()

    Parameters
    ----------
    implementation, only, profile
        As for :func:`check_all`.
    """
    import pytest

    chosen = _settings(profile)
    target, shown = open_implementation(implementation, TIMEOUT, None)
    if isinstance(target, Command):
        atexit.register(target.close)
    facts = [fact for fact in select(only) if fact.operation in _offered(target)]
    tests = [_Test(fact, target, shown, chosen) for fact in facts]
    return pytest.mark.parametrize("holds", tests, ids=[fact.name for fact in facts])
