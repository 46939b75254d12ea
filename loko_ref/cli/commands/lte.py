"""``loko-ref lte``: parallel low-rank heads trained from scratch, in one process or over MPI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loko_ref import interrupt
from loko_ref.cli import options as opt
from loko_ref.cli.needs import check_needs
from loko_ref.cli.results import begin, check_outputs, kept, write_json
from loko_ref.errors import InputError, shown
from loko_ref.lte.config import OPTIMIZERS

__all__ = ["lte"]

_VARIANT = "Variants of LTE"


def _choice(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=_VARIANT)


def lte(
    data: opt.Data = None,
    heads: Annotated[int, typer.Option(help="Number of heads.", rich_help_panel=opt.RUN)] = 4,
    merge_every: Annotated[
        int, typer.Option(help="Steps between merges.", rich_help_panel=opt.RUN)
    ] = 8,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps in all. Default 480.", rich_help_panel=opt.RUN),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the data, in place of --steps.", rich_help_panel=opt.RUN),
    ] = None,
    limit: opt.Limit = None,
    tokenizer: opt.Tokenizer = None,
    length: opt.Length = None,
    seed: Annotated[
        int,
        typer.Option(help="Seeds split, weights, factors, order.", rich_help_panel=opt.RUN),
    ] = 0,
    batch: opt.Batch = None,
    dtype: opt.Dtype = None,
    backend: opt.Backend = None,
    threads: Annotated[
        int,
        typer.Option(
            help="BLAS threads of each process; another number can change the last bits.",
            rich_help_panel=opt.RUN,
        ),
    ] = 1,
    network: opt.Network = None,
    hidden: opt.Hidden = None,
    activation: opt.Activation = None,
    size: opt.Size = None,
    rank: opt.Rank = None,
    alpha: opt.Alpha = None,
    targets: opt.Targets = None,
    init: opt.Init = None,
    lora_bias: Annotated[
        bool, typer.Option(help="Branch biases.", rich_help_panel=opt.NETWORK)
    ] = False,
    dense_last: Annotated[
        bool,
        typer.Option(
            help="No LoRA on the last linear: a replica layer.", rich_help_panel=opt.NETWORK
        ),
    ] = False,
    optimizer: Annotated[
        str,
        typer.Option(
            help="In each head: sgd, adagrad, adamw or loko, with options as NAME,KEY=VALUE,... "
            "such as adamw,lr=0.01 or loko,logits,p0=0.5.",
            rich_help_panel=opt.LEARNER,
        ),
    ] = "adamw",
    p0: opt.P0 = None,
    lr: opt.Lr = None,
    option: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    mode: Annotated[str, _choice("lte or mhlora (no merging).")] = "lte",
    realisation: Annotated[str, _choice("shared or copies.")] = "shared",
    reset: Annotated[str, _choice("After a merge: none, B or AB.")] = "none",
    optimizer_state: Annotated[str, _choice("At a merge: keep or reset.")] = "keep",
    filter_merge: Annotated[str, _choice("LoKO's p at a merge: keep, shrink or prior.")] = "keep",
    scaling: Annotated[str, _choice("mhlora: mean (scale / heads) or sum.")] = "mean",
    data_split: Annotated[str, _choice("Each head's data: chunks or replicated.")] = "chunks",
    reduction: Annotated[str, _choice("Mean loss over all heads, or own.")] = "all",
    merging: Annotated[str, _choice("telescoped or incremental.")] = "telescoped",
    replicas: Annotated[str, _choice("Layers without LoRA: train or frozen.")] = "train",
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Compare with full, lora (repeatable).", rich_help_panel=opt.OUTPUT),
    ] = None,
    json_file: opt.Json = None,
    details: Annotated[
        Path | None,
        typer.Option(help="Curves, spectra and angles as JSON.", rich_help_panel=opt.OUTPUT),
    ] = None,
    plot: opt.Plot = None,
    checkpoint: opt.Checkpoint = None,
    resume: opt.Resume = None,
) -> None:
    """Train parallel low-rank heads from scratch; merge them every few steps.

    Under ``mpiexec -n P python -m mpi4py -m loko_ref lte ...`` the heads are spread over P ranks,
    with the same result, bit for bit. A checkpoint is written at each merge.
    """
    asked = dict(locals())
    if option:
        raise InputError(
            "--option",
            shown(option[0]),
            f"use --optimizer {optimizer},{option[0]}" if len(option[0]) < 40 else "--optimizer",
            "the spelling of an earlier version",
        )
    ((name, options),) = opt.read_learners([optimizer], lr=lr, p0=p0, classes=OPTIMIZERS)
    asked |= {
        "data": data or "digits",
        "hidden": opt.parse_widths(hidden),
        "size": opt.parse_sizes(size),
        "optimizer": (name, options),
    }
    check_needs(modules=[("threadpoolctl", "a number of BLAS threads")])
    from threadpoolctl import threadpool_info, threadpool_limits

    from loko_ref.experiments.lte import report as outcome
    from loko_ref.experiments.lte import setup as command
    from loko_ref.lte import mpi
    from loko_ref.lte.team import Alone

    begin(checkpoint, resume)
    team = mpi.connect() if mpi.launched() is not None else Alone()

    def prepare() -> Any:
        check_needs(data=asked["data"], tokenizer=tokenizer, plot=plot, backend=backend)
        for library in threadpool_info():
            if library["user_api"] == "blas" and library["num_threads"] < threads:
                most = f"at most {library['num_threads']}, as {library['internal_api']} allows"
                raise InputError("--threads", threads, most, "a BLAS built for fewer threads")
        if team.rank == 0:
            results = {"--json": json_file, "--details": details, "--plot": plot}
            check_outputs(results, checkpoint, resume)
        return command.prepare(asked, team)

    def saved(step: int) -> None:
        assert checkpoint is not None
        kept(checkpoint, f"at step {step}")

    def work(job: Any) -> Any:
        if checkpoint is not None and resume is None:
            text = f"nothing is kept: no merge, which {checkpoint} would hold, was reached"
            interrupt.keep(lambda: text)
        return outcome.execute(job, team, saved)

    # launchers that bind a rank to a core leave it one thread: one is every process's default
    with threadpool_limits(threads, user_api="blas"):
        if isinstance(team, mpi.MpiTeam):
            group = team
            job = group.agree(prepare)
            group.guard(group.begin_watch)
            end = group.guard(lambda: work(job))
            group.guard(group.finish)
            if group.rank != 0:
                return
        else:
            job = prepare()
            end = work(job)
        report, more = outcome.report(job, end)
    outcome.show(report, more)
    write_json("--json", json_file, report)
    write_json("--details", details, more)
    if plot is not None:
        outcome.plot(plot, more)
