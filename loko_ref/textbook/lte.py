"""LTE's operations head by head, by ``lte_formulas``: nothing here is stacked.

One head's network is in ``lte_network``; the filter is that of ``plain``, the descents those of
``descent``.

Shapes: W (o, i); b (o,); factors, copies (heads, ...); theta, p (n,) of one head; R (m, m);
x (batch, ...); z (batch, C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.textbook.lte_formulas import LTE_FORMULAS, in_order, slot_names
from loko_ref.textbook.lte_network import (
    FACTORS,
    derivatives,
    layers,
    outputs,
    pack,
    seen,
    site,
    trained,
)
from loko_ref.textbook.operations import measured
from loko_ref.textbook.quantities import Values

__all__ = ["FACTORS", "LTE_FORMULAS", "lte_forward", "lte_merge", "lte_run"]

Arrays = Mapping[str, Any]
Out = dict[str, Any]
Keep = Callable[[str, Any], Any]
Table = Mapping[str, Callable[..., Any]]


def lte_forward(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Every head's outputs (mhlora: the one network's).  [LTE-2, LTE-3]."""
    s = {**x, "heads": o["heads"]}
    if o["mode"] == "mhlora":
        return {"z": outputs(seen(s, o, F, keep, 0), o, F, keep, x["x"])[0]}
    rows = [
        outputs(seen(s, o, F, keep, head), o, F, keep, part)[0] for head, part in enumerate(x["x"])
    ]
    return {"z": np.stack(rows)}


