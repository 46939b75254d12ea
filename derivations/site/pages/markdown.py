"""Markdown, written by functions."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def text(words: str) -> str:
    """Return plain words as Markdown: nothing in them is markup."""
    return re.sub(r"([\\`*_<>\[\]{}$|~#])", r"\\\1", " ".join(words.split()))


def code(words: object) -> str:
    """Return words as code within a line, in a table too."""
    inside = str(words).replace("|", "\\|")
    return f"`` {inside} ``" if "`" in inside else f"`{inside}`" if inside else ""


def block(words: str, language: str = "text") -> str:
    """Return lines of code."""
    return f"``````{language}\n{words.rstrip()}\n``````\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def toctree(names: Iterable[str], *, hidden: bool = True) -> str:
    """Return the list of pages below this one."""
    options = ["---", "hidden:", "---"] if hidden else []
    return "\n".join(["", "```{toctree}", *options, *names, "```", ""])


def page(file: Path, title: str, *parts: str, listed: bool = True) -> None:
    """Write a page; one that is not listed is reached by links and the search alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head = "" if listed else "---\norphan: true\n---\n"
    file.write_text(f"{head}# {title}\n\n" + "\n".join(parts), encoding="utf-8")
