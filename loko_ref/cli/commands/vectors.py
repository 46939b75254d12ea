"""``loko-ref vectors``: the cases as files, and the check of such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from loko_ref import interrupt
from loko_ref.cli.examples import epilog
from loko_ref.cli.needs import check_needs
from loko_ref.cli.verdicts import Baseline, Html, Json, Junit, Strict, Verbose, Xfail, publish

app = typer.Typer(
    help="Golden vectors: the cases as safetensors files with a JSON manifest.",
    no_args_is_help=True,
)


@app.command("export", epilog=epilog("vectors export"))
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


@app.command("check", epilog=epilog("vectors check"))
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


_ANSWERS = """Outputs for its inputs: a folder with one file for each case, named as in DIR and
ending in .npz, .safetensors or .json, its arrays named as the outputs; or one such file of all, its
arrays named ID/OUTPUT (in JSON an object for each ID). An array in JSON is a nested list of
numbers, or as in 'loko-ref protocol'."""
_ONLY = "Judge ids or operations that match this glob."


@app.command("judge", epilog=epilog("vectors judge"))
def judge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An export.")],
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help=_ANSWERS)],
    json: Json = None,
    junit: Junit = None,
    html: Html = None,
    xfail: Xfail = None,
    baseline: Baseline = None,
    only: Annotated[str | None, typer.Option(help=_ONLY)] = None,
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Judge outputs computed elsewhere on the inputs of DIR, as 'loko-ref verify' does.

    A case without an answer counts as unsupported. Exit code 0: all that was judged passed, is
    imprecise (without --strict), or failed as expected (--xfail); 1: something failed; 2: DIR or
    ANSWERS cannot be used, or nothing was judged.
    """
    check_needs(html=html)
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.verification import naming, verify_answers
    from loko_ref.files.writing import check_targets

    check_targets(
        {"--json": json, "--junit": junit, "--html": html},
        {"DIR": folder, "ANSWERS": answers, "--xfail": xfail, "--baseline": baseline},
    )
    with (
        progress_bar() as bar,
        naming(folder="DIR", answers="ANSWERS", **{k: f"--{k}" for k in ("only", "xfail")}),
        naming(baseline="--baseline"),
    ):
        task = bar.add_task("judging", total=None)
        report = verify_answers(
            folder,
            answers,
            only=only,
            xfail=xfail,
            baseline=baseline,
            strict=strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    raise typer.Exit(publish(report, json, junit, html, verbose))


@app.command("schema", epilog=epilog("vectors schema"))
def schema() -> None:
    """Print the JSON Schema of the manifest."""
    from loko_ref.conformance.vectors.manifest import MANIFEST_SCHEMA

    typer.echo(json.dumps(MANIFEST_SCHEMA, indent=1))
