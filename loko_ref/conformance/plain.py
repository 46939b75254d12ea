"""The catalogue's operations as walks over ``formulas``: the plain route.

Every function takes inputs, options, the table of formulas and the hook ``keep(name, array)``, and
returns the outputs by name in dataflow order. Shapes as in ``operations``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.conformance import descent
from loko_ref.conformance.formulas import Values, forward, jacobian, spread

__all__ = [
    "delta",
    "dense_update",
    "diagonal_update",
    "loko_run",
    "loko_step",
    "measured",
    "merge",
    "model_forward",
    "model_jacobian",
    "noise_update",
    "observation",
    "optimizer",
    "time_update",
]

Arrays = Mapping[str, Any]
Out = dict[str, Any]
Keep = Callable[[str, Any], Any]
Table = Mapping[str, Callable[..., Any]]


def _values(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Values:
    return Values(x, **o, F=F, keep=keep)


def dense_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """S, K, theta, P.  [KAL-2]."""
    v = _values(x, o, F, keep)
    v |= {"p_pred": v.P, "R_used": v.R, "observation": "gaussian"}
    return {"S": v.put("S"), "K": v.put("K"), "theta": v.put("theta_post"), "P": v.put("p.dense")}


def diagonal_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """S, K, theta, p.  [DIAG-1, DIAG-2]."""
    v = _values(x, o, F, keep)
    v |= {"p_pred": v.p, "R_used": v.R, "observation": "gaussian"}
    S, K, theta = v.put("S"), v.put("K"), v.put("theta_post")
    return {"S": S, "K": K, "theta": theta, "p": v.put("p_post", f"p.{v.diagonal}")}


def time_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """p_pred.  [KAL-1]."""
    return {"p_pred": _values(x, o, F, keep).put("p_pred")}


def observation(kind: str, x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """yhat, e, H, and R for glm.  [OBS-1, OBS-2, OBS-3, OBS-4]."""
    v = _values(x, o, F, keep)
    v |= {"observation": kind, "center": v.get("center", False)}
    out = {"yhat": v.put("yhat").reshape(-1), "e": v.put("e"), "H": v.put("H", f"H.{kind}")}
    return out | ({"R": v.put("R", "R.glm")} if kind == "glm" else {})


def noise_update(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """R.  [NOISE-1, NOISE-2, NOISE-3, NOISE-4]."""
    v = _values(x, o, F, keep)
    v["r"] = v.e
    return {"R": v.put("R_post", f"R.{v.noise}")}


def delta(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Return what LoRA adds.  [LORA-2]."""
    return {"delta": _values(x, o, F, keep).put("delta")}


def merge(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Return the merged weight.  [LORA-3]."""
    return {"W": _values(x, o, F, keep).put("W_post")}


def model_forward(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Run the network: z.  [LAY-1, LAY-2]."""
    return {"z": forward(_values(x, o, F, keep))[0]}


def model_jacobian(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Run the network: z and their Jacobian Z.  [LAY-9, LAY-10]."""
    v = _values(x, o, F, keep)
    z, caches = forward(v)
    return {"z": z, "Z": keep("Z", jacobian(v, caches, z.shape[1]))}


def _gain_name(observation: str) -> str:
    return f"K.{observation}" if observation in ("softmax", "glm") else "K"


def loko_step(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """One step of LoKO.  [LOKO-1, LOKO-2]."""
    v = _values(x, o, F, keep)
    cov = "P" if v.covariance == "dense" else "p"
    v["p"] = v[cov]
    v.put("p_pred")
    z, caches = forward(v, v.theta)
    v["z"] = z
    v["Z"] = keep("Z", jacobian(v, caches, z.shape[1]))
    return {f"{cov}_pred": v.p_pred, "z": v.z, "Z": v.Z} | measured(v)


def measured(v: Values) -> Out:
    """Update by outputs z and their Jacobian Z: from yhat to R.  [LOKO-1]."""
    dense, keep = v.covariance == "dense", v.keep
    out = {"yhat": v.put("yhat").reshape(-1)}
    out["e"], out["H"] = v.put("e"), v.put("H", f"H.{v.observation}")
    v["r"], v["prior"] = v.F["innovation_seen"](v), v.F["covariance_seen"](v)
    refresh = f"R.{v.noise}"
    if v.observation == "glm":
        v.put("R_used", "R.glm")
    elif v.F["timing"](v) == "before":
        v["HpH"] = keep("HpH", spread(v, v.prior))
        v.put("R_used", refresh)
    else:
        v["R_used"] = v.R
    out["R_used"] = v.R_used
    out["S"] = v.put("S")
    out["K"] = v.put("K", _gain_name(v.observation))
    out["theta"] = v.put("theta_post")
    out["P" if dense else "p"] = v.put("p_post", "p.dense" if dense else f"p.{v.diagonal}")
    if v.observation == "glm":
        return out
    out["R"] = v.R_used
    if v.F["timing"](v) == "after":
        if v.noise == "ema_residual_hph":
            v["r"] = v.F["residual"](v)
            v["HpH"] = keep("HpH", spread(v, v.F["covariance_residual"](v)))
        else:
            v["HpH"] = keep("HpH", spread(v, v.prior))
        out["R"] = v.put("R_post", refresh)
    return out


def loko_run(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Take steps of LoKO, each quantity stacked along a leading axis.  [LOKO-1]."""
    state = {k: a for k, a in x.items() if k not in ("x", "y")}
    rows = []
    for t, (batch, y) in enumerate(zip(x["x"], x["y"], strict=True), start=1):
        carried = state | ({"R": F["carried"](state, x)} if "R" in state else {})
        out = loko_step({**carried, "x": batch, "y": y, "t": t}, o, F, keep)
        state |= {k: out[k] for k in ("theta", "p", "P", "R") if k in out}
        rows.append(out)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def optimizer(name: str, x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Theta and slots after each step.  [OPT-1, OPT-2, OPT-3]."""
    return descent.run(name, _values(x, o, F, keep))
