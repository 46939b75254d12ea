"""What a function asks of the classes of its arguments, checked before it begins."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import NoneType as NoneType
from typing import ParamSpec, TypeVar

from loko_ref.errors import InputError

Given = ParamSpec("Given")
Result = TypeVar("Result")


def check_type(argument: str, got: object, kind: type | tuple[type, ...], hint: str) -> None:
    """Raise unless an argument is of a class, or of one of several; a text is no sequence.

    Parameters
    ----------
    kind : type or tuple of type
        The class or classes.
    hint : str
        The likely cause, such as the order of the arguments.
    """
    if not isinstance(got, kind) or (kind is Sequence and isinstance(got, str)):
        names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
        required = " or ".join(names).replace("NoneType", "None")
        raise InputError(argument, f"type {type(got).__name__}", f"type {required}", hint)


def takes(
    **kinds: type | tuple[type, ...],
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Make a function raise an InputError for arguments of other classes than those named.

    Examples
    --------
    >>> @takes(text=str)
    ... def shout(text, times=1):
    ...     return text.upper() * times
    >>> shout(1, "a")
    Traceback (most recent call last):
    loko_ref.errors.InputError: text: got type int; required type str. Likely cause: arguments in \
another order: shout(text, times).
    """

    def wrap(function: Callable[Given, Result]) -> Callable[Given, Result]:
        names = list(inspect.signature(function).parameters)
        places = [(name, names.index(name), kind) for name, kind in kinds.items()]
        order = f"arguments in another order: {function.__name__}({', '.join(names)})"

        @functools.wraps(function)
        def checked(*args: Given.args, **given: Given.kwargs) -> Result:
            for name, at, kind in places:
                if at < len(args):
                    check_type(name, args[at], kind, order)
                elif name in given:
                    check_type(name, given[name], kind, order)
            return function(*args, **given)

        return checked

    return wrap
