"""What an entry of the catalogue is made of; ``operations`` has the entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Input", "Operation", "Option", "Output", "gives", "option", "takes"]

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input array: name, shape, meaning; `optional` ones are given only where they belong."""

    name: str
    shape: str
    text: str
    optional: str = ""


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option: name, default (None: always given), choices where it is a name, meaning.

    A `later` one came after implementations of the catalogue were written: at its default, which
    is what they do, it is not sent.
    """

    name: str
    default: Any
    text: str
    choices: tuple[str, ...] = ()
    later: bool = False


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output array: name, shape, formula, derivation labels, and what it is computed from."""

    name: str
    shape: str
    formula: str
    labels: tuple[str, ...]
    feeds: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One entry of the catalogue.

    Attributes
    ----------
    name, text : str
        Its name and a one-line description.
    inputs, options, outputs : tuple
        What it takes and returns; outputs in dataflow order.
    oracle : callable
        ``(inputs, options) -> outputs`` by the package's own modules, float64.
    plain : callable
        ``(inputs, options, F, keep) -> outputs`` by ``formulas``.
    stepwise : bool
        Whether the leading axis of every output counts steps.
    narrow : callable, optional
        ``(output, options) -> labels``, where options choose among an output's formulas.
    """

    name: str
    text: str
    inputs: tuple[Input, ...]
    options: tuple[Option, ...]
    outputs: tuple[Output, ...]
    oracle: Callable[[Arrays, Arrays], dict[str, Any]]
    plain: Callable[..., dict[str, Any]]
    stepwise: bool = False
    narrow: Callable[[str, Arrays], tuple[str, ...]] | None = None

    def labels(self, quantity: str, options: Arrays) -> tuple[str, ...]:
        """Return the derivation labels of an output, of those that hold under the options."""
        if self.narrow is not None:
            return self.narrow(quantity, options)
        return next((o.labels for o in self.outputs if o.name == quantity), ())


def takes(name: str, shape: str, text: str, optional: str = "") -> Input:
    """Write an input."""
    return Input(name=name, shape=shape, text=text, optional=optional)


def option(
    name: str, default: Any, text: str, choices: tuple[str, ...] = (), *, later: bool = False
) -> Option:
    """Write an option."""
    return Option(name=name, default=default, text=text, choices=choices, later=later)


def gives(name: str, shape: str, formula: str, labels: str, feeds: str) -> Output:
    """Write an output; labels and feeds stand side by side in a string."""
    return Output(
        name=name,
        shape=shape,
        formula=formula,
        labels=tuple(labels.split()),
        feeds=tuple(feeds.split()),
    )
