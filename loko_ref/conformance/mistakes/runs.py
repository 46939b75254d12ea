"""Mistakes of a run of LoKO: what a step's network is given or hands on is that of another step.

Shapes as in ``formulas``: theta (n,); x (batch, ...); z (batch, C); Z (m, n).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loko_ref.conformance.mistakes.registry import Changes, mutant
from loko_ref.textbook.network import network
from loko_ref.textbook.quantities import Values, evaluate, inner

__all__: list[str] = []

Kept = dict[str, Any]


def _of_steps(**changed: Callable[[Values, Any, Kept, Kept], Any]) -> Changes:
    """Change what steps of a run but the first are given or hand on.

    ``changed(v, value, before, first)`` has the values of the step before and of the first one.
    """

    def of(name: str) -> Callable[..., Any]:
        before: Kept = {}
        first: Kept = {}

        def formula(v: Values, value: Any) -> Any:
            if "t" not in v or "outputs" in v or "theta_post" in v:
                return value  # a step alone, a head's in LTE, the network once more for a residual
            now = {"theta": v.theta, "x": v.x, "value": value}
            if v.t == 1:
                before.clear()
                first.clear()
                first.update(now)
            found = changed[name](v, value, before or now, first)
            before.update(now)
            return found

        return formula

    return {f"network.{name}": of(name) for name in changed}


def _jacobian(v: Values, theta: Any, x: Any) -> Any:
    w = Values(v, keep=inner(v.keep), theta=theta, x=x, F={**v.F, "network.Z": lambda v, Z: Z})
    evaluate(w, network(v.F["layers"](v.spec), packed=True, train=v.get("train", "factors")))
    return w.Z


def _with_earlier_x(v: Values, theta: Any, before: Kept, first: Kept) -> Any:
    v["x"] = before["x"]
    return theta


mutant(
    "NETWORK-NOT-UPDATED",
    "the network never gets the new theta",
    "theta is updated and not written back: z and Z of every step are those of the first theta.",
    "write theta into the network before its next forward pass",
    _of_steps(theta=lambda v, theta, before, first: first["theta"]),
)
mutant(
    "NETWORK-STALE-THETA",
    "the network one theta behind",
    "z and Z are computed with the theta of the step before: it is written back too late.",
    "write theta into the network before its next forward pass",
    _of_steps(theta=lambda v, theta, before, first: before["theta"]),
)
mutant(
    "NETWORK-STALE-X",
    "the network's x one step behind",
    "z and Z are those of the x of the step before, y is this one's.",
    "x and y of one step together",
    _of_steps(theta=_with_earlier_x),
)
mutant(
    "NETWORK-STALE",
    "z and Z of the step before",
    "The step filters with the outputs and the Jacobian that the step before computed.",
    "compute z and Z anew at each step",
    _of_steps(
        z=lambda v, z, before, first: before["value"],
        Z=lambda v, Z, before, first: before["value"],
    ),
)
mutant(
    "OUTPUTS-STALE",
    "z of the step before",
    "The innovation is that of the outputs which the step before computed; Z is this one's.",
    "compute z anew at each step",
    _of_steps(z=lambda v, z, before, first: before["value"]),
)
mutant(
    "JACOBIAN-STALE",
    "Z of the step before",
    "The Jacobian is taken before the forward pass that belongs to it.",
    "compute Z anew at each step",
    _of_steps(Z=lambda v, Z, before, first: before["value"]),
)
mutant(
    "JACOBIAN-FIRST",
    "Z of the first step",
    "The Jacobian is computed once and kept.",
    "compute Z anew at each step",
    _of_steps(Z=lambda v, Z, before, first: first["value"]),
)
mutant(
    "JACOBIAN-STALE-THETA",
    "Z at the theta of the step before",
    "z is computed with the new theta, its derivative with the old one.",
    "Z = dz / dtheta at the theta that z has",
    _of_steps(Z=lambda v, Z, before, first: _jacobian(v, before["theta"], v.x)),
)
mutant(
    "JACOBIAN-FIRST-THETA",
    "Z at the first theta",
    "The network is linearised at the theta that the run began with, whatever was learned since.",
    "Z = dz / dtheta at the theta that z has",
    _of_steps(Z=lambda v, Z, before, first: _jacobian(v, first["theta"], v.x)),
)
