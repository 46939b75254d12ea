"""``loko-ref schema NAME``: the JSON Schema of a document that this package writes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["schema"]


def schema(
    name: Annotated[
        str,
        typer.Argument(
            help="verify (verify --json), mutants (mutants --json), calibration (mutants "
            "--calibration --json), vectors (manifest.json)."
        ),
    ],
) -> None:
    """Print the JSON Schema of a document that another command writes."""
    from loko_ref.conformance.schema import load

    typer.echo(json.dumps(load(name), indent=2))
