"""Errors in one sentence: the argument, the value got, the value required, and the likely cause.

An error that a caller can cause is an :class:`InputError` (a ``ValueError``). A numerical failure
is a :class:`NumericalError` (NumPy's ``LinAlgError``), with the quantity, its offending eigenvalue
and, inside a run, the step.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from numpy.linalg import LinAlgError

__all__ = [
    "BackendError",
    "InputError",
    "MissingExtraError",
    "MissingLibraryError",
    "NumericalError",
    "UndecidedError",
    "closest",
    "printable",
    "shown",
    "unknown_option",
]

LONGEST = 400
"""Most characters of a value in an error; a longer one is shown by its beginning and end."""


def _escaped(text: str) -> str:
    """Return a text with what does not print escaped, except newlines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _cut(text: str, longest: int = LONGEST) -> str:
    """Return an escaped text without the middle of a long one."""
    if len(text) > longest:
        half = longest // 2 - 20
        text = f"{text[:half]} ... {text[-half:]} ({len(text)} characters)"
    return _escaped(text)


def shown(value: object) -> str:
    """Return the ``repr`` of a user's value, bounded in length and in time.

    Examples
    --------
    >>> shown("relu"), shown(10**5000)
    ("'relu'", 'a whole number of 5001 digits')
    """
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > LONGEST:
        digits = int(value.bit_length() * math.log10(2)) + 1
        return f"a whole number of {digits} digits"
    if isinstance(value, str | bytes) and len(value) > LONGEST:
        half = LONGEST // 2 - 40
        return f"{value[:half]!r} ... {value[-half:]!r} ({len(value)} characters)"
    try:
        return _cut(repr(value))
    except (RecursionError, ValueError):  # nested too deeply, or a huge number inside
        return f"a {type(value).__name__}"


class InputError(ValueError):
    """An invalid argument.

    Parameters
    ----------
    argument : str
        Name of the argument, as the caller wrote it.
    got : object
        The value, or a short description of it.
    required : str
        The values accepted.
    cause : str
        The likely cause.
    """

    def __init__(self, argument: str, got: object, required: str, cause: str) -> None:
        self.argument = argument
        self.got = got
        self.required = required
        self.cause = cause
        seen = _cut(got).replace("\n", "\\n") if isinstance(got, str) else shown(got)
        why = _cut(cause, 2 * LONGEST)  # it may quote a system error with a long path
        text = f"{argument}: got {seen}; required {required}. Likely cause: {why}."
        super().__init__(_cut(text, 20 * LONGEST))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str, str]]:
        return type(self), (self.argument, self.got, self.required, self.cause)


class NumericalError(LinAlgError):
    """A matrix is not numerically positive definite, or a run diverged.

    Parameters
    ----------
    quantity : str
        The matrix or vector, by its name in the notation (``S``, ``R``, ``P``).
    eigenvalue : float or None
        Its smallest eigenvalue; None if the quantity overflowed.
    cause : str
        The meaning, and a remedy.
    step : int, optional
        The filter's step, counted from 0, inside a run.
    """

    def __init__(
        self, quantity: str, eigenvalue: float | None, cause: str, step: int | None = None
    ) -> None:
        self.quantity = quantity
        self.eigenvalue = eigenvalue
        self.cause = cause
        self.step = step
        where = "" if step is None else f"step {step}: "
        what = "not finite" if eigenvalue is None else f"smallest eigenvalue {eigenvalue:.6g}"
        super().__init__(f"{where}{quantity}: {what}. {cause}")

    def at_step(self, step: int) -> NumericalError:
        """Return the same error, naming the step at which it happened."""
        return type(self)(self.quantity, self.eigenvalue, self.cause, step)

    def __reduce__(self) -> tuple[type[NumericalError], tuple[str, float | None, str, int | None]]:
        return type(self), (self.quantity, self.eigenvalue, self.cause, self.step)


class UndecidedError(NumericalError):
    """Ball arithmetic cannot decide between two branches at the precision in use."""


