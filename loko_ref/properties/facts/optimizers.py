"""Facts of the first-order optimizers.

Shapes: theta (n,); gradient (steps, n); outputs (steps, n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Got, Problem, Problems, Trial, Unsuitable, exact

__all__: list[str] = []

SGD, ADAGRAD, ADAMW = "optimizer.sgd", "optimizer.adagrad", "optimizer.adamw"
ALL = f"{SGD} {ADAGRAD} {ADAMW}"

CHOICES: dict[str, dict[str, list[Any]]] = {
    SGD: {
        "momentum": [0.0, 0.5, 0.75],
        "dampening": [0.0, 0.5],
        "weight_decay": [0.0, 0.25],
        "nesterov": [False, True],
    },
    ADAGRAD: {
        "lr_decay": [0.0, 0.5],
        "weight_decay": [0.0, 0.25],
        "initial_accumulator_value": [0.0, 16.0],
        "eps": [0.25, 1e-10],
    },
    ADAMW: {
        "beta1": [0.5, 0.875],
        "beta2": [0.5, 0.75],
        "eps": [0.25, 1e-8],
        "weight_decay": [0.0, 0.25],
    },
}


def _runs(operation: str) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        kind: dict[str, Any] = {"dtype": draw(st.dtypes()), "whole": small}
        n, steps = (draw(hs.integers(1, k)) for k in ((1, 3) if small else (3, 5)))
        options = {"lr": draw(hs.sampled_from([0.5, 0.125]))}
        options |= {k: draw(hs.sampled_from(v)) for k, v in CHOICES[operation].items()}
        if options.get("nesterov"):  # torch's condition
            options |= {"dampening": 0.0, "momentum": options["momentum"] or 0.5}
        return Problem(
            inputs={
                "theta": draw(st.arrays(n, **kind)),
                "gradient": draw(st.arrays((steps, n), **kind)),
            },
            options=options,
        )

    return lambda small: draw(small)


def _moves(t: Trial, got: Got) -> tuple[Array, Array]:
    """Return each step's move in rational numbers, and its tolerance."""
    path = np.concatenate([t.exact("theta")[0][None], exact(got["theta"])])
    tol = got.tol["theta"]
    return path[1:] - path[:-1], tol + np.concatenate([0 * tol[:1], tol[:-1]])


@fact(SGD, "decay", "OPT-1", "weight decay is a gradient: that of theta times it", _runs)
def _decay(t: Trial) -> None:
    _as_gradient(t)


@fact(ADAGRAD, "decay", "OPT-2", "weight decay is a gradient: that of theta times it", _runs)
def _decay_adagrad(t: Trial) -> None:
    _as_gradient(t)


def _as_gradient(t: Trial) -> None:
    got, (theta, gradient) = t.run(options={"weight_decay": 0.25}), t.wide("theta", "gradient")
    if not got.has("theta"):
        return
    before = np.concatenate([theta[None], got["theta"][:-1]])
    decayed = t.cast(gradient + 0.25 * before)
    other = t.run(gradient=decayed, options={"weight_decay": 0.0})
    t.same(got, other, ("theta",))


@fact(SGD, "first step", "OPT-1", "the first step is -lr g; with nesterov -(1 + momentum) lr g",
      _runs, "weight_decay = 0")  # fmt: skip
def _first(t: Trial) -> None:
    got = t.run(options={"weight_decay": 0.0})
    if got.has("theta"):
        move, tol = _moves(t, got)
        times = 1 + (t.options["momentum"] if t.options["nesterov"] else 0.0)
        wanted = -exact(t.options["lr"]) * exact(times) * t.exact("gradient")[0][0]
        t.near("the first move", move[0], wanted, tol[0])


@fact(SGD, "impulse", "OPT-1", "after one gradient, each step is momentum times the last", _runs,
      "weight_decay = 0")  # fmt: skip
