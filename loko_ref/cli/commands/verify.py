"""``loko-ref verify TARGET``: is an implementation right, and if not, where is it wrong first?"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loko_ref.cli.needs import check_needs
from loko_ref.errors import InputError

if TYPE_CHECKING:
    from loko_ref.conformance.engine import Check

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

    Exit code 0: all that ran passed, or failed as expected (--xfail), and something ran; 1:
    something failed; 2: TARGET cannot be used, or nothing ran.
    """
    check_needs(html=html)
    from rich.console import Console
    from rich.progress import Progress

    from loko_ref.conformance.cases.registry import select
    from loko_ref.conformance.engine import run
    from loko_ref.conformance.implementations.command import Command
    from loko_ref.conformance.implementations.python import Implementation, load
    from loko_ref.conformance.reports import expected_failures as expectations
    from loko_ref.files.writing import check_targets

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
    cases = select(only, dtype, argument="--only")
    expected = expectations.read(xfail) if xfail is not None else {}
    if list_:
        for case in cases:
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
    implementation: Implementation | Command
    threads = set(threading.enumerate())
    if cmd is None:
        implementation, shown = load(str(target), timeout), str(target)
    else:
        implementation, shown = Command(cmd, large, timeout), f"--cmd {shlex.quote(cmd)}"
    err = Console(stderr=True)
    with (
        Progress(console=err, transient=True, disable=not err.is_terminal) as bar,
        implementation if isinstance(implementation, Command) else contextlib.nullcontext(),
    ):
        task = bar.add_task("verifying", total=len(cases))
        checks = run(
            implementation, cases, timeout=timeout, progress=lambda check: bar.advance(task)
        )
    statuses = ((check.case.id, check.status) for check in checks)
    notes = [*implementation.notes, *expectations.not_run(statuses, expected)]
    code = _publish(shown, checks, notes, expected, json, junit, html)
    if any(not thread.daemon for thread in set(threading.enumerate()) - threads):
        _end_within(LEAVING, code)
    raise typer.Exit(code)


def _publish(
    shown: str,
    checks: Sequence[Check],
    notes: Sequence[str],
    expected: Mapping[str, str],
    json: Path | None,
    junit: Path | None,
    html: Path | None,
) -> int:
    """Write and print every report; return the exit code."""
    from rich.console import Console

    from loko_ref.conformance.diagnose.naming import name_mistakes
    from loko_ref.conformance.engine import summarise
    from loko_ref.conformance.reports import document as report
    from loko_ref.conformance.reports import junit as xml
    from loko_ref.conformance.reports import page, terminal

    mistakes = name_mistakes(checks)
    if json is not None:  # files first: who reads the terminal's report may stop early (head)
        report.write_json(json, report.as_json(shown, checks, notes, mistakes, expected))
    if junit is not None:
        xml.write(junit, shown, checks, mistakes, expected, notes)
    if html is not None:
        page.write(html, shown, checks, notes, mistakes, expected)
    terminal.print_report(Console(emoji=False), shown, checks, notes, mistakes, expected)
    return summarise(checks, expected).exit_code


def _end_within(seconds: float, code: int) -> None:
    """End this process although a thread that it waits for may never end."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _recording(
    trace: Path,
    option: list[str],
    only: str | None,
    json: Path | None,
    junit: Path | None,
    html: Path | None,
) -> int:
    """Check a recording; return the exit code."""
    from loko_ref.conformance import recorded as walk
    from loko_ref.conformance.implementations import recording

    read = recording.read(trace, option)
    checks = walk.check(read, only)
    shown = " ".join(["--trace", shlex.quote(str(trace))])
    shown += "".join(f" --option {shlex.quote(item)}" for item in option)
    first = walk.first(checks)
    notes = [*read.notes, *([first] if first is not None else [])]
    return _publish(shown, checks, notes, {}, json, junit, html)
