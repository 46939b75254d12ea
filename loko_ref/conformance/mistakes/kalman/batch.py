"""Mistakes in how the samples of a batch become one observation: averaged in place of stacked.

Their outputs have shapes of their own: e (C,), H (C, n), R and S (C, C), K (n, C). Other shapes as
in ``formulas``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Formula, Values

__all__: list[str] = []

F = FORMULAS
MODELS = ("gaussian", "softmax", "logits", "glm")

Pool = Callable[[Values, Array], Array]
"""From what is stacked sample by sample to what stands for the batch."""


def _mean(v: Values, a: Array) -> Array:
    mean: Array = a.reshape(len(v.y), -1, *a.shape[1:]).mean(axis=0)
    return mean


def _repeated(v: Values, a: Array) -> Array:
    mean = _mean(v, a)
    return np.tile(mean, (len(v.y),) + (1,) * (mean.ndim - 1))


def _blocks(v: Values, R: Array) -> Array:
    """Take the blocks (samples, C, C) on R's diagonal; of an R that is one block, that one."""
    C = v.y.shape[-1]
    return np.stack([R[at : at + C, at : at + C] for at in range(0, len(R), C)])


def _mean_block(v: Values, R: Array) -> Array:
    mean: Array = _blocks(v, R).mean(axis=0)
    return mean


def _first_block(v: Values, R: Array) -> Array:
    first: Array = _blocks(v, R)[0]
    return first


def _of_a_mean(v: Values, R: Array) -> Array:
    return _mean_block(v, R) / len(R) * v.y.shape[-1]


def _as_given(v: Values, R: Array) -> Array:
    return R


def _per_sample(v: Values) -> Values:
    """Values with yhat (batch, C), whatever the batch's own is."""
    return Values(v, yhat=F["yhat"](v))


def _mean_yhat(v: Values) -> Array:
    mean: Array = F["yhat"](v).mean(axis=0)
    return mean


def _yhat_of_mean(v: Values) -> Array:
    one: Array = F["yhat"](Values(v, z=v.z.mean(axis=0, keepdims=True)))[0]
    return one


def _one(v: Values) -> Values:
    """Values of the one sample that the mean of the batch is taken for."""
    return Values(v, yhat=v.yhat[None], Z=_mean(v, v.Z))


def _pooled(
    pool: Pool = _mean,
    R: Pool = _mean_block,
    given: Pool | None = None,
    yhat: Formula | None = None,
    sample: Callable[[Values], Values] | None = None,
) -> Changes:
    """One update for a batch: e, H by `pool`, R by `R`.

    Parameters
    ----------
    pool : callable
        Of e and H.
    R, given : callable
        Of R = J, and of the R that is given.
    yhat : formula, optional
        The batch's own, where it is not each sample's.
    sample : callable, optional
        The one sample that is linearised, where it is not each by itself.
    """

    def H(name: str) -> Formula:
        def pooled(v: Values) -> Array:
            if "R" in v:
                v["R"] = (given or R)(v, v.R)
            return F[name](sample(v)) if sample else pool(v, F[name](_per_sample(v)))

        return pooled

    def e(v: Values) -> Array:
        return pool(v, (v.y - v.yhat).reshape(-1))

    def J(v: Values) -> Array:
        return F["J"](sample(v)) if sample else R(v, F["J"](_per_sample(v)))

    def contrasts(v: Values) -> Values:
        """Values by which a gain is formed without inverting J: on contrasts of the classes."""
        kind = "softmax" if v.observation == "glm" else v.observation
        rows = v.e.reshape(-1, v.y.shape[-1])  # a row for each sample that is left
        return Values(v, yhat=rows, observation=kind)

    changes: dict[str, Any] = {
        "e": e,
        **{f"H.{kind}": H(f"H.{kind}") for kind in MODELS},
        "R.glm": J,
        "K.softmax": lambda v: F["K.softmax"](contrasts(v)),
        "K.glm": lambda v: F["K.softmax"](contrasts(v)),
        "p.variational": lambda v: F["p.variational"](contrasts(v)),
        "Hw": lambda v: F["Hw"](contrasts(v)),
        "residual": lambda v: pool(v, F["residual"](v)),
        **({"yhat": yhat} if yhat else {}),
    }

    def stacked(name: str) -> Formula:
        """Of one sample there is nothing to average."""
        return lambda v: (changes if len(v.get("y", ())) > 1 else F)[name](v)

    return {name: stacked(name) for name in changes}


_LOOK = "e, H stacked sample by sample: m = batch * C rows"

mutant(
    "BATCH-AVERAGED",
    "samples averaged in place of stacked",
    "The batch's mean innovation, Jacobian and R make one observation of C outputs, S (C, C), "
    "K (n, C): what the samples say each for itself is lost.",
    _LOOK,
    _pooled(),
)
mutant(
    "BATCH-AVERAGED-R-FIRST",
    "samples averaged, R's first block kept",
    "The batch's mean innovation and Jacobian make one observation of C outputs; of the R that is "
    "given its first C rows and columns are taken.",
    _LOOK,
    _pooled(given=_first_block),
)
mutant(
    "BATCH-AVERAGED-R-MEAN",
    "samples averaged, R that of a mean",
    "The batch's mean innovation and Jacobian make one observation of C outputs, with R / batch: "
    "the noise of a mean. What the samples say each for itself is lost all the same.",
    _LOOK,
    _pooled(R=_of_a_mean),
)
mutant(
    "BATCH-AVERAGED-YHAT",
    "samples averaged, yhat too",
    "The batch's mean yhat, innovation, Jacobian and R make one observation of C outputs.",
    _LOOK,
    _pooled(yhat=_mean_yhat),
)
mutant(
    "BATCH-AVERAGED-J",
    "samples averaged, J at the mean yhat",
    "The batch's mean yhat stands for one sample: H is J at it, times the mean of Z.",
    _LOOK,
    _pooled(yhat=_mean_yhat, sample=_one),
)
mutant(
    "BATCH-AVERAGED-LOGITS",
    "outputs averaged before the observation",
    "The mean of z, and of its Jacobian Z, stands for one sample of the network.",
    _LOOK,
    _pooled(yhat=_yhat_of_mean, sample=_one),
)
mutant(
    "BATCH-REPEATED",
    "every sample the mean of the batch",
    "The batch's mean innovation and Jacobian are repeated for every sample: the shapes are "
    "right, and every sample is told what the mean is.",
    _LOOK,
    _pooled(_repeated, R=_as_given),
)
