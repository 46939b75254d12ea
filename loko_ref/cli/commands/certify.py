"""``loko-ref certify``: is the oracle where ball arithmetic proves that it must be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loko_ref.cli.needs import check_needs
from loko_ref.errors import InputError, shown

FEW = 4
"""Cases up to which each quantity is printed; the document holds all."""


_OPERATION = "Only operations that match this glob."
_CASE = "Only cases whose id matches this glob."
_DTYPE = "float64 or float32; both by default."


def certify(
    operation: Annotated[str | None, typer.Option(help=_OPERATION)] = None,
    case: Annotated[str | None, typer.Option(help=_CASE)] = None,
    dtype: Annotated[str | None, typer.Option(help=_DTYPE)] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    limit: Annotated[int, typer.Option("--limit", help="Largest precision, in bits.")] = 2048,
) -> None:
    """Enclose every quantity of every case in ball arithmetic, and hold the oracle to it.

    Exit code 0: every quantity is contained; 1: some are not; 2: it cannot run (extra 'certify'),
    or nothing could be judged.
    """
    check_needs(modules=[("flint", "ball arithmetic")])
    from json import dumps

    from rich.console import Console
    from rich.table import Table

    from loko_ref.checks.values import check_whole
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.cases.globs import matcher, nothing_matches
    from loko_ref.conformance.cases.registry import Case, select
    from loko_ref.conformance.catalogue.registry import OPERATIONS
    from loko_ref.conformance.vectors import certify as certification
    from loko_ref.files.writing import check_target, write_bytes

    if json is not None:
        check_target("--json", json)
    if limit < 128:
        raise InputError("--limit", limit, "bits >= 128", "the starting precision is 128")
    check_whole("--limit", limit, high=2**16)
    matches = matcher("--operation", operation)
    chosen = [one for one in select(case, dtype, argument="--case") if matches(one.operation.name)]
    if not chosen and case is None:
        raise nothing_matches("--operation", operation, OPERATIONS, "loko-ref operations")
    if not chosen:
        raise InputError(
            "--operation",
            f"{shown(operation)} with --case {shown(case)}",
            "a glob that matches the operation of a case that --case chooses",
            "options that exclude each other",
        )
    console = Console()
    with progress_bar() as bar:
        task = bar.add_task("certifying", total=len(chosen))

        def progress(done: Case) -> None:
            bar.update(task, advance=1, description=f"certifying {done.id}")

        quantities, failed = certification.certify(chosen, limit=limit, progress=progress)
    result = certification.as_json(quantities, failed)

    def brief(number: float | None) -> str:
        return "not finite" if number is None else f"{number:.3g}"

    table = Table(title="oracle against its enclosure: largest error")
    for head in ("operation", "ulp float64", "units", "ulp float32", "units"):
        table.add_column(head, justify="left" if head == "operation" else "right")
    for name, ulps in result["max_ulp"].items():
        units = result["max_unit"][name]
        cells = [(t, d) for d in ("float64", "float32") for t in (ulps, units)]
        table.add_row(name, *(brief(t[d]) if d in t else "" for t, d in cells))
    console.print(table)
    if len(chosen) <= FEW:
        few = Table(title="each quantity")
        few.add_column("case", overflow="fold")
        few.add_column("quantity")
        for head in ("bits", "radius", "ulp", "units", "in"):
            few.add_column(head, justify="right")
        for q in quantities:
            numbers = (f"{q.radius:.2g}", f"{q.ulps:.3g}", f"{q.units:.3g}")
            few.add_row(q.case, q.name, str(q.bits), *numbers, "yes" if q.contained else "no")
        console.print(few)
    console.print(
        "A unit is what one roundoff in the inputs, and in the quantities on the way, can do to an "
        f"element; up to {max((q.bound for q in quantities), default=0):.3g} are admissible. An "
        "element that cancels may err by many ulps and few units.",
        highlight=False,
    )
    for kind in ("not_contained", "undecided_values"):
        for line in result[kind][:20]:
            console.print(f"{kind.replace('_', ' ')}: {line}", highlight=False)
    for line, count in result["loose"].items():
        console.print(
            f"at {limit} bits still wider than asked: {line}, {count} values", highlight=False
        )
    for line, why in (*result["excluded"].items(), *failed.items()):
        console.print(f"not judged: {line}: {why}", highlight=False)
    share = result["correctly_rounded"] / max(result["values"], 1)
    console.print(
        f"quantities {result['quantities']}, contained {result['contained']}; values "
        f"{result['values']}, correctly rounded beyond doubt {result['correctly_rounded']} "
        f"({share:.2%}), undecided {result['undecided']}",
        highlight=False,
    )
    if json is not None:
        write_bytes(json, (dumps(result, indent=1, allow_nan=False) + "\n").encode(), "--json")
    if not result["quantities"]:
        typer.echo("nothing could be judged, so nothing was certified", err=True)
        raise typer.Exit(2)
    if result["contained"] != result["quantities"]:
        raise typer.Exit(1)
