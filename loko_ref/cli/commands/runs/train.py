"""``loko-ref train``: LoKO on a stream of shifted real data, beside first-order optimizers."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from loko_ref.arrays import get_backend
from loko_ref.cli import options as opt
from loko_ref.cli.needs import check_needs
from loko_ref.cli.results import begin, check_outputs, go_on, kept, write_json
from loko_ref.errors import InputError
from loko_ref.experiments import runs
from loko_ref.experiments import stream as training
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.data.registry import regression
from loko_ref.experiments.runfile import Entry
from loko_ref.experiments.terminal import progress_bars, show_table
from loko_ref.files.documents import document
from loko_ref.files.writing import write_bytes

SEEDS = (0, 1, 2)


_SHIFT = """rotate90 (images; their default), permute, invert (the tables' default), noise (the
texts' default), none."""
_OPTIMIZER = """loko, sgd, adagrad, adamw, with options as NAME,KEY=VALUE,... such as adamw,lr=0.01
or loko,logits,p0=0.5; repeatable. Default: loko and adamw. loko without options is
loko,recommended; loko,abstract_reading is our reading of the paper's abstract."""
_VARIANT = """LoKO's choices as [OBSERVATION,]KEY=VALUE,...: observation, noise, timing, beta, r0,
p0 (or p0.A, p0.B, p0.SITE, p0.SITE.A), covariance, columns, blocks, diagonal, form, lam, q, center,
solve. Each one that begins with the name of an observation is a run of its own."""
_SEED = "Repeatable. Default: 0, 1 and 2."
_NOISE = "Share of the stream's labels that are replaced by wrong ones."
_EPOCHS = "Passes over the base part before the stream. Default 30."
_ROUTE = "LoKO's steps by the readable (default) or the fast code, on NumPy."
_STOP = "Stop after this many steps, to be resumed later with --resume."


def train(
    data: opt.Data = None,
    shift: Annotated[str | None, opt.option(opt.RUN, _SHIFT)] = None,
    limit: opt.Limit = None,
    tokenizer: opt.Tokenizer = None,
    length: opt.Length = None,
    label_noise: Annotated[float | None, opt.option(opt.RUN, _NOISE)] = None,
    seed: Annotated[list[int] | None, opt.option(opt.RUN, _SEED)] = None,
    batch: opt.Batch = None,
    dtype: opt.Dtype = None,
    backend: opt.Backend = None,
    network: opt.Network = None,
    hidden: opt.Hidden = None,
    activation: opt.Activation = None,
    size: opt.Size = None,
    epochs: Annotated[int | None, opt.option(opt.NETWORK, _EPOCHS)] = None,
    rank: opt.Rank = None,
    alpha: opt.Alpha = None,
    targets: opt.Targets = None,
    init: opt.Init = None,
    optimizer: Annotated[list[str] | None, opt.option(opt.LEARNER, _OPTIMIZER)] = None,
    variant: Annotated[list[str] | None, opt.option(opt.LEARNER, _VARIANT)] = None,
    p0: opt.P0 = None,
    lr: opt.Lr = None,
    route: Annotated[str | None, opt.option(opt.LEARNER, _ROUTE)] = None,
    json_file: opt.Json = None,
    plot: opt.Plot = None,
    checkpoint: opt.Checkpoint = None,
    checkpoint_every: Annotated[int, opt.option(opt.OUTPUT, "Steps between checkpoints.")] = 50,
    resume: opt.Resume = None,
    stop_after: Annotated[int | None, opt.option(opt.OUTPUT, _STOP)] = None,
) -> None:
    """Train LoRA factors on a stream of shifted real data, by LoKO and by first-order optimizers.

    A base network is trained on unshifted data (digits: 64-128-128-10), LoRA (r = 4) is put on
    every linear, and the shifted stream is learned once. Exit code 1 if a run diverged.
    """
    arguments = locals() | {"hidden": opt.parse_widths(hidden), "size": opt.parse_sizes(size)}
    own = {"optimizer", "seed", "route"}  # of each run
    names = {f.name for f in dataclasses.fields(RunConfig)} & arguments.keys() - own
    about: dict[str, Any] = {k: arguments[k] for k in names if arguments[k] not in (None, [])}
    usual = "digits" if data is None and resume is None else data
    check_needs(data=usual, tokenizer=tokenizer, plot=plot)
    check_outputs({"--json": json_file, "--plot": plot}, checkpoint, resume)
    if stop_after is not None and checkpoint is None:
        raise InputError("--stop-after", stop_after, "--checkpoint F too", "nothing would be kept")
    configs: list[RunConfig] | None = None
    chosen = (optimizer, variant, seed, p0, lr, route)
    if resume is None or about or any(value is not None for value in chosen):
        learners = opt.read_learners(optimizer or ["loko", "adamw"], lr=lr, p0=p0, variants=variant)
        if route is not None and "loko" not in dict(learners):
            raise InputError(
                "--route", "an option of LoKO", "--optimizer loko too", "LoKO was left out"
            )
        configs = [
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
        get_backend(configs[0].backend)  # before the base is trained

    def saved(entries: Sequence[Entry]) -> None:
        assert checkpoint is not None
        kept(checkpoint, _standing(entries))

    begin(checkpoint, resume)
    with progress_bars() as update:

        def watch(k: int, task: training.Task, progress: training.Progress) -> None:
            last = progress.curve[-1:]
            note = "".join(f"online {p.online:.3g}  test {p.test:.3g}" for p in last)
            name = f"{k}: {_label(task.config)} seed {task.config.seed}"
            update(name, progress.step, task.steps, note)

        entries = runs.run_all(
            configs,
            checkpoint=checkpoint,
            every=checkpoint_every,
            resume=resume,
            stop_after=stop_after,
            watch=watch,
            saved=saved,
        )

    if any(entry.result for entry in entries):
        _show([entry for entry in entries if entry.result])
    complain = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    failed = [entry for entry in entries if entry.failure]
    for entry in failed:
        reason = (entry.failure or {})["reason"]
        complain.print(f"diverged: {_label(entry.config)}, seed {entry.config.seed}: {reason}")
    write_json("--json", json_file, _document(entries))
    if plot is not None and any(entry.curve for entry in entries):
        write_bytes(plot, _plot(entries, plot.suffix[1:].lower()), "--plot")
    if any(entry.status in ("waiting", "running") for entry in entries):
        assert checkpoint is not None
        complain.print(f"stopped; resume with: {go_on(checkpoint)}")
    if failed:
        raise typer.Exit(1)


def _standing(entries: Sequence[Entry]) -> str:
    """Describe how far the runs of a checkpoint are."""
    ended = sum(entry.status in ("done", "failed") for entry in entries)
    text = f"{ended} of {len(entries)} runs ended"
    if any(entry.status == "running" for entry in entries):
        text += f", the next at step {entries[ended].progress['step']}"
    return text


def _label(config: RunConfig) -> str:
    return opt.describe(config.optimizer, config.options, regression(config.data))


def _grouped(entries: list[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_label(entry.config), []).append(entry)
    return groups


def _show(entries: list[Entry]) -> None:
    """Print a table: one row per run; below, the mean over the seeds."""
    config = entries[0].config
    real = regression(config.data)
    kind, short = ("rmse", "RMSE") if real else ("accuracy", "accuracy")
    styles = (".1f" if real else ".3f",) * 2 + (".0f", ".2f")
    keys = (f"online_{kind}", f"test_{kind}", "steps", "seconds")
    rows, means = [], []
    groups = _grouped(entries)
    for name, some in groups.items():
        values = [[(entry.result or {})[key] for key in keys] for entry in some]
        shown = [list(map(format, row, styles)) for row in values]
        rows += [[name, str(e.config.seed), *row] for e, row in zip(some, shown, strict=True)]
        mean = map(statistics.fmean, zip(*values, strict=True))
        means.append([name, f"mean of {len(some)}", *map(format, mean, styles)])
    show_table(
        f"{config.data}, {config.shift}, batch {config.batch}, {config.dtype}",
        ("optimizer", "seed", f"online {short}", f"test {short}", "steps", "seconds"),
        rows,
        means if any(len(some) > 1 for some in groups.values()) else (),
    )


def _document(entries: list[Entry]) -> dict[str, Any]:
    """Return the results; runs that diverged are listed apart, where there are any."""
    content: dict[str, Any] = {"runs": [entry.result for entry in entries if entry.result]}
    failures = [
        {"optimizer": e.config.optimizer, "config": e.config.as_dict(), **e.failure}
        for e in entries
        if e.failure
    ]
    return document("train", content | ({"failures": failures} if failures else {}))


def _plot(entries: list[Entry], kind: str) -> bytes:
    from loko_ref.experiments.plots import draw, learning_curves

    config = entries[0].config
    curves = {name: [e.curve for e in some] for name, some in _grouped(entries).items()}
    title = f"{config.data}: trained unshifted, streamed under the shift '{config.shift}'"
    return draw(learning_curves(curves, regression(config.data)), title=title, kind=kind)
