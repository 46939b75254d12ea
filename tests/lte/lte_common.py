"""What the tests of LTE share: small configurations, batches, a team of threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from loko_ref import lte
from loko_ref.lte.state import heads_of
from loko_ref.lte.team import span
from loko_ref.network import model
from loko_ref.network.architectures import encoder_spec, roberta_spec, vit_spec
from loko_ref.network.model import mlp_spec
from loko_ref.network.spec import linears, map_linears
from loko_ref.optimizers import SGD, AdaGrad, AdamW

# Unit roundoff times the length of the longest chain here (a few tens of steps, each a few hundred
# terms, on values of order 1): differences by rounding stay below 1e-12 with a wide margin, while
# every mistake tried moves the result by more than 1e-6.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}

OPTIMIZERS = {
    "sgd": SGD(lr=0.05, momentum=0.9),
    "adagrad": AdaGrad(lr=0.05),
    "adamw": AdamW(lr=0.01),
    "loko": lte.Loko(p0=0.02),
}


def config(**changes: Any) -> lte.LteConfig:
    """3 heads, rank 2, branch biases, two LoRA layers and a replica layer."""
    spec = mlp_spec([7, 9, 8, 4], "tanh", {"r": 2, "alpha": 3.0, "bias": True})
    del spec[2]["lora"]
    defaults: dict[str, Any] = {"spec": spec, "heads": 3, "merge_every": 2}
    return lte.LteConfig(**(defaults | changes))


def lora_only(**changes: Any) -> lte.LteConfig:
    """3 heads, every linear with LoRA, wide enough that 3 r is no full rank."""
    spec = mlp_spec([12, 15, 13], "gelu", {"r": 2, "alpha": 3.0})
    defaults: dict[str, Any] = {"spec": spec, "heads": 3, "merge_every": 2}
    return lte.LteConfig(**(defaults | changes))


SIZE = {"layers": 1, "width": 6, "heads": 2, "ff": 8, "outputs": 3}
SPECS: dict[str, list[dict[str, Any]]] = {
    "vit": vit_spec(image=(1, 4, 4), patch=(2, 2), **SIZE),
    "encoder": encoder_spec(norm="post", causal=True, bias=False, **SIZE),
    "roberta": roberta_spec(vocab=11, positions=7, types=0, **SIZE),
}


def stack(name: str = "vit", *, r: int = 2, bias: bool = True, **changes: Any) -> lte.LteConfig:
    """3 heads on a transformer, every linear with LoRA; norms and tables are replicas."""
    branch = {"r": r, "alpha": 3.0, "bias": bias}

    def put(layer: Any) -> Any:
        return {**layer, "lora": {**branch, "bias": bias and layer.get("bias", True)}}

    spec = map_linears(SPECS[name], put)
    defaults: dict[str, Any] = {"spec": spec, "heads": 3, "merge_every": 2}
    return lte.LteConfig(**(defaults | changes))


def batches(
    c: lte.LteConfig, steps: int, *, each: bool = False, seed: int = 0, dtype: str = "float64"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random batches of 2 samples a head; with `each` an array per head."""
    rng = np.random.default_rng(seed)
    lead = (c.heads, 2) if each else (c.heads * 2,)
    found = []
    for _ in range(steps):
        if c.spec[0]["kind"] == "embedding":
            x = rng.integers(0, c.spec[0]["vocab"], (*lead, 5))
        else:
            tokens = (5,) if c.spec[0]["kind"] == "residual" else ()
            x = rng.standard_normal((*lead, *tokens, c.inputs)).astype(dtype)
        if c.loss == "mse":
            y = rng.standard_normal((*lead, c.outputs)).astype(dtype)
        else:
            y = rng.integers(0, c.outputs, lead)
        for a in (x, y):
            a.flags.writeable = False
        found.append((x, y))
    return found


def start(c: lte.LteConfig, *, seed: int = 1, dtype: str = "float64", **more: Any) -> lte.LteState:
    """State with factors that are not 0, so that no term vanishes."""
    rng = np.random.default_rng(seed)
    factors = {
        f"{site.name}.{key}": (0.4 * rng.standard_normal((c.heads, *shape))).astype(dtype)
        for site in c.layout.sites.values()
        if site.lora
        for key, (_, shape) in site.parts.items()
    }
    per_head = 2 * c.heads if "replicated" in (c.data,) or c.mode == "mhlora" else 2
    return lte.init(c, factors=factors, batch=per_head, dtype=dtype, **more)


def effective(c: lte.LteConfig, s: lte.LteState, row: int) -> model.Model:
    """A head's network as a plain one: every branch folded into W and b."""
    view = heads_of(c, s)
    shapes = model.param_shapes(c.spec)
    weights = {k: v[row] if v.ndim > len(shapes[k]) else v for k, v in view.weights.items()}
    for site in c.layout.sites.values():
        p = {k: v[row] for k, v in c.layout.site(s.theta, site.name).items()}
        if not site.lora:
            weights |= {f"{site.name}.{k}": v for k, v in p.items()}
            continue
        terms = [(1.0, p)]
        if view.merged is not None:
            old = c.layout.site(view.merged, site.name)
            terms.append((-1.0, {k: v[row] for k, v in old.items()}))
        for sign, q in terms:
            W, b = f"{site.name}.W", f"{site.name}.b"
            weights[W] = weights[W] + sign * site.scale * q["B"] @ q["A"]
            if "bA" in q:
                weights[b] = weights[b] + sign * site.scale * (q["B"] @ q["bA"] + q["bB"])
    return lte.merged_model(c, weights)


def deltas(c: lte.LteConfig, s: lte.LteState, name: str) -> np.ndarray:
    """What each head adds to a weight: (heads, o, i)."""
    p = c.layout.site(s.theta, name)
    return np.stack(
        [c.layout.sites[name].scale * b @ a for a, b in zip(p["A"], p["B"], strict=True)]
    )


def names(c: lte.LteConfig) -> list[str]:
    """Every linear of a spec, in order."""
    return [layer["name"] for layer in linears(c.spec)]


class ThreadTeam:
    """One of several threads that hold the heads between them: MPI's collectives in a process."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier
        self.sent = 0

    def collect(self, item: Any) -> list[Any]:
        self.board[self.rank] = item
        self.barrier.wait()
        found = list(self.board)
        self.barrier.wait()
        return found

    def gather(self, rows: np.ndarray, heads: int) -> np.ndarray:
        assert rows.shape[0] == len(range(heads)[span(heads, self.rank, self.size)])
        found = np.concatenate(self.collect(rows.copy()))
        self.sent += found.nbytes
        return found

    def log(self, step: int, doing: str) -> None:
        pass


def together(size: int, work: Any) -> list[Any]:
    """Call ``work(team)`` in `size` threads; the results in rank order."""
    barrier = threading.Barrier(size, timeout=60)
    board: list[Any] = [None] * size
    results: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadTeam(rank, size, board, barrier))
        except BaseException as error:
            barrier.abort()
            results[rank] = error

    threads = [threading.Thread(target=one, args=(k,)) for k in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=60)
    for r in results:
        if isinstance(r, BaseException):
            raise r
    return results
