"""A walk's steps as the page carries them: numbers, and what each is called and made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import InputError
from loko_ref.explain.quantities import Frame, Numbers, Quantity
from loko_ref.explain.steps import Step
from loko_ref.explain.walk.cells import cells, largest
from loko_ref.explain.walk.page import packed
from loko_ref.textbook.loko import dataflow
from loko_ref.textbook.quantities import origins

__all__ = ["Pool", "lines", "too_long", "walk"]

VARIANCES = ("p_pred", "p_post")

ROUNDED = 6
"""Digits of what is not one of the numbers of the step: curves, activations."""


CURVES = 250
"""Bytes that a step takes outside itself: a point of each curve."""


class Pool:
    """Arrays of a page, each carried once: a step's prior is the posterior before it.

    Parameters
    ----------
    left : int
        Bytes that arrays and steps may take.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.taken: list[int] = []
        self.items: list[dict[str, Any]] = []
        self._known: dict[bytes, int] = {}

    def add(self, value: Numbers, **layout: Any) -> int:
        """Return the place of an array among the items."""
        value = np.ascontiguousarray(value, float)
        key = value.tobytes() + repr((value.shape, layout)).encode()
        if key not in self._known:
            self._known[key] = len(self.items)
            self.items.append(cells(value, **layout))
        return self._known[key]

    def fits(self, entry: object, before: int) -> bool:
        """Return whether there is space for a step and the items from `before` on; take it."""
        taken = len(packed([entry, *self.items[before:]]).encode()) + CURVES
        if taken > self.left:
            return False
        self.left -= taken
        self.taken.append(taken)
        return True


def _line(q: Quantity, parents: Sequence[str], children: Sequence[str]) -> dict[str, Any]:
    return {
        "key": q.key,
        "name": q.name,
        "equation": q.equation,
        "meaning": q.meaning,
        "labels": q.labels,
        "axes": q.axes,
        "from": parents,
        "to": children,
    }


def too_long(asked: object, fits: int) -> InputError:
    """Return the error of a walk that a page cannot hold, by the number of steps that it can."""
    required = f"at most {fits}: as many as a page of 1 MB holds"
    cause = "a long walk; --skip N begins later, without --html there is no limit"
    return InputError("steps", asked, required, cause)


def lines(step: Step, frame: Frame) -> list[dict[str, Any]]:
    """List what each quantity is, what it is made of and where it goes next."""
    flow = dataflow(frame.options)
    shown = {q.key for q in step.quantities}
    parents = {q.name: [k for k in origins(q.name, flow) if k in shown] for q in flow}
    if "theta" in shown:
        parents |= {"z": ["theta", "x"], "Z": ["theta", "x"]}
    return [
        _line(
            q,
            parents.get(q.key, []),
            [k for k, of in parents.items() if q.key in of and k in shown],
        )
        for q in step.quantities
    ]


def _covariance(step: Step) -> list[list[float]] | None:
    """Return the posterior covariance of two parameters."""
    value = next((q.value for q in step.quantities if q.key == "p_post"), None)
    if value is None or value.shape[0] != 2:
        return None
    matrix = np.diag(value) if value.ndim == 1 else value
    return [[float(a) for a in row] for row in matrix]


def _drawn(q: Quantity) -> Numbers:
    """Return a quantity as it is drawn: the entries of theta from left to right."""
    return q.value.T if q.axes == "nm" else q.value


def _moved(step: Step, frame: Frame, pool: Pool) -> list[dict[str, Any]]:
    """List each factor with the move K e of its entries, and the share of p that is left."""
    by = {q.key: q.value for q in step.quantities}
    if not {"theta_post", "p_post", "p_pred"} <= by.keys():
        return []  # a recording's last step
    move = by["theta_post"] - by["theta"]
    p, p_post = (v if v.ndim == 1 else np.diagonal(v) for v in (by["p_pred"], by["p_post"]))
    found, at = [], 0
    for name, shape in frame.parts:
        size = math.prod(shape)
        part = move[at : at + size]
        whole = part.reshape(shape)
        turned = whole.ndim == 2 and shape[0] > shape[1]
        found.append(
            {
                "name": name,
                "shape": shape,
                "move": pool.add(whole.T if turned else whole),
                "turned": turned,
                "norm": float(np.linalg.norm(part)),
                "left": float((p_post[at : at + size] / p[at : at + size]).min()),
            }
        )
        at += size
    return found


