"""Observation models: what is observed, the innovation, and its linearisation.

Shapes: z, y, yhat (batch, C) where samples and classes matter; y, yhat, e (m,) stacked sample by
sample, m = batch * C; Z, H (m, n); J (m, m), block diagonal with one C x C block a sample.

========  ==================  ===============  =====================================================
model     yhat                H                R
========  ==================  ===============  =====================================================
gaussian  z                   Z                fixed or estimated
softmax   softmax(z)          J Z              fixed or estimated
logits    softmax(z)          Z                fixed or estimated (H is not the Jacobian of yhat)
glm       softmax(z)          J Z              J, the covariance of a one-hot y given yhat
========  ==================  ===============  =====================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import Array, asarray, epsilon, namespace
from loko_ref.arrays.special import softmax_forward
from loko_ref.checks.values import (
    check_array,
    check_choice,
    check_finite,
    check_floats,
    check_shape,
    check_some,
    check_whole,
)
from loko_ref.errors import InputError

__all__ = [
    "OBSERVATIONS",
    "Observation",
    "ObservationModel",
    "check_probabilities",
    "from_reference",
    "impossible",
    "innovation",
    "innovation_unchecked",
    "jacobian_product",
    "observe",
    "observe_unchecked",
    "one_hot",
    "predict",
    "predict_unchecked",
    "project",
    "target_rows",
]

ObservationModel: TypeAlias = Literal["gaussian", "softmax", "logits", "glm"]
OBSERVATIONS: tuple[ObservationModel, ...] = get_args(ObservationModel)


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """A linearised observation, in dataflow order.

    Attributes
    ----------
    yhat : array (m,)
        Predicted observation.
    e : array (m,)
        Innovation y - yhat.
    H : array (m, n)
        Linearisation at the prior theta.
    """

    yhat: Array
    e: Array
    H: Array


def one_hot(labels: Array, C: int, like: Array) -> Array:
    """One-hot rows (batch, C) of whole-number labels (batch,), in the library and dtype of `like`.

    Raises
    ------
    InputError
        If a label is not a whole number in [0, C).
    """
    check_array("y", labels)
    check_whole("C", C)
    check_floats(like=like)
    return _one_hot(labels, C, like)


def _one_hot(labels: Array, C: int, like: Array) -> Array:
    """Check the labels, and compute :func:`one_hot`."""
    check_shape("y", labels, ("batch",))
    if labels.dtype.kind not in "iu":
        raise InputError(
            "y",
            f"dtype {labels.dtype}",
            "integer labels (batch,) or one-hot rows (batch, C)",
            "class labels read as floats",
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.shape[0] else (0, 0)
    if low < 0 or high >= C:
        raise InputError(
            "y",
            f"label {low if low < 0 else high}",
            f"labels in [0, {C - 1}]",
            "labels counted from 1, or a model with too few outputs",
        )
    hot = labels[:, None] == namespace(labels).arange(C)[None, :]
    return asarray(hot, like).astype(like.dtype)


def target_rows(observation: ObservationModel, y: Array, batch: int, C: int, like: Array) -> Array:
    """Return an observation as rows (batch, C), checked: labels become one-hot, rows pass.

    Parameters
    ----------
    observation : {"gaussian", "softmax", "logits", "glm"}
        The model.
    y : array (batch,) or (batch, C)
        Labels (real numbers for ``gaussian``, where C is 1), or rows.
    batch, C : int
        Samples, and the network's outputs.
    like : array
        An array of the library and dtype required.

    Raises
    ------
    InputError
        If a label is out of range, a shape or dtype is another, a value is not finite, or a row is
        no distribution where one is needed.
    """
    if not hasattr(y, "ndim"):
        raise InputError("y", type(y).__name__, "an array", "a list or a scalar: wrap it")
    _check_classes(observation, C)
    if y.ndim == 1 and observation != "gaussian":
        rows = _one_hot(y, C, like)
        check_shape("y", rows, ("batch", "C"), {"batch": batch, "C": C})
        return rows
    rows = y[:, None] if y.ndim == 1 else y
    check_shape("y", rows, ("batch", "C"), {"batch": batch, "C": C})
    check_floats(z=like, y=rows)
    check_finite(y=rows)
    if observation != "gaussian":
        _check_distribution("y", rows, "targets for observation='gaussian'")
    return rows


def _check_classes(observation: ObservationModel, C: int) -> None:
    if observation != "gaussian" and C < 2:
        raise InputError(
            "z",
            "1 class",
            f"at least 2 for observation='{observation}'",
            "a binary classifier with one output: give it two, or observe it as 'gaussian'",
        )


def predict(observation: ObservationModel, z: Array) -> Array:
    """Predicted observation (batch, C) of the outputs z.  [OBS-1, OBS-2, OBS-3, OBS-4]."""
    check_choice("observation", observation, OBSERVATIONS)
    check_floats(z=z)
    return predict_unchecked(observation, z)


def predict_unchecked(observation: ObservationModel, z: Array) -> Array:
    """Compute :func:`predict` of checked outputs."""
    return z if observation == "gaussian" else softmax_forward(z)[0]


def _check_distribution(argument: str, rows: Array, foreign: str) -> None:
    """Require rows (batch, C) >= 0 that sum to 1, to rounding."""
    xp = namespace(rows)
    near = xp.abs(rows.sum(axis=1) - 1) <= 4 * rows.shape[1] * epsilon(rows)  # false for NaN
    if bool((rows < 0).any()) or not bool(near.all()):
        raise InputError(
            argument,
            "a row that is no distribution",
            "rows >= 0 that sum to 1",
            f"integer labels, logits, or {foreign}",
        )


def check_probabilities(yhat: Array, e: Array) -> None:
    """Require class probabilities yhat (batch, C) that belong to an innovation e (batch * C,)."""
    check_floats(e=e, yhat=yhat)
    check_shape("yhat", yhat, ("batch", "C"))
    check_shape("e", e, ("batch * C",), {"batch * C": yhat.shape[0] * yhat.shape[1]})
    check_finite(yhat=yhat)
    _check_distribution("yhat", yhat, "another precision's rounding")
    xp, rows = namespace(e), e.reshape(yhat.shape)
    worst = float(xp.max(xp.abs(rows.sum(axis=1)))) if yhat.shape[0] else 0.0
    if worst > 4 * yhat.shape[1] * epsilon(e) * max(1.0, float(xp.max(xp.abs(e)))):
        raise InputError(
            "e",
            f"classes that sum to {worst:.3g}",
            "an innovation y - yhat, which sums to 0 over each sample's classes",
            "a y that is no distribution, or the innovation of another model",
        )


def impossible(yhat: Array, e: Array) -> tuple[int, int] | None:
    """Return a class that was observed although its probability is exactly 0.  [OBS-7].

    There the row of ``S = H P H' + J`` is 0 and the innovation is not.

    Parameters
    ----------
    yhat : array (batch, C)
        Class probabilities.
    e : array (batch * C,)
        Innovation y - yhat.

    Returns
    -------
    (int, int) or None
        Sample and class of the first.
    """
    seen = (yhat == 0) & (e.reshape(yhat.shape) != 0)  # (batch, C)
    if not bool(seen.any()):
        return None
    sample, which = divmod(int(seen.reshape(-1).argmax()), yhat.shape[1])
    return sample, which


def from_reference(xp: Any, yhat: Array, M: Array) -> Array:
    """``M - 1 c'`` sample by sample, c the reference class's row: (batch, C, k).  [OBS-2].

    The reference class is the one of the largest yhat. J 1 = 0, so J M does not change; but where
    yhat saturates, the reference class's row no longer cancels against the mean, and 1' J M
    vanishes to rounding of J M itself.
    """
    rows = M.reshape(*yhat.shape, -1)  # (batch, C, k)
    reference = yhat.argmax(axis=1)[:, None, None]  # (batch, 1, 1)
    return rows - xp.take_along_axis(rows, reference, axis=1)


def innovation(observation: ObservationModel, y: Array, yhat: Array) -> Array:
    """``e = y - yhat``, (batch, C).  [OBS-1, OBS-2].

    Parameters
    ----------
    observation : {"gaussian", "softmax", "logits", "glm"}
        The model. In all but ``gaussian`` the rows of y and yhat sum to 1, so 1'e = 0: the
        entry of the class of the largest yhat, where ``1 - yhat`` would lose its digits when yhat
        saturates, is taken as minus the sum of the others.
    y, yhat : array (batch, C)
        Observation and its prediction.

    Returns
    -------
    array (batch, C)

    Raises
    ------
    InputError
        If a shape, a dtype, a value or the option is not as stated, or a row is no distribution
        where one is needed.
    """
    check_choice("observation", observation, OBSERVATIONS)
    check_floats(y=y, yhat=yhat)
    check_shape("y", y, ("batch", "C"))
    batch, C = y.shape
    check_shape("yhat", yhat, ("batch", "C"), {"batch": batch, "C": C})
    check_finite(y=y, yhat=yhat)
    if observation != "gaussian":
        check_some("y", y.T, "class")
        _check_distribution("y", y, "targets for observation='gaussian'")
        _check_distribution("yhat", yhat, "another precision's rounding")
    return innovation_unchecked(namespace(y), observation, y, yhat)


def innovation_unchecked(xp: Any, observation: ObservationModel, y: Array, yhat: Array) -> Array:
    """Compute :func:`innovation` of checked arrays of the namespace `xp`."""
    if observation == "gaussian":
        return y - yhat
    reference = xp.arange(yhat.shape[1])[None, :] == yhat.argmax(axis=1)[:, None]  # (batch, C)
    others = xp.where(reference, xp.zeros_like(yhat), y - yhat)
    return xp.where(reference, -others.sum(axis=1, keepdims=True), others)


def jacobian_product(xp: Any, yhat: Array, M: Array) -> Array:
    """``J M``, J = diag(yhat) - yhat yhat' sample by sample, J never formed.  [OBS-2].

    Parameters
    ----------
    xp : module
        The arrays' namespace.
    yhat : array (batch, C)
        Class probabilities.
    M : array (m, k)
        Any matrix, stacked sample by sample.
    """
    rows = from_reference(xp, yhat, M)  # (batch, C, k)
    mean = yhat[:, None, :] @ rows  # (batch, 1, k)
    return (yhat[:, :, None] * (rows - mean)).reshape(M.shape)


def project(M: Array, C: int) -> Array:
    """``(I - 1 1'/C) M`` sample by sample: take out each sample's mean over classes.  [OBS-3]."""
    rows = M.reshape(-1, C, *M.shape[1:])
    return (rows - rows.mean(axis=1, keepdims=True)).reshape(M.shape)


def observe(
    observation: ObservationModel, z: Array, Z: Array, y: Array, *, center: bool = False
) -> Observation:
    """Linearise an observation model at the prior.  [OBS-1, OBS-2, OBS-3, OBS-4].

    Parameters
    ----------
    observation : {"gaussian", "softmax", "logits", "glm"}
        The model.
    z : array (batch, C)
        Network outputs.
    Z : array (m, n)
        Their Jacobian.
    y : array (batch, C)
        Observation: real values for ``gaussian``, else one-hot rows (or rows that sum to 1).
    center : bool
        For ``logits`` only: H = (I - 1 1'/C) Z per sample. Off by default.

    Returns
    -------
    Observation
        yhat, e, H.

    Raises
    ------
    InputError
        If a shape, dtype or option is not as stated, or y is no distribution where one is needed.
    """
    check_choice("observation", observation, OBSERVATIONS)
    check_floats(z=z, Z=Z, y=y)
    check_shape("z", z, ("batch", "C"))
    check_some("z", z, "sample")
    batch, C = z.shape
    check_shape("Z", Z, ("m", "n"), {"m": batch * C})
    check_shape("y", y, ("batch", "C"), {"batch": batch, "C": C})
    check_finite(z=z, Z=Z, y=y)
    if center and observation != "logits":
        raise InputError(
            "center",
            True,
            "False unless observation='logits'",
            "in 'softmax' and 'glm' H is centred already, in 'gaussian' it has no classes",
        )
    _check_classes(observation, C)
    if observation != "gaussian":
        _check_distribution("y", y, "targets for observation='gaussian'")
    return observe_unchecked(namespace(z), observation, z, Z, y, center)


def observe_unchecked(
    xp: Any, observation: ObservationModel, z: Array, Z: Array, y: Array, center: bool
) -> Observation:
    """Compute :func:`observe` of checked arrays of the namespace `xp`."""
    yhat = predict_unchecked(observation, z)  # (batch, C)
    if observation in ("softmax", "glm"):
        H = jacobian_product(xp, yhat, Z)  # (m, n)
    else:
        H = project(Z, z.shape[1]) if center else Z
    e = innovation_unchecked(xp, observation, y, yhat)  # (batch, C)
    return Observation(yhat=yhat.reshape(-1), e=e.reshape(-1), H=H)
