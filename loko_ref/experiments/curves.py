"""Learning curves as a picture: accuracy (or error) along the stream, online and on the test part.

One colour a learner; its seeds as thin lines, their mean as a thick one, named at its end.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from loko_ref.errors import InputError, extras
from loko_ref.experiments.stream import Point

__all__ = ["draw"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Okabe and Ito's, told apart by most eyes."""


def draw(
    curves: Mapping[str, Sequence[Sequence[Point]]],
    *,
    title: str,
    regression: bool = False,
    kind: str = "svg",
) -> bytes:
    """Draw two panels: the running score on the stream, and the score on the test part.

    Parameters
    ----------
    curves : mapping of str to sequence of curves
        Learner -> one curve a seed; curves of one learner share their abscissae.
    title : str
        Above both.
    regression : bool
        Whether the score is an error (RMSE) and not an accuracy.
    kind : {"svg", "png"}
        Format.

    Returns
    -------
    bytes
        The picture; equal curves give equal bytes.

    Raises
    ------
    InputError
        If there is no curve.
    MissingExtraError
        If Matplotlib is not installed.
    """
    curves = {name: [c for c in some if c] for name, some in curves.items()}
    curves = {name: some for name, some in curves.items() if some}
    if not curves:
        raise InputError("curves", "no curve", "at least one", "every run failed at its start")
    matplotlib = extras.load("matplotlib", "a plot")
    figures = extras.load("matplotlib.figure", "a plot")
    style = {"font.size": 10, "svg.hashsalt": "loko-ref", "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(10, 4.6), layout="constrained")
        figure.suptitle(title)
        left, right = figure.subplots(1, 2, sharey=True)
        score = "root mean squared error" if regression else "accuracy"
        _panel(left, curves, "online", f"online {score}, each sample before it is learned")
        _panel(right, curves, "test", f"{score} on the test part")
        left.set_ylabel(score)
        for axes in (left, right):
            axes.set_xlabel("samples streamed")
            axes.set_xlim(left=0)
            axes.set_ylim(*((0, None) if regression else (0, 1)))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {}
        )
    return buffer.getvalue()


def _panel(
    axes: Any, curves: Mapping[str, Sequence[Sequence[Point]]], what: str, title: str
) -> None:
    axes.set_title(title, fontsize=10)
    for (name, some), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
        shown = [[getattr(point, what) for point in curve] for curve in some]
        if len(some) > 1:
            for curve, values in zip(some, shown, strict=True):
                samples = [point.samples for point in curve]
                axes.plot(samples, values, color=colour, linewidth=0.8, alpha=0.35)
        length = min(map(len, shown))
        mean = [sum(values[k] for values in shown) / len(shown) for k in range(length)]
        samples = [point.samples for point in some[0][:length]]
        label = name if len(some) == 1 else f"{name} (mean of {len(some)})"
        axes.plot(samples, mean, color=colour, linewidth=2.2, label=label, marker="o", markersize=3)


def _cycle(count: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(count)]
