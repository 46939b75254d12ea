"""Layers: ``forward(x, ...) -> (y, cache)`` beside ``vjp(dy, cache, ...)``.

``dy`` carries a leading axis of k cotangents, so that a gradient (k = 1) and a Jacobian (k = the
number of outputs) are the same code.  [LAY-9]
"""

from loko_ref.network.layers import activation, attention, embedding, linear, norm

__all__ = ["activation", "attention", "embedding", "linear", "norm"]
