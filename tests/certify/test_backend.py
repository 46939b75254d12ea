"""The same readable code on balls: it runs unchanged, and the float64 result is near the enclosure.

The bound in each comparison is the unit of error of BALL-5 (every input inflated by u, evaluated
in balls), times FACTOR = 8 for the operation count; what a computation with a rounded constant or
a wrong branch would give lies outside, as the tests at the end show.
"""

import numpy as np
import pytest

pytest.importorskip("flint", reason="python-flint (extra 'certify') is not installed")

from loko_ref import arrays, optimizers
from loko_ref import loko as loko_room
from loko_ref.arrays import balls, contrast_basis
from loko_ref.errors import InputError, NumericalError, UndecidedError
from loko_ref.kalman import dense, diagonal, noise, observation, simplex, time
from loko_ref.network import lora
from loko_ref.network.jacobian import gradient, jacobian
from loko_ref.network.layers import linear
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.model import Model, init_model, mlp_spec

FACTOR = 8
U = 2.0**-53


def convert(tree, f):
    if isinstance(tree, np.ndarray):
        return f(tree) if tree.dtype.kind == "f" else tree
    if isinstance(tree, dict):
        return {k: convert(v, f) for k, v in tree.items()}
    return tree


def agree(function, inputs, factor=FACTOR, bits=256):
    """The float64 outputs lie within factor units of the exact enclosure."""
    out = function(**inputs)
    with balls.precision(bits):
        exact = function(**convert(inputs, balls.balls))
        wide = function(**convert(inputs, lambda a: balls.inflate(a, U)))
        for name, value in out.items():
            if value is None:  # a result that this form does not have
                assert exact[name] is None
                continue
            for entry in np.asarray(exact[name], dtype=object).reshape(-1).tolist():
                assert type(entry).__name__ == "arb", (name, entry)
            centre = balls.to_host(exact[name])
            assert centre.shape == np.shape(value), name
            # an entry that is exactly 0 carries a radius of rounding; others are narrow
            assert (balls.radius(exact[name]) <= 1e-45 * max(1, np.abs(centre).max())).all(), name
            unit = np.maximum(np.maximum(balls.radius(wide[name]), U * np.abs(centre)), 5e-324)
            worst = np.max(np.abs(value - centre) / unit)
            assert worst <= factor, f"{name}: {worst:.3g} units"
    return exact


def spd(rng, m):
    A = rng.standard_normal((m, m))
    return A @ A.T + 0.1 * np.eye(m)


def update_inputs(rng, n=11, m=4):
    return {
        "theta": rng.standard_normal(n),
        "H": rng.standard_normal((m, n)),
        "e": rng.standard_normal(m),
        "R": spd(rng, m),
        "p": rng.uniform(0.1, 3.0, n),
        "P": spd(rng, n),
    }


def without(inputs, *names):
    return {k: v for k, v in inputs.items() if k not in names}


@pytest.mark.parametrize("kind", diagonal.DIAGONALS)
def test_diagonal_update(rng, kind):
    agree(lambda **x: vars(diagonal.update(**x, diagonal=kind)), without(update_inputs(rng), "P"))


def test_diagonal_update_where_entries_have_large_leverage(rng):
    inputs = without(update_inputs(rng), "P")
    inputs["p"][:3] *= 1e6
    agree(lambda **x: vars(diagonal.update(**x)), inputs)


@pytest.mark.parametrize("form", dense.FORMS)
def test_dense_update(rng, form):
    inputs = without(update_inputs(rng), "p")
    if form == "sequential":
        inputs["R"] = np.diag(np.diag(inputs["R"]))
    agree(lambda **x: vars(dense.update(**x, form=form)), inputs, factor=40)


def probabilities(rng, batch, C):
    z = rng.standard_normal((batch, C))
    return z, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", diagonal.DIAGONALS)
def test_diagonal_glm_update(rng, kind):
    _, yhat = probabilities(rng, 2, 3)
    y = np.eye(3)[[0, 2]]
    inputs = without(update_inputs(rng, m=6), "P", "H", "R")
    inputs |= {"Z": rng.standard_normal((6, 11)), "yhat": yhat, "e": (y - yhat).reshape(-1)}
    agree(lambda **x: vars(diagonal.glm_update(**x, diagonal=kind)), inputs)


@pytest.mark.parametrize("form", dense.FORMS)
def test_dense_glm_update(rng, form):
    _, yhat = probabilities(rng, 2, 3)
    inputs = without(update_inputs(rng, m=6), "p", "H", "R")
    inputs |= {"Z": rng.standard_normal((6, 11)), "yhat": yhat}
    inputs["e"] = (np.eye(3)[[0, 2]] - yhat).reshape(-1)
    agree(lambda **x: vars(dense.glm_update(**x, form=form)), inputs, factor=40)


