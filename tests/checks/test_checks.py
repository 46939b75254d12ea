"""The public edge: every bad input named, with argument, got, required and likely cause."""

import copy
import dataclasses
import inspect
import pickle
import re
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs

from loko_ref import arrays, errors, loko, lte, optimizers
from loko_ref import strategies as st
from loko_ref.checks import values as checks
from loko_ref.errors import (
    BackendError,
    InputError,
    MissingExtraError,
    NumericalError,
    closest,
    unknown_option,
)
from loko_ref.experiments.config import RunConfig
from loko_ref.kalman import dense, diagonal, noise, simplex, time
from loko_ref.kalman import observation as obs
from loko_ref.loko import filter as loko_filter
from loko_ref.network.lora import init_factors
from loko_ref.network.model import init_model, mlp_spec

GOOD = {
    "theta": np.zeros(3),
    "p": np.ones(3),
    "H": np.arange(6.0).reshape(2, 3),
    "e": np.ones(2),
    "R": np.eye(2),
}
SKEW = np.array([[1.0, 0.5], [0.0, 1.0]])

UPDATE_FAULTS = [
    ({"theta": np.zeros((3, 1))}, r"theta: got shape \(3, 1\); required shape \(n\)"),
    ({"theta": np.zeros(2)}, r"p: got shape \(3,\); required shape \(n\) = \(2\)"),
    ({"p": np.ones(4)}, r"p: got shape \(4,\); required shape \(n\) = \(3\)"),
    ({"H": np.ones((3, 2))}, r"H: got shape \(3, 2\).*\(m, n\) = \(2, 3\).*a transposed array"),
    ({"H": np.ones(3)}, r"H: got shape \(3,\)"),
    ({"e": np.ones((2, 1))}, r"e: got shape \(2, 1\); required shape \(m\)"),
    ({"R": np.eye(3)}, r"R: got shape \(3, 3\); required shape \(m, m\) = \(2, 2\)"),
    ({"R": np.ones(2)}, r"R: got shape \(2,\)"),
    ({"e": np.zeros(0), "H": np.zeros((0, 3)), "R": np.zeros((0, 0))}, r"e: got no output"),
    ({"theta": np.array([0.0, np.nan, 0.0])}, r"theta: got nan at index \(1,\); required finite"),
    ({"H": np.full((2, 3), np.inf)}, r"H: got inf at index \(0, 0\); required finite"),
    ({"e": np.array([0.0, -np.inf])}, r"e: got -inf at index \(1,\)"),
    ({"R": np.diag([1.0, np.nan])}, r"R: got nan at index \(1, 1\)"),
    ({"R": SKEW}, r"R: got max \|R - R'\| = 0.5; required a symmetric matrix"),
    ({"R": np.diag([1.0, -2.0])}, r"R: got smallest eigenvalue -2; required a positive definite"),
    ({"R": np.zeros((2, 2))}, r"R: got smallest eigenvalue 0; required a positive definite"),
    ({"p": np.array([1.0, 0.0, 1.0])}, r"p: got 0 at flat index 1; required entries > 0.*clipped"),
    ({"p": np.array([1.0, 1.0, -3.0])}, r"p: got -3 at flat index 2"),
    ({"theta": np.zeros(3, int)}, r"theta: got dtype int64; required float64 or float32"),
    ({"e": np.ones(2, bool)}, r"e: got dtype bool; required float64 or float32"),
    ({"e": np.ones(2, complex)}, r"e: got dtype complex128"),
    ({"e": np.ones(2, "float32")}, r"e: got dtype float32; required dtype float64, as theta has"),
    ({"e": [1.0, 1.0]}, r"e: got list; required an array of one of numpy"),
    (
        {key: value.astype("float16") for key, value in GOOD.items()},
        r"theta: got dtype float16; required float64 or float32.*another precision",
    ),
    ({"e": 1.0}, r"e: got float; required an array"),
    ({"e": None}, r"got NoneType; required an array"),
]


@pytest.mark.parametrize(("change", "message"), UPDATE_FAULTS)
def test_updates_refuse(change, message):
    a = GOOD | change
    with pytest.raises(InputError, match=message):
        diagonal.update(**a)
    if not message.startswith("p:"):  # P has a test of its own
        p = a.pop("p")
        with pytest.raises(InputError, match=message):
            dense.update(**a, P=np.diag(p))


