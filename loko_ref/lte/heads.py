"""The heads' networks: forward and vjp of all heads at once, one matrix product per head.

Shapes: x (heads, batch, i); z (heads, batch, C); dz (k..., heads, batch, C), any leading axes of
cotangents; theta (heads, n); W (o, i) shared or (heads, o, i) a copy each; A (heads, r, i);
B (heads, o, r); bA (heads, r); bB (heads, o). ``heads`` is the number that this process holds.

Every product is a stacked ``matmul``, which calls BLAS once per head: the bits of a head's results
do not depend on how many others stand beside it. Flattening the heads into one product is quicker
for a large shared weight, and changes the bits with the split for some shapes: it is taken only
where a probe shows that it gives the stacked product's bits.  [LTE-9]

That is for the heads of flat networks. On others (:attr:`loko_ref.lte.config.LteConfig.nested`)
they are computed one after another, and in mhlora as one network, by :mod:`loko_ref.lte.nested`; x
is what the first layer takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from loko_ref.arrays import Array, namespace
from loko_ref.arrays.special import log_softmax_forward
from loko_ref.lte import nested
from loko_ref.lte.config import LteConfig
from loko_ref.lte.layout import Heads as Heads
from loko_ref.lte.layout import Layout, Site
from loko_ref.network.layers.activation import ACTIVATIONS


def _t(a: Array) -> Array:
    return a.swapaxes(-1, -2)


def _rows(b: Array) -> Array:
    """Make a bias (o,) or (heads, o) addable to (heads, batch, o)."""
    return b if b.ndim == 1 else b[:, None, :]


_LARGE = 2**16
"""Entries of a shared weight from which one flat product pays."""


@cache
def _flat_has_the_same_bits(
    shape: tuple[int, ...], other: tuple[int, int], transposed: bool, dtype: str
) -> bool:
    """Probe: does one product of all heads' rows give the bits of a product per head?  [LTE-9].

    The order in which BLAS sums depends on the shapes, not on the numbers; over the thousands of
    entries of a large product, another order shows in the bits of random numbers.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    M = rng.standard_normal(other[::-1] if transposed else other).astype(dtype)
    M = M.T if transposed else M
    flat = x.reshape(-1, shape[-1]) @ M
    return np.array_equal(flat.reshape(*shape[:-1], other[1]), x @ M)


def _times(x: Array, M: Array) -> Array:
    """``x[head] @ M`` for every head: x (..., heads, batch, i), M (i, o) or (heads, i, o)."""
    if (
        x.ndim == 3
        and M.ndim == 2
        and M.size >= _LARGE
        and isinstance(x, np.ndarray)
        and x.flags.c_contiguous
        and (M.flags.c_contiguous or M.flags.f_contiguous)
        and _flat_has_the_same_bits(x.shape, M.shape, not M.flags.c_contiguous, x.dtype.str)
    ):
        return (x.reshape(-1, x.shape[-1]) @ M).reshape(*x.shape[:-1], M.shape[1])
    return x @ M


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """What the vjp of one linear reads."""

    x: Array  # (heads, batch, i): its input
    # its trainables (heads, ...); those last merged; None: 0, or a weight copy per head, or no LoRA
    p: Mapping[str, Array]
    old: Mapping[str, Array] | None = None
    u: Array | None = None  # (heads, batch, r): `scale(A x + bA)`; None without LoRA


def _branch(x: Array, p: Mapping[str, Array], scale: Any) -> tuple[Array, Array]:
    """``v = B u + scale bB`` with ``u = scale(A x + bA)``, head by head.  [LAY-2, LAY-3].

    The scale is taken where a sample has r numbers, not o.
    """
    u = x @ _t(p["A"])  # (heads, batch, r)
    if "bA" in p:
        u += _rows(p["bA"])
    u *= scale
    v = u @ _t(p["B"])  # (heads, batch, o)
    if "bB" in p:
        v += scale * _rows(p["bB"])
    return u, v


