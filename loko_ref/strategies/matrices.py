"""Strategies for vectors and matrices: entries, variances, covariances, probabilities.

Shapes: p (n,); R, P (m, m); yhat (batch, C).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from loko_ref.errors import InputError

Floats = NDArray[np.floating[Any]]


def cond_limit(m: int, dtype: str = "float64") -> float:
    """Return the largest condition number drawn at size m: ``1 / (64 m eps)``.

    Up to it an m x m matrix is positive definite after rounding, with a margin.

    Examples
    --------
    >>> f"{cond_limit(4, 'float32'):.0f}"
    '32768'
    """
    return float(1 / (64 * max(m, 1) * np.finfo(dtype).eps))


def frozen(a: NDArray[Any]) -> Any:
    """Return the array itself, read-only from now on."""
    a.flags.writeable = False
    return a


def _check_cond(cond: float) -> None:
    if not cond >= 1:
        raise InputError("cond", cond, "a number >= 1", "a reciprocal condition number")


def dtypes() -> st.SearchStrategy[str]:
    """Draw ``"float64"`` or ``"float32"``."""
    return st.sampled_from(["float64", "float32"])


def dtype_or(dtype: str | None) -> st.SearchStrategy[str]:
    """Return the given dtype, or draw one."""
    return dtypes() if dtype is None else st.just(dtype)


def _rngs() -> st.SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def arrays(
    draw: st.DrawFn,
    shape: int | tuple[int, ...],
    *,
    dtype: str = "float64",
    size: float = 4.0,
    whole: bool = False,
) -> Floats:
    """Draw an array of one shape: quarters of whole numbers, or Gaussian.

    Parameters
    ----------
    shape : int or tuple of int
        Its shape.
    dtype : str
        float64 or float32.
    size : float
        Bound on the entries' magnitude (Gaussian ones have standard deviation size / 4 and are
        clipped there).
    whole : bool
        Whether to draw whole numbers within ±2 alone.

    Examples
    --------
    >>> from hypothesis import find
    >>> float(find(arrays((2, 2)), lambda a: a.max() > 1).max())
    1.25
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    if whole:
        numbers = draw(st.lists(st.integers(-2, 2), min_size=count, max_size=count))
        return frozen(np.array(numbers, dtype=dtype).reshape(shape))
    most = int(4 * size)
    quarters = draw(st.lists(st.integers(-most, most), min_size=count, max_size=count))
    if draw(st.booleans()):  # the quarters are the seed: a failing example shrinks to quarters
        rng = np.random.default_rng([most + q for q in quarters] or 0)
        a = np.clip(rng.standard_normal(shape) * (size / 4), -size, size)
    else:
        a = np.array(quarters, dtype=float).reshape(shape) / 4
    return frozen(a.astype(dtype))


def innovations(m: int, *, dtype: str = "float64", size: float = 4.0) -> st.SearchStrategy[Floats]:
    """Draw an innovation e (m,), entries within ±size; 0 among them."""
    return arrays(m, dtype=dtype, size=size)


@st.composite
def variances(
    draw: st.DrawFn,
    n: int,
    *,
    cond: float = 1e4,
    scale: tuple[float, float] = (1e-3, 1e1),
    dtype: str = "float64",
    whole: bool = False,
) -> Floats:
    """Draw variances p (n,) > 0.

    Parameters
    ----------
    n : int
        Their number.
    cond : float
        Bound on max(p) / min(p).
    scale : (float, float)
        Interval of the largest one.
    dtype : str
        float64 or float32.
    whole : bool
        Whether to draw whole numbers from 1 to 4 alone, whatever the bounds.
    """
    _check_cond(cond)
    if whole:
        numbers = draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
        return frozen(np.array(numbers, dtype=dtype))
    top = 10 ** draw(st.floats(math.log10(scale[0]), math.log10(scale[1])))
    low = draw(st.floats(0, math.log10(min(cond, cond_limit(n, dtype)))))
    fall = np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)), dtype=float)
    p = top * 10 ** (-low * (fall - fall.min(initial=1.0)))  # the largest is `top`
    return frozen(p.astype(dtype))


@st.composite
def spd_matrices(
    draw: st.DrawFn,
    m: int,
    *,
    cond: float = 1e4,
    scale: tuple[float, float] = (1e-2, 1e1),
    dtype: str = "float64",
    diagonal: bool = False,
    whole: bool = False,
) -> Floats:
    """Draw a symmetric positive definite matrix (m, m), exactly symmetric.

    Its eigenvectors are the axes or those of a Gaussian matrix.

    Parameters
    ----------
    m : int
        Size.
    cond : float
        Bound on the condition number, up to rounding; at most ``cond_limit(m, dtype)`` is drawn.
    scale : (float, float)
        Interval of the largest eigenvalue.
    dtype : str
        float64 or float32.
    diagonal : bool
        Whether to draw diagonal matrices only.
    whole : bool
        Whether to draw I, or I + 1 1' (I + diag(1, 2, ...) if diagonal), alone.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(spd_matrices(2, scale=(1, 10)), lambda S: True)
    array([[1., 0.],
           [0., 1.]])
    """
    if whole:
        more = np.diag(np.arange(1.0, m + 1)) if diagonal else np.ones((m, m))
        return frozen((np.eye(m) + draw(st.booleans()) * more).astype(dtype))
    w = draw(variances(m, cond=min(cond, cond_limit(m, dtype)), scale=scale))
    if diagonal or not draw(st.booleans()):
        S = np.diag(w)
    else:
        Q, _ = np.linalg.qr(draw(_rngs()).standard_normal((m, m)))
        S = (Q * w) @ Q.T
        S = (S + S.T) / 2  # the same number on both sides, exactly
    return frozen(S.astype(dtype))


@st.composite
def probabilities(
    draw: st.DrawFn, batch: int, C: int, *, margin: float = 40.0, dtype: str = "float64"
) -> Floats:
    """Draw class probabilities yhat (batch, C): softmax of logits, mild to saturated.

    Rows sum to 1 to rounding. A row may be one-hot to the last bit (always possible, whatever the
    margin), or hold entries down to exp(-margin).

    Parameters
    ----------
    batch, C : int
        Samples and classes.
    margin : float
        Bound on the difference of two logits.
    dtype : str
        float64 or float32.
    """
    rows = []
    for _ in range(batch):
        kind = draw(st.sampled_from(["mild", "saturated", "one-hot"]))
        if kind == "one-hot":
            rows.append(np.eye(C)[draw(st.integers(0, C - 1))])
            continue
        spread = min(4.0, margin) if kind == "mild" else margin
        z = np.array(draw(st.lists(st.floats(0, 1), min_size=C, max_size=C))) * spread
        s = np.exp(z - z.max())
        rows.append(s / s.sum())
    return frozen(np.array(rows).reshape(batch, C).astype(dtype))
