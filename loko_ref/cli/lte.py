"""``loko-ref lte``: parallel low-rank heads trained from scratch, in one process or over MPI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["lte"]

_RUN = "The run"
_VARIANT = "Variants"
_OUT = "Output"


def lte(
    data: Annotated[str, typer.Option(help="Bundled data set.", rich_help_panel=_RUN)] = "digits",
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
    hidden: Annotated[str, typer.Option(help="Hidden widths.", rich_help_panel=_RUN)] = "128,128",
    activation: Annotated[
        str, typer.Option(help="Between the linears.", rich_help_panel=_RUN)
    ] = "relu",
    dtype: Annotated[
        str, typer.Option(help="float64 or float32.", rich_help_panel=_RUN)
    ] = "float64",
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
    from loko_ref.lte import command, mpi
    from loko_ref.lte.team import Alone

    asked = {k: v for k, v in locals().items() if k not in ("command", "mpi", "Alone")}
    asked |= {"option": option or [], "baseline": baseline or []}
    team = mpi.connect() if mpi.launched() is not None else Alone()

    def prepare() -> Any:
        from loko_ref.data import load
        from loko_ref.storage import check_target

        for name, suffixes in (("json_file", ()), ("details", ()), ("plot", (".svg",))):
            if asked[name] is not None and team.rank == 0:
                check_target(name.removesuffix("_file"), asked[name], *suffixes)
        source = load(data, seed=seed, dtype=dtype)
        return command.prepare(asked, source, team)

    def work(job: Any) -> Any:
        return command.execute(job, team)

    if isinstance(team, mpi.MpiTeam):
        group = team
        job = group.agree(prepare)
        group.begin_watch()
        end = group.guard(lambda: work(job))
        group.guard(group.finish)
        if group.rank != 0:
            return
    else:
        job = prepare()
        end = work(job)
    report, more = command.report(job, end)
    typer.echo(command.text(report, more))
    _write(json_file, report)
    _write(details, more)
    if plot is not None:
        command.plot(plot, more)


def _write(path: Path | None, content: Any) -> None:
    if path is not None:
        from loko_ref.storage import write_bytes

        write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
