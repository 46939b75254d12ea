"""A walk's steps as the page carries them: numbers, and what each is called and made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from loko_ref.explain.equations import options
from loko_ref.explain.sources import Source
from loko_ref.explain.steps import Numbers, Quantity, Step
from loko_ref.explain.walk.cells import cells, largest
from loko_ref.textbook.loko import dataflow
from loko_ref.textbook.quantities import origins

__all__ = ["Pool", "walk"]

VARIANCES = ("p_pred", "p_post")

ROUNDED = 6
"""Digits of what is not one of the numbers of the step: curves, activations."""


class Pool:
    """Arrays of a page, each carried once: a step's prior is the posterior before it."""

    def __init__(self) -> None:
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


def _lines(step: Step, source: Source) -> list[dict[str, Any]]:
    """List what each quantity is, what it is made of and where it goes next."""
    flow = dataflow(options(source.learner))
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
    value = next(q.value for q in step.quantities if q.key == "p_post")
    if value.shape[0] != 2:
        return None
    matrix = np.diag(value) if value.ndim == 1 else value
    return [[float(a) for a in row] for row in matrix]


def _drawn(q: Quantity) -> Numbers:
    """Return a quantity as it is drawn: the entries of theta from left to right."""
    return q.value.T if q.axes == "nm" else q.value


def _moved(step: Step, source: Source, pool: Pool) -> list[dict[str, Any]]:
    """List each factor with the move K e of its entries, and the share of p that is left."""
    by = {q.key: q.value for q in step.quantities}
    move = by["theta_post"] - by["theta"]
    p, p_post = (v if v.ndim == 1 else np.diagonal(v) for v in (by["p_pred"], by["p_post"]))
    found, at = [], 0
    for name in source.model.trainable:
        shape = source.model.weights[name].shape
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


def _layers(step: Step, source: Source, pool: Pool) -> list[dict[str, Any]]:
    by = {q.key: q.value for q in step.quantities}
    x = by["x"][0]
    wide = source.image[2] if source.image and source.image[0] == 1 else None
    found = [{"name": "x", "value": pool.add(x, wide=wide)}]
    for name, value in step.layers:
        value = value if value.ndim < 3 else value.reshape(len(value), -1)
        width = 8 if value.ndim == 1 and 16 < value.size <= 128 else None
        found.append({"name": name, "value": pool.add(value, wide=width)})
    return found


def walk(name: str, source: Source, steps: Iterable[Step], pool: Pool) -> dict[str, Any]:
    """Return the steps of one filter as the page carries them.

    Parameters
    ----------
    name : str
        Of the filter.
    source : Source
        What was stepped through.
    steps : iterable of Step
        In order, without a gap.
    pool : Pool
        Takes the arrays.
    """
    carried: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    right, seen = 0.0, 0
    curves: dict[str, list[float]] = {}

    def point(label: str, value: float) -> None:
        curves.setdefault(label, []).append(float(f"{value:.{ROUNDED}g}"))

    for step in steps:
        by = {q.key: q for q in step.quantities}
        if step.number == 0 or len(carried) < 2:
            lines = _lines(step, source)
            first = first or lines
        seen += len(step.z_post)
        point("loss of the batch before the step", step.loss)
        point("loss of the batch after the step", step.loss_post)
        if not source.regression:
            z = by["z"].value
            true = by["y"].value.reshape(z.shape).argmax(axis=1)
            right += float((z.argmax(axis=1) == true).sum())
            point("accuracy so far, each sample before it was learned", right / seen)
        if source.score is not None:
            what = "held-out accuracy" if not source.regression else "held-out error (RMSE)"
            what = "error of the weight, |W + B A - 2|" if source.name == "tiny" else what
            point(f"{what} after the step", source.score(step.state.theta, step.number))
        carried.append(
            {
                "number": step.number,
                "title": step.title,
                "outcome": step.outcome,
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
                "z_post": pool.add(step.z_post),
                "layers": _layers(step, source, pool),
                "moved": _moved(step, source, pool),
                "cov": _covariance(step),
            }
        )
    return {"name": name, "first": first, "lines": lines, "steps": carried, "curves": curves}
