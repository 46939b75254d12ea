"""One LoKO step here, in torch, in JAX, and its bare matrix products: interleaved in one run.

    python tests/benchmarks/side_by_side.py [--rounds 3] [--seconds 1.5] [CONFIG:DTYPE ...]

The problems are those of ``loko-ref bench`` (``mlp_b1``, ``mlp_b32``, ``tf_small``, ``roberta``).
Every contestant is a process of its own, made ready once and warm; its step is held to the
readable route's before anything is timed. Then they take turns, and the best round's median
counts: these machines are shared, and a round can be slow for everyone.

``torch jacrev``: torch.func, all rows of the Jacobian in one vectorised pull-back; ``torch loop``:
a backward pass a row; ``jax``: the whole step jitted, the time to compile not counted; ``floor``:
the products alone, as a step without any insight into the network would do them, nothing
elementwise. Memory: how far a warm step raises the process's largest resident size; here with the
buffers that a run holds, which begins before the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, THREADS)

import numpy as np  # noqa: E402

from loko_ref import loko  # noqa: E402
from loko_ref.fast import bench, prepare  # noqa: E402

CONTESTANTS = ("loko_ref", "torch jacrev", "torch loop", "jax", "floor")
CASES = [
    f"{c}:{d}" for c in ("mlp_b1", "mlp_b32", "tf_small", "roberta") for d in ("float64", "float32")
]
CLOSE = {"float64": 1e-8, "float32": 2e-2}
"""Largest difference from the readable route's step, relative to the step."""


def network(spec, weights, x, ops):
    """Run a spec over a framework's arrays: x (..., tokens, i) or (..., i)."""
    for layer in spec:
        kind = layer["kind"]
        if kind == "linear":
            x = linear(layer, layer["name"], weights, x)
        elif kind in ("relu", "gelu", "tanh"):
            x = ops[kind](x)
        elif kind == "layernorm":
            name = layer["name"]
            x = ops["norm"](x, weights[f"{name}.g"], weights[f"{name}.b"], layer["eps"])
        elif kind == "residual":
            x = x + network(layer["layers"], weights, x, ops)
        elif kind == "attention":
            x = attention(layer, weights, x, ops)
        elif kind == "pool":
            x = x[..., 0, :] if layer["how"] == "cls" else x.mean(-2)
        else:
            raise SystemExit(f"a layer of kind {kind!r} is not in these problems")
    return x


def linear(layer, name, weights, x):
    y = x @ weights[f"{name}.W"].T + weights[f"{name}.b"]
    low = layer.get("lora")
    if low:
        scale = low["alpha"] / low["r"]
        y = y + scale * ((x @ weights[f"{name}.A"].T) @ weights[f"{name}.B"].T)
    return y


def attention(layer, weights, x, ops):
    name, heads = layer["name"], layer["heads"]
    q, k, v = (linear(layer[key], f"{name}.{key}", weights, x) for key in "qkv")
    split = [a.reshape(*a.shape[:-1], heads, -1).swapaxes(-2, -3) for a in (q, k, v)]
    y = ops["attend"](*split).swapaxes(-2, -3)
    return linear(layer["o"], f"{name}.o", weights, y.reshape(x.shape))


def softmax_step(theta, p, R, y, yhat, H, beta, lib):
    """The rule of the problems, by Cholesky, in a framework's own words."""
    e = y - yhat
    Hp = H * p
    G = Hp @ H.T
    R = beta * R + (1 - beta) * (e[:, None] * e + G)
    M = lib["solve"](G + R, Hp)  # K'
    return theta + M.T @ e, p - (M * H).sum(0) * p, R


def torch_contestant(config, state, batch, mode):
    step = torch_step(config, state, batch, mode)
    return lambda: [a.detach().numpy() for a in step()]


