"""LTE's expected numbers, by the package's own modules.

Shapes as in ``operations``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from loko_ref import lte
from loko_ref.conformance.oracle.loko import network_input
from loko_ref.lte import heads as net
from loko_ref.lte.config import Merging
from loko_ref.lte.state import heads_of
from loko_ref.lte.stepping import shard_batch
from loko_ref.network import model
from loko_ref.optimizers import SGD, AdaGrad, AdamW
from loko_ref.textbook.lte import RUN

Arrays = Mapping[str, Any]
Out = dict[str, Any]


def _seen(config: lte.LteConfig, state: lte.LteState) -> Any:
    """Weights that each head sees, layer by layer: (heads, w).  [LTE-3]."""
    view = heads_of(config, state)
    parts = []
    for name, site in config.layout.sites.items():
        p = config.layout.site(view.theta, name)
        if not site.lora:
            parts += [p["W"]] if "W" in p else []
            continue
        W = view.weights[f"{name}.W"]
        scale = site.scale_beside(W)
        W = W + scale * (p["B"] @ p["A"])
        if view.merged is not None:
            q = config.layout.site(view.merged, name)
            W = W - scale * (q["B"] @ q["A"])
        parts.append(W)
    return np.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)


def _redraw(redraws: Arrays, merge: int) -> Out:
    return {k: v[merge - 1] for k, v in redraws.items()}


def _factors(config: lte.LteConfig) -> list[str]:
    return [k for k in config.layout.names if config.layout.sites[k.rsplit(".", 1)[0]].lora]


def _state(config: lte.LteConfig, state: lte.LteState) -> Out:
    """Every state array of the heads, by the catalogue's names."""
    out: Out = {**state.slots, "theta": state.theta}
    if state.R is not None:
        out["R"] = state.R
    if config.mode == "mhlora":
        return out
    if config.realisation == "copies":
        rows = [a.reshape(config.heads, -1) for a in state.copies.values()]
        return out | {"copies": np.concatenate(rows, axis=1)}
    merged = np.zeros_like(state.theta) if state.merged is None else state.merged
    rows = [config.layout.take(merged, k).reshape(config.heads, -1) for k in _factors(config)]
    return out | {"merged": np.concatenate(rows, axis=1)}


def run(x: Arrays, o: Arrays, merging: Merging = "incremental") -> Out:
    """Compute the expected numbers of ``lte.run``, by :mod:`loko_ref.lte`."""
    config, state = _package(x, o, merging)
    redraws = x.get("redraws")
    drawn: Callable[[int], Out] | None = None
    if redraws is not None:
        drawn = partial(_redraw, redraws)
    given = list(zip(network_input(x["x"], o), x["y"], strict=True))
    rows: list[Out] = []
    ends: list[lte.LteState] = []
    for event in lte.iterate(
        config,
        state,
        given,
        redraws=drawn,
        rates=o["rates"] or None,
        merge_at=o["merge_at"] or None,
        reset_at=o["reset_at"] or None,
    ):
        if event.record is not None:
            rows.append(_step(config, state, event.record, given[len(rows)]))
            ends.append(state)
        state = ends[-1] = event.state
        now, out = _state(config, state), rows[-1]
        if event.kind == "step" and o["mode"] == "lte":
            out |= {f"{k}_step": a for k, a in now.items() if k not in ("merged", "copies")}
        if event.kind != "reset" and o["reset"] != "none":
            names = ("theta", "p", "merged", "copies")
            out |= {f"{k}_merge": now[k] for k in names if k in now}
        out |= now
    for out, end in zip(rows, ends, strict=True):
        out["W"] = np.concatenate([end.weights[k].reshape(-1) for k in x["weights"]])
        if o["mode"] == "lte":
            out["seen"] = _seen(config, end)
        if "evaluation" in x:
            out |= _evaluated(config, end, network_input(x["evaluation"], o))
    sorted_rows = [{q.name: row[q.name] for q in RUN if q.name in row} for row in rows]
    return {name: np.stack([row[name] for row in sorted_rows]) for name in sorted_rows[0]}


