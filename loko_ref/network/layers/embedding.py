"""Tables of tokens, positions and types: forward, vjp, entry in the spec, initialization.

Shapes: ids, types (batch, t) of int; mask (batch, t) of bool; a table (rows, d); y (batch, t, d);
dy (k, batch, t, d) with a leading axis of k cotangents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

from loko_ref.arrays import Array, backend_of, namespace
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_choice, check_shape, check_whole
from loko_ref.errors import InputError
from loko_ref.network.layers.base import Context, Flow, Kind, Layer, Params, Request, Shapes

Channel = Literal["ids", "types", "mask"]
"""What a channel of the integer input holds."""


def lookup_forward(table: Array, index: Array) -> tuple[Array, tuple[Array, int]]:
    """``y = table[index]``: row `index` (batch, t) of a table (rows, d).  [ATT-4]."""
    return table[index], (index, table.shape[0])


def lookup_vjp(dy: Array, cache: tuple[Array, int], *, per_sample: bool = False) -> Array:
    """Add each token's cotangent to the row that it was read from.  [ATT-4].

    Parameters
    ----------
    dy : array (k, batch, t, d)
        Cotangents.
    cache : tuple
        From :func:`lookup_forward`.
    per_sample : bool
        Whether to keep the batch axis.

    Returns
    -------
    array (k, rows, d) or (k, batch, rows, d)
    """
    index, rows = cache
    xp = namespace(dy)
    k, batch, _, d = dy.shape
    dtable = xp.zeros((k, batch, rows, d), dtype=dy.dtype)
    sample = xp.arange(batch)[:, None]
    for j in range(k):
        xp.add.at(dtable[j], (sample, index), dy[j])
    return dtable if per_sample else dtable.sum(axis=1)


def positions(ids: Array, mask: Array | None, start: int | None) -> Array:
    """Row of the position table that each token reads.  [ATT-4].

    Parameters
    ----------
    ids : array (batch, t)
        Token ids.
    mask : array (batch, t) of bool or None
        Real tokens, for RoBERTa's rule.
    start : int or None
        None: token j reads row j (BERT). A number: RoBERTa's rule, real tokens are numbered
        from ``start + 1`` on, and padding reads row ``start``.

    Returns
    -------
    array (batch, t) of int
    """
    xp = namespace(ids)
    if start is None:
        return xp.broadcast_to(xp.arange(ids.shape[1]), ids.shape)
    real = xp.ones(ids.shape, dtype=bool) if mask is None else mask
    return xp.cumsum(real, axis=1) * real + start


def channels(layer: Layer) -> tuple[Channel, ...]:
    """Names of the channels that an embedding layer's input has."""
    return tuple(layer.get("inputs") or ("ids",))


class Embedding(Kind):
    """Token ids to vectors: table + positions + types.  [ATT-4].

    ``inputs`` names the channels of the integer input: ``["ids"]`` (the default), x (batch, t);
    otherwise x (batch, channels, t). Without a ``mask`` channel, tokens equal to ``pad`` are
    padding. ``start`` numbers positions as RoBERTa does (:func:`positions`).
    """

    required = ("name", "vocab", "width", "positions")
    optional: ClassVar = {"types": 0, "pad": None, "start": None, "inputs": None}
    params = ("token", "position", "type")
    sizes = ("vocab", "width", "positions")
    deviation = 0.02
    reads_input = True

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Raise unless ids are whole numbers, and channels known, with a table each."""
        check_whole(f"{where}.types", self.option(layer, "types"), low=0)
        for key in ("pad", "start"):
            if layer.get(key) is not None:
                check_whole(f"{where}.{key}", layer[key], low=0)
        if layer.get("inputs"):
            check_type(f"{where}.inputs", layer["inputs"], Sequence, "one name in place of a list")
        inputs = channels(layer)
        for key in inputs:
            check_choice(f"{where}.inputs", key, get_args(Channel))
        if "ids" not in inputs or len(set(inputs)) != len(inputs):
            raise InputError(f"{where}.inputs", list(inputs), "'ids', each once", "a missing name")
        if "types" in inputs and not layer.get("types"):
            raise InputError(f"{where}.types", 0, "at least 1", "a channel without a table")
        return Flow(layer["width"], True)

    def check_input(self, layer: Layer, like: Array, x: Array) -> None:
        """Raise unless x holds whole numbers that are rows of the tables."""
        if backend_of(like).name != "balls":  # with balls ids stay NumPy's: they are no numbers
            backend_of(like, x)
        if getattr(x, "dtype", None) is None or x.dtype.kind not in "iu":
            raise InputError(
                "x",
                f"dtype {getattr(x, 'dtype', type(x).__name__)}",
                "whole numbers (token ids)",
                "floats, or text that is not tokenised",
            )
        inputs = channels(layer)
        if len(inputs) == 1:
            check_shape("x", x, ("batch", "t"))
        else:
            check_shape("x", x, ("batch", len(inputs), "t"))
        start = layer.get("start")
        longest = layer["positions"] - (0 if start is None else start + 1)
        if not 1 <= x.shape[-1] <= longest:
            raise InputError(
                "x",
                f"{x.shape[-1]} tokens",
                f"1 to {longest}",
                "a text longer than the position table",
            )
        if not x.size:
            return
        rows = {"ids": layer["vocab"], "types": layer.get("types", 0), "mask": 2}
        for j, key in enumerate(inputs):
            part = x if len(inputs) == 1 else x[:, j]
            low, high = int(part.min()), int(part.max())
            if low < 0 or high >= rows[key]:
                raise InputError(
                    f"x ({key})",
                    low if low < 0 else high,
                    f"whole numbers in [0, {rows[key] - 1}]",
                    "ids of another tokenizer, or channels in another order",
                )

    def width_in(self, layer: Layer) -> int | None:
        """Longest text."""
        return int(layer["positions"])

    def shapes(self, layer: Layer) -> Shapes:
        """Tables of tokens, positions and types."""
        d = layer["width"]
        shapes: Shapes = {"token": (layer["vocab"], d), "position": (layer["positions"], d)}
        return shapes | ({"type": (layer["types"], d)} if layer.get("types") else {})

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Add the rows read from each table; pass on the mask."""
        inputs, pad = channels(layer), layer.get("pad")
        part = {"ids": x} if len(inputs) == 1 else {n: x[:, j] for j, n in enumerate(inputs)}
        ids = part["ids"]
        real = None if pad is None else ids != pad
        context.mask = part["mask"] != 0 if "mask" in part else real
        at = positions(ids, real, layer.get("start"))
        y, kept = lookup_forward(params["token"], ids)
        p, kept_p = lookup_forward(params["position"], at)
        y, caches = y + p, {"token": kept, "position": kept_p}
        if "type" in params:
            types = part["types"] if "types" in part else namespace(ids).zeros_like(ids)
            p, caches["type"] = lookup_forward(params["type"], types)
            y = y + p
        return y, caches

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """Add into the tables wanted; ids have no cotangent."""
        return None, {
            key: lookup_vjp(dy, kept, per_sample=request.per_sample)
            for key, kept in cache.items()
            if key in request.need
        }
