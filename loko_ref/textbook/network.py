"""The network's quantities: attention, residual branches, the way forward and back, and theta.

A layer that holds others (attention its projections, a residual branch its layers) writes them as
the network writes its own; those that hold none are in ``layers`` and ``tokens``.

Shapes: x (batch, ..., width), q, k, v (batch, heads, t, c); scores, weights (batch, heads, t, t);
mask (batch, t) of bool or None. Cotangents, one an output of the network, stand behind the batch:
d, dx (batch, C, ..., width); a factor's derivative (batch, C, *shape); z (batch, C);
Z (batch * C, n).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.textbook.layers import LEAVES, LEAVES_FORMULAS, Back, Kind, Layer, Net, linear
from loko_ref.textbook.quantities import Formula, Quantity, Values, quantity
from loko_ref.textbook.tokens import ENDS, ENDS_FORMULAS

FORWARD = "LAY-1 LAY-2 LAY-3 ATT-1 ATT-2 ATT-3 ATT-7"
"""Labels of the outputs z."""

BACK = "LAY-9 LAY-10 LORA-4"
"""Labels of their Jacobian Z."""


# ---------------------------------------------------------------------------------- attention


def projections(layer: Layer) -> dict[str, dict[str, Any]]:
    """Map the linears q, k, v, o of an attention layer to their full names."""
    return {
        key: {"kind": "linear", **layer[key], "name": f"{layer['name']}.{key}"} for key in "qkvo"
    }


def _attention(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``s = q k' / sqrt c``, ``a = softmax(s)`` over the keys seen, ``o(a v)``.  [ATT-2]."""
    heads, linears, backs, by_head = layer["heads"], projections(layer), {}, {}
    square, rows = "(batch, heads, t, t)", "(batch, heads, t, c)"

    def put(
        name: str, parents: Sequence[str | None], rule: Formula, equation: str, **o: Any
    ) -> str:
        return net.put(f"{name}.{place}", parents, rule, equation, o.pop("labels", "ATT-2"), **o)

    for key in "qkv":
        y, backs[key] = linear(net, linears[key], linears[key]["name"], x)
        by_head[key] = put(key, [y], lambda v, y: v.F["split_heads"](y, heads),
                           "by head", formula="split_heads", shape=rows, exact=True)  # fmt: skip
    q, k, values = by_head.values()

    def attended(v: Values, s: Array, x: Array, mask: Array | None) -> Any:
        seen = v.F["seen"](v, mask, x.shape[1], layer.get("causal", False))
        return v.F["attend"](v, s, np.broadcast_to(seen, s.shape))

    s = put("scores", [q, k], lambda v, q, k: v.F["scores"](v, q, k), "q k' / sqrt(c)",
            formula="scores", shape=square)  # fmt: skip
    made = put("attended", [s, x, net.mask], attended, "softmax(scores) over the keys seen",
               formula="attend", labels="ATT-2 ATT-3", exact=True)  # fmt: skip
    a = put("weights", [made], lambda v, made: made[0], "softmax(scores) over the keys seen",
            formula="attend", labels="ATT-2 ATT-3", shape=square)  # fmt: skip
    mixed = put("mixed", [a, values], lambda v, a, values: v.F["merge_heads"](a @ values),
                "weights v, the heads side by side", formula="merge_heads")  # fmt: skip
    z, backs["o"] = linear(net, linears["o"], place, mixed)

    def back(d: str) -> str:
        """``dv = a' dy``, ``da = dy v'``, then dscores, dq, dk and the projections.  [ATT-2]."""
        d = backs["o"](d)
        dy = put("dmixed", [d], lambda v, d: v.F["merge_back"](v, d, heads), "head by head",
                 formula="merge_back", exact=True)  # (batch, C, heads, t, c)  # fmt: skip
        both = put("dweights", [a, values, dy],
                   lambda v, a, values, dy: v.F["values_back"](a[:, None], values[:, None], dy),
                   "dy v' and weights' dy", formula="values_back", exact=True)  # fmt: skip
        ds = put("dscores", [both, a, made],
                 lambda v, both, a, made: v.F["attend_back"](
                     both[0], a[:, None], *(one[:, None] for one in made[1:])
                 ),
                 "a (da - sum(a da))", formula="attend_back")  # fmt: skip
        dqk = put("dqk", [q, k, ds],
                  lambda v, q, k, ds: v.F["scores_back"](v, q[:, None], k[:, None], ds),
                  "dscores k / sqrt(c) and dscores' q / sqrt(c)", formula="scores_back",
                  exact=True)  # fmt: skip
        ends = []
        for key, pair, at in (("q", dqk, 0), ("k", dqk, 1), ("v", both, 1)):
            one = put(f"d{key}", [pair], lambda v, pair, at=at: v.F["split_back"](v, pair[at]),
                      f"d{key}, the heads side by side", formula="split_back")  # fmt: skip
            ends.append(backs[key](one))
        return put("dx", ends, lambda v, q, k, values: q + k + values, "sum of dx by q, k, v",
                   exact=True)  # fmt: skip

    return z, back


