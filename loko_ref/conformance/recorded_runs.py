"""Recordings of LTE and of the optimizers, checked quantity by quantity, as LoKO's are.

Each recorded quantity is computed from the recorded ones that it comes from by the table of
quantities; what was not recorded on the way is computed too. A wrong parent is taken as it was
recorded and as it should be.  [TOL-6]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.globs import matcher
from loko_ref.conformance.cases.registry import Recipe
from loko_ref.conformance.catalogue.entry import Operation, Output
from loko_ref.conformance.catalogue.registry import get
from loko_ref.conformance.engine import Check, judge
from loko_ref.conformance.implementations.recording_runs import (
    DRAWN,
    RunRecording,
    drawn_names,
    template,
)
from loko_ref.conformance.judge.answer import check as check_form
from loko_ref.conformance.judge.conditional import MOST
from loko_ref.conformance.judge.declared import Declared
from loko_ref.conformance.recorded import TraceCase
from loko_ref.errors import InputError, shown
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.lte import RUN, run
from loko_ref.textbook.lte_state import SLOTS, array, copied, schedule, start, whole, with_arrays
from loko_ref.textbook.optimizers import METHODS
from loko_ref.textbook.quantities import Lazy, Quantity, Values, identity, missing, origins

Have = Mapping[str, Any]
Judge = Callable[[int, Quantity, Have], Check]

HIDDEN = {q.name for q in RUN if q.hidden}
"""Quantities of LTE that are never recorded."""

LAST = "last."
"""What the name of a state begins with that a step starts from."""


NAMED = {"prior": "p of step 0"}
"""What is called by another name in a reason."""


# ---------------------------------------------------------------------------------- one quantity


def _case(
    recording: RunRecording, step: int, key: str, q: Quantity, plain: Any, have: Have
) -> TraceCase:
    """Make the case of one quantity of a step from what is given."""
    output = q.name
    come = tuple(k.removeprefix(LAST) for k in q.parents if k not in HIDDEN)
    shape = next(o.shape for o in get(recording.operation).outputs if o.name == output)
    operation = Operation(
        name=f"trace.{output}",
        text="a quantity of a recording, from those before it",
        inputs=(),
        options=(),
        outputs=(
            Output(
                name=output,
                shape=shape.replace("(steps, ", "(").replace("(steps,)", "()"),
                formula=q.equation,
                labels=get(recording.operation).labels(output, recording.options),
                feeds=come,
            ),
        ),
        oracle=lambda x, o: dict(plain(x, o, FORMULA_TABLE, identity)),
        plain=plain,
    )
    recipe = Recipe(
        operation=operation.name,
        name=key,
        text=f"step {step}: {output} from {', '.join(come) or 'the start'}",
        build=lambda draw, dtype: have,
        options=recording.options,
    )
    return TraceCase(f"trace/{key}", recipe, recording.dtype, operation)


def _judged(
    case: TraceCase, output: str, got: Array | None, lacking: list[str], declared: Declared
) -> Check:
    reason = "unchecked: not in the recording" if got is None else ""
    if got is not None and lacking:
        reason = f"unchecked: it needs {', '.join(lacking)}, not in the recording"
    if got is None or reason:
        return Check(case=case, status="unsupported", reason=reason)
    try:
        with np.errstate(all="ignore"):
            return judge(case, check_form({output: got}, case), declared)
    except np.linalg.LinAlgError as error:
        reason = f"unchecked: the recorded matrices before it cannot be solved with ({error})"
        return Check(case=case, status="unsupported", reason=reason)


def _descent(recording: RunRecording, k: int) -> tuple[list[Quantity], dict[str, Any], Judge]:
    """Return the quantities of an optimizer's step, what there is of it, and how one is judged."""
    o, method = recording.options, recording.operation.partition(".")[2]
    slots = [q for q in METHODS[method][:-1] if method != "sgd" or o["momentum"]]
    flow = [*slots, METHODS[method][-1]]
    here, after = recording.steps[k], recording.steps.get(k + 1, {})
    have: dict[str, Any] = dict(here)
    if k == 0 and "theta" in here:
        have = {name: _begun(recording, here, name) for name in _known(recording)} | have
    have |= {f"{q.name}_post": after[q.name] for q in flow if q.name in after}
    needed = ["theta", "gradient", *(q.name for q in slots)]

    def one(k: int, q: Quantity, have: Have) -> Check:
        def plain(x: Any, o: Any, F: Any, keep: Any) -> dict[str, Any]:
            v = Values({**o, "F": F, "keep": keep, "theta": x["theta"], "g": x["gradient"]})
            v |= {"t": k + 1, "slot": {s.name: x[s.name] for s in slots}, "new": {}}
            for s in slots if q.name == "theta" else [q]:
                given = x.get(f"{s.name}_post") if s is not q else None
                v.new[s.name] = keep(s.name, v.F[s.formula](v)) if given is None else given
            made = v.new[q.name] if q.name != "theta" else keep("theta", v.F[q.formula](v))
            return {q.name: made}

        given = {key: a for key, a in have.items() if a is not None and key != f"{q.name}_post"}
        case = _case(recording, k, f"{k + 1}/{q.name}", q, plain, given)
        lacking = [name for name in needed if name not in given]
        got = have.get(f"{q.name}_post")
        return _judged(case, q.name, got, lacking, recording.precision)

    return flow, have, one