@pytest.mark.parametrize(
    ("kind", "center"), [*((kind, False) for kind in observation.OBSERVATIONS), ("logits", True)]
)
def test_observation(rng, kind, center):
    inputs = {
        "z": 3 * rng.standard_normal((2, 4)),
        "Z": rng.standard_normal((8, 5)),
        "y": np.eye(4)[[1, 3]],
    }
    agree(lambda z, Z, y: vars(observation.observe(kind, z, Z, y, center=center)), inputs)


@pytest.mark.parametrize("name", noise.ESTIMATORS[:-1])
def test_noise(rng, name):
    inputs = {"R": spd(rng, 4), "e": rng.standard_normal(4), "HpH": spd(rng, 4)}
    agree(lambda R, e, HpH: {"R": noise.update(name, R, e, HpH, 0.1)}, inputs)


def test_time_update(rng):
    agree(lambda p: {"p": time.update(p, 0.97, 1e-3)}, {"p": rng.uniform(0.1, 1, 5)})
    agree(lambda p: {"p": time.update(p, 0.97, 1e-3)}, {"p": spd(rng, 3)})


def test_contrasts_and_schur_complement(rng):
    R = spd(rng, 6)
    agree(lambda R: {"R": simplex.condition_on_simplex(R, 3)}, {"R": R}, factor=40)
    agree(
        lambda M: {
            "there": simplex.to_contrast(contrast_basis(3, M), M),
            "back": simplex.from_contrast(contrast_basis(3, M), M),
        },
        {"M": rng.standard_normal((6, 2))},
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(rng, name):
    forward, vjp = ACTIVATIONS[name]

    def both(x, dy):
        y, cache = forward(x)
        return {"y": y, "dx": vjp(dy, cache)}

    agree(both, {"x": 3 * rng.standard_normal((2, 5)), "dy": rng.standard_normal((3, 2, 5))})


def test_linear_with_lora_and_tokens(rng):
    shapes = {"W": (4, 5), "b": (4,), "A": (2, 5), "B": (4, 2), "bA": (2,), "bB": (4,)}
    inputs = {k: rng.standard_normal(s) for k, s in shapes.items()}
    inputs |= {"x": rng.standard_normal((2, 3, 5)), "dy": rng.standard_normal((2, 2, 3, 4))}

    def both(x, dy, **params):
        y, cache = linear.forward(x, params, 0.5)
        dx, found = linear.vjp(dy, cache, tuple(params), per_sample=True)
        return {"y": y, "dx": dx, **found}

    agree(both, inputs)


def test_lora(rng):
    inputs = {
        "W": rng.standard_normal((4, 5)),
        "A": rng.standard_normal((3, 5)),
        "B": rng.standard_normal((4, 3)),
    }
    agree(
        lambda W, A, B: {
            "delta": lora.delta(A, B, 0.1),
            "merged": lora.merge(W, A, B, 0.1),
            "back": lora.unmerge(W, A, B, 0.1),
        },
        inputs,
    )


@pytest.mark.parametrize(
    "config",
    [
        optimizers.SGD(lr=1e-3, momentum=0.9, dampening=0.1, weight_decay=1e-2),
        optimizers.SGD(momentum=0.9, nesterov=True),
        optimizers.AdaGrad(lr_decay=0.1, weight_decay=0.1),
        optimizers.AdamW(),
    ],
    ids=["sgd", "nesterov", "adagrad", "adamw"],
)
def test_baseline(rng, config):
    def run(theta, gradient):
        state = optimizers.init(theta, config)
        for g in gradient:
            state = optimizers.step(state, g, config)
        return {"theta": state.theta, **state.slots}

    agree(
        run, {"theta": rng.standard_normal(5), "gradient": rng.standard_normal((3, 5))}, factor=20
    )


def model_inputs(rng, activation="tanh", bias=True):
    spec = mlp_spec([5, 4, 3], activation, {"r": 2, "alpha": 0.7, "bias": bias})
    weights = dict(init_model(rng, spec).weights)
    weights |= {k: v + 0.3 * rng.standard_normal(v.shape) for k, v in weights.items()}
    return spec, weights


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_model_jacobian_and_gradient(rng, activation):
    spec, weights = model_inputs(rng, activation)

    def both(x, dz, weights):
        model = Model(spec=spec, weights=weights)
        z, Z = jacobian(model, x)
        return {"z": z, "Z": Z, "g": gradient(model, x, dz)}

    inputs = {"x": rng.standard_normal((2, 5)), "dz": rng.standard_normal((2, 3))}
    agree(both, inputs | {"weights": weights})


STEPS = [
    {"observation": "gaussian", "noise": "ema_innovation", "timing": "after", "r0": 0.3},
    {"observation": "softmax", "lam": 0.99, "q": 1e-3},
    {"observation": "softmax", "noise": "ema_residual_hph"},
    {"observation": "logits", "center": True},
    {"observation": "glm", "p0": {"0": 0.05, "1": 0.2}},
    {"observation": "glm", "diagonal": "variational"},
    {"observation": "glm", "covariance": "dense"},
    {"observation": "gaussian", "covariance": "dense", "form": "information"},
]


@pytest.mark.parametrize("options", STEPS, ids=lambda o: "-".join(map(str, o.values())))
def test_two_steps_of_loko(rng, options):
    spec, weights = model_inputs(rng, "tanh", bias=False)
    y = np.array([[0, 2], [1, 1]])
    if options["observation"] == "gaussian":
        y = rng.standard_normal((2, 2, 3))

    def run(x, weights):
        config = loko_room.LokoConfig(model=Model(spec=spec, weights=weights), **options)
        state = loko_room.init(config, batch=2)
        for k in range(2):
            rows = arrays.asarray(y[k], x) if y.ndim == 3 else y[k]
            state, record = loko_room.step(state, loko_room.Batch(x=x[k], y=rows), config)
        out = {k: v for k, v in vars(state).items() if v is not None and k != "step"}
        return out | vars(record)

    agree(run, {"x": rng.standard_normal((2, 2, 5)), "weights": weights}, factor=100)


def test_constants_are_enclosed_not_rounded():
    with balls.precision(256):
        like = balls.balls(np.ones(3))
        for value in (
            1 - arrays.scalar(0.1, like) - (1 - balls.balls(0.1).item()),
            lora.scale(1.0, 3, like) * 3 - 1,
            arrays.root(2.0, like) ** 2 - 2,
        ):
            assert value.contains(0)
            assert float(value.abs_upper()) < 2.0**-240
        Q = arrays.contrast_basis(4, like)
        for product, expected in ((Q @ Q.T, np.eye(3)), (Q @ balls.xp.ones(4), np.zeros(3))):
            off = balls.xp.abs(product - balls.balls(expected))
            assert float(balls.xp.max(off).abs_upper()) < 2.0**-240
    assert np.allclose(balls.to_host(Q), arrays.contrast_basis(4, np.ones(1)), rtol=1e-15)


def test_balls_and_floats_do_not_mix():
    exact = balls.balls(np.ones(2))
    with pytest.raises(InputError, match="balls and an array of dtype float64"):
        exact + np.ones(2)
    with pytest.raises(InputError, match="balls and an array"):
        np.ones((2, 2)) @ exact
    with pytest.raises(InputError, match="arrays of balls and numpy"):
        arrays.namespace(exact, np.ones(2))


def test_a_branch_that_matters_must_be_decided():
    forward, _ = ACTIVATIONS["relu"]
    _, mask = forward(balls.balls(np.array([-1.0, 0.0, 2.0])))
    assert mask.tolist() == [False, False, True]
    across = balls.balls(np.array([1.0])) - balls.inflate(np.array([1.0]), 1e-3)
    with pytest.raises(UndecidedError, match="not decided whether an activation's input"):
        forward(across)


def test_indefinite_and_undecidable_say_which(rng):
    bad = balls.balls(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(NumericalError, match="S is not positive definite") as caught:
        arrays.cholesky(bad, "S")
    assert not isinstance(caught.value, UndecidedError)
    near = balls.inflate(np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]]), 1e-6)
    with pytest.raises(UndecidedError, match="not decided whether the matrix is positive"):
        arrays.cholesky(near, "R")
    with pytest.raises(UndecidedError, match="not decided whether the matrix is singular"):
        arrays.solve(near, near)


def test_a_function_without_a_ball_counterpart_is_refused():
    with pytest.raises(InputError, match=r"numpy\.arctan of balls"):
        balls.xp.arctan(balls.balls(np.ones(1)))


def test_a_ball_is_its_own_real_part():
    """Of object arrays NumPy takes it by a ufunc from 2.5 on, and by itself before."""
    x = balls.balls(np.array([-1.5, 0.25]))
    assert balls.is_balls(x.real)
    assert x.real.tolist() == x.tolist()
    assert (x.real > 0).tolist() == [False, True]
