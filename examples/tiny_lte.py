"""LTE in one sitting: heads of low rank trained side by side, merged into one weight; NumPy alone.

    python examples/tiny_lte.py

N heads share a weight W and each has factors A_h, B_h of rank r. Each takes SGD steps of its own,
on its own part of the batch; it sees W as last merged plus what it has learned since,

    W + scale (B_h A_h - B'_h A'_h)    (A', B': its factors at the last merge; nothing before it).

Every few steps a merge adds the mean of what all have learned: W = W_0 + scale / N sum_h B_h A_h.
With a reset, B = 0 and A drawn anew after each merge, the rank of W - W_0 grows beyond N r.

Shapes: W (o, i); A (N, r, i); B (N, o, r); x (N, k, i), k samples for each head; z, y (N, k, o).
"""

import numpy as np


def softmax(z):
    """Probabilities along the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gradients(W, A, B, scale, old, x, y):
    """Each head's dloss / dA and dloss / dB; the mean is over the samples of all heads."""
    seen = W + scale * (B @ A)  # (N, o, i)
    if old is not None:
        seen = seen - scale * (old[1] @ old[0])
    z = np.einsum("hoi,hki->hko", seen, x)
    dz = (softmax(z) - y) / (x.shape[0] * x.shape[1])  # of the cross-entropy
    dW = np.einsum("hko,hki->hoi", dz, x)  # (N, o, i)
    return scale * B.transpose(0, 2, 1) @ dW, scale * dW @ A.transpose(0, 2, 1)


def train(W_0, A, xs, ys, *, scale, lr, merge_every, redraw=None):
    """Train on batches xs (steps, N k, i), ys (steps, N k, o) one-hot; W, A, B at the end.

    redraw(number of the merge) gives the new A after it; without it nothing is reset.
    """
    N, r, i = A.shape
    W = base = W_0  # the weight now, and at the last reset
    B, old = np.zeros((N, W_0.shape[0], r)), None
    for step, (x, y) in enumerate(zip(xs, ys, strict=True), start=1):
        x, y = x.reshape(N, -1, i), y.reshape(N, -1, W_0.shape[0])  # each head its part
        dA, dB = gradients(W, A, B, scale, old, x, y)
        A, B = A - lr * dA, B - lr * dB
        if step % merge_every == 0:
            W = base + scale / N * (B @ A).sum(axis=0)
            old = (A, B)
            if redraw is not None:
                base, A, B, old = W, redraw(step // merge_every), np.zeros_like(B), None
    return W, A, B


def accuracy(W, x, labels):
    """Share of the samples that W classifies correctly."""
    return np.mean((x @ W.T).argmax(axis=1) == labels)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    N, r, k, i, o, steps = 4, 1, 8, 16, 10, 200
    right = rng.standard_normal((o, i))
    xs = rng.standard_normal((steps, N * k, i))
    labels = (xs @ right.T).argmax(axis=2)
    ys = np.eye(o)[labels]
    W_0 = 0.1 * rng.standard_normal((o, i))
    A = rng.standard_normal((N, r, i))
    options = {"scale": 2.0, "lr": 0.5, "merge_every": 10}
    x, wanted = xs.reshape(-1, i), labels.reshape(-1)
    print(f"before: {accuracy(W_0, x, wanted):.0%} classified correctly")
    for name, redraw in (
        ("no reset", None),
        ("reset", lambda merge: rng.standard_normal((N, r, i))),
    ):
        W, _, _ = train(W_0, A, xs, ys, **options, redraw=redraw)
        rank = np.linalg.matrix_rank(W - W_0)
        print(f"{name}: {accuracy(W, x, wanted):.0%}, W - W_0 of rank {rank}; N r = {N * r}")