def _round(recording: RunRecording, k: int) -> tuple[list[Quantity], dict[str, Any], Judge]:
    """Return the quantities of a step of LTE, what there is of it, and how one is judged."""
    o, here, after = recording.options, recording.steps[k], recording.steps.get(k + 1, {})
    states, counts, then = set(recording.state), schedule(o, k), schedule(o, k + 1)
    read: dict[str, list[str]] = {}  # beside the state, where a merge or a reset is due
    if o["optimizer"] == "loko" and then["merges"] > counts["merges"]:
        read["joined"] = ["prior"]
    if o["reset"] == "AB" and then["resets"] > counts["resets"]:
        read["after"] = drawn_names(o)
    flow = [_whole(q, recording, read) for q in run(o, "evaluation" in here)]
    have: dict[str, Any] = {f"{LAST}{name}": here[name] for name in states if name in here}
    have |= {name: a for name, a in here.items() if name not in states}
    have |= {name: after[name] for name in states if name in after}
    if k == 0 and {"W", "theta", "y"} <= here.keys():
        have = {f"{LAST}{s}": _begun(recording, here, s) for s in _known(recording)} | have
    drawn = {q.removeprefix(DRAWN): here[q] for q in here if q.startswith(DRAWN)}
    prior = recording.steps.get(0, {}).get("p")

    def plain_of(q: Quantity) -> Any:
        def plain(x: Any, o: Any, F: Any, keep: Any) -> dict[str, Any]:
            given: dict[str, Any] = {
                "redraws": {name: {counts["merges"]: x[f"{DRAWN}{name}"]} for name in drawn}
            }
            given |= {name: x[name] for name in ("evaluation", "prior") if name in x}
            given |= {"p": given.pop("prior")} if "prior" in given else {}
            if "y" in x or f"{LAST}R" in x:  # of which the size is read
                share = 1 if whole(Values(o)) else o["heads"]
                size = x["y"].size if "y" in x else share * x[f"{LAST}R"].shape[-1]
                given["y"] = [np.zeros(size)]
            fixed = {**template(recording, **given), "F": F, "keep": keep}
            v = Lazy(flow, fixed, x, at=k + 1, counts=counts)
            v.pop(q.name, None)
            return {q.name: v.follow(q.name)}

        return plain

    def one(k: int, q: Quantity, have: Have) -> Check:
        given = {key: a for key, a in have.items() if key != q.name}
        given |= {} if prior is None else {"prior": prior[0]}
        lacking = missing(q.name, [*given, "counts"], flow)
        place = k + 1 if q.name in states else k
        case = _case(recording, k, f"{place}/{q.name}", q, plain_of(q), given)
        names = [NAMED.get(name, name.removeprefix(LAST)) for name in lacking]
        return _judged(case, q.name, have.get(q.name), names, recording.precision)

    return flow, have, one


def _whole(q: Quantity, recording: RunRecording, read: Mapping[str, list[str]]) -> Quantity:
    """Return a quantity whose parents are all that its rule reads: the state it is taken from."""
    state = recording.state
    own = (k for k in q.parents if not k.startswith(LAST) or k.removeprefix(LAST) in state)
    last = q.name.rpartition("_")[2]
    place = {"z": "heads", "loss": "heads", "Z": "heads", "gradient": "heads", "W": "stepped"}
    place |= dict.fromkeys(SLOTS, "joined") | {"seen": "state", "z_main": "evaluated"}
    place |= dict.fromkeys(("theta", "p", "R", "merged", "copies"), "after")
    place |= {"z_now": "evaluated"}
    more = {"step": "heads", "merge": "joined"}.get(last) or place.get(q.name)
    further = [more] if more and q.name not in HIDDEN else read.get(q.name, [])
    return replace(q, parents=(*own, *further))


