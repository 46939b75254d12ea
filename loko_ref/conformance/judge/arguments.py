"""Checks of user-supplied inputs against the catalogue: shapes, dtypes, finite numbers.

A letter of a shape (``n``, ``batch``) stands for one size everywhere; a spec determines the shapes
of x, the weights and the factors. Whether a matrix is symmetric and positive definite is checked
by the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.conformance.catalogue.entry import Operation, Option
from loko_ref.errors import InputError, unknown_option
from loko_ref.network.spec import (
    check_input,
    check_spec,
    param_shapes,
    trained_shapes,
    width_out,
)

__all__ = ["check_arguments"]

_Sizes = dict[str, tuple[int, str]]
"""Letter -> size, and the input or option that determines it."""


def check_arguments(
    operation: Operation, inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Raise if inputs or options are not as the catalogue describes them.

    Parameters
    ----------
    operation : Operation
        The entry.
    inputs, options : mapping
        By their names there; options that are left out have their defaults.

    Raises
    ------
    InputError
        With the name of the input or option.
    """
    for choice in operation.options:
        if choice.name in options and choice.name != "spec":
            _check_option(choice, options[choice.name])
    chosen = {o.name: o.default for o in operation.options} | dict(options)
    sizes: _Sizes = {}
    spec: Any = chosen.get("spec")
    if "spec" in chosen:
        _check_layers(spec)
        sizes["C"] = width_out(spec), "the spec"
        if operation.name.startswith("loko."):
            shapes = trained_shapes(spec, chosen["train"])
            sizes["n"] = sum(map(math.prod, shapes.values())), "the spec"
    if "heads" in chosen:
        sizes["heads"] = chosen["heads"], "the option heads"
    for entry in operation.inputs:
        if entry.name not in inputs:
            continue
        if entry.shape == "mapping":
            if not isinstance(inputs[entry.name], Mapping):
                got = type(inputs[entry.name]).__name__
                required = "a mapping of name to array"
                raise InputError(entry.name, got, required, "an array in its place")
            _check_mapping(operation, entry.name, inputs[entry.name], chosen, sizes)
            continue
        first, _, other = entry.shape.partition("; mhlora: ")
        shape = other if other and chosen["mode"] == "mhlora" else first
        if " or " in shape:  # of blocks a matrix
            shape = shape.split(" or ")[chosen["covariance"] == "block"]
        axes = [axis.strip() for axis in shape.strip("()").split(",") if axis.strip()]
        array = _array(entry.name, inputs[entry.name])
        if axes[-1] == "i" and spec is not None:
            _check_x(entry.name, array, axes[:-1], spec, sizes)
        else:
            _fit(entry.name, array.shape, axes, sizes)


