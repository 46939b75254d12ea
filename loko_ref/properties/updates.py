"""The problems of the filter's measurement updates, and the prior of each in rational numbers.

Shapes: theta, p (n,); P (n, n); U (n,) or (n, n); W (n, L).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.kalman.diagonal import DIAGONALS
from loko_ref.properties.trial import Problem, Problems, Trial, exact, inverse

DENSE, DIAGONAL = "kalman.dense_update", "kalman.diagonal_update"
LOWRANK, BLOCK = "kalman.lowrank_update", "kalman.block_update"
PRECISIONS = f"{LOWRANK} {BLOCK}"


def _of_precision(p: st.PrecisionProblem, lam: float, q: float) -> Problem:
    inputs = p.arguments()
    options = {k: inputs.pop(k) for k in ("blocks",) if k in inputs}
    options |= {k: a for k, a, still in (("lam", lam, 1.0), ("q", q, 0.0)) if a != still}
    return Problem(inputs=inputs, options=options)


def updates(operation: str, **choices: Any) -> Problems:
    """Return the problems of an update."""

    def problems(small: bool) -> hs.SearchStrategy[Problem]:
        drawn: dict[str, Any] = {"cond": 1e3, **choices, "whole": small}
        drawn |= {"max_n": 2, "max_m": 2} if small else {}
        if operation in PRECISIONS:
            drawn |= {"blocks": operation == BLOCK, "max_L": 1 if small else 3}
            lam, q = hs.sampled_from([1.0, 0.25]), hs.sampled_from([0.0, 0.5])
            return hs.builds(_of_precision, st.precision_problems(**drawn), lam, q)
        if operation == DENSE:
            return st.dense_problems(**drawn).map(lambda p: Problem(inputs=p.arguments()))
        kinds = hs.sampled_from([{} if d == "decoupled" else {"diagonal": d} for d in DIAGONALS])
        return hs.builds(
            lambda p, o: Problem(inputs=p.arguments(), options=o),
            st.diagonal_problems(**drawn),
            kinds,
        )

    return problems


def square(U: Array) -> Array:
    """Return a diagonal or a matrix as a matrix."""
    return U if U.ndim == 2 else np.diag(U)


def low_rank(t: Trial) -> Array:
    """W W' (n, n) of the inputs, in rational numbers; 0 without columns."""
    n = len(t.given["theta"])
    W = t.given.get("W")
    if W is None or not W.size:
        return exact(np.zeros((n, n)))
    return np.asarray(exact(W) @ exact(W).T)


def prior(t: Trial) -> Array:
    """P (n, n) before the measurement, in rational numbers."""
    if t.held.operation not in PRECISIONS:
        return square(*t.exact("P" if t.held.operation == DENSE else "p"))
    P = inverse(square(*t.exact("U")) + low_rank(t))
    lam, q = exact([t.options.get("lam", 1.0), t.options.get("q", 0.0)])
    return np.asarray(P / lam + q * exact(np.eye(len(P))))
