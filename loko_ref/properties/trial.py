"""One implementation on one problem: runs, comparisons, and arithmetic that is exact.

A property compares an implementation with itself, or with a bound. How far two right answers may
be apart is the kit's tolerance, computed from the inputs of each run  [TOL-1]; a relation between
answers is evaluated in rational numbers, so that it adds no rounding of its own.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, wraps
from typing import Any

import numpy as np
from hypothesis import strategies as st

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.implementations.python import Implementation, Runnable
from loko_ref.conformance.judge.tolerance import canonical, tolerance
from loko_ref.conformance.user_inputs import user_case
from loko_ref.errors import InputError, NumericalError

TINY = 1e-30
"""The complex step: its square is below every roundoff."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a property is checked on: an operation's inputs, and options that are no defaults."""

    inputs: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


Problems = Callable[[bool], st.SearchStrategy[Problem]]
"""From whether problems are to be small (to be read) to their strategy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Property:
    """An exact fact about one operation.

    Attributes
    ----------
    name : str
        ``operation/fact``.
    operation : str
        The operation that it is about.
    labels : tuple of str
        Where it is derived.
    domain : str
        On which inputs and options it is checked.
    statement : str
        The fact, in one line.
    problems : callable
        Small or not -> strategy of problems.
    check : callable
        Takes a :class:`loko_ref.properties.trial.Trial`; raises what that raises.
    """

    name: str
    operation: str
    labels: tuple[str, ...]
    domain: str
    statement: str
    problems: Problems
    check: Callable[[Trial], None]


class Refuted(AssertionError):
    """A property does not hold; the text names it, its derivation and the worst element."""


class Declined(Exception):
    """The implementation declines a run that the property needs."""


class Unsuitable(Exception):
    """The property does not apply to this problem."""


class Got(dict[str, Array]):
    """The outputs of one run that can be judged, in float64, each with its tolerance."""

    def __init__(self, values: Mapping[str, Array], allowed: Mapping[str, Array]) -> None:
        super().__init__(values)
        self.tol = allowed

    def __missing__(self, name: str) -> Array:
        raise Unsuitable(f"{name} did not come back, or cannot be judged")

    def has(self, *names: str) -> bool:
        """Return whether all of these came back and can be judged."""
        return all(name in self for name in names)


def exact(array: Any) -> Array:
    """Return an array of the rational numbers that floats are."""
    wide = np.asarray(array, dtype=np.float64)
    found = np.empty(wide.shape, dtype=object)
    found.reshape(-1)[:] = [Fraction(float(x)) for x in wide.reshape(-1)]
    return found


def inverse(a: Array) -> Array:
    """Return the inverse of a matrix of rational numbers."""
    n = len(a)
    rows = np.concatenate([a, exact(np.eye(n))], axis=1)
    for k in range(n):
        pivot = next((j for j in range(k, n) if rows[j, k] != 0), None)
        if pivot is None:
            raise Unsuitable("a singular matrix")
        rows[[k, pivot]] = rows[[pivot, k]]
        rows[k] = rows[k] / rows[k, k]
        for j in range(n):
            if j != k:
                rows[j] = rows[j] - rows[j, k] * rows[k]
    return rows[:, n:]


def size(array: Any) -> Array:
    """Return magnitudes in float64, of rational numbers too."""
    return np.abs(np.asarray(array, dtype=np.float64))


class _Key:
    """Operation, inputs and options as one key, by their bytes."""

    def __init__(self, operation: str, inputs: Mapping[str, Any], options: Mapping[str, Any]):
        self.held = operation, inputs, options
        digest = hashlib.blake2b(json.dumps([operation, options], default=str).encode())
        for path, array in _leaves(inputs):
            digest.update(f"{path}{array.dtype}{array.shape}".encode() + array.tobytes())
        self._digest = digest.digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._digest == other._digest


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Array]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    else:
        yield path, np.asarray(value)


@lru_cache(maxsize=8192)
def _judged(key: _Key) -> tuple[Case, Mapping[str, Array | None]]:
    operation, inputs, options = key.held
    case = user_case(operation, inputs, **options)
    with np.errstate(all="ignore"):
        return case, tolerance(case)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _cast(item, dtype) for name, item in value.items()}
    wide = np.asarray(value)
    return np.array(wide.astype(np.float64), dtype=dtype, order="C")


class Trial:
    """A property being checked: runs the implementation on changed inputs, compares.

    Parameters
    ----------
    timeout : float, optional
        Seconds a run may take.

    Attributes
    ----------
    given : dict
        The problem's inputs.
    options : dict
        The problem's options.
    dtype : numpy.dtype
        Of all inputs.
    compared : int
        Comparisons made so far.
    """

    def __init__(
        self, held: Property, target: Runnable, problem: Problem, timeout: float | None = None
    ) -> None:
        self.held, self._target, self._timeout = held, target, timeout
        self.given, self.options = dict(problem.inputs), dict(problem.options)
        self.dtype = next(a.dtype for _, a in _leaves(self.given))
        self.compared = 0

    def cast(self, array: Any) -> Array:
        """Round to the problem's dtype; return float64."""
        return np.asarray(array, dtype=np.float64).astype(self.dtype).astype(np.float64)

    def wide(self, *names: str) -> list[Array]:
        """Return inputs as float64."""
        return [np.array(self.given[name], dtype=np.float64) for name in names]

    def exact(self, *names: str) -> list[Array]:
        """Return inputs as rational numbers."""
        return [exact(self.given[name]) for name in names]

    def run(self, operation: Any = None, options: Any = None, **changes: Any) -> Got:
        """Run an operation with some inputs replaced.

        Parameters
        ----------
        operation : str, optional
            The property's by default, and then with the problem's inputs; another one gets
            `changes` alone.
        options : mapping, optional
            Options that replace the problem's.
        **changes
            Inputs, rounded to the problem's dtype; None leaves one out.

        Raises
        ------
        Declined, Unsuitable, Refuted
            If the implementation declines; if the inputs cannot be judged; if what it returns has a
            wrong form or is not finite.
        """
        own = operation in (None, self.held.operation)
        inputs = {
            name: _cast(value, self.dtype)
            for name, value in ({**self.given, **changes} if own else changes).items()
            if value is not None
        }
        chosen = {**(self.options if own else {}), **(options or {})}
        try:
            case, allowed = _judged(_Key(operation or self.held.operation, inputs, chosen))
        except NumericalError as error:
            raise Unsuitable(str(error)) from None
        except InputError as error:  # an answer that is the next run's input
            if not changes:
                raise
            raise Refuted(f"{self.held.statement}: an answer is no valid input: {error}") from None
        values, bounds = {}, {}
        for name, array in self._answer(case).items():
            bound = allowed[name]
            if bound is None:
                continue
            values[name] = canonical(case, name, np.asarray(array, dtype=np.float64))
            bounds[name] = bound
            if not np.isfinite(values[name]).all():
                self._fail(name, ~np.isfinite(values[name]), values[name], np.zeros(()))
        return Got(values, bounds)

    def values(self, **changes: Any) -> Mapping[str, Array]:
        """Run the property's operation with inputs changed; no tolerance is computed."""
        inputs = {k: _cast(a, self.dtype) for k, a in {**self.given, **changes}.items()}
        case = user_case(self.held.operation, inputs, **self.options)
        found = self._answer(case)
        return {name: np.asarray(a, dtype=np.float64) for name, a in found.items()}

    def complex_step(self, moves: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """Return how fast the outputs move as weights move, by a complex step; None without one.

        Only code in this process can be asked, and not all of it takes complex numbers: what comes
        back is to be held against another derivative before it is used.  [LAY-9]
        """
        operation = self.held.operation
        if not isinstance(self._target, Implementation) or operation not in self._target.functions:
            return None
        function, dtype = self._target.functions[operation], self.dtype

        @wraps(function)
        def stepped(weights: Mapping[str, Array], **others: Any) -> dict[str, Array]:
            moved = {k: a.astype(complex) for k, a in weights.items()}
            moved |= {k: moved[k] + TINY * 1j * step for k, step in moves.items()}
            with warnings.catch_warnings():  # a part that is dropped on the way is a refusal
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                found = function(weights=moved, **others)
            return {k: (np.imag(a) / TINY).astype(dtype) for k, a in found.items()}

        case = user_case(operation, self.given, **self.options)
        answer = replace(self._target, functions={operation: stepped}).run(case, self._timeout)
        rejected = answer.declined is not None or answer.finding is not None
        return None if rejected else answer.outputs

    def _answer(self, case: Case) -> Mapping[str, Array]:
        """Return what the implementation answers."""
        answer = self._target.run(case, self._timeout)
        if answer.declined is not None:
            raise Declined(answer.declined)
        if answer.finding is not None:
            raise Refuted(f"{case.operation.name}: {answer.finding.message}")
        return answer.outputs

    def _fail(self, name: str, bad: Array, value: Array, bound: Array) -> None:
        bound = np.broadcast_to(bound, value.shape)
        excess = np.where(bad, np.where(np.isfinite(value), value - bound, np.inf), -np.inf)
        at = np.unravel_index(int(np.argmax(excess)), value.shape)
        where = f"{name}[{', '.join(map(str, map(int, at)))}]" if value.ndim else name
        labels = " ".join(f"[{label}]" for label in self.held.labels)
        raise Refuted(
            f"{self.held.statement}  {labels}: {where} is {value[at]:.6g}, and may be at most "
            f"{bound[at]:.3g}"
        )

    def below(self, name: str, value: Any, bound: Any) -> None:
        """Raise unless an array is at most another, element by element (NaN is not)."""
        value, bound = np.broadcast_arrays(
            np.asarray(value, dtype=np.float64), np.asarray(bound, dtype=np.float64)
        )
        self.compared += 1
        bad = ~(value <= bound)
        if bad.any():
            self._fail(name, bad, value, bound)

    def near(self, name: str, got: Any, wanted: Any, allowed: Any) -> None:
        """Raise unless two arrays, of floats or rational numbers, agree within a tolerance."""
        got, wanted = np.asarray(got), np.asarray(wanted)
        if object in (got.dtype, wanted.dtype):
            got, wanted = (a if a.dtype == object else exact(a) for a in (got, wanted))
        self.below(f"error of {name}", size(got - wanted), allowed)

    def same(
        self,
        a: Got,
        b: Got,
        names: Iterable[str] | None = None,
        back: Callable[[str, Array], Array] = lambda name, value: value,
    ) -> None:
        """Raise unless two runs agree, up to the sum of their tolerances.

        Parameters
        ----------
        names : iterable of str, optional
            What is compared; all that both returned by default.
        back : callable
            ``(name, array) -> array``: undoes on `b` what the change did; permutes and scales,
            so that it applies to a tolerance too once its sign is dropped.
        """
        for name in a if names is None else names:
            if a.has(name) and b.has(name):
                bound = a.tol[name] + np.abs(back(name, b.tol[name]))
                self.near(name, back(name, b[name]), a[name], bound)
