"""Time and memory of one step of RoBERTa's size, beside torch.func on the same GPU."""

import gc
import importlib
import importlib.util

import numpy as np
import side_by_side

from loko_ref import loko
from loko_ref.fast import bench

ROUNDS, SECONDS = 3, 0.8
"""Of each contestant; the best round's median counts, as on the CPU."""

MB = 2.0**20


def _problem(part, dtype, small):
    """Name and problem: a small one on the stand-in."""
    name = small if part.emulated else "roberta"
    return name, *bench.problem(name, dtype)


def _torch(part):
    """(torch or None, its device or why there is none, what counts its memory)."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed", None
    torch = importlib.import_module("torch")
    if part.emulated:
        return torch, "cpu", NoCounts
    if not torch.cuda.is_available():
        return None, "this torch sees no GPU", None
    return torch, "cuda", torch.cuda


class NoCounts:
    """The stand-in for what ``torch.cuda`` counts."""

    reset_peak_memory_stats = memory_allocated = max_memory_allocated = staticmethod(lambda: 0)


def _ours(part, config, state, batch):
    config, state, batch = (part.to_device(a) for a in (config, state, batch))

    def step():
        after, _ = loko.step(state, batch, config)
        return after.theta, after.p, after.R

    return step


def _hold(part, name, dtype, state, want, got):
    """A step that is timed is a right one."""
    prior = (state.theta, state.p, state.R)
    off = max(
        float(np.abs(a - b).max() / np.abs(b - c).max())
        for a, b, c in zip(got, want, prior, strict=True)
    )
    part.figure(f"{name}, {dtype}: off, of a step", off, f"<= {side_by_side.CLOSE[dtype]}")


def speed(part):
    """One step against torch.func, all rows at once and row by row, and the bare products."""
    cupy = part.lib.xp
    torch, device, _ = _torch(part)
    why = "emulated: the stand-in's time says nothing of a GPU" if part.emulated else ""
    for dtype in ("float32", "float64"):
        name, config, state, batch = _problem(part, dtype, "tf_small")
        calls = {"loko_ref": _ours(part, config, state, batch)}
        calls["products"] = side_by_side.floor_contestant(config, state, batch, cupy)
        for mode in ("jacrev", "loop") if torch else ():
            calls[f"torch {mode}"] = side_by_side.torch_step(config, state, batch, mode, device)
        after, _ = loko.step(state, batch, config)
        want = (after.theta, after.p, after.R)
        for key in calls.keys() - {"products"}:
            read = part.lib.to_host if key == "loko_ref" else lambda a: a.detach().cpu().numpy()
            _hold(part, f"{key}, {name}", dtype, state, want, [read(a) for a in calls[key]()])

        def synchronised(call):
            def step():
                out = call()
                cupy.cuda.runtime.deviceSynchronize()  # the whole device: torch's work too
                return out

            return step

        least, seconds = (1, 0.0) if part.emulated else (5, SECONDS)
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(1 if part.emulated else ROUNDS):
            for key, call in calls.items():
                took = bench.clock(synchronised(call), seconds, least=least)["median_ms"]
                best[key] = min(best[key], took)
        for key, took in best.items():
            part.figure(f"{key}, {name}, {dtype}: ms", took, unmeasured=why)
        ours, rivals = best["loko_ref"], [best[key] for key in best if key.startswith("torch")]
        ratio = round(ours / min(rivals), 3) if rivals else None
        why_not = why or ("" if torch else device)
        part.figure(f"{name}, {dtype}: to torch.func", ratio, "<= 1.0", unmeasured=why_not)
        ratio = round(ours / best["products"], 3)
        part.figure(f"{name}, {dtype}: to the bare products", ratio, unmeasured=why)


def memory(part):
    """What one step adds at most, beside torch's; and whether steps leave anything behind."""
    cupy = part.lib.xp
    torch, device, cuda = _torch(part)
    pool = cupy.get_default_memory_pool()
    why = "emulated: the host's memory says nothing of a GPU's" if part.emulated else ""
    for dtype in ("float32", "float64"):
        name, config, state, batch = _problem(part, dtype, "mlp_b1")
        theirs = None
        if torch:
            call = side_by_side.torch_step(config, state, batch, "jacrev", device)
            call()
            cuda.reset_peak_memory_stats()
            before = cuda.memory_allocated()
            call()
            theirs = round((cuda.max_memory_allocated() - before) / MB, 1)
        reason = why or ("" if torch else device)
        part.figure(f"torch jacrev, {name}, {dtype}: peak MB", theirs, unmeasured=reason)
        pool.free_all_blocks()
        step = _ours(part, config, state, batch)
        step()
        gc.collect()
        pool.free_all_blocks()
        before = pool.used_bytes()
        step()
        ours = round((pool.total_bytes() - before) / MB, 1)
        part.figure(f"loko_ref, {name}, {dtype}: peak MB", ours, unmeasured=why)
        gc.collect()
        held = pool.used_bytes()
        for _ in range(5):
            step()
        gc.collect()
        left = pool.used_bytes() - held
        part.figure(f"{name}, {dtype}: bytes left by five steps", left, "<= 0")
