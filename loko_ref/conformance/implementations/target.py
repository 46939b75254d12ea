"""Checks of a TARGET and of the names it offers, with hints for other languages."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.errors import InputError, closest, shown

__all__ = ["INTERPRETERS", "SOURCES", "check_place", "unknown_operations"]

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
"""Suffix of a program -> the command that runs it."""

SOURCES = {
    ".c": "cc -O2 {} -lm -o harness",
    ".cc": "c++ -std=c++17 -O2 {} -o harness",
    ".cpp": "c++ -std=c++17 -O2 {} -o harness",
    ".cxx": "c++ -std=c++17 -O2 {} -o harness",
    ".cu": "nvcc {} -o harness",
    ".rs": "rustc -O {} -o harness",
    ".f90": "gfortran -O2 {} -o harness",
}
"""Suffix of a source file -> the command that compiles it."""


def _foreign(path: Path) -> InputError:
    """Return the error for a file in another language, with the command that verifies it."""
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
        "an implementation in another language: it has to speak 'loko-ref protocol', and --cmd "
        "runs it",
    )


def check_place(target: str, place: str) -> None:
    """Raise if a path does not hold Python source, before Python reads it."""
    path, required = Path(place), "a Python file, a module or module:attribute"
    try:
        known, folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError("TARGET", shown(target), required, str(error)) from None
    if folder and (os.sep in place or place in (".", "..")):
        raise InputError("TARGET", shown(target), required, "the name of a directory")
    if not path.exists() and path.suffix.lower() in (".py", *INTERPRETERS, *SOURCES):
        raise InputError("TARGET", shown(target), "a file that exists", "a misspelt path")
    if known and path.suffix != ".py":
        raise _foreign(path)


def unknown_operations(names: Iterable[object]) -> tuple[str, ...]:
    """Return a note for the report on each name that the catalogue does not have."""
    notes = []
    for name in names:
        if name not in OPERATIONS:
            near = closest(str(name), OPERATIONS)
            hint = f"; the closest is '{near}'" if near else ""
            notes.append(f"{name!r} is no operation of the catalogue and was not run{hint}")
    return tuple(notes)
