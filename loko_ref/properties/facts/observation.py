"""Facts of the observation models and of the estimators of their noise.

Shapes: z, y (batch, C); Z, H (m, n); yhat, e (m,); R, HpH (m, m); m = batch * C.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.kalman.noise import ESTIMATED
from loko_ref.properties.numbers import derivative
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Got, Problem, Problems, Trial, Unsuitable, exact, size

__all__: list[str] = []

GAUSSIAN, LOGITS = "observation.gaussian", "observation.logits"
SIMPLEX = "observation.softmax observation.glm"
CLASSES = f"{SIMPLEX} {LOGITS}"
ALL = f"{GAUSSIAN} {CLASSES}"


def _seen(operation: str) -> Problems:
    def problems(small: bool) -> hs.SearchStrategy[Problem]:
        drawn: dict[str, Any] = {"observation": operation.split(".")[1], "whole": small}
        drawn |= {"max_n": 2, "max_C": 2} if small else {"margin": 16.0}
        options: hs.SearchStrategy[dict[str, Any]] = hs.just({})
        if operation == LOGITS:
            options = hs.sampled_from([{}, {"center": True}])
        return hs.builds(
            lambda p, o: Problem(inputs=p.arguments(), options=o),
            st.observation_problems(**drawn),
            options,
        )

    return problems


def _rows(t: Trial, value: Array) -> Array:
    """(batch, C, ...): the stacked outputs by sample."""
    return value.reshape(*t.given["z"].shape, *value.shape[1:])


@fact(ALL, "innovation", "OBS-1 OBS-2 OBS-3 OBS-4", "e + yhat = y, whatever y", _seen)
def _innovation(t: Trial) -> None:
    (y,) = t.wide("y")
    mixed = y / 2 + np.roll(y, 1, axis=1) / 2  # no one-hot row
    for target in (y, mixed):
        got = t.run(y=target)
        if got.has("e", "yhat"):
            total = exact(got["e"]) + exact(got["yhat"])
            t.near("e + yhat", total, exact(target.reshape(-1)), got.tol["e"] + got.tol["yhat"])


@fact(CLASSES, "sums", "OBS-2 OBS-3 OBS-4", "yhat sums to 1 and e to 0 over the classes", _seen)
def _sums(t: Trial) -> None:
    got = t.run()
    for name, total in (("yhat", 1), ("e", 0)):
        if got.has(name):
            sums = _rows(t, exact(got[name])).sum(axis=1)
            t.near(f"the sums of {name}", sums, exact(np.full(len(sums), total)),
                   _rows(t, got.tol[name]).sum(axis=1))  # fmt: skip


@fact(CLASSES, "odds", "LAY-7", "log(yhat_i / yhat_j) = z_i - z_j in each sample", _seen,
      "differences of logits up to 16")  # fmt: skip
def _odds(t: Trial) -> None:
    got = t.run()
    if not got.has("yhat"):
        return
    yhat, tol = _rows(t, got["yhat"]), _rows(t, got.tol["yhat"])
    t.below("-yhat", -yhat, 0)
    (z,) = t.wide("z")
    top = z.argmax(axis=1)
    at = np.arange(len(z)), top
    ratio = np.exp(z - z[at][:, None])  # at most 1
    bound = tol + ratio * tol[at][:, None] + 8 * np.finfo(float).eps * yhat
    t.near("yhat", yhat, ratio * yhat[at][:, None], bound)


@fact(GAUSSIAN, "outputs", "OBS-1", "the outputs themselves are observed: yhat = z, H = Z", _seen)
def _outputs(t: Trial) -> None:
    got, (z, Z) = t.run(), t.wide("z", "Z")
    for name, wanted in (("yhat", z.reshape(-1)), ("H", Z)):
        if got.has(name):
            t.near(name, got[name], wanted, got.tol[name])


@fact(CLASSES, "shift", "OBS-2", "a constant added to a sample's logits changes nothing", _seen)
def _shift(t: Trial) -> None:
    (z,) = t.wide("z")
    t.same(t.run(), t.run(z=z + 8.0 * (1 + np.arange(len(z)))[:, None]))


@fact(CLASSES, "saturation", "OBS-7", "logits apart by 1000 give a one-hot yhat, and no NaN", _seen)
def _saturation(t: Trial) -> None:
    (z,) = t.wide("z")
    z = 1000.0 * (1 + np.arange(z.shape[1])) + np.zeros_like(z)
    got = t.run(z=z)
    if got.has("yhat"):
        wanted = np.eye(z.shape[1])[-np.ones(len(z), int)]
        t.near("yhat", _rows(t, got["yhat"]), wanted, _rows(t, got.tol["yhat"]))


@fact(CLASSES, "null space", "OBS-2 OBS-4 OBS-5",
      "1' H = 0 in each sample (softmax, glm, centred logits), and R 1 = 0 (glm)", _seen,
      "softmax, glm, logits with center")  # fmt: skip
def _null(t: Trial) -> None:
    if t.held.operation == LOGITS and not t.options.get("center"):
        raise Unsuitable("H is not centred")
    got = t.run()
    for name in ("H", "R"):
        if got.has(name):
            sums = _rows(t, exact(got[name])).sum(axis=1)
            t.near(f"the sums of {name}", sums, 0 * sums, _rows(t, got.tol[name]).sum(axis=1))


@fact(LOGITS, "linear", "OBS-3", "H is Z, or Z less its mean over each sample's classes", _seen)
def _linear(t: Trial) -> None:
    got, (Z,) = t.run(), t.exact("Z")
    if got.has("H"):
        rows = _rows(t, Z)
        if t.options.get("center"):
            rows = rows - rows.sum(axis=1, keepdims=True) / rows.shape[1]
        t.near("H", got["H"], rows.reshape(Z.shape), got.tol["H"])


@fact(f"{GAUSSIAN} {SIMPLEX}", "derivative", "OBS-1 OBS-2 OBS-4",
      "H is the derivative of yhat: along Z v, yhat moves by H v", _seen)  # fmt: skip
def _derivative(t: Trial) -> None:
    got, (z, Z) = t.run(), t.wide("z", "Z")
    if not got.has("H", "yhat"):
        return
    for k in range(Z.shape[1]):
        line = Z[:, k].reshape(z.shape) / 4

        def along(h: float, line: Array = line) -> tuple[Array, Array]:
            moved = z + h * line
            there = t.run(z=moved)
            off = np.abs(t.cast(moved) - moved).reshape(-1)  # |dyhat/dz| <= 1 by row sums
            return there["yhat"], there.tol["yhat"] + np.max(off, initial=0.0)

        slope, bound = derivative(along)
        t.near(f"H[:, {k}]", got["H"][:, k], 4 * slope, got.tol["H"][:, k] + 4 * bound)


@fact("observation.glm", "covariance", "OBS-4", "R is the Jacobian of the softmax: H = R Z", _seen)
def _covariance(t: Trial) -> None:
    got, (Z,) = t.run(), t.exact("Z")
    if got.has("R"):
        t.near("R - R'", got["R"], got["R"].T, got.tol["R"] + got.tol["R"].T)
        if got.has("H"):
            bound = got.tol["H"] + got.tol["R"] @ size(Z)
            t.near("H", got["H"], exact(got["R"]) @ Z, bound)


@fact(ALL, "stacked", "LOKO-2", "a batch is its samples, stacked", _seen, "batches of 2")
def _stacked(t: Trial) -> None:
    z, Z, y = t.wide("z", "Z", "y")
    batch, C = z.shape
    if batch < 2:
        raise Unsuitable("one sample")
    whole = t.run()
    for b in range(batch):
        rows = slice(b * C, (b + 1) * C)
        one = t.run(z=z[b : b + 1], Z=Z[rows], y=y[b : b + 1])
        for name in one:
            if whole.has(name):
                at = (rows, rows) if name == "R" else (rows,)
                bound = one.tol[name] + whole.tol[name][at]
                t.near(name, whole[name][at], one[name], bound)
                if name == "R":
                    others = np.delete(whole["R"][rows], np.arange(rows.start, rows.stop), axis=1)
                    t.near("R between samples", others, 0 * others, 0)


@fact(CLASSES, "permuted", "OBS-2", "the order of the classes permutes everything alike", _seen)
def _permuted(t: Trial) -> None:
    z, Z, y = t.wide("z", "Z", "y")
    batch, C = z.shape
    order = np.roll(np.arange(C), 1)
    rows = (C * np.arange(batch)[:, None] + order).reshape(-1)
    undo = np.argsort(rows)

    def back(name: str, value: Array) -> Array:
        return value[np.ix_(undo, undo)] if name == "R" else value[undo]

    t.same(t.run(), t.run(z=z[:, order], Z=Z[rows], y=y[:, order]), back=back)


# --------------------------------------------------------------------------------------- noise

NOISE = "noise.update"


def _estimates(operation: str) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        kind: dict[str, Any] = {"dtype": draw(st.dtypes()), "whole": small}
        m = draw(hs.integers(1, 2 if small else 4))
        inputs = {
            "R": draw(st.spd_matrices(m, cond=1e3, **kind)),
            "e": draw(st.arrays(m, **kind)),
            "HpH": draw(st.spd_matrices(m, cond=1e3, **kind)),
        }
        options = {
            "noise": draw(hs.sampled_from(ESTIMATED)),
            "beta": draw(hs.sampled_from([0.5, 0.75, 0.25] if small else [0.5, 0.9375, 0.25])),
        }
        return Problem(inputs=inputs, options=options)

    return lambda small: draw(small)


def _averages(t: Trial) -> None:
    if t.options["noise"] == "fixed":
        raise Unsuitable("the noise is fixed")


def _sample(t: Trial) -> Array:
    e, HpH = t.exact("e", "HpH")
    return np.outer(e, e) + (0 if t.options["noise"] == "ema_innovation" else HpH)


def _R(t: Trial, got: Got, wanted: Array, slack: Any = 0) -> None:
    if got.has("R"):
        t.near("R", got["R"], wanted, got.tol["R"] + slack)


@fact(NOISE, "kept", "NOISE-1", "fixed noise stays as it is", _estimates, "noise fixed")
def _kept(t: Trial) -> None:
    _R(t, t.run(options={"noise": "fixed"}), *t.exact("R"))


@fact(NOISE, "past", "NOISE-2 NOISE-3 NOISE-4", "the past weighs beta, when the sample is 0",
      _estimates, "estimated noise")  # fmt: skip
def _past(t: Trial) -> None:
    _averages(t)
    R, e, HpH = t.exact("R")[0], 0 * t.wide("e")[0], 0 * t.wide("HpH")[0]
    _R(t, t.run(e=e, HpH=HpH), exact(t.options["beta"]) * R)


@fact(NOISE, "fixed point", "NOISE-2 NOISE-3 NOISE-4", "an R equal to the sample stays",
      _estimates, "estimated noise")  # fmt: skip
def _fixed_point(t: Trial) -> None:
    _averages(t)
    sample = t.cast(_sample(t))
    got = t.run(R=sample)
    off = np.abs(np.asarray(exact(sample) - _sample(t), dtype=float))
    _R(t, got, sample, off)


@fact(NOISE, "adds", "NOISE-2 NOISE-3 NOISE-4", "what e e' and H p H' add does not depend on R",
      _estimates, "estimated noise")  # fmt: skip
def _adds(t: Trial) -> None:
    _averages(t)
    a, b, (R,) = t.run(), t.run(R=2 * t.wide("R")[0]), t.exact("R")
    if a.has("R") and b.has("R"):
        moved = exact(b["R"]) - exact(a["R"])
        t.near("R", moved, exact(t.options["beta"]) * R, a.tol["R"] + b.tol["R"])


@fact(NOISE, "scaled", "NOISE-2 NOISE-3 NOISE-4", "outputs in other units give R in other units",
      _estimates)  # fmt: skip
def _scaled(t: Trial) -> None:
    R, e, HpH = t.wide("R", "e", "HpH")
    c = 2.0 ** (np.arange(len(e)) % 3)
    square = np.outer(c, c)
    other = t.run(R=square * R, e=c * e, HpH=square * HpH)
    t.same(t.run(), other, back=lambda name, value: value / square)


@fact(NOISE, "definite", "NOISE-2 NOISE-3", "R stays symmetric, and at least beta R", _estimates)
def _definite(t: Trial) -> None:
    got, (R,) = t.run(), t.wide("R")
    if got.has("R"):
        tol, least = got.tol["R"], 1.0 if t.options["noise"] == "fixed" else t.options["beta"]
        t.near("R - R'", got["R"], got["R"].T, tol + tol.T)
        grown = (got["R"] + got["R"].T) / 2 - least * R
        t.below("-eigenvalue of R - beta R", -np.linalg.eigvalsh(grown)[0], np.linalg.norm(tol))
