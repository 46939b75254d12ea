"""What code may make of an operand: the changes that are tried at a place, the plainest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.diagnose.search.edits import Change, Edit, Reach
from loko_ref.conformance.diagnose.search.instrument import RESULT, WRITTEN, instrument
from loko_ref.conformance.diagnose.search.numbers import Number
from loko_ref.conformance.diagnose.search.problem import ERRORS
from loko_ref.conformance.diagnose.search.sites import Call, Site, arrays_of
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.quantities import Values

__all__ = ["edits_at", "pools", "replaced", "rounded"]

Apply = Callable[[Any, Reach], Any]
Alone = Callable[[Any], Any]

FORMATS = (
    ("float32", 24, 0.4),
    ("bfloat16", 8, 0.5),
    ("an 11-bit significand (TF32 or half)", 11, 0.5),
)
"""Formats to round to: name, bits of significand, cost."""


def rounded(a: Any, bits: int) -> Any:
    """Round to so many bits of significand, to nearest even."""
    fraction, exponent = np.frexp(np.asarray(a, dtype=np.float64))
    return np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits)


def _of(f: Callable[[Any], Any]) -> Apply:
    """Return a change that reads the value alone."""
    return lambda x, reach: f(x)


def _with(f: Callable[[Any, Any], Any], had: Apply) -> Apply:
    """Return a change that reads something else in reach too."""
    return lambda x, reach: f(x, had(x, reach))


def _given(f: Callable[[Any], Any], had: Apply) -> Apply:
    """Return a change that reads something else in reach alone."""
    return lambda x, reach: f(had(x, reach))


def _along(f: Callable[[Any, Any], Any], axis: Any) -> Alone:
    return lambda a: f(a, axis)


def _named(name: str) -> Apply:
    return lambda x, reach: reach.v[name]


def _by(formula: Callable[[Any], Any]) -> Apply:
    return lambda x, reach: formula(Values({**reach.v, "F": FORMULA_TABLE}))


def _place(i: int) -> Apply:
    return lambda x, reach: reach.places[i]


def _places(f: Callable[[Any, Any], Any], i: int, j: int) -> Apply:
    return lambda x, reach: f(reach.places[i], reach.places[j])


def _number(number: Number) -> Apply:
    return lambda x, reach: number.at(reach.v)


ELEMENTWISE: tuple[Any, ...] = (
    *(np.exp, np.exp2, np.expm1, np.log, np.log2, np.log1p, np.tanh, np.sin, np.arctan),
    *(np.square, np.sqrt, np.cbrt, np.abs, np.sign, np.reciprocal),
)
RUNNING: tuple[Any, ...] = (np.cumsum, np.cumprod)
REDUCTIONS: tuple[Any, ...] = (
    *(np.sum, np.mean, np.max, np.min, np.prod, np.median, np.std, np.var),
    np.linalg.norm,
)
"""Functions that take a call's argument: of each element, along an axis, of a whole axis."""

ALONG: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("the mean of {x} over axis AXIS", lambda a, k: a.mean(k, keepdims=True) + 0 * a),
    ("the sum of {x} over axis AXIS", lambda a, k: a.sum(k, keepdims=True) + 0 * a),
    ("{x} less its mean over axis AXIS", lambda a, k: a - a.mean(k, keepdims=True)),
    ("{x} in reverse along axis AXIS", np.flip),
    ("{x} shifted by one along axis AXIS", lambda a, k: np.roll(a, 1, k)),
    ("{x} shifted by one back along axis AXIS", lambda a, k: np.roll(a, -1, k)),
    ("{x} normalised along axis AXIS",
     lambda a, k: a / np.sqrt((a * a).sum(k, keepdims=True))),
)  # fmt: skip
"""What is made of an array along one axis."""


def _axes(a: Array) -> Iterator[tuple[str, Alone]]:
    """Yield what is taken over an axis, or along it, and other orders of axes."""
    for axis in range(a.ndim):
        if a.shape[axis] > 1:
            for text, f in ALONG:
                yield text.replace("AXIS", str(axis)), _along(f, axis)
    if a.ndim > 1:
        yield "the mean of {x} over all", lambda a: a.mean() + 0 * a
    if a.ndim > 2 or (a.ndim == 2 and a.shape[0] != a.shape[1]):  # of a square, transposed
        yield (
            "{x} in another order of its elements (columns first)",
            lambda a: a.reshape(-1, order="F").reshape(a.shape),
        )
        yield (
            "{x} in another order of its elements (rows for columns)",
            lambda a: a.reshape(-1).reshape(a.shape, order="F"),
        )
    for order in permutations(range(a.ndim)):
        if order == tuple(range(a.ndim)):
            continue
        if tuple(a.shape[k] for k in order) == a.shape:
            text = "{x} transposed" if a.ndim == 2 else f"{{x}} with its axes in order {order}"
            yield text, _along(np.transpose, order)
        elif a.ndim > 2:
            yield (
                f"{{x}} with its axes in order {order}, read in the right shape",
                _along(lambda a, o: a.transpose(o).reshape(a.shape), order),
            )


