"""Right programs of other algebra than the plain formulas, in the inputs' own dtype.

Networks: LoRA merged into W before the forward pass, attention block by block with running sums
(flash attention), Welford's variance. Filters: sequential updates, Cholesky and square-root forms,
some of which return a gain that they do not use.
"""

import einsum_loko
import numpy as np
import scipy.linalg
from einsum_network import Network, ein, linears


class Merged(Network):
    """``W + s B A`` first; then ``dA = s B' dW``, ``dB = s dW A'``."""

    def linear(self, layer, x, T):
        if not layer.get("lora") or layer["lora"].get("bias"):
            return super().linear(layer, x, T)
        name, (W, b, A, B) = layer["name"], self.own(layer, "W", "b", "A", "B")
        scale = layer["lora"]["alpha"] / len(A)
        W = W + self.dtype.type(scale) * (B @ A)
        y = ein("oi,...i->...o", W, x)
        Ty = ein("oi,...in->...on", W, T)
        (r, i), o = A.shape, len(B)
        dA = scale * ein("ok,...i->...oki", B, x)  # s B' dW, an output at a time
        at = self.start[f"{name}.A"]
        Ty[..., at : at + r * i] += dA.reshape(*y.shape, r * i).astype(self.dtype)
        down = scale * ein("...i,ki->...k", x, A)
        at = self.start[f"{name}.B"]
        for k in range(o):
            Ty[..., k, at + k * r : at + (k + 1) * r] += down.astype(self.dtype)
        return (y if b is None else y + b), Ty


class Flash(Network):
    """Keys two at a time, with a running largest score and running sums."""

    def attention(self, layer, x, T):
        q, k, v, o = linears([layer])
        (q, Tq), (k, Tk), (v, Tv) = (self.linear(site, x, T) for site in (q, k, v))
        t, c = x.shape[1], q.shape[-1] // layer["heads"]
        see = np.ones((len(x), t, t), bool)
        if self.mask is not None:
            see &= self.mask[:, None]
        if layer.get("causal"):
            see &= np.tri(t, dtype=bool)
        root = np.sqrt(self.dtype.type(c))
        y, Ty = np.empty_like(v), np.empty_like(Tv)
        for h in range(layer["heads"]):
            at = slice(h * c, (h + 1) * c)
            top = np.full((len(x), t, 1), -np.inf, self.dtype)
            total = np.zeros_like(top)
            out, mean = np.zeros_like(q[..., at]), np.zeros((len(x), t, self.n), self.dtype)
            Tout = np.zeros((*out.shape, self.n), self.dtype)
            for start in range(0, t, 2):
                some = slice(start, start + 2)
                s = ein("bqc,bkc->bqk", q[..., at], k[:, some, at]) / root
                s = np.where(see[..., some], s, -np.inf)
                Ts = ein("bqcn,bkc->bqkn", Tq[:, :, at], k[:, some, at])
                Ts = (Ts + ein("bqc,bkcn->bqkn", q[..., at], Tk[:, some, at])) / root
                new = np.maximum(top, s.max(axis=-1, keepdims=True))
                safe = np.where(np.isfinite(new), new, 0)
                less = np.exp(np.where(np.isfinite(top), top - safe, -np.inf)).astype(self.dtype)
                a = np.exp(s - safe)
                total = total * less + a.sum(axis=-1, keepdims=True)
                out = out * less + ein("bqk,bkc->bqc", a, v[:, some, at])
                mean = mean * less + ein("bqk,bqkn->bqn", a, Ts)
                Tout = Tout * less[..., None] + ein("bqk,bqkn,bkc->bqcn", a, Ts, v[:, some, at])
                Tout += ein("bqk,bkcn->bqcn", a, Tv[:, some, at])
                top = new
            total = np.where(total > 0, total, 1)
            y[..., at] = out / total
            mean = mean / total
            Ty[:, :, at] = Tout / total[..., None] - y[..., at][..., None] * mean[:, :, None]
        return self.linear(o, y, Ty)


class Welford(Network):
    """Mean and variance in one pass, an entry at a time."""

    def layernorm(self, layer, x, T):
        d = x.shape[-1]
        mean, square = np.zeros_like(x[..., 0]), np.zeros_like(x[..., 0])
        for k in range(d):
            step = x[..., k] - mean
            mean = mean + step / (k + 1)
            square = square + step * (x[..., k] - mean)
        x, T = x - mean[..., None], T - T.mean(axis=-2, keepdims=True)
        variance = square[..., None] / d + self.dtype.type(layer.get("eps", 1e-5))
        Tv = ein("...i,...in->...n", x, T)[..., None, :] / d
        s = 1 / np.sqrt(variance)
        y, T = x * s, (T - x[..., None] * (Tv / variance[..., None])) * s[..., None]
        if layer.get("affine", True):
            g, b = self.own(layer, "g", "b")
            y, T = g * y + b, g[:, None] * T
        return y, T


NETWORKS = {"merged": Merged, "flash": Flash, "welford": Welford}


def by_solve(P, H, R):
    S = H @ P @ H.T + R
    return S, np.linalg.solve(S, H @ P).T


def sequential(theta, P, H, e, R):
    """One output at a time, after R's factor has made them independent."""
    L = np.linalg.cholesky(R)
    Hw, ew = (scipy.linalg.solve_triangular(L, a, lower=True) for a in (H, e))
    new, move = P, np.zeros_like(theta)
    for h, r in zip(Hw, ew, strict=True):
        Ph = new @ h
        k = Ph / (h @ Ph + 1)
        move = move + k * (r - h @ move)
        new = new - np.outer(k, Ph)
    S, K = by_solve(P, H, R)
    return {"S": S, "K": K, "theta": theta + move, "P": (new + new.T) / 2}


def cholesky(theta, P, H, e, R):
    """``theta+`` and ``P+`` by the factor of S; K is returned and not used."""
    S, K = by_solve(P, H, R)
    L = np.linalg.cholesky(S)
    V = scipy.linalg.solve_triangular(L, H @ P, lower=True)
    w = scipy.linalg.solve_triangular(L, e, lower=True)
    return {"S": S, "K": K, "theta": theta + V.T @ w, "P": P - V.T @ V}


def square_root(theta, P, H, e, R):
    """The array algorithm: one QR of ``[R^1/2, 0; P^1/2 H', P^1/2]``; K is a side product."""
    m, n = H.shape
    RT, PT = np.linalg.cholesky(R).T, np.linalg.cholesky(P).T
    array = np.vstack([np.hstack([RT, np.zeros((m, n), P.dtype)]), np.hstack([PT @ H.T, PT])])
    T = np.linalg.qr(array, mode="r")
    ST, G, new = T[:m, :m], T[:m, m:], T[m:, m:]
    w = scipy.linalg.solve_triangular(ST, e, trans="T")
    S, K = by_solve(P, H, R)
    return {"S": S, "K": K, "theta": theta + G.T @ w, "P": new.T @ new}


FILTERS = {"sequential": sequential, "cholesky": cholesky, "square-root": square_root}


def updates(form):
    """Implement both updates by a form of the dense one."""

    def dense(*, theta, P, H, e, R):
        return form(theta, P, H, e, R)

    def diagonal(*, theta, p, H, e, R, diagonal="decoupled"):
        out = form(theta, np.diag(p), H, e, R)
        P = out.pop("P")
        new = einsum_loko.variational(p, H, R) if diagonal == "variational" else np.diag(P).copy()
        return out | {"p": new}

    return {"kalman.dense_update": dense, "kalman.diagonal_update": diagonal}
