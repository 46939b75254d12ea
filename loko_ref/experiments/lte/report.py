"""What comes of a run of ``loko-ref lte``: train, compare with the baselines, report.

Shapes: W (o, i); s (min(o, i),); curves are lists of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array, to_host
from loko_ref.errors import NumericalError
from loko_ref.experiments.lte import checkpoint, diagnostics
from loko_ref.experiments.lte.setup import Job
from loko_ref.experiments.lte.train import History, baseline_config, evaluate, train
from loko_ref.experiments.plots import COLOURS, Line, Panel, draw
from loko_ref.experiments.terminal import progress_bars, show_table
from loko_ref.files.documents import document
from loko_ref.files.writing import write_bytes
from loko_ref.lte.config import LteConfig
from loko_ref.lte.state import LteState, fingerprint, init
from loko_ref.lte.team import Alone, Team
from loko_ref.network.spec import linears

Result = tuple[dict[str, Any], dict[str, Any]]
"""Of one run that is over: its summary, and its curves and spectra, both as JSON data."""


def execute(job: Job, team: Team) -> Result:
    """Train to the end, saving at each merge where there is a checkpoint; rank 0 has the result.

    Raises
    ------
    NumericalError
        If the run diverges; names the step.
    """
    config = job.config

    def save(state: LteState, history: History) -> None:
        _check_finite(history.evaluations[-1:], state.step)
        if job.checkpoint is not None:
            checkpoint.save(job.checkpoint, config, state, history, job.run, team)

    title = f"lte, {config.heads} heads"
    return _run(config.mode, title, config, job.state, job, job.history, team, save)


def _run(
    name: str,
    title: str,
    config: LteConfig,
    state: LteState,
    job: Job,
    history: History,
    team: Team,
    merged: Callable[[LteState, History], None] = lambda state, history: None,
) -> Result:
    """Train one configuration to the job's end, under a progress bar, and sum it up."""
    with progress_bars(team.rank == 0) as update:
        update(title, state.step, job.steps)
        state = train(
            config,
            state,
            job.data,
            steps=job.steps,
            batch=job.batch,
            team=team,
            history=history,
            merged=merged,
            stepped=lambda event: update(title, event.state.step, job.steps),
        )
    loss, _ = evaluate(config, state, job.data.x, job.data.y)
    _check_finite([(state.step, loss, None), *history.evaluations[-1:]], state.step)
    rows = None if state.merged is None else to_host(state.merged)
    if config.mode == "lte":  # not the algorithm's: the factors of all heads, for the angles
        rows = np.concatenate(team.collect(to_host(state.theta)))
    digest = fingerprint(config, state, team)
    if team.rank != 0:
        return {}, {}
    layers = _spectra(config, state, rows, job.start)
    summary = {
        "test_accuracy": evaluate(config, state, job.data.x_test, job.data.y_test)[1],
        "loss": loss,
        "steps": state.step,
        "merges": state.merges,
        "bytes_sent": history.sent,
        "rank_of_update": max(layer["rank"] for layer in layers.values()),
        "state_sha256": digest,
    }
    points = [{"step": a, "loss": b, "accuracy": c} for a, b, c in history.evaluations]
    curves = {"name": name, "loss": history.loss, "evaluations": points, "layers": layers}
    return summary, curves


def _check_finite(evaluations: Sequence[tuple[int, float, float | None]], step: int) -> None:
    """Raise for a network whose loss is not finite: its last step was one too far."""
    if not all(math.isfinite(loss) for _, loss, _ in evaluations):
        raise NumericalError(
            "loss", None, "The run diverged: take a smaller learning rate or p0.", step
        )


def _spectra(
    config: LteConfig, state: LteState, rows: Any, start: Mapping[str, Array]
) -> dict[str, Any]:
    """Return rank and spectrum of each layer's update, and the angles between the heads' A."""
    found: dict[str, Any] = {}
    weights = diagnostics.effective_weights(config, state)
    for name in (layer["name"] for layer in linears(config.spec)):
        site = config.layout.sites.get(name)
        W, W_0 = weights[f"{name}.W"], start[f"{name}.W"]
        s = diagnostics.update_spectrum(W, W_0)
        found[name] = {
            "rank": diagnostics.numerical_rank(W, W_0),
            "effective_rank": diagnostics.effective_rank(s),
            "singular_values": s.tolist(),
        }
        if site is not None and site.lora and config.heads > 1:
            A = config.layout.take(rows, f"{name}.A")
            found[name]["angles"] = diagnostics.principal_angles(A).tolist()
    return found


