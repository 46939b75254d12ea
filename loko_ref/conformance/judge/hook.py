"""The hook that passes on what was returned in place of what is computed.  [TOL-6]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case
from loko_ref.conformance.judge.tolerance import _inputs, expected
from loko_ref.textbook.loko import dataflow, output_name
from loko_ref.textbook.lte import OF_HEAD, merge, run, state_names
from loko_ref.textbook.network import network
from loko_ref.textbook.quantities import Quantity, identity

__all__ = ["Given", "Hook", "flow_of", "given", "output_names", "started", "state"]

Hook = Callable[[str, Any], Any]


def output_names(case: Case) -> set[str]:
    """Return the names of a case's outputs.

    Those of a step that is cut from a run by its options alone: it begins at what came, which the
    oracle may refuse.

    Parameters
    ----------
    case : Case
        The case.
    """
    if "[" not in case.recipe.name or case.operation.name != "loko.step":
        return set(expected(case))
    o = case.options
    flow = dataflow({k: a for k, a in o.items() if k != "spec"})
    names = {output_name(q.name, o) for q in flow if not q.hidden} | {"yhat"}
    return names if "W" in _inputs(case) else names - {"WW"}


class Given:
    """The hook: notes what is computed, passes on what was returned.

    Parameters
    ----------
    case : Case
        The case.
    returned : mapping of str to array
        Outputs that take the place of what is computed; of a run as rows, one a step.
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
        disturb: Hook = identity,
        centre: Given | None = None,
        wrong: frozenset[str] = frozenset(),
    ) -> None:
        self._returned, self._disturb = returned, disturb
        self._centre, self._wrong = centre, wrong
        self._outputs = output_names(case)
        self.noted: dict[str, list[Array]] = {}

    def exact(self, name: str, value: Any) -> Any:
        """Pass on what was returned in place of a copy, which has no rounding error of its own."""
        output = self._output(name)
        return value if output is None else self._passed(name, output, value, identity)

    def watched(self, disturb: Hook) -> Given:
        """Return it with a hook that moves nothing."""
        self._disturb = disturb
        return self

    def scalar(self, name: str, value: float) -> float:
        """Move a number made of options alone."""
        moved: float = getattr(self._disturb, "scalar", identity)(name, value)
        return moved

    @property
    def apart(self) -> Any:
        """How what iterates is computed of many walks; nothing in it is an output."""
        return getattr(self._disturb, "apart", None)

    def inner(self, head: int | None) -> Hook:
        """Return the hook for what has the names of a step's quantities and is none of them."""

        def hook(name: str, value: Any) -> Any:
            return self._disturb(name, value)

        hook.scalar = self.scalar  # type: ignore[attr-defined]
        return hook

    def _output(self, name: str) -> str | None:
        """Return the output that a quantity is, or that it is a copy of."""
        name = name.removesuffix("_post")
        copied = f"z.{name.removeprefix('seen.')}"  # an activation's slope is taken at its output
        capital = {"p": "P", "p_pred": "P_pred"}.get(name, name)
        known = [one for one in (name, capital, copied) if one in self._outputs]
        return known[0] if known else ("K" if name == "K" else None)

    def __call__(self, name: str, value: Any) -> Any:
        """Note a quantity; return what came in its place, where it did."""
        output = self._output(name)
        if output is None:
            return self._disturb(name, value)
        return self._passed(name, output, value, self._disturb)

    def _passed(self, name: str, output: str, value: Any, disturb: Hook) -> Any:
        """Note a part of an output, or a copy of one; return what came in its place."""
        key = name if name.startswith("seen.") else output
        moved = disturb(name, value)
        at = len(self.noted.setdefault(key, []))
        self.noted[key].append(moved)
        came = self._came(output, at, np.shape(value))
        if came is None:
            return moved
        if output in self._wrong or self._centre is None:
            return disturb(name, came)
        return came + (moved - self._centre.noted[key][at])

    def _came(self, output: str, at: int, shape: tuple[int, ...]) -> Array | None:
        """Return what came in place of an output's part: of a run's step, or of a head."""
        value = self._returned.get(output)
        return None if value is None else value.reshape(-1, *shape)[at]

    def outputs(self, out: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output as it was computed, before what came took its place."""
        found = {}
        for name, value in out.items():
            parts = self.noted.get(name)
            found[name] = value if parts is None else np.stack(parts).reshape(np.shape(value))
        return found


class GivenHeads(Given):
    """The hook of LTE: an output is one of the heads' quantities, or is computed from their state.

    Of the latter the hook hears by `exact`; what is on the way to them comes to the hook itself.
    """

    @cached_property
    def _of_heads(self) -> dict[str, str]:
        """A head's quantity -> the output: where nothing is merged, its step leaves the state."""
        stepped = {own: name for name, own in OF_HEAD.items()}
        found = {
            own: name if name in self._outputs else name.removesuffix("_step")
            for own, name in stepped.items()
        }
        return {own: name for own, name in found.items() if name in self._outputs} | {"K": "K"}

    def inner(self, head: int | None) -> Hook:
        """Return the hook of one head's quantities, or of what is none."""
        if head is None:
            return super().inner(None)

        def hook(name: str, value: Any) -> Any:
            output = self._of_heads.get(name)
            if output is None:
                return self._disturb(name, value)
            return self._passed(name, output, value, self._disturb)

        def exact(name: str, value: Any) -> Any:
            return hook(name, value) if name in self._of_heads else value

        hook.scalar, hook.exact = self.scalar, exact  # type: ignore[attr-defined]
        hook.inner = super().inner  # type: ignore[attr-defined]
        return hook

    def exact(self, name: str, value: Any) -> Any:
        """Pass on what was returned in place of a quantity that is no copy of the heads'."""
        if name not in self._outputs or name in self._of_heads.values():
            return value
        return self._passed(name, name, value, self._disturb)

    def __call__(self, name: str, value: Any) -> Any:
        """Move what is on the way."""
        return self._disturb(name, value)


def given(
    case: Case,
    returned: Mapping[str, Array],
    disturb: Hook = identity,
    centre: Given | None = None,
    wrong: frozenset[str] = frozenset(),
) -> Given:
    """Return the hook of a case that passes on what was returned; see `Given`."""
    kind = GivenHeads if case.operation.name == "lte.run" else Given
    return kind(case, returned, disturb, centre, wrong)


def flow_of(case: Case) -> tuple[Quantity, ...]:
    """List the quantities of a case's step by the table; none where outputs say it themselves."""
    name, o = case.operation.name, case.options
    if name.startswith("loko."):
        return dataflow({k: a for k, a in o.items() if k != "spec" or case.inside})
    if name.startswith("model."):
        return network(o["spec"], packed=False, train=o.get("train", "factors"))
    if name == "lte.run":
        return run(o, "evaluation" in _inputs(case))
    return merge(o) if name == "lte.merge" else ()


def state(case: Case) -> list[str]:
    """Name the outputs of a run that the next step starts from."""
    if case.operation.name == "lte.run":
        return state_names(case.options)
    named = {"W": "WW"}
    return [named.get(k, k) for k in ("theta", "p", "P", "U", "W", "R") if k in _inputs(case)]


def started(inputs: Mapping[str, Any], state: Mapping[str, Array]) -> dict[str, Any]:
    """Return a step's inputs from another state; W is a factor of as many columns of its W W'."""
    found = {**inputs, **state}
    if "WW" in state:
        L, (sizes, V) = inputs["W"].shape[1], np.linalg.eigh(found.pop("WW"))
        found["W"] = (V * np.sqrt(np.maximum(sizes, 0)))[:, len(V) - L :]
    return found
