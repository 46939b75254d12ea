"""A step and a merge of LTE beside the same work in torch on the CPU, interleaved in one run.

    python tests/benchmarks/bench_lte.py [--rounds 5] [--only small|large] [--json FILE]

Reset-less LTE with a shared weight, AdamW, cross-entropy, float64 and float32. Two torch versions:
``loop`` writes a head as a module does (one after another), ``bmm`` stacks the heads. The merge in
torch forms one delta a head, as the authors' code does. All start from the same numbers, and the
factors after four steps and the merged weights are compared before anything is timed.
Each round times every contestant in turn; the best round's median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from loko_ref import lte
from loko_ref.network.model import mlp_spec
from loko_ref.optimizers import AdamW

PROBLEMS = {
    "small": ([64, 128, 128, 10], 4, 4, 32),
    "large": ([64, 1024, 1024, 10], 8, 16, 128),
}
ADAMW = AdamW(lr=1e-3)


def branch(x, A, B):
    return (x @ A.transpose(-1, -2)) @ B.transpose(-1, -2)


class Site(nn.Module):
    """All heads of one linear."""

    def __init__(self, W, b, A, B, scale, loop):
        super().__init__()
        self.W, self.b, self.scale, self.loop = W, b, scale, loop
        self.A = nn.ParameterList([nn.Parameter(a.clone()) for a in A] if loop else [A.clone()])
        self.B = nn.ParameterList([nn.Parameter(a.clone()) for a in B] if loop else [B.clone()])
        self.A_old = [torch.zeros_like(a) for a in self.A]
        self.B_old = [torch.zeros_like(a) for a in self.B]

    def forward(self, x):
        if not self.loop:
            low = branch(x, self.A[0], self.B[0]) - branch(x, self.A_old[0], self.B_old[0])
            return nn.functional.linear(x, self.W, self.b) + self.scale * low
        found = []
        for h, xh in enumerate(x):
            low = branch(xh, self.A[h], self.B[h]) - branch(xh, self.A_old[h], self.B_old[h])
            found.append(nn.functional.linear(xh, self.W, self.b) + self.scale * low)
        return found

    @torch.no_grad()
    def merge(self):
        four = (self.A, self.B, self.A_old, self.B_old)
        rows = zip(*(four if self.loop else [part[0] for part in four]), strict=True)
        deltas = [self.scale * (b @ a - b_old @ a_old) for a, b, a_old, b_old in rows]
        self.W = self.W + torch.stack(deltas).mean(0)
        self.A_old = [a.detach().clone() for a in self.A]
        self.B_old = [b.detach().clone() for b in self.B]


class Peer:
    """LTE in torch."""

    def __init__(self, config, state, loop):
        self.loop = loop
        self.sites = []
        for name, site in config.layout.sites.items():
            arrays = [state.weights[f"{name}.W"], state.weights[f"{name}.b"]]
            arrays += [config.layout.take(state.theta, f"{name}.{k}").copy() for k in "AB"]
            self.sites.append(Site(*map(torch.from_numpy, arrays), site.scale, loop))
        params = [p for s in self.sites for p in s.parameters()]
        self.optimizer = torch.optim.AdamW(
            params, lr=ADAMW.lr, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay
        )

    def step(self, x, y):
        self.optimizer.zero_grad()
        z = x
        for k, site in enumerate(self.sites):
            if k:
                z = [torch.relu(v) for v in z] if self.loop else torch.relu(z)
            z = site(z)
        z = torch.cat(z) if self.loop else z.reshape(-1, z.shape[-1])
        nn.functional.cross_entropy(z, y).backward()
        self.optimizer.step()

    def merge(self):
        for site in self.sites:
            site.merge()

    def factors(self):
        rows = []
        for s in self.sites:
            for p in (s.A, s.B):
                a = torch.stack(list(p)) if self.loop else p[0]
                rows.append(a.detach().numpy().reshape(a.shape[0], -1))
        return np.concatenate(rows, axis=1)


class Ours:
    """LTE here."""

    def __init__(self, config, state):
        self.config, self.state = config, state

    def step(self, x, y):
        self.state, _ = lte.step(self.config, self.state, x, y)

    def merge(self):
        self.state = lte.merge(self.config, self.state)

    def factors(self):
        return self.state.theta


def median(call, least: float) -> float:
    times, begun = [], time.perf_counter()
    while time.perf_counter() - begun < least or len(times) < 3:
        t = time.perf_counter()
        call()
        times.append(time.perf_counter() - t)
    return statistics.median(times) * 1e3


def bench(name: str, dtype: str, rounds: int, least: float) -> dict:
    widths, heads, r, batch = PROBLEMS[name]
    spec = mlp_spec(widths, "relu", {"r": r, "alpha": 2.0 * r})
    spec[-1]["lora"]["r"] = min(r, widths[-1])  # a rank is at most the smaller dimension
    config = lte.LteConfig(spec=spec, heads=heads, optimizer=ADAMW)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, widths[0])).astype(dtype)
    y = rng.integers(0, widths[-1], batch)
    tx, ty = torch.from_numpy(x).reshape(heads, -1, widths[0]), torch.from_numpy(y)
    state = lte.init(config, dtype=dtype)
    ours = Ours(config, state)
    peers = {"loop": Peer(config, state, True), "bmm": Peer(config, state, False)}
    calls = {"ours": (ours, (x, y))} | {k: (p, (tx, ty)) for k, p in peers.items()}
    for one, data in calls.values():
        for _ in range(3):
            one.step(*data)
        one.merge()
        one.step(*data)
    # Adam divides by the root of tiny gradients: single precision agrees to a few lr only
    close = 1e-9 if dtype == "float64" else 1e-2
    for one in peers.values():
        assert np.abs(one.factors() - ours.factors()).max() < close
        for s, k in zip(one.sites, config.layout.sites, strict=True):
            assert np.abs(s.W.numpy() - ours.state.weights[f"{k}.W"]).max() < close
    found = {}
    for what in ("step", "merge"):
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(rounds):
            for key, (one, data) in calls.items():
                args = data if what == "step" else ()
                call = getattr(one, what)
                best[key] = min(best[key], median(lambda c=call, a=args: c(*a), least))
        fastest = min(best["loop"], best["bmm"])
        found[what] = {
            **{f"{k}_ms": round(v, 3) for k, v in best.items()},
            "ratio_to_loop": round(best["ours"] / best["loop"], 3),
            "ratio_to_best": round(best["ours"] / fastest, 3),
        }
    return {"problem": name, "dtype": dtype, **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="a contestant and round")
    parser.add_argument("--only", choices=sorted(PROBLEMS))
    parser.add_argument("--json")
    asked = parser.parse_args()
    rows = []
    for name in PROBLEMS:
        for dtype in ("float64", "float32"):
            if asked.only in (None, name):
                rows.append(bench(name, dtype, asked.rounds, asked.seconds))
                print(json.dumps(rows[-1]), flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps({"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
