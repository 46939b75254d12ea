"""Fresh inputs of other shapes, on which a formula that was named is held against the mistake.

Each is made from a case: its operation and options, with other widths, ranks, numbers of samples,
outputs, tokens, steps and heads, other scales and rates, and numbers from another seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from loko_ref.conformance.cases.model import blocks_of, loko_inputs, network_weights
from loko_ref.conformance.cases.registry import Case, Draw
from loko_ref.conformance.catalogue.entry import Operation
from loko_ref.network.spec import linears, param_shapes
from loko_ref.textbook.lte_heads import FACTORS

Inputs = dict[str, Any]
Spec = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fresh:
    """Inputs and options of an operation that are no case's."""

    operation: Operation  # entry of the catalogue
    # float64 arrays; all options
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]


@lru_cache(maxsize=4096)
def fresh(case: Case, number: int) -> Fresh:
    """Return inputs made from a case by other sizes and numbers.

    Parameters
    ----------
    number : int
        Which, from 0: each has its own.
    """
    draw = Draw(f"fresh {case.id} {number}")
    options = dict(case.options)
    for name, value in case.recipe.options.items():
        if isinstance(value, float):
            options[name] = value * float(draw.positive(low=0.8))
    if "heads" in options:
        options["heads"] = _whole(draw, 2, 4)
    if "spec" in options:
        old, options["spec"] = options["spec"], _resized(draw, options["spec"])
        if options.get("blocks"):
            tensors = options["blocks"] == blocks_of(old, "tensor")
            options["blocks"] = blocks_of(options["spec"], "tensor" if tensors else "unit")
    family = case.operation.name.split(".")[0]
    if family in ("model", "loko"):
        made = _network(draw, case, options)
    elif family == "lte":
        made = _lte(draw, case, options)
    else:
        made = _plain(draw, case, options)
    inputs = {
        name: {k: _wide(a) for k, a in value.items()}
        if isinstance(value, Mapping)
        else _wide(value)
        for name, value in made.items()
    }
    return Fresh(operation=case.operation, inputs=inputs, options=options)


def _wide(value: Any) -> Any:
    return np.array(value, dtype=np.float64)


def _whole(draw: Draw, low: int, high: int) -> int:
    """Draw a whole number from low to high."""
    return low + int((high - low + 1) * (0.5 + 0.5 * float(draw())))


def _plain(draw: Draw, case: Case, o: dict[str, Any]) -> Inputs:
    """Make inputs of an operation on arrays alone."""
    kind = case.operation.name
    n, m, batch, C = (_whole(draw, *ends) for ends in ((4, 9), (2, 6), (1, 4), (2, 5)))
    prior: Inputs = {"theta": draw(n), "H": draw(m, n), "e": draw(m), "R": draw.spd(m)}
    if kind == "kalman.dense_update":
        return {**prior, "P": draw.spd(n)}
    if kind == "kalman.diagonal_update":
        return {**prior, "p": draw.positive(n)}
    if kind in ("kalman.lowrank_update", "kalman.block_update"):
        W = case.inputs().get("W")  # none, no column or some, as in the case
        L = _whole(draw, 1, 4) if W is not None and W.size else 0
        low = {} if W is None else {"W": draw(n, L, size=1.5)}
        if kind == "kalman.lowrank_update":
            return {**prior, **low, "U": draw.positive(n, low=1.0, high=4.0)}
        o["blocks"] = [_whole(draw, 0, 2) for _ in range(n)] if len(set(o["blocks"])) > 1 else []
        same = np.equal.outer(*2 * (o["blocks"] or [0] * n,))
        return {**prior, **low, "U": 4 * draw.spd(n, 5.0) * same}
    if kind == "kalman.time_update":
        dense = "P" in case.inputs()
        return {"P": draw.spd(n)} if dense else {"p": draw.positive(n, low=1e-2, high=10.0)}
    if kind.startswith("observation."):
        y = draw(batch, C) if kind.endswith("gaussian") else draw.one_hot(batch, C=C)
        return {"z": draw(batch, C, size=2.0), "Z": draw(batch * C, n), "y": y}
    if kind == "noise.update":
        H = draw(m, n)
        return {"R": draw.spd(m), "e": draw(m), "HpH": (H * draw.positive(n)) @ H.T}
    if kind.startswith("lora."):
        factors: Inputs = {"A": draw(batch, n), "B": draw(m + 3, batch)}
        return factors if kind == "lora.delta" else {**factors, "W": draw(m + 3, n)}
    assert kind.startswith("optimizer.")
    return {"theta": draw(n), "gradient": draw(batch + 3, n)}


# ---------------------------------------------------------------------------------- networks


def _every(spec: Any) -> list[dict[str, Any]]:
    """List every layer, those within others included."""
    inner = [layer.get("layers", ()) for layer in spec]
    return [*spec, *(one for layers in inner for one in _every(layers))]


def _resized(draw: Draw, spec: Spec) -> Spec:
    """Return a spec of other widths, ranks and scales; where tokens attend, of twice the widths."""
    twice = any("heads" in layer for layer in _every(spec))
    more: dict[int, int] = {}

    def wide(width: int) -> int:
        return more.setdefault(width, 2 * width if twice else width + _whole(draw, 1, 3))

    def layer(old: Mapping[str, Any]) -> dict[str, Any]:
        new = dict(old)
        new |= {key: wide(old[key]) for key in ("in", "out", "width") if key in old}
        if "image" in old:
            new["image"] = [2 * old["image"][0], *old["image"][1:]]
        if old.get("lora"):
            r = min(old["lora"]["r"] + 1, new["in"], new["out"])
            alpha = old["lora"]["alpha"] * float(draw.positive(low=1.1, high=1.6))
            new["lora"] = {**old["lora"], "r": r, "alpha": alpha}
        if "layers" in old:
            new["layers"] = [layer(one) for one in old["layers"]]
        return new | {key: layer(old[key]) for key in "qkvo" if key in old}

    return [layer(one) for one in spec]


