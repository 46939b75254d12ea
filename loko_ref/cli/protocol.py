"""``loko-ref protocol``: the protocol for any language, and a check of a harness that speaks it."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["protocol"]


def protocol(
    cmd: Annotated[
        str | None, typer.Option("--cmd", help="Check the harness that this command starts.")
    ] = None,
) -> None:
    """Print the protocol; with --cmd, check a harness: hello, canary, errors, files, stop.

    Exit code 0: it speaks the protocol; 1: it does not; 2: it could not be started.
    """
    from loko_ref.conformance.cases import all_cases
    from loko_ref.conformance.protocol import SPECIFICATION, ProtocolError
    from loko_ref.conformance.subprocess_target import Command, Ended

    if cmd is None:
        typer.echo(SPECIFICATION, nl=False)
        return
    harness = Command(cmd, large=0)  # all by file, where it reads files
    wrong = 0

    def report(good: bool, text: str) -> None:
        nonlocal wrong
        wrong += not good
        typer.echo(f"{'ok   ' if good else 'WRONG'} {text}")

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
            answer = harness.ask(dict(message), 10.0)
            report(answer["type"] in allowed, f"{text} (answer: {answer['type']!r})")
        except (Ended, ProtocolError) as error:
            report(False, f"{text}: {error}")
    if harness.files:
        offered = [
            case
            for case in all_cases()
            if case.operation.name in harness.operations and case.dtype in harness.dtypes
        ]
        ran = ((case, harness.run(case, 60.0)) for case in offered)
        case, done = next(((c, a) for c, a in ran if a.declined is None), (None, None))
        if case is None or done is None:
            report(True, "tensors by file: untried, it declines everything")
        elif done.finding is None:
            report(True, f"tensors by file: {case.id} is answered")
        else:
            report(False, f"tensors by file: {case.id}: {done.finding.message}")
    code = harness.close()
    report(code == 0, f"stop: {'killed after 5 s' if code is None else f'exit code {code}'}")
    raise typer.Exit(1 if wrong else 0)
