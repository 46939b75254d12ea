"""Exact properties of one measurement update, to test a filter against.

    from loko_ref.strategies import diagonal_problems, facts

    @pytest.mark.parametrize("fact", facts.DIAGONAL)
    @given(problem=diagonal_problems(max_n=8))
    def test_fact(fact, problem):
        facts.DIAGONAL[fact](my_update, problem)

They need no reference: each compares an update with itself, or with a bound. The tolerance between
two correct updates is computed from the problem (:mod:`loko_ref.conformance.user_inputs`).  [TOL-1]

Shapes: theta, p (n,); P (n, n); H (m, n); e (m,); R (m, m).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.judge.tolerance import tolerance
from loko_ref.conformance.user_inputs import user_case
from loko_ref.strategies.problems import DenseProblem, DiagonalProblem

__all__ = ["DENSE", "DIAGONAL", "Fact", "Update"]

Update = Callable[..., Mapping[str, Any]]
"""Takes a problem's arrays as keywords, returns at least ``theta`` and ``p`` (or ``P``) by name."""

Arguments = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A property of an update: call it with the update and a problem.

    Attributes
    ----------
    statement : str
        The property.
    labels : tuple of str
        Its derivations.
    check : callable
        ``(compare) -> None``; see :class:`_Trial`.
    """

    statement: str
    labels: tuple[str, ...]
    check: Callable[[_Trial], None]

    def __call__(
        self, update: Update, problem: DiagonalProblem | DenseProblem, **options: Any
    ) -> None:
        """Check the fact on one problem.

        Parameters
        ----------
        update : callable
            The update under test.
        problem : DiagonalProblem or DenseProblem
            Its inputs.
        **options
            The options that the update implements, such as ``diagonal="variational"``; they
            determine the tolerance, and are not passed on.

        Raises
        ------
        AssertionError
            If it does not hold; with the statement, its label, and the element that is farthest
            off.
        """
        self.check(_Trial(self, update, problem, options))


class _Trial:
    """One update and one property: runs the update on modified inputs and compares the outputs."""

    def __init__(
        self,
        fact: Fact,
        update: Update,
        problem: DiagonalProblem | DenseProblem,
        options: Mapping[str, Any],
    ) -> None:
        self.fact, self.update, self.options = fact, update, options
        self.dense = isinstance(problem, DenseProblem)
        self.given: Arguments = problem.arguments()
        self.variances = "P" if self.dense else "p"
        self.n, self.m = self.given["H"].shape[1], self.given["H"].shape[0]
        self.rng = np.random.default_rng(self.n + 100 * self.m)

    def cast(self, array: Any) -> Array:
        """Round to the problem's dtype."""
        return np.asarray(array, dtype=np.float64).astype(self.given["H"].dtype)

    def run(self, **changes: Any) -> tuple[Mapping[str, Any], dict[str, Array | None]]:
        """Run the update with some inputs replaced; return outputs and their tolerances."""
        arguments = self.given | {k: self.cast(a) for k, a in changes.items()}
        name = "kalman.dense_update" if self.dense else "kalman.diagonal_update"
        with np.errstate(all="ignore"):
            allowed = tolerance(user_case(name, arguments, **self.options))
        got = self.update(**{k: np.array(a) for k, a in arguments.items()})
        return got, {k: allowed[k] for k in ("theta", self.variances)}

    def near(self, name: str, got: Any, wanted: Any, allowed: Array | None) -> None:
        """Raise unless two arrays agree within a tolerance."""
        if allowed is not None:
            self.below(name, np.abs(np.asarray(got, float) - np.asarray(wanted, float)), allowed)

    def below(self, name: str, value: Any, bound: Any) -> None:
        """Raise unless an array is at most another, element by element (NaN is not)."""
        value, bound = np.broadcast_arrays(np.asarray(value, float), np.asarray(bound, float))
        good = value <= bound
        if good.all():
            return
        excess = np.where(good, -np.inf, np.where(np.isnan(value), np.inf, value - bound))
        at = np.unravel_index(int(np.argmax(excess)), value.shape)
        where = f"{name}[{', '.join(map(str, map(int, at)))}]" if value.ndim else name
        labels = " ".join(f"[{label}]" for label in self.fact.labels)
        raise AssertionError(
            f"{self.fact.statement}  {labels}: at {where} {value[at]:.6g}, at most {bound[at]:.6g}"
        )