def test_dense_covariances_refuse():
    a = {k: v for k, v in GOOD.items() if k != "p"}
    skew = np.eye(3)
    skew[0, 2] = 1e-3
    for P, message in [
        (np.ones(3), r"P: got shape \(3,\); required shape \(n, n\) = \(3, 3\)"),
        (skew, r"P: got max \|P - P'\| = 0.001"),
        (np.diag([1.0, 1.0, -1e-3]), r"P: got smallest eigenvalue -0.001; required a positive"),
        (np.eye(3) * np.nan, r"P: got nan at index \(0, 0\)"),
    ]:
        with pytest.raises(InputError, match=message):
            dense.update(**a, P=P)
        glm = {"theta": a["theta"], "Z": GOOD["H"], "e": np.array([0.5, -0.5])}
        with pytest.raises(InputError, match=message):
            dense.glm_update(**glm, P=P, yhat=np.array([[0.5, 0.5]]))


def test_rounding_is_no_asymmetry():
    """A product's rounding passes; the same matrix in float32 too."""
    G = np.random.default_rng(0).standard_normal((6, 6))
    for dtype in ("float64", "float32"):
        S = (G.astype(dtype) * np.arange(1, 7, dtype=dtype)) @ G.T.astype(dtype)
        checks.check_covariance("S", S)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"yhat": np.array([0.5, 0.5])}, r"yhat: got shape \(2,\)"),
        ({"yhat": np.array([[0.5, 0.25, 0.25]])}, r"e: got shape \(2,\); required .*= \(3\)"),
        ({"yhat": np.array([[0.5, 0.6]])}, r"yhat: got a row that is no distribution"),
        ({"yhat": np.array([[1.5, -0.5]])}, r"yhat: got a row that is no distribution"),
        ({"yhat": np.array([[np.nan, 1.0]])}, r"yhat: got nan at index \(0, 0\)"),
        ({"yhat": np.array([[np.nan, 0.5]])}, r"yhat: got nan at index \(0, 0\)"),
        ({"yhat": np.array([[0.5, 0.5]], "float32")}, r"yhat: got dtype float32"),
        ({"p": np.zeros(3)}, r"p: got 0 at flat index 0"),
    ],
)
def test_glm_refuses(change, message):
    a = {"theta": np.zeros(3), "p": np.ones(3), "Z": GOOD["H"], "e": np.array([0.5, -0.5])}
    a |= {"yhat": np.array([[0.5, 0.5]])} | change
    with pytest.raises(InputError, match=message):
        diagonal.glm_update(**a)
    if "p" not in change:
        p = a.pop("p")
        with pytest.raises(InputError, match=message):
            dense.glm_update(**a, P=np.diag(p))


def test_options_name_the_closest():
    for call, name in [
        (lambda: diagonal.update(**GOOD, diagonal="decoupledd"), "decoupled"),
        (lambda: diagonal.update(**GOOD, diagonal="variatonal"), "variational"),
        (lambda: dense.update(*[None] * 5, form="sequentail"), "sequential"),
        (lambda: obs.observe("sofmax", None, None, None), "softmax"),
        (lambda: noise.update("ema_inovation", None, None, None, 0.9), "ema_innovation"),
    ]:
        with pytest.raises(InputError, match=f"closest known name is '{name}'"):
            call()
    with pytest.raises(InputError, match="a name from another package or version"):
        diagonal.update(**GOOD, diagonal="xyz")
    for other in (None, 3, ["decoupled"]):
        with pytest.raises(InputError, match="diagonal: got"):
            diagonal.update(**GOOD, diagonal=other)


Z = {"z": np.zeros((2, 3)), "Z": np.ones((6, 4)), "y": np.eye(3)[:2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.zeros(6)}, r"z: got shape \(6,\); required shape \(batch, C\)"),
        ({"z": np.zeros((0, 3)), "Z": np.ones((0, 4)), "y": np.ones((0, 3))}, r"z: got no sample"),
        ({"Z": np.ones((3, 4))}, r"Z: got shape \(3, 4\).*= \(6, n\)"),
        ({"y": np.eye(3)}, r"y: got shape \(3, 3\).*= \(2, 3\)"),
        ({"y": np.ones((2, 3))}, r"y: got a row that is no distribution; required rows >= 0"),
        ({"z": np.full((2, 3), np.nan)}, r"z: got nan"),
        ({"y": np.eye(3, dtype=int)[:2]}, r"y: got dtype int64"),
        ({"y": np.eye(3, dtype="float32")[:2]}, r"y: got dtype float32"),
    ],
)
def test_observations_refuse(change, message):
    with pytest.raises(InputError, match=message):
        obs.observe("glm", **(Z | change))


