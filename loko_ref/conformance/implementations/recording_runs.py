"""Recordings of LTE and of the optimizers, beside LoKO's: read from a file, checked for form.

The option ``operation`` states what was recorded: ``loko.step`` (the default), ``optimizer.sgd``,
``optimizer.adagrad``, ``optimizer.adamw`` or ``lte.run``; the others are that operation's. Arrays
are named and packed as its inputs and outputs, without the leading axis of steps. Under ``k/``
stands the state *before* step k, so that what step k leaves is under ``k+1/``, and whatever there
is of what happened in step k. Steps count from 0 where the run began. Of LTE a factor that a reset
after step k drew anew is ``k/redraws.0.A`` (heads, r, i).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.values import check_choice
from loko_ref.conformance.catalogue.registry import get
from loko_ref.conformance.implementations.recording import (
    Recording,
    by_step,
    load,
    parse,
    parse_options,
)
from loko_ref.conformance.judge.arguments import check_arguments
from loko_ref.conformance.oracle.lte import configured
from loko_ref.errors import InputError, shown
from loko_ref.files.strict_json import parse_json
from loko_ref.network.spec import param_shapes
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.lte import run
from loko_ref.textbook.lte_heads import slot_names, trained
from loko_ref.textbook.lte_state import array, kept, start
from loko_ref.textbook.optimizers import METHODS
from loko_ref.textbook.quantities import Values, identity

OPERATIONS = ("loko.step", *(f"optimizer.{name}" for name in METHODS), "lte.run")
"""What may be recorded."""

NAMING = (
    "Array 'k/name' is quantity name of step k = 0, 1, ..., as in 'loko-ref operations NAME': the "
    "state before step k, and whatever there is of what happened in it."
)

DRAWN = "redraws."
"""What the name of a factor begins with that a reset in this step drew anew."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRecording:
    """A recording of LTE or of an optimizer."""

    operation: str  # one of `OPERATIONS`, but `loko.step`
    steps: Mapping[int, Mapping[str, Array]]  # step -> name -> array, of one dtype
    state: tuple[str, ...]  # names of what a step begins with
    options: Mapping[str, Any]  # all options
    dtype: str  # {"float64", "float32"}: that of every array
    notes: tuple[str, ...]  # arrays that were ignored, and the options in use
    precision: Mapping[str, str]  # the precision that it states, quantity -> format
    # of LTE the shapes of the shared weights, in order
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read(path: str | Path, given: Sequence[str] = ()) -> Recording | RunRecording:
    """Read a recording of any of ``OPERATIONS``.

    Parameters
    ----------
    path, given
        As for :func:`loko_ref.conformance.implementations.recording.read`; among the options
        ``operation``.

    Raises
    ------
    InputError
        If the file is damaged, or a name, shape, dtype or value is invalid.
    """
    place = Path(path)
    arrays, head = load(place)
    named, precision = parse_options(head)
    words = [word for word in given if not word.startswith("operation=")]
    for word in given:
        if word not in words:
            named["operation"] = word.removeprefix("operation=")
    operation = named.pop("operation", OPERATIONS[0])
    check_choice("--option operation", operation, OPERATIONS)
    if operation == OPERATIONS[0]:
        whole = {**named, "precision": precision} if precision else named
        return parse(place, arrays, json.dumps(whole), words)
    options = _options(operation, named, words)
    known = _names(operation, options)
    steps, dtype, notes = by_step(place, arrays, known, NAMING)
    notes.append("options: " + ", ".join(f"{k}={v}" for k, v in options.items() if k != "spec"))
    found: dict[str, Any] = {
        "operation": operation,
        "steps": steps,
        "options": options,
        "dtype": dtype,
        "precision": precision,
        "notes": (f"operation: {operation}", *notes),
    }
    if operation == "lte.run":
        return _lte(RunRecording(**found, state=tuple(known[: known.index("x")])))
    for k, one in steps.items():
        size = next(iter(one.values())).shape
        for name, value in one.items():
            if value.ndim != 1 or value.shape != size:
                cause = "parameters that are not packed into one vector"
                raise InputError(f"--trace, {k}/{name}", f"shape {value.shape}", "(n,)", cause)
    return RunRecording(**found, state=tuple(known[:-1]))


