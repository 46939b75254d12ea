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
from loko_ref.explain.equations import options
from loko_ref.explain.quantities import Frame
from loko_ref.network.model import Model

FILTERS: dict[str, dict[str, Any]] = {
    "decoupled": {"diagonal": "decoupled"},
    "variational": {"diagonal": "variational"},
    "low rank": {"covariance": "lowrank", "columns": 1},
    "dense": {"covariance": "dense"},
}
"""Filters of the world of two parameters -> their options."""

OPERATIONS = ("loko.step", "loko.run")
"""Operations whose cases are steps."""

SOLVES = {"two classes, linear step": "linear", "two classes, implicit step": "implicit"}
"""Filters of the world of two classes -> how they solve for the mean."""

WEIGHT, TRUE_WEIGHT, NOISE = 0.5, 2.0, 0.3
"""The frozen weight, the weight that makes y, and the standard deviation of y's noise."""

WRONG_WEIGHT = -1.0
"""The frozen weight where y is a class: sure, and wrong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A run that has not been taken."""

    name: str  # of the data
    learner: loko.LokoConfig  # the filter, with the network
    start: loko.LokoState  # before step 0
    batch: Callable[[int], loko.Batch]  # number of a step -> Batch
    steps: int  # number of batches
    regression: bool  # whether y is real
    image: tuple[int, int, int] | None = None  # channels, height, width of x
    # theta, step -> accuracy on held-out samples, or root mean squared error
    score: Callable[[Array, int], float] | None = None

    @property
    def frame(self) -> Frame:
        """What is the same in all steps."""
        weights = self.model.weights
        return Frame(
            name=self.name,
            options=options(self.learner),
            parts=[(name, weights[name].shape) for name in self.model.trainable],
            outputs=self.model.outputs,
            image=self.image,
        )

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
    options
        Of the filter, as in ``FILTERS``.
    """
    drawn = _drawn(steps)
    x = np.sign(drawn[:, 0]) * (0.9 + 0.6 * drawn[:, 1])
    y = TRUE_WEIGHT * x + math.sqrt(3) * NOISE * drawn[:, 2]
    model = Model(spec=[_LAYER], weights=_weights(WEIGHT))
    learner = loko.LokoConfig(model=model, observation="gaussian", r0=NOISE**2, p0=1.0, **options)
    return _two(learner, x[:, None], y[:, None], WEIGHT)


def tiny_classes(steps: int = 12, solve: Any = "linear") -> Source:
    """Return the world of two parameters with two classes: z = (u, -u), u = (-1 + B A) x.

    The network begins sure and wrong: class 0 is that of x > 0, mostly, as a weight of 2 has it.

    Parameters
    ----------
    solve : {"linear", "implicit"}
        How the filter solves for the mean.  [OBS-9]
    """
    drawn = _drawn(steps)
    x = np.sign(drawn[:, 0]) * (0.9 + 0.6 * drawn[:, 1])
    sure = 1 / (1 + np.exp(-2 * TRUE_WEIGHT * x))
    y = ((1 + drawn[:, 2]) / 2 > sure).astype(np.int64)
    out = {"kind": "linear", "name": "1", "in": 1, "out": 2, "bias": False}
    weights = _weights(WRONG_WEIGHT) | {"1.W": np.array([[1.0], [-1.0]])}
    model = Model(spec=[_LAYER, out], weights=weights)
    learner = loko.LokoConfig(model=model, p0=1.0, covariance="dense", solve=solve)
    return _two(learner, x[:, None], y, WRONG_WEIGHT)


_LAYER = {
    "kind": "linear",
    "name": "0",
    "in": 1,
    "out": 1,
    "bias": False,
    "lora": {"r": 1, "alpha": 1.0, "bias": False},
}


def _weights(W: float) -> dict[str, Any]:
    given = {"0.W": [[W]], "0.A": [[0.8]], "0.B": [[0.0]]}
    return {name: np.array(value) for name, value in given.items()}


def _drawn(steps: int) -> Any:
    """Draw three numbers a step from the uniform distribution on ±1: the same for any steps."""
    check_whole("steps", steps)
    return np.random.default_rng(7).uniform(-1, 1, (steps, 3))


def _two(learner: loko.LokoConfig, x: Any, y: Any, weight: float) -> Source:
    def score(theta: Array, step: int) -> float:
        return abs(float(weight + theta[0] * theta[1] - TRUE_WEIGHT))

    return Source(
        name="tiny",
        learner=learner,
        start=loko.init(learner),
        batch=lambda k: loko.Batch(x=x[k : k + 1], y=y[k : k + 1]),
        steps=len(x),
        regression=learner.observation == "gaussian",
        score=score,
    )
