"""Linear layer with an optional LoRA branch: forward and vjp side by side.

Shapes: x (batch, ..., i); y (batch, ..., o); W (o, i); b (o,); A (r, i); B (o, r); bA (r,);
bB (o,); dy (k, batch, ..., o) with a leading axis of k cotangents.

The axes between batch and i (tokens) are summed over wherever a parameter's cotangent is formed;
the batch axis is summed too, unless ``per_sample`` asks for one cotangent a sample.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from loko_ref.arrays import Array, namespace

__all__ = ["PARAMS", "Cache", "forward", "vjp"]

PARAMS = ("W", "b", "A", "B", "bA", "bB")
"""Parameter names; the last four are the LoRA factors, in packing order."""

Cache = tuple[Array, Array | None, Mapping[str, Array], float]


def forward(x: Array, params: Mapping[str, Array], scale: float = 1.0) -> tuple[Array, Cache]:
    """Affine map plus the low-rank branch.  [LAY-1, LAY-2, LAY-3]

    ``y = W x + b + scale (B u + bB)`` with ``u = A x + bA``.

    Parameters
    ----------
    x : array (batch, ..., i)
        Input.
    params : mapping
        ``W`` (o, i); optional ``b`` (o,), ``A`` (r, i) with ``B`` (o, r), ``bA`` (r,), ``bB`` (o,).
    scale : float
        alpha / r.

    Returns
    -------
    y : array (batch, ..., o)
    cache : tuple
        What :func:`vjp` needs.
    """
    y = x @ params["W"].T  # (batch, ..., o)
    if "b" in params:
        y = y + params["b"]
    u = None
    if "A" in params:
        u = x @ params["A"].T  # (batch, ..., r)
        if "bA" in params:
            u = u + params["bA"]
        v = u @ params["B"].T  # (batch, ..., o)
        if "bB" in params:
            v = v + params["bB"]
        y = y + scale * v
    return y, (x, u, params, scale)


def vjp(
    dy: Array,
    cache: Cache,
    need: Collection[str] = ("A", "B", "bA", "bB"),
    *,
    per_sample: bool = False,
    need_dx: bool = True,
) -> tuple[Array | None, dict[str, Array]]:
    """Pull k cotangents back through :func:`forward`.  [LAY-1, LAY-2, LAY-3, LAY-9]

    Parameters
    ----------
    dy : array (k, batch, ..., o)
        Cotangents of the output.
    cache : tuple
        From :func:`forward`.
    need : collection of str
        Parameters whose cotangents are wanted (those that the layer lacks are passed over).
    per_sample : bool
        Whether to keep the batch axis of the parameters' cotangents.
    need_dx : bool
        Whether the cotangent of the input is wanted.

    Returns
    -------
    dx : array (k, batch, ..., i) or None
    dparams : dict
        ``(k, *shape)`` each, or ``(k, batch, *shape)`` with ``per_sample``.
    """
    x, u, params, scale = cache
    xp = namespace(dy, x)
    k, batch = dy.shape[:2]

    def rows(a: Array) -> Array:  # (k, batch, ..., d) -> (k, batch, tokens, d)
        return a.reshape(k, batch, -1, a.shape[-1])

    def outer(d: Array, inp: Array) -> Array:  # sum over tokens (and batch) of d inp'
        inp = inp.reshape(batch, -1, inp.shape[-1])  # (batch, tokens, in)
        if per_sample:
            return xp.swapaxes(rows(d), -1, -2) @ inp  # (k, batch, out, in)
        flat = d.reshape(k, -1, d.shape[-1])  # (k, batch * tokens, out)
        return xp.swapaxes(flat, -1, -2) @ inp.reshape(-1, inp.shape[-1])  # (k, out, in)

    def total(d: Array) -> Array:  # sum over tokens (and batch) of d
        return rows(d).sum(axis=2) if per_sample else rows(d).sum(axis=(1, 2))

    # y = W x + b
    dx = dy @ params["W"] if need_dx else None  # (k, batch, ..., i)
    dparams: dict[str, Array] = {}
    if "W" in need:
        dparams["W"] = outer(dy, x)
    if "b" in need and "b" in params:
        dparams["b"] = total(dy)
    if "A" in params:
        assert u is not None
        # v = scale (B u + bB)
        dv = scale * dy  # (k, batch, ..., o)
        if "B" in need:
            dparams["B"] = outer(dv, u)
        if "bB" in need and "bB" in params:
            dparams["bB"] = total(dv)
        # u = A x + bA
        du = dv @ params["B"]  # (k, batch, ..., r)
        if "A" in need:
            dparams["A"] = outer(du, x)
        if "bA" in need and "bA" in params:
            dparams["bA"] = total(du)
        if dx is not None:
            dx = dx + du @ params["A"]
    return dx, dparams
