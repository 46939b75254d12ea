"""Every quantity of the catalogue by its plain formula, replaceable by name.

The oracle's numbers come from the package's own rooms. This second, plainer route exists for two
purposes: quantities can be disturbed one by one on their way (``tolerance``: how large may a
rounding error grow?), and one formula can be exchanged for a wrong one (``mutants``: which known
mistake does this?). A test holds it equal to the oracle.

Shapes: theta, p (n,); P (n, n); z, yhat (batch, C) here; e (m,); Z, H (m, n); R, S (m, m);
K (n, m). ``p_pred`` is (n,) or, with a dense covariance, (n, n).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special

from loko_ref.arrays import Array

__all__ = ["FORMULAS", "Formula", "Values", "forward", "identity", "jacobian", "spread"]


class Values(dict[str, Any]):
    """Named inputs, options and quantities of one evaluation; ``v.S`` reads ``v["S"]``.

    ``v.F`` is the table of formulas; ``v.keep(name, array)`` is called on each quantity as it
    arises and may replace it.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def put(self, name: str, formula: str | None = None) -> Any:
        """Compute a quantity by the formula of its name, or by `formula`, and keep it."""
        self[name] = self.keep(name, self.F[formula or name](self))
        return self[name]


Formula = Callable[..., Any]


def identity(name: str, value: Any) -> Any:
    """Keep a quantity as it is."""
    return value


@cache
def _helmert(batch: int, C: int) -> Array:
    return np.kron(np.eye(batch), scipy.linalg.helmert(C))


def _contrasts(v: Values) -> Array:
    """(batch (C-1), m): orthonormal contrasts of each sample's classes.  [OBS-5]."""
    return _helmert(*v.yhat.shape)


def _centre(v: Values) -> Array:
    """(m, m): I - 1 1'/C in each sample."""
    Q = _contrasts(v)
    return Q.T @ Q


def spread(v: Values, p: Array) -> Array:
    """``H p H'`` (m, m)."""
    return (v.H * p if p.ndim == 1 else v.H @ p) @ v.H.T


# ----------------------------------------------------------------- Kalman


def _p_pred(v: Values) -> Array:
    q = v.q if v.p.ndim == 1 else v.q * np.eye(v.p.shape[0])
    return v.p / v.lam + q


def _pHt(v: Values) -> Array:
    return v.p_pred[:, None] * v.H.T if v.p_pred.ndim == 1 else v.p_pred @ v.H.T


def _S(v: Values) -> Array:
    return v.H @ v.F["pHt"](v) + v.R_used


def _K(v: Values) -> Array:
    return np.linalg.solve(v.S.T, v.F["pHt"](v).T).T


def _K_softmax(v: Values) -> Array:
    Q = _contrasts(v)
    return np.linalg.solve((Q @ v.S @ Q.T).T, Q @ v.F["pHt"](v).T).T @ Q


def _K_glm(v: Values) -> Array:
    pZt = v.p_pred[:, None] * v.Z.T if v.p_pred.ndim == 1 else v.p_pred @ v.Z.T  # (n, m)
    J = v.R_used
    return pZt @ np.linalg.solve(np.eye(J.shape[0]) + J @ (v.Z @ pZt), _centre(v))


def _theta_post(v: Values) -> Array:
    return v.theta + v.K @ v.e


def _p_decoupled(v: Values) -> Array:
    return v.p_pred * (1 - (v.K * v.H.T).sum(axis=1))


def _p_variational(v: Values) -> Array:
    if v.observation == "glm":
        information = (v.Z * (v.R_used @ v.Z)).sum(axis=0)
    elif v.observation == "softmax":
        Q = _contrasts(v)
        Hc = Q @ v.H
        information = (Hc * np.linalg.solve(Q @ v.R_used @ Q.T, Hc)).sum(axis=0)
    else:
        information = (v.H * np.linalg.solve(v.R_used, v.H)).sum(axis=0)
    return 1 / (1 / v.p_pred + information)


def _p_dense(v: Values) -> Array:
    return v.p_pred - v.K @ v.H @ v.p_pred


# ------------------------------------------------------------ observation


def _softmax(v: Values, z: Array) -> Array:
    """``exp(z - lse)``: that route's error, u |lse|, is what a correct one may have."""
    top = z.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    return np.exp(z - v.keep("lse", lse))


def _yhat(v: Values) -> Array:
    return v.z if v.observation == "gaussian" else v.F["softmax"](v, v.z)


def _e(v: Values) -> Array:
    return (v.y - v.yhat).reshape(-1)


