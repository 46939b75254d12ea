"""The catalogue's entries of the filter alone, ``kalman.*``."""

from __future__ import annotations

from typing import Any

from loko_ref.conformance.catalogue.entry import (
    Operation,
    Output,
    narrowed,
    option,
    outputs_of,
    takes,
)
from loko_ref.conformance.catalogue.loko import DIAGONAL
from loko_ref.conformance.oracle import loko as oracle
from loko_ref.textbook import loko as table
from loko_ref.textbook import operations as plain

_THETA = takes("theta", "(n,)", "prior mean: the packed trainables")
_H = takes("H", "(m, n)", "the observation's linearisation at the prior theta")
_E = takes("e", "(m,)", "innovation y - yhat")
_R = takes("R", "(m, m)", "observation-noise covariance, symmetric positive definite")

_UPDATE = {
    "S": ("(m, m)", "H P H' + R"),
    "K": ("(n, m)", "P H' S^-1"),
    "theta": ("(n,)", "theta + K e"),
}


_FIRST = "; a time update that comes before the measurement"
_PREDICTED = (
    option(
        "lam", 1.0, "forgetting factor, 0 < lam <= 1" + _FIRST + ": U <- lam U, W <- sqrt(lam) W"
    ),
    option(
        "q",
        0.0,
        "process noise variance, >= 0" + _FIRST + ": P <- P + q I, exactly and at the same rank: "
        "U <- D U, W <- D W C'^-1 with D = (I + q U)^-1, C C' = I + q W' D W",
    ),
)
_BLOCKS = option(
    "blocks",
    [],
    "the block of each parameter, n numbers: parameters of one number are in one block; none: all "
    "are in one",
)


def _precision_outputs(form: str, U: str, **more: Any) -> tuple[Output, ...]:
    return outputs_of(
        table.precision_update,
        [{"lam": 1.0, "q": 0.0, **more}],
        {
            **_UPDATE,
            "S": ("(m, m)", "H P H' + R, P = (U + W W')^-1"),
            "U": (form, U),
            "WW": (
                "(n, n)",
                "W W' of the new W: sum w w' over the L longest of those columns. W is determined "
                "up to a rotation of its columns, which W W' is free of: that is judged. W (n, L) "
                "may be returned in its place, and is judged by its product",
            ),
        },
    )


_COLUMNS = "the columns w of W~ V but the L longest, W~ = [W, (R^-1/2 H)'], W~' W~ = V diag V'"

KALMAN = (
    Operation(
        name="kalman.dense_update",
        text="measurement update with a dense covariance",
        inputs=(_THETA, takes("P", "(n, n)", "prior covariance"), _H, _E, _R),
        options=(),
        outputs=outputs_of(
            table.update,
            [{"observation": "gaussian", "covariance": "dense"}],
            {**_UPDATE, "P": ("(n, n)", "P - K H P, or a form equal to it [KAL-3] [KAL-4]")},
        ),
        oracle=oracle.dense_update,
        plain=plain.dense_update,
    ),
    Operation(
        name="kalman.diagonal_update",
        text="measurement update with a diagonal covariance: LoKO's",
        inputs=(_THETA, takes("p", "(n,)", "prior variances, > 0"), _H, _E, _R),
        options=(DIAGONAL,),
        outputs=outputs_of(
            table.update,
            [
                {"observation": "gaussian", "covariance": "diagonal", "diagonal": diagonal}
                for diagonal in DIAGONAL.choices
            ],
            {
                **_UPDATE,
                "S": ("(m, m)", "H P H' + R, P = diag(p)"),
                "p": ("(n,)", "by the option diagonal"),
            },
        ),
        oracle=oracle.diagonal_update,
        plain=plain.diagonal_update,
        narrow=narrowed(table.update, observation="gaussian", covariance="diagonal"),
    ),
    Operation(
        name="kalman.time_update",
        text="forgetting and process noise",
        inputs=(
            takes("p", "(n,)", "posterior variances of the last step", "a diagonal covariance"),
            takes(
                "P",
                "(n, n)",
                "posterior covariance of the last step, in place of p",
                "a dense covariance",
                since=2,
            ),
        ),
        options=(
            option("lam", 1.0, "forgetting factor, 0 < lam <= 1"),
            option("q", 0.0, "process noise variance, >= 0"),
        ),
        outputs=outputs_of(
            table.time_update,
            [{"covariance": "diagonal"}, {"covariance": "dense"}],
            {
                "p_pred": ("(n,)", "p / lam + q (of p)"),
                "P_pred": ("(n, n)", "P / lam + q I (of P): q on the diagonal alone"),
            },
        ),
        oracle=oracle.time_update,
        plain=plain.time_update,
    ),
    Operation(
        name="kalman.lowrank_update",
        text="measurement update of a precision of a diagonal plus low rank, P^-1 = diag(U) + W W'",
        inputs=(
            _THETA,
            takes("U", "(n,)", "the prior precision's diagonal part, > 0"),
            takes("W", "(n, L)", "the prior precision's factor of low rank, L >= 0"),
            _H,
            _E,
            _R,
        ),
        options=_PREDICTED,
        outputs=_precision_outputs("(n,)", f"U + sum w o w over {_COLUMNS}"),
        oracle=oracle.lowrank_update,
        plain=plain.lowrank_update,
        factors={"W": "WW"},
    ),
    Operation(
        name="kalman.block_update",
        text="measurement update of a precision of blocks, P^-1 = U, or U + W W'",
        inputs=(
            _THETA,
            takes("U", "(n, n)", "the prior precision's blocks; 0 outside of them"),
            takes("W", "(n, L)", "the prior precision's factor", "a part of low rank"),
            _H,
            _E,
            _R,
        ),
        options=(_BLOCKS, *_PREDICTED),
        outputs=_precision_outputs(
            "(n, n)",
            f"U + the blocks of sum w w' over {_COLUMNS} (without W: the blocks of H' R^-1 H)",
            blocks=[],
        ),
        oracle=oracle.block_update,
        plain=plain.lowrank_update,
        factors={"W": "WW"},
    ),
)
"""Entries in order."""
