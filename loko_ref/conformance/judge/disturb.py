"""Hooks that move each quantity of a walk by a roundoff, or that move nothing.

One walk may move as many times over as there are seeds: every quantity is then `Stacked`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from loko_ref.arrays import Array

__all__ = [
    "DELTA",
    "SOLVED_WITH",
    "Apart",
    "Disturb",
    "DisturbInNorm",
    "DisturbScalars",
    "Stacked",
    "Still",
    "generators",
    "uniform",
]

DELTA = 2.0**-34
"""Relative size of the perturbations; their effect, linear in them, is scaled down to u."""

BLOCK = 2048
"""Random numbers drawn at once."""

SOLVED_WITH = ("S", "R", "R_used")
"""Matrices that a gain is solved with.  [TOL-4]"""


class Apart(TypeError):
    """A walk that takes one draw at a time: it asks for a number, or an array, of each."""


class Stacked(NDArrayOperatorsMixin):
    """Arrays of one shape, which a formula computes with as if they were one of them.

    What comes out of each is to the last bit what comes of it alone. A function that has no form
    for all of them here is called for one after the other.

    Parameters
    ----------
    each : array (number, *shape)
        The arrays.
    """

    __slots__ = ("each",)

    def __init__(self, each: Array) -> None:
        self.each = each

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of them."""
        return self.each.shape[1:]

    @property
    def ndim(self) -> int:
        """Of one of them."""
        return len(self.each.shape) - 1

    @property
    def size(self) -> int:
        """Of one of them."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """Of all of them."""
        return self.each.dtype

    @property
    def T(self) -> Stacked:
        """Each with its axes in reverse."""
        return Stacked(self.each.transpose(0, *range(self.ndim, 0, -1)))

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Stacked]:
        return (Stacked(self.each[:, k]) for k in range(len(self)))

    def __bool__(self) -> bool:
        first, *others = {bool(one) for one in self.each}
        if others:
            raise Apart("some of the arrays are true and some are not")
        return first

    def __float__(self) -> float:
        raise Apart("a number of each array")

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise Apart("arrays that stand for one are no array")

    def __getitem__(self, key: Any) -> Stacked:
        return Stacked(self.each[(slice(None), *(key if isinstance(key, tuple) else (key,)))])

    def __setitem__(self, key: Any, value: Any) -> None:
        key = key if isinstance(key, tuple) else (key,)
        self.each[(slice(None), *key)] = value.each if isinstance(value, Stacked) else value

    def reshape(self, *shape: Any) -> Stacked:
        """Give each another shape."""
        if len(shape) == 1 and not isinstance(shape[0], int):
            (shape,) = shape
        return Stacked(self.each.reshape(len(self.each), *shape))

    def astype(self, dtype: Any) -> Stacked:
        """Convert each."""
        return Stacked(self.each.astype(dtype))

    def copy(self) -> Stacked:
        """Copy each."""
        return Stacked(self.each.copy())

    def sum(self, axis: Any = None, keepdims: bool = False) -> Stacked:
        """Sum over axes."""
        return self._along("sum", axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Stacked:
        """Average over axes."""
        return self._along("mean", axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Stacked:
        """Return the largest along axes."""
        return self._along("max", axis, keepdims)

    def _along(self, name: str, axis: Any, keepdims: bool) -> Stacked:
        if isinstance(axis, int):
            return Stacked(getattr(self.each, name)(axis=_behind(axis), keepdims=keepdims))
        rows = [getattr(one, name)(axis=axis, keepdims=keepdims) for one in self.each]
        return Stacked(np.stack(rows))

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: tuple[Stacked] | None = None
    ) -> Any:
        """Compute elementwise, or a product of matrices."""
        if method != "__call__":
            return NotImplemented
        if out is not None:
            out[0].each[...] = ufunc(*inputs).each
            return out[0]
        if ufunc is not np.matmul:
            return Stacked(ufunc(*_aligned(inputs)))
        a, b = inputs
        lone = a.ndim == 1, b.ndim == 1
        a, b = _aligned((a[None] if lone[0] else a, b[:, None] if lone[1] else b))
        found = np.matmul(a, b)
        found = found[..., 0, :] if lone[0] else found
        return Stacked(found[..., 0] if lone[1] else found)

    def __array_function__(
        self, function: Any, _: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
    ) -> Any:
        """Call NumPy's function for all at once where there is a way, or for one after another."""
        if function in _AT_ONCE:
            return _AT_ONCE[function](*arguments, **keywords)
        found = [function(*_one(arguments, k), **_one(keywords, k)) for k in range(len(self.each))]
        if isinstance(found[0], list | tuple):
            return [Stacked(np.stack(part)) for part in zip(*found, strict=True)]
        return Stacked(np.stack(found))


