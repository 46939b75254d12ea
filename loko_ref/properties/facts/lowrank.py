"""Facts of a precision of blocks plus low rank: what is kept, what is cut, and its two ends.

Shapes: theta (n,); U (n,) or (n, n); W (n, L); H (m, n); e (m,); R (m, m).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Declined, Got, Trial, Unsuitable, exact, inverse, size
from loko_ref.properties.updates import (
    BLOCK,
    DENSE,
    DIAGONAL,
    LOWRANK,
    PRECISIONS,
    low_rank,
    prior,
    square,
    updates,
)

__all__: list[str] = []

STILL = {"lam": 1.0, "q": 0.0}


def _seen(t: Trial) -> Array:
    """``H' R^-1 H`` (n, n), in rational numbers."""
    H, R = t.exact("H", "R")
    return np.asarray(H.T @ inverse(R) @ H)


def _same_block(t: Trial) -> Array:
    n = len(t.given["theta"])
    block = t.options.get("blocks") or [0] * n
    return np.equal.outer(block, block) if t.held.operation == BLOCK else np.eye(n, dtype=bool)


def _precision(t: Trial, got: Got) -> tuple[Array, Array]:
    """U + W W' of a result, in rational numbers, and its tolerance."""
    U, bound = square(exact(got["U"])), square(got.tol["U"])
    if got.has("WW"):
        return U + exact(got["WW"]), bound + got.tol["WW"]
    if "W" in t.given:
        raise Unsuitable("W did not come back")
    return U, bound


@fact(PRECISIONS, "blocks", "KAL-9 KAL-10",
      "the diagonal (the blocks) of the precision is that of P^-1 + H' R^-1 H, whatever was cut",
      updates)  # fmt: skip
def _blocks(t: Trial) -> None:
    found, bound = _precision(t, t.run())
    wanted, on = inverse(prior(t)) + _seen(t), _same_block(t)
    t.near("the precision", found[on], wanted[on], bound[on])


@fact(PRECISIONS, "nearest", "KAL-9",
      "W+ W+' has the L largest eigenvalues of W W' + H' R^-1 H, and leaves out no larger one",
      updates, "W of one column or more")  # fmt: skip
def _nearest(t: Trial) -> None:
    got, W = t.run(), t.given.get("W")
    if W is None or not W.size or not got.has("WW"):
        raise Unsuitable("no column")
    low = inverse(prior(t)) - _base(t) + _seen(t)
    M, kept = np.asarray(low, dtype=np.float64), got["WW"]
    slack = np.linalg.norm(got.tol["WW"]) + 8 * np.finfo(np.float64).eps * np.linalg.norm(M)
    n, L = W.shape
    most, own = np.linalg.eigvalsh(M), np.linalg.eigvalsh((kept + kept.T) / 2)
    cut = max(n - L, 0)
    t.near("the eigenvalues of W W'", own[cut:], most[cut:], slack)
    left = np.linalg.eigvalsh(M - (kept + kept.T) / 2)
    t.below("the largest eigenvalue cut", np.abs(left).max(), (most[cut - 1] if cut else 0) + slack)


def _base(t: Trial) -> Array:
    """U after the time update, as a matrix of rational numbers."""
    lam, q = exact([t.options.get("lam", 1.0), t.options.get("q", 0.0)])
    U = square(*t.exact("U"))
    return np.asarray(inverse(inverse(lam * U) + q * exact(np.eye(len(U)))))


@fact(PRECISIONS, "rotated", "KAL-9", "the order and the signs of W's columns change nothing",
      updates, "W beside columns of H' and one of ones")  # fmt: skip
def _rotated(t: Trial) -> None:
    n, (H,) = len(t.given["theta"]), t.wide("H")
    given = t.wide("W") if "W" in t.given else []
    W = np.concatenate([*given, H.T, np.ones((n, 1))], axis=1)
    signs = (-1.0) ** np.arange(W.shape[1])
    t.same(t.run(W=W), t.run(W=np.roll(W * signs, 1, axis=1)))


@fact(PRECISIONS, "forgets", "KAL-1 KAL-9", "lam is U multiplied by lam and W by its root", updates,
      "lam = 1/4, q = 0")  # fmt: skip
