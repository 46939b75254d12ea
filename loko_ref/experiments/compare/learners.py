"""Who is compared: LoKO, each variant at one setting for all streams, and first-order grids.

Shapes: theta, gradient (n,); z (1, C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loko_ref import loko, optimizers
from loko_ref.arrays import Array
from loko_ref.experiments.base_network import Task, loss_gradient, observation_of
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.data.registry import regression
from loko_ref.experiments.defaults import FINE_TUNING
from loko_ref.network.model import pack, unpack

Step = Callable[[loko.Batch, int], tuple[Array, Array]]
"""From a batch and its number to z before it, and theta after it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """One setting of one method."""

    # of tables; the family is what a grid belongs to
    name: str
    family: str
    method: str  # `loko`, `sgd`, `adagrad` or `adamw`
    options: Mapping[str, Any] = field(default_factory=dict)  # of the optimizer
    ratio: float = 1.0  # of a first-order method: rate of B over that of A
    dense: bool = False  # whether memory and time grow with n², so that transformers are left out

    def config(self, **about: Any) -> RunConfig:
        """Describe the run of this learner on a stream."""
        fast = self.method == "loko" and not self.dense
        options = dict(self.options)
        if regression(about.get("data", "digits")):
            options.pop("solve", None)  # what is linear is solved in one iteration
        return RunConfig(
            optimizer=self.method, options=options, route="fast" if fast else "readable", **about
        )

    def begin(self, task: Task) -> Step:
        """Return the steps of a fresh learner.

        Parameters
        ----------
        task : Task
            Of :meth:`config`.
        """
        return self._filter(task) if self.method == "loko" else self._descent(task)

    def _filter(self, task: Task) -> Step:
        state = loko.init(task.learner, batch=task.config.batch)

        def step(batch: loko.Batch, number: int) -> tuple[Array, Array]:
            nonlocal state
            state, record = task.loko_step(state, batch)
            return record.z, state.theta

        return step

    def _descent(self, task: Task) -> Step:
        about, theta = observation_of(task.dataset), pack(task.model)
        sizes = [(name, task.model.weights[name].size) for name in task.model.trainable]
        of_B = np.concatenate([np.full(n, name.endswith("B")) for name, n in sizes])
        parts = []
        for at, rate in ((~of_B, 1.0), (of_B, self.ratio)):
            config = dataclasses.replace(task.learner, lr=task.learner.lr * rate)
            parts.append([at, config, optimizers.init(theta[at], config)])

        def step(batch: loko.Batch, number: int) -> tuple[Array, Array]:
            nonlocal theta
            z, g = loss_gradient(unpack(task.model, theta), batch.x, batch.y, about, step=number)
            theta = theta.copy()
            for part in parts:
                at, config, state = part
                part[2] = optimizers.step(state, g[at], config)
                theta[at] = part[2].theta
            return z, theta

        return step


def _loko(name: str, **options: Any) -> Learner:
    dense = options.get("covariance") == "dense"
    return Learner(name=name, family=name, method="loko", options=options, dense=dense)


_BY_FACTOR = {"A": 0.2, "B": 1.0}

LOKO: tuple[Learner, ...] = (
    _loko("recommended", preset="recommended"),
    _loko("abstract_reading", preset="abstract_reading"),
    _loko("decoupled, one iteration"),
    _loko("decoupled", solve="implicit", p0=0.2),
    _loko("variational", solve="implicit", diagonal="variational", p0=_BY_FACTOR),
    _loko("block", solve="implicit", covariance="block", p0=1.0),
    _loko("lowrank", solve="implicit", covariance="lowrank", columns=10, p0=_BY_FACTOR),
    _loko("dense", solve="implicit", covariance="dense", p0=0.2),
)
"""Each at one setting for all streams; the first is the default of ``loko-ref train``."""


def _grid(family: str, method: str, rates: Sequence[float], **more: Any) -> list[Learner]:
    ratio, options = more.pop("ratio", 1.0), more
    extra = "".join(f", {key} {value:g}" for key, value in options.items())
    extra += f", B at {ratio:g} times" if ratio != 1 else ""
    return [
        Learner(
            name=f"{method} {rate:g}{extra}",
            family=family,
            method=method,
            options={"lr": rate, **options},
            ratio=ratio,
        )
        for rate in rates
    ]


_SGD = (0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
_ADAGRAD = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
_ADAMW = (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 1e-2, 2e-2, 3e-2)

GRID: tuple[Learner, ...] = (
    *_grid("SGD", "sgd", _SGD),
    *_grid("SGD", "sgd", _SGD, momentum=0.9),
    *_grid("AdaGrad", "adagrad", _ADAGRAD),
    *_grid("AdamW", "adamw", _ADAMW),
    *_grid("LoRA+", "adamw", _ADAMW[:6], ratio=4.0),
    *_grid("LoRA+", "adamw", _ADAMW[:5], ratio=16.0),
    *(one for r in (2.0, 4.0, 8.0) for one in
      _grid("AdaGrad, A and B apart", "adagrad", _ADAGRAD[:6], ratio=r)),
)  # fmt: skip
"""First-order settings, of which the best is chosen for each stream and metric."""

FAMILIES = tuple(dict.fromkeys(one.family for one in GRID))

SCALES = (0.03, 0.1, 0.3, 3.0, 10.0, 30.0)
"""Factors on the default's p0, over three decades."""

_P0: Any = FINE_TUNING.preset_p0["recommended"]
SCALED: tuple[Learner, ...] = tuple(
    _loko(f"p0 x {s:g}", preset="recommended", p0={key: s * p for key, p in _P0.items()})
    for s in SCALES
)


def learners(quick: bool) -> tuple[Learner, ...]:
    """Return who is compared; ``quick`` leaves every other rate and the dense filter out."""
    if not quick:
        return (*LOKO, *SCALED, *GRID)
    return (*LOKO[:-1], *GRID[::3])
