"""Facts of networks: derivatives, LoRA, batches, norms, residuals, embeddings, pools.

Those of attention are in ``attention``. Shapes: x (batch, ...); z (batch, C); Z (m, n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as hs

from loko_ref import strategies as st
from loko_ref.arrays import Array
from loko_ref.network.spec import factor_shapes, linears
from loko_ref.properties.nets import (
    bert,
    branches,
    changed,
    head,
    layers,
    nets,
    norms,
    replaced,
    run,
    same,
    site,
    spec_of,
)
from loko_ref.properties.numbers import derivative
from loko_ref.properties.registry import fact
from loko_ref.properties.trial import Trial, Unsuitable, exact
from loko_ref.strategies.transformers import Built

FORWARD, JACOBIAN = "model.forward", "model.jacobian"
SEEN = 1e-6  # of a derivative: how well differences must know it to detect code that drops parts


def _any(draw: hs.DrawFn, small: bool) -> Any:
    if draw(hs.booleans()):
        return draw(st.transformer_specs(max_layers=1, max_width=2 if small else 4, eps=0.25))
    if small:
        return [site("0", draw(hs.integers(1, 2)), draw(hs.integers(1, 2)), bias=False)]
    return draw(st.models(max_width=4, max_depth=2)).spec


def check_derivative(t: Trial) -> None:
    """Raise unless Z v is the derivative of z along two directions v.

    By central differences; and by a complex step where it agrees with them: code that takes complex
    numbers is held to the tolerance of Z alone.
    """
    got, spec = t.run(), spec_of(t)
    if not got.has("z", "Z"):
        return
    shapes = factor_shapes(spec)
    n = got["Z"].shape[1]
    for turn in (0, 1):
        v = np.roll(1.0 + np.arange(n), turn * (n // 2)) / 2 ** np.ceil(np.log2(n + 1))
        parts = np.split(v, np.cumsum([int(np.prod(s)) for s in shapes.values()])[:-1])
        line = {k: p.reshape(s) for p, (k, s) in zip(parts, shapes.items(), strict=True)}
        size = {k: np.max(np.abs(a), initial=0.0) for k, a in t.given["weights"].items()}
        u = float(np.finfo(t.dtype).eps)
        off = np.abs(got["Z"]).sum(axis=1) * u * (1 + max(size.values()))

        def along(h: float, line: Any = line, off: Array = off) -> tuple[Array, Array]:
            moved = changed(t)
            moved |= {k: moved[k] + h * step for k, step in line.items()}
            z = t.values(weights=moved)["z"]
            return z.reshape(-1), 2 * got.tol["z"].reshape(-1) + off

        slope, bound = derivative(along, 2.0**-5)
        t.near("Z v", got["Z"] @ v, slope, got.tol["Z"] @ v + bound)
        if np.max(bound) <= SEEN * np.max(np.abs(slope)):  # else half a step could pass for one
            sharp = t.complex_step(line)
            if sharp is not None and (np.abs(sharp["z"].reshape(-1) - slope) <= bound).all():
                t.near("Z v", got["Z"] @ v, sharp["z"].reshape(-1), 2 * got.tol["Z"] @ v)


@fact(JACOBIAN, "derivative", "LAY-9 LAY-10 LORA-4",
      "Z v is the derivative of z as the factors move along v", nets(_any),
      "where extrapolated central differences converge")  # fmt: skip
def _derivative(t: Trial) -> None:
    check_derivative(t)


def check_merged(t: Trial) -> None:
    """Raise unless the branches folded into W and b give the same outputs."""
    weights = {k: exact(a) for k, a in t.given["weights"].items()}
    changes: dict[str, Any] = {}
    for linear in linears(spec_of(t)):
        lora, name = linear.get("lora"), linear["name"]
        if not lora:
            continue
        scale = exact(lora["alpha"]) / lora["r"]
        A, B = weights[f"{name}.A"], weights[f"{name}.B"]
        changes[f"{name}.W"] = weights[f"{name}.W"] + scale * (B @ A)
        changes[f"{name}.B"] = 0 * B
        if lora.get("bias"):
            extra = scale * (B @ weights[f"{name}.bA"] + weights[f"{name}.bB"])
            if f"{name}.b" not in weights:
                raise Unsuitable("a LoRA bias without a bias")
            changes[f"{name}.b"] = weights[f"{name}.b"] + extra
            changes[f"{name}.bB"] = 0 * weights[f"{name}.bB"]
    same(t, t.run(), run(t, {k: np.asarray(a, dtype=float) for k, a in changes.items()}))


def _active(draw: hs.DrawFn, small: bool) -> Any:
    kind, width = draw(hs.sampled_from(["softmax", "log_softmax", "tanh"])), 2 if small else 3
    ends = site("0", width - 1, width, not small), site("1", width, width - 1, not small)
    return [ends[0], {"kind": kind}, ends[1]]


@fact(JACOBIAN, "derivative of an activation", "LAY-4 LAY-7 LAY-8",
      "Z v is the derivative of z as the factors on both sides of it move along v", nets(_active),
      "softmax, log_softmax, tanh")  # fmt: skip
def _activation(t: Trial) -> None:
    check_derivative(t)


@fact(FORWARD, "merged", "LORA-3 LAY-2 LAY-3",
      "W + scale B A and b + scale (B bA + bB) in place of the branches give the same outputs",
      nets(_any))  # fmt: skip
def _merged(t: Trial) -> None:
    check_merged(t)


@fact(
    f"{FORWARD} {JACOBIAN}",
    "stacked",
    "LAY-10",
    "a batch is its samples: z and Z stacked sample by sample",
    nets(_any),
    "batches of 2",
)
def _stacked(t: Trial) -> None:
    (x,) = t.wide("x")
    if len(x) < 2:
        raise Unsuitable("one sample")
    whole = t.run()
    for b in range(len(x)):
        one = t.run(x=x[b : b + 1])
        for name in one:
            if whole.has(name):
                rows = len(one[name])
                part = slice(b * rows, (b + 1) * rows)
                bound = one.tol[name] + whole.tol[name][part]
                t.near(name, whole[name][part], one[name], bound)


def _flat(draw: hs.DrawFn, small: bool) -> Any:
    i, w = draw(hs.integers(1, 2)), draw(hs.integers(1, 2 if small else 4))
    return [site("0", i, w), {"kind": "relu"}, site("1", w, 2)]


@fact(FORWARD, "bias", "LAY-1", "what is added to the last bias is added to z", nets(_flat),
      "a last linear with a bias")  # fmt: skip
def _bias(t: Trial) -> None:
    a, b = t.run(), run(t, {"1.b": lambda b: b + 4.0})
    t.near("z", exact(b["z"]) - exact(a["z"]), np.full(a["z"].shape, 4.0), a.tol["z"] + b.tol["z"])


@fact(FORWARD, "relu", "LAY-5", "a ReLU of what is negative is 0", nets(_flat), "ReLU")
def _relu(t: Trial) -> None:
    dead = {"0.W": lambda a: 0 * a, "0.B": lambda a: 0 * a, "0.bB": lambda a: 0 * a}
    got = run(t, dead | {"0.b": lambda b: -3 - np.abs(b)})
    other = run(t, dead | {"0.b": lambda b: -9 - np.abs(b)})
    same(t, got, other)


# -------------------------------------------------------------------------------------- norms


def _norm(draw: hs.DrawFn, small: bool) -> Any:
    w = draw(hs.integers(2, 2 if small else 4))
    norm = {"kind": "layernorm", "name": "n", "width": w, "eps": draw(hs.sampled_from([0.25, 2.0]))}
    return [norm, {"kind": "pool", "how": "mean"}, {**site("head", w, w), "bias": False}]


IDENTITY: dict[str, Any] = {
    "head.W": lambda W: np.eye(len(W)),
    "head.B": lambda B: 0 * B,
    "head.bB": lambda b: 0 * b,
}


@fact(FORWARD, "norm's shift", "ATT-1", "a constant added to a token does not change its norm",
      nets(_norm), "layernorm")  # fmt: skip
def _norm_shift(t: Trial) -> None:
    (x,) = t.wide("x")
    a = t.run()
    for c in (4.0, 2.0**12):
        same(t, a, t.run(x=x + c * (1 + np.arange(x.shape[1]))[:, None]))


@fact(FORWARD, "norm's scale", "ATT-1", "2 x with 4 eps has the norm of x", nets(_norm),
      "layernorm")  # fmt: skip
def _norm_scale(t: Trial) -> None:
    (x,), spec = t.wide("x"), spec_of(t)
    eps = 4 * spec[0]["eps"]
    same(t, t.run(), run(t, spec=replaced(spec, "layernorm", eps=eps), x=2 * x))


@fact(FORWARD, "norm's power", "ATT-1", "the squares of a normed token sum to w var / (var + eps)",
      nets(_norm), "layernorm, one token")  # fmt: skip
def _norm_power(t: Trial) -> None:
    x, spec = t.wide("x")[0][:, :1], spec_of(t)
    got = run(t, IDENTITY | {"n.g": np.ones_like, "n.b": lambda b: 0 * b}, x=x)
    rows = exact(x[:, 0])
    w = rows.shape[1]
    centred = rows - rows.sum(axis=1, keepdims=True) / w
    var = (centred**2).sum(axis=1) / w
    z, tol = exact(got["z"]), got.tol["z"]
    power = w * var / (var + exact(spec[0]["eps"]))
    t.near(
        "the sum of squares",
        (z**2).sum(axis=1),
        power,
        (2 * np.abs(got["z"]) * tol + tol**2).sum(axis=1),
    )
    t.near("the sum", z.sum(axis=1), 0 * power, tol.sum(axis=1))


@fact(FORWARD, "norm's bias", "ATT-1", "with g = 0 a norm gives b, whatever x", nets(_norm),
      "layernorm")  # fmt: skip
def _norm_bias(t: Trial) -> None:
    got = run(t, IDENTITY | {"n.g": lambda g: 0 * g})
    b = np.asarray(t.given["weights"]["n.b"], dtype=float)
    t.near("z", got["z"], np.broadcast_to(b, got["z"].shape), got.tol["z"])


# ---------------------------------------------------------------------------- residuals, blocks


def _residual(draw: hs.DrawFn, small: bool) -> Any:
    w = draw(hs.integers(1, 2 if small else 4))
    return [{"kind": "residual", "layers": [site("0", w, w)]}, head(w)]


@fact(FORWARD, "empty branch", "ATT-7", "a residual whose branch gives 0 changes nothing",
      nets(_residual), "residual")  # fmt: skip
def _empty(t: Trial) -> None:
    zero = {f"0.{key}": (lambda a: 0 * a) for key in ("W", "b", "B", "bB")}
    got = run(t, zero)
    (x,), W = t.exact("x"), exact(t.given["weights"]["head.W"])
    t.near("z", got["z"], x @ W.T, got.tol["z"])


def _encoder(draw: hs.DrawFn, small: bool) -> Any:
    return draw(
        st.transformer_specs(
            kinds=("features",), max_layers=1, max_width=2 if small else 4, eps=0.25
        )
    )


def _idle_branches(t: Trial) -> dict[str, Any]:
    return branches(t, ("o", "f2"), ("W", "b", "B", "bB"))


@fact(FORWARD, "order of the norms", "ATT-7",
      "where branches give 0, a pre-norm block is the identity, a post-norm block its norms",
      nets(_encoder), "encoders")  # fmt: skip
def _order(t: Trial) -> None:
    spec, idle, (x,) = spec_of(t), _idle_branches(t), t.wide("x")
    inside = layers(spec, "layernorm")[len(norms(spec)) :]
    whole = run(t, idle)
    if inside:  # pre-norm: what its norms do is lost
        other = {f"{norm['name']}.g": (lambda g: g + 1) for norm in inside}
        same(t, whole, run(t, idle | other))
    flat = {f"{norm['name']}.g": (lambda g: 0 * g + 2) for norm in norms(spec)}
    outer = {f"{norm['name']}.b": (lambda b: 0 * b) for norm in norms(spec)}
    a = run(t, idle | flat | outer)
    same(t, a, run(t, idle | flat | outer, x=x + 4.0))  # a constant is lost in a norm
    if inside:
        once = [norms(spec)[-1]["name"]]
        if len(norms(spec)) == 1:  # one norm alone: that of x itself
            got = run(t, idle | {f"{once[0]}.g": lambda g: 0 * g + 1} | outer)
            scaled = run(
                t,
                idle | {f"{once[0]}.g": lambda g: 0 * g + 1} | outer,
                spec=replaced(spec, "layernorm", eps=1.0),
                x=2 * x,
            )
            same(t, got, scaled)


def _trunk(draw: hs.DrawFn, small: bool) -> Any:
    if draw(hs.booleans()):
        return bert(draw, small)
    return draw(
        st.transformer_specs(
            kinds=("features",), max_layers=1, max_width=2 if small else 4, eps=0.25
        )
    )


@fact(FORWARD, "norms of the trunk", "ATT-7 ATT-1",
      "behind a norm of the trunk with g = 0, no output depends on x", nets(_trunk),
      "encoders and texts without padding")  # fmt: skip
def _trunk_norms(t: Trial) -> None:
    spec, (x,) = spec_of(t), t.wide("x")
    other = x + 1 + np.arange(x.shape[-1]) ** 2
    if spec[0]["kind"] == "embedding":
        other = (x + 1) % spec[0]["vocab"]
    for norm in norms(spec):
        flat = {f"{norm['name']}.g": lambda g: 0 * g}
        same(t, run(t, flat), run(t, flat, x=other))


# --------------------------------------------------------------------------- the ends of a network


def _pooled(draw: hs.DrawFn, small: bool) -> Any:
    w = draw(hs.integers(1, 2 if small else 3))
    return [site("0", w, w), {"kind": "tanh"}, {"kind": "pool", "how": "mean"}, head(w)]


@fact(FORWARD, "mean of tokens", "ATT-6",
      "the mean over tokens: their order and their repetition change nothing", nets(_pooled),
      "pool mean")  # fmt: skip
def _mean(t: Trial) -> None:
    (x,) = t.wide("x")
    whole = t.run()
    same(t, whole, t.run(x=np.concatenate([x, x], axis=1)))
    same(t, whole, t.run(x=x[:, ::-1]))
    if x.shape[1] > 1:
        more = np.concatenate([x, x[:, :1], x[:, :1]], axis=1)
        same(t, t.run(x=more), t.run(x=more[:, ::-1]))


def _image(draw: hs.DrawFn, small: bool) -> Any:
    from loko_ref.network.architectures import vit_spec

    return Built(
        vit_spec,
        image=(2, 4, 4), patch=(2, 2), tokens=draw(hs.integers(0, 1)), layers=1, width=2, heads=1,
        ff=2, outputs=2, pool="mean", lora={"r": 1, "alpha": 2.0}, targets=["q", "v"], eps=0.25,
        activation="relu",
    )  # fmt: skip


def _pixels(x: Array) -> Array:
    return x.reshape(
        len(x), 2, 2, 2, 2, 2
    )  # batch, channel, row of patches, row, column of, column


@fact(FORWARD, "patches permuted", "ATT-5",
      "patches and their positions in another order give the same output", nets(_image),
      "images of 2 x 2 patches, mean over tokens")  # fmt: skip
def _patches(t: Trial) -> None:
    (x,) = t.wide("x")
    first = len(t.given["weights"]["pos.position"]) - 4
    order = np.array([1, 0, 2, 3])  # the first row's two
    rows = np.concatenate([np.arange(first), first + order])
    moved = _pixels(x).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 4, 2, 2, 2)[:, order]
    moved = moved.reshape(len(x), 2, 2, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape(x.shape)
    same(t, t.run(), run(t, {"pos.position": lambda p: p[rows]}, x=moved))


@fact(FORWARD, "pixels permuted", "ATT-5",
      "pixels exchanged with the columns of the first weight change nothing",
      nets(_image), "images of 2 x 2 patches of 2 x 2 pixels, 2 channels")  # fmt: skip
def _channels(t: Trial) -> None:
    (x,) = t.wide("x")
    pixels = _pixels(x)
    whole, index = t.run(), np.arange(8).reshape(2, 2, 2)
    for moved, order in ((pixels[:, ::-1], index[::-1]), (pixels[:, :, :, ::-1], index[:, ::-1])):
        columns = order.reshape(-1)
        changes = {f"patch.{key}": (lambda a, columns=columns: a[:, columns]) for key in ("W", "A")}
        same(t, whole, run(t, changes, x=moved.reshape(x.shape)))


@fact(FORWARD, "[CLS] and its position", "ATT-5",
      "a constant moved from the first position to [CLS] changes nothing", nets(_image),
      "images with [CLS]")  # fmt: skip
def _cls(t: Trial) -> None:
    name = next((k for k in t.given["weights"] if k.startswith("cls.")), None)
    if name is None:
        raise Unsuitable("no [CLS]")
    c = 1 + np.arange(2.0)

    def less(position: Array) -> Array:
        position[0] -= c
        return position

    pooled = replaced(spec_of(t), "pool", how="cls")
    for spec in (spec_of(t), pooled):
        same(t, run(t, spec=spec), run(t, {name: lambda a: a + c, "pos.position": less}, spec))
