"""``loko-ref compare``: LoKO with first-order optimizers at the best of a grid, on many streams."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loko_ref import interrupt
from loko_ref.cli import options as opt
from loko_ref.cli.examples import epilog
from loko_ref.cli.needs import check_needs
from loko_ref.cli.results import go_on, write_json
from loko_ref.errors import InputError
from loko_ref.experiments.terminal import progress_bars, show_table
from loko_ref.files.writing import check_target, check_targets, make_folder, write_bytes

app = typer.Typer(
    help="Comparisons that repeat what the documentation reports.", no_args_is_help=True
)

_QUICK = "Four streams, four seeds, at most 150 samples of each part, every third rate."
_STREAM = "A stream by its name, in place of all; repeatable."
_SEEDS = "How many seeds, from 0; every other one chooses, the others report. Default 10, or 4."
_LIMIT = "Maximum samples of each part."
_WORKERS = "Processes, each with one BLAS thread. Default: one for each core."
_JSON = "Write every trial and the summary; kept up to date while it runs."
_RESUME = "Resume from a file that --json wrote, with the same options."
_SUMMARY = "Write the summary without the single runs, below 200 kB."
_PLOT = "Draw curves.svg, ranks.svg and p0.svg into this folder."


@app.callback()
def _group() -> None:
    """Group the commands below ``compare``."""


@app.command("online", epilog=epilog("compare online"))
def online(
    quick: Annotated[bool, opt.option(opt.RUN, _QUICK, "--quick")] = False,
    stream: Annotated[list[str] | None, opt.option(opt.RUN, _STREAM)] = None,
    seeds: Annotated[int | None, opt.option(opt.RUN, _SEEDS)] = None,
    limit: Annotated[int | None, opt.option(opt.RUN, _LIMIT)] = None,
    workers: Annotated[int | None, opt.option(opt.RUN, _WORKERS)] = None,
    json_file: Annotated[Path | None, opt.option(opt.OUTPUT, _JSON, "--json")] = None,
    resume: Annotated[Path | None, opt.option(opt.OUTPUT, _RESUME)] = None,
    plot: Annotated[Path | None, opt.option(opt.OUTPUT, _PLOT)] = None,
) -> None:
    """Compare LoKO's variants, each at one setting, with tuned first-order optimizers.

    Streams of shifted real data, learned once, sample by sample. The best of a grid is chosen for
    each stream and metric on half of the seeds; differences are reported on the other half, with
    95 % intervals.
    """
    check_needs(
        modules=[("threadpoolctl", "one BLAS thread for each process")],
        data="digits",
        plot=None if plot is None else plot / "curves.svg",
    )
    from loko_ref.experiments.compare import online as comparison
    from loko_ref.experiments.compare.analysis import Table

    if json_file is not None:
        check_target("--json", json_file)
    chosen = comparison.plan(quick=quick, streams=stream or (), seeds=seeds, limit=limit)
    before = comparison.read(resume, chosen) if resume is not None else []
    interrupt.resumes(resume)
    names = _names(plot)
    if plot is not None:
        make_folder("--plot", plot)
    check_targets({"--json": json_file, **{f"--plot {k}": path for k, path in names.items()}})

    def keep(trials: Sequence[Any]) -> None:
        if json_file is not None:
            table = Table(trials, chosen.streams, chosen.seeds)
            write_json("--json", json_file, comparison.as_document(table, chosen))
            text = f"kept: {json_file}, {len(trials)} trials; resume with: {go_on(json_file)}"
            interrupt.keep(lambda: text)

    with progress_bars() as update:

        def ended(trials: Sequence[Any], done: int, total: int) -> None:
            keep(trials)
            update("streams and seeds", done, total, f"{len(trials)} trials")

        table = comparison.compare(chosen, workers=workers, before=before, ended=ended)
    keep(list(table.trials.values()))
    found = comparison.summary(table, chosen)
    _show(found)
    _draw(found, names)


def _names(plot: Path | None) -> dict[str, Path]:
    return {} if plot is None else {k: plot / f"{k}.svg" for k in ("curves", "ranks", "p0")}


def _draw(found: Mapping[str, Any], names: Mapping[str, Path]) -> None:
    if names:
        from loko_ref.experiments.compare import pictures

        for name, picture in pictures.drawn(found).items():
            write_bytes(names[name], picture, "--plot")


_TASK = "One of 'digits, mlp', 'digits, vit', 'topics, encoder', in place of all; repeatable."
_STEPS = "Steps of each run. Default 480, or 120."


@app.command("lte", epilog=epilog("compare lte"))
def lte(
    quick: Annotated[
        bool, opt.option(opt.RUN, "The perceptron alone, 120 steps.", "--quick")
    ] = False,
    task: Annotated[list[str] | None, opt.option(opt.RUN, _TASK)] = None,
    seeds: Annotated[int | None, opt.option(opt.RUN, "How many seeds, from 0. Default 4.")] = None,
    steps: Annotated[int | None, opt.option(opt.RUN, _STEPS)] = None,
    limit: Annotated[int | None, opt.option(opt.RUN, _LIMIT)] = None,
    workers: Annotated[int | None, opt.option(opt.RUN, _WORKERS)] = None,
    json_file: Annotated[Path | None, opt.option(opt.OUTPUT, _JSON, "--json")] = None,
    resume: Annotated[Path | None, opt.option(opt.OUTPUT, _RESUME)] = None,
) -> None:
    """Compare LTE, choice by choice, with full training and plain LoRA; judge the paper's claims.

    The rate of every setting is chosen on half of the seeds and reported on the other half. Equal
    samples for all; "timed" is what a setting had reached when full training ended.
    """
    check_needs(modules=[("threadpoolctl", "one BLAS thread for each process")], data="digits")
    from loko_ref.experiments.compare import lte_report as comparison

    if json_file is not None:
        check_target("--json", json_file)
    chosen = comparison.plan(quick=quick, tasks=task or (), seeds=seeds, steps=steps, limit=limit)
    before = comparison.read(resume, chosen) if resume is not None else []
    interrupt.resumes(resume)

    def keep(runs: Sequence[Any]) -> None:
        if json_file is not None:
            write_json("--json", json_file, comparison.as_document(runs, chosen))
            text = f"kept: {json_file}, {len(runs)} runs; resume with: {go_on(json_file)}"
            interrupt.keep(lambda: text)

    with progress_bars() as update:

        def ended(runs: Sequence[Any], done: int, total: int) -> None:
            keep(runs)
            update("runs", done, total)

        runs = comparison.compare(chosen, workers=workers, before=before, ended=ended)
    keep(runs)
    _show_lte(comparison.summary(runs, chosen), chosen.steps)


_FILE = "What --json of either comparison wrote, at its end or not."


@app.command("report", epilog=epilog("compare report"))
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=_FILE)],
    json_file: Annotated[Path | None, opt.option(opt.OUTPUT, _SUMMARY, "--json")] = None,
    plot: Annotated[Path | None, opt.option(opt.OUTPUT, _PLOT)] = None,
) -> None:
    """Print the summary of the streams, or tasks, of a comparison that have all of their runs.

    With --json, write it without the single runs: the documentation's pages are made of that.
    """
    check_needs(plot=None if plot is None else plot / "curves.svg")
    from loko_ref.experiments.compare import headline, lte_report
    from loko_ref.experiments.compare import online as comparison
    from loko_ref.experiments.compare.documents import schema_of

    of_lte = schema_of(file) == "compare-lte"
    if of_lte and plot is not None:
        got, required = "a comparison of LTE", "one by 'compare online'"
        raise InputError("--plot", got, required, "only that one has pictures")
    names = _names(plot)
    found = (lte_report if of_lte else comparison).condensed(file)
    if plot is not None:
        make_folder("--plot", plot)
    check_targets({"--json": json_file, **{f"--plot {k}": path for k, path in names.items()}})
    if json_file is not None:
        write_json("--json", json_file, found, indent=None)
    if of_lte:
        _show_lte(found["summary"], found["plan"]["steps"])
    elif found["summary"]["streams"]:
        _show(found["summary"])
    _draw({} if of_lte else found["summary"], names)
    for sentence in (headline.lte if of_lte else headline.online)(found):
        typer.echo(textwrap.fill(sentence, 100))


def _show_lte(summary: Mapping[str, Any], steps: int) -> None:
    """Print the rows and the claims of each task."""
    for name, found in summary.items():
        show_table(
            f"{name}: accuracy on the test part after {steps} steps",
            ("setting", "rate x", "accuracy", "timed", "minus full [95 %]", "minus LoRA [95 %]",
             "eff. rank", "s", "MB sent"),
            [[row["setting"], f"{row['rate']:g}", f"{row['accuracy']:.3f}", f"{row['timed']:.3f}",
              _signed(row["to_full"], False), _signed(row["to_lora"], False),
              f"{row['effective_rank']:.1f}", f"{row['seconds']:.1f}",
              f"{row['bytes_sent'] / 1e6:.1f}"] for row in found["rows"]],
        )  # fmt: skip
        show_table(
            f"{name}: the paper's claims",
            ("claim", "verdict", "difference [95 %]"),
            [[one["claim"], one["verdict"], _signed(one["difference"], False)]
             for one in found["claims"]],
        )  # fmt: skip


def _number(value: float | None, real: bool) -> str:
    return "-" if value is None else format(value, ".1f" if real else ".3f")


def _signed(found: dict[str, Any] | None, real: bool) -> str:
    if found is None or found["mean"] is None:
        return "-"
    form = "+.1f" if real else "+.3f"
    if found["low"] is None:
        return format(found["mean"], form)
    low, high = (format(found[k], form) for k in ("low", "high"))
    return f"{found['mean']:{form}} [{low}, {high}]"


def _show(found: Mapping[str, Any]) -> None:
    """Print the default beside its best rival by stream, and what all variants add up to."""
    count = len(found["seeds"]["reporting"])
    for metric in ("online", "final"):
        rows = []
        for row in found["streams"]:
            real, one = row["regression"], row[metric]
            steps = row["steps_to_adamw"]
            rows.append([
                row["stream"],
                _number(one["default"], real),
                _number(one["rival_score"], real),
                one["rival"] or "-",
                _signed(one["difference"], real),
                *(["never" if steps is None else f"{steps:.2f}"] if metric == "final" else []),
            ])  # fmt: skip
        kind = "before each sample is learned" if metric == "online" else "on the test part"
        show_table(
            f"{metric} accuracy (RMSE), {kind}: recommended beside the best first-order setting; "
            f"{count} seeds that chose nothing; difference > 0 where LoKO is ahead",
            ("stream", "LoKO", "rival", "which", "difference [95 %]",
             *(["steps to AdamW's"] if metric == "final" else [])),
            rows,
        )  # fmt: skip
    total, rows = len(found["streams"]), []
    for name, pools in found["ahead"].items():
        cells = [name]
        for pool in ("first-order", "AdamW"):
            cells += [f"{len(pools[pool][k])}/{total}" for k in ("online", "final", "both")]
        ranks = found["ranks"]["mean"]
        cells.append(f"{ranks[name]:.2f}" if name in ranks else "-")
        cells.append(f"{found['ms'][name]:.2f}" if name in found["ms"] else "-")
        rows.append([*cells, str(len(found["diverged"].get(name, ())))])
    rest = found["ranks"]["mean"].keys() - found["ahead"].keys()
    ranked = [(n, r) for n, r in found["ranks"]["mean"].items() if n in rest]
    three = ("online", "final", "both")
    show_table(
        "streams on which a variant is ahead of the best first-order setting, and of AdamW's best; "
        "the dense filter runs on tables alone and counts as behind elsewhere",
        ("variant", *three, *(f"{k}, AdamW" for k in three), "mean rank", "ms", "diverged"),
        rows,
        [[name, *[""] * 6, f"{rank:.2f}", "", ""] for name, rank in ranked],
    )