def torch_step(config, state, batch, mode, device="cpu"):
    """Make a step of torch's, from host arrays to tensors that stay on the device."""
    import torch
    from torch.func import jacrev, vmap

    torch.set_num_threads(int(THREADS))
    F = torch.nn.functional
    tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
    weights = {k: tensor(a) for k, a in config.model.weights.items()}
    ops = {
        "relu": torch.relu,
        "gelu": F.gelu,
        "tanh": torch.tanh,
        "norm": lambda x, g, b, eps: F.layer_norm(x, x.shape[-1:], g, b, eps),
        "attend": lambda q, k, v: F.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v,
    }
    theta, p, R, x = map(tensor, (state.theta, state.p, state.R, batch.x))
    C, names = config.model.outputs, config.model.trainable
    y = tensor(np.eye(C, dtype=state.theta.dtype)[batch.y].reshape(-1))
    sizes = [weights[k].numel() for k in names]

    def unpack(flat):
        parts = zip(names, flat.split(sizes), strict=True)
        return {k: a.reshape(weights[k].shape) for k, a in parts}

    def out(trained, sample):
        z = network(config.model.spec, weights | trained, sample, ops)
        yhat = F.softmax(z, -1)
        return yhat, yhat

    def solve(S, B):
        return torch.cholesky_solve(B, torch.linalg.cholesky(S))

    def step():
        trained = unpack(theta)
        if mode == "jacrev":
            J, yhat = vmap(jacrev(out, has_aux=True), (None, 0))(trained, x)
            H = torch.cat([J[k].reshape(y.shape[0], -1) for k in names], 1)
        else:
            trained = {k: a.detach().requires_grad_() for k, a in trained.items()}
            yhat = torch.stack([out(trained, sample)[0] for sample in x])
            rows = [
                torch.autograd.grad(v, list(trained.values()), retain_graph=True)
                for v in yhat.reshape(-1)
            ]
            H = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        with torch.no_grad():
            return softmax_step(theta, p, R, y, yhat.reshape(-1), H, config.beta, {"solve": solve})

    return step


def jax_contestant(config, state, batch):
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    weights = {k: jnp.asarray(a) for k, a in config.model.weights.items()}

    def norm(x, g, b, eps):
        n = x - x.mean(-1, keepdims=True)
        return n / jnp.sqrt((n * n).mean(-1, keepdims=True) + eps) * g + b

    ops = {
        "relu": jax.nn.relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "tanh": jnp.tanh,
        "norm": norm,
        "attend": lambda q, k, v: (
            jax.nn.softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        ),
    }
    C, names = config.model.outputs, config.model.trainable
    y = jnp.asarray(np.eye(C, dtype=state.theta.dtype)[batch.y].reshape(-1))
    stops = np.cumsum([weights[k].size for k in names])[:-1]

    def solve(S, B):
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(S), True), B)

    @jax.jit
    def step(theta, p, R, x, frozen):
        def out(flat, sample):
            parts = zip(names, jnp.split(flat, stops), strict=True)
            trained = {k: a.reshape(weights[k].shape) for k, a in parts}
            yhat = jax.nn.softmax(network(config.model.spec, frozen | trained, sample, ops), -1)
            return yhat, yhat

        H, yhat = jax.vmap(jax.jacrev(out, has_aux=True), (None, 0))(theta, x)
        H = H.reshape(y.shape[0], -1)
        return softmax_step(theta, p, R, y, yhat.reshape(-1), H, config.beta, {"solve": solve})

    given = [jnp.asarray(a) for a in (state.theta, state.p, state.R, batch.x)]
    return lambda: [np.asarray(a) for a in jax.block_until_ready(step(*given, weights))]


def products(spec, rows, cotangents, add):
    """List the products (as pairs of arrays) of a forward and a plain backward pass.

    rows: of the forward pass (batch * tokens); cotangents: of each row.
    """
    for layer in spec:
        kind = layer["kind"]
        if kind == "linear":
            of_linear(layer, rows, cotangents, add)
        elif kind == "residual":
            products(layer["layers"], rows, cotangents, add)
        elif kind == "attention":
            for key in "qkvo":
                of_linear(layer[key], rows, cotangents, add)
            h, t, m = layer["heads"], rows, cotangents
            c = layer["q"]["out"] // h
            add((h, t, c), (h, c, t))  # scores
            add((h, t, t), (h, t, c))  # values
            add((m, h, t, t), (m, h, t, c))  # dv
            add((m, h, t, c), (m, h, c, t))  # da
            add((m, h, t, t), (m, h, t, c))  # dq
            add((m, h, t, t), (m, h, t, c))  # dk
        elif kind == "pool":
            rows = 1
        # what is elementwise has no product


def of_linear(layer, rows, cotangents, add):
    i, o, m = layer["in"], layer["out"], rows * cotangents
    add((rows, i), (i, o))
    add((m, o), (o, i))
    low = layer.get("lora")
    if low:
        r = low["r"]
        add((rows, i), (i, r))
        add((rows, r), (r, o))
        add((m, o), (o, r))
        add((m, r), (r, i))
        if rows > 1:  # else an outer product
            add((cotangents, r, rows), (rows, i))
            add((cotangents, o, rows), (rows, r))


