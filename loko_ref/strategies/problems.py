"""Strategies for one measurement update: a diagonal or dense prior, a precision, ``glm``.

Shapes: theta, p (n,); P (n, n); H, Z (m, n); e (m,); R (m, m); yhat (batch, C), m = batch * C.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from hypothesis import strategies as st

from loko_ref.strategies.matrices import (
    Floats,
    arrays,
    dtype_or,
    frozen,
    probabilities,
    spd_matrices,
    variances,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Named:
    """Named arrays, the keyword arguments of an implementation."""

    def arguments(self) -> dict[str, Any]:
        """Return the arrays by name, as keyword arguments of an update."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem(_Named):
    """A problem with a prior mean."""

    theta: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalProblem(_Problem):
    """One measurement update with a diagonal prior.

    Attributes
    ----------
    theta, p : array (n,)
        Prior mean and variances.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation.
    R : array (m, m)
        Observation noise.
    """

    p: Floats
    H: Floats
    e: Floats
    R: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseProblem(_Problem):
    """One measurement update with a dense prior.

    Attributes
    ----------
    theta : array (n,)
        Prior mean.
    P : array (n, n)
        Prior covariance.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation.
    R : array (m, m)
        Observation noise.
    """

    P: Floats
    H: Floats
    e: Floats
    R: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class GlmProblem(_Problem):
    """One ``glm`` update: R is the covariance of a one-hot y given yhat.

    Attributes
    ----------
    theta, p : array (n,)
        Prior mean and variances.
    Z : array (m, n)
        Jacobian of the logits, m = batch * C.
    e : array (m,)
        Innovation y - yhat with y one-hot.
    yhat : array (batch, C)
        Class probabilities.
    """

    p: Floats
    Z: Floats
    e: Floats
    yhat: Floats


@st.composite
def diagonal_problems(
    draw: st.DrawFn,
    *,
    max_n: int = 6,
    max_m: int = 4,
    cond: float = 1e4,
    diagonal_noise: bool = False,
    dtype: str | None = None,
    whole: bool = False,
) -> DiagonalProblem:
    """Draw a diagonal measurement update.

    Parameters
    ----------
    max_n, max_m : int
        Bounds on the number of parameters and of outputs.
    cond : float
        Bound on cond(R) and on max(p) / min(p).
    diagonal_noise : bool
        Whether R is diagonal.
    dtype : str, optional
        float64 or float32; None draws it.
    whole : bool
        Whether to draw small whole numbers alone, as in :func:`arrays`, :func:`variances` and
        :func:`spd_matrices`.
    """
    dtype = draw(dtype_or(dtype))
    n, m = draw(st.integers(1, max_n)), draw(st.integers(1, max_m))
    kind: dict[str, Any] = {"dtype": dtype, "whole": whole}
    return DiagonalProblem(
        theta=draw(arrays(n, **kind)),
        p=draw(variances(n, cond=cond, **kind)),
        H=draw(arrays((m, n), **kind)),
        e=draw(arrays(m, **kind)),
        R=draw(spd_matrices(m, cond=cond, diagonal=diagonal_noise, **kind)),
    )


