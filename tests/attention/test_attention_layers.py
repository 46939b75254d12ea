"""Normalisation, attention, embeddings and pooling, each against another route.

The unit of the tolerances is machine epsilon times the number of terms in the longest sum (below
100 here) times the size of the result; complex step itself is exact to rounding.
"""

import numpy as np
import pytest

from loko_ref.network.layers import attention, embedding, norm, patchify, pool, prepend

EPS = np.finfo(float).eps
STEP = 1e-30


def complex_step(f, x):
    """Jacobian of f at x, (output size, x size), by one complex step an entry."""
    columns = []
    for j in range(x.size):
        moved = x.astype(complex).reshape(-1)
        moved[j] += 1j * STEP
        columns.append(f(moved.reshape(x.shape)).imag.reshape(-1) / STEP)
    return np.stack(columns, axis=1)


def cotangents(y):
    """The identity: one cotangent an output, leading axis first."""
    return np.eye(y.size).reshape(y.size, *y.shape)


def close(got, expected, terms=100):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= terms * EPS * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("affine", [True, False])
def test_norm_by_complex_step(rng, affine):
    x = rng.standard_normal((2, 3, 5))
    g, b = (rng.standard_normal(5), rng.standard_normal(5)) if affine else (None, None)
    y, cache = norm.forward(x, g, b, eps=1e-3)
    dx, d = norm.vjp(cotangents(y), cache, ("g", "b") if affine else ())
    close(dx.reshape(y.size, -1), complex_step(lambda t: norm.forward(t, g, b, eps=1e-3)[0], x))
    if affine:
        close(d["g"], complex_step(lambda t: norm.forward(x, t, b, eps=1e-3)[0], g))
        close(d["b"], complex_step(lambda t: norm.forward(x, g, t, eps=1e-3)[0], b))


def test_norm_keeps_its_digits_under_a_large_offset(rng):
    """x = 2^20 + a with a on a grid that float64 holds exactly: the offset must not matter."""
    a = rng.integers(-(2**10), 2**10, size=(4, 64)) / 2.0**30
    for offset in (2.0**20, -(2.0**20)):
        plain, _ = norm.forward(a, eps=0.0)
        shifted, _ = norm.forward(a + offset, eps=0.0)
        # the mean's rounding error is gone; what remains is relative to a: 64 terms
        assert np.abs(plain - shifted).max() <= 64 * EPS * np.abs(plain).max()
        one_pass = ((a + offset) ** 2).mean(-1) - (a + offset).mean(-1) ** 2
        assert np.abs(one_pass / a.var(-1) - 1).max() > 0.1  # the wrong way has no digit left


def test_norm_per_sample_sums_to_the_total(rng):
    x, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    _, cache = norm.forward(x, np.ones(5), np.zeros(5))
    _, total = norm.vjp(dy, cache, ("g", "b"))
    none, each = norm.vjp(dy, cache, ("g", "b"), per_sample=True, need_dx=False)
    assert none is None
    for key in "gb":
        assert each[key].shape == (2, 3, 5)
        close(each[key].sum(axis=1), total[key])


def by_loops(q, k, v, heads, mask, causal):
    """Attention written as its definition, one query of one head at a time."""
    batch, tq, d = q.shape
    t, c = k.shape[1], d // heads
    y = np.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            cut = slice(h * c, (h + 1) * c)
            for j in range(tq):
                keys = [
                    i
                    for i in range(t)
                    if (mask is None or mask[b, i]) and not (causal and i > j + t - tq)
                ]
                if not keys:
                    continue
                s = np.array([q[b, j, cut] @ k[b, i, cut] for i in keys]) / np.sqrt(c)
                w = np.exp(s - s.max())
                y[b, j, cut] = (w / w.sum()) @ v[b, keys, cut]
    return y


