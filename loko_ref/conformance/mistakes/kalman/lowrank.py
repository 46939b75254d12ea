"""Mistakes in a precision of low rank, or of blocks: the cut, whitening, Woodbury, the time update.

Shapes as in ``formulas``.
"""

from __future__ import annotations

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS
_CUT = "keep the L columns of W~ V with the largest eigenvalues of W~' W~"
_INTO = "U = U + (gone * gone).sum(axis=1) of the columns that are cut off"
_WHITE = "Hw = solve(cholesky(R), H)"
_WOODBURY = "P = B^-1 - B^-1 W (I + W' B^-1 W)^-1 W' B^-1"


def _columns(v: Values) -> int:
    return int(v.W.shape[1])


# ----------------------------------------------------------------------------------- the cut

mutant(
    "LOWRANK-SMALLEST-KEPT",
    "the smallest columns kept",
    "Eigenvalues come in ascending order; the first L columns are the least of all.",
    _CUT,
    {
        "cut": lambda v: v.turned[:, _columns(v) :],
        "kept": lambda v: v.turned[:, : _columns(v)],
    },
)
mutant(
    "LOWRANK-CUT-LOST",
    "what is cut off is lost",
    "The columns that are dropped are not put back into U: the filter forgets what they knew.",
    _INTO,
    {
        "U.diagonal": lambda v: v.U_pred.copy(),
        "U.blocks": lambda v: v.U_pred.copy(),
    },
)
mutant(
    "LOWRANK-OLD-KEPT",
    "the old columns kept, without an eigendecomposition",
    "W stays as it is and the new observation goes into U alone.",
    "turned = W~ @ eigh(W~.T @ W~)[1], then the cut",
    {"turned": lambda v: np.roll(v.wide, -_columns(v), axis=1)},
)
mutant(
    "LOWRANK-NEW-KEPT",
    "the newest columns kept, without an eigendecomposition",
    "The last L columns of [W, Hw'] are kept, however short they are.",
    "turned = W~ @ eigh(W~.T @ W~)[1], then the cut",
    {"turned": lambda v: v.wide},
)
mutant(
    "LOWRANK-UNIT-COLUMNS",
    "columns of unit length",
    "Left singular vectors are kept without their singular values.",
    "W = W~ V, whose columns have the singular values as their lengths",
    {"kept": lambda v: F["kept"](v) / np.linalg.norm(F["kept"](v), axis=0)},
)
mutant(
    "LOWRANK-COUNTED-TWICE",
    "the whole of H' R^-1 H put into U too",
    "U grows by the diagonal of all that was seen, of which W keeps a part: that is counted twice.",
    _INTO,
    {
        "U.diagonal": lambda v: v.U_pred + (v.Hw * v.Hw).sum(axis=0),
        "U.blocks": lambda v: v.U_pred + v.Hw.T @ v.Hw * F["same_block"](v),
    },
)
mutant(
    "LOWRANK-SUM-SQUARED",
    "the sum of the columns squared",
    "(sum w)^2 in place of sum w^2: cross terms of columns are added.",
    _INTO,
    {"U.diagonal": lambda v: v.U_pred + F["cut"](v).sum(axis=1) ** 2},
)

# ------------------------------------------------------------------------- what is added

mutant(
    "LOWRANK-NOT-WHITENED",
    "H not whitened",
    "H' H is added to the precision in place of H' R^-1 H.",
    _WHITE,
    {"Hw": lambda v: v.H.copy()},
)
mutant(
    "LOWRANK-R-DIAGONAL",
    "whitened by R's diagonal",
    "Each output is divided by its own standard deviation; what they have in common is lost.",
    _WHITE,
    {"Hw": lambda v: v.H / np.sqrt(np.diag(v.R_used))[:, None]},
)
mutant(
    "LOWRANK-BY-S",
    "whitened by S",
    "H' S^-1 H is added to the precision; by the information form it is H' R^-1 H.",
    _WHITE,
    {"Hw": lambda v: np.linalg.solve(np.linalg.cholesky(v.S), v.H)},
)

# ------------------------------------------------------------------------- Woodbury, the gain

mutant(
    "LOWRANK-OF-COVARIANCE",
    "W taken for a factor of the covariance",
    "P = diag(1 / U) + W W': what is well known is taken for uncertain.",
    _WOODBURY,
    {
        "P.precision": lambda v: (
            F["P.precision"](Values(v, W_pred=0 * v.W_pred)) + v.W_pred @ v.W_pred.T
        )
    },
)
mutant(
    "LOWRANK-DIAGONAL-GAIN",
    "S and K without the low rank",
    "P = B^-1 in S and K: the correlations in W are kept and never used.",
    _WOODBURY,
    {"P.precision": lambda v: F["P.precision"](Values(v, W_pred=0 * v.W_pred))},
)


def _without_identity(v: Values) -> Array:
    inverse = F["P.precision"](Values(v, W_pred=0 * v.W_pred))
    BW = inverse @ v.W_pred
    found: Array = inverse - BW @ np.linalg.solve(v.W_pred.T @ BW, BW.T)
    return found


