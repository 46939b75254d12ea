"""LTE's quantities: the forward pass, the merge, and a run step by step, head by head.

What a head computes is in ``lte_heads``; its filter is that of ``loko``, its descents those of
``optimizers``. A step of a run begins with the state ``before``, which ``last.theta``, ``last.W``
and so on hold as arrays; ``heads`` are the heads' values, ``stepped`` the state after their local
steps, ``joined`` the one after a merge, ``after`` the one after a reset.

Shapes: W (o, i); b (o,); factors, copies (heads, ...); theta, p (heads, n); R (heads, m, m);
x (batch, ...); z (heads, batch, C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from loko_ref.textbook.lte_heads import (
    all_seen,
    head_formulas,
    head_values,
    local_step,
    outputs,
    pack,
    run_dense,
    seen,
    site,
    slot_names,
    trained,
)
from loko_ref.textbook.lte_state import LTE_FORMULAS as LTE_FORMULAS
from loko_ref.textbook.lte_state import (
    SLOTS,
    accumulated,
    after,
    array,
    cut,
    flat,
    joined,
    kept,
    scales,
    schedule,
    start,
    whole,
    with_arrays,
)
from loko_ref.textbook.network import layers, own
from loko_ref.textbook.quantities import Formula, Lazy, Quantity, Values, evaluate, inner, quantity

Arrays = Mapping[str, Any]
Out = dict[str, Any]
Keep = Callable[[str, Any], Any]
Table = Mapping[str, Formula]


def lte_forward(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Every head's outputs (mhlora: the one network's).  [LTE-2, LTE-3]."""
    state = {"merged": None, "copies": None, **{k: a for k, a in x.items() if k != "x"}}
    flow = (*seen(o["spec"], x["weights"]), *outputs(o["spec"], F)[0])

    def of_head(head: int, own: Any) -> Any:
        v = Values({**o, **state, "F": head_formulas(F), "keep": keep, "head": head, "x": own})
        return evaluate(v, flow)["z"]

    if o["mode"] == "mhlora":
        return {"z": of_head(0, x["x"])}
    return {"z": np.stack([of_head(head, own) for head, own in enumerate(x["x"])])}


# ------------------------------------------------------------------------------- the merge alone


def merge(o: Arrays) -> tuple[Quantity, ...]:
    """List the quantities of a merge of one linear.  [LTE-5, LTE-6].

    Parameters
    ----------
    o : mapping
        ``alpha`` and ``reset``.
    """
    reset = o["reset"] != "none"

    def heads(v: Values, mark: str = "") -> list[Out]:
        return [{"A": A, "B": B} for A, B in zip(v[f"A{mark}"], v[f"B{mark}"], strict=True)]

    def delta(v: Values, one: Out) -> Any:
        return v.F["lte.delta"](one, v.F["lte.scale"](o["alpha"], v.A.shape[1]))

    def deltas(v: Values, name: str) -> list[Any]:
        return [v.keep(name, delta(v, one)) for one in heads(v, name.removeprefix("delta"))]

    def each(v: Values) -> Any:
        found = []
        for p, old in zip(heads(v), heads(v, "_merged"), strict=True):
            q = {**p, "B": v.F["lte.zeroed"](p["B"], "B")} if reset else p
            memory = v.F["lte.remembered"](p, old, reset)
            was = np.zeros_like(v.W) if memory is None else delta(v, memory)
            found.append(v.F["lte.seen"](v.W_post, delta(v, q), was))
        return np.stack(found)

    return (
        quantity("delta", "A B", "lte.delta", "(alpha / r) B A", "LTE-5",
                 rule=lambda v: deltas(v, "delta"), exact=True, hidden=True),
        quantity("delta_merged", "A_merged B_merged", "lte.delta", "the same, as last merged",
                 "LTE-5", rule=lambda v: deltas(v, "delta_merged"), exact=True, hidden=True),
        quantity("W_post", "W delta delta_merged", "lte.merged", "W + mean(delta - delta')",
                 "LTE-5", rule=lambda v: v.F["lte.merged"](v.W, v.delta, v.delta_merged)),
        quantity("seen", "W_post A B", "lte.seen", "W + delta - delta'", "LTE-3 LTE-5 LTE-6",
                 rule=each),
    )  # fmt: skip


