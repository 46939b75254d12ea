"""The commands, from the texts of their ``--help``; the schemas of what they write."""

import json
from pathlib import Path
from typing import Any

from loko_ref.cli.needs import EXTRA
from loko_ref.files.documents import NAMES, WRITTEN_BY, load
from pages.markdown import block, code, page, table, text, toctree


def _parameters(command: Any) -> list[str]:
    parts, panels = [], {}
    for p in command.params:
        if not getattr(p, "hidden", False):
            kind = "Arguments" if p.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(p, "rich_help_panel", None) or kind, []).append(p)
    for panel, params in panels.items():
        parts.append(f"## {panel}\n")
        for p in params:
            names = ", ".join(code(n.upper() if panel == "Arguments" else n) for n in p.opts)
            default = p.default if isinstance(p.default, int | float | str) else None
            shown = "" if default in (None, False, "") else f" Default: {code(default)}."
            parts.append(f"{names}\n: {text(p.help or '')}{shown}\n")
    return parts


def _help(words: str) -> str:
    """Return a command's description: paragraphs, and lines that are indented as code."""
    return "\n\n".join(
        block("\n".join(line.strip() for line in part.splitlines()), "sh")
        if part.startswith(("    ", "\t"))
        else text(part)
        for part in (words or "").strip("\n").split("\n\n")
    )


def write(source: Path) -> None:
    """Write a page for each command, and one of schemas."""
    from typer.main import get_command

    from loko_ref.cli.app import app

    folder = source / "commands"
    flat: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():
        below = getattr(command, "commands", None)
        flat |= {f"{name} {k}": c for k, c in below.items()} if below else {name: command}
    rows = []
    for name, command in flat.items():
        stem = name.replace(" ", "-")
        summary = (command.help or "").strip().split("\n\n")[0]
        rows.append((f"[loko-ref {name}]({stem}.md)", text(summary)))
        extra = EXTRA.get(name.split()[0], "cli")
        parts = [f"{_help(command.help)}\n", f"Needs the extra `[{extra}]`.\n"]
        page(folder / f"{stem}.md", f"loko-ref {name}", *parts, *_parameters(command))
    words = """Every command has `--help`. Exit codes: 0 for success, 1 where something failed, 2
for what cannot be used, 130 after Ctrl-C. A file is written whole or not at all.\n"""
    names = [name.replace(" ", "-") for name in flat]
    page(
        folder / "index.md",
        "Commands",
        words,
        table(("command", "what it does"), rows),
        toctree(names),
    )
    parts = ["Each document begins with the name and version of its schema (`loko-ref schema`).\n"]
    for name in NAMES:
        parts += [f"## {name}\n", f"Written by {code(f'loko-ref {WRITTEN_BY[name]}')}.\n"]
        parts.append(block(json.dumps(load(name), indent=1), "json"))
    page(source / "schemas.md", "JSON documents", *parts)
