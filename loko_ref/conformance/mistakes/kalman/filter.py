"""Mistakes in the filter: innovation covariance, gain, mean, covariance.

Shapes as in ``formulas``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__ = ["direct_gain", "times"]

F = FORMULAS
SMALL = tuple(10.0**k for k in range(-13, 0))


def times(P: Array, H: Array) -> Array:
    """Return ``P H'`` (n, m), P (n,) or (n, n)."""
    return P[:, None] * H.T if P.ndim == 1 else P @ H.T


def direct_gain(v: Values) -> Array:
    """Return ``P H' S^-1`` (n, m) with S as it stands, by its inverse, whose rounding shows."""
    gain: Array = times(v.p_pred, v.H) @ v.keep("S^-1", np.linalg.inv(v.S))
    return gain


def _everywhere(function: Any) -> Changes:
    return {"K": function, "K.softmax": function, "K.glm": function}


# ----------------------------------------------------------- innovation covariance, gain


def _jitter_S(size: float) -> Changes:
    return {"S": lambda v: F["S"](v) + size * np.eye(v.e.shape[0]), "K.glm": direct_gain}


mutant(
    "S-JITTER",
    "jitter added to S",
    "A small multiple of the identity is added to S before it is inverted. S = H P H' + R is "
    "positive definite already; the jitter biases the gain, most where S is small.",
    "S = H @ (p[:, None] * H.T) + R",
    _jitter_S,
    sizes=SMALL,
    example=3.7e-7,
)


def _jitter_R(size: float) -> Changes:
    def moved(name: str) -> Any:
        return lambda v: F[name](v) + size * np.eye(v.e.shape[0])

    def S(v: Values) -> Array:
        v["R_used"] = v.R_used + size * np.eye(v.e.shape[0])
        return F["S"](v)

    return {"S": S, "R.glm": moved("R.glm"), "K.glm": direct_gain}


mutant(
    "R-JITTER",
    "jitter added to R",
    "A small multiple of the identity is added to R before it is used, in S and wherever R is "
    "inverted.",
    "R enters as it is given",
    _jitter_R,
    sizes=SMALL,
    example=5.3e-6,
)
mutant(
    "S-NO-R",
    "R left out of S",
    "S = H P H' without the observation noise.",
    "S = H @ (p[:, None] * H.T) + R",
    {"S": lambda v: v.H @ times(v.p_pred, v.H)},
)
mutant(
    "S-R-DIAGONAL",
    "only R's diagonal in S",
    "R's off-diagonal entries are dropped: outputs are taken as independent.",
    "S = H @ (p[:, None] * H.T) + R, with the whole matrix R",
    {"S": lambda v: v.H @ times(v.p_pred, v.H) + np.diag(np.diag(v.R_used)), "K.glm": direct_gain},
)
mutant(
    "S-R-SQUARED",
    "R squared",
    "R is taken for a matrix of standard deviations and squared; it is a covariance.",
    "S = H @ (p[:, None] * H.T) + R",
    {"S": lambda v: v.H @ times(v.p_pred, v.H) + v.R_used @ v.R_used, "K.glm": direct_gain},
)
mutant(
    "S-DIAGONAL",
    "S taken for its diagonal",
    "Each output gets a scalar innovation variance; the correlation that shared parameters cause "
    "is lost.",
    "S is (m, m): H @ (p[:, None] * H.T) + R",
    {"S": lambda v: np.diag(np.diag(F["S"](v))), **_everywhere(direct_gain)},
)
mutant(
    "GAIN-S-DIAGONAL",
    "gain by S's diagonal",
    "S is right, but the gain divides by its diagonal only.",
    "K = np.linalg.solve(S, H * p).T",
    _everywhere(lambda v: times(v.p_pred, v.H) / np.diag(v.S)),
)


def _per_tensor(v: Values) -> Array:
    """Each factor of each site filters with an S of its own."""
    rows, at = [], 0
    for layer in v.F["sites"](v.spec):
        shapes: list[tuple[int, ...]] = [
            (layer["lora"]["r"], layer["in"]),
            (layer["out"], layer["lora"]["r"]),
        ]
        if layer["lora"].get("bias"):
            shapes += [(layer["lora"]["r"],), (layer["out"],)]
        for shape in shapes:
            span = slice(at, at + math.prod(shape))
            at = span.stop
            H = v.H[:, span]
            P = v.p_pred[span] if v.p_pred.ndim == 1 else v.p_pred[span, span]
            PH = times(P, H)
            S = H @ PH + v.R_used
            rows.append((np.linalg.pinv(S, rcond=1e-12, hermitian=True) @ PH.T).T)
    return np.concatenate(rows)


