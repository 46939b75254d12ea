"""LTE's run: it strings steps, merges and resets together.

The same code drives one process and many: the team (:mod:`loko_ref.lte.team`) defines which heads
are held here and brings the others' factors at a merge. Nothing else depends on the split.  [LTE-9]

Shapes: A (heads, r, i); what a batch is: :func:`loko_ref.lte.stepping.shard_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loko_ref.arrays import Array
from loko_ref.checks.signatures import check_type, takes
from loko_ref.errors import InputError
from loko_ref.lte.config import LteConfig
from loko_ref.lte.merging import merge, reset
from loko_ref.lte.state import LteState
from loko_ref.lte.stepping import StepRecord, step
from loko_ref.lte.team import ALONE, Team


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """A step, a merge or a reset, and the state after it."""

    kind: str
    state: LteState
    record: StepRecord | None = None


@takes(config=LteConfig, itemsize=int)
def bytes_per_merge(config: LteConfig, itemsize: int) -> int:
    """Logical bytes of the factors (and replicas) of all heads: what one merge sends.  [LTE-9].

    ``itemsize * heads * n`` with n = sum over sites of r(i + o) (and r + o for branch biases).
    """
    return itemsize * config.heads * config.layout.n


Batches = Iterable[tuple[Array, Array]]
Redraws = Callable[[int], Mapping[str, Array]] | None


@takes(config=LteConfig, state=LteState, batches=Iterable)
def iterate(
    config: LteConfig,
    state: LteState,
    batches: Batches,
    *,
    team: Team = ALONE,
    redraws: Redraws = None,
    rates: Sequence[float] | None = None,
    merge_at: Collection[int] | None = None,
    reset_at: Collection[int] | None = None,
    close: bool = False,
) -> Iterator[Event]:
    """Take steps, merges and resets in turn, each an :class:`Event`.  [LTE-3, LTE-5, LTE-6].

    Parameters
    ----------
    config, state
        The choices; where to begin (a resumed state goes on from its step).
    batches : iterable of (x, y)
        One a step.
    team : Team
        Who holds what.
    redraws : callable, optional
        Number of the merge (from 1) -> the redrawn A of every site, (heads, r, i).
    rates : sequence of float, optional
        Learning rate of every step from the run's first, in place of the optimizer's.
    merge_at : collection of int, optional
        Steps (from 1) after which the merges come, in place of every ``merge_every``-th.
    reset_at : collection of int, optional
        Those of the merges' steps after which the reset comes, in place of every merge.
    close : bool
        Whether a last merge closes a run that ends between merges.

    Raises
    ------
    InputError
        As :func:`step`; if there are fewer rates than steps, merges in ``mhlora``, or resets where
        there is no merge or ``reset="none"``.
    """
    size = 1
    if config.mode == "mhlora" and merge_at is not None:
        raise InputError("merge_at", merge_at, "None with mode='mhlora'", "mhlora never merges")
    if reset_at is not None and config.reset == "none":
        raise InputError(
            "reset_at", reset_at, "None with reset='none'", "the kind of the reset left out"
        )

    def merges(step: int) -> bool:
        return step % config.merge_every == 0 if merge_at is None else step in merge_at

    alone = [step for step in reset_at or () if not merges(step)]
    if alone:
        raise InputError("reset_at", alone[0], "the step of a merge", "a reset follows a merge")

    def due() -> bool:
        return config.mode == "lte" and merges(state.step)

    for pair in batches:
        check_type("batches", pair, (tuple, list), "batches of x alone, in place of pairs (x, y)")
        x, y = pair
        team.log(state.step, "step")
        state, record = step(config, state, x, y, team, lr=_rate(rates, state.step))
        size = record.z.shape[-2]
        yield Event(kind="step", state=state, record=record)
        if due():
            for event in _merge_events(config, state, team, redraws, size, reset_at):
                state = event.state
                yield event
    if close and config.mode == "lte" and not due():
        yield from _merge_events(config, state, team, redraws, size, reset_at)


def _rate(rates: Sequence[float] | None, step: int) -> float | None:
    if rates is None:
        return None
    if step >= len(rates):
        raise InputError(
            "rates",
            f"{len(rates)} rates, none for step {step + 1}",
            "one for every step of the run",
            "a schedule shorter than the data",
        )
    return rates[step]


def _merge_events(
    config: LteConfig,
    state: LteState,
    team: Team,
    redraws: Redraws,
    batch: int,
    reset_at: Collection[int] | None,
) -> Iterator[Event]:
    team.log(state.step, f"merge {state.merges + 1}")
    state = merge(config, state, team, batch=batch)
    yield Event(kind="merge", state=state)
    if config.reset != "none" and (reset_at is None or state.step in reset_at):
        drawn = redraws(state.merges) if redraws is not None and config.reset == "AB" else None
        state = reset(config, state, drawn, batch=batch)
        yield Event(kind="reset", state=state)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A run's events in order."""

    events: list[Event] = field(default_factory=list)


def run(
    config: LteConfig,
    state: LteState,
    batches: Batches,
    *,
    team: Team = ALONE,
    redraws: Redraws = None,
    rates: Sequence[float] | None = None,
    merge_at: Collection[int] | None = None,
    reset_at: Collection[int] | None = None,
    close: bool = False,
) -> tuple[LteState, Trace]:
    """Run over all batches and keep every event; repeats a recorded run of another's code.

    Parameters and order as for :func:`iterate`.

    Returns
    -------
    state : LteState
        After the last event.
    trace : Trace
    """
    trace = Trace()
    for event in iterate(
        config,
        state,
        batches,
        team=team,
        redraws=redraws,
        rates=rates,
        merge_at=merge_at,
        reset_at=reset_at,
        close=close,
    ):
        trace.events.append(event)
        state = event.state
    return state, trace
