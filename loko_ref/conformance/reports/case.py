"""One case for people: options, network, inputs and expected numbers, in plain text.

Shapes and letters as in ``loko-ref operations``.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.conformance.reports.literals import WIDTH
from loko_ref.conformance.reports.snippet import centred, covers, defaults
from loko_ref.conformance.vectors.numbers import flatten
from loko_ref.textbook.network import NETWORK, packing, projections

WHOLE = 48
"""Elements up to which an array is printed whole."""

DIGITS = 6
"""Significant digits of a number that is printed for people."""


def _wrapped(text: str, indent: int = 0, further: int | None = None) -> str:
    """Break a text into lines, the first indented by `indent`, the others by `further`."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent if further is None else further),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _numbers(array: Array, indent: int, digits: int, full: bool) -> str:
    """Write an array's numbers: whole where it is small, else its corners."""
    widths = [0]

    def number(value: Any) -> str:
        text = f"{value:{widths[0]}.{digits}g}"
        widths.append(len(text))
        return text

    def written() -> str:
        return np.array2string(
            array,
            max_line_width=WIDTH - indent,
            threshold=array.size if full else WHOLE,
            edgeitems=2 if array.ndim < 3 else 1,
            formatter={"float_kind": number},
        )

    written()  # once to see how wide the numbers are that are printed
    widths[0] = max(widths)
    text = written()
    return textwrap.indent(text, " " * indent)


# ------------------------------------------------------------------------------------ network


def _linear(layer: Mapping[str, Any]) -> str:
    lora = layer.get("lora")
    text = f"{layer['in']} -> {layer['out']}, {'bias' if layer.get('bias', True) else 'no bias'}"
    if lora:
        scale = f"r = {lora['r']}, alpha = {lora['alpha']:g}"
        own = ", biases bA, bB" if lora.get("bias") else ""
        text += f", LoRA {scale} (alpha/r = {lora['alpha'] / lora['r']:.6g}){own}"
    return text


def _lines(spec: Sequence[Mapping[str, Any]], indent: int) -> Iterator[str]:
    pad = " " * indent
    for layer in spec:
        kind = layer["kind"]
        name = f"{layer['name']}: " if "name" in layer else ""
        if kind == "linear":
            yield f"{pad}{name}linear {_linear(layer)}"
        elif kind == "attention":
            causal = ", causal" if layer.get("causal") else ""
            yield f"{pad}{name}attention, {layer['heads']} heads{causal}"
            for part in projections(layer).values():
                yield f"{pad}  {part['name']}: {_linear(part)}"
        elif kind == "residual":
            yield f"{pad}residual: x + f(x), f being"
            yield from _lines(layer["layers"], indent + 2)
        else:
            rest = ", ".join(
                f"{key} {json.dumps(value)}"
                for key, value in layer.items()
                if key not in ("kind", "name")
            )
            yield f"{pad}{name}{kind}{' ' if rest else ''}{rest}"


def network(spec: Sequence[Mapping[str, Any]], indent: int = 0) -> str:
    """Write a network layer by layer, what a layer holds indented below it.

    Parameters
    ----------
    spec : sequence of mapping
        The layers.
    indent : int
        Spaces before each line.

    Examples
    --------
    >>> lora = {"r": 1, "alpha": 2.0}
    >>> layers = [{"kind": "linear", "name": "0", "in": 3, "out": 2, "lora": lora}]
    >>> print(network([*layers, {"kind": "tanh"}]))
    0: linear 3 -> 2, bias, LoRA r = 1, alpha = 2 (alpha/r = 2)
    tanh
    """
    return "\n".join(_wrapped(line, further=indent + 4) for line in _lines(spec, indent))


# -------------------------------------------------------------------------------- description


def _options(case: Case) -> Iterator[str]:
    yield "options"
    if not case.options:
        yield "  none"
    usual, at_default = {o.name: o.default for o in case.operation.options}, defaults(case)
    wide = max(map(len, case.options), default=0)
    for name, value in case.options.items():
        if name == "spec":
            text = "the network below"
        elif name in at_default:
            text = f"{json.dumps(value)}  (default)"
        elif usual[name] is None:
            text = f"{json.dumps(value)}  (no default)"
        else:
            text = f"{json.dumps(value)}  (default {json.dumps(usual[name])})"
        yield _wrapped(f"{name:{wide}}  {text}", 2, wide + 4)


def _network(case: Case) -> Iterator[str]:
    spec = case.options.get("spec")
    if spec is None:
        return
    train = case.options.get("train", "factors")
    count = sum(map(math.prod, packing(NETWORK, spec, train).values()))
    yield f"\nnetwork, {count} {'LoRA' if train == 'factors' else 'trained'} parameters"
    yield network(spec, 2)


def _inputs(case: Case, full: bool) -> Iterator[str]:
    yield f"\ninputs, {case.dtype}"
    described = {i.name: i for i in case.operation.inputs}
    for name, value in case.inputs().items():
        entry = described[name]
        if not isinstance(value, Mapping):
            yield _wrapped(f"{name} {entry.shape} = {value.shape}: {entry.text}", 2, 6)
            yield _numbers(value, 4, DIGITS, full)
            continue
        yield _wrapped(f"{name}: {entry.text}", 2, 6)
        for key, array in flatten(name, value).items():
            yield f"    {key.removeprefix(name + '.')} {array.shape}"
            yield _numbers(array, 6, DIGITS, full)


def _expected(case: Case, full: bool) -> Iterator[str]:
    yield "\nexpected outputs, in dataflow order, each with its tolerance"
    outputs, allowed, C = (
        {o.name: o for o in case.operation.outputs},
        tolerance(case),
        centred(case),
    )
    if case.operation.stepwise:
        yield "  the first index counts steps"
    for name, value in expected(case).items():
        entry, bound = outputs[name], allowed[name]
        labels = " ".join(f"[{label}]" for label in case.operation.labels(name, case.options))
        text = f"{name} {entry.shape} = {value.shape}: {entry.formula}  {labels}"
        yield _wrapped(text, 2, 6)
        if name == "K" and C:
            note = f"compared centred over the {C} columns of each sample, as printed here"
            yield _wrapped(f"{note}: the part along ones is a convention  [OBS-5]", 6)
        yield _numbers(value, 4, DIGITS, full)
        if bound is None:
            yield "    tolerance: not judged, rounding leaves no digit to judge  [TOL-3]"
        elif bound.size and bound.min() == bound.max():
            yield f"    tolerance {bound.min():.2g}"
        elif bound.size > WHOLE and not full:
            yield f"    tolerance {bound.min():.2g} to {bound.max():.2g}, by element"
        elif bound.size:
            yield "    tolerance"
            yield _numbers(bound, 4, 2, full)


def describe(case: Case, full: bool = False) -> str:
    """Describe a case for people.

    Parameters
    ----------
    full : bool
        Whether large arrays are printed whole too.

    Returns
    -------
    str
        Lines of at most 80 columns, but for names that are longer.
    """
    operation = case.operation
    head = [
        case.id,
        _wrapped(f"operation  {operation.name}: {operation.text}", 2, 13),
        _wrapped(f"covers     {covers(case)}", 2, 13),
    ]
    parts = (_options(case), _network(case), _inputs(case, full), _expected(case, full))
    return "\n".join([*head, *(line for part in parts for line in part)]) + "\n"
