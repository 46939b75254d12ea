"""Numbers that a fitted one is compared with: options, sizes and what is commonly made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loko_ref.textbook.quantities import Values

__all__ = ["Number", "branches", "numbers"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Number:
    """A number in reach of a formula.

    Attributes
    ----------
    text : str
        What it is.
    at : callable
        From the quantities to its value.
    cost : float
        How far-fetched it is.
    used : tuple of str
        The options and sizes that it is made of.
    """

    text: str
    at: Callable[[Values], float]
    cost: float
    used: tuple[str, ...] = ()


def branches(layers: Any) -> Iterator[Mapping[str, Any]]:
    """Yield rank, scale and bias of each LoRA branch of a network."""
    for layer in layers:
        if layer.get("lora"):
            yield layer["lora"]
        yield from branches(layer.get("layers") or [layer[k] for k in "qkvo" if k in layer])


def _sizes(v: Mapping[str, Any]) -> dict[str, float]:
    """Return numbers among options and sizes, by name."""
    found = {
        name: float(a) for name, a in v.items()
        if isinstance(a, int | float | np.floating) and not isinstance(a, bool)
    }  # fmt: skip
    lora = next(branches(v.get("spec") or ()), {})
    found |= {k: float(lora[k]) for k in ("alpha", "r") if k in lora and k not in found}
    if np.ndim(v.get("A", 0)) == 2:
        found.setdefault("r", float(np.shape(v["A"])[0]))
    if np.ndim(v.get("y", 0)) == 2:
        found |= {"batch": float(np.shape(v["y"])[0]), "C": float(np.shape(v["y"])[1])}
    for name, key, axis in (("n", "theta", 0), ("m", "H", 0), ("m", "e", 0)):
        if np.ndim(v.get(key, 0)) > axis:
            found.setdefault(name, float(np.shape(v[key])[axis]))
    return found


def numbers(v: Values) -> list[Number]:
    """List the numbers in reach, the plainest first."""
    names = list(_sizes(v))

    def of(text: str, f: Callable[..., float], cost: float, *used: str) -> Number:
        def at(w: Values) -> float:
            sizes = _sizes(w)
            return float(f(*(sizes[name] for name in used)))

        return Number(text=text, at=at, cost=cost, used=used)

    found = []
    for a in names:
        found += [
            of(a, lambda x: x, 0.2, a),
            of(f"1 / {a}", lambda x: 1 / x, 0.25, a),
            of(f"(1 - {a})", lambda x: 1 - x, 0.35, a),
            of(f"sqrt({a})", lambda x: x**0.5, 0.35, a),
            of(f"1 / sqrt({a})", lambda x: x**-0.5, 0.4, a),
            of(f"{a}^2", lambda x: x * x, 0.4, a),
            of(f"1 / (1 - {a})", lambda x: 1 / (1 - x), 0.45, a),
        ]
        for b in names:
            if a != b:
                found.append(of(f"{a} / {b}", lambda x, y: x / y, 0.6, a, b))
                found.append(of(f"{a} (1 - {b})", lambda x, y: x * (1 - y), 0.7, a, b))
                if a < b:
                    found.append(of(f"{a} {b}", lambda x, y: x * y, 0.6, a, b))
                    found.append(of(f"(1 - {a} {b})", lambda x, y: 1 - x * y, 0.7, a, b))
    return [number for number in found if _finite(number, v)]


def _finite(number: Number, v: Any) -> bool:
    try:
        value = number.at(v)
    except (ArithmeticError, TypeError, ValueError):
        return False
    return isinstance(value, float) and bool(np.isfinite(value))
