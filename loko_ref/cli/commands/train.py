"""``loko-ref train``: watch LoKO learn a shifted world, beside first-order optimizers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from loko_ref import interrupt
from loko_ref.arrays import get_backend
from loko_ref.checks.values import read_number
from loko_ref.cli.needs import check_needs
from loko_ref.cli.options import describe, parse_optimizers, parse_variants
from loko_ref.errors import InputError, unknown_option
from loko_ref.experiments import runs
from loko_ref.experiments import stream as training
from loko_ref.experiments.config import BASELINES, RunConfig
from loko_ref.experiments.data.registry import regression
from loko_ref.experiments.runs import Entry
from loko_ref.files import storage
from loko_ref.files.documents import document
from loko_ref.files.writing import check_target, check_targets, write_bytes
from loko_ref.interrupt import command_line

__all__ = ["train"]

SEEDS = (0, 1, 2)
EVERY = 50
_NOTHING = "nothing is kept; give --checkpoint F.npz to go on from where a run was interrupted"


def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits (default), breast_cancer, wine, iris, diabetes (regression), topics "
            "(English text); or files of yours: mnist:DIR, cifar10:DIR, cifar100:DIR, "
            "glue:FILE.tsv, glue:DIR."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(help="mlp (default), vit (images in patches), encoder (text; its default)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many samples in each of base, stream and test.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="glue: a tokenizer.json, in place of the built-in words.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="glue: most tokens a sample. Default 64.")
    ] = None,
    shift: Annotated[
        str | None,
        typer.Option(
            help="rotate90 (images; their default), permute, invert (the tables' default), "
            "noise (the texts' default), none."
        ),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            help="loko, sgd, adagrad, adamw, with options as NAME,KEY=VALUE,...; repeatable. "
            "Default: loko and adamw."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="LoKO's choices as [OBSERVATION,]KEY=VALUE,...: observation, noise, timing, beta, "
            "r0, p0 (or p0.SITE), covariance, diagonal, form, lam, q, center. Each one that begins "
            "with an observation's name is a run of its own."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable. Default: 0, 1 and 2.")] = None,
    p0: Annotated[float | None, typer.Option(help="LoKO's prior variance (glm: 0.05).")] = None,
    lr: Annotated[
        list[str] | None,
        typer.Option(
            help="Learning rate of all first-order optimizers, or NAME=RATE; repeatable. "
            "Defaults are torch's (sgd, adagrad 0.01; adamw 0.001)."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step, stacked. Default 1.")] = None,
    label_noise: Annotated[
        float | None, typer.Option(help="Share of the stream's labels made wrong.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float64 (default) or float32.")] = None,
    backend: Annotated[str | None, typer.Option(help="numpy (default) or cupy.")] = None,
    route: Annotated[
        str | None,
        typer.Option(help="LoKO's steps by the readable (default) or the fast code, on NumPy."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results (loko-ref schema train).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves: F.svg (or .png).")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep a checkpoint: F.npz or F.safetensors.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = EVERY,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on from a checkpoint; its own options are taken if none are given."),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many steps, to go on later with --resume.")
    ] = None,
) -> None:
    """Train LoRA factors on a stream of shifted real data, by LoKO and by first-order optimizers.

    A base network is trained on unshifted data (digits: 64-128-128-10), LoRA (r = 4) is put on
    every linear, and the shifted stream is learned once. Exit code 1 if a run diverged.
    """
    check_needs(
        data="digits" if data is None and resume is None else data,
        tokenizer=tokenizer,
        plot=plot,
    )
    if plot is not None:
        check_target("--plot", plot, ".svg", ".png")
    if checkpoint is not None:
        check_target("--checkpoint", checkpoint, *storage.SUFFIXES)
    results = {"--json": json_file, "--plot": plot}
    check_targets(results, {"--resume": resume})
    check_targets({"--checkpoint": checkpoint, **results})  # which may be the one resumed from
    if stop_after is not None and checkpoint is None:
        raise InputError("--stop-after", stop_after, "--checkpoint F too", "nothing would be kept")
    about: dict[str, Any] = {
        "data": data,
        "network": network,
        "limit": limit,
        "tokenizer": tokenizer,
        "length": length,
        "shift": shift,
        "batch": batch,
        "label_noise": label_noise,
        "dtype": dtype,
        "backend": backend,
    }
    about = {key: value for key, value in about.items() if value is not None}
    configs: list[RunConfig] | None = None
    chosen = (optimizer, variant, seed, p0, lr, route)
    if resume is None or about or any(value is not None for value in chosen):
        configs = _configs(about, optimizer, variant, seed, p0, lr, route)
        get_backend(configs[0].backend)  # before the base is trained
    go_on: list[object] = ["train", "--resume", checkpoint, "--checkpoint", checkpoint]
    if checkpoint_every != EVERY:
        go_on += ["--checkpoint-every", checkpoint_every]
    for flag, path in (("--json", json_file), ("--plot", plot)):
        go_on += [] if path is None else [flag, path]
    interrupt.resumes(resume)
    if checkpoint is None and resume is None:
        interrupt.keep(lambda: _NOTHING)

    def saved(entries: Sequence[Entry]) -> None:
        assert checkpoint is not None
        file, command = checkpoint, command_line(*go_on)
        kept = f"kept: {file}, {_standing(entries)}; go on with: {command}"
        interrupt.keep(lambda: kept if file.is_file() else f"nothing is kept: {file} is gone")

    entries = _watched(configs, checkpoint, checkpoint_every, resume, stop_after, saved)

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no edge to wrap at
    if any(entry.result for entry in entries):
        console.print(_table([entry for entry in entries if entry.result]))
    complain = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    failed = [entry for entry in entries if entry.failure]
    for entry in failed:
        assert entry.failure is not None
        complain.print(f"diverged: {_name(entry)}, seed {entry.config.seed}: {_reason(entry)}")
    if json_file is not None:
        write_bytes(json_file, _json(entries).encode(), "--json")
    if plot is not None and any(entry.curve for entry in entries):
        write_bytes(plot, _plot(entries, plot.suffix[1:].lower()), "--plot")
    if any(entry.status in ("waiting", "running") for entry in entries):
        complain.print(f"stopped; go on with: {command_line(*go_on)}")
    if failed:
        raise typer.Exit(1)


def _standing(entries: Sequence[Entry]) -> str:
    """Describe how far the runs of a checkpoint are."""
    ended = sum(entry.status in ("done", "failed") for entry in entries)
    text = f"{ended} of {len(entries)} runs ended"
    if any(entry.status == "running" for entry in entries):
        text += f", the next at step {entries[ended].progress['step']}"
    return text


def _reason(entry: Entry) -> str:
    return str((entry.failure or {})["reason"])


def _configs(
    about: dict[str, Any],
    optimizer: list[str] | None,
    variant: list[str] | None,
    seed: list[int] | None,
    p0: float | None,
    lr: list[str] | None,
    route: str | None,
) -> list[RunConfig]:
    """Lay out the runs: for each seed, each optimizer, each variant of LoKO."""
    learners: list[tuple[str, dict[str, Any]]] = []
    named = parse_optimizers(optimizer or ["loko", "adamw"])
    rates = _rates(lr or [])
    for name, options in named:
        if name != "loko":
            rate = rates.get(name, rates.get("all"))
            learners.append((name, options if rate is None else {"lr": rate} | options))
            continue
        for choice in parse_variants(variant or []) or [{}]:
            given = {} if p0 is None else {"p0": p0}
            learners.append((name, given | choice | options))
    names = {name for name, _ in named}
    if "loko" not in names and (variant or p0 is not None or route is not None):
        raise InputError(
            "--variant" if variant else "--p0" if p0 is not None else "--route",
            "options of LoKO",
            "--optimizer loko among the optimizers",
            "LoKO was left out",
        )
    for name in rates.keys() - names - {"all"}:
        raise InputError(
            "--lr", f"a rate for {name}", "a rate for one that runs", "it was left out"
        )
    return [
        RunConfig(
            optimizer=name,
            options=options,
            seed=s,
            route=route if route is not None and name == "loko" else "readable",
            **about,
        )
        for s in (seed if seed is not None else SEEDS)
        for name, options in learners
    ]


def _rates(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, sign, number = text.rpartition("=")
        if sign and name not in BASELINES:
            raise unknown_option("--lr", name, BASELINES)
        found[name or "all"] = read_number("--lr", number)
    return found


def _watched(
    configs: list[RunConfig] | None,
    checkpoint: Path | None,
    every: int,
    resume: Path | None,
    stop_after: int | None,
    saved: Callable[[Sequence[Entry]], None],
) -> list[Entry]:
    """Carry the runs out under a progress bar on stderr; silent where that is no terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[score]}"),
        console=console,
        disable=not console.is_terminal,
    )
    lines: dict[int, Any] = {}

    def watch(k: int, task: training.Task, progress: training.Progress) -> None:
        if k not in lines:
            name = f"{_label(task.config)} seed {task.config.seed}"
            lines[k] = bar.add_task(name, total=task.steps, score="")
        score = ""
        if progress.curve:
            last = progress.curve[-1]
            score = f"online {last.online:.3g}  test {last.test:.3g}"
        bar.update(lines[k], completed=progress.step, score=score)

    with bar:
        return runs.run_all(
            configs,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
            stop_after=stop_after,
            watch=watch,
            saved=saved,
        )


