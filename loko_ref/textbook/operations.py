"""The catalogue's operations as walks over ``formulas``: the plain route.

Every function takes inputs, options, the table of formulas and the hook ``keep(name, array)``, and
returns the outputs by name in dataflow order. Shapes as in ``operations``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from loko_ref.kalman.lowrank import PRECISIONS
from loko_ref.textbook import loko, optimizers
from loko_ref.textbook.network import arrays, network, ways, within
from loko_ref.textbook.quantities import Quantity, Values, evaluate, identity

Arrays = Mapping[str, Any]
Out = dict[str, Any]
Keep = Callable[[str, Any], Any]
Table = Mapping[str, Callable[..., Any]]


def _values(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Values:
    return Values(x, **o, F=F, keep=keep)


def _put(x: Arrays, o: Arrays, F: Table, keep: Keep, flow: Iterable[Quantity]) -> Values:
    """Evaluate quantities from inputs and options."""
    v = _values(x, o, F, keep)
    evaluate(v, flow)
    return v


def dense_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """S, K, theta, P.  [KAL-2]."""
    o = {**o, "observation": "gaussian", "covariance": "dense"}
    v = _put({**x, "p_pred": x["P"], "R_used": x["R"]}, o, F, keep, loko.update(o))
    return {"S": v.S, "K": v.K, "theta": v.theta_post, "P": v.p_post}


def diagonal_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """S, K, theta, p.  [DIAG-1, DIAG-2]."""
    o = {**o, "observation": "gaussian", "covariance": "diagonal"}
    v = _put({**x, "p_pred": x["p"], "R_used": x["R"]}, o, F, keep, loko.update(o))
    return {"S": v.S, "K": v.K, "theta": v.theta_post, "p": v.p_post}


def precision_values(
    x: Arrays, o: Arrays, F: Table, keep: Keep
) -> tuple[Values, tuple[Quantity, ...]]:
    """Return what an update of a precision begins with, and its quantities."""
    W = x.get("W", np.zeros((len(x["theta"]), 0)))
    return _values({**x, "W": W, "R_used": x["R"]}, o, F, keep), loko.precision_update(o)


def lowrank_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """S, K, theta, U, WW.  [KAL-9, KAL-10]."""
    v, flow = precision_values(x, o, F, keep)
    evaluate(v, flow)
    out = {"S": v.S, "K": v.K, "theta": v.theta_post, "U": v.U_post}
    return out | ({"WW": v.WW_post} if "W" in x else {})


def time_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """p_pred, or P_pred of a dense covariance.  [KAL-1]."""
    o = {**o, "covariance": "dense" if "P" in x else "diagonal"}
    v = _put({"p": x.get("P", x.get("p"))}, o, F, keep, loko.time_update(o))
    return {loko.output_name("p_pred", o): v.p_pred}


def observation(kind: str, x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """yhat, e, H, and R for glm.  [OBS-1, OBS-2, OBS-3, OBS-4]."""
    o = {"center": False, **o, "observation": kind}
    v = _put(x, o, F, keep, loko.observation(o))
    out = {"yhat": v.yhat.reshape(-1), "e": v.e, "H": v.H}
    return out | ({"R": evaluate(v, loko.noise_used(o))["R_used"]} if kind == "glm" else {})


def noise_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """R.  [NOISE-1, NOISE-2, NOISE-3, NOISE-4]."""
    return {"R": _put(x, o, F, keep, loko.noise(o)).R_post}


def delta(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Return what LoRA adds.  [LORA-2]."""
    return {"delta": _put(x, o, F, keep, loko.delta()).delta}


def merge(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Return the merged weight.  [LORA-3]."""
    return {"W": _put(x, o, F, keep, loko.merge()).W_post}


def model_forward(x: Arrays, o: Arrays, F: Table, keep: Keep, inside: bool = False) -> Out:
    """Run the network: z; with `inside` its layers' outputs too.  [LAY-1, LAY-2]."""
    spec = F["layers"](o["spec"])
    flow = (arrays(spec, packed=False), *ways(spec)[0])
    return _shown(_put(x, o, F, keep, flow), flow, inside)


def model_jacobian(x: Arrays, o: Arrays, F: Table, keep: Keep, inside: bool = False) -> Out:
    """Run the network: z and their Jacobian Z.  [LAY-9, LAY-10]."""
    flow = network(F["layers"](o["spec"]), packed=False, train=o.get("train", "factors"))
    return _shown(_put(x, o, F, keep, flow), flow, inside)


def _shown(v: Values, flow: Iterable[Quantity], inside: bool) -> Out:
    """Take the outputs from a network's values, and with `inside` what layers give."""
    return {q.name: v[q.name] for q in flow if not q.hidden or (inside and within(q.name))}


def prior(v: Values) -> Values:
    """Give what a step begins with the name p: variances, or a covariance.  [KAL-9]."""
    if v.covariance in PRECISIONS:
        v["whole"] = "W" not in v  # nothing of low rank
        v.setdefault("W", np.zeros((len(v.theta), 0)))
        v["p"] = v.F["P.precision"](Values(v, keep=identity, U_pred=v.U, W_pred=v.W))
    else:
        v["p"] = v["P" if v.covariance == "dense" else "p"]
    return v


def loko_step(x: Arrays, o: Arrays, F: Table, keep: Keep, inside: bool = False) -> Out:
    """One step of LoKO.  [LOKO-1, LOKO-2]."""
    return measured(prior(_values(x, o, F, keep)), F["layers"](o["spec"]), inside)


def loko_from_outputs(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """One step of LoKO whose network has run: z and Z are among the inputs.  [LOKO-1]."""
    return measured(prior(_values(x, o, F, keep)))


def measured(v: Values, spec: Any = None, inside: bool = False) -> Out:
    """Evaluate a step, and name it as outputs; without a network's spec z and Z are there.

    Its timing is asked for, as a known mistake changes it. With `inside`, layers' outputs too.
    [LOKO-1]
    """
    o = {k: a for k, a in v.items() if k != "spec"} | {"timing": v.F["timing"](v)}
    flow = loko.dataflow(o if spec is None else {**o, "spec": spec})
    found = {q.name: v[q.name] for q in flow if q.network and q.name in v}
    found |= evaluate(v, (q for q in flow if q.name not in found))
    shown = [q for q in flow if not q.hidden or (inside and within(q.name))]
    shown = [q for q in shown if q.name != "WW_post" or not v.whole]
    out = {loko.output_name(q.name, v): found[q.name] for q in shown}
    return out | {"yhat": v.yhat.reshape(-1)}


def loko_run(x: Arrays, o: Arrays, F: Table, keep: Keep, inside: bool = False) -> Out:
    """Take steps of LoKO, each quantity stacked along a leading axis.  [LOKO-1]."""
    state = {k: a for k, a in x.items() if k not in ("x", "y")}
    rows = []
    for t, (batch, y) in enumerate(zip(x["x"], x["y"], strict=True), start=1):
        carried = state | ({"R": F["carried"](state, x)} if "R" in state else {})
        v = prior(_values({**carried, "x": batch, "y": y, "t": t}, o, F, keep))
        out = measured(v, F["layers"](o["spec"]), inside)
        state |= {k: out[k] for k in ("theta", "p", "P", "U", "R") if k in out}
        state |= {"W": F["kept"](v)} if "W" in state else {}
        rows.append(out)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def optimizer(name: str, x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Theta and slots after each step.  [OPT-1, OPT-2, OPT-3]."""
    return optimizers.run(name, _values(x, o, F, keep))
