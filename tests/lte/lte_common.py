"""What the tests of LTE share: small configurations, batches, a team of threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from loko_ref import lte
from loko_ref.lte.team import span
from loko_ref.model import mlp_spec
from loko_ref.optimizers import SGD, AdaGrad, AdamW

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


def batches(
    c: lte.LteConfig, steps: int, *, each: bool = False, seed: int = 0, dtype: str = "float64"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random batches of 2 samples a head; with `each` an array per head."""
    rng = np.random.default_rng(seed)
    lead = (c.heads, 2) if each else (c.heads * 2,)
    found = []
    for _ in range(steps):
        x = rng.standard_normal((*lead, c.inputs)).astype(dtype)
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
        name: (0.4 * rng.standard_normal((c.heads, *shape))).astype(dtype)
        for name in c.layout.names
        if c.layout.sites[name[0]].lora
        for shape in [c.layout.sites[name[0]].parts[name[2:]][1]]
    }
    per_head = 2 * c.heads if "replicated" in (c.data,) or c.mode == "mhlora" else 2
    return lte.init(c, factors=factors, batch=per_head, dtype=dtype, **more)


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
