"""``loko-ref case ID``: one case of the catalogue, and what reproduces it without this package."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loko_ref.errors import InputError, shown

if TYPE_CHECKING:
    from loko_ref.conformance.cases.registry import Case

LISTED = 8
"""Ids that an error names where several match."""

LINES = 300
"""Lines up to which the script is printed without ``--full``."""


_KEY = """A case's id, as reports print it, or a glob that matches one; 'loko-ref verify --list'
lists all."""
_PYTHON = """Write a Python script here that runs the case on a file of yours with NumPy alone
(/dev/stdout prints it)."""
_JSON_FILE = """Write inputs, options, expected numbers and tolerances here, arrays as in 'loko-ref
protocol' ('loko-ref schema case')."""
_FULL = "Print large arrays, and a long script, whole."


def case(
    key: Annotated[str, typer.Argument(metavar="ID", help=_KEY)],
    python: Annotated[Path | None, typer.Option(help=_PYTHON)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help=_JSON_FILE)] = None,
    full: Annotated[bool, typer.Option("--full", help=_FULL)] = False,
) -> None:
    """Print one case: options, network, inputs, expected numbers, and a script that reproduces it.

    With --python or --json the files are written and nothing else is printed.
    """
    from loko_ref.conformance.reports import snippet
    from loko_ref.conformance.reports.case import describe
    from loko_ref.files.writing import check_targets, write_bytes

    check_targets({"--python": python, "--json": json_file})
    chosen = _one(key)
    if python is not None:
        write_bytes(python, snippet.python(chosen).encode(), "--python")
    if json_file is not None:
        text = json.dumps(snippet.as_json(chosen), indent=1, allow_nan=False) + "\n"
        write_bytes(json_file, text.encode(), "--json")
    if python is not None or json_file is not None:
        return
    script = snippet.python(chosen)
    lines = script.count("\n")
    typer.echo(describe(chosen, full))
    typer.echo("reproduce it (case.py and case.json hold every number exactly)")
    typer.echo(f"  loko-ref verify my_loko.py --only {chosen.id}")
    typer.echo(f"  loko-ref case {chosen.id} --python case.py")
    typer.echo("  python case.py my_loko.py")
    typer.echo(f"  loko-ref case {chosen.id} --json case.json")
    if full or lines <= LINES:
        typer.echo(f"\ncase.py, {lines} lines, needs NumPy alone\n\n{script}", nl=False)
    else:
        typer.echo(f"\ncase.py has {lines} lines; --full prints it, and large arrays whole")


def _one(key: str) -> Case:
    """Return the case that an id or a glob names."""
    from loko_ref.conformance.cases.globs import matcher, nothing_matches
    from loko_ref.conformance.cases.registry import all_cases
    from loko_ref.conformance.catalogue.registry import OPERATIONS

    matches = matcher("ID", key)
    found = [case for case in all_cases() if matches(case.id)]
    if not found:
        ids = [case.id for case in all_cases()]
        raise nothing_matches("ID", key, [*ids, *OPERATIONS], "loko-ref verify --list")
    if len(found) > 1:
        ids = [case.id for case in found]
        more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        raise InputError(
            "ID",
            f"{shown(key)}, which matches {len(ids)} cases",
            f"one case: {', '.join(ids[:LISTED])}{more}",
            "an id without its dtype, or a glob that is too wide; "
            f"loko-ref verify --list --only {shlex.quote(key)} lists them",
        )
    return found[0]
