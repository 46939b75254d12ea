"""Layers of the fast route: linear, activations, normalisation, residual, pooling.

Shapes: x (batch * t, i), rows sample by sample, token by token; d (batch * t * k, o), the k
cotangents of one row side by side; H (batch, k, nd). A node remembers what its backward needs.

Rules: ``forward`` returns an array of its own; ``backward`` reads d and returns an array of its
own, except where ``owns_d`` states that d comes fresh from the node above and may be overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loko_ref.arrays import Array
from loko_ref.fast.columns import Block
from loko_ref.fast.gelu import gelu
from loko_ref.network.layers.activation import gelu_tanh_forward


@dataclass
class Run:
    """What one pass shares: sizes, the padding mask, and the Jacobian being filled."""

    # samples, tokens per sample (1 without a token axis), cotangents per sample
    batch: int
    t: int
    k: int = 0
    mask: Array | None = None  # (batch, t): real tokens
    # (batch, k, nd): the columns of the Jacobian that are formed; linears write their own
    H: Array | None = None
    # (rows, 2, width): buffer for the directions of `directions`: one for all norms
    flat: Array | None = None

    def directions(self, n: Array) -> Array:
        """``[1; n]`` row by row, in which a norm has no slope; the next call overwrites it."""
        shape = (n.shape[0], 2, n.shape[1])
        if self.flat is None or self.flat.shape != shape:
            self.flat = np.ones(shape, dtype=n.dtype)
        self.flat[:, 1] = n
        return self.flat


class Node:
    """One layer, with the memory of its last forward pass."""

    owns_d = False
    trained = False

    def bind(self, theta: Array) -> None:
        """Take the trainables from theta (n,)."""

    def forward(self, x: Array, run: Run) -> Array:
        """Return y."""
        raise NotImplementedError

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """Write this node's columns of H; return dx if wanted."""
        raise NotImplementedError


class Lin(Node):
    """Linear with LoRA.  [LAY-1, LAY-2, LAY-3]."""

    def __init__(
        self, weights: Mapping[str, Array], name: str, scale: float, spans: Mapping[str, slice]
    ) -> None:
        self.fixed = {
            key: weights[f"{name}.{key}"]
            for key in ("W", "b", "A", "B", "bA", "bB")
            if f"{name}.{key}" in weights
        }
        self.now = dict(self.fixed)
        self.scale = scale
        self.spans = {key: spans[f"{name}.{key}"] for key in self.fixed if f"{name}.{key}" in spans}
        self.trained = bool(self.spans)
        self.places: dict[str, slice | None] = {}

    def bind(self, theta: Array) -> None:
        """Take the trainables from theta."""
        if self.trained:
            for key, span in self.spans.items():
                self.now[key] = theta[span].reshape(self.fixed[key].shape)

    def forward(self, x: Array, run: Run) -> Array:
        """``y = W x + b + B u + scale bB``, u = scale (A x + bA)."""
        now = self.now
        y = x @ now["W"].T
        if "b" in now:
            y += now["b"]
        if "B" in now:
            u = x @ now["A"].T
            if "bA" in now:
                u += now["bA"]
            u *= self.scale
            y += u @ now["B"].T
            if "bB" in now:
                y += self.scale * now["bB"]
            self.u = u
        if self.trained:
            self.x, self.rows = x, x.shape[0] // run.batch
            self.seen: dict[str, list[Array]] = {}
        return y

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """``dx = W' d + A' du``, du = scale B' d; H by sample.  [FAST-3]."""
        now, du = self.now, None
        if "B" in now:
            du = d @ now["B"]
            du *= self.scale
        if self.trained:
            self._write(d, du, run)
        if not need_dx:
            return None
        dx = d @ now["W"]
        if du is not None:
            dx += du @ now["A"]
        return dx

    def block(self, key: str, batch: int) -> Block:
        """Columns of one parameter as products, after backward.  [FAST-5]."""
        d = [part.reshape(batch, -1, part.shape[1]) for part in self.seen[key]]
        if key in ("A", "B", "W"):
            x = self.u if key == "B" else self.x
        else:
            x = np.full((batch, 1), self.scale if key == "bB" else 1, dtype=self.x.dtype)
        return Block(d=d[0] if len(d) == 1 else np.concatenate(d, axis=1), x=x)

    def inputs(self, key: str) -> int:
        """Width of what a parameter multiplies."""
        shape = self.fixed[key].shape
        return int(shape[1]) if len(shape) == 2 else 1

    def _write(self, d: Array, du: Array | None, run: Run) -> None:
        b, t, k = run.batch, self.rows, run.k
        for key, place in self.places.items():
            source = du if key in ("A", "bA") else d
            assert source is not None
            if place is None:
                self.seen.setdefault(key, []).append(source)
                continue
            assert run.H is not None
            out = run.H[:, :, place]
            if key in ("A", "B", "W"):
                _outer(source, self.u if key == "B" else self.x, out, b, t, k)
            else:
                total = source.reshape(b, t, k, -1).sum(axis=1)
                out[...] = total * self.scale if key == "bB" else total


