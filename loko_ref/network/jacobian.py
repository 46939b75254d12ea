"""Jacobian and gradient of a model's outputs by its trainables: one code, m or 1 cotangents.

Shapes: x (batch, i); z (batch, C); Z (m, n) with m = batch * C, stacked sample by sample;
dz (batch, C); gradient (n,).
"""

from __future__ import annotations

from typing import Any

from loko_ref.arrays import Array, namespace
from loko_ref.checks.values import check_floats, check_shape
from loko_ref.network.model import Model, check_inputs, forward_unchecked, vjp

__all__ = ["gradient", "jacobian", "jacobian_unchecked"]


def jacobian(model: Model, x: Array) -> tuple[Array, Array]:
    """Return outputs z and their Jacobian Z = dz/dtheta.  [LAY-9, LAY-10].

    C cotangents (the rows of the identity) ride the leading axis through one backward pass; the
    parameters' cotangents keep their batch axis, since sample b's outputs depend on sample b only.

    Parameters
    ----------
    model : Model
        The network.
    x : array (batch, i)
        Inputs.

    Returns
    -------
    z : array (batch, C)
    Z : array (batch * C, n)
        Row b * C + j is the derivative of output j of sample b, in packing order.
    """
    check_inputs(model, x)
    return jacobian_unchecked(namespace(*model.weights.values()), model, x)


def jacobian_unchecked(xp: Any, model: Model, x: Array) -> tuple[Array, Array]:
    """Compute :func:`jacobian` of checked arguments; `xp` is the weights' namespace."""
    z, cache = forward_unchecked(model, x)
    batch, C = z.shape
    dz = xp.broadcast_to(xp.eye(C, dtype=z.dtype)[:, None, :], (C, batch, C))
    parts = vjp(model, dz, cache, per_sample=True)  # each (C, batch, *shape)
    Z = xp.concatenate([a.reshape(C, batch, -1) for a in parts.values()], axis=-1)
    return z, xp.swapaxes(Z, 0, 1).reshape(batch * C, -1)  # (m, n)


def gradient(model: Model, x: Array, dz: Array) -> Array:
    """Pull one cotangent dz (batch, C) back: Z' dz, shape (n,).  [LAY-9].

    The case k = 1 of the same backward pass; samples are summed.
    """
    check_inputs(model, x)
    z, cache = forward_unchecked(model, x)
    check_floats(z=z, dz=dz)
    check_shape("dz", dz, tuple(z.shape))
    parts = vjp(model, dz[None], cache)
    xp = namespace(z)
    return xp.concatenate([a.reshape(-1) for a in parts.values()])
