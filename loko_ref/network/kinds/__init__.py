"""The kinds of layer that a spec may name: what each asks for, its arrays, forward and vjp.

Shapes: x (batch, i) or (batch, t, d) for tokens; dy with a leading axis of k cotangents.

==========  ================================================================================
kind        keys (those in brackets may be left out)
==========  ================================================================================
linear      name, in, out, [bias, lora]
relu ...    none: relu, tanh, gelu, gelu_tanh, softmax, log_softmax
layernorm   name, width, [eps, affine]
attention   name, heads, q, k, v, o (each a linear without name), [causal]
residual    layers: y = x + layers(x)
embedding   name, vocab, width, positions, [types, pad, start, inputs]
patchify    image (channels, h, w), patch (h, w)
prepend     name, width, [count]: learnt tokens before the others ([CLS])
positions   name, width, count: learnt positions added to count tokens
pool        how: cls or mean
==========  ================================================================================

Dropout is absent by design: the oracle is a deterministic function, and a filter's observation
model must be one. A loaded checkpoint is run as in evaluation.
"""

from loko_ref.network.kinds.base import KINDS, Ask, Context, Flow, Layer, Layers, backward, run
from loko_ref.network.kinds.dense import LINEAR, Activation, LayerNorm, site_scale
from loko_ref.network.kinds.nested import Attention, Residual, projections
from loko_ref.network.kinds.tokens import Embedding, Patchify, Pool, Positions, Prepend
from loko_ref.network.layers.activation import ACTIVATIONS

__all__ = [
    "KINDS",
    "Ask",
    "Context",
    "Flow",
    "Layer",
    "Layers",
    "backward",
    "projections",
    "run",
    "site_scale",
]

KINDS |= {
    "linear": LINEAR,
    **{name: Activation() for name in ACTIVATIONS},
    "layernorm": LayerNorm(),
    "attention": Attention(),
    "residual": Residual(),
    "embedding": Embedding(),
    "patchify": Patchify(),
    "prepend": Prepend(),
    "positions": Positions(),
    "pool": Pool(),
}
