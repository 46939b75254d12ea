"""The digest of the catalogue: what was verified, in one number that can be cited.

It covers each operation's name, inputs, options, and outputs with their formulas, and each case's
id, options, known mistakes and inputs. Inputs count to 16 bits of an array's largest element, since
the last bits of those that are drawn by products differ between machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case, all_cases
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS

BITS = 16
"""Bits that an element counts with, of the largest one's."""

MARGIN = 1 + 2.0**-20
"""Keeps a largest element that is a power of 2 up to rounding on one side of it."""


def _written(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _rounded(array: Array) -> bytes:
    """Return an array's elements as whole numbers of BITS bits and their common exponent."""
    wide = np.asarray(array, dtype=np.float64)
    _, exponent = np.frexp(np.max(np.abs(wide), initial=0.0) * MARGIN)
    return (
        _written(int(exponent)) + np.rint(np.ldexp(wide, BITS - exponent)).astype("<i8").tobytes()
    )


def _parts(name: str, value: Any) -> Iterator[bytes]:
    """Yield an input's name, shape and numbers; of a mapping those of its entries."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(f"{name}.{key}", item)
        return
    yield _written([name, list(value.shape)])
    yield _rounded(value)


def _definition(operation: Operation) -> list[Any]:
    return [
        operation.name,
        [[i.name, i.shape, i.optional] for i in operation.inputs],
        [[o.name, o.default, list(o.choices)] for o in operation.options],
        [[o.name, o.shape, o.formula] for o in operation.outputs],
        operation.stepwise,
    ]


def digest_of(operations: Iterable[Operation], cases: Sequence[Case]) -> str:
    """Return the SHA-256 of operations and cases, in hexadecimal.

    Parameters
    ----------
    cases : sequence of Case
        Their cases; the inputs of those in float64 count, of the others what they are of.
    """
    found = hashlib.sha256(_written([_definition(operation) for operation in operations]))
    for case in cases:
        found.update(_written([case.id, case.options, list(case.recipe.covers)]))
        if case.dtype == "float64":
            for name, value in case.inputs().items():
                for part in _parts(name, value):
                    found.update(part)
    return found.hexdigest()


@cache
def catalogue_digest() -> str:
    """Return the digest of this version's whole catalogue.

    Returns
    -------
    str
        ``operations/1:`` and 64 hexadecimal digits.
    """
    return f"{CATALOGUE}:{digest_of(OPERATIONS.values(), all_cases())}"
