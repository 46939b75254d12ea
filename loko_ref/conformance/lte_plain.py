"""LTE's operations by their plain formulas, head by head, replaceable by name.

Beside :mod:`loko_ref.conformance.formulas`, and for the same purposes: disturbing quantities, and
exchanging one formula for a wrong one. Nothing here is stacked: each head's effective weight is
formed, and the factors' gradients follow from the full weight's.

Shapes: W, G (o, i); b (o,); A (r, i); B (o, r) of one head; x (batch, i); z (batch, C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loko_ref.layers.activation import ACTIVATIONS

__all__ = [
    "LTE_FORMULAS",
    "lte_forward",
    "lte_merge",
    "lte_run",
    "slot_names",
]

Arrays = Mapping[str, Any]
Out = dict[str, Any]
Keep = Callable[[str, Any], Any]
Table = Mapping[str, Callable[..., Any]]


def _delta(p: Arrays, scale: float) -> Any:
    """``scale B A``."""
    return scale * (p["B"] @ p["A"])


def _shift(p: Arrays, scale: float) -> Any:
    """``scale (B bA + bB)``, 0 without branch biases."""
    return scale * (p["B"] @ p["bA"] + p["bB"]) if "bB" in p else 0.0


def _slices(a: Any, heads: int) -> list[Any]:
    """Contiguous chunks of a batch."""
    return np.split(a, heads)


def _sgd(theta: Any, g: Any, s: dict[str, Any], t: int, o: Arrays) -> tuple[Any, dict[str, Any]]:
    g = g + o["weight_decay"] * theta
    if o["momentum"]:
        g = g if t == 1 else o["momentum"] * s["momentum"] + g
        return theta - o["lr"] * g, {"momentum": g}
    return theta - o["lr"] * g, {}


def _adagrad(
    theta: Any, g: Any, s: dict[str, Any], t: int, o: Arrays
) -> tuple[Any, dict[str, Any]]:
    g = g + o["weight_decay"] * theta
    total = s.get("sum", 0.0) + g * g
    return theta - o["lr"] * g / (np.sqrt(total) + o["eps"]), {"sum": total}


def _adamw(theta: Any, g: Any, s: dict[str, Any], t: int, o: Arrays) -> tuple[Any, dict[str, Any]]:
    m = o["beta1"] * s.get("exp_avg", 0.0) + (1 - o["beta1"]) * g
    v = o["beta2"] * s.get("exp_avg_sq", 0.0) + (1 - o["beta2"]) * g * g
    theta = theta * (1 - o["lr"] * o["weight_decay"])
    step = (m / (1 - o["beta1"] ** t)) / (np.sqrt(v / (1 - o["beta2"] ** t)) + o["eps"])
    return theta - o["lr"] * step, {"exp_avg": m, "exp_avg_sq": v}


def _wiped(slots: Any, t: int, o: Arrays) -> tuple[Any, int]:
    """Optimizer state after a merge: kept, or begun anew."""
    return ([{} for _ in slots], 0) if o["optimizer_state"] == "reset" else (slots, t)


LTE_FORMULAS: dict[str, Callable[..., Any]] = {
    "lte.scale": lambda alpha, r: alpha / r,
    "lte.chunks": _slices,
    # what a head sees: its weight, given what it learned and what of that was merged  [LTE-3]
    "lte.seen": lambda W, now, old: W + now - old,
    # whose factors the gradients are taken at
    "lte.at": lambda p, old: p,
    # a head's cotangent, given its own mean's  [LTE-8]
    "lte.reduce": lambda dz, heads, reduction: dz / heads if reduction == "all" else dz,
    "lte.mse": lambda z, y: 2 * (z - y) / y.size,
    # the merge  [LTE-5, LTE-7]
    "lte.merged": lambda W, now, old: W + sum(now) / len(now) - sum(old) / len(old),
    "lte.delta": _delta,
    "lte.shift": _shift,
    "lte.replica": lambda copies: sum(copies) / len(copies),
    "lte.remembered": lambda p, factors, reset: None if reset else p,
    "lte.due": lambda t, every: t % every == 0,
    "lte.state": _wiped,
    "lte.mhlora": lambda deltas, scaling: sum(deltas) / (len(deltas) if scaling == "mean" else 1),
    "lte.sgd": _sgd,
    "lte.adagrad": _adagrad,
    "lte.adamw": _adamw,
}
"""Name -> plain formula."""

FACTORS = ("A", "B", "bA", "bB")


def _linears(o: Arrays) -> list[Mapping[str, Any]]:
    return [layer for layer in o["spec"] if layer["kind"] == "linear"]


def _site(values: Arrays, name: str, head: int) -> dict[str, Any]:
    found = {k: values[f"{name}.{k}"] for k in (*FACTORS, "W", "b") if f"{name}.{k}" in values}
    return {k: v[head] for k, v in found.items()}


def _effective(v: Arrays, o: Arrays, F: Table, keep: Keep, head: int) -> dict[str, tuple[Any, Any]]:
    """Weight and bias that a head sees, layer by layer."""
    seen = {}
    for layer in _linears(o):
        name = layer["name"]
        if not layer.get("lora"):
            p = _site(v["factors"], name, head)
            seen[name] = (p["W"], p["b"])
            continue
        W, b = v["weights"][f"{name}.W"], v["weights"][f"{name}.b"]
        s = F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
        heads = v["factors"][f"{name}.A"].shape[0]
        if o["mode"] == "mhlora":
            every = [_site(v["factors"], name, h) for h in range(heads)]
            W = W + F["lte.mhlora"]([F["lte.delta"](p, s) for p in every], o["scaling"])
            b = b + F["lte.mhlora"]([F["lte.shift"](p, s) for p in every], o["scaling"])
        else:
            p = _site(v["factors"], name, head)
            old = v.get("merged")
            q = {k: np.zeros_like(a) for k, a in p.items()}
            if old is not None:
                q = _site(old, name, head)
            W = F["lte.seen"](W, F["lte.delta"](p, s), F["lte.delta"](q, s))
            b = F["lte.seen"](b, F["lte.shift"](p, s), F["lte.shift"](q, s))
        seen[name] = (keep("W_seen", W), keep("b_seen", b))
    return seen


def _network(
    seen: Mapping[str, tuple[Any, Any]], o: Arrays, x: Any, keep: Keep
) -> tuple[Any, list[Any]]:
    caches: list[Any] = []
    for layer in o["spec"]:
        if layer["kind"] == "linear":
            W, b = seen[layer["name"]]
            caches.append(x)
            x = x @ W.T + b
        else:
            x, kept = ACTIVATIONS[layer["kind"]][0](x)
            caches.append(kept)
        x = keep("h", x)
    return x, caches


def lte_forward(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Every head's outputs (mhlora: the one network's).  [LTE-2, LTE-3]."""
    if o["mode"] == "mhlora":
        return {"z": _network(_effective(x, o, F, keep, 0), o, x["x"], keep)[0]}
    rows = [
        _network(_effective(x, o, F, keep, head), o, part, keep)[0]
        for head, part in enumerate(x["x"])
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
    after = [{"A": q["A"], "B": np.zeros_like(q["B"])} for q in p] if reset else p
    memory = [F["lte.remembered"](q, r, reset) for q, r in zip(p, after, strict=True)]
    zero = np.zeros_like(x["W"])
    seen = [
        F["lte.seen"](W, F["lte.delta"](q, s), zero if m is None else F["lte.delta"](m, s))
        for q, m in zip(after, memory, strict=True)
    ]
    return {"W": W, "seen": keep("seen", np.stack(seen))}


def _gradient(
    v: Arrays, o: Arrays, F: Table, keep: Keep, head: int, x: Any, y: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Find outputs, loss and gradients of one head's trainables.  [LTE-3, LTE-8]."""
    seen = _effective(v, o, F, keep, head)
    z, caches = _network(seen, o, x, keep)
    heads = v["heads"]
    if o["loss"] == "mse":
        loss, dz = ((z - y) ** 2).mean(), F["lte.mse"](z, y)
    else:
        log = z - z.max(axis=1, keepdims=True)
        log = log - np.log(np.exp(log).sum(axis=1, keepdims=True))
        loss, dz = -(y * log).sum() / len(y), (np.exp(log) - y) / len(y)
    if o["mode"] == "lte":
        dz = F["lte.reduce"](dz, heads, o["reduction"])
    dz = keep("dz", dz)
    found: dict[str, Any] = {}
    for layer, kept in zip(reversed(o["spec"]), reversed(caches), strict=True):
        if layer["kind"] != "linear":
            dz = keep("dz", ACTIVATIONS[layer["kind"]][1](dz, kept))
            continue
        name = layer["name"]
        G, gb = keep("G", dz.T @ kept), keep("gb", dz.sum(axis=0))
        if layer.get("lora"):
            p = _site(v["factors"], name, head)
            old = _site(v["merged"], name, head) if v.get("merged") is not None else None
            p = F["lte.at"](p, old)
            s = F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
            if o["mode"] == "mhlora":
                s = F["lte.mhlora"]([s if h == head else 0.0 for h in range(heads)], o["scaling"])
            found[f"{name}.A"] = s * (p["B"].T @ G)
            found[f"{name}.B"] = s * (G @ p["A"].T)
            if "bB" in p:
                found[f"{name}.B"] = found[f"{name}.B"] + s * np.outer(gb, p["bA"])
                found[f"{name}.bA"], found[f"{name}.bB"] = s * (p["B"].T @ gb), s * gb
        else:
            found |= {f"{name}.W": G, f"{name}.b": gb}
        dz = keep("dz", dz @ seen[name][0])
    return z, loss, found


def lte_run(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Take steps, merges and resets; the state after each step and what follows it.  [LTE-1]."""
    heads = o["heads"]
    weights: dict[str, Any] = dict(x["weights"])
    merged: Any = None
    factors: dict[str, Any] = {}
    for layer in _linears(o):  # a layer without LoRA: a copy a head  [LTE-7]
        name = layer["name"]
        if layer.get("lora"):
            factors |= {k: x["factors"][k] for p in FACTORS if (k := f"{name}.{p}") in x["factors"]}
        else:
            factors |= {k: np.stack([weights[k]] * heads) for k in (f"{name}.W", f"{name}.b")}
    names = list(factors)
    sizes = [factors[k][0].size for k in names]
    shapes = [factors[k].shape[1:] for k in names]
    slots: list[dict[str, Any]] = [{} for _ in range(heads)]
    t = merges = 0
    rows: list[Out] = []

    def pack(values: Arrays, head: int) -> Any:
        return np.concatenate([np.reshape(values[k][head], -1) for k in names])

    for at, (bx, by) in enumerate(zip(x["x"], x["y"], strict=True), start=1):
        v = {"weights": weights, "factors": factors, "merged": merged, "heads": heads}
        whole = o["mode"] == "mhlora" or o["data"] == "replicated"
        xs = [bx] * heads if whole else F["lte.chunks"](bx, heads)
        ys = [by] * heads if whole else F["lte.chunks"](by, heads)
        z, loss, g = [], [], []
        for head in range(heads):
            zh, lh, gh = _gradient(v, o, F, keep, head, xs[head], ys[head])
            z.append(zh)
            loss.append(lh)
            g.append(keep("gradient", np.concatenate([gh[k].reshape(-1) for k in names])))
        t += 1
        new = []
        for head in range(heads):
            theta, slots[head] = F[f"lte.{o['optimizer']}"](
                pack(factors, head), g[head], slots[head], t, o
            )
            slots[head] = {k: keep(k, a) for k, a in slots[head].items()}
            new.append(keep("theta", theta))
        out = {"z": np.stack(z), "loss": np.array(loss), "gradient": np.stack(g)}
        cuts = np.cumsum(sizes)[:-1]
        split = [np.split(row, cuts) for row in new]
        factors = {
            k: np.stack([row[j].reshape(shape) for row in split])
            for j, (k, shape) in enumerate(zip(names, shapes, strict=True))
        }
        if o["mode"] == "lte" and F["lte.due"](at, o["merge_every"]):
            merges += 1
            before, replicas = factors, dict(factors)
            for layer in _linears(o):
                name = layer["name"]
                if not layer.get("lora"):
                    for key in (f"{name}.W", f"{name}.b"):
                        weights = weights | {key: F["lte.replica"](list(factors[key]))}
                        replicas[key] = np.stack([weights[key]] * heads)
                    continue
                s = F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
                now = [_site(factors, name, h) for h in range(heads)]
                old = [
                    {k: np.zeros_like(a) for k, a in q.items()}
                    if merged is None
                    else _site(merged, name, h)
                    for h, q in enumerate(now)
                ]
                for key, part in ((f"{name}.W", "lte.delta"), (f"{name}.b", "lte.shift")):
                    if key.endswith("b") and f"{name}.bB" not in factors:
                        continue
                    added = [[F[part](q, s) for q in side] for side in (now, old)]
                    weights = weights | {key: keep(key, F["lte.merged"](weights[key], *added))}
            factors = replicas
            reset = o["reset"] != "none"
            if reset:
                factors = dict(factors)
                for key in names:
                    part = key.rsplit(".", 1)[1]
                    if part in ("B", "bB") or (o["reset"] == "AB" and part == "bA"):
                        factors[key] = np.zeros_like(factors[key])
                    elif o["reset"] == "AB" and part == "A":
                        factors[key] = x["redraws"][key][merges - 1]
            merged = F["lte.remembered"](before, factors, reset)
            slots, t = F["lte.state"](slots, t, o)
        kept = {k: [s.get(k) for s in slots] for k in slot_names(o)}
        width = len(new[0])
        out |= {
            k: np.stack([np.zeros(width) if a is None else a for a in rows_])
            for k, rows_ in kept.items()
        }
        out["theta"] = np.stack([pack(factors, head) for head in range(heads)])
        out["W"] = np.concatenate([np.reshape(a, -1) for a in weights.values()])
        if o["mode"] == "lte":
            v = {"weights": weights, "factors": factors, "merged": merged, "heads": heads}
            seen = [_effective(v, o, F, keep, head) for head in range(heads)]
            flat = [[np.reshape(W, -1) for W, _ in one.values()] for one in seen]
            out["seen"] = np.stack([np.concatenate(one) for one in flat])
        rows.append(out)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def slot_names(o: Arrays) -> tuple[str, ...]:
    """Names of the optimizer's slots."""
    return {
        "sgd": ("momentum",) if o["momentum"] else (),
        "adagrad": ("sum",),
        "adamw": ("exp_avg", "exp_avg_sq"),
    }[o["optimizer"]]