@st.composite
def dense_problems(
    draw: st.DrawFn,
    *,
    max_n: int = 5,
    max_m: int = 4,
    cond: float = 1e4,
    diagonal_noise: bool = False,
    dtype: str | None = None,
    whole: bool = False,
) -> DenseProblem:
    """Draw a dense measurement update.

    Parameters
    ----------
    max_n, max_m : int
        Bounds on the number of parameters and of outputs.
    cond : float
        Bound on cond(P) and on cond(R).
    diagonal_noise : bool
        Whether R is diagonal, as required by sequential scalar updates.
    dtype : str, optional
        float64 or float32; None draws it.
    whole : bool
        Whether to draw small whole numbers alone, as in :func:`arrays`, :func:`variances` and
        :func:`spd_matrices`.
    """
    dtype = draw(dtype_or(dtype))
    n, m = draw(st.integers(1, max_n)), draw(st.integers(1, max_m))
    kind: dict[str, Any] = {"dtype": dtype, "whole": whole}
    return DenseProblem(
        theta=draw(arrays(n, **kind)),
        P=draw(spd_matrices(n, cond=cond, **kind)),
        H=draw(arrays((m, n), **kind)),
        e=draw(arrays(m, **kind)),
        R=draw(spd_matrices(m, cond=cond, diagonal=diagonal_noise, **kind)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionProblem(_Problem):
    """One measurement update of a precision, ``P^-1 = diag(U) + W W'``, or U + W W' of blocks.

    Attributes
    ----------
    theta : array (n,)
        Prior mean.
    U : array (n,) or (n, n)
        Its diagonal, or its blocks.
    W : array (n, L) or None
        Its factor of low rank; None for no part of low rank, which blocks alone may have.
    H : array (m, n)
        Linearised observation.
    e : array (m,)
        Innovation.
    R : array (m, m)
        Observation noise.
    blocks : list of int or None
        The block of each parameter; None where U is a diagonal.
    """

    U: Floats
    W: Floats | None
    H: Floats
    e: Floats
    R: Floats
    blocks: list[int] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what there is by name, as keyword arguments of an update."""
        return {name: value for name, value in super().arguments().items() if value is not None}


@st.composite
def precision_problems(
    draw: st.DrawFn,
    *,
    blocks: bool = False,
    max_n: int = 5,
    max_m: int = 3,
    max_L: int = 3,
    cond: float = 1e3,
    dtype: str | None = None,
    whole: bool = False,
) -> PrecisionProblem:
    """Draw a measurement update of a precision of low rank, or of blocks.

    Parameters
    ----------
    blocks : bool
        Whether U is blocks, of any partition of the parameters.
    max_n, max_m, max_L : int
        Bounds on the number of parameters, of outputs and of columns.
    cond : float
        Bound on cond(U) and on cond(R).
    dtype : str, optional
        float64 or float32; None draws it.
    whole : bool
        Whether to draw small whole numbers alone, as in :func:`arrays`, :func:`variances` and
        :func:`spd_matrices`.
    """
    dtype = draw(dtype_or(dtype))
    n, m = draw(st.integers(1, max_n)), draw(st.integers(1, max_m))
    kind: dict[str, Any] = {"dtype": dtype, "whole": whole}
    labels = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) if blocks else None
    if labels is None:
        U = draw(variances(n, cond=cond, **kind))
    else:
        U = frozen(draw(spd_matrices(n, cond=cond, **kind)) * np.equal.outer(labels, labels))
    low = labels is None or draw(st.booleans())
    return PrecisionProblem(
        theta=draw(arrays(n, **kind)),
        U=U,
        W=draw(arrays((n, draw(st.integers(0, max_L))), **kind)) if low else None,
        H=draw(arrays((m, n), **kind)),
        e=draw(arrays(m, **kind)),
        R=draw(spd_matrices(m, cond=cond, **kind)),
        blocks=labels,
    )


@st.composite
def glm_problems(
    draw: st.DrawFn,
    *,
    max_n: int = 5,
    max_batch: int = 2,
    max_C: int = 4,
    margin: float = 40.0,
    cond: float = 1e4,
    dtype: str | None = None,
) -> GlmProblem:
    """Draw a ``glm`` measurement update, at mild and at saturated probabilities.

    Parameters
    ----------
    max_n, max_batch, max_C : int
        Bounds on parameters, samples and classes (at least 2 classes).
    margin : float
        Bound on the difference of two logits.
    cond : float
        Bound on max(p) / min(p).
    dtype : str, optional
        float64 or float32; None draws it.
    """
    dtype = draw(dtype_or(dtype))
    n, batch = draw(st.integers(1, max_n)), draw(st.integers(1, max_batch))
    C = draw(st.integers(2, max_C))
    yhat = draw(probabilities(batch, C, margin=margin, dtype=dtype))
    labels = draw(st.lists(st.integers(0, C - 1), min_size=batch, max_size=batch))
    return GlmProblem(
        theta=draw(arrays(n, dtype=dtype)),
        p=draw(variances(n, cond=cond, dtype=dtype)),
        Z=draw(arrays((batch * C, n), dtype=dtype)),
        e=frozen((np.eye(C, dtype=dtype)[labels] - yhat).reshape(-1)),
        yhat=yhat,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservationProblem(_Named):
    """The inputs of an observation model.

    Attributes
    ----------
    z : array (batch, C)
        Outputs of the network.
    Z : array (m, n)
        Their Jacobian, m = batch * C.
    y : array (batch, C)
        Real rows, one-hot rows, or probabilities (quarters).
    """

    z: Floats
    Z: Floats
    y: Floats


@st.composite
def observation_problems(
    draw: st.DrawFn,
    *,
    observation: str = "glm",
    max_n: int = 4,
    max_batch: int = 2,
    max_C: int = 4,
    margin: float = 40.0,
    dtype: str | None = None,
    whole: bool = False,
) -> ObservationProblem:
    """Draw the inputs of an observation model, from mild to saturated logits.

    Parameters
    ----------
    observation : {"glm", "softmax", "logits", "gaussian"}
        The observation model; except for ``gaussian`` there are at least 2 classes.
    max_n, max_batch, max_C : int
        Bounds on parameters, samples and outputs.
    margin : float
        Bound on the difference of two logits.
    dtype : str, optional
        float64 or float32; None draws it.
    whole : bool
        Whether to draw whole numbers within ±2, and one-hot y, alone.
    """
    dtype = draw(dtype_or(dtype))
    n, batch = draw(st.integers(1, max_n)), draw(st.integers(1, max_batch))
    C = draw(st.integers(1 if observation == "gaussian" else 2, max_C))
    Z = draw(arrays((batch * C, n), dtype=dtype, whole=whole))
    if observation == "gaussian":
        z, y = (draw(arrays((batch, C), dtype=dtype, whole=whole)) for _ in range(2))
        return ObservationProblem(z=z, Z=Z, y=y)
    spread = draw(st.sampled_from([4.0, margin]))
    z = draw(arrays((batch, C), dtype=dtype, size=min(spread, margin) / 2, whole=whole))
    votes = (
        4 if not whole and draw(st.booleans()) else 1
    )  # of four: quarters, which sum to 1 exactly
    labels = st.lists(st.integers(0, C - 1), min_size=batch * votes, max_size=batch * votes)
    y = np.eye(C)[draw(labels)].reshape(batch, votes, C).mean(axis=1)
    return ObservationProblem(z=z, Z=Z, y=frozen(y.astype(dtype)))
