"""What trials show: choices made on some seeds, reported on the others, with intervals.

A score is an accuracy, or the negative of a root mean squared error, so that more is better; a run
that diverged scores 0, or minus infinity. A rival's setting is chosen for each stream and metric,
by its mean score over the selection seeds; differences are paired by seed, over the other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from loko_ref.experiments.compare.learners import FAMILIES, GRID, LOKO, SCALED, Learner
from loko_ref.experiments.compare.streams import Stream
from loko_ref.experiments.compare.trials import Trial

METRICS = ("online", "final")


def halves(seeds: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split seeds into those that choose and those that report: every other one.

    Examples
    --------
    >>> halves(range(5))
    ((0, 2, 4), (1, 3))
    """
    some = tuple(seeds)
    return some[::2], some[1::2] or some


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference, the first minus the second."""

    # over the seeds, with the 95 % interval of Student's t, which is unbounded with a single seed;
    # infinite where one of them diverged
    mean: float
    low: float
    high: float


def paired(a: NDArray[Any], b: NDArray[Any]) -> Difference:
    """Return the mean of a - b with its interval.

    Parameters
    ----------
    a, b : array (seeds,)
        Scores with the same seeds.
    """
    with np.errstate(invalid="ignore"):
        d = a - b
    finite = np.isfinite(d)
    if not finite.all():
        lost = np.isinf(a).any(), np.isinf(b).any()
        end = math.nan if all(lost) else -math.inf if lost[0] else math.inf
        return Difference(mean=end, low=end, high=end)
    half = math.inf
    if len(d) > 1:
        half = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    mean = float(d.mean())
    return Difference(mean=mean, low=mean - half, high=mean + half)


class Table:
    """Scores by stream, metric and learner, over seeds.

    Parameters
    ----------
    streams : sequence of Stream
        In the order of the report.
    seeds : sequence of int
        All seeds; every other one chooses.
    """

    def __init__(
        self, trials: Iterable[Trial], streams: Sequence[Stream], seeds: Sequence[int]
    ) -> None:
        self.trials = {one.key: one for one in trials}
        self.streams, self.seeds = tuple(streams), tuple(seeds)
        self.choosing, self.reporting = halves(seeds)

    def scores(
        self, stream: Stream, learner: str, metric: str, seeds: Sequence[int]
    ) -> NDArray[np.float64]:
        """Return the scores of the seeds of which there is a trial."""
        found = [self.trials.get((stream.name, seed, learner)) for seed in seeds]
        values = [getattr(one, metric) for one in found if one is not None]
        sign = -1.0 if stream.regression else 1.0
        return np.array([-math.inf if v is None else sign * v for v in values])

    def best(
        self,
        stream: Stream,
        metric: str,
        pool: Sequence[Learner],
        seeds: Sequence[int] | None = None,
    ) -> str | None:
        """Return the learner with the best mean over the selection seeds, or over `seeds`.

        Of those that ran with every seed of the comparison, or with all of `seeds`: what ran with a
        part of them has nothing to report, and a mean of other draws.
        """
        needed = self.seeds if seeds is None else seeds
        means = {}
        for name in (learner.name for learner in pool):
            if all((stream.name, seed, name) in self.trials for seed in needed):
                chosen = self.choosing if seeds is None else seeds
                means[name] = float(self.scores(stream, name, metric, chosen).mean())
        return max(means, key=means.__getitem__) if means else None

    def difference(self, stream: Stream, metric: str, first: str, second: str) -> Difference:
        """Return the first minus the second, over the reporting seeds."""
        a, b = (self.scores(stream, one, metric, self.reporting) for one in (first, second))
        return paired(a, b)

    def whole(self, stream: Stream, learner: str) -> bool:
        """Return whether a learner ran with every reporting seed: the dense filter, on tables."""
        return all((stream.name, seed, learner) in self.trials for seed in self.reporting)

    def rivals(self, pool: Sequence[Learner]) -> dict[tuple[str, str], str]:
        """Return the best setting of a pool for each stream and metric."""
        return {
            (stream.name, metric): found
            for stream in self.streams
            for metric in METRICS
            if (found := self.best(stream, metric, pool)) is not None
        }

    def wins(self, learner: str, rivals: dict[tuple[str, str], str]) -> dict[str, list[str]]:
        """Return the streams on which a learner is ahead on the mean: online, final and both."""
        found: dict[str, list[str]] = {}
        for metric in METRICS:
            found[metric] = [
                s.name
                for s in self.streams
                if (rival := rivals.get((s.name, metric))) is not None
                and self.whole(s, learner)
                and self.difference(s, metric, learner, rival).mean > 0
            ]
        return found | {"both": [name for name in found["online"] if name in found["final"]]}

    def reached(self, stream: Stream, learner: str, rival: str) -> float:
        """Return the share of the stream after which the rival's final accuracy is reached.

        The median over the reporting seeds; after a drift counted from where it begins; infinite
        where it is not reached.
        """
        shares, sign = [], -1.0 if stream.regression else 1.0
        for seed in self.reporting:
            mine = self.trials.get((stream.name, seed, learner))
            other = self.trials.get((stream.name, seed, rival))
            if mine is None or other is None:
                continue
            aim = -math.inf if other.final is None else sign * other.final
            at = np.arange(1, len(mine.curve) + 1) / len(mine.curve)
            good = [
                value is not None and sign * value >= aim and share > stream.begins
                for value, share in zip(mine.curve, at, strict=True)
            ]
            first = float(at[good.index(True)]) if any(good) else math.inf
            shares.append((first - stream.begins) / (1 - stream.begins))
        return float(np.median(shares)) if shares else math.nan

    def ranked(self) -> tuple[dict[str, float], int]:
        """Return mean ranks over streams and metrics, 1 the best, and how many there are.

        LoKO's variants, and of each first-order family its best setting; learners that are missing
        on a stream (the dense filter on all but tables) are left out.
        """
        pools = {f: [one for one in GRID if one.family == f] for f in FAMILIES}
        families = {f: self.rivals(pool) for f, pool in pools.items()}
        columns: dict[str, list[float]] = {
            name: [] for name in (*(k.name for k in LOKO), *FAMILIES)
        }
        for stream in self.streams:
            for metric in METRICS:
                for name, means in columns.items():
                    chosen = families[name].get((stream.name, metric)) if name in families else name
                    if chosen is None or not self.whole(stream, chosen):
                        means.append(math.nan)
                        continue
                    scores = self.scores(stream, chosen, metric, self.reporting)
                    means.append(float(scores.mean()))
        whole = {name: means for name, means in columns.items() if not np.isnan(means).any()}
        if not whole or not self.streams:
            return {}, 0
        ranks = stats.rankdata(-np.array(list(whole.values())), axis=0).mean(axis=1)
        return dict(zip(whole, map(float, ranks), strict=True)), len(self.streams) * len(METRICS)

    def sensitivity(self) -> dict[str, dict[str, float]]:
        """Return the mean score by stream and factor on p0, over all seeds: the metric `final`."""
        named = {"p0 x 1": LOKO[0].name} | {one.name: one.name for one in SCALED}
        found: dict[str, dict[str, float]] = {}
        for stream in self.streams:
            means = {
                key: self.scores(stream, one, "final", self.seeds) for key, one in named.items()
            }
            found[stream.name] = {key: float(a.mean()) for key, a in means.items() if a.size}
        return found

    def curve(self, stream: Stream, learner: str) -> dict[str, list[float] | None] | None:
        """Return the mean score on the test part along the stream, over the reporting seeds.

        Returns
        -------
        dict or None
            ``mean``, and ``half`` the 95 % interval's half width, None with a single seed; None
            without a run that went to the end.
        """
        found = [self.trials.get((stream.name, seed, learner)) for seed in self.reporting]
        rows = [one.curve for one in found if one is not None and None not in one.curve]
        if not rows:
            return None
        y = np.array(rows, float)
        half = None
        if len(y) > 1:
            spread = y.std(axis=0, ddof=1) / math.sqrt(len(y))
            half = [_short(v) for v in stats.t.ppf(0.975, len(y) - 1) * spread]
        return {"mean": [_short(v) for v in y.mean(axis=0)], "half": half}

    def diverged(self, learner: str) -> list[str]:
        """Return the runs of a learner that diverged, as ``stream, seed``."""
        return [
            f"{one.stream}, seed {one.seed}"
            for one in self.trials.values()
            if one.learner == learner and one.diverged is not None
        ]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def critical_difference(count: int, cases: int) -> float:
    """Return by how much mean ranks have to differ, by Nemenyi's test at 5 %.

    Parameters
    ----------
    count : int
        Learners, at least 2.
    cases : int
        Over how many cases they were ranked.

    Examples
    --------
    >>> round(critical_difference(4, 20), 3)
    1.049
    """
    q = float(stats.studentized_range.ppf(0.95, count, np.inf)) / math.sqrt(2)
    return q * math.sqrt(count * (count + 1) / (6 * cases))
