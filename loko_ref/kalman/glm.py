"""The GLM's observation without its reference class: what remains is regular at any margin.

A one-hot y of C classes has C - 1 free entries, and softmax sees differences of logits only. The
reference class c of a sample is the one of the largest yhat. With it left out, and logits taken
against c's, K e needs no inverse of J, and nothing is left that is singular by construction.
[OBS-6]

All functions take the arrays' namespace `xp` and check nothing.

Shapes: yhat (batch, C); Z, M (m, k), m = batch * C; Zo, Mo (batch (C - 1), k); e (m,); eo
(batch (C - 1),); Jo, G square of size batch (C - 1), Jo one block a sample.
"""

from __future__ import annotations

from typing import Any

from loko_ref.arrays import Array, solve
from loko_ref.kalman.observation import from_reference

__all__ = ["against_reference", "gain", "information", "whiten", "without_reference"]


def _others(xp: Any, yhat: Array, rows: Array) -> Array:
    """Rows (batch, C, k) of all classes but the reference: (batch, C - 1, k)."""
    C = yhat.shape[1]
    at = (yhat.argmax(axis=1)[:, None] + xp.arange(1, C)[None, :]) % C  # (batch, C - 1)
    return xp.take_along_axis(rows, at[:, :, None], axis=1)


def without_reference(xp: Any, yhat: Array, M: Array) -> Array:
    """Rows of M (m,) or (m, k), the reference class's left out: (batch (C - 1), ...)."""
    rows = _others(xp, yhat, M.reshape(*yhat.shape, -1))  # (batch, C - 1, k)
    return rows.reshape(-1, *M.shape[1:])


def against_reference(xp: Any, yhat: Array, M: Array) -> Array:
    """``M_j - M_c`` for every class j but the reference class c: (batch (C - 1), k)."""
    return _others(xp, yhat, from_reference(xp, yhat, M)).reshape(-1, M.shape[1])


def whiten(xp: Any, yhat: Array, Mo: Array) -> Array:
    """``L' Mo`` with Jo = diag(yo) - yo yo' = L L', sample by sample.  [OBS-6].

    ``L' Mo = diag(sqrt yo)(Mo - 1 (yo' Mo) / (1 + sqrt yhat_c))``: no inverse, and no digit lost
    where yhat_c nears 1.
    """
    yo = _others(xp, yhat, yhat[:, :, None])  # (batch, C - 1, 1)
    y_c = xp.take_along_axis(yhat, yhat.argmax(axis=1)[:, None], axis=1)[:, :, None]
    rows = Mo.reshape(*yo.shape[:2], Mo.shape[1])
    mean = yo.swapaxes(1, 2) @ rows / (1 + xp.sqrt(y_c))  # (batch, 1, k)
    return (xp.sqrt(yo) * (rows - mean)).reshape(Mo.shape)


def information(xp: Any, yhat: Array, G: Array) -> Array:
    """``I + Jo G``, G = Zo P Zo' (batch (C - 1), batch (C - 1)).  [OBS-6]."""
    yo = _others(xp, yhat, yhat[:, :, None])  # (batch, C - 1, 1)
    rows = G.reshape(*yo.shape[:2], G.shape[1])
    JG = (yo * (rows - yo.swapaxes(1, 2) @ rows)).reshape(G.shape)
    return xp.eye(G.shape[0], dtype=G.dtype) + JG


def gain(xp: Any, yhat: Array, PZot: Array, G: Array) -> Array:
    """``Ko = P Zo' (I + Jo G)^-1``, G = Zo P Zo': K e = Ko eo.  [OBS-6].

    Parameters
    ----------
    xp : module
        The arrays' namespace.
    yhat : array (batch, C)
        Class probabilities.
    PZot : array (n, batch (C - 1))
        P Zo'.
    G : array (batch (C - 1), batch (C - 1))
        Zo P Zo'.

    Returns
    -------
    array (n, batch (C - 1))

    Raises
    ------
    NumericalError
        If I + Jo G is singular, which only rounding can make it.
    """
    eye = xp.eye(G.shape[0], dtype=G.dtype)
    return PZot @ solve(information(xp, yhat, G), eye, name="I + J G")