def floor_contestant(config, state, batch, xp=np):
    rng, dtype = np.random.default_rng(0), state.theta.dtype
    drawn, pairs = {}, []

    def array(shape, side):
        if (shape, side) not in drawn:
            drawn[shape, side] = xp.asarray(rng.standard_normal(shape).astype(dtype))
        return drawn[shape, side]

    def add(left, right):
        a, b = array(left, "left"), array(right, "right")
        pairs.append((a, b, xp.matmul(a, b)))

    C, size = config.model.outputs, batch.x.shape[0]
    # samples ride together where there are no tokens; the problems with tokens have one sample
    tokens = batch.x.shape[1] if batch.x.ndim == 3 else size
    if batch.x.ndim == 3:
        assert size == 1
    products(config.model.spec, tokens, C, add)
    m, n = size * C, config.model.n
    H, S = array((m, n), "H"), array((m, m), "S")

    def step():
        for a, b, out in pairs:
            xp.matmul(a, b, out=out)
        return H @ H.T, S @ H

    return step


def ready(contestant, case):
    """Make one contestant's step, held to the readable route's."""
    name, dtype = case.split(":")
    config, state, batch = bench.problem(name, dtype)
    if contestant == "floor":
        return floor_contestant(config, state, batch)
    if contestant == "loko_ref":
        stepper = prepare(config)

        def call():
            after, _ = stepper.step(state, batch)
            return after.theta, after.p, after.R
    elif contestant == "jax":
        call = jax_contestant(config, state, batch)
    else:
        call = torch_contestant(config, state, batch, contestant.split()[1])
    expected, _ = loko.step(state, batch, config)
    theta, p, R = call()
    pairs = (theta, expected.theta, state.theta), (p, expected.p, state.p), (R, expected.R, state.R)
    for key, (got, want, prior) in zip(("theta", "p", "R"), pairs, strict=True):
        error = np.abs(got - want).max() / np.abs(want - prior).max()
        if not error < CLOSE[dtype]:
            raise SystemExit(f"{contestant}, {case}: {key} is off by {error:.2g} of the step")
    return call


def work(contestant, case):
    """Be a contestant: answer each line ``seconds`` with a line of JSON."""
    own = None
    if contestant == "loko_ref":  # from before it holds its buffers; the others' are held already
        own = bench.measure(*case.split(":"), min_time=1e-3)["step_peak_mb"]
    call = ready(contestant, case)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        before = bench.peak_mb(reset=True)
        timing = bench.clock(call, float(line))
        peak = round(bench.peak_mb() - before, 1) if own is None else own
        print(json.dumps(timing | {"peak_mb": peak}), flush=True)


def compete(case, rounds, seconds):
    """Let all contestants take turns over one case."""
    running, row = {}, {"case": case}
    try:
        for contestant in CONTESTANTS:
            if contestant == "torch loop" and case.startswith("mlp_b32"):
                continue  # 320 backward passes
            with tempfile.TemporaryFile("w+") as told:
                one = subprocess.Popen(
                    [sys.executable, __file__, "--work", contestant, case],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=told,
                    text=True,
                )
                if not one.stdout.readline():
                    told.seek(0)
                    print(f"left out: {contestant}: {told.read()[-300:]}", file=sys.stderr)
                    continue
            running[contestant] = one
        best = defaultdict(lambda: {"median_ms": float("inf")})
        for _ in range(rounds):
            for contestant, one in running.items():
                one.stdin.write(f"{seconds}\n")
                one.stdin.flush()
                found = json.loads(one.stdout.readline())
                best[contestant] = min(best[contestant], found, key=lambda f: f["median_ms"])
    finally:
        for one in running.values():
            one.kill()
            one.wait(timeout=60)
    row["ms"] = {k: round(v["median_ms"], 3) for k, v in best.items()}
    row["peak_mb"] = {k: v["peak_mb"] for k, v in best.items() if k != "floor"}
    ours = row["ms"]["loko_ref"]
    torch = [v for k, v in row["ms"].items() if k.startswith("torch")]
    for key, other in (
        ("to torch", min(torch, default=None)),
        ("to JAX", row["ms"].get("jax")),
        ("to the floor", row["ms"]["floor"]),
    ):
        if other:
            row[key] = round(ours / other, 2)
    if row["peak_mb"].get("torch jacrev"):
        row["memory to torch jacrev"] = round(
            row["peak_mb"]["loko_ref"] / row["peak_mb"]["torch jacrev"], 2
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="a contestant and round")
    parser.add_argument("--json", help="write the rows there too")
    parser.add_argument("--work", nargs=2, metavar=("CONTESTANT", "CASE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(*asked.work)
        return
    rows = []
    for case in asked.cases:
        rows.append(compete(case, asked.rounds, asked.seconds))
        print(json.dumps(rows[-1]), flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps({"threads": int(THREADS), "rows": rows}))


if __name__ == "__main__":
    main()
