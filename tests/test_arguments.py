"""Public functions given the wrong things: arguments swapped, None, of another kind.

Each answer is one of our errors; an attribute or a key that something has not is no answer.
"""

import dataclasses
import inspect

import numpy as np
import pytest
import sampling

from loko_ref import errors, kalman, loko, lte, optimizers
from loko_ref.conformance import user_inputs
from loko_ref.network import architectures, jacobian, layers, lora, model, spec

OURS = (errors.InputError, errors.NumericalError, errors.BackendError)

RNG = np.random.default_rng(0)
SPEC = spec.mlp_spec([3, 4, 2], "tanh", {"r": 1, "alpha": 2.0})
NET = model.init_model(RNG, SPEC)
CONFIG = loko.LokoConfig(model=NET, observation="softmax")
X, Y = RNG.standard_normal((2, 3)), np.array([0, 1])
STATE, BATCH = loko.init(CONFIG, 2), loko.Batch(x=X, y=Y)
Z, JAC = jacobian.jacobian(NET, X)
LTE = lte.LteConfig(spec=SPEC, heads=2)
LTE_STATE = lte.init(LTE)
SGD = optimizers.SGD()
OPT_STATE = optimizers.init(np.ones(4), SGD)
n, m, C = 4, 2, 2
THETA, P, E = np.ones(n), np.ones(n), np.ones(m)
H, R, DENSE = RNG.standard_normal((m, n)), np.eye(m), np.eye(n)
YHAT = np.array([[0.25, 0.75]])
A, B, W = np.ones((1, 3)), np.ones((2, 1)), np.ones((2, 3))
SIZE = {"layers": 1, "width": 4, "heads": 2, "ff": 4}
PROBLEM = {"theta": THETA, "p": P, "H": H, "e": E, "R": R}

UPDATE = {"theta": THETA, "H": H, "e": E, "R": R}
GLM = {"theta": THETA, "Z": H, "e": np.array([0.75, -0.75]), "yhat": YHAT}
LTE_RUN = {"config": LTE, "state": LTE_STATE}


def answer(**inputs):
    return {"p": inputs["p"]}


CALLS = {
    loko.init: {"config": CONFIG, "batch": 2},
    loko.init_at: {"config": CONFIG, "theta": STATE.theta, "batch": 2},
    loko.step: {"state": STATE, "batch": BATCH, "config": CONFIG},
    loko.run: {"state": STATE, "batches": [BATCH], "config": CONFIG},
    loko.step_from_jacobian: {
        "state": STATE, "config": CONFIG, "z": Z, "Z": JAC, "y": Y, "outputs": lambda theta: Z,
    },
    loko.targets: {"y": Y, "z": Z, "observation": "softmax"},
    loko.loss: {"z": Z, "y": np.eye(2), "observation": "softmax"},
    loko.LokoConfig: {"model": NET, "observation": "glm", "p0": 0.1, "beta": 0.5, "form": "joseph"},
    lte.LteConfig: {"spec": SPEC, "heads": 2, "mode": "lte", "optimizer": SGD, "seed": 0},
    lte.init: {"config": LTE, "weights": None, "batch": 1, "dtype": "float64"},
    lte.step: {**LTE_RUN, "x": X, "y": Y},
    lte.merge: LTE_RUN,
    lte.reset: LTE_RUN,
    lte.run: {**LTE_RUN, "batches": [(X, Y)]},
    lte.fingerprint: LTE_RUN,
    lte.merged_model: {"config": LTE, "weights": LTE_STATE.weights},
    lte.bytes_per_merge: {"config": LTE, "itemsize": 8},
    spec.mlp_spec: {"widths": [3, 2], "activation": "tanh", "lora": None},
    spec.check_spec: {"spec": SPEC},
    spec.param_shapes: {"spec": SPEC},
    spec.factor_shapes: {"spec": SPEC},
    spec.trained_shapes: {"spec": SPEC, "train": "weights"},
    spec.width_out: {"spec": SPEC},
    spec.linears: {"spec": SPEC},
    spec.reads_tokens: {"spec": SPEC},
    architectures.blocks: {**SIZE, "norm": "post", "activation": "gelu", "targets": ["q"]},
    architectures.encoder_spec: {**SIZE, "outputs": 2, "norm": "pre", "pool": "mean"},
    architectures.bert_spec: {**SIZE, "outputs": 2, "vocab": 5, "positions": 4},
    architectures.roberta_spec: {**SIZE, "outputs": 2, "vocab": 5, "positions": 4},
    architectures.vit_spec: {**SIZE, "outputs": 2, "image": (1, 4, 4), "patch": (2, 2)},
    architectures.patch_side: {"side": 8},
    model.Model: {"spec": SPEC, "weights": NET.weights, "trainable": NET.trainable},
    model.init_model: {"rng": RNG, "spec": SPEC, "init": "kaiming", "dtype": "float64"},
    model.add_lora: {
        "rng": RNG, "model": model.init_model(RNG, spec.mlp_spec([3, 2])), "r": 1, "alpha": 1.0,
    },
    model.merge_lora: {"model": NET},
    model.pack: {"model": NET},
    model.unpack: {"model": NET, "theta": STATE.theta},
    model.sites: {"model": NET},
    model.forward: {"model": NET, "x": X},
    model.check_inputs: {"model": NET, "x": X},
    jacobian.jacobian: {"model": NET, "x": X},
    jacobian.gradient: {"model": NET, "x": X, "dz": Z},
    lora.init_factors: {"rng": RNG, "i": 3, "o": 2, "r": 1, "init": "kaiming", "dtype": "float64"},
    lora.scale: {"alpha": 1.0, "r": 1},
    lora.delta: {"A": A, "B": B, "alpha": 1.0},
    lora.delta_bias: {"B": B, "bA": np.ones(1), "bB": np.ones(2), "alpha": 1.0},
    lora.merge: {"W": W, "A": A, "B": B, "alpha": 1.0},
    lora.unmerge: {"W": W, "A": A, "B": B, "alpha": 1.0},
    optimizers.SGD: {"lr": 0.1, "momentum": 0.5},
    optimizers.AdaGrad: {"lr": 0.1, "eps": 0.5},
    optimizers.AdamW: {"lr": 0.1, "beta1": 0.5},
    optimizers.init: {"theta": THETA, "config": SGD},
    optimizers.slot_names: {"config": SGD},
    optimizers.step: {"state": OPT_STATE, "gradient": THETA, "config": SGD},
    kalman.time.update: {"p": P, "lam": 0.9, "q": 0.1},
    kalman.diagonal.update: {**UPDATE, "p": P, "diagonal": "decoupled"},
    kalman.diagonal.glm_update: {**GLM, "p": P, "diagonal": "decoupled"},
    kalman.dense.update: {**UPDATE, "P": DENSE, "form": "joseph"},
    kalman.dense.glm_update: {**GLM, "P": DENSE, "form": "joseph"},
    kalman.noise.update: {"noise": "ema_innovation", "R": R, "e": E, "HpH": R, "beta": 0.5},
    kalman.noise.check_combination: {
        "observation": "softmax", "noise": "ema_innovation", "timing": "before",
    },
    kalman.observation.observe: {
        "observation": "softmax", "z": Z, "Z": JAC, "y": np.eye(2), "center": False,
    },
    kalman.observation.predict: {"observation": "softmax", "z": Z},
    kalman.observation.one_hot: {"labels": Y, "C": 2, "like": Z},
    user_inputs.split: {"name": "kalman.diagonal_update", "arguments": PROBLEM},
    user_inputs.user_case: {"operation": "kalman.diagonal_update", "arguments": PROBLEM},
    **{
        key: {"function": answer, "operation": "kalman.diagonal_update", "arguments": PROBLEM}
        for key in (user_inputs.check, user_inputs.agree)
    },
}  # fmt: skip
"""Function -> a call that is right (but for its verdict)."""