mutant(
    "LOWRANK-CAPACITANCE",
    "I left out of I + W' B^-1 W",
    "Woodbury's inner matrix without the identity: P is 0 along W.",
    _WOODBURY,
    {"P.precision": _without_identity},
)

# --------------------------------------------------------------------------- time update

mutant(
    "LOWRANK-LAM-NO-ROOT",
    "W multiplied by lam",
    "W W' then gets lam^2: the factor takes the root of lam.",
    "W = sqrt(lam) * W",
    {"W_pred": lambda v: np.sqrt(v.lam) * F["W_pred"](v)},
)
mutant(
    "LOWRANK-LAM-U-ALONE",
    "W not forgotten",
    "U is multiplied by lam and W stays: what W knows is kept for ever.",
    "U = lam * U and W = sqrt(lam) * W",
    {"W_pred": lambda v: F["W_pred"](Values(v, lam=1.0, U=v.lam * v.U))},
)
mutant(
    "LOWRANK-Q-U-ALONE",
    "process noise in U alone",
    "W stays as it is: its directions are not made less certain.",
    "D = 1 / (1 + q U);  W = D W C'^-1,  C C' = I + q W' D W",
    {"W_pred": lambda v: np.sqrt(v.lam) * v.W},
)
mutant(
    "LOWRANK-Q-ADDED",
    "q added to the precision",
    "U + q: process noise makes theta less certain, and adds to the covariance.",
    "U = U / (1 + q * U)",
    {"U_pred": lambda v: v.lam * v.U + v.q * (1 if v.U.ndim == 1 else np.eye(len(v.U)))},
)

# ---------------------------------------------------------------------------------- blocks


def _information(v: Values) -> Array:
    gone: Array = F["cut"](v)
    return gone @ gone.T


mutant(
    "BLOCKS-DIAGONAL-ALONE",
    "only the diagonal of a block updated",
    "What is added to a block is cut down to its diagonal: no correlation within it is learnt.",
    "U = U + gone @ gone.T on the blocks",
    {"U.blocks": lambda v: v.U_pred + np.diag(np.diag(_information(v)))},
)
mutant(
    "BLOCKS-WHOLE",
    "what is outside of the blocks kept",
    "The whole of H' R^-1 H is added: that is the dense filter, not the one of blocks.",
    "zero outside of the blocks",
    {"U.blocks": lambda v: v.U_pred + _information(v)},
)
mutant(
    "BLOCKS-COVARIANCES",
    "blocks of the covariance in place of the precision's",
    "The blocks of the dense posterior P are inverted; the blocks of its inverse are kept.",
    "U = U + gone @ gone.T on the blocks",
    {
        "U.blocks": lambda v: np.linalg.inv(
            np.linalg.inv(v.U_pred + _information(v)) * F["same_block"](v)
        )
    },
)


def _neighbours(v: Values) -> Array:
    block = np.array(v.blocks or np.zeros(len(v.U)))
    return np.equal.outer(np.sort(block), np.sort(block))


mutant(
    "BLOCKS-NEIGHBOURS",
    "blocks of neighbours",
    "Blocks are cut one after the other from theta, where a block's parameters stand apart: the "
    "transposed factor.",
    "parameters of one number are in one block, wherever they stand",
    {"U.blocks": lambda v: v.U_pred + _information(v) * _neighbours(v)},
)
mutant(
    "BLOCKS-CUT-DIAGONAL",
    "what is cut off put on the diagonal alone",
    "The columns that are dropped go into the diagonal of the blocks, as where B is a diagonal.",
    "U = U + gone @ gone.T on the blocks",
    {
        "U.blocks": lambda v: (
            v.U_pred + np.diag(np.diag(_information(v))) if _columns(v) else F["U.blocks"](v)
        )
    },
)
mutant(
    "BLOCKS-Q-DIAGONAL",
    "process noise by the diagonal of a block",
    "B / (1 + q diag(B)), entry by entry, in place of (I + q B)^-1 B.",
    "U = solve(I + q U, U)",
    {
        "U_pred": lambda v: (
            F["U_pred"](v) if v.U.ndim == 1 else v.lam * v.U / (1 + v.q * v.lam * np.diag(v.U))
        )
    },
)


def _each(v: Values) -> Array:
    """Return K (n, m) with an S of each block's own."""
    found = np.zeros_like(v.K if "K" in v else v.H.T)
    same = F["same_block"](v) if "blocks" in v else np.eye(len(v.U), dtype=bool)
    for row in np.unique(same, axis=0):
        P, H = v.p_pred[np.ix_(row, row)], v.H[:, row]
        found[row] = np.linalg.solve(H @ P @ H.T + v.R_used, H @ P).T
    return found


mutant(
    "BLOCKS-S-OF-EACH",
    "an S of its own for every block",
    "Each block is filtered alone, with S from its own columns of H. All blocks explain the same "
    "innovation: S sums over all of theta.",
    "S = H @ P @ H.T + R, H over all of theta",
    {"K": lambda v: _each(v) if "blocks" in v else F["K"](v)},
)
