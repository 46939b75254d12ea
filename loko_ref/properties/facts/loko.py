"""Facts of LoKO's steps and runs: the parts of a step, its symmetries, and what a run carries.

Shapes: theta, p (n,); P (n, n); x (batch, ...); y (batch, C); R (m, m); m = batch * C; of a run
with a leading axis of steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.conformance.user_inputs import split
from loko_ref.network.spec import factor_shapes
from loko_ref.properties.facts.enclosed import Near
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Got, Problem, Problems, Trial, Unsuitable, inverse

__all__: list[str] = []

STEP, RUN = "loko.step", "loko.run"


def _residuals(operation: str) -> Problems:
    return _steps(operation, noise="ema_residual_hph")


def _steps(operation: str, **fixed: Any) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        networks = st.models(max_width=2, max_depth=1, min_outputs=2, whole=True)
        if not small:
            networks = st.models(max_width=3, max_depth=2, min_outputs=2)
        lam, q = draw(hs.sampled_from([1.0, 0.5])), draw(hs.sampled_from([0.0, 0.25]))
        fixed_too: dict[str, Any] = {"beta": 0.5, "lam": lam, "q": q, **fixed}
        problem = draw(st.step_problems(networks=networks, cond=1e2, **fixed_too))
        inputs, options = split(STEP, problem.arguments())
        dtype, n = str(inputs["theta"].dtype), len(inputs["theta"])
        steps = 1 if operation == STEP else draw(hs.integers(2, 3))
        classes = options["observation"] != "gaussian"
        for name in ("x", "y") if operation == RUN or small else ():
            shape = inputs[name].shape if operation == STEP else (steps, *inputs[name].shape)
            drawn = draw(st.arrays(shape, dtype=dtype, whole=small))
            if name == "y" and classes:
                drawn = (drawn.argmax(axis=-1)[..., None] == range(shape[-1])).astype(dtype)
            inputs[name] = drawn
        if small:
            inputs["theta"] = draw(st.arrays(n, dtype=dtype, whole=True))
            if "p" in inputs:
                inputs["p"] = draw(st.variances(n, dtype=dtype, whole=True))
            else:
                inputs["P"] = draw(st.spd_matrices(n, dtype=dtype, whole=True))
            if "R" in inputs:
                inputs["R"] = np.eye(len(inputs["R"]), dtype=dtype)
        return Problem(inputs=inputs, options=options)

    return lambda small: draw(small)


def _dense(t: Trial) -> bool:
    return t.options.get("covariance") == "dense"


def _posterior(t: Trial) -> tuple[str, str, str]:
    return "theta", "P" if _dense(t) else "p", "R"


def _prior(t: Trial, got: Got) -> Near | None:
    """P_pred (n, n) as it came back."""
    name = "P_pred" if _dense(t) else "p_pred"
    if not got.has(name):
        return None
    p = Near.of(got, name)
    return p if _dense(t) else Near(np.diag(p.value), np.diag(p.off))


def _covariance(yhat: Near, shape: tuple[int, int]) -> Near:
    """J (m, m) of returned probabilities, block diagonal."""
    batch, C = shape
    blocks = Near(np.kron(np.eye(batch), np.ones((C, C))))
    column = yhat.reshape(-1, 1)
    return Near(np.eye(batch * C)) * column - (column @ column.T) * blocks


@fact(STEP, "time update", "KAL-1 LOKO-1", "p_pred = p / lam + q", _steps)
def _time(t: Trial) -> None:
    got, o = t.run(), t.options
    name, q = ("P_pred", np.eye(len(t.given["theta"]))) if _dense(t) else ("p_pred", 1.0)
    if got.has(name):
        wanted = t.exact("P" if _dense(t) else "p")[0] / Near(o["lam"]).value
        Near.of(got, name).meets(t, name, Near(wanted) + Near(o["q"]) * Near(q))


@fact(
    STEP,
    "observation",
    "LOKO-1 OBS-1 OBS-2 OBS-3 OBS-4",
    "e + yhat = y, and H is Z, Z less its mean over the classes, or J Z, from what is returned",
    _steps,
)
def _observation(t: Trial) -> None:
    got, kind, (y,) = t.run(), t.options["observation"], t.wide("y")
    if got.has("e", "yhat"):
        (Near.of(got, "e") + Near.of(got, "yhat")).meets(t, "e + yhat", y.reshape(-1))
    if not got.has("H", "Z", "yhat"):
        return
    Z = Near.of(got, "Z")
    if kind in ("softmax", "glm"):
        Z = _covariance(Near.of(got, "yhat"), y.shape) @ Z
    elif t.options.get("center"):
        batch, C = y.shape
        mean = Near(np.kron(np.eye(batch), np.ones((C, C)))) @ Z
        Z = Near(C * np.eye(batch * C)) @ Z - mean
        (Near.of(got, "H") * Near(float(C))).meets(t, "C H", Z)
        return
    Near.of(got, "H").meets(t, "H", Z)


@fact(STEP, "log-odds", "LOKO-1 LAY-7", "log(yhat_i/yhat_j) = z_i - z_j; gaussian yhat = z", _steps)
def _odds(t: Trial) -> None:
    got = t.run()
    if not got.has("z", "yhat"):
        return
    z, off = got["z"], got.tol["z"]
    yhat, tol = got["yhat"].reshape(z.shape), got.tol["yhat"].reshape(z.shape)
    if t.options["observation"] == "gaussian":
        t.near("yhat", yhat, z, tol + off)
        return
    at = np.arange(len(z)), z.argmax(axis=1)
    ratio = np.exp(z - z[at][:, None])
    moved = np.expm1(np.minimum(off + off[at][:, None], 1.0)) + 8 * np.finfo(float).eps
    t.near("yhat", yhat, ratio * yhat[at][:, None], tol + ratio * (tol[at][:, None] + moved))


def _sample(t: Trial, got: Got) -> Near | None:
    """Return beta R + (1 - beta) times what the estimator adds before the update."""
    o, P = t.options, _prior(t, got)
    R, beta, left = Near(t.given["R"]), Near(o["beta"]), Near(1 - o["beta"])
    if o["noise"] == "fixed":
        return R
    if o["noise"] == "ema_residual_hph" or not got.has("e", "H") or P is None:
        return None
    e, H = Near.of(got, "e").reshape(-1, 1), Near.of(got, "H")
    added = e @ e.T
    if o["noise"] == "ema_innovation_hph":
        added = added + H @ P @ H.T
    return beta * R + left * added


@fact(
    STEP,
    "noise",
    "LOKO-1 NOISE-2 NOISE-3 NOISE-5 OBS-4",
    "R_used is R, its average with e e' (+ H p H') before the gain, or J; R is handed on",
    _steps,
    "all but ema_residual_hph",
)
def _noise(t: Trial) -> None:
    got, o, (y,) = t.run(), t.options, t.wide("y")
    if o["observation"] == "glm":
        if got.has("R_used", "yhat"):
            J = _covariance(Near.of(got, "yhat"), y.shape)
            Near.of(got, "R_used").meets(t, "R_used", J)
        return
    refreshed = _sample(t, got)
    before = o.get("timing", "before") == "before"
    if got.has("R_used"):
        if not before:
            Near.of(got, "R_used").meets(t, "R_used", Near(t.given["R"]))
        elif refreshed is not None:
            Near.of(got, "R_used").meets(t, "R_used", refreshed)
    if got.has("R"):
        if refreshed is not None:
            Near.of(got, "R").meets(t, "R", refreshed)
        elif got.has("R_used") and before:
            Near.of(got, "R").meets(t, "R", Near.of(got, "R_used"))


@fact(
    STEP,
    "residual noise",
    "LOKO-1 NOISE-4",
    "ema_residual_hph averages R with r r' + H p+ H', r = y - h(theta+) by the network itself",
    _residuals,
    "noise ema_residual_hph; needs model.forward",
)
def _residual(t: Trial) -> None:
    o, (y,) = t.options, t.wide("y")
    got = t.run()
    theta, p, R = _posterior(t)
    if not got.has(theta, p, R, "H", "Z"):
        return
    weights = dict(t.given["weights"]) | _unpacked(t, got["theta"])
    there = t.run("model.forward", {"spec": o["spec"]}, x=t.given["x"], weights=weights)
    z = there["z"]
    off = there.tol["z"].reshape(-1) + 2 * np.abs(got["Z"]) @ got.tol["theta"]
    if o["observation"] != "gaussian":
        power = np.exp(z - z.max(axis=1, keepdims=True))
        z = power / power.sum(axis=1, keepdims=True)
        off = np.full_like(off, np.max(off) + 8 * np.finfo(float).eps)  # |J| <= 1
    r = Near((y - z).reshape(-1, 1), off.reshape(-1, 1))
    H, P = Near.of(got, "H"), Near.of(got, p)
    P = P if _dense(t) else Near(np.diag(P.value), np.diag(P.off))
    added = r @ r.T + H @ P @ H.T
    wanted = Near(o["beta"]) * Near(t.given["R"]) + Near(1 - o["beta"]) * added
    Near.of(got, R).meets(t, R, wanted)


@fact(
    STEP,
    "gain",
    "LOKO-1 KAL-2",
    "S = H P_pred H' + R_used,  K S = P_pred H',  theta+ = theta + K e, from what is returned",
    _steps,
)
def _gain(t: Trial) -> None:
    got = t.run()
    P = _prior(t, got)
    if P is None or not got.has("H"):
        return
    H = Near.of(got, "H")
    if got.has("S", "R_used"):
        Near.of(got, "S").meets(t, "S", H @ P @ H.T + Near.of(got, "R_used"))
    if got.has("S", "K"):
        (Near.of(got, "K") @ Near.of(got, "S")).meets(t, "K S", P @ H.T)
    if got.has("theta", "K", "e"):
        moved = Near(t.given["theta"]) + Near.of(got, "K") @ Near.of(got, "e")
        Near.of(got, "theta").meets(t, "theta", moved)


def _by_noise(R: Near, H: Near) -> Array:
    """Return a bound on what R's own error does to H' R^-1 H, to first order and half again."""
    back = np.abs(np.asarray(inverse(R.value) @ H.value, dtype=np.float64))
    bound: Array = 1.5 * back.T @ R.off @ back
    return bound


@fact(
    STEP,
    "posterior",
    "LOKO-1 DIAG-1 DIAG-2 KAL-2",
    "p+ = p (1 - diag K H), P+ = P - K H P, or 1/p+ = 1/p + the information, from what is returned",
    _steps,
)
def _covariances(t: Trial) -> None:
    got, o = t.run(), t.options
    name, P = _posterior(t)[1], _prior(t, got)
    if P is None or not got.has(name, "K", "H", "R_used"):
        return
    H, K, after = Near.of(got, "H"), Near.of(got, "K"), Near.of(got, name)
    if _dense(t):
        after.meets(t, name, P - K @ H @ P)
    elif o.get("diagonal", "decoupled") == "decoupled":
        wanted = P - K @ H @ P
        after.meets(t, name, Near(np.diagonal(wanted.value), np.diagonal(wanted.off)))
    else:
        R = Near.of(got, "R_used")
        if o["observation"] == "glm":
            Z = Near.of(got, "Z")
            gram = Z.T @ R @ Z
        else:  # softmax: H has no part along what the contrasts leave out
            gram = H.T @ Near(inverse(R.value)) @ H
            gram = Near(gram.value, gram.off + _by_noise(R, H))
        information = Near(np.diagonal(gram.value), np.diagonal(gram.off))
        prior = Near(np.diagonal(P.value), np.diagonal(P.off))
        (after + after * prior * information).meets(t, "p+ (1 + p information)", prior)


def _unpacked(t: Trial, theta: Array) -> dict[str, Array]:
    """Return the factors by name."""
    found, at = {}, 0
    for name, shape in factor_shapes(t.options["spec"]).items():
        count = int(np.prod(shape))
        found[name] = theta[at : at + count].reshape(shape)
        at += count
    return found


def _scaled(t: Trial, c: Array) -> dict[str, Any]:
    """Return the inputs with parameters in other units."""
    theta, name = t.wide("theta")[0], _posterior(t)[1]
    return {"theta": c * theta, name: t.wide(name)[0] * (np.outer(c, c) if _dense(t) else c**2)}


@fact(
    f"{STEP} {RUN}",
    "factors in other units",
    "LOKO-1 KAL-7 LORA-2",
    "A / 2 and 2 B are the same network: theta and its covariance come out in those units",
    _steps,
    "q = 0",
)
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
    _steps,
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
    t.same(t.run(), t.run(**changes), _posterior(t)[:2])


@fact(
    STEP,
    "classes permuted",
    "LOKO-1 OBS-2",
    "the last layer's rows, y and R permuted alike permute the last layer's factors",
    _steps,
    "networks that end in a linear",
)
def _classes(t: Trial) -> None:
    spec, (y,) = t.options["spec"], t.wide("y")
    if spec[-1]["kind"] != "linear":
        raise Unsuitable("another last layer")
    last, C = spec[-1]["name"], y.shape[1]
    order = np.roll(np.arange(C), 1)
    names = {f"{last}.{key}" for key in ("W", "b", "B", "bB")}
    weights = {k: a[order] if k in names else a for k, a in t.given["weights"].items()}
    index = _unpacked(t, np.arange(len(t.given["theta"]), dtype=float))
    moved = np.concatenate(
        [(a[order] if k in names else a).reshape(-1) for k, a in index.items()]
    ).astype(int)
    undo = np.argsort(moved)
    rows = (C * np.arange(len(y))[:, None] + order).reshape(-1)
    name = _posterior(t)[1]
    (p,), (theta,) = t.wide(name), t.wide("theta")
    changes: dict[str, Any] = {"theta": theta[moved], "y": y[:, order], "weights": weights}
    changes[name] = p[np.ix_(moved, moved)] if _dense(t) else p[moved]
    if "R" in t.given:
        changes["R"] = t.wide("R")[0][np.ix_(rows, rows)]

    def back(key: str, value: Array) -> Array:
        return value[np.ix_(undo, undo)] if key == "P" else value[undo]

    t.same(t.run(), t.run(**changes), ("theta", name), back)


@fact(
    STEP,
    "forgetting first",
    "LOKO-1 KAL-1",
    "a step with lam and q is one without, from p / lam + q",
    _steps,
)
def _forgetting(t: Trial) -> None:
    o, name = t.options, _posterior(t)[1]
    (p,) = t.wide(name)
    q = o["q"] * (np.eye(len(p)) if _dense(t) else 1.0)
    b = t.run(options={"lam": 1.0, "q": 0.0}, **{name: p / o["lam"] + q})
    t.same(t.run(), b, _posterior(t))


@fact(STEP, "still", "LOKO-1 KAL-2", "an observation equal to the output leaves theta", _steps,
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
    _steps,
    "an R that need not keep 1 as an eigenvector: neither softmax nor centred logits",
)
def _continued(t: Trial) -> None:
    if t.options["observation"] == "softmax" or t.options.get("center"):
        raise Unsuitable("rounding takes R off the form that is required")
    whole, (x, y) = t.run(), t.wide("x", "y")
    theta, p, R = _posterior(t)
    if not whole.has(theta, p) or ("R" in t.given and not whole.has(R)):
        return
    state = {name: whole[name][0] for name in (theta, p, R) if name in t.given}
    if p == "P":
        state[p] = (state[p] + state[p].T) / 2
    rest = t.run(x=x[1:], y=y[1:], **state)
    for name in (theta, p, R):
        if rest.has(name) and whole.has(name):
            t.near(name, whole[name][1:], rest[name], 2 * rest.tol[name])


@fact(
    RUN,
    "steps",
    "LOKO-1",
    "a run's first step is a step",
    _steps,
    "needs loko.step",
)
def _first(t: Trial) -> None:
    whole, given = t.run(), dict(t.given)
    x, y = given.pop("x"), given.pop("y")
    one = t.run(STEP, t.options, x=x[0], y=y[0], **given)
    for name in one:
        if whole.has(name):
            t.near(name, whole[name][0], one[name], whole.tol[name][0] + one.tol[name])
