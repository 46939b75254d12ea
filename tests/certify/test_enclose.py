"""Precision that doubles, and floats that are rounded correctly or called undecided."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

import flint

from loko_ref.arrays import balls
from loko_ref.arrays.balls import enclose, rounded
from loko_ref.errors import InputError, UndecidedError


def ball(mid, rad=0):
    return flint.arb(mid, rad)


@given(st.integers(-(2**80), 2**80), st.integers(-1200, 900))
def test_rounding_equals_exact_rational_rounding(man, exp):
    x = flint.arb(flint.fmpz(man))
    x = x * flint.arb(2) ** exp if exp >= 0 else x / flint.arb(2) ** -exp
    with balls.precision(400):
        x = flint.arb(flint.fmpz(man)) * flint.arb(2) ** exp
        found = rounded(x)
    exact = Fraction(man) * Fraction(2) ** exp
    assert found.decided
    assert found.value == float(exact)
    assert abs(Fraction(found.value) - exact) <= Fraction(found.bound)
    assert found.bound <= math.ulp(found.value)


@given(st.floats(-(2.0**127), 2.0**127, width=32), st.integers(-4, 4))
def test_float32_rounding_is_not_rounded_twice(x, quarter):
    """A quarter of an ulp more or less: the float32 stays, however near float64 rounds."""
    with balls.precision(400):
        ulp = float(np.spacing(np.float32(abs(x))))
        y = ball(x) + ball(ulp) * quarter / 4
        found = rounded(y, "float32")
    want = Fraction(x) + Fraction(ulp) * quarter / 4
    if abs(want) < 2**127:
        assert abs(Fraction(found.value) - want) <= Fraction(ulp) / 2
        assert np.float32(found.value) == found.value


def test_ties_subnormals_overflow():
    with balls.precision(2000):
        assert rounded(ball(1) + ball(2) ** -53).value == 1.0  # a tie, to even
        assert rounded(ball(1) + ball(2) ** -53 + ball(2) ** -200).value == 1.0 + 2.0**-52
        assert rounded(ball(2) ** -1075).value == 0.0
        assert rounded(ball(2) ** -1075 * 1.5).value == 5e-324
        assert rounded(ball(2) ** -1074 * 2.5, "float64").value == 1e-323
        assert rounded(ball(2) ** -150, "float32").value == 0.0
        assert rounded(ball(2) ** -150 * 1.5, "float32").value == 2.0**-149
        assert rounded(ball(2) ** -5000).value == 0.0
        assert rounded((-(ball(2) ** 20)).exp().exp() * 0 + ball(-(2**21)).exp()).value == 0.0
        assert not rounded(ball(2) ** 1030).decided
        huge = rounded(ball(2) ** (1 << 21))
        assert not huge.decided
        assert huge.bound == math.inf


def test_undecided_is_said():
    with balls.precision(200):
        tie = ball(1) + ball(2) ** -53
        across = ball(tie, ball(2) ** -90)
        assert not rounded(across).decided
        assert rounded(across).bound > 2.0**-54
        assert not rounded(ball(0, 1)).decided
        assert rounded(ball(0, ball(2) ** -1100)).decided
        assert rounded(ball(0, ball(2) ** -1100)).value == 0.0
        assert not rounded(ball(float("nan"))).decided


def test_precision_doubles_until_tight():
    """(1 + 2^-300) - 1 needs more than 256 bits; a difference that is 0 needs 1100."""
    tiny = balls.balls(np.array([2.0**-300]))
    found = enclose(lambda: {"x": (1 + tiny) - 1})
    assert found.bits == 512
    assert not found.loose
    assert rounded(found.outputs["x"][0]).value == 2.0**-300
    third = balls.balls(np.array([3.0]))
    zero = enclose(lambda: {"x": 1 / third + 1 / third + 1 / third - 1})
    assert zero.bits == 2048
    assert rounded(zero.outputs["x"][0]).value == 0.0


def test_the_bound_on_precision_is_said():
    third = balls.balls(np.array([3.0]))
    found = enclose(lambda: {"x": 1 / third + 1 / third + 1 / third - 1, "y": third}, limit=512)
    assert found.bits == 512
    assert found.loose == {"x": 1}
    with pytest.raises(InputError, match="start"):
        enclose(dict, start=256, limit=128)


def test_an_undecided_branch_is_tried_at_higher_precision():
    tiny = balls.balls(np.array([2.0**-300]))
    found = enclose(lambda: {"x": balls.positive((1 + tiny) - 1).astype(float)})
    assert found.bits == 512
    with pytest.raises(UndecidedError):
        enclose(lambda: {"x": balls.positive((1 + tiny) - 1)}, limit=256)


def test_radius_and_inflation():
    x = np.array([0.0, 1.0, -3.5, 5e-324])
    wide = balls.inflate(x, 2.0**-24)
    r = balls.radius(wide)
    assert r[0] == 0
    assert np.all(r[1:3] >= 2.0**-24 * np.abs(x[1:3]))
    assert np.all(r[1:3] <= 1.01 * 2.0**-24 * np.abs(x[1:3]))
