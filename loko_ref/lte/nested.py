"""The heads' networks of any spec, one head after another: attention, norms, tables, patches.

Shapes: x (heads, batch, ...) each head's samples as the first layer takes them; z (heads, batch,
C); dz (k..., heads, batch, C), any leading axes of cotangents; theta (heads, n); W (o, i) shared or
(heads, o, i) a copy each; A (heads, r, i); B (heads, o, r); bA (heads, r); bB (heads, o).

A head with a shared weight is a plain network (:mod:`loko_ref.network.model`) whose sites have rank
2 r: ``delta - delta' = scale [B, -B'][A; A']``; mhlora is one whose sites have rank heads * r. So
the layers are those of :mod:`loko_ref.network.layers`, and a head's numbers depend on that head
alone.  [LTE-12]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loko_ref.arrays import Array, namespace
from loko_ref.lte.config import LteConfig
from loko_ref.lte.layout import Heads, stack_heads
from loko_ref.network.layers import Context, Request, backward, run
from loko_ref.network.spec import map_linears


def _alone(config: LteConfig, heads: Heads, row: int) -> dict[str, Array]:
    """Every array of one head's network.  [LTE-3, LTE-4, LTE-7].

    With a shared weight ``A = [A; A']``, ``B = [B, -B']``, ``bA = [bA; bA']``, ``bB = bB - bB'``.
    """
    layout = config.layout
    weights = {}
    for name, value in heads.weights.items():
        copied = value.ndim > config.template.weights[name].ndim
        weights[name] = value[row] if copied else value
    weights |= {name: layout.take(heads.theta[row], name) for name in layout.names}
    if heads.merged is None:
        return weights
    xp = namespace(heads.theta)
    for site in layout.sites.values():
        if not site.lora:
            continue
        now, old = (layout.site(rows[row], site.name) for rows in (heads.theta, heads.merged))
        both = {
            "A": xp.concatenate([now["A"], old["A"]], axis=0),
            "B": xp.concatenate([now["B"], -old["B"]], axis=1),
        }
        if "bA" in now:
            both["bA"] = xp.concatenate([now["bA"], old["bA"]], axis=0)
            both["bB"] = now["bB"] - old["bB"]
        weights |= {f"{site.name}.{key}": value for key, value in both.items()}
    return weights


def joint_network(config: LteConfig, heads: Heads) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Spec and arrays of the one network of mhlora: rank heads * r, scale by name.  [LTE-2].

    ``mean`` is alpha / (heads * r).
    """
    N, weights = heads.theta.shape[0], dict(heads.weights)
    for site in config.layout.sites.values():
        p = config.layout.site(heads.theta, site.name)
        # the heads' replicas are equal: they got equal gradients from equal starts
        parts = stack_heads(p) if site.lora else {key: value[0] for key, value in p.items()}
        weights |= {f"{site.name}.{key}": value for key, value in parts.items()}

    def widen(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        if not layer.get("lora"):
            return layer
        wide = {"r": N * layer["lora"]["r"]}
        if config.scaling == "sum":  # the scale stays alpha / r
            wide["alpha"] = N * layer["lora"]["alpha"]
        return {**layer, "lora": layer["lora"] | wide}

    return map_linears(config.spec, widen), weights


def forward(config: LteConfig, heads: Heads, x: Array) -> tuple[Array, list[Any]]:
    """Compute what :func:`loko_ref.lte.heads.forward` does.  [LTE-12].

    The cache has one entry per head; in mhlora the joint spec, and one.
    """
    if config.mode == "mhlora":
        spec, weights = joint_network(config, heads)
        z, kept = run(spec, weights, x, Context())
        return z, [spec, kept]
    outputs, caches = [], []
    for row in range(heads.theta.shape[0]):
        z, kept = run(config.spec, _alone(config, heads, row), x[row], Context())
        outputs.append(z)
        caches.append(kept)
    return namespace(heads.theta).stack(outputs), caches


def vjp(
    config: LteConfig, heads: Heads, dz: Array, cache: list[Any], *, per_sample: bool = False
) -> Array:
    """Compute what :func:`loko_ref.lte.heads.vjp` does.  [LAY-9, LTE-12]."""
    xp, names = namespace(dz), config.layout.names
    request = Request(frozenset(names), per_sample, need_dx=False)
    if config.mode == "mhlora":
        spec, kept = cache
        _, found = backward(spec, dz, kept, request)
        parts = [split_by_head(config, heads, name, found[name]) for name in names]
        return xp.concatenate(parts, axis=-1)
    lead, rows = dz.shape[:-3], []
    for row, kept in enumerate(cache):
        dz_row = dz[..., row, :, :].reshape(-1, *dz.shape[-2:])  # (k, batch, C)
        _, found = backward(config.spec, dz_row, kept, request)
        rows.append(xp.concatenate([_own(config, name, found[name]) for name in names], axis=-1))
    out = xp.stack(rows, axis=1)  # (k, heads[, batch], n)
    return out.reshape(*lead, *out.shape[1:])


def _shape(config: LteConfig, name: str) -> tuple[int, ...]:
    layer, key = name.rsplit(".", 1)
    return config.layout.sites[layer].parts[key][1]


def _own(config: LteConfig, name: str, value: Array) -> Array:
    """Flatten (k[, batch], *shape); of [A; A'] and [B, -B'] the part before the factors merged."""
    shape = _shape(config, name)
    front: tuple[Any, ...] = (..., *(slice(size) for size in shape))
    value = value[front]
    return value.reshape(*value.shape[: -len(shape)], -1)


def split_by_head(config: LteConfig, heads: Heads, name: str, value: Array) -> Array:
    """Return each head's block of the cotangent of a joint array.  [LTE-2].

    Parameters
    ----------
    config, heads
        As for :func:`forward`.
    name : str
        ``layer.part``.
    value : array (k[, batch], ...)
        Cotangent of what :func:`stack_heads` gives under this name.

    Returns
    -------
    array (k, heads[, batch], size)
    """
    xp, key = namespace(value), name.rsplit(".", 1)[1]
    N, shape = heads.theta.shape[0], _shape(config, name)
    lead = value.shape[: -len(shape)]  # (k[, batch])
    if key == "A" or key == "bA":
        blocks = value.reshape(*lead, N, *shape)
    elif key == "B":
        o, r = shape
        blocks = xp.moveaxis(value.reshape(*lead, o, N, r), -2, -3)
    else:  # bB and the replicas are one for all heads
        blocks = xp.broadcast_to(value[(*(slice(None) for _ in lead), None)], (*lead, N, *shape))
    return xp.moveaxis(blocks.reshape(*lead, N, -1), len(lead), 1)
