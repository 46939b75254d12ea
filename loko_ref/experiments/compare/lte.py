"""``loko-ref compare lte``: LTE beside full training and plain LoRA, choice by choice.

One choice at a time departs from a base of 4 heads of rank 4 that merge every 8 steps. The learning
rate of every setting, full training and LoRA included, is the best of a grid on half of the seeds;
the other half reports. Equal samples: all take as many steps of as many samples. Equal time: the
accuracy that a setting had reached when full training ended, all heads in one process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loko_ref.errors import NumericalError
from loko_ref.experiments.compare.analysis import Difference, halves, paired
from loko_ref.experiments.defaults import FROM_SCRATCH
from loko_ref.experiments.lte import diagnostics
from loko_ref.experiments.lte.setup import prepare
from loko_ref.experiments.lte.train import History, baseline_config, train
from loko_ref.lte.config import LteConfig
from loko_ref.lte.state import init
from loko_ref.lte.team import Alone
from loko_ref.network.spec import linears

RATES = (0.5, 1.0, 2.0, 4.0)
"""Factors on an optimizer's default rate, or on LoKO's p0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One row."""

    name: str
    # of `loko-ref lte`, as a Python call has them
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"  # in each head
    baseline: Literal["full", "lora"] | None = None  # what is trained in place of LTE

    @property
    def factors(self) -> tuple[float, ...]:
        """Factors on the default rate, of which the best is chosen; on LoKO's p0 fewer."""
        return (1.0, 4.0) if self.optimizer == "loko" else RATES


def _one(choice: str, *values: Any) -> list[Setting]:
    return [Setting(name=f"{choice} {v}", options={choice: v}) for v in values]


BASE, FULL, LORA = "LTE", "full training", "LoRA"

SETTINGS: tuple[Setting, ...] = (
    Setting(name=FULL, baseline="full"),
    Setting(name=LORA, baseline="lora"),
    Setting(name="LoRA, rank 1", baseline="lora", options={"rank": 1}),
    Setting(name=BASE),
    *_one("heads", 1, 2, 8, 16),
    *_one("rank", 1, 2, 8),
    *_one("merge_every", 1, 32, 120),
    *_one("reset", "B", "AB"),
    *_one("reduction", "own"),
    Setting(name="mhlora, never merged", options={"mode": "mhlora"}),
    *(Setting(name=f"with {name}", optimizer=name) for name in ("sgd", "adagrad", "loko")),
)

TASKS: dict[str, dict[str, Any]] = {
    "digits, mlp": {"data": "digits"},
    "digits, vit": {"data": "digits", "network": "vit"},
    "topics, encoder": {"data": "topics"},
}
"""Data and network of ``loko-ref lte``."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one setting reached at one rate with one seed."""

    # which; the factor is on the default rate, or on LoKO's p0
    task: str
    setting: str
    factor: float
    seed: int
    accuracy: float  # on the test part at the end; 0 if the run diverged
    curve: tuple[tuple[int, float], ...]  # step and accuracy, at the merges
    seconds: float  # processor time of the training
    effective_rank: float | None  # largest over the layers, of W - W_0; None if the run diverged
    bytes_sent: int  # of factors and replicas, over the whole run


_NONE = (
    "network", "hidden", "activation", "size", "rank", "alpha", "targets", "init", "steps",
    "epochs", "limit", "tokenizer", "length", "batch", "dtype", "backend", "baseline", "resume",
    "checkpoint",
)  # fmt: skip
_USUAL = {f.name: f.default for f in dataclasses.fields(LteConfig)} | dict.fromkeys(_NONE)
_USUAL |= {"heads": 4, "data_split": "chunks", "lora_bias": False, "dense_last": False}
"""Arguments of :func:`loko_ref.experiments.lte.setup.prepare` by default."""


