"""The hook that passes on what was returned in place of what is computed.  [TOL-6]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.textbook.quantities import identity

__all__ = ["Given", "Hook"]

Hook = Callable[[str, Any], Any]


class Given:
    """The hook: notes what is computed, passes on what was returned.

    Parameters
    ----------
    case : Case
        The case.
    returned : mapping of str to array
        Outputs that take the place of what is computed.
    rows : bool
        Whether they are rows of a run, one a step.
    disturb : callable
        Moves each quantity by a roundoff; the identity for the centre.
    centre : Given, optional
        The undisturbed walk. What is not in `wrong` then moves as it does in the whole route.
    wrong : collection of str
        Outputs found wrong: used as they came, and moved by a roundoff alone.
    """

    def __init__(
        self,
        case: Case,
        returned: Mapping[str, Array],
        rows: bool,
        disturb: Hook = identity,
        centre: Given | None = None,
        wrong: frozenset[str] = frozenset(),
    ) -> None:
        self._returned, self._rows, self._disturb = returned, rows, disturb
        self._centre, self._wrong = centre, wrong
        self._outputs = set(expected(case))
        self._seen: Counter[str] = Counter()
        self.noted: dict[str, list[Array]] = {}

    def exact(self, name: str, value: Any) -> Any:
        """Pass on what was returned in place of a copy, which has no rounding error of its own."""
        if self._output(name) is None:
            return value
        disturb, self._disturb = self._disturb, identity
        passed = self(name, value)
        self._disturb = disturb
        return passed

    def watched(self, disturb: Hook) -> Given:
        """Return it with a hook that moves nothing."""
        self._disturb = disturb
        return self

    def scalar(self, name: str, value: float) -> float:
        """Move a number made of options alone."""
        moved: float = getattr(self._disturb, "scalar", identity)(name, value)
        return moved

    def _output(self, name: str) -> str | None:
        """Return the output that a quantity is."""
        name = name.removesuffix("_post")
        capital = {"p": "P", "p_pred": "P_pred"}.get(name, name)
        known = [one for one in (name, capital) if one in self._outputs]
        return known[0] if known else ("K" if name == "K" else None)

    def __call__(self, name: str, value: Any) -> Any:
        """Note a quantity; return what came in its place, where it did."""
        output = self._output(name)
        if output is None:
            return self._disturb(name, value)
        at, moved = self._seen[output], np.asarray(self._disturb(name, value))
        self._seen[output] += 1
        self.noted.setdefault(output, []).append(moved)
        came = self._came(output, at, np.shape(value))
        if came is None:
            return moved
        if output in self._wrong or self._centre is None:
            return self._disturb(name, came)
        return came + (moved - self._centre.noted[output][at])

    def _came(self, output: str, at: int, shape: tuple[int, ...]) -> Array | None:
        value = self._returned.get(output)
        if value is None or (at and not self._rows):
            return None
        if self._rows:
            value = value[at]
        return value.reshape(shape)

    def outputs(self, out: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output as it was computed, before what came took its place."""
        found = {}
        for name, value in out.items():
            rows = self.noted.get(name)
            if rows is None:
                found[name] = np.asarray(value)
            elif self._rows:
                found[name] = np.stack(rows).reshape(np.shape(value))
            else:
                found[name] = rows[0].reshape(np.shape(value))
        return found
