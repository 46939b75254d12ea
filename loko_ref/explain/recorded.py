"""A recorded run explained: what was recorded, what follows from it, and where it is wrong.

Shapes: as in :mod:`loko_ref.loko`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from loko_ref.conformance.diagnose.groups import brief
from loko_ref.conformance.engine import FAILED, Check
from loko_ref.conformance.implementations.recording import Recording
from loko_ref.conformance.implementations.recording_runs import read
from loko_ref.conformance.recorded import check, gather
from loko_ref.errors import InputError
from loko_ref.explain.quantities import Frame, Numbers, described
from loko_ref.explain.steps import Step
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import dataflow, output_name
from loko_ref.textbook.quantities import Lazy, identity, missing


def _completed(values: dict[str, Numbers], frame: Frame) -> list[str]:
    """Add what was not recorded and follows from what was; return its names."""
    flow = dataflow(frame.options)
    v = Lazy(flow, values, **frame.options, F=FORMULA_TABLE, keep=identity)
    for name in ("yhat", "y"):
        if name in v:
            v[name] = v[name].reshape(-1, frame.outputs)
    added = []
    for q in flow:
        if q.name in values or q.hidden or q.network or missing(q.name, v, flow):
            continue
        values[q.name] = np.asarray(v[q.name])
        added.append(q.name)
    for name in ("yhat", "y", "e"):
        if name in values:
            values[name] = values[name].reshape(-1)
    return added


def _found(checks: Sequence[Check], frame: Frame) -> dict[tuple[int, str], Check]:
    """Return the wrong quantities by step and name; a posterior belongs to the step before it."""
    keys: dict[tuple[str, bool], str] = {}
    for q in dataflow(frame.options):
        keys[output_name(q.name, frame.options), q.name.endswith("_post")] = q.name
    found = {}
    for one in checks:
        if one.status == FAILED:
            step = int(one.case.id.split("/")[1])
            output = one.case.operation.name.removeprefix("trace.")
            post = (output, True) in keys and (output, False) not in keys
            found[step - post, keys[output, post]] = one
    return found


def explain_recording(
    path: str | Path, given: Sequence[str] = (), *, entries: int = 4
) -> tuple[Frame, list[Step]]:
    """Explain the steps of a recording (:mod:`loko_ref.conformance.implementations.recording`).

    Parameters
    ----------
    given : sequence of str
        Options of the run, ``NAME=VALUE``, that the file does not have.
    entries : int
        Number of entries of theta shown in each step.

    Returns
    -------
    frame : Frame
        What is the same in all steps.
    steps : list of Step
        Those with more than a state.

    Raises
    ------
    InputError
        If the file cannot be read as a recording of LoKO, or has no step.
    """
    recording = read(path, given)
    if not isinstance(recording, Recording):
        required, cause = "a recording of LoKO's steps", "one that 'verify --trace' alone takes"
        raise InputError("--trace", f"a recording of {recording.operation}", required, cause)
    dense = recording.options["covariance"] == "dense"
    n = recording.steps[min(recording.steps)]["theta"].shape[0]
    outputs = next((C for _, C in recording.shapes.values()), 1)
    frame = Frame(
        name=Path(path).name, options=recording.options, parts=[("theta", (n,))], outputs=outputs
    )
    wrong = _found(check(recording), frame)
    steps = [
        _step(recording, k, dict(gather(recording, k, dense)), frame, wrong, entries)
        for k, one in sorted(recording.steps.items())
        if set(one) - {"theta", "p", "P", "R"}
    ]
    if not steps:
        required = "a step with more than theta, p and R"
        raise InputError("--trace", "states alone", required, "only states were recorded")
    return frame, steps


def _step(
    recording: Recording,
    k: int,
    values: dict[str, Numbers],
    frame: Frame,
    wrong: Mapping[tuple[int, str], Check],
    entries: int,
) -> Step:
    added = _completed(values, frame)
    mine = {key: one for (step, key), one in wrong.items() if step == k}
    outcome = [f"{one.case.id}: {brief(one)}." for one in mine.values()]
    if not mine:
        outcome.append("Every recorded quantity is what those recorded before it give.")
    if added:
        names = ", ".join(output_name(name, frame.options) for name in added)
        outcome.append(f"Not recorded, and computed here from what was: {names}.")
    many = f"{len(mine)} wrong" if mine else "nothing wrong"
    return Step(
        number=k,
        title=f"as recorded, {many}",
        quantities=described(frame, values, first=False, entries=entries),
        outcome=outcome,
        wrong=tuple(mine),
    )