HALF = np.array([[0.5, 0.5]])


@pytest.mark.parametrize(
    ("kind", "y", "yhat", "message"),
    [
        ("sofmax", HALF, HALF, r"closest known name is 'softmax'"),
        ("glm", HALF[0], HALF, r"y: got shape \(2,\); required shape \(batch, C\)"),
        ("glm", HALF, HALF.T, r"yhat: got shape \(2, 1\).*= \(1, 2\).*transposed"),
        ("glm", HALF.tolist(), HALF, r"y: got list; required an array"),
        ("glm", HALF.astype("float32"), HALF, r"yhat: got dtype float64; required dtype float32"),
        ("glm", np.array([[1, 0]]), HALF, r"y: got dtype int64"),
        ("gaussian", HALF * np.nan, HALF, r"y: got nan at index \(0, 0\)"),
        ("gaussian", HALF, HALF * np.inf, r"yhat: got inf"),
        ("glm", 2 * HALF, HALF, r"y: got a row that is no distribution"),
        ("softmax", HALF, 2 * HALF, r"yhat: got a row that is no distribution"),
        ("logits", np.zeros((1, 0)), np.zeros((1, 0)), r"y: got no class"),
    ],
)
def test_innovations_refuse(kind, y, yhat, message):
    with pytest.raises(InputError, match=message):
        obs.innovation(kind, y, yhat)
    np.testing.assert_array_equal(obs.innovation("gaussian", 2 * HALF, HALF), HALF)


def test_only_two_formats_are_drawn():
    rng = np.random.default_rng(0)
    for bad in ("float16", np.float16, np.dtype("float16"), "int64", int, None, "f4"):
        for call in (
            lambda d: init_model(rng, mlp_spec([2, 2]), dtype=d),
            lambda d: init_model(rng, [{"kind": "relu"}], dtype=d),
            lambda d: init_factors(rng, 2, 2, 1, dtype=d),
        ):
            with pytest.raises(InputError, match=r"dtype: got .*; required float64 or float32"):
                call(bad)
    for good in ("float32", np.float32, np.dtype("float32")):
        assert init_model(rng, mlp_spec([2, 2]), dtype=good).dtype == np.float32
        assert init_factors(rng, 2, 2, 1, dtype=good)["A"].dtype == np.float32


def test_one_class_is_refused():
    """A softmax of one output is always 1."""
    for kind in ("softmax", "logits", "glm"):
        with pytest.raises(InputError, match=r"z: got 1 class; required at least 2 for"):
            obs.observe(kind, np.zeros((2, 1)), np.ones((2, 3)), np.ones((2, 1)))


def test_center_belongs_to_logits():
    for kind in ("softmax", "glm", "gaussian"):
        with pytest.raises(InputError, match=r"center: got True"):
            obs.observe(kind, **Z, center=True)


def test_labels_refuse():
    like = np.zeros(1)
    for labels, message in [
        (np.array([0, 3]), r"y: got label 3; required labels in \[0, 2\]"),
        (np.array([-1, 0]), r"y: got label -1"),
        (np.array([0.0]), r"y: got dtype float64"),
        (np.array([True]), r"y: got dtype bool"),
        (np.array([[0]]), r"y: got shape \(1, 1\)"),
    ]:
        with pytest.raises(InputError, match=message):
            obs.one_hot(labels, 3, like)


def test_simplex_conditioning_refuses():
    for R, C, message in [
        (np.eye(4), 3, r"C: got 3; required a divisor of m = 4"),
        (np.eye(4), 1, r"C: got 1"),
        (np.ones((2, 3)), 2, r"R: got shape \(2, 3\)"),
        (SKEW, 2, r"R: got max \|R - R'\|"),
        (-np.eye(2), 2, r"R: got smallest eigenvalue -1"),
        (np.diag([1.0, np.inf]), 2, r"R: got inf at index \(1, 1\)"),
    ]:
        with pytest.raises(InputError, match=message):
            simplex.condition_on_simplex(R, C)


