"""Pictures of a comparison, from its summary: curves with intervals, mean ranks, p0's influence."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.errors import extras
from loko_ref.experiments.compare.analysis import critical_difference
from loko_ref.experiments.compare.learners import LOKO
from loko_ref.experiments.plots import COLOURS, Line, Panel, draw


def drawn(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw every picture that a summary has the numbers of.

    Parameters
    ----------
    summary : mapping
        Of :func:`online.summary`.

    Returns
    -------
    dict
        Some of ``curves``, ``ranks``, ``p0`` -> SVG.
    """
    pictures = {}
    if any(summary["curves"].values()):
        pictures["curves"] = curves(summary)
    if len(summary["ranks"]["mean"]) > 1:
        pictures["ranks"] = ranks(summary["ranks"]["mean"], summary["ranks"]["cases"])
    if any(len(found) > 1 for found in summary["p0"].values()):
        pictures["p0"] = sensitivity(summary)
    return pictures


def curves(summary: Mapping[str, Any], kind: str = "svg") -> bytes:
    """Draw the score on the test part along each stream, with 95 % intervals of the mean.

    Parameters
    ----------
    summary : mapping
        Of :func:`online.summary`.
    kind : {"svg", "png"}
        Format.
    """
    panels = []
    for row in summary["streams"]:
        lines = []
        for k, (label, one) in enumerate(summary["curves"][row["stream"]].items()):
            y, half = np.array(one["mean"]), one["half"]
            x = np.arange(1, len(y) + 1) / len(y)
            band = None if half is None else (list(y - half), list(y + half))
            style = {"color": COLOURS[k], "linewidth": 1.8}
            lines.append(Line(x=list(x), y=list(y), label=label, style=style, band=band))
        axes: dict[str, Any] = {
            "xlabel": "share of the stream",
            "ylabel": _score(row),
            "xlim": (0, 1),
        }
        if lines:
            axes["ylim"] = _span(lines, 1.0 if not row["regression"] else math.inf)
        panels.append(Panel(title=row["stream"], lines=lines, axes=axes))
    count = len(summary["seeds"]["reporting"])
    title = f"test part along the stream, mean of {count} seed{'s' * (count > 1)}"
    return draw(panels, title=title, kind=kind)


def _span(lines: Sequence[Line], top: float) -> tuple[float, float]:
    """Return what is shown: the means, and of wide intervals half as much to each side."""
    low, high = (f(f(line.y) for line in lines) for f in (min, max))
    margin = 0.5 * (high - low) or 0.05
    bands = [line.band for line in lines if line.band is not None]
    least = min((min(band[0]) for band in bands), default=low)
    most = max((max(band[1]) for band in bands), default=high)
    return max(least, low - margin, 0.0), min(most, high + margin, top) + 0.02 * margin


def _score(row: Mapping[str, Any]) -> str:
    return "RMSE" if row["regression"] else "accuracy"


def sensitivity(summary: Mapping[str, Any], kind: str = "svg") -> bytes:
    """Draw the final score over three decades of p0, the default at 1.

    Parameters
    ----------
    summary, kind
        As for :func:`curves`.
    """
    panels = []
    for row in summary["streams"]:
        found = summary["p0"][row["stream"]].items()
        points = sorted((float(key.split()[-1]), v) for key, v in found if v is not None)
        sign = -1 if row["regression"] else 1
        x, y = [p for p, _ in points], [sign * value for _, value in points]
        line = Line(x=x, y=y, style={"color": COLOURS[0], "marker": "o"})
        axes = {"xscale": "log", "xlabel": "factor on p0", "ylabel": _score(row)}
        panels.append(Panel(title=row["stream"], lines=[line] if points else [], axes=axes))
    return draw(panels, title="final score at other prior variances", kind=kind)


def ranks(mean_ranks: Mapping[str, float], cases: int, kind: str = "svg") -> bytes:
    """Draw mean ranks on a line; a bar joins what Nemenyi's test at 5 % does not distinguish.

    Parameters
    ----------
    mean_ranks : mapping of str to float
        Learner -> mean rank, 1 the best; two learners or more.
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
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
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
