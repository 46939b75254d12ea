"""``loko-ref explain``: LoKO's step in dataflow order, on real data."""

from __future__ import annotations

import itertools
import textwrap
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from loko_ref.cli.needs import check_needs
from loko_ref.cli.options import describe, parse_variants
from loko_ref.errors import InputError
from loko_ref.experiments.config import RunConfig
from loko_ref.explain.steps import Excerpt, Quantity, Step, explain

__all__ = ["explain_command"]

CELL = 12
INDENT = "    "


def explain_command(
    data: Annotated[
        str, typer.Option(help="digits, breast_cancer, wine, iris, or diabetes (regression).")
    ] = "digits",
    steps: Annotated[int, typer.Option(help="Number of steps to explain.")] = 2,
    skip: Annotated[
        int | None,
        typer.Option(
            help="Number of steps before them that are not shown; by default all before the first "
            "misclassified sample."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="LoKO's options, as in 'train': softmax, glm,diagonal=variational, ..."),
    ] = None,
    shift: Annotated[str | None, typer.Option(help="As in 'train'.")] = None,
    batch: Annotated[int, typer.Option(help="Samples per step, stacked.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of split, base network and LoRA.")] = 0,
    p0: Annotated[float | None, typer.Option(help="Prior variance.")] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    backend: Annotated[str, typer.Option(help="numpy or cupy.")] = "numpy",
    entries: Annotated[int, typer.Option(help="Number of entries of theta shown.")] = 4,
) -> None:
    """Print LoKO's step in dataflow order: quantity, shape, equation, label, numbers, meaning."""
    check_needs(data=data)
    variants = parse_variants(variant or [])
    if len(variants) > 1:
        raise InputError(
            "--variant", f"{len(variants)} variants", "one at a time", "two observation models"
        )
    options = ({} if p0 is None else {"p0": p0}) | (variants[0] if variants else {})
    config = RunConfig(
        optimizer="loko",
        options=options,
        data=data,
        shift=shift,
        batch=batch,
        seed=seed,
        dtype=dtype,
        backend=backend,
    )
    check_needs(backend=config.backend)
    found = explain(config, steps=steps, skip=skip, entries=entries)
    opening = next(found)  # raises, if it has to, before anything is printed
    console = Console(highlight=False)
    name = describe("loko", config.options, data == "diabetes")
    about = f"{name} on {data}, shift {config.shift}; observation {config.options['observation']}"
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