def test_noise_refuses():
    a = {"R": np.eye(2), "e": np.ones(2), "HpH": np.eye(2)}
    for change, beta, message in [
        ({}, 1.0, r"beta: got 1.0; required a number in \[0, 1\)"),
        ({}, -0.1, r"beta: got -0.1"),
        ({}, float("nan"), r"beta: got nan"),
        ({}, True, r"beta: got True.*a bool in place of a number"),
        ({"e": np.ones(3)}, 0.9, r"R: got shape \(2, 2\); required shape \(m, m\) = \(3, 3\)"),
        ({"HpH": np.eye(3)}, 0.9, r"HpH: got shape \(3, 3\)"),
        ({"e": np.zeros(0), "R": np.eye(0), "HpH": np.eye(0)}, 0.9, r"e: got no output"),
        ({"R": np.eye(2) * np.nan}, 0.9, r"R: got nan"),
        ({"R": SKEW}, 0.9, r"R: got max \|R - R'\| = 0.5; required a symmetric matrix"),
        ({"e": np.ones(2, "float32")}, 0.9, r"e: got dtype float32"),
    ]:
        with pytest.raises(InputError, match=message):
            noise.update("ema_innovation", **(a | change), beta=beta)
    for kind in ("ema_innovation_hph", "ema_residual_hph"):
        with pytest.raises(InputError, match=r"HpH: got max \|HpH - HpH'\| = 0.5"):
            noise.update(kind, **(a | {"HpH": SKEW}), beta=0.9)
    noise.update("ema_innovation", **(a | {"HpH": SKEW}), beta=0.9)  # which does not read it
    with pytest.raises(InputError, match=r"noise: got 'glm'"):
        noise.update("glm", **a, beta=0.9)


def test_time_update_refuses():
    p = np.ones(2)
    for args, message in [
        ((p, 0.0), r"lam: got 0.0; required a number in \(0, 1\]"),
        ((p, 1.1), r"lam: got 1.1"),
        ((p, 1.0, -1.0), r"q: got -1.0; required a number in \[0, inf\)"),
        ((p, 1.0, float("inf")), r"q: got inf"),
        ((p, 1.0, np.array([0.0, -1.0])), r"q: got a negative entry"),
        ((p, 1.0, np.ones(3)), r"q: got shape \(3,\)"),
        ((p, 1.0, np.ones(2, "float32")), r"q: got dtype float32"),
        ((p, "1"), r"lam: got '1'.*a str in place of a number"),
        ((-p,), r"p: got -1 at flat index 0; required entries > 0"),
        ((p * np.nan,), r"p: got nan at index \(0,\)"),
        ((np.ones((2, 3)),), r"P: got shape \(2, 3\)"),
        ((np.ones(2, int),), r"p: got dtype int64"),
    ]:
        with pytest.raises(InputError, match=message):
            time.update(*args)


@given(st.diagonal_problems(dtype="float64"), hs.sampled_from([1e200, 1e160]))
def test_overflow_is_told_and_not_passed_on(problem, size):
    """S = H p H' beyond the largest float: an error that names S, not NaN in theta."""
    a = problem.arguments()
    a["H"] = np.full_like(problem.H, size)
    a["p"] = np.full_like(problem.p, size)
    with np.errstate(over="ignore"):
        for call in (
            lambda: diagonal.update(**a),
            lambda: dense.update(**{k: v for k, v in a.items() if k != "p"}, P=np.diag(a["p"])),
        ):
            with pytest.raises(NumericalError, match=r"^S: not finite. S overflowed"):
                call()


def test_singular_s_is_told():
    """Two equal rows of H, R below rounding."""
    a = GOOD | {"H": np.ones((2, 3)), "R": np.eye(2) * 1e-17}
    with pytest.raises(NumericalError, match=r"S: smallest eigenvalue .*Nothing was added") as told:
        diagonal.update(**a)
    assert told.value.quantity == "S"
    assert abs(told.value.eigenvalue) < 1e-14
    assert told.value.step is None
    assert isinstance(told.value, ValueError)


def test_a_pivot_without_a_digit_is_refused(dtype):
    """Cholesky succeeds, but the last pivot is one eps: not above 8 eps.  [KAL-8]."""
    unit = float(np.finfo(dtype).eps)
    S = np.array([[1, 1], [1, 1 + unit]], dtype)
    for scale in (1.0, 2.0**20):  # in any units
        d = np.array([1, scale], dtype)
        with pytest.raises(
            NumericalError, match=r"correlation matrix .*, not above max\(m, 8\) eps"
        ):
            arrays.cholesky(S * np.outer(d, d), "S")
    L = arrays.cholesky(S, "S", scaled_pivots=False)
    assert L[1, 1] > 0
    for excess, told in ((12, True), (20, False)):  # eigenvalues of 6 and 10 eps
        assert (refused(np.array([[1, 1], [1, 1 + excess * unit]], dtype)) is not None) is told


