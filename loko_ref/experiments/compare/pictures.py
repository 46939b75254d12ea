"""Pictures of a comparison: curves with intervals, mean ranks, the influence of p0."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from loko_ref.errors import extras
from loko_ref.experiments.compare.analysis import Table, critical_difference
from loko_ref.experiments.compare.learners import GRID, LOKO
from loko_ref.experiments.compare.streams import Stream
from loko_ref.experiments.plots import COLOURS, Line, Panel, draw

__all__ = ["curves", "ranks", "sensitivity"]


def _curve(table: Table, stream: Stream, learner: str, label: str, colour: str) -> Line | None:
    found = [table.trials.get((stream.name, seed, learner)) for seed in table.reporting]
    rows = [one.curve for one in found if one is not None and None not in one.curve]
    if not rows:
        return None
    y = np.array(rows, float)
    mean, half = y.mean(axis=0), np.zeros(y.shape[1])
    if len(y) > 1:
        half = stats.t.ppf(0.975, len(y) - 1) * y.std(axis=0, ddof=1) / math.sqrt(len(y))
    x = np.arange(1, y.shape[1] + 1) / y.shape[1]
    style = {"color": colour, "linewidth": 1.8}
    band = (list(mean - half), list(mean + half))
    return Line(x=list(x), y=list(mean), label=label, style=style, band=band)


def curves(table: Table, kind: str = "svg") -> bytes:
    """Draw the score on the test part along each stream, with 95 % intervals of the mean.

    Parameters
    ----------
    table : Table
        Of all trials.
    kind : {"svg", "png"}
        Format.
    """
    adamw = [one for one in GRID if one.family == "AdamW"]
    panels = []
    for stream in table.streams:
        shown = [(LOKO[0].name, "LoKO, recommended"), (LOKO[1].name, "LoKO, abstract reading")]
        for label, pool in (("AdamW at its best", adamw), ("first-order at its best", GRID)):
            found = table.best(stream, "final", pool)
            shown += [] if found is None else [(found, label)]
        lines = [
            line
            for k, (name, label) in enumerate(shown)
            if (line := _curve(table, stream, name, label, COLOURS[k])) is not None
        ]
        score = "RMSE" if stream.regression else "accuracy"
        axes = {"xlabel": "share of the stream", "ylabel": score, "xlim": (0, 1)}
        panels.append(Panel(title=stream.name, lines=lines, axes=axes))
    count = len(table.reporting)
    return draw(panels, title=f"test part along the stream, mean of {count} seeds", kind=kind)


def sensitivity(table: Table, kind: str = "svg") -> bytes:
    """Draw the final score over three decades of p0, the default at 1.

    Parameters
    ----------
    table, kind
        As for :func:`curves`.
    """
    panels = []
    found = table.sensitivity()
    for stream in table.streams:
        points = sorted(
            (float(key.split()[-1]), value) for key, value in found[stream.name].items()
        )
        sign = -1 if stream.regression else 1
        x, y = [p for p, _ in points], [sign * value for _, value in points]
        line = Line(x=x, y=y, style={"color": COLOURS[0], "marker": "o"})
        axes = {"xscale": "log", "xlabel": "factor on p0",
                "ylabel": "RMSE" if stream.regression else "accuracy"}  # fmt: skip
        panels.append(Panel(title=stream.name, lines=[line] if points else [], axes=axes))
    return draw(panels, title="final score at other prior variances", kind=kind)


def ranks(mean_ranks: Mapping[str, float], cases: int, kind: str = "svg") -> bytes:
    """Draw mean ranks on a line; a bar joins what Nemenyi's test at 5 % does not tell apart.

    Parameters
    ----------
    mean_ranks : mapping of str to float
        Learner -> mean rank, 1 the best; two learners or more.
    cases : int
        Over how many streams and metrics.
    kind : {"svg", "png"}
        Format.
    """
    matplotlib = extras.load("matplotlib", "a plot")
    figures = extras.load("matplotlib.figure", "a plot")
    width = critical_difference(len(mean_ranks), cases)
    order = sorted(mean_ranks.items(), key=lambda item: item[1])
    bars = _groups([rank for _, rank in order], width)
    style = {"font.size": 10, "svg.hashsalt": "loko-ref", "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(9, 1.6 + 0.28 * len(order)), layout="constrained")
        axes: Any = figure.subplots()
        for k, (name, rank) in enumerate(order):
            own = name in {one.name for one in LOKO}
            axes.plot([rank, rank], [0, -k - 1], color="#bbb", lw=0.8, zorder=1)
            axes.plot(rank, 0, "o", color=COLOURS[0 if own else 1], zorder=3)
            axes.annotate(
                f" {name}  {rank:.2f}", (rank, -k - 1), va="center",
                color=COLOURS[0 if own else 1], fontsize=9,
            )  # fmt: skip
        for k, (low, high) in enumerate(bars):
            axes.plot([low - 0.05, high + 0.05], [0.5 + 0.35 * k] * 2, color="#222", lw=3)
        axes.set(
            xlim=(1, len(order) + 1.5), ylim=(-len(order) - 0.7, 1 + 0.35 * len(bars)), yticks=[]
        )
        axes.set_title(
            f"mean rank over {cases} streams and metrics; critical difference {width:.2f}; "
            "LoKO blue, first-order at its best orange",
            fontsize=10,
        )
        axes.spines[["left", "right", "bottom"]].set_visible(False)
        axes.xaxis.set_ticks_position("top")
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {}
        )
    return buffer.getvalue()


def _groups(sorted_ranks: Sequence[float], width: float) -> list[tuple[float, float]]:
    """Return the longest runs of ranks that differ by less than `width`."""
    found: list[tuple[float, float]] = []
    for low in sorted_ranks:
        high = max(rank for rank in sorted_ranks if rank - low < width)
        if high > low and (not found or high > found[-1][1]):
            found.append((low, high))
    return found
