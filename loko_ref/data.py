"""Real data that needs no download, split once by a seed: to train a base, to stream, to test.

Shapes: x (samples, i) floats; y (samples,) whole numbers, or (samples, 1) floats for regression.

The base part keeps the data as they are; the stream and the test part are shifted, so that a
network trained on the base part meets a world that has changed. Features are scaled: pixels to
[0, 1], other features to mean 0 and standard deviation 1 of the base part (regression targets
likewise; ``Dataset.unit`` leads back).
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.checks import check_choice, check_range
from loko_ref.errors import InputError, MissingExtraError

__all__ = ["DATASETS", "SHIFTS", "Dataset", "Split", "load", "shift_features"]

DATASETS = ("digits", "breast_cancer", "wine", "iris", "diabetes")
"""scikit-learn's bundled sets; ``diabetes`` is a regression, the others have classes."""

SHIFTS = ("rotate90", "permute", "invert", "noise", "none")
"""What happens to the features between the base and the stream."""

NOISE_SCALE = 0.3
"""Standard deviation of the shift ``noise``, in units of the scaled features."""

_SIDE = {"digits": 8}
_DIGITS_BASE, _DIGITS_STREAM = 900, 600


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Some samples.

    Attributes
    ----------
    x : array (samples, i)
        Scaled features.
    y : array (samples,) of int64, or (samples, 1) float
        Labels, or scaled targets.
    """

    x: NDArray[Any]
    y: NDArray[Any]

    def __len__(self) -> int:
        return int(self.x.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Three disjoint parts of one set.

    Attributes
    ----------
    name, shift : str
        What it is and what was done to stream and test.
    seed : int
        What split it.
    classes : int or None
        Number of classes; None for regression.
    unit : float
        Regression: one unit of y in the target's own unit; else 1.
    base, stream, test : Split
        Unshifted; shifted; shifted.
    """

    name: str
    shift: str
    seed: int
    classes: int | None
    unit: float
    base: Split
    stream: Split
    test: Split

    @property
    def regression(self) -> bool:
        """Whether y is real."""
        return self.classes is None

    @property
    def outputs(self) -> int:
        """C, the number of outputs that a network for it has."""
        return 1 if self.classes is None else self.classes

    def digest(self) -> str:
        """SHA-256 over all parts: the identity of the data, for checkpoints."""
        h = hashlib.sha256()
        for part in (self.base, self.stream, self.test):
            for array in (part.x, part.y):
                h.update(f"{array.dtype.str}{array.shape}".encode())
                h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()


def _raw(name: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Features (float64) and targets as scikit-learn bundles them."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the data set '{name}'", "scikit-learn", "data") from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(x, np.float64), np.asarray(y)


def shift_features(
    rng: np.random.Generator, x: NDArray[Any], shift: str, *, side: int | None = None
) -> NDArray[Any]:
    """Shift features; a new array, or `x` itself for ``none``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the permutation or the noise.
    x : array (samples, i)
        Scaled features.
    shift : {"rotate90", "permute", "invert", "noise", "none"}
        Images a quarter turn counterclockwise; one permutation of the features for all samples;
        1 - x for images, -x otherwise; x plus Gaussian noise of standard deviation 0.3; nothing.
    side : int, optional
        Side of square images, i = side * side; None where features are no pixels.

    Raises
    ------
    InputError
        If the name is unknown, or a rotation is asked of features that are no pixels.

    Examples
    --------
    >>> image = np.array([[1.0, 2.0, 3.0, 4.0]])  # 1 2 / 3 4
    >>> shift_features(np.random.default_rng(0), image, "rotate90", side=2)
    array([[2., 4., 1., 3.]])
    """
    check_choice("shift", shift, SHIFTS)
    if shift == "rotate90":
        if side is None:
            raise InputError(
                "shift",
                "'rotate90'",
                "permute, invert, noise or none for features that are no pixels",
                "a shift of images asked of a table; 'digits' is the set with images",
            )
        images = x.reshape(-1, side, side)
        return np.ascontiguousarray(np.rot90(images, axes=(1, 2))).reshape(x.shape)
    if shift == "permute":
        return np.ascontiguousarray(x[:, rng.permutation(x.shape[1])])
    if shift == "invert":
        return 1 - x if side is not None else -x
    if shift == "noise":
        return x + NOISE_SCALE * rng.standard_normal(x.shape).astype(x.dtype)
    return x


def _corrupt(
    rng: np.random.Generator, y: NDArray[np.int64], share: float, classes: int
) -> NDArray[np.int64]:
    """Exchange a share of the labels for another class, drawn uniformly."""
    hit = rng.random(y.shape[0]) < share
    other = (y + rng.integers(1, classes, size=y.shape[0])) % classes
    return np.where(hit, other, y)


def load(
    name: str = "digits",
    *,
    shift: str = "none",
    seed: int = 0,
    dtype: str = "float64",
    label_noise: float = 0.0,
) -> Dataset:
    """Load, split, scale and shift a data set.

    Parameters
    ----------
    name : {"digits", "breast_cancer", "wine", "iris", "diabetes"}
        Which one. Digits are split 900 / 600 / 297, the others 1/2, 1/3, the rest.
    shift : str
        One of ``SHIFTS``, applied to stream and test.
    seed : int
        Seeds the split, the shift and the label noise; >= 0.
    dtype : {"float64", "float32"}
        Of x (and of regression targets).
    label_noise : float
        Share of the stream's labels exchanged for another class, in [0, 1).

    Raises
    ------
    InputError
        If a name is unknown, or a value out of range.
    MissingExtraError
        If scikit-learn is not installed.
    """
    check_choice("data", name, DATASETS)
    check_choice("shift", shift, SHIFTS)
    check_choice("dtype", dtype, ("float64", "float32"))
    check_range("label_noise", label_noise, low=0, high=1, high_open=True)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("seed", repr(seed), "a whole number >= 0", "a float or a missing seed")
    x, y = _raw(name)
    total = x.shape[0]
    n_base = _DIGITS_BASE if name == "digits" else total // 2
    n_stream = _DIGITS_STREAM if name == "digits" else total // 3
    # three independent streams of numbers, so that the split does not depend on the shift
    splitting, shifting, noising = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)
    )
    order = splitting.permutation(total)
    cuts = np.split(order, [n_base, n_base + n_stream])

    side = _SIDE.get(name)
    if side is not None:
        x = x / 16
    else:
        mean, std = x[cuts[0]].mean(axis=0), x[cuts[0]].std(axis=0)
        x = (x - mean) / np.where(std > 0, std, 1)
    classes: int | None = None
    unit = 1.0
    if name == "diabetes":
        unit = float(y[cuts[0]].std())
        y = ((y - y[cuts[0]].mean()) / unit).astype(dtype)[:, None]
    else:
        classes = int(y.max()) + 1
        y = y.astype(np.int64)

    later = np.concatenate(cuts[1:])  # one draw of permutation or noise for stream and test
    moved = shift_features(shifting, x[later].astype(dtype), shift, side=side)
    stream_y = y[cuts[1]]
    if label_noise:
        if classes is None:
            raise InputError(
                "label_noise", label_noise, "0 for regression", "a set without classes"
            )
        stream_y = _corrupt(noising, stream_y, label_noise, classes)
    return Dataset(
        name=name,
        shift=shift,
        seed=seed,
        classes=classes,
        unit=unit,
        base=Split(x=x[cuts[0]].astype(dtype), y=y[cuts[0]]),
        stream=Split(x=moved[:n_stream], y=stream_y),
        test=Split(x=moved[n_stream:], y=y[cuts[2]]),
    )
