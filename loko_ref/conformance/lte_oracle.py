"""LTE's expected numbers, by the package's own room.

Shapes as in ``operations``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from loko_ref import lte
from loko_ref.arrays import scalar
from loko_ref.conformance.lte_plain import FACTORS, slot_names
from loko_ref.lte import heads as net
from loko_ref.lte.state import heads_of
from loko_ref.optimizers import SGD, AdaGrad, AdamW

__all__ = ["forward", "merge", "run"]

Arrays = Mapping[str, Any]
Out = dict[str, Any]


def _seen(config: lte.LteConfig, state: lte.LteState) -> Any:
    """Weights that each head sees, layer by layer: (heads, w).  [LTE-3]."""
    view = heads_of(config, state)
    parts = []
    for name, site in config.layout.sites.items():
        p = config.layout.site(view.theta, name)
        if not site.lora:
            parts.append(p["W"])
            continue
        W = view.weights[f"{name}.W"]
        scale = scalar(site.scale, W)
        W = W + scale * (p["B"] @ p["A"])
        if view.merged is not None:
            q = config.layout.site(view.merged, name)
            W = W - scale * (q["B"] @ q["A"])
        parts.append(W)
    return np.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)


def _redraw(redraws: Arrays, merge: int) -> Out:
    return {k: v[merge - 1] for k, v in redraws.items()}


def run(x: Arrays, o: Arrays) -> Out:
    """Give the expected numbers of ``lte.run``, by :mod:`loko_ref.lte`."""
    config, state = _package(x, o)
    redraws = x.get("redraws")
    drawn: Callable[[int], Out] | None = None
    if redraws is not None:
        drawn = partial(_redraw, redraws)
    rows: list[Out] = []
    for event in lte.iterate(config, state, zip(x["x"], x["y"], strict=True), redraws=drawn):
        if event.record is not None:
            z, loss = event.record.z, event.record.loss
            if o["mode"] == "mhlora":  # one network: the plain route has a row a head
                z, loss = np.stack([z] * o["heads"]), np.repeat(loss, o["heads"])
            rows.append({"z": z, "loss": loss, "gradient": event.record.gradient})
        now = event.state
        out = rows[-1]
        out |= {k: now.slots[k] for k in slot_names(o)}
        out["theta"] = now.theta
        out["W"] = np.concatenate([now.weights[k].reshape(-1) for k in x["weights"]])
        if o["mode"] == "lte":
            out["seen"] = _seen(config, now)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _package(x: Arrays, o: Arrays) -> tuple[Any, Any]:
    """Build the package's configuration and first state for a case."""
    common = {"lr": o["lr"], "weight_decay": o["weight_decay"]}
    optimizer: SGD | AdaGrad | AdamW
    if o["optimizer"] == "sgd":
        optimizer = SGD(momentum=o["momentum"], **common)
    elif o["optimizer"] == "adagrad":
        optimizer = AdaGrad(eps=o["eps"], **common)
    else:
        optimizer = AdamW(beta1=o["beta1"], beta2=o["beta2"], eps=o["eps"], **common)
    chosen = ("mode", "reset", "optimizer_state", "scaling", "data", "reduction", "loss")
    config = lte.LteConfig(
        spec=o["spec"],
        heads=o["heads"],
        merge_every=o["merge_every"],
        merging="incremental",
        optimizer=optimizer,
        **{name: o[name] for name in chosen},
    )
    factors = {k: v for k, v in x["factors"].items() if k.rsplit(".", 1)[1] in FACTORS}
    return config, lte.init(config, weights=x["weights"], factors=factors)


def forward(x: Arrays, o: Arrays) -> Out:
    """Give the expected numbers of ``lte.forward``, by :mod:`loko_ref.lte`."""
    config = lte.LteConfig(spec=o["spec"], heads=o["heads"], mode=o["mode"], scaling=o["scaling"])

    def rows(values: Arrays) -> Any:
        flat = [np.reshape(values[k], (o["heads"], -1)) for k in config.layout.names]
        return np.concatenate(flat, axis=1)

    old = rows(x["merged"]) if "merged" in x else None
    view = net.Heads(theta=rows(x["factors"]), merged=old, weights=x["weights"])
    return {"z": net.forward(config, view, x["x"])[0]}


def merge(x: Arrays, o: Arrays) -> Out:
    """Give the expected numbers of ``lte.merge``, by :mod:`loko_ref.lte`."""
    heads, r, i = x["A"].shape
    out = x["B"].shape[1]
    site = {"kind": "linear", "name": "0", "in": i, "out": out, "bias": False}
    config = lte.LteConfig(
        spec=[{**site, "lora": {"r": r, "alpha": o["alpha"], "bias": False}}],
        heads=heads,
        reset=o["reset"],
        merging="incremental",
    )

    def rows(A: Any, B: Any) -> Any:
        return np.concatenate([A.reshape(heads, -1), B.reshape(heads, -1)], axis=1)

    state = lte.init(config, weights={"0.W": x["W"]}, factors={"0.A": x["A"], "0.B": x["B"]})
    state = replace(state, merged=rows(x["A_merged"], x["B_merged"]))
    state = lte.merge(config, state)
    if o["reset"] != "none":
        state = lte.reset(config, state)
    seen = _seen(config, state).reshape(heads, out, i)
    return {"W": state.weights["0.W"], "seen": seen}
