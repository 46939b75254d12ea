"""One walk for many draws gives what a walk for each gives, to the last bit."""

import numpy as np
import pytest
from sampling import sample

from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.judge import tolerance
from loko_ref.conformance.judge.disturb import Disturb, DisturbInNorm, DisturbScalars, Stacked
from loko_ref.textbook import FORMULA_TABLE

CASES = [case for case in all_cases() if case.dtype == "float64"]
ITERATED = [case for case in CASES if case.options.get("solve") == "implicit"]


def walk(case, kind, *seeds):
    hook, o = kind(*seeds), case.options
    return case.operation.plain(
        hook.inputs(tolerance._wide(case.inputs()), case.exact), o, FORMULA_TABLE, hook
    )


@pytest.mark.parametrize("kind", [Disturb, DisturbInNorm, DisturbScalars])
def test_a_stacked_walk_is_each_walk(kind):
    drawn = sample(CASES, 1, by=lambda case: case.operation.name)
    for case in [*drawn, *sample(ITERATED, 1)]:
        rows = [walk(case, kind, seed) for seed in (3, 4, 5)]
        for name, value in walk(case, kind, 3, 4, 5).items():
            if isinstance(value, Stacked):
                assert value.each.tobytes() == np.stack([row[name] for row in rows]).tobytes()
            else:
                assert all(np.array_equal(value, row[name]) for row in rows)


def test_a_formula_that_asks_for_one_array_takes_a_walk_for_each_draw(monkeypatch):
    (case,) = select("lora.delta/random/float64")
    usual, formula = tolerance.unit(case), FORMULA_TABLE["delta"]
    asked = []

    def ask(v):
        asked.append(np.asarray(v.B))
        return formula(v)

    monkeypatch.setitem(FORMULA_TABLE, "delta", ask)
    found = tolerance.unit.__wrapped__(case)
    assert asked
    assert found["delta"].size.tobytes() == usual["delta"].size.tobytes()


RNG = np.random.default_rng(1)
A, B, C = RNG.random((3, 4, 4)), RNG.random((3, 4)), RNG.random((3, 5, 4, 4))
OPERATIONS = {
    "matrices": lambda a, b, c: c @ a,
    "matrix and vector": lambda a, b, c: a @ b,
    "vector and matrix": lambda a, b, c: b @ c,
    "vectors": lambda a, b, c: b @ b,
    "a plain operand of more axes": lambda a, b, c: a + np.ones((2, 4, 4)),
    "broadcast": lambda a, b, c: c * b,
    "reversed axes": lambda a, b, c: c.T - 1,
    "solve": lambda a, b, c: np.linalg.solve(a, b),
    "solve, a plain right-hand side": lambda a, b, c: np.linalg.solve(a, np.eye(4)),
    "outer": lambda a, b, c: np.outer(b, b),
    "diagonal of a matrix": lambda a, b, c: np.diag(a),
    "matrix of a diagonal": lambda a, b, c: np.diag(b),
    "sum over one axis": lambda a, b, c: c.sum(axis=0),
    "largest of a matrix": lambda a, b, c: np.max(c, axis=(-2, -1), keepdims=True),
    "mean of all": lambda a, b, c: c.mean(),
    "stacked with what is the same": lambda a, b, c: np.stack([a, np.eye(4)], axis=1),
    "joined": lambda a, b, c: np.concatenate([c, a[None]]),
    "where": lambda a, b, c: np.where(b > 0.5, a, 0.0),
    "a row of a table": lambda a, b, c: a[np.array([[0, 2], [1, 1]])],
    "one after the other": lambda a, b, c: np.kron(a, b),
    "split": lambda a, b, c: np.split(a, 2, axis=1)[1],
    "in place": lambda a, b, c: written(a, b),
}


def written(a, b):
    found = np.zeros_like(a, shape=(2, 4))
    found[1] += b
    found[0] = a[0]
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_on_stacked_arrays_is_that_on_each(operation):
    rows = [OPERATIONS[operation](*one) for one in zip(A, B, C, strict=True)]
    found = OPERATIONS[operation](Stacked(A.copy()), Stacked(B), Stacked(C))
    assert found.shape == rows[0].shape
    assert np.array_equal(found.each, np.stack(rows))


def test_stacked_arrays_are_no_array_and_no_single_truth():
    with pytest.raises(TypeError, match="no array"):
        np.asarray(Stacked(A))
    with pytest.raises(TypeError, match="some are not"):
        bool(Stacked(np.array([True, False])))
    assert Stacked(np.array([True, True]))
    with pytest.raises(TypeError, match="a number of each array"):
        float(Stacked(np.ones(2)))


def test_units_are_the_same_however_many_draws_a_walk_takes(monkeypatch):
    cases = sample(CASES, 1, by=lambda case: case.operation.name)
    usual = [tolerance.unit(case) for case in cases]
    monkeypatch.setattr(tolerance, "AT_ONCE", 500)  # one of some cases, several of others
    for case, units in zip(cases, usual, strict=True):
        for name, one in tolerance.unit.__wrapped__(case).items():
            assert one.size.tobytes() == units[name].size.tobytes()