def _split_heads(x: Array, heads: int) -> Array:
    """(..., t, heads * c) to (..., heads, t, c): head h owns the h-th run of c columns."""
    return np.swapaxes(x.reshape(*x.shape[:-1], heads, -1), -3, -2)


def _merge_heads(x: Array) -> Array:
    x = np.swapaxes(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def _scores(v: Values, q: Array, k: Array) -> Any:
    return q @ np.swapaxes(k, -1, -2) * v.F["score_scale"](q.shape[-1])


def _scores_back(v: Values, q: Array, k: Array, ds: Array) -> tuple[Array, Array]:
    """``dq = ds k / sqrt c``, ``dk = ds' q / sqrt c``."""
    ds = ds * v.F["score_scale"](q.shape[-1])
    return ds @ k, np.swapaxes(ds, -1, -2) @ q


def _seen(v: Values, mask: Array | None, t: int, causal: bool) -> Array:
    """Which key each query sees, broadcastable to (batch, 1, t, t).  [ATT-3]."""
    seen = np.ones((1, 1, 1, t), dtype=bool) if mask is None else mask[:, None, None, :]
    return seen & v.F["causal"](t) if causal else seen


def _attend(v: Values, s: Array, seen: Array) -> tuple[Any, ...]:
    """Attend: ``a = exp(s - lse)`` over the keys seen, else 0, and for who sees none.  [ATT-3].

    What stands behind a, nothing here, is kept for ``attend_back``.
    """
    s = np.where(seen, s, -np.inf)
    top = s.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(s - top).sum(axis=-1, keepdims=True)
    lse = top + np.log(np.where(total > 0, total, 1.0))
    return (np.exp(s - v.keep("lse", lse)),)


def _values_back(a: Array, values: Array, dy: Array) -> tuple[Array, Array]:
    return dy @ np.swapaxes(values, -1, -2), np.swapaxes(a, -1, -2) @ dy


# ----------------------------------------------------------------------------------- residual


def _residual(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``y = x + layers(x)``.  [ATT-7]."""
    y, inner = _walk(net, layer["layers"], x, f"{place}.")
    z = net.put(f"z.{place}", [x, y], lambda v, x, y: v.F["add"](x, y), "x + layers(x)", "ATT-7",
                "add")  # fmt: skip
    return z, lambda d: net.put(
        f"dx.{place}", [d, inner(d)], lambda v, d, dx: v.F["add_back"](d, dx), "d + layers' dx",
        "ATT-7", "add_back",
    )  # fmt: skip


# ------------------------------------------------------------------------------------ the walks

KINDS: dict[str, Kind] = {**LEAVES, **ENDS, "attention": _attention, "residual": _residual}
"""Kind -> what writes its quantities."""


def _names(spec: Sequence[Layer]) -> Iterator[str]:
    for layer in spec:
        yield from _names(layer.get("layers", ()))
        if "name" in layer:
            yield layer["name"]
            yield from (f"{layer['name']}.{key}" for key in "qkvo" if key in layer)


def _walk(net: Net, spec: Sequence[Layer], x: str, prefix: str = "") -> tuple[str, Back]:
    backs: list[Back] = []
    for j, layer in enumerate(spec):
        place = layer.get("name")
        if not place:
            place = f"{prefix}{j}"
            place += f":{layer['kind']}" if place in net.names else ""
        x, back = KINDS[layer["kind"]](net, layer, place, x)
        backs.append(back)

    def backward(d: str) -> str:
        for back in reversed(backs):
            d = back(d)
        return d

    return x, backward


_WAYS: dict[str, tuple[tuple[Quantity, ...], tuple[Quantity, ...]]] = {}
"""Ways of networks that were walked, by their layers."""


def ways(
    spec: Sequence[Layer], tables: bool = False, whole: bool = False
) -> tuple[tuple[Quantity, ...], tuple[Quantity, ...]]:
    """List the quantities of the way forward, from ``arrays`` to z, and of the way back.

    Parameters
    ----------
    spec : sequence of mapping
        The layers.
    tables : bool
        Whether the way back, of cotangents ``d`` (batch, k, C) of z, has derivatives by tables.
    whole : bool
        Whether it has those by the arrays of linears and norms.

    Examples
    --------
    >>> lora = {"r": 1, "alpha": 1.0}
    >>> layer = {"kind": "linear", "name": "0", "in": 2, "out": 3, "lora": lora}
    >>> [q.name for q in ways([layer, {"kind": "relu"}])[0]]
    ['arrays.0', 'u.0', 'z.0', 'z.1', 'z']
    """
    key = json.dumps([spec, tables, whole])
    if key not in _WAYS:
        if len(_WAYS) >= 1024:
            _WAYS.clear()
        net = Net(_names(spec), tables, whole)
        out, back = _walk(net, spec, "x")
        net.put("z", [out], lambda v, z: v.F["network.z"](v, z), "f(x; theta)", FORWARD,
                shape="(batch, C)", exact=True, hidden=False)  # fmt: skip
        done = len(net.flow)
        back("d")
        _WAYS[key] = tuple(net.flow[:done]), tuple(net.flow[done:])
    return _WAYS[key]


def arrays(spec: Sequence[Layer], packed: bool) -> Quantity:
    """All arrays of the network; where `packed`, with what theta holds of them.  [LORA-4]."""

    def rule(v: Values) -> Any:
        return v.F["named"](_unpack(v, spec) if packed else v.weights)

    parents = "weights theta" if packed else "weights"
    return quantity("arrays", parents, "named", "the weights by name", "LORA-4", rule=rule,
                    exact=True, hidden=True)  # fmt: skip


def network(spec: Sequence[Layer], packed: bool, train: str = "factors") -> tuple[Quantity, ...]:
    """List the quantities of z and of its Jacobian Z, layer by layer.  [LAY-9, LAY-10].

    Parameters
    ----------
    spec : sequence of mapping
        The layers.
    packed : bool
        Whether what is trained is in theta, not among the weights.
    train : {"factors", "weights"}
        What Z is the Jacobian by: LoRA's factors, or all arrays but these.
    """

    def each(v: Values) -> Array:
        C = v.z.shape[1]
        return np.broadcast_to(np.eye(C), (v.z.shape[0], C, C))

    def stacked(v: Values) -> Any:
        """Z (batch * C, n), in packing order."""
        flat = [v.F["flatten"](v[_derivative(name)]) for name in packing(v.F, spec, train)]
        return v.F["network.Z"](v, v.F["stack"](np.concatenate(flat, axis=-1)))

    ahead, back = ways(spec, tables=train == "weights", whole=train == "weights")
    parts = " ".join(_derivative(name) for name in packing(NETWORK, spec, train))
    return (
        arrays(spec, packed),
        *ahead,
        quantity("d", "z", "", "I, one cotangent an output", "LAY-9", rule=each, exact=True,
                 hidden=True),
        *back,
        quantity("Z", parts, "stack", "dz / dtheta", BACK, rule=stacked, shape="(m, n)"),
    )  # fmt: skip


def within(name: str) -> bool:
    """Return whether a quantity is a layer's output, or an attention's scores or weights."""
    return name.startswith(("z.", "scores.", "weights."))


# ---------------------------------------------------------------------------- theta  [LORA-4]


def layers(spec: Sequence[Layer]) -> list[Layer]:
    """Every layer with arrays, in model order, an attention's q, k, v, o by their full names."""
    found: list[Layer] = []
    for layer in spec:
        if layer["kind"] == "residual":
            found += layers(layer["layers"])
        elif layer["kind"] == "attention":
            found += projections(layer).values()
        elif "name" in layer:
            found.append(layer)
    return found


def own(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Name and shape of a layer's arrays but its factors, in packing order."""
    kind, d = layer["kind"], layer.get("width", 0)
    if kind == "linear":
        W, b = {"W": (layer["out"], layer["in"])}, {"b": (layer["out"],)}
        return {**W, **(b if layer.get("bias", True) else {})}
    if kind == "layernorm":
        return {"g": (d,), "b": (d,)} if layer.get("affine", True) else {}
    if kind == "embedding":
        rows = {"token": "vocab", "position": "positions", "type": "types"}
        return {key: (layer[count], d) for key, count in rows.items() if layer.get(count)}
    return {{"prepend": "token", "positions": "position"}[kind]: (layer.get("count", 1), d)}


def _factors(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Name and shape of the factors of one linear, in packing order."""
    lora, i, o = layer["lora"], layer["in"], layer["out"]
    shapes: dict[str, tuple[int, ...]] = {"A": (lora["r"], i), "B": (o, lora["r"])}
    if lora.get("bias", False):
        shapes |= {"bA": (lora["r"],), "bB": (o,)}
    return shapes


def _sites(spec: Sequence[Layer]) -> list[Layer]:
    """Linears with LoRA as they stand in the spec, an attention's q, k, v, o in this order."""
    return [layer for layer in layers(spec) if layer.get("lora")]


def packing(
    F: Mapping[str, Formula], spec: Sequence[Layer], train: str = "factors"
) -> dict[str, tuple[int, ...]]:
    """Name and shape of each array in theta, in its order.  [LORA-4].

    Parameters
    ----------
    F : mapping
        The table of formulas: the layers' order and that of a layer's arrays are conventions.
    spec : sequence of mapping
        The layers.
    train : {"factors", "weights"}
        LoRA's factors, or all arrays but these.
    """
    kind, arrays = ("", _factors) if train == "factors" else (".weights", own)
    return {
        f"{layer['name']}.{key}": arrays(layer)[key]
        for layer in F[f"sites{kind}"](spec)
        for key in F[f"order{kind}"](list(arrays(layer)))
    }


def _derivative(name: str) -> str:
    """Name the derivative by an array: those by a table's rows are summed row by row."""
    return f"{'G' if name.endswith(('.token', '.position', '.type')) else 'D'}.{name}"


def _unpack(v: Values, spec: Sequence[Layer]) -> dict[str, Array]:
    """All weights, with what is trained taken from theta."""
    weights, at, theta = dict(v.weights), 0, v.F["network.theta"](v, v.theta)
    for name, shape in packing(v.F, spec, v.get("train", "factors")).items():
        size = math.prod(shape)
        weights[name] = v.F["unflatten"](theta[at : at + size], shape)
        at += size
    return weights


NETWORK: dict[str, Formula] = {
    **LEAVES_FORMULAS,
    **ENDS_FORMULAS,
    "split_heads": _split_heads,
    "split_back": lambda v, d: v.F["merge_heads"](d),
    "merge_heads": _merge_heads,
    "merge_back": lambda v, d, heads: v.F["split_heads"](d, heads),
    "score_scale": lambda c: 1 / math.sqrt(c),
    "scores": _scores,
    "scores_back": _scores_back,
    "seen": _seen,
    "causal": lambda t: np.tri(t, dtype=bool),
    "attend": _attend,
    "attend_back": lambda da, a: a * (da - (a * da).sum(axis=-1, keepdims=True)),
    "values_back": _values_back,
    "add": lambda x, y: x + y,
    "add_back": lambda d, inner: d + inner,
    "layers": lambda spec: spec,
    "named": lambda weights: weights,
    "sites": _sites,
    "sites.weights": layers,
    "order": lambda names: names,
    "order.weights": lambda names: names,
    "flatten": lambda a: a.reshape(*a.shape[:2], -1),
    "unflatten": lambda flat, shape: flat.reshape(shape),
    "stack": lambda Z: Z.reshape(-1, Z.shape[-1]),
    "network.theta": lambda v, theta: theta,
    "network.z": lambda v, z: z,
    "network.Z": lambda v, Z: Z,
}
"""Formula name -> function: each equation of the network, each convention of theta."""