def _J(v: Values) -> Array:
    batch, C = v.yhat.shape
    J = np.zeros((batch * C, batch * C))
    for b, row in enumerate(v.yhat):
        J[b * C : (b + 1) * C, b * C : (b + 1) * C] = np.diag(row) - np.outer(row, row)
    return J


def _H_linear(v: Values) -> Array:
    return _centre(v) @ v.Z if v.center else v.Z


def _H_softmax(v: Values) -> Array:
    return v.F["J"](v) @ v.Z


# ------------------------------------------------------------------ noise


def _fixed(v: Values) -> Array:
    return v.R.copy()


def _ema_innovation(v: Values) -> Array:
    return v.beta * v.R + (1 - v.beta) * np.outer(v.r, v.r)


def _ema_hph(v: Values) -> Array:
    return v.beta * v.R + (1 - v.beta) * (np.outer(v.r, v.r) + v.HpH)


# ------------------------------------------------------------ LoRA, model


def _scale(alpha: float, r: int) -> float:
    return alpha / r


def _delta(v: Values) -> Array:
    return v.F["scale"](v.alpha, v.A.shape[0]) * (v.B @ v.A)


def _merged(v: Values) -> Array:
    return v.W + v.F["delta"](v)


def _gelu(v: Values, x: Array) -> tuple[Array, Array]:
    """Value and derivative."""
    Phi = 0.5 * (1 + v.keep("erf", scipy.special.erf(x / math.sqrt(2))))
    return x * Phi, Phi + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_derivative(v: Values, x: Array) -> Array:
    return v.F["gelu"](v, x)[1]


def _tanh_derivative(y: Array) -> Array:
    return 1 - y * y


def _relu_derivative(x: Array) -> Array:
    return (x > 0).astype(x.dtype)


def _flatten(a: Array) -> Array:
    """Flatten the last two axes (or the last of a bias) row-major, keep (batch, C)."""
    return a.reshape(*a.shape[:2], -1)


def _unflatten(flat: Array, shape: tuple[int, ...]) -> Array:
    return flat.reshape(shape)


def _order(names: list[str]) -> list[str]:
    """Order of the factors of one site in theta."""
    return names


