"""A second correct implementation, sharing no code with the package or with my_loko: NumPy einsum,
computing in the inputs' own dtype throughout, sums in another order, inverses where others solve.
"""

import numpy as np
from einsum_network import network, softmax, split

ein = np.einsum


def backwards(a, b):
    """a @ b with the inner index summed from its end."""
    return ein("...ij,...jk->...ik", a[..., ::-1], b[..., ::-1, :])


def root_inverse(S):
    """X with X' X = S^-1 by an eigendecomposition of the correlation matrix."""
    d = 1 / np.sqrt(np.diag(S))
    w, V = np.linalg.eigh(S * d[:, None] * d)
    return (V / np.sqrt(w)).T * d


def wide(P):
    return np.diag(P) if P.ndim == 1 else P


def gain(P, H, R):
    PH = ein("ab,jb->aj", wide(P), H)
    S = ein("ja,ak->jk", H, PH) + R
    X = root_inverse(S)
    return S, backwards(backwards(PH, X.T), X)


def posterior(P, K, H, R):
    """Joseph, whole or its diagonal."""
    F = np.eye(len(P), dtype=P.dtype) - K @ H
    if P.ndim == 2:
        return ein("ab,bc,dc->ad", F, P, F) + ein("aj,jk,bk->ab", K, R, K)
    return ein("ab,b,ab->a", F, P, F) + ein("aj,jk,ak->a", K, R, K)


def variational(p, H, R):
    X = root_inverse(R)
    return 1 / (1 / p + np.square(X @ H).sum(axis=0))


def diagonal_update(*, theta, p, H, e, R, diagonal="decoupled"):
    S, K = gain(p, H, R)
    new = posterior(p, K, H, R) if diagonal == "decoupled" else variational(p, H, R)
    return {"S": S, "K": K, "theta": theta + ein("aj,j", K, e), "p": new}


def dense_update(*, theta, P, H, e, R):
    S, K = gain(P, H, R)
    return {"S": S, "K": K, "theta": theta + ein("aj,j", K, e), "P": posterior(P, K, H, R)}


def time_update(*, p, lam=1.0, q=0.0):
    return {"p_pred": (1 / lam) * p + q}


def blocks(rows):
    batch, C = rows.shape
    J = np.zeros((batch, C, batch, C), rows.dtype)
    for b in range(batch):
        J[b, :, b, :] = np.diag(rows[b]) - rows[b][:, None] * rows[b]
    return J.reshape(batch * C, batch * C)


def observe(kind, z, Z, y, center=False):
    yhat = z if kind == "gaussian" else softmax(z)
    e, H = (y - yhat).ravel(), Z
    if kind in ("softmax", "glm"):
        H = blocks(yhat) @ Z
    elif center:
        rows = Z.reshape(*z.shape, -1)
        H = (rows - rows.mean(axis=1, keepdims=True)).reshape(Z.shape)
    return yhat, e, H


def observation(kind):
    def function(*, z, Z, y, center=False):
        yhat, e, H = observe(kind, z, Z, y, center)
        out = {"yhat": yhat.ravel(), "e": e, "H": H}
        return out | ({"R": blocks(yhat)} if kind == "glm" else {})

    return function


def noise_update(*, R, e, HpH, noise, beta):
    if noise == "fixed":
        return {"R": R.copy()}
    sample = np.outer(e, e) if noise == "ema_innovation" else np.outer(e, e) + HpH
    return {"R": R + (1 - beta) * (sample - R)}


def delta(*, A, B, alpha):
    return {"delta": backwards(alpha / len(A) * B, A)}


def merge(*, W, A, B, alpha):
    return {"W": W + backwards(B, alpha / len(A) * A)}


def model_forward(*, x, weights, spec):
    return {"z": network(spec, weights, x)[0]}


def model_jacobian(*, x, weights, spec):
    z, Z = network(spec, weights, x)
    return {"z": z, "Z": Z}