def _step(config: lte.LteConfig, state: lte.LteState, record: Any, batch: Any) -> Out:
    """Return what is observed of a step; with LoKO the Jacobian at the state before it."""
    z, loss = record.z, record.loss
    if config.mode == "mhlora":  # one network: the plain route has a row a head
        z, loss = np.stack([z] * config.heads), np.repeat(loss, config.heads)
    if record.gradient is not None:
        return {"z": z, "loss": loss, "gradient": record.gradient}
    x, _ = shard_batch(config, state, *batch)
    return {"z": z, "loss": loss, "Z": net.jacobian(config, heads_of(config, state), x)[1]}


def _evaluated(config: lte.LteConfig, state: lte.LteState, x: Any) -> Out:
    """Run the main network: as last merged, and as a merge now would have it.  [LTE-13]."""
    if config.mode == "mhlora":
        return {"z_now": net.forward(config, heads_of(config, state), x)[0]}
    now = lte.merge(config, state).weights
    out = {
        "z_main": model.forward(lte.merged_model(config, state.weights), x)[0],
        "z_now": model.forward(lte.merged_model(config, now), x)[0],
    }
    view, first = heads_of(config, state), dict[str, Any]()
    for name, site in config.layout.sites.items():
        if not site.lora:
            copies = config.layout.site(view.theta, name)
            first |= {f"{name}.{key}": array[0] for key, array in copies.items()}
    if first:
        main = lte.merged_model(config, {**state.weights, **first})
        out["z_first"] = model.forward(main, x)[0]
    return out


def _optimizer(x: Arrays, o: Arrays) -> Any:
    kinds: dict[str, Any] = {"sgd": SGD, "adagrad": AdaGrad, "adamw": AdamW, "loko": lte.Loko}
    kind = kinds[o["optimizer"]]
    named = {f.name: o[f.name] for f in fields(kind) if f.name in o}
    return kind(**named, **({"p0": x["p"]} if kind is lte.Loko else {}))


def configured(x: Arrays, o: Arrays, merging: Merging = "incremental") -> lte.LteConfig:
    """Build the package's configuration of a run; of `x` the prior p is read, with LoKO.

    Raises
    ------
    InputError
        If options contradict one another.
    """
    own = {f.name for f in fields(lte.LteConfig)} - {"optimizer"}
    return lte.LteConfig(
        merging=merging,
        optimizer=_optimizer(x, o),
        **{name: value for name, value in o.items() if name in own},
    )


def _package(x: Arrays, o: Arrays, merging: Merging) -> tuple[Any, Any]:
    """Build the package's configuration and first state for a case."""
    config = configured(x, o, merging)
    wanted = _factors(config)
    factors = {k: x["factors"][k] for k in wanted}
    whole = o["mode"] == "mhlora" or o["data"] == "replicated"
    batch = x["x"].shape[1] // (1 if whole else o["heads"])
    return config, lte.init(config, weights=x["weights"], factors=factors, batch=batch)


def forward(x: Arrays, o: Arrays) -> Out:
    """Compute the expected numbers of ``lte.forward``, by :mod:`loko_ref.lte`."""
    config = lte.LteConfig(
        spec=o["spec"],
        heads=o["heads"],
        mode=o["mode"],
        scaling=o["scaling"],
        replicas="frozen",  # what has no factors is in the weights
    )

    def rows(values: Arrays) -> Any:
        flat = [np.reshape(values[k], (o["heads"], -1)) for k in config.layout.names]
        return np.concatenate(flat, axis=1)

    old = rows(x["merged"]) if "merged" in x else None
    view = net.Heads(theta=rows(x["factors"]), merged=old, weights=x["weights"])
    return {"z": net.forward(config, view, network_input(x["x"], o))[0]}


def merge(x: Arrays, o: Arrays) -> Out:
    """Compute the expected numbers of ``lte.merge``, by :mod:`loko_ref.lte`."""
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