_SHAPED = (Stacked, np.ndarray)


def _behind(axis: int) -> int:
    """Return where an axis of one array is in all of them."""
    return axis + 1 if axis >= 0 else axis


def _one(value: Any, k: int) -> Any:
    """Return arguments as they are for one of the arrays."""
    if isinstance(value, Stacked):
        return value.each[k]
    if isinstance(value, list | tuple):
        return type(value)(_one(item, k) for item in value)
    return {name: _one(a, k) for name, a in value.items()} if isinstance(value, dict) else value


def _aligned(values: Sequence[Any]) -> list[Any]:
    """Return arrays whose axes behind the first broadcast as those of one array each."""
    dims = [one.ndim if type(one) in _SHAPED else 0 for one in values]
    most = max(dims)
    return [
        one
        if type(one) is not Stacked
        else one.each
        if ndim == most
        else one.each.reshape(len(one.each), *(1,) * (most - ndim), *one.shape)
        for one, ndim in zip(values, dims, strict=True)
    ]


def _together(arrays: Sequence[Any]) -> list[Array]:
    """Return all arrays with a leading axis, those that are the same throughout repeated."""
    count = next(len(one.each) for one in arrays if isinstance(one, Stacked))
    return [
        one.each if isinstance(one, Stacked) else np.broadcast_to(one, (count, *np.shape(one)))
        for one in arrays
    ]


def _solved(a: Any, b: Any) -> Stacked:
    a, each = _together([a, b])
    found = np.linalg.solve(a, each[..., None] if b.ndim == 1 else each)
    return Stacked(found[..., 0] if b.ndim == 1 else found)


def _diagonal(a: Any) -> Stacked:
    if a.ndim == 2:
        return Stacked(np.diagonal(a.each, axis1=1, axis2=2))
    found = np.zeros((*a.each.shape, len(a)), a.dtype)
    at = np.arange(len(a))
    found[:, at, at] = a.each
    return Stacked(found)


_AT_ONCE: dict[Callable[..., Any], Callable[..., Any]] = {
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a: a.size,
    np.reshape: lambda a, shape: a.reshape(shape),
    np.copy: lambda a: a.copy(),
    np.swapaxes: lambda a, i, j: Stacked(np.swapaxes(a.each, _behind(i), _behind(j))),
    np.where: lambda *a: Stacked(np.where(*_aligned(a))),
    np.outer: lambda a, b: a.reshape(-1)[:, None] * b.reshape(-1),
    np.diag: _diagonal,
    np.stack: lambda a, axis=0: Stacked(np.stack(_together(a), axis=_behind(axis))),
    np.concatenate: lambda a, axis=0: Stacked(np.concatenate(_together(a), axis=_behind(axis))),
    np.linalg.solve: _solved,
    np.max: lambda a, axis=None, keepdims=False: (
        Stacked(np.max(a.each, axis=axis, keepdims=keepdims))
        if isinstance(axis, tuple) and max(axis) < 0
        else a.max(axis, keepdims)
    ),
    np.zeros_like: lambda a, shape=None, dtype=None: Stacked(
        np.zeros((len(a.each), *(a.shape if shape is None else shape)), dtype or a.dtype)
    ),
}
"""NumPy's function -> what it is for all arrays at once."""


