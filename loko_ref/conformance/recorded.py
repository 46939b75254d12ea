"""A recorded run, checked quantity by quantity to find where it first goes wrong.

Each recorded quantity is recomputed from the recorded ones before it in the dataflow; intermediate
quantities that were not recorded are computed too. A mistake therefore shows in the quantity where
it is made, not in those that depend on it; a wrong parent is taken as it was recorded and as it
should be, since code need not go on with what it records.  [TOL-6] Every quantity is a separate
case, ``trace/k/name``, with the plain formulas, the tolerances and the known mistakes of all other
cases.  [TOL-1]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.globs import matcher
from loko_ref.conformance.cases.registry import Case, Recipe
from loko_ref.conformance.catalogue.entry import Operation, Output
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.engine import Check, judge
from loko_ref.conformance.implementations.recording import Recording
from loko_ref.conformance.judge.answer import Answer
from loko_ref.conformance.judge.conditional import MOST
from loko_ref.errors import InputError, shown
from loko_ref.textbook import FORMULA_TABLE
from loko_ref.textbook.loko import dataflow, output_name
from loko_ref.textbook.quantities import Lazy, Values, identity, missing, origins


def _order(o: Mapping[str, Any]) -> list[str]:
    """List what a step has in dataflow order; with a dense covariance p stands for P here."""
    run = ("z", "Z")  # of the network, which a recording does not hold: given like the state
    return ["theta", "p", "R", "y", *run, *(q.name for q in dataflow(o) if q.name not in run)]


class TraceCase(Case):
    """One quantity of a recording as a case; its operation is not in the catalogue.

    Parameters
    ----------
    dtype : str
        float64 or float32.
    operation : Operation
        The one that computes this quantity alone.
    """

    def __init__(self, key: str, recipe: Recipe, dtype: str, operation: Operation) -> None:
        super().__init__(id=key, recipe=recipe, dtype=dtype)
        object.__setattr__(self, "_operation", operation)

    @property
    def operation(self) -> Operation:
        """The operation that computes this quantity alone."""
        found: Operation = self._operation  # type: ignore[attr-defined]
        return found


def _operation(
    output: str, target: str, o: Mapping[str, Any], shape: tuple[int, ...], pair: tuple[int, int]
) -> Operation:
    flow = dataflow(o)

    def plain(x: Any, o: Any, F: Any, keep: Callable[[str, Any], Any]) -> dict[str, Any]:
        timing = F["timing"](Values({**x, **o}))
        v = Lazy(dataflow({**o, "timing": timing}), x, **{**o, "timing": timing}, F=F, keep=keep)
        value = v.follow(target, {"yhat": np.zeros(pair)})  # of which its shape is read
        return {output: np.reshape(value, shape)}

    known = {o.name: o for o in OPERATIONS["loko.step"].outputs}[output]
    return Operation(
        name=f"trace.{output}",
        text="a quantity of a recording, from those before it",
        inputs=(),
        options=(),
        outputs=(
            Output(
                name=output,
                shape=known.shape,
                formula=known.formula,
                labels=next(q.labels for q in flow if q.name == target),
                feeds=origins(target, flow),
            ),
        ),
        oracle=lambda x, o: plain(x, o, FORMULA_TABLE, identity),
        plain=plain,
    )


def gather(recording: Recording, k: int, dense: bool) -> dict[str, Array]:
    """Return a step's quantities and its posteriors, by the names of the dataflow."""
    rename = {"P": "p", "P_pred": "p_pred"} if dense else {}
    have = {rename.get(q, q): a for q, a in recording.steps[k].items()}
    glm = recording.options["noise"] == "glm"
    if glm and "R" in have:
        R = have.pop("R")  # there is no estimate: the recorded R is the one that enters S
        have.setdefault("R_used", R)
    for q, a in recording.steps.get(k + 1, {}).items():
        if rename.get(q, q) in ("theta", "p", "R")[: 2 if glm else 3]:
            have[f"{rename.get(q, q)}_post"] = a
    pair = recording.shapes.get(k, (1, 1))
    for q in ("y", "z"):
        if q in have:
            have[q] = have[q].reshape(pair)
    if recording.options["noise"] != "ema_residual_hph":
        have.pop("r", None)  # the estimator's r is another vector there: the innovation
    return have


