"""The cases: inputs with an immutable id, each of which covers some of the known mistakes.

An id is ``operation/case/dtype``; it is never changed and never given to another case. Inputs are
drawn from a seed made of the id, uniform and from raw bits only, so that they do not depend on a
library's version. A case names the known mistakes that it covers by their ids: those that it is
there for, of all that it catches.

Shapes as in ``operations``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.values import FORMATS, check_choice
from loko_ref.conformance.cases.globs import matcher, nothing_matches
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.conformance.catalogue.registry import OPERATIONS, VERSION

DTYPES = FORMATS

OWN = "own"
"""Name of a case that is not the catalogue's: user-supplied inputs."""

RETIRED = ("lora.delta/untrained",)
"""Operation and name of cases that were withdrawn: never given to another one."""

ALIASES: dict[str, str] = {}
"""Operation and name that a case once had -> those that it has; none has been renamed yet."""


class Draw:
    """Numbers for one case, from a seed; each method returns float64."""

    def __init__(self, name: str) -> None:
        self._rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    def __call__(self, *shape: int, size: float = 1.0) -> Array:
        """Uniform on ±size."""
        return size * (2 * self._rng.random(shape) - 1)

    def positive(self, *shape: int, low: float = 0.25, high: float = 1.0) -> Array:
        """Log-uniform on [low, high]."""
        return np.asarray(low * (high / low) ** self._rng.random(shape))

    def spd(self, m: int, condition: float = 10.0) -> Array:
        """Symmetric positive definite (m, m), eigenvalues log-spaced from 1 to 1/condition."""
        Q = np.linalg.qr(self(m, m))[0]
        S = (Q * condition ** -np.linspace(0, 1, m)) @ Q.T
        return (S + S.T) / 2

    def one_hot(self, *shape: int, C: int) -> Array:
        """One-hot rows (*shape, C)."""
        return np.eye(C)[(self._rng.random(shape) * C).astype(int)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """What a case is made of, whatever its dtype."""

    # together the case's id but for the dtype
    operation: str
    name: str
    build: Callable[..., Mapping[str, Any]]  # `Draw, {dtype} -> inputs` in float64
    options: Mapping[str, Any]  # those that differ from their defaults
    # whether the inputs are float32 numbers in both dtypes: what is expected is then the same, and
    # the units of error differ by the unit roundoff alone
    shared: bool = False
    covers: tuple[str, ...] = ()  # ids of the known mistakes that it is there for
    text: str = ""  # what it is about, where it covers no known mistake by id


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One check's inputs and options.

    Attributes
    ----------
    id : str
        ``operation/case/dtype``.
    recipe : Recipe
        Where it comes from.
    dtype : str
        float64 or float32.
    inside : bool
        Whether the outputs of the network's layers are judged too.
    version : int
        Of the catalogue: later options are left out, which are at their defaults.
    """

    id: str
    recipe: Recipe
    dtype: str
    inside: bool = False
    version: int = VERSION

    @cached_property
    def operation(self) -> Operation:
        """Entry of the catalogue; with `inside`, the network's layers are among its outputs."""
        entry = OPERATIONS[self.recipe.operation]
        return entry.detailed(self.options) if self.inside else entry

    @cached_property
    def _detailed(self) -> Case:
        return replace(self, inside=True)

    def holding(self, names: Iterable[object]) -> Case:
        """Return the case as answered by outputs of these names: with its layers where they are."""
        more = set(names).difference(o.name for o in self.operation.outputs)
        if self.inside or self.operation.inside is None or not more:
            return self
        known = {o.name for o in self._detailed.operation.outputs}
        return self._detailed if more & known else self

    @property
    def covers(self) -> str:
        """Ids of the known mistakes that it is there for, or else what it is about."""
        return ", ".join(self.recipe.covers) or self.recipe.text

    @property
    def options(self) -> dict[str, Any]:
        """All options, defaults included."""
        entry = OPERATIONS[self.recipe.operation] if self.inside else self.operation
        defaults = {o.name: o.default for o in entry.options if o.since <= self.version}
        return {**defaults, **self.recipe.options}

    def newer(self, version: int) -> list[str]:
        """Name the inputs it gives, and the options it sets, that came after a catalogue's."""
        return self.operation.newer(self.inputs(), self.options, version)

    @property
    def exact(self) -> tuple[str, ...]:
        """Inputs that are whole numbers and have no roundoff: token ids."""
        spec = self.options.get("spec")
        return ("x", "evaluation") if spec and spec[0]["kind"] == "embedding" else ()

    @cached_property
    def drawn(self) -> Mapping[str, Any]:
        """The inputs before they are given the case's dtype, drawn once: not to be changed."""
        made = self.recipe.build(Draw(self.id.rsplit("/", 1)[0]), self.dtype)
        found: Mapping[str, Any] = _cast(made, "float32" if self.recipe.shared else self.dtype)
        return found

    def inputs(self) -> dict[str, Any]:
        """Fresh arrays of the case's dtype; ``weights`` is a dict of arrays."""
        return _cast(self.drawn, self.dtype)

    @cached_property
    def twin(self) -> Case:
        """Case of float64 with the same inputs: itself, unless inputs are shared."""
        if self.dtype == "float64" or not self.recipe.shared:
            return self
        for case in _by_recipe().get(self.recipe, ()):
            if case.dtype == "float64":
                return case._detailed if self.inside else case
        # of a recipe with the inputs of a file
        return replace(self, id=f"{self.id.rsplit('/', 1)[0]}/float64", dtype="float64")


def _cast(value: Any, dtype: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _cast(item, dtype) for name, item in value.items()}
    return np.array(value, dtype=dtype, order="C")


Build = TypeVar("Build", bound=Callable[..., Mapping[str, Any]])

_RECIPES: dict[str, Recipe] = {}


def define(
    operation: str, name: str, covers: str, *, text: str = "", shared: bool = False, **options: Any
) -> Callable[[Build], Build]:
    """Register the decorated ``(draw, dtype) -> inputs`` as a case.

    Parameters
    ----------
    operation, name : str
        Together the case's id but for the dtype.
    covers : str
        Ids of the known mistakes that it is there for, separated by spaces.
    text : str
        What it is about, where it covers none by id.
    shared : bool
        Whether the inputs are float32 numbers in both dtypes.
    **options
        The operation's options that differ from their defaults.
    """

    def register(build: Build) -> Build:
        key = f"{operation}/{name}"
        if key in _RECIPES or key in RETIRED:
            raise AssertionError(f"case {key} is defined twice")
        _RECIPES[key] = Recipe(
            operation=operation,
            name=name,
            build=build,
            options=options,
            shared=shared,
            covers=tuple(covers.split()),
            text=text,
        )
        return build

    return register


@cache
def _by_recipe() -> dict[Recipe, list[Case]]:
    found: dict[Recipe, list[Case]] = {}
    for case in all_cases():
        found.setdefault(case.recipe, []).append(case)
    return found


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of the catalogue, float64 before float32."""
    for part in ("filter", "model", "attention", "combinations", "variants", "edges", "lte"):
        import_module(f"loko_ref.conformance.cases.{part}")  # which registers its own

    def generate() -> Iterator[Case]:
        for operation in OPERATIONS:
            for recipe in _RECIPES.values():
                if recipe.operation == operation:
                    for dtype in DTYPES:
                        key = f"{operation}/{recipe.name}/{dtype}"
                        yield Case(id=key, recipe=recipe, dtype=dtype)

    return tuple(generate())


def current(key: str) -> str:
    """Return the id of a case by one that it once had; any other text as it is."""
    stem, slash, dtype = key.rpartition("/")
    return f"{ALIASES[stem]}{slash}{dtype}" if stem in ALIASES else ALIASES.get(key, key)


def select(
    only: str | None = None, dtype: str | None = None, *, argument: str = "only"
) -> list[Case]:
    """Cases whose id or operation matches a glob, of one dtype or all.

    Parameters
    ----------
    only : str, optional
        A glob, as :func:`loko_ref.conformance.cases.globs.matcher` takes it.
    dtype : {"float64", "float32"}, optional
        Of the cases.
    argument : str
        What the glob is called, for the error.

    Raises
    ------
    InputError
        If there is none.
    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    chosen = matcher(argument, current(only) if isinstance(only, str) else only)
    found = [
        case
        for case in all_cases()
        if (dtype is None or case.dtype == dtype)
        and (chosen(case.id) or chosen(case.operation.name))
    ]
    if not found:
        raise nothing_matches(argument, only, OPERATIONS, "loko-ref verify --list")
    return found
