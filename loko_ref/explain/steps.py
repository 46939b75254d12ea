"""LoKO's step explained: every quantity in dataflow order, with equation, label and numbers.

Shapes: as in :mod:`loko_ref.loko`. The numbers are those of :func:`loko_ref.loko.step`; each is
shown with its difference from the plain formula of the table of quantities.

A step of a real network has thousands of entries. A fixed few are shown from the prior to the
posterior: those of theta that this step moves most, and the true and the most probable classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loko_ref import loko
from loko_ref.arrays import to_host
from loko_ref.arrays.special import softmax_forward
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.explain.equations import Line, equations, options
from loko_ref.explain.sources import Source, from_config
from loko_ref.kalman.observation import one_hot
from loko_ref.network.jacobian import jacobian
from loko_ref.network.layers import Context, run
from loko_ref.network.model import Model, forward, unpack
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import dataflow
from loko_ref.textbook.quantities import Lazy, identity, missing

Numbers = NDArray[np.floating]

CHARACTERS = " .:-=+*#%@"
"""Characters of increasing density, for a picture of an image."""

SEARCHED = 100
"""Steps among which the first misclassified sample is sought."""

CONFIDENT = 0.99
SATURATED = {
    "softmax": "The prediction was confident and wrong: J and so H are almost 0, and the filter "
    "hardly moves unless R has shrunk as far.  [OBS-7]",
    "glm": "The prediction was confident and wrong: J is almost 0, so p hardly shrinks, and theta "
    "moves by a full gradient step with p as its learning rates.  [OBS-7]",
}
"""Remark on a confident error, by observation model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Excerpt:
    """A few entries of an array, with names for their rows and columns.

    Attributes
    ----------
    rows, columns : list of str
        Names; a vector has one row named ``""``.
    values : array (len(rows), len(columns))
        The entries.
    """

    rows: list[str]
    columns: list[str]
    values: Numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity(Line):
    """One line of the dataflow with its numbers.

    Attributes
    ----------
    value : array
        All entries.
    excerpt : Excerpt
        The entries shown.
    residual : float or None
        Largest difference from the plain formula, relative to the largest entry; None for inputs
        and for results of the network.
    picture : tuple of str
        Lines of text, if the value is an image.
    """

    value: Numbers
    excerpt: Excerpt
    residual: float | None = None
    picture: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One step, explained.

    Attributes
    ----------
    number : int
        From 0.
    title : str
        The samples, their true classes and the predicted ones.
    quantities : list of Quantity
        In dataflow order.
    outcome : list of str
        The effects of the step, one sentence each.
    layers : list of (str, array)
        Each layer's kind and name, and its output for the first sample at the prior.
    z_post : array (batch, C)
        The network's outputs at the posterior.
    loss, loss_post : float
        Mean loss of the batch at the prior and at the posterior.
    state : LokoState
        After the step.
    """

    number: int
    title: str
    quantities: list[Quantity]
    outcome: list[str]
    layers: list[tuple[str, Numbers]]
    z_post: Numbers
    loss: float
    loss_post: float
    state: loko.LokoState


def parameter_name(model: Model, index: int) -> str:
    """Return the name of one entry of theta: ``0.A[2,17]`` is row 2, column 17 of layer 0's A.

    Parameters
    ----------
    model : Model
        Its trainable arrays define the packing order.
    index : int
        Entry of theta, in [0, n).
    """
    for name in model.trainable:
        shape = model.weights[name].shape
        size = math.prod(shape)
        if index < size:
            where = ",".join(str(int(i)) for i in np.unravel_index(index, shape))
            return f"{name}[{where}]"
        index -= size
    raise InputError("index", index, f"below n = {model.n}", "an entry of another model")


def explain(
    config: RunConfig | Source, *, steps: int = 2, skip: int | None = 0, entries: int = 4
) -> Iterator[Step]:
    """Run LoKO on a stream and explain its steps.

    Parameters
    ----------
    config : RunConfig or Source
        A run of ``loko``.
    steps : int
        Number of steps to explain.
    skip : int or None
        Number of steps before them that are not shown. None starts at the first step whose first
        sample is misclassified, if there is one among the first 100; else (and in regression) at 0.
    entries : int
        Number of entries of theta shown in each step.

    Yields
    ------
    Step

    Raises
    ------
    InputError
        If the optimizer is not LoKO, or the stream is shorter than skip + steps.
    """
    for name, value, low in (("steps", steps, 1), ("skip", skip, 0), ("entries", entries, 1)):
        if value is not None and value < low:
            raise InputError(name, value, f"a whole number >= {low}", "a negative count")
    source = from_config(config) if isinstance(config, RunConfig) else config
    if (skip or 0) + steps > source.steps:
        raise InputError(
            "steps", (skip or 0) + steps, f"at most {source.steps} in all", "a shorter stream"
        )
    learner = source.learner
    if learner.covariance not in ("diagonal", "dense"):
        raise InputError(
            "covariance",
            repr(learner.covariance),
            "'diagonal' or 'dense'",
            "a precision is not listed entry by entry: 'train' runs it",
        )
    state = source.start
    if skip is None:
        skip, state = _first_wrong(source, source.steps - steps)
    else:
        for number in range(skip):
            state, _ = loko.step(state, source.batch(number), source.learner)
    for number in range(skip, skip + steps):
        batch = source.batch(number)
        after, record = loko.step(state, batch, source.learner)
        yield _Explainer(source, batch, state, record, after, entries).step()
        state = after


def _first_wrong(source: Source, last: int) -> tuple[int, loko.LokoState]:
    """Return the first step whose first sample is misclassified, and the state before it."""
    state = source.start
    if not source.regression:
        for number in range(min(SEARCHED, last + 1)):
            batch = source.batch(number)
            after, record = loko.step(state, batch, source.learner)
            y = to_host(batch.y)[0]
            if to_host(record.z)[0].argmax() != (y.argmax() if y.ndim else y):
                return number, state
            state = after
    return 0, source.start


class _Explainer:
    """One step's arrays on the host, and the choice of the entries shown."""

    def __init__(
        self,
        source: Source,
        batch: loko.Batch,
        before: loko.LokoState,
        record: loko.LokoRecord,
        after: loko.LokoState,
        entries: int,
    ) -> None:
        self.source, self.learner, self.model = source, source.learner, source.model
        self.number = before.step
        self.regression = source.regression
        self.before, self.after, self.batch = before, after, batch
        model = unpack(self.model, before.theta)
        Z = to_host(jacobian(model, batch.x)[1])
        self.z_post = to_host(forward(unpack(self.model, after.theta), batch.x)[0])
        z = to_host(record.z)
        y = to_host(batch.y)
        self.y = y if y.ndim == 2 else one_hot(y, z.shape[1], z)
        self.C = z.shape[1]
        dense = self.learner.covariance == "dense"
        prior, posterior = (s.P if dense else s.p for s in (before, after))
        R = None if before.R is None else to_host(before.R)
        R_after = None if after.R is None else to_host(after.R)
        self.values: dict[str, Numbers] = {
            "theta": to_host(before.theta),
            "p": to_host(prior),
            "p_pred": to_host(record.p_pred),
            "x": to_host(batch.x).reshape(len(z), -1),
            "z": z,
            "Z": Z,
            "y": self.y.reshape(-1),
            "yhat": to_host(record.yhat),
            "e": to_host(record.e),
            "H": to_host(record.H),
            "R_used": to_host(record.R_used),
            "S": to_host(record.S),
            "K": to_host(record.K),
            "theta_post": to_host(after.theta),
            "p_post": to_host(posterior),
        }
        if R is not None and R_after is not None:
            self.values |= {"R": R, "R_post": R_after}
        moved = np.abs(self.values["theta_post"] - self.values["theta"])
        self.entries = sorted(int(i) for i in np.argsort(-moved, kind="stable")[:entries])
        self.outputs = self._chosen_outputs(4)

    def _chosen_outputs(self, count: int) -> list[int]:
        """Return outputs of the first sample: the true class, and the most probable ones."""
        yhat, y = self.values["yhat"][: self.C], self.values["y"][: self.C]
        order = [int(np.argmax(y)), *(int(c) for c in np.argsort(-yhat, kind="stable"))]
        return sorted(dict.fromkeys(order[: count + 1] if self.C > 1 else [0]))[:count]

    def _output_name(self, row: int) -> str:
        sample, c = divmod(row, self.C)
        where = "" if self.values["yhat"].shape[0] == self.C else f"sample {sample} "
        return f"{where}output {c}" if self.regression else f"{where}class {c}"

    def _excerpt(self, axes: str, value: Numbers) -> Excerpt:
        """Return the entries shown, chosen along each axis by its letter (:class:`Line`)."""
        picks: list[list[int]] = []
        names: list[list[str]] = []
        for axis, size in zip(axes, value.shape, strict=True):
            if axis == "n":
                picks.append(self.entries)
                names.append([parameter_name(self.model, k) for k in self.entries])
            elif axis == "m":
                chosen = list(range(size)) if value.ndim == 1 and size <= 10 else self.outputs
                picks.append(chosen)
                names.append([self._output_name(k) for k in chosen])
            elif axis == "c":
                picks.append(list(range(min(size, 10))))
                names.append([self._output_name(k) for k in picks[-1]])
            elif axis == "s":
                picks.append(list(range(min(size, 2))))
                names.append([f"sample {k}" for k in picks[-1]])
            else:
                middle = size // 2 - min(size, 6) // 2
                picks.append(list(range(middle, middle + min(size, 6))))
                names.append([f"[{k}]" for k in picks[-1]])
        part = value[np.ix_(*picks)]
        if value.ndim == 1:
            return Excerpt(rows=[""], columns=names[0], values=part[None, :])
        return Excerpt(rows=names[0], columns=names[1], values=part)

    def _picture(self) -> tuple[str, ...]:
        """Return the first sample as text if it is an image of digits, else nothing."""
        if self.source.name != "digits":
            return ()
        last = len(CHARACTERS) - 1
        ink = np.clip(np.rint(self.values["x"][0] * last), 0, last).astype(int)
        return tuple("".join(CHARACTERS[k] * 2 for k in row) for row in ink.reshape(8, 8))

    def step(self) -> Step:
        """Return the explanation."""
        lines = [
            Quantity(
                **vars(line),
                value=self.values[line.key],
                excerpt=self._excerpt(line.axes, self.values[line.key]),
                residual=self._residual(line),
                picture=self._picture() if line.key == "x" else (),
            )
            for line in equations(self.learner, first=self.number == 0)
        ]
        old, new = (
            float(loko.loss(a, self.y.astype(a.dtype), self.learner.observation))
            for a in (self.values["z"], self.z_post)
        )
        return Step(
            number=self.number,
            title=self._title(),
            quantities=lines,
            outcome=self._outcome(old, new),
            layers=self._layers(),
            z_post=self.z_post,
            loss=old,
            loss_post=new,
            state=self.after,
        )

    def _layers(self) -> list[tuple[str, Numbers]]:
        """Return the name and the output of each layer for the first sample, at the prior."""
        weights = unpack(self.model, self.before.theta).weights
        x, context, found = self.batch.x[:1], Context(), []
        for layer in self.model.spec:
            x, _ = run([layer], weights, x, context)
            found.append((f"{layer['kind']} {layer.get('name', '')}".strip(), to_host(x)[0]))
        return found

    def _residual(self, line: Line) -> float | None:
        """Return the relative difference of a value from its plain formula, or None without one."""
        q = line.quantity
        if q is None or q.network:
            return None
        chosen = options(self.learner)
        flow = dataflow(chosen)
        v = Lazy(flow, self.values, **chosen, F=FORMULA_TABLE, keep=identity)
        if missing(q.name, v, flow):
            return None  # it needs a second run of the network
        v["yhat"] = v.yhat.reshape(-1, self.C)
        v["y"] = self.y
        got, plain = self.values[q.name], v.follow(q.name)
        if q.name == "K":  # for every method of solution, K S = P H'
            got, plain = got @ v.S, FORMULA_TABLE["pHt"](v)
        size = float(np.abs(plain).max())
        off = float(np.abs(got - plain.reshape(got.shape)).max())
        return off / size if size else float(np.abs(got).max())

    def _title(self) -> str:
        z = self.values["z"]
        first = self.number * len(z)
        which = f"sample {first}" if len(z) == 1 else f"samples {first} to {first + len(z) - 1}"
        if self.regression:
            return f"{which}: y = {self.y[0, 0]:.3g}, predicted {z[0, 0]:.3g}"
        true, predicted = self.y.argmax(axis=1), z.argmax(axis=1)
        if len(z) == 1:
            return f"{which}: true class {true[0]}, predicted class {predicted[0]}"
        return f"{which}: {int((true == predicted).sum())} of {len(z)} classified correctly"

    def _outcome(self, old: float, new: float) -> list[str]:
        """Return the effects of the step on the prediction, on each factor and on the variances."""
        v, z, kind = self.values, self.z_post, self.learner.observation
        lines = [f"Loss on the same batch: {old:.4g} before, {new:.4g} after."]
        if not self.regression:
            true = self.y.argmax(axis=1)[0]
            a, b = (float(softmax_forward(s)[0][0, true]) for s in (v["z"], z))
            lines.append(f"Probability of the true class {true}: {a:.3g} before, {b:.3g} after.")
            confident = v["yhat"][: self.C].max() > CONFIDENT and a < 1 - CONFIDENT
            if confident and kind in SATURATED:
                lines.append(SATURATED[kind])
        p, p_new = (a if a.ndim == 1 else np.diagonal(a) for a in (v["p_pred"], v["p_post"]))
        step, at = v["theta_post"] - v["theta"], 0
        for name in self.model.trainable:
            size = math.prod(self.model.weights[name].shape)
            span = slice(at, at + size)
            at += size
            moved = float(np.linalg.norm(step[span]))
            left = float((p_new[span] / p[span]).min())
            lines.append(f"{name}: moved by {moved:.3g} in norm; smallest p+ / p: {left:.4g}.")
        return lines
