"""The network of einsum_loko: outputs and Jacobian by forward mode, in the inputs' own dtype.

Shapes: x (batch, ..., d); T (batch, ..., d, n) its derivative, a tangent for every parameter;
mask, see true where a token is real, where a query may see a key.
"""

import numpy as np
from scipy.special import erf

ein = np.einsum


def linears(spec):
    """Every linear with its full name, in packing order."""
    for layer in spec:
        if layer["kind"] == "linear":
            yield layer
        elif layer["kind"] == "attention":
            for key in "qkvo":
                yield layer[key] | {"name": f"{layer['name']}.{key}"}
        elif layer["kind"] == "residual":
            yield from linears(layer["layers"])


def factors(spec):
    """Name and shape of every LoRA factor, in packing order."""
    shapes = {}
    for layer in linears(spec):
        if layer.get("lora"):
            r, name = layer["lora"]["r"], layer["name"]
            shapes[f"{name}.A"], shapes[f"{name}.B"] = (r, layer["in"]), (layer["out"], r)
            if layer["lora"].get("bias"):
                shapes[f"{name}.bA"], shapes[f"{name}.bB"] = (r,), (layer["out"],)
    return shapes


def split(spec, theta):
    out = {}
    for name, shape in factors(spec).items():
        size = int(np.prod(shape))
        out[name], theta = theta[:size].reshape(shape), theta[size:]
    return out


def softmax(z):
    lse = np.logaddexp.reduce(z, axis=-1, keepdims=True)
    return np.exp(z - lse)


def gelu(x):
    return x * (1 + erf(x * np.sqrt(x.dtype.type(0.5)))) / 2


def gelu_slope(x):
    one = x.dtype.type(1)
    return (one + erf(x / np.sqrt(2 * one))) / 2 + x * np.exp(-x * x / 2) / np.sqrt(
        2 * one * x.dtype.type(np.pi)
    )


