"""Facts of LoKO's steps and runs: symmetries, and what a run carries.

Shapes: theta, p (n,); P (n, n); x (batch, ...); y (batch, C); R (m, m); m = batch * C; of a run
with a leading axis of steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.network.spec import factor_shapes
from loko_ref.properties.facts.loko import dense, posterior, steps, unpacked
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Trial, Unsuitable

__all__: list[str] = []

STEP, RUN = "loko.step", "loko.run"


def _scaled(t: Trial, c: Array) -> dict[str, Any]:
    """Return the inputs with parameters in other units."""
    theta, name = t.wide("theta")[0], posterior(t)[1]
    return {"theta": c * theta, name: t.wide(name)[0] * (np.outer(c, c) if dense(t) else c**2)}


@fact(f"{STEP} {RUN}", "factors in other units", "LOKO-1 KAL-7 LORA-2",
      "A / 2 and 2 B are the same network: theta and its covariance come out in those units", steps,
      "q = 0")  # fmt: skip
def _units(t: Trial) -> None:
    unit = {"A": 0.5, "bA": 0.5, "B": 2.0, "bB": 1.0}
    shapes = factor_shapes(t.options["spec"])
    c = np.concatenate(
        [np.full(int(np.prod(s)), unit[k.split(".")[-1]]) for k, s in shapes.items()]
    )
    a, b = t.run(options={"q": 0.0}), t.run(options={"q": 0.0}, **_scaled(t, c))
    units = {"theta": c, "p": c**2, "P": np.outer(c, c), "p_pred": c**2, "P_pred": np.outer(c, c)}
    units |= {"K": c[:, None], "Z": 1 / c, "H": 1 / c}
    t.same(a, b, back=lambda name, value: value / units.get(name, 1.0))


@fact(
    f"{STEP} {RUN}",
    "samples permuted",
    "LOKO-2",
    "the order of the samples within a stacked batch changes nothing",
    steps,
    "batches of 2",
)
def _samples(t: Trial) -> None:
    axis = 0 if t.held.operation == STEP else 1
    x, y = t.wide("x", "y")
    batch, C = y.shape[axis:]
    if batch < 2:
        raise Unsuitable("one sample")
    order = np.roll(np.arange(batch), 1)
    rows = (C * order[:, None] + np.arange(C)).reshape(-1)
    changes = {"x": np.take(x, order, axis), "y": np.take(y, order, axis)}
    if "R" in t.given:
        changes["R"] = t.wide("R")[0][np.ix_(rows, rows)]
    t.same(t.run(), t.run(**changes), posterior(t)[:2])


@fact(STEP, "classes permuted", "LOKO-1 OBS-2",
      "the last layer's rows, y and R permuted alike permute the last layer's factors", steps,
      "networks that end in a linear")  # fmt: skip
def _classes(t: Trial) -> None:
    spec, (y,) = t.options["spec"], t.wide("y")
    if spec[-1]["kind"] != "linear":
        raise Unsuitable("another last layer")
    last, C = spec[-1]["name"], y.shape[1]
    order = np.roll(np.arange(C), 1)
    names = {f"{last}.{key}" for key in ("W", "b", "B", "bB")}
    weights = {k: a[order] if k in names else a for k, a in t.given["weights"].items()}
    index = unpacked(t, np.arange(len(t.given["theta"]), dtype=float))
    moved = np.concatenate(
        [(a[order] if k in names else a).reshape(-1) for k, a in index.items()]
    ).astype(int)
    undo = np.argsort(moved)
    rows = (C * np.arange(len(y))[:, None] + order).reshape(-1)
    name = posterior(t)[1]
    (p,), (theta,) = t.wide(name), t.wide("theta")
    changes: dict[str, Any] = {"theta": theta[moved], "y": y[:, order], "weights": weights}
    changes[name] = p[np.ix_(moved, moved)] if dense(t) else p[moved]
    if "R" in t.given:
        changes["R"] = t.wide("R")[0][np.ix_(rows, rows)]

    def back(key: str, value: Array) -> Array:
        return value[np.ix_(undo, undo)] if key == "P" else value[undo]

    t.same(t.run(), t.run(**changes), ("theta", name), back)


@fact(STEP, "forgetting first", "LOKO-1 KAL-1",
      "a step with lam and q is one without, from p / lam + q", steps)  # fmt: skip
def _forgetting(t: Trial) -> None:
    o, name = t.options, posterior(t)[1]
    (p,) = t.wide(name)
    q = o["q"] * (np.eye(len(p)) if dense(t) else 1.0)
    b = t.run(options={"lam": 1.0, "q": 0.0}, **{name: p / o["lam"] + q})
    t.same(t.run(), b, posterior(t))


@fact(STEP, "still", "LOKO-1 KAL-2", "an observation equal to the output leaves theta", steps,
      "gaussian")  # fmt: skip
def _still(t: Trial) -> None:
    if t.options["observation"] != "gaussian":
        raise Unsuitable("classes are observed")
    first = t.run()
    if first.has("z", "Z"):
        y = t.cast(first["z"])
        got = t.run(y=y)
        if got.has("theta", "K"):
            off = np.abs(got["K"]) @ (np.abs(first["z"] - y) + first.tol["z"]).reshape(-1)
            t.near("theta", got["theta"], t.given["theta"], got.tol["theta"] + off)


@fact(
    RUN,
    "continued",
    "LOKO-1 NOISE-5",
    "a run continued from what its first step returns is the rest of the run",
    steps,
    "an R that need not keep 1 as an eigenvector: neither softmax nor centred logits",
)
def _continued(t: Trial) -> None:
    if t.options["observation"] == "softmax" or t.options.get("center"):
        raise Unsuitable("rounding takes R off the form that is required")
    whole, (x, y) = t.run(), t.wide("x", "y")
    theta, p, R = posterior(t)
    if not whole.has(theta, p) or ("R" in t.given and not whole.has(R)):
        return
    state = {name: whole[name][0] for name in (theta, p, R) if name in t.given}
    state |= {k: (a + a.T) / 2 for k, a in state.items() if k in ("P", "R")}
    rest = t.run(x=x[1:], y=y[1:], **state)
    for name in (theta, p, R):
        if rest.has(name) and whole.has(name):
            t.near(name, whole[name][1:], rest[name], 2 * rest.tol[name])


@fact(RUN, "steps", "LOKO-1", "a run's first step is a step", steps, "needs loko.step")
def _first(t: Trial) -> None:
    whole, given = t.run(), dict(t.given)
    x, y = given.pop("x"), given.pop("y")
    one = t.run(STEP, t.options, x=x[0], y=y[0], **given)
    for name in one:
        if whole.has(name):
            t.near(name, whole[name][0], one[name], whole.tol[name][0] + one.tol[name])
