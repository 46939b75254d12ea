"""Observation models: what is observed, the innovation, and its linearisation.

Shapes: z, y, yhat (batch, C) where samples and classes matter; y, yhat, e (m,) stacked sample by
sample, m = batch * C; Z, H (m, n); J (m, m), block diagonal with one C x C block a sample;
Q (C - 1, C), the contrast basis.

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

from loko_ref.arrays import Array, asarray, cholesky, contrast_basis, epsilon, namespace, root
from loko_ref.arrays import cho_solve as _cho_solve
from loko_ref.arrays.special import softmax_forward
from loko_ref.checks.values import (
    check_array,
    check_choice,
    check_covariance,
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
    "check_probabilities",
    "condition_on_simplex",
    "from_contrast",
    "from_reference",
    "impossible",
    "innovation",
    "jacobian_product",
    "observe",
    "one_hot",
    "predict",
    "project",
    "to_contrast",
]

OBSERVATIONS = ("gaussian", "softmax", "logits", "glm")


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
    xp = namespace(labels)
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
    hot = labels[:, None] == xp.arange(C)[None, :]
    return asarray(hot, like).astype(like.dtype)


def predict(observation: str, z: Array) -> Array:
    """Predicted observation (batch, C) of the outputs z.  [OBS-1, OBS-2, OBS-3, OBS-4]."""
    check_choice("observation", observation, OBSERVATIONS)
    check_floats(z=z)
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
    """Find a class that was observed although its probability is exactly 0.  [OBS-7].

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


def from_reference(yhat: Array, M: Array) -> Array:
    """``M - 1 c'`` sample by sample, c the likeliest class's row: (batch, C, k).  [OBS-2].

    J 1 = 0, so J M does not change; but where yhat saturates, the likeliest class's row no longer
    cancels against the mean, and 1' J M vanishes to rounding of J M itself.
    """
    xp = namespace(yhat, M)
    rows = M.reshape(*yhat.shape, -1)  # (batch, C, k)
    likeliest = yhat.argmax(axis=1)[:, None, None]  # (batch, 1, 1)
    return rows - xp.take_along_axis(rows, likeliest, axis=1)