class Network:
    def __init__(self, spec, weights, dtype):
        self.spec, self.weights, self.dtype, self.mask = spec, weights, dtype, None
        self.start, self.n = {}, 0
        for name, shape in factors(spec).items():
            self.start[name] = self.n
            self.n += int(np.prod(shape))

    def __call__(self, x):
        """z (batch, C), Z (batch C, n)."""
        T = np.zeros((*x.shape, self.n), self.dtype)
        y, T = self.layers(self.spec, x, T)
        return y, T.reshape(-1, self.n)

    def own(self, layer, *keys):
        return [self.weights.get(f"{layer['name']}.{key}") for key in keys]

    def still(self, y):
        """y, and that no parameter moves it."""
        return y, np.zeros((*y.shape, self.n), self.dtype)

    def layers(self, layers, x, T):
        for layer in layers:
            kind = getattr(self, layer["kind"], None)
            if kind is None:
                raise NotImplementedError(f"a layer of kind {layer['kind']}")
            x, T = kind(layer, x, T)
        return x, T

    def linear(self, layer, x, T):
        name = layer["name"]
        W, b, A, B, bA, bB = self.own(layer, "W", "b", "A", "B", "bA", "bB")
        y = ein("oi,...i->...o", W, x)
        Ty = ein("oi,...in->...on", W, T)
        if b is not None:
            y = y + b
        if not layer.get("lora"):
            return y, Ty
        (r, i), o = A.shape, len(B)
        scale = layer["lora"]["alpha"] / r
        u = ein("ri,...i->...r", A, x)
        D = ein("ri,...in->...rn", A, T)
        at = self.start[f"{name}.A"]
        for k in range(r):
            D[..., k, at + k * i : at + (k + 1) * i] += x
        if bA is not None:
            u = u + bA
            for k in range(r):
                D[..., k, self.start[f"{name}.bA"] + k] += 1
        v = ein("or,...r->...o", B, u)
        V = ein("or,...rn->...on", B, D)
        at = self.start[f"{name}.B"]
        for k in range(o):
            V[..., k, at + k * r : at + (k + 1) * r] += u
        if bB is not None:
            v = v + bB
            for k in range(o):
                V[..., k, self.start[f"{name}.bB"] + k] += 1
        return y + scale * v, Ty + scale * V

    def tanh(self, layer, x, T):
        y = np.tanh(x)
        return y, T * (1 - np.square(y))[..., None]

    def relu(self, layer, x, T):
        return x * (x > 0), T * (x > 0)[..., None]

    def gelu(self, layer, x, T):
        return gelu(x), T * gelu_slope(x)[..., None]

    def gelu_tanh(self, layer, x, T):
        c = np.sqrt(2 / self.dtype.type(np.pi))
        a = c * (x + 0.044715 * x**3)
        slope = (1 + np.tanh(a)) / 2 + x / (2 * np.cosh(a) ** 2) * c * (1 + 0.134145 * x * x)
        return x * (1 + np.tanh(a)) / 2, T * slope[..., None]

    def softmax(self, layer, x, T):
        y = softmax(x)
        return y, y[..., None] * (T - ein("...i,...in->...n", y, T)[..., None, :])

    def log_softmax(self, layer, x, T):
        y = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        return y, T - ein("...i,...in->...n", softmax(x), T)[..., None, :]

    def layernorm(self, layer, x, T):
        d = x.shape[-1]
        x, T = x - x.sum(axis=-1, keepdims=True) / d, T - T.sum(axis=-2, keepdims=True) / d
        variance = ein("...i,...i->...", x, x)[..., None] / d + layer.get("eps", 1e-5)
        Tv = ein("...i,...in->...n", x, T)[..., None, :] / d  # half the variance's tangent
        y = x / np.sqrt(variance)
        T = (T - x[..., None] * (Tv / variance[..., None])) / np.sqrt(variance)[..., None]
        if layer.get("affine", True):
            g, b = self.own(layer, "g", "b")
            y, T = g * y + b, g[:, None] * T
        return y, T

    def residual(self, layer, x, T):
        y, Ty = self.layers(layer["layers"], x, T)
        return y + x, Ty + T

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
            s = ein("bqc,bkc->bqk", q[..., at], k[..., at]) / root
            Ts = ein("bqcn,bkc->bqkn", Tq[:, :, at], k[..., at])
            Ts = (Ts + ein("bqc,bkcn->bqkn", q[..., at], Tk[:, :, at])) / root
            top = np.where(see, s, -np.inf).max(axis=-1, keepdims=True)
            a = np.exp(np.where(see, s - np.where(np.isfinite(top), top, 0), -np.inf))
            total = a.sum(axis=-1, keepdims=True)
            a = a / np.where(total > 0, total, 1)
            Ta = a[..., None] * (Ts - ein("bqk,bqkn->bqn", a, Ts)[:, :, None])
            y[..., at] = ein("bqk,bkc->bqc", a, v[..., at])
            Ty[:, :, at] = ein("bqkn,bkc->bqcn", Ta, v[..., at])
            Ty[:, :, at] += ein("bqk,bkcn->bqcn", a, Tv[:, :, at])
        return self.linear(o, y, Ty)

    def embedding(self, layer, x, T):
        inputs = layer.get("inputs") or ["ids"]
        x = x.astype(int).reshape(len(x), len(inputs), -1)
        channel = dict(zip(inputs, np.moveaxis(x, 1, 0), strict=True))
        ids = channel["ids"]
        token, position, types = self.own(layer, "token", "position", "type")
        real = np.ones(ids.shape, bool) if layer.get("pad") is None else ids != layer["pad"]
        if "mask" in channel:
            self.mask = channel["mask"] != 0
        elif layer.get("pad") is not None:
            self.mask = real
        rows = np.arange(ids.shape[1])
        if layer.get("start") is not None:
            rows = layer["start"] + np.where(real, np.add.accumulate(real, axis=1, dtype=int), 0)
        y = token[ids] + position[rows]
        if types is not None:
            y = y + types[channel.get("types", np.zeros_like(ids))]
        return self.still(y)

    def patchify(self, layer, x, T):
        (channels, h, w), (ph, pw) = layer["image"], layer["patch"]
        image = x.reshape(len(x), channels, h, w)
        corners = [(i, j) for i in range(0, h, ph) for j in range(0, w, pw)]
        patches = [image[:, :, i : i + ph, j : j + pw].reshape(len(x), -1) for i, j in corners]
        return self.still(np.stack(patches, axis=1))

    def prepend(self, layer, x, T):
        (token,) = self.own(layer, "token")
        first, still = self.still(np.repeat(token[None], len(x), axis=0))
        if self.mask is not None:
            self.mask = np.hstack([np.ones(first.shape[:2], bool), self.mask])
        return np.hstack([first, x]), np.hstack([still, T])

    def positions(self, layer, x, T):
        (table,) = self.own(layer, "position")
        return x + table[: x.shape[1]], T

    def pool(self, layer, x, T):
        if layer["how"] == "cls":
            return x[:, 0], T[:, 0]
        w = np.ones(x.shape[:2], bool) if self.mask is None else self.mask
        w = w / w.sum(axis=1, keepdims=True, dtype=self.dtype)
        return ein("bt,btd->bd", w, x), ein("bt,btdn->bdn", w, T)


def network(spec, weights, x):
    return Network(spec, weights, x.dtype)(x)
