"""The layers: one file each with forward, vjp, entry in the spec, arrays and initialization.

``dy`` carries a leading axis of k cotangents, so that a gradient (k = 1) and a Jacobian (k = the
number of outputs) are the same code.  [LAY-9]

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

A new layer is a file here and a line in the registry below. Dropout is absent by design: the
oracle is a deterministic function, and a filter's observation model must be one. A loaded
checkpoint is run as in evaluation.
"""

from loko_ref.network.layers import (
    activation,
    attention,
    embedding,
    linear,
    norm,
    patchify,
    pool,
    positions,
    prepend,
    residual,
)
from loko_ref.network.layers.base import (
    KINDS,
    Context,
    Flow,
    Layer,
    Layers,
    Request,
    backward,
    option,
    run,
)

__all__ = [
    "KINDS",
    "Context",
    "Flow",
    "Layer",
    "Layers",
    "Request",
    "activation",
    "attention",
    "backward",
    "embedding",
    "linear",
    "norm",
    "option",
    "patchify",
    "pool",
    "positions",
    "prepend",
    "residual",
    "run",
]

KINDS |= {
    "linear": linear.LINEAR,
    **dict.fromkeys(map(str, activation.ACTIVATIONS), activation.Activation()),
    "layernorm": norm.LayerNorm(),
    "attention": attention.Attention(),
    "residual": residual.Residual(),
    "embedding": embedding.Embedding(),
    "patchify": patchify.Patchify(),
    "prepend": prepend.Prepend(),
    "positions": positions.Positions(),
    "pool": pool.Pool(),
}
