"""``loko-ref mutants``: the known mistakes, and how well the kit catches and names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_SCORE = "Verify every mutant: is it caught, is it named?"
_CALIBRATION = "Measure the distance in error between correct code and known mistakes."
_GENERATED = """Verify this many mistakes that change a number, made by changing the syntax of
formulas: how many are caught, and named by an equivalent formula?"""
_SEED = "With --generated: seed of the draw. Default 0."
_DOUBLE = "With --generated: two formulas changed at once."
_CORRECT = "With --calibration: a correct implementation (TARGET)."
_CASE = "With --calibration or --generated: cases or operations of this glob."


def mutants(
    score: Annotated[bool, typer.Option("--score", help=_SCORE)] = False,
    calibration: Annotated[bool, typer.Option("--calibration", help=_CALIBRATION)] = False,
    generated: Annotated[int | None, typer.Option(help=_GENERATED)] = None,
    seed: Annotated[int | None, typer.Option(help=_SEED)] = None,
    double: Annotated[bool, typer.Option("--double", help=_DOUBLE)] = False,
    correct: Annotated[list[str] | None, typer.Option(help=_CORRECT)] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Ids that match this glob.")] = None,
    case: Annotated[str | None, typer.Option(help=_CASE)] = None,
) -> None:
    """List the known mistakes that a failed check is compared with.

    With --score each is turned into an implementation and verified; exit code 0 if all are caught
    and named first (or their group is stated), else 1.

    With --calibration the largest errors of correct implementations (two that are built in, and
    those given) are set beside the mistakes', in tolerances; exit code 0 if, given the parents,
    every correct one stays below 1 and every mistake that occurs in the cases is seen in some
    dtype, else 1.

    With --generated and --json F, a run that was interrupted goes on from F; exit code 0 if 95 %
    are caught, 75 % named (with --double 60 %) and at most 1 % named wrongly, else 1.
    """
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.assessment import score as scoring
    from loko_ref.conformance.cases.globs import matcher, nothing_matches
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.mistakes.registry import all_mutants
    from loko_ref.conformance.reports.document import write_json
    from loko_ref.errors import InputError
    from loko_ref.files.documents import document
    from loko_ref.files.writing import check_target

    if json is not None:
        check_target("--json", json)
    questions = {"--score": score, "--calibration": calibration, "--generated": generated}
    modes = [name for name, value in questions.items() if value not in (None, False)]
    if len(modes) > 1:
        raise InputError(modes[0], f"{modes[1]} too", "one of them", "exclusive modes")
    beside = {
        "--correct": (correct or None, ("--calibration",)),
        "--case": (case, ("--calibration", "--generated")),
        "--seed": (seed, ("--generated",)),
        "--double": (double or None, ("--generated",)),
    }
    for name, (got, of) in beside.items():
        if got is not None and not set(of) & set(modes):
            required = f"{' or '.join(of)} beside it"
            raise InputError(name, got, required, f"{' or '.join(of)} was left out")
    if generated is not None:
        if only is not None:
            required = "left out beside --generated"
            raise InputError("--only", only, required, "generated mistakes have no ids")
        raise typer.Exit(0 if _generate(generated, seed or 0, double, case, json) else 1)
    matches = matcher("--only", only)
    chosen = [m for m in all_mutants() if matches(m.id)]
    if not chosen:
        raise nothing_matches("--only", only, [m.id for m in all_mutants()], "loko-ref mutants")
    if calibration:
        good = _calibrate(chosen, correct or [], case, json)
        raise typer.Exit(0 if good else 1)
    if not score:
        listing = [
            {"id": m.id, "name": m.name, "explanation": m.explanation, "look": m.look}
            for m in chosen
        ]
        for entry in listing:
            typer.echo(f"{entry['id']}: {entry['name']}")
            typer.echo(f"    {entry['explanation']}")
            typer.echo(f"    correct formula: {entry['look']}")
        typer.echo(f"{len(chosen)} mutants")
        if json is not None:
            write_json(json, document("mutants", {"mutants": listing}))
        return
    cases = select(dtype="float64")
    with progress_bar() as bar:
        tracked = bar.track(chosen, description="verifying mutants")
        outcomes = [scoring.outcome(m, cases) for m in tracked]
    found = scoring.as_json(outcomes)
    for o in outcomes:
        mark = "named" if o.first == o.id else f"NOT NAMED (first: {o.first})"
        typer.echo(f"{o.id}: caught by {o.failed} checks, {mark} ({o.named})")
    stated = {i for group in scoring.INDISTINGUISHABLE for i in group}
    typer.echo(
        f"mutants {found['mutants']}, caught {found['caught']}, "
        f"named first {found['named_first']}, "
        f"indistinguishable groups {len(found['indistinguishable'])}"
    )
    if json is not None:
        write_json(json, found)
    good = all(o.failed and (o.first == o.id or o.id in stated) for o in outcomes)
    raise typer.Exit(0 if good else 1)


def _calibrate(chosen: list[Any], correct: list[str], glob: str | None, json: Path | None) -> bool:
    """Measure, print the table and write it; return whether right and wrong stand apart."""
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.assessment import calibration
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.implementations.python import load
    from loko_ref.conformance.reports.document import write_json
    from loko_ref.errors import InputError

    cases = select(glob, argument="--case")
    targets = [*calibration.built_in(), *(load(target) for target in correct)]
    right, wrong = [], []
    with progress_bar() as bar:
        task = bar.add_task("correct code", total=len(cases) * len(targets))
        for target in targets:
            measured = calibration.of_correct(target, cases, progress=lambda: bar.advance(task))
            if not measured and target.target in correct:
                raise InputError(
                    "--correct",
                    repr(target.target),
                    "an implementation that answers one of the cases",
                    "it declines them all, or nothing of them can be judged",
                )
            right += measured
        for one in bar.track(chosen, description="known mistakes"):
            wrong += calibration.of_mutant(one, cases)
    if not right or not wrong:
        raise InputError(
            "--case",
            repr(glob),
            "cases that can be judged and in which one of the mistakes occurs",
            "operations that the mistakes chosen by --only are not in",
        )
    found = calibration.as_json(cases, right, wrong)
    if json is not None:
        write_json(json, found)
    for line in calibration.lines(found):
        typer.echo(line)
    unseen = {one.name for one in wrong} - {one.name for one in wrong if one.given > 1}
    return all(one.given <= 1 for one in right) and not unseen


def _generate(count: int, seed: int, double: bool, glob: str | None, json: Path | None) -> bool:
    """Verify generated mistakes, print the figures and write them; return whether they are good."""
    from rich.console import Console
    from rich.progress import track

    from loko_ref import interrupt
    from loko_ref.checks.values import check_seed, check_whole
    from loko_ref.conformance.assessment import generated_score as scoring
    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.reports.document import write_json

    check_whole("--generated", count, high=10**5)
    check_seed("--seed", seed)
    cases = select(glob, "float64", argument="--case")
    what = scoring.run_of(seed, double, cases)
    outcomes = scoring.known(json, what) if json is not None else []

    def keep() -> None:
        if json is not None and outcomes:
            write_json(json, scoring.as_json(what, outcomes))
            interrupt.keep(lambda: f"kept {len(outcomes)} in {json}: the same command resumes")

    new = scoring.scored(count, cases, seed=seed, double=double, done=outcomes)
    console = Console(stderr=True)
    for one in track(new, description="generated mistakes", console=console, transient=True):
        outcomes.append(one)
        if len(outcomes) % 10 == 0:
            keep()
    keep()
    found = scoring.summary(outcomes)
    for line in scoring.lines(found):
        typer.echo(line)
    return scoring.good(found, double)
