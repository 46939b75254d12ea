"""Mistakes in the implicit glm step: how it is solved, where, and with which covariance.

Shapes as in ``formulas``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.kalman.filter import times
from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS, fixed_point
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS
_RIGHT = "v = y - softmax(z + G @ v), solved to rounding; theta = theta + P @ Z.T @ v"


def _solved(v: Values, **how: Any) -> Array:
    return fixed_point(v, v.y, v.z, v.Z @ times(v.p_pred, v.Z), **how)


def _at_first(v: Values) -> Array:
    return (v.y - F["softmax"](v, v.z)).reshape(-1)


mutant(
    "IMPLICIT-ONE-ITERATION",
    "one iteration only",
    "Newton's method is stopped after its first iteration: that is the linear step, which "
    "overshoots where p is large.",
    _RIGHT,
    {"v": lambda v: _solved(v, most=1, damped=False)},
)
mutant(
    "IMPLICIT-FIVE-ITERATIONS",
    "a fixed number of iterations",
    "Five damped iterations, converged or not.",
    _RIGHT,
    {"v": lambda v: _solved(v, most=5)},
)
for _name, _words, _most in (("TWO", "Two", 2), ("THREE", "Three", 3)):
    mutant(
        f"IMPLICIT-{_name}-ITERATIONS",
        f"{_words.lower()} iterations",
        f"{_words} damped iterations, converged or not.",
        _RIGHT,
        {"v": lambda v, most=_most: _solved(v, most=most)},
    )


def _after(v: Values, first: Array) -> Array:
    """``y - softmax(z + G first)``."""
    moved = (v.Z @ times(v.p_pred, v.Z) @ first).reshape(v.z.shape)
    found: Array = (v.y - F["softmax"](v, v.z + moved)).reshape(-1)
    return found


mutant(
    "IMPLICIT-FIXED-POINT",
    "one fixed-point iteration",
    "v = y - softmax(z + G e), e the innovation at the prior, in place of a solution.",
    _RIGHT,
    {"v": lambda v: _after(v, _at_first(v))},
)
mutant(
    "IMPLICIT-AFTER-LINEAR",
    "the innovation after the linear step",
    "v = y - softmax(f(theta + K e)): the network once more at the linear step's theta.",
    _RIGHT,
    {"v": lambda v: F["residual"](Values(v, theta_post=v.theta + v.K @ v.e))},
)
mutant(
    "IMPLICIT-UNDAMPED",
    "Newton's method without damping",
    "Every step is taken in full; where the first ones overshoot into saturation they jump to and "
    "fro and never settle.",
    "halve, or bisect, a step at whose end the objective rises",
    {"v": lambda v: _solved(v, most=50, damped=False)},
)
mutant(
    "IMPLICIT-HALF-SOLVED",
    "v averaged with the innovation at the prior",
    "One relaxed fixed-point iteration, (e + y - softmax(z + G e)) / 2, in place of a solution.",
    _RIGHT,
    {
        "v": lambda v: (
            0.5 * _at_first(v)
            + 0.5
            * (
                v.y
                - F["softmax"](
                    v,
                    v.z + (v.Z @ times(v.p_pred, v.Z) @ _at_first(v)).reshape(v.z.shape),
                )
            ).reshape(-1)
        )
    },
)
mutant(
    "IMPLICIT-INNOVATION-AT-PRIOR",
    "the innovation at the prior",
    "v = y - softmax(z): nothing is solved, and theta moves by P Z' e, a gradient step.",
    _RIGHT,
    {"v": _at_first},
)
mutant(
    "IMPLICIT-NOT-TAKEN",
    "theta by the gain although v was solved for",
    "theta + K e, the linear step, beside a right v.",
    "theta = theta + P @ Z.T @ v",
    {"theta_post.implicit": F["theta_post"]},
)
mutant(
    "IMPLICIT-PRIOR-P",
    "the P before the time update in G",
    "G = Z P Z' with the last posterior in place of the predicted P.",
    "G = Z @ P_pred @ Z.T",
    {"v": lambda v: F["v"](Values(v, p_pred=v.p))},
)
mutant(
    "IMPLICIT-THETA-PRIOR-P",
    "the P before the time update in P Z' v",
    "theta moves by the last posterior in place of the predicted P.",
    "theta = theta + P_pred @ Z.T @ v",
    {"theta_post.implicit": lambda v: F["theta_post.implicit"](Values(v, p_pred=v.p))},
)


def _posterior(v: Values) -> Array:
    after: Array = F["p.dense" if v.p_pred.ndim == 2 else f"p.{v.diagonal}"](v)
    return after


mutant(
    "IMPLICIT-THETA-POSTERIOR-P",
    "the posterior P in P Z' v",
    "P+ Z' e is the linear step of a dense filter; v belongs to the predicted P.",
    "theta = theta + P_pred @ Z.T @ v",
    {"theta_post.implicit": lambda v: F["theta_post.implicit"](Values(v, p_pred=_posterior(v)))},
)


def _sample_by_sample(v: Values) -> Array:
    C = v.y.shape[1]
    found = [
        F["v"](Values(v, z=v.z[b : b + 1], y=v.y[b : b + 1], Z=v.Z[b * C : (b + 1) * C]))
        for b in range(len(v.y))
    ]
    return np.concatenate(found)


mutant(
    "IMPLICIT-EACH-SAMPLE-ALONE",
    "every sample of a batch solved alone",
    "G is taken block by block: what two samples of a batch explain together is counted twice.",
    "G = Z @ P_pred @ Z.T over all samples of the batch",
    {"v": _sample_by_sample},
)
mutant(
    "IMPLICIT-DIAGONAL-OF-P",
    "G by P's diagonal",
    "P's correlations are dropped in G; theta moves with the whole P.",
    "G = Z @ P @ Z.T, the whole matrix",
    {"v": lambda v: F["v"](Values(v, p_pred=_diagonal(v.p_pred)))},
)


def _diagonal(P: Array) -> Array:
    return P if P.ndim == 1 else np.diag(P)


def _solved_yhat(v: Values) -> Array:
    """Softmax at the posterior mean."""
    if v.get("solve") != "implicit" or "p_pred" not in v:
        return v.yhat
    return np.asarray(v.y - F["v"](v).reshape(v.y.shape))


mutant(
    "IMPLICIT-CURVATURE-AFTER",
    "the covariance by J at the solution",
    "S, K and P+ are formed with J at the posterior's probabilities; they are the prior's.",
    "J = diag(yhat) - outer(yhat, yhat) with yhat = softmax(z)",
    {
        "R.glm": lambda v: F["J"](Values(v, yhat=_solved_yhat(v))),
        "H.glm": lambda v: F["J"](Values(v, yhat=_solved_yhat(v))) @ v.Z,
    },
)
