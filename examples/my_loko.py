"""LoKO in plain loops: an implementation that shares no code with loko_ref.

Numbers are Python floats, vectors and matrices are lists; NumPy arrays only carry them in and out.
Check it with ``loko-ref verify examples/my_loko.py``; ``loko-ref operations`` says what each
function takes and returns.
"""

import math

import numpy as np

# ------------------------------------------------------------------ matrices


def zeros(rows, cols):
    return [[0.0] * cols for _ in range(rows)]


def transpose(a):
    return [list(column) for column in zip(*a, strict=True)]


def matmul(a, b):
    bt = transpose(b)
    return [[sum(x * y for x, y in zip(row, col, strict=True)) for col in bt] for row in a]


def matvec(a, x):
    return [sum(p * q for p, q in zip(row, x, strict=True)) for row in a]


def add(a, b):
    return [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


def solve(a, b):
    """Gaussian elimination with row pivoting: x with a x = b, b a matrix."""
    n = len(a)
    rows = [list(a[i]) + list(b[i]) for i in range(n)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            for j in range(k, len(rows[k])):
                rows[i][j] -= factor * rows[k][j]
    x = [None] * n
    for k in range(n - 1, -1, -1):
        x[k] = [
            (rows[k][n + c] - sum(rows[k][j] * x[j][c] for j in range(k + 1, n))) / rows[k][k]
            for c in range(len(b[0]))
        ]
    return x


def arrays(like, **values):
    """Lists to arrays of the inputs' dtype."""
    return {name: np.array(value, dtype=like.dtype) for name, value in values.items()}


# -------------------------------------------------------------------- filter


def spread(H, P):
    """H P H'; P a matrix, or a list of variances."""
    return matmul(H, p_times_ht(H, P))


def p_times_ht(H, P):
    if isinstance(P[0], list):
        return matmul(P, transpose(H))
    return [[P[i] * H[j][i] for j in range(len(H))] for i in range(len(P))]


def gain(H, P, S):
    """K = P H' S^-1, from S K' = H P."""
    return transpose(solve(S, transpose(p_times_ht(H, P))))


def move(theta, K, e):
    return [t + d for t, d in zip(theta, matvec(K, e), strict=True)]


def shrink(P, K, H):
    """P - K H P; for variances only its diagonal."""
    if isinstance(P[0], list):
        KHP = matmul(K, matmul(H, P))
        return [[x - y for x, y in zip(r, s, strict=True)] for r, s in zip(P, KHP, strict=True)]
    return [P[i] * (1 - sum(K[i][j] * H[j][i] for j in range(len(H)))) for i in range(len(P))]


def precision_diagonal(p, H, R):
    """1 / (1/p + diag(H' R^-1 H))."""
    X = solve(R, H)
    return [1 / (1 / p[i] + sum(H[j][i] * X[j][i] for j in range(len(H)))) for i in range(len(p))]


def kalman_diagonal_update(theta, p, H, e, R, diagonal="decoupled"):
    like, (theta, p, H, e, R) = theta, [a.tolist() for a in (theta, p, H, e, R)]
    S = add(spread(H, p), R)
    K = gain(H, p, S)
    new = shrink(p, K, H) if diagonal == "decoupled" else precision_diagonal(p, H, R)
    return arrays(like, S=S, K=K, theta=move(theta, K, e), p=new)


def kalman_dense_update(theta, P, H, e, R):
    like, (theta, P, H, e, R) = theta, [a.tolist() for a in (theta, P, H, e, R)]
    S = add(spread(H, P), R)
    K = gain(H, P, S)
    return arrays(like, S=S, K=K, theta=move(theta, K, e), P=shrink(P, K, H))


def predict(P, lam, q):
    if isinstance(P[0], list):
        return [
            [P[i][j] / lam + (q if i == j else 0.0) for j in range(len(P))] for i in range(len(P))
        ]
    return [v / lam + q for v in P]


def kalman_time_update(p, lam, q):
    return arrays(p, p_pred=predict(p.tolist(), lam, q))


# --------------------------------------------------------------- observation


def softmax(z):
    top = max(z)
    s = [math.exp(v - top) for v in z]
    total = sum(s)
    return [v / total for v in s]


def covariance_of_one_hot(rows):
    """J = diag(yhat) - yhat yhat', one block a sample."""
    C, m = len(rows[0]), len(rows) * len(rows[0])
    J = zeros(m, m)
    for b, yhat in enumerate(rows):
        for i in range(C):
            for j in range(C):
                J[b * C + i][b * C + j] = (yhat[i] if i == j else 0.0) - yhat[i] * yhat[j]
    return J


def centring(batch, C):
    m = batch * C
    return [[(i == j) - (1 / C if i // C == j // C else 0.0) for j in range(m)] for i in range(m)]


def observe(kind, z, Z, y, center=False):
    """yhat (rows), e, H, J."""
    yhat = z if kind == "gaussian" else [softmax(row) for row in z]
    e = [a - b for r, s in zip(y, yhat, strict=True) for a, b in zip(r, s, strict=True)]
    if kind in ("softmax", "glm"):
        J = covariance_of_one_hot(yhat)
        return yhat, e, matmul(J, Z), J
    return yhat, e, matmul(centring(len(z), len(z[0])), Z) if center else Z, None


def flat(rows):
    return [v for row in rows for v in row]


def observation(kind):
    def function(z, Z, y, center=False):
        yhat, e, H, J = observe(kind, z.tolist(), Z.tolist(), y.tolist(), center)
        out = arrays(z, yhat=flat(yhat), e=e, H=H)
        return out | arrays(z, R=J) if kind == "glm" else out

    return function


# --------------------------------------------------------------------- noise


def refresh(noise, R, e, HpH, beta):
    if noise == "fixed":
        return R
    m = len(e)
    return [
        [
            beta * R[i][j]
            + (1 - beta) * (e[i] * e[j] + (0.0 if noise == "ema_innovation" else HpH[i][j]))
            for j in range(m)
        ]
        for i in range(m)
    ]


def noise_update(R, e, HpH, noise, beta):
    return arrays(R, R=refresh(noise, R.tolist(), e.tolist(), HpH.tolist(), beta))


# --------------------------------------------------------------- LoRA, model


def lora_delta(A, B, alpha):
    scale = alpha / A.shape[0]
    delta = matmul(B.tolist(), A.tolist())
    return arrays(A, delta=[[scale * v for v in row] for row in delta])


def lora_merge(W, A, B, alpha):
    return arrays(W, W=add(W.tolist(), lora_delta(A, B, alpha)["delta"].astype(float).tolist()))


def factors(layer):
    """Names and shapes of a site's factors, in packing order."""
    r, i, o = layer["lora"]["r"], layer["in"], layer["out"]
    shapes = [("A", (r, i)), ("B", (o, r))]
    return shapes + ([("bA", (r,)), ("bB", (o,))] if layer["lora"].get("bias") else [])


def has_lora(layer):
    return layer["kind"] == "linear" and bool(layer.get("lora"))


def with_theta(spec, weights, theta):
    """The frozen weights, and the factors cut out of theta row by row."""
    weights, at = dict(weights), 0
    for layer in spec:
        if not has_lora(layer):
            continue
        for key, shape in factors(layer):
            if len(shape) == 1:
                value = theta[at : at + shape[0]]
                at += shape[0]
            else:
                value = []
                for _ in range(shape[0]):
                    value.append(theta[at : at + shape[1]])
                    at += shape[1]
            weights[f"{layer['name']}.{key}"] = value
    return weights


def activation(kind, x):
    if kind == "tanh":
        return [math.tanh(v) for v in x]
    if kind == "relu":
        return [max(v, 0.0) for v in x]
    if kind == "gelu":
        return [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    y = softmax(x)
    if kind == "softmax":
        return y
    top = max(x)
    log = math.log(sum(math.exp(v - top) for v in x))
    return [v - top - log for v in x]


def activation_back(kind, d, x, y):
    """Cotangent of the input; x input, y output."""
    if kind == "tanh":
        return [g * (1 - v * v) for g, v in zip(d, y, strict=True)]
    if kind == "relu":
        return [g if v > 0 else 0.0 for g, v in zip(d, x, strict=True)]
    if kind == "gelu":
        return [
            g
            * (
                0.5 * (1 + math.erf(v / math.sqrt(2)))
                + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
            )
            for g, v in zip(d, x, strict=True)
        ]
    if kind == "softmax":
        mean = sum(g * v for g, v in zip(d, y, strict=True))
        return [v * (g - mean) for g, v in zip(d, y, strict=True)]
    total = sum(d)
    return [g - v * total for g, v in zip(d, softmax(x), strict=True)]


KINDS = ("linear", "relu", "tanh", "gelu", "softmax", "log_softmax")


def run_sample(spec, weights, x):
    """Output of one sample, and each layer's (input, inner LoRA activation, output)."""
    for layer in spec:
        if layer["kind"] not in KINDS:
            raise NotImplementedError(f"no layer of kind '{layer['kind']}'")
    trace = []
    for layer in spec:
        u = None
        if layer["kind"] == "linear":
            name = layer["name"]
            y = matvec(weights[f"{name}.W"], x)
            if f"{name}.b" in weights:
                y = [a + b for a, b in zip(y, weights[f"{name}.b"], strict=True)]
            if has_lora(layer):
                scale = layer["lora"]["alpha"] / layer["lora"]["r"]
                u = matvec(weights[f"{name}.A"], x)
                if f"{name}.bA" in weights:
                    u = [a + b for a, b in zip(u, weights[f"{name}.bA"], strict=True)]
                v = matvec(weights[f"{name}.B"], u)
                if f"{name}.bB" in weights:
                    v = [a + b for a, b in zip(v, weights[f"{name}.bB"], strict=True)]
                y = [a + scale * b for a, b in zip(y, v, strict=True)]
        else:
            y = activation(layer["kind"], x)
        trace.append((x, u, y))
        x = y
    return x, trace


def branch_cotangent(scale, d):
    """y = W x + b + scale v: what the branch's v gets of y's cotangent d."""
    return [scale * g for g in d]


def jacobian_row(spec, weights, trace, d):
    """Derivative of <d, output> by every factor, in packing order."""
    pieces = []
    for layer, (x, u, y) in zip(reversed(spec), reversed(trace), strict=True):
        if layer["kind"] != "linear":
            d = activation_back(layer["kind"], d, x, y)
            continue
        name = layer["name"]
        dx = matvec(transpose(weights[f"{name}.W"]), d)
        if has_lora(layer):
            scale = layer["lora"]["alpha"] / layer["lora"]["r"]
            dv = branch_cotangent(scale, d)
            du = matvec(transpose(weights[f"{name}.B"]), dv)
            piece = [g * v for g in du for v in x] + [g * v for g in dv for v in u]
            if layer["lora"].get("bias"):
                piece += du + dv
            pieces.append(piece)
            dx = [
                a + b for a, b in zip(dx, matvec(transpose(weights[f"{name}.A"]), du), strict=True)
            ]
        d = dx
    return [v for piece in reversed(pieces) for v in piece]


def network(spec, weights, x):
    """z and Z, sample by sample."""
    z, Z = [], []
    for sample in x:
        out, trace = run_sample(spec, weights, sample)
        z.append(out)
        for j in range(len(out)):
            Z.append(jacobian_row(spec, weights, trace, [float(i == j) for i in range(len(out))]))
    return z, Z


def lists(weights):
    return {name: value.tolist() for name, value in weights.items()}


def model_forward(x, weights, spec):
    return arrays(x, z=[run_sample(spec, lists(weights), row)[0] for row in x.tolist()])


def model_jacobian(x, weights, spec):
    z, Z = network(spec, lists(weights), x.tolist())
    return arrays(x, z=z, Z=Z)


# ---------------------------------------------------------------------- LoKO


def step(x, y, theta, P, R, frozen, o):
    """One step on lists; returns every quantity by name. P: variances, or the dense matrix."""
    dense = o["covariance"] == "dense"
    big = "P" if dense else "p"
    prior = predict(P, o["lam"], o["q"])
    z, Z = network(o["spec"], with_theta(o["spec"], frozen, theta), x)
    yhat, e, H, J = observe(o["observation"], z, Z, y, o["center"])
    glm = o["observation"] == "glm"
    HpH = spread(H, prior)
    if glm:
        R_used = J
    elif o["timing"] == "before":
        R_used = refresh(o["noise"], R, e, HpH, o["beta"])
    else:
        R_used = R
    S = add(HpH, R_used)
    if glm:
        # S is singular along each sample's ones: K = p Z' (I + J G)^-1 (I - 1 1'/C)
        m = len(e)
        JG = matmul(J, spread(Z, prior))
        system = [[JG[i][j] + (i == j) for j in range(m)] for i in range(m)]
        K = matmul(p_times_ht(Z, prior), solve(system, centring(len(z), len(z[0]))))
    else:
        K = gain(H, prior, S)
    new_theta = move(theta, K, e)
    if dense or o["diagonal"] == "decoupled":
        new_P = shrink(prior, K, H)
    elif glm:
        JZ = matmul(J, Z)
        new_P = [
            1 / (1 / prior[i] + sum(Z[j][i] * JZ[j][i] for j in range(len(Z))))
            for i in range(len(prior))
        ]
    else:  # in softmax too: R 1 = c 1 and 1'H = 0, so the direction 1 adds nothing
        new_P = precision_diagonal(prior, H, R_used)
    out = {
        f"{big}_pred": prior,
        "z": z,
        "Z": Z,
        "yhat": flat(yhat),
        "e": e,
        "H": H,
        "R_used": R_used,
        "S": S,
        "K": K,
        "theta": new_theta,
        big: new_P,
    }
    if glm:
        return out
    out["R"] = R_used
    if o["timing"] == "after":
        seen, P_seen = e, prior
        if o["noise"] == "ema_residual_hph":
            weights = with_theta(o["spec"], frozen, new_theta)
            z_post = [run_sample(o["spec"], weights, row)[0] for row in x]
            if o["observation"] != "gaussian":
                z_post = [softmax(row) for row in z_post]
            seen = [a - b for a, b in zip(flat(y), flat(z_post), strict=True)]
            P_seen = new_P
        out["R"] = refresh(o["noise"], R, seen, spread(H, P_seen), o["beta"])
    return out


def loko_step(x, y, theta, weights, p=None, P=None, R=None, **options):
    state = (p if P is None else P).tolist()
    noise = None if R is None else R.tolist()
    out = step(x.tolist(), y.tolist(), theta.tolist(), state, noise, lists(weights), options)
    return arrays(theta, **out)


def loko_run(x, y, theta, weights, p=None, P=None, R=None, **options):
    like, frozen = theta, lists(weights)
    theta, P = theta.tolist(), (p if P is None else P).tolist()
    R = None if R is None else R.tolist()
    rows = []
    for xs, ys in zip(x.tolist(), y.tolist(), strict=True):
        out = step(xs, ys, theta, P, R, frozen, options)
        theta, P, R = out["theta"], out.get("p", out.get("P")), out.get("R")
        rows.append(out)
    return arrays(like, **{name: [row[name] for row in rows] for name in rows[0]})


# ----------------------------------------------------------------- baselines


def optimizer_sgd(theta, gradient, lr, momentum, dampening, weight_decay, nesterov):
    like, x, buffer = theta, theta.tolist(), None
    path, buffers = [], []
    for row in gradient.tolist():
        g = [a + weight_decay * b for a, b in zip(row, x, strict=True)]
        if momentum:
            if buffer is None:
                buffer = g
            else:
                buffer = [
                    momentum * a + (1 - dampening) * b for a, b in zip(buffer, g, strict=True)
                ]
            g = [a + momentum * b for a, b in zip(g, buffer, strict=True)] if nesterov else buffer
            buffers.append(buffer)
        x = [a - lr * b for a, b in zip(x, g, strict=True)]
        path.append(x)
    return arrays(like, theta=path, **({"momentum": buffers} if momentum else {}))


def optimizer_adagrad(theta, gradient, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    like, x = theta, theta.tolist()
    total = [initial_accumulator_value] * len(x)
    path, totals = [], []
    for t, row in enumerate(gradient.tolist()):
        g = [a + weight_decay * b for a, b in zip(row, x, strict=True)]
        total = [s + a * a for s, a in zip(total, g, strict=True)]
        rate = lr / (1 + t * lr_decay)
        x = [a - rate * b / (math.sqrt(s) + eps) for a, b, s in zip(x, g, total, strict=True)]
        path.append(x)
        totals.append(total)
    return arrays(like, theta=path, sum=totals)


def optimizer_adamw(theta, gradient, lr, beta1, beta2, eps, weight_decay):
    like, x = theta, theta.tolist()
    m, v = [0.0] * len(x), [0.0] * len(x)
    path, first, second = [], [], []
    for t, g in enumerate(gradient.tolist(), start=1):
        m = [beta1 * a + (1 - beta1) * b for a, b in zip(m, g, strict=True)]
        v = [beta2 * a + (1 - beta2) * b * b for a, b in zip(v, g, strict=True)]
        x = [
            a * (1 - lr * weight_decay)
            - lr * (b / (1 - beta1**t)) / (math.sqrt(c / (1 - beta2**t)) + eps)
            for a, b, c in zip(x, m, v, strict=True)
        ]
        path.append(x)
        first.append(m)
        second.append(v)
    return arrays(like, theta=path, exp_avg=first, exp_avg_sq=second)


IMPLEMENTATION = {
    "kalman.dense_update": kalman_dense_update,
    "kalman.diagonal_update": kalman_diagonal_update,
    "kalman.time_update": kalman_time_update,
    "observation.gaussian": observation("gaussian"),
    "observation.softmax": observation("softmax"),
    "observation.logits": observation("logits"),
    "observation.glm": observation("glm"),
    "noise.update": noise_update,
    "lora.delta": lora_delta,
    "lora.merge": lora_merge,
    "model.forward": model_forward,
    "model.jacobian": model_jacobian,
    "loko.step": loko_step,
    "loko.run": loko_run,
    "optimizer.sgd": optimizer_sgd,
    "optimizer.adagrad": optimizer_adagrad,
    "optimizer.adamw": optimizer_adamw,
}
