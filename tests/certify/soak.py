"""Long runs: a million diagonal steps, drifting streams, and a certified trajectory beside.

``python tests/certify/soak.py`` runs everything in full and prints what it saw;
``tests/certify/test_long_runs.py`` runs a share of it.  [BALL-8]

Shapes: theta, p (n,); P (n, n); H (m, n); e (m,); R, S (m, m).
"""

import argparse
import json
import time

import numpy as np

from loko_ref import loko
from loko_ref.arrays import balls
from loko_ref.errors import NumericalError
from loko_ref.kalman import dense, diagonal
from loko_ref.kalman import time as time_update
from loko_ref.network.model import init_model, mlp_spec


def asymmetry(S):
    size = np.max(np.abs(S))  # 0 where a prediction is certain to the last bit
    return float(np.max(np.abs(S - S.T)) / size) if size else 0.0


class Stream:
    """A small linear stream of exact binary numbers: H on a grid of 2^-6, y = H theta* + noise."""

    def __init__(self, n=4, m=2, period=61, seed=7):
        rng = np.random.default_rng(seed)
        self.H = rng.integers(-64, 65, (period, m, n)) / 64.0
        target = rng.integers(-64, 65, n) / 64.0
        self.y = self.H @ target + rng.integers(-16, 17, (period, m)) / 64.0
        self.R = np.array([[0.5, 0.125], [0.125, 0.25]])
        self.theta, self.p = np.zeros(n), np.ones(n)

    def at(self, k):
        return self.H[k % len(self.H)], self.y[k % len(self.y)]


def small(steps, kind="decoupled", every=1000):
    """Diagonal steps on the small stream by the public, checking function; what must hold, holds.

    The update itself raises on an S that is not positive definite and on p <= 0.
    """
    stream = Stream()
    theta, p = stream.theta, stream.p
    skew = []
    for k in range(steps):
        H, y = stream.at(k)
        new = diagonal.update(theta, p, H, y - H @ theta, stream.R, diagonal=kind)
        assert np.all(new.p > 0), k
        assert np.all(new.p <= p), k
        theta, p = new.theta, new.p
        if (k + 1) % every == 0 or k + 1 == steps:
            assert np.isfinite(theta).all(), k
            assert np.linalg.eigvalsh(new.S)[0] > 0, k
            skew.append(asymmetry(new.S))
    return {"steps": steps, "theta": theta, "p": p, "asymmetry": max(skew), "last": skew[-1]}


def certified(steps, checkpoints, kind="decoupled", bits=1024, lam=1.0, q=0.0, R=None):
    """The same stream in float64 and in balls; their distance at the checkpoints.

    Distances are relative to the largest entry of theta and entry by entry for p, in units of u;
    ``lost`` is how many bits the enclosure lost. R replaces the float run's noise covariance.
    """
    stream = Stream()
    theta, p = stream.theta, stream.p
    R_float = stream.R if R is None else R
    seen = {}
    with balls.precision(bits):
        t, v = balls.balls(theta), balls.balls(p)
        period = [(balls.balls(H), balls.balls(y)) for H, y in zip(stream.H, stream.y, strict=True)]
        R_exact = balls.balls(stream.R)
        for k in range(steps):
            H, y = stream.at(k)
            p_pred = time_update.update(p, lam, q)
            new = diagonal.update_unchecked(np, theta, p_pred, H, y - H @ theta, R_float, kind)
            theta, p = new.theta, new.p
            H, y = period[k % len(period)]
            v_pred = time_update.update(v, lam, q)
            exact = diagonal.update_unchecked(balls.xp, t, v_pred, H, y - H @ t, R_exact, kind)
            t, v = exact.theta, exact.p
            if k + 1 in checkpoints:
                off_theta = balls.to_host(balls.xp.abs(balls.balls(theta) - t))
                off_p = balls.to_host(balls.xp.abs(balls.balls(p) / v - 1))
                size = np.max(np.abs(theta))
                lost = bits - min(x.rel_accuracy_bits() for x in [*t.tolist(), *v.tolist()])
                assert lost < bits - 100, f"step {k}: {bits} bits do not enclose it any more"
                seen[k + 1] = {
                    "theta": float(np.max(off_theta) / size / 2.0**-53),
                    "p": float(np.max(off_p) / 2.0**-53),
                    "lost": lost,
                }
    return seen


