"""Is what is off the right formula, by an algorithm that loses digits?  [TOL-8].

A cause disturbs one operand of the right formula by the roundoff that its algorithm makes there: a
number made of options in the case's own dtype, an inverse by its own norm, a variance by the mean
square that it is the difference of. The move of every element, found as TOL-1 finds a unit, takes
the place of the unit where it is larger.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.compare import ratios
from loko_ref.conformance.judge.declared import Declared, words
from loko_ref.conformance.judge.disturb import DELTA, DisturbScalars, Still
from loko_ref.conformance.judge.tolerance import (
    DRAWS,
    LIMIT,
    _inputs,
    _wide,
    canonical,
    expected,
    factor,
    tolerance,
)
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import Formula, Values

__all__ = ["Imprecise", "explain", "stated"]

MOVE = 2.0**-47
"""Relative size of the moves of a matrix: 64 roundoffs of float64, so that the rounding of the walk
itself is small beside them, and linear up to a condition number of 1e10."""

CONDITION = 1e10
"""Largest condition number of a matrix that a verdict is given for: what it moves is linear."""


@dataclass(frozen=True, kw_only=True)
class Imprecise:
    """The algorithm that explains a result that is off.

    Attributes
    ----------
    algorithm : str
        What is computed how.
    digits : float
        Decimal digits lost to it, in the worst quantity.
    condition : float or None
        Condition number of the matrix concerned.
    declared : bool
        Whether it is the precision that the code states.
    """

    algorithm: str
    digits: float
    condition: float | None = None
    declared: bool = False

    @property
    def text(self) -> str:
        """The algorithm and its price, in words."""
        of = "" if self.condition is None else f", condition number {self.condition:.2g}"
        return f"{self.algorithm}: about {self.digits:.1f} digits lost{of}"


def stated(case: Case, declared: Declared, coarse: Mapping[str, float]) -> Imprecise:
    """Describe what the stated precision of a case's outputs excuses."""
    u = float(np.finfo(case.dtype).eps) / 2
    digits = float(np.log10(max(coarse.values()) / u))
    return Imprecise(algorithm=f"stated precision, {words(declared)}", digits=digits, declared=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cause:
    """An algorithm: the text, where it may occur, and the formulas with its roundoff in them.

    `most` is the largest part of a quantity that it may lose.
    """

    text: str
    operations: tuple[str, ...]
    formulas: Callable[[_Errors], dict[str, Formula]]
    dtypes: tuple[str, ...] = ("float64", "float32")
    most: float = LIMIT


class _UnfitError(Exception):
    """A matrix is too near to singular for a move in proportion to a roundoff."""


class _Errors:
    """Random moves in norm, of one draw; none in the walk that they are compared with."""

    def __init__(self, seed: int | None) -> None:
        self._rng = None if seed is None else np.random.Generator(np.random.PCG64(seed))
        self.condition: float | None = None

    def norm(self, value: Array, size: Array | float | None = None) -> Array:
        """Move every entry by MOVE of the largest, or of a given size."""
        if self._rng is None:
            return value
        size = np.max(np.abs(value), axis=(-2, -1), keepdims=True) if size is None else size
        return value + MOVE * 3**0.5 * (2 * self._rng.random(value.shape) - 1) * size

    def inverse(self, value: Array) -> Array:
        """Invert a matrix, and move the inverse by its own norm."""
        condition = float(np.linalg.cond(value))
        if not condition < CONDITION:
            raise _UnfitError
        self.condition = max(condition, self.condition or 0.0)
        return self.norm(np.linalg.inv(value))


def _by_inverse(e: _Errors) -> dict[str, Formula]:
    def gain(v: Values) -> Array:
        return np.asarray(v.F["pHt"](v) @ e.inverse(v.S))

    return {"K": gain}


def _by_information(e: _Errors) -> dict[str, Formula]:
    def posterior(v: Values) -> Array:
        if "by_information" not in v:
            P = np.diag(v.p_pred) if v.p_pred.ndim == 1 else v.p_pred
            v["to_R"] = e.inverse(v.R_used)
            v["by_information"] = e.inverse(e.inverse(P) + v.H.T @ v.to_R @ v.H)
        return np.asarray(v.by_information)

    def gain(v: Values) -> Array:
        return np.asarray(posterior(v) @ v.H.T @ v.to_R)

    return {"K": gain, "K.softmax": gain, "p.dense": posterior}


def _by_precision(e: _Errors) -> dict[str, Formula]:
    def covariance(v: Values) -> Array:
        U = np.diag(v.U_pred) if v.U_pred.ndim == 1 else v.U_pred
        return e.inverse(e.norm(U + v.W_pred @ v.W_pred.T))  # U's digits are lost in the sum

    return {"P.precision": covariance}


def _by_square(e: _Errors) -> dict[str, Formula]:
    def gain(v: Values) -> Array:
        pZt = v.p_pred[:, None] * v.Z.T if v.p_pred.ndim == 1 else v.p_pred @ v.Z.T
        m, (batch, C) = len(v.R_used), v.yhat.shape
        centre = np.eye(m) - np.kron(np.eye(batch), np.full((C, C), 1 / C))
        return np.asarray(pZt @ e.inverse(np.eye(m) + v.R_used @ (v.Z @ pZt)) @ centre)

    return {"K.glm": gain}


def _variance(e: _Errors) -> dict[str, Formula]:
    def of(v: Values, x: Array, mu: Array) -> Array:
        square = (x * x).mean(axis=-1, keepdims=True)
        return e.norm(FORMULA_TABLE["norm.variance"](v, x, mu), square)

    return {"norm.variance": of}


TRACE = "trace."
"""How the operations of a recording's quantities begin: there any cause may be, where it acts."""

_PRECISIONS = ("kalman.lowrank_update", "kalman.block_update")
_FILTERS = ("kalman.dense_update", "kalman.diagonal_update", "loko.")

CAUSES = (
    _Cause(
        text="1 - beta^t evaluated in float32",
        operations=("optimizer.adamw", "lte.run"),
        formulas=lambda e: {},
        dtypes=("float32",),
    ),
    _Cause(
        text="an explicit inverse of S",
        operations=(*_FILTERS, *_PRECISIONS),
        formulas=_by_inverse,
    ),
    _Cause(
        text="the inverse of U + W W' as a whole matrix",
        operations=(*_PRECISIONS, "loko."),
        formulas=_by_precision,
    ),
    _Cause(
        text="the information form, which inverts P, R and the sum of their inverses",
        operations=_FILTERS,
        formulas=_by_information,
    ),
    _Cause(
        text="an explicit inverse of I + J G",
        operations=("loko.",),
        formulas=_by_square,
    ),
    _Cause(
        text="a variance as E[x^2] - E[x]^2",
        operations=("model.", "loko.", "lte."),
        formulas=_variance,
        most=2.0**-4,  # of a row whose mean is large float32 keeps a digit
    ),
)
"""Algorithms that are right and lose digits."""


class _Scalars(DisturbScalars):
    """Perturbs numbers made of options alone, and nothing that is none."""


@lru_cache(maxsize=256)
def _moves(case: Case, cause: _Cause) -> tuple[Mapping[str, Array], float | None] | None:
    """Return how far each element moves by a cause; None where it is no cause in this case."""
    inputs, seed = _wide(_inputs(case)), zlib.crc32(f"{case.id} {cause.text}".encode())
    condition = None
    used = not cause.formulas(_Errors(None))  # or else where a formula is called
    size = DELTA if used else MOVE

    def walk(draw: int | None) -> Mapping[str, Array]:
        nonlocal condition, used
        errors = _Errors(None if draw is None else seed + draw)
        formulas = cause.formulas(errors)
        hook = Still() if formulas or draw is None else _Scalars(seed + draw)

        def noted(formula: Formula) -> Formula:
            def call(*arguments: Any) -> Any:
                nonlocal used
                used = True
                return formula(*arguments)

            return call

        table = {**FORMULA_TABLE, **{name: noted(f) for name, f in formulas.items()}}
        out = case.operation.plain(inputs, case.options, table, hook)
        condition = errors.condition if condition is None else condition
        return {name: canonical(case, name, np.asarray(value)) for name, value in out.items()}

    try:
        with np.errstate(all="ignore"):
            centre = walk(None)
            if not used:
                return None
            total = {name: np.zeros(np.shape(value)) for name, value in centre.items()}
            for draw in range(DRAWS):
                for name, value in walk(draw).items():
                    total[name] += (value - centre[name]) ** 2
    except (_UnfitError, np.linalg.LinAlgError):
        return None
    u = float(np.finfo(case.dtype).eps) / 2
    return {k: np.sqrt(t / DRAWS) * (u / size) for k, t in total.items()}, condition


def explain(case: Case, outputs: Mapping[str, Array], *, numbers: bool = False) -> Imprecise | None:
    """Find an algorithm that explains all that is off in a failed case.

    Parameters
    ----------
    case : Case
        The case.
    outputs : mapping of str to array
        What came back, of the right shapes.
    numbers : bool
        Whether numbers made of options are the only cause looked for.

    Returns
    -------
    Imprecise or None
        The cause within whose moves everything lies, by the widest margin.
    """
    u = float(np.finfo(case.dtype).eps) / 2
    errors, lost, part = {}, 0.0, 0.0
    linear, most = factor(case) * CONDITION * u, max(cause.most for cause in CAUSES)
    for name, ratio in ratios(case, outputs).items():
        bound = tolerance(case)[name]
        assert bound is not None
        error = ratio * bound
        size = float(np.max(np.abs(expected(case)[name]), initial=0.0))
        if float(np.max(ratio, initial=0.0)) > 1:
            worst = float(np.max(error, initial=0.0))
            if not worst <= min(most, linear) * size:
                return None  # more than an algorithm that leaves digits could lose
            part = max(part, worst / size)
            lost = max(lost, float(np.log10(worst / (u * size))))
        errors[name] = error, bound
    fits: list[tuple[float, Imprecise]] = []
    for cause in CAUSES:
        places = (*cause.operations, TRACE)
        if not case.operation.name.startswith(places) or case.dtype not in cause.dtypes:
            continue
        if part > cause.most:
            continue
        if numbers and cause.formulas(_Errors(None)):
            continue
        found = _moves(case, cause)
        if found is None:
            continue
        moves, condition = found
        far = max(
            float(np.max(error / np.maximum(bound, factor(case) * moves[name]), initial=0.0))
            for name, (error, bound) in errors.items()
        )
        if far <= 1:
            cause_found = Imprecise(algorithm=cause.text, digits=lost, condition=condition)
            fits.append((far, cause_found))
    return min(fits, key=lambda fit: fit[0])[1] if fits else None
