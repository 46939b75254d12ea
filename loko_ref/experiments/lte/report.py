"""What comes of a run of ``loko-ref lte``: train, compare with the baselines, report.

Shapes: W (o, i); s (min(o, i),); curves are lists of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array, to_host
from loko_ref.errors import NumericalError
from loko_ref.experiments.lte import checkpoint
from loko_ref.experiments.lte import diagnostics as diag
from loko_ref.experiments.lte.setup import Job
from loko_ref.experiments.lte.train import Data, History, baseline_config, evaluate, train
from loko_ref.experiments.plots import COLOURS, Line, Panel, draw
from loko_ref.experiments.terminal import Bars, show_table
from loko_ref.files.documents import document
from loko_ref.files.writing import write_bytes
from loko_ref.lte.config import LteConfig
from loko_ref.lte.state import LteState, fingerprint, init
from loko_ref.lte.team import Alone, Team
from loko_ref.network.spec import linears

__all__ = ["End", "execute", "plot", "report", "show"]


@dataclass(frozen=True, kw_only=True, eq=False)
class End:
    """A run that is over."""

    weights: Mapping[str, Array]
    factors: Array
    history: History
    loss: float
    evaluation: tuple[float, float | None]
    steps: int
    merges: int
    digest: str


def execute(job: Job, team: Team) -> End:
    """Train to the end, saving at each merge where asked to.

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

    name = f"lte, {config.heads} heads"
    return _run(name, config, job.state, job, job.history, team, save)


def _run(
    name: str,
    config: LteConfig,
    state: LteState,
    job: Job,
    history: History,
    team: Team,
    merged: Callable[[LteState, History], None] = lambda state, history: None,
) -> End:
    """Train one configuration to the job's end, under a progress bar."""
    with Bars(team.rank == 0) as bars:
        bars.update(name, state.step, job.steps)
        state = train(
            config,
            state,
            job.data,
            steps=job.steps,
            batch=job.batch,
            team=team,
            history=history,
            merged=merged,
            stepped=lambda event: bars.update(name, event.state.step, job.steps),
        )
    return _end(config, state, job.data, history, team)


def _check_finite(evaluations: Sequence[tuple[int, float, float | None]], step: int) -> None:
    """Refuse a network whose loss is no number: its last step was one too far."""
    if not all(math.isfinite(loss) for _, loss, _ in evaluations):
        raise NumericalError(
            "loss", None, "The run diverged: take a smaller learning rate or p0.", step
        )


def _end(config: LteConfig, state: LteState, data: Data, history: History, team: Team) -> End:
    loss, _ = evaluate(config, state, data.x, data.y)
    _check_finite([(state.step, loss, None), *history.evaluations[-1:]], state.step)
    rows = None if state.merged is None else to_host(state.merged)
    if config.mode == "lte":  # not the algorithm's: the factors of all heads, for the angles
        rows = np.concatenate(team.collect(to_host(state.theta)))
    assert rows is not None
    return End(
        weights=diag.effective_weights(config, state),
        factors=rows,
        history=history,
        loss=loss,
        evaluation=evaluate(config, state, data.x_test, data.y_test),
        steps=state.step,
        merges=state.merges,
        digest=fingerprint(config, state, team),
    )


def _spectra(config: LteConfig, end: End, start: Mapping[str, Array]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (layer["name"] for layer in linears(config.spec)):
        site = config.layout.sites.get(name)
        W, W_0 = end.weights[f"{name}.W"], start[f"{name}.W"]
        s = diag.update_spectrum(W, W_0)
        found[name] = {
            "rank": diag.numerical_rank(W, W_0),
            "effective_rank": diag.effective_rank(s),
            "singular_values": s.tolist(),
        }
        if site is not None and site.lora and config.heads > 1:
            A = config.layout.take(end.factors, f"{name}.A")
            found[name]["angles"] = diag.principal_angles(A).tolist()
    return found


def _summary(config: LteConfig, end: End, spectra: Mapping[str, Any], sent: int) -> dict[str, Any]:
    return {
        "test_accuracy": end.evaluation[1],
        "loss": end.loss,
        "steps": end.steps,
        "merges": end.merges,
        "bytes_sent": sent,
        "rank_of_update": max(v["rank"] for v in spectra.values()),
        "state_sha256": end.digest,
    }


def _curves(name: str, end: End, spectra: Mapping[str, Any]) -> dict[str, Any]:
    told = end.history.evaluations
    return {
        "name": name,
        "loss": end.history.loss,
        "evaluations": [{"step": a, "loss": b, "accuracy": c} for a, b, c in told],
        "layers": spectra,
    }


def report(job: Job, end: End) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the baselines, and put everything into JSON data.

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
    config = job.config
    spectra = _spectra(config, end, job.start)
    result = _summary(config, end, spectra, end.history.sent)
    runs = [_curves("mhlora" if config.mode == "mhlora" else "lte", end, spectra)]
    baselines = []
    for name in job.baselines:
        other = baseline_config(config, name)
        state = init(other, weights=job.start, batch=job.batch)
        history = History()
        try:
            done = _run(f"baseline {name}", other, state, job, history, Alone())
        except NumericalError as error:  # what it was compared with had ended well
            raise NumericalError(
                f"baseline {name}: {error.quantity}", error.eigenvalue, error.cause, error.step
            ) from error
        found = _spectra(other, done, job.start)
        sent = job.steps * config.heads * other.layout.n * state.theta.dtype.itemsize
        baselines.append({"name": name} | _summary(other, done, found, sent))
        runs.append(_curves(name, done, found))
    result["baselines"] = baselines
    details = {
        "config": config.as_json(),
        "run": {"batch": job.batch, "steps": job.steps},
        "runs": runs,
    }
    return document("lte", result), document("lte-details", details)


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
