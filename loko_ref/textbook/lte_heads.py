"""One LTE head: what it sees, its outputs and derivatives, and its local step.

A head is computed as a dense network: each weight that it sees is formed, and the derivatives by
the factors follow from those by the whole weights. The layers are those of ``network``. To get the
derivative by a dense weight from there, every linear carries a branch ``B u``, ``u = I x``, B = 0:
the derivative by B is that by W. A norm's gain is such a linear with a diagonal weight.

A head's values hold the run's options, the state that all heads share (``weights``, ``factors`` of
all heads, ``merged`` or None, ``copies`` or None), the head's number and its samples x, y.

Shapes: W (o, i); b (o,); A (r, i); B (o, r) of one head; factors and copies with a leading axis of
heads; x (batch, ...); z (batch, C); d (batch, k, C) k cotangents a sample; theta, p (n,); R (m, m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loko_ref.textbook import loko
from loko_ref.textbook.network import NETWORK, layers, own, ways
from loko_ref.textbook.optimizers import METHODS
from loko_ref.textbook.quantities import Formula, Quantity, Values, evaluate, inner, quantity

FACTORS = ("A", "B", "bA", "bB")

Arrays = Mapping[str, Any]
Flow = tuple[Quantity, ...]

_DEVICE = {key: NETWORK[key] for key in ("scale", "branch", "branch_back", "jacobian_scale")}
"""What the branches that stand for dense weights are computed by, whatever is exchanged."""


def trained(o: Arrays, weights: Arrays) -> list[str]:
    """Names of what a head trains, in packing order.  [LTE-1, LTE-7]."""
    names: list[str] = []
    for layer in layers(o["spec"]):
        keys: tuple[str, ...] = ()
        if layer.get("lora"):
            keys = FACTORS if layer["lora"].get("bias") else FACTORS[:2]
        elif o["replicas"] == "train":
            keys = tuple(key for key in own(layer) if f"{layer['name']}.{key}" in weights)
        names += [f"{layer['name']}.{key}" for key in keys]
    return names


def pack(values: Arrays, names: Sequence[str], head: int) -> Any:
    """One head's row theta (n,)."""
    return np.concatenate([np.reshape(values[k][head], -1) for k in names] or [np.zeros(0)])


def site(values: Arrays, name: str, head: int) -> dict[str, Any]:
    """Return A, B, bA, bB of one linear and head."""
    return {k: values[f"{name}.{k}"][head] for k in FACTORS if f"{name}.{k}" in values}


def head_formulas(F: Arrays) -> dict[str, Formula]:
    """Return the formulas of a head: its network's branches stand for dense weights."""
    return {**F, **_DEVICE}


# ---------------------------------------------------------------------------- what a head sees


def _seen(layer: Arrays, place: str, part: str) -> Formula:
    """Return the rule of what a head sees at one place.  [LTE-2, LTE-3, LTE-4]."""
    name = layer["name"]

    def rule(v: Values) -> Any:
        scale = v.F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
        p = site(v.factors, name, v.head)
        W, now = v.weights[place], v.F[part](p, scale)
        if v.mode == "mhlora":
            every = [v.F[part](site(v.factors, name, h), scale) for h in range(v.heads)]
            return W + v.F["lte.mhlora"](every, v.scaling)
        if v.copies is not None:
            return v.copies[place][v.head] + now if place in v.copies else W + now
        q = {k: np.zeros_like(a) for k, a in p.items()}
        if v.merged is not None:
            q = site(v.merged, name, v.head)
        return v.F["lte.seen"](W, now, v.F[part](q, scale))

    return rule


def seen(spec: Sequence[Arrays], weights: Arrays) -> Flow:
    """List every array of the dense network that a head computes; ``dense`` has them by name."""
    flow: list[Quantity] = []
    for layer in layers(spec):
        for key, part in (("W", "lte.delta"), ("b", "lte.shift")) if layer.get("lora") else ():
            place = f"{layer['name']}.{key}"
            if place in weights:
                flow.append(
                    quantity(
                        f"seen.{place}", "weights factors merged copies", "lte.seen",
                        "W + delta - delta', or W_copy + delta", "LTE-2 LTE-3 LTE-4",
                        rule=_seen(layer, place, part), hidden=True,
                    )
                )  # fmt: skip

    def dense(v: Values) -> dict[str, Any]:
        replicas = {
            k: a[v.head] for k, a in v.factors.items() if k.rsplit(".", 1)[1] not in FACTORS
        }
        found = {q.name.removeprefix("seen."): v[q.name] for q in flow}
        return {**v.weights, **replicas, **found}

    names = " ".join(q.name for q in flow)
    return (
        *flow,
        quantity("dense", f"weights factors {names}", "", "all arrays as the head sees them",
                 "LTE-7", rule=dense, exact=True, hidden=True),
    )  # fmt: skip


