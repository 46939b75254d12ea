"""What LTE carries from step to step, how it begins, and its fingerprint.

Shapes: theta (own heads, n); merged (heads, n); W (o, i); copies (own heads, o, i);
slots (own heads, n); p (own heads, n); R (own heads, m, m) with m = batch * C.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import numpy as np

from loko_ref import loko, optimizers
from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks.fields import digest
from loko_ref.checks.signatures import takes
from loko_ref.checks.values import check_finite, check_floats, check_shape
from loko_ref.errors import InputError
from loko_ref.lte.config import Loko, LteConfig
from loko_ref.lte.heads import Heads
from loko_ref.lte.team import ALONE, Team, span
from loko_ref.network import lora
from loko_ref.network.model import Model, init_model
from loko_ref.network.spec import linears, map_linears


@dataclass(frozen=True, kw_only=True, eq=False)
class LteState:
    """What the next step needs, for the heads that this process holds.

    Attributes
    ----------
    weights : mapping of str to array
        Every W, b, norm and table as last merged; a replica's is the mean of its copies.
    base : mapping of str to array
        The same at the last reset (the initial ones before it), from which W telescopes.  [LTE-5]
    theta : array (own heads, n)
        Trainables.
    merged : array (heads, n) or None
        All heads' trainables as last merged; None before the first merge and after a reset.
        In ``mhlora``: all heads' trainables now.
    copies : mapping of str to array (own heads, o, i) or (own heads, o)
        Weight copies; empty with a shared weight.
    slots : mapping of str to array (own heads, n)
        Optimizer state: momenta; or LoKO's ``p``.
    R : array (own heads, m, m) or None
        LoKO's noise estimate.
    first : int
        Number of the first head held.
    step, merges, optimizer_step : int
        Steps and merges done; steps since the optimizer's state began.
    """

    weights: Mapping[str, Array]
    base: Mapping[str, Array]
    theta: Array
    merged: Array | None = None
    copies: Mapping[str, Array] = field(default_factory=dict)
    slots: Mapping[str, Array] = field(default_factory=dict)
    R: Array | None = None
    first: int = 0
    step: int = 0
    merges: int = 0
    optimizer_step: int = 0

    @property
    def own(self) -> slice:
        """The heads held, as a slice of all heads."""
        return slice(self.first, self.first + self.theta.shape[0])


def draw_weights(config: LteConfig, dtype: str = "float64") -> dict[str, np.ndarray]:
    """Draw W (He, uniform), b = 0, and so on, from the seed: the same for every mode."""
    rng = np.random.default_rng([config.seed, 0])
    return dict(init_model(rng, without_lora(config), dtype=dtype).weights)


def without_lora(config: LteConfig) -> list[dict[str, Any]]:
    """Return the spec of the network that is left when all branches are merged."""
    return map_linears(config.spec, lambda layer: {k: v for k, v in layer.items() if k != "lora"})


def draw_factors(
    config: LteConfig, head: int, redraw: int, dtype: Any = "float64"
) -> dict[str, np.ndarray]:
    """Draw a head's factors at its `redraw`-th drawing (0: the initial one).  [LORA-1, LTE-6].

    The numbers depend on seed, head and `redraw` alone, so that every split over processes, and
    every resumed run, draws the same.
    """
    rng = np.random.default_rng([config.seed, 1, redraw, head])
    drawn: dict[str, np.ndarray] = {}
    for layer in linears(config.spec):
        if layer.get("lora"):
            site = layer["lora"]
            factors = lora.init_factors(
                rng,
                layer["in"],
                layer["out"],
                site["r"],
                init=config.init,
                bias=site.get("bias", False),
                dtype=dtype,
            )
            drawn |= {f"{layer['name']}.{k}": v for k, v in factors.items()}
    return drawn


@takes(config=LteConfig, weights=(Mapping, NoneType), factors=(Mapping, NoneType))
def init(
    config: LteConfig,
    *,
    weights: Mapping[str, Array] | None = None,
    factors: Mapping[str, Array] | None = None,
    batch: int = 1,
    dtype: str = "float64",
    team: Team = ALONE,
    like: Array | None = None,
) -> LteState:
    """State before the first step.  [LTE-1].

    Parameters
    ----------
    config : LteConfig
        The choices.
    weights : mapping of str to array, optional
        Initial ``layer.W``, ``layer.b`` and so on; drawn from the seed by default.
    factors : mapping of str to array (heads, ...), optional
        Initial ``layer.A``, ``layer.B``, ...; drawn from the seed by default.
    batch : int
        Samples that one head sees in a step (LoKO's R is (batch C, batch C)).
    dtype : {"float64", "float32"}
        Of what is drawn.
    team : Team
        Says which heads are held here.
    like : array, optional
        Gives the library of what is drawn; NumPy by default.

    Raises
    ------
    InputError
        If there are more processes than heads, or an array is missing, misshapen or not finite.
    """
    if team.size > config.heads:
        raise InputError(
            "heads",
            f"{config.heads} heads on {team.size} ranks",
            "at least as many heads as ranks",
            "mpiexec -n larger than --heads: a rank would hold no head",
        )
    own = span(config.heads, team.rank, team.size)
    everyone = slice(0, config.heads) if config.mode == "mhlora" else own
    held = dict(weights if weights is not None else draw_weights(config, dtype))
    if weights is None and like is not None:
        held = {name: asarray(value, like) for name, value in held.items()}
    merged_model(config, held)  # checks names, shapes and numbers
    like = next(iter(held.values()))
    xp = namespace(like)
    layout = config.layout
    theta = xp.zeros((everyone.stop - everyone.start, layout.n), dtype=like.dtype)
    if factors is not None:
        wanted = {k for k in layout.names if layout.sites[k.rsplit(".", 1)[0]].lora}
        if factors.keys() != wanted:
            raise InputError(
                "factors", f"{sorted(factors)}", f"exactly {sorted(wanted)}", "another naming"
            )
        check_floats(weights=like, **factors)
        check_finite(**factors)
    for row, head in enumerate(range(everyone.start, everyone.stop)):
        drawn = draw_factors(config, head, 0, like.dtype) if factors is None else {}
        for name in layout.names:
            target = layout.take(theta, name)
            if name in held:
                target[row] = held[name]
            elif factors is not None:
                check_shape(name, factors[name], (config.heads, *target.shape[1:]))
                target[row] = factors[name][head]
            else:
                target[row] = asarray(drawn[name], like)
    merged = None
    if config.mode == "mhlora":  # every process begins with all heads' factors, drawn or given
        merged, theta = theta, theta[own]
    copies = fresh_copies(config, held, theta.shape[0]) if config.realisation == "copies" else {}
    slots, R = fresh_optimizer(config, theta, batch)
    return LteState(
        weights=held,
        base=held,
        theta=theta,
        merged=merged,
        copies=copies,
        slots=slots,
        R=R,
        first=own.start,
    )


def fresh_copies(config: LteConfig, weights: Mapping[str, Array], own: int) -> dict[str, Array]:
    """One copy of W (and of b where the branch has biases) a head."""
    copies = {}
    for site in config.layout.sites.values():
        if not site.lora:
            continue
        for key in ("W", "b") if "bB" in site.parts else ("W",):
            value = weights[f"{site.name}.{key}"]
            copies[f"{site.name}.{key}"] = namespace(value).stack([value] * own)
    return copies


def fresh_optimizer(
    config: LteConfig, theta: Array, batch: int
) -> tuple[dict[str, Array], Array | None]:
    """Optimizer state before its first step: slots of zeros; LoKO's p0 and R_0 = r0 I."""
    if isinstance(config.optimizer, Loko):
        xp = namespace(theta)
        initial = [loko.init_at(config.filter(theta.dtype), row, batch) for row in theta]
        R = None if initial[0].R is None else xp.stack([s.R for s in initial])
        names = ("p",) if initial[0].U is None else ("U", "W")
        return {k: xp.stack([getattr(s, k) for s in initial]) for k in names}, R
    slots = optimizers.init(theta.reshape(-1), config.optimizer).slots
    return {k: v.reshape(theta.shape) for k, v in slots.items()}, None


def heads_of(config: LteConfig, state: LteState) -> Heads:
    """Pick what the forward pass reads of a state."""
    if config.mode == "mhlora":
        assert state.merged is not None
        return Heads(theta=state.merged, merged=None, weights=state.weights)
    shared = config.realisation == "shared"
    merged = state.merged[state.own] if shared and state.merged is not None else None
    weights = {**state.weights, **state.copies}
    return Heads(theta=state.theta, merged=merged, weights=weights)


@takes(config=LteConfig, weights=Mapping)
def merged_model(config: LteConfig, weights: Mapping[str, Array]) -> Model:
    """Plain network of merged weights, for evaluation and as a start elsewhere."""
    return Model(spec=without_lora(config), weights=dict(weights), trainable=tuple(weights))


def shared_arrays(config: LteConfig, state: LteState) -> dict[str, Array]:
    """Arrays that every rank holds alike, in the order of the fingerprint.

    ``weights.<layer>.W``, ``weights.<layer>.b`` in model order, then ``base.`` likewise.
    """
    found = {f"weights.{k}": state.weights[k] for k in config.frozen}
    return found | {f"base.{k}": state.base[k] for k in config.frozen}


def head_arrays(config: LteConfig, state: LteState, row: int) -> dict[str, Array]:
    """Arrays of one head, in the order of the fingerprint.

    ``theta``; ``merged`` (where there was a merge); ``copies.<layer>.W`` in model order;
    ``slots.<name>`` by name (LoKO's p among them); ``R``.
    """
    found: dict[str, Array] = {"theta": state.theta[row]}
    if state.merged is not None and config.mode == "lte":
        found["merged"] = state.merged[state.first + row]
    found |= {f"copies.{k}": v[row] for k, v in state.copies.items()}
    found |= {f"slots.{k}": state.slots[k][row] for k in sorted(state.slots)}
    if state.R is not None:
        found["R"] = state.R[row]
    return found


@takes(config=LteConfig, state=LteState)
def fingerprint(config: LteConfig, state: LteState, team: Team = ALONE) -> str:
    """SHA-256 of the whole state: every weight, factor, optimizer state and counter.  [LTE-9].

    The hash of these lines: ``loko-ref/lte-state/1``; ``step S merges M optimizer_step K``;
    ``shared D`` with D the digest of :func:`shared_arrays`; ``head H D`` for each head in order
    with D the digest of :func:`head_arrays`. A digest is the SHA-256 over, array by array, a line
    ``name dtype [shape]`` and the little-endian bytes in C order. Only digests travel.
    """
    own = [digest(head_arrays(config, state, row)) for row in range(state.theta.shape[0])]
    heads = [d for part in team.collect(own) for d in part]
    counters = (state.step, state.merges, state.optimizer_step)
    return combine(counters, digest(shared_arrays(config, state)), heads)


def combine(counters: tuple[int, int, int], shared: str, heads: Sequence[str]) -> str:
    """Put a fingerprint together: from counters, and the digests of shared arrays and heads."""
    step, merges, optimizer_step = counters
    lines = [
        "loko-ref/lte-state/1",
        f"step {step} merges {merges} optimizer_step {optimizer_step}",
        f"shared {shared}",
        *(f"head {head} {own}" for head, own in enumerate(heads)),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
