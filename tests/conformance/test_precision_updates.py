"""Updates of a precision of low rank, or of blocks, as the catalogue has them."""

import json

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.python import Implementation
from loko_ref.conformance.oracle import loko as oracle
from loko_ref.conformance.user_inputs import agree, check, read_case, save_case
from loko_ref.conformance.vectors import vectors
from loko_ref.conformance.verification import verify_answers
from loko_ref.errors import InputError
from loko_ref.kalman import lowrank
from loko_ref.kalman.lowrank import Precision
from loko_ref.properties import check as hold

LOWRANK, BLOCK = "kalman.lowrank_update", "kalman.block_update"
CASES = select(LOWRANK, "float64") + select(BLOCK, "float64")


def update(theta, U, H, e, R, lam, q, W=None, blocks=None, *, gone=1.0, turn=True, columns=0):
    """By dense matrices in the input's dtype; W comes back turned, or as W W'."""
    n, m = len(theta), len(e)
    base = np.diag(U) if U.ndim == 1 else U
    low = np.zeros((n, 0)) if W is None else W.astype(float)
    base, low = lam * base.astype(float), lam**0.5 * low
    D = np.linalg.inv(np.eye(n) + q * base)
    C = np.linalg.cholesky(np.eye(low.shape[1]) + q * low.T @ D @ low)
    base, low = D @ base, np.linalg.solve(C, (D @ low).T).T
    P = np.linalg.inv(base)
    P = P - P @ low @ np.linalg.solve(np.eye(low.shape[1]) + low.T @ P @ low, low.T @ P)
    S = H @ P @ H.T + R
    K = np.linalg.solve(S, H @ P).T
    left, lengths, _ = np.linalg.svd(
        np.concatenate([low, np.linalg.solve(np.linalg.cholesky(R), H).T], axis=1)
    )
    wide = left[:, : len(lengths)] * lengths
    L = low.shape[1]
    same = np.eye(n) if U.ndim == 1 else np.equal.outer(*2 * (blocks or [0] * n,))
    after = base + gone * (wide[:, L:] @ wide[:, L:].T) * same
    kept = np.zeros((n, L + columns))
    kept[:, : len(lengths[:L])] = wide[:, :L]
    turned = kept @ np.linalg.qr(np.random.default_rng(m).normal(size=2 * (L + columns,)))[0]
    out = {"S": S, "K": K, "theta": theta + K @ e, "U": np.diag(after) if U.ndim == 1 else after}
    if W is not None:
        out |= {"W": turned} if turn else {"WW": kept @ kept.T}
    return {name: a.astype(theta.dtype) for name, a in out.items()}


@pytest.mark.parametrize("how", [{}, {"turn": False}, {"columns": 1}], ids=str)
def test_any_rotation_of_the_factor_is_right(how):
    """By another algorithm; as a factor, as its product, with a column of zeros turned into it."""
    right = {name: lambda **given: update(**given, **how) for name in (LOWRANK, BLOCK)}
    checks = run(Implementation(target="svd", functions=right), CASES)
    assert {c.status for c in checks} == {"passed"}, [c.case.id for c in checks if c.finding]


def test_what_is_cut_and_lost_is_found_and_named():
    wrong = {LOWRANK: lambda **given: update(**given, gone=0.0)}
    checks = run(
        Implementation(target="lost", functions=wrong), select(f"{LOWRANK}/[rof]*", "float64")
    )
    (name,) = {found[0].mutant.id for found in name_mistakes(checks).values()}
    assert name == "LOWRANK-CUT-LOST"


def test_a_factor_of_another_form_is_a_finding():
    (case,) = select(f"{LOWRANK}/random/float64")
    for change, kind in (
        (lambda W: W.T, "shape"),
        (lambda W: W.astype(np.float32), "dtype"),
        (lambda W: W[0], "shape"),
        (lambda W: "W", "output"),
    ):
        wrong = {LOWRANK: lambda change=change, **given: {"W": change(update(**given)["W"])}}
        (one,) = run(Implementation(target="form", functions=wrong), [case])
        assert (one.finding.kind, one.finding.quantity) == (kind, "WW")


