"""``loko-ref vectors``: the cases as files, and the check of such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from loko_ref import interrupt

__all__ = ["app"]

app = typer.Typer(
    help="Golden vectors: the cases as safetensors files with a JSON manifest.",
    no_args_is_help=True,
)


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    only: Annotated[str | None, typer.Option("--only", help="Ids that match this glob.")] = None,
) -> None:
    """Write inputs, expected outputs and tolerances of the cases."""
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.vectors import vectors

    cases = select(only, argument="--only")
    interrupt.keep(lambda: f"{folder} is incomplete: export into a new or empty folder")
    with progress_bar() as bar:
        task = bar.add_task("exporting", total=len(cases))
        manifest = vectors.export(folder, cases, lambda case: bar.advance(task), only=only or "*")
    typer.echo(f"{len(manifest['cases'])} cases of {vectors.VERSION} in {folder}")


@app.command("check")
def check(folder: Annotated[Path, typer.Argument(metavar="DIR", help="An export.")]) -> None:
    """Derive manifest and vectors again and compare.

    Exit code 0: all agree; 1: something differs; 2: a file is damaged, missing or not ours.
    """
    from loko_ref.conformance.vectors import vectors

    note = vectors.unchecked(folder)
    differing = vectors.check(folder)
    for line in differing:
        typer.echo(line)
    if note:
        typer.echo(f"note: {note}")
    typer.echo(f"{len(differing)} differences" if differing else "all vectors agree")
    raise typer.Exit(1 if differing else 0)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of the manifest."""
    from loko_ref.conformance.vectors.vectors import MANIFEST_SCHEMA

    typer.echo(json.dumps(MANIFEST_SCHEMA, indent=1))