def drifting(steps, every=500, watch=None, **options):
    """LoKO's own step on a network whose teacher drifts, with forgetting and process noise."""
    rng = np.random.default_rng(11)
    spec = mlp_spec([3, 4, 2], "tanh", {"r": 1, "alpha": 1.0})
    config = loko.LokoConfig(
        model=init_model(rng, spec),
        **({"lam": 0.999, "q": 1e-6, "p0": 0.05, "beta": 0.99} | options),
    )
    state = loko.init(config)
    big = "P" if config.covariance == "dense" else "p"
    worst = {"asymmetry S": 0.0, "asymmetry R": 0.0, "asymmetry P": 0.0, "p max": 0.0}
    lowest, halves = np.inf, [0.0, 0.0]
    for k in range(steps):
        angle = 2 * np.pi * k / 5000
        x = rng.standard_normal((1, 3))
        signal = np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1]
        y = (signal > 0).astype(int)
        if config.observation == "gaussian":
            y = np.stack([np.tanh(signal), 0.5 * signal], axis=1) + 0.1 * rng.standard_normal(
                (1, 2)
            )
        state, record = loko.step(state, loko.Batch(x=x, y=y), config)
        if watch is not None:
            watch(k, state, record)
        cov = getattr(state, big)
        p = cov if cov.ndim == 1 else np.diagonal(cov)
        assert np.all(p > 0), k
        lowest, worst["p max"] = min(lowest, float(p.min())), max(worst["p max"], float(p.max()))
        skew = asymmetry(record.S)
        halves[2 * k >= steps] = max(halves[2 * k >= steps], skew)
        worst["asymmetry S"] = max(worst["asymmetry S"], skew)
        if k % every == 0 or k + 1 == steps:
            assert np.isfinite(state.theta).all(), k
            assert np.isfinite(cov).all(), k
            floor = -4 * 2.0**-52 * np.abs(record.S).max() if config.observation == "glm" else 0
            assert np.linalg.eigvalsh((record.S + record.S.T) / 2)[0] > floor, k
            if state.R is not None:
                worst["asymmetry R"] = max(worst["asymmetry R"], asymmetry(state.R))
            if cov.ndim == 2:
                worst["asymmetry P"] = max(worst["asymmetry P"], asymmetry(cov))
                assert np.linalg.eigvalsh(cov)[0] > 0, k
    return {"steps": steps, **worst, "p min": lowest, "halves": halves}


def windup(steps, **options):
    """Drift with a dense P, forgetting and glm until it raises: what it says, and where P grew.

    ``common``: the largest eigenvalue's share in the direction that adds the same to every class,
    which no softmax sees. ``gauge``: the next one's share in the directions (A, -B) of the sites,
    along which no B A changes to first order.  [BALL-8]
    """
    seen = {}

    def watch(k, state, record):
        if k and k % (steps // 100) == 0:
            values, vectors = np.linalg.eigh(state.P)
            common = np.zeros(vectors.shape[0])
            common[-2:] = 0.5**0.5  # the last layer's B (2, 1)
            gauge = np.linalg.qr(gauges(state.theta).T)[0]
            seen[k] = {
                "largest": values[::-1][:3].tolist(),
                "common": float(abs(common @ vectors[:, -1])),
                "gauge": float(np.linalg.norm(gauge.T @ vectors[:, -2])),
            }

    try:
        drifting(steps, watch=watch, observation="glm", covariance="dense", **options)
    except NumericalError as error:
        told = {"quantity": error.quantity, "step": error.step, "eigenvalue": error.eigenvalue}
        return {**told, "says": str(error), "P": seen}
    return {"step": None, "P": seen}


def gauges(theta):
    """Directions (2, n) that change no output of :func:`drifting`'s network: (A, -B) a site."""
    found, at = [], 0
    for a, b in ((3, 4), (4, 2)):
        g = np.zeros_like(theta)
        g[at : at + a], g[at + a : at + a + b] = theta[at : at + a], -theta[at + a : at + a + b]
        found.append(g)
        at += a + b
    return np.array(found)


def dense_small(steps, form, every=500):
    """Dense steps on the small stream with forgetting; returns the largest asymmetry of P."""
    stream = Stream()
    theta, P, worst = stream.theta, np.diag(stream.p), 0.0
    for k in range(steps):
        H, y = stream.at(k)
        P = time_update.update(P, 0.999, 1e-6)
        new = dense.update(theta, P, H, y - H @ theta, stream.R, form=form)
        theta, P = new.theta, new.P
        if k % every == 0 or k + 1 == steps:
            assert np.linalg.eigvalsh((P + P.T) / 2)[0] > 0, k
            worst = max(worst, asymmetry(P))
    return worst


GAUSSIAN = {"observation": "gaussian", "noise": "ema_innovation_hph"}
DRIFTS = {
    "glm": {"observation": "glm"},
    "gaussian": GAUSSIAN,
    "gaussian, dense": {**GAUSSIAN, "covariance": "dense"},
    # no forgetting, which a dense P does not bear where classes are observed: see windup
    "glm, dense, process noise alone": {"observation": "glm", "covariance": "dense", "lam": 1.0},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the full lengths")
    parser.add_argument("--only", default="", help="parts whose name holds this")
    share, only = (vars(parser.parse_args())[key] for key in ("share", "only"))

    def report(name, call):
        if only not in name:
            return
        start = time.perf_counter()
        out = call()
        out = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in out.items()}
        print(f"{name} ({time.perf_counter() - start:.0f} s): {json.dumps(out)}", flush=True)

    for kind in diagonal.DIAGONALS:
        count = int(1_000_000 * share)
        report(f"small, {kind}, {count} steps", lambda n=count, k=kind: small(n, k))
    for name, options in DRIFTS.items():
        count = int(100_000 * share)
        report(f"drifting, {name}", lambda n=count, o=options: drifting(n, **o))
    count = int(100_000 * share)
    report("windup, glm, dense, lam = 0.999", lambda n=count: windup(n))
    for form in ("joseph", "textbook"):
        count = int(100_000 * share)
        report(f"dense, {form}", lambda n=count, f=form: {"asymmetry P": dense_small(n, f)})
    for label, how in {"lam = 1": {}, "lam = 0.999, q = 1e-6": {"lam": 0.999, "q": 1e-6}}.items():
        count = int(60_000 * share)
        marks = {10**j for j in range(1, 5)} | {count}
        report(f"certified, {label}", lambda n=count, m=marks, h=how: certified(n, m, **h))


if __name__ == "__main__":
    main()
