"""``loko-ref lte``: parallel low-rank heads trained from scratch, in one process or over MPI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loko_ref.cli import options as opt
from loko_ref.cli.needs import check_needs
from loko_ref.cli.results import begin, check_outputs, go_on, identity, kept, write_json
from loko_ref.errors import InputError, shown
from loko_ref.lte.config import OPTIMIZERS

_VARIANT = "Variants of LTE"
_THREADS = "BLAS threads of each process; another number can change the last bits."
_DENSE = "No LoRA on the last linear: a replica layer."
_OPTIMIZER = """In each head: sgd, adagrad, adamw or loko, with options as NAME,KEY=VALUE,...
such as adamw,lr=0.01 or loko,logits,p0=0.5; loko alone is loko,recommended."""
_CHOICES = {
    "mode": "lte or mhlora (no merging).",
    "realisation": "shared or copies.",
    "reset": "After a merge: none, B or AB.",
    "optimizer_state": "At a merge: keep or reset.",
    "filter_merge": "LoKO's p at a merge: keep, shrink or prior.",
    "scaling": "mhlora: mean (scale / heads) or sum.",
    "data_split": "Each head's data: chunks or replicated.",
    "reduction": "Mean loss over all heads, or own.",
    "merging": "telescoped or incremental.",
    "replicas": "Layers without LoRA: train or frozen.",
}


def _choice(name: str) -> Any:
    return opt.option(_VARIANT, _CHOICES[name])


def lte(
    data: opt.Data = None,
    heads: Annotated[int, opt.option(opt.RUN, "Number of heads.")] = 4,
    merge_every: Annotated[int, opt.option(opt.RUN, "Steps between merges.")] = 8,
    steps: Annotated[int | None, opt.option(opt.RUN, "Steps in all. Default 480.")] = None,
    epochs: Annotated[int | None, opt.option(opt.RUN, "Passes, in place of --steps.")] = None,
    limit: opt.Limit = None,
    tokenizer: opt.Tokenizer = None,
    length: opt.Length = None,
    seed: Annotated[int, opt.option(opt.RUN, "Seed of split, weights, factors and order.")] = 0,
    batch: opt.Batch = None,
    dtype: opt.Dtype = None,
    backend: opt.Backend = None,
    threads: Annotated[int, opt.option(opt.RUN, _THREADS)] = 1,
    network: opt.Network = None,
    hidden: opt.Hidden = None,
    activation: opt.Activation = None,
    size: opt.Size = None,
    rank: opt.Rank = None,
    alpha: opt.Alpha = None,
    targets: opt.Targets = None,
    init: opt.Init = None,
    lora_bias: Annotated[bool, opt.option(opt.NETWORK, "Biases in the LoRA branches.")] = False,
    dense_last: Annotated[bool, opt.option(opt.NETWORK, _DENSE)] = False,
    optimizer: Annotated[str, opt.option(opt.LEARNER, _OPTIMIZER)] = "adamw",
    p0: opt.P0 = None,
    lr: opt.Lr = None,
    option: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    mode: Annotated[str, _choice("mode")] = "lte",
    realisation: Annotated[str, _choice("realisation")] = "shared",
    reset: Annotated[str, _choice("reset")] = "none",
    optimizer_state: Annotated[str, _choice("optimizer_state")] = "keep",
    filter_merge: Annotated[str, _choice("filter_merge")] = "keep",
    scaling: Annotated[str, _choice("scaling")] = "mean",
    data_split: Annotated[str, _choice("data_split")] = "chunks",
    reduction: Annotated[str, _choice("reduction")] = "all",
    merging: Annotated[str, _choice("merging")] = "telescoped",
    replicas: Annotated[str, _choice("replicas")] = "train",
    baseline: Annotated[
        list[str] | None, opt.option(opt.OUTPUT, "Compare with full, lora (repeatable).")
    ] = None,
    json_file: opt.Json = None,
    details: Annotated[
        Path | None, opt.option(opt.OUTPUT, "Curves, spectra and angles as JSON.")
    ] = None,
    plot: opt.Plot = None,
    checkpoint: opt.Checkpoint = None,
    resume: opt.Resume = None,
) -> None:
    """Train parallel low-rank heads from scratch; merge them every few steps.

    Under ``mpiexec -n P python -m mpi4py -m loko_ref lte ...`` the heads are spread over P ranks,
    with the same result, bit for bit. A checkpoint is written at each merge.
    """
    arguments = dict(locals())
    if option:
        raise InputError(
            "--option",
            shown(option[0]),
            f"use --optimizer {optimizer},{option[0]}" if len(option[0]) < 40 else "--optimizer",
            "the spelling of an earlier version",
        )
    ((name, options),) = opt.read_learners([optimizer], lr=lr, p0=p0, classes=OPTIMIZERS)
    arguments |= {
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
        check_needs(data=arguments["data"], tokenizer=tokenizer, plot=plot, backend=backend)
        for library in threadpool_info():
            if library["user_api"] == "blas" and library["num_threads"] < threads:
                most = f"at most {library['num_threads']}, as {library['internal_api']} allows"
                raise InputError("--threads", threads, most, "a BLAS built for fewer threads")
        if team.rank == 0:
            results = {"--json": json_file, "--details": details, "--plot": plot}
            check_outputs(results, checkpoint, resume)
        return command.prepare(arguments, team)

    def work(job: Any) -> Any:
        if checkpoint is not None:
            nothing = f"nothing is kept: no merge, which {checkpoint} would hold, was reached"
            as_it_was = resume and f"{resume} is unchanged; resume with: {go_on(resume)}"
            kept(checkpoint, "as of a merge", identity(checkpoint), as_it_was or nothing)
        return outcome.execute(job, team)

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