def test_a_whole_inverse_is_imprecise_where_it_loses_digits():
    def whole(theta, U, W, H, e, R, lam, q):
        P = np.linalg.inv(np.diag(U) + W @ W.T)
        S = H @ P @ H.T + R
        return {"S": S, "K": np.linalg.solve(S, H @ P).T}

    (case,) = select(f"{LOWRANK}/ill-scaled/float64")
    one = check(whole, LOWRANK, case.inputs() | {"W": 30 * case.inputs()["W"]})
    assert one.status == "imprecise"
    assert "the inverse of U + W W'" in one.imprecise.algorithm


def test_no_column_travels_in_a_file(tmp_path):
    (case,) = select(f"{LOWRANK}/no-column/float64")
    save_case(tmp_path / "case.json", LOWRANK, {**case.inputs(), **case.options})
    again = read_case(tmp_path / "case.json")
    assert again.inputs()["W"].shape == (6, 0)
    assert agree(update, LOWRANK, again.inputs()).status == "passed"


def test_a_factor_answers_golden_vectors(tmp_path):
    cases = select(f"{LOWRANK}/one-column/*") + select(f"{BLOCK}/low-rank/*")
    vectors.export(tmp_path / "v", cases)
    answers = {
        c.id: {k: a.tolist() for k, a in update(**c.inputs(), **c.options).items()} for c in cases
    }
    (tmp_path / "a.json").write_text(json.dumps(answers))
    report = verify_answers(tmp_path / "v", tmp_path / "a.json")
    assert report.summary.passed == len(cases)


def block_inputs():
    (case,) = select(f"{BLOCK}/mixed/float64")
    return case.inputs(), case.options


def test_the_numbers_of_blocks_are_names_alone():
    x, o = block_inputs()
    a = oracle.block_update(x, o)
    b = oracle.block_update(x, {**o, "blocks": [7.5 - k for k in o["blocks"]]})
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blocks": [0, 1]}, "blocks: got 2 numbers; required n = 7"),
        ({"blocks": [0, 1, 2, 3, 4, 5, 6]}, "U: got an entry that is not 0 outside the blocks"),
        ({"U": -np.eye(7)}, "a block of U: got smallest eigenvalue"),
        ({"lam": 0.0}, "lam"),
        ({"q": -1.0}, "q"),
    ],
    ids=str,
)
def test_what_is_no_prior_of_blocks_is_refused(change, match):
    x, o = block_inputs()
    x |= {k: a for k, a in change.items() if k in x}
    o |= {k: a for k, a in change.items() if k in o}
    with pytest.raises(InputError, match=match):
        check(update, BLOCK, x, **o)


def test_the_update_of_a_precision_checks_its_arguments():
    P, H, one = Precision.prior(np.ones(3), 2), np.ones((2, 3)), np.ones(2)
    theta, R = np.zeros(3), np.eye(2)
    for wrong, match in (
        ((theta, np.eye(3), H, one, R), "P: got"),
        ((np.zeros(4), P, H, one, R), "U: got shape"),
        ((theta, Precision(U=-np.ones(3), W=P.W), H, one, R), "U: got"),
        ((theta, Precision(U=P.U, W=P.W[:2]), H, one, R), "W: got shape"),
        ((theta, P, H.T, one, R), "H: got shape"),
        ((theta, P, H, one, -R), "R: got smallest eigenvalue"),
        ((theta, P, H[:0], one[:0], R[:0, :0]), "e: got"),
    ):
        with pytest.raises(InputError, match=match):
            lowrank.update(*wrong)


def test_the_ends_are_properties():
    given = {"theta": [0, 0], "H": [[1, 2]], "e": [1], "R": [[1]]}
    low = given | {"U": [1, 2], "W": [[], []]}
    blocks = given | {"U": [[2, 1], [1, 2]], "blocks": [0, 0]}
    right, wrong = {LOWRANK: update, BLOCK: update}, {
        LOWRANK: lambda **given: update(**given, gone=0.0),
        BLOCK: lambda **given: update(**given, gone=0.0),
    }  # fmt: skip
    for name, problem in ((f"{LOWRANK}/no column", low), (f"{BLOCK}/ends", blocks)):
        hold(name, right, **problem)
        with pytest.raises(AssertionError, match=r": error of U\["):
            hold(name, wrong, **problem)
