"""LoKO's step explained: every quantity in dataflow order, with equation, label and numbers.

Shapes: as in :mod:`loko_ref.loko`. The numbers are those of :func:`loko_ref.loko.step`; each is
shown with its difference from the plain formula of the table of quantities.

What is shown of each: :mod:`loko_ref.explain.quantities`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from loko_ref import loko
from loko_ref.arrays import Array, namespace, to_host
from loko_ref.arrays.special import softmax_forward
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.explain.quantities import Excerpt, Frame, Numbers, Quantity, described
from loko_ref.explain.sources import Source, from_config
from loko_ref.kalman.lowrank import PRECISIONS, Precision
from loko_ref.kalman.observation import one_hot
from loko_ref.loko.state import groups_for
from loko_ref.network.jacobian import jacobian
from loko_ref.network.layers import Context, run
from loko_ref.network.model import Model, forward, unpack

__all__ = ["Excerpt", "Quantity", "Step", "explain", "parameter_name"]

SEARCHED = 100
"""Steps among which the first misclassified sample is sought."""

LISTED = 512
"""Parameters up to which the inverse of a precision is formed to be shown."""

CONFIDENT = 0.99
SATURATED = {
    "softmax": "The prediction was confident and wrong: J and so H are almost 0, and the filter "
    "hardly moves unless R has shrunk as far.  [OBS-7]",
    "glm": "The prediction was confident and wrong: J is almost 0, so p hardly shrinks, and theta "
    "moves by a full gradient step with p as its learning rates.  [OBS-7]",
}
"""Remark on a confident error, by observation model."""


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
        Each layer's kind and name, and its output for the first sample at the prior; of a
        recording, nothing.
    z_post : array (batch, C), optional
        The network's outputs at the posterior.
    loss, loss_post : float, optional
        Mean loss of the batch at the prior and at the posterior.
    wrong : tuple of str
        Of a recording the keys of the quantities that are beyond their tolerance.
    """

    number: int
    title: str
    quantities: list[Quantity]
    outcome: list[str]
    layers: list[tuple[str, Numbers]] = field(default_factory=list)
    z_post: Numbers | None = None
    loss: float | None = None
    loss_post: float | None = None
    wrong: tuple[str, ...] = ()


def parameter_name(model: Model, index: int) -> str:
    """Return the name of one entry of theta: ``0.A[2,17]`` is row 2, column 17 of layer 0's A.

    Parameters
    ----------
    model : Model
        Its trainable arrays define the packing order.
    index : int
        Entry of theta, in [0, n).
    """
    parts = [(name, model.weights[name].shape) for name in model.trainable]
    return Frame(name="", options={}, parts=parts, outputs=model.outputs).entry(index)


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
    if source.learner.covariance in PRECISIONS and source.model.n > LISTED:
        raise InputError(
            "covariance",
            f"{source.learner.covariance!r} with n = {source.model.n}",
            f"n of at most {LISTED}, or 'diagonal' or 'dense'",
            "a precision, of which every entry of the inverse would be listed: 'train' runs it",
        )
    state = source.start
    if skip is None:
        skip, state = _first_wrong(source, source.steps - steps)
    else:
        for number in range(skip):
            state, _ = _taken(source, state, number)
    for number in range(skip, skip + steps):
        after, record = _taken(source, state, number)
        yield _Explainer(source, source.batch(number), state, record, after, entries).step()
        state = after


def _taken(
    source: Source, state: loko.LokoState, number: int
) -> tuple[loko.LokoState, loko.LokoRecord]:
    """Take a step; one that overflows is an error that names it, without NumPy's warnings."""
    with np.errstate(over="ignore", invalid="ignore"):  # found by the filter's checks
        return loko.step(state, source.batch(number), source.learner)


def _first_wrong(source: Source, last: int) -> tuple[int, loko.LokoState]:
    """Return the first step whose first sample is misclassified, and the state before it."""
    state = source.start
    if not source.regression:
        for number in range(min(SEARCHED, last + 1)):
            after, record = _taken(source, state, number)
            y = to_host(source.batch(number).y)[0]
            if to_host(record.z)[0].argmax() != (y.argmax() if y.ndim else y):
                return number, state
            state = after
    return 0, source.start


