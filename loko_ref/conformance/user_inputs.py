"""User-supplied inputs, judged as the catalogue's cases are: for property tests and debugging.

    from loko_ref.conformance.user_inputs import agree

    agree(my_update, "kalman.diagonal_update", {"theta": theta, "p": p, "H": H, "e": e, "R": R})

The tolerance is computed from these very inputs, and so accounts for their conditioning,
cancellation and dtype.  [TOL-1]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import conversion, read_array
from loko_ref.checks.signatures import takes
from loko_ref.conformance.cases.registry import DTYPES, OWN, Case, Recipe
from loko_ref.conformance.catalogue.registry import get
from loko_ref.conformance.engine import Check, judge
from loko_ref.conformance.implementations.protocol import ProtocolError, decode
from loko_ref.conformance.implementations.python import call
from loko_ref.conformance.judge.arguments import check_arguments
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.reports.document import failure, write_json
from loko_ref.conformance.reports.snippet import as_json
from loko_ref.errors import InputError, shown, unknown_option
from loko_ref.files.documents import SCHEMAS
from loko_ref.files.strict_json import read_json

__all__ = ["agree", "check", "read_case", "save_case", "split", "user_case"]


def _dtype(value: Any) -> set[str]:
    """Return the names of the floating dtypes in an input."""
    if isinstance(value, Mapping):
        return set().union(*map(_dtype, value.values()))
    dtype = np.asarray(value).dtype
    return {str(dtype)} if dtype.kind == "f" else set()


def _read(name: str, value: Any) -> Any:
    """Return an input with every array in NumPy, whatever library and device it is of."""
    if isinstance(value, Mapping):
        return {key: _read(f"{name}[{key!r}]", item) for key, item in value.items()}
    if not hasattr(value, "__array__") and not hasattr(value, "__cuda_array_interface__"):
        return value  # a list, which is checked as such
    try:
        return read_array(value)
    except Exception as error:  # of the library, which is not ours
        got = f"a {type(value).__name__} that cannot be read: {error}"[:200]
        required = f"numbers, as {conversion(value)} gives them"
        cause = "a precision that NumPy lacks, or a placeholder under jit or grad"
        raise InputError(name, got, required, cause) from None


@takes(name=str, arguments=Mapping)
def split(name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split an operation's arguments into inputs and options by their names."""
    operation = get(name)
    taken = {i.name for i in operation.inputs}
    known = {o.name for o in operation.options}
    for name in arguments.keys() - taken - known:
        raise unknown_option(f"an argument of {operation.name}", name, [*taken, *known])
    needed = [i.name for i in operation.inputs if not i.optional]
    needed += [o.name for o in operation.options if o.default is None]
    for name in needed:
        if name not in arguments:
            raise InputError(
                operation.name,
                f"no '{name}'",
                f"arguments {', '.join(needed)}",
                "a missing input; 'loko-ref operations' describes them",
            )
    return (
        {k: v for k, v in arguments.items() if k in taken},
        {k: v for k, v in arguments.items() if k in known},
    )


@takes(operation=str, arguments=Mapping)
def user_case(operation: str, arguments: Mapping[str, Any], **options: Any) -> Case:
    """Make a case of user-supplied inputs; its id is ``operation/own/dtype``.

    Parameters
    ----------
    operation : str
        Its name in the catalogue.
    arguments : mapping
        Inputs, and possibly options, by their names in the catalogue. All floating arrays have
        one dtype, float64 or float32.
    **options
        Options that differ from their defaults.

    Raises
    ------
    InputError
        If an argument is unknown or missing, has another shape than the catalogue requires, is not
        finite, or if dtypes are mixed.

    Examples
    --------
    >>> user_case("kalman.time_update", {"p": np.ones(3)}, lam=0.5).options
    {'lam': 0.5, 'q': 0.0}
    """
    entry = get(operation)
    inputs, chosen = split(operation, {**arguments, **options})
    inputs = {name: _read(name, value) for name, value in inputs.items()}
    check_arguments(entry, inputs, chosen)
    dtypes = _dtype(inputs)
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise InputError(
            operation, f"dtypes {sorted(dtypes)}", "all float64 or all float32", "mixed precision"
        )
    (dtype,) = dtypes
    recipe = Recipe(
        operation=operation,
        name=OWN,
        build=lambda draw, dtype: inputs,
        options=chosen,
        text="user-supplied inputs",
    )
    return Case(id=f"{operation}/{OWN}/{dtype}", recipe=recipe, dtype=dtype)


