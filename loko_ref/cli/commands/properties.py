"""``loko-ref properties TARGET``: has an implementation every exact fact?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loko_ref.cli.needs import check_needs
from loko_ref.cli.verdicts import implementation_of

if TYPE_CHECKING:
    from loko_ref.properties import Property


_TARGET = "A Python file, a module or module:attribute that holds IMPLEMENTATION."
_CMD = "In place of TARGET: a command of 'loko-ref protocol'."
_ONLY = "Properties whose name or operation matches this glob."
_PROFILE = "How many problems are drawn: dev, ci or thorough."
_TIMEOUT = "Seconds that one call may take."
_SAVE = "Write the first failing example here, for 'loko-ref verify --case'."
_MATRIX = "Print which known mistake each property finds."
_GENERATED = "Print the share of this many generated mistakes that they find."
_SEED = "With --generated: seed of the draw. Default 0."


def properties(
    target: Annotated[str | None, typer.Argument(help=_TARGET)] = None,
    cmd: Annotated[str | None, typer.Option(help=_CMD)] = None,
    only: Annotated[str | None, typer.Option(help=_ONLY)] = None,
    profile: Annotated[str, typer.Option(help=_PROFILE)] = "dev",
    timeout: Annotated[float, typer.Option(help=_TIMEOUT)] = 60.0,
    save: Annotated[Path | None, typer.Option(help=_SAVE)] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the properties and stop.")] = False,
    matrix: Annotated[bool, typer.Option("--matrix", help=_MATRIX)] = False,
    generated: Annotated[int | None, typer.Option(help=_GENERATED)] = None,
    seed: Annotated[int | None, typer.Option(help=_SEED)] = None,
) -> None:
    """Check the exact facts of every operation that an implementation offers.

    A property needs no expected value: it compares an implementation with itself, or with a bound.
    A failing example is as small as could be found, and printed as Python to paste.

    Exit code 0: all that ran hold, and something ran; 1: one fails; 2: TARGET cannot be used, or
    nothing ran. With --matrix 0 if every property finds a known mistake and at least 90 % of the
    mistakes are found, else 1. With --generated, of the mistakes of 'loko-ref mutants --generated',
    always 0: there is no target.
    """
    check_needs(modules=[("hypothesis", "properties")])
    from loko_ref.checks.values import check_range
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.verification import LONGEST, naming
    from loko_ref.errors import InputError
    from loko_ref.files.writing import check_targets
    from loko_ref.properties import check_all, select

    check_range("--timeout", timeout, low=0, low_open=True, high=LONGEST)
    check_targets({"--save": save}, {"TARGET": target})
    with naming(only="--only"):
        facts = select(only)
    if list_:
        for fact in facts:
            labels = " ".join(f"[{label}]" for label in fact.labels)
            typer.echo(f"{fact.name}\t{labels}\t{fact.domain}\t{fact.statement}")
        return
    if generated is not None:
        if matrix:
            hint = "the known mistakes, or generated ones"
            raise InputError("--matrix", True, "left out beside --generated", hint)
        _generated(generated, seed or 0, facts)
        return
    if seed is not None:
        raise InputError("--seed", seed, "given with --generated", "an option of another mode")
    if matrix:
        raise typer.Exit(_matrix(facts))
    implementation = implementation_of(target, cmd)
    options = {name: f"--{name}" for name in ("only", "profile")}
    with (
        progress_bar() as bar,
        naming(implementation="TARGET" if cmd is None else "--cmd", **options),
    ):
        task = bar.add_task("checking", total=None)
        results = check_all(
            implementation,
            only=only,
            profile=profile,
            timeout=timeout,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if save is not None and results.failures:
        results.failures[0].save_case(save)
    for outcome in results.outcomes:
        if outcome.status == "unsupported":
            typer.echo(f"unsupported {outcome.fact.name}: {outcome.reason}")
    typer.echo(str(results))
    raise typer.Exit(results.summary.exit_code)


def _matrix(facts: list[Property]) -> int:
    """Print the matrix; return the exit code."""
    from rich.console import Console
    from rich.progress import track

    from loko_ref.conformance.mistakes.registry import all_mutants
    from loko_ref.properties.matrix import row, summary

    bar = Console(stderr=True)
    mistakes = track(all_mutants(), "known mistakes", console=bar, transient=True)
    found = summary([row(one, facts) for one in mistakes], facts)
    for line in found.lines:
        typer.echo(line)
    return 0 if found.good else 1


def _generated(count: int, seed: int, facts: list[Property]) -> None:
    """Print each generated mistake that no property finds, and the share of those found."""
    from rich.console import Console
    from rich.progress import track

    from loko_ref.checks.values import check_seed, check_whole
    from loko_ref.properties.matrix import generated

    check_whole("--generated", count, high=10**5)
    check_seed("--seed", seed)
    bar, total, found = Console(stderr=True), 0, 0
    drawn = generated(count, facts, seed=seed)
    for text, name in track(drawn, "generated mistakes", count, console=bar, transient=True):
        total, found = total + 1, found + (name is not None)
        if name is None:
            typer.echo(f"not found: {text}")
    typer.echo(f"found {found} of {total} generated mistakes ({found / max(total, 1):.1%})")
