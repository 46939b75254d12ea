"""Residual branch: ``y = x + layers(x)``, forward, vjp and entry in the spec.  [ATT-7]

Shapes: x, y (batch, ..., d); dy, dx (k, batch, ..., d). Its arrays are those of its layers, under
their full names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import InputError
from loko_ref.network.layers.base import (
    KINDS,
    Context,
    Flow,
    Kind,
    Layer,
    Params,
    Request,
    Shapes,
    backward,
    check_layers,
    init_layers,
    layer_shapes,
    run,
    width_in,
)
from loko_ref.network.lora import Init


class Residual(Kind):
    """``y = x + layers(x)``.  [ATT-7]."""

    required = ("layers",)

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Raise unless its layers return to the width that they start from."""
        if not layer["layers"]:
            raise InputError(f"{where}.layers", "no layers", "at least one layer", "an empty list")
        inner = check_layers(layer["layers"], f"{where}.layers", flow)
        start = width_in(layer["layers"]) if flow.width is None else flow.width
        if inner.width != start or (flow.tokens is not None and inner.tokens != flow.tokens):
            raise InputError(
                f"{where}.layers",
                f"output width {inner.width}",
                f"{start}, the width of the input",
                "x and layers(x) cannot be added",
            )
        return inner

    def width_in(self, layer: Layer) -> int | None:
        """Width before the first of its layers that fixes one."""
        return width_in(layer["layers"])

    def shapes(self, layer: Layer) -> Shapes:
        """Those of its layers."""
        return layer_shapes(layer["layers"])

    def linears(self, layer: Layer) -> Iterator[Layer]:
        """Those of its layers."""
        for inner in layer["layers"]:
            yield from KINDS[inner["kind"]].linears(inner)

    def map_linears(self, layer: Layer, change: Callable[[Layer], Layer]) -> dict[str, Any]:
        """Change those of its layers."""
        inner = [KINDS[k["kind"]].map_linears(k, change) for k in layer["layers"]]
        return {**layer, "layers": inner}

    def init(
        self, layer: Layer, rng: np.random.Generator, init: Init, dtype: str
    ) -> dict[str, Any]:
        """Draw its layers in turn."""
        return init_layers(layer["layers"], rng, init, dtype)

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Run the layers and add x."""
        y, caches = run(layer["layers"], params, x, context)
        return x + y, caches

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """``dx = dy + layers'(dy)``."""
        dx, found = backward(layer["layers"], dy, cache, request)
        return (None if dx is None else dy + dx), found
