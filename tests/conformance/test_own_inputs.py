"""Inputs of one's own are held to the catalogue: every operation, every input, by our error."""

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import all_cases
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.user_inputs import agree, user_case
from loko_ref.errors import InputError


def arguments_of(operation):
    """Inputs and options of the operation's case with the most inputs."""
    cases = [c for c in all_cases() if c.operation.name == operation and c.dtype == "float64"]
    case = max(cases[:12], key=lambda case: len(case.inputs()))
    return {**case.inputs(), **case.options}


WRONG = {
    "an axis too many": lambda a: a[None],
    "another axis too many": lambda a: a[..., None, None, None],
    "a number": lambda a: np.float64(1.0),
    "empty": lambda a: a[:0],
    "NaN": lambda a: np.full_like(a, np.nan),
    "infinity": lambda a: np.full_like(a, -np.inf),
    "objects": lambda a: np.full(a.shape, {}, dtype=object),
    "complex": lambda a: a.astype(complex),
    "text": lambda a: np.full(a.shape, "x"),
    "float16": lambda a: a.astype("f2"),
    "nothing": lambda a: None,
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "a mapping": lambda a: {"a": a},
}


def changed(arguments, path, value):
    new = dict(arguments)
    if len(path) == 2:
        new[path[0]] = {**new[path[0]], path[1]: value}
    else:
        new[path[0]] = value
    return new


def leaves(operation, arguments):
    for entry in OPERATIONS[operation].inputs:
        value = arguments.get(entry.name)
        if isinstance(value, dict):
            yield from (((entry.name, key), array) for key, array in value.items())
        elif value is not None:
            yield (entry.name,), value


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_input_of_every_operation_is_checked(operation):
    arguments = arguments_of(operation)
    user_case(operation, arguments)
    some = 0
    for path, array in leaves(operation, arguments):
        wrong = {name: make(array) for name, make in WRONG.items()}
        if array.ndim > 1 and array.T.shape != array.shape:
            wrong["transposed"] = np.ascontiguousarray(array.T)
        for axis in range(array.ndim):
            if len(path) == 2:  # the spec gives the whole shape
                wrong[f"one more along {axis}"] = np.repeat(array, 2, axis=axis)
        for name, value in wrong.items():
            with pytest.raises(InputError) as caught:
                user_case(operation, changed(arguments, path, value))
            if "axis" in name or name in ("NaN", "text", "objects"):
                assert caught.value.argument.startswith(path[0]), (path, name, str(caught.value))
            some += 1
    assert some > 10


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_option_of_every_operation_is_checked(operation):
    arguments = arguments_of(operation)
    for option in OPERATIONS[operation].options:
        for value in (None, "zz", float("nan"), 10**400, {}, [None], [{}]):
            with pytest.raises(InputError) as caught:
                user_case(operation, arguments | {option.name: value})
            assert caught.value.argument.startswith(option.name), (option.name, value)


@pytest.mark.parametrize(
    ("operation", "name", "key"),
    [("model.forward", "weights", "0.W"), ("lte.forward", "factors", "0.A")],
)
def test_the_names_of_a_mapping_are_those_of_the_spec(operation, name, key):
    arguments = arguments_of(operation)
    given = arguments[name]
    assert key in given
    fewer = {k: v for k, v in given.items() if k != key}
    for wrong in ({}, fewer, given | {"odd": np.ones(2)}, {1: np.ones(2)}):
        with pytest.raises(InputError, match="missing"):
            user_case(operation, arguments | {name: wrong})
    with pytest.raises(InputError, match="a mapping of name to array"):
        user_case(operation, arguments | {name: np.ones(3)})


def test_a_transposed_matrix_is_named_with_its_letters():
    """Before the function is called: it would be blamed."""

    def never(**given):
        raise AssertionError("called")

    given = {"theta": np.zeros(5), "p": np.ones(5), "H": np.ones((5, 2)), "e": np.ones(2)}
    with pytest.raises(InputError, match=r"H: got shape \(5, 2\); required \(m, n\) with n = 5 by"):
        agree(never, "kalman.diagonal_update", given | {"R": np.eye(2)})


def test_what_the_oracle_refuses_is_no_question_to_the_function():
    calls = []
    given = {"theta": np.zeros(2), "p": -np.ones(2), "H": np.ones((1, 2)), "e": np.ones(1)}
    with pytest.raises(InputError, match=r"^p"):
        agree(lambda **k: calls.append(k), "kalman.diagonal_update", given | {"R": np.eye(1)})
    assert not calls


def test_lists_are_taken_where_the_others_give_the_dtype():
    given = {"theta": [0.0, 0.0], "p": np.ones(2), "H": np.ones((1, 2)), "e": [1.0], "R": np.eye(1)}
    assert user_case("kalman.diagonal_update", given).dtype == "float64"
