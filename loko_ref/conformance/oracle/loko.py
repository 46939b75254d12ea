"""The catalogue's expected numbers, by the package's own modules.

Every function takes the case's inputs (float64) and options, and returns the outputs by name.
Shapes as in ``operations``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loko_ref import loko, optimizers
from loko_ref.arrays import Array, asarray, namespace
from loko_ref.errors import InputError
from loko_ref.kalman import dense, diagonal, noise, time
from loko_ref.kalman import observation as obs
from loko_ref.network import lora
from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import Model, forward, param_shapes

__all__ = [
    "configuration",
    "delta",
    "dense_update",
    "diagonal_update",
    "loko_run",
    "loko_step",
    "merge",
    "model_forward",
    "model_jacobian",
    "network_input",
    "noise_update",
    "observation",
    "optimizer",
    "time_update",
]

Arrays = Mapping[str, Any]
Out = dict[str, Any]


def dense_update(x: Arrays, o: Arrays) -> Out:
    """S, K, theta, P.  [KAL-2, KAL-3]."""
    new = dense.update(x["theta"], x["P"], x["H"], x["e"], x["R"])
    return {"S": new.S, "K": new.K, "theta": new.theta, "P": new.P}


def diagonal_update(x: Arrays, o: Arrays) -> Out:
    """S, K, theta, p.  [DIAG-1, DIAG-2]."""
    new = diagonal.update(**x, diagonal=o["diagonal"])
    return {"S": new.S, "K": new.K, "theta": new.theta, "p": new.p}


def time_update(x: Arrays, o: Arrays) -> Out:
    """p_pred, or P_pred of a dense covariance.  [KAL-1]."""
    if len(x) != 1:
        got, cause = " and ".join(sorted(x)) or "neither", "a diagonal stored beside the matrix"
        raise InputError("p", got, "p (n,) or P (n, n), one of them", cause)
    ((name, prior),) = x.items()
    return {f"{name}_pred": time.update(prior, o["lam"], o["q"])}


def observation(kind: obs.ObservationModel, x: Arrays, o: Arrays) -> Out:
    """yhat, e, H, and R for glm.  [OBS-1, OBS-2, OBS-3, OBS-4]."""
    seen = obs.observe(kind, x["z"], x["Z"], x["y"], center=o.get("center", False))
    out = {"yhat": seen.yhat, "e": seen.e, "H": seen.H}
    if kind == "glm":
        eye = namespace(x["z"]).eye(seen.e.shape[0], dtype=x["z"].dtype)
        out["R"] = obs.jacobian_product(namespace(eye), seen.yhat.reshape(x["z"].shape), eye)
    return out


def noise_update(x: Arrays, o: Arrays) -> Out:
    """R.  [NOISE-1, NOISE-2, NOISE-3, NOISE-4]."""
    return {"R": noise.update(o["noise"], x["R"], x["e"], x["HpH"], o["beta"])}


def delta(x: Arrays, o: Arrays) -> Out:
    """Return what LoRA adds.  [LORA-2]."""
    return {"delta": lora.delta(x["A"], x["B"], o["alpha"])}


def merge(x: Arrays, o: Arrays) -> Out:
    """Return the merged weight.  [LORA-3]."""
    return {"W": lora.merge(x["W"], x["A"], x["B"], o["alpha"])}


def network_input(x: Any, o: Arrays) -> Any:
    """Return inputs as the network takes them: token ids, which come as floats, whole numbers."""
    return x.astype(np.int64) if o["spec"][0]["kind"] == "embedding" else x


def model_forward(x: Arrays, o: Arrays) -> Out:
    """Run the network: z.  [LAY-1, LAY-2, ATT-1, ATT-2]."""
    return {"z": forward(Model(spec=o["spec"], weights=x["weights"]), network_input(x["x"], o))[0]}


def model_jacobian(x: Arrays, o: Arrays) -> Out:
    """Run the network: z and their Jacobian Z.  [LAY-9, LAY-10]."""
    model = Model(spec=o["spec"], weights=x["weights"], trainable=o.get("train", "factors"))
    z, Z = jacobian(model, network_input(x["x"], o))
    return {"z": z, "Z": Z}


def configuration(x: Arrays, o: Arrays) -> tuple[loko.LokoConfig, loko.LokoState]:
    """Build configuration and first state; the values of what is trained come from theta."""
    weights = dict(x["weights"])
    for name, shape in param_shapes(o["spec"]).items():
        zeros = np.zeros(shape, x["theta"].dtype)
        weights.setdefault(name, asarray(zeros, x["theta"]))
    named = {k: v for k, v in o.items() if k not in ("spec", "train")}
    model = Model(spec=o["spec"], weights=weights, trainable=o.get("train", "factors"))
    config = loko.LokoConfig(model=model, **named)
    state = loko.LokoState(theta=x["theta"], p=x.get("p"), P=x.get("P"), R=x.get("R"))
    return config, state


def _step(
    state: loko.LokoState, x: Array, y: Array, config: loko.LokoConfig
) -> tuple[loko.LokoState, Out]:
    state, seen = loko.step(state, loko.Batch(x=x, y=y), config)
    big = "P" if config.covariance == "dense" else "p"
    out = {
        f"{big}_pred": seen.p_pred,
        "z": seen.z,
        "Z": np.zeros(0),
        "yhat": seen.yhat,
        "e": seen.e,
        "H": seen.H,
        "R_used": seen.R_used,
        "S": seen.S,
        "K": seen.K,
        **({} if seen.v is None else {"v": seen.v}),
        "theta": state.theta,
        big: getattr(state, big),
    }
    if state.R is not None:
        out["R"] = state.R
    return state, out


def loko_step(x: Arrays, o: Arrays) -> Out:
    """One step of LoKO.  [LOKO-1, LOKO-2]."""
    from loko_ref.network.model import unpack

    (config, state), batch = configuration(x, o), network_input(x["x"], o)
    _, out = _step(state, batch, x["y"], config)
    out["Z"] = jacobian(unpack(config.model, x["theta"]), batch)[1]
    return out


def loko_run(x: Arrays, o: Arrays) -> Out:
    """Take steps of LoKO, each quantity stacked along a leading axis.  [LOKO-1]."""
    from loko_ref.network.model import unpack

    config, state = configuration(x, o)
    rows = []
    for batch, y in zip(network_input(x["x"], o), x["y"], strict=True):
        Z = jacobian(unpack(config.model, state.theta), batch)[1]
        state, out = _step(state, batch, y, config)
        rows.append(out | {"Z": Z})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


_METHODS: dict[str, Any] = {
    "sgd": optimizers.SGD,
    "adagrad": optimizers.AdaGrad,
    "adamw": optimizers.AdamW,
}


def optimizer(name: str, x: Arrays, o: Arrays) -> Out:
    """Theta and slots after each step.  [OPT-1, OPT-2, OPT-3]."""
    config = _METHODS[name](**o)
    state = optimizers.init(x["theta"], config)
    rows = []
    for gradient in x["gradient"]:
        state = optimizers.step(state, gradient, config)
        rows.append({**state.slots, "theta": state.theta})
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