def _x(draw: Draw, case: Case, spec: Spec, lead: tuple[int, ...], name: str = "x") -> Any:
    """Make inputs of a network for a leading shape: token ids from the case's, or numbers."""
    old = np.asarray(case.inputs()[name])
    both = name == "x" and case.operation.name in ("loko.run", "lte.run", "lte.forward")
    both &= case.options.get("mode") != "mhlora" or case.operation.name == "lte.run"
    tail = old.shape[1 + both :]
    if not case.exact:
        if spec[0]["kind"] == "patchify":
            tail = (2 * tail[0], *tail[1:])
        elif spec[0]["kind"] == "linear" or "heads" in spec[0] or "layers" in spec[0]:
            width = _first_width(spec)
            tail = (*(t + 1 for t in tail[:-1]), width)
        else:
            tail = (*tail[:-1], _first_width(spec))
        return draw(*lead, *tail)
    rows = old.reshape(-1, *tail)
    pick = [_whole(draw, 0, len(rows) - 1) for _ in range(math.prod(lead))]
    rows, pad = rows[pick].copy(), spec[0].get("pad")
    others = np.array([k for k in range(spec[0]["vocab"]) if k != pad])
    ids = rows[:, 0] if len(spec[0].get("inputs") or ()) > 1 else rows
    at = np.searchsorted(others, ids)
    moved = others[(at + _whole(draw, 1, len(others) - 1)) % len(others)]
    ids[...] = np.where(ids == pad, ids, moved)
    return rows.reshape(*lead, *tail)


def _first_width(spec: Spec) -> int:
    """Width that the first layer takes."""
    first = next(one for one in _every(spec) if "q" in one or "in" in one or "width" in one)
    width = first["q"]["in"] if "q" in first else first.get("in", first.get("width"))
    return int(width or 0)


def _network(draw: Draw, case: Case, o: Mapping[str, Any]) -> Inputs:
    """Make inputs of the network's and LoKO's operations."""
    spec, batch = o["spec"], _whole(draw, 1, 3)
    if case.operation.name.startswith("model."):
        return {"x": _x(draw, case, spec, (batch,)), "weights": network_weights(draw, spec)}
    steps = _whole(draw, 3, 5) if case.operation.name == "loko.run" else 0
    W = case.inputs().get("W")  # none, no column or some, as in the case
    L = None if W is None else min(W.shape[1], 1) * _whole(draw, 1, 4)
    made = loko_inputs(draw, spec, dict(o), batch, steps, L)
    return made | {"x": _x(draw, case, spec, (steps, batch) if steps else (batch,))}


# --------------------------------------------------------------------------------------- LTE


def _lte(draw: Draw, case: Case, o: Mapping[str, Any]) -> Inputs:
    """Make inputs of LTE's operations."""
    if case.operation.name == "lte.merge":
        heads, out, i, r = (_whole(draw, *ends) for ends in ((2, 5), (3, 6), (3, 6), (1, 3)))
        both = {f"A{mark}": draw(heads, r, i) for mark in ("", "_merged")}
        both |= {f"B{mark}": draw(heads, out, r) for mark in ("", "_merged")}
        return {**both, "W": draw(out, i)}
    spec, heads, old = o["spec"], o["heads"], case.inputs()

    def parts() -> tuple[Inputs, Inputs]:
        shapes = param_shapes(spec).items()
        factors = {k: draw(heads, *s, size=0.7) for k, s in shapes if _last(k) in FACTORS}
        return {k: draw(*s) for k, s in shapes if _last(k) not in FACTORS}, factors

    weights, factors = parts()
    batch, C = heads * _whole(draw, 1, 3), linears(spec)[-1]["out"]
    if case.operation.name == "lte.forward":
        lead = (batch,) if o["mode"] == "mhlora" else (heads, batch)
        more = {"merged": parts()[1]} if "merged" in old else {}
        return {"x": _x(draw, case, spec, lead), "weights": weights, "factors": factors, **more}
    lead = (len(old["x"]), batch)
    y = draw(*lead, C) if o["loss"] == "mse" else draw.one_hot(*lead, C=C)
    made = {"x": _x(draw, case, spec, lead), "y": y, "weights": weights, "factors": factors}
    if "redraws" in old:
        merges = len(next(iter(old["redraws"].values())))
        made["redraws"] = {k: draw(merges, *factors[k].shape) for k in old["redraws"]}
    if "p" in old:
        low_rank = {k["name"] for k in linears(spec) if k.get("lora")}
        whole = [a for k, a in weights.items() if k.rsplit(".", 1)[0] not in low_rank]
        n = sum(a[0].size for a in factors.values())
        n += sum(a.size for a in whole) if o["replicas"] == "train" else 0
        made["p"] = draw.positive(n)
    if "evaluation" in old:
        made["evaluation"] = _x(draw, case, spec, (_whole(draw, 2, 4),), "evaluation")
    return made


def _last(name: str) -> str:
    return name.rsplit(".", 1)[1]
