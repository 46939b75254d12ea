"""One LTE head's network by plain formulas: the weights it sees, its outputs, its derivatives.

A head is computed as a dense network: each weight that it sees is formed, and the derivatives by
the factors follow from those by the whole weights. The layers are those of ``network``. To get the
derivative by a dense weight from there, every linear carries a branch ``B u``, ``u = I x``, B = 0:
the derivative by B is that by W. A norm's gain is such a linear with a diagonal weight.

Shapes: W (o, i); b (o,); A (r, i); B (o, r) of one head; factors and copies with a leading axis of
heads; x (batch, ...); z (batch, C); d (batch, k, C) k cotangents a sample; a derivative
(batch, k, *shape); Z (batch, k, n).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.textbook.network import NETWORK, projections, ways
from loko_ref.textbook.quantities import Values, evaluate

__all__ = ["FACTORS", "State", "derivatives", "layers", "outputs", "pack", "seen", "trained"]

FACTORS = ("A", "B", "bA", "bB")

REPLICAS = {
    "linear": ("W", "b"),
    "layernorm": ("g", "b"),
    "embedding": ("token", "position", "type"),
    "prepend": ("token",),
    "positions": ("position",),
}
"""Kind -> its arrays in packing order."""

Arrays = Mapping[str, Any]
Keep = Callable[[str, Any], Any]
Table = Mapping[str, Callable[..., Any]]
State = Mapping[str, Any]
"""``weights`` shared, ``factors`` of all heads, ``merged`` (or None), ``copies``, ``heads``."""

_DEVICE = {key: NETWORK[key] for key in ("scale", "branch", "branch_back", "jacobian_scale")}
"""What the branches that stand for dense weights are computed by, whatever is exchanged."""


def layers(spec: Sequence[Arrays]) -> list[Arrays]:
    """Every layer with arrays, in model order, an attention's q, k, v, o by their full names."""
    found: list[Arrays] = []
    for layer in spec:
        if layer["kind"] == "residual":
            found += layers(layer["layers"])
        elif layer["kind"] == "attention":
            found += projections(layer).values()
        elif "name" in layer:
            found.append(layer)
    return found


def trained(o: Arrays, weights: Arrays) -> list[str]:
    """Names of what a head trains, in packing order.  [LTE-1, LTE-7]."""
    names: list[str] = []
    for layer in layers(o["spec"]):
        keys: tuple[str, ...] = ()
        if layer.get("lora"):
            keys = FACTORS if layer["lora"].get("bias") else FACTORS[:2]
        elif o["replicas"] == "train":
            keys = REPLICAS.get(layer["kind"], ())
            keys = tuple(key for key in keys if f"{layer['name']}.{key}" in weights)
        names += [f"{layer['name']}.{key}" for key in keys]
    return names


def pack(values: Arrays, names: Sequence[str], head: int) -> Any:
    """One head's row theta (n,)."""
    return np.concatenate([np.reshape(values[k][head], -1) for k in names] or [np.zeros(0)])


def site(values: Arrays, name: str, head: int) -> dict[str, Any]:
    """Give A, B, bA, bB of one linear and head."""
    return {k: values[f"{name}.{k}"][head] for k in FACTORS if f"{name}.{k}" in values}


# ---------------------------------------------------------------------------- what a head sees


def seen(s: State, o: Arrays, F: Table, keep: Keep, head: int) -> dict[str, Any]:
    """Every array of the dense network that a head computes.  [LTE-2, LTE-3, LTE-4, LTE-7]."""
    dense = dict(s["weights"])
    dense |= {k: a[head] for k, a in s["factors"].items() if k.rsplit(".", 1)[1] not in FACTORS}
    for layer in layers(o["spec"]):
        if not layer.get("lora"):
            continue
        name = layer["name"]
        scale = F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
        p = site(s["factors"], name, head)
        for key, part in (("W", "lte.delta"), ("b", "lte.shift")):
            place = f"{name}.{key}"
            if place not in dense:
                continue
            W, now = dense[place], F[part](p, scale)
            if o["mode"] == "mhlora":
                every = [site(s["factors"], name, h) for h in range(s["heads"])]
                W = W + F["lte.mhlora"]([F[part](q, scale) for q in every], o["scaling"])
            elif s.get("copies") is not None:
                W = s["copies"][place][head] + now if place in s["copies"] else W + now
            else:
                old = s.get("merged")
                q = {k: np.zeros_like(a) for k, a in p.items()}
                if old is not None:
                    q = site(old, name, head)
                W = F["lte.seen"](W, now, F[part](q, scale))
            dense[place] = keep(f"{key}_seen", W)
    return dense


