"""Facts of LoKO's steps: each is its parts. The symmetries, and runs, are in ``symmetry``.

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
from loko_ref.properties.numbers import Near
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Got, Problem, Problems, Trial, Unsuitable, inverse

STEP, RUN = "loko.step", "loko.run"


def _residuals(operation: str) -> Problems:
    return steps(operation, noise="ema_residual_hph")


def _implicit(operation: str) -> Problems:
    return steps(operation, solve="implicit")


def _variational(operation: str) -> Problems:
    return steps(operation, diagonal="variational")


def steps(operation: str, **fixed: Any) -> Problems:
    """Return problems of a step or of a run, with some options fixed."""

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
        count = 1 if operation == STEP else draw(hs.integers(2, 3))
        classes = options["observation"] != "gaussian"
        for name in ("x", "y") if operation == RUN or small else ():
            shape = inputs[name].shape if operation == STEP else (count, *inputs[name].shape)
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


def dense(t: Trial) -> bool:
    """Return whether the covariance is dense."""
    if "U" in t.given:
        raise Unsuitable("a precision, which is a step's and not returned as a covariance")
    return t.options.get("covariance") == "dense"


def posterior(t: Trial) -> tuple[str, str, str]:
    """Name what a step hands on."""
    return "theta", "P" if dense(t) else "p", "R"


def unpacked(t: Trial, theta: Array) -> dict[str, Array]:
    """Return the factors by name."""
    found, at = {}, 0
    for name, shape in factor_shapes(t.options["spec"]).items():
        count = int(np.prod(shape))
        found[name] = theta[at : at + count].reshape(shape)
        at += count
    return found


def _prior(t: Trial, got: Got) -> Near | None:
    """P_pred (n, n) as it came back."""
    name = "P_pred" if dense(t) else "p_pred"
    if not got.has(name):
        return None
    p = Near.of(got, name)
    return p if dense(t) else Near(np.diag(p.value), np.diag(p.off))


def _covariance(yhat: Near, shape: tuple[int, int]) -> Near:
    """J (m, m) of returned probabilities, block diagonal."""
    batch, C = shape
    blocks = Near(np.kron(np.eye(batch), np.ones((C, C))))
    column = yhat.reshape(-1, 1)
    return Near(np.eye(batch * C)) * column - (column @ column.T) * blocks


@fact(STEP, "time update", "KAL-1 LOKO-1", "p_pred = p / lam + q", steps)
def _time(t: Trial) -> None:
    got, o = t.run(), t.options
    name, q = ("P_pred", np.eye(len(t.given["theta"]))) if dense(t) else ("p_pred", 1.0)
    if got.has(name):
        wanted = t.exact("P" if dense(t) else "p")[0] / Near(o["lam"]).value
        Near.of(got, name).meets(t, name, Near(wanted) + Near(o["q"]) * Near(q))


@fact(STEP, "observation", "LOKO-1 OBS-1 OBS-2 OBS-3 OBS-4",
      "e + yhat = y, and H is Z, Z less its mean over the classes, or J Z, from what is returned",
      steps)  # fmt: skip
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


@fact(STEP, "log-odds", "LOKO-1 LAY-7", "log(yhat_i/yhat_j) = z_i - z_j; gaussian yhat = z", steps)
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


@fact(STEP, "noise", "LOKO-1 NOISE-2 NOISE-3 NOISE-5 OBS-4",
      "R_used is R, its average with e e' (+ H p H') before the gain, or J; R is handed on", steps,
      "all but ema_residual_hph")  # fmt: skip
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


@fact(STEP, "residual noise", "LOKO-1 NOISE-4",
      "ema_residual_hph averages R with r r' + H p+ H', r = y - h(theta+) by the network itself",
      _residuals, "noise ema_residual_hph; needs model.forward")  # fmt: skip
def _residual(t: Trial) -> None:
    o, (y,) = t.options, t.wide("y")
    got = t.run()
    theta, p, R = posterior(t)
    if not got.has(theta, p, R, "H", "Z"):
        return
    weights = dict(t.given["weights"]) | unpacked(t, got["theta"])
    there = t.run("model.forward", {"spec": o["spec"]}, x=t.given["x"], weights=weights)
    z = there["z"]
    off = there.tol["z"].reshape(-1) + 2 * np.abs(got["Z"]) @ got.tol["theta"]
    if o["observation"] != "gaussian":
        power = np.exp(z - z.max(axis=1, keepdims=True))
        z = power / power.sum(axis=1, keepdims=True)
        off = np.full_like(off, np.max(off) + 8 * np.finfo(float).eps)  # |J| <= 1
    r = Near((y - z).reshape(-1, 1), off.reshape(-1, 1))
    H, P = Near.of(got, "H"), Near.of(got, p)
    P = P if dense(t) else Near(np.diag(P.value), np.diag(P.off))
    added = r @ r.T + H @ P @ H.T
    wanted = Near(o["beta"]) * Near(t.given["R"]) + Near(1 - o["beta"]) * added
    Near.of(got, R).meets(t, R, wanted)


@fact(STEP, "gain", "LOKO-1 KAL-2",
      "S = H P_pred H' + R_used,  K S = P_pred H',  theta+ = theta + K e, from what is returned",
      steps, "theta with solve linear")  # fmt: skip
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
    if got.has("theta", "K", "e") and t.options.get("solve") != "implicit":
        moved = Near(t.given["theta"]) + Near.of(got, "K") @ Near.of(got, "e")
        Near.of(got, "theta").meets(t, "theta", moved)


@fact(STEP, "implicit step", "OBS-4 OBS-9",
      "y - v = softmax(z + Z P_pred Z' v),  theta+ = theta + P_pred Z' v, H = J Z, J the prior's",
      _implicit, "observation glm, solve implicit")  # fmt: skip
def _solved(t: Trial) -> None:
    _observation(t)
    got, (y,) = t.run(), t.wide("y")
    P = _prior(t, got)
    if P is None or not got.has("z", "Z", "v"):
        return
    Z, v = Near.of(got, "Z"), Near.of(got, "v")
    moved = P @ Z.T @ v
    if got.has("theta"):
        Near.of(got, "theta").meets(t, "theta", Near(t.given["theta"]) + moved)
    logits = Near.of(got, "z").reshape(-1) + Z @ moved
    a, off = (np.asarray(x, dtype=np.float64) for x in (logits.value, logits.off))
    power = np.exp(a.reshape(y.shape) - a.reshape(y.shape).max(axis=1, keepdims=True))
    q = (power / power.sum(axis=1, keepdims=True)).reshape(-1)
    allowed = np.max(off + 8 * np.finfo(float).eps * (1 + np.abs(a)))  # |J| <= 1
    t.near("v", got["v"], y.reshape(-1) - q, got.tol["v"] + allowed)


def _by_noise(R: Near, H: Near) -> Array:
    """Return a bound on what R's own error does to H' R^-1 H, to first order and half again."""
    back = np.abs(np.asarray(inverse(R.value) @ H.value, dtype=np.float64))
    bound: Array = 1.5 * back.T @ R.off @ back
    return bound


@fact(STEP, "variational posterior", "LOKO-1 DIAG-2 OBS-6",
      "1/p+ = 1/p + diag(H' R^-1 H), or + diag(Z' J Z) for glm, from what is returned",
      _variational, "diagonal variational")  # fmt: skip
@fact(STEP, "posterior", "LOKO-1 DIAG-1 DIAG-2 KAL-2",
      "p+ = p (1 - diag K H), P+ = P - K H P, or 1/p+ = 1/p + the information, "
      "from what is returned", steps)  # fmt: skip
def _covariances(t: Trial) -> None:
    got, o = t.run(), t.options
    name, P = posterior(t)[1], _prior(t, got)
    if P is None or not got.has(name, "K", "H", "R_used"):
        return
    H, K, after = Near.of(got, "H"), Near.of(got, "K"), Near.of(got, name)
    if dense(t):
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
