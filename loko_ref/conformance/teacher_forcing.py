"""Teacher forcing, to localise the error of a run: each step starts from the oracle's state.

In a free run an error of one step is carried into the next. With teacher forcing every step is
judged by itself: a local mistake shows at the first step that has it, and where every step is right
the mistake is in the state carried from one step to the next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case, Draw
from loko_ref.conformance.implementations.python import Runnable
from loko_ref.conformance.judge.answer import Finding
from loko_ref.conformance.judge.compare import Divergence, compare
from loko_ref.conformance.judge.hook import started, state
from loko_ref.conformance.judge.tolerance import expected


@dataclass(frozen=True, kw_only=True)
class Forced:
    """The result of a teacher-forced run."""

    steps: int  # steps taken
    divergence: Divergence | None = None  # the first wrong quantity; its index begins with the step
    finding: Finding | None = None  # a fault other than a wrong number

    @property
    def text(self) -> str:
        """The result in one sentence."""
        if self.divergence is not None:
            d = self.divergence
            return f"teacher-forced: first off at step {d.index[0]}, {d.quantity}"
        if self.finding is not None:
            return f"teacher-forced: step {self.steps - 1}: {self.finding.message}"
        return (
            f"teacher-forced: all {self.steps} steps are right from the oracle's state; the "
            "mistake is in the state carried from step to step"
        )


def steps_of(case: Case) -> list[Case]:
    """Return a run as cases of one step, each from the oracle's state before it."""
    inputs, states = case.inputs(), expected(case)
    cases = []
    for t in range(len(inputs["x"])):
        made: dict[str, Any] = {**inputs, "x": inputs["x"][t : t + 1], "y": inputs["y"][t : t + 1]}
        if t:
            made = started(made, {k: states[k][t - 1] for k in state(case)})
            if case.options["observation"] == "softmax" or case.options["center"]:
                made["R"] = _balanced(made["R"], inputs["y"].shape[-1], case.dtype)

        def build(draw: Draw, dtype: str, made: Mapping[str, Any] = made) -> Mapping[str, Any]:
            return made

        recipe = replace(
            case.recipe, name=f"{case.recipe.name}#step-{t}", build=build, shared=False
        )
        cases.append(Case(id=f"{case.id}#step-{t}", recipe=recipe, dtype=case.dtype))
    return cases


def _balanced(R: Array, C: int, dtype: str) -> Array:
    """Round R (m, m) to a dtype so that R 1 stays proportional to 1 in each sample.  [OBS-5].

    Rounded entry by entry it would not, and the step would rightly reject it. Every block of two
    samples is rounded to a grid on which its sums are exact; its last row and column follow.
    """
    grid = 2.0 ** (np.floor(np.log2(np.abs(R).max())) - np.finfo(dtype).nmant + 1)
    batch = R.shape[0] // C
    blocks = np.round(R.reshape(batch, C, batch, C) / grid)
    share = np.round(blocks.sum(axis=(1, 3)) / C)  # (batch, batch): the sum of each row
    blocks[:, :-1, :, -1] = share[:, None] - blocks[:, :-1, :, :-1].sum(axis=3)
    blocks[:, -1] = share[:, :, None] - blocks[:, :-1].sum(axis=1)
    return np.asarray(grid * blocks.reshape(R.shape))


def force(implementation: Runnable, case: Case, deadline: float | None = None) -> Forced:
    """Take a run's steps from the oracle's states, up to the first step that is wrong.

    Parameters
    ----------
    deadline : float, optional
        Time of ``time.monotonic`` at which the step under way is ended and no further one starts.
    """
    one_step = steps_of(case)
    for t, step in enumerate(one_step):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            late = Finding(kind="timeout", message="the check's time-out was reached before it")
            return Forced(steps=t + 1, finding=late)
        answer = implementation.run(step, left)
        divergence, _ = compare(step, answer.outputs)
        if divergence is not None:
            moved = replace(divergence, index=(t, *divergence.index[1:]))
            return Forced(steps=t + 1, divergence=moved)
        if answer.finding is not None:
            return Forced(steps=t + 1, finding=answer.finding)
        if answer.declined is not None:
            declined = Finding(kind="declined", message=answer.declined)
            return Forced(steps=t + 1, finding=declined)
    return Forced(steps=len(one_step))
