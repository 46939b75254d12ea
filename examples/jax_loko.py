"""LoKO as a pure JAX function, its Jacobian by jax.jacfwd; shares no code with the oracle.

Check it with ``loko-ref verify examples/jax_loko.py``.
"""

import jax
import jax.numpy as jnp

from loko_ref.conformance.frameworks import from_step

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
}


def network(theta, x, weights, spec):
    """Outputs of one sample (C,)."""
    for layer in spec:
        if layer["kind"] != "linear":
            x = ACTIVATIONS[layer["kind"]](x)
            continue
        name, lora = layer["name"], layer.get("lora")
        y = weights[f"{name}.W"] @ x + weights.get(f"{name}.b", 0)
        if lora:
            r, i, o = lora["r"], layer["in"], layer["out"]
            A, B, theta = theta[: r * i], theta[r * i : r * i + o * r], theta[r * i + o * r :]
            u = A.reshape(r, i) @ x
            bB = 0
            if lora.get("bias"):
                u, bB, theta = u + theta[:r], theta[r : r + o], theta[r + o :]
            y = y + lora["alpha"] / r * (B.reshape(o, r) @ u + bB)
        x = y
    return x


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
    z = jax.vmap(lambda row: network(theta, row, weights, spec))(x)
    batch, C = z.shape
    Z = jax.vmap(lambda row: jax.jacfwd(network)(theta, row, weights, spec))(x)
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
            z_new = jax.vmap(lambda row: network(theta_new, row, weights, spec))(x)
            yhat = z_new if observation == "gaussian" else jax.nn.softmax(z_new, axis=-1)
            e, HpH = (y - yhat).reshape(-1), (H * p_new) @ H.T
        out["R"] = R_used if timing == "before" else estimate(noise, R, e, HpH, beta)
    return out


IMPLEMENTATION = from_step(step, jnp.asarray)
