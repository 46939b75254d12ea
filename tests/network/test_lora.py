"""LoRA factors [LORA-1 to LORA-3]: laws of the draw, delta, merge and unmerge."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs
from support import close, eps

from loko_ref import strategies as st
from loko_ref.errors import InputError
from loko_ref.network import lora


@pytest.mark.parametrize("init", lora.INITS)
@pytest.mark.parametrize("bias", [False, True])
def test_factors_begin_at_no_change(rng, init, bias, dtype):
    factors = lora.init_factors(rng, 6, 5, 3, init=init, bias=bias, dtype=dtype)
    assert {k: v.shape for k, v in factors.items()} == {
        "A": (3, 6),
        "B": (5, 3),
        **({"bA": (3,), "bB": (5,)} if bias else {}),
    }
    assert all(v.dtype == dtype for v in factors.values())
    assert not lora.delta(factors["A"], factors["B"], 2.0).any()
    assert not any(factors[k].any() for k in factors if k != "A")


def test_laws_of_a():
    """Uniform on +-1/sqrt(i); normal with deviation 1/r; semi-orthogonal times sqrt(i/r)."""
    i, r = 400, 16
    draw = {
        k: lora.init_factors(np.random.default_rng(5), i, i, r, init=k)["A"] for k in lora.INITS
    }
    uniform = draw["kaiming"] * math.sqrt(i)
    assert abs(uniform).max() <= 1
    count = i * r  # mean and variance within 5 standard deviations of their estimates
    assert abs(uniform.mean()) < 5 / math.sqrt(3 * count)
    assert abs(uniform.var() * 3 - 1) < 5 * math.sqrt(0.8 / count)
    normal = draw["gaussian"] * r
    assert abs(normal.mean()) < 5 / math.sqrt(count)
    assert abs(normal.var() - 1) < 5 * math.sqrt(2 / count)
    A = draw["orthogonal"]
    np.testing.assert_allclose(A @ A.T, i / r * np.eye(r), atol=1e-13 * i / r)


def test_draws_depend_on_the_generator_alone():
    one, two = (lora.init_factors(np.random.default_rng(7), 4, 4, 2) for _ in range(2))
    np.testing.assert_array_equal(one["A"], two["A"])
    single = lora.init_factors(np.random.default_rng(7), 4, 4, 2, dtype="float32")
    np.testing.assert_array_equal(single["A"], one["A"].astype("float32"))


@given(st.factors(), hs.sampled_from([1.0, 8.0, -2.0, 0.0]), hs.data())
def test_delta_merge_unmerge(site, alpha, data):
    A, B = site["A"], site["B"]
    dtype = str(A.dtype)
    W = data.draw(st.arrays((B.shape[0], A.shape[1]), dtype=dtype))
    delta = lora.delta(A, B, alpha)
    r = A.shape[0]
    truth = alpha / r * sum(np.outer(B[:, q], A[q]).astype(float) for q in range(r))
    size = abs(alpha) / r * (np.abs(B).astype(float) @ np.abs(A).astype(float))
    unit = 2 * (r + 3) * eps(A)
    close(delta, truth, unit * size)
    merged = lora.merge(W, A, B, alpha)
    close(merged, W + truth, unit * (size + np.abs(W)))
    close(lora.unmerge(merged, A, B, alpha), W, 2 * unit * (size + np.abs(W)))
    assert delta.dtype == merged.dtype == dtype
    if "bA" in site:
        shift = lora.delta_bias(B, site["bA"], site["bB"], alpha)
        assert shift.dtype == dtype
        truth = alpha / r * (B.astype(float) @ site["bA"] + site["bB"])
        size = abs(alpha) / r * (np.abs(B).astype(float) @ np.abs(site["bA"]) + 4)
        close(shift, truth, unit * size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"r": 5, "init": "orthogonal"},
            r"r: got 5; required at most i = 4 with init 'orthogonal'.*cannot be orthogonal",
        ),
        ({"r": 0}, r"r: got 0; required a whole number from 1"),
        ({"i": 2.5}, r"i: got 2.5"),
        ({"init": "kaimin"}, r"init: got 'kaimin'.*closest known name is 'kaiming'"),
    ],
)
def test_bad_draws(rng, change, message):
    a = {"i": 4, "o": 6, "r": 2, "init": "kaiming"} | change
    with pytest.raises(InputError, match=message):
        lora.init_factors(rng, a["i"], a["o"], a["r"], init=a["init"])


@pytest.mark.parametrize(("i", "o", "r"), [(5, 2, 8), (2, 5, 8), (4, 2, 3), (1, 1, 2)])
@pytest.mark.parametrize("init", lora.INITS)
def test_a_rank_above_a_width(rng, i, o, r, init):
    """The scale stays alpha / r, and every law but the orthogonal one has more rows than i."""
    if init == "orthogonal" and r > i:
        with pytest.raises(InputError, match="cannot be orthogonal"):
            lora.init_factors(rng, i, o, r, init=init)
        return
    factors = lora.init_factors(rng, i, o, r, init=init)
    assert factors["A"].shape == (r, i)
    A, B = factors["A"], rng.standard_normal((o, r))
    if init == "orthogonal":
        np.testing.assert_allclose(A @ A.T, i / r * np.eye(r), atol=8 * r * i * eps(A))
    else:
        assert np.linalg.matrix_rank(A) == min(r, i)
    truth = 3.0 / r * sum(np.outer(B[:, q], A[q]) for q in range(r))
    size = 3.0 / r * (np.abs(B) @ np.abs(A))
    close(lora.delta(A, B, 3.0), truth, 2 * (r + 3) * eps(A) * size)


def test_bad_factors():
    A, B, W = np.ones((2, 4)), np.ones((3, 2)), np.ones((3, 4))
    for args, message in [
        ((A.T, B), r"B: got shape \(3, 2\); required shape \(o, r\)"),
        ((A, B.astype("float32")), r"B: got dtype float32.*mixed precision"),
        ((np.ones((0, 3)), np.ones((3, 0))), r"A: got shape \(0, 3\); required at least one row"),
        ((A[0], B), r"A: got shape \(4,\)"),
    ]:
        with pytest.raises(InputError, match=message):
            lora.delta(*args, 1.0)
    for merge in (lora.merge, lora.unmerge):
        with pytest.raises(InputError, match=r"W: got shape \(4, 3\).*a transposed array"):
            merge(W.T, A, B, 1.0)
    for alpha in (float("nan"), float("inf"), "8", True):
        with pytest.raises(InputError, match="alpha: got"):
            lora.delta(A, B, alpha)
    with pytest.raises(InputError, match=r"bA: got shape \(3,\)"):
        lora.delta_bias(B, np.ones(3), np.ones(3), 1.0)