@takes(operation=str, arguments=Mapping)
def save_case(
    path: str | PathLike[str], operation: str, arguments: Mapping[str, Any], **options: Any
) -> None:
    """Write user-supplied inputs as a case that ``loko-ref verify TARGET --case F`` reads.

    The document is that of ``loko-ref case ID --json``.

    Parameters
    ----------
    path : path-like
        The file.
    operation, arguments, options
        As for :func:`user_case`.

    Raises
    ------
    InputError
        As :func:`user_case`, or if the file cannot be written.
    """
    write_json(Path(path), as_json(user_case(operation, arguments, **options)), "path")


def read_case(path: str | PathLike[str], argument: str = "path") -> Case:
    """Read a case that :func:`save_case` or ``loko-ref case ID --json`` has written.

    Parameters
    ----------
    path : path-like
        The file.
    argument : str
        What it is called in an error.

    Raises
    ------
    InputError
        If it holds no case, or one that :func:`user_case` rejects.
    """
    held = read_json(path, argument)
    where, required = f"{argument}, {path}", f"a document {SCHEMAS['case']}"
    if not isinstance(held, dict) or held.get("schema") != SCHEMAS["case"]:
        got = held.get("schema") if isinstance(held, dict) else type(held).__name__
        raise InputError(where, shown(got), required, "another document of this package")
    for key, kind in {"operation": str, "inputs": dict, "options": dict}.items():
        if not isinstance(held.get(key), kind):
            raise InputError(f"{where}: {key}", shown(held.get(key)), required, "a damaged file")

    def decoded(value: Any, name: str) -> Any:
        if isinstance(value, dict) and not {"dtype", "shape", "data"} <= value.keys():
            return {key: decoded(item, f"{name}[{key!r}]") for key, item in value.items()}
        return decode(value, name)

    try:
        inputs = {key: decoded(value, key) for key, value in held["inputs"].items()}
    except ProtocolError as error:
        raise InputError(f"{where}: inputs", str(error), required, "a damaged file") from None
    known = {option.name for option in get(held["operation"]).options}
    for name in held["options"].keys() - known:
        raise unknown_option(f"{where}: options", name, sorted(known))
    return user_case(held["operation"], {**inputs, **held["options"]})


@takes(operation=str, arguments=Mapping)
def check(
    function: Callable[..., Any], operation: str, arguments: Mapping[str, Any], **options: Any
) -> Check:
    """Call a function on user-supplied inputs and judge its outputs.

    Parameters
    ----------
    function : callable
        Takes inputs and options as keywords, as every operation of an implementation does. It
        receives copies.
    operation, arguments, options
        As for :func:`user_case`.

    Returns
    -------
    Check
        ``loko_ref.conformance.diagnose.naming.name_mistakes([check])`` names a known mistake.

    Raises
    ------
    InputError, NumericalError
        If the oracle itself rejects the inputs.
    """
    given: object = function
    if not callable(given):
        got, order = f"type {type(given).__name__}", "check(function, operation, arguments)"
        raise InputError("function", got, "a function", f"arguments in another order: {order}")
    case = user_case(operation, arguments, **options)
    with np.errstate(all="ignore"):
        expected(case)  # raises where the oracle rejects the inputs, before the function is called
        return judge(case, call(function, case))


def agree(
    function: Callable[..., Any], operation: str, arguments: Mapping[str, Any], **options: Any
) -> Check:
    """Assert that a function agrees with the oracle on user-supplied inputs.

    Parameters and errors as for :func:`check`.

    Returns
    -------
    Check
        With the status ``passed``, or ``imprecise``: right, by an algorithm that loses digits.

    Raises
    ------
    AssertionError
        If it disagrees, with the first wrong quantity; or if it declines.
    InputError
        If conditioning leaves no significant digit of any output, so that nothing could be checked
        [TOL-3]. A property test that draws such inputs discards them:
        ``assume(check(...).status != "unsupported")``.
    """
    outcome = check(function, operation, arguments, **options)
    if outcome.status == "failed":
        raise AssertionError(f"{outcome.case.id}: {failure(outcome)}")
    if outcome.status == "unsupported" and not outcome.outputs:
        raise AssertionError(f"{outcome.case.id}: {outcome.reason}")
    if outcome.status == "unsupported":
        raise InputError(
            operation,
            f"inputs for which no output ({', '.join(outcome.outputs)}) can be judged",
            "at least one output with a significant digit left by roundoff",
            "conditioning: the outputs' scales differ too much in this dtype",
        )
    return outcome