def generators(seeds: Iterable[int]) -> list[np.random.Generator]:
    """Return a generator of random numbers for each seed."""
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def uniform(rngs: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Any:
    """Draw numbers of variance 1, uniform; of several generators stacked."""
    return _shaped(3**0.5 * (2 * np.stack([rng.random(shape) for rng in rngs]) - 1), shape)


def _shaped(each: Array, shape: tuple[int, ...]) -> Any:
    return Stacked(each.reshape(len(each), *shape)) if len(each) > 1 else each.reshape(shape)


class Disturb:
    """The hook that perturbs each quantity by DELTA, relative, by seeded random numbers.

    Parameters
    ----------
    *seeds : int
        One a walk; of several all quantities are stacked.
    """

    def __init__(self, *seeds: int) -> None:
        self._rngs = generators(seeds)
        self._ready = self._factors = np.empty((len(seeds), 0))
        self._at = 0
        self._alone: list[Disturb] = []

    @property
    def apart(self) -> Callable[..., Any] | None:
        """Calls ``function(hook, *arrays)`` for one walk after another; None of one walk alone."""
        return self._apart if len(self._rngs) > 1 else None

    def _apart(self, function: Callable[..., Any], *arrays: Any) -> Stacked:
        for k in range(0 if self._alone else len(self._rngs)):
            one = copy.copy(self)
            one._rngs, one._alone = self._rngs[k : k + 1], []
            one._ready, one._factors = self._ready[k : k + 1], self._factors[k : k + 1]
            self._alone.append(one)
        rows = [function(one, *_one(arrays, k)) for k, one in enumerate(self._alone)]
        return Stacked(np.stack(rows))

    def _take(self, count: int) -> tuple[Array, Array]:
        """Return the next moves, and factors; many are drawn at once: most arrays are small."""
        if self._alone:
            rows = [one._take(count) for one in self._alone]
            return np.concatenate([a for a, _ in rows]), np.concatenate([b for _, b in rows])
        at = self._at
        if self._ready.shape[1] - at < count:
            fresh = np.stack([rng.random(max(BLOCK, count)) for rng in self._rngs])
            moves = DELTA * 3**0.5 * (2 * fresh - 1)
            self._ready, at = np.concatenate([self._ready[:, at:], moves], axis=1), 0
            self._factors = 1 + self._ready
        self._at = at + count
        return self._ready[:, at : self._at], self._factors[:, at : self._at]

    def noise(self, shape: tuple[int, ...]) -> Any:
        """Draw numbers of variance DELTA^2, uniform."""
        return _shaped(self._take(math.prod(shape))[0], shape)

    def __call__(self, name: str, value: Any) -> Any:
        """Move a quantity."""
        shape = value.shape if type(value) in _SHAPED else np.shape(value)
        return value * _shaped(self._take(math.prod(shape))[1], shape)

    def inputs(self, value: Any, exact: tuple[str, ...] = (), name: str = "") -> Any:
        """Perturb every input except the exact ones."""
        if isinstance(value, Mapping):
            return {
                k: item if k in exact else self.inputs(item, name=k) for k, item in value.items()
            }
        return self(name, value)


class Still:
    """The hook that moves nothing, and notes whether there are numbers made of options alone."""

    scalars = False

    def __call__(self, name: str, value: Any) -> Any:
        """Return a quantity as it is."""
        return value

    def scalar(self, name: str, value: float) -> float:
        """Note one."""
        self.scalars = True
        return value


class DisturbScalars(Disturb):
    """Perturbs the numbers made of options alone, and nothing else.  [TOL-7]."""

    def __call__(self, name: str, value: Any) -> Any:
        """Return a quantity as it is."""
        return value

    def scalar(self, name: str, value: Any) -> Any:
        """Perturb one."""
        return value * (1 + self.noise(()))


class DisturbInNorm(Disturb):
    """Perturbs the matrices of a solve, and of an eigendecomposition, by their largest entry too.

    DELTA of it is the backward error: small relative to the matrix, not to each entry.
    """

    def __call__(self, name: str, value: Any) -> Any:
        """Move a quantity, a matrix that is solved with more."""
        moved = super().__call__(name, value)
        if name in (*SOLVED_WITH, "gram"):
            largest = np.max(np.abs(value), axis=(-2, -1), keepdims=True)
            moved = moved + self.noise(np.shape(value)) * largest
        return moved
