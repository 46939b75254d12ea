"""Linear layer with an optional LoRA branch: forward, vjp, entry in the spec, initialization.

Shapes: x (batch, ..., i); y (batch, ..., o); W (o, i); b (o,); A (r, i); B (o, r); bA (r,);
bB (o,); dy (k, batch, ..., o) with a leading axis of k cotangents.

The axes between batch and i (tokens) are summed over wherever a parameter's cotangent is formed;
the batch axis is summed too, unless ``per_sample`` asks for one cotangent per sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from loko_ref.arrays import Array, namespace
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_range
from loko_ref.network import lora
from loko_ref.network.layers.base import (
    Context,
    Flow,
    Kind,
    Layer,
    Params,
    Request,
    Shapes,
    check_entry,
)

PARAMS = ("W", "b", "A", "B", "bA", "bB")
"""Parameter names; the last four are the LoRA factors, in packing order."""

Cache = tuple[Array, Array | None, Mapping[str, Array], float]


def forward(x: Array, params: Mapping[str, Array], scale: float = 1.0) -> tuple[Array, Cache]:
    """Affine map plus the low-rank branch.  [LAY-1, LAY-2, LAY-3]

    ``y = W x + b + scale (B u + bB)`` with ``u = A x + bA``.

    Parameters
    ----------
    x : array (batch, ..., i)
        Input.
    params : mapping
        ``W`` (o, i); optional ``b`` (o,), ``A`` (r, i) with ``B`` (o, r), ``bA`` (r,), ``bB`` (o,).

    Returns
    -------
    y : array (batch, ..., o)
    cache : tuple
        What :func:`vjp` needs.
    """
    y = x @ params["W"].T  # (batch, ..., o)
    if "b" in params:
        y = y + params["b"]
    u = None
    if "A" in params:
        u = x @ params["A"].T  # (batch, ..., r)
        if "bA" in params:
            u = u + params["bA"]
        v = u @ params["B"].T  # (batch, ..., o)
        if "bB" in params:
            v = v + params["bB"]
        y = y + scale * v
    return y, (x, u, params, scale)


def vjp(
    dy: Array,
    cache: Cache,
    need: Collection[str] = ("A", "B", "bA", "bB"),
    *,
    per_sample: bool = False,
    need_dx: bool = True,
) -> tuple[Array | None, dict[str, Array]]:
    """Pull k cotangents back through :func:`forward`.  [LAY-1, LAY-2, LAY-3, LAY-9]

    Parameters
    ----------
    dy : array (k, batch, ..., o)
        Cotangents of the output.
    cache : tuple
        From :func:`forward`.
    need : collection of str
        Parameters whose cotangents are wanted (those that the layer lacks are passed over).
    per_sample : bool
        Whether to keep the batch axis of the parameters' cotangents.
    need_dx : bool
        Whether the cotangent of the input is wanted.

    Returns
    -------
    dx : array (k, batch, ..., i) or None
    dparams : dict
        ``(k, *shape)`` each, or ``(k, batch, *shape)`` with ``per_sample``.
    """
    x, u, params, scale = cache
    xp = namespace(dy, x)
    k, batch = dy.shape[:2]

    def rows(a: Array) -> Array:  # (k, batch, ..., d) -> (k, batch, tokens, d)
        return a.reshape(k, batch, -1, a.shape[-1])

    def outer(d: Array, inp: Array) -> Array:  # sum over tokens (and batch) of d inp'
        inp = inp.reshape(batch, -1, inp.shape[-1])  # (batch, tokens, in)
        if per_sample:
            return xp.swapaxes(rows(d), -1, -2) @ inp  # (k, batch, out, in)
        flat = d.reshape(k, -1, d.shape[-1])  # (k, batch * tokens, out)
        return xp.swapaxes(flat, -1, -2) @ inp.reshape(-1, inp.shape[-1])  # (k, out, in)

    def total(d: Array) -> Array:  # sum over tokens (and batch) of d
        return rows(d).sum(axis=2) if per_sample else rows(d).sum(axis=(1, 2))

    # y = W x + b
    dx = dy @ params["W"] if need_dx else None  # (k, batch, ..., i)
    dparams: dict[str, Array] = {}
    if "W" in need:
        dparams["W"] = outer(dy, x)
    if "b" in need and "b" in params:
        dparams["b"] = total(dy)
    if "A" in params:
        assert u is not None
        # v = scale (B u + bB)
        dv = scale * dy  # (k, batch, ..., o)
        if "B" in need:
            dparams["B"] = outer(dv, u)
        if "bB" in need and "bB" in params:
            dparams["bB"] = total(dv)
        # u = A x + bA
        du = dv @ params["B"]  # (k, batch, ..., r)
        if "A" in need:
            dparams["A"] = outer(du, x)
        if "bA" in need and "bA" in params:
            dparams["bA"] = total(du)
        if dx is not None:
            dx = dx + du @ params["A"]
    return dx, dparams


def site_scale(layer: Layer, like: Array | None = None) -> Any:
    """``alpha / r`` of a linear's LoRA branch; 1 without one.  [LORA-2]."""
    site = layer.get("lora")
    return lora.ratio(site["alpha"], site["r"], like) if site else 1.0


