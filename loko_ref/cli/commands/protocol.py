"""``loko-ref protocol`` and ``loko-ref schema``: protocol and documents, for other programs.

The protocol for any language, with a check of a harness that speaks it; the JSON Schemas of the
documents that this package writes.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from loko_ref.files.documents import WRITTEN_BY, load

_CMD = "Check the harness that this command starts."
_TIMEOUT = "Maximum seconds until hello, and each request, is answered."


def protocol(
    cmd: Annotated[str | None, typer.Option(help=_CMD)] = None,
    timeout: Annotated[float, typer.Option(help=_TIMEOUT)] = 30.0,
) -> None:
    """Print the protocol; with --cmd, check a harness: hello, canary, errors, files, stop.

    Exit code 0: the harness conforms; 1: it does not; 2: it could not be started.
    """
    from loko_ref.conformance.cases.registry import all_cases
    from loko_ref.conformance.implementations.child import Ended
    from loko_ref.conformance.implementations.command import Command
    from loko_ref.conformance.implementations.protocol import ProtocolError, show
    from loko_ref.conformance.implementations.specification import SPECIFICATION
    from loko_ref.errors import InputError, printable

    if not timeout > 0:
        raise InputError("--timeout", timeout, "seconds > 0", "a sign")
    if cmd is None:
        typer.echo(SPECIFICATION, nl=False)
        return
    wrong = 0

    def report(good: bool, text: str) -> None:
        nonlocal wrong
        wrong += not good
        typer.echo(f"{'ok    ' if good else 'FAILED'} {printable(text)}")

    with Command(cmd, 0, timeout) as harness:  # passes all tensors by file, if it reads files
        report(True, "hello: " + ", ".join(harness.operations))
        report(True, "canary bit for bit: " + ", ".join(harness.dtypes))
        for message, allowed, text in (
            (
                {"type": "run", "id": 1, "operation": "no.such", "inputs": {}, "options": {}},
                ("unsupported", "error"),
                "an unknown operation is answered 'unsupported'",
            ),
            ({"type": "no such"}, ("error",), "an unknown type is answered 'error'"),
        ):
            try:
                answer = harness.ask(dict(message), timeout)
                report(answer["type"] in allowed, f"{text} (answer: {show(answer['type'])})")
            except (Ended, ProtocolError, OSError) as error:
                report(False, f"{text}: {error}")
        if harness.files:
            offered = [
                case
                for case in all_cases()
                if case.operation.name in harness.operations and case.dtype in harness.dtypes
            ]
            ran = ((case, harness.run(case, timeout)) for case in offered)
            case, done = next(((c, a) for c, a in ran if a.declined is None), (None, None))
            if case is None or done is None:
                report(True, "tensors by file: not tested, since it declines every case")
            elif done.finding is None:
                report(True, f"tensors by file: {case.id} is answered")
            else:
                report(False, f"tensors by file: {case.id}: {done.finding.message}")
        try:
            harness.ready(timeout)  # it may have failed above
        except (Ended, ProtocolError, OSError) as error:
            report(False, f"stop: not tested, since it does not start again: {error}")
        else:
            code, seconds = harness.close(), harness.stop_timeout
            ended = f"killed after {seconds:g} s" if code is None else f"exit code {code}"
            report(code == 0, f"stop: {ended}")
        if harness.extra:
            report(False, f"one line per answer: another followed the last one: {harness.extra}")
    raise typer.Exit(1 if wrong else 0)


def schema(
    name: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(WRITTEN_BY)}; by default the list.")
    ] = None,
) -> None:
    """Print the JSON Schema of a document that another command writes, or the list of them."""
    if name is None:
        for one, command in WRITTEN_BY.items():
            typer.echo(f"{one}\t{command}")
        return
    typer.echo(json.dumps(load(name), indent=2))
