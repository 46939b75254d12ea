"""Text to a value: how the words of every option and argument are read.

:func:`read_by_type` gives each parameter of each command a reader by its type. What cannot be used
is an InputError that names the option, what was got (shortened), what is required and the likely
cause, raised before the command begins. Ranges that only one command knows are checked there.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from loko_ref.checks.values import read_number, read_whole
from loko_ref.cli.completion import COMPLETERS
from loko_ref.errors import InputError, shown

DAY = 86400.0
"""Seconds that a check or a timing may take at most."""

LONGEST_TEXT = 2**16
"""Characters that the text of an option may have."""


@dataclass(frozen=True)
class _Refused:
    """A value that cannot be used; raised when its command begins, by the option's name."""

    error: InputError


def _reader(name: str, read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Make the function that typer calls; ``--help`` shows `name`."""

    def parse(got: Any) -> Any:
        if not isinstance(got, str):
            return got  # a default
        try:
            return read(_plain(got))
        except InputError as error:
            return _Refused(error)  # typer would take an error for its own, and lose its words

    parse.__name__ = name
    return parse


def _plain(text: str) -> str:
    """Return a text that can be looked up, printed and written to a file."""
    if len(text) > LONGEST_TEXT:
        raise InputError("", shown(text), f"at most {LONGEST_TEXT} characters", "a file's content")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        cause = "bytes that are not UTF-8, as in a file's name of another encoding"
        raise InputError("", shown(text), "text without NUL that is valid UTF-8", cause)
    return text


def _seconds(text: str) -> float:
    value = read_number("", text)
    if not 0 < value <= DAY:
        raise InputError("", shown(text), f"seconds in (0, {DAY:g}]", "a sign, or a digit too many")
    return value


def _path(text: str) -> Path:
    """Read a path that the system can look up, whether or not something is there."""
    required = "the path of a file or a directory"
    if not text.strip():
        raise InputError("", shown(text), required, "an empty value, such as an unset variable")
    try:
        os.stat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            cause = "a name longer than the file system allows"
            raise InputError("", shown(text), required, cause) from None
    return Path(text)


READERS: dict[type, Callable[[Any], Any]] = {
    int: _reader("INTEGER", lambda text: read_whole("", text, low=0)),
    float: _reader("FLOAT", lambda text: read_number("", text)),
    Path: _reader("PATH", _path),
    str: _reader("TEXT", lambda text: text),
}
"""Type of a parameter -> its reader."""

NAMED: dict[str, Callable[[Any], Any]] = {
    "seed": _reader("INTEGER", lambda text: read_whole("", text, low=0, high=2**64 - 1)),
    "threads": _reader("INTEGER", lambda text: read_whole("", text, high=1024)),
    "timeout": _reader("FLOAT", _seconds),
    "min_time": _reader("FLOAT", _seconds),
}
"""Parameter -> its reader, where the name states more than the type."""


def read_by_type(app: typer.Typer) -> None:
    """Attach its reader to every parameter of every command of an application."""
    for group in app.registered_groups:
        if group.typer_instance is not None:
            read_by_type(group.typer_instance)
    for command in app.registered_commands:
        assert command.callback is not None
        command.callback = _read(command.callback)


def _read(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with readers for its parameters; it raises what they refused."""
    hints = get_type_hints(command, include_extras=True)
    flags = {}
    for name, hint in hints.items():
        if get_origin(hint) is not Annotated:
            continue
        kind, about = get_args(hint)
        inner = [k for k in (kind, *get_args(kind)) if k is not type(None)]
        kinds = [k for one in inner for k in (one, *get_args(one)) if k in READERS]
        if kinds:
            about.parser = NAMED.get(name, READERS[kinds[0]])
            about.autocompletion = COMPLETERS.get(name)
        long = [word for word in about.param_decls or () if word.startswith("--")]
        if isinstance(about, typer.models.ArgumentInfo):
            long = [about.metavar or name.upper()]
        flags[name] = long[0] if long else "--" + name.replace("_", "-")
    command.__annotations__ = hints

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        for name, value in given.items():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, _Refused):
                    got = one.error.got
                    raise InputError(flags[name], got, one.error.required, one.error.cause)
        return command(**given)

    return run
