"""Images to flat patches: forward, vjp and entry in the spec.  [ATT-5]

Shapes: image (batch, channels, h, w); patches (batch, h/ph * w/pw, channels * ph * pw); cotangents
with a leading axis of k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loko_ref.arrays import Array
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import check_floats, check_shape, check_whole
from loko_ref.errors import InputError
from loko_ref.network.layers.base import Context, Flow, Kind, Layer, Params, Request


def forward(image: Array, patch: tuple[int, int]) -> Array:
    """Cut an image into patches, row by row, each flattened as (channels, h, w).  [ATT-5].

    A convolution whose stride is its kernel is a linear on these patches.

    Parameters
    ----------
    image : array (batch, channels, h, w)
        Pixels.
    patch : (int, int)
        Height and width of a patch; they divide h and w.

    Returns
    -------
    array (batch, h/ph * w/pw, channels * ph * pw)
    """
    batch, channels, h, w = image.shape
    ph, pw = patch
    a = image.reshape(batch, channels, h // ph, ph, w // pw, pw)
    a = a.transpose(0, 2, 4, 1, 3, 5)
    return a.reshape(batch, (h // ph) * (w // pw), channels * ph * pw)


def vjp(dy: Array, shape: tuple[int, int, int], patch: tuple[int, int]) -> Array:
    """Put the patches back: the transpose (and inverse) of :func:`forward`.  [ATT-5]."""
    k, batch = dy.shape[:2]
    (channels, h, w), (ph, pw) = shape, patch
    a = dy.reshape(k, batch, h // ph, w // pw, channels, ph, pw)
    return a.transpose(0, 1, 4, 2, 5, 3, 6).reshape(k, batch, channels, h, w)


class Patchify(Kind):
    """Cut images into flat patches.  [ATT-5]."""

    required = ("image", "patch")
    reads_input = True

    def check(self, layer: Layer, where: str, flow: Flow) -> Flow:
        """Raise unless sizes are whole numbers, and the patch divides the image."""
        for key, count in (("image", 3), ("patch", 2)):
            check_type(f"{where}.{key}", layer[key], Sequence, "one side in place of all")
            if len(layer[key]) != count:
                raise InputError(f"{where}.{key}", layer[key], f"{count} numbers", "a wrong shape")
            for value in layer[key]:
                check_whole(f"{where}.{key}", value)
        (c, h, w), (ph, pw) = layer["image"], layer["patch"]
        if h % ph or w % pw:
            raise InputError(
                f"{where}.patch", [ph, pw], f"a divisor of the image {h} x {w}", "a wrong size"
            )
        return Flow(c * ph * pw, True)

    def check_input(self, layer: Layer, like: Array, x: Array) -> None:
        """Raise unless x is of the image's shape, or flat."""
        check_floats(weights=like, x=x)
        if len(x.shape) != 2:
            check_shape("x", x, ("batch", *layer["image"]))
        else:
            check_shape("x", x, ("batch", "i"), {"i": math.prod(layer["image"])})

    def width_in(self, layer: Layer) -> int | None:
        """``channels * h * w``."""
        return math.prod(layer["image"])

    def forward(self, x: Array, params: Params, layer: Layer, context: Context) -> Any:
        """Accept x (batch, channels, h, w) or (batch, channels * h * w)."""
        image = x.reshape(x.shape[0], *layer["image"])
        return forward(image, tuple(layer["patch"])), x.shape[1:]

    def vjp(self, dy: Array, cache: Any, layer: Layer, request: Request) -> Any:
        """Put the patches back, in the shape that x had."""
        dx = vjp(dy, tuple(layer["image"]), tuple(layer["patch"]))
        return dx.reshape(*dy.shape[:2], *cache), {}
