"""``loko-ref init LANGUAGE``: a file to fill in, which runs at once under ``loko-ref verify``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

_FILE = "Where to write it; my_loko.py, my_loko.cpp, ... by default."
_ONLY = """Operations of this glob, in place of the usual ones ('loko-ref operations' lists all);
not for torch and jax, whose adapters have their own."""


def init(
    language: Annotated[str, typer.Argument(help="torch, jax, numpy, cpp, rust or js.")],
    file: Annotated[Path | None, typer.Argument(help=_FILE)] = None,
    only: Annotated[str | None, typer.Option(help=_ONLY)] = None,
) -> None:
    """Write a scaffold of an implementation: it declines everything until it is filled in.

    An existing file is never overwritten.
    """
    from loko_ref.cli.scaffolds import LANGUAGES, scaffold
    from loko_ref.errors import InputError
    from loko_ref.files.writing import check_target, write_bytes

    text = scaffold(language, only)
    known = LANGUAGES[language]
    if only is not None and known.operation is None:
        required = "left out: its adapter makes the operations"
        raise InputError("--only", only, f"{required} of {language}", "another language's option")
    path = Path(known.file) if file is None else file
    suffix = Path(known.file).suffix
    check_target("FILE", path, suffix)
    if os.path.lexists(path):
        required = "a file that does not exist: nothing is overwritten"
        raise InputError("FILE", repr(str(path)), required, "an earlier scaffold, or code of yours")
    write_bytes(path, text.encode(), "FILE")
    name = shlex.quote(str(path))
    program = path.with_suffix("")
    stem = shlex.quote(str(program) if program.is_absolute() else f".{os.sep}{program}")
    typer.echo(f"wrote {path}: fill in one function, then run")
    typer.echo(f"  {known.next.format(file=name, stem=stem)}")
