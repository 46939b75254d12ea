"""``loko-ref certify``: is the oracle where ball arithmetic proves that it must be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loko_ref.errors import InputError

__all__ = ["certify"]

FEW = 4
"""Cases up to which each quantity is printed; the document holds all."""


def certify(
    operation: Annotated[
        str | None, typer.Option("--operation", help="Only operations that match this glob.")
    ] = None,
    case: Annotated[
        str | None, typer.Option("--case", help="Only cases whose id matches this glob.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float64 or float32; both by default.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    limit: Annotated[int, typer.Option("--limit", help="Largest precision, in bits.")] = 2048,
) -> None:
    """Enclose every quantity of every case in ball arithmetic, and hold the oracle to it.

    Exit code 0: every quantity is contained; 1: some are not; 2: it cannot run (extra 'certify').
    """
    from fnmatch import fnmatchcase
    from json import dumps

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from loko_ref.balls import precision
    from loko_ref.conformance import certify as room
    from loko_ref.conformance.cases import Case, select
    from loko_ref.writing import check_target, write_bytes

    if json is not None:
        check_target("--json", json)
    if limit < 128:
        raise InputError("--limit", limit, "bits >= 128", "the starting precision is 128")
    with precision(128):  # names the extra where python-flint is missing
        pass
    chosen = [
        one
        for one in select(case, dtype)
        if operation is None or fnmatchcase(one.operation.name, operation)
    ]
    if not chosen:
        raise InputError(
            "--operation",
            repr(operation) + ("" if case is None else f" with --case {case!r}"),
            "a glob that matches an operation, such as 'kalman.*', among the cases chosen",
            "a name misspelt; 'loko-ref operations' lists them",
        )
    console = Console()
    bar = Progress(
        TextColumn("certifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[at]}"),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=len(chosen), at="")

        def progress(done: Case) -> None:
            bar.update(task, advance=1, at=done.id)

        quantities, failed = room.certify(chosen, limit=limit, progress=progress)
    result = room.as_json(quantities, failed)

    table = Table(title="oracle against its enclosure: largest error")
    for head in ("operation", "ulp float64", "units", "ulp float32", "units"):
        table.add_column(head, justify="left" if head == "operation" else "right")
    for name, ulps in result["max_ulp"].items():
        units = result["max_unit"][name]
        cells = (t.get(d) for d in ("float64", "float32") for t in (ulps, units))
        table.add_row(name, *("" if c is None else f"{c:.3g}" for c in cells))
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
        write_bytes(json, (dumps(result, indent=1) + "\n").encode(), "--json")
    if result["contained"] != result["quantities"]:
        raise typer.Exit(1)