# ------------------------------------------------------------------------ the dense network


def _unfolded(spec: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Add a branch to every linear; a norm's gain and shift become a linear of their own."""
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


def outputs(spec: Sequence[Arrays], F: Arrays) -> tuple[Flow, Flow]:
    """List the quantities of the dense network: from ``dense`` to z, and from d to ``by_theta``."""
    written = F["layers"](_unfolded(spec))

    def arrays(v: Values) -> Any:
        weights = dict(v.dense)
        for layer in layers(spec):
            name = layer["name"]
            if layer["kind"] == "layernorm" and layer.get("affine", True):
                weights[f"{name}.W"] = np.diag(v.dense[f"{name}.g"])
            if f"{name}.W" in weights:
                o, i = weights[f"{name}.W"].shape
                branch = (np.eye(i), np.zeros((o, i)), np.zeros(i), np.zeros(o))
                weights |= {f"{name}.{key}": a for key, a in zip(FACTORS, branch, strict=True)}
        return v.F["named"](weights)

    def hidden(name: str, parents: str, equation: str, labels: str, rule: Formula, **o: Any) -> Any:
        return quantity(name, parents, "", equation, labels, rule=rule, hidden=True, **o)

    ahead, back = ways(written, tables=True)
    made = {q.name for q in back}
    whole: list[Quantity] = []
    for layer in layers(written):
        for key, B in (("W", "B"), ("b", "bB")):
            parent = f"D.{layer['name']}.{B}"
            if parent in made:
                rule: Formula = lambda v, parent=parent: v[parent]  # noqa: E731
                place = f"G.{layer['name']}.{key}"
                whole.append(hidden(place, parent, f"dz / d{key}", "LTE-3", rule))
    names = " ".join(q.name for q in (*back, *whole) if q.name.startswith("G."))
    rows = hidden("by_theta", f"{names} factors merged", "dz / dtheta at the full A and B", "LTE-3",
                  _by_theta(spec), exact=True)  # fmt: skip
    start = hidden("arrays", "dense", "the arrays by name", "LTE-2", arrays, exact=True)
    return (start, *ahead), (*back, *whole, rows)


def _by_theta(spec: Sequence[Arrays]) -> Formula:
    """Find the derivatives by one head's trainables (batch, k, n) from those by whole arrays."""

    def rule(v: Values) -> Any:
        found: dict[str, Any] = {}
        for layer in layers(spec):
            name = layer["name"]
            if not layer.get("lora"):
                continue
            old = None if v.merged is None else site(v.merged, name, v.head)
            p = v.F["lte.at"](site(v.factors, name, v.head), old)
            scale = v.F["lte.scale"](layer["lora"]["alpha"], layer["lora"]["r"])
            if v.mode == "mhlora":
                own = [scale if h == v.head else 0.0 for h in range(v.heads)]
                scale = v.F["lte.mhlora"](own, v.scaling)
            G, gb = v[f"G.{name}.W"], v[f"G.{name}.b"]
            found[f"{name}.A"] = scale * (p["B"].T @ G)
            found[f"{name}.B"] = scale * (G @ p["A"].T)
            if "bB" in p:
                outer = gb[..., :, None] * p["bA"]
                found[f"{name}.B"] = found[f"{name}.B"] + scale * outer
                found |= {f"{name}.bA": scale * (gb @ p["B"]), f"{name}.bB": scale * gb}
        rows = []
        for key in v.factors:
            place, last = key.rsplit(".", 1)
            gain = last == "g"  # of a norm: the diagonal of its linear's weight
            G = v[f"G.{place}.W"] if gain else found[key] if key in found else v[f"G.{key}"]
            G = np.diagonal(G, axis1=-2, axis2=-1) if gain else G
            rows.append(G.reshape(*v.d.shape[:2], -1))
        return np.concatenate(rows, axis=-1)

    return rule


def head_values(v: Values, S: Values, head: int, x: Any) -> Values:
    """One head's values of a state."""
    own = {"F": head_formulas(v.F), "keep": inner(v.keep), "names": v.names, "head": head, "x": x}
    return Values({**v.o, **S, **own})


def run_dense(v: Values, w: Values) -> Any:
    """Return the outputs of one head, or of the dense network that stands in its values."""
    flow = () if "dense" in w else seen(v.o.spec, w.weights)
    return evaluate(w, (*flow, *outputs(v.o.spec, v.F)[0]))["z"]


def all_seen(v: Values, S: Values) -> list[dict[str, Any]]:
    """Every head's dense arrays."""
    flow = seen(v.o.spec, S.weights)
    return [evaluate(head_values(v, S, head, None), flow)["dense"] for head in range(v.o.heads)]


# ----------------------------------------------------------------------------- a local step


def _loss(o: Arrays) -> Flow:
    """List the head's mean loss, and what its cotangent is made of.  [LTE-8]."""

    def entropy(v: Values) -> Any:
        top = v.z.max(axis=1, keepdims=True)
        return top + np.log(np.exp(v.z - top).sum(axis=1, keepdims=True))

    if o["loss"] == "mse":
        return (
            quantity("loss", "z y", "", "mean (z - y)^2", "LTE-8", exact=True,
                     rule=lambda v: ((v.z - v.y) ** 2).mean()),
        )  # fmt: skip
    return (
        quantity("lse", "z", "", "log sum exp(z)", "LTE-8", rule=entropy, hidden=True),
        quantity("loss", "z y lse", "", "-sum y (z - lse) / batch", "LTE-8", exact=True,
                 rule=lambda v: -(v.y * (v.z - v.lse)).sum() / len(v.y)),
    )  # fmt: skip


def _cotangent(v: Values) -> Any:
    if v.loss_kind == "mse":
        dz = v.F["lte.mse"](v.z, v.y)
    else:
        dz = (np.exp(v.z - v.lse) - v.y) / len(v.y)
    return v.F["lte.reduce"](dz, v.heads, v.reduction) if v.mode == "lte" else dz


def slot_names(o: Arrays) -> tuple[str, ...]:
    """Names of what a descent carries beside theta."""
    flow = METHODS.get(o["optimizer"], ())
    return tuple(q.name for q in flow[:-1] if q.name != "momentum" or o["momentum"])


def _descent(o: Arrays) -> Flow:
    """SGD, AdaGrad or AdamW along the head's gradient.  [OPT-1, OPT-2, OPT-3]."""
    slots = slot_names(o)

    def at(formula: str) -> Formula:
        def rule(v: Values) -> Any:
            new = {name: v[f"{name}_post"] for name in slots if f"{name}_post" in v}
            w = Values(v, g=v.gradient, slot=v.slots[v.head], new=new)
            return v.F[formula](Values(w, lr=v.F["lte.rate"](v, v["at"])))

        return rule

    return tuple(
        quantity(
            f"{q.name}_post",
            " ".join(f"{k}_post" if k in slots else k for k in ("slots", *q.parents)),
            q.formula, q.equation, " ".join(q.labels), rule=at(q.formula),
        )
        for q in METHODS[o["optimizer"]]
        if q.name in (*slots, "theta")
    )  # fmt: skip


def local_step(o: Arrays, F: Arrays, weights: Arrays) -> Flow:
    """List the quantities of one head's step, from the state that all heads share.

    Parameters
    ----------
    o : mapping
        Options of ``lte.run``.
    F : mapping
        The table of formulas, which states how the network stands and when R is refreshed.
    weights : mapping
        The shared weights; of these the names.
    """
    ahead, back = outputs(o["spec"], F)
    theta = quantity("theta", "factors", "", "A, B of each site in turn, packed", "LTE-1",
                     rule=lambda v: pack(v.factors, v.names, v.head), exact=True,
                     hidden=True)  # fmt: skip
    before = (theta, *seen(o["spec"], weights), *ahead)
    if o["optimizer"] != "loko":
        return (
            *before,
            *_loss(o),
            quantity("dz", "z y", "lte.reduce", "dloss / dz", "LTE-8", rule=_cotangent,
                     hidden=True),
            quantity("d", "dz", "", "dz", "LTE-8", rule=lambda v: v.dz[:, None, :], exact=True,
                     hidden=True),
            *back,
            quantity("gradient", "by_theta", "", "sum over the samples", "LTE-3 LTE-8",
                     rule=lambda v: v.by_theta.sum(axis=(0, 1))),
            *_descent(o),
        )  # fmt: skip

    def each(v: Values) -> Any:
        C = v.y.shape[1]
        return np.broadcast_to(np.eye(C), (len(v.z), C, C))

    own = {**o, "covariance": "diagonal", "timing": F["timing"](Values(o))}
    flow = loko.dataflow({key: value for key, value in own.items() if key != "spec"})
    return (
        *before,
        quantity("d", "z", "", "I", "LTE-10", rule=each, exact=True, hidden=True),
        *back,
        quantity("Z", "by_theta", "", "dz / dtheta", "LTE-3 LTE-10",
                 rule=lambda v: v.by_theta.reshape(v.y.size, -1)),
        *(replace(q, network=False) for q in flow if q.name not in ("z", "Z")),
        *_loss(o),
    )  # fmt: skip
