"""Fixed problems whose one LoKO step is timed, and the clock.

Every problem observes through a softmax, estimates R with ``ema_innovation_hph`` (beta 0.95) before
the gain, keeps the decoupled diagonal, and has LoRA with alpha = 2 r: on every linear of the
perceptrons, on q and v of the encoders.

========  ==========================================================================  ======  ===
problem   network                                                                     n       m
========  ==========================================================================  ======  ===
mlp_b1    64-128-128-10, ReLU, r = 4, one sample                                       2344    10
mlp_b32   the same, a batch of 32                                                      2344   320
tf_small  4 post-norm blocks, 128 wide, 4 heads, ff 512, T = 64, r = 8, mean, 10       16384   10
roberta   12 post-norm blocks, 768 wide, 12 heads, ff 3072, T = 128, r = 8, cls, 2    294912    2
vit       ViT-B/16 on 3 x 224 x 224 (T = 197), r = 8, 10 classes                      294912   10
vit_100   the same, 100 classes                                                       294912  100
========  ==========================================================================  ======  ===
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref import loko
from loko_ref.checks.values import FORMATS, check_choice, check_range
from loko_ref.fast import prepare
from loko_ref.loko import Batch, LokoConfig, LokoState
from loko_ref.network.architectures import encoder_spec, vit_spec
from loko_ref.network.model import Model, init_model, mlp_spec

BASE: dict[str, Any] = {"layers": 12, "width": 768, "heads": 12, "ff": 3072}

PROBLEMS: dict[str, dict[str, Any]] = {
    "mlp_b1": {"batch": 1, "r": 4, "x": (64,)},
    "mlp_b32": {"batch": 32, "r": 4, "x": (64,)},
    "tf_small": {"batch": 1, "r": 8, "x": (64, 128)},
    "roberta": {"batch": 1, "r": 8, "x": (128, 768)},
    "vit": {"batch": 1, "r": 8, "x": (3, 224, 224)},
    "vit_100": {"batch": 1, "r": 8, "x": (3, 224, 224)},
}
"""Problem name -> batch, rank and the shape of one sample."""

ROUTES = ("fast", "readable")


def _spec(name: str, r: int) -> list[dict[str, Any]]:
    lora = {"r": r, "alpha": 2.0 * r}
    if name.startswith("mlp"):
        return mlp_spec([64, 128, 128, 10], "relu", lora)
    if name == "tf_small":
        return encoder_spec(
            layers=4, width=128, heads=4, ff=512, outputs=10, pool="mean", lora=lora
        )
    if name == "roberta":
        return encoder_spec(**BASE, outputs=2, pool="cls", dense=True, lora=lora)
    outputs = 100 if name == "vit_100" else 10
    return vit_spec(image=(3, 224, 224), patch=(16, 16), **BASE, outputs=outputs, lora=lora)


def problem(name: str, dtype: str, seed: int = 0) -> tuple[LokoConfig, LokoState, Batch]:
    """Draw a problem: configuration, state before the step, and the batch.

    Parameters
    ----------
    name : str
        One of ``PROBLEMS``.
    dtype : {"float64", "float32"}
        Of everything.
    """
    check_choice("config", name, PROBLEMS)
    check_choice("dtype", dtype, FORMATS)
    size, rng = PROBLEMS[name], np.random.default_rng(seed)
    drawn = init_model(rng, _spec(name, size["r"]), dtype=dtype)
    weights = dict(drawn.weights)
    for key, array in weights.items():
        if key.endswith(".B"):
            weights[key] = (0.1 * rng.standard_normal(array.shape)).astype(dtype)
        elif key.endswith(".W") and not name.startswith("mlp"):
            weights[key] = array * (1 / 6**0.5)  # variance 1/(3 i): blocks that do not blow up
    model = Model(spec=drawn.spec, weights=weights, trainable=drawn.trainable)
    config = LokoConfig(
        model=model, observation="softmax", noise="ema_innovation_hph", beta=0.95, r0=0.3, p0=0.1
    )
    state = loko.init(config, size["batch"])
    assert state.p is not None
    factor = (0.5 + rng.random(model.n)).astype(dtype)
    state = replace(state, p=state.p * factor)
    x = rng.standard_normal((size["batch"], *size["x"])).astype(dtype)
    return config, state, Batch(x=x, y=rng.integers(0, model.outputs, size["batch"]))


def clock(step: Callable[[], object], min_time: float, *, least: int = 7) -> dict[str, Any]:
    """Run a step twice untimed, then until `min_time` has passed and at least `least` times.

    Returns
    -------
    dict
        ``median_ms``, ``min_ms``, ``p90_ms``, ``iters``.
    """
    for _ in range(2):
        step()
    times: list[float] = []
    begin = time.perf_counter()
    while (len(times) < least or time.perf_counter() - begin < min_time) and len(times) < 20_000:
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    times.sort()
    return {
        "median_ms": round(statistics.median(times), 4),
        "min_ms": round(times[0], 4),
        "p90_ms": round(times[int(0.9 * (len(times) - 1))], 4),
        "iters": len(times),
    }


def peak_mb(reset: bool = False) -> float:
    """Largest resident size of this process so far, MB; Linux can begin anew from the present."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if reset:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed is not the step's
            Path("/proc/self/clear_refs").write_text("5")
    line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def measure(name: str, dtype: str, *, min_time: float = 3.0, route: str = "fast") -> dict[str, Any]:
    """Time one problem's step in this process.

    Parameters
    ----------
    name, dtype
        As for :func:`problem`.
    min_time : float
        Seconds to repeat the step for, > 0.
    route : {"fast", "readable"}
        Which route takes the step.

    Returns
    -------
    dict
        What :func:`clock` returns, with ``config``, ``dtype``, ``route``, ``n``, ``m`` and
        ``step_peak_mb``: how far the process's largest resident size rose over the problem's own.
    """
    check_range("min_time", min_time, low=0, low_open=True, high_open=True)
    check_choice("route", route, ROUTES)
    config, state, batch = problem(name, dtype)
    before = peak_mb(reset=True)
    if route == "fast":
        stepper = prepare(config)
        timing = clock(lambda: stepper.step(state, batch), min_time)
    else:
        timing = clock(lambda: loko.step(state, batch, config), min_time)
    return {
        "config": name,
        "dtype": dtype,
        "route": route,
        "n": config.model.n,
        "m": PROBLEMS[name]["batch"] * config.model.outputs,
        **timing,
        "step_peak_mb": round(peak_mb() - before, 1),
    }


