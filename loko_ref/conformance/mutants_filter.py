"""Mistakes in the filter, the observation models and the noise estimators.

Shapes as in ``formulas``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.formulas import FORMULAS, Values
from loko_ref.conformance.mutants import Changes, mutant

__all__: list[str] = []

F = FORMULAS
SMALL = tuple(10.0**k for k in range(-13, 0))


def _times(P: Array, H: Array) -> Array:
    return P[:, None] * H.T if P.ndim == 1 else P @ H.T


def _direct(v: Values) -> Array:
    """``P H' S^-1`` with S as it stands."""
    return np.linalg.solve(v.S.T, _times(v.p_pred, v.H).T).T


def _everywhere(function: Any) -> Changes:
    return {"K": function, "K.softmax": function, "K.glm": function}


# ----------------------------------------------------------- innovation covariance, gain


def _jitter_S(size: float) -> Changes:
    return {"S": lambda v: F["S"](v) + size * np.eye(v.e.shape[0]), "K.glm": _direct}


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

    return {"S": S, "R.glm": moved("R.glm"), "K.glm": _direct}


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
    {"S": lambda v: v.H @ _times(v.p_pred, v.H)},
)
mutant(
    "S-R-DIAGONAL",
    "only R's diagonal in S",
    "R's off-diagonal entries are dropped: outputs are taken as independent.",
    "S = H @ (p[:, None] * H.T) + R, with the whole matrix R",
    {
        "S": lambda v: v.H @ _times(v.p_pred, v.H) + np.diag(np.diag(v.R_used)),
        "K.glm": _direct,
    },
)
mutant(
    "S-R-SQUARED",
    "R squared",
    "R is taken for a matrix of standard deviations and squared; it is a covariance.",
    "S = H @ (p[:, None] * H.T) + R",
    {"S": lambda v: v.H @ _times(v.p_pred, v.H) + v.R_used @ v.R_used, "K.glm": _direct},
)
mutant(
    "S-DIAGONAL",
    "S taken for its diagonal",
    "Each output gets a scalar innovation variance; the correlation that shared parameters cause "
    "is lost.",
    "S is (m, m): H @ (p[:, None] * H.T) + R",
    {"S": lambda v: np.diag(np.diag(F["S"](v))), **_everywhere(_direct)},
)
mutant(
    "GAIN-S-DIAGONAL",
    "gain by S's diagonal",
    "S is right, but the gain divides by its diagonal only.",
    "K = np.linalg.solve(S, H * p).T",
    _everywhere(lambda v: _times(v.p_pred, v.H) / np.diag(v.S)),
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
            PH = _times(P, H)
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
    return _times(v.p, v.H)


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


def _posterior_gain(v: Values) -> Array:
    name = "p.dense" if v.p_pred.ndim == 2 else f"p.{v.diagonal}"
    after = F[name](v)
    K = np.linalg.pinv(v.S, rcond=1e-12, hermitian=True) @ _times(after, v.H).T
    return v.theta + K.T @ v.e


mutant(
    "THETA-POSTERIOR-P",
    "K e with the posterior covariance",
    "p is updated first and the gain that moves theta is formed with it: the gain needs the prior.",
    "compute K before p is overwritten",
    {"theta_post": _posterior_gain},
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

        return {f"p.{k}": wrap(f"p.{k}") for k in ("decoupled", "variational")}

    return changes


mutant(
    "P-FLOOR",
    "p clipped from below",
    "p is kept above a floor. The exact update is positive by itself; a floor forgets what was "
    "learned.",
    "no clip after the update of p",
    _clip(np.maximum),
    sizes=(1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0),
    example=0.057,
)
mutant(
    "P-CEILING",
    "p clipped from above",
    "p is kept below a ceiling.",
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

# ---------------------------------------------------------------------- time update


def _noise_of(v: Values) -> Any:
    return v.q if v.p.ndim == 1 else v.q * np.eye(v.p.shape[0])


mutant(
    "TIME-MULTIPLIED",
    "p multiplied by lam",
    "Forgetting inflates the variance: divide by lam.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p * v.lam + _noise_of(v)},
)
mutant(
    "TIME-Q-DIVIDED",
    "q divided by lam too",
    "(p + q) / lam in place of p / lam + q.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: (v.p + _noise_of(v)) / v.lam},
)
mutant(
    "TIME-Q-SQUARED",
    "q squared",
    "q is taken for a standard deviation; it is a variance.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam + _noise_of(v) ** 2},
)
mutant(
    "TIME-NO-Q",
    "process noise left out",
    "p / lam only.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam},
)
mutant(
    "TIME-NO-FORGETTING",
    "forgetting left out",
    "p + q only.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p + _noise_of(v)},
)
mutant(
    "TIME-LAM-SQUARED",
    "p divided by lam squared",
    "lam is a variance's factor: p / lam, not p / lam^2.",
    "p_pred = p / lam + q",
    {"p_pred": lambda v: v.p / v.lam**2 + _noise_of(v)},
)

# ----------------------------------------------------------------------- observation

mutant(
    "E-SIGN",
    "sign of the innovation",
    "e = yhat - y in place of y - yhat.",
    "e = y - yhat",
    {"e": lambda v: (v.yhat - v.y).reshape(-1)},
)
mutant(
    "H-NO-J",
    "softmax Jacobian left out",
    "H = Z in place of J Z: the logits' Jacobian with the probabilities' innovation (that is the "
    "model 'logits').",
    "H = (diag(yhat) - outer(yhat, yhat)) @ Z",
    {"H.softmax": lambda v: v.Z, "H.glm": lambda v: v.Z, "K.glm": _direct, "K.softmax": _direct},
)


def _J_diagonal(v: Values) -> Array:
    return np.diag((v.yhat * (1 - v.yhat)).reshape(-1))


mutant(
    "H-J-DIAGONAL",
    "softmax Jacobian taken for its diagonal",
    "J = diag(yhat (1 - yhat)): the derivative of one probability by another logit is lost.",
    "J = diag(yhat) - outer(yhat, yhat)",
    {
        "H.softmax": lambda v: _J_diagonal(v) @ v.Z,
        "H.glm": lambda v: _J_diagonal(v) @ v.Z,
        "K.softmax": _direct,
        "K.glm": _direct,
    },
)
mutant(
    "H-J-IN-LOGITS",
    "softmax Jacobian in 'logits'",
    "H = J Z in 'logits', where H = Z by definition.",
    "H = Z",
    {"H.logits": F["H.softmax"]},
)
mutant(
    "H-NOT-CENTRED",
    "center ignored",
    "H = Z although center was asked for.",
    "H = Z minus each sample's mean over its C rows",
    {"H.logits": lambda v: v.Z},
)
mutant(
    "H-ALWAYS-CENTRED",
    "H centred unasked",
    "H is centred over each sample's classes although center is off.",
    "H = Z",
    {"H.logits": lambda v: F["H.logits"](Values(v, center=True))},
)
mutant(
    "H-CENTRED-OVER-BATCH",
    "centred over the whole batch",
    "The mean is taken over all rows of the stacked Z in place of each sample's C rows.",
    "rows = Z.reshape(batch, C, n); H = rows - rows.mean(axis=1, keepdims=True)",
    {"H.logits": lambda v: v.Z - v.Z.mean(axis=0) if v.center else v.Z},
)
mutant(
    "SOFTMAX-OVER-BATCH",
    "softmax over the wrong axis",
    "Probabilities are normalised over the samples in place of the classes.",
    "softmax(z, axis=-1)",
    {
        "softmax": lambda v, z: F["softmax"](v, z.T).T,
        "K.softmax": _direct,
        "K.glm": _direct,
    },
)
mutant(
    "YHAT-CLIPPED",
    "probabilities clipped",
    "yhat is kept inside [eps, 1 - eps].",
    "no clip after the softmax",
    lambda size: {
        "softmax": lambda v, z: np.clip(F["softmax"](v, z), size, 1 - size),
        "K.softmax": F["K.softmax"],
        "K.glm": _direct,
    },
    sizes=(1e-15, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    example=2.3e-4,
)
mutant(
    "Y-SMOOTHED",
    "label smoothing",
    "y is replaced by (1 - s) y + s / C.",
    "e = y - yhat with y as given",
    lambda size: {
        "e": lambda v: (
            (v.y if v.observation == "gaussian" else (1 - size) * v.y + size / v.y.shape[-1])
            - v.yhat
        ).reshape(-1)
    },
    sizes=(1e-3, 1e-2, 0.05, 0.1, 0.3),
    example=0.07,
)
mutant(
    "TEMPERATURE",
    "logits scaled before the softmax",
    "softmax(z / T) with a temperature T other than 1.",
    "yhat = softmax(z)",
    lambda size: {"softmax": lambda v, z: F["softmax"](v, z / size)},
    sizes=(0.1, 0.5, 0.8, 1.25, 2.0, 5.0, 10.0),
    example=1.7,
)


def _standard_precision(v: Values) -> Array:
    """1/p+ = 1/p + diag(H' R^-1 H), R inverted where it can be."""
    X = np.linalg.pinv(v.R_used, rcond=1e-12, hermitian=True) @ v.H
    return 1 / (1 / v.p_pred + (v.H * X).sum(axis=0))


mutant(
    "GLM-R-IDENTITY",
    "R = I in 'glm'",
    "The noise of a one-hot y given yhat is J, not the identity.",
    "R = diag(yhat) - outer(yhat, yhat)",
    {
        "R.glm": lambda v: np.eye(v.e.shape[0]),
        "K.glm": _direct,
        "p.variational": lambda v: (
            _standard_precision(v) if v.observation == "glm" else F["p.variational"](v)
        ),
    },
)
mutant(
    "GLM-R-DIAGONAL",
    "R = diag(yhat (1 - yhat)) in 'glm'",
    "The classes of a one-hot y are taken as independent.",
    "R = diag(yhat) - outer(yhat, yhat)",
    {
        "R.glm": _J_diagonal,
        "K.glm": _direct,
        "p.variational": lambda v: (
            _standard_precision(v) if v.observation == "glm" else F["p.variational"](v)
        ),
    },
)


def _blocks(v: Values, a: Array) -> Array:
    batch = v.y.shape[0]
    return a.reshape(batch, -1, *a.shape[1:])


def _averaged(v: Values) -> tuple[Array, Array]:
    """One update with the samples' mean innovation and mean linearisation."""
    batch, C = v.y.shape
    e, H = _blocks(v, v.e).mean(axis=0), _blocks(v, v.H).mean(axis=0)
    R = np.mean([v.R_used[b * C : (b + 1) * C, b * C : (b + 1) * C] for b in range(batch)], axis=0)
    PH = _times(v.p_pred, H)
    K = (np.linalg.pinv(H @ PH + R, rcond=1e-12, hermitian=True) @ PH.T).T
    if v.p_pred.ndim == 2:
        return v.theta + K @ e, v.p_pred - K @ H @ v.p_pred
    return v.theta + K @ e, v.p_pred * (1 - (K * H.T).sum(axis=1))


mutant(
    "BATCH-AVERAGED",
    "samples averaged in place of stacked",
    "The batch's mean innovation and mean Jacobian make one observation of C outputs: information "
    "of the other samples is lost.",
    "e, H stacked sample by sample: m = batch * C rows",
    {
        "theta_post": lambda v: _averaged(v)[0],
        "p.decoupled": lambda v: _averaged(v)[1],
        "p.dense": lambda v: _averaged(v)[1],
    },
)

# ----------------------------------------------------------------------------- noise


def _ema(sample: Any, beta: Any = lambda v: v.beta) -> Any:
    return lambda v: beta(v) * v.R + (1 - beta(v)) * sample(v)


def _ee(v: Values) -> Array:
    return np.outer(v.r, v.r)


def _estimators(wrap: Any) -> Changes:
    return {
        f"R.{k}": wrap(F[f"R.{k}"])
        for k in ("ema_innovation", "ema_innovation_hph", "ema_residual_hph")
    }


mutant(
    "NOISE-BETA-SWAPPED",
    "beta taken for 1 - beta",
    "The past gets the weight 1 - beta.",
    "R = beta * R + (1 - beta) * sample",
    _estimators(lambda f: lambda v: f(Values(v, beta=1 - v.beta))),
)
mutant(
    "NOISE-NO-HPH",
    "H p H' left out of R",
    "Only e e' enters the average.",
    "sample = np.outer(e, e) + H @ (p[:, None] * H.T)",
    {"R.ema_innovation_hph": F["R.ema_innovation"], "R.ema_residual_hph": F["R.ema_innovation"]},
)
mutant(
    "NOISE-HPH-ADDED",
    "H p H' added unasked",
    "ema_innovation averages e e' alone.",
    "sample = np.outer(e, e)",
    {"R.ema_innovation": F["R.ema_innovation_hph"]},
)
mutant(
    "NOISE-HPH-SUBTRACTED",
    "H p H' subtracted",
    "e e' - H p H': unbiased for the innovation, but not what was asked for, and not positive.",
    "sample = np.outer(e, e) + H @ (p[:, None] * H.T)",
    {f"R.{k}": _ema(lambda v: _ee(v) - v.HpH) for k in ("ema_innovation_hph", "ema_residual_hph")},
)


def _corrected(f: Any) -> Any:
    """R's average divided by 1 - beta^t; t = 1 outside a run."""
    return lambda v: f(v) / (1 - v.beta ** v.get("t", 1))


mutant(
    "NOISE-BIAS-CORRECTED",
    "average bias-corrected",
    "R is divided by 1 - beta^t as in Adam. R starts at R_0, not at 0: there is no such bias.",
    "R = beta * R + (1 - beta) * sample",
    _estimators(_corrected),
)
mutant(
    "NOISE-DIAGONAL",
    "only the diagonal of the sample",
    "Off-diagonal entries of e e' (+ H p H') are dropped.",
    "sample = np.outer(e, e)",
    {
        "R.ema_innovation": _ema(lambda v: np.diag(v.r**2)),
        "R.ema_innovation_hph": _ema(lambda v: np.diag(np.diag(_ee(v) + v.HpH))),
        "R.ema_residual_hph": _ema(lambda v: np.diag(np.diag(_ee(v) + v.HpH))),
    },
)
mutant(
    "NOISE-SCALAR",
    "one variance for all outputs",
    "mean(e^2) I in place of e e'.",
    "sample = np.outer(e, e)",
    {"R.ema_innovation": _ema(lambda v: np.mean(v.r**2) * np.eye(len(v.r)))},
)
mutant(
    "NOISE-ADDED",
    "(1 - beta) left out",
    "R = beta R + sample: the average grows by 1 / (1 - beta).",
    "R = beta * R + (1 - beta) * sample",
    {
        "R.ema_innovation": lambda v: v.beta * v.R + _ee(v),
        "R.ema_innovation_hph": lambda v: v.beta * v.R + _ee(v) + v.HpH,
        "R.ema_residual_hph": lambda v: v.beta * v.R + _ee(v) + v.HpH,
    },
)
mutant(
    "NOISE-BETA",
    "another beta",
    "R is averaged with another beta than the one given (a default that is not overwritten).",
    "R = beta * R + (1 - beta) * sample",
    lambda size: _estimators(lambda f: lambda v: f(Values(v, beta=size))),
    sizes=(0.01, 0.1, 0.3, 0.6, 0.9, 0.98, 0.99, 0.999),
    example=0.77,
)
mutant(
    "NOISE-AFTER",
    "R refreshed after the gain",
    "With timing 'before' the refreshed R enters this step's S; here the old one does.",
    "R = refresh(R, e, HpH) before S = HpH + R",
    {"timing": lambda v: "after"},
)
mutant(
    "NOISE-BEFORE",
    "R refreshed before the gain",
    "With timing 'after' the old R enters this step's S.",
    "S = HpH + R before R = refresh(R, e, HpH)",
    {"timing": lambda v: "before" if v.noise != "ema_residual_hph" else "after"},
)
mutant(
    "NOISE-STALE-P",
    "H p H' with the p before the time update",
    "R's sample uses the last posterior p in place of p_pred.",
    "HpH = H @ (p_pred[:, None] * H.T)",
    {"covariance_seen": lambda v: v.p},
)
mutant(
    "NOISE-POSTERIOR-P",
    "H p H' with the posterior p after the gain",
    "With timing 'after' the innovation's estimate uses the prior p of the same step.",
    "HpH with p_pred, computed before p is overwritten",
    {
        "R.ema_innovation_hph": lambda v: F["R.ema_innovation_hph"](
            Values(v, HpH=v.H @ _times(v.p_post, v.H)) if v.get("p_post") is not None else v
        )
    },
)
mutant(
    "NOISE-INNOVATION-FOR-RESIDUAL",
    "the innovation for the residual",
    "ema_residual_hph needs y - h(theta+), one more forward pass.",
    "r = y - predict(theta_new, x)",
    {"residual": lambda v: v.e},
)
mutant(
    "NOISE-PRIOR-FOR-RESIDUAL",
    "the prior p with the residual",
    "ema_residual_hph adds H p+ H' with the posterior p.",
    "H @ (p_new[:, None] * H.T)",
    {"covariance_residual": lambda v: v.p_pred},
)
mutant(
    "NOISE-RESET",
    "R not carried from step to step",
    "Each step starts from R_0.",
    "keep R in the state",
    {"carried": lambda state, start: start["R"]},
)
mutant(
    "NOISE-ALWAYS-REFRESHED",
    "R refreshed although fixed",
    "'fixed' keeps R_0.",
    "if noise != 'fixed': refresh",
    {"R.fixed": F["R.ema_innovation"]},
)

# ------------------------------------------------------------------------- precision

mutant(
    "SINGLE",
    "single precision inside",
    "Numbers agree with the oracle to float32's digits, not float64's: a float32 array, constant "
    "or accumulator on the way (torch's default dtype, JAX without x64).",
    "dtype=np.float64 throughout; jax.config.update('jax_enable_x64', True)",
    roundoff=2.0**-24,
)
mutant(
    "HALF",
    "half precision inside",
    "Numbers agree to about three digits: float16, or TF32 matrix products on a GPU.",
    "torch.backends.cuda.matmul.allow_tf32 = False; no autocast",
    roundoff=2.0**-11,
)
