"""``loko-ref schema [NAME]``: the JSON Schema of a document written by this package."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from loko_ref.files.documents import WRITTEN_BY, load

__all__ = ["schema"]


def schema(
    name: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(WRITTEN_BY)}; by default the list.")
    ] = None,
) -> None:
    """Print the JSON Schema of a document that another command writes, or the list of them."""
    if name is None:
        for one, command in WRITTEN_BY.items():
            typer.echo(f"{one}\t{command}")
        return
    typer.echo(json.dumps(load(name), indent=2))
