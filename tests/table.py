"""One table of every operation of the core, with inputs: for tests of dtype, device, mutation.

Each entry is (name, function, host inputs); the function takes the inputs as keywords and returns
a tree of arrays.
"""

from dataclasses import replace

import numpy as np

from loko_ref import arrays, loko, optimizers
from loko_ref.kalman import dense, diagonal, glm, noise, simplex, time
from loko_ref.kalman import observation as obs
from loko_ref.kalman.lowrank import Precision
from loko_ref.loko import Batch, LokoConfig
from loko_ref.loko.state import groups_for
from loko_ref.network import jacobian, lora, model
from loko_ref.network.layers import linear
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.model import init_model, mlp_spec, pack, unpack
from loko_ref.optimizers import SGD, AdaGrad, AdamW


def _spd(rng, m):
    G = rng.standard_normal((m, m))
    S = G @ G.T / m + np.eye(m)
    return (S + S.T) / 2


def trained(spec, seed=0):
    """A model whose factors B, bA, bB have moved off 0."""
    net = init_model(np.random.default_rng(seed), spec)
    theta = pack(net)
    return unpack(net, theta + np.random.default_rng(seed + 1).standard_normal(theta.size) / 4)


def mlp():
    return trained(mlp_spec([3, 4, 3], "gelu", {"r": 2, "alpha": 4.0, "bias": True}))


def encoder():
    """A small transformer: layer norms, residual attention, pooling."""
    lo = {"r": 1, "alpha": 2.0}

    def line(i, o, **name):
        return {**name, "in": i, "out": o, "lora": lo}

    def norm(name):
        return {"kind": "layernorm", "name": name, "width": 4}

    attention = {"kind": "attention", "name": "1", "heads": 2}
    attention |= {key: line(4, 4) for key in "qkvo"}
    spec = [
        {"kind": "residual", "layers": [norm("n0"), attention]},
        {"kind": "residual", "layers": [{"kind": "linear", **line(4, 4, name="2")}]},
        norm("n1"),
        {"kind": "pool", "how": "mean"},
        {"kind": "linear", **line(4, 3, name="3")},
    ]
    return trained(spec)


def text():
    """Token ids through an embedding, causal attention and the first token's head."""
    lo = {"r": 1, "alpha": 2.0}
    attention = {"kind": "attention", "name": "1", "heads": 2, "causal": True}
    attention |= {key: {"in": 4, "out": 4, "lora": lo} for key in "qkvo"}
    return trained(
        [
            {"kind": "embedding", "name": "0", "vocab": 7, "width": 4, "positions": 6},
            {"kind": "residual", "layers": [attention]},
            {"kind": "pool", "how": "cls"},
            {"kind": "linear", "name": "2", "in": 4, "out": 3, "lora": lo},
        ]
    )


def image():
    """Patches, a learnt first token, learnt positions, the first token's head."""
    lo = {"r": 1, "alpha": 2.0}
    return trained(
        [
            {"kind": "patchify", "image": (1, 4, 4), "patch": (2, 2)},
            {"kind": "linear", "name": "0", "in": 4, "out": 4, "lora": lo},
            {"kind": "prepend", "name": "1", "width": 4},
            {"kind": "positions", "name": "2", "width": 4, "count": 5},
            {"kind": "layernorm", "name": "3", "width": 4},
            {"kind": "pool", "how": "cls"},
            {"kind": "linear", "name": "4", "in": 4, "out": 3, "lora": lo},
        ]
    )


def whole(net):
    """The same with its weights trained, tables too, in place of its factors."""
    net = model.merge_lora(net)
    return model.Model(spec=net.spec, weights=net.weights, trainable="weights")


def _run(config, batches, batch):
    return loko.run(loko.init(config, batch=batch), batches, config)


