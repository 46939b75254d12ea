"""``loko-ref explain``: LoKO's step in dataflow order, in the terminal or as a page."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from loko_ref.checks.values import check_whole
from loko_ref.cli import explained
from loko_ref.cli.needs import check_needs
from loko_ref.cli.options import describe, parse_variants
from loko_ref.errors import InputError, shown
from loko_ref.experiments.config import RunConfig
from loko_ref.explain.heads import HeadsRun
from loko_ref.explain.recorded import explain_recording
from loko_ref.explain.sources import from_case, from_config, tiny
from loko_ref.explain.steps import Excerpt, Quantity, Step, explain
from loko_ref.explain.walk import check_needs as check_page_needs
from loko_ref.explain.walk import pages
from loko_ref.files.writing import check_targets, write_bytes

CELL = 12
INDENT = "    "

_OF_LTE = "With 'lte --html': {}."

TINY = 12
"""Steps with two parameters, where none are asked for."""


_MATRIX = "With 'labels': the code, tests and known mistakes of each."
_DATA = "digits (the default), breast_cancer, wine, iris, or diabetes (regression)."
_CASE = "A case of loko.step or loko.run in place of data, such as loko.run/glm/float64."
_TRACE = """A recording of LoKO in place of data, as 'verify --trace' takes it: its numbers, and
where they are wrong."""
_HTML = """Write a page to step through here, below 1 MB; it needs no network, and shows 20 steps,
or as many as fit (tiny: 12, lte: 24), unless --steps is given."""
_STEPS = "Number of steps to explain. Default 2, in a page 20."
_SKIP = """Number of steps before them that are not shown; by default all before the first
misclassified sample."""
_VARIANT = """LoKO's options, as in 'train': softmax, glm,diagonal=variational, ... By default glm
with a diagonal, whose numbers can all be shown; what 'train' takes, recommended, keeps n x n
entries, and can be explained up to n = 512, as on iris."""
_SEED = "Seed of split, base network and LoRA. Default 0."


def explain_command(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[tiny|lte|labels|LABEL]",
            help="'tiny': one linear layer with LoRA of rank 1, two parameters in all. 'lte': a "
            "merge, or with --html heads, merges and resets on --data. A label, such as KAL-2: "
            "its statement and derivation; 'labels': all of them. By default LoKO on --data.",
        ),
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help=_MATRIX)] = False,
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
    case: Annotated[str | None, typer.Option(help=_CASE)] = None,
    trace: Annotated[Path | None, typer.Option(help=_TRACE)] = None,
    html: Annotated[Path | None, typer.Option(help=_HTML)] = None,
    steps: Annotated[int | None, typer.Option(help=_STEPS)] = None,
    skip: Annotated[int | None, typer.Option(help=_SKIP)] = None,
    variant: Annotated[list[str] | None, typer.Option(help=_VARIANT)] = None,
    shift: Annotated[str | None, typer.Option(help="As in 'train'.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per step, stacked. Default 1.")] = None,
    seed: Annotated[int | None, typer.Option(help=_SEED)] = None,
    p0: Annotated[float | None, typer.Option(help="Prior variance.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float64 (default) or float32.")] = None,
    backend: Annotated[str | None, typer.Option(help="numpy (default) or cupy.")] = None,
    heads: Annotated[
        int | None, typer.Option(help=_OF_LTE.format("heads, 1 to 64. Default 4"))
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help=_OF_LTE.format("rank of a head. Default 2"))
    ] = None,
    merge_every: Annotated[
        int | None, typer.Option(help=_OF_LTE.format("steps between merges. Default 6"))
    ] = None,
    reset: Annotated[
        str | None,
        typer.Option(help=_OF_LTE.format("what a merge resets: none, B or AB (default)")),
    ] = None,
    entries: Annotated[int, typer.Option(help="Number of entries of theta shown.")] = 4,
) -> None:
    """Print LoKO's step in dataflow order: quantity, shape, equation, label, numbers, meaning.

    With --html, write a page with a slider over the steps in place of it.
    """
    settings: dict[str, Any] = {"shift": shift, "batch": batch, "seed": seed}
    settings |= {"dtype": dtype, "backend": backend}
    of_data = {"--data": data, "--variant": variant, "--p0": p0}
    of_data |= {f"--{name}": value for name, value in settings.items()}
    check_targets({"--html": html})
    if html is not None:
        check_page_needs()
    if matrix and what != "labels":
        raise InputError("--matrix", "no 'labels'", "'labels' before it", "it was left out")
    if what is not None:
        of_page = {"--data": data, "--seed": seed} if what == "lte" and html is not None else {}
        _alone(
            shown(what),
            {**of_data, "--case": case, "--skip": skip, "--trace": trace} | dict.fromkeys(of_page),
        )
    of_lte: dict[str, Any] = {
        "heads": heads,
        "rank": rank,
        "merge_every": merge_every,
        "reset": reset,
    }
    if what == "lte" and html is not None:
        check_needs(data=data or "digits")
        of_lte |= {"data": data, "steps": steps, "seed": seed}
        given = {name: value for name, value in of_lte.items() if value is not None}
        _write(html, pages.of_lte(HeadsRun(**given)))
        return
    for name, value in of_lte.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            required, cause = f"no {option}, or 'lte' and --html F", "an option of the walk of LTE"
            raise InputError(option, shown(value), required, cause)
    if what not in (None, "tiny"):
        _alone(shown(what), {"--html": html, "--steps": steps})
        explained.show(what, matrix, _print_quantity)
        return
    if what is not None and html is not None:
        _write(html, pages.of_tiny(TINY if steps is None else steps))
        return
    if what is not None:
        skip, source, about = 0, tiny(TINY if steps is None else steps), "LoKO with two parameters"
    elif trace is not None:
        _alone("--trace", {**of_data, "--case": case, "--skip": skip})
        frame, recorded = explain_recording(trace, entries=entries)
        if steps is not None:
            check_whole("steps", steps)
            recorded = recorded[:steps]
        if html is not None:
            _write(html, pages.of_recording(frame, recorded))
        else:
            _print(f"The recording {trace}", iter(recorded), 0)
        return
    elif case is not None:
        _alone("--case", of_data)
        skip, source, about = skip or 0, from_case(case), f"The case {case}"
    else:
        data = data or "digits"
        check_needs(data=data)
        options = _options(variant, p0)
        chosen = {name: value for name, value in settings.items() if value is not None}
        config = RunConfig(optimizer="loko", options=options, data=data, **chosen)
        check_needs(backend=config.backend)
        source, name = from_config(config), describe("loko", config.options, data == "diabetes")
        about = f"{name} on {data}, shift {config.shift}"
        about += f"; observation {config.options['observation']}"
        if not options:
            about += " and a diagonal; the default of 'train', recommended, keeps n x n entries"
    if html is not None:
        page, held = pages.of_source(source, about, steps=steps, skip=skip)
        _write(html, page, f"{held} step{'s' * (held > 1)}, ")
        return
    count = max(1, min(2, source.steps - (skip or 0))) if steps is None else steps
    found = explain(source, steps=count, skip=skip, entries=entries)
    _print(about, found, skip)


def _alone(what: str, others: Mapping[str, object]) -> None:
    """Raise where what is explained is named twice, or with an option of a run on data."""
    for name, value in others.items():
        if value is not None:
            cause = f"{what} together with an option of a run on data"
            raise InputError(name, shown(value), f"no {name} with {what}", cause)


def _options(variant: list[str] | None, p0: float | None) -> dict[str, Any]:
    variants = parse_variants(variant or [])
    if len(variants) > 1:
        raise InputError(
            "--variant", f"{len(variants)} variants", "one at a time", "two observation models"
        )
    return ({} if p0 is None else {"p0": p0}) | (variants[0] if variants else {})


def _write(html: Path, page: str, held: str = "") -> None:
    written = page.encode()
    write_bytes(html, written, "--html")
    typer.echo(f"{html}: {held}{len(written) / 1e6:.2f} MB; open it in a browser")


def _print(about: str, found: Iterator[Step], skip: int | None) -> None:
    opening = next(found)  # raises, if it has to, before anything is printed
    console = Console(highlight=False)
    console.print(Text(about, style="bold"))
    console.print(
        "Letters as in derivations/notation.md; [LABEL] is a heading in derivations/. 'differs by' "
        "compares the computed quantity with its plain equation, relative to its largest entry "
        "(where yhat is almost 1, the plain 1 - yhat loses digits)."
    )
    for number, step in enumerate(itertools.chain([opening], found)):
        if number == 0 and skip is None and step.number > 0:
            console.print(
                f"\nStarts at step {step.number}, the first whose sample is misclassified; "
                "--skip 0 shows the steps before it."
            )
        _print_step(console, step)


def _print_step(console: Console, step: Step) -> None:
    console.print()
    console.rule(Text(f"step {step.number}: {step.title}", style="bold"))
    for number, quantity in enumerate(step.quantities, start=1):
        _print_quantity(console, number, quantity)
    console.print()
    console.print(Text("Effects of this step", style="bold"))
    for sentence in step.outcome:
        _indented(console, sentence)


def _print_quantity(console: Console, number: int, quantity: Quantity) -> None:
    shape = " x ".join(str(size) for size in quantity.value.shape)
    head = Text(f"{number:2d}. ")
    head.append(quantity.name, style="bold cyan")
    head.append(f" ({shape})   ")
    head.append(quantity.equation, style="green")
    head.append("   " + " ".join(f"[{label}]" for label in quantity.labels), style="dim")
    console.print()
    console.print(head)
    _indented(console, quantity.meaning, "italic")
    for line in quantity.picture:
        console.print(Text(f"{INDENT}|{line}|"), soft_wrap=True)
    for line in _table(quantity.excerpt, console.width - 4):
        console.print(Text(f"{INDENT}{line}"), soft_wrap=True)
    value = quantity.value
    tail = f"min {value.min():.3g}, max {value.max():.3g}"
    if quantity.residual is not None:
        tail += f"; differs by {quantity.residual:.1g}"
    _indented(console, tail, "dim")


def _indented(console: Console, text: str, style: str = "") -> None:
    wrapped = textwrap.fill(text, console.width, initial_indent=INDENT, subsequent_indent=INDENT)
    console.print(Text(wrapped, style=style), soft_wrap=True)


def _table(excerpt: Excerpt, width: int) -> list[str]:
    """Return the entries in columns, in as many blocks as the width requires."""
    stub = max(map(len, excerpt.rows)) + (1 if any(excerpt.rows) else 0)
    cell = max(CELL, *(len(name) + 2 for name in excerpt.columns))
    per_block = max(1, (width - stub) // cell)
    lines = []
    for at in range(0, len(excerpt.columns), per_block):
        block = slice(at, at + per_block)
        lines.append(" " * stub + "".join(name.rjust(cell) for name in excerpt.columns[block]))
        for name, row in zip(excerpt.rows, excerpt.values, strict=True):
            cells = "".join(f"{value:.4g}".rjust(cell) for value in row[block])
            lines.append(name.ljust(stub) + cells)
    return lines
