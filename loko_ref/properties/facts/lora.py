"""Facts of one linear's LoRA: what it adds, and the merge; and of LoRA with several heads.

Shapes: A (r, i); B (o, r); W, delta (o, i); of a run theta (steps, heads, n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.properties.facts.lte_run import RUN, SGDS, runs
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Problem, Problems, Trial, exact

__all__: list[str] = []

DELTA, MERGE = "lora.delta", "lora.merge"


def _factors(operation: str) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        kind: dict[str, Any] = {"dtype": draw(st.dtypes()), "whole": small}
        most = 2 if small else 5
        i, o = draw(hs.integers(1, most)), draw(hs.integers(1, most))
        r = draw(hs.integers(1, min(i, o)))
        inputs = {"A": draw(st.arrays((r, i), **kind)), "B": draw(st.arrays((o, r), **kind))}
        if operation == MERGE:
            inputs["W"] = draw(st.arrays((o, i), **kind))
        return Problem(inputs=inputs, options={"alpha": draw(hs.sampled_from([1.0, 2.0, 3.0]))})

    return lambda small: draw(small)


@fact(DELTA, "unit scale", "LORA-2", "alpha = r adds B A, so A = I adds B", _factors, "alpha = r")
def _unit(t: Trial) -> None:
    (B,) = t.wide("B")
    r = B.shape[1]
    got = t.run(A=np.eye(r), options={"alpha": float(r)})
    t.near("delta", got["delta"], B, got.tol["delta"])


@fact(DELTA, "repeated", "LORA-2", "factors repeated, at twice the rank, add the same", _factors)
def _repeated(t: Trial) -> None:
    A, B = t.wide("A", "B")
    t.same(t.run(), t.run(A=np.concatenate([A, A]), B=np.concatenate([B, B], axis=1)))


@fact(DELTA, "linear", "LORA-2", "delta is linear in alpha, in A and in B", _factors)
def _linear(t: Trial) -> None:
    once, (A, B) = t.run(), t.wide("A", "B")
    doubled = (t.run(options={"alpha": 2 * t.options["alpha"]}), t.run(A=2 * A), t.run(B=2 * B))
    for other in doubled:
        t.same(once, other, back=lambda name, value: value / 2)


@fact(DELTA, "rank", "LORA-2", "delta has at most the rank of the factors", _factors)
def _rank(t: Trial) -> None:
    got, (A,) = t.run(), t.wide("A")
    singular = np.linalg.svd(got["delta"], compute_uv=False)[len(A) :]
    t.below("a singular value beyond the rank", singular, np.linalg.norm(got.tol["delta"]))


@fact(MERGE, "unit scale", "LORA-3", "alpha = r merges W + B A, so A = I gives W + B", _factors,
      "alpha = r")  # fmt: skip
def _merged_unit(t: Trial) -> None:
    (B,) = t.exact("B")
    o, r = B.shape
    W = np.arange(float(o * r)).reshape(o, r)
    got = t.run(W=W, A=np.eye(r), options={"alpha": float(r)})
    t.near("W", got["W"], exact(W) + B, got.tol["W"])


@fact(MERGE, "repeated", "LORA-3", "factors repeated, at twice the rank, merge to the same",
      _factors)  # fmt: skip
def _merged_repeated(t: Trial) -> None:
    A, B = t.wide("A", "B")
    t.same(t.run(), t.run(A=np.concatenate([A, A]), B=np.concatenate([B, B], axis=1)))


@fact(MERGE, "unmerged", "LORA-3", "merging B, then -B, gives W back; B = 0 leaves W", _factors)
def _unmerged(t: Trial) -> None:
    W, B = t.wide("W", "B")
    still = t.run(B=0 * B)
    t.near("W", still["W"], W, still.tol["W"])
    there = t.run()
    back = t.run(W=there["W"], B=-B)
    t.near("W", back["W"], W, back.tol["W"] + there.tol["W"])


@fact(RUN, "one network", "LTE-2 LTE-8",
      "from B = 0, merged after every step on one batch for all, the heads move as mhlora's",
      runs(mode="lte", merge_every=1, data="replicated", reset="none", reduction="all",
           replicas="frozen", optimizer_state="keep", optimizer=SGDS),
      "SGD without weight decay")  # fmt: skip
def _one_network(t: Trial) -> None:
    initial = {k: 0 * a if ".B" in k or ".bB" in k else a for k, a in t.given["factors"].items()}
    heads = t.run(factors=initial)
    joint = {"mode": "mhlora", "scaling": "mean", "realisation": "shared"}
    one = t.run(options=joint, factors=initial)
    t.same(heads, one, ("theta", "z"))