def contrasts(batch, C, dtype):
    Q = np.linalg.svd(np.ones((1, C)))[2][1:]
    return np.kron(np.eye(batch), Q).astype(dtype)


def first_row(z):
    """The first row of each row's sample."""
    return np.repeat(np.arange(len(z)) * z.shape[1], z.shape[1])


def solve_implicit(z, Z, y, P):
    """v as the root of one number after another would be slow: Newton on the contrasts instead."""
    Q = contrasts(*z.shape, np.float64)
    G, zf = ein("ja,ab,kb->jk", Z, wide(P), Z).astype(np.float64), z.astype(np.float64)
    w = np.zeros(len(Q))
    best, idle = (np.inf, w), 0
    while idle < 10:
        a = zf + (G @ (Q.T @ w)).reshape(z.shape)
        q = softmax(a)
        r = Q @ (y - q).ravel() - w
        best, idle = ((np.abs(r).max(), w), 0) if np.abs(r).max() < best[0] else (best, idle + 1)
        A, B = Q @ blocks(q) @ Q.T, Q @ G @ Q.T
        d = np.linalg.solve(np.eye(len(w)) + A @ B, r)
        t = 1.0
        while t > 1e-16:
            q = softmax(zf + (G @ (Q.T @ (w + t * d))).reshape(z.shape))
            ahead = Q @ (y - q).ravel() - w - t * d
            if d @ B @ ahead >= 0 or np.abs(ahead).max() < np.abs(r).max() / 2:
                break
            t /= 2
        w = w + t * d
    return (Q.T @ best[1]).astype(z.dtype)


def loko_step(*, x, y, theta, weights, spec, p=None, P=None, R=None, solve="linear", **o):
    big = "p" if P is None else "P"
    prior = (p if P is None else P) / o["lam"]
    prior = prior + (o["q"] if P is None else o["q"] * np.eye(len(P), dtype=P.dtype))
    z, Z = network(spec, weights | split(spec, theta), x)
    kind, noise, late = o["observation"], o["noise"], o["timing"] == "after"
    yhat, e, H = observe(kind, z, Z, y, o["center"])
    HpH = ein("ja,ab,kb->jk", H, wide(prior), H)

    def refresh(R, r, HpH):
        return noise_update(R=R, e=r, HpH=HpH, noise=noise, beta=o["beta"])["R"]

    if kind == "glm":
        used = blocks(yhat)
    else:
        used = R if late else refresh(R, e, HpH)
    S = HpH + used
    if kind in ("softmax", "glm"):
        # whiten by a factor of R's part on the contrasts, so that nothing singular is inverted
        Q = contrasts(*z.shape, z.dtype)
        if kind == "glm":
            mean = ein("bc,bcn->bn", yhat, Z.reshape(*z.shape, -1))[:, None]
            rows = np.sqrt(yhat)[..., None] * (Z.reshape(*z.shape, -1) - mean)
            Hw = rows.reshape(Z.shape)
            _, Kw = gain(prior, Hw, np.eye(len(e), dtype=z.dtype))
            J, G = used, ein("ja,ab,kb->jk", Z, wide(prior), Z)
            if solve == "linear":
                inverse = np.linalg.inv(np.eye(len(e), dtype=z.dtype) + J @ G)
            else:  # of these some have a large p: without the most probable class
                top = np.repeat(yhat.argmax(axis=1), z.shape[1]) + first_row(z)
                E = np.eye(len(e), dtype=z.dtype)[top != np.arange(len(e))]
                D = E - np.eye(len(e), dtype=z.dtype)[top[top != np.arange(len(e))]]
                inner = np.eye(len(E), dtype=z.dtype) + E @ J @ E.T @ (D @ G @ D.T)
                inverse = D.T @ np.linalg.inv(inner) @ E
            K = ein("ab,jb,jk->ak", wide(prior), Z, inverse)  # not centred: a convention
            Hc, Rc, Kc = Hw, np.eye(len(e), dtype=z.dtype), Kw
            move = K @ e
        else:
            Hc, Rc = Q @ H, Q @ used @ Q.T
            _, Kc = gain(prior, Hc, Rc)
            K = Kc @ Q
            move = Kc @ (Q @ e)
    else:
        Hc, Rc = H, used
        _, K = gain(prior, H, used)
        Kc, move = K, K @ e
    v = {}
    if solve == "implicit":
        v["v"] = solve_implicit(z, Z, y, prior)
        move = ein("ab,jb,j->a", wide(prior), Z, v["v"])
    decoupled = P is not None or o["diagonal"] == "decoupled"
    new = posterior(prior, Kc, Hc, Rc) if decoupled else variational(prior, Hc, Rc)
    out = {
        f"{big}_pred": prior,
        "z": z,
        "Z": Z,
        "yhat": yhat.ravel(),
        "e": e,
        "H": H,
        "R_used": used,
        "S": S,
        "K": K,
        **v,
        "theta": theta + move,
        big: new,
    }
    if kind != "glm":
        out["R"] = used
        if late:
            r, seen = e, prior
            if noise == "ema_residual_hph":
                z_post = network(spec, weights | split(spec, out["theta"]), x)[0]
                r = (y - (z_post if kind == "gaussian" else softmax(z_post))).ravel()
                seen = new
            out["R"] = refresh(R, r, ein("ja,ab,kb->jk", H, wide(seen), H))
    return out


