"""Mistakes in the observation models, and in how a batch is stacked.

Shapes as in ``formulas``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.kalman.filter import direct_gain, times
from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS

mutant(
    "E-SIGN",
    "sign of the innovation",
    "e = yhat - y in place of y - yhat.",
    "e = y - yhat",
    {"e": lambda v: (v.yhat - v.y).reshape(-1)},
)


def _by_batch(name: str) -> Any:
    return lambda v: F[name](v) / len(v.y)


mutant(
    "E-MEAN",
    "innovation divided by the batch",
    "(y - yhat) / batch, as the gradient of a loss averaged over the samples has it.",
    "e = y - yhat, no 1 / batch",
    {"e": _by_batch("e")},
)


def _hardened(a: Array) -> Array:
    return np.eye(a.shape[-1])[a.argmax(axis=-1)]


mutant(
    "Y-HARDENED",
    "argmax of y for y",
    "A soft label is made one-hot before the innovation.",
    "e = y - yhat with y as given",
    {"e": lambda v: F["e"](v if v.observation == "gaussian" else Values(v, y=_hardened(v.y)))},
)
mutant(
    "E-PREDICTED-CLASS",
    "argmax of yhat for yhat in the innovation",
    "e = y - onehot(argmax yhat): 0 wherever the class is right, however unsure.",
    "e = y - yhat with the probabilities",
    {
        "e": lambda v: F["e"](
            v if v.observation == "gaussian" else Values(v, yhat=_hardened(v.yhat))
        )
    },
)
mutant(
    "H-NO-J",
    "softmax Jacobian left out",
    "H = Z in place of J Z: the logits' Jacobian with the probabilities' innovation (that is the "
    "model 'logits').",
    "H = (diag(yhat) - outer(yhat, yhat)) @ Z",
    {
        "H.softmax": lambda v: v.Z,
        "H.glm": lambda v: v.Z,
        "K.glm": direct_gain,
        "K.softmax": direct_gain,
    },
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
        "K.softmax": direct_gain,
        "K.glm": direct_gain,
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
    "H-J-OF-LABELS",
    "softmax Jacobian at y",
    "J is formed from y in place of yhat: of a one-hot y it is 0, and nothing is learned.",
    "J = diag(yhat) - outer(yhat, yhat)",
    {"J": lambda v: F["J"](Values(v, yhat=v.y))},
)


def _with_mean(v: Values) -> Values:
    return Values(v, H=v.H / len(v.y), Z=v.Z / len(v.y))


mutant(
    "H-MEAN",
    "H divided by the batch",
    "The derivatives of a loss averaged over the samples: rows of H are each sample's own.",
    "H stacked sample by sample, no 1 / batch",
    {
        **{f"H.{k}": _by_batch(f"H.{k}") for k in ("gaussian", "softmax", "logits", "glm")},
        "K.glm": lambda v: F["K.glm"](_with_mean(v)),
        "p.variational": lambda v: F["p.variational"](
            _with_mean(v) if v.observation == "glm" else v
        ),
    },
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
        "K.softmax": direct_gain,
        "K.glm": direct_gain,
    },
)
mutant(
    "SOFTMAX-NAIVE",
    "softmax without the maximum taken off",
    "exp(z) / sum(exp(z)): inf / inf where z is large, 0 / 0 or a few digits where it is very "
    "negative, right in between.",
    "z = z - z.max(axis=-1, keepdims=True) before exp",
    {"softmax": lambda v, z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)},
)


def _gain_by_J(v: Values) -> Array:
    """``P Z' (I + J Z P Z')^-1``: P H' S^-1 where J has an inverse, and where it has none."""
    PZ = times(v.p_pred, v.Z)
    return np.linalg.solve((np.eye(v.e.shape[0]) + v.R_used @ v.Z @ PZ).T, PZ.T).T


mutant(
    "YHAT-CLIPPED",
    "probabilities clipped",
    "yhat is kept inside [eps, 1 - eps].",
    "no clip after the softmax",
    lambda size: {
        "softmax": lambda v, z: np.clip(F["softmax"](v, z), size, 1 - size),
        "K.glm": _gain_by_J,
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
        "K.glm": direct_gain,
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
        "K.glm": direct_gain,
        "p.variational": lambda v: (
            _standard_precision(v) if v.observation == "glm" else F["p.variational"](v)
        ),
    },
)
