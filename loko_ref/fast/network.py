"""From a model's spec to the nodes of the fast route.

Shapes: x as the model takes it; z (batch, C); seeds (batch, k, C); H (batch * k, n), by columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.errors import InputError
from loko_ref.fast.attend import Attend
from loko_ref.fast.columns import Columns, Mixed, OneSample, Places
from loko_ref.fast.nodes import Act, Lin, Node, Norm, Pool, Residual, Run, Stack
from loko_ref.network.layers import Context, Layer, option, run
from loko_ref.network.layers.attention import projections
from loko_ref.network.layers.base import names
from loko_ref.network.layers.linear import site_scale
from loko_ref.network.model import Model
from loko_ref.network.spec import linears, walk

KINDS = (
    *("linear", "relu", "tanh", "gelu", "gelu_tanh"),
    *("layernorm", "attention", "residual", "pool"),
)


CHUNK = 2**24
"""Bytes of the largest array of cotangents: so many ride together, and no more."""


class Network:
    """A model made ready for many steps.

    What lies below the lowest trained layer runs as it stands; above it, nodes.

    Parameters
    ----------
    model : Model
        Its trainables are of linears; NumPy arrays.
    """

    def __init__(self, model: Model) -> None:
        spans: dict[str, slice] = {}
        at = 0
        for name in model.trainable:
            stop = at + int(model.weights[name].size)
            spans[name] = slice(at, stop)
            at = stop
        self.n, self.model = at, model
        need = frozenset(model.trainable)
        layers = list(model.spec)
        lowest = next(j for j, layer in enumerate(layers) if names(layer) & need)
        self.below, above = layers[:lowest], layers[lowest:]
        self.widest = max(max(layer["in"], layer["out"]) for layer in linears(above))
        self.heads = max((k.get("heads", 0) for _, k in walk(above)), default=0)
        self.lins: list[Lin] = []
        self.stack = self._stack(above, spans, _first_rows(above))
        self.sites = sorted(
            ((span, lin, key) for lin in self.lins for key, span in lin.spans.items()),
            key=lambda site: site[0].start,
        )
        self.placed: tuple[int, int] = (0, 0)  # batch and tokens that places were found for
        self.H: Array | None = None

    def _stack(
        self, layers: Sequence[Layer], spans: Mapping[str, slice], rows: Mapping[int, int]
    ) -> Stack:
        return Stack([self._node(k, spans, rows.get(j)) for j, k in enumerate(layers)])

    def _node(self, layer: Layer, spans: Mapping[str, slice], rows: int | None) -> Node:
        weights, kind = self.model.weights, layer["kind"]
        if kind not in KINDS or (kind == "layernorm" and names(layer) & spans.keys()):
            raise InputError(
                "model",
                f"a trained or trailing layer of kind '{kind}'",
                f"trainables of linears, and above them {', '.join(KINDS)}",
                "a model that only the readable route (loko_ref.loko.step) runs",
            )
        if kind == "linear":
            return self._lin(layer, spans)
        if kind == "layernorm":
            g, b = (weights.get(f"{layer['name']}.{key}") for key in "gb")
            return Norm(g, b, option(layer, "eps"), layer["width"])
        if kind == "attention":
            parts = {key: self._lin(part, spans) for key, part in projections(layer).items()}
            return Attend(parts, layer["heads"], option(layer, "causal"), rows)
        if kind == "residual":
            inner = layer["layers"]
            inside = {
                j: rows
                for j, k in enumerate(inner)
                if rows is not None and k["kind"] == "attention"
            }
            return Residual(self._stack(inner, spans, inside), rows)
        return Pool(layer["how"]) if kind == "pool" else Act(kind)

    def _lin(self, layer: Layer, spans: Mapping[str, slice]) -> Lin:
        lin = Lin(self.model.weights, layer["name"], site_scale(layer), spans)
        self.lins.append(lin)
        return lin

    def forward(self, theta: Array, x: Array) -> tuple[Array, Run]:
        """Return outputs z (batch, C) at theta, and what :meth:`backward` needs."""
        self.stack.bind(theta)
        context = Context()
        batch = x.shape[0]
        if self.below:
            x, _ = run(self.below, self.model.weights, x, context)
        tokens = x.shape[1] if x.ndim == 3 else 1
        mask = context.mask
        if mask is not None and bool(mask.all()):
            mask = None
        now = Run(batch=batch, t=tokens, mask=mask)
        return self.stack.forward(x.reshape(batch * tokens, -1), now), now

    def backward(self, seeds: Array, now: Run) -> Columns:
        """Pull seeds (batch, k, C) back to the trainables.  [FAST-1].

        Parameters
        ----------
        seeds : array (batch, k, C)
            Cotangents of each sample's outputs.
        now : Run
            From :meth:`forward`.

        Returns
        -------
        Columns
            H (batch * k, n). The next call overwrites the columns that stand formed in it.
        """
        batch, k, C = seeds.shape
        self._place(batch, now.t)
        if self.H is None or self.H.shape != (batch * k, self.nd) or self.H.dtype != seeds.dtype:
            self.H = np.empty((batch * k, self.nd), dtype=seeds.dtype)
        grid = self.H.reshape(batch, k, self.nd)
        # cotangents are taken in runs, so that memory does not grow with their number
        row = max(self.widest, self.heads * now.t)  # per token: a cotangent, or its scores'
        few = max(1, CHUNK // (batch * now.t * row * seeds.itemsize))
        for j in range(0, k, few):
            part = np.ascontiguousarray(seeds[:, j : j + few])
            now.k, now.H = part.shape[1], grid[:, j : j + few]
            self.stack.backward(part.reshape(-1, C), now, need_dx=False)
        blocks = [(span, lin.block(key, batch)) for span, lin, key in self.products]
        if self.one is not None:
            return OneSample([block for _, block in blocks], self.one)
        return Mixed(self.H, self.stand, blocks, self.n)

    def _place(self, batch: int, tokens: int) -> None:
        """Decide which columns are formed: those of tokens, and of fewer inputs than samples."""
        if self.placed == (batch, tokens):
            return
        self.placed, self.nd = (batch, tokens), 0
        self.stand: list[slice] = []
        self.products = []
        for span, lin, key in self.sites:
            if lin.rows == 1 and batch <= lin.inputs(key):
                lin.places[key] = None
                self.products.append((span, lin, key))
            else:
                size = span.stop - span.start
                lin.places[key] = slice(self.nd, self.nd + size)
                self.nd += size
                self.stand.append(span)
        shapes = [(lin.fixed[key].shape[0], lin.inputs(key)) for _, lin, key in self.products]
        self.one = Places(shapes) if batch == 1 and not self.stand else None


def _first_rows(layers: Sequence[Layer]) -> dict[int, int]:
    """Which residual branches need only the first token: the last with attention, and above.

    The head reads the first token (``cls``); every layer between it and that attention works on
    each token by itself.  [FAST-2]
    """
    pool = next((j for j, k in enumerate(layers) if k["kind"] == "pool"), None)
    if pool is None or layers[pool]["how"] != "cls":
        return {}
    for j in reversed(range(pool)):
        layer: Mapping[str, Any] = layers[j]
        kinds = [inner["kind"] for inner in layer.get("layers", ())]
        if kinds.count("attention") == 1 and _rowwise(
            layer["layers"][kinds.index("attention") + 1 :]
        ):
            return {j: 1}
        if not _rowwise([layer]):
            return {}
    return {}


def _rowwise(layers: Sequence[Layer]) -> bool:
    """Whether layers treat each token by itself."""
    return all(
        _rowwise(layer["layers"]) if layer["kind"] == "residual" else layer["kind"] != "attention"
        for layer in layers
    )