def _layers(step: Step, frame: Frame, pool: Pool) -> list[dict[str, Any]]:
    if not step.layers:
        return []
    x = next(q.value for q in step.quantities if q.key == "x")[0]
    wide = frame.image[2] if frame.image and frame.image[0] == 1 else None
    found = [{"name": "x", "value": pool.add(x, wide=wide)}]
    for name, value in step.layers:
        value = value if value.ndim < 3 else value.reshape(len(value), -1)
        width = 8 if value.ndim == 1 and 16 < value.size <= 128 else None
        found.append({"name": name, "value": pool.add(value, wide=width)})
    return found


def _curves(
    steps: Sequence[Step], frame: Frame, score: Callable[[Array, int], float] | None
) -> dict[str, list[float]]:
    """Return what changes along the steps: losses, accuracies, the size of the innovation."""
    curves: dict[str, list[float]] = {}
    right, seen = 0.0, 0

    def point(label: str, value: float | None) -> None:
        if value is not None:
            curves.setdefault(label, []).append(float(f"{value:.{ROUNDED}g}"))

    what = "held-out error (RMSE)" if frame.regression else "held-out accuracy"
    what = "error of the weight, |W + B A - 2|" if frame.name == "tiny" else what
    for step in steps:
        by = {q.key: q.value for q in step.quantities}
        point("loss of the batch before the step", step.loss)
        point("loss of the batch after the step", step.loss_post)
        if not frame.regression and {"z", "y"} <= by.keys():
            z = by["z"]
            seen += len(z)
            right += float((z.argmax(axis=1) == by["y"].reshape(z.shape).argmax(axis=1)).sum())
            point("accuracy so far, each sample before it was learned", right / seen)
        if score is not None:
            point(f"{what} after the step", score(by["theta_post"], step.number))
        if step.loss is None and "e" in by:
            point("length of the innovation", float(np.linalg.norm(by["e"])))
    return {label: values for label, values in curves.items() if len(values) == len(steps)}


def walk(
    name: str,
    frame: Frame,
    steps: Iterable[Step],
    pool: Pool,
    score: Callable[[Array, int], float] | None = None,
    *,
    asked: int | None = None,
) -> dict[str, Any]:
    """Return the steps of one filter as the page carries them.

    Parameters
    ----------
    name : str
        Of the filter.
    frame : Frame
        What was stepped through.
    steps : iterable of Step
        In order.
    pool : Pool
        Takes the arrays.
    score : callable, optional
        theta, step -> a number whose curve is drawn.
    asked : int, optional
        Number of steps that were asked for; where none, those that fit are taken.

    Raises
    ------
    InputError
        If the page cannot hold as many steps as were asked for, or the first one.
    """
    kept: list[Step] = []
    carried: list[dict[str, Any]] = []
    for step in steps:
        by = {q.key: q for q in step.quantities}
        before = len(pool.items)
        carried.append(
            {
                "number": step.number,
                "title": step.title,
                "outcome": step.outcome,
                "wrong": step.wrong,
                "values": {key: pool.add(_drawn(q)) for key, q in by.items()},
                "top": {
                    # of the variances the smallest: what is known best
                    key: largest(q.value, least=key in VARIANCES and q.value.ndim == 1)
                    for key, q in by.items()
                },
                "stats": {
                    key: [float(f(q.value)) for f in (np.min, np.max, np.mean)]
                    for key, q in by.items()
                },
                "off": {key: q.residual for key, q in by.items() if q.residual is not None},
                "z_post": None if step.z_post is None else pool.add(step.z_post),
                "layers": _layers(step, frame, pool),
                "moved": _moved(step, frame, pool),
                "cov": _covariance(step),
            }
        )
        if not pool.fits(carried[-1], before):
            del carried[-1], pool.items[before:]
            if asked is not None or not carried:
                raise too_long(asked or "one", len(carried))
            break
        kept.append(step)
    described = [lines(step, frame) for step in kept]
    sorts: list[list[dict[str, Any]]] = []
    for line, one in zip(described, carried, strict=True):
        if line not in sorts:
            sorts.append(line)
        one["lines"] = sorts.index(line)
    return {
        "name": name,
        "observation": frame.options["observation"],
        "outputs": frame.outputs,
        "params": [[part, shape] for part, shape in frame.parts],
        "lines": sorts,
        "steps": carried,
        "curves": _curves(kept, frame, score),
    }
