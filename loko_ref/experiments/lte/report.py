"""What comes of a run of ``loko-ref lte``: train, compare with the baselines, report.

Shapes: W (o, i); s (min(o, i),); curves are lists of numbers.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array, to_host
from loko_ref.errors import NumericalError, extras
from loko_ref.experiments.lte import checkpoint
from loko_ref.experiments.lte import diagnostics as diag
from loko_ref.experiments.lte.setup import Job
from loko_ref.experiments.lte.train import Data, History, baseline_config, evaluate, train
from loko_ref.files.documents import document
from loko_ref.files.writing import write_bytes
from loko_ref.lte.config import LteConfig
from loko_ref.lte.serial import Event
from loko_ref.lte.state import LteState, fingerprint, init
from loko_ref.lte.team import ALONE, Alone, Team
from loko_ref.network.spec import linears

__all__ = ["End", "execute", "plot", "report", "text"]


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


class _Bar:
    """A progress bar on a terminal's stderr; nothing elsewhere."""

    def __init__(self, title: str, steps: int, done: int, team: Team) -> None:
        self.bar: Any = None
        if team.rank == 0 and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(title, total=steps, completed=done)
            self.bar.start()

    def __call__(self, event: Event) -> None:
        if self.bar is not None and event.kind == "step":
            self.bar.advance(self.task)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def execute(job: Job, team: Team) -> End:
    """Train to the end, saving at each merge where asked to."""
    config = job.config

    def save(state: LteState, history: History) -> None:
        _check_finite(history.evaluations[-1:], state.step)
        if job.checkpoint is not None:
            checkpoint.save(job.checkpoint, config, state, history, job.run, team)

    bar = _Bar(f"lte, {config.heads} heads", job.steps, job.state.step, team)
    try:
        state = train(
            config,
            job.state,
            job.data,
            steps=job.steps,
            batch=job.batch,
            team=team,
            history=job.history,
            merged=save,
            stepped=bar,
        )
    finally:
        bar.close()
    return _end(config, state, job.data, job.history, team)


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
        bar = _Bar(f"baseline {name}", job.steps, 0, ALONE)
        try:
            state = train(
                other,
                state,
                job.data,
                steps=job.steps,
                batch=job.batch,
                team=Alone(),
                history=history,
                stepped=bar,
            )
            done = _end(other, state, job.data, history, ALONE)
        except NumericalError as error:  # what it was compared with had ended well
            raise NumericalError(
                f"baseline {name}: {error.quantity}", error.eigenvalue, error.cause, error.step
            ) from error
        finally:
            bar.close()
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


def text(result: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """Lay out the result for a terminal."""
    heads = [{"name": details["runs"][0]["name"]} | dict(result), *result["baselines"]]
    lines = [
        f"{'run':10} {'test acc.':>9} {'loss':>10} {'steps':>6} {'merges':>6} {'MB sent':>9}"
        f" {'rank':>5}"
    ]
    for row in heads:
        accuracy = "-" if row["test_accuracy"] is None else f"{row['test_accuracy']:.4f}"
        lines.append(
            f"{row['name']:10} {accuracy:>9} {row['loss']:10.6f} {row['steps']:6d} "
            f"{row['merges']:6d} {row['bytes_sent'] / 1e6:9.3f} {row['rank_of_update']:5d}"
        )
    lines.append("")
    lines.append("layer: rank, effective rank, first singular values of W - W_0; angles of the A")
    layers = details["runs"][0]["layers"]
    width = max(5, *map(len, layers))
    for name, layer in layers.items():
        s = " ".join(f"{v:.3g}" for v in layer["singular_values"][:5])
        line = f"{name:{width}}  {layer['rank']:4d} {layer['effective_rank']:7.2f}   {s}"
        angles = [a for pair in layer.get("angles", []) for a in pair]
        if angles:
            line += f"   {min(angles):.1f} to {max(angles):.1f} degrees"
        lines.append(line)
    lines.append(f"state_sha256 {result['state_sha256']}")
    return "\n".join(lines)


def plot(path: Path, details: Mapping[str, Any]) -> None:
    """Draw the loss and accuracy curves, the spectra of W - W_0 and the heads' angles, as SVG.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    rc_context = extras.load("matplotlib", "a plot").rc_context
    Figure = extras.load("matplotlib.figure", "a plot").Figure
    with rc_context({"svg.hashsalt": "loko-ref", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        for run in details["runs"]:
            at = [e["step"] for e in run["evaluations"]]
            axes[0, 0].plot(at, [e["loss"] for e in run["evaluations"]], label=run["name"])
            if run["evaluations"][0]["accuracy"] is not None:
                axes[0, 1].plot(at, [e["accuracy"] for e in run["evaluations"]], label=run["name"])
        axes[0, 0].set(title="test loss", xlabel="step", yscale="log")
        axes[0, 1].set(title="test accuracy", xlabel="step")
        styles = ("-", "--", ":", "-.")
        for k, run in enumerate(details["runs"]):
            for j, (name, layer) in enumerate(run["layers"].items()):
                s = [v for v in layer["singular_values"] if v > 1e-12]
                axes[1, 0].plot(
                    range(1, len(s) + 1),
                    s,
                    styles[k % 4],
                    color=f"C{j}",
                    label=f"{run['name']}, layer {name}",
                )
        axes[1, 0].set(title="singular values of W - W_0", xlabel="number", yscale="log")
        layers = details["runs"][0]["layers"]
        for j, (name, layer) in enumerate(layers.items()):
            angles = sorted(a for pair in layer.get("angles", []) for a in pair)
            axes[1, 1].plot(angles, color=f"C{j}", label=f"layer {name}")
        axes[1, 1].set(title="principal angles between the heads' A (degrees)", xlabel="sorted")
        for ax in axes.flat:
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_bytes(path, buffer.getvalue(), "--plot")
