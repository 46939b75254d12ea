"""Facts of LTE's heads: the merge of one linear, and the heads' outputs.

Those of runs are in ``lte_run``. Shapes: W (o, i); A (heads, r, i); B (heads, o, r).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.conformance.user_inputs import split
from loko_ref.network.model import param_shapes
from loko_ref.network.spec import linears
from loko_ref.optimizers import SGD
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Problem, Problems, Trial, Unsuitable, exact

MERGE, FORWARD, RUN = "lte.merge", "lte.forward", "lte.run"


def due(o: Any, steps: int, what: str = "merge_at") -> list[bool]:
    """Whether a merge (reset) follows each step."""
    every = o.get("merge_every", 8)
    at = o.get("merge_at") or [k for k in range(1, steps + 1) if k % every == 0]
    if what == "reset_at":
        at = [k for k in at if k in o["reset_at"]] if o.get("reset_at") else at
    return [k in at for k in range(1, steps + 1)]


def parts_of(t: Trial, row: Array) -> dict[str, Array]:
    """Cut theta (heads, n) into its arrays, layer by layer."""
    found, at = {}, 0
    shapes = param_shapes(t.options["spec"])
    adapted = {x["name"] for x in linears(t.options["spec"]) if x.get("lora")}
    for name, shape in shapes.items():
        owner, key = name.rsplit(".", 1)
        factor = key in ("A", "B", "bA", "bB")
        if owner in adapted and not factor:
            continue  # shared
        if owner not in adapted and t.options.get("replicas", "train") == "frozen":
            continue
        count = int(np.prod(shape))
        found[name] = row[..., at : at + count].reshape(*row.shape[:-1], *shape)
        at += count
    return found


def weights_of(t: Trial, row: Array) -> dict[str, Array]:
    """Cut W (w,) into the shared weights."""
    found, at = {}, 0
    for name, shape in param_shapes(t.options["spec"]).items():
        if name in t.given["weights"]:
            count = int(np.prod(shape))
            found[name] = row[at : at + count].reshape(shape)
            at += count
    return found


# --------------------------------------------------------------------------- the merge of a linear


def _merges(operation: str) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        kind: dict[str, Any] = {"dtype": draw(st.dtypes()), "whole": small}
        most = 2 if small else 4
        i, o = draw(hs.integers(1, most)), draw(hs.integers(1, most))
        r, heads = draw(hs.integers(1, min(i, o))), draw(hs.integers(1, 2 if small else 3))
        shapes = {"A": (heads, r, i), "B": (heads, o, r)}
        inputs = {"W": draw(st.arrays((o, i), **kind))}
        for mark in ("", "_merged"):
            inputs |= {f"{k}{mark}": draw(st.arrays(s, **kind)) for k, s in shapes.items()}
        reset = draw(hs.sampled_from(["none", "B"]))
        alpha = draw(hs.sampled_from([1.0, 2.0, 3.0]))
        return Problem(inputs=inputs, options={"alpha": alpha, "reset": reset})

    return lambda small: draw(small)


@fact(MERGE, "sees W", "LTE-3 LTE-6", "right after a merge, or a reset, every head sees W", _merges)
def _sees(t: Trial) -> None:
    got = t.run()
    if got.has("W", "seen"):
        t.near("seen", got["seen"], np.broadcast_to(got["W"], got["seen"].shape),
               got.tol["seen"] + got.tol["W"])  # fmt: skip


@fact(MERGE, "telescopes", "LTE-5", "what was merged last is not merged again: W stays", _merges)
def _again(t: Trial) -> None:
    got = t.run(A_merged=t.given["A"], B_merged=t.given["B"])
    if got.has("W"):
        t.near("W", got["W"], t.given["W"], got.tol["W"])


@fact(MERGE, "there and back", "LTE-5", "merged and last merged exchanged give W back", _merges)
def _back(t: Trial) -> None:
    A, B, A_merged, B_merged = t.wide("A", "B", "A_merged", "B_merged")
    there = t.run()
    if there.has("W"):
        back = t.run(W=there["W"], A=A_merged, B=B_merged, A_merged=A, B_merged=B)
        t.near("W", back["W"], t.given["W"], back.tol["W"] + there.tol["W"])


@fact(MERGE, "equal heads", "LTE-5", "equal heads merge to what one of them does: a mean", _merges)
def _equal(t: Trial) -> None:
    one = {k: t.wide(k)[0][:1] for k in ("A", "B", "A_merged", "B_merged")}
    a, b = t.run(**one), t.run(**{k: np.repeat(v, 3, axis=0) for k, v in one.items()})
    t.same(a, b, ("W",))


@fact(MERGE, "one head is LoRA", "LTE-5 LORA-3", "alpha = r, A = I: one head's merge adds its B",
      _merges, "one head, alpha = r")  # fmt: skip
def _one(t: Trial) -> None:
    B = t.wide("B")[0][:1]
    o, r = B.shape[1:]
    W, A = np.arange(float(o * r)).reshape(o, r), np.eye(r)[None]
    options = {"alpha": float(r)}
    got = t.run(None, options, W=W, A=A, B=B, A_merged=A, B_merged=0 * B)
    t.near("W", got["W"], W + B[0], got.tol["W"])


# ------------------------------------------------------------------------------------- outputs


def _outputs(operation: str) -> Problems:
    @hs.composite
    def draw(draw: hs.DrawFn, small: bool) -> Problem:
        width = 2 if small else 3
        chosen: dict[str, Any] = {"optimizer": SGD(), "max_width": width, "max_depth": 1}
        run = draw(st.lte_runs(max_heads=2, max_steps=1, **chosen))
        inputs, _ = split(RUN, run.arguments())
        heads, mode = run.config.heads, draw(hs.sampled_from(["lte", "mhlora"]))
        x = inputs["x"][0]
        options: dict[str, Any] = {"spec": run.arguments()["spec"], "heads": heads, "mode": mode}
        if mode == "mhlora":
            options["scaling"] = draw(hs.sampled_from(["mean", "sum"]))
        else:
            x = np.stack([x + h for h in range(heads)]).astype(x.dtype)
        found = {"x": x, "weights": inputs["weights"], "factors": inputs["factors"]}
        if mode == "lte" and draw(hs.booleans()):
            found["merged"] = {k: a[..., ::-1].copy() for k, a in inputs["factors"].items()}
        return Problem(inputs=found, options=options)

    return lambda small: draw(small)


def _scale(linear: Any) -> Any:
    return exact(linear["lora"]["alpha"]) / linear["lora"]["r"]


def _branches(t: Trial, factors: Any, head: int) -> Iterator[tuple[str, Array, Array | None]]:
    """Each linear's name, and what a head adds to its W and its b, in rational numbers."""
    for linear in linears(t.options["spec"]):
        if not linear.get("lora"):
            continue
        name, scale = linear["name"], _scale(linear)
        A, B = (exact(factors[f"{name}.{k}"][head]) for k in "AB")
        delta, b = scale * (B @ A), None
        if linear["lora"].get("bias"):
            bA, bB = (exact(factors[f"{name}.{k}"][head]) for k in ("bA", "bB"))
            b = scale * (B @ bA + bB)
        yield name, delta, b


