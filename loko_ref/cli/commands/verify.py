"""``loko-ref verify TARGET``: is an implementation right, and if not, where is it wrong first?"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from loko_ref.checks.values import check_range
from loko_ref.cli.needs import check_needs
from loko_ref.errors import InputError

if TYPE_CHECKING:
    from loko_ref.conformance.reports.report import Report

__all__ = ["verify"]

LEAVING = 5.0
"""Seconds that threads of the code under test have to end, once the report is written."""


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
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Let imprecise results fail: right formulas by an algorithm that loses digits.",
        ),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the cases and stop.")] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Seconds a check may take, all of it (with --cmd: a new start after a failure "
            "too); also the import of TARGET, or the command's first hello. A TARGET that stays in "
            "compiled code cannot be interrupted; a command is killed, with all its processes.",
        ),
    ] = 60.0,
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

    Exit code 0: all that ran passed, is imprecise (without --strict), or failed as expected
    (--xfail), and something ran; 1:
    something failed; 2: TARGET cannot be used, or nothing ran.
    """
    check_needs(html=html)
    from rich.console import Console
    from rich.progress import Progress

    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.verification import LONGEST, naming, verify_recording
    from loko_ref.conformance.verification import verify as check
    from loko_ref.files.writing import check_targets

    check_range("--timeout", timeout, low=0, low_open=True, high=LONGEST)
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
        with naming(path="--trace", options="--option", only="--only"):
            report = verify_recording(trace, option or [], only=only)
        raise typer.Exit(_publish(report, json, junit, html))
    if option:
        raise InputError("--option", option[0], "--trace F beside it", "--trace was left out")
    if list_:
        for case in select(only, dtype, argument="--only"):
            typer.echo(f"{case.id}\t{case.covers}")
        return
    if (target is None) == (cmd is None):
        got = "nothing" if target is None else "both TARGET and --cmd"
        raise InputError(
            "TARGET",
            got,
            "a Python file, a module or module:attribute, or --cmd COMMAND",
            "it was left out" if target is None else "two ways to name the implementation",
        )
    implementation = str(target) if cmd is None else f"--cmd {shlex.quote(cmd)}"
    threads = set(threading.enumerate())
    err = Console(stderr=True)
    options = {name: f"--{name}" for name in ("only", "dtype", "xfail", "large")}
    with (
        Progress(console=err, transient=True, disable=not err.is_terminal) as bar,
        naming(implementation="TARGET" if cmd is None else "--cmd", **options),
    ):
        task = bar.add_task("verifying", total=None)
        report = check(
            implementation,
            only=only,
            dtype=cast("Literal['float64', 'float32']", dtype),  # verify checks it
            timeout=timeout,
            xfail=xfail,
            large=large,
            strict=strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    code = _publish(report, json, junit, html)
    if any(not thread.daemon for thread in set(threading.enumerate()) - threads):
        _end_within(LEAVING, code)
    raise typer.Exit(code)


def _publish(report: Report, json: Path | None, junit: Path | None, html: Path | None) -> int:
    """Write and print every report; return the exit code."""
    from loko_ref.conformance.verification import naming

    with naming(json="--json", junit="--junit", html="--html"):
        # files first: who reads the terminal's report may stop early (head)
        report.write(json=json, junit=junit, html=html)
    report.print()
    return report.summary.exit_code


def _end_within(seconds: float, code: int) -> None:
    """End this process although a thread that it waits for may never end."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