def lte_merge(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """W after the merge, and what each head then sees.  [LTE-5, LTE-6]."""
    found = evaluate(Values(x, F=F, keep=keep), merge(o))
    return {"W": found["W_post"], "seen": found["seen"]}


# ------------------------------------------------------------------------------- the heads' steps


OF_HEAD = {f"{name}_step": f"{name}_post" for name in ("theta", "p", "R", *SLOTS)}
OF_HEAD |= {name: name for name in ("z", "loss", "Z", "gradient")}
"""Output of the heads' steps -> its name among a head's values."""


def _heads(v: Values) -> list[Values]:
    """Take a step of every head from the same state: each head's values.

    Where quantities are followed one by one, a head has its rows of those that are given.
    """
    S, F, o = v.before, v.F, v.o
    xs, ys = (([a] * o.heads if whole(o) else F["lte.chunks"](a, o.heads)) for a in (v.x, v.y))
    flow, slots = v.get("step") or local_step(o, F, S.weights), list(S.slots)
    rows: list[Values] = []
    for head in range(o.heads):
        w, which = head_values(v, S, head, xs[head]), F["lte.filter_of"](head)
        w |= {"keep": inner(v.keep, head), "y": ys[head], "at": v["at"], "t": S.t + 1}
        w |= {"loss_kind": o.loss}
        w |= {"covariance": "diagonal"}
        w.F["e"] = lambda u: F["lte.innovation"](F["e"](u), o.heads)
        if o.optimizer == "loko":
            w |= {"outputs": partial(_moved, v, S, w), "p": slots[which]["p"]}
        if "R" in S.slots[0]:
            before = [slot["R"] for slot in S.slots]
            w["R"] = F["lte.R_of"](before, which) if which == head else slots[which]["R"]
        if isinstance(v, Lazy):
            given = {own: v[name][head] for name, own in OF_HEAD.items() if name in v}
            rows.append(Lazy(flow, w, given))
            continue
        w |= evaluate(w, flow)
        rows.append(w)
        slots[which] = {k: w[f"{k}_post"] for k in ("p", "R") if f"{k}_post" in w}
    return rows


def _of_heads(own: str) -> Formula:
    def rule(v: Values) -> Any:
        if isinstance(v, Lazy):
            return np.stack([w.follow(own) for w in v.heads])
        of = v.F["lte.filter_of"] if own in ("p_post", "R_post") else int
        last = {of(head): head for head in range(len(v.heads))}  # who wrote it last
        return np.stack([v.heads[last[of(head)]][own] for head in range(len(v.heads))])

    return rule


def _moved(v: Values, S: Values, w: Values, theta: Any) -> Any:
    """Return the outputs of one head elsewhere: the residual's.  [NOISE-4]."""
    heads = range(v.o.heads)
    rows = np.stack([theta if h == w.head else pack(S.factors, v.names, h) for h in heads])
    return run_dense(v, head_values(v, Values(S, factors=cut(rows, S.factors)), w.head, w.x))


# ------------------------------------------------------------------------ seen, and evaluated


def _shown(v: Values) -> Any:
    """Return the weights that each head sees, of linears with LoRA or a copy per head."""
    names = [f"{k['name']}.W" for k in layers(v.o.spec) if k.get("lora") or _copy(v, k)]
    every = all_seen(v, v.state)
    return np.stack([np.concatenate([dense[k].reshape(-1) for k in names]) for dense in every])


def _copy(v: Values, layer: Arrays) -> bool:
    return f"{layer['name']}.W" in v.names


def _evaluated(v: Values) -> tuple[Out, Out, Out]:
    """Return the main network's weights: as last merged, as a merge now would, and by one copy.

    The last are those last merged, but for layers without LoRA: there the first head's copy.
    """
    S, every = v.state, all_seen(v, v.state)
    if v.o.mode == "mhlora":
        return {}, every[0], {}
    main, now = dict(S.weights), dict(S.weights)
    own = [name for name in v.names if name in S.weights]
    places: Out = {name: [a - S.weights[name] for a in S.factors[name]] for name in own}
    for name, scale, parts in scales(v):
        for key, part in parts:
            sites = [site(S.factors, name, h) for h in range(v.o.heads)]
            places[f"{name}.{key}"] = [v.F[part](p, scale) for p in sites]
    for name, deltas in places.items():
        W = S.weights[name]
        now[name] = v.keep(name, v.F["lte.now"](W, [dense[name] for dense in every], deltas))
        main[name] = v.F["lte.main"](W, v.before.weights[name], now[name])
    return main, now, main | {name: v.F["lte.copy"](list(S.factors[name])) for name in own}


# ------------------------------------------------------------------------------------- the run


def _q(name: str, parents: str, equation: str, labels: str, **more: Any) -> Quantity:
    return quantity(name, parents, "", equation, labels, exact=True, **more)


_LAST = ("W", "theta", "p", "R", "merged", "copies", *SLOTS)
_SEEN = "last.W last.theta last.merged last.copies"
_NEW = " ".join(f"{k}_step" for k in SLOTS)
_OPT = dict(zip(SLOTS, ("OPT-1", "OPT-2", "OPT-3", "OPT-3"), strict=True))

RUN = (
    _q("before", " ".join(f"last.{k}" for k in _LAST), "the state before", "LTE-1", hidden=True),
    _q("heads", "x y before", "a step of every head", "LTE-1", hidden=True),
    _q("z", f"x {_SEEN}", "f(x) of the weights that the head sees", "LTE-2 LTE-3 LTE-4"),
    _q("loss", "z y", "the head's mean loss", "LTE-8"),
    _q("Z", f"x {_SEEN}", "dz / dtheta, at the full A and B", "LTE-3 LTE-10"),
    _q("gradient", f"x z y {_SEEN}", "dloss / dtheta, at the full A and B", "LTE-3 LTE-8"),
    *(_q(f"{k}_step", f"gradient last.theta last.{k}", "as optimizer.*", _OPT[k]) for k in SLOTS),
    _q("theta_step", f"gradient {_NEW} Z z y last.theta last.p last.R",
       "as optimizer.*, or loko.step", "LTE-1"),
    _q("p_step", "Z z y last.p last.R", "as loko.step", "LTE-10"),
    _q("R_step", "Z z y last.p last.R", "as loko.step", "LTE-10"),
    _q("stepped", f"before theta_step p_step R_step {_NEW}", "the state after it", "LTE-1",
       hidden=True),
    _q("W", "theta_step last.W last.merged last.copies", "W + mean(delta - delta')", "LTE-5 LTE-7"),
    _q("joined", "stepped W", "the state after a merge", "LTE-5 LTE-7", hidden=True),
    *(_q(k, f"{k}_step", f"{k}_step, or begun anew", _OPT[k]) for k in SLOTS),
    _q("theta_merge", "theta_step W", "theta_step, replicas averaged", "LTE-7"),
    _q("p_merge", "p_step", "p_step, p_step / heads, or begun anew", "LTE-10"),
    _q("merged_merge", "theta_step last.merged", "A, B", "LTE-5"),
    _q("copies_merge", "W theta_step last.copies", "W - delta", "LTE-4"),
    _q("after", "joined theta_merge p_merge merged_merge copies_merge", "the state after a reset",
       "LTE-6", hidden=True),
    _q("theta", "theta_step W theta_merge", "theta_merge; at a reset B = 0, A kept or redrawn",
       "LTE-1 LTE-6 LTE-7"),
    _q("p", "p_step p_merge", "p_merge, or the prior where reset", "LTE-10"),
    _q("R", "R_step", "R_step, or begun anew", "LTE-10"),
    _q("merged", "theta_step merged_merge last.merged", "merged_merge; 0 at a reset",
       "LTE-3 LTE-5 LTE-6"),
    _q("copies", "W theta_step copies_merge last.copies", "copies_merge; W at a reset",
       "LTE-4 LTE-6"),
    _q("state", "after W theta p R merged copies", "the state of the next step", "LTE-1",
       hidden=True),
    _q("seen", "W theta merged copies", "W + delta - delta'", "LTE-3 LTE-4 LTE-6"),
    _q("evaluated", "state", "the main network's weights", "LTE-13", hidden=True),
    _q("z_main", "evaluation W", "f(evaluation) of W", "LTE-5 LTE-13"),
    _q("z_now", "evaluation W theta merged copies", "f(evaluation) of W + mean(delta - delta')",
       "LTE-2 LTE-13"),
    _q("z_first", "evaluation W theta", "f(evaluation) of W and the first head's copies",
       "LTE-7 LTE-13"),
)  # fmt: skip
"""Quantities of a step of a run in dataflow order, those of every choice of options."""

_NAMES = {q.name for q in RUN}


def state_names(o: Arrays) -> list[str]:
    """Name the arrays that stand for the state of a run, in dataflow order."""
    loko = o["optimizer"] == "loko"
    own = ["theta", *slot_names(o), *(["p"] if loko else [])]
    own += ["R"] if loko and o["noise"] != "glm" else []
    memory = "copies" if o["realisation"] == "copies" else "merged"
    return [*own, *(["W", memory] if o["mode"] == "lte" else [])]


def _rules(o: Values, evaluation: bool) -> dict[str, Formula]:
    """Name of each quantity that there is under the options -> how it is computed."""
    lte, loko, every = o.mode == "lte", o.optimizer == "loko", state_names(o)
    state = every[:-2] if lte else every
    steepest = "Z" if loko else "gradient"

    def before(v: Values) -> Values:
        given = {name: v[f"last.{name}"] for name in _LAST if f"last.{name}" in v}
        return with_arrays(Values(start(v), **v.get("counts", {})), given)

    def stepped(v: Values) -> Values:
        given = {name: v[f"{name}_step"] for name in state}
        return Values(with_arrays(v.before, given), t=v.before.t + 1)

    def stored(stage: str, name: str) -> Formula:
        return lambda v: array(v, v[stage], name)

    def main(k: int) -> Formula:
        def rule(v: Values) -> Any:
            w = head_values(v, v.before, 0, v.given["evaluation"])
            return run_dense(v, Values(w, dense=v.evaluated[k]))

        return rule

    def ended(v: Values) -> Values:
        given = {name: v[name] for name in every}
        return with_arrays(v.after, given)

    found: dict[str, Formula] = {"state": ended, "before": before, "heads": _heads}
    found |= {name: _of_heads(name) for name in ("z", "loss", steepest)}
    found |= {f"{name}_step": _of_heads(f"{name}_post") for name in state}
    found |= {"stepped": stepped, "W": lambda v: accumulated(v) if lte else flat(v.stepped.weights)}
    found |= {name: stored("after", name) for name in state}
    found |= {name: stored("joined", name) for name in slot_names(o)}
    if lte:
        found |= {"joined": joined, "after": after, "seen": _shown}
        found |= {name: stored("after", name) for name in kept(o)}
        found |= {f"{k}_merge": stored("joined", k) for k in (kept(o) if o.reset != "none" else ())}
    else:
        found |= {name: lambda v: v.stepped for name in ("joined", "after")}
    if evaluation:
        found |= {"evaluated": _evaluated, "z_now": main(1), **({"z_main": main(0)} if lte else {})}
        copies = o.replicas == "train" and any(own(k) and not k.get("lora") for k in layers(o.spec))
        found |= {"z_first": main(2)} if lte and copies else {}
    return found


def run(o: Arrays, evaluation: bool = False) -> tuple[Quantity, ...]:
    """List the quantities of a step of a run, its merge and its reset, in dataflow order.

    Parameters
    ----------
    o : mapping
        Options of ``lte.run``.
    evaluation : bool
        Whether the main network is run on given inputs too.
    """
    rules = _rules(Values(o), evaluation)
    return tuple(
        replace(
            q,
            rule=rules[q.name],
            parents=tuple(k for k in q.parents if k in rules or k not in _NAMES),
            hidden=q.hidden or (o["mode"] == "mhlora" and q.name.endswith("_step")),
        )
        for q in RUN
        if q.name in rules
    )


def _fixed(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Values:
    """Return the values that all steps of a run share."""
    names = trained(o, x["weights"])
    fixed = Values(o=Values(o), F=F, keep=keep, given=x, names=names)
    fixed["step"] = local_step(o, F, x["weights"])
    return fixed


def _shown_of(v: Values, flow: tuple[Quantity, ...]) -> Out:
    return {q.name: v[q.name] for q in flow if not q.hidden}


def lte_step(x: Arrays, o: Arrays, F: Table, keep: Keep, at: int) -> Out:
    """Take step `at` = 1, 2, ... of a run from the state ``last.W``, ``last.theta``, ... in x.

    Without these it is the first one. x and y are those of this step.  [LTE-1]
    """
    flow, fixed = run(o, "evaluation" in x), _fixed({**x, "y": x["y"][None]}, o, F, keep)
    state = {name: a for name, a in x.items() if name.startswith("last.")}
    v = Values(fixed, at=at, x=x["x"], y=x["y"], counts=schedule(o, at - 1), **state)
    evaluate(v, flow)
    return _shown_of(v, flow)


def lte_run(x: Arrays, o: Arrays, F: Table, keep: Keep) -> Out:
    """Take steps, merges and resets; every state array after each of them.  [LTE-1]."""
    flow, fixed = run(o, "evaluation" in x), _fixed(x, o, F, keep)
    before, steps = start(fixed), []
    for at, (bx, by) in enumerate(zip(x["x"], x["y"], strict=True), start=1):
        v = Values(fixed, at=at, x=bx, y=by, before=before)
        evaluate(v, (q for q in flow if q.name not in ("before", "z_first")))
        before = v.state
        steps.append(v)
    for v in steps:  # behind all others, so that their disturbances are what they were without it
        evaluate(v, (q for q in flow if q.name == "z_first"))
    rows = [_shown_of(v, flow) for v in steps]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