def _begun(recording: RunRecording, x: Have, name: str) -> Array:
    """Return what a run begins with: fresh optimizer states, nothing merged, copies of W."""
    if recording.operation != "lte.run":
        first = recording.options.get("initial_accumulator_value", 0.0)
        return np.full_like(x["theta"], first)
    size = {"y": [np.zeros(x["y"].size)]} if "y" in x else {}
    v = template(recording, **size)
    S = with_arrays(start(v), {key: x[key] for key in ("W", "theta")})
    if S.copies is not None:
        S["copies"] = copied(v, S, None)
    found: Array = array(v, S, name)
    return found.astype(x["theta"].dtype)


def _known(recording: RunRecording) -> list[str]:
    """Name the states that a run begins with by the options alone, or by W."""
    return [name for name in recording.state if name not in ("W", "theta", "p")]


def _starts(recording: RunRecording) -> Iterator[Check]:
    """Check the state before step 0, of what the options determine."""
    here = recording.steps.get(0, {})
    if not {"theta", *({"W", "y"} if recording.operation == "lte.run" else ())} <= here.keys():
        return
    flow = RUN if recording.operation == "lte.run" else METHODS[recording.operation[10:]]
    for q in flow:
        known = q.name in _known(recording) and q.name != "momentum"  # which step 1 replaces
        if known and q.name in here:
            own = replace(q, parents=(), equation="what a run begins with")

            def plain(x: Any, o: Any, F: Any, keep: Any, name: str = q.name) -> dict[str, Any]:
                return {name: keep(name, _begun(recording, x, name))}

            case = _case(recording, 0, f"0/{q.name}", own, plain, dict(here))
            yield _judged(case, q.name, here[q.name], [], recording.precision)


# -------------------------------------------------------------------------------------- the run


def _explained(one: Judge, k: int, q: Quantity, have: Have, wrong: list[str]) -> Iterator[Check]:
    """Yield the check of a quantity with wrong parents left out, so that they are computed."""
    if len(wrong) <= MOST:
        for count in range(1, len(wrong) + 1):
            for left_out in combinations(wrong, count):
                yield one(k, q, {key: a for key, a in have.items() if key not in left_out})


def _of_step(recording: RunRecording, k: int, chosen: Callable[[str], bool]) -> Iterator[Check]:
    """Check the quantities of a step that are chosen, and what is before a wrong one."""
    descent = recording.operation != "lte.run"
    flow, have, one = (_descent if descent else _round)(recording, k)
    parents = {q.name: _parents(q, flow, descent) for q in flow}
    done: dict[str, Check] = {}

    def judged(q: Quantity) -> Check:
        if q.name not in done:
            done[q.name] = one(k, q, have)
            if done[q.name].status == "failed":
                before = [p for p in flow if p.name in parents[q.name]]
                wrong = [p.name for p in before if judged(p).status == "failed"]
                names = [f"{name}_post" for name in wrong] if descent else wrong
                explained = _explained(one, k, q, have, names)
                found = (c for c in explained if c.status == "passed")
                done[q.name] = next(found, done[q.name])
        return done[q.name]

    for q in flow:
        place = k + 1 if descent or q.name in recording.state else k
        if not q.hidden and (chosen(f"trace/{place}/{q.name}") or chosen(f"trace.{q.name}")):
            yield judged(q)


def _parents(q: Quantity, flow: list[Quantity], descent: bool) -> list[str]:
    """Name what a quantity of a step comes from, of that step: of a descent theta its slots."""
    if descent:
        return [p.name for p in flow[:-1]] if q is flow[-1] else []
    return [] if q.hidden else [name for name in origins(q.name, flow) if name != q.name]


def check(recording: RunRecording, only: str | None = None) -> list[Check]:
    """Check every quantity of every step.

    Parameters
    ----------
    only : str, optional
        Glob of ids (``trace/3/W``) or of ``trace.W``.

    Returns
    -------
    list of Check
        Step by step in dataflow order; what a step leaves has the id of its array,
        ``trace/4/theta`` of step 3. Unchecked ones are ``unsupported``.

    Raises
    ------
    InputError
        If `only` matches nothing.
    """
    chosen, checks = matcher("--only", only), list[Check]()

    def add(found: Check) -> None:
        if chosen(found.case.id) or chosen(found.case.operation.name):
            checks.append(found)

    for found in _starts(recording):
        add(found)
    for k in sorted(recording.steps):
        state = not set(recording.steps[k]) - set(recording.state)
        if state and k - 1 in recording.steps and k + 1 not in recording.steps:
            continue  # the state after the last step
        for found in _of_step(recording, k, chosen):
            add(found)
    if not checks:
        required = "a glob that matches a quantity, such as 'trace/1/theta' or 'trace.theta'"
        raise InputError("--only", shown(only), required, "a misspelt name, or a single state")
    return checks