def refused(S):
    """Smallest eigenvalue of the correlation matrix, as the error tells it; None where S passes."""
    try:
        arrays.cholesky(S, "S")
    except NumericalError as error:
        return float(re.search(r"has the smallest eigenvalue (\S+),", str(error)).group(1))
    return None


@pytest.mark.parametrize("terms", [20, 200, 2_000, 20_000])
@pytest.mark.parametrize("m", [2, 3, 5])
def test_a_long_sum_does_not_hide_a_deficient_rank(m, terms, dtype):
    """One row of H is an exact combination of the others, S = H H' a rounded sum.  [KAL-8].

    How a BLAS orders the sum is its own affair: one in 100 may pass; of m eps alone up to 19 do.
    """
    rng, passed = np.random.default_rng(m * terms), 0
    for _ in range(100):
        H = np.round(rng.standard_normal((m, terms)) * 2**10) / 2**10
        H[-1] = rng.choice([-3, -2, -1, 1, 2, 3], m - 1) @ H[:-1]
        H = H.astype(dtype)  # 16 bits at most: exact
        try:
            arrays.cholesky(H @ H.T, "S")
        except NumericalError:
            continue
        passed += 1
    assert passed <= 1


@pytest.mark.parametrize("m", [2, 3, 5, 9, 20])
@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_deficient_rank_is_refused(m, scale, dtype):
    """S = G G' with fewer columns than rows: not one of 300 draws passes.  [KAL-8].

    The smallest pivot in the given order alone lets 1 in 20 of them through.
    """
    rng = np.random.default_rng(m)
    for _ in range(300):
        G = rng.standard_normal((m, m - 1)) * 10.0 ** rng.uniform(-scale, scale, (m, 1))
        S = (G @ G.T).astype(dtype)
        with pytest.raises(NumericalError, match=r"^S: smallest eigenvalue"):
            arrays.cholesky((S + S.T) / 2, "S")


def with_smallest(rng, m, smallest):
    """Correlation matrix with an eigenvalue near `smallest`, the others geometric up to 1."""
    Q, _ = np.linalg.qr(rng.standard_normal((m, m)))
    S = (Q * np.geomspace(1, smallest, m)) @ Q.T
    d = 1 / np.sqrt(np.diagonal(S))
    S = S * d[:, None] * d
    return (S + S.T) / 2


@pytest.mark.parametrize("m", [2, 5, 10, 40])
def test_ill_conditioned_is_not_refused(m):
    """Regular correlation matrices with a condition number up to 1e12 pass.  [KAL-8]."""
    rng = np.random.default_rng(m)
    for smallest in (1e-2, 1e-6, 1e-10, 1e-12):
        for _ in range(30):
            S = with_smallest(rng, m, smallest)
            assert refused(S) is None, (smallest, np.linalg.cond(S))


def test_neither_order_nor_units_decide():
    """Singular by the first two outputs, or by the last two; in any units: the same number."""
    rng = np.random.default_rng(0)
    S = with_smallest(rng, 6, 1e-16)
    first = refused(S)
    assert first is not None
    for _ in range(20):
        order, d = rng.permutation(6), 2.0 ** rng.integers(-20, 20, 6)
        other = refused(S[np.ix_(order, order)] * np.outer(d, d))
        assert other is not None  # it is rounding by now: the size agrees, not the digits
        assert 0.01 * first < other < 100 * first


def test_scaled_rows_are_not_singular():
    """The outputs' units do not matter: rows scaled over 1e12 pass."""
    d = np.array([1e-6, 1e6])
    a = GOOD | {"H": GOOD["H"] * d[:, None], "e": d, "R": np.diag(d**2)}
    plain = diagonal.update(**GOOD)
    np.testing.assert_allclose(diagonal.update(**a).theta, plain.theta, rtol=1e-12)


def test_errors_survive_pickling_and_copying():
    for error in (
        InputError("p", 0, "entries > 0", "clipping"),
        NumericalError("S", -1.0, "indefinite", 7),
        NumericalError("z", None, "diverged"),
        MissingExtraError("plots", "matplotlib", "data"),
        BackendError("cupy", "no device", "no driver"),
    ):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert vars(again) == vars(error)


