"""A network's quantities, layer by layer: linears, activations and norms (see ``network``).

A kind is a function ``(net, layer, place, x) -> (y, back)``: it writes the quantities of the way
forward, from the name x of its input to the name y of its output, and ``back(d) -> dx`` those of
the way back. Every equation calls entries of ``v.F``, so that it can be exchanged.

Names: ``z.place`` is the output of a layer, ``u.place`` a linear's ``A x``, ``dx.place`` the
cotangent of a layer's input, ``D.name.A`` the derivative by a factor, ``G.name.token`` by a table.
A place is a layer's name, or its number where it has none.

Shapes: x, z (batch, ..., width), with an axis of t tokens in between where there are tokens; mask
(batch, t) of bool or None. Cotangents, one per output of the network, stand behind the batch: d, dx
(batch, C, ..., width); a factor's derivative (batch, C, *shape).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from loko_ref.arrays import Array
from loko_ref.textbook.quantities import Formula, Quantity, Values, inner

Layer = Mapping[str, Any]
Back = Callable[[str], str]
Kind = Callable[..., tuple[str, Back]]


class Net:
    """The quantities of a network as they are written.

    Attributes
    ----------
    flow : list of Quantity
        Those so far, each after its parents.
    names : set of str
        Names of the layers that have one: the others' places are none of these.
    mask : str or None
        Name of the mask where the walk stands.
    tables : bool
        Whether the way back has the derivatives by tables.
    whole : bool
        Whether it has those by the arrays of linears and norms.
    """

    def __init__(self, names: Iterable[str], tables: bool = False, whole: bool = False) -> None:
        self.flow: list[Quantity] = []
        self.names = set(names)
        self.mask: str | None = None
        self.tables = tables
        self.whole = whole

    def put(
        self,
        name: str,
        parents: Sequence[str | None],
        rule: Formula,
        equation: str = "",
        labels: str = "",
        formula: str = "",
        **more: Any,
    ) -> str:
        """Write a quantity, ``rule(v, *parents)`` of it; return its name."""
        known = tuple(parent for parent in parents if parent is not None)

        if len(known) < len(parents):

            def computed(v: Values) -> Any:
                return rule(v, *[None if parent is None else v[parent] for parent in parents])

        elif len(known) == 1:  # most of them: a walk is mostly these calls
            (first,) = known

            def computed(v: Values) -> Any:
                return rule(v, v[first])

        else:

            def computed(v: Values) -> Any:
                return rule(v, *[v[parent] for parent in known])

        self.flow.append(
            Quantity(
                name=name,
                parents=known,
                formula=formula,
                equation=equation,
                labels=tuple(labels.split()),
                rule=computed,
                **{"hidden": True, **more},
            )
        )
        return name

    def own(self, name: str) -> str:
        """Write the arrays of one layer, by their last names."""
        known: dict[tuple[str, ...], list[tuple[str, str]]] = {}

        def arrays(v: Values, every: Mapping[str, Array]) -> dict[str, Array]:
            keys = tuple(every)
            if keys not in known:
                parts = [(key, key.rsplit(".", 1)) for key in keys]
                known[keys] = [(last, key) for key, (site, last) in parts if site == name]
            return {last: every[key] for last, key in known[keys]}

        return self.put(f"arrays.{name}", ["arrays"], arrays, "its arrays", "LORA-4", exact=True)


# ------------------------------------------------------------------ linear, with its LoRA branch


def linear(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``y = W x + b + scale (B u + bB)``, ``u = A x + bA``.  [LAY-1, LAY-2, LAY-3]."""
    name, lora = layer["name"], layer.get("lora") or {}
    w, u, put = net.own(name), None, net.put

    def scale(v: Values) -> float:
        return float(v.F["scale"](lora["alpha"], lora["r"]))

    def output(v: Values, x: Array, w: Any, u: Array | None) -> Array:
        y = x @ w["W"].T + v.F["bias"](w)
        return y if u is None else y + v.F["branch"](v, scale(v), u, w)

    if lora:
        u = put(
            f"u.{name}", [x, w], lambda v, x, w: v.F["inner"](x, w), "A x + bA", "LAY-2",
            "inner", shape="(batch, ..., r)",
        )  # fmt: skip
    equation = "W x + b + (alpha / r) (B u + bB)" if lora else "W x + b"
    labels = "LAY-1 LAY-2 LAY-3" if lora else "LAY-1"
    z = put(f"z.{place}", [x, w, u], output, equation, labels, "branch" if lora else "bias",
            shape="(batch, ..., o)")  # fmt: skip

    def back(d: str) -> str:
        """``dx = W' d + A' du``, ``du = B' dv``, ``dv = scale d``; dA = du x', dB = dv u'."""
        if net.whole:
            put(f"D.{name}.W", [d, x], lambda v, d, x: v.F["outer"](d, x), "sum_t d x'", "LAY-1",
                "outer", exact=True)  # fmt: skip
            put(f"D.{name}.b", [d], lambda v, d: v.F["total"](d), "sum_t d", "LAY-1", "total",
                exact=True)  # fmt: skip
        if not lora:
            return put(f"dx.{name}", [d, w], lambda v, d, w: d @ w["W"], "W' d", "LAY-1")
        dv = put(f"dv.{name}", [d], lambda v, d: v.F["jacobian_scale"](scale(v)) * d,
                 "(alpha / r) d", "LAY-3", "jacobian_scale", exact=True)  # fmt: skip
        du = put(f"du.{name}", [dv, w], lambda v, dv, w: dv @ w["B"], "B' dv", "LAY-3")

        def factor(key: str, parents: list[Any], rule: Formula, equation: str, name_: str) -> None:
            put(f"D.{name}.{key}", parents, rule, equation, "LAY-3", name_, exact=True)

        factor("A", [du, x], lambda v, du, x: v.F["factor.A"](v, lora, du, x), "sum_t du x'",
               "factor.A")  # fmt: skip
        factor("B", [dv, u], lambda v, dv, u: v.F["factor.B"](v, lora, dv, u), "sum_t dv u'",
               "factor.B")  # fmt: skip
        if lora.get("bias"):
            factor("bA", [du], lambda v, du: v.F["total"](du), "sum_t du", "total")
            factor("bB", [dv, d], lambda v, dv, d: v.F["total"](v.F["shift_back"](dv, d)),
                   "sum_t dv", "total")  # fmt: skip
        return put(
            f"dx.{name}", [d, w, du],
            lambda v, d, w, du: d @ w["W"] + v.F["branch_back"](du @ w["A"]),
            "W' d + A' du", "LAY-1 LAY-3", "branch_back",
        )  # fmt: skip

    return z, back