mutant(
    "S-PER-TENSOR",
    "an S of its own for every tensor",
    "Each factor is filtered alone, with S from its own columns of H. All factors explain the same "
    "innovation: S sums over all of theta.",
    "S = H @ (p[:, None] * H.T) + R, H over all of theta",
    _everywhere(_per_tensor),
)


def _stale(v: Values) -> Array:
    return times(v.p, v.H)


mutant(
    "GAIN-STALE-P",
    "the last posterior p in place of p_pred in S and K",
    "The gain uses p as the last step left it; forgetting and process noise come too late.",
    "p_pred = p / lam + q, then S and K with p_pred",
    {"pHt": _stale, "K.glm": lambda v: F["K.glm"](Values(v, p_pred=v.p))},
)
mutant(
    "GAIN-NO-P",
    "P left out of the gain",
    "K = H' S^-1: S has P in it, the gain's own P H' has not.",
    "K = np.linalg.solve(S, H * p).T",
    _everywhere(lambda v: np.linalg.solve(v.S.T, v.H).T),
)

# ----------------------------------------------------------------------------- mean

mutant(
    "THETA-SIGN",
    "theta moves the wrong way",
    "theta - K e in place of theta + K e: K is not a gradient.",
    "theta = theta + K @ e",
    {"theta_post": lambda v: v.theta - v.K @ v.e},
)


def _posterior(v: Values) -> Array:
    after: Array = F["p.dense" if v.p_pred.ndim == 2 else f"p.{v.diagonal}"](v)
    return after


def _over(S: Array, H: Array, P: Array) -> Array:
    """Return ``P H' S^+`` (n, m): S has no inverse where probabilities are observed."""
    return (np.linalg.pinv(S, rcond=1e-12, hermitian=True) @ times(P, H).T).T


def _posterior_gain(v: Values) -> Array:
    return v.theta + _over(v.S, v.H, _posterior(v)) @ v.e


def _posterior_gain_anew(v: Values) -> Array:
    after = _posterior(v)
    return v.theta + _over(v.H @ times(after, v.H) + v.R_used, v.H, after) @ v.e


def _information_gain(name: str) -> Callable[[Values], Array]:
    def gain(v: Values) -> Array:
        if v.p_pred.ndim == 2 or v.diagonal != "variational":
            right: Array = F[name](v)
            return right
        return _over(v.R_used, v.H, F["p.variational"](v))

    return gain


mutant(
    "THETA-POSTERIOR-P",
    "K e with the posterior covariance",
    "p is updated first and the gain that moves theta is formed with it: the gain needs the prior.",
    "compute K before p is overwritten",
    {"theta_post": _posterior_gain},
)
mutant(
    "THETA-POSTERIOR-S",
    "gain and S formed anew with the posterior covariance",
    "p is updated first; then S and the gain are computed again from it, and that gain moves "
    "theta: the observation is used twice.",
    "compute S and K before p is overwritten, and keep them",
    {"theta_post": _posterior_gain_anew},
)
mutant(
    "GAIN-POSTERIOR-R",
    "gain by the posterior variances and R",
    "K = P+ H' R^-1 is an identity of whole matrices; of the variational diagonal it is not true.",
    "K = np.linalg.solve(S, H * p).T with the prior p",
    {name: _information_gain(name) for name in ("K", "K.softmax", "K.glm")},
)
mutant(
    "THETA-LEARNING-RATE",
    "the Kalman step is multiplied by a learning rate",
    "theta + lr K e: the gain is the step size already.",
    "theta = theta + K @ e",
    lambda size: {"theta_post": lambda v: v.theta + size * (v.K @ v.e)},
    sizes=(1e-3, 1e-2, 0.1, 0.3, 0.7, 2.0),
    example=0.43,
)

# ------------------------------------------------------------------------ covariance

mutant(
    "P-VARIATIONAL",
    "variational diagonal for the decoupled one",
    "1/p+ = 1/p + diag(H' R^-1 H) is the inverse of the precision's diagonal; decoupled is the "
    "diagonal of the covariance.",
    "p = p * (1 - (K * H.T).sum(axis=1))",
    {"p.decoupled": F["p.variational"]},
)
mutant(
    "P-DECOUPLED",
    "decoupled diagonal for the variational one",
    "p (1 - diag(K H)) whatever was asked for.",
    "p = 1 / (1 / p + diag(H' R^-1 H))",
    {"p.variational": F["p.decoupled"]},
)
mutant(
    "P-KEPT",
    "covariance not updated",
    "The posterior covariance is the prior's: the filter never learns how much it knows.",
    "p = p * (1 - (K * H.T).sum(axis=1))",
    {f"p.{k}": lambda v: v.p_pred.copy() for k in ("decoupled", "variational", "dense")},
)
mutant(
    "P-STALE",
    "covariance updated from the p before the time update",
    "p+ is formed from the last posterior in place of p_pred.",
    "p = p_pred * (1 - (K * H.T).sum(axis=1))",
    {
        "p.decoupled": lambda v: v.p * (1 - (v.K * v.H.T).sum(axis=1)),
        "p.variational": lambda v: F["p.variational"](Values(v, p_pred=v.p)),
        "p.dense": lambda v: v.p - v.K @ v.H @ v.p,
    },
)


