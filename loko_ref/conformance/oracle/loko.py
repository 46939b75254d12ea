"""The catalogue's expected numbers, by the package's own modules.

Every function takes the case's inputs (float64) and options, and returns the outputs by name.
Shapes as in ``operations``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref import loko, optimizers
from loko_ref.arrays import Array, asarray, namespace
from loko_ref.checks.values import check_covariance, check_positive, check_range
from loko_ref.errors import InputError
from loko_ref.kalman import dense, diagonal, lowrank, noise, time
from loko_ref.kalman import observation as obs
from loko_ref.kalman.lowrank import PRECISIONS
from loko_ref.loko.state import groups_for
from loko_ref.network import lora
from loko_ref.network.jacobian import jacobian
from loko_ref.network.model import Model, forward, param_shapes

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


def _predicted(P: lowrank.Precision, o: Arrays) -> lowrank.Precision:
    check_range("lam", o["lam"], low=0, high=1, low_open=True)
    check_range("q", o["q"], low=0, high_open=True)
    return P.predict(float(o["lam"]), float(o["q"]))


def lowrank_update(x: Arrays, o: Arrays) -> Out:
    """S, K, theta, U, WW.  [KAL-9]."""
    check_positive("U", x["U"])
    prior = _predicted(lowrank.Precision(U=x["U"], W=x["W"]), o)
    new = lowrank.update(x["theta"], prior, x["H"], x["e"], x["R"])
    return {"S": new.S, "K": new.K, "theta": new.theta, "U": new.P.U, "WW": new.P.W @ new.P.W.T}


def _partition(blocks: Sequence[float], n: int) -> list[list[int]]:
    """List the parameters of each block; one block where none is stated."""
    if len(blocks) not in (0, n):
        cause = "one number a block, in place of one a parameter"
        raise InputError("blocks", f"{len(blocks)} numbers", f"n = {n}, or none", cause)
    found: dict[float, list[int]] = {}
    for j, block in enumerate(blocks or [0] * n):
        found.setdefault(block, []).append(j)
    return list(found.values())


def _check_blocks(U: Array, parts: list[list[int]]) -> None:
    """Raise unless U (n, n) has covariances on the blocks and is 0 outside of them."""
    own = namespace(U).zeros(U.shape, dtype=U.dtype)  # 1 on the blocks
    for part in parts:
        own[np.ix_(part, part)] = 1
    if bool((U * (1 - own) != 0).any()):
        cause = "blocks in another order of the parameters"
        raise InputError("U", "an entry that is not 0 outside the blocks", "zeros there", cause)
    for part in parts:
        check_covariance("a block of U", U[np.ix_(part, part)])


def block_update(x: Arrays, o: Arrays) -> Out:
    """S, K, theta, U, and of low rank beside it WW.  [KAL-9, KAL-10]."""
    n, xp = x["theta"].shape[0], namespace(x["U"])
    parts = _partition(o["blocks"], n)
    _check_blocks(x["U"], parts)
    order = [j for part in parts for j in part]
    groups, at = [], 0
    for part in parts:
        groups.append(lowrank.Group(start=at, units=1, size=len(part)))
        at += len(part)
    U = xp.concatenate([x["U"][np.ix_(part, part)].reshape(-1) for part in parts])
    W = x["W"][order] if "W" in x else xp.zeros((n, 0), dtype=U.dtype)
    prior = _predicted(lowrank.Precision(U=U, W=W, groups=tuple(groups)), o)
    new = lowrank.update(x["theta"][order], prior, x["H"][:, order], x["e"], x["R"])
    back = np.argsort(order)
    found = xp.zeros((n, n), dtype=U.dtype)
    for part, block in zip(parts, new.P.blocks(), strict=True):
        found[np.ix_(part, part)] = block
    W = new.P.W[back]
    out = {"S": new.S, "K": new.K[back], "theta": new.theta[back], "U": found}
    return out | ({"WW": W @ W.T} if "W" in x else {})


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
    named = {k: v for k, v in o.items() if k not in ("spec", "train", "blocks")}
    model = Model(spec=o["spec"], weights=weights, trainable=o.get("train", "factors"))
    U, W, n = x.get("U"), x.get("W"), x["theta"].shape[0]
    if U is not None and o["covariance"] in PRECISIONS:
        W = namespace(U).zeros((n, 0), dtype=U.dtype) if W is None else W
        named["columns"] = W.shape[1]
        if o["covariance"] == "block":
            parts = _partition(o["blocks"], n)
            named["blocks"] = _kind_of(parts, model)
            _check_blocks(U, parts)
    config = loko.LokoConfig(model=model, **named)
    if U is not None and o["covariance"] == "block":
        at = [(j, k) for part in _members(groups_for(config)) for j in part for k in part]
        U = U[tuple(zip(*at, strict=True))]
    state = loko.LokoState(theta=x["theta"], p=x.get("p"), P=x.get("P"), U=U, W=W, R=x.get("R"))
    return config, state


def _members(groups: Sequence[lowrank.Group]) -> list[list[int]]:
    """List the parameters of each block, in the order in which a state holds their entries."""
    n = sum(g.units * g.size for g in groups)
    return [part for g in groups for part in g.split(np.arange(n)[:, None])[:, :, 0].tolist()]


def _kind_of(parts: list[list[int]], model: Model) -> lowrank.Blocks:
    """Return the name that loko_ref.loko has for blocks.  [KAL-10]."""
    for kind in lowrank.BLOCKS:
        config = loko.LokoConfig(model=model, covariance="block", blocks=kind)
        if sorted(_members(groups_for(config))) == sorted(parts):
            return kind
    raise InputError(
        "blocks",
        f"{len(parts)} blocks of {sorted(map(len, parts))} parameters",
        "one per input of A and output of B ('unit'), or one per whole tensor ('tensor')",
        "another order of theta, in which A comes before B, each row-major",
    )


def _precision(state: loko.LokoState, config: loko.LokoConfig) -> Out:
    """Return U, blocks as a matrix (n, n), and W W'."""
    U, W = state.U, state.W
    assert U is not None
    assert W is not None
    if config.covariance == "block":
        flat, U = U, namespace(U).zeros((len(W), len(W)), dtype=U.dtype)
        at = [(j, k) for part in _members(groups_for(config)) for j in part for k in part]
        U[tuple(zip(*at, strict=True))] = flat
    return {"U": U, "WW": W @ W.T}


def _step(
    state: loko.LokoState, x: Array, y: Array, config: loko.LokoConfig
) -> tuple[loko.LokoState, Out]:
    state, seen = loko.step(state, loko.Batch(x=x, y=y), config)
    big, precise = "P" if config.covariance == "dense" else "p", config.covariance in PRECISIONS
    out = {
        **({} if precise else {f"{big}_pred": seen.p_pred}),
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
        **(_precision(state, config) if precise else {big: getattr(state, big)}),
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
    return _known(x, out)


def loko_run(x: Arrays, o: Arrays) -> Out:
    """Take steps of LoKO, each quantity stacked along a leading axis.  [LOKO-1]."""
    from loko_ref.network.model import unpack

    config, state = configuration(x, o)
    rows = []
    for batch, y in zip(network_input(x["x"], o), x["y"], strict=True):
        Z = jacobian(unpack(config.model, state.theta), batch)[1]
        state, out = _step(state, batch, y, config)
        rows.append(_known(x, out | {"Z": Z}))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _known(x: Arrays, out: Out) -> Out:
    """Leave out W W' where there is no W."""
    return out if "W" in x else {name: value for name, value in out.items() if name != "WW"}


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
