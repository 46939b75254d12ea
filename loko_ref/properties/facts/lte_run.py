"""Facts of whole runs of LTE: steps, merges, resets.

Shapes: theta (steps, heads, n); W (steps, w); x (steps, batch, ...).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import lte
from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.conformance.user_inputs import split
from loko_ref.network.spec import linears
from loko_ref.optimizers import SGD
from loko_ref.properties.facts.lte import due, parts_of, weights_of
from loko_ref.properties.numbers import Near
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Got, Problem, Problems, Trial, Unsuitable, exact

RUN = "lte.run"


def runs(**fixed: Any) -> Any:
    """Return the problems of short runs with some choices fixed, or drawn from a strategy."""

    def of(operation: str) -> Problems:
        @hs.composite
        def draw(draw: hs.DrawFn, small: bool) -> Problem:
            sizes: dict[str, Any] = {"max_heads": 2, "max_steps": 3, "max_chunk": 2}
            sizes |= {"max_width": 2, "max_depth": 1} if small else {}
            chosen = {k: draw(v) if hasattr(v, "example") else v for k, v in fixed.items()}
            run = draw(st.lte_runs(**(sizes | chosen)))
            arguments = run.arguments()
            arguments.pop("p0", None)  # LoKO's; p stands for it
            inputs, options = split(RUN, {k: a for k, a in arguments.items() if a is not None})
            if isinstance(run.config.optimizer, lte.Loko):
                n = len(run.state().theta[0])
                inputs["p"] = (0.5 + np.arange(n) % 3 / 4).astype(inputs["x"].dtype)
            if draw(hs.booleans()):
                inputs["evaluation"] = inputs["x"][0]
            return Problem(inputs=inputs, options=options)

        return lambda small: draw(small)

    return of


LOKO = hs.sampled_from(
    [
        lte.Loko(),
        lte.Loko(observation="logits", noise="ema_innovation", beta=0.5),
        lte.Loko(observation="softmax", noise="ema_innovation_hph", beta=0.5, timing="after"),
    ]
)
MERGING: dict[str, Any] = {"mode": "lte", "merge_every": hs.integers(1, 2)}
SGDS = hs.sampled_from([SGD(lr=0.125), SGD(lr=0.125, momentum=0.5)])


def _delta(t: Trial, got: Got, k: int, name: str, r: int, alpha: float) -> Near:
    """Return the mean over heads of delta after step k, before a reset."""
    key = "theta_merge" if got.has("theta_merge") else "theta"
    value, off = parts_of(t, got[key][k]), parts_of(t, got.tol[key][k])
    heads = len(got[key][k])
    total = Near(0.0)
    for h in range(heads):
        B, A = (Near(value[f"{name}.{f}"][h], off[f"{name}.{f}"][h]) for f in "BA")
        total = B @ A if h == 0 else total + B @ A
    return total * Near(exact(alpha) / r / heads)


@fact(RUN, "telescopes", "LTE-5", "a merge makes W - W_0 the mean of the deltas; between W stays",
      runs(**MERGING))  # fmt: skip
def _telescopes(t: Trial) -> None:
    got, o = t.run(), t.options
    if not got.has("W", "theta"):
        return
    steps = len(got["W"])
    merges, resets = due(o, steps), due(o, steps, "reset_at")
    fresh = o.get("reset", "none") != "none"
    start: dict[str, Near] = {k: Near(a) for k, a in t.given["weights"].items()}
    base = dict(start)
    for k in range(steps):
        W, tol = weights_of(t, got["W"][k]), weights_of(t, got.tol["W"][k])
        for linear in linears(o["spec"]):
            name = f"{linear['name']}.W"
            if not linear.get("lora"):
                continue
            now = Near(W[name], tol[name])
            if merges[k]:
                lora = linear["lora"]
                add = _delta(t, got, k, linear["name"], lora["r"], lora["alpha"])
                now.meets(t, name, base[name] + add)
            else:
                now.meets(t, name, start[name])
            start[name] = now
            if merges[k] and fresh and resets[k]:
                base[name] = now


@fact(RUN, "sees W", "LTE-3 LTE-5 LTE-6", "right after a merge, or a reset, every head sees W",
      runs(**MERGING))  # fmt: skip
def _run_sees(t: Trial) -> None:
    got = t.run()
    if not got.has("W", "seen"):
        return
    for k in np.flatnonzero(due(t.options, len(got["W"]))):
        W, tol = weights_of(t, got["W"][k]), weights_of(t, got.tol["W"][k])
        names = [f"{x['name']}.W" for x in linears(t.options["spec"])]
        if any(name not in W for name in names):
            return
        flat = [np.concatenate([a[name].reshape(-1) for name in names]) for a in (W, tol)]
        if flat[0].shape == got["seen"][k].shape[1:]:
            t.near("seen", got["seen"][k], np.broadcast_to(flat[0], got["seen"][k].shape),
                   got.tol["seen"][k] + flat[1])  # fmt: skip


@fact(RUN, "resets", "LTE-6", "a reset leaves B = 0, A redrawn or kept, and nothing merged",
      runs(reset=hs.sampled_from(["B", "AB"]), **MERGING))  # fmt: skip
def _resets(t: Trial) -> None:
    _check_resets(t, t.run(), t.options, t.given.get("redraws", {}))
    chosen = {"merge_at": [1, 3, 4], "reset_at": [3]}
    x, y = (np.concatenate([a] * 4)[:4] for a in t.wide("x", "y"))
    redraws = {
        k: np.stack([a[0] + j for j in range(3)]) for k, a in t.given.get("redraws", {}).items()
    }
    got = t.run(options=chosen, x=x, y=y, redraws=redraws or None)
    _check_resets(t, got, {**t.options, **chosen}, redraws)


def _check_resets(t: Trial, got: Got, o: Any, redraws: Any) -> None:
    """Raise unless what is reset is, after those merges that a reset follows alone."""
    steps = len(got["theta"])
    merges, resets = due(o, steps), due(o, steps, "reset_at")
    adapted = {x["name"] for x in linears(o["spec"]) if x.get("lora")}
    for k in range(steps):
        parts, tol = parts_of(t, got["theta"][k]), parts_of(t, got.tol["theta"][k])
        before = parts_of(t, got["theta_step"][k]) if got.has("theta_step") else {}
        for name, value in parts.items():
            owner, key = name.rsplit(".", 1)
            if owner not in adapted:
                continue
            drawn = resets[k] and o["reset"] == "AB" and key in ("A", "bA")
            if resets[k] and (key in ("B", "bB") or (drawn and key == "bA")):
                t.near(name, value, 0 * value, tol[name])
            elif drawn:
                wanted = np.asarray(redraws[name][sum(merges[: k + 1]) - 1], dtype=float)
                t.near(name, value, wanted, tol[name])
            elif before:
                t.near(name, value, before[name], 2 * tol[name])
        if resets[k] and got.has("merged"):
            t.near("merged", got["merged"][k], 0 * got["merged"][k], got.tol["merged"][k])


@fact(RUN, "one head is LoRA", "LTE-5", "one head, never reset, moves alike whenever it merges",
      runs(heads=1, reset="none", optimizer_state="keep", filter_merge="keep",
                      optimizer=hs.one_of(SGDS, LOKO), loss="cross_entropy", **MERGING),
      "one head, reset none")  # fmt: skip
def _lora(t: Trial) -> None:
    never = {"merge_every": 1000, "merge_at": [], "reset_at": []}
    a, b = t.run(), t.run(options=never)
    names = ("z", "gradient", "theta_step", "p_step", "R_step")
    for name in names:
        if a.has(name) and b.has(name):
            t.near(name, a[name], b[name], a.tol[name] + b.tol[name])


@fact(RUN, "two realisations", "LTE-3 LTE-4", "weight copies and a shared weight move alike",
      runs(**MERGING))  # fmt: skip
def _copies(t: Trial) -> None:
    a, b = (t.run(options={"realisation": kind}) for kind in ("shared", "copies"))
    names = (
        "z",
        "loss",
        "gradient",
        "theta_step",
        "W",
        "theta",
        "p",
        "R",
        "z_main",
        "z_now",
        "seen",
    )
    t.same(a, b, names)


@fact(RUN, "heads permuted", "LTE-1", "heads permuted with their chunks come out permuted",
      runs(heads=hs.sampled_from([2, 3]), **MERGING))  # fmt: skip
def _permuted(t: Trial) -> None:
    heads, o = t.options["heads"], t.options
    order = np.roll(np.arange(heads), 1)
    x, y = t.wide("x", "y")
    if o.get("data", "chunks") == "chunks":
        rows = np.arange(x.shape[1]).reshape(heads, -1)[order].reshape(-1)
        x, y = x[:, rows], y[:, rows]
    changes: dict[str, Any] = {"x": x, "y": y}
    changes["factors"] = {k: a[order] for k, a in t.given["factors"].items()}
    if "redraws" in t.given:
        changes["redraws"] = {k: a[:, order] for k, a in t.given["redraws"].items()}
    undo = np.argsort(order)
    common = ("W", "z_main", "z_now")

    def back(name: str, value: Array) -> Array:
        return value if name in common else value[:, undo]

    t.same(t.run(), t.run(**changes), back=back)


@fact(RUN, "alone until a merge", "LTE-1 LTE-8 LTE-10",
      "before a merge a head is as a run of one head on its chunk (its gradient by 1 / heads)",
      runs(mode="lte", heads=hs.sampled_from([2, 3]), merge_every=1000,
            optimizer=hs.one_of(SGDS, LOKO), loss="cross_entropy"), "no merge")  # fmt: skip
def _alone(t: Trial) -> None:
    got, o, (x, y) = t.run(), t.options, t.wide("x", "y")
    heads = o["heads"]
    share = 1 if o["optimizer"] == "loko" or o.get("reduction", "all") == "own" else heads
    first = {"x": x[:1], "y": y[:1]}
    for head in range(heads):
        rows = slice(None)
        if o.get("data", "chunks") == "chunks":
            each = x.shape[1] // heads
            rows = slice(head * each, (head + 1) * each)
        factors = {k: a[head : head + 1] for k, a in t.given["factors"].items()}
        redraws = {k: a[:, head : head + 1] for k, a in t.given.get("redraws", {}).items()}
        steps = x if share == 1 else first["x"]
        one = t.run(
            options={"heads": 1, "filter_merge": "keep"},
            factors=factors,
            redraws=redraws or None,
            x=steps[:, rows],
            y=y[: len(steps), rows],
        )
        for name in ("z", "loss", "gradient", "theta_step", "p_step", "R_step"):
            if not (one.has(name) and got.has(name)) or (share > 1 and name == "theta_step"):
                continue
            value, tol = one[name][:, 0], one.tol[name][:, 0]
            if name == "gradient":
                value, tol = value / share, tol / share
            mine = got[name][: len(value), head]
            t.near(name, mine, value, tol + got.tol[name][: len(value), head])


@fact(RUN, "descent", "OPT-1 LTE-8", "SGD moves theta by -rate times the gradient",
      runs(mode="lte", optimizer=SGD(lr=0.125), merge_every=hs.integers(1, 2)),
      "SGD without momentum")  # fmt: skip
def _descent(t: Trial) -> None:
    steps = len(t.given["x"])
    rates = [0.25 / (1 + k) for k in range(steps)]
    got = t.run(options={"rates": rates})
    if not got.has("theta_step", "gradient", "theta"):
        return
    for k in range(1, steps):
        before = Near(got["theta"][k - 1], got.tol["theta"][k - 1])
        gradient = Near(got["gradient"][k], got.tol["gradient"][k])
        moved = before - Near(rates[k]) * gradient
        Near(got["theta_step"][k], got.tol["theta_step"][k]).meets(t, "theta_step", moved)


@fact(RUN, "mean square", "LTE-8", "mse is the mean of (z - y)^2 over samples and outputs",
      runs(mode="lte", loss="mse"), "loss mse")  # fmt: skip
def _mse(t: Trial) -> None:
    got, o, (y,) = t.run(), t.options, t.exact("y")
    if not got.has("z", "loss"):
        return
    steps, heads, batch, C = got["z"].shape
    chunks = o.get("data", "chunks") == "chunks" and heads * batch == y.shape[1]
    wanted = y.reshape(steps, heads, batch, C) if chunks else np.stack([y] * heads, axis=1)
    left = Near(got["z"], got.tol["z"]) - Near(wanted)
    square = left * left
    count = batch * C
    loss = Near(square.value.sum(axis=(2, 3)) / count, square.off.sum(axis=(2, 3)) / count)
    Near(got["loss"], got.tol["loss"]).meets(t, "loss", loss)


@fact(RUN, "downhill", "LTE-8", "the gradient is the derivative of the loss",
      runs(mode="lte", optimizer=SGD(lr=0.125), max_steps=1), "one step")  # fmt: skip
def _downhill(t: Trial) -> None:
    from loko_ref.properties.numbers import derivative

    got, o = t.run(), t.options
    if not got.has("gradient", "loss"):
        return
    share = o["heads"] if o.get("reduction", "all") == "all" else 1
    size = {
        k: 1.0 + np.arange(a[0].size).reshape(a[0].shape) for k, a in t.given["factors"].items()
    }

    def along(h: float) -> tuple[Array, Array]:
        moved = {k: np.asarray(a, float) + h * size[k] for k, a in t.given["factors"].items()}
        loss = t.values(factors=moved)["loss"][0]
        u = float(np.finfo(t.dtype).eps) * 8
        return loss, 4 * got.tol["loss"][0] + u * (1 + np.abs(loss))

    slope, bound = derivative(along, 2.0**-6)
    parts, tol = parts_of(t, got["gradient"][0]), parts_of(t, got.tol["gradient"][0])
    names = [name for name in parts if name in size]
    total = sum((parts[k] * size[k]).reshape(o["heads"], -1).sum(axis=1) for k in names)
    off = sum((tol[k] * size[k]).reshape(o["heads"], -1).sum(axis=1) for k in names)
    t.near(
        "the derivative of the loss",
        share * np.asarray(total),
        slope,
        share * np.asarray(off) + bound,
    )


@fact(RUN, "state begun anew", "LTE-5 LTE-10", "a merge that resets the state begins p, R anew",
      runs(optimizer=LOKO, loss="cross_entropy", optimizer_state="reset", **MERGING),
      "optimizer_state reset")  # fmt: skip
def _anew(t: Trial) -> None:
    _state(t)


@fact(RUN, "state at a merge", "LTE-5 LTE-10",
      "a merge keeps momenta, p, R, begins them anew, or shrinks p; it averages replicas",
      runs(optimizer=hs.one_of(SGDS, LOKO), loss="cross_entropy",
            filter_merge=hs.sampled_from(["keep", "shrink"]), **MERGING))  # fmt: skip
def _state(t: Trial) -> None:
    got, o = t.run(), t.options
    steps = len(t.given["x"])
    anew = o.get("optimizer_state", "keep") == "reset"
    shrink = o.get("filter_merge", "keep") == "shrink"
    for k, merges in enumerate(due(o, steps)):
        for name in ("momentum", "p", "R"):
            if not got.has(name, f"{name}_step"):
                continue
            now, tol = got[name][k], got.tol[name][k]
            wanted = got[f"{name}_step"][k]
            tol = tol + got.tol[f"{name}_step"][k]
            if merges and anew:
                wanted = 0 * now
                if name == "p":
                    wanted = wanted + np.asarray(t.given["p"], dtype=float)
                elif name == "R":
                    wanted = wanted + o.get("r0", 1.0) * np.eye(now.shape[-1])
            elif merges and shrink and name == "p":
                wanted = wanted / o["heads"]
            t.near(name, now, wanted, tol)
        if merges and got.has("theta", "theta_step"):
            parts, off = parts_of(t, got["theta"][k]), parts_of(t, got.tol["theta"][k])
            before = parts_of(t, got["theta_step"][k])
            adapted = {x["name"] for x in linears(o["spec"]) if x.get("lora")}
            for name, value in parts.items():
                if name.rsplit(".", 1)[0] not in adapted:
                    mean = np.broadcast_to(before[name].mean(axis=0), value.shape)
                    t.near(name, value, mean, 4 * off[name])


@fact(RUN, "prior at a reset", "LTE-10", "what is reset gets its prior variance, the rest keeps p",
      runs(optimizer=LOKO, loss="cross_entropy", filter_merge="prior", heads=2,
            reset=hs.sampled_from(["B", "AB"]), **MERGING), "filter_merge prior")  # fmt: skip
def _prior(t: Trial) -> None:
    got, o = t.run(), t.options
    if not got.has("p", "p_step"):
        return
    fresh = ("B", "bB") if o["reset"] == "B" else ("A", "B", "bA", "bB")
    prior = parts_of(t, np.asarray(t.given["p"], dtype=float))
    adapted = {x["name"] for x in linears(o["spec"]) if x.get("lora")}
    for k in np.flatnonzero(due(o, len(got["p"]), "reset_at")):
        now, off = parts_of(t, got["p"][k]), parts_of(t, got.tol["p"][k])
        before = parts_of(t, got["p_step"][k])
        for name, value in now.items():
            owner, key = name.rsplit(".", 1)
            new = owner in adapted and key in fresh
            wanted = np.broadcast_to(prior[name] if new else before[name], value.shape)
            t.near(f"p of {name}", value, wanted, 2 * off[name])


@fact(RUN, "evaluated", "LTE-13", "after a merge z_now is z_main; of equal heads it is theirs",
      runs(data="replicated", **MERGING), "with evaluation")  # fmt: skip
def _evaluated(t: Trial) -> None:
    if "evaluation" not in t.given:
        raise Unsuitable("nothing is evaluated")
    got, o = t.run(), t.options
    if got.has("z_main", "z_now"):
        for k in np.flatnonzero(due(o, len(got["z_now"]))):
            tol = got.tol["z_main"][k] + got.tol["z_now"][k]
            t.near("z_now", got["z_now"][k], got["z_main"][k], tol)
    never = {"merge_every": 1000, "merge_at": [], "reset_at": []}
    others = {k: a[..., ::-1] + 1 for k, a in t.given["factors"].items()}
    a, b = t.run(options=never), t.run(options=never, factors=others)
    if a.has("z_main") and b.has("z_main"):  # of the weights, whatever is not merged yet
        tol = a.tol["z_main"][0] + b.tol["z_main"][0]
        t.near("z_main", a["z_main"][0], b["z_main"][0], tol)
    one = {k: a[:1].repeat(o["heads"], axis=0) for k, a in t.given["factors"].items()}
    x = t.wide("x")[0][:1].repeat(2, axis=0)
    y = t.wide("y")[0][:1].repeat(2, axis=0)
    equal = t.run(options=never, factors=one, x=x, y=y, evaluation=x[0])
    if equal.has("z", "z_now"):  # the second step's outputs are those after the first
        tol = equal.tol["z"][1, 0] + equal.tol["z_now"][0]
        t.near("z_now", equal["z_now"][0], equal["z"][1, 0], tol)