MASKS = {
    "none": None,
    "padding": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
    "left": np.array([[0, 1, 1, 1], [0, 0, 1, 1]], bool),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tq", [4, 1])
def test_attention_by_definition_and_complex_step(rng, mask, causal, tq):
    mask = MASKS[mask]
    q = rng.standard_normal((2, tq, 6))
    k, v = rng.standard_normal((2, 2, 4, 6))
    y, cache = attention.forward(q, k, v, 3, mask=mask, causal=causal)
    close(y, by_loops(q, k, v, 3, mask, causal))
    d = attention.vjp(cotangents(y), cache)
    for j, x in enumerate((q, k, v)):

        def f(t, j=j):
            args = [q, k, v]
            args[j] = t
            return attention.forward(*args, 3, mask=mask, causal=causal)[0]

        close(d[j].reshape(y.size, -1), complex_step(f, x))


def test_attention_inner_product(rng):
    """<dy, J u> = <J' dy, u>, with J u by complex step."""
    q, k, v = rng.standard_normal((3, 2, 4, 6))
    u = rng.standard_normal((3, 2, 4, 6))
    moved = [a + 1j * STEP * b for a, b in zip((q, k, v), u, strict=True)]
    Ju = attention.forward(*moved, 2)[0].imag / STEP
    dy = rng.standard_normal(Ju.shape)
    back = attention.vjp(dy[None], attention.forward(q, k, v, 2)[1])
    close(np.vdot(dy, Ju), sum(np.vdot(a[0], b) for a, b in zip(back, u, strict=True)))


def test_weights_stay_finite_far_out(rng):
    q, k, v = 1e3 * rng.standard_normal((3, 1, 4, 6))
    for mask in (None, np.array([[1, 1, 0, 0]], bool)):
        y, cache = attention.forward(q, k, v, 2, mask=mask)
        assert np.isfinite(y).all()
        close(cache[3].sum(-1), np.ones((1, 2, 4)))


def test_tables(rng):
    table, index = rng.standard_normal((7, 3)), rng.integers(0, 7, (2, 5))
    y, cache = embedding.lookup_forward(table, index)
    hot = np.eye(7)[index]  # (batch, t, rows)
    close(y, hot @ table)
    dy = rng.standard_normal((4, 2, 5, 3))
    close(embedding.lookup_vjp(dy, cache), np.einsum("btr,kbtd->krd", hot, dy))
    each = embedding.lookup_vjp(dy, cache, per_sample=True)
    close(each, np.einsum("btr,kbtd->kbrd", hot, dy))


def test_positions():
    ids = np.array([[5, 6, 1, 1], [1, 7, 8, 9]])
    assert embedding.positions(ids, None, None).tolist() == [[0, 1, 2, 3]] * 2
    roberta = embedding.positions(ids, ids != 1, 1)
    assert roberta.tolist() == [[2, 3, 1, 1], [1, 2, 3, 4]]
    assert embedding.positions(ids, None, 0).tolist() == [[1, 2, 3, 4]] * 2


def test_patches_are_a_convolution(rng):
    image, kernel = rng.standard_normal((2, 3, 4, 6)), rng.standard_normal((5, 3, 2, 3))
    patches = patchify.forward(image, (2, 3))
    assert patches.shape == (2, 4, 18)
    y = patches @ kernel.reshape(5, -1).T
    for row in range(2):
        for column in range(2):
            window = image[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            by_hand = np.einsum("bchw,ochw->bo", window, kernel)
            close(y[:, 2 * row + column], by_hand)
    back = patchify.vjp(patches[None], (3, 4, 6), (2, 3))
    assert (back[0] == image).all()


def test_prepend(rng):
    x, token = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4))
    y = prepend.forward(x, token)
    assert (y[:, :2] == token).all()
    assert (y[:, 2:] == x).all()
    dx, dtoken = prepend.vjp(cotangents(y), 2)
    close(dx.reshape(y.size, -1), complex_step(lambda t: prepend.forward(t, token), x))
    close(dtoken.reshape(y.size, -1), complex_step(lambda t: prepend.forward(x, t), token))


@pytest.mark.parametrize("how", ["cls", "mean"])
@pytest.mark.parametrize("mask", MASKS)
def test_pool(rng, how, mask):
    mask, x = MASKS[mask], rng.standard_normal((2, 4, 3))
    y = pool.forward(x, how, mask)
    dx = pool.vjp(cotangents(y), how, 4, mask)
    expected = complex_step(lambda t: pool.forward(t, how, mask), x)
    close(dx.reshape(y.size, -1), expected)
    if how == "mean" and mask is not None:
        close(y[1], x[1][mask[1]].mean(axis=0))
