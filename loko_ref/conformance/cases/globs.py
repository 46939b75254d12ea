"""Choosing by name: a glob, an exact name, or the first part of a dotted or slashed one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from loko_ref.errors import InputError, closest, shown

LONGEST = 200
"""Characters of a glob; ids have fewer than 100."""


def matcher(argument: str, glob: str | None) -> Callable[[str], bool]:
    """Return whether-a-name-is-chosen as a function: by a glob; ``kalman`` means ``kalman.*``.

    Parameters
    ----------
    argument : str
        What the glob is called, for the error.
    glob : str or None
        ``*``, ``?`` and ``[...]`` as in a shell; without any, a whole name or its first parts,
        which end before a ``.`` or a ``/``. None chooses every name.

    Raises
    ------
    InputError
        If it is no text, is empty, or is longer than any glob needs to be.

    Examples
    --------
    >>> [matcher("--only", "kalman")(name) for name in ("kalman.gain", "kalman", "kalmanx.gain")]
    [True, True, False]
    """
    if glob is None:
        return lambda name: True
    if not isinstance(glob, str) or not glob.strip() or len(glob) > LONGEST:
        raise InputError(
            argument,
            shown(glob),
            f"a glob such as 'kalman.*', of at most {LONGEST} characters",
            "an empty value, such as an unset variable, or another option's value",
        )
    patterns = (glob, f"{glob}.*", f"{glob}/*")
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def nothing_matches(
    argument: str, glob: str | None, names: Iterable[str], listing: str
) -> InputError:
    """Build the error for a glob that no name matches, with the closest name.

    Parameters
    ----------
    argument, glob : str
        As for :func:`matcher`.
    names : iterable of str
        What there is; their first parts are suggested too.
    listing : str
        The command that lists them.
    """
    known = dict.fromkeys(name for name in names)
    parts = dict.fromkeys(name.split(".", 1)[0] for name in known)
    near = closest(str(glob), [*known, *parts])
    return InputError(
        argument,
        shown(glob),
        f"a name or a glob that matches one, such as 'kalman.*'; '{listing}' lists them",
        f"a typing error; the closest known name is '{near}'" if near else "another version's name",
    )
