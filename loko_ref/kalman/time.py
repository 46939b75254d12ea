"""The time update: the prior before the next observation.

Shapes: p, p_pred (n,) or P, P_pred (n, n); q a number or (n,).
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from loko_ref.arrays import Array, namespace
from loko_ref.checks.values import (
    check_finite,
    check_floats,
    check_positive,
    check_range,
    check_shape,
)
from loko_ref.errors import InputError

__all__ = ["update", "update_unchecked"]


def update(p: Array, lam: float = 1.0, q: float | Array = 0.0) -> Array:
    """``p_pred = p / lam + q``; for a dense P, ``P / lam + diag(q)``.  [KAL-1].

    Parameters
    ----------
    p : array (n,) or (n, n)
        Posterior variances (> 0), or covariance, of the last step.
    lam : float
        Forgetting factor, 0 < lam <= 1; 1 forgets nothing (LoKO's default).
    q : float or array (n,)
        Process noise variance, >= 0; 0 is LoKO's default.

    Returns
    -------
    array
        Same shape and dtype as `p`; `p` itself is untouched.

    Examples
    --------
    >>> import numpy
    >>> update(numpy.array([0.5, 1.0]), lam=0.5, q=0.25)
    array([1.25, 2.25])
    """
    check_range("lam", lam, low=0, high=1, low_open=True)
    check_floats(p=p)
    if p.ndim == 2:
        check_shape("P", p, ("n", "n"), {"n": p.shape[0]})
        check_finite(P=p)
    else:
        check_shape("p", p, ("n",))
        check_finite(p=p)
        check_positive("p", p)
    noise: Any = q
    if hasattr(noise, "shape") and not isinstance(noise, Real):
        check_floats(p=p, q=noise)
        check_shape("q", noise, ("n",), {"n": p.shape[0]})
        check_finite(q=noise)
        if bool((noise < 0).any()):
            raise InputError("q", "a negative entry", "entries >= 0", "a sign, or a difference")
    else:
        check_range("q", q, low=0, high_open=True)
        noise = float(noise)  # a NumPy float64 would widen float32
    return update_unchecked(namespace(p), p, float(lam), noise)


def update_unchecked(xp: Any, p: Array, lam: float, q: float | Array) -> Array:
    """Compute :func:`update` of checked arguments; `xp` is the arrays' namespace."""
    if p.ndim == 2:
        q = q * xp.eye(p.shape[0], dtype=p.dtype)  # (n, n): q_j on the diagonal
    return p / lam + q