def _options(operation: str, named: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Return all options, checked: the command line's, those of the file, defaults."""
    entry = get(operation)
    for word in given:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError("--option", shown(word), "NAME=VALUE", "a missing value")
        choice = next((o for o in entry.options if o.name == name), None)
        plain = choice is not None and choice.choices
        named[name] = text if plain else parse_json(f"--option {name}", text)
    for name in named:
        check_choice("--option", name, [o.name for o in entry.options])
    for option in entry.options:
        if option.default is None and option.name not in named:
            cause = "options that were not recorded"
            raise InputError(f"--option {option.name}", "nothing", "a value", cause)
    _named(check_arguments, entry, {}, named)
    return {**{o.name: o.default for o in entry.options}, **named}


def _named(check: Any, *arguments: Any, place: str = "--option ") -> Any:
    """Rename the option, or the array, of an error to its name here."""
    try:
        return check(*arguments)
    except InputError as error:
        name = f"{place}{error.argument}"
        raise InputError(name, error.got, error.required, error.cause) from None


def _names(operation: str, o: Mapping[str, Any]) -> list[str]:
    """List what may be recorded: the state first; of LTE then x and all that is of a step."""
    if operation != "lte.run":
        names = [q.name for q in METHODS[operation.partition(".")[2]]]
        return [*names[::-1], "gradient"]
    values = Values(o)
    state = ["W", "theta", *slot_names(o), *(["p"] if o["optimizer"] == "loko" else [])]
    state += ["R"] if o["optimizer"] == "loko" and o["noise"] != "glm" else []
    state += [kept(values)[-1]] if o["mode"] == "lte" else []
    of_step = [q.name for q in run(o, True) if not q.hidden and q.name not in state]
    drawn = drawn_names(o) if o["reset"] == "AB" else []
    return [*state, "x", "y", "evaluation", *drawn, *of_step]


def drawn_names(o: Mapping[str, Any]) -> list[str]:
    """Return the names of the factors that a reset draws anew.

    Parameters
    ----------
    o : mapping
        Options of ``lte.run``.
    """
    return [f"{DRAWN}{name}" for name in param_shapes(o["spec"]) if name.endswith(".A")]


def _lte(recording: RunRecording) -> RunRecording:
    """Check the shapes of what is recorded of LTE, before anything is computed from them."""
    o, steps = recording.options, recording.steps
    shapes = param_shapes(o["spec"])
    lora = {k for k in shapes if k.rsplit(".", 1)[-1] in ("A", "B", "bA", "bB")}
    weights = {k: shape for k, shape in shapes.items() if k not in lora}
    names = trained(o, weights)
    sizes = {
        "theta": (o["heads"], sum(math.prod(shapes[k]) for k in names)),
        "W": (sum(math.prod(shape) for shape in weights.values()),),
    }
    for name, wanted in sizes.items():
        seen = [(k, one[name].shape) for k, one in steps.items() if name in one]
        if not seen:
            cause = "a state that was not recorded, or not packed into one array"
            raise InputError(f"--trace, k/{name}", "nothing", f"an array {wanted}", cause)
        for k, shape in seen:
            if shape != wanted:
                cause = "an array of another spec, or packed in another way"
                raise InputError(f"--trace, {k}/{name}", f"shape {shape}", f"{wanted}", cause)
    _named(configured, {"p": np.ones(sizes["theta"][1])}, o)
    taken = max((k + 1 for k, one in steps.items() if set(one) - set(recording.state)), default=0)
    taken = max(taken, max(steps))
    if o["rates"] and taken > len(o["rates"]):
        got, required = f"{len(o['rates'])} rates", f"one for each of {taken} steps"
        raise InputError("--option rates", got, required, "rates of a part of the run")
    found = RunRecording(**{**vars(recording), "weights": weights})
    m = _size_of_R(found)
    for k, one in steps.items():
        _step(found, k, one, shapes, m)
    return found


def _share(o: Mapping[str, Any]) -> int:
    """Return into how many parts the heads divide a batch."""
    return 1 if o["mode"] == "mhlora" or o["data"] == "replicated" else int(o["heads"])


def _size_of_R(recording: RunRecording) -> int:
    """Return the rows of R, which are those of all steps' observations; 0 where there is no R."""
    if "R" not in recording.state:
        return 0
    share, steps = _share(recording.options), recording.steps.items()
    rows = {k: one["y"].size // share for k, one in steps if "y" in one}
    if not rows:
        rows = {k: one["R"].shape[1] for k, one in steps if "R" in one and one["R"].ndim > 1}
    first = next(iter(rows.values()), 0)
    for k, size in rows.items():
        if size != first:
            got, cause = f"{size} rows of y for a head", "batches of different sizes"
            raise InputError(f"--trace, {k}/y", got, f"{first}, as of the step before", cause)
    return first


def _step(
    recording: RunRecording,
    k: int,
    one: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    m: int,
) -> None:
    """Check the shapes of a step of LTE; `m` are the rows of R."""
    o, entry, heads = recording.options, get("lte.run"), recording.options["heads"]
    place = f"--trace, {k}/"
    given = {name: one[name][None] for name in ("x", "y") if name in one}
    given |= {"evaluation": one["evaluation"]} if "evaluation" in one else {}
    _named(check_arguments, entry, given, o, place=place)
    if "x" in one and ("y" not in one or one["x"].shape[0] != one["y"].shape[0]):
        got = f"x of {one['x'].shape[0]} samples without y of as many"
        raise InputError(f"{place}x", got, "x and y of one batch", "arrays of different steps")
    if "y" in one and one["y"].shape[0] % _share(o):
        got, required = f"{one['y'].shape[0]} samples", f"a multiple of {heads} heads"
        raise InputError(f"{place}y", got, required, "one head's samples alone")
    for name, wanted in _wanted(recording, one, shapes, m).items():
        if name in one and wanted is not None and one[name].shape != wanted:
            cause = "an array of another spec, or packed in another way"
            raise InputError(f"{place}{name}", f"shape {one[name].shape}", f"{wanted}", cause)


def _wanted(
    recording: RunRecording, one: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], m: int
) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of a step's arrays; None where what was recorded does not determine it."""
    o, heads = recording.options, recording.options["heads"]
    first = start(template(recording))
    own = Values(o=Values(o), F={"lte.filter_of": int}, names=trained(o, recording.weights))
    n = array(own, first, "theta").shape[1]
    samples = (one["y"].shape[0] // _share(o), one["y"].shape[1]) if "y" in one else None
    found: dict[str, tuple[int, ...] | None] = {"R": (heads, m, m), "loss": (heads,)}
    for name in ("theta", *slot_names(o), "p", "gradient"):
        found[name] = (heads, n)
    for name in ("merged", "copies"):
        if name in recording.state:
            found[name] = array(own, first, name).shape
    found |= {f"{name}_{at}": shape for name, shape in found.items() for at in ("step", "merge")}
    found["Z"] = None if samples is None else (heads, math.prod(samples), n)
    found["z"] = None if samples is None else (heads, *samples)
    for name in one:
        if name.startswith(DRAWN):
            found[name] = (heads, *shapes[name.removeprefix(DRAWN)])
    return found


def template(recording: RunRecording, **given: Any) -> Values:
    """Return the values that the start of a run of LTE is made of: zeros of the right shapes.

    Parameters
    ----------
    **given
        More of them: ``p``, ``redraws``, ``evaluation``, ``y``.
    """
    o, shapes = recording.options, param_shapes(recording.options["spec"])
    names = trained(o, recording.weights)
    factors = {k: (o["heads"], *shapes[k]) for k in names if k not in recording.weights}
    zeros = {
        "weights": {k: np.zeros(shape) for k, shape in recording.weights.items()},
        "factors": {k: np.zeros(shape) for k, shape in factors.items()},
        "p": np.zeros(sum(math.prod(shapes[k]) for k in names)),
        "y": np.zeros((1, o["heads"], 1)),
    }
    fixed = Values(o=Values(o), F=FORMULA_TABLE, keep=identity, given={**zeros, **given})
    fixed["names"] = names
    return fixed
