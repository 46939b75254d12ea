"""The state of a run of LTE: the arrays that stand for it, a merge, a reset; and the formulas.

A state has the shared ``weights`` by name, the ``factors`` of all heads (replicas among them), the
factors last ``merged`` or None, weight ``copies`` or None, each head's optimizer ``slots``, and the
numbers of steps since the slots were initialised, of merges and of resets (``t``, ``merges``,
``resets``).

Shapes: W (o, i); factors, copies (heads, ...); theta, p (heads, n); R (heads, m, m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.textbook.lte_heads import pack, site, slot_names
from loko_ref.textbook.network import layers
from loko_ref.textbook.quantities import Formula, Values

Arrays = Mapping[str, Any]
Out = dict[str, Any]

SLOTS = ("momentum", "sum", "exp_avg", "exp_avg_sq")


def array(v: Values, S: Values, name: str) -> Any:
    """One array of a state, all heads together."""
    heads = range(v.o.heads)
    if name == "theta":
        return np.stack([pack(S.factors, v.names, head) for head in heads])
    if name == "merged":
        lora = [k for k in v.names if k not in S.weights]
        memory = S.merged or {k: np.zeros_like(S.factors[k]) for k in lora}
        return np.stack([pack(memory, lora, head) for head in heads])
    if name == "copies":
        return np.stack([pack(S.copies, list(S.copies), head) for head in heads])
    of = v.F["lte.filter_of"] if name in ("p", "R") else int
    return np.stack([S.slots[of(head)][name] for head in heads])


def cut(rows: Any, like: Arrays) -> Out:
    """Cut rows (heads, n) into arrays (heads, ...)."""
    cuts = np.cumsum([a[0].size for a in like.values()])[:-1]
    parts = np.split(rows, cuts, axis=1)
    return {k: a.reshape(like[k].shape) for k, a in zip(like, parts, strict=True)}


def shared(flat: Any, like: Arrays) -> Out:
    """Cut the shared weights (w,) into arrays."""
    return {k: a[0] for k, a in cut(flat[None], {k: a[None] for k, a in like.items()}).items()}


def flat(weights: Arrays) -> Any:
    """Put all shared weights into a row (w,)."""
    return np.concatenate([np.reshape(a, -1) for a in weights.values()])


def with_arrays(S: Values, given: Arrays) -> Values:
    """Put the arrays that stand for a state into it: what follows is computed from them."""
    new = Values(S, slots=[dict(slot) for slot in S.slots])
    for name, value in given.items():
        if name == "theta":
            new["factors"] = cut(value, S.factors)
        elif name == "W":
            new["weights"] = shared(value, S.weights)
        elif name == "copies":
            new["copies"] = cut(value, S.copies)
        elif name == "merged":  # None before the first merge: then all 0
            lora = {k: a for k, a in S.factors.items() if k not in S.weights}
            new["merged"] = cut(value, lora) if np.any(value) or S.merged else None
        else:
            for slot, row in zip(new.slots, value, strict=True):
                slot[name] = row
    return new


def fresh(v: Values, S: Values) -> Out:
    """Begin one head's optimizer state."""
    n, o = len(pack(S.factors, v.names, 0)), v.o
    if o.optimizer != "loko":
        first = o.initial_accumulator_value if o.optimizer == "adagrad" else 0.0
        return {name: np.full(n, first) for name in slot_names(o)}
    m = v.given["y"][0].size // (1 if whole(o) else o.heads)
    return {"p": v.given["p"], **({} if o.noise == "glm" else {"R": o.r0 * np.eye(m)})}


def start(v: Values) -> Values:
    """Begin: weights, all heads' trainables, copies, optimizer."""
    x, factors = v.given, {}
    for name in v.names:  # a layer without LoRA: a copy per head  [LTE-7]
        copies = [x["weights"][name]] * v.o.heads if name in x["weights"] else x["factors"][name]
        factors[name] = np.stack(copies)
    S = Values(weights=dict(x["weights"]), factors=factors, merged=None, copies=None)
    S |= {"t": 0, "merges": 0, "resets": 0}
    if v.o.realisation == "copies":
        S["copies"] = copied(v, S, None)
    return Values(S, slots=[fresh(v, S) for _ in range(v.o.heads)])


