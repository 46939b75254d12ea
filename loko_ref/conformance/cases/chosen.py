"""Cases by options: those that code has which makes one choice of each, selected or built.

A number that no case has is put in place of the one of a case that agrees in the other options;
such a case is called by it, ``optimizer.sgd/plain+lr=0.2/float64``. Where the options leave few
combinations of LoKO's, there are cases of each on every network of ``combinations``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loko_ref.checks.values import read_number
from loko_ref.conformance.cases.combinations import on_networks
from loko_ref.conformance.cases.globs import matcher, nothing_matches
from loko_ref.conformance.cases.registry import Case, select
from loko_ref.conformance.catalogue.entry import Option
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.errors import InputError, shown, unknown_option
from loko_ref.kalman.noise import check_combination


def _plain(option: Option) -> bool:
    """Return whether an option can be chosen by: a name, yes or no, or a number of any size."""
    number = isinstance(option.default, float) or option.name == "alpha"
    return bool(option.choices) or isinstance(option.default, bool) or number


def _named() -> dict[str, list[Option]]:
    """Name every option that can be chosen by, with its entry in each operation that has it."""
    found: dict[str, list[Option]] = {}
    for operation in OPERATIONS.values():
        for option in filter(_plain, operation.options):
            found.setdefault(option.name, []).append(option)
    return found


def _value(name: str, value: object, entries: Sequence[Option]) -> Any:
    """Return a value of the option's type; a text is read, as a command line has it."""
    choices = dict.fromkeys(choice for option in entries for choice in option.choices)
    if choices:
        if value not in choices:
            raise unknown_option(name, value, choices)
        return value
    if isinstance(entries[0].default, bool):
        value = {"true": True, "false": False}.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise InputError(name, shown(value), "true or false", "another option's value")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(name, shown(value), "a number", "another option's value")
    return read_number(name, str(value))


def read_options(argument: str, given: Mapping[str, object] | Iterable[str]) -> dict[str, Any]:
    """Return options by name, checked.

    Parameters
    ----------
    argument : str
        What they are called, for the error.
    given : mapping, or iterable of str
        Name -> value, or ``NAME=VALUE`` each.

    Raises
    ------
    InputError
        If an option is unknown, has no such value, or does not go with another.
    """
    if not isinstance(given, Mapping):
        pairs = [(str(word).partition("="), word) for word in given]
        for (_, equals, _), word in pairs:
            if not equals:
                raise InputError(argument, shown(word), "NAME=VALUE", "a missing value")
        given = {name: value for (name, _, value), _ in pairs}
    known, found = _named(), {}
    for name, value in given.items():
        if name not in known:
            raise unknown_option(argument, name, known)
        found[name] = _value(f"{argument} {name}", value, known[name])
    if {"observation", "noise"} <= found.keys():
        late = found["noise"] == "ema_residual_hph"
        timing = found.get("timing", "after" if late else "before")
        check_combination(found["observation"], found["noise"], timing)
    return found


def written(options: Mapping[str, Any]) -> list[str]:
    """Write options as the command line has them, ``NAME=VALUE`` each."""
    words = {True: "true", False: "false"}
    return [f"{k}={words[v] if isinstance(v, bool) else v}" for k, v in options.items()]


def _having(cases: Sequence[Case], options: Mapping[str, Any]) -> list[Case]:
    """Select one operation's cases by the options that it has, or build them."""
    asked = {k: v for k, v in options.items() if k in cases[0].options}
    found = [case for case in cases if {k: case.options[k] for k in asked} == asked]
    if cases[0].operation.name in ("loko.step", "loko.run"):
        for recipe in on_networks(cases[0].operation.name, asked):
            name = f"{recipe.operation}/{recipe.name}"
            found += [
                Case(id=f"{name}/{dtype}", recipe=recipe, dtype=dtype)
                for dtype in dict.fromkeys(case.dtype for case in cases)
            ]
    if found:
        return found
    numbers = {k: v for k, v in asked.items() if isinstance(v, float)}
    same = {k: v for k, v in asked.items() if k not in numbers}
    name = "".join(f"+{word}" for word in written(numbers))
    built = []
    for case in cases:
        if not numbers or {k: case.options[k] for k in same} != same:
            continue
        recipe = replace(
            case.recipe,
            name=f"{case.recipe.name}{name}",
            options={**case.recipe.options, **numbers},
            covers=(),
            text=f"{case.recipe.name} with {', '.join(written(numbers))}",
        )
        key = f"{case.operation.name}/{recipe.name}/{case.dtype}"
        built.append(replace(case, id=key, recipe=recipe))
    return built


def choose(
    options: Mapping[str, Any], only: str | None = None, dtype: str | None = None
) -> list[Case]:
    """Return the cases that have these options; operations without them have all of theirs.

    Parameters
    ----------
    options : mapping
        Name -> value, from :func:`read_options`.
    only, dtype : str, optional
        As :func:`loko_ref.conformance.cases.registry.select` takes them.

    Raises
    ------
    InputError
        If there is none.
    """
    if not options:
        return select(only, dtype)
    by_operation: dict[str, list[Case]] = {}
    for case in select(None, dtype):
        by_operation.setdefault(case.operation.name, []).append(case)
    pool = [case for cases in by_operation.values() for case in _having(cases, options)]
    chosen = matcher("only", only)
    found = [case for case in pool if chosen(case.id) or chosen(case.operation.name)]
    if not found:
        if any(chosen(name) for name in OPERATIONS):
            got, cause = ", ".join(written(options)), "options that do not go together"
            raise InputError("options", got, "options that some case has", cause)
        raise nothing_matches("only", only, OPERATIONS, "loko-ref verify --list")
    return found


def in_the_way(declined: Iterable[tuple[Case, Iterable[str]]]) -> str:
    """Return which options stood in the way of a run in which nothing ran, and what to type.

    Parameters
    ----------
    declined : iterable of (case, options)
        Each case, and the options that the function takes no parameter for.

    Returns
    -------
    str
        A sentence; empty where no option can have been the reason.
    """
    pairs = list(declined)
    named = {name for _, lacking in pairs for name in lacking}
    values: dict[str, dict[str, None]] = {}
    for case, _ in pairs:
        for o in case.operation.options:
            if _plain(o) and (o.name in named if named else bool(o.choices)):
                seen = written({o.name: case.options[o.name]})
                values.setdefault(o.name, {}).update(dict.fromkeys(seen))
    if not values:
        return ""
    texts = ("|".join(word.partition("=")[2] for word in found) for found in values.values())
    words = " ".join(f"--option {k}={text}" for k, text in zip(values, texts, strict=True))
    return (
        f"options that stood in the way: {', '.join(values)}. The cases set them, and the function "
        f"has no parameter for them, or declines. State the value that it has of each: {words}; or "
        'OPTIONS = {"NAME": "VALUE"} beside IMPLEMENTATION'
    )