def _alone(a: Array) -> Iterator[tuple[str, Alone, float]]:
    """Yield functions of an array alone."""
    yield "{x} left out", np.zeros_like, 0.3
    yield "{x} left out (1 in its place)", np.ones_like, 0.3
    yield "-{x}", np.negative, 0.3
    yield "{x} squared", np.square, 0.5
    yield "the square root of {x}", np.sqrt, 0.5
    yield "1 / {x}", lambda a: 1 / a, 0.5
    yield "1 / sqrt({x})", lambda a: 1 / np.sqrt(a), 0.8
    yield "|{x}|", np.abs, 0.6
    yield "exp {x}", np.exp, 0.8
    yield "log {x}", np.log, 0.8
    yield "{x} doubled", lambda a: 2 * a, 0.6
    yield "{x} halved", lambda a: a / 2, 0.6
    yield "1 - {x}", lambda a: 1 - a, 0.7
    yield "1 + {x}", lambda a: 1 + a, 0.7
    yield "the sign of {x}", np.sign, 0.7
    yield "{x} where positive, else 0", lambda a: np.maximum(a, 0), 0.7
    if a.ndim >= 2 and a.shape[-1] == a.shape[-2] > 1:
        eye = np.eye(a.shape[-1])
        yield "the diagonal of {x}", lambda a: a * eye, 0.4
        yield "{x} without its diagonal", lambda a: a * (1 - eye), 0.6
        yield "the lower triangle of {x}", np.tril, 0.6
        yield "the upper triangle of {x}", np.triu, 0.6
        yield "the symmetric part of {x}", lambda a: (a + np.swapaxes(a, -1, -2)) / 2, 0.6
        yield "{x} times itself", lambda a: a @ a, 0.6
        yield "the inverse of {x}", np.linalg.inv, 0.6
        yield "the Cholesky factor of {x}", np.linalg.cholesky, 0.7
        yield "I in place of {x}", lambda a: 0 * a + eye, 0.5
        yield "the trace of {x}, on the diagonal", lambda a: np.trace(a) * eye, 0.8
        yield (
            "the mean of {x}'s diagonal, on the diagonal",
            lambda a: np.trace(a) / len(a) * eye,
            0.8,
        )


def pools(call: Call) -> dict[str, tuple[Array | float, Apply, tuple[int, ...]]]:
    """Return what is in reach of a call by name: value, how it is had, places that it needs."""
    found: dict[str, tuple[Any, Apply, tuple[int, ...]]] = {}
    v = call.v
    for name, a in arrays_of(v).items():
        found[name] = (a, _named(name), ())
    if isinstance(v.get("F"), Mapping):
        for name, formula in FORMULA_TABLE.items():
            if name in (call.root, call.inner) or name.startswith(
                ("K", "theta", "lte", "adam", "sgd")
            ):
                continue
            try:
                with np.errstate(all="ignore"):
                    a = formula(Values({**v, "F": FORMULA_TABLE}))
            except ERRORS:
                continue
            if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size > 1:
                found.setdefault(name, (a, _by(formula), ()))
    return found