def _still(t: _Trial) -> None:
    got, allowed = t.run(e=np.zeros(t.m))
    t.near("theta", got["theta"], t.given["theta"], allowed["theta"])


def _blind(t: _Trial) -> None:
    (a, tol), (b, _) = t.run(), t.run(e=t.rng.standard_normal(t.m))
    t.near(t.variances, a[t.variances], b[t.variances], tol[t.variances])


def _linear(t: _Trial) -> None:
    e, theta = t.given["e"], np.asarray(t.given["theta"], float)
    (a, tol_a), (b, tol_b) = t.run(), t.run(e=2 * np.asarray(e, float))
    if tol_a["theta"] is not None and tol_b["theta"] is not None:
        moved = 2 * (np.asarray(a["theta"], float) - theta)
        t.near("theta", b["theta"], theta + moved, 2 * tol_a["theta"] + tol_b["theta"])


def _same(t: _Trial, changes: Arguments) -> None:
    """Raise unless both posteriors are the same after a change of the inputs."""
    (a, tol_a), (b, tol_b) = t.run(), t.run(**changes)
    for name, one in tol_a.items():
        other = tol_b[name]
        if one is not None and other is not None:
            t.near(name, b[name], a[name], one + other)


def _outputs(t: _Trial, T: Array) -> Arguments:
    e, H, R = (np.asarray(t.given[k], float) for k in ("e", "H", "R"))
    R = T @ R @ T.T
    return {"e": T @ e, "H": T @ H, "R": (R + R.T) / 2}


def _permuted(t: _Trial) -> None:
    _same(t, _outputs(t, np.eye(t.m)[t.rng.permutation(t.m)]))


def _mixed(t: _Trial) -> None:
    Q = np.linalg.qr(t.rng.standard_normal((t.m, t.m)))[0]
    _same(t, _outputs(t, Q * 2.0 ** t.rng.integers(-2, 3, t.m)))


def _unseen(t: _Trial) -> None:
    H = np.array(t.given["H"], float)
    H[:, 0] = 0
    given = t.given[t.variances]
    if t.dense:  # uncorrelated with the others, so that no observation informs it
        given = np.array(given, float)
        given[0, 1:] = given[1:, 0] = 0
    got, allowed = t.run(**{"H": H, t.variances: given})
    for name, prior in (("theta", t.given["theta"]), (t.variances, given)):
        tol = allowed[name]
        if tol is not None:
            t.near(name, np.asarray(got[name])[0], prior[0], tol[0])


def _shrinks(t: _Trial) -> None:
    got, allowed = t.run()
    tol = allowed["p"]
    if tol is not None:
        p, prior = np.asarray(got["p"], float), np.asarray(t.given["p"], float)
        t.below("p", p, prior + tol)
        t.below("-p", -p, tol)


def _shrinks_dense(t: _Trial) -> None:
    got, allowed = t.run()
    tol = allowed["P"]
    if tol is not None:
        P, prior, slack = np.asarray(got["P"], float), t.given["P"], np.linalg.norm(tol)
        t.near("P - P'", P, P.T, 2 * tol)
        t.below("-eigenvalue of P", -np.linalg.eigvalsh((P + P.T) / 2)[0], slack)
        fall = np.asarray(prior, float) - (P + P.T) / 2
        t.below("eigenvalue of P - P_pred", -np.linalg.eigvalsh(fall)[0], slack)


def _rescaled(t: _Trial) -> None:
    """Rescale theta by powers of two, which is exact in floating point."""
    c = 2.0 ** t.rng.integers(-3, 4, t.n)
    square = np.outer(c, c) if t.dense else c**2
    v = t.variances
    (a, tol), (b, _) = (
        t.run(),
        t.run(theta=c * t.given["theta"], H=t.given["H"] / c, **{v: square * t.given[v]}),
    )
    for name, unit in (("theta", c), (v, square)):
        one = tol[name]
        if one is not None:
            t.near(name, np.asarray(b[name], float) / unit, a[name], 2 * one)


