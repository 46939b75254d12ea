"""What a walk steps through: a filter, where it starts, and its batches.

A source comes from a run on real data (:func:`from_config`), from a case of the catalogue
(:func:`from_case`), or is the world of two parameters (:func:`tiny`): one linear layer of one input
and one output with LoRA of rank 1, so that theta = (A, B) is a point of a plane, and its covariance
an ellipse.

Shapes: theta, p (n,); P (n, n); x (batch, i); y (batch,) labels or (batch, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref import loko
from loko_ref.arrays import Array
from loko_ref.checks.values import check_whole
from loko_ref.conformance.cases.registry import current, select
from loko_ref.conformance.oracle.loko import configuration, network_input
from loko_ref.errors import InputError, closest, shown
from loko_ref.experiments import stream
from loko_ref.experiments.config import RunConfig
from loko_ref.network.model import Model

__all__ = ["FILTERS", "TRUE_WEIGHT", "WEIGHT", "Source", "from_case", "from_config", "tiny"]

FILTERS: dict[str, dict[str, Any]] = {
    "decoupled": {"diagonal": "decoupled"},
    "variational": {"diagonal": "variational"},
    "dense": {"covariance": "dense"},
}
"""Filters of the world of two parameters -> their options."""

OPERATIONS = ("loko.step", "loko.run")
"""Operations whose cases are steps."""

WEIGHT, TRUE_WEIGHT, NOISE = 0.5, 2.0, 0.3
"""The frozen weight, the weight that makes y, and the standard deviation of y's noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A run that has not been taken.

    Attributes
    ----------
    name : str
        Of the data.
    learner : LokoConfig
        The filter, with the network.
    start : LokoState
        Before step 0.
    batch : callable
        Number of a step -> Batch.
    steps : int
        Number of batches.
    regression : bool
        Whether y is real.
    image : (int, int, int), optional
        Channels, height, width of x.
    score : callable, optional
        theta, step -> accuracy on held-out samples, or root mean squared error.
    """

    name: str
    learner: loko.LokoConfig
    start: loko.LokoState
    batch: Callable[[int], loko.Batch]
    steps: int
    regression: bool
    image: tuple[int, int, int] | None = None
    score: Callable[[Array, int], float] | None = None

    @property
    def model(self) -> Model:
        """The network before the first step."""
        return self.learner.model


def from_config(config: RunConfig) -> Source:
    """Return the stream of a run on real data.

    Raises
    ------
    InputError
        If the optimizer is not LoKO.
    """
    if config.optimizer != "loko":
        raise InputError("optimizer", config.optimizer, "loko", "a run of another optimizer")
    task = stream.prepare(config)
    return Source(
        name=task.dataset.name,
        learner=task.learner,
        start=loko.init(task.learner, batch=config.batch),
        batch=lambda number: stream.stream_batch(task, number),
        steps=task.steps,
        regression=task.dataset.regression,
        image=task.dataset.image,
        score=lambda theta, step: stream.evaluate(task, theta, step),
    )


def from_case(key: str) -> Source:
    """Return the steps of a case of ``loko.step`` or ``loko.run``.

    Parameters
    ----------
    key : str
        The case's id, such as ``loko.run/glm/float64``.

    Raises
    ------
    InputError
        If there is no such case, or it is one of another operation.
    """
    found = {case.id: case for name in OPERATIONS for case in select(name)}
    case = found.get(current(key))
    if case is None:
        got = closest(key, found)
        cause = f"a typing error; the closest is {got}" if got else "a case of another operation"
        required = f"the id of a case of {' or '.join(OPERATIONS)} ('loko-ref verify --list')"
        raise InputError("case", shown(key), required, cause)
    x, o = case.inputs(), case.options
    learner, start = configuration(x, o)
    inputs, y = network_input(x["x"], o), x["y"]
    if case.operation.name == "loko.step":
        inputs, y = inputs[None], y[None]
    return Source(
        name=case.id,
        learner=learner,
        start=start,
        batch=lambda k: loko.Batch(x=inputs[k], y=y[k]),
        steps=len(inputs),
        regression=learner.observation == "gaussian",
    )


def tiny(steps: int = 12, **options: Any) -> Source:
    """Return the world of two parameters: y = 2 x + noise, seen by z = (0.5 + B A) x.

    Every (A, B) with A B = 1.5 is right: what is learned is a curve, not a point.

    Parameters
    ----------
    steps : int
        Number of samples, one a step.
    options
        Of the filter, as in ``FILTERS``.
    """
    layer = {"kind": "linear", "name": "0", "in": 1, "out": 1, "bias": False}
    lora = {"r": 1, "alpha": 1.0, "bias": False}
    weights = {"0.W": [[WEIGHT]], "0.A": [[0.8]], "0.B": [[0.0]]}
    model = Model(
        spec=[{**layer, "lora": lora}], weights={k: np.array(w) for k, w in weights.items()}
    )
    learner = loko.LokoConfig(model=model, observation="gaussian", r0=NOISE**2, p0=1.0, **options)
    check_whole("steps", steps)
    drawn = np.random.default_rng(7).uniform(-1, 1, (steps, 3))  # the same ones however many
    x = np.sign(drawn[:, 0]) * (0.9 + 0.6 * drawn[:, 1])
    y = TRUE_WEIGHT * x + math.sqrt(3) * NOISE * drawn[:, 2]

    def score(theta: Array, step: int) -> float:
        return abs(float(WEIGHT + theta[0] * theta[1] - TRUE_WEIGHT))

    return Source(
        name="tiny",
        learner=learner,
        start=loko.init(learner),
        batch=lambda k: loko.Batch(x=x[k : k + 1, None], y=y[k : k + 1, None]),
        steps=steps,
        regression=True,
        score=score,
    )
