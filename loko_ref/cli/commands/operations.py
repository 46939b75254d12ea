"""``loko-ref operations [NAME]``: what an implementation may offer, described for any language."""

from __future__ import annotations

import json
import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from loko_ref.conformance.catalogue.entry import Operation

WIDTH = 80

FULL = 87
"""A line of this length goes on in the next one, unless that is a row of a table."""

ROW = re.compile(r" {4}\S+( \S+)? {2,}(?=\S)| +(?=NAME\.)")

CONVENTIONS = """\
IMPLEMENTATION maps an operation's name to a function. The function gets the inputs and options \
below as keywords and returns a mapping of output name to array, any subset of the outputs, in the \
inputs' dtype (float64 or float32). It leaves its inputs unchanged and raises NotImplementedError \
for what it does not offer (a kind of layer that it does not know, say).

An option at its default is not passed to a function that has no parameter for it; nor is one of \
which the code has one value alone, stated once beside IMPLEMENTATION, \
OPTIONS = {'noise': 'fixed'}, or by 'loko-ref verify --option noise=fixed'. Options are JSON \
values; arithmetic between options alone (1 - beta, alpha / r) is float64's.

A batch of `batch` samples with C outputs is stacked sample by sample: m = batch * C. Posteriors \
carry the plain names: the output theta is the posterior mean. ' transposes, ^+ is the \
pseudo-inverse, theta+ the posterior. Vectors multiply elementwise where both are (n,): \
p (1 - diag(K H)). Outputs that do not belong to the options are left out. Labels in brackets name \
the derivation: 'loko-ref explain KAL-2'.

What came after operations/1 is marked. It is passed to a parameter of its name, or into \
**keywords where CATALOGUE = '@' stands beside IMPLEMENTATION.\
"""


def _literal(value: Any) -> str:
    """Return a default as JSON has it (false, not False), a name in single quotes."""
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _since(version: int) -> str:
    return f" (since operations/{version})" if version > 1 else ""


def _wrapped(text: str, first: int = 0, then: int = 0) -> str:
    """Return a text in lines of the width, the first and the others indented."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _fitted(text: str) -> str:
    """Return a text of wider lines in lines of the width; a full line goes on in the next."""
    paragraphs: list[list[str]] = []
    for line in text.splitlines():
        full = bool(paragraphs) and len(paragraphs[-1][-1]) >= FULL
        if full and line.strip() and not ROW.match(line):
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
    return "\n".join(
        lines[0]
        if len(lines[0]) <= WIDTH
        else _wrapped(" ".join(map(str.strip, lines)), _indent(lines[0]), _hanging(lines))
        for lines in paragraphs
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _hanging(lines: list[str]) -> int:
    """Return the indent of a paragraph's further lines: under a row's text, or as they have it."""
    row = ROW.match(lines[0])
    return row.end() if row else _indent(lines[-1])


def _entry(operation: Operation) -> str:
    """Return one operation's inputs, options and outputs."""
    lines = [_wrapped(f"{operation.name}: {operation.text}", 0, 4), "  inputs"]
    for i in operation.inputs:
        only = f" (given only with {i.optional})" if i.optional else ""
        lines.append(_wrapped(f"{i.name} {i.shape}: {i.text}{only}{_since(i.since)}", 4, 8))
    lines += ["  options"] if operation.options else []
    for o in operation.options:
        choices = f" one of {', '.join(o.choices)};" if o.choices else ""
        default = "no default" if o.default is None else f"default {_literal(o.default)}"
        lines.append(_wrapped(f"{o.name}:{choices} {default}; {o.text}{_since(o.since)}", 4, 8))
    lines.append("  outputs, in dataflow order")
    for q in operation.outputs:
        labels = " ".join(f"[{label}]" for label in q.labels)
        text = f"{q.name} {q.shape}: {q.formula}  {labels}  from {', '.join(q.feeds)}"
        lines.append(_wrapped(text, 4, 8))
    return "\n".join(lines)


_NAME = """One operation, or a glob such as 'observation.*' (or 'observation' alone); '*' for every
one. By default a list of their names."""


def operations(name: Annotated[str | None, typer.Argument(help=_NAME)] = None) -> None:
    """Describe the operations: inputs, options, outputs, shapes, defaults, formulas."""
    from loko_ref.conformance.cases.globs import matcher, nothing_matches
    from loko_ref.conformance.catalogue.network_text import LAYERS, SPEC
    from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS

    if name is None:
        typer.echo(f"catalogue {CATALOGUE}\n")
        widest = max(map(len, OPERATIONS))
        for operation in OPERATIONS.values():
            head = f"{operation.name:{widest}}  {operation.text}"
            typer.echo(_wrapped(head, 0, widest + 2))
        typer.echo(
            "\n'loko-ref operations NAME' describes one, '*' all, with the conventions;\n"
            "'loko-ref init numpy' writes a file to fill in"
        )
        return
    matches = matcher("operation", name)
    chosen = [o for key, o in OPERATIONS.items() if matches(key)]
    if not chosen:
        raise nothing_matches("operation", name, OPERATIONS, "loko-ref operations")
    if len(chosen) == 1:
        typer.echo("m = batch * C; \"loko-ref operations '*'\" prints the conventions\n")
    else:
        for paragraph in CONVENTIONS.replace("@", CATALOGUE).split("\n\n"):
            typer.echo(_wrapped(paragraph) + "\n")
    for operation in chosen:
        typer.echo(_entry(operation) + "\n")
    if any(o.text == SPEC for operation in chosen for o in operation.options):
        typer.echo(_fitted(LAYERS))
