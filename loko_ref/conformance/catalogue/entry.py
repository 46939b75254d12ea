"""What an entry of the catalogue is made of; ``operations`` has the entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook import loko as table
from loko_ref.textbook.quantities import Quantity, identity, in_order, origins

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input array: name, shape, meaning; `optional` ones are given only where they belong.

    `since` is the version of the catalogue that it came with.
    """

    name: str
    shape: str
    text: str
    optional: str = ""
    since: int = 1


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option: name, default (None: always given), choices where it is a name, meaning.

    `since` is the version of the catalogue that it came with.
    """

    name: str
    default: Any
    text: str
    choices: tuple[str, ...] = ()
    since: int = 1


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
    """One entry of the catalogue."""

    # its name and a one-line description
    name: str
    text: str
    # what it takes and returns; outputs in dataflow order
    inputs: tuple[Input, ...]
    options: tuple[Option, ...]
    outputs: tuple[Output, ...]
    # `(inputs, options) -> outputs` by the package's own modules, float64
    oracle: Callable[[Arrays, Arrays], dict[str, Any]]
    plain: Callable[..., dict[str, Any]]  # `(inputs, options, F, keep) -> outputs` by `formulas`
    stepwise: bool = False  # whether the leading axis of every output counts steps
    # `(output, options) -> labels`, where options choose among an output's formulas
    narrow: Callable[[str, Arrays], tuple[str, ...]] | None = None
    # `options -> outputs` of the network's layers, which may be returned too
    inside: Callable[[Arrays], tuple[Output, ...]] | None = None
    # array that may be returned -> the output, its product with its own transpose, that it is
    # judged by: a factor is determined up to a rotation of its columns
    factors: Mapping[str, str] = field(default_factory=dict)

    def labels(self, quantity: str, options: Arrays) -> tuple[str, ...]:
        """Return the derivation labels of an output, of those that hold under the options."""
        if self.narrow is not None:
            return self.narrow(quantity, options)
        return next((o.labels for o in self.outputs if o.name == quantity), ())

    def detailed(self, options: Arrays) -> Operation:
        """Return the operation with its network's layers among the outputs, before z."""
        if self.inside is None:
            return self
        more, plain = self.inside(options), partial(self.plain, inside=True)

        def oracle(x: Arrays, o: Arrays) -> dict[str, Any]:
            layers = plain(x, o, FORMULA_TABLE, identity)
            found: dict[str, Any] = {}
            for name, value in self.oracle(x, o).items():
                found |= {q.name: layers[q.name] for q in more} if name == "z" else {}
                found[name] = value
            return found

        at = [q.name for q in self.outputs].index("z")
        outputs = (*self.outputs[:at], *more, *self.outputs[at:])
        return replace(self, outputs=outputs, oracle=oracle, plain=plain)

    def newer(self, inputs: Iterable[str], options: Arrays, version: int) -> list[str]:
        """Name the inputs given, and the options set, that came after a version."""
        given = [i.name for i in self.inputs if i.since > version and i.name in inputs]
        return given + [
            o.name
            for o in self.options
            if o.since > version and options.get(o.name, o.default) != o.default
        ]

    def known(self, options: Arrays, version: int) -> dict[str, Any]:
        """Return the options that a version of the catalogue had."""
        since = {o.name: o.since for o in self.options}
        return {name: value for name, value in options.items() if since[name] <= version}


def takes(name: str, shape: str, text: str, optional: str = "", since: int = 1) -> Input:
    """Write an input."""
    return Input(name=name, shape=shape, text=text, optional=optional, since=since)


def option(
    name: str, default: Any, text: str, choices: tuple[str, ...] = (), since: int = 1
) -> Option:
    """Write an option."""
    return Option(name=name, default=default, text=text, choices=choices, since=since)


def gives(name: str, shape: str, formula: str, labels: str, feeds: str) -> Output:
    """Write an output; labels and feeds stand side by side in a string."""
    return Output(
        name=name,
        shape=shape,
        formula=formula,
        labels=tuple(labels.split()),
        feeds=tuple(feeds.split()),
    )


def outputs_of(
    flow: Callable[[Mapping[str, Any]], Iterable[Quantity]],
    choices: Iterable[Mapping[str, Any]],
    texts: Mapping[str, tuple[str, str]],
) -> tuple[Output, ...]:
    """Describe outputs: order, labels and origins from the table of quantities, over all choices.

    ``texts`` has shape and formula of each in words that hold for every choice.
    """
    labels: dict[str, dict[str, None]] = {}
    feeds: dict[str, dict[str, None]] = {}
    for o in choices:
        big = "P" if o.get("covariance") == "dense" else "p"
        named = {"p": big, "p_pred": big, "R_used": "R"}
        found = list(flow(o))
        for q in found:
            if not q.hidden:
                name = {"R_used": "R"}.get(q.name, table.output_name(q.name, o))
                own = [k for k in q.labels if not k.startswith("LOKO")]  # alone, it is no LoKO
                labels.setdefault(name, {}).update(dict.fromkeys(own))
                come = (named.get(k, k) for k in origins(q.name, found))
                feeds.setdefault(name, {}).update(dict.fromkeys(come))
    return tuple(
        gives(name, *texts[name], " ".join(in_order(labels[name])), " ".join(feeds[name]))
        for name in labels
    )


def narrowed(
    flow: Callable[[Mapping[str, Any]], Iterable[Quantity]], **fixed: Any
) -> Callable[[str, Mapping[str, Any]], tuple[str, ...]]:
    """Return the labels of an output under the options, as a function."""

    def labels(name: str, o: Mapping[str, Any]) -> tuple[str, ...]:
        chosen = {**o, **fixed}
        own = (q for q in flow(chosen) if table.output_name(q.name, chosen) == name)
        return tuple(k for q in own for k in q.labels if not k.startswith("LOKO"))

    return labels