def _forgets(t: Trial) -> None:
    changes = {"U": t.wide("U")[0] / 4} | ({"W": t.wide("W")[0] / 2} if "W" in t.given else {})
    a = t.run(options={"lam": 0.25, "q": 0.0})
    t.same(a, t.run(options=STILL, **changes))


def _own(t: Trial, operation: str, options: Any = None, **inputs: Array) -> Got | None:
    """Run another update of the same implementation; None where it offers none."""
    same = dict(zip(("theta", "H", "e", "R"), t.wide("theta", "H", "e", "R"), strict=True))
    try:
        return t.run(operation, options, **same, **inputs)
    except Declined:
        return None


def _agree(t: Trial, a: Got, b: Got | None) -> None:
    if b is not None:
        t.same(a, b, ("S", "K", "theta"))


@fact(
    LOWRANK,
    "no column",
    "KAL-9 DIAG-2",
    "L = 0 is the variational diagonal: U+ = U + diag(H' R^-1 H)",
    updates,
    "lam = 1, q = 0",
)
def _no_column(t: Trial) -> None:
    n = len(t.given["theta"])
    got = t.run(options=STILL, W=np.zeros((n, 0)))
    if got.has("U"):
        t.near("U", got["U"], t.exact("U")[0] + np.diagonal(_seen(t)), got.tol["U"])
    whole = np.maximum(np.rint(t.wide("U")[0]), 1)  # 1 / p is then its own roundoff at most
    a = t.run(options=STILL, W=np.zeros((n, 0)), U=whole)
    b = _own(t, DIAGONAL, {"diagonal": "variational"}, p=1 / whole)
    _agree(t, a, b)
    if b is not None and a.has("U") and b.has("p"):
        bound = size(a["U"]) * b.tol["p"] + a.tol["U"] * (size(b["p"]) + b.tol["p"])
        t.near("U p", exact(a["U"]) * exact(b["p"]), exact(np.ones(n)), bound)


@fact(PRECISIONS, "every column", "KAL-4 KAL-9",
      "while no column but a zero one is cut it is the dense filter: W+ W+' = W W' + H' R^-1 H",
      updates, "m columns of W are 0; lam = 1, q = 0")  # fmt: skip
def _every_column(t: Trial) -> None:
    n, m = len(t.given["theta"]), len(t.given["e"])
    W = t.wide("W")[0] if "W" in t.given else np.zeros((n, 0))
    got = t.run(options=STILL, W=np.concatenate([W, np.zeros((n, m))], axis=1))
    if got.has("U"):
        t.near("U", got["U"], t.exact("U")[0], got.tol["U"])
    if got.has("WW"):
        t.near("W W'", got["WW"], low_rank(t) + _seen(t), got.tol["WW"])
    P = np.asarray(inverse(square(*t.exact("U")) + low_rank(t)), dtype=np.float64)
    if np.linalg.cond(P) < 1e3:
        _agree(t, got, _own(t, DENSE, P=(P + P.T) / 2))


@fact(BLOCK, "ends", "KAL-10 DIAG-2",
      "one block is the dense filter, U+ = U + H' R^-1 H; "
      "blocks of one are the diagonal of low rank", updates,
      "without W; lam = 1, q = 0")  # fmt: skip
def _ends(t: Trial) -> None:
    n, (U,) = len(t.given["theta"]), t.exact("U")
    whole = t.run(options={**STILL, "blocks": []}, W=None)
    if whole.has("U"):
        t.near("U", whole["U"], U + _seen(t), whole.tol["U"])
    alone = np.diag(np.diagonal(t.wide("U")[0]))
    got = t.run(options={**STILL, "blocks": list(range(n))}, W=None, U=alone)
    if got.has("U"):
        wanted = np.diag(np.diagonal(U + _seen(t)))
        t.near("U", got["U"], exact(np.asarray(wanted, dtype=object)), got.tol["U"])
    _agree(t, got, _own(t, LOWRANK, U=np.diagonal(alone), W=np.zeros((n, 0))))


@fact(BLOCK, "outside", "KAL-10",
      "U+ is 0 outside of the blocks, however the parameters are ordered", updates)  # fmt: skip
def _outside(t: Trial) -> None:
    got = t.run()
    if got.has("U"):
        off = ~_same_block(t)
        t.below("|U| outside of the blocks", size(got["U"])[off], got.tol["U"][off])
