"""LTE's plain formulas, replaceable by name, and the names of what a run gives out.

Beside :mod:`loko_ref.textbook.filter`, and for the same purposes: disturbing quantities, and
exchanging one formula for a wrong one.

Shapes: W (o, i); A (r, i); B (o, r), bA (r,), bB (o,) of one head; p (n,); R (m, m); e (m,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["LTE_FORMULAS", "ORDER", "in_order", "slot_names"]

Arrays = Mapping[str, Any]

_SLOTS = ("momentum", "sum", "exp_avg", "exp_avg_sq")

ORDER = (
    *("z", "loss", "Z", "gradient"),
    *(f"{name}_step" for name in _SLOTS),
    *("theta_step", "p_step", "R_step"),
    *("W", *_SLOTS, "theta_merge", "p_merge", "merged_merge", "copies_merge"),
    *("theta", "p", "R", "merged", "copies", "seen", "z_main", "z_now"),
)
"""Outputs of ``lte.run`` in dataflow order."""


def in_order(row: Arrays) -> dict[str, Any]:
    """Sort outputs as the catalogue has them."""
    return {name: row[name] for name in ORDER if name in row}


def slot_names(o: Arrays) -> tuple[str, ...]:
    """Names of what a descent carries beside theta."""
    return {
        "sgd": ("momentum",) if o["momentum"] else (),
        "adagrad": ("sum",),
        "adamw": ("exp_avg", "exp_avg_sq"),
        "loko": (),
    }[o["optimizer"]]


def _delta(p: Arrays, scale: float) -> Any:
    """``scale B A``."""
    return scale * (p["B"] @ p["A"])


def _shift(p: Arrays, scale: float) -> Any:
    """``scale (B bA + bB)``, 0 without branch biases."""
    return scale * (p["B"] @ p["bA"] + p["bB"]) if "bB" in p else 0.0


def _wiped(slots: Any, t: int, o: Arrays) -> tuple[Any, int]:
    """Optimizer state after a merge: kept, or begun anew (what is missing is)."""
    return ([{} for _ in slots], 0) if o["optimizer_state"] == "reset" else (slots, t)


def _p_merged(p: Sequence[Any], how: str) -> list[Any]:
    """All heads' p after a merge that keeps them."""
    return [row / len(p) for row in p] if how == "shrink" else list(p)


LTE_FORMULAS: dict[str, Callable[..., Any]] = {
    "lte.scale": lambda alpha, r: alpha / r,
    "lte.chunks": lambda a, heads: np.split(a, heads),
    # what a head sees: its weight, given what it learned and what of that was merged  [LTE-3]
    "lte.seen": lambda W, now, old: W + now - old,
    # whose factors the gradients are taken at
    "lte.at": lambda p, old: p,
    # a head's cotangent, given its own mean's  [LTE-8]
    "lte.reduce": lambda dz, heads, reduction: dz / heads if reduction == "all" else dz,
    "lte.mse": lambda z, y: 2 * (z - y) / y.size,
    "lte.rate": lambda o, at: o["rates"][at - 1] if o["rates"] else o["lr"],
    # the merge  [LTE-4, LTE-5, LTE-7]
    "lte.merged": lambda W, now, old: W + sum(now) / len(now) - sum(old) / len(old),
    "lte.copied": lambda W, now: W - now,
    "lte.delta": _delta,
    "lte.shift": _shift,
    "lte.replica": lambda copies: sum(copies) / len(copies),
    # what is remembered of a merge, given what was remembered before it  [LTE-6]
    "lte.remembered": lambda p, old, reset: None if reset else p,
    "lte.zeroed": lambda a, part: np.zeros_like(a),
    "lte.redrawn": lambda A, drawn, merge, resets: drawn[merge - 1],
    "lte.due": lambda t, every: t % every == 0,
    "lte.reset_due": lambda t, merge, named: not named or t in named,
    "lte.state": _wiped,
    "lte.mhlora": lambda deltas, scaling: sum(deltas) / (len(deltas) if scaling == "mean" else 1),
    # LoKO in the heads  [LTE-10]
    "lte.filter_of": lambda head: head,
    "lte.R_of": lambda R, head: R[head],
    "lte.innovation": lambda e, heads: e,
    "lte.p_merged": _p_merged,
    "lte.p_reset": lambda p, prior, hit, how: np.where(hit, prior, p) if how == "prior" else p,
    # the networks that are evaluated: all arrays as last merged, as a merge now would have them
    "lte.main": lambda W, before, now: W,
    "lte.now": lambda W, seen, deltas: sum(seen) / len(seen),
}
"""Name -> plain formula."""
