"""What a merge and a reset do to weights, factors and optimizer states.

Shapes: W (o, i); copies (own heads, o, i); A (heads, r, i); B (heads, o, r); bA (heads, r);
bB (heads, o); theta (own heads, n); merged (heads, n).

``delta[head] = scale B[head] A[head]``; a merge adds the mean of delta - delta' over the heads,
delta' the one last merged, as one product of the concatenated factors in head order: every rank
makes the same BLAS call on the same arrays.  [LTE-5, LTE-9]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks.signatures import takes
from loko_ref.checks.values import check_shape
from loko_ref.lte.config import LteConfig
from loko_ref.lte.layout import Site, stack_heads
from loko_ref.lte.state import LteState, draw_factors, fresh_copies, fresh_optimizer
from loko_ref.lte.team import ALONE, Team


def merge_weights(
    config: LteConfig,
    site: Site,
    W: Array,
    b: Array | None,
    now: Mapping[str, Array],
    old: Mapping[str, Array] | None,
) -> tuple[Array, Array | None]:
    """``W + mean(delta - delta')`` as one product of the concatenated factors.  [LTE-5, LTE-7].

    Parameters
    ----------
    W, b : array (o, i), (o,)
        What is added to; b is None for a layer without bias.
    now, old : mapping of str to array (heads, ...)
        ``A``, ``B`` and perhaps ``bA``, ``bB``: the factors now, and as last merged (None: 0).

    Returns
    -------
    W : array (o, i)
    b : array (o,) or None
        With ``mean(scale(B bA + bB))`` added where the branch has biases.
    """
    s = site.scale_beside(W) / config.heads
    stacked = stack_heads(now)
    B, A = s * stacked["B"], stacked["A"]  # (o, heads r), (heads r, i)
    if old is not None:
        xp, stacked = namespace(W), stack_heads(old)
        B = xp.concatenate([B, -s * stacked["B"]], axis=1)
        A = xp.concatenate([A, stacked["A"]], axis=0)
    new = B @ A  # (o, i)
    new += W
    if "bB" in now:
        assert b is not None
        b = b + s * _bias(now)
        if old is not None:
            b = b - s * _bias(old)
    return new, b


def _bias(p: Mapping[str, Array]) -> Array:
    """``sum_head(B bA + bB)``, (o,).  [LTE-7]."""
    return ((p["B"] @ p["bA"][..., None])[..., 0] + p["bB"]).sum(axis=0)


@takes(config=LteConfig, state=LteState)
def merge(config: LteConfig, state: LteState, team: Team = ALONE, *, batch: int = 1) -> LteState:
    """Gather every head's factors, form W, and keep what each head needs to see W.  [LTE-5].

    The merge alone: a reset is :func:`reset`.

    Parameters
    ----------
    config, state
        The choices; untouched.
    team : Team
        Brings the other heads' rows: the only arrays that travel.
    batch : int
        Samples of a head in a step, for a filter that is begun anew.
    """
    layout = config.layout
    rows = team.gather(state.theta, config.heads)  # (heads, n)
    weights = dict(state.weights)
    theta = state.theta
    if layout.factors < layout.n:  # replicas are about to change
        theta = theta.copy()
    telescoped = config.merging == "telescoped"
    for site in layout.sites.values():
        now = layout.site(rows, site.name)
        if not site.lora:  # replicas: the mean of the copies, in head order  [LTE-7]
            for key, value in now.items():
                mean = value.sum(axis=0) / config.heads
                weights[f"{site.name}.{key}"] = mean
                layout.take(theta, f"{site.name}.{key}")[...] = mean
            continue
        source = state.base if telescoped else state.weights
        old = None
        if not telescoped and state.merged is not None:
            old = layout.site(state.merged, site.name)
        W, b = merge_weights(
            config, site, source[f"{site.name}.W"], source.get(f"{site.name}.b"), now, old
        )
        weights[f"{site.name}.W"] = W
        if b is not None:
            weights[f"{site.name}.b"] = b
    slots, R, count = _after_merge(config, state, theta, batch)
    return replace(
        state,
        weights=weights,
        theta=theta,
        merged=rows,
        copies=_copies_after(config, state, weights, theta),
        slots=slots,
        R=R,
        optimizer_step=count,
        merges=state.merges + 1,
    )


def _copies_after(
    config: LteConfig, state: LteState, weights: Mapping[str, Array], theta: Array
) -> dict[str, Array]:
    """``W_copy = W - delta`` (and ``b_copy = b - delta_b``) for the heads held.  [LTE-4]."""
    copies: dict[str, Array] = {}
    for name in state.copies:
        layer, key = name.rsplit(".", 1)
        site = config.layout.sites[layer]
        p, scale = config.layout.site(theta, layer), site.scale_beside(theta)
        if key == "W":
            copies[name] = weights[name] - scale * (p["B"] @ p["A"])
        else:
            shift = (p["B"] @ p["bA"][..., None])[..., 0] + p["bB"]
            copies[name] = weights[name] - scale * shift
    return copies


def _after_merge(
    config: LteConfig, state: LteState, theta: Array, batch: int
) -> tuple[Mapping[str, Array], Array | None, int]:
    """Optimizer state after a merge: kept, begun anew, or p changed by name.  [LTE-10]."""
    if config.optimizer_state == "reset":
        slots, R = fresh_optimizer(config, theta, batch)
        return slots, R, 0
    if config.filter_merge == "shrink":
        return {"p": state.slots["p"] / config.heads}, state.R, state.optimizer_step
    return state.slots, state.R, state.optimizer_step


@takes(config=LteConfig, state=LteState)
def reset(
    config: LteConfig, state: LteState, redraw: Mapping[str, Array] | None = None, *, batch: int = 1
) -> LteState:
    """Reset after a merge: B = 0, A kept or redrawn, and nothing remembers the merge.  [LTE-6].

    Parameters
    ----------
    config, state
        The choices; a state just merged, untouched.
    redraw : mapping of str to array (heads, r, i), optional
        ``layer.A`` of every site, for ``reset="AB"``; drawn from the seed by default.
    batch : int
        Samples of a head in a step.
    """
    layout = config.layout
    theta = state.theta.copy()
    hit = namespace(theta).zeros_like(theta)  # 1 where an entry is reset
    for site in layout.sites.values():
        if not site.lora:
            continue
        for key in ("A", "B", "bA", "bB") if config.reset == "AB" else ("B", "bB"):
            if key not in site.parts:
                continue
            name = f"{site.name}.{key}"
            layout.take(hit, name)[...] = 1
            target = layout.take(theta, name)
            if key != "A":
                target[...] = 0
            elif redraw is not None:
                check_shape(f"redraw[{name!r}]", redraw[name], (config.heads, *target.shape[1:]))
                target[...] = redraw[name][state.own]
    if config.reset == "AB" and redraw is None:
        for row in range(theta.shape[0]):
            drawn = draw_factors(config, state.first + row, state.merges, theta.dtype)
            for site in layout.sites.values():
                if site.lora:
                    name = f"{site.name}.A"
                    layout.take(theta, name)[row] = asarray(drawn[name], theta)
    slots = state.slots
    if config.filter_merge == "prior":
        initial, _ = fresh_optimizer(config, theta, batch)
        slots = {"p": namespace(theta).where(hit > 0, initial["p"], slots["p"])}
    copies = fresh_copies(config, state.weights, theta.shape[0]) if state.copies else {}
    return replace(state, theta=theta, base=state.weights, merged=None, copies=copies, slots=slots)
