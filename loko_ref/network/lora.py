"""LoRA factors: their initialization, what they add to a weight, and how they are merged.

Shapes: W (o, i); A (r, i); B (o, r); bA (r,); bB (o,); delta (o, i). scale = alpha / r.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from loko_ref.arrays import Array, scalar
from loko_ref.checks.signatures import takes
from loko_ref.checks.values import (
    check_choice,
    check_floats,
    check_format,
    check_range,
    check_shape,
    check_whole,
)
from loko_ref.errors import InputError

__all__ = [
    "FACTORS",
    "INITS",
    "Init",
    "delta",
    "delta_bias",
    "init_factors",
    "merge",
    "ratio",
    "scale",
    "unmerge",
]

FACTORS = ("A", "B", "bA", "bB")
"""Names of a site's factors, in packing order.  [LORA-4]"""

Init: TypeAlias = Literal["kaiming", "gaussian", "orthogonal"]
"""Initialization of A: see :func:`init_factors`."""

INITS: tuple[Init, ...] = get_args(Init)


def scale(alpha: float, r: int, like: Array | None = None) -> Any:
    """``alpha / r``.  [LORA-2].

    Parameters
    ----------
    alpha : float
        LoRA's alpha, finite.
    r : int
        Rank, at least 1.
    like : array, optional
        What it will multiply: beside balls the quotient is enclosed, not rounded.  [BALL-2]
    """
    check_range("alpha", alpha, low=-math.inf, high=math.inf, low_open=True, high_open=True)
    check_range("r", r, low=1)
    return ratio(alpha, r, like)


def ratio(alpha: float, r: int, like: Array | None = None) -> Any:
    """:func:`scale` of values that were checked before.  [LORA-2]."""
    alpha = float(alpha)  # a NumPy float64 would widen float32
    return alpha / int(r) if like is None else scalar(alpha, like) / int(r)


@takes(rng=np.random.Generator)
def init_factors(
    rng: np.random.Generator,
    i: int,
    o: int,
    r: int,
    *,
    init: Init = "kaiming",
    bias: bool = False,
    dtype: str | np.dtype[np.floating] = "float64",
) -> dict[str, np.ndarray]:
    """Draw A, set B = 0, so that the branch adds nothing at first.  [LORA-1].

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draw; numbers are drawn on the host in float64, then cast.
    i, o, r : int
        Input width, output width, rank, each at least 1; r may exceed either width, but not i with
        ``orthogonal``, whose rows then cannot be orthogonal.
    init : {"kaiming", "gaussian", "orthogonal"}
        Initialization of A: uniform on ±1/sqrt(i) (Kaiming with a = sqrt 5, PEFT's default);
        normal with standard deviation 1/r (PEFT's "gaussian"); semi-orthogonal rows times
        sqrt(i / r), so that A A' = (i / r) I (LTE).
    bias : bool
        Whether the branch has biases bA, bB, both 0.
    dtype : dtype
        float64 or float32.

    Returns
    -------
    dict
        ``A`` (r, i), ``B`` (o, r) and, with `bias`, ``bA`` (r,), ``bB`` (o,).
    """
    check_choice("init", init, INITS)
    check_format("dtype", dtype)
    sizes: dict[str, Any] = {"i": i, "o": o, "r": r}
    for name, value in sizes.items():
        check_whole(name, int(value) if isinstance(value, np.integer) else value)
    if init == "orthogonal" and r > i:
        raise InputError(
            "r",
            r,
            f"at most i = {i} with init 'orthogonal'",
            f"a rank larger than the input's width: {r} rows of {i} numbers cannot be orthogonal",
        )
    if init == "kaiming":
        A = rng.uniform(-1.0, 1.0, size=(r, i)) / math.sqrt(i)
    elif init == "gaussian":
        A = rng.standard_normal((r, i)) / r
    else:
        Q, T = np.linalg.qr(rng.standard_normal((i, r)))  # (i, r), (r, r)
        A = (Q * np.sign(np.diag(T))).T * math.sqrt(i / r)
    factors = {"A": A.astype(dtype), "B": np.zeros((o, r), dtype)}
    if bias:
        factors |= {"bA": np.zeros(r, dtype), "bB": np.zeros(o, dtype)}
    return factors


def _check_factors(A: Array, B: Array, **weight: Array) -> int:
    """Check A and B, and a weight W beside them; the rank."""
    check_floats(A=A, B=B, **weight)
    check_shape("A", A, ("r", "i"))
    r, i = A.shape
    check_shape("B", B, ("o", "r"), {"r": r})
    if r < 1:
        raise InputError("A", f"shape {tuple(A.shape)}", "at least one row", "a branch of rank 0")
    for name, W in weight.items():
        check_shape(name, W, ("o", "i"), {"o": B.shape[0], "i": i})
    return r


def delta(A: Array, B: Array, alpha: float) -> Array:
    """Return what it adds to the weight: ``(alpha / r) B A``, (o, i).  [LORA-2]."""
    r = _check_factors(A, B)
    return scale(alpha, r, A) * (B @ A)


def delta_bias(B: Array, bA: Array, bB: Array, alpha: float) -> Array:
    """Return what it adds to the bias: ``(alpha / r)(B bA + bB)``, (o,).  [LAY-3, LORA-2]."""
    check_floats(B=B, bA=bA, bB=bB)
    check_shape("B", B, ("o", "r"))
    o, r = B.shape
    check_shape("bA", bA, ("r",), {"r": r})
    check_shape("bB", bB, ("o",), {"o": o})
    return scale(alpha, r, B) * (B @ bA + bB)


def merge(W: Array, A: Array, B: Array, alpha: float) -> Array:
    """``W + (alpha / r) B A``, a new array.  [LORA-3]."""
    r = _check_factors(A, B, W=W)
    return W + scale(alpha, r, A) * (B @ A)


def unmerge(W: Array, A: Array, B: Array, alpha: float) -> Array:
    """``W - (alpha / r) B A``: undoes :func:`merge` up to rounding.  [LORA-3]."""
    r = _check_factors(A, B, W=W)
    return W - scale(alpha, r, A) * (B @ A)