class Linear(Kind):
    """Affine map with an optional LoRA branch.  [LAY-1, LAY-2, LAY-3]."""

    required = ("name", "in", "out")
    optional: ClassVar = {"bias": True, "lora": None}
    params = PARAMS
    sizes = ("in", "out")

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Widths chain; the rank is at least 1 (it may exceed a width, as PEFT's may)."""
        flow.check_width(f"{where}.in", layer["in"])
        site = layer.get("lora")
        if site:
            check_type(f"{where}.lora", site, Mapping, "the rank alone")
            flag = {"bias": False}
            check_entry(f"{where}.lora", site, ("r", "alpha"), flag, ("r",), "LoRA site")
            check_range(f"{where}.lora.alpha", site["alpha"], low_open=True, high_open=True)
        return Flow(layer["out"], flow.tokens)

    def width_in(self, layer: Layer) -> int | None:
        """``in``."""
        return layer.get("in")

    def shapes(self, layer: Layer) -> Shapes:
        """W, b, and A, B, bA, bB of the branch."""
        i, o = layer["in"], layer["out"]
        shapes: Shapes = {"W": (o, i)}
        if self.option(layer, "bias"):
            shapes["b"] = (o,)
        site = layer.get("lora")
        if site:
            shapes["A"], shapes["B"] = (site["r"], i), (o, site["r"])
            if site.get("bias", False):
                shapes["bA"], shapes["bB"] = (site["r"],), (o,)
        return shapes

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Itself."""
        yield layer

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Itself, changed."""
        return dict(change(layer))

    def init(
        self, layer: Layer, rng: np.random.Generator, init: lora.Init, dtype: str
    ) -> dict[str, Any]:
        """W uniform on ±sqrt(6 / i) (He), b = 0, factors as in LoRA."""
        i, o, site = layer["in"], layer["out"], layer.get("lora")
        bound = math.sqrt(6 / i)
        found: dict[str, Any] = {"W": rng.uniform(-bound, bound, size=(o, i)).astype(dtype)}
        if self.option(layer, "bias"):
            found["b"] = np.zeros(o, dtype)
        if site:
            bias = site.get("bias", False)
            found |= lora.init_factors(rng, i, o, site["r"], init=init, bias=bias, dtype=dtype)
        return found

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """``y = W x + b + scale (B (A x + bA) + bB)``."""
        return forward(x, params, site_scale(layer, x))

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """As :func:`vjp`."""
        need, each = request.need, request.per_sample
        return vjp(dy, cache, need, per_sample=each, need_dx=request.need_dx)


LINEAR = Linear()
"""The one that attention shares."""
