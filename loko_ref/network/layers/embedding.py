"""The two ends of a transformer: from ids or images to tokens, and from tokens to one vector.

Shapes: ids, types (batch, t) of int; mask (batch, t) of bool; image (batch, channels, h, w);
tokens x (batch, t, d); y (batch, d) where pooled; dy with a leading axis of k cotangents.
"""

from __future__ import annotations

from loko_ref.arrays import Array, namespace

__all__ = [
    "lookup_forward",
    "lookup_vjp",
    "patchify",
    "pool_forward",
    "pool_vjp",
    "positions",
    "prepend_forward",
    "prepend_vjp",
    "unpatchify",
]


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
        Where a token counts, for RoBERTa's rule.
    start : int or None
        None: token j reads row j (BERT). A number: RoBERTa's rule, tokens that count are numbered
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


def patchify(image: Array, patch: tuple[int, int]) -> Array:
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


def unpatchify(dx: Array, shape: tuple[int, int, int], patch: tuple[int, int]) -> Array:
    """Transpose (and inverse) of :func:`patchify`, with a leading axis of cotangents.  [ATT-5]."""
    k, batch = dx.shape[:2]
    (channels, h, w), (ph, pw) = shape, patch
    a = dx.reshape(k, batch, h // ph, w // pw, channels, ph, pw)
    return a.transpose(0, 1, 4, 2, 5, 3, 6).reshape(k, batch, channels, h, w)


def prepend_forward(x: Array, token: Array) -> Array:
    """Put the learnt tokens (count, d) before each sample's own ([CLS]).  [ATT-5]."""
    xp = namespace(x, token)
    head = xp.broadcast_to(token, (x.shape[0], *token.shape))
    return xp.concatenate([head, x], axis=1)


def prepend_vjp(dy: Array, count: int, *, per_sample: bool = False) -> tuple[Array, Array]:
    """Split the cotangent: (dx, dtoken), dtoken (k, count, d) or (k, batch, count, d).  [ATT-5]."""
    head = dy[:, :, :count]
    return dy[:, :, count:], head if per_sample else head.sum(axis=1)


def pool_forward(x: Array, how: str, mask: Array | None = None) -> Array:
    """One vector a sample: the first token (``cls``), or the mean of those that count.  [ATT-6]."""
    if how == "cls":
        return x[:, 0]
    if mask is None:
        return x.mean(axis=1)
    real = mask.astype(x.real.dtype)[:, :, None]
    return (x * real).sum(axis=1) / real.sum(axis=1)


def pool_vjp(dy: Array, how: str, t: int, mask: Array | None = None) -> Array:
    """Spread the cotangent (k, batch, d) over the tokens: (k, batch, t, d).  [ATT-6]."""
    xp = namespace(dy)
    k, batch, d = dy.shape
    if how == "cls":
        dx = xp.zeros((k, batch, t, d), dtype=dy.dtype)
        dx[:, :, 0] = dy
        return dx
    if mask is None:
        return xp.broadcast_to((dy / t)[:, :, None], (k, batch, t, d))
    real = mask.astype(dy.dtype)[:, :, None]  # (batch, t, 1)
    return dy[:, :, None] * (real / real.sum(axis=1, keepdims=True))