def curves(dtype: str = "float64", *, least: int = 5) -> dict[str, list[dict[str, Any]]]:
    """Time one step as the number of trainables grows, and as the number of tokens grows.

    At fixed widths, for the encoder of ``tf_small``: the rank from 4 to 64 (so n from 8,192 to
    131,072) at T = 64, and T from 32 to 512 at rank 8. Processor time, not the clock's, so that
    other work on the machine counts less; the best of `least` steps.

    Returns
    -------
    dict
        ``n`` and ``T``: each a list of ``{"r", "n", "T", "cpu_ms"}``.
    """
    found: dict[str, list[dict[str, Any]]] = {"n": [], "T": []}
    cases = [("n", r, 64) for r in (4, 8, 16, 32, 64)]
    cases += [("T", 8, T) for T in (32, 64, 128, 256, 512)]
    for axis, r, T in cases:
        lora = {"r": r, "alpha": 2.0 * r}
        spec = encoder_spec(layers=4, width=128, heads=4, ff=512, outputs=10, lora=lora)
        rng = np.random.default_rng(0)
        model = init_model(rng, spec, dtype=dtype)
        config = LokoConfig(model=model, observation="softmax", r0=0.3, p0=1e-3)
        state, stepper = loko.init(config), prepare(config)
        x = rng.standard_normal((1, T, 128)).astype(dtype)
        batch, times = Batch(x=x, y=np.array([3])), []
        for _ in range(least + 1):
            start = time.process_time()
            stepper.step(state, batch)
            times.append(1e3 * (time.process_time() - start))
        found[axis].append({"r": r, "n": model.n, "T": T, "cpu_ms": round(min(times[1:]), 3)})
    return found