class MissingExtraError(ImportError):
    """A feature needs a package that is not installed.

    Parameters
    ----------
    feature : str
        The feature that needs it.
    package : str
        The package.
    extra : str
        The extra of ``loko-ref`` that installs it.
    failure : str
        The error of its import, if it is installed but cannot be imported.
    """

    def __init__(self, feature: str, package: str, extra: str, failure: str = "") -> None:
        self.feature = feature
        self.package = package
        self.extra = extra
        self.failure = failure
        state = (
            f"which is installed but fails to import ({failure})"
            if failure
            else "which is not installed"
        )
        super().__init__(
            f"{feature} needs the package '{package}', {state}: pip install 'loko-ref[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str, str]]:
        return type(self), (self.feature, self.package, self.extra, self.failure)


class MissingLibraryError(MissingExtraError):
    """A package is installed, but a system library that it loads is not.

    Parameters
    ----------
    feature, package, extra : str
        As for :class:`MissingExtraError`; the extra installs the library too.
    failure : str
        The error of loading it.
    library : str
        The missing library.
    wheel : str
        A package that contains the library.
    """

    def __init__(
        self, feature: str, package: str, extra: str, failure: str, library: str, wheel: str
    ) -> None:
        super().__init__(feature, package, extra, failure)
        self.library = library
        self.wheel = wheel
        self.msg = (
            f"{feature} needs {library}: {package} is installed, but finds none to load "
            f"({failure}): pip install {wheel} (pip install 'loko-ref[{extra}]' brings both), or "
            "load your cluster's own"
        )
        self.args = (self.msg,)

    def __reduce__(self) -> Any:
        whole = (self.feature, self.package, self.extra, self.failure, self.library, self.wheel)
        return type(self), whole


class BackendError(RuntimeError):
    """A requested array backend cannot be used.

    Parameters
    ----------
    backend : str
        Its name.
    state : str
        One of ``not installed``, ``import fails``, ``no device``, ``smoke run fails``.
    detail : str
        The observation, and a remedy.
    """

    def __init__(self, backend: str, state: str, detail: str) -> None:
        self.backend = backend
        self.state = state
        self.detail = detail
        super().__init__(f"backend '{backend}': {state}: {detail}")

    def __reduce__(self) -> tuple[type[BackendError], tuple[str, str, str]]:
        return type(self), (self.backend, self.state, self.detail)


def closest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name most similar to `name`, ignoring case, or None if none is similar.

    Examples
    --------
    >>> closest("Decouplet", ["decoupled", "variational"])
    'decoupled'
    """
    if len(name) > LONGEST:
        return None
    names = {known.casefold(): known for known in reversed(list(allowed))}
    near = difflib.get_close_matches(name.casefold(), list(names), n=1, cutoff=0.5)
    return names[near[0]] if near else None


def printable(text: str, limit: int | None = None) -> str:
    r"""Return a text on one line, with everything that does not print escaped.

    Control characters, escape sequences, lone surrogates and marks that change the direction of
    writing are escaped as in Python; consecutive white space becomes one space.

    Parameters
    ----------
    text : str
        Any text.
    limit : int, optional
        Most characters; a longer text is cut, and the number of characters left out added.

    Examples
    --------
    >>> printable("a red\x1b[31m \ud800\n  word")
    'a red\\x1b[31m \\ud800 word'
    >>> printable("x" * 100, 3)
    'xxx (and 97 more characters)'
    """
    short = text if limit is None else text[:limit]
    line = _escaped(" ".join(short.split()))
    more = len(text) - len(short)
    return f"{line} (and {more} more characters)" if more else line


def unknown_option(argument: str, got: object, allowed: Iterable[str]) -> InputError:
    """Return the error for a name that is not one of `allowed`.

    Examples
    --------
    >>> print(unknown_option("diagonal", "decouplet", ["decoupled", "variational"]))
    diagonal: got 'decouplet'; required one of decoupled, variational. \
Likely cause: a typing error; the closest known name is 'decoupled'.
    """
    names = list(allowed)
    near = closest(got, names) if isinstance(got, str) else None
    cause = (
        f"a typing error; the closest known name is '{near}'"
        if near is not None
        else "a name from another package or version"
    )
    if near is not None and isinstance(got, str) and near.casefold() == got.casefold():
        cause = f"upper and lower case; it is written '{near}'"
    return InputError(argument, shown(got), f"one of {', '.join(names)}", cause)
