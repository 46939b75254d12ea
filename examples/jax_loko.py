"""LoKO as a pure JAX function, its Jacobian by jax.jacfwd; shares no code with the oracle.

Check it with ``loko-ref verify examples/jax_loko.py``.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp

from loko_ref.conformance.implementations.frameworks import from_step

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # to compile takes longer than to run

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
}


class Network:
    """Outputs of one sample; theta is used up from its start, in packing order."""

    def __init__(self, theta, weights):
        self.theta, self.weights, self.mask = theta, weights, None

    def take(self, *shape):
        size = math.prod(shape)
        taken, self.theta = self.theta[:size].reshape(shape), self.theta[size:]
        return taken

    def own(self, layer, key):
        return self.weights[f"{layer['name']}.{key}"]

    def __call__(self, layers, x):
        for layer in layers:
            if layer["kind"] in ACTIVATIONS:
                x = ACTIVATIONS[layer["kind"]](x)
            elif hasattr(self, layer["kind"]):
                x = getattr(self, layer["kind"])(layer, x)
            else:
                raise NotImplementedError(f"a layer of kind {layer['kind']}")
        return x

    def linear(self, layer, x):
        y = x @ self.own(layer, "W").T + self.weights.get(f"{layer['name']}.b", 0)
        lora = layer.get("lora")
        if lora:
            r, i, o = lora["r"], layer["in"], layer["out"]
            A, B = self.take(r, i), self.take(o, r)
            bA, bB = (self.take(r), self.take(o)) if lora.get("bias") else (0, 0)
            y = y + lora["alpha"] / r * ((x @ A.T + bA) @ B.T + bB)
        return y

    def layernorm(self, layer, x):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + layer.get("eps", 1e-5))
        return x * self.own(layer, "g") + self.own(layer, "b") if layer.get("affine", True) else x

    def residual(self, layer, x):
        return x + self(layer["layers"], x)

    def attention(self, layer, x):
        t, heads = len(x), layer["heads"]
        site = {key: layer[key] | {"name": f"{layer['name']}.{key}"} for key in "qkvo"}
        q, k, v = (self.linear(site[key], x).reshape(t, heads, -1) for key in "qkv")
        see = jnp.ones((t, t), bool) if self.mask is None else jnp.tile(self.mask, (t, 1))
        if layer.get("causal"):
            see = jnp.tril(see)
        s = jnp.einsum("qhc,khc->hqk", q, k) / q.shape[-1] ** 0.5
        a = jax.nn.softmax(s, where=see)  # 0 where hidden, also where all is hidden
        return self.linear(site["o"], jnp.einsum("hqk,khc->qhc", a, v).reshape(t, -1))

    def embedding(self, layer, x):
        inputs, pad, start = layer.get("inputs") or ["ids"], layer.get("pad"), layer.get("start")
        x = x.astype(int).reshape(len(inputs), -1)
        channel = {name: x[at] for at, name in enumerate(inputs)}
        ids = channel["ids"]
        real = jnp.ones_like(ids, bool) if pad is None else ids != pad
        if "mask" in channel:
            self.mask = channel["mask"] != 0
        elif pad is not None:
            self.mask = real
        row = jnp.arange(len(ids)) if start is None else start + jnp.cumsum(real) * real
        y = self.own(layer, "token")[ids] + self.own(layer, "position")[row]
        if layer.get("types"):
            y = y + self.own(layer, "type")[channel.get("types", jnp.zeros_like(ids))]
        return y

    def patchify(self, layer, x):
        (channels, h, w), (ph, pw) = layer["image"], layer["patch"]
        x = x.reshape(channels, h // ph, ph, w // pw, pw)
        return jnp.einsum("cyixj->yxcij", x).reshape(-1, channels * ph * pw)

    def prepend(self, layer, x):
        token = self.own(layer, "token")
        if self.mask is not None:
            self.mask = jnp.concatenate([jnp.ones(len(token), bool), self.mask])
        return jnp.concatenate([token, x])

    def positions(self, layer, x):
        return x + self.own(layer, "position")[: len(x)]

    def pool(self, layer, x):
        if layer["how"] == "cls":
            return x[0]
        return x.mean(axis=0, where=None if self.mask is None else self.mask[:, None])


@functools.cache
def compiled(spec):
    """``(theta, x, weights) -> Z (batch, C, n), z (batch, C)`` of a spec in JSON."""

    def network(theta, row, weights):
        z = Network(theta, weights)(json.loads(spec), row)
        return z, z

    return jax.jit(jax.vmap(jax.jacfwd(network, has_aux=True), (None, 0, None)))


def estimate(noise, R, e, HpH, beta):
    if noise == "fixed":
        return R
    sample = jnp.outer(e, e) + (HpH if noise != "ema_innovation" else 0)
    return beta * R + (1 - beta) * sample


def step(x, y, theta, weights, spec, observation, noise, timing, beta, covariance, diagonal, lam, q,
         center, p=None, P=None, R=None):  # fmt: skip
    if covariance != "diagonal" or center:
        raise NotImplementedError("covariance='dense', center")
    p_pred = p / lam + q
    network = compiled(json.dumps(spec))
    Z, z = network(theta, x, weights)
    batch, C = z.shape
    Z = Z.reshape(batch * C, -1)
    yhat = z if observation == "gaussian" else jax.nn.softmax(z, axis=-1)
    J = jax.scipy.linalg.block_diag(*(jnp.diag(row) - jnp.outer(row, row) for row in yhat))
    e = (y - yhat).reshape(-1)
    H = J @ Z if observation in ("softmax", "glm") else Z
    HpH = (H * p_pred) @ H.T
    if observation == "glm":
        R_used = J
    else:
        R_used = estimate(noise, R, e, HpH, beta) if timing == "before" else R
    S = HpH + R_used
    eye = jnp.eye(batch * C, dtype=z.dtype)
    centre = eye - jnp.kron(jnp.eye(batch, dtype=z.dtype), jnp.full((C, C), 1 / C, z.dtype))
    if observation == "glm":
        K = (Z * p_pred).T @ jnp.linalg.solve(eye + J @ ((Z * p_pred) @ Z.T), centre)
        information = (Z * (J @ Z)).sum(axis=0)
    else:
        K = jnp.linalg.solve(S, H * p_pred).T
        information = (H * jnp.linalg.solve(R_used, H)).sum(axis=0)
    theta_new = theta + K @ e
    if diagonal == "decoupled":
        p_new = p_pred * (1 - (K * H.T).sum(axis=1))
    else:
        p_new = 1 / (1 / p_pred + information)
    out = {"p_pred": p_pred, "z": z, "Z": Z, "yhat": yhat.reshape(-1), "e": e, "H": H}
    out |= {"R_used": R_used, "S": S, "K": K, "theta": theta_new, "p": p_new}
    if observation != "glm":
        if timing == "after" and noise == "ema_residual_hph":
            _, z_new = network(theta_new, x, weights)
            yhat = z_new if observation == "gaussian" else jax.nn.softmax(z_new, axis=-1)
            e, HpH = (y - yhat).reshape(-1), (H * p_new) @ H.T
        out["R"] = R_used if timing == "before" else estimate(noise, R, e, HpH, beta)
    return out


IMPLEMENTATION = from_step(step, jnp.asarray)
