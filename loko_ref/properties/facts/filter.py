"""Facts of the filter: measurement updates of every prior, and the time update.

Shapes: theta, p (n,); P (n, n); H (m, n); e (m,); R, S (m, m); K (n, m).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import (
    Got,
    Problem,
    Problems,
    Trial,
    Unsuitable,
    exact,
    inverse,
    size,
)
from loko_ref.properties.updates import DENSE, DIAGONAL, PRECISIONS, prior, updates

__all__: list[str] = []

TIME = "kalman.time_update"
BOTH = f"{DENSE} {DIAGONAL}"
EVERY = f"{BOTH} {PRECISIONS}"


def _independent(operation: str) -> Problems:
    return updates(operation, diagonal_noise=True)


def _variances(t: Trial) -> str:
    return "P" if t.held.operation == DENSE else "p"


def _kept(t: Trial) -> tuple[str, ...]:
    """Name what is kept of the posterior covariance, or precision."""
    return ("U", "WW") if t.held.operation in PRECISIONS else (_variances(t),)


def _innovation_covariance(t: Trial) -> Array:
    H, R = t.exact("H", "R")
    return H @ prior(t) @ H.T + R


@fact(EVERY, "still", "KAL-2", "e = 0 leaves theta unchanged", updates)
def _still(t: Trial) -> None:
    got = t.run(e=np.zeros_like(t.given["e"]))
    if got.has("theta"):
        t.near("theta", got["theta"], t.given["theta"], got.tol["theta"])


@fact(EVERY, "blind", "KAL-2", "S, K and the posterior covariance do not depend on e", updates)
def _blind(t: Trial) -> None:
    other = 1 + 2 * t.wide("e")[0]
    t.same(t.run(), t.run(e=other), ("S", "K", *_kept(t)))


@fact(EVERY, "linear", "KAL-2", "theta moves in proportion to e", updates)
def _linear(t: Trial) -> None:
    e, theta = t.wide("e", "theta")
    a, b = t.run(), t.run(e=2 * e)
    if a.has("theta") and b.has("theta"):
        moved = theta + 2 * (a["theta"] - theta)
        t.near("theta", b["theta"], moved, 2 * a.tol["theta"] + b.tol["theta"])


@fact(EVERY, "gain", "KAL-2", "S = H P H' + R,  K S = P H',  theta+ = theta + K e", updates)
def _gain(t: Trial) -> None:
    got, (H, e, theta) = t.run(), t.exact("H", "e", "theta")
    S = _innovation_covariance(t)
    if got.has("S"):
        t.near("S", got["S"], S, got.tol["S"])
    if got.has("K"):
        K, tol = exact(got["K"]), got.tol["K"]
        t.near("K S", K @ S, prior(t) @ H.T, tol @ size(S))
        if got.has("theta"):
            bound = got.tol["theta"] + tol @ size(e)
            t.near("theta", got["theta"], theta + K @ e, bound)


@fact(EVERY, "residual", "KAL-2", "the residual e - H (theta+ - theta) is R S^-1 e", updates)
def _residual(t: Trial) -> None:
    got, (H, e, R, theta) = t.run(), t.exact("H", "e", "R", "theta")
    if got.has("theta"):
        left = e - H @ (exact(got["theta"]) - theta)
        wanted = R @ (inverse(_innovation_covariance(t)) @ e)
        t.near("the residual", left, wanted, size(H) @ got.tol["theta"])


@fact(EVERY, "stationary", "KAL-2 KAL-4",
      "theta+ maximises the posterior: theta+ - theta = P H' R^-1 (e - H (theta+ - theta))",
      updates)  # fmt: skip
def _stationary(t: Trial) -> None:
    got, (H, e, R, theta) = t.run(), t.exact("H", "e", "R", "theta")
    if got.has("theta"):
        moved, gain = exact(got["theta"]) - theta, prior(t) @ H.T @ inverse(R)
        slack = got.tol["theta"]
        t.near("theta", moved, gain @ (e - H @ moved), slack + size(gain @ H) @ slack)


@fact(BOTH, "information", "KAL-4 DIAG-1 DIAG-2",
      "P+^-1 = P^-1 + H' R^-1 H; decoupled p+ is the diagonal of P+, "
      "1/p+ variational that of P+^-1", updates)  # fmt: skip
def _information(t: Trial) -> None:
    got, (H, R) = t.run(), t.exact("H", "R")
    name = _variances(t)
    if not got.has(name):
        return
    precision = inverse(prior(t)) + H.T @ inverse(R) @ H
    if name == "P":
        product = exact(got["P"]) @ precision
        t.near("P+ P+^-1", product, exact(np.eye(len(product))), got.tol["P"] @ size(precision))
    elif t.options.get("diagonal") == "variational":
        t.near("p", got["p"], 1 / np.diagonal(precision), got.tol["p"])
    else:
        t.near("p", got["p"], np.diagonal(inverse(precision)), got.tol["p"])


@fact(BOTH, "shrinks", "DIAG-4 KAL-4", "0 < p+ <= p; P+ is symmetric with 0 <= P+ <= P", updates)
def _shrinks(t: Trial) -> None:
    got, name = t.run(), _variances(t)
    if not got.has(name):
        return
    (prior,), posterior, tol = t.wide(name), got[name], got.tol[name]
    if name == "p":
        t.below("p - p_pred", posterior - prior, tol)
        t.below("-p", -posterior, tol)
        return
    slack = np.linalg.norm(tol)
    t.near("P - P'", posterior, posterior.T, tol + tol.T)
    posterior = (posterior + posterior.T) / 2
    t.below("-eigenvalue of P", -np.linalg.eigvalsh(posterior)[0], slack)
    t.below("-eigenvalue of P_pred - P", -np.linalg.eigvalsh(prior - posterior)[0], slack)


@fact(BOTH, "vague", "KAL-2", "R to infinity leaves theta and the covariance unchanged", updates,
      "R = 2^80 I")  # fmt: skip
def _vague(t: Trial) -> None:
    m = len(t.given["e"])
    got, (H, e) = t.run(R=2.0**80 * np.eye(m)), t.wide("H", "e")
    P, name = size(prior(t)), _variances(t)
    moves = P @ size(H.T) / 2.0**80
    if got.has("theta"):
        t.near("theta", got["theta"], t.given["theta"], got.tol["theta"] + moves @ size(e))
    if got.has(name):
        shrink = moves @ size(H) @ P
        bound = shrink if name == "P" else np.diagonal(shrink)
        t.near(name, got[name], t.given[name], got.tol[name] + bound)


@fact(BOTH, "certain", "KAL-2", "R to 0 fits the observation: H (theta+ - theta) = e", updates,
      "n >= m, H of full rank, R = 2^-10 I")  # fmt: skip
def _certain(t: Trial) -> None:
    (H, e, theta), R = t.wide("H", "e", "theta"), 2.0**-10 * np.eye(len(t.given["e"]))
    G = np.asarray(t.exact("H")[0] @ prior(t) @ t.exact("H")[0].T, dtype=np.float64)
    if np.linalg.cond(G) > 1e3:
        raise Unsuitable("H is not of full rank")
    got = t.run(R=R)
    if got.has("theta"):
        left = size(np.linalg.inv(G)) @ size(e) * 2.0**-9  # |R S^-1 e|, twice
        fitted = H @ (got["theta"] - theta)
        rounding = 4 * np.finfo(np.float64).eps * size(H) @ (size(got["theta"]) + size(theta))
        t.near("the fit", fitted, e, left + size(H) @ got.tol["theta"] + rounding)


def _outputs(t: Trial, T: Array) -> Got:
    """Run with the outputs changed by T."""
    e, H, R = t.wide("e", "H", "R")
    R = T @ R @ T.T
    return t.run(e=T @ e, H=T @ H, R=(R + R.T) / 2)


def _posteriors(t: Trial) -> tuple[str, ...]:
    return "theta", *_kept(t)


@fact(EVERY, "permuted", "KAL-7", "the order of the outputs changes K's columns alone", updates)
def _permuted(t: Trial) -> None:
    m = len(t.given["e"])
    order = np.roll(np.arange(m), 1)
    b, undo = _outputs(t, np.eye(m)[order]), np.argsort(order)

    def back(name: str, value: Array) -> Array:
        if name == "S":
            return value[np.ix_(undo, undo)]
        return value[:, undo] if name == "K" else value

    t.same(t.run(), b, back=back)


@fact(EVERY, "mixed", "KAL-7", "an invertible change of the outputs changes nothing", updates)
def _mixed(t: Trial) -> None:
    m = len(t.given["e"])
    t.same(t.run(), _outputs(t, np.triu(np.ones((m, m))) + np.eye(m)), _posteriors(t))


@fact(BOTH, "unseen", "KAL-2 DIAG-4", "a parameter that no output sees is unchanged", updates)
def _unseen(t: Trial) -> None:
    H, given = t.wide("H", _variances(t))
    H[:, 0] = 0
    if given.ndim == 2:  # uncorrelated with the others, so that no observation informs it
        given[0, 1:] = given[1:, 0] = 0
    got = t.run(**{"H": H, _variances(t): given})
    for name, before in (("theta", t.wide("theta")[0]), (_variances(t), given)):
        if got.has(name):
            t.near(name, got[name][0], before[0], got.tol[name][0])


@fact(BOTH, "rescaled", "KAL-7", "parameters in other units give the posterior in other units",
      updates)  # fmt: skip
def _rescaled(t: Trial) -> None:
    n, (theta, H, given) = len(t.given["theta"]), t.wide("theta", "H", _variances(t))
    c = 2.0 ** (1 - np.arange(n) % 4)  # powers of 2: exact
    square = np.outer(c, c) if given.ndim == 2 else c**2
    a, b = t.run(), t.run(**{"theta": c * theta, "H": H / c, _variances(t): square * given})
    units = {"theta": c, "K": c[:, None], _variances(t): square}
    t.same(a, b, back=lambda name, value: value / units.get(name, 1.0))


@fact(DENSE, "turned", "KAL-7", "a rotation of the parameters rotates the posterior", updates)
def _turned(t: Trial) -> None:
    theta, P, H = t.wide("theta", "P", "H")
    n = len(theta)
    Q = np.eye(n) - 2 / n  # a reflection, symmetric
    turned = Q @ P @ Q
    a, b = t.run(), t.run(theta=Q @ theta, P=(turned + turned.T) / 2, H=H @ Q)
    for name, right in (("theta", np.ones(())), ("P", Q)):
        if a.has(name) and b.has(name):
            bound = np.linalg.norm(a.tol[name]) + np.linalg.norm(b.tol[name])
            t.below(
                f"|error of {name}|", np.linalg.norm(Q @ np.dot(b[name], right) - a[name]), bound
            )


@fact(BOTH, "one by one", "KAL-5 DIAG-6",
      "independent outputs one after another give the joint update (dense; variational: p alone)",
      _independent, "R diagonal; dense, or variational")  # fmt: skip
def _one_by_one(t: Trial) -> None:
    name = _variances(t)
    if name == "p" and t.options.get("diagonal") != "variational":
        raise Unsuitable("the order matters to the decoupled diagonal")
    whole, state = t.run(), dict(zip(_posteriors(t), t.wide(*_posteriors(t)), strict=True))
    theta, R, H, e = t.wide("theta", "R", "H", "e")
    names = (name,) if name == "p" else ("theta", "P")
    if not whole.has(*names):
        return
    slack = {key: whole.tol[key] for key in names}
    for j in range(len(e)):
        e_j = e[j : j + 1] - H[j : j + 1] @ (state["theta"] - theta)
        got = t.run(**state, H=H[j : j + 1], e=e_j, R=R[j : j + 1, j : j + 1])
        if not got.has(*names):
            return
        state |= {key: (got[key] + got[key].T) / 2 for key in names}  # P symmetric
        # what follows inherits the error: e that of theta
        slack = {key: slack[key] + len(e) * np.max(got.tol[key]) for key in names}
    for key in names:
        t.near(key, state[key], whole[key], slack[key])


# ---------------------------------------------------------------------------------- time update


def _times(operation: str) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        kind: dict[str, Any] = {"dtype": draw(st.dtypes()), "whole": small}
        n = draw(hs.integers(1, 2 if small else 5))
        if draw(hs.booleans()):
            held = {"P": draw(st.spd_matrices(n, cond=1e2, **kind))}
        else:
            held = {"p": draw(st.variances(n, **kind))}
        lam = draw(hs.sampled_from([0.5, 1.0] if small else [0.5, 0.75, 0.875, 1.0]))
        q = draw(hs.sampled_from([0.0, 2.0] if small else [0.0, 0.25, 1.5]))
        return Problem(inputs=held, options={"lam": lam, "q": q})

    return lambda small: draw(small)


def _timed(t: Trial) -> tuple[str, str, Array]:
    """Name what is given and what comes back, and give its process noise of 1."""
    name = "P" if "P" in t.given else "p"
    n = len(t.given[name])
    return name, f"{name}_pred", np.eye(n) if name == "P" else np.ones(n)


@fact(TIME, "identity", "KAL-1", "lam = 1 and q = 0 change nothing", _times)
def _identity(t: Trial) -> None:
    (p, pred, _), got = _timed(t), t.run(options={"lam": 1.0, "q": 0.0})
    t.near(pred, got[pred], t.given[p], got.tol[pred])


@fact(TIME, "forgets", "KAL-1", "lam p_pred = p where q = 0", _times, "q = 0")
def _forgets(t: Trial) -> None:
    (p, pred, _), got, lam = _timed(t), t.run(options={"q": 0.0}), t.options["lam"]
    t.near(f"lam {p}", exact(lam) * exact(got[pred]), t.given[p], lam * got.tol[pred])


@fact(TIME, "adds", "KAL-1", "process noise adds to p_pred, whatever p and lam", _times)
def _adds(t: Trial) -> None:
    _, pred, one = _timed(t)
    a, b, q = t.run(options={"q": 0.0}), t.run(), t.options["q"]
    bound = a.tol[pred] + b.tol[pred]
    t.near(pred, exact(b[pred]) - exact(a[pred]), exact(q) * exact(one), bound)


@fact(TIME, "composes", "KAL-1", "two steps are one with lam^2 and noise q / lam + q", _times)
def _composes(t: Trial) -> None:
    (p, pred, _), lam, q = _timed(t), t.options["lam"], t.options["q"]
    first = t.run()
    twice = t.run(**{p: first[pred]})
    once = t.run(options={"lam": lam**2, "q": q / lam + q})
    bound = once.tol[pred] + twice.tol[pred] + first.tol[pred] / lam
    t.near(pred, twice[pred], once[pred], bound)
