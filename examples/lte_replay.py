"""Repeat a run of one's own LTE code, and compare every weight after every merge.

    python examples/lte_replay.py

Here "one's own code" is a small loop over two heads below, which shares nothing with the package:
one linear layer, squared error, plain SGD, a merge every 3 steps, B and A reset after each merge.
Its start, its data and its redraws go into ``lte.run``.
"""

from __future__ import annotations

import numpy as np

from loko_ref import lte
from loko_ref.optimizers import SGD

HEADS, R, IN, OUT, T, STEPS, LR, SCALE = 2, 2, 6, 4, 3, 12, 0.1, 0.5

rng = np.random.default_rng(7)
W_0, b_0 = rng.standard_normal((OUT, IN)), rng.standard_normal(OUT)
A_0 = rng.standard_normal((HEADS, R, IN))
X, Y = rng.standard_normal((STEPS, HEADS * 3, IN)), rng.standard_normal((STEPS, HEADS * 3, OUT))
redrawn = rng.standard_normal((STEPS // T, HEADS, R, IN))


def own_code() -> list[np.ndarray]:
    W, merged = W_0.copy(), []
    A, B = A_0.copy(), np.zeros((HEADS, OUT, R))
    for t in range(STEPS):
        for h in range(HEADS):
            x, y = X[t, 3 * h : 3 * h + 3], Y[t, 3 * h : 3 * h + 3]
            dz = 2 * (x @ (W + SCALE * B[h] @ A[h]).T + b_0 - y) / y.size / HEADS
            G = dz.T @ x  # gradient of the full weight
            gA, gB = SCALE * B[h].T @ G, SCALE * G @ A[h].T
            A[h], B[h] = A[h] - LR * gA, B[h] - LR * gB
        if (t + 1) % T == 0:
            W = W + SCALE * np.mean([B[h] @ A[h] for h in range(HEADS)], axis=0)
            merged.append(W)
            A, B = redrawn[t // T].copy(), np.zeros((HEADS, OUT, R))
    return merged


spec = [{"kind": "linear", "name": "0", "in": IN, "out": OUT, "lora": {"r": R, "alpha": R * SCALE}}]
config = lte.LteConfig(
    spec=spec, heads=HEADS, merge_every=T, reset="AB", loss="mse", optimizer=SGD(lr=LR)
)
start = lte.init(
    config,
    weights={"0.W": W_0, "0.b": b_0},
    factors={"0.A": A_0, "0.B": np.zeros((HEADS, OUT, R))},
)
state, trace = lte.run(
    config, start, zip(X, Y, strict=True), redraws=lambda merge: {"0.A": redrawn[merge - 1]}
)
ours = [event.state.weights["0.W"] for event in trace.events if event.kind == "merge"]
for k, (mine, theirs) in enumerate(zip(own_code(), ours, strict=True), start=1):
    print(f"merge {k}: largest difference of W {np.abs(mine - theirs).max():.1e}")