def run(setting: Setting, task: str, factor: float, seed: int, limit: Mapping[str, Any]) -> Run:
    """Train one setting.

    Parameters
    ----------
    task : str
        One of ``TASKS``.
    factor : float
        On the default rate, or on LoKO's p0.
    limit : mapping
        ``steps`` and ``limit`` of ``loko-ref lte``.
    """
    usual = FROM_SCRATCH.p0["glm"] if setting.optimizer == "loko" else (
        FROM_SCRATCH.lr[setting.optimizer]
    )  # fmt: skip
    rate = factor * usual
    options = {"p0" if setting.optimizer == "loko" else "lr": rate}
    given = {"seed": seed, "optimizer": (setting.optimizer, options)}
    job = prepare(_USUAL | TASKS[task] | dict(setting.options) | dict(limit) | given, Alone())
    config, state, team, history = job.config, job.state, Alone(), History()
    if setting.baseline is not None:
        config = baseline_config(config, setting.baseline)
        state = init(config, weights=job.start, batch=job.batch)
    started, lost = time.process_time(), False
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence overflows first
            state = train(
                config,
                state,
                job.data,
                steps=job.steps,
                batch=job.batch,
                team=team,
                history=history,
            )
    except NumericalError:
        lost = True
    seconds = time.process_time() - started
    curve = [(step, float(a or 0.0)) for step, loss, a in history.evaluations if loss == loss]
    ranks: list[float] = []
    if not lost:
        weights = diagnostics.effective_weights(config, state)
        for name in (f"{layer['name']}.W" for layer in linears(config.spec)):
            if np.isfinite(weights[name]).all():
                s = diagnostics.update_spectrum(weights[name], job.start[name])
                ranks.append(diagnostics.effective_rank(s))
    sent = team.sent
    if setting.baseline is not None:  # data-parallel, on as many workers as LTE has heads
        sent = job.steps * int(_USUAL["heads"]) * config.layout.n * state.theta.dtype.itemsize
    return Run(
        task=task,
        setting=setting.name,
        factor=factor,
        seed=seed,
        accuracy=0.0 if lost or not ranks else curve[-1][1],
        curve=tuple(curve),
        seconds=seconds,
        effective_rank=max(ranks, default=None),
        bytes_sent=sent,
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting on one task, at the rate that was best on the selection seeds."""

    # which; the rate as a factor on the default one
    setting: str
    rate: float
    accuracy: NDArray[np.float64]  # (seeds,): on the reporting seeds
    timed: NDArray[np.float64]  # (seeds,): what had been reached when full training ended
    # means over the reporting seeds
    effective_rank: float
    seconds: float
    bytes_sent: float


def rows(runs: Sequence[Run], task: str, seeds: Sequence[int]) -> dict[str, Row]:
    """Choose the rate of every setting and sum it up.

    Parameters
    ----------
    seeds : sequence of int
        All seeds; every other one chooses.
    """
    choosing, reporting = halves(seeds)
    best: dict[str, list[Run]] = {}
    for setting in SETTINGS:
        own = [one for one in runs if (one.task, one.setting) == (task, setting.name)]
        rates: dict[float, list[float]] = {}
        for one in own:
            if one.seed in choosing:
                rates.setdefault(one.factor, []).append(one.accuracy)
        if rates:
            rate = max(rates, key=lambda r: float(np.mean(rates[r])))
            some = [one for one in own if one.factor == rate and one.seed in reporting]
            best[setting.name] = sorted(some, key=lambda one: one.seed)
    spent = {one.seed: one.seconds for one in best.get(FULL, [])}
    return {
        name: Row(
            setting=name,
            rate=some[0].factor,
            accuracy=np.array([one.accuracy for one in some]),
            timed=np.array([_at(one, spent.get(one.seed, one.seconds)) for one in some]),
            effective_rank=float(np.mean([one.effective_rank or 0.0 for one in some])),
            seconds=float(np.mean([one.seconds for one in some])),
            bytes_sent=float(np.mean([one.bytes_sent for one in some])),
        )
        for name, some in best.items()
        if some
    }


def _at(one: Run, seconds: float) -> float:
    """Return the accuracy that a run had reached after some seconds."""
    last = one.curve[-1][0] if one.curve else 0
    steps = last * min(1.0, seconds / max(one.seconds, 1e-12))
    return max(((s, a) for s, a in one.curve if s <= steps), default=(0, 0.0))[1]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper, as the difference of two rows."""

    text: str  # what is claimed
    # names of settings: the first is claimed to be as good (`parity`), or better
    first: str
    second: str
    parity: bool = False  # whether the first only has to be within a percentage point of the second


CLAIMS: tuple[Claim, ...] = (
    Claim(text="LTE reaches full training", first=BASE, second=FULL, parity=True),
    Claim(text="one LoRA of rank 1 falls short of it", first=FULL, second="LoRA, rank 1"),
    Claim(text="LTE is better than one LoRA of its rank", first=BASE, second=LORA),
    Claim(text="more heads are better: 16 than 2", first="heads 16", second="heads 2"),
    Claim(text="a higher rank is better: 8 than 1", first="rank 8", second="rank 1"),
    Claim(text="merging costs nothing beside mhlora", first=BASE, second="mhlora, never merged",
          parity=True),
    Claim(text="merging often is better: 8 than 120", first=BASE, second="merge_every 120"),
    Claim(text="resetting B costs nothing", first="reset B", second=BASE, parity=True),
)  # fmt: skip

PARITY = 0.01


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run that is to be done."""

    setting: str
    task: str
    factor: float
    seed: int
    limit: Mapping[str, Any]


def work(job: Job) -> Run:
    """Do one job."""
    setting = next(one for one in SETTINGS if one.name == job.setting)
    return run(setting, job.task, job.factor, job.seed, job.limit)


def missing(
    runs: Sequence[Run], tasks: Sequence[str], seeds: Sequence[int], limit: Mapping[str, Any]
) -> list[Job]:
    """Return the jobs that can be done now: every rate on the selection seeds, then the best.

    Parameters
    ----------
    limit : mapping
        ``steps`` and ``limit`` of ``loko-ref lte``.
    """
    choosing, reporting = halves(seeds)
    done = {(one.task, one.setting, one.factor, one.seed): one for one in runs}
    jobs = []
    for task in sorted(tasks, key=lambda name: name == "digits, mlp"):
        for setting in SETTINGS:
            wanted = [(f, s) for f in setting.factors for s in choosing]
            keys = [(task, setting.name, f, s) for f, s in wanted]
            if all(key in done for key in keys):
                best = max(
                    setting.factors,
                    key=lambda f: sum(done[task, setting.name, f, s].accuracy for s in choosing),
                )
                wanted = [(best, s) for s in reporting]
            jobs += [
                Job(setting=setting.name, task=task, factor=f, seed=s, limit=limit)
                for f, s in wanted
                if (task, setting.name, f, s) not in done
            ]
    return jobs


def judge(claim: Claim, found: Mapping[str, Row]) -> tuple[str, Difference | None]:
    """Judge a claim by the reporting seeds.

    Parameters
    ----------
    found : mapping of str to Row
        Of one task.

    Returns
    -------
    verdict : {"confirmed", "refuted here", "open", "not tried"}
        By the 95 % interval of the paired difference: all of it above (or below) 0; for parity
        above (or below) minus one percentage point.
    difference : Difference or None
    """
    if not {claim.first, claim.second} <= found.keys():
        return "not tried", None
    difference = paired(found[claim.first].accuracy, found[claim.second].accuracy)
    edge = -PARITY if claim.parity else 0.0
    if difference.low > edge:
        return "confirmed", difference
    return ("refuted here" if difference.high < edge else "open"), difference
