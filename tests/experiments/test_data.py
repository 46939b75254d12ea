"""Real data: split by seed, scaled, shifted; the parts are disjoint and every draw is seeded."""

import sys

import numpy as np
import pytest

from loko_ref.errors import InputError, MissingExtraError
from loko_ref.experiments.data import bundled
from loko_ref.experiments.data.bundled import Split, shift_features
from loko_ref.experiments.data.registry import load


def test_digits_are_split_900_600_rest_and_lose_no_image():
    from sklearn.datasets import load_digits

    parts = load("digits", seed=3)
    assert [len(p) for p in (parts.base, parts.stream, parts.test)] == [900, 600, 297]
    together = np.concatenate([parts.base.x, parts.stream.x, parts.test.x]) * 16
    whole = load_digits().data
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(
        map(bytes, whole.astype(np.uint8))
    )
    assert parts.classes == parts.outputs == 10
    assert parts.base.x.min() == 0
    assert parts.base.x.max() == 1


@pytest.mark.parametrize("name", bundled.DATASETS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_set_loads_in_the_dtype_asked_for(name, dtype):
    parts = load(name, seed=1, dtype=dtype, shift="permute")
    for part in (parts.base, parts.stream, parts.test):
        assert part.x.dtype == dtype
        assert len(part) > 0
        assert np.isfinite(part.x).all()
        assert part.y.dtype == (dtype if parts.regression else np.int64)
    if name != "digits":
        # scaled by the base part: its mean is 0 to rounding of the size of one feature's values
        assert np.abs(parts.base.x.mean(axis=0, dtype=float)).max() < 1e-5


def test_regression_targets_lead_back_by_their_unit():
    parts = load("diabetes", seed=0)
    assert parts.regression
    assert parts.outputs == 1
    assert parts.base.y.shape == (len(parts.base), 1)
    assert parts.base.y.std() == pytest.approx(1)
    assert 60 < parts.unit < 100  # disease progression scatters by about 77


def test_a_seed_fixes_everything_and_another_changes_it():
    a, b, c = (load("digits", seed=s, shift="noise", label_noise=0.1) for s in (0, 0, 1))
    assert a.digest() == b.digest() != c.digest()


def test_the_split_does_not_depend_on_shift_or_label_noise():
    plain = load("digits", seed=2)
    inverted = load("digits", seed=2, shift="invert")
    noisy = load("digits", seed=2, label_noise=0.3)
    for changed in (inverted, noisy):
        assert (changed.base.x == plain.base.x).all()
        assert (changed.test.y == plain.test.y).all()
    assert (inverted.stream.x == 1 - plain.stream.x).all()


def test_only_the_stream_has_label_noise_and_in_its_share():
    plain, noisy = load("digits", seed=0), load("digits", seed=0, label_noise=0.1)
    wrong = (plain.stream.y != noisy.stream.y).mean()
    # 600 draws of probability 0.1: five standard deviations are 0.061
    assert abs(wrong - 0.1) < 0.061
    assert (plain.base.y == noisy.base.y).all()
    assert (plain.test.y == noisy.test.y).all()
    assert noisy.stream.y.min() >= 0
    assert noisy.stream.y.max() <= 9


def test_rotate90_turns_the_image_and_four_turns_give_it_back(rng):
    x = rng.random((2, 64))
    turned = shift_features(rng, x, "rotate90", image=(1, 8, 8))
    image, after = x[0].reshape(8, 8), turned[0].reshape(8, 8)
    assert all(after[7 - j, i] == image[i, j] for i in range(8) for j in range(8))
    for _ in range(3):
        turned = shift_features(rng, turned, "rotate90", image=(1, 8, 8))
    assert (turned == x).all()


def test_colours_turn_together(rng):
    x = rng.random((2, 3, 4, 4))
    turned = shift_features(rng, x.reshape(2, 48), "rotate90", image=(3, 4, 4)).reshape(x.shape)
    for channel in range(3):
        assert (turned[:, channel] == np.rot90(x[:, channel], axes=(1, 2))).all()


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_limit_cuts_each_part_of_the_same_split(name):
    whole, few = load(name, seed=2), load(name, seed=2, limit=40)
    assert [len(part) for part in (few.base, few.stream, few.test)] == [40, 40, 40]
    if name == "digits":  # what is scaled by the base part changes with it
        for part in ("base", "stream", "test"):
            assert (getattr(few, part).x == getattr(whole, part).x[:40]).all()
            assert (getattr(few, part).y == getattr(whole, part).y[:40]).all()


def test_permute_is_one_permutation_for_stream_and_test():
    plain, mixed = load("wine", seed=0), load("wine", seed=0, shift="permute")
    for part in ("stream", "test"):
        a, b = getattr(plain, part).x, getattr(mixed, part).x
        order = [int(np.flatnonzero((plain.stream.x[:, [j]] == mixed.stream.x).all(axis=0))[0])
                 for j in range(a.shape[1])]  # fmt: skip
        assert (b[:, order] == a).all()
        assert sorted(order) == list(range(a.shape[1]))


def test_shifts_leave_their_input_untouched(rng):
    x = rng.random((3, 64))
    x.flags.writeable = False
    for shift in bundled.SHIFTS:
        shift_features(rng, x, shift, image=(1, 8, 8))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: load("digit"), "closest known name is 'digits'"),
        (lambda: load("digits", shift="rotate"), "closest known name is 'rotate90'"),
        (lambda: load("wine", shift="rotate90"), "no pixels"),
        (lambda: load("digits", seed=-1), "seed"),
        (lambda: load("digits", seed=1.0), "seed"),
        (lambda: load("digits", dtype="float16"), "dtype"),
        (lambda: load("digits", label_noise=1.0), "label_noise"),
        (lambda: load("digits", limit=0), "limit"),
        (lambda: load("digits", limit=2.5), "limit"),
        (
            lambda: shift_features(None, np.zeros((1, 6)), "rotate90", image=(1, 2, 3)),
            "not square",
        ),
        (lambda: load("diabetes", label_noise=0.1), "without classes"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(InputError, match=word):
        call()


def test_a_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"loko-ref\[data\]"):
        load("digits")


def test_a_split_counts_its_samples():
    assert len(Split(x=np.zeros((3, 2)), y=np.zeros(3))) == 3