def _outer(d: Array, x: Array) -> Any:
    """``sum_t d_t x_t'``: (batch, C, ..., o) and (batch, ..., i) to (batch, C, o, i)."""
    d = d.reshape(*d.shape[:2], -1, d.shape[-1])
    x = x.reshape(x.shape[0], 1, -1, x.shape[-1])
    return np.swapaxes(d, -1, -2) @ x


def _total(d: Array) -> Any:
    """``sum_t d_t``: (batch, C, o)."""
    return d.reshape(*d.shape[:2], -1, d.shape[-1]).sum(axis=2)


def _branch(v: Values, scale: float, u: Array, w: Mapping[str, Array]) -> Any:
    """``scale (B u + bB)``."""
    return scale * inner(v.keep)("v", u @ w["B"].T + w.get("bB", 0.0))


# ------------------------------------------------------------------------------- activations


def _gelu(v: Values, x: Array) -> tuple[Array, Array]:
    """Value and derivative of ``x Phi(x)``.  [LAY-6]."""
    Phi = 0.5 * (1 + v.keep("erf", scipy.special.erf(x / math.sqrt(2))))
    return x * Phi, Phi + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(v: Values, x: Array) -> tuple[Array, Array]:
    """Value and derivative of ``x (1 + tanh(c (x + k x^3))) / 2``, c = sqrt(2 / pi).  [LAY-11]."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = v.keep("t", np.tanh(c * (x + k * x**3)))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * k * x * x)


def _softmax(v: Values, z: Array) -> Any:
    """``exp(z - lse)``: that route's error, u |lse|, is what a correct one may have.  [LAY-7]."""
    top = z.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    return np.exp(z - v.keep("lse", lse))


