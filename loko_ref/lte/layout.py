"""The packing of one head's trainables, and what is read of the heads.

Shapes: one head's trainables are a row theta[head] (n,): layer by layer in model order, a LoRA
site's A (r, i), B (o, r), bA (r,), bB (o,), or the replicas of a layer without LoRA: W (o, i) and
b (o,) of a linear, g and b of a norm, a table; each row-major.  [LORA-4, LTE-1]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loko_ref.arrays import Array, is_numpy
from loko_ref.network import lora
from loko_ref.network.model import param_shapes
from loko_ref.network.spec import linears


@dataclass(frozen=True, kw_only=True)
class Site:
    """One layer with arrays of its own: where its trainables stand in a head's row."""

    name: str  # the layer's full name, such as `0`, or `0.q` of an attention
    # of a LoRA site; 1, 1 for a replica
    alpha: float
    r: int
    lora: bool  # whether it carries factors (its W and b are then frozen) or is a replica
    # `A`, `B`, `bA`, `bB`; or what a replica has, `W`, `b`, `g`, `token` and so on: slice of the
    # row, and shape
    parts: Mapping[str, tuple[slice, tuple[int, ...]]]

    @cached_property
    def scale(self) -> float:
        """The float alpha / r."""
        return float(lora.scale(self.alpha, self.r))

    def scale_beside(self, like: Array) -> Any:
        """Return alpha / r as it stands beside `like`: a float, or what encloses it.  [LORA-2]."""
        return self.scale if is_numpy(like) else lora.scale(self.alpha, self.r, like)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Every site in model order, and the length n of a head's row.

    Attributes
    ----------
    sites : mapping of str to Site
        By layer name.
    n : int
        Trainable numbers of one head.
    names : tuple of str
        ``layer.part`` in packing order.
    factors : int
        How many of the n are low-rank factors (the rest are replicas).
    """

    sites: Mapping[str, Site]
    n: int
    names: tuple[str, ...]
    factors: int

    @staticmethod
    def of(spec: Sequence[Mapping[str, Any]], replicas: str = "train") -> Layout:
        """Lay out the trainables of a spec; with ``replicas="frozen"`` the factors alone."""
        branches = {k["name"]: k["lora"] for k in linears(spec) if k.get("lora")}
        parts: dict[str, dict[str, tuple[slice, tuple[int, ...]]]] = {}
        at = factors = 0
        for full, shape in param_shapes(spec).items():
            name, key = full.rsplit(".", 1)
            if name in branches:
                if key not in lora.FACTORS:
                    continue  # W and b of a low-rank site
                factors += math.prod(shape)
            elif replicas == "frozen":
                continue
            parts.setdefault(name, {})[key] = (slice(at, at + math.prod(shape)), shape)
            at += math.prod(shape)
        sites = {}
        for name, own in parts.items():
            site = branches.get(name, {"alpha": 1.0, "r": 1})
            sites[name] = Site(
                name=name, alpha=site["alpha"], r=site["r"], lora=name in branches, parts=own
            )
        names = tuple(f"{name}.{key}" for name, own in parts.items() for key in own)
        return Layout(sites=sites, n=at, names=names, factors=factors)

    def take(self, rows: Array, name: str) -> Array:
        """View of ``layer.part`` in rows (..., n), in the part's shape."""
        layer, key = name.rsplit(".", 1)
        span, shape = self.sites[layer].parts[key]
        return rows[..., span].reshape(*rows.shape[:-1], *shape)

    def site(self, rows: Array, name: str) -> dict[str, Array]:
        """Return views of all parts of a layer in rows (..., n)."""
        lead, parts = rows.shape[:-1], self.sites[name].parts
        return {key: rows[..., own].reshape(*lead, *shape) for key, (own, shape) in parts.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """What the forward pass of some heads reads."""

    theta: Array  # (heads, n): trainables; in `mhlora` of all heads
    # (heads, n): with a shared weight: the trainables last merged (0 at first, and after a reset)
    merged: Array | None
    # shared `layer.W` (o, i), `layer.b` (o,) and so on; or with copies (heads, o, i), (heads, o)
    weights: Mapping[str, Array]


def stack_heads(p: Mapping[str, Array]) -> dict[str, Array]:
    """All heads' factors of a site as those of one branch of rank heads * r.  [LTE-2, LTE-5].

    ``A = [A[0]; A[1]; ...]``, ``B = [B[0], B[1], ...]``, ``bB = sum bB[head]``.
    """
    A, B = p["A"], p["B"]  # (heads, r, i), (heads, o, r)
    found = {"A": A.reshape(-1, A.shape[-1]), "B": B.swapaxes(0, 1).reshape(B.shape[1], -1)}
    return found | ({"bA": p["bA"].reshape(-1), "bB": p["bB"].sum(axis=0)} if "bA" in p else {})
