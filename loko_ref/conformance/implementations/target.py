"""What the word that names an implementation may be, and the hint for another language."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from loko_ref.errors import InputError, shown

__all__ = ["INTERPRETERS", "SOURCES", "check_place"]

INTERPRETERS = {
    ".js": "node {}",
    ".mjs": "node {}",
    ".ts": "npx tsx {}",
    ".jl": "julia {}",
    ".r": "Rscript {}",
    ".rb": "ruby {}",
    ".lua": "lua {}",
    ".sh": "sh {}",
    ".m": "octave {}",
    ".java": "java {}",
    ".go": "go run {}",
}
"""Suffix of a program's file -> the command that runs it."""

SOURCES = {
    ".c": "cc -O2 {} -lm -o harness",
    ".cc": "c++ -std=c++17 -O2 {} -o harness",
    ".cpp": "c++ -std=c++17 -O2 {} -o harness",
    ".cxx": "c++ -std=c++17 -O2 {} -o harness",
    ".cu": "nvcc {} -o harness",
    ".rs": "rustc -O {} -o harness",
    ".f90": "gfortran -O2 {} -o harness",
}
"""Suffix of a source to compile -> the command that makes a program of it."""


def _foreign(path: Path) -> InputError:
    """Build the error for a file in another language, with the command that verifies it."""
    name, suffix = shlex.quote(str(path)), path.suffix.lower()
    program = name if os.sep in name else f"./{name}"
    if suffix in INTERPRETERS:
        way = f"--cmd {shlex.quote(INTERPRETERS[suffix].format(name))}"
    elif suffix in SOURCES:
        way = f"{SOURCES[suffix].format(name)} && loko-ref verify --cmd ./harness"
    elif os.access(path, os.X_OK):
        way = f"--cmd {shlex.quote(program)}"
    else:
        way = "--cmd 'COMMAND', the command that runs it"
    return InputError(
        "TARGET",
        shown(str(path)),
        f"a Python file, a module or module:attribute; for another language {way}",
        "an implementation in another language, which speaks 'loko-ref protocol' and is run by "
        "--cmd",
    )


def check_place(target: str, place: str) -> None:
    """Raise for a path that holds no Python source, before Python reads it."""
    path, required = Path(place), "a Python file, a module or module:attribute"
    try:
        known, folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError("TARGET", shown(target), required, str(error)) from None
    if folder and (os.sep in place or place in (".", "..")):
        raise InputError("TARGET", shown(target), required, "the name of a directory")
    if not path.exists() and path.suffix.lower() in (".py", *INTERPRETERS, *SOURCES):
        raise InputError("TARGET", shown(target), "a file that exists", "a path misspelt")
    if known and path.suffix != ".py":
        raise _foreign(path)