WRONG = {
    "None": None,
    "a word": "swish",
    "a number": -7.5,
    "a huge number": 10**5000,
    "an object": object(),
    "a list": [[1.0, "a"]],
    "a mapping": {"a": 1},
    "NaN": float("nan"),
    "a class": dict,
    "a filter's state": STATE,
    "a batch": BATCH,
    "a model": NET,
    "an array of text": np.array(["a"]),
}


def wrong_calls(right):
    """Each argument replaced, and each two exchanged."""
    for name in right:
        for kind, value in WRONG.items():
            yield f"{name} = {kind}", right | {name: value}
    names = list(right)
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            yield f"{one} and {two} exchanged", right | {one: right[two], two: right[one]}


def label(function):
    return f"{function.__module__.removeprefix('loko_ref.')}.{function.__name__}"


@pytest.mark.parametrize("function", CALLS, ids=label)
def test_wrong_arguments_get_one_of_our_errors(function):
    right, found = CALLS[function], []
    for what, call in [("nothing wrong", right), *sampling.sample(wrong_calls(right), 0.3)]:
        try:
            function(**call)
        except OURS as error:
            if what == "nothing wrong" or len(str(error)) > 3000:
                raise
        except AssertionError as error:
            if function is not user_inputs.agree:
                found.append(f"{what}: AssertionError {error}")
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}"[:160])
    assert not found, f"{len(found)} for {label(function)}:\n" + "\n".join(found)


def test_every_public_function_is_tried():
    tried = set(CALLS)
    exempt = {
        spec.check_input, spec.map_linears, lora.ratio, model.vjp, lte.iterate,
        kalman.diagonal.check_update, user_inputs.read_case, user_inputs.save_case,
    }  # fmt: skip
    for module in (loko, lte, spec, architectures, model, jacobian, lora, optimizers, user_inputs):
        for name in module.__all__:
            if name.endswith("_unchecked"):  # the name says that the caller has checked
                continue
            public = getattr(module, name)
            if inspect.isfunction(public) and public not in exempt | tried:
                raise AssertionError(f"{module.__name__}.{name} is not in CALLS")
            if dataclasses.is_dataclass(public) and hasattr(public, "__post_init__"):
                assert public in tried, name
    assert layers.KINDS


def test_the_order_of_step_is_named():
    with pytest.raises(errors.InputError, match=r"another order: step\(state, batch, config\)"):
        loko.step(CONFIG, STATE, BATCH)
    with pytest.raises(errors.InputError, match=r"activation: got 'swish'; required one of"):
        spec.mlp_spec([3, 2], "swish")
