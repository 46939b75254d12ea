"""``loko-ref mutants``: the known mistakes, and how well the kit catches and names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["mutants"]


def mutants(
    score: Annotated[
        bool, typer.Option("--score", help="Verify every mutant: is it caught, is it named?")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Ids that match this glob.")] = None,
) -> None:
    """List the known mistakes that a failed check is compared with.

    With --score each is turned into an implementation and verified; exit code 0 if all are caught
    and named first (or their group is stated), else 1.
    """
    from fnmatch import fnmatchcase

    from rich.console import Console
    from rich.progress import track

    from loko_ref.conformance import score as scoring
    from loko_ref.conformance.cases import select
    from loko_ref.conformance.mutants import all_mutants
    from loko_ref.conformance.report import write_json
    from loko_ref.errors import InputError

    chosen = [m for m in all_mutants() if only is None or fnmatchcase(m.id, only)]
    if not chosen:
        raise InputError("only", repr(only), "a glob that matches a mutant's id", "misspelt")
    if not score:
        listing = [
            {"id": m.id, "name": m.name, "explanation": m.explanation, "look": m.look}
            for m in chosen
        ]
        for entry in listing:
            typer.echo(f"{entry['id']}: {entry['name']}")
            typer.echo(f"    {entry['explanation']}")
            typer.echo(f"    look at: {entry['look']}")
        typer.echo(f"{len(chosen)} mutants")
        if json is not None:
            write_json(json, {"schema": "loko-ref/mutants/1", "mutants": listing})
        return
    cases = select(dtype="float64")
    outcomes = [
        scoring.outcome(m, cases)
        for m in track(
            chosen, description="verifying mutants", console=Console(stderr=True), transient=True
        )
    ]
    document = scoring.as_json(outcomes)
    for o in outcomes:
        mark = "named" if o.first == o.id else f"NOT NAMED (first: {o.first})"
        typer.echo(f"{o.id}: caught by {o.failed} checks, {mark} ({o.named})")
    stated = {i for group in scoring.INDISTINGUISHABLE for i in group}
    typer.echo(
        f"mutants {document['mutants']}, caught {document['caught']}, "
        f"named first {document['named_first']}, "
        f"indistinguishable groups {len(document['indistinguishable'])}"
    )
    if json is not None:
        write_json(json, document)
    good = all(o.failed and (o.first == o.id or o.id in stated) for o in outcomes)
    raise typer.Exit(0 if good else 1)
