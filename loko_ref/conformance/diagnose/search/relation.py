"""What can be said of a wrong quantity without a name for it: where it is off, and how it relates.

A plain relation between what came back and what is right (a factor, a sign, a transpose, another
order, an offset, a multiple of I, a power) is looked for; those that do not hold are ruled out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.engine import Check
from loko_ref.conformance.judge.tolerance import canonical, expected, tolerance

__all__ = ["observed"]

WIDE = 4.0
"""Tolerances within which a relation holds."""


def observed(check: Check) -> str:
    """Describe the first wrong quantity of a check that has no name.

    Parameters
    ----------
    check : Check
        Failed by a quantity.

    Returns
    -------
    str
        How many elements are off and where, the relation that holds, or those that do not.
    """
    first, case = check.divergence, check.case
    assert first is not None
    name, got = first.quantity, np.asarray(check.outputs[first.quantity], dtype=np.float64)
    bound, right = tolerance(case)[name], expected(case)[name]
    if bound is None:
        bound = np.spacing(np.max(np.abs(right), initial=1.0))
    if case.operation.stepwise:
        at = first.index[0]
        got, bound, right = got[at], np.broadcast_to(bound, right.shape)[at], right[at]
    got, right = canonical(case, name, got), canonical(case, name, right)
    bad = ~np.isfinite(got)
    if bad.any():
        return f"{name}: {_counted(int(bad.sum()), got.size)} not finite, {_place(bad)}"
    bound = np.broadcast_to(bound, got.shape)
    off = np.abs(got - right) > bound
    where = f"{name}: {_counted(int(off.sum()), got.size)} off{_comma(_place(off))}"
    held: list[str] = []
    ruled: list[str] = []
    for what, relation in _relations(got, right, WIDE * bound):
        (held if relation else ruled).append(relation or what)
    if held:
        return f"{where}; it is {held[0]}"
    return f"{where}; ruled out: {', '.join(ruled)}" if ruled else where


def _comma(text: str) -> str:
    return f", {text}" if text else ""


def _counted(some: int, size: int) -> str:
    return f"{some} of {size} {'element' if size == 1 else 'elements'}"


def _place(off: Array) -> str:
    """Name the rows, columns or part in which all that is off stands; "" where all is."""
    if off.ndim == 0 or off.all():
        return ""
    if off.ndim == 2 and off.shape[0] == off.shape[1]:
        eye = np.eye(len(off), dtype=bool)
        if not (off & ~eye).any():
            return "on the diagonal only"
        if not (off & eye).any():
            return "beside the diagonal only"
    for axis in range(off.ndim):
        rest = tuple(k for k in range(off.ndim) if k != axis)
        rows = np.flatnonzero(off.any(axis=rest))
        if len(rows) <= max(1, off.shape[axis] // 2):
            shown = ", ".join(map(str, rows[:4])) + (", ..." if len(rows) > 4 else "")
            return f"at {shown} of axis {axis} only" if off.ndim > 1 else f"at {shown} only"
    return ""


def _relations(got: Array, right: Array, slack: Array) -> Iterator[tuple[str, str]]:
    """Yield each relation, with what it comes to where it holds."""

    def near(value: Array) -> bool:
        return bool(np.all(np.abs(got - value) <= slack * np.maximum(1, np.abs(factor))))

    factor = 1.0
    yield "its sign", "right but for its sign" if near(-right) else ""
    if got.ndim >= 2 and got.shape[-1] == got.shape[-2]:
        turned = np.swapaxes(right, -1, -2)
        if not np.allclose(turned, right):
            yield "a transpose", "the transpose of what is right" if near(turned) else ""
    if got.size > 2:
        order = np.abs(np.sort(got, axis=None) - np.sort(right, axis=None))
        same = bool(np.all(order <= np.max(slack)))
        yield "another order", "right but for the order of its elements" if same else ""
    if got.size < 3:
        return
    norm = float(np.vdot(right, right))
    factor = float(np.vdot(right, got)) / norm if norm else 0.0
    yield "a factor", f"{factor:.6g} times what is right" if norm and near(factor * right) else ""
    factor = 1.0
    offset = float(np.mean(got - right))
    yield "an offset", f"what is right plus {offset:.6g}" if near(right + offset) else ""
    if got.ndim == 2 and got.shape[0] == got.shape[1] > 1:
        c = float(np.trace(got - right)) / len(got)
        held = near(right + c * np.eye(len(got)))
        yield "a multiple of I", f"what is right plus {c:.6g} I" if held else ""
    if (got != 0).all() and (right != 0).all():
        x, y = np.log(np.abs(right)).reshape(-1), np.log(np.abs(got)).reshape(-1)
        spread = x - x.mean()
        if float(spread @ spread) > 0:
            power = float(spread @ (y - y.mean())) / float(spread @ spread)
            scale = float(np.exp(y.mean() - power * x.mean()))
            value = np.sign(got) * scale * np.abs(right) ** power
            held = near(value) and abs(power - 1) > 1e-6
            yield "a power", f"{scale:.6g} |what is right|^{power:.6g}" if held else ""