def _carrying(kept: Callable[[Array, Array], Array]) -> Changes:
    """Change the p that steps of a run but the first begin with.

    ``kept(p_pred, p)`` of a step's p_pred and p is the p of the next.
    """
    stays: list[Array] = []

    def p_pred(v: Values) -> Array:
        if "t" not in v or "outputs" in v:  # a step alone; a head's in LTE
            return np.asarray(F["p_pred"](v))
        stays[:] = [v.p] if v.t == 1 else stays
        found = np.asarray(F["p_pred"](Values(v, p=stays[0])))
        stays[:] = [kept(found, stays[0])]
        return found

    return {"p_pred": p_pred}


mutant(
    "P-NOT-CARRIED",
    "p not carried from step to step",
    "Each step of a run begins with the p of the first.",
    "keep p in the state",
    _carrying(lambda p_pred, p: p),
)
mutant(
    "P-PRED-CARRIED",
    "p_pred carried on in place of the posterior p",
    "The update of p is given out and forgotten: the next step begins with this one's p_pred.",
    "keep the posterior p in the state",
    _carrying(lambda p_pred, p: p_pred),
)
mutant(
    "P-NO-S",
    "S left out of K S K'",
    "p - diag(K K') in place of p - diag(K S K').",
    "p = p * (1 - (K * H.T).sum(axis=1))",
    {
        "p.decoupled": lambda v: v.p_pred - (v.K * v.K).sum(axis=1),
        "p.dense": lambda v: v.p_pred - v.K @ v.K.T,
    },
)
mutant(
    "P-JOSEPH-NO-R",
    "Joseph form without K R K'",
    "(I - K H) P (I - K H)' alone is too small: the measurement noise's part is missing.",
    "P = (I - K @ H) @ P @ (I - K @ H).T + K @ R @ K.T",
    {
        "p.decoupled": lambda v: ((np.eye(len(v.p_pred)) - v.K @ v.H) ** 2) @ v.p_pred,
        "p.dense": lambda v: (
            (np.eye(len(v.p_pred)) - v.K @ v.H) @ v.p_pred @ (np.eye(len(v.p_pred)) - v.K @ v.H).T
        ),
    },
)


def _clip(limit: Any) -> Any:
    def changes(size: float) -> Changes:
        def wrap(name: str) -> Any:
            return lambda v: limit(F[name](v), size)

        def dense(v: Values) -> Array:
            P = F["p.dense"](v)
            return P + np.diag(limit(np.diag(P), size) - np.diag(P))

        return {
            **{f"p.{k}": wrap(f"p.{k}") for k in ("decoupled", "variational")},
            "p.dense": dense,
        }

    return changes


mutant(
    "P-FLOOR",
    "p clipped from below",
    "p (of a dense P its diagonal) is kept above a floor. The exact update is positive by itself; "
    "a floor forgets what was learned.",
    "no clip after the update of p",
    _clip(np.maximum),
    sizes=(1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0),
    example=0.057,
)
mutant(
    "P-CEILING",
    "p clipped from above",
    "p (of a dense P its diagonal) is kept below a ceiling.",
    "no clip after the update of p",
    _clip(np.minimum),
    sizes=(100.0, 10.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01),
    example=0.083,
)
mutant(
    "P-DENSE-DIAGONAL",
    "P's correlations dropped",
    "Of the dense posterior only the diagonal is kept: that is another filter (covariance "
    "'diagonal').",
    "P = P - K @ H @ P, the whole matrix",
    {"p.dense": lambda v: np.diag(np.diag(F["p.dense"](v)))},
)


def _one_by_one(v: Values) -> tuple[Array, Array]:
    """M scalar updates, only the diagonal kept after each."""
    theta, p = v.theta, v.p_pred
    for j, h in enumerate(v.H):
        s = h @ (p * h) + v.R_used[j, j]
        k = p * h / s
        theta = theta + k * (v.e[j] - h @ (theta - v.theta))
        p = p * (1 - k * h)
    return theta, p


mutant(
    "OUTPUTS-ONE-BY-ONE",
    "outputs taken one after another",
    "m scalar updates in place of one vector update. With a dense P they are equal; a diagonal "
    "filter drops what one output taught about the correlations before the next.",
    "one update with the (m, m) matrix S",
    {"theta_post": lambda v: _one_by_one(v)[0], "p.decoupled": lambda v: _one_by_one(v)[1]},
)
