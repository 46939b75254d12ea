"""LoKO in plain loops: an implementation that shares no code with loko_ref.

Numbers are Python floats, vectors and matrices are lists; NumPy arrays only carry them in and out.
Check it with ``loko-ref verify examples/my_loko.py``; ``loko-ref operations`` describes what each
function takes and returns.
"""

import math
from operator import mul

import numpy as np

# ------------------------------------------------------------------ matrices


def zeros(rows, cols):
    return [[0.0] * cols for _ in range(rows)]


def transpose(a):
    return [list(column) for column in zip(*a, strict=True)]


def dot(x, y):
    return sum(map(mul, x, y))


def matmul(a, b):
    columns = transpose(b)
    return [[dot(row, column) for column in columns] for row in a]


def matvec(a, x):
    return [dot(row, x) for row in a]


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


def kalman_time_update(lam, q, p=None, P=None):
    if P is not None:
        return arrays(P, P_pred=predict(P.tolist(), lam, q))
    return arrays(p, p_pred=predict(p.tolist(), lam, q))


# ------------------------------------------- precisions of low rank, and of blocks


def eye(n):
    return [[float(i == j) for j in range(n)] for i in range(n)]


def scaled(factor, a):
    return [[factor * x for x in row] for row in a]


def cholesky(a):
    """Lower C with C C' = a."""
    C = zeros(len(a), len(a))
    for i in range(len(a)):
        for j in range(i + 1):
            rest = a[i][j] - sum(C[i][k] * C[j][k] for k in range(j))
            C[i][j] = math.sqrt(rest) if i == j else rest / C[j][j]
    return C


def orthogonal(vectors):
    """Rotate vectors in pairs until they are orthogonal (Jacobi); the shortest first."""
    vectors = [list(x) for x in vectors]
    for _ in range(20):
        for i in range(len(vectors)):
            for j in range(i):
                x, y = vectors[i], vectors[j]
                turn = 0.5 * math.atan2(2 * dot(x, y), dot(x, x) - dot(y, y))
                c, s = math.cos(turn), math.sin(turn)
                vectors[i] = [c * p + s * q for p, q in zip(x, y, strict=True)]
                vectors[j] = [c * q - s * p for p, q in zip(x, y, strict=True)]
    return sorted(vectors, key=lambda x: dot(x, x))


def predict_precision(B, W, lam, q):
    """B and W of P / lam + q I, P^-1 = B + W W'; W None is no column."""
    B, W = scaled(lam, B), W and scaled(math.sqrt(lam), W)
    D = add(eye(len(B)), scaled(q, B))
    if W and W[0]:
        DW = solve(D, W)
        C = cholesky(add(eye(len(W[0])), scaled(q, matmul(transpose(W), DW))))
        W = transpose(solve(C, transpose(DW)))
    return solve(D, B), W


def covariance(B, W):
    """P = B^-1 - B^-1 W (I + W' B^-1 W)^-1 W' B^-1."""
    P = solve(B, eye(len(B)))
    if W and W[0]:
        BW = solve(B, W)
        C = add(eye(len(W[0])), matmul(transpose(W), BW))
        P = add(P, scaled(-1, matmul(BW, solve(C, transpose(BW)))))
    return P


def absorb(B, W, rows, same):
    """Of the columns of [W, rows'] the longest stay in W; the others go into B, by `same`."""
    columns = orthogonal(transpose(W) + rows) if W and W[0] else rows
    gone, kept = columns[: len(rows)], columns[len(rows) :]
    more = matmul(transpose(gone), gone)
    more = [[x * s for x, s in zip(*both, strict=True)] for both in zip(more, same, strict=True)]
    return add(B, more), [[w[i] for w in kept] for i in range(len(B))]


def precision_update(theta, B, W, H, e, R, lam, q, same):
    B, W = predict_precision(B, W, lam, q)
    P = covariance(B, W)
    S = add(spread(H, P), R)
    K = gain(H, P, S)
    return S, K, move(theta, K, e), *absorb(B, W, solve(cholesky(R), H), same)


def diagonal_matrix(values):
    return [[u if i == j else 0.0 for j in range(len(values))] for i, u in enumerate(values)]


def same_block(blocks):
    return [[float(a == b) for b in blocks] for a in blocks]


def kalman_lowrank_update(theta, U, W, H, e, R, lam, q):
    like, same = theta, eye(len(U))
    B = diagonal_matrix(U.tolist())
    theta, H, e, R = (a.tolist() for a in (theta, H, e, R))
    low = W.tolist() if W.size else None
    S, K, theta, B, W = precision_update(theta, B, low, H, e, R, lam, q, same)
    return arrays(like, S=S, K=K, theta=theta, U=[row[i] for i, row in enumerate(B)], W=W)