def _covariance(
    learner: loko.LokoConfig, state: loko.LokoState, *, predicted: bool = False
) -> Array:
    """Return a state's p or P; of a precision the inverse, perhaps after the time update."""
    if learner.covariance not in PRECISIONS:
        found = state.P if learner.covariance == "dense" else state.p
        assert found is not None
        return found
    assert state.U is not None
    assert state.W is not None
    kept = Precision(U=state.U, W=state.W, groups=groups_for(learner))
    kept = kept.predict(learner.lam, learner.q) if predicted else kept
    return kept.times(namespace(state.theta).eye(learner.model.n, dtype=state.theta.dtype))


class _Explainer:
    """One step's arrays on the host."""

    def __init__(
        self,
        source: Source,
        batch: loko.Batch,
        before: loko.LokoState,
        record: loko.LokoRecord,
        after: loko.LokoState,
        entries: int,
    ) -> None:
        self.frame, self.learner, self.model = source.frame, source.learner, source.model
        self.number, self.entries = before.step, entries
        self.before, self.after, self.batch = before, after, batch
        model = unpack(self.model, before.theta)
        Z = to_host(jacobian(model, batch.x)[1])
        self.z_post = to_host(forward(unpack(self.model, after.theta), batch.x)[0])
        z = to_host(record.z)
        y = to_host(batch.y)
        self.y = y if y.ndim == 2 else one_hot(y, z.shape[1], z)
        self.C = z.shape[1]
        prior, posterior = (_covariance(self.learner, one) for one in (before, after))
        p_pred = record.p_pred
        if self.learner.covariance in PRECISIONS:
            p_pred = _covariance(self.learner, before, predicted=True)
        R = None if before.R is None else to_host(before.R)
        R_after = None if after.R is None else to_host(after.R)
        self.values: dict[str, Numbers] = {
            "theta": to_host(before.theta),
            "p": to_host(prior),
            "p_pred": to_host(p_pred),
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
        if record.v is not None:
            self.values["v"] = to_host(record.v)

    def step(self) -> Step:
        """Return the explanation."""
        old, new = (
            float(loko.loss(a, self.y.astype(a.dtype), self.learner.observation))
            for a in (self.values["z"], self.z_post)
        )
        return Step(
            number=self.number,
            title=self._title(),
            quantities=described(
                self.frame, self.values, first=self.number == 0, entries=self.entries
            ),
            outcome=self._outcome(old, new),
            layers=self._layers(),
            z_post=self.z_post,
            loss=old,
            loss_post=new,
        )

    def _layers(self) -> list[tuple[str, Numbers]]:
        """Return the name and the output of each layer for the first sample, at the prior."""
        weights = unpack(self.model, self.before.theta).weights
        x, context, found = self.batch.x[:1], Context(), []
        for layer in self.model.spec:
            x, _ = run([layer], weights, x, context)
            found.append((f"{layer['kind']} {layer.get('name', '')}".strip(), to_host(x)[0]))
        return found

    def _title(self) -> str:
        z = self.values["z"]
        first = self.number * len(z)
        which = f"sample {first}" if len(z) == 1 else f"samples {first} to {first + len(z) - 1}"
        if self.frame.regression:
            return f"{which}: y = {self.y[0, 0]:.3g}, predicted {z[0, 0]:.3g}"
        true, predicted = self.y.argmax(axis=1), z.argmax(axis=1)
        if len(z) == 1:
            return f"{which}: true class {true[0]}, predicted class {predicted[0]}"
        return f"{which}: {int((true == predicted).sum())} of {len(z)} classified correctly"

    def _outcome(self, old: float, new: float) -> list[str]:
        """Return the effects of the step on the prediction, on each factor and on the variances."""
        v, z, kind = self.values, self.z_post, self.learner.observation
        lines = [f"Loss on the same batch: {old:.4g} before, {new:.4g} after."]
        if not self.frame.regression:
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