def _factors(layer: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    lora, i, o = layer["lora"], layer["in"], layer["out"]
    shapes: dict[str, tuple[int, ...]] = {"A": (lora["r"], i), "B": (o, lora["r"])}
    if lora.get("bias", False):
        shapes |= {"bA": (lora["r"],), "bB": (o,)}
    return shapes


def _unpack(v: Values, theta: Array) -> dict[str, Array]:
    """All weights, the factors taken from theta."""
    weights, at = dict(v.weights), 0
    for layer in v.F["sites"](v.spec):
        shapes = _factors(layer)
        for key in v.F["order"](list(shapes)):
            size = math.prod(shapes[key])
            weights[f"{layer['name']}.{key}"] = v.F["unflatten"](theta[at : at + size], shapes[key])
            at += size
    return weights


def _sites(spec: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [layer for layer in spec if layer["kind"] == "linear" and layer.get("lora")]


def forward(v: Values, theta: Array | None = None) -> tuple[Array, list[Any]]:
    """Z (batch, C) and what each layer keeps.  [LAY-1, LAY-2, LAY-3]."""
    weights = v.weights if theta is None else v.F["unpack"](v, theta)
    x, caches = v.x, []
    for layer in v.spec:
        kind = layer["kind"]
        if kind == "linear":
            name = layer["name"]
            w = {k.rsplit(".", 1)[1]: a for k, a in weights.items() if k.rsplit(".", 1)[0] == name}
            y = x @ w["W"].T + w.get("b", 0.0)
            u, scale = None, 0.0
            if layer.get("lora"):
                scale = v.F["scale"](layer["lora"]["alpha"], layer["lora"]["r"])
                u = v.keep("u", x @ w["A"].T + w.get("bA", 0.0))
                y = y + v.F["branch"](v, scale, u, w)
            caches.append((x, u, w, scale))
        elif kind == "gelu":
            y = v.F["gelu"](v, x)[0]
            caches.append(x)
        elif kind == "relu":
            y = v.F["relu"](x)
            caches.append(x)
        else:
            y = v.F[kind](v, x)
            caches.append(v.keep(kind, y))
        x = v.keep("y" + kind, y)
    return x, caches


def _branch(v: Values, scale: float, u: Array, w: dict[str, Array]) -> Array:
    """``scale (B u + bB)``."""
    return scale * v.keep("v", u @ w["B"].T + w.get("bB", 0.0))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def jacobian(v: Values, caches: list[Any], C: int) -> Array:
    """Z (batch * C, n), backward with one cotangent an output.  [LAY-9, LAY-10]."""
    batch = v.x.shape[0]
    d = np.broadcast_to(np.eye(C), (batch, C, C))  # cotangents, last axis the layer's output
    parts: dict[str, Array] = {}
    for layer, kept in zip(reversed(v.spec), reversed(caches), strict=True):
        kind = layer["kind"]
        if kind == "linear":
            x, u, w, scale = kept
            name, dx = layer["name"], d @ w["W"]
            if layer.get("lora"):
                dv = v.F["jacobian_scale"](scale) * d
                du = v.keep("du", dv @ w["B"])  # (batch, C, r)
                parts[f"{name}.A"] = du[..., None] * x[:, None, None, :]
                parts[f"{name}.B"] = dv[..., None] * u[:, None, None, :]
                parts[f"{name}.bA"], parts[f"{name}.bB"] = du, dv
                dx = dx + v.F["branch_back"](du @ w["A"])
            d = v.keep("d", dx)
        elif kind == "gelu":
            d = d * v.F["gelu_derivative"](v, kept)[:, None, :]
        elif kind == "relu":
            d = d * v.F["relu_derivative"](kept)[:, None, :]
        elif kind == "tanh":
            d = d * v.F["tanh_derivative"](kept)[:, None, :]
        elif kind == "softmax":
            y = kept[:, None, :]
            d = v.F["softmax_back"](y, d)
        else:
            d = d - np.exp(kept)[:, None, :] * d.sum(axis=-1, keepdims=True)
    flat = [
        v.F["flatten"](parts[f"{layer['name']}.{key}"])
        for layer in v.F["sites"](v.spec)
        for key in v.F["order"](list(_factors(layer)))
    ]
    Z: Array = v.F["stack"](np.concatenate(flat, axis=-1))  # (batch, C, n)
    return Z


def _residual(v: Values) -> Array:
    """``y - h(theta+)`` (m,).  [NOISE-4]."""
    w = Values(v)
    w["z"] = forward(w, v.theta_post)[0]
    return (v.y - v.F["yhat"](w)).reshape(-1)


def _stack(Z: Array) -> Array:
    """(batch, C, n) -> (batch * C, n), sample by sample.  [LAY-10]."""
    return Z.reshape(-1, Z.shape[-1])


FORMULAS: dict[str, Formula] = {
    "p_pred": _p_pred,
    "pHt": _pHt,
    "S": _S,
    "K": _K,
    "K.softmax": _K_softmax,
    "K.glm": _K_glm,
    "theta_post": _theta_post,
    "p.decoupled": _p_decoupled,
    "p.variational": _p_variational,
    "p.dense": _p_dense,
    "softmax": _softmax,
    "yhat": _yhat,
    "e": _e,
    "J": _J,
    "H.gaussian": _H_linear,
    "H.logits": _H_linear,
    "H.softmax": _H_softmax,
    "H.glm": _H_softmax,
    "R.glm": lambda v: v.F["J"](v),
    "R.fixed": _fixed,
    "R.ema_innovation": _ema_innovation,
    "R.ema_innovation_hph": _ema_hph,
    "R.ema_residual_hph": _ema_hph,
    "timing": lambda v: v.timing,
    "carried": lambda state, start: state["R"],
    "innovation_seen": lambda v: v.e,
    "covariance_seen": lambda v: v.p_pred,
    "covariance_residual": lambda v: v.p_post,
    "residual": _residual,
    "scale": _scale,
    "delta": _delta,
    "W_post": _merged,
    "gelu": _gelu,
    "gelu_derivative": _gelu_derivative,
    "branch": _branch,
    "relu": _relu,
    "softmax_back": lambda y, d: y * (d - (y * d).sum(axis=-1, keepdims=True)),
    "tanh": lambda v, x: np.tanh(x),
    "log_softmax": lambda v, x: np.asarray(scipy.special.log_softmax(x, axis=-1)),
    "tanh_derivative": _tanh_derivative,
    "relu_derivative": _relu_derivative,
    "jacobian_scale": lambda scale: scale,
    "branch_back": lambda d: d,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "order": _order,
    "sites": _sites,
    "unpack": _unpack,
    "stack": _stack,
}
"""Formula name -> function. A mutant is a table that differs in one entry."""