def _site_forward(x: Array, site: Site, layout: Layout, heads: Heads) -> tuple[Array, _Kept]:
    """One linear of every head.  [LTE-3, LTE-4, LTE-7].

    LoRA site: ``y = W x + b + scale(B(Ax + bA) + bB) - scale(B'(A'x + bA') + bB')``, the last term
    only with a shared weight; replica: ``y = W[head] x + b[head]``.
    """
    p = layout.site(heads.theta, site.name)
    held = heads.weights if site.lora else {f"{site.name}.{k}": v for k, v in p.items()}
    y = _times(x, _t(held[f"{site.name}.W"]))  # (heads, batch, o)
    b = held.get(f"{site.name}.b")
    if b is not None:
        y += _rows(b)
    if not site.lora:
        return y, _Kept(x=x, p=p)
    scale = site.scale_beside(y)
    u, v = _branch(x, p, scale)
    y += v
    old = None
    if heads.merged is not None:
        old = layout.site(heads.merged, site.name)
        y -= _branch(x, old, scale)[1]
    return y, _Kept(x=x, p=p, old=old, u=u)


def _site_vjp(
    dy: Array,
    kept: _Kept,
    site: Site,
    heads: Heads,
    part: Mapping[str, Array],
    *,
    per_sample: bool,
    need_dx: bool,
) -> Array | None:
    """Cotangents of one linear of every head; the parameters' go into `part`.  [LTE-3].

    The factors' cotangents use the full A and B; the factors last merged are constants, and are
    felt in dx alone.
    """
    x, u, p, old = kept.x, kept.u, kept.p, kept.old

    def outer(d: Array, inp: Array, into: Array) -> None:
        if per_sample:  # (k, heads, batch, a, 1) * (heads, batch, 1, c)
            namespace(d).multiply(d[..., :, None], inp[..., None, :], out=into)
        else:
            into[...] = _t(d) @ inp

    def total(d: Array, into: Array) -> None:
        into[...] = d if per_sample else d.sum(axis=-2)

    if u is None:
        outer(dy, x, part["W"])
        if "b" in part:
            total(dy, part["b"])
        return dy @ p["W"] if need_dx else None
    scale = site.scale_beside(dy)
    outer(dy, u, part["B"])
    if "bB" in part:
        total(dy, part["bB"])
        part["bB"][...] *= scale
    du = dy @ p["B"]  # (..., heads, batch, r)
    du *= scale
    outer(du, x, part["A"])
    if "bA" in part:
        total(du, part["bA"])
    if not need_dx:
        return None
    dx = _times(dy, heads.weights[f"{site.name}.W"])  # (..., heads, batch, i)
    dx += du @ p["A"]
    if old is not None:
        du = dy @ old["B"]
        du *= scale
        dx -= du @ old["A"]
    return dx


def forward(config: LteConfig, heads: Heads, x: Array) -> tuple[Array, list[Any]]:
    """Compute every head's outputs on its own samples; mhlora: the one network's.  [LTE-2, LTE-3].

    Parameters
    ----------
    x : array (heads, batch, i); in mhlora (batch, i)
        Inputs; in place of i what the first layer takes.

    Returns
    -------
    z : array (heads, batch, C); in mhlora (batch, C)
    cache : list
        One entry per layer, for :func:`vjp`.
    """
    if config.nested:
        return nested.forward(config, heads, x)  # [LTE-2, LTE-12]
    caches: list[Any] = []
    for layer in config.spec:
        kept: Any
        if layer["kind"] == "linear":
            site = config.layout.sites[layer["name"]]
            x, kept = _site_forward(x, site, config.layout, heads)
        else:
            x, kept = ACTIVATIONS[layer["kind"]][0](x)
        caches.append(kept)
    return x, caches