def loko_run(*, x, y, theta, p=None, P=None, R=None, solve="linear", **rest):
    rows, rest = [], {**rest, "solve": solve}
    for xs, ys in zip(x, y, strict=True):
        rows.append(loko_step(x=xs, y=ys, theta=theta, p=p, P=P, R=R, **rest))
        theta, p, P, R = (rows[-1].get(k) for k in ("theta", "p", "P", "R"))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def sgd(*, theta, gradient, lr, momentum, dampening, weight_decay, nesterov):
    path, buffers, buffer = [], [], None
    for g in gradient:
        d = g + weight_decay * theta
        if momentum:
            buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
            buffers.append(buffer)
            d = d + momentum * buffer if nesterov else buffer
        theta = theta - lr * d
        path.append(theta)
    return {"theta": np.stack(path)} | ({"momentum": np.stack(buffers)} if momentum else {})


def adagrad(*, theta, gradient, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    path, total = [], np.full_like(theta, initial_accumulator_value)
    for t, g in enumerate(gradient):
        d = g + weight_decay * theta
        total = total + d * d
        theta = theta - lr / (1 + t * lr_decay) * d / (np.sqrt(total) + eps)
        path.append(theta)
    return {"theta": np.stack(path)}


def adamw(*, theta, gradient, lr, beta1, beta2, eps, weight_decay):
    path, m, v = [], 0 * theta, 0 * theta
    for t, g in enumerate(gradient, start=1):
        theta = theta - lr * weight_decay * theta
        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        root = np.sqrt(v) / (1 - beta2**t) ** 0.5 + eps
        theta = theta - lr / (1 - beta1**t) * m / root
        path.append(theta)
    return {"theta": np.stack(path)}


IMPLEMENTATION = {
    "kalman.dense_update": dense_update,
    "kalman.diagonal_update": diagonal_update,
    "kalman.time_update": time_update,
    **{f"observation.{k}": observation(k) for k in ("gaussian", "softmax", "logits", "glm")},
    "noise.update": noise_update,
    "lora.delta": delta,
    "lora.merge": merge,
    "model.forward": model_forward,
    "model.jacobian": model_jacobian,
    "loko.step": loko_step,
    "loko.run": loko_run,
    "optimizer.sgd": sgd,
    "optimizer.adagrad": adagrad,
    "optimizer.adamw": adamw,
}
