"""Checks of a TARGET and of what it offers, with hints for other languages."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from loko_ref.conformance.cases.chosen import read_options
from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS, VERSION
from loko_ref.conformance.judge.answer import describe
from loko_ref.errors import InputError, closest, shown

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


def stated_catalogue(argument: str, value: object) -> int:
    """Return the version of the catalogue that code states that it was written for; 1 if none.

    Parameters
    ----------
    argument : str
        What the statement is called, for the error.
    value : object
        ``operations/N``, or None.
    """
    if value is None:
        return 1
    known = [f"operations/{version}" for version in range(1, VERSION + 1)]
    if value not in known:
        cause = "a later version of loko_ref, or a typing error"
        raise InputError(argument, f"{value!r:.80}", f"one of {', '.join(known)}", cause)
    return known.index(str(value)) + 1


def stated_options(argument: str, value: object) -> dict[str, Any]:
    """Return the options of which code states that it has one value; none if it states nothing."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        required = "a mapping of option name to value: OPTIONS = {'observation': 'softmax'}"
        raise InputError(argument, f"a {type(value).__name__}", required, "another form")
    return read_options(argument, value)


def too_new(names: Iterable[str], catalogue: int) -> str:
    """Return why code is not given inputs and options that came after it."""
    return (
        f"it may not know {', '.join(names)}, which came after operations/{catalogue}: give the "
        f"function a parameter of that name, or state CATALOGUE = '{CATALOGUE}' beside "
        f'IMPLEMENTATION (of a command: "catalogue": "{CATALOGUE}" in hello)'
    )


def collect(
    holder: object, target: str, attribute: str = "IMPLEMENTATION"
) -> tuple[dict[str, Callable[..., Any]], tuple[str, ...]]:
    """Take the functions out of a mapping, or out of the module or object that holds it.

    Parameters
    ----------
    holder : mapping, module or object
        A mapping from operation name to function; or what has one as its attribute; or what has
        functions by the operations' names with ``_`` for ``.``, where it has no such attribute.
    target : str
        What it is called in the report.

    Returns
    -------
    functions : dict of str to callable
        Operation name -> function.
    notes : tuple of str
        Names that are no operation, and the remarks that the mapping has as ``notes``.

    Raises
    ------
    InputError
        If there is no such mapping, or no operation in it.
    """
    mapping, place = _mapping(holder, target, attribute)
    functions = {name: f for name, f in mapping.items() if name in OPERATIONS}
    for name, function in functions.items():
        if not callable(function):
            raise InputError(
                "TARGET",
                f"{place}[{name!r}] of type {type(function).__name__}",
                "a function",
                "the result of a call instead of the function itself",
            )
    unknown = unknown_operations(mapping)
    if not functions:
        raise InputError(
            "TARGET",
            f"{place} with the keys {sorted(map(str, mapping))}",
            "at least one operation of the catalogue ('loko-ref operations' lists them)",
            unknown[0] if unknown else "an empty mapping",
        )
    return functions, (*getattr(mapping, "notes", ()), *unknown)


def _mapping(holder: object, target: str, attribute: str) -> tuple[Mapping[Any, Any], str]:
    """Find the mapping; return it with its name in an error."""
    if isinstance(holder, Mapping):
        return holder, "a mapping"
    example = "IMPLEMENTATION = {'lora.delta': my_function}"
    required = f"a mapping from operation name to function: {example}"
    names = {name: name.replace(".", "_") for name in OPERATIONS}
    try:
        if hasattr(holder, attribute):
            mapping = getattr(holder, attribute)
        elif attribute == "IMPLEMENTATION":
            mapping = {
                k: getattr(holder, name) for k, name in names.items() if hasattr(holder, name)
            }
        else:
            mapping = {}
    except Exception as error:  # an attribute that is computed, by code that is not ours
        got = f"{shown(target)}, whose attribute fails: {describe(error, __file__)}"
        raise InputError("TARGET", got, required, "an error in the implementation's code") from None
    if not isinstance(mapping, Mapping):
        raise InputError(
            "TARGET",
            f"{attribute} of type {type(mapping).__name__}",
            required,
            "a class or a function instead of the mapping",
        )
    if not mapping and not hasattr(holder, attribute):
        raise InputError(
            "TARGET",
            f"{shown(target)} without an attribute {attribute}",
            required,
            "the mapping has another name (TARGET:name names it), or no function is named as one",
        )
    return mapping, attribute