def lte_merge(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """W after the merge, and what each head then sees.  [LTE-5, LTE-6]."""
    s = F["lte.scale"](o["alpha"], x["A"].shape[1])
    heads = range(x["A"].shape[0])
    p = [{"A": x["A"][h], "B": x["B"][h]} for h in heads]
    old = [{"A": x["A_merged"][h], "B": x["B_merged"][h]} for h in heads]
    now = [keep("delta", F["lte.delta"](q, s)) for q in p]
    before = [keep("delta", F["lte.delta"](q, s)) for q in old]
    W = keep("W", F["lte.merged"](x["W"], now, before))
    reset = o["reset"] != "none"
    after = [{"A": q["A"], "B": F["lte.zeroed"](q["B"], "B")} for q in p] if reset else p
    memory = [F["lte.remembered"](q, r, reset) for q, r in zip(p, old, strict=True)]
    zero = np.zeros_like(x["W"])
    found = [
        F["lte.seen"](W, F["lte.delta"](q, s), zero if m is None else F["lte.delta"](m, s))
        for q, m in zip(after, memory, strict=True)
    ]
    return {"W": W, "seen": keep("seen", np.stack(found))}


# ---------------------------------------------------------------------------------- a run


def lte_run(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Take steps, merges and resets; every state array after each of them.  [LTE-1]."""
    v = _start(x, o, F, keep)
    rows: list[Out] = []
    for at, (bx, by) in enumerate(zip(x["x"], x["y"], strict=True), start=1):
        v["at"], reset = at, o["reset"] != "none"
        out = _step(v, bx, by)
        before = v.weights
        if o["mode"] == "lte":
            after = _state(v)
            out |= {f"{k}_step": a for k, a in after.items() if k not in ("merged", "copies")}
            due = at in o["merge_at"] if o["merge_at"] else F["lte.due"](at, o["merge_every"])
            factors = v.factors
            if due:
                _merge(v)
            if reset:
                after = _state(v)
                names = ("theta", "p", "merged", "copies")
                out |= {f"{k}_merge": after[k] for k in names if k in after}
            if due and reset and F["lte.reset_due"](at, v.merges, o["reset_at"]):
                _reset(v, factors)
        out |= _state(v)
        out["W"] = np.concatenate([np.reshape(a, -1) for a in v.weights.values()])
        if o["mode"] == "lte":
            out["seen"] = _all_seen(v)
        if "evaluation" in x:
            out |= _evaluated(v, before)
        rows.append(in_order(out))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _start(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Values:
    """Begin: weights, all heads' trainables, copies, optimizer."""
    names = trained(o, x["weights"])
    factors = {}
    for name in names:  # a layer without LoRA: a copy a head  [LTE-7]
        replica = name in x["weights"]
        factors[name] = (
            np.stack([x["weights"][name]] * o["heads"]) if replica else x["factors"][name]
        )
    v = Values(o, F=F, keep=keep, given=x, names=names, weights=dict(x["weights"]))
    v |= {"factors": factors, "merged": None, "copies": None, "t": 0, "merges": 0, "resets": 0}
    if o["realisation"] == "copies":
        v["copies"] = _copied(v, None)
    v["slots"] = [_fresh(v) for _ in range(o["heads"])]
    return v


def _fresh(v: Values) -> Out:
    """Begin one head's optimizer state."""
    n = len(pack(v.factors, v.names, 0))
    if v.optimizer != "loko":
        first = v.initial_accumulator_value if v.optimizer == "adagrad" else 0.0
        return {name: np.full(n, first) for name in slot_names(v)}
    whole = v.mode == "mhlora" or v.data == "replicated"
    m = v.given["y"][0].size // (1 if whole else v.heads)
    R = {} if v.noise == "glm" else {"R": v.r0 * np.eye(m)}
    return {"p": v.given["p"], **R}


def _step(v: Values, bx: Any, by: Any) -> Out:
    """One step of every head from the same state."""
    heads = range(v.heads)
    whole = v.mode == "mhlora" or v.data == "replicated"
    xs = [bx] * v.heads if whole else v.F["lte.chunks"](bx, v.heads)
    ys = [by] * v.heads if whole else v.F["lte.chunks"](by, v.heads)
    v["t"] += 1
    found = [(_filter if v.optimizer == "loko" else _descend)(v, h, xs[h], ys[h]) for h in heads]
    rows = [theta for theta, _ in found]
    cuts = np.cumsum([v.factors[k][0].size for k in v.names])[:-1]
    split = [np.split(row, cuts) for row in rows]
    v["factors"] = {
        k: np.stack([row[j].reshape(v.factors[k].shape[1:]) for row in split])
        for j, k in enumerate(v.names)
    }
    seen_by = found[0][1]
    return {name: np.stack([out[name] for _, out in found]) for name in seen_by}


def _loss(v: Values, z: Any, y: Any) -> tuple[Any, Any]:
    """One head's mean loss and its cotangent.  [LTE-8]."""
    if v.loss == "mse":
        return ((z - y) ** 2).mean(), v.F["lte.mse"](z, y)
    top = z.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    log = z - v.keep("lse", lse)
    return -(y * log).sum() / len(y), (np.exp(log) - y) / len(y)


def _descend(v: Values, head: int, x: Any, y: Any) -> tuple[Any, Out]:
    """SGD, AdaGrad or AdamW along the head's gradient.  [OPT-1, OPT-2, OPT-3]."""
    z, net = outputs(seen(v, v, v.F, v.keep, head), v, v.F, v.keep, x)
    loss, dz = _loss(v, z, y)
    if v.mode == "lte":
        dz = v.F["lte.reduce"](dz, v.heads, v.reduction)
    d = v.keep("dz", dz)[:, None, :]
    g = v.keep("gradient", derivatives(v, v, v.F, net, d, head).sum(axis=(0, 1)))
    w = Values(v, g=g, theta=pack(v.factors, v.names, head), slot=v.slots[head], new={})
    w["lr"] = v.F["lte.rate"](v, v["at"])
    for name in slot_names(v):
        w.new[name] = v.keep(name, v.F[f"{v.optimizer}.{name}"](w))
    v.slots[head] = w.new
    theta = v.keep("theta", v.F[f"{v.optimizer}.theta"](w))
    return theta, {"z": z, "loss": np.asarray(loss), "gradient": g}


def _filter(v: Values, head: int, x: Any, y: Any) -> tuple[Any, Out]:
    """LoKO on the head's own network, with its own p and R.  [LTE-10]."""
    C, theta = y.shape[1], pack(v.factors, v.names, head)
    z, net = outputs(seen(v, v, v.F, v.keep, head), v, v.F, v.keep, x)
    d = np.broadcast_to(np.eye(C), (len(z), C, C))
    Z = v.keep("Z", derivatives(v, v, v.F, net, d, head).reshape(len(z) * C, -1))
    if head == 0:
        v["R_before"] = [s.get("R") for s in v.slots]

    def at(moved: Any) -> Any:
        parts, start = dict(v.factors), 0
        for k in v.names:
            size = v.factors[k][0].size
            parts[k] = parts[k].copy()
            parts[k][head] = moved[start : start + size].reshape(parts[k].shape[1:])
            start += size
        s = {**v, "factors": parts}
        return outputs(seen(s, v, v.F, v.keep, head), v, v.F, v.keep, x)[0]

    which = v.F["lte.filter_of"](head)
    table = {**v.F, "e": lambda w: v.F["lte.innovation"](v.F["e"](w), v.heads)}
    w = Values(v, F=table, x=x, y=y, theta=theta, z=z, Z=Z, outputs=at, covariance="diagonal")
    w["p"] = v.slots[which]["p"]
    if v.noise != "glm":
        w["R"] = v.F["lte.R_of"](v.R_before, which) if which == head else v.slots[which]["R"]
    out = measured(w)
    v.slots[which] = {k: out[k] for k in ("p", "R") if k in out}
    loss, _ = _loss(v, z, y)
    return out["theta"], {"z": z, "loss": np.asarray(loss), "Z": Z}


def _state(v: Values) -> Out:
    """Give every state array but the shared weights, all heads together."""
    heads = range(v.heads)
    out = {name: np.stack([s[name] for s in v.slots]) for name in slot_names(v)}
    out["theta"] = np.stack([pack(v.factors, v.names, head) for head in heads])
    if v.optimizer == "loko":
        for name in ("p", "R") if v.noise != "glm" else ("p",):
            out[name] = np.stack([v.slots[v.F["lte.filter_of"](h)][name] for h in heads])
    if v.mode == "lte" and v.copies is None:
        lora = [k for k in v.names if k not in v.weights]
        memory = v.merged or {k: np.zeros_like(v.factors[k]) for k in lora}
        out["merged"] = np.stack([pack(memory, lora, head) for head in heads])
    elif v.mode == "lte":
        out["copies"] = np.stack([pack(v.copies, list(v.copies), head) for head in heads])
    return out


def _all_seen(v: Values) -> Any:
    rows = []
    for head in range(v.heads):
        dense = seen(v, v, v.F, v.keep, head)
        shown = [
            dense[f"{layer['name']}.W"]
            for layer in layers(v.spec)
            if layer.get("lora") or f"{layer['name']}.W" in v.names
        ]
        rows.append(np.concatenate([W.reshape(-1) for W in shown]))
    return np.stack(rows)


# ------------------------------------------------------------------------ merge, reset, evaluate


def _scales(v: Values) -> list[tuple[str, float, list[tuple[str, str]]]]:
    """Name each linear with LoRA, its scale, and which of W, b are merged, by which formula."""
    found = []
    for layer in layers(v.spec):
        if layer.get("lora"):
            scale = v.F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
            parts = [("W", "lte.delta"), ("b", "lte.shift")]
            found.append((layer["name"], scale, parts[: 2 if layer["lora"].get("bias") else 1]))
    return found


def _copied(v: Values, memory: Any) -> Out:
    """Each head's weight copies: ``W - delta`` of what is remembered, W where nothing is."""
    copies: Out = {}
    for name, scale, parts in _scales(v):
        for key, part in parts:
            W = v.weights[f"{name}.{key}"]
            rows = [W] * v.heads
            if memory is not None:
                every = [site(memory, name, h) for h in range(v.heads)]
                rows = [v.F["lte.copied"](W, v.F[part](q, scale)) for q in every]
            copies[f"{name}.{key}"] = v.keep("copies", np.stack(rows))
    return copies


def _merge(v: Values) -> None:
    """W and the replicas' means, what is remembered, the optimizer's state.  [LTE-5, LTE-7]."""
    F, heads = v.F, range(v.heads)
    weights, factors = dict(v.weights), dict(v.factors)
    for name in v.names:
        if name in weights:
            weights[name] = F["lte.replica"](list(factors[name]))
            factors[name] = np.stack([weights[name]] * v.heads)
    for name, scale, parts in _scales(v):
        for key, part in parts:
            place = f"{name}.{key}"
            W, zero = weights[place], np.zeros_like(weights[place])
            now = [F[part](site(v.factors, name, h), scale) for h in heads]
            old = [zero for _ in heads]
            if v.copies is not None:  # a head sees W_copy + delta: what it adds to W
                now = [v.copies[place][h] + now[h] - W for h in heads]
            elif v.merged is not None:
                old = [F[part](site(v.merged, name, h), scale) for h in heads]
            weights[place] = v.keep(place, F["lte.merged"](W, now, old))
    memory = F["lte.remembered"](v.factors, v.merged, False)
    v |= {"weights": weights, "factors": factors, "merged": memory, "merges": v.merges + 1}
    if v.copies is not None:
        v["copies"] = _copied(v, memory)
    slots, v["t"] = F["lte.state"](v.slots, v.t, v)
    v["slots"] = [{**_fresh(v), **s} for s in slots]
    if v.optimizer == "loko":
        kept = F["lte.p_merged"]([s["p"] for s in v.slots], v.filter_merge)
        v["slots"] = [{**s, "p": p} for s, p in zip(v.slots, kept, strict=True)]


def _reset(v: Values, before: Arrays) -> None:
    """B = 0, A kept or redrawn; nothing remembers the merge.  [LTE-6]."""
    factors, hit = dict(v.factors), []
    v["resets"] += 1
    for name in v.names:
        part = name.rsplit(".", 1)[1]
        gone = part in ("B", "bB") if name not in v.weights else False
        if v.reset == "AB" and part == "A":
            drawn = v.given["redraws"][name]
            factors[name] = v.F["lte.redrawn"](factors[name], drawn, v.merges, v.resets)
        elif gone or (v.reset == "AB" and part == "bA"):
            factors[name] = v.F["lte.zeroed"](factors[name], part)
        anew = gone or (v.reset == "AB" and part in ("A", "bA"))
        hit.append(np.full(factors[name][0].size, anew))
    v |= {"factors": factors, "merged": v.F["lte.remembered"](before, v.merged, True)}
    if v.copies is not None:
        v["copies"] = _copied(v, v.merged)
    if v.optimizer == "loko":
        where = np.concatenate(hit)
        v["slots"] = [
            {**s, "p": v.F["lte.p_reset"](s["p"], v.given["p"], where, v.filter_merge)}
            for s in v.slots
        ]


def _evaluated(v: Values, before: Arrays) -> Out:
    """Run the main network on given inputs: as last merged, as a merge now would.  [LTE-13]."""
    x, every = v.given["evaluation"], [seen(v, v, v.F, v.keep, h) for h in range(v.heads)]
    if v.mode == "mhlora":
        return {"z_now": outputs(every[0], v, v.F, v.keep, x)[0]}
    main, now = dict(v.weights), dict(v.weights)
    places: dict[str, Any] = {
        name: [a - v.weights[name] for a in v.factors[name]]
        for name in v.names
        if name in v.weights
    }
    for name, scale, parts in _scales(v):
        for key, part in parts:
            sites = [site(v.factors, name, h) for h in range(v.heads)]
            places[f"{name}.{key}"] = [v.F[part](p, scale) for p in sites]
    for name, deltas in places.items():
        W = v.weights[name]
        now[name] = v.keep(name, v.F["lte.now"](W, [dense[name] for dense in every], deltas))
        main[name] = v.F["lte.main"](W, before[name], now[name])
    return {
        "z_main": outputs(main, v, v.F, v.keep, x)[0],
        "z_now": outputs(now, v, v.F, v.keep, x)[0],
    }
