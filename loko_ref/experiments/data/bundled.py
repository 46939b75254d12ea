"""Real data that needs no download, split once by a seed: to train a base, to stream, to test.

Shapes: x (samples, i) floats, or (samples, t) whole numbers for a text; y (samples,) whole
numbers, or (samples, 1) floats for regression.

The base part keeps the data as they are; the stream and the test part are shifted, so that a
network trained on the base part meets a world that has changed. Features are scaled: pixels to
[0, 1], other features to mean 0 and standard deviation 1 of the base part (regression targets
likewise; ``Dataset.unit`` leads back).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref.checks.values import FORMATS, check_choice, check_range, check_seed, check_whole
from loko_ref.errors import InputError, extras

DATASETS = ("digits", "breast_cancer", "wine", "iris", "diabetes")
"""scikit-learn's bundled sets; ``diabetes`` is a regression, the others have classes."""

SHIFTS = ("rotate90", "permute", "invert", "noise", "none")
"""What happens to the features between the base and the stream."""

NOISE_SCALE = 0.3
"""Standard deviation of the shift ``noise``, in units of the scaled features."""

_FILES = {
    "digits": ("digits.csv.gz", 0),
    "breast_cancer": ("breast_cancer.csv", 1),
    "wine": ("wine_data.csv", 1),
    "iris": ("iris.csv", 1),
}
"""Name -> file of scikit-learn's, features and then the class in each row; rows of its head."""

_IMAGE = {"digits": (1, 8, 8)}
_DIGITS_BASE, _DIGITS_STREAM = 900, 600

Image = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Some samples."""

    x: NDArray[Any]  # (samples, i): scaled features
    y: NDArray[Any]  # labels (samples,) of int64, or scaled targets (samples, 1)

    def __len__(self) -> int:
        return int(self.x.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Three disjoint parts of one set."""

    # what it is and what was done to stream and test
    name: str
    shift: str
    seed: int  # what split it
    classes: int | None  # number of classes; None for regression
    unit: float  # regression: one unit of y in the target's own unit; else 1
    # unshifted; shifted; shifted
    base: Split
    stream: Split
    test: Split
    # channels, height, width of the pixels in x; None for what is no image
    image: Image | None = None
    # of a text: rows of the table of tokens, and the id of padding; else None
    vocabulary: int | None = None
    pad: int | None = None

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


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is requested of every loader.

    Parameters
    ----------
    name : str
        Which set.
    shift : str
        What happens to stream and test.
    seed : int
        Seeds the split, the shift and the label noise; >= 0.
    dtype : {"float64", "float32"}
        Of floating x and y.
    label_noise : float
        Share of the stream's labels exchanged for another class, in [0, 1).
    limit : int, optional
        At most so many samples in each of the three parts, >= 1.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    name: str
    shift: str = "none"
    seed: int = 0
    dtype: str = "float64"
    label_noise: float = 0.0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check all but name and shift, which each loader checks."""
        check_choice("dtype", self.dtype, FORMATS)
        check_range("label_noise", self.label_noise, low=0, high=1, high_open=True)
        check_seed("seed", self.seed)
        if self.limit is not None:
            check_whole("limit", self.limit)

    def rngs(self) -> list[np.random.Generator]:
        """Streams of the split, the shift, the noise: the split depends on neither other."""
        return [np.random.default_rng(s) for s in np.random.SeedSequence(self.seed).spawn(3)]


def _raw(name: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Features (float64) and targets as scikit-learn bundles them.

    Its files are read without it where it only parses them: its import takes longer than many runs.
    """
    feature = f"the data set '{name}'"
    if name in _FILES:
        file, head = _FILES[name]
        path = extras.folder("sklearn", feature) / "datasets" / "data" / file
        table = np.loadtxt(path, delimiter=",", skiprows=head)
        return table[:, :-1], table[:, -1]
    x, y = extras.load("sklearn.datasets", feature).load_diabetes(return_X_y=True)
    return np.asarray(x, np.float64), np.asarray(y)