def _turned(t: _Trial) -> None:
    """Change the parameters orthogonally; for the dense filter only."""
    Q = np.linalg.qr(t.rng.standard_normal((t.n, t.n)))[0]
    theta, P, H = (np.asarray(t.given[k], float) for k in ("theta", "P", "H"))
    turned = Q @ P @ Q.T
    (a, tol_a), (b, tol_b) = (
        t.run(),
        t.run(theta=Q @ theta, P=(turned + turned.T) / 2, H=H @ Q.T),
    )
    if tol_a["theta"] is not None and tol_b["theta"] is not None:
        bound = np.linalg.norm(tol_a["theta"]) + np.linalg.norm(tol_b["theta"])
        t.below("|theta|", np.linalg.norm(Q.T @ np.asarray(b["theta"], float) - a["theta"]), bound)
    if tol_a["P"] is not None and tol_b["P"] is not None:
        bound = np.linalg.norm(tol_a["P"]) + np.linalg.norm(tol_b["P"])
        back = Q.T @ np.asarray(b["P"], float) @ Q
        t.below("|P|", np.linalg.norm(back - np.asarray(a["P"], float)), bound)


def _one_by_one(t: _Trial) -> None:
    """Process outputs with independent noise one after another."""
    R = np.diag(np.diagonal(np.asarray(t.given["R"], float)))
    whole, tol = t.run(R=R)
    theta, P = (np.asarray(t.given[k]) for k in ("theta", "P"))
    slack = {name: np.zeros(()) if one is None else one.copy() for name, one in tol.items()}
    for j in range(t.m):
        h = t.given["H"][j : j + 1]
        e = t.given["e"][j : j + 1] - h @ (theta - t.given["theta"])
        got, one = t.run(theta=theta, P=P, H=h, e=e, R=R[j : j + 1, j : j + 1])
        if any(a is None for a in (*one.values(), *tol.values())):
            return
        theta, P = np.asarray(got["theta"]), np.asarray(got["P"])
        for name, a in one.items():
            slack[name] = slack[name] + t.m * np.max(np.asarray(a))  # e inherits theta's error
    t.near("theta", theta, whole["theta"], slack["theta"])
    t.near("P", P, whole["P"], slack["P"])


def _fact(check: Callable[[_Trial], None], labels: str, statement: str) -> Fact:
    return Fact(statement=statement, labels=tuple(labels.split()), check=check)


_BOTH = {
    "still": _fact(_still, "KAL-2", "e = 0 leaves theta unchanged"),
    "blind": _fact(_blind, "KAL-2", "the posterior covariance does not depend on e"),
    "linear": _fact(_linear, "KAL-2", "theta moves in proportion to e"),
    "permuted": _fact(_permuted, "KAL-7", "the order of the outputs changes nothing"),
    "mixed": _fact(_mixed, "KAL-7", "an invertible change of the outputs changes nothing"),
    "unseen": _fact(_unseen, "KAL-2 DIAG-4", "a parameter that no output depends on is unchanged"),
    "rescaled": _fact(_rescaled, "KAL-7", "rescaled parameters give the rescaled posterior"),
}

DIAGONAL: Mapping[str, Fact] = _BOTH | {
    "shrinks": _fact(_shrinks, "DIAG-4", "0 < p+ <= p"),
}
"""Properties of an update with a diagonal prior, decoupled or variational."""

DENSE: Mapping[str, Fact] = _BOTH | {
    "shrinks": _fact(_shrinks_dense, "KAL-2 KAL-4", "P+ is symmetric, and 0 < P+ <= P"),
    "turned": _fact(_turned, "KAL-7", "a rotation of the parameters rotates the posterior"),
    "one by one": _fact(
        _one_by_one, "KAL-5", "independent outputs one after another give the joint update"
    ),
}
"""Properties of an update with a dense prior."""
