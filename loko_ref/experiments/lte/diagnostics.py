"""What a run has learned, in numbers: rank and spectrum of the update, angles between the heads.

Shapes: W, W_0 (o, i); A (heads, r, i); s (min(o, i),).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from loko_ref.arrays import Array, to_host
from loko_ref.lte.config import LteConfig
from loko_ref.lte.nested import joint_network
from loko_ref.lte.state import LteState, heads_of
from loko_ref.network.model import Model, merge_lora


def effective_weights(config: LteConfig, state: LteState) -> dict[str, Array]:
    """Every W and b of the one network that a state stands for.  [LTE-2, LTE-5].

    LTE: the merged weights. mhlora: W plus the (mean or sum of the) heads' deltas.
    """
    if config.mode == "lte":
        return dict(state.weights)
    spec, weights = joint_network(config, heads_of(config, state))
    return dict(merge_lora(Model(spec=spec, weights=weights)).weights)


def update_spectrum(W: Array, W_0: Array) -> NDArray[np.float64]:
    """Singular values of W - W_0, descending, in float64.

    Examples
    --------
    >>> update_spectrum(np.diag([3.0, 1.0]), np.diag([1.0, 1.0]))
    array([2., 0.])
    """
    difference = to_host(W).astype(np.float64) - to_host(W_0).astype(np.float64)
    s: NDArray[Any] = np.linalg.svd(difference, compute_uv=False)
    return s


def numerical_rank(W: Array, W_0: Array) -> int:
    """Count the singular values of W - W_0 above what rounding of W alone can make.  [LTE-5].

    Each entry of a stored W is off by up to u |W|; such an error has spectral norm of at most
    ``u |W|_F``. The threshold is four of them: W, W_0, the product, the sum.
    """
    u = float(np.finfo(W.dtype).eps) / 2
    size = float(np.linalg.norm(to_host(W))) + float(np.linalg.norm(to_host(W_0)))
    return int((update_spectrum(W, W_0) > 4 * u * size).sum())


def effective_rank(s: NDArray[np.float64]) -> float:
    """``exp(-sum q log q)`` with ``q = s / sum s`` (Roy and Vetterli's); 0 for no update.

    Examples
    --------
    >>> round(effective_rank(np.array([1.0, 1.0, 0.0])), 12)
    2.0
    """
    total = float(s.sum())
    if total == 0:
        return 0.0
    q = s[s > 0] / total
    return math.exp(-float((q * np.log(q)).sum()))


def principal_angles(A: Array) -> NDArray[np.float64]:
    """Angles between the row spaces of each pair of heads' A, in degrees, descending.

    Parameters
    ----------
    A : array (heads, r, i)
        The heads' A.

    Returns
    -------
    array (pairs, r)
        Pairs (0, 1), (0, 2), ..., (1, 2), ... in order; 90 is orthogonal.
    """
    Q, _ = np.linalg.qr(np.swapaxes(to_host(A).astype(np.float64), 1, 2))  # (heads, i, r)
    # of Q, whose rank is r whatever that of A: every pair has r angles
    found = [scipy.linalg.subspace_angles(a, b) for a, b in itertools.combinations(Q, 2)]
    return np.degrees(np.array(found).reshape(len(found), Q.shape[2]))