def innovation(observation: str, y: Array, yhat: Array) -> Array:
    """``e = y - yhat``, (batch, C).  [OBS-1, OBS-2].

    Parameters
    ----------
    observation : {"gaussian", "softmax", "logits", "glm"}
        The model. In all but ``gaussian`` the rows of y and yhat sum to 1, so 1'e = 0: the
        likeliest class's entry, where ``1 - yhat`` would lose its digits when yhat saturates, is
        taken as minus the sum of the others.
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
    return _innovation(observation, y, yhat)


def _innovation(observation: str, y: Array, yhat: Array) -> Array:
    """Compute :func:`innovation` on arguments known to be good."""
    if observation == "gaussian":
        return y - yhat
    xp = namespace(y, yhat)
    likeliest = xp.arange(yhat.shape[1])[None, :] == yhat.argmax(axis=1)[:, None]  # (batch, C)
    others = xp.where(likeliest, xp.zeros_like(yhat), y - yhat)
    return xp.where(likeliest, -others.sum(axis=1, keepdims=True), others)


def jacobian_product(yhat: Array, M: Array) -> Array:
    """``J M``, J = diag(yhat) - yhat yhat' sample by sample, J never formed.  [OBS-2].

    Parameters
    ----------
    yhat : array (batch, C)
        Class probabilities.
    M : array (m, k)
        Any matrix, stacked sample by sample.
    """
    rows = from_reference(yhat, M)  # (batch, C, k)
    mean = yhat[:, None, :] @ rows  # (batch, 1, k)
    return (yhat[:, :, None] * (rows - mean)).reshape(M.shape)


def project(M: Array, C: int) -> Array:
    """``(I - 1 1'/C) M`` sample by sample: take out each sample's mean over classes.  [OBS-3]."""
    rows = M.reshape(-1, C, *M.shape[1:])
    return (rows - rows.mean(axis=1, keepdims=True)).reshape(M.shape)


def observe(observation: str, z: Array, Z: Array, y: Array, *, center: bool = False) -> Observation:
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
    if observation != "gaussian":
        if C < 2:
            raise InputError(
                "z",
                "1 class",
                f"at least 2 for observation='{observation}'",
                "a binary classifier with one output: give it two, or observe it as 'gaussian'",
            )
        _check_distribution("y", y, "targets for observation='gaussian'")
    yhat = predict(observation, z)  # (batch, C)
    if observation in ("softmax", "glm"):
        H = jacobian_product(yhat, Z)  # (m, n)
    else:
        H = project(Z, C) if center else Z
    e = _innovation(observation, y, yhat)  # (batch, C)
    return Observation(yhat=yhat.reshape(-1), e=e.reshape(-1), H=H)


def to_contrast(M: Array, C: int) -> Array:
    """``(I_batch ⊗ Q) M``: from classes (m, k) to contrasts (batch (C-1), k).  [OBS-5]."""
    Q = contrast_basis(C, M)
    rows = M.reshape(M.shape[0] // C, C, -1)  # (batch, C, k)
    return (Q @ rows).reshape(-1, *M.shape[1:])


def from_contrast(M: Array, C: int) -> Array:
    """``(I_batch ⊗ Q') M``: from contrasts (batch (C-1), k) back to classes (m, k).  [OBS-5]."""
    Q = contrast_basis(C, M)
    rows = M.reshape(M.shape[0] // (C - 1), C - 1, -1)
    return (Q.T @ rows).reshape(-1, *M.shape[1:])


def check_ones(R: Array, C: int) -> None:
    """Refuse an R that couples contrasts with the all-ones directions.  [OBS-5, NOISE-6]."""
    xp = namespace(R)
    m = R.shape[0]
    ones = R.reshape(m, m // C, C).sum(axis=2)  # (m, batch): R times each sample's ones
    cross = float(xp.max(xp.abs(to_contrast(ones, C)))) if C > 1 else 0.0
    if cross > 8 * m * C**0.5 * epsilon(R) * float(xp.max(xp.abs(R))):
        raise InputError(
            "R",
            f"|contrasts of R 1| = {cross:.3g}",
            "R 1 proportional to 1 within each sample, as R_0 = r0 I and its averages have it",
            "a general R: reduce it first with loko_ref.kalman.observation.condition_on_simplex",
        )


def condition_on_simplex(R: Array, C: int) -> Array:
    """Noise covariance of the contrasts, given that each sample's classes sum to 1.  [OBS-8].

    The Schur complement ``R_cc - R_c1 R_11^-1 R_1c`` on the contrast space, in class coordinates
    (m, m); its all-ones part is 0.

    Parameters
    ----------
    R : array (m, m)
        A general symmetric positive definite noise covariance, m = batch * C.
    C : int
        Number of classes.

    Raises
    ------
    InputError
        If R is not symmetric positive definite or m is no multiple of C.
    """
    check_floats(R=R)
    check_shape("R", R, ("m", "m"), {"m": R.shape[0]})
    m = R.shape[0]
    if C < 2 or m % C:
        raise InputError("C", C, f"a divisor of m = {m}, at least 2", "a wrong number of classes")
    check_finite(R=R)
    check_covariance("R", R)
    R_c = to_contrast(R, C)  # (contrasts, m)
    ones = R.reshape(m, m // C, C).sum(axis=2) / root(C, R)  # (m, batch): R U'
    R_cc = to_contrast(R_c.T, C)
    R_c1 = to_contrast(ones, C)  # (contrasts, batch)
    R_11 = ones.reshape(m // C, C, m // C).sum(axis=1) / root(C, R)  # (batch, batch)
    L = cholesky(R_11, "R")
    reduced = R_cc - R_c1 @ _cho_solve(L, R_c1.T)
    return from_contrast(from_contrast(reduced, C).T, C)
