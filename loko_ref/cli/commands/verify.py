"""``loko-ref verify TARGET``: is an implementation right, and if not, where is it wrong first?"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from loko_ref.checks.values import check_range
from loko_ref.cli.needs import check_needs
from loko_ref.cli.verdicts import (
    Baseline,
    Html,
    Json,
    Junit,
    Strict,
    Verbose,
    Xfail,
    implementation_of,
    publish,
)
from loko_ref.errors import InputError

LEAVING = 5.0
"""Seconds that threads of the code under test have to end, once the report is written."""


_TARGET = """A Python file, a module or module:attribute that holds IMPLEMENTATION, a mapping from
operation name to function ('loko-ref operations' describes them)."""
_CMD = "In place of TARGET: a command that speaks 'loko-ref protocol'."
_TRACE = """In place of TARGET: a recording of a run, .npz or .safetensors. Array 'k/name' is
quantity name of step k = 0, 1, ...: k/theta, k/p (or k/P), k/R the state before step k (its
posteriors are k+1/theta, k+1/p, k+1/R), and whatever there is of k/y, k/z, k/Z, k/p_pred, k/yhat,
k/e, k/H, k/R_used (the R in S), k/S, k/K, k/r (y - h(theta+)): see 'loko-ref operations loko.step'.
With the option operation=lte.run, optimizer.sgd, optimizer.adagrad or optimizer.adamw: that
operation's inputs and outputs, the state before step k under k/ (LTE: W, theta, p, R, merged,
copies; A drawn by a reset after step k is k/redraws.0.A)."""
_OPTION = """NAME=VALUE, repeatable: what the implementation has one value of, such as
observation=softmax; its cases are selected, or built for a number that none has. For --trace an
option of what was recorded (loko.step by default; there observation is gaussian and noise fixed),
or operation=NAME; or JSON in the file, array or metadata 'options'."""
_ONLY = "Run the ids or operations that match this glob."
_DTYPE = "float64 or float32; both by default."
_CASE = "Run this case alone, which 'loko-ref properties --save' has written."
_TIMEOUT = """Seconds a check may take, all of it (with --cmd: a new start after a failure too);
also the import of TARGET, or the command's first hello. A TARGET that stays in compiled code cannot
be interrupted; a command is killed, with all its processes."""
_LARGE = """With --cmd: bytes from which a tensor goes by file, where the harness reads files
(1048576; 0 sends all by file)."""


def verify(
    target: Annotated[str | None, typer.Argument(help=_TARGET)] = None,
    cmd: Annotated[str | None, typer.Option(help=_CMD)] = None,
    trace: Annotated[Path | None, typer.Option(help=_TRACE)] = None,
    option: Annotated[list[str] | None, typer.Option(help=_OPTION)] = None,
    json: Json = None,
    junit: Junit = None,
    html: Html = None,
    xfail: Xfail = None,
    baseline: Baseline = None,
    only: Annotated[str | None, typer.Option(help=_ONLY)] = None,
    dtype: Annotated[str | None, typer.Option(help=_DTYPE)] = None,
    case: Annotated[Path | None, typer.Option(help=_CASE)] = None,
    strict: Strict = False,
    verbose: Verbose = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the cases and stop.")] = False,
    timeout: Annotated[float, typer.Option(help=_TIMEOUT)] = 60.0,
    large: Annotated[int | None, typer.Option(help=_LARGE)] = None,
) -> None:
    """Check an implementation against the oracle.

    Exit code 0: all that ran passed, is imprecise (without --strict), or failed as expected
    (--xfail), and something ran; 1: something failed; 2: TARGET cannot be used, or nothing ran.
    """
    check_needs(html=html)
    from loko_ref.cli.progress import progress_bar
    from loko_ref.conformance.cases.chosen import choose, read_options
    from loko_ref.conformance.verification import LONGEST, naming, verify_recording
    from loko_ref.conformance.verification import verify as check
    from loko_ref.files.writing import check_targets

    check_range("--timeout", timeout, low=0, low_open=True, high=LONGEST)
    check_targets(
        {"--json": json, "--junit": junit, "--html": html},
        {
            "TARGET": target,
            "--trace": trace,
            "--xfail": xfail,
            "--case": case,
            "--baseline": baseline,
        },
    )
    if large is not None and (cmd is None or large < 0):
        raise InputError("--large", large, "bytes >= 0, with --cmd", "only a command reads files")
    if trace is not None:
        if target is not None or cmd is not None:
            raise InputError("--trace", "TARGET or --cmd too", "one of them", "two ways to verify")
        others = {"--xfail": xfail, "--dtype": dtype, "--list": list_ or None, "--case": case}
        for name, value in others.items():
            if value is not None:
                raise InputError(name, value, "not beside --trace", "a recording has no cases")
        with naming(path="--trace", options="--option", only="--only", baseline="--baseline"):
            report = verify_recording(
                trace, option or [], only=only, baseline=baseline, strict=strict
            )
        raise typer.Exit(publish(report, json, junit, html, verbose))
    if list_:
        if case is not None:
            raise InputError("--case", case, "not beside --list", "a file holds one case")
        with naming(options="--option", only="--only", dtype="--dtype"):
            listed = choose(read_options("options", option or []), only, dtype)
        for one in listed:
            typer.echo(f"{one.id}\t{one.covers}")
        return
    implementation = implementation_of(target, cmd)
    threads = set(threading.enumerate())
    names = ("only", "dtype", "xfail", "large", "case", "baseline")
    options = {**{name: f"--{name}" for name in names}, "options": "--option"}
    with (
        progress_bar() as bar,
        naming(implementation="TARGET" if cmd is None else "--cmd", **options),
    ):
        task = bar.add_task("verifying", total=None)
        report = check(
            implementation,
            only=only,
            dtype=cast("Literal['float64', 'float32']", dtype),  # verify checks it
            options=option or [],
            timeout=timeout,
            xfail=xfail,
            large=large,
            case=case,
            baseline=baseline,
            strict=strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    code = publish(report, json, junit, html, verbose)
    if any(not thread.daemon for thread in set(threading.enumerate()) - threads):
        _end_within(LEAVING, code)
    raise typer.Exit(code)


def _end_within(seconds: float, code: int) -> None:
    """End this process although a thread that it waits for may never end."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