def schedule(o: Arrays, before: int) -> dict[str, int]:
    """Count what there was of a run of LTE before a step.

    Parameters
    ----------
    o : mapping
        Options of ``lte.run``.

    Returns
    -------
    dict of str to int
        ``t``, steps since the optimizer's state was initialised, ``merges`` and ``resets``.

    Examples
    --------
    >>> o = {"merge_at": [], "merge_every": 2, "mode": "lte", "optimizer_state": "reset"}
    >>> schedule({**o, "reset": "B", "reset_at": [4]}, 5)
    {'t': 1, 'merges': 2, 'resets': 1}
    """
    merges = []
    if o["mode"] == "lte":
        every = range(o["merge_every"], before + 1, o["merge_every"])
        merges = [at for at in o["merge_at"] or every if at <= before]
    resets = [at for at in merges if o["reset"] != "none" and at in (o["reset_at"] or merges)]
    first = max(merges, default=0) if o["optimizer_state"] == "reset" else 0
    return {"t": before - first, "merges": len(merges), "resets": len(resets)}


def whole(o: Values) -> bool:
    """Return whether every head gets the whole batch."""
    return bool(o.mode == "mhlora" or o.data == "replicated")


def scales(v: Values) -> list[tuple[str, float, list[tuple[str, str]]]]:
    """Name each linear with LoRA, its scale, and which of W, b are merged, by which formula."""
    found = []
    for layer in layers(v.o.spec):
        if layer.get("lora"):
            scale = v.F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
            parts = [("W", "lte.delta"), ("b", "lte.shift")]
            found.append((layer["name"], scale, parts[: 2 if layer["lora"].get("bias") else 1]))
    return found


def copied(v: Values, S: Values, memory: Any) -> Out:
    """Each head's weight copies: ``W - delta`` of what is remembered, W where nothing is."""
    copies: Out = {}
    for name, scale, parts in scales(v):
        for key, part in parts:
            W = S.weights[f"{name}.{key}"]
            rows = [W] * v.o.heads
            if memory is not None:
                every = [site(memory, name, h) for h in range(v.o.heads)]
                rows = [v.F["lte.copied"](W, v.F[part](q, scale)) for q in every]
            copies[f"{name}.{key}"] = v.keep("copies", np.stack(rows))
    return copies


# ---------------------------------------------------------------------------------- merge, reset


def _due(v: Values) -> bool:
    o, at = v.o, v["at"]
    return bool(at in o.merge_at if o.merge_at else v.F["lte.due"](at, o.merge_every))


def accumulated(v: Values) -> Any:
    """W and the replicas' means.  [LTE-4, LTE-5, LTE-7]."""
    F, S, heads = v.F, v.stepped, range(v.o.heads)
    weights = dict(S.weights)
    if not _due(v):
        return flat(weights)
    for name in v.names:
        if name in weights:
            weights[name] = F["lte.replica"](list(S.factors[name]))
    for name, scale, parts in scales(v):
        for key, part in parts:
            place = f"{name}.{key}"
            W, zero = weights[place], np.zeros_like(weights[place])
            now = [F[part](site(S.factors, name, h), scale) for h in heads]
            old = [zero for _ in heads]
            if S.copies is not None:  # a head sees W_copy + delta: what it adds to W
                now = [S.copies[place][h] + now[h] - W for h in heads]
            elif S.merged is not None:
                old = [F[part](site(S.merged, name, h), scale) for h in heads]
            weights[place] = v.keep(place, F["lte.merged"](W, now, old))
    return flat(weights)


def joined(v: Values) -> Values:
    """Find what is remembered of a merge, the replicas, the optimizer's state.  [LTE-5, LTE-7]."""
    F, S = v.F, Values(v.stepped, weights=shared(v.W, v.stepped.weights))
    if not _due(v):
        return S
    memory = F["lte.remembered"](S.factors, S.merged, False)
    replicas = {k: np.stack([S.weights[k]] * v.o.heads) for k in v.names if k in S.weights}
    S |= {"factors": {**S.factors, **replicas}, "merged": memory, "merges": S.merges + 1}
    if S.copies is not None:
        S["copies"] = copied(v, S, memory)
    slots, S["t"] = F["lte.state"](S.slots, S.t, v.o)
    S["slots"] = [{**fresh(v, S), **one} for one in slots]
    if v.o.optimizer == "loko":
        kept = F["lte.p_merged"]([one["p"] for one in S.slots], v.o.filter_merge)
        S["slots"] = [{**one, "p": p} for one, p in zip(S.slots, kept, strict=True)]
    return S