def _pair(left: Any, right: Any) -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Yield operations on two operands."""
    yield "{a} + {b}", lambda a, b: a + b
    yield "{a} - {b}", lambda a, b: a - b
    yield "{b} - {a}", lambda a, b: b - a
    if isinstance(left, int) and isinstance(right, int):  # sizes: another size, no product
        return
    yield "{a} o {b}, element by element", lambda a, b: a * b
    yield "{a} / {b}", lambda a, b: a / b
    yield "{b} / {a}", lambda a, b: b / a
    if np.ndim(left) and np.ndim(right):
        yield "{a} o {b} in every column", lambda a, b: (a * b)[..., None]
        yield "{a} {b}", lambda a, b: a @ b
        yield "{b} {a}", lambda a, b: b @ a
        yield "{a}' {b}", lambda a, b: np.swapaxes(a, -1, -2) @ b
        yield "{a} {b}'", lambda a, b: a @ np.swapaxes(b, -1, -2)


def _same(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b)


def _broadcasts(a: Any, b: Any) -> bool:
    """Return whether an array may stand where one of another shape does."""
    try:
        np.broadcast_shapes(np.shape(a), np.shape(b))
    except ValueError:
        return False
    return True


def _of_array(site: Site, pool: Any) -> Iterator[Change]:
    a = site.value
    for text, f, cost in _alone(a):
        yield Change(text=text, apply=_of(f), cost=cost)
    for text, f in _axes(a):
        yield Change(text=text, apply=_of(f), cost=0.8)
    for name, (b, had, needs) in pool.items():
        if not _same(a, b):
            if np.ndim(b) == 2 and np.shape(b)[::-1] == np.shape(a):
                yield Change(text=f"{name}' in place of {{x}}", cost=1.0, needs=needs,
                             apply=_with(lambda x, b: b.T, had))  # fmt: skip
            if _broadcasts(a, b):
                yield Change(text=f"{name} in place of {{x}}", apply=had, cost=0.9, needs=needs)
            continue
        yield Change(text=f"{name} in place of {{x}}", apply=had, cost=0.7, needs=needs)
        more: tuple[tuple[str, Callable[[Any, Any], Any], float], ...] = (
            ("{x} + NAME", lambda x, b: x + b, 1.1),
            ("{x} - NAME", lambda x, b: x - b, 1.1),
            ("{x} o NAME, element by element", lambda x, b: x * b, 1.2),
            ("{x} / NAME, element by element", lambda x, b: x / b, 1.2),
            ("NAME squared in place of {x}", lambda x, b: b * b, 1.2),
            ("the square root of NAME in place of {x}", lambda x, b: np.sqrt(b), 1.2),
            ("-NAME in place of {x}", lambda x, b: -b, 1.2),
            ("1 / NAME in place of {x}", lambda x, b: 1 / b, 1.2),
            ("the mean of {x} and NAME", lambda x, b: (x + b) / 2, 1.2),
        )
        for text, two, cost in more:
            yield Change(text=text.replace("NAME", name), cost=cost, needs=needs,
                         apply=_with(two, had))  # fmt: skip
        if np.ndim(b) >= 2 and np.shape(b)[-1] == np.shape(b)[-2] > 1:
            yield Change(text=f"the diagonal of {name} in place of {{x}}", cost=1.2, needs=needs,
                         apply=_with(lambda x, b: b * np.eye(b.shape[-1]), had))  # fmt: skip
            yield Change(text=f"{name}' in place of {{x}}", cost=1.2, needs=needs,
                         apply=_with(lambda x, b: np.swapaxes(b, -1, -2), had))  # fmt: skip
            yield Change(text=f"{name}'s diagonal added to {{x}}", cost=1.3, needs=needs,
                         apply=_with(lambda x, b: x + b * np.eye(b.shape[-1]), had))  # fmt: skip


def _of_number(site: Site, known: list[Number]) -> Iterator[Change]:
    a = float(site.value)
    whole = isinstance(site.value, int)
    index = 0.5 if site.text.startswith("index ") else 0.0  # a size first, then what it is of
    alone: tuple[tuple[str, Alone, float], ...] = (
        ("{x} left out (0 in its place)", lambda x: 0 * x, 0.3),
        ("-{x}", lambda x: -x, 0.3),
        ("{x} + 1", lambda x: x + 1, 0.4),
        ("{x} - 1", lambda x: x - 1, 0.4),
        ("1 in place of {x}", lambda x: 0 * x + 1, 0.4),
        ("2 in place of {x}", lambda x: 0 * x + 2, 0.6),
        ("{x} squared", lambda x: x * x, 0.5),
        ("{x} doubled", lambda x: 2 * x, 0.6),
        ("{x} halved", lambda x: x / 2, 0.6),
        *(() if whole else (
            ("1 - {x}", lambda x: 1 - x, 0.4),
            ("1 / {x}", lambda x: 1 / x, 0.4),
            ("the square root of {x}", lambda x: x**0.5, 0.5),
        )),
    )  # fmt: skip
    for text, f, cost in alone:
        yield Change(text=text, apply=_of(f), cost=cost + index)
    for number in known:
        if number.at(site.call.v) != a:
            yield Change(text=f"{number.text} in place of {{x}}", cost=number.cost + 0.4 + index,
                         apply=_number(number), number=number)  # fmt: skip
            if not whole and number.cost < 0.3:
                yield Change(text=f"{{x}} times {number.text}", cost=number.cost + 1.0,
                             apply=_with(lambda x, c: x * c, _number(number)),
                             number=number)  # fmt: skip


def _functions(a: Array, shape: tuple[int, ...]) -> Iterator[tuple[str, Alone]]:
    """Yield functions of an array that give another of a shape: element by element, or by axis."""
    if np.shape(a) == shape:
        for f in ELEMENTWISE:
            yield f.__name__, f
        for axis in range(np.ndim(a)):
            for g in RUNNING:
                yield f"{g.__name__} over axis {axis}", _along(g, axis)
    own = np.shape(a)
    for axis in (None, *range(len(own))):
        where = "over all" if axis is None else f"over axis {axis}"
        gone = () if axis is None else (*own[:axis], *own[axis + 1 :])
        kept = (1,) * len(own) if axis is None else (*own[:axis], 1, *own[axis + 1 :])
        for keep in (keep for keep, form in ((False, gone), (True, kept)) if form == shape):
            for h in REDUCTIONS:
                yield f"{h.__name__} {where}", partial(h, axis=axis, keepdims=keep)


def _of_parts(site: Site) -> Iterator[Change]:
    """Another operation on the same operands, one of them alone, or an argument for a call."""
    call, place = site.call, site.place
    if place == RESULT:
        return
    one = instrument(WRITTEN[call.inner]).places[place]
    places = instrument(WRITTEN[call.inner]).places
    inner = [i for i in one.inner if _is_value(call.places.get(i))]
    for i in inner:
        if np.shape(call.places[i]) == () and np.ndim(site.value):
            yield Change(text=f"`{places[i].text}` in place of {{x}}", cost=0.5, needs=(i,),
                         apply=_with(lambda x, c: 0 * x + c, _place(i)))  # fmt: skip
        elif _broadcasts(call.places[i], site.value):
            far = 0.0 if _same(call.places[i], site.value) else 0.3
            yield Change(text=f"`{places[i].text}` in place of {{x}}", cost=0.35 + far, needs=(i,),
                         apply=_place(i))  # fmt: skip
    if len(inner) == 1 and not one.operator and np.ndim(call.places[inner[0]]):
        (i,) = inner
        for text, function in _functions(call.places[i], np.shape(site.value)):
            text = f"{text} of `{places[i].text}` in place of {{x}}"
            yield Change(text=text, cost=0.6, needs=(i,), apply=_given(function, _place(i)))
    if len(inner) == 2:
        i, j = inner
        for text, both in _pair(call.places[i], call.places[j]):
            text = text.replace("{a}", f"`({places[i].text})`").replace(
                "{b}", f"`({places[j].text})`"
            )
            yield Change(text=f"{text} in place of {{x}}", cost=0.45, needs=(i, j),
                         apply=_places(both, i, j))  # fmt: skip


def _is_value(value: Any) -> bool:
    return isinstance(value, int | float | np.floating | np.ndarray)


def _history(site: Site) -> Iterator[Change]:
    place = site.place
    yield Change(text="{x} as it was a step earlier", cost=0.9, needs=(place,),
                 apply=lambda x, r: r.before.get(place, x))  # fmt: skip
    yield Change(text="{x} as it was a step earlier, 0 at first", cost=0.95, needs=(place,),
                 apply=lambda x, r: r.before.get(place, 0 * x))  # fmt: skip
    yield Change(text="{x} left out at the first step", cost=0.95, needs=(place,),
                 apply=lambda x, r: 0 * x if r.first else x)  # fmt: skip


def replaced(site: Site, name: str) -> Edit:
    """Return the change of a place that another quantity is put in."""
    change = Change(text=f"{name} in place of {{x}}", apply=_named(name), cost=0.4)
    return Edit(root=site.call.root, inner=site.call.inner, place=site.place, change=change)


def edits_at(
    site: Site, pool: dict[str, Any], known: list[Number], *, stepwise: bool
) -> Iterator[Edit]:
    """Yield the changes that are tried at a place."""
    call, value = site.call, site.value
    found: list[Change] = []
    if isinstance(value, bool | np.bool_) or np.asarray(value).dtype.kind == "b":
        found.append(Change(text="the other choice where {x}", cost=0.5,
                            apply=_of(np.logical_not)))  # fmt: skip
    elif isinstance(value, np.ndarray) and value.ndim:
        found += [*_of_array(site, pool), *_of_parts(site)]
        found += [
            Change(text=f"{number.text} in place of {{x}}", cost=number.cost + 0.6,
                   apply=_with(lambda x, c: 0 * x + c, _number(number)), number=number)
            for number in known if number.cost < 0.3
        ]  # fmt: skip
        if site.place == RESULT:
            found += [
                Change(text=f"{{x}} times {number.text}", cost=number.cost + 0.9,
                       apply=_with(lambda x, c: x * c, _number(number)), number=number)
                for number in known
            ]  # fmt: skip
    else:
        found += [*_of_number(site, known), *_of_parts(site)]
    if not isinstance(value, bool | np.bool_ | int):
        for name, bits, cost in FORMATS:
            found.append(Change(text=f"{{x}} rounded to {name}", cost=cost,
                                apply=_of(_along(rounded, bits))))  # fmt: skip
    if stepwise:
        found += _history(site)
    for change in found:
        yield Edit(root=call.root, inner=call.inner, place=site.place, change=change)
