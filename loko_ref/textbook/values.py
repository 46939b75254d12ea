"""What a plain formula reads: named inputs, options and quantities of one evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Formula", "Values", "identity"]


class Values(dict[str, Any]):
    """Named inputs, options and quantities of one evaluation; ``v.S`` reads ``v["S"]``.

    ``v.F`` is the table of formulas; ``v.keep(name, array)`` is called on each quantity as it
    arises and may replace it.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def put(self, name: str, formula: str | None = None) -> Any:
        """Compute a quantity by the formula of its name, or by `formula`, and keep it."""
        self[name] = self.keep(name, self.F[formula or name](self))
        return self[name]


Formula = Callable[..., Any]


def identity(name: str, value: Any) -> Any:
    """Keep a quantity as it is."""
    return value
