"""What the commands with a verdict share: their options, their target, and what they print."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loko_ref.errors import InputError

if TYPE_CHECKING:
    from loko_ref.conformance.reports.report import Report

_XFAIL = "Expected failures, one 'id: reason' per line; one that passes is an error."
_BASELINE = "An earlier report (--json): the report lists what changed since."
_STRICT = "Count imprecise results as failures: right formulas by an algorithm that loses digits."
_VERBOSE = "Describe more kinds of failure, every operation, and tolerances."

Json = Annotated[Path | None, typer.Option(help="Write the report here.")]
Junit = Annotated[Path | None, typer.Option(help="Write the report as JUnit XML here.")]
Html = Annotated[Path | None, typer.Option(help="Write the report as one page.")]
Xfail = Annotated[Path | None, typer.Option(help=_XFAIL)]
Baseline = Annotated[Path | None, typer.Option(help=_BASELINE)]
Strict = Annotated[bool, typer.Option("--strict", help=_STRICT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help=_VERBOSE)]


def implementation_of(target: str | None, cmd: str | None) -> str:
    """Return what was named, TARGET or ``--cmd COMMAND``.

    Raises
    ------
    InputError
        If neither was named, or both.
    """
    if (target is None) == (cmd is None):
        got = "nothing" if target is None else "both TARGET and --cmd"
        raise InputError(
            "TARGET",
            got,
            "a Python file, a module or module:attribute, or --cmd COMMAND",
            "it was left out" if target is None else "two ways to name the implementation",
        )
    return str(target) if cmd is None else f"--cmd {shlex.quote(cmd)}"


def publish(
    report: Report, json: Path | None, junit: Path | None, html: Path | None, verbose: bool
) -> int:
    """Write and print every report; return the exit code."""
    from loko_ref.conformance.verification import naming

    with naming(json="--json", junit="--junit", html="--html"):
        # files first: who reads the terminal's report may stop early (head)
        report.write(json=json, junit=junit, html=html)
    report.print(verbose=verbose)
    return report.summary.exit_code