def report(job: Job, end: Result) -> Result:
    """Run the baselines, and put everything into JSON documents.

    Returns
    -------
    result : dict
        Schema ``loko-ref/lte/1``. ``loss`` is the mean over the training set at the end;
        ``rank_of_update`` the largest numerical rank of W - W_0 over the layers; ``bytes_sent``
        the logical bytes of factors (and replicas), for a baseline those of data-parallel training
        on as many workers as there are heads.
    details : dict
        Schema ``loko-ref/lte-details/1``: curves, spectra, principal angles.
    """
    config, (result, curves) = job.config, end
    baselines, runs = [], [curves]
    for name in job.baselines:
        other = baseline_config(config, name)
        state = init(other, weights=job.start, batch=job.batch)
        try:
            title = f"baseline {name}"
            summary, curves = _run(name, title, other, state, job, History(), Alone())
        except NumericalError as error:  # what it was compared with had ended well
            raise NumericalError(
                f"baseline {name}: {error.quantity}", error.eigenvalue, error.cause, error.step
            ) from error
        sent = job.steps * config.heads * other.layout.n * state.theta.dtype.itemsize
        baselines.append({"name": name} | summary | {"bytes_sent": sent})
        runs.append(curves)
    about = {"batch": job.batch, "steps": job.steps}
    details = {"config": config.as_json(), "run": about, "runs": runs}
    return document("lte", result | {"baselines": baselines}), document("lte-details", details)


def show(result: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    """Print the result: a table of the runs, one of the layers, and the hash of the state."""
    first = details["runs"][0]
    rows = []
    for row in ({"name": first["name"]} | dict(result), *result["baselines"]):
        accuracy = "-" if row["test_accuracy"] is None else f"{row['test_accuracy']:.4f}"
        counts = [str(row[key]) for key in ("steps", "merges")]
        sent, rank = f"{row['bytes_sent'] / 1e6:.3f}", str(row["rank_of_update"])
        rows.append([row["name"], accuracy, f"{row['loss']:.6f}", *counts, sent, rank])
    columns = ("run", "test accuracy", "loss", "steps", "merges", "MB sent", "rank")
    show_table(None, columns, rows)
    rows = []
    for name, layer in first["layers"].items():
        s = " ".join(f"{v:.3g}" for v in layer["singular_values"][:5])
        angles = [a for pair in layer.get("angles", []) for a in pair]
        degrees = f"{min(angles):.1f} to {max(angles):.1f}" if angles else ""
        rows.append([name, str(layer["rank"]), f"{layer['effective_rank']:.2f}", s, degrees])
    names = ("layer", "rank", "effective rank", "largest singular values", "angles of A, degrees")
    show_table("W - W_0 by layer", names, rows)
    print(f"state_sha256 {result['state_sha256']}")


def plot(path: Path, details: Mapping[str, Any]) -> None:
    """Draw the loss and accuracy curves, the spectra of W - W_0 and the heads' angles.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    curves: dict[str, list[Line]] = {"loss": [], "accuracy": []}
    spectra, angles = [], []
    for k, run in enumerate(details["runs"]):
        for what, lines in curves.items():
            points = [(e["step"], e[what]) for e in run["evaluations"] if e[what] is not None]
            x, y = zip(*points, strict=True) if points else ((), ())
            if points:
                lines.append(Line(x=x, y=y, label=run["name"], style={"color": COLOURS[k]}))
        for j, (name, layer) in enumerate(run["layers"].items()):
            colour = {"color": COLOURS[j % len(COLOURS)]}
            s = [v for v in layer["singular_values"] if v > 1e-12]
            style = colour | {"linestyle": ("-", "--", ":")[k]}
            label = f"{run['name']}, layer {name}"
            spectra.append(Line(x=range(1, len(s) + 1), y=s, label=label, style=style))
            some = sorted(a for pair in layer.get("angles", []) for a in pair)
            if k == 0 and some:
                label = f"layer {name}"
                angles.append(Line(x=range(len(some)), y=some, label=label, style=colour))
    log = {"yscale": "log"}
    panels = [
        Panel(title="test loss", lines=curves["loss"], axes={"xlabel": "step", **log}),
        Panel(title="test accuracy", lines=curves["accuracy"], axes={"xlabel": "step"}),
        Panel(title="singular values of W - W_0", lines=spectra, axes={"xlabel": "number", **log}),
        Panel(
            title="principal angles between the heads' A (degrees)",
            lines=angles,
            axes={"xlabel": "sorted"},
        ),
    ]
    write_bytes(path, draw(panels, kind=path.suffix[1:].lower()), "--plot")