def _outer(d: Array, x: Array, out: Array, b: int, t: int, k: int) -> None:
    """``out[b, k] = sum_t d[b, t, k] x[b, t]'``; out (b, k, o * i)."""
    o, i = d.shape[1], x.shape[1]
    grid = out.reshape(b, k, o, i)  # a view: only the last axis is split
    if t == 1 and i <= 8 and o > i:  # long loops: one over o for each of the few columns
        rows = d.reshape(b, k, o)
        for j in range(i):
            np.multiply(rows, x[:, j].reshape(b, 1, 1), out=grid[..., j])
    elif t == 1:
        np.multiply(d.reshape(b, k, o, 1), x.reshape(b, 1, 1, i), out=grid)
    elif o <= i:  # (k o, t) (t, i): one product for all cotangents
        both = np.matmul(d.reshape(b, t, k * o).transpose(0, 2, 1), x.reshape(b, t, i))
        grid[...] = both.reshape(b, k, o, i)
    else:
        np.matmul(d.reshape(b, t, k, o).transpose(0, 2, 3, 1), x.reshape(b, 1, t, i), out=grid)


class Act(Node):
    """Elementwise activation: the derivative is kept, and multiplied in.  [LAY-4, LAY-5, LAY-6]."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def forward(self, x: Array, run: Run) -> Array:
        """Return y and keep dy/dx."""
        if self.kind == "relu":
            self.slope = x > 0
            return x * self.slope
        if self.kind == "tanh":
            y = np.tanh(x)
            self.slope = (1 - y) * (1 + y)
            return y
        if self.kind == "gelu_tanh":
            y, self.slope = gelu_tanh_forward(x)  # [LAY-11]
            return y
        y, self.slope = gelu(x)
        return y

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """``dx = slope d``, in place where d may be overwritten."""
        if not need_dx:
            return None
        rows, width = self.slope.shape
        grid = d.reshape(rows, -1, width)
        out = np.multiply(grid, self.slope[:, None], out=grid if self.owns_d else None)
        return out.reshape(d.shape)


class Norm(Node):
    """Layer normalisation, frozen.  [ATT-1]."""

    def __init__(self, g: Array | None, b: Array | None, eps: float, width: int) -> None:
        self.g, self.b, self.eps, self.width = g, b, eps, width

    def forward(self, x: Array, run: Run) -> Array:
        """Two passes for the variance; keep the normalised input and the inverse deviation."""
        n = x - x.mean(axis=-1, keepdims=True)
        n -= n.mean(axis=-1, keepdims=True)
        var = np.einsum("ij,ij->i", n, n)
        var /= self.width
        var += self.eps
        inv = (1 / np.sqrt(var))[:, None]
        n *= inv
        self.n, self.inv = n, inv
        if self.g is None:
            return n.copy()
        y: Array = n * self.g
        if self.b is not None:
            y += self.b
        return y

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """``dx = dn - F' F dn / width``, dn = inv g d, F = [1; n]."""
        if not need_dx:
            return None
        rows, width = self.n.shape
        gain = self.inv if self.g is None else self.inv * self.g
        dn = d.reshape(rows, -1, width) * gain[:, None]
        flat = run.directions(self.n)
        along = dn @ flat.transpose(0, 2, 1)  # (rows, k, 2)
        along *= 1 / width
        dn -= along @ flat
        return dn.reshape(d.shape)