def vjp(
    config: LteConfig, heads: Heads, dz: Array, cache: list[Any], *, per_sample: bool = False
) -> Array:
    """Pull cotangents back to every head's trainables.  [LAY-9, LTE-2, LTE-3].

    Parameters
    ----------
    config, heads, cache
        As for :func:`forward`.
    dz : array (k..., heads, batch, C); in mhlora (k, batch, C)
        Cotangents of the outputs.
    per_sample : bool
        Whether to keep the batch axis.

    Returns
    -------
    array (k..., heads, n), or (k..., heads, batch, n) with `per_sample`
    """
    if config.nested:
        return nested.vjp(config, heads, dz, cache, per_sample=per_sample)  # [LTE-2, LTE-12]
    lead = dz.shape[:-1] if per_sample else dz.shape[:-2]
    out: Array = namespace(dz).empty((*lead, config.layout.n), dtype=dz.dtype)
    todo = len(config.layout.sites)
    for layer, kept in zip(reversed(list(config.spec)), reversed(cache), strict=True):
        if layer["kind"] != "linear":
            dz = ACTIVATIONS[layer["kind"]][1](dz, kept)
            continue
        todo -= 1
        site = config.layout.sites[layer["name"]]
        part = config.layout.site(out, site.name)  # views into `out`
        dx = _site_vjp(dz, kept, site, heads, part, per_sample=per_sample, need_dx=todo > 0)
        if dx is None:
            break
        dz = dx
    return out


def losses(config: LteConfig, z: Array, y: Array) -> tuple[Array, Array]:
    """Each head's mean loss, and its cotangent under the reduction asked for.  [LTE-8].

    Parameters
    ----------
    config : LteConfig
        ``loss`` and ``reduction``.
    z, y : array (heads, batch, C); in mhlora (batch, C)
        Outputs; one-hot rows, or real targets.

    Returns
    -------
    loss : array (heads,); in mhlora (1,)
        Mean cross-entropy, or squared error mean over all entries, of each head's samples.
    dz : array like z
        d(loss)/dz; with ``reduction="all"`` divided by the number of heads.
    """
    batch, C = z.shape[-2:]
    lead = z.shape[0] if z.ndim == 3 else 1
    if config.loss == "cross_entropy":
        log_yhat, yhat = log_softmax_forward(z)
        loss = -(y * log_yhat).reshape(lead, -1).sum(axis=1) / batch
        dz, count = yhat - y, batch
    else:
        e = z - y
        loss = (e * e).reshape(lead, -1).sum(axis=1) / (batch * C)
        dz, count = 2 * e, batch * C
    if config.reduction == "all" and config.mode == "lte":
        count *= config.heads
    return loss, dz / count


def gradient(config: LteConfig, heads: Heads, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Compute outputs, losses and every head's gradient.  [LTE-3, LTE-8].

    Returns
    -------
    z : array (heads, batch, C) or (batch, C)
    loss : array (heads,) or (1,)
    g : array (heads, n)
    """
    z, cache = forward(config, heads, x)
    loss, dz = losses(config, z, y)
    if config.mode == "mhlora":
        return z, loss, vjp(config, heads, dz[None], cache)[0]
    return z, loss, vjp(config, heads, dz, cache)


def jacobian(config: LteConfig, heads: Heads, x: Array) -> tuple[Array, Array]:
    """Compute outputs and every head's Jacobian Z = dz/dtheta[head].  [LAY-10, LTE-10].

    Returns
    -------
    z : array (heads, batch, C) or (batch, C)
    Z : array (heads, batch * C, n)
        Row b * C + j of a head is the derivative of its output j on its sample b.
    """
    z, cache = forward(config, heads, x)
    xp = namespace(z)
    C = z.shape[-1]
    rows = xp.eye(C, dtype=z.dtype).reshape(C, *(1,) * (z.ndim - 1), C)
    dz = xp.broadcast_to(rows, (C, *z.shape))
    parts = vjp(config, heads, dz, cache, per_sample=True)  # (C, heads, batch, n)
    Z = xp.moveaxis(parts, 0, 2)  # (heads, batch, C, n)
    return z, Z.reshape(Z.shape[0], -1, Z.shape[-1])
