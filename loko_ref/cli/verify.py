"""``loko-ref verify TARGET``: is an implementation right, and if not, where is it wrong first?"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from loko_ref.errors import InputError

__all__ = ["verify"]


def verify(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A Python file, a module or module:attribute that holds IMPLEMENTATION, a mapping "
            "from operation name to function ('loko-ref operations' describes them)."
        ),
    ] = None,
    cmd: Annotated[
        str | None,
        typer.Option(
            "--cmd", help="In place of TARGET: a command that speaks 'loko-ref protocol'."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="In place of TARGET: a recording of a run, .npz or .safetensors. Array 'k/name' "
            "is quantity name of step k = 0, 1, ...: k/theta, k/p (or k/P), k/R the state before "
            "step k (its posteriors are k+1/theta, k+1/p, k+1/R), and whatever there is of k/y, "
            "k/z, k/Z, k/p_pred, k/yhat, k/e, k/H, k/R_used (the R in S), k/S, k/K, "
            "k/r (y - h(theta+)): see 'loko-ref operations loko.step'.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="For --trace: NAME=VALUE, an option of loko.step (observation is gaussian and "
            "noise fixed by default); or JSON in the file, array or metadata 'options'.",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write the report as JUnit XML here.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report as one page.")
    ] = None,
    xfail: Annotated[
        Path | None,
        typer.Option(
            "--xfail",
            help="Expected failures, one 'id: reason' a line; one that passes is an error.",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Run the ids or operations that match this glob.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float64 or float32; both by default.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the cases and stop.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds a check may take.")] = 60.0,
    large: Annotated[
        int | None,
        typer.Option(
            "--large",
            help="With --cmd: bytes from which a tensor goes by file, where the harness reads "
            "files (1048576; 0 sends all by file).",
        ),
    ] = None,
) -> None:
    """Check an implementation against the oracle.

    Exit code 0: all that ran passed, and something ran; 1: something failed; 2: TARGET cannot be
    used, or nothing ran.
    """
    from rich.console import Console
    from rich.progress import Progress

    from loko_ref.conformance import expectations, report
    from loko_ref.conformance.cases import select
    from loko_ref.conformance.implementation import Implementation, load
    from loko_ref.conformance.junit import write
    from loko_ref.conformance.naming import name_mistakes
    from loko_ref.conformance.page import write as write_page
    from loko_ref.conformance.subprocess_target import Command
    from loko_ref.conformance.terminal import print_report
    from loko_ref.conformance.verify import run
    from loko_ref.writing import check_targets

    if not timeout > 0:
        raise InputError("--timeout", timeout, "seconds > 0", "a sign")
    check_targets(
        {"--json": json, "--junit": junit, "--html": html},
        {"TARGET": target, "--trace": trace, "--xfail": xfail},
    )
    if large is not None and (cmd is None or large < 0):
        raise InputError("--large", large, "bytes >= 0, with --cmd", "only a command reads files")
    if trace is not None:
        if target is not None or cmd is not None:
            raise InputError("--trace", "TARGET or --cmd too", "one of them", "two ways to verify")
        for name, value in {"--xfail": xfail, "--dtype": dtype, "--list": list_ or None}.items():
            if value is not None:
                raise InputError(name, value, "not beside --trace", "a recording has no cases")
        raise typer.Exit(_recording(trace, option or [], only, json, junit, html))
    if option:
        raise InputError("--option", option[0], "--trace F beside it", "--trace was left out")
    cases = select(only, dtype)
    expected = expectations.read(xfail) if xfail is not None else {}
    if list_:
        for case in cases:
            typer.echo(f"{case.id}\t{case.hunts}")
        return
    if (target is None) == (cmd is None):
        got = "nothing" if target is None else "both TARGET and --cmd"
        raise InputError(
            "TARGET",
            got,
            "a Python file, a module or module:attribute, or --cmd COMMAND",
            "it was left out" if target is None else "two ways to name the implementation",
        )
    implementation: Implementation | Command
    if cmd is None:
        implementation, shown = load(str(target)), str(target)
    else:
        implementation, shown = Command(cmd, large=large), f"--cmd {shlex.quote(cmd)}"
    console, err = Console(), Console(stderr=True)
    with (
        Progress(console=err, transient=True, disable=not err.is_terminal) as bar,
        implementation if isinstance(implementation, Command) else contextlib.nullcontext(),
    ):
        task = bar.add_task("verifying", total=len(cases))
        checks = run(
            implementation, cases, timeout=timeout, progress=lambda check: bar.advance(task)
        )
    mistakes = name_mistakes(checks)
    if json is not None:  # files first: who reads the terminal's report may stop early (head)
        report.write_json(json, report.as_json(shown, checks, implementation.notes, mistakes))
    if junit is not None:
        write(junit, shown, checks, mistakes, expected)
    if html is not None:
        write_page(html, shown, checks, implementation.notes, mistakes, expected)
    print_report(console, shown, checks, implementation.notes, mistakes)
    for key in expectations.unexpected_passes(checks, expected):
        typer.echo(f"UNEXPECTED PASS {key}: was expected to fail: {expected[key]}")
    for check in checks:
        if check.status == "failed" and check.case.id in expected:
            typer.echo(f"expected failure {check.case.id}: {expected[check.case.id]}")
    raise typer.Exit(expectations.exit_code(checks, expected))


def _recording(
    trace: Path,
    option: list[str],
    only: str | None,
    json: Path | None,
    junit: Path | None,
    html: Path | None,
) -> int:
    """Check a recording; return the exit code."""
    from rich.console import Console

    from loko_ref.conformance import junit as xml
    from loko_ref.conformance import recording, report
    from loko_ref.conformance import trace as walk
    from loko_ref.conformance.naming import name_mistakes
    from loko_ref.conformance.page import write as write_page
    from loko_ref.conformance.terminal import print_report
    from loko_ref.conformance.verify import summarise

    read = recording.read(trace, option)
    checks = walk.check(read, only)
    mistakes = name_mistakes(checks)
    shown = " ".join(["--trace", shlex.quote(str(trace))])
    shown += "".join(f" --option {shlex.quote(item)}" for item in option)
    first = walk.first(checks)
    notes = [*read.notes, *([first] if first is not None else [])]
    if json is not None:
        report.write_json(json, report.as_json(shown, checks, notes, mistakes))
    if junit is not None:
        xml.write(junit, shown, checks, mistakes, {})
    if html is not None:
        write_page(html, shown, checks, notes, mistakes, {})
    print_report(Console(), shown, checks, notes, mistakes)
    return summarise(checks).exit_code