def kalman_block_update(theta, U, H, e, R, blocks, lam, q, W=None):
    like, same = theta, same_block(blocks or [0] * len(U))
    theta, U, H, e, R = (a.tolist() for a in (theta, U, H, e, R))
    low = None if W is None or not W.size else W.tolist()
    S, K, theta, U, low = precision_update(theta, U, low, H, e, R, lam, q, same)
    return arrays(like, S=S, K=K, theta=theta, U=U) | ({} if W is None else arrays(like, W=low))


# --------------------------------------------------------------- observation


def softmax(z):
    top = max(z)
    s = [math.exp(v - top) for v in z]
    total = sum(s)
    return [v / total for v in s]


def covariance_of_one_hot(rows):
    """J = diag(yhat) - yhat yhat', one block per sample."""
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


def projections(layer):
    """An attention's linears under their full names."""
    return {key: layer[key] | {"name": f"{layer['name']}.{key}"} for key in "qkvo"}


def own_arrays(layer):
    """Names and shapes of a layer's arrays but its factors, in packing order."""
    kind, width = layer["kind"], layer.get("width")
    if kind == "linear":
        bias = [("b", (layer["out"],))] if layer.get("bias", True) else []
        return [("W", (layer["out"], layer["in"])), *bias]
    if kind == "layernorm":
        return [("g", (width,)), ("b", (width,))] if layer.get("affine", True) else []
    rows = {
        "embedding": {
            "token": layer.get("vocab"),
            "position": layer.get("positions"),
            "type": layer.get("types"),
        },
        "prepend": {"token": layer.get("count", 1)},
        "positions": {"position": layer.get("count")},
    }
    return [(key, (count, width)) for key, count in rows[kind].items() if count]


def holders(spec):
    """The layers with arrays, in the order of the spec."""
    found = []
    for layer in spec:
        if layer["kind"] == "residual":
            found += holders(layer["layers"])
        elif layer["kind"] == "attention":
            found += [{"kind": "linear"} | linear for linear in projections(layer).values()]
        elif "name" in layer:
            found.append(layer)
    return found


def trained(spec, train):
    """Each layer of which theta holds something, with the names and shapes, in packing order."""
    if train == "weights":
        return [(layer, own_arrays(layer)) for layer in holders(spec)]
    return [(layer, factors(layer)) for layer in holders(spec) if layer.get("lora")]


def with_theta(spec, weights, theta, train):
    """The frozen weights, and what is trained cut out of theta row by row."""
    weights, at = dict(weights), 0
    for layer, shapes in trained(spec, train):
        for key, shape in shapes:
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


# A layer works on a list of vectors: the tokens of one sample, or one vector where there are none.
# forward: (layer, weights, rows, sample) -> (rows, kept); sample["mask"] says which tokens count.
# back: (layer, weights, kept, d, pieces) -> d, the cotangent of each vector; pieces gets, by the
# layer's name, the derivative by what is trained, which its entry "train" names.