def _label(config: RunConfig) -> str:
    return describe(config.optimizer, config.options, regression(config.data))


def _name(entry: Entry) -> str:
    return _label(entry.config)


def _grouped(entries: list[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_name(entry), []).append(entry)
    return groups


def _table(entries: list[Entry]) -> Table:
    """One row a run; below, the mean over the seeds."""
    config = entries[0].config
    kind = "rmse" if regression(config.data) else "accuracy"
    short = "RMSE" if kind == "rmse" else "accuracy"
    digits = ".1f" if kind == "rmse" else ".3f"
    table = Table(title=f"{config.data}, {config.shift}, batch {config.batch}, {config.dtype}")
    table.add_column("optimizer")
    for heading in ("seed", f"online {short}", f"test {short}", "steps", "seconds"):
        table.add_column(heading, justify="right")

    def values(entry: Entry) -> tuple[float, float, int, float]:
        result = entry.result or {}
        return (
            result[f"online_{kind}"],
            result[f"test_{kind}"],
            result["steps"],
            result["seconds"],
        )

    groups = _grouped(entries)
    for name, some in groups.items():
        for entry in some:
            online, test, steps, seconds = values(entry)
            shown = (f"{online:{digits}}", f"{test:{digits}}", str(steps), f"{seconds:.2f}")
            table.add_row(name, str(entry.config.seed), *shown)
    if any(len(some) > 1 for some in groups.values()):
        table.add_section()
        for name, some in groups.items():
            columns = list(zip(*map(values, some), strict=True))
            means = [statistics.fmean(column) for column in columns]
            styles = (digits, digits, ".0f", ".2f")
            row = tuple(format(mean, s) for mean, s in zip(means, styles, strict=True))
            table.add_row(name, f"mean of {len(some)}", *row, style="bold")
    return table


def _json(entries: list[Entry]) -> str:
    """Write the results; runs that diverged are listed apart, where there are any."""
    content: dict[str, Any] = {"runs": [entry.result for entry in entries if entry.result]}
    failures = [
        {"optimizer": e.config.optimizer, "config": e.config.as_dict(), **e.failure}
        for e in entries
        if e.failure
    ]
    if failures:
        content["failures"] = failures
    return json.dumps(document("train", content), indent=2, allow_nan=False) + "\n"


def _plot(entries: list[Entry], kind: str) -> bytes:
    from loko_ref.experiments.curves import draw

    config = entries[0].config
    curves = {name: [e.curve for e in some] for name, some in _grouped(entries).items()}
    title = f"{config.data}: trained unshifted, streamed under the shift '{config.shift}'"
    return draw(curves, title=title, regression=regression(config.data), kind=kind)