def shift_features(
    rng: np.random.Generator, x: NDArray[Any], shift: str, *, image: Image | None = None
) -> NDArray[Any]:
    """Shift features; a new array, or `x` itself for ``none``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the permutation or the noise.
    x : array (samples, i)
        Scaled features.
    shift : {"rotate90", "permute", "invert", "noise", "none"}
        Square images a quarter turn counterclockwise; one permutation of the features for all
        samples; 1 - x for images, -x otherwise; x plus Gaussian noise of standard deviation 0.3;
        nothing.
    image : (int, int, int), optional
        Channels, height and width, i = channels * height * width; None where features are no
        pixels.

    Raises
    ------
    InputError
        If the name is unknown, or a rotation is requested for what is no square image.

    Examples
    --------
    >>> image = np.array([[1.0, 2.0, 3.0, 4.0]])  # 1 2 / 3 4
    >>> shift_features(np.random.default_rng(0), image, "rotate90", image=(1, 2, 2))
    array([[2., 4., 1., 3.]])
    """
    check_choice("shift", shift, SHIFTS)
    if shift == "rotate90":
        if image is None or image[1] != image[2]:
            what = "no pixels" if image is None else f"pixels {image[1]} x {image[2]}"
            raise InputError(
                "shift",
                "'rotate90'",
                f"permute, invert, noise or none for features that are {what}",
                "a shift of images, for a table; 'digits' is the set with images"
                if image is None
                else "images that are not square: turned, they fit no network",
            )
        images = x.reshape(-1, *image)
        return np.ascontiguousarray(np.rot90(images, axes=(2, 3))).reshape(x.shape)
    if shift == "permute":
        return np.ascontiguousarray(x[:, rng.permutation(x.shape[1])])
    if shift == "invert":
        return 1 - x if image is not None else -x
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


def assemble(
    request: Request,
    base: Split,
    stream: Split,
    test: Split,
    *,
    classes: int | None,
    move: Callable[[np.random.Generator, NDArray[Any]], NDArray[Any]],
    unit: float = 1.0,
    image: Image | None = None,
    vocabulary: int | None = None,
    pad: int | None = None,
) -> Dataset:
    """Shift stream and test, by one draw for both, and corrupt the stream's labels.

    Parameters
    ----------
    base, stream, test : Split
        Scaled and not yet shifted.
    classes, unit, image, vocabulary, pad
        As in :class:`Dataset`.
    move : callable
        ``move(rng, x)`` gives the shifted x.

    Raises
    ------
    InputError
        If a part is empty, there is one class alone, or label noise is requested for a regression.
    """
    _, shifting, noising = request.rngs()
    for what, part in (("base", base), ("stream", stream), ("test", test)):
        if not len(part):
            raise InputError(
                request.name,
                f"no sample for the {what} part",
                "at least one",
                "a file of a few rows",
            )
    if classes == 1:
        raise InputError(request.name, "one class", "two or more", "a cut file, or another column")
    moved = move(shifting, np.concatenate([stream.x, test.x]))
    y = stream.y
    if request.label_noise:
        if classes is None:
            raise InputError(
                "label_noise", request.label_noise, "0 for regression", "a set without classes"
            )
        y = _corrupt(noising, y, request.label_noise, classes)
    return Dataset(
        name=request.name,
        shift=request.shift,
        seed=request.seed,
        classes=classes,
        unit=unit,
        base=base,
        stream=Split(x=moved[: len(stream)], y=y),
        test=Split(x=moved[len(stream) :], y=test.y),
        image=image,
        vocabulary=vocabulary,
        pad=pad,
    )


def load(request: Request) -> Dataset:
    """Load, split, scale and shift one of ``DATASETS``.

    Digits are split 900 / 600 / 297, the others 1/2, 1/3, the rest.

    Raises
    ------
    MissingExtraError
        If scikit-learn is not installed.
    """
    name, dtype = request.name, request.dtype
    x, y = _raw(name)
    total = x.shape[0]
    n_base = _DIGITS_BASE if name == "digits" else total // 2
    n_stream = _DIGITS_STREAM if name == "digits" else total // 3
    order = request.rngs()[0].permutation(total)
    cuts = [part[: request.limit] for part in np.split(order, [n_base, n_base + n_stream])]

    image = _IMAGE.get(name)
    if image is not None:
        x = x / 16
    else:
        mean, std = x[cuts[0]].mean(axis=0), x[cuts[0]].std(axis=0)
        x = (x - mean) / np.where(std > 0, std, 1)
    classes: int | None = None
    unit = 1.0
    if name == "diabetes":
        unit = float(y[cuts[0]].std()) or 1.0  # a single sample scatters by nothing
        y = ((y - y[cuts[0]].mean()) / unit).astype(dtype)[:, None]
    else:
        classes = int(y.max()) + 1
        y = y.astype(np.int64)
    base, stream, test = (Split(x=x[cut].astype(dtype), y=y[cut]) for cut in cuts)
    return assemble(
        request,
        base,
        stream,
        test,
        classes=classes,
        move=lambda rng, later: shift_features(rng, later, request.shift, image=image),
        unit=unit,
        image=image,
    )
