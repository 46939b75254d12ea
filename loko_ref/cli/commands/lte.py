"""``loko-ref lte``: parallel low-rank heads trained from scratch, in one process or over MPI."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from loko_ref import interrupt
from loko_ref.cli.needs import check_needs
from loko_ref.errors import InputError

__all__ = ["lte"]

_RUN = "The run"
_VARIANT = "Variants"
_OUT = "Output"


def lte(
    data: Annotated[
        str,
        typer.Option(
            help="As of loko-ref train: digits, topics, mnist:DIR ...", rich_help_panel=_RUN
        ),
    ] = "digits",
    heads: Annotated[int, typer.Option(help="Number of heads.", rich_help_panel=_RUN)] = 4,
    rank: Annotated[int, typer.Option(help="Rank of each head.", rich_help_panel=_RUN)] = 4,
    merge_every: Annotated[
        int, typer.Option(help="Steps between merges.", rich_help_panel=_RUN)
    ] = 8,
    optimizer: Annotated[
        str, typer.Option(help="In each head: sgd, adagrad, adamw or loko.", rich_help_panel=_RUN)
    ] = "adamw",
    steps: Annotated[int, typer.Option(help="Steps in all.", rich_help_panel=_RUN)] = 480,
    batch: Annotated[
        int, typer.Option(help="Samples of a step, over all heads.", rich_help_panel=_RUN)
    ] = 32,
    seed: Annotated[
        int, typer.Option(help="Seeds split, weights, factors, order.", rich_help_panel=_RUN)
    ] = 0,
    hidden: Annotated[
        str | None,
        typer.Option(help="Hidden widths of an mlp; by default 128,128.", rich_help_panel=_RUN),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="By default relu (mlp) or gelu (the others).", rich_help_panel=_RUN),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="mlp (default), vit (images, in patches), encoder (texts).", rich_help_panel=_RUN
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=NUMBER of a transformer: layers, width, heads, ff, patch; repeatable.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Linears with LoRA: a name, or its end, such as q; repeatable. Default: all.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="At most so many samples in each part of the data.", rich_help_panel=_RUN
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="glue: a tokenizer.json, not the built-in words.", rich_help_panel=_RUN),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="glue: most tokens a sample. Default 64.", rich_help_panel=_RUN),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float64 or float32.", rich_help_panel=_RUN)
    ] = "float64",
    backend: Annotated[str, typer.Option(help="numpy or cupy.", rich_help_panel=_RUN)] = "numpy",
    threads: Annotated[
        int,
        typer.Option(
            help="BLAS threads of each process; another number can change the last bits.",
            rich_help_panel=_RUN,
        ),
    ] = 1,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's alpha; by default 2 r.", rich_help_panel=_RUN)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate; a default an optimizer.", rich_help_panel=_RUN),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the optimizer, e.g. momentum=0.9.", rich_help_panel=_RUN),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="lte or mhlora (no merging).", rich_help_panel=_VARIANT)
    ] = "lte",
    realisation: Annotated[
        str, typer.Option(help="shared or copies.", rich_help_panel=_VARIANT)
    ] = "shared",
    reset: Annotated[
        str, typer.Option(help="After a merge: none, B or AB.", rich_help_panel=_VARIANT)
    ] = "none",
    optimizer_state: Annotated[
        str, typer.Option(help="At a merge: keep or reset.", rich_help_panel=_VARIANT)
    ] = "keep",
    filter_merge: Annotated[
        str,
        typer.Option(help="LoKO's p at a merge: keep, shrink or prior.", rich_help_panel=_VARIANT),
    ] = "keep",
    scaling: Annotated[
        str, typer.Option(help="mhlora: mean (scale / heads) or sum.", rich_help_panel=_VARIANT)
    ] = "mean",
    data_split: Annotated[
        str, typer.Option(help="Each head's data: chunks or replicated.", rich_help_panel=_VARIANT)
    ] = "chunks",
    reduction: Annotated[
        str, typer.Option(help="Mean loss over all heads, or own.", rich_help_panel=_VARIANT)
    ] = "all",
    merging: Annotated[
        str, typer.Option(help="telescoped or incremental.", rich_help_panel=_VARIANT)
    ] = "telescoped",
    init: Annotated[
        str, typer.Option(help="A: orthogonal, kaiming or gaussian.", rich_help_panel=_VARIANT)
    ] = "orthogonal",
    lora_bias: Annotated[
        bool, typer.Option(help="Branch biases.", rich_help_panel=_VARIANT)
    ] = False,
    dense_last: Annotated[
        bool,
        typer.Option(help="No LoRA on the last linear: a replica layer.", rich_help_panel=_VARIANT),
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(help="Layers without LoRA: train or frozen.", rich_help_panel=_VARIANT),
    ] = "train",
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Compare with full, lora (repeatable).", rich_help_panel=_OUT),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Result as JSON (loko-ref/lte/1).", rich_help_panel=_OUT),
    ] = None,
    details: Annotated[
        Path | None, typer.Option(help="Curves, spectra and angles as JSON.", rich_help_panel=_OUT)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Curves as .svg.", rich_help_panel=_OUT)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory for a checkpoint a merge.", rich_help_panel=_OUT)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on from the newest checkpoint in a directory.", rich_help_panel=_OUT),
    ] = None,
) -> None:
    """Train parallel low-rank heads from scratch; merge them every few steps.

    Under ``mpiexec -n P python -m mpi4py -m loko_ref lte ...`` the heads are spread over P ranks,
    with the same result, bit for bit.
    """
    asked = dict(locals())
    asked |= {k: asked[k] or [] for k in ("option", "baseline", "size", "targets")}

    check_needs(modules=[("threadpoolctl", "a number of BLAS threads")])
    from threadpoolctl import threadpool_info, threadpool_limits

    from loko_ref.experiments.lte import report as outcome
    from loko_ref.experiments.lte import setup as command
    from loko_ref.lte import mpi
    from loko_ref.lte.team import Alone

    interrupt.resumes(resume)
    team = mpi.connect() if mpi.launched() is not None else Alone()

    def prepare() -> Any:
        check_needs(data=data, tokenizer=tokenizer, plot=plot, backend=backend)
        for library in threadpool_info():
            if library["user_api"] == "blas" and library["num_threads"] < threads:
                most = f"at most {library['num_threads']}, as {library['internal_api']} allows"
                raise InputError("--threads", threads, most, "a BLAS built for fewer threads")
        from loko_ref.experiments.data.registry import load
        from loko_ref.files.writing import check_target, check_targets

        if team.rank == 0:
            if plot is not None:
                check_target("--plot", plot, ".svg")
            check_targets({"--json": json_file, "--details": details, "--plot": plot})
        source = load(data, seed=seed, dtype=dtype, limit=limit, tokenizer=tokenizer, length=length)
        return command.prepare(asked, source, team)

    def work(job: Any) -> Any:
        interrupt.keep(lambda: _kept(checkpoint, resume))
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
    typer.echo(outcome.text(report, more))
    _write("--json", json_file, report)
    _write("--details", details, more)
    if plot is not None:
        outcome.plot(plot, more)


def _kept(*places: Path | None) -> str:
    """Return what an interrupt leaves of a run, and the command that goes on from it.

    `places` are the directories of checkpoints, the one to go on from first.
    """
    from loko_ref.experiments.lte.checkpoint import newest

    given = [place for place in places if place is not None]
    for place in given:
        with contextlib.suppress(InputError):
            last = newest(place)
            words = interrupt.without(sys.argv[1:], "--resume")
            command = interrupt.command_line(*words, "--resume", place)
            return f"kept: {last}; go on with: {command}"
    if given:
        return f"nothing is kept: no merge, which {given[0]} would hold, was reached"
    return "nothing is kept; give --checkpoint DIR to go on from a run's last merge"


def _write(option: str, path: Path | None, content: Any) -> None:
    if path is not None:
        from loko_ref.files.writing import write_bytes

        write_bytes(path, (json.dumps(content, indent=1) + "\n").encode(), option)