def _one(recording: Recording, k: int, target: str, have: Mapping[str, Array]) -> Check:
    """Judge one quantity of one step."""
    options, pair = recording.options, recording.shapes.get(k, (1, 1))
    output = output_name(target, options)
    place = f"{k + 1 if target.endswith('_post') else k}/{output}"
    if options["noise"] == "glm" and target == "R_used" and target not in recording.steps[k]:
        place = f"{k}/R"
    got = have.get(target)
    order = _order(options)
    inputs = {q: have[q] for q in order[: order.index(target)] if q in have}
    if "yhat" in inputs:
        inputs["yhat"] = inputs["yhat"].reshape(pair)
    if target == "K":  # its all-ones part, a convention, is removed per sample of y
        inputs.setdefault("y", np.zeros(pair, recording.dtype))
    recipe = Recipe(
        operation=f"trace.{output}",
        name=place,
        text=f"step {k}: {output} from {', '.join(origins(target, dataflow(options)))}",
        build=lambda draw, dtype: inputs,
        options=options,
    )
    shape = () if got is None else got.shape
    case = TraceCase(
        f"trace/{place}", recipe, recording.dtype, _operation(output, target, options, shape, pair)
    )
    lacking = missing(target, have, dataflow(options))
    reason = ""
    if got is None:
        reason = "unchecked: not in the recording"
    elif lacking:
        reason = f"unchecked: it needs {', '.join(lacking)}, not in the recording"
    if got is None or reason:
        return Check(case=case, status="unsupported", reason=reason)
    try:
        with np.errstate(all="ignore"):
            return judge(case, Answer(outputs={output: got}), recording.precision)
    except np.linalg.LinAlgError as error:
        reason = f"unchecked: the recorded matrices before it cannot be solved with ({error})"
        return Check(case=case, status="unsupported", reason=reason)


def _otherwise(
    recording: Recording, k: int, target: str, have: Mapping[str, Array], wrong: tuple[str, ...]
) -> Check | None:
    """Judge a quantity with wrong parents as they should be; None where that explains it not."""
    wrong = tuple(q for q in wrong if q in origins(target, dataflow(recording.options)))
    if len(wrong) > MOST:
        return None
    for count in range(1, len(wrong) + 1):
        for left_out in combinations(wrong, count):
            kept = {q: a for q, a in have.items() if q not in left_out}
            one = _one(recording, k, target, kept)
            if one.status == "passed":
                return one
    return None


def check(recording: Recording, only: str | None = None) -> list[Check]:
    """Check every quantity of every step.

    Parameters
    ----------
    only : str, optional
        Glob of ids (``trace/3/S``) or of ``trace.S``.

    Returns
    -------
    list of Check
        Step by step in dataflow order; posteriors belong to the step that makes them and have
        the id of their array, ``trace/4/theta`` for step 3. Unchecked ones are ``unsupported``.

    Raises
    ------
    InputError
        If `only` matches nothing.
    """
    dense, flow = recording.options["covariance"] == "dense", dataflow(recording.options)
    chosen, checks = matcher("--only", only), []
    for k in sorted(recording.steps):
        state = not set(recording.steps[k]) - {"theta", "p", "P", "R"}
        if state and k - 1 in recording.steps and k + 1 not in recording.steps:
            continue  # the state after the last step
        have, wrong = gather(recording, k, dense), dict[str, None]()
        for target in (q.name for q in flow if not q.hidden and not q.network):
            one = _one(recording, k, target, have)
            if one.status == "failed":
                one = _otherwise(recording, k, target, have, tuple(wrong)) or one
            if one.status == "failed":
                wrong[target] = None
            name = one.case.operation.name
            if chosen(one.case.id) or chosen(name):
                checks.append(one)
    if not checks:
        required = "a glob that matches a quantity, such as 'trace/0/S' or 'trace.S'"
        raise InputError("--only", shown(only), required, "a misspelt name, or a single state")
    return checks


def first(checks: list[Check]) -> str | None:
    """Return a sentence on the first wrong quantity of a recording, None where all are right."""
    one = next((c for c in checks if c.status == "failed"), None)
    if one is None:
        return None
    return f"{one.case.covers.split(' from ')[0]} is the first wrong quantity ({one.case.id})"