@fact(FORWARD, "folded", "LTE-2 LTE-3", "a head's branch, less the merged one, folded into W and b",
      _outputs)  # fmt: skip
def _folded(t: Trial) -> None:
    o, got = t.options, t.run()
    heads = o["heads"]
    mhlora = o["mode"] == "mhlora"
    zero = {k: np.zeros_like(a) for k, a in t.given["factors"].items()}
    for head in range(1 if mhlora else heads):
        weights = {k: exact(a) for k, a in t.given["weights"].items()}
        sources = [(1, t.given["factors"])]
        if "merged" in t.given:
            sources.append((-1, t.given["merged"]))
        share = heads if mhlora and o.get("scaling", "mean") == "mean" else 1
        for sign, factors in sources:
            for k in range(heads) if mhlora else (head,):
                for name, delta, b in _branches(t, factors, k):
                    weights[f"{name}.W"] = weights[f"{name}.W"] + sign * delta / share
                    if b is not None:
                        if f"{name}.b" not in weights:
                            raise Unsuitable("a LoRA bias without a bias")
                        weights[f"{name}.b"] = weights[f"{name}.b"] + sign * b / share
        held = {k: np.asarray(a, dtype=float) for k, a in weights.items()}
        other = t.run(weights=held, factors=zero, merged=None)
        z, tol = (got["z"], got.tol["z"]) if mhlora else (got["z"][head], got.tol["z"][head])
        there = (other["z"], other.tol["z"])
        w, slack = there if mhlora else (there[0][head], there[1][head])
        t.near("z", z, w, tol + slack)