def plus(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def gather(pieces, name, piece):
    """Add a token's part of a derivative to the others'."""
    pieces[name] = plus(pieces[name], piece) if name in pieces else piece


def linear(layer, weights, rows, sample):
    """y = W x + b + scale (B u + bB), u = A x + bA."""
    w = {k: weights.get(f"{layer['name']}.{k}") for k in ("W", "b", "A", "B", "bA", "bB")}
    out, inner = [], []
    for x in rows:
        y = matvec(w["W"], x)
        if w["b"] is not None:
            y = plus(y, w["b"])
        if layer.get("lora"):
            scale = layer["lora"]["alpha"] / layer["lora"]["r"]
            u = matvec(w["A"], x)
            if w["bA"] is not None:
                u = plus(u, w["bA"])
            v = matvec(w["B"], u)
            if w["bB"] is not None:
                v = plus(v, w["bB"])
            y = [a + scale * b for a, b in zip(y, v, strict=True)]
            inner.append(u)
        out.append(y)
    return out, (rows, inner)


def branch_cotangent(scale, d):
    """y = W x + b + scale v: what the branch's v gets of y's cotangent d."""
    return [scale * g for g in d]


def linear_back(layer, weights, kept, d, pieces):
    rows, inner = kept
    name, out = layer["name"], []
    Wt = transpose(weights[f"{name}.W"])
    for t, g in enumerate(d):
        dx = matvec(Wt, g)
        if pieces["train"] == "weights":
            bias = g if layer.get("bias", True) else []
            gather(pieces, name, [p * v for p in g for v in rows[t]] + bias)
        if layer.get("lora"):
            scale = layer["lora"]["alpha"] / layer["lora"]["r"]
            dv = branch_cotangent(scale, g)
            du = matvec(transpose(weights[f"{name}.B"]), dv)
            piece = [p * v for p in du for v in rows[t]] + [p * v for p in dv for v in inner[t]]
            if layer["lora"].get("bias"):
                piece += du + dv
            if pieces["train"] == "factors":
                gather(pieces, name, piece)
            dx = plus(dx, matvec(transpose(weights[f"{name}.A"]), du))
        out.append(dx)
    return out


ROOT = math.sqrt(2 / math.pi)


def activation(kind, x):
    if kind == "tanh":
        return [math.tanh(v) for v in x]
    if kind == "relu":
        return [max(v, 0.0) for v in x]
    if kind == "gelu":
        return [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    if kind == "gelu_tanh":
        return [v * 0.5 * (1 + math.tanh(ROOT * (v + 0.044715 * v**3))) for v in x]
    y = softmax(x)
    if kind == "softmax":
        return y
    top = max(x)
    log = math.log(sum(math.exp(v - top) for v in x))
    return [v - top - log for v in x]


def slope(kind, x, y):
    """Derivative of an elementwise activation; x input, y output."""
    if kind == "tanh":
        return 1 - y * y
    if kind == "relu":
        return 1.0 if x > 0 else 0.0
    if kind == "gelu":
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + math.erf(x / math.sqrt(2))) + x * density
    t = math.tanh(ROOT * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT * (1 + 3 * 0.044715 * x * x)


def activate(layer, weights, rows, sample):
    out = [activation(layer["kind"], x) for x in rows]
    return out, (rows, out)


def softmax_back(y, d):
    mean = sum(g * v for g, v in zip(d, y, strict=True))
    return [v * (g - mean) for g, v in zip(d, y, strict=True)]


def activate_back(layer, weights, kept, d, pieces):
    kind, out = layer["kind"], []
    for x, y, g in zip(*kept, d, strict=True):
        if kind == "softmax":
            out.append(softmax_back(y, g))
        elif kind == "log_softmax":
            total = sum(g)
            out.append([p - v * total for p, v in zip(g, softmax(x), strict=True)])
        else:
            out.append([p * slope(kind, a, b) for p, a, b in zip(g, x, y, strict=True)])
    return out


def layernorm(layer, weights, rows, sample):
    """g nu + b, nu = (x - mean) / sqrt(var + eps)."""
    d = layer["width"]
    gain = weights.get(f"{layer['name']}.g", [1.0] * d)
    shift = weights.get(f"{layer['name']}.b", [0.0] * d)
    out, kept = [], []
    for x in rows:
        mean = sum(x) / d
        centred = [v - mean for v in x]
        s = 1 / math.sqrt(sum(v * v for v in centred) / d + layer.get("eps", 1e-5))
        nu = [v * s for v in centred]
        out.append([a * v + b for a, v, b in zip(gain, nu, shift, strict=True)])
        kept.append((nu, s, gain))
    return out, kept


def layernorm_back(layer, weights, kept, d, pieces):
    out = []
    for (nu, s, gain), g in zip(kept, d, strict=True):
        if pieces["train"] == "weights" and layer.get("affine", True):
            gather(pieces, layer["name"], [a * b for a, b in zip(g, nu, strict=True)] + g)
        dnu = [a * b for a, b in zip(gain, g, strict=True)]
        mean = sum(dnu) / len(nu)
        along = sum(a * b for a, b in zip(dnu, nu, strict=True)) / len(nu)
        out.append([s * (a - mean - b * along) for a, b in zip(dnu, nu, strict=True)])
    return out


def attention(layer, weights, rows, sample):
    """Head by head, query by query: y = a v, a = softmax(q k' / sqrt c) over the keys it sees."""
    linears, kept, out = projections(layer), {}, {}
    for key in "qkv":
        out[key], kept[key] = linear(linears[key], weights, rows, sample)
    t, width = len(rows), len(out["q"][0])
    c = width // layer["heads"]
    mixed, shares = zeros(t, width), {}
    for h in range(layer["heads"]):
        own = range(h * c, (h + 1) * c)
        for j in range(t):
            last = j + 1 if layer.get("causal") else t
            seen = [k for k in range(last) if sample["mask"] is None or sample["mask"][k]]
            s = [sum(out["q"][j][i] * out["k"][k][i] for i in own) / math.sqrt(c) for k in seen]
            share = shares[h, j] = dict(zip(seen, softmax(s) if seen else [], strict=True))
            for i in own:
                mixed[j][i] = sum(a * out["v"][k][i] for k, a in share.items())
    y, kept["o"] = linear(linears["o"], weights, mixed, sample)
    return y, (kept, out, shares)


def attention_back(layer, weights, kept, d, pieces):
    caches, out, shares = kept
    linears = projections(layer)
    d = linear_back(linears["o"], weights, caches["o"], d, pieces)
    t, width = len(d), len(d[0])
    c = width // layer["heads"]
    back = {key: zeros(t, width) for key in "qkv"}
    for (h, j), share in shares.items():
        own = range(h * c, (h + 1) * c)
        da = [sum(d[j][i] * out["v"][k][i] for i in own) for k in share]
        ds = softmax_back(list(share.values()), da)
        for (k, a), g in zip(share.items(), ds, strict=True):
            for i in own:
                back["v"][k][i] += a * d[j][i]
                back["q"][j][i] += g * out["k"][k][i] / math.sqrt(c)
                back["k"][k][i] += g * out["q"][j][i] / math.sqrt(c)
    parts = [linear_back(linears[k], weights, caches[k], back[k], pieces) for k in "qkv"]
    return add(add(parts[0], parts[1]), parts[2])


def residual(layer, weights, rows, sample):
    y, trace = forward(layer["layers"], weights, rows, sample)
    return add(rows, y), trace


def residual_back(layer, weights, kept, d, pieces):
    return add(d, backward(layer["layers"], weights, kept, d, pieces))


def embedding(layer, weights, x, sample):
    """Token, position and type; sets the mask."""
    names = layer.get("inputs") or ["ids"]
    given = {"ids": x} if len(names) == 1 else dict(zip(names, x, strict=True))
    given = {key: [int(v) for v in row] for key, row in given.items()}
    ids, pad, start = given["ids"], layer.get("pad"), layer.get("start")
    real = [pad is None or v != pad for v in ids]
    if "mask" in given:
        sample["mask"] = [v != 0 for v in given["mask"]]
    elif pad is not None:
        sample["mask"] = real
    types = given.get("types", [0] * len(ids))
    rows, used = [], []
    for j, token in enumerate(ids):
        at = j
        if start is not None:
            at = start + (sum(real[: j + 1]) if real[j] else 0)
        name = layer["name"]
        y = plus(weights[f"{name}.token"][token], weights[f"{name}.position"][at])
        rows.append(plus(y, weights[f"{name}.type"][types[j]]) if layer.get("types") else y)
        used.append((token, at, types[j]))
    return rows, used


def tables_back(layer, weights, used, d, pieces):
    """Each row of a table gets the cotangents of the tokens that use it."""
    if pieces["train"] == "weights":
        tables = [zeros(*shape) for _, shape in own_arrays(layer)]
        for rows, g in zip(used, d, strict=False):
            for table, row in zip(tables, rows, strict=False):
                table[row] = plus(table[row], g)
        gather(pieces, layer["name"], flat(flat(tables)))
    return d


def patchify(layer, weights, x, sample):
    (channels, h, w), (ph, pw) = layer["image"], layer["patch"]
    pixels = x
    while isinstance(pixels[0], list):
        pixels = flat(pixels)
    return [
        [
            pixels[(k * h + top + i) * w + left + j]
            for k in range(channels)
            for i in range(ph)
            for j in range(pw)
        ]
        for top in range(0, h, ph)
        for left in range(0, w, pw)
    ], None


def prepend(layer, weights, rows, sample):
    tokens = weights[f"{layer['name']}.token"]
    if sample["mask"] is not None:
        sample["mask"] = [True] * len(tokens) + sample["mask"]
    return tokens + rows, [(j,) for j in range(len(tokens))]


def prepend_back(layer, weights, used, d, pieces):
    return tables_back(layer, weights, used, d, pieces)[len(used) :]


def positions(layer, weights, rows, sample):
    table = weights[f"{layer['name']}.position"]
    return add(rows, table[: len(rows)]), [(j,) for j in range(len(rows))]


def pool(layer, weights, rows, sample):
    """One vector: a weighted sum of the tokens."""
    mask = sample["mask"] or [True] * len(rows)
    share = [m / sum(mask) for m in mask]
    if layer["how"] == "cls":
        share = [float(j == 0) for j in range(len(rows))]
    return matmul([share], rows), share


def pool_back(layer, weights, share, d, pieces):
    return [[a * g for g in d[0]] for a in share]


def through(layer, weights, kept, d, pieces):
    return d


ACTIVATIONS = ("relu", "tanh", "gelu", "gelu_tanh", "softmax", "log_softmax")
KINDS = {
    "linear": (linear, linear_back),
    "layernorm": (layernorm, layernorm_back),
    "attention": (attention, attention_back),
    "residual": (residual, residual_back),
    "embedding": (embedding, tables_back),
    "patchify": (patchify, through),
    "prepend": (prepend, prepend_back),
    "positions": (positions, tables_back),
    "pool": (pool, pool_back),
    **dict.fromkeys(ACTIVATIONS, (activate, activate_back)),
}


def forward(spec, weights, rows, sample):
    trace = []
    for layer in spec:
        if layer["kind"] not in KINDS:
            raise NotImplementedError(f"no layer of kind '{layer['kind']}'")
        rows, kept = KINDS[layer["kind"]][0](layer, weights, rows, sample)
        trace.append(kept)
    return rows, trace


def backward(spec, weights, trace, d, pieces):
    for layer, kept in zip(reversed(spec), reversed(trace), strict=True):
        d = KINDS[layer["kind"]][1](layer, weights, kept, d, pieces)
    return d


def run_sample(spec, weights, x):
    """Output of one sample, and what each layer keeps."""
    raw = spec[0]["kind"] in ("embedding", "patchify")
    rows = x if raw or isinstance(x[0], list) else [x]
    (out,), trace = forward(spec, weights, rows, {"mask": None})
    return out, trace


def jacobian_row(spec, weights, trace, d, train):
    """Derivative of <d, output> by everything that is trained, in packing order."""
    pieces = {"train": train}
    backward(spec, weights, trace, [d], pieces)
    return [v for layer, shapes in trained(spec, train) if shapes for v in pieces[layer["name"]]]


def network(spec, weights, x, train):
    """z and Z, sample by sample."""
    z, Z = [], []
    for sample in x:
        out, trace = run_sample(spec, weights, sample)
        z.append(out)
        for j in range(len(out)):
            one = [float(i == j) for i in range(len(out))]
            Z.append(jacobian_row(spec, weights, trace, one, train))
    return z, Z


def lists(weights):
    return {name: value.tolist() for name, value in weights.items()}


def model_forward(x, weights, spec):
    return arrays(x, z=[run_sample(spec, lists(weights), row)[0] for row in x.tolist()])


def model_jacobian(x, weights, spec, train="factors"):
    z, Z = network(spec, lists(weights), x.tolist(), train)
    return arrays(x, z=z, Z=Z)


# ---------------------------------------------------------------------- LoKO


def posterior_innovation(z, Z, y, P):
    """v = y - softmax(z + G v), G = Z P Z': Newton's method, a step that overshoots halved."""
    G, m, C = spread(Z, P), len(Z), len(z[0])

    def look(v):
        a = plus(flat(z), matvec(G, v))
        q = [softmax(a[b : b + C]) for b in range(0, m, C)]
        return q, [s - t - u for s, t, u in zip(flat(y), flat(q), v, strict=True)]

    v = [0.0] * m
    q, r = look(v)
    best, least, idle = v, max(map(abs, r)), 0
    while idle < 10 and least > 0:
        JG = matmul(covariance_of_one_hot(q), G)
        system = [[JG[i][j] + (i == j) for j in range(m)] for i in range(m)]
        d = [row[0] for row in solve(system, [[a] for a in r])]
        Gd, size, t = matvec(G, d), max(map(abs, r)), 1.0
        while True:
            new = [a + t * b for a, b in zip(v, d, strict=True)]
            q, r = look(new)
            overshot = sum(a * b for a, b in zip(Gd, r, strict=True)) < 0
            if not overshot or max(map(abs, r)) <= size / 2 or t < 1e-16:
                break
            t /= 2
        v, now = new, max(map(abs, r))
        idle = 0 if now < least else idle + 1
        best, least = (v, now) if now < least else (best, least)
    return best


def half_information(yhat, Z):
    """Rows whose products add up to Z' J Z: in each sample diag(sqrt yhat)(Z - 1 yhat' Z)."""
    rows = []
    for b, q in enumerate(yhat):
        own = Z[b * len(q) : (b + 1) * len(q)]
        mean = matvec(transpose(own), q)
        rows += [[math.sqrt(s) * (a - c) for a, c in zip(r, mean, strict=True)]
                 for s, r in zip(q, own, strict=True)]  # fmt: skip
    return rows


def step(x, y, theta, P, R, frozen, o):
    """One step on lists; returns every quantity by name.

    P: variances, the dense matrix, or of a precision B + W W' the pair of B and W.
    """
    dense, precise = o["covariance"] == "dense", o["covariance"] in ("lowrank", "block")
    big = "P" if dense else "p"
    if precise:
        B, W = predict_precision(*P, o["lam"], o["q"])
        prior = covariance(B, W)
    else:
        prior = predict(P, o["lam"], o["q"])
    train = o["train"]
    z, Z = network(o["spec"], with_theta(o["spec"], frozen, theta, train), x, train)
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
    if o["solve"] == "implicit":
        v = posterior_innovation(z, Z, y, prior)
        new_theta = move(theta, p_times_ht(Z, prior), v)
    if precise:
        rows = half_information(yhat, Z) if glm else solve(cholesky(R_used), H)
        blocks = o["blocks"] if o["covariance"] == "block" else list(range(len(B)))
        B, W = absorb(B, W, rows, same_block(blocks))
        new_P = covariance(B, W)
        posterior = {"B": B, "W": W}
    elif dense or o["diagonal"] == "decoupled":
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
        **({} if precise else {f"{big}_pred": prior}),
        "z": z,
        "Z": Z,
        "yhat": flat(yhat),
        "e": e,
        "H": H,
        "R_used": R_used,
        "S": S,
        "K": K,
        **({"v": v} if o["solve"] == "implicit" else {}),
        "theta": new_theta,
        **(posterior if precise else {big: new_P}),
    }
    if glm:
        return out
    out["R"] = R_used
    if o["timing"] == "after":
        seen, P_seen = e, prior
        if o["noise"] == "ema_residual_hph":
            weights = with_theta(o["spec"], frozen, new_theta, train)
            z_post = [run_sample(o["spec"], weights, row)[0] for row in x]
            if o["observation"] != "gaussian":
                z_post = [softmax(row) for row in z_post]
            seen = [a - b for a, b in zip(flat(y), flat(z_post), strict=True)]
            P_seen = new_P
        out["R"] = refresh(o["noise"], R, seen, spread(H, P_seen), o["beta"])
    return out


def start(p, P, U, W):
    """Variances, the dense matrix, or of a precision the pair of B and W."""
    if U is None:
        return (p if P is None else P).tolist()
    low = None if W is None or not W.size else W.tolist()
    return U.tolist() if U.ndim == 2 else diagonal_matrix(U.tolist()), low


def returned(out, U, W):
    """What a step returns: of a precision U as it was given, and W where there is one."""
    if U is not None:
        B, low = out.pop("B"), out.pop("W")
        out["U"] = B if U.ndim == 2 else [row[i] for i, row in enumerate(B)]
        out |= {} if W is None else {"W": low}
    return out


def loko_step(x, y, theta, weights, p=None, P=None, R=None, U=None, W=None, **options):
    options = {"train": "factors", "solve": "linear"} | options
    state, noise = start(p, P, U, W), None if R is None else R.tolist()
    out = step(x.tolist(), y.tolist(), theta.tolist(), state, noise, lists(weights), options)
    return arrays(theta, **returned(out, U, W))


def loko_run(x, y, theta, weights, p=None, P=None, R=None, U=None, W=None, **options):
    options = {"train": "factors", "solve": "linear"} | options
    like, frozen = theta, lists(weights)
    theta, P = theta.tolist(), start(p, P, U, W)
    R = None if R is None else R.tolist()
    rows = []
    for xs, ys in zip(x.tolist(), y.tolist(), strict=True):
        out = step(xs, ys, theta, P, R, frozen, options)
        theta, R = out["theta"], out.get("R")
        P = (out["B"], out["W"]) if "B" in out else out.get("p", out.get("P"))
        rows.append(returned(out, U, W))
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


CATALOGUE = "operations/3"  # that it was written for, as 'loko-ref operations' prints it
IMPLEMENTATION = {
    "kalman.dense_update": kalman_dense_update,
    "kalman.diagonal_update": kalman_diagonal_update,
    "kalman.time_update": kalman_time_update,
    "kalman.lowrank_update": kalman_lowrank_update,
    "kalman.block_update": kalman_block_update,
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