class Stack(Node):
    """Nodes in order."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        for below in self.nodes[:-1]:
            below.owns_d = True
        marks = [j for j, node in enumerate(self.nodes) if node.trained]
        self.trained = bool(marks)
        self.lowest = marks[0] if marks else len(self.nodes)

    def bind(self, theta: Array) -> None:
        """Bind each."""
        for node in self.nodes:
            node.bind(theta)

    def forward(self, x: Array, run: Run) -> Array:
        """Run each in turn."""
        for node in self.nodes:
            x = node.forward(x, run)
        return x

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """From the last to the lowest that is wanted.  [FAST-2]."""
        stop = 0 if need_dx else self.lowest
        dx: Array | None = d
        for j in reversed(range(stop, len(self.nodes))):
            assert dx is not None
            dx = self.nodes[j].backward(dx, run, need_dx or j > stop)
        return dx if need_dx else None


class Residual(Node):
    """``y = x + f(x)``; of x's tokens only the first ``rows`` where the head reads no more.

    [ATT-7, FAST-2]
    """

    def __init__(self, inner: Stack, rows: int | None = None) -> None:
        self.inner, self.rows = inner, rows
        self.trained = inner.trained

    def bind(self, theta: Array) -> None:
        """Bind the branch."""
        self.inner.bind(theta)

    def forward(self, x: Array, run: Run) -> Array:
        """Add x to the branch."""
        y = self.inner.forward(x, run)
        self.t = x.shape[0] // run.batch
        if self.rows is not None and self.rows < self.t:
            x = x.reshape(run.batch, self.t, -1)[:, : self.rows].reshape(y.shape)
        return np.add(y, x, out=y if isinstance(self.inner.nodes[-1], Lin | Fresh) else None)

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """``dx = f'(d) + d``."""
        dx = self.inner.backward(d, run, need_dx)
        if dx is None:
            return None
        if self.rows is None or self.rows >= self.t:
            dx += d
        else:
            head = dx.reshape(run.batch, self.t, -1)[:, : self.rows]
            head += d.reshape(head.shape)
        return dx


class Fresh(Node):
    """A node whose output no other node keeps."""


class Pool(Node):
    """Tokens to one vector.  [ATT-6]."""

    def __init__(self, how: str) -> None:
        self.how = how

    def forward(self, x: Array, run: Run) -> Array:
        """Take the first token, or average those that count."""
        b = run.batch
        tokens = x.reshape(b, -1, x.shape[1])
        self.t = tokens.shape[1]
        if self.how == "cls":
            return tokens[:, 0].copy()
        if run.mask is None:
            self.share: Array | None = None
            return tokens.mean(axis=1)
        share = run.mask.astype(x.dtype)
        share /= share.sum(axis=1, keepdims=True)
        self.share = share  # (batch, t)
        return (share[:, None] @ tokens)[:, 0]

    def backward(self, d: Array, run: Run, need_dx: bool) -> Array | None:
        """Spread d over the tokens."""
        if not need_dx:
            return None
        b, k = run.batch, run.k
        grid = d.reshape(b, 1, k, -1)
        if self.how == "cls":
            if self.t == 1:
                return d
            out = np.zeros((b, self.t, k, d.shape[1]), dtype=d.dtype)
            out[:, :1] = grid
        elif self.share is None:
            out = np.empty((b, self.t, k, d.shape[1]), dtype=d.dtype)
            out[...] = grid * (1 / self.t)
        else:
            out = self.share[:, :, None, None] * grid
        return out.reshape(-1, d.shape[1])
