"""Strategies for transformers: encoders of features, texts (BERT, RoBERTa) and images (ViT).

Shapes: features (batch, t, width); ids (batch, t) or (batch, channels, t); images flat.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from loko_ref.checks.values import check_choice
from loko_ref.network.architectures import TARGETS, bert_spec, encoder_spec, roberta_spec, vit_spec
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.layers.embedding import Channel
from loko_ref.network.model import Model, param_shapes
from loko_ref.strategies.matrices import dtype_or, frozen

KINDS = ("features", "text", "image")
"""Inputs of a drawn transformer."""


class Built(list[dict[str, Any]]):
    """A spec that knows the call which makes it.

    Parameters
    ----------
    make : callable
        A function of :mod:`loko_ref.network.architectures`.
    **arguments
        What it is called with.

    Attributes
    ----------
    name, call : str
        The function's name, and the call without what is so by default.
    """

    def __init__(self, make: Callable[..., list[dict[str, Any]]], **arguments: Any) -> None:
        super().__init__(make(**arguments))
        defaults = {k: one.default for k, one in inspect.signature(make).parameters.items()}
        words = [
            f"{k}={v!r}" for k, v in arguments.items() if k not in defaults or defaults[k] != v
        ]
        self.name = make.__name__
        self.call = f"{self.name}({', '.join(words)})"


@st.composite
def transformer_specs(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    max_layers: int = 2,
    max_width: int = 4,
    min_outputs: int = 2,
    eps: float = 1e-3,
) -> list[dict[str, Any]]:
    """Draw the spec of a small transformer with LoRA on some of its linears.

    Order of norm and branch, pooling, heads, activation, causality, biases, padding, channels,
    position rule, and which linears have LoRA are drawn.

    Parameters
    ----------
    kinds : tuple of {"features", "text", "image"}
        The kinds of input to draw from.
    max_layers, max_width : int
        Bounds on the number of blocks and on the width of a token and of a feed-forward.
    min_outputs : int
        Least width of the output.
    eps : float
        Of every norm. A norm divides by at least sqrt(eps), so errors may grow by 1 / sqrt(eps) in
        each; published models have 1e-5 to 1e-12.

    Examples
    --------
    >>> from hypothesis import find
    >>> [layer["kind"] for layer in find(transformer_specs(kinds=("features",)), bool)]
    ['residual', 'layernorm', 'residual', 'layernorm', 'pool', 'linear']
    """
    for kind in kinds:
        check_choice("kinds", kind, KINDS)
    heads = draw(st.integers(1, min(2, max_width)))
    width = heads * draw(st.integers(1, max_width // heads))
    ff = draw(st.integers(1, max_width))
    lora = {"r": draw(st.integers(1, min(width, ff))), "alpha": draw(st.sampled_from([1.0, 2.0]))}
    if draw(st.booleans()):
        lora["bias"] = True
    some = draw(st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True))
    common: dict[str, Any] = {
        "layers": draw(st.integers(1, max_layers)),
        "width": width,
        "heads": heads,
        "ff": ff,
        "outputs": draw(st.integers(min_outputs, min_outputs + 1)),
        "pool": draw(st.sampled_from(["mean", "cls"])),
        "lora": lora,
        "targets": some,
        "activation": draw(st.sampled_from([a for a in ACTIVATIONS if "softmax" not in a])),
        "eps": eps,
    }
    kind = draw(st.sampled_from(kinds))
    if kind == "image":
        tokens = draw(st.integers(1 if common["pool"] == "cls" else 0, 2))
        image = (draw(st.integers(1, 2)), 2 * draw(st.integers(1, 2)), 2)
        patch = 2, draw(st.integers(1, 2))
        return Built(vit_spec, image=image, patch=patch, tokens=tokens, **common)
    common |= {"dense": draw(st.booleans()), "causal": draw(st.booleans())}
    if kind == "features":
        norm, bias = draw(st.sampled_from(["post", "pre"])), draw(st.booleans())
        return Built(encoder_spec, norm=norm, bias=bias, **common)
    common |= {"vocab": draw(st.integers(3, 5)), "positions": draw(st.integers(3, 5))}
    if draw(st.booleans()):
        return Built(roberta_spec, **common)
    types = draw(st.integers(0, 2))
    inputs: list[Channel] = ["ids"]
    inputs += ["types"] if types and draw(st.booleans()) else []
    inputs += ["mask"] if draw(st.booleans()) else []
    pad = draw(st.sampled_from([None, 0]))
    return Built(bert_spec, types=types, pad=pad, inputs=inputs, **common)


@st.composite
def transformers(
    draw: st.DrawFn, /, *, size: float = 1.0, dtype: str | None = None, **choices: Any
) -> Model:
    """Draw a transformer with weights of order 1; B is not 0.

    The weights are quarters of whole numbers, all from one drawn seed: in a failing example the
    spec shrinks, but not the weights.

    Parameters
    ----------
    size : float
        Bound on the weights' magnitude.
    dtype : str, optional
        float64 or float32; None draws it.
    **choices
        As for :func:`transformer_specs`.
    """
    dtype = draw(dtype_or(dtype))
    spec = draw(transformer_specs(**choices))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = int(4 * size)
    weights = {
        name: frozen((rng.integers(-most, most + 1, shape) / 4).astype(dtype))
        for name, shape in param_shapes(spec).items()
    }
    return Model(spec=spec, weights=weights)
