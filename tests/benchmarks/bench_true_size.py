"""One online step of LoKO on transformers of published size, random weights, by both routes.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_true_size.py [--only vit] [--dtype float32]

RoBERTa-base (50,265 tokens, 12 blocks, 768 wide; 128 tokens a sample, the last 28 padding; 2
classes) and ViT-B/16 (3 x 224 x 224, so 197 tokens; 10 and 100 classes); LoRA of rank 8 on every q
and v, so n = 294,912; softmax, ``ema_innovation_hph``. A process a case; a line of JSON each: wall
and processor time of the one step, the process's peak memory and how far it rose over the model's,
and how far the two routes' posteriors are apart, relative to the largest entry.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_true_size.py --covariances

On RoBERTa-base, the glm step by the fast route with each covariance: milliseconds of a step (the
median of five), MB that the prior holds, and MB that the process rises by in a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from loko_ref import loko
from loko_ref.fast import prepare
from loko_ref.fast.bench import peak_mb
from loko_ref.loko import Batch, LokoConfig
from loko_ref.network.architectures import roberta_spec, vit_spec
from loko_ref.network.model import Model, init_model

BASE = {"layers": 12, "width": 768, "heads": 12, "ff": 3072, "lora": {"r": 8, "alpha": 16.0}}
CASES = ("roberta", "vit", "vit_100")
COVARIANCES: dict[str, dict[str, Any]] = {
    "diagonal": {},
    "lowrank, L = 10": {"covariance": "lowrank", "columns": 10},
    "block, unit": {"covariance": "block"},
    "block, unit, L = 10, implicit": {
        "covariance": "block",
        "columns": 10,
        "solve": "implicit",
    },
}


def problem(case: str, dtype: str) -> tuple[LokoConfig, Batch]:
    """Configuration and one sample; weights of variance 1 / (3 i), B not 0."""
    rng = np.random.default_rng(0)
    if case == "roberta":
        spec = roberta_spec(vocab=50_265, positions=514, outputs=2, **BASE)
        x = rng.integers(2, 50_265, (1, 128))
        x[:, 100:] = 1
    else:
        outputs = 100 if case == "vit_100" else 10
        spec = vit_spec(image=(3, 224, 224), patch=(16, 16), outputs=outputs, **BASE)
        x = rng.standard_normal((1, 3, 224, 224)).astype(dtype)
    drawn = init_model(rng, spec, dtype=dtype)
    weights = dict(drawn.weights)
    for key, array in weights.items():
        if key.endswith(".B"):
            weights[key] = (0.1 * rng.standard_normal(array.shape)).astype(dtype)
        elif key.endswith(".W"):
            array *= 6**-0.5
    model = Model(spec=spec, weights=weights, trainable=drawn.trainable)
    config = LokoConfig(
        model=model, observation="softmax", noise="ema_innovation_hph", r0=0.3, p0=0.1
    )
    return config, Batch(x=x, y=np.array([1]))


def timed(step: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The posterior state of one step, and what it took."""
    before, wall, cpu = peak_mb(reset=True), time.perf_counter(), time.process_time()
    state, _ = step()
    return state, {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_mb": round(peak_mb()),
        "rise_mb": round(peak_mb() - before),
    }


def run(case: str, dtype: str) -> dict[str, Any]:
    """One step by each route, from the same prior."""
    config, batch = problem(case, dtype)
    model, prior = config.model, loko.init(config)
    fast, fast_cost = timed(lambda: prepare(config).step(prior, batch))
    slow, slow_cost = timed(lambda: loko.step(prior, batch, config))
    apart = {
        name: float(f"{np.abs(a - b).max() / np.abs(a).max():.1e}")
        for name in ("theta", "p", "R")
        for a, b in [(getattr(slow, name), getattr(fast, name))]
    }
    moved = np.abs(slow.theta - prior.theta).max()
    assert np.isfinite(slow.theta).all()
    assert moved > 0
    assert ((slow.p > 0) & (slow.p <= prior.p)).all()
    return {
        "case": case,
        "dtype": dtype,
        "weights": sum(w.size for w in model.weights.values()),
        "n": model.n,
        "m": model.outputs,
        "fast": fast_cost,
        "readable": slow_cost,
        "apart": apart,
    }


def run_covariance(name: str, dtype: str) -> dict[str, Any]:
    """Six steps with one covariance; the first, which prepares, is not counted."""
    config, batch = problem("roberta", dtype)
    config = replace(config, observation="glm", noise="glm", **COVARIANCES[name])
    stepper, state, ms, rise = prepare(config), loko.init(config), [], 0.0
    held = sum(a.nbytes for a in (state.p, state.U, state.W) if a is not None)
    for k in range(6):
        before, wall = peak_mb(reset=True), time.perf_counter()
        state, _ = stepper.step(state, batch)
        if k > 0:
            ms.append(1e3 * (time.perf_counter() - wall))
            rise = max(rise, peak_mb() - before)
    assert np.isfinite(state.theta).all()
    return {
        "covariance": name,
        "dtype": dtype,
        "n": config.model.n,
        "ms": round(float(np.median(ms))),
        "prior_mb": round(held / 2**20, 1),
        "rise_mb": round(rise),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--dtype", choices=("float64", "float32"))
    parser.add_argument("--here", action="store_true", help="in this process: one case, one dtype")
    parser.add_argument("--covariances", action="store_true", help="one of each, on RoBERTa-base")
    parser.add_argument("--covariance", choices=COVARIANCES, help="this one, in this process")
    asked = parser.parse_args()
    if asked.covariance:
        print(json.dumps(run_covariance(asked.covariance, asked.dtype or "float64")), flush=True)
        return
    if asked.covariances:
        for name in COVARIANCES:
            words = [__file__, "--covariance", name, "--dtype", asked.dtype or "float64"]
            subprocess.run([sys.executable, *words], check=False, timeout=3600)
        return
    for case in CASES:
        for dtype in ("float64", "float32"):
            if asked.only not in (None, case) or asked.dtype not in (None, dtype):
                continue
            if asked.here:
                print(json.dumps(run(case, dtype)), flush=True)
            else:
                words = [__file__, "--here", "--only", case, "--dtype", dtype]
                subprocess.run([sys.executable, *words], check=True, timeout=24 * 3600)


if __name__ == "__main__":
    main()
