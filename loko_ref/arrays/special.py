"""Softmax and log softmax over the last axis: forward and vjp side by side.

Shapes: x, y (..., d); dy, dx (k, ..., d) with a leading axis of k cotangents.
"""

from __future__ import annotations

from loko_ref.arrays.backends import Array
from loko_ref.arrays.seam import namespace, peak


def softmax_forward(x: Array) -> tuple[Array, Array]:
    """``y = exp(x - c) / sum exp(x - c)``, c = max x; the cache is y.  [LAY-7]."""
    xp = namespace(x)
    s = xp.exp(x - peak(x))
    y = s / s.sum(axis=-1, keepdims=True)
    return y, y


def _largest(x: Array) -> Array:
    """Mask of one largest entry along the last axis."""
    at = x.real.argmax(axis=-1)[..., None]
    return namespace(x).arange(x.shape[-1]) == at


def softmax_vjp(dy: Array, cache: Array) -> Array:
    """``dx = y (dy - <y, dy>)``.  [LAY-7, BALL-7].

    dy is first taken relative to its entry at the most probable class, which changes nothing (y
    sums to 1) but keeps the digits where y saturates.
    """
    y = cache
    xp = namespace(dy)
    top = xp.where(_largest(y), dy, xp.zeros_like(dy)).sum(axis=-1, keepdims=True)
    dy = dy - top
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


def log_softmax_forward(x: Array) -> tuple[Array, Array]:
    """``y = x - c - log sum exp(x - c)``, c = max x; the cache is softmax(x).  [LAY-8, BALL-7].

    The sum is 1 + rest, the largest entry's exponential taken out: log1p(rest) keeps the tail.
    """
    xp = namespace(x)
    shifted = x - peak(x)
    s = xp.exp(shifted)
    rest = xp.where(_largest(x), xp.expm1(shifted), s).sum(axis=-1, keepdims=True)
    return shifted - xp.log1p(rest), s / s.sum(axis=-1, keepdims=True)


def log_softmax_vjp(dy: Array, cache: Array) -> Array:
    """``dx = dy - y sum dy``, y = softmax(x).  [LAY-8, BALL-7].

    At the most probable class c, where dy_c (1 - y_c) would lose its digits as y_c nears 1, it is
    written ``dy_c sum_(j != c) y_j - y_c sum_(j != c) dy_j``.
    """
    y = cache
    xp = namespace(dy)
    top, zero = _largest(y), xp.zeros_like(dy)
    others = xp.where(top, zero, dy).sum(axis=-1, keepdims=True)
    unlikely = xp.where(top, xp.zeros_like(y), y).sum(axis=-1, keepdims=True)
    return xp.where(top, dy * unlikely - y * others, dy - y * dy.sum(axis=-1, keepdims=True))