# ------------------------------------------------------------------------ the dense network


def _unfolded(spec: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Give every linear its branch; a norm's gain and shift become a linear of their own."""
    branch = {"r": 1, "alpha": 1.0, "bias": True}
    found: list[dict[str, Any]] = []
    for layer in spec:
        new = dict(layer)
        if layer["kind"] == "linear":
            new["lora"] = branch
        elif layer["kind"] == "attention":
            new |= {key: {**layer[key], "lora": branch} for key in "qkvo"}
        elif layer["kind"] == "residual":
            new["layers"] = _unfolded(layer["layers"])
        found.append(new)
        if layer["kind"] == "layernorm" and layer.get("affine", True):
            found[-1] |= {"name": f"{layer['name']}/bare", "affine": False}
            found.append({"kind": "linear", "name": layer["name"], "lora": branch})
    return found


def outputs(dense: Arrays, o: Arrays, F: Table, keep: Keep, x: Any) -> tuple[Any, Values]:
    """Run the dense network: z, and what :func:`derivatives` needs."""
    weights = dict(dense)
    for layer in layers(o["spec"]):
        name = layer["name"]
        if layer["kind"] == "layernorm" and layer.get("affine", True):
            weights[f"{name}.W"] = np.diag(dense[f"{name}.g"])
        if f"{name}.W" in weights:
            o_, i = weights[f"{name}.W"].shape
            branch = {"A": np.eye(i), "B": np.zeros((o_, i)), "bA": np.zeros(i), "bB": np.zeros(o_)}
            weights |= {f"{name}.{key}": value for key, value in branch.items()}
    spec, table = F["layers"](_unfolded(o["spec"])), {**F, **_DEVICE}
    ahead, back = ways(spec, tables=True)
    v = Values(x=x, spec=spec, back=back, arrays=F["named"](weights), F=table, keep=keep)
    evaluate(v, ahead)
    return v.z, v


def _by_weights(v: Values, d: Any) -> dict[str, Any]:
    """Give the derivatives by every dense array, of k cotangents d (batch, k, C)."""
    v["d"] = d
    found = evaluate(v, v.back)
    full = {name.removeprefix("G."): G for name, G in found.items() if name.startswith("G.")}
    for layer in layers(v.spec):
        name = layer["name"]
        if f"D.{name}.B" in found:
            G = v.keep("G", found[f"D.{name}.B"])
            full |= {f"{name}.W": G, f"{name}.b": v.keep("gb", found[f"D.{name}.bB"])}
            full[f"{name}.g"] = np.diagonal(G, axis1=-2, axis2=-1)
    return full


def derivatives(s: State, o: Arrays, F: Table, v: Values, d: Any, head: int) -> Any:
    """Give the derivatives by one head's trainables (batch, k, n), cotangents d (batch, k, C)."""
    full = _by_weights(v, d)
    found: dict[str, Any] = {}
    for layer in layers(o["spec"]):
        name = layer["name"]
        if not layer.get("lora"):
            continue
        old = s.get("merged")
        p = F["lte.at"](
            site(s["factors"], name, head), None if old is None else site(old, name, head)
        )
        scale = F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
        if o["mode"] == "mhlora":
            own = [scale if h == head else 0.0 for h in range(s["heads"])]
            scale = F["lte.mhlora"](own, o["scaling"])
        G, gb = full[f"{name}.W"], full[f"{name}.b"]
        found[f"{name}.A"] = scale * (p["B"].T @ G)
        found[f"{name}.B"] = scale * (G @ p["A"].T)
        if "bB" in p:
            outer = gb[..., :, None] * p["bA"]
            found[f"{name}.B"] = found[f"{name}.B"] + scale * outer
            found |= {f"{name}.bA": scale * (gb @ p["B"]), f"{name}.bB": scale * gb}
    rows = [found[k] if k in found else full[k] for k in s["factors"]]
    return np.concatenate([a.reshape(*d.shape[:2], -1) for a in rows], axis=-1)