def test_errors_are_what_callers_expect():
    assert issubclass(InputError, ValueError)
    assert issubclass(NumericalError, np.linalg.LinAlgError)
    assert issubclass(MissingExtraError, ImportError)
    assert issubclass(BackendError, RuntimeError)
    error = NumericalError("S", -1.0, "indefinite").at_step(3)
    assert (error.step, str(error)) == (3, "step 3: S: smallest eigenvalue -1. indefinite")
    missing = MissingExtraError("plots", "matplotlib", "data")
    assert missing.extra == "data"
    assert "pip install 'loko-ref[data]'" in str(missing)
    assert closest("zzz", ["decoupled"]) is None
    assert isinstance(unknown_option("a", "b", ["c"]), InputError)
    assert set(errors.__all__) <= set(vars(errors))


@given(hs.integers(1, 5), st.dtypes())
def test_triangular_and_general_solves(m, dtype):
    rng = np.random.default_rng(m)
    G = rng.standard_normal((m, m))
    S = (G @ G.T + np.eye(m)).astype(dtype)
    S = (S + S.T) / 2
    b = rng.standard_normal((m, 2)).astype(dtype)
    L = arrays.cholesky(S, "S")
    unit = 32 * m * np.finfo(dtype).eps * np.linalg.cond(S)
    np.testing.assert_allclose(L @ L.T, S, atol=unit)
    np.testing.assert_allclose(S @ arrays.cho_solve(L, b), b, atol=unit * 4)
    np.testing.assert_allclose(arrays.solve(S, b), arrays.cho_solve(L, b), atol=unit * 4)
    np.testing.assert_allclose(
        L.T @ arrays.solve_triangular(L, b, transpose=True), b, atol=unit * 4
    )
    np.testing.assert_allclose(arrays.eigvalsh(S).sum(), np.trace(S), rtol=unit)


def test_a_singular_matrix_is_named():
    with pytest.raises(NumericalError, match=r"I \+ J G: smallest eigenvalue 0. .* exactly 0"):
        arrays.solve(np.ones((2, 2)), np.ones(2), name="I + J G")


def test_one_missing_spelling_of_a_number():
    for bad in ("1", None, [1.0], 1j, True, np.ones(1)):
        with pytest.raises(InputError, match="x: got"):
            checks.check_range("x", bad, low=0, high=2)
    for good in (1, 1.0, np.float64(1), np.float32(1), np.int64(1)):
        checks.check_range("x", good, low=0, high=2)


@pytest.mark.parametrize(
    ("cls", "wrong", "near"),
    [
        (loko.LokoConfig, "obsrvation", "observation"),
        (lte.LteConfig, "merge_evry", "merge_every"),
        (lte.Loko, "diagnal", "diagonal"),
        (optimizers.SGD, "momentm", "momentum"),
        (optimizers.AdaGrad, "learning_decay", "lr_decay"),
        (optimizers.AdamW, "weigth_decay", "weight_decay"),
        (RunConfig, "netwrok", "network"),
    ],
)
def test_a_misspelt_keyword_names_the_closest(cls, wrong, near):
    with pytest.raises(InputError) as error:
        cls(**{wrong: 1})
    assert str(error.value).startswith(f"a keyword of {cls.__name__}: got '{wrong}'; required one")
    assert str(error.value).endswith(f"the closest known name is '{near}'.")
    assert list(inspect.signature(cls).parameters) == [f.name for f in dataclasses.fields(cls)]
    if cls is optimizers.SGD:
        with pytest.raises(InputError, match="a keyword of SGD"):
            dataclasses.replace(cls(), **{wrong: 1})
        assert pickle.loads(pickle.dumps(cls(momentum=0.5))) == cls(momentum=0.5)


def _with_choices():
    """Every parameter of the core that is a Literal: (where, names, the docstring's entry)."""
    for module in (dense, diagonal, noise, obs, loko_filter):
        for name, public in vars(module).items():
            own = inspect.isfunction(public) and public.__module__ == module.__name__
            if own and not name.startswith("_"):
                yield f"{module.__name__}.{name}", public
    yield "LokoConfig", loko.LokoConfig
    yield "LteConfig", lte.LteConfig


@pytest.mark.parametrize(("where", "public"), list(_with_choices()))
def test_documented_choices_are_those_of_the_type(where, public):
    """The names in braces are the type's, and no choice is a plain `str`."""
    entries = re.findall(r"^ +([a-z0-9_]+) : \{(.*?)\}", public.__doc__ or "", re.M)
    hints = typing.get_type_hints(public)
    for name, braces in entries:
        allowed = {a for t in (hints[name], *typing.get_args(hints[name])) for a in choices(t)}
        assert {word.strip().strip('"') for word in braces.split(",")} == allowed, (where, name)


def choices(kind):
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