def _of_input(kind: str, value: Formula, slope: Formula, equation: str, label: str) -> Kind:
    """Activation whose slope is taken at its input."""

    def made(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
        z = net.put(f"z.{place}", [x], value, equation, label, kind)
        return z, lambda d: net.put(
            f"dx.{place}", [x, d], lambda v, x, d: d * slope(v, x)[:, None],
            "the slope at x, times d", label, kind, exact=True,
        )  # fmt: skip

    return made


def _of_output(kind: str, back: Formula, equation: str, slope: str, label: str) -> Kind:
    """Activation whose derivative is taken at its output y; that y is rounded by itself."""

    def made(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
        y = net.put(f"{kind}.{place}", [x], lambda v, x: v.F[kind](v, x), equation, label, kind,
                    exact=True)  # fmt: skip
        seen = net.put(f"seen.{place}", [y], lambda v, y: y, kind, label)
        z = net.put(f"z.{place}", [y], lambda v, y: y, equation, label, kind)
        return z, lambda d: net.put(
            f"dx.{place}", [seen, d], lambda v, y, d: back(v, y[:, None], d), slope, label,
            exact=True,
        )  # fmt: skip

    return made


def _log_softmax(v: Values, x: Array) -> Array:
    """``x - lse``: what its rounding, u |lse|, costs where both cancel, a correct one may have."""
    lse = np.apply_over_axes(scipy.special.logsumexp, x, -1)
    return np.apply_over_axes(scipy.special.log_softmax, x, -1) - (v.keep("lse", lse) - lse)


def _log_softmax_back(v: Values, y: Array, d: Array) -> Any:
    """``dx = d - exp(y) sum d``.  [LAY-8]."""
    return d - np.exp(y) * d.sum(axis=-1, keepdims=True)


# ------------------------------------------------------------------------ layer normalisation


def _layernorm(net: Net, layer: Layer, place: str, x: str) -> tuple[str, Back]:
    """``nu = (x - mu) / sqrt(var + eps)``, ``y = g nu + b``, over the last axis.  [ATT-1]."""
    w, eps = net.own(layer["name"]), layer.get("eps", 1e-5)

    def put(name: str, parents: list[str], rule: Formula, equation: str, formula: str) -> str:
        return net.put(f"{name}.{place}", parents, rule, equation, "ATT-1", formula)

    def gain(v: Values, w: Any) -> Any:
        return v.F["norm.gain"](w.get("g", 1.0))

    mu = put("mu", [x], lambda v, x: v.F["norm.mean"](x), "mean(x)", "norm.mean")
    var = put("var", [x, mu], lambda v, *a: v.F["norm.variance"](v, *a), "mean((x - mu)^2)",
              "norm.variance")  # fmt: skip
    s = put("deviation", [var], lambda v, var: v.F["norm.deviation"](var, eps),
            "1 / sqrt(var + eps)", "norm.deviation")  # fmt: skip
    nu = put("nu", [x, mu, s], lambda v, *a: v.F["norm.nu"](*a), "(x - mu) s", "norm.nu")
    z = put("z", [nu, w], lambda v, nu, w: gain(v, w) * nu + v.F["norm.shift"](w.get("b", 0.0)),
            "g nu + b", "norm.gain")  # fmt: skip

    def back(d: str) -> str:
        for key, equation in (("g", "sum_t nu d"), ("b", "sum_t d")) if net.whole else ():
            net.put(f"D.{layer['name']}.{key}", [nu, d],
                    lambda v, nu, d, key=key: v.F["total"](nu[:, None] * d if key == "g" else d),
                    equation, "ATT-1", "total", exact=True)  # fmt: skip
        return put(
            "dx", [nu, s, w, d],
            lambda v, nu, s, w, d: v.F["norm_back"](nu[:, None], s[:, None], gain(v, w), d),
            "s (dnu - mean(dnu) - nu mean(nu dnu)),  dnu = g d", "norm_back",
        )  # fmt: skip

    return z, back


def _norm_back(nu: Array, s: Array, g: Any, d: Array) -> Any:
    """``dx = s (dnu - <dnu> - nu <nu dnu>)``, ``dnu = g d``.  [ATT-1]."""
    dnu = g * d
    along = (nu * dnu).mean(axis=-1, keepdims=True)
    return s * (dnu - dnu.mean(axis=-1, keepdims=True) - nu * along)


# ------------------------------------------------------------------------------------- tables

LEAVES: dict[str, Kind] = {
    "linear": linear,
    "gelu": _of_input(
        "gelu", lambda v, x: v.F["gelu"](v, x)[0], lambda v, x: v.F["gelu_derivative"](v, x),
        "x Phi(x)", "LAY-6",
    ),
    "gelu_tanh": _of_input(
        "gelu_tanh", lambda v, x: v.F["gelu_tanh"](v, x)[0], lambda v, x: v.F["gelu_tanh"](v, x)[1],
        "x (1 + tanh(c (x + k x^3))) / 2", "LAY-11",
    ),
    "relu": _of_input(
        "relu", lambda v, x: v.F["relu"](x), lambda v, x: v.F["relu_derivative"](x),
        "max(x, 0)", "LAY-5",
    ),
    "tanh": _of_output(
        "tanh", lambda v, y, d: d * v.F["tanh_derivative"](y), "tanh(x)", "(1 - y^2) d", "LAY-4"
    ),
    "softmax": _of_output(
        "softmax", lambda v, y, d: v.F["softmax_back"](y, d), "softmax(x)", "y (d - y' d)", "LAY-7"
    ),
    "log_softmax": _of_output(
        "log_softmax", _log_softmax_back, "x - lse(x)", "d - exp(y) sum(d)", "LAY-8"
    ),
    "layernorm": _layernorm,
}  # fmt: skip
"""Kind -> what writes its quantities."""

LEAVES_FORMULAS: dict[str, Formula] = {
    "scale": lambda alpha, r: alpha / r,
    "bias": lambda w: w.get("b", 0.0),
    "inner": lambda x, w: x @ w["A"].T + w.get("bA", 0.0),
    "branch": _branch,
    "branch_back": lambda d: d,
    "shift_back": lambda dv, d: dv,
    "outer": _outer,
    "factor.A": lambda v, lora, du, x: v.F["outer"](du, x),
    "factor.B": lambda v, lora, dv, u: v.F["outer"](dv, u),
    "total": _total,
    "jacobian_scale": lambda scale: scale,
    "gelu": _gelu,
    "gelu_derivative": lambda v, x: v.F["gelu"](v, x)[1],
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu_derivative": lambda x: (x > 0).astype(x.dtype),
    "tanh": lambda v, x: np.tanh(x),
    "tanh_derivative": lambda y: 1 - y * y,
    "softmax": _softmax,
    "softmax_back": lambda y, d: y * (d - (y * d).sum(axis=-1, keepdims=True)),  # [LAY-7]
    "log_softmax": _log_softmax,
    "norm.mean": lambda x: x.mean(axis=-1, keepdims=True),
    "norm.variance": lambda v, x, mu: ((x - mu) * (x - mu)).mean(axis=-1, keepdims=True),
    "norm.deviation": lambda var, eps: 1 / np.sqrt(var + eps),
    "norm.nu": lambda x, mu, s: (x - mu) * s,
    "norm.gain": lambda g: g,
    "norm.shift": lambda b: b,
    "norm_back": _norm_back,
}
"""Formula name -> function."""
