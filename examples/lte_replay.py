"""Repeat a run of your LTE code, and judge each of its arrays after every step.

    python examples/lte_replay.py [--fault] [--trace FOLDER]

Here "your code" is :class:`Mine`, which shares nothing with the package: two layers without
biases, three heads with weight copies, AdaGrad with a schedule or a Kalman filter in each head,
a merge every 3 steps, then B = 0 and A redrawn. What it began with and what it was given are the
inputs of the operation ``lte.run``; what it recorded is judged as the operation's outputs, with
tolerances computed from this very run. With ``--fault`` its reset forgets the weight copies. With
``--trace FOLDER`` the runs are written as recordings, which ``loko-ref verify --trace`` checks step
by step: under ``k/`` the state before step k, and what happened in it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.reports.document import failure
from loko_ref.conformance.user_inputs import check

HEADS, R, SCALE, T, STEPS, SHARE, C = 3, 2, 2.0, 3, 9, 4, 4
SHAPES = {"0": (8, 6), "1": (C, 8)}  # o, i
N = sum(R * (o + i) for o, i in SHAPES.values())

rng = np.random.default_rng(7)
START = {f"{k}.W": rng.standard_normal((o, i)) / i**0.5 for k, (o, i) in SHAPES.items()}
A_0 = {f"{k}.A": rng.standard_normal((HEADS, R, i)) for k, (_, i) in SHAPES.items()}
B_0 = {f"{k}.B": np.zeros((HEADS, o, R)) for k, (o, _) in SHAPES.items()}
REDRAWS = {f"{k}.A": rng.standard_normal((STEPS // T, HEADS, R, i)) for k, (_, i) in SHAPES.items()}
X = rng.standard_normal((STEPS, HEADS * SHARE, 6))
Y = np.eye(C)[rng.integers(0, C, (STEPS, HEADS * SHARE))]
EVALUATION = rng.standard_normal((5, 6))
RATES = [0.05 * 0.9**t for t in range(STEPS)]


class Mine:
    """An independent LTE; ``recorded[name]`` has one row per step."""

    def __init__(self, optimizer: str, fault: bool) -> None:
        self.loko, self.fault, self.recorded = optimizer == "loko", fault, {}
        self.W = {k: START[f"{k}.W"] for k in SHAPES}
        self.copies = {k: [self.W[k]] * HEADS for k in SHAPES}
        self.A = {k: list(A_0[f"{k}.A"]) for k in SHAPES}
        self.B = {k: list(B_0[f"{k}.B"]) for k in SHAPES}
        self.kept = [np.full(N, 0.05 if self.loko else 0.0)] * HEADS  # p, or the sum of squares

    def log(self, **values: Any) -> None:
        for name, value in values.items():
            self.recorded.setdefault(name, []).append(np.array(value))

    def theta(self, h: int) -> np.ndarray:
        return np.concatenate([f[k][h].ravel() for k in SHAPES for f in (self.A, self.B)])

    def head(self, h: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z (batch, C), and Z (batch, C, n) entry by entry."""
        full = {k: self.copies[k][h] + SCALE * self.B[k][h] @ self.A[k][h] for k in SHAPES}
        a = np.tanh(x @ full["0"].T)
        Z = np.empty((len(x), C, N))
        for b, c in np.ndindex(len(x), C):
            by_W = {"0": np.outer(full["1"][c] * (1 - a[b] ** 2), x[b])}
            by_W["1"] = np.outer(np.eye(C)[c], a[b])
            parts = [
                part.ravel()
                for k, G in by_W.items()
                for part in (SCALE * self.B[k][h].T @ G, SCALE * G @ self.A[k][h].T)
            ]
            Z[b, c] = np.concatenate(parts)
        return a @ full["1"].T, Z

    def filtered(self, h: int, e: np.ndarray, yhat: np.ndarray, Z: np.ndarray) -> np.ndarray:
        """theta + K e: H = J Z, R = J, all samples of the chunk at once."""
        J = np.zeros((e.size, e.size))
        for b, q in enumerate(yhat):
            J[b * C : (b + 1) * C, b * C : (b + 1) * C] = np.diag(q) - np.outer(q, q)
        H, p = J @ Z, self.kept[h]
        K = (np.linalg.pinv(H * p @ H.T + J, rcond=1e-12, hermitian=True) @ (H * p)).T
        self.kept[h] = p - np.einsum("nm,mn->n", K, H) * p
        return self.theta(h) + K @ e.ravel()

    def step(self, t: int) -> None:
        new, slopes, losses = [], [], []
        for h in range(HEADS):
            mine = slice(h * SHARE, (h + 1) * SHARE)
            z, Z = self.head(h, X[t, mine])
            yhat = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            losses.append(-(Y[t, mine] * np.log(yhat)).sum() / SHARE)
            if self.loko:
                slopes.append(Z.reshape(-1, N))
                new.append(self.filtered(h, Y[t, mine] - yhat, yhat, slopes[-1]))
                continue
            g = np.einsum("bc,bcn->n", yhat - Y[t, mine], Z) / SHARE / HEADS
            self.kept[h] = self.kept[h] + g * g
            slopes.append(g)
            new.append(self.theta(h) - RATES[t] * g / (np.sqrt(self.kept[h]) + 1e-8))
        for h, theta in enumerate(new):
            parts = iter(
                np.split(theta, np.cumsum([R * s for k in SHAPES for s in SHAPES[k][::-1]]))
            )
            for k, (o, i) in SHAPES.items():
                self.A[k][h] = next(parts).reshape(R, i)
                self.B[k][h] = next(parts).reshape(o, R)
        self.log(loss=losses, theta_step=new, **{"Z" if self.loko else "gradient": slopes})

    def merge(self, t: int) -> None:
        for k in SHAPES:
            deltas = [SCALE * self.B[k][h] @ self.A[k][h] for h in range(HEADS)]
            self.W[k] = np.mean(
                [c + d for c, d in zip(self.copies[k], deltas, strict=True)], axis=0
            )
            self.copies[k] = [self.W[k] - d for d in deltas]
            self.A[k] = list(REDRAWS[f"{k}.A"][t // T])
            self.B[k] = [np.zeros_like(B) for B in self.B[k]]
            if not self.fault:
                self.copies[k] = [self.W[k]] * HEADS

    def run(self, **given: Any) -> dict[str, np.ndarray]:
        for t in range(STEPS):
            self.step(t)
            if (t + 1) % T == 0:
                self.merge(t)
            heads = range(HEADS)
            self.log(
                theta=[self.theta(h) for h in heads],
                copies=[np.concatenate([self.copies[k][h].ravel() for k in SHAPES]) for h in heads],
                W=np.concatenate([self.W[k].ravel() for k in SHAPES]),
                z_main=np.tanh(EVALUATION @ self.W["0"].T) @ self.W["1"].T,
                **{"p" if self.loko else "sum": self.kept},
            )
        return {name: np.stack(rows) for name, rows in self.recorded.items()}


def layer(name: str) -> dict[str, Any]:
    o, i = SHAPES[name]
    lora = {"r": R, "alpha": R * SCALE}
    return {"kind": "linear", "name": name, "in": i, "out": o, "bias": False, "lora": lora}


given = {
    "x": X,
    "y": Y,
    "weights": START,
    "factors": {**A_0, **B_0},
    "redraws": REDRAWS,
    "evaluation": EVALUATION,
    "spec": [layer("0"), {"kind": "tanh"}, layer("1")],
    "heads": HEADS,
    "merge_every": T,
    "reset": "AB",
    "realisation": "copies",
}
optimizers = {
    "adagrad": {"optimizer": "adagrad", "rates": RATES, "eps": 1e-8},
    "loko": {"optimizer": "loko", "p": np.full(N, 0.05)},
}
STATE = ("theta", "copies", "W", "p", "sum")


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([a.ravel() for a in arrays.values()])


def record(run: dict[str, np.ndarray], own: dict[str, Any]) -> dict[str, np.ndarray]:
    """Lay a run out as a recording: what a step leaves is the state before the next one."""
    arrays = {f"{k + (q in STATE)}/{q}": a[k] for q, a in run.items() for k in range(STEPS)}
    for k in range(STEPS):
        arrays |= {f"{k}/x": X[k], f"{k}/y": Y[k], f"{k}/evaluation": EVALUATION}
        if (k + 1) % T == 0:
            arrays |= {f"{k}/redraws.{name}": A[k // T] for name, A in REDRAWS.items()}
    first = Mine(own["optimizer"], False)
    heads = range(HEADS)
    arrays |= {"0/theta": np.stack([first.theta(h) for h in heads]), "0/W": flat(START)}
    arrays["0/copies"] = np.stack([flat(START)] * HEADS)
    arrays["0/p" if first.loko else "0/sum"] = np.stack(first.kept)
    options = {k: v for k, v in own.items() if not isinstance(v, np.ndarray | dict)}
    head = json.dumps({"operation": "lte.run", **options})
    return {"options": np.array(head), **arrays}


for name, options in optimizers.items():
    mine = Mine(name, "--fault" in sys.argv)
    if "--trace" in sys.argv:
        place = f"{sys.argv[sys.argv.index('--trace') + 1]}/lte-{name}.npz"
        np.savez(place, **record(mine.run(), {**given, **options}))
        print(f"recorded {STEPS} steps; check them: loko-ref verify --trace {place}")
        continue
    result = check(mine.run, "lte.run", {**given, **options})
    judged = ", ".join(result.quantities)
    if result.status == "passed":
        print(f"{name}: {STEPS} steps agree to {result.worst:.2f} of their tolerance: {judged}")
        continue
    print(f"{name}: {failure(result)}")
    for mistake in next(iter(name_mistakes([result]).values()))[:1]:
        print(f"  reproduced by {mistake.mutant.id}: {mistake.mutant.explanation}")