def after(v: Values) -> Values:
    """B = 0, A kept or redrawn; nothing remembers the merge.  [LTE-6]."""
    F, o, S = v.F, v.o, v.joined
    if o.reset != "none":
        S = with_arrays(S, {name: v[f"{name}_merge"] for name in kept(o)})
    if not _due(v) or o.reset == "none" or not F["lte.reset_due"](v["at"], S.merges, o.reset_at):
        return S
    factors, hit = dict(S.factors), []
    S["resets"] += 1
    for name in v.names:
        part = name.rsplit(".", 1)[1]
        gone = part in ("B", "bB") if name not in S.weights else False
        if o.reset == "AB" and part == "A":
            drawn = v.given["redraws"][name]
            factors[name] = F["lte.redrawn"](factors[name], drawn, S.merges, S.resets)
        elif gone or (o.reset == "AB" and part == "bA"):
            factors[name] = F["lte.zeroed"](factors[name], part)
        elif name not in S.weights:
            factors[name] = F["lte.left"](factors[name], part)
        redrawn = gone or (o.reset == "AB" and part in ("A", "bA"))
        hit.append(np.full(factors[name][0].size, redrawn))
    memory = F["lte.remembered"](v.stepped.factors, S.merged, True)
    S |= {"factors": factors, "merged": memory}
    if S.copies is not None:
        S["copies"] = copied(v, S, memory)
    if o.optimizer == "loko":
        prior, where = v.given["p"], np.concatenate(hit)
        p = [F["lte.p_reset"](one["p"], prior, where, o.filter_merge) for one in S.slots]
        S["slots"] = [{**one, "p": row} for one, row in zip(S.slots, p, strict=True)]
    return S


def kept(o: Values) -> list[str]:
    """Names of what a reset may change."""
    copies = o.realisation == "copies"
    return ["theta", *(["p"] if o.optimizer == "loko" else []), "copies" if copies else "merged"]


# ------------------------------------------------------------------------------- the formulas


def _delta(p: Arrays, scale: float) -> Any:
    """``scale B A``."""
    return scale * (p["B"] @ p["A"])


def _shift(p: Arrays, scale: float) -> Any:
    """``scale (B bA + bB)``, 0 without branch biases."""
    return scale * (p["B"] @ p["bA"] + p["bB"]) if "bB" in p else 0.0


def _wiped(slots: Any, t: int, o: Arrays) -> tuple[Any, int]:
    """Optimizer state after a merge: kept, or initialised again (what is missing is)."""
    return ([{} for _ in slots], 0) if o["optimizer_state"] == "reset" else (slots, t)


def _p_merged(p: Sequence[Any], how: str) -> list[Any]:
    """All heads' p after a merge that keeps them."""
    return [row / len(p) for row in p] if how == "shrink" else list(p)


LTE_FORMULAS: dict[str, Formula] = {
    "lte.scale": lambda alpha, r: alpha / r,
    "lte.chunks": lambda a, heads: np.split(a, heads),
    # what a head sees: its weight, given what it learned and what of that was merged  [LTE-3]
    "lte.seen": lambda W, now, old: W + now - old,
    # whose factors the gradients are taken at
    "lte.at": lambda p, old: p,
    # a head's cotangent, given its own mean's  [LTE-8]
    "lte.reduce": lambda dz, heads, reduction: dz / heads if reduction == "all" else dz,
    "lte.mse": lambda z, y: 2 * (z - y) / y.size,
    "lte.rate": lambda o, at: o["rates"][at - 1] if o["rates"] else o["lr"],
    # the merge  [LTE-4, LTE-5, LTE-7]
    "lte.merged": lambda W, now, old: W + sum(now) / len(now) - sum(old) / len(old),
    "lte.copied": lambda W, now: W - now,
    "lte.delta": _delta,
    "lte.shift": _shift,
    "lte.replica": lambda copies: sum(copies) / len(copies),
    # what is remembered of a merge, given what was remembered before it  [LTE-6]
    "lte.remembered": lambda p, old, reset: None if reset else p,
    "lte.zeroed": lambda a, part: np.zeros_like(a),
    "lte.left": lambda a, part: a,
    "lte.redrawn": lambda A, drawn, merge, resets: drawn[merge - 1],
    "lte.due": lambda t, every: t % every == 0,
    "lte.reset_due": lambda t, merge, named: not named or t in named,
    "lte.state": _wiped,
    "lte.mhlora": lambda deltas, scaling: sum(deltas) / (len(deltas) if scaling == "mean" else 1),
    # LoKO in the heads  [LTE-10]
    "lte.filter_of": lambda head: head,
    "lte.R_of": lambda R, head: R[head],
    "lte.innovation": lambda e, heads: e,
    "lte.p_merged": _p_merged,
    "lte.p_reset": lambda p, prior, hit, how: np.where(hit, prior, p) if how == "prior" else p,
    # the networks that are evaluated: all arrays as last merged, as a merge now would have them
    "lte.main": lambda W, before, now: W,
    "lte.copy": lambda copies: copies[0],  # a layer without LoRA, by the authors' evaluation
    "lte.now": lambda W, seen, deltas: sum(seen) / len(seen),
}
"""Name -> plain formula."""
