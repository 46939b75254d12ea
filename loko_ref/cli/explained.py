"""What ``loko-ref explain`` prints besides a step of LoKO: a derivation, the labels, a merge."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from loko_ref.errors import InputError, closest, shown
from loko_ref.explain import label_matrix
from loko_ref.explain.derivations import LABEL, Derivation, derivation, derivations
from loko_ref.explain.merging import merges
from loko_ref.explain.plain_math import plain_text
from loko_ref.explain.steps import Quantity

INDENT = "    "
WIDEST = 100


def show(what: str, matrix: bool, quantity: Callable[[Console, int, Quantity], None]) -> None:
    """Print what is named: ``lte``, ``labels`` or a label.

    Parameters
    ----------
    what : str
        The name, a label in capitals or not.
    matrix : bool
        Of ``labels``: the code, the tests and the known mistakes of each.
    quantity : callable
        ``(console, number, quantity)``: prints one quantity of a merge.

    Raises
    ------
    InputError
        If it is none of them; it names the closest.
    """
    if what == "lte":
        print_merges(quantity)
    elif what == "labels":
        print_matrix() if matrix else print_labels()
    elif re.fullmatch(LABEL, what.upper()):
        print_section(what)
    else:
        near = closest(what, ["tiny", "lte", "labels", *derivations()])
        required = "tiny, lte, labels, or a label such as KAL-2 ('loko-ref explain labels')"
        cause = f"a typing error; the closest is '{near}'" if near else "another command's word"
        raise InputError("WHAT", shown(what), required, cause)


def print_section(label: str) -> None:
    """Print the title, the statement, the derivation and the rest of one label."""
    _section(Console(highlight=False), derivation(label))


def _section(console: Console, one: Derivation) -> None:
    width = min(console.width, WIDEST)
    console.print(Text(f"[{one.label}] {one.title}", style="bold"))
    for title, text in one.parts.items():
        console.print()
        console.print(Text(title, style="bold cyan"))
        for line in _wrapped(text, width):
            style = "green" if line.startswith(2 * INDENT) else ""
            console.print(Text(line, style=style), soft_wrap=True)
    console.print()
    console.print(Text(f"derivations/{one.file} has it with its mathematics typeset", style="dim"))


def _wrapped(markdown: str, width: int) -> list[str]:
    """Return paragraphs that fit: displays by equation, tables in columns."""
    blocks: list[list[str]] = []
    for paragraph in filter(str.strip, markdown.split("\n\n")):
        if paragraph.startswith("|"):
            blocks.append([INDENT + line for line in _table(paragraph.splitlines())])
        elif paragraph.startswith("```"):
            blocks.append([INDENT + line for line in paragraph.splitlines()[1:-1]])
        else:
            plain = plain_text(paragraph)
            blocks += [_fitting(part, width) for part in filter(str.strip, plain.split("\n\n"))]
    return "\n\n".join("\n".join(lines) for lines in blocks).split("\n")


def _fitting(text: str, width: int) -> list[str]:
    """Return one paragraph, or the equations of a display, which a wide space parts."""
    body = text.strip("\n")
    if not body.startswith(INDENT):
        return _wrap(" ".join(body.split()), width, INDENT, INDENT)
    equations = [" ".join(one.split()) for one in body.strip().split(INDENT)]
    return [line for one in equations for line in _wrap(one, width, 2 * INDENT, 3 * INDENT)]


def _wrap(text: str, width: int, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(rows: list[str]) -> list[str]:
    """Return a table of Markdown with its columns below one another."""
    cells = [[plain_text(cell.strip()) for cell in row.strip("|").split("|")] for row in rows]
    cells = [row for row in cells if set("".join(row)) - set("-:")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def print_labels() -> None:
    """Print every label with its title."""
    console = Console(highlight=False)
    for label, one in derivations().items():
        console.print(Text(f"{label:9}{one.title}"), soft_wrap=True)
    console.print(Text("'loko-ref explain LABEL' prints one", style="dim"))


def print_matrix() -> None:
    """Print for every label the code, the tests and the known mistakes, or why there are none."""
    console = Console(highlight=False)
    width = min(console.width, WIDEST)
    rows = label_matrix.matrix()
    for row in rows:
        console.print(Text(f"{row.label:9}{row.title}", style="bold"), soft_wrap=True)
        mistakes = ", ".join(row.mistakes) or f"none: {row.reason}"
        entries = {"code": row.code, "tests": row.tests, "mistakes": (mistakes,)}
        for name, found in entries.items():
            words = f"{name:10}{', '.join(found)}"
            for line in _wrap(words, width, " " * 9, " " * 19):
                console.print(Text(line), soft_wrap=True)
    named = sum(bool(row.mistakes) for row in rows)
    console.print(
        f"{len(rows)} labels; known mistakes of {named}, a reason for {len(rows) - named}"
    )


def print_merges(quantity: Callable[[Console, int, Quantity], None]) -> None:
    """Print the merges of a small run of LTE, each quantity by `quantity`."""
    console = Console(highlight=False)
    console.print(Text("LTE on one linear layer: two heads of rank 1", style="bold"))
    console.print(
        "Letters as in derivations/lte.md. 'differs by' compares the computed quantity with its "
        "plain equation, relative to its largest entry."
    )
    for merge in merges():
        console.print()
        console.rule(Text(merge.title, style="bold"))
        for number, one in enumerate(merge.quantities, start=1):
            quantity(console, number, one)
        console.print()
        console.print(Text("Effects of this merge", style="bold"))
        for sentence in merge.outcome:
            text = textwrap.fill(
                sentence, console.width, initial_indent=INDENT, subsequent_indent=INDENT
            )
            console.print(Text(text), soft_wrap=True)
