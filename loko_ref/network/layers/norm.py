"""Layer normalisation: forward, vjp, entry in the spec, initialization.

Shapes: x, y (batch, ..., d); g, b (d,) the gain and the shift, or None; dy, dx (k, batch, ..., d)
with a leading axis of k cotangents.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np

from loko_ref.arrays import Array, namespace
from loko_ref.checks.values import check_range
from loko_ref.network.layers.base import Context, Flow, Kind, Layer, Params, Request, Shapes
from loko_ref.network.lora import Init

PARAMS = ("g", "b")
"""Parameter names: gain and shift."""

Cache = tuple[Array, Array, Array | None]


def forward(
    x: Array, g: Array | None = None, b: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Cache]:
    """``y = g (x - mean) / sqrt(var + eps) + b``, over the last axis.  [ATT-1]

    The variance takes two passes, the mean first; what rounding left of the mean in the centred
    values is taken out once more, so that a large common offset costs no digits of the variance.

    Parameters
    ----------
    x : array (batch, ..., d)
        Input.
    g, b : array (d,), optional
        Gain and shift; None stands for 1 and 0.
    eps : float
        Added to the variance, >= 0 (a part of the layer's definition, not a repair).

    Returns
    -------
    y : array (batch, ..., d)
    cache : tuple
        The normalised input, the inverse deviation (batch, ..., 1), and g.
    """
    xp = namespace(x)
    c = x - x.mean(axis=-1, keepdims=True)
    c = c - c.mean(axis=-1, keepdims=True)
    var = (c * c).mean(axis=-1, keepdims=True)  # (batch, ..., 1)
    inv = 1 / xp.sqrt(var + eps)
    n = c * inv  # (batch, ..., d)
    y = n if g is None else n * g
    return y if b is None else y + b, (n, inv, g)


def vjp(
    dy: Array,
    cache: Cache,
    need: Collection[str] = (),
    *,
    per_sample: bool = False,
    need_dx: bool = True,
) -> tuple[Array | None, dict[str, Array]]:
    """``dx = inv (dn - mean dn - n mean(n dn))``, dn = g dy; ``dg = sum n dy``.  [ATT-1]

    Parameters
    ----------
    dy : array (k, batch, ..., d)
        Cotangents of the output.
    cache : tuple
        From :func:`forward`.
    need : collection of str
        Of ``g``, ``b``: the parameters whose cotangents are wanted.
    per_sample : bool
        Whether to keep the batch axis of the parameters' cotangents.
    need_dx : bool
        Whether the cotangent of the input is wanted.

    Returns
    -------
    dx : array (k, batch, ..., d) or None
    dparams : dict
        ``(k, d)`` each, or ``(k, batch, d)`` with ``per_sample``.
    """
    n, inv, g = cache
    k, batch, d = dy.shape[0], dy.shape[1], dy.shape[-1]

    def total(a: Array) -> Array:  # sum over tokens (and batch)
        a = a.reshape(k, batch, -1, d)
        return a.sum(axis=2) if per_sample else a.sum(axis=(1, 2))

    dparams: dict[str, Array] = {}
    if "g" in need:
        dparams["g"] = total(dy * n)
    if "b" in need:
        dparams["b"] = total(dy)
    if not need_dx:
        return None, dparams
    dn = dy if g is None else dy * g
    along = (dn * n).mean(axis=-1, keepdims=True)  # (k, batch, ..., 1)
    return inv * (dn - dn.mean(axis=-1, keepdims=True) - n * along), dparams


class LayerNorm(Kind):
    """Layer normalisation.  [ATT-1]."""

    required = ("name", "width")
    optional: ClassVar = {"eps": 1e-5, "affine": True}
    params = PARAMS
    sizes = ("width",)

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Width chains; eps >= 0."""
        check_range(f"{where}.eps", self.option(layer, "eps"), low=0, high_open=True)
        return super().check(layer, where, flow)

    def shapes(self, layer: Layer) -> Shapes:
        """Gain g and shift b, if affine."""
        return dict.fromkeys(PARAMS, (layer["width"],)) if self.option(layer, "affine") else {}

    def init(
        self, layer: Layer, rng: np.random.Generator, init: Init, dtype: str
    ) -> dict[str, Any]:
        """Set g = 1, b = 0; nothing is drawn."""
        fill = {"g": np.ones, "b": np.zeros}
        return {key: fill[key](shape, dtype) for key, shape in self.shapes(layer).items()}

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """``y = g (x - mean) / sqrt(var + eps) + b``."""
        return forward(x, params.get("g"), params.get("b"), eps=self.option(layer, "eps"))

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """As :func:`vjp`."""
        need, each = request.need, request.per_sample
        return vjp(dy, cache, need, per_sample=each, need_dx=request.need_dx)