def _check_option(option: Option, value: Any) -> None:
    """Raise if an option has another type than its default, or is not one of its choices."""
    name, default = option.name, option.default
    got = f"{value!r:.80}"
    if option.choices:
        if not isinstance(value, str) or value not in option.choices:
            raise unknown_option(name, value if isinstance(value, str) else got, option.choices)
        return
    if isinstance(default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(name, got, "True or False", "a word or a number in its place")
        return
    if isinstance(default, list):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InputError(name, got, "a list of numbers", "one number in its place")
        numbers = list(value)
    else:
        numbers = [value]
    whole = name in ("heads", "merge_every", "merge_at", "reset_at")
    for number in numbers:
        plain = isinstance(number, Real) and not isinstance(number, (bool, np.bool_))
        if not plain or not abs(number) <= 1e308:
            raise InputError(name, got, "a finite number", "a typing error")
        if whole and (number != int(number) or not 1 <= number < 2**31):
            raise InputError(name, got, "whole numbers from 1 to 2147483647", "a typing error")


def _array(name: str, value: Any) -> NDArray[Any]:
    """Return an input as an array of finite numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        required, cause = "an array of numbers", "rows of lengths that differ"
        raise InputError(name, str(error)[:120], required, cause) from None
    if array.dtype.kind not in "fiub":
        got, cause = f"dtype {array.dtype}", "text, complex numbers or objects"
        raise InputError(name, got, "float64 or float32", cause)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        got = f"{array[where]} at index {list(where)}"
        raise InputError(name, got, "finite numbers", "a division by zero, or a run that diverged")
    return array


def _check_layers(spec: Any) -> None:
    if not isinstance(spec, Sequence) or not all(isinstance(layer, Mapping) for layer in spec):
        raise InputError("spec", f"{spec!r:.80}", "a list of layers, each a dict", "another form")
    check_spec(spec)


def _fit(name: str, shape: tuple[int, ...], axes: Sequence[str], sizes: _Sizes) -> None:
    """Raise if a shape contradicts the sizes known so far; record the new ones."""
    if "m" in axes and "m" not in sizes and {"batch", "C"} <= sizes.keys():
        m = sizes["batch"][0] * sizes["C"][0]
        sizes["m"] = m, f"batch * C, {sizes['batch'][1]} and {sizes['C'][1]}"
    found: dict[str, int] = {}
    good = len(shape) == len(axes)
    for axis, size in zip(axes, shape, strict=False):
        known = sizes[axis][0] if axis in sizes else found.setdefault(axis, size)
        good &= size == known and (size > 0 or axis == "L")  # no column is a filter too
    if not good:
        notes = [f"{a} = {sizes[a][0]} by {sizes[a][1]}" for a in dict.fromkeys(axes) if a in sizes]
        required = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
        required += f" with {', '.join(notes)}" if notes else ""
        cause = "an empty array" if 0 in shape else "a transposed or flattened array"
        cause += ", or one axis too many or too few" if len(shape) != len(axes) else ""
        raise InputError(name, f"shape {shape}", required, cause)
    sizes.update({axis: (size, name) for axis, size in found.items()})


def _check_x(
    name: str, array: NDArray[Any], leading: Sequence[str], spec: Any, sizes: _Sizes
) -> None:
    """Check a network's inputs: the leading axes by their letters, each sample by the spec."""
    if array.ndim <= len(leading):
        required = f"({', '.join(leading)}, ...), each sample as the spec's first layer takes it"
        raise InputError(name, f"shape {array.shape}", required, "a missing axis")
    lead = array.shape[: len(leading)]
    _fit(name, lead, leading, sizes)
    samples = array.reshape(math.prod(lead), *array.shape[len(leading) :])
    if spec[0]["kind"] == "embedding":
        ids = samples.astype(np.int64)
        if not (np.abs(samples) < 2**31).all() or not (ids == samples).all():
            raise InputError(name, "numbers that are not whole", "token ids", "text not tokenised")
        samples = ids
    elif samples.dtype.kind != "f":
        samples = samples.astype(np.float64)
    like = np.zeros(0, samples.dtype if samples.dtype.kind == "f" else np.float64)
    try:
        check_input(spec, like, samples)
    except InputError as error:
        required = f"{error.required}, after {len(leading)} leading axes"
        if len(leading) == 1:
            required = error.required
        raise InputError(name, error.got, required, error.cause) from None


def _check_mapping(
    operation: Operation,
    name: str,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    sizes: _Sizes,
) -> None:
    """Check a mapping's names and shapes against the spec."""
    spec = options["spec"]
    shapes, factors = param_shapes(spec), trained_shapes(spec)
    lead: tuple[str, ...] = ()
    if name == "weights":
        whole = operation.name.startswith("model.")
        gone = () if whole else trained_shapes(spec, options.get("train", "factors"))
        wanted = {k: s for k, s in shapes.items() if k not in gone}
    elif name == "redraws":
        lead, wanted = ("merges", "heads"), {k: s for k, s in factors.items() if k.endswith(".A")}
    else:
        lead, wanted = ("heads",), factors
    missing, surplus = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    if missing or surplus:
        got = f"missing {sorted(missing)}, surplus {sorted(map(str, surplus))}"
        required = f"exactly {list(wanted)}"
        raise InputError(name, got[:300], required, "names of another spec, or factors among them")
    for key, shape in wanted.items():
        where = f"{name}[{key!r}]"
        array = _array(where, given[key])
        if array.ndim >= len(lead) and array.shape[len(lead) :] == shape:
            _fit(where, array.shape[: len(lead)], lead, sizes)
            continue
        known = [str(sizes[a][0]) if a in sizes else a for a in lead]
        required = f"({', '.join([*known, *map(str, shape)])})"
        cause = "a transposed array, or one of another spec"
        raise InputError(where, f"shape {array.shape}", required, cause)