def _impulse(t: Trial) -> None:
    (gradient,) = t.wide("gradient")
    once = np.zeros((max(3, len(gradient)), gradient.shape[1]))
    once[0] = gradient[0]
    got = t.run(gradient=once, options={"weight_decay": 0.0})
    if got.has("theta"):
        move, tol = _moves(t, got)
        k = 1 if t.options["nesterov"] else 0  # nesterov's first step is another one
        mu = exact(t.options["momentum"])
        bound = tol[k + 1 :] + t.options["momentum"] * tol[k:-1]
        t.near("a move", move[k + 1 :], mu * move[k:-1], bound)


@fact(SGD, "second step", "OPT-1", "a gradient given again moves by momentum + 1 - dampening times",
      _runs, "momentum > 0, weight_decay = 0, nesterov = False")  # fmt: skip
def _second(t: Trial) -> None:
    if not t.options["momentum"]:
        raise Unsuitable("without momentum there is no buffer to dampen")
    (gradient,), o = t.wide("gradient"), t.options
    twice = np.stack([gradient[0], gradient[0]])
    got = t.run(gradient=twice, options={"weight_decay": 0.0, "nesterov": False})
    if got.has("theta"):
        move, tol = _moves(t, got)
        times = exact(o["momentum"]) + 1 - exact(o["dampening"])
        t.near("the second move", move[1], times * move[0], tol[1] + float(times) * tol[0])


ROOTS = np.array([[3.0, 12.0, 84.0], [5.0, 13.0, 85.0]])
"""Gradients, and the roots of their sums of squares: whole where the sum begins at 0 or 16."""


@fact(ADAGRAD, "steps", "OPT-2", "step t is lr g / ((1 + (t-1) lr_decay)(sqrt(sum) + eps))", _runs,
      "gradients whose sums of squares have rational roots")  # fmt: skip
def _adagrad(t: Trial) -> None:
    n, o = len(t.given["theta"]), t.options
    signs = (-1.0) ** np.arange(n)
    gradients, roots = ROOTS
    if not o["initial_accumulator_value"]:
        gradients, roots = np.array([3.0, 4.0, 12.0, 84.0]), np.array([3.0, 5.0, 13.0, 85.0])
    got = t.run(gradient=gradients[:, None] * signs, options={"weight_decay": 0.0})
    if got.has("theta"):
        move, tol = _moves(t, got)
        rate = exact(o["lr"]) / (1 + exact(np.arange(len(roots))) * exact(o["lr_decay"]))
        step = rate * exact(gradients) / (exact(roots) + exact(o["eps"]))
        t.near("a move", move, -step[:, None] * exact(signs), tol)


@fact(ADAMW, "constant gradient", "OPT-3", "a constant gradient moves by lr g / (|g| + eps) always",
      _runs, "weight_decay = 0")  # fmt: skip
def _constant(t: Trial) -> None:
    (gradient,) = t.wide("gradient")
    constant = np.repeat(gradient[:1] + (gradient[:1] == 0), max(3, len(gradient)), axis=0)
    got = t.run(gradient=constant, options={"weight_decay": 0.0})
    if got.has("theta"):
        move, tol = _moves(t, got)
        g = exact(constant)
        t.near(
            "a move", move, -exact(t.options["lr"]) * g / (abs(g) + exact(t.options["eps"])), tol
        )


@fact(ADAMW, "decay", "OPT-3", "without gradients each step multiplies theta by 1 - lr decay",
      _runs, "gradients 0, weight_decay = 0.25")  # fmt: skip
def _shrink(t: Trial) -> None:
    theta, gradient = t.wide("theta", "gradient")
    got = t.run(gradient=0 * gradient, options={"weight_decay": 0.25})
    if got.has("theta"):
        left = exact(1 - 0.25 * t.options["lr"]) ** (1 + np.arange(len(gradient), dtype=object))
        t.near("theta", got["theta"], left[:, None] * exact(theta), got.tol["theta"])


@fact(ADAMW, "decoupled", "OPT-3", "weight decay leaves both averages of the gradients as they are",
      _runs)  # fmt: skip
def _decoupled(t: Trial) -> None:
    a, b = t.run(options={"weight_decay": 0.0}), t.run(options={"weight_decay": 0.25})
    t.same(a, b, [name for name in a if name != "theta"])