def operations():
    """Yield (name, function, inputs) in float64 on the host."""
    rng = np.random.default_rng(11)
    x, dy = rng.standard_normal((2, 4)), rng.standard_normal((3, 2, 4))
    for name, (forward, vjp) in ACTIVATIONS.items():
        yield (
            f"layers.{name}",
            lambda x, dy, f=forward, v=vjp: [f(x), v(dy, f(x)[1])],
            {"x": x, "dy": dy},
        )
    site = {
        "W": rng.standard_normal((5, 4)),
        "b": rng.standard_normal(5),
        "A": rng.standard_normal((2, 4)),
        "B": rng.standard_normal((5, 2)),
        "bA": rng.standard_normal(2),
        "bB": rng.standard_normal(5),
    }
    for each in (False, True):
        yield (
            f"layers.linear[per_sample={each}]",
            lambda x, dy, params, each=each: [
                linear.forward(x, params, 2.0)[0],
                linear.vjp(dy, linear.forward(x, params, 2.0)[1], linear.PARAMS, per_sample=each),
            ],
            {"x": x, "dy": rng.standard_normal((3, 2, 5)), "params": site},
        )
    alpha = np.float64(8.0)  # a NumPy scalar must not widen float32
    yield "lora.delta", lambda A, B: lora.delta(A, B, alpha), {k: site[k] for k in "AB"}
    bias = {k: site[k] for k in ("B", "bA", "bB")}
    yield "lora.delta_bias", lambda B, bA, bB: lora.delta_bias(B, bA, bB, alpha), bias
    for f in (lora.merge, lora.unmerge):
        yield (
            f"lora.{f.__name__}",
            lambda W, A, B, f=f: f(W, A, B, alpha),
            {k: site[k] for k in "WAB"},
        )

    for name, net, inputs in (
        ("mlp", mlp(), rng.standard_normal((2, 3))),
        ("encoder", encoder(), rng.standard_normal((2, 5, 4))),
        ("text", text(), np.array([[0, 3, 6], [2, 2, 1]])),
        ("image", image(), rng.standard_normal((2, 1, 4, 4))),
        ("whole text", whole(text()), np.array([[0, 3, 6], [2, 2, 1]])),
    ):
        both = {"net": net, "x": inputs}
        yield f"model.forward[{name}]", lambda net, x: model.forward(net, x)[0], both
        yield (
            f"model.vjp[{name}]",
            lambda net, x, dz: model.vjp(net, dz, model.forward(net, x)[1]),
            both | {"dz": rng.standard_normal((2, 2, 3))},
        )
        yield (
            f"model.pack[{name}]",
            lambda net: [pack(net), unpack(net, pack(net)).weights],
            {"net": net},
        )
        yield f"model.merge_lora[{name}]", lambda net: model.merge_lora(net).weights, {"net": net}
        yield f"jacobian[{name}]", jacobian_of, both
        yield f"gradient[{name}]", gradient_of, both | {"dz": rng.standard_normal((2, 3))}
    for init in lora.INITS:
        yield (
            f"model.add_lora[{init}]",
            lambda net, init=init: (
                model.add_lora(
                    np.random.default_rng(0),
                    model.merge_lora(net),
                    r=2,
                    alpha=4.0,
                    init=init,
                    bias=True,
                ).weights
            ),
            {"net": mlp()},
        )

    n, m = 5, 3
    base = {
        "theta": rng.standard_normal(n),
        "H": rng.standard_normal((m, n)),
        "e": rng.standard_normal(m),
    }
    p, P, R = rng.uniform(0.5, 2.0, n), _spd(rng, n), _spd(rng, m)
    soft = rng.dirichlet(np.ones(m), 1)
    classes = {"theta": base["theta"], "Z": base["H"], "e": np.eye(m)[0] - soft[0], "yhat": soft}
    for form in dense.FORMS:
        own = np.diag(np.diagonal(R)) if form == "sequential" else R
        yield f"dense.update[{form}]", bind(dense.update, form=form), base | {"P": P, "R": own}
        yield f"dense.glm_update[{form}]", bind(dense.glm_update, form=form), classes | {"P": P}
    for kind in diagonal.DIAGONALS:
        yield (
            f"diagonal.update[{kind}]",
            bind(diagonal.update, diagonal=kind),
            base | {"p": p, "R": R},
        )
        # leverage above 1/2: the Joseph block
        sharp = base | {"p": p * 1e3, "R": R / 64}
        yield f"diagonal.update[{kind}, sharp]", bind(diagonal.update, diagonal=kind), sharp
        yield (
            f"diagonal.glm_update[{kind}]",
            bind(diagonal.glm_update, diagonal=kind),
            classes | {"p": p * 10},
        )
    lam, q = np.float64(0.5), np.float64(0.25)
    for name, cov in (("p", p), ("P", P)):
        yield f"time.update[{name}]", lambda cov: time.update(cov, lam, q), {"cov": cov}
        yield (
            f"time.update[{name}, q]",
            lambda cov, q: time.update(cov, 0.5, q),
            {"cov": cov, "q": p},
        )

    z, Z = rng.standard_normal((2, 3)), rng.standard_normal((6, n))
    y = np.eye(3)[[2, 0]]
    for kind in obs.OBSERVATIONS:
        yield f"observe[{kind}]", bind(obs.observe, observation=kind), {"z": z, "Z": Z, "y": y}
    yield (
        "observe[logits, center]",
        bind(obs.observe, observation="logits", center=True),
        {"z": z, "Z": Z, "y": y},
    )
    R6 = _spd(rng, 6)
    yield "condition_on_simplex", lambda R: simplex.condition_on_simplex(R, 3), {"R": R6}
    yield "contrasts", _contrasts, {"M": Z}
    yhat = rng.dirichlet(np.ones(3), 2)
    yield "without_reference", beside(glm.without_reference), {"yhat": yhat, "M": Z}
    yield "against_reference", beside(glm.against_reference), {"yhat": yhat, "M": Z}
    yield "whiten", beside(glm.whiten), {"yhat": yhat, "Mo": Z[:4]}
    yield "glm.gain", beside(glm.gain), {"yhat": yhat, "PZot": Z[:4].T, "G": Z[:4] @ Z[:4].T}
    yield (
        "jacobian_product",
        beside(obs.jacobian_product),
        {"yhat": rng.dirichlet(np.ones(3), 2), "M": Z},
    )
    HpH = R * 0.5
    for kind in noise.ESTIMATORS[:-1]:
        yield (
            f"noise.update[{kind}]",
            lambda R, e, HpH, kind=kind: noise.update(kind, R, e, HpH, np.float64(0.9)),
            {"R": R, "e": base["e"], "HpH": HpH},
        )

    net = mlp()
    p0 = {"0": np.float64(0.07), "1": 0.1}
    for observation, estimator, timing in noise.combinations():
        for covariance, size in (("diagonal", 1), ("diagonal", 2), ("dense", 1)):
            config = LokoConfig(
                model=net,
                observation=observation,
                noise=estimator,
                timing=timing,
                beta=np.float64(0.9),
                r0=np.float64(0.5),
                p0=p0,
                covariance=covariance,
                lam=np.float64(0.99),
                q=np.float64(1e-3),
                center=observation == "logits" and size == 2,
            )
            xs = [rng.standard_normal((size, 3)) for _ in range(3)]
            ys = [rng.integers(0, 3, size) for _ in xs]
            if observation == "gaussian":
                ys = [rng.standard_normal((size, 3)) for _ in xs]
            batches = [Batch(x=a, y=b) for a, b in zip(xs, ys, strict=True)]
            yield (
                f"loko.run[{observation}, {estimator}, {timing}, {covariance}, {size}]",
                lambda config, batches, size=size: _run(config, batches, size),
                {"config": config, "batches": batches},
            )
    for covariance, more in (
        ("lowrank", {"columns": 2}),
        ("block", {"columns": 1}),
        ("block", {"blocks": "tensor", "solve": "implicit"}),
        ("dense", {"solve": "implicit"}),
    ):
        config = LokoConfig(model=net, covariance=covariance, lam=0.5, q=0.25, **more)
        batches = [Batch(x=rng.standard_normal((2, 3)), y=rng.integers(0, 3, 2)) for _ in range(3)]
        yield (
            f"loko.run[{covariance}, {', '.join(map(str, more.values()))}]",
            lambda config, batches: determined(_run(config, batches, 2)[0], config),
            {"config": config, "batches": batches},
        )
    rate = np.float64(0.1)
    for config in (
        SGD(lr=rate, momentum=np.float64(0.9), weight_decay=rate, nesterov=True),
        SGD(lr=rate, momentum=0.9, dampening=rate),
        AdaGrad(lr=rate, lr_decay=rate, weight_decay=rate, initial_accumulator_value=rate),
        AdamW(lr=rate, weight_decay=rate, beta1=np.float64(0.5), eps=np.float64(1e-8)),
    ):
        yield (
            f"optimizers.{config}",
            bind(optimize, config=config),
            {"theta": base["theta"], "gradient": rng.standard_normal(n)},
        )

    yield "arrays.cholesky", lambda S: arrays.cholesky(S, "S"), {"S": R}
    yield "arrays.solve", arrays.solve, {"A": R + 1.0, "b": base["H"]}
    yield (
        "arrays.cho_solve",
        lambda S, b: arrays.cho_solve(arrays.cholesky(S, "S"), b),
        {"S": R, "b": base["H"]},
    )
    yield "arrays.eigvalsh", arrays.eigvalsh, {"S": R}
    yield "arrays.erf", lambda x: [arrays.erf(x), arrays.erfc(x)], {"x": x}
    yield "arrays.contrast_basis", lambda like: arrays.contrast_basis(4, like), {"like": x}


def determined(state, config):
    """What a state determines: of a precision B + W W' its matrix and variances, not W."""
    if state.U is None:
        return state
    P = Precision(U=state.U, W=state.W, groups=groups_for(config))
    return [replace(state, U=None, W=None), P.dense(), P.variances()]


def beside(f):
    """Give an unchecked function the namespace of its arrays."""
    return lambda **inputs: f(arrays.namespace(*inputs.values()), **inputs)


def _contrasts(M):
    Q = arrays.contrast_basis(3, M)
    return simplex.from_contrast(Q, simplex.to_contrast(Q, M))


def bind(f, **options):
    return lambda **inputs: f(**inputs, **options)


def jacobian_of(net, x):
    return jacobian.jacobian(net, x)


def gradient_of(net, x, dz):
    return jacobian.gradient(net, x, dz)


def optimize(theta, gradient, config):
    state = optimizers.init(theta, config)
    for _ in range(3):
        state = optimizers.step(state, gradient, config)
    return state
