"""Pictures of runs: panels of lines, drawn alike for ``train`` and ``lte``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loko_ref.errors import InputError, extras
from loko_ref.experiments.stream import Point

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Okabe and Ito's, distinguishable with most kinds of colour vision."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: abscissae, ordinates, its name where it has one, and Matplotlib's style.

    With `band`, two sequences of ordinates, the area between them is shaded.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    style: Mapping[str, Any] = field(default_factory=dict)
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes: its lines, and what Matplotlib's ``Axes.set`` takes besides the title."""

    title: str
    lines: Sequence[Line]
    axes: Mapping[str, Any] = field(default_factory=dict)


def draw(panels: Sequence[Panel], *, title: str = "", kind: str = "svg") -> bytes:
    """Draw panels, two in a row.

    Parameters
    ----------
    panels : sequence of Panel
        In reading order; equal legends are drawn once, below.
    kind : {"svg", "png"}
        Format.

    Returns
    -------
    bytes
        The picture; equal panels give equal bytes.

    Raises
    ------
    InputError
        If there is no line.
    MissingExtraError
        If Matplotlib is not installed.
    """
    if not any(panel.lines for panel in panels):
        raise InputError("curves", "no curve", "at least one", "every run failed at its start")
    matplotlib = extras.load("matplotlib", "a plot")
    figures = extras.load("matplotlib.figure", "a plot")
    style = {"font.size": 10, "svg.hashsalt": "loko-ref", "svg.fonttype": "none"}
    rows = -(-len(panels) // 2)
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(10, 1 + 3.6 * rows), layout="constrained")
        figure.suptitle(title)
        grid = list(figure.subplots(rows, 2).flat)
        for spare in grid[len(panels) :]:
            spare.set_axis_off()
        grid = grid[: len(panels)]
        for axes, panel in zip(grid, panels, strict=True):
            for line in panel.lines:
                (drawn,) = axes.plot(line.x, line.y, label=line.label, **line.style)
                if line.band is not None:
                    axes.fill_between(line.x, *line.band, color=drawn.get_color(), alpha=0.2, lw=0)
            axes.set_title(panel.title, fontsize=10)
            axes.set(**panel.axes)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        legends = [axes.get_legend_handles_labels() for axes in grid]
        if all(names == legends[0][1] for _, names in legends):
            handles, names = legends[0]
            figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
        else:
            for axes, (_, names) in zip(grid, legends, strict=True):
                if names:
                    axes.legend(fontsize=7)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
    return buffer.getvalue()


def learning_curves(
    curves: Mapping[str, Sequence[Sequence[Point]]], regression: bool = False
) -> list[Panel]:
    """Two panels: the running score on the stream, and the score on the test part.

    One colour per learner; its seeds as thin lines, their mean as a thick one.

    Parameters
    ----------
    curves : mapping of str to sequence of curves
        Learner -> one curve per seed; curves of one learner share their abscissae.
    regression : bool
        Whether the score is an error (RMSE) and not an accuracy.
    """
    score = "root mean squared error" if regression else "accuracy"
    titles = {
        "online": f"online {score}, each sample before it is learned",
        "test": f"{score} on the test part",
    }
    every = [curve for some in curves.values() for curve in some]
    most = max((max(p.online, p.test) for curve in every for p in curve), default=1.0)
    axes = {
        "xlabel": "samples streamed",
        "ylabel": score,
        "xlim": (0, None),
        "ylim": (0, 1.05 * most if regression else 1),
    }
    found: dict[str, list[Line]] = {"online": [], "test": []}
    for k, (name, given) in enumerate(curves.items()):
        some = [curve for curve in given if curve]
        colour = {"color": COLOURS[k % len(COLOURS)]}
        for what, lines in found.items() if some else ():
            x = [[point.samples for point in curve] for curve in some]
            y = [[getattr(point, what) for point in curve] for curve in some]
            if len(some) > 1:
                thin = colour | {"linewidth": 0.8, "alpha": 0.35}
                lines += [Line(x=a, y=b, style=thin) for a, b in zip(x, y, strict=True)]
            mean = [sum(values) / len(some) for values in zip(*y, strict=False)]
            label = name if len(some) == 1 else f"{name} (mean of {len(some)})"
            thick = colour | {"linewidth": 2.2, "marker": "o", "markersize": 3}
            lines.append(Line(x=x[0][: len(mean)], y=mean, label=label, style=thick))
    return [Panel(title=titles[what], lines=lines, axes=axes) for what, lines in found.items()]
