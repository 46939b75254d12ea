"""The catalogue ``operations/1``: what an implementation may offer, what it takes and returns.

An operation is a function of named arrays (its inputs) and options, all given as keywords, that
returns a mapping of named arrays (its outputs, any subset). Inputs and outputs have one dtype,
float64 or float32. Options are JSON values; the arithmetic between options alone (``1 - beta``,
``alpha / r``) is float64's.
"""

from __future__ import annotations

from typing import Any

from loko_ref.conformance import oracle, plain
from loko_ref.conformance.operations_entry import (
    Input,
    Operation,
    Option,
    Output,
    gives,
    option,
    takes,
)
from loko_ref.conformance.operations_loko import DIAGONAL, MODEL
from loko_ref.conformance.operations_lte import LTE
from loko_ref.conformance.operations_lte_run import RUN

__all__ = ["CATALOGUE", "OPERATIONS", "Input", "Operation", "Option", "Output", "get"]

CATALOGUE = "operations/1"

_THETA = takes("theta", "(n,)", "prior mean: the packed trainables")
_H = takes("H", "(m, n)", "the observation's linearisation at the prior theta")
_E = takes("e", "(m,)", "innovation y - yhat")
_R = takes("R", "(m, m)", "observation-noise covariance, symmetric positive definite")


def _gain(P: str, diagonal: str) -> tuple[Output, ...]:
    return (
        gives("S", "(m, m)", f"H P H' + R{diagonal}", "KAL-2", f"H {P} R"),
        gives("K", "(n, m)", "P H' S^-1", "KAL-2", f"{P} H S"),
        gives("theta", "(n,)", "theta + K e", "KAL-2", "theta K e"),
    )


_Z = takes("Z", "(m, n)", "Jacobian of z, row b*C + j for output j of sample b; m = batch*C")
_Y = {
    True: takes("y", "(batch, C)", "observation: real rows"),
    False: takes("y", "(batch, C)", "observation: one-hot rows, or probabilities that sum to 1"),
}


def _observation(kind: str) -> Operation:
    text = {
        "gaussian": "regression: the outputs themselves are observed",
        "softmax": "class probabilities observed",
        "logits": "innovation of the probabilities, linearisation of the logits",
        "glm": "as softmax, with R the covariance of a one-hot y given yhat",
    }[kind]
    label = {"gaussian": "OBS-1", "softmax": "OBS-2", "logits": "OBS-3", "glm": "OBS-4"}[kind]
    yhat = "z" if kind == "gaussian" else "softmax(z), sample by sample, stacked"
    H = {"gaussian": "Z", "logits": "Z; with center (I - 1 1'/C) Z in each sample"}.get(
        kind, "J Z, J = diag(yhat) - yhat yhat' in each sample"
    )
    outputs = [
        gives("yhat", "(m,)", yhat, label, "z"),
        gives("e", "(m,)", "y - yhat, y stacked as yhat is", label, "y yhat"),
        gives("H", "(m, n)", H, label, "yhat Z"),
    ]
    if kind == "glm":
        outputs.append(gives("R", "(m, m)", "J, block diagonal over the samples", label, "yhat"))
    center = option("center", False, "whether H is centred over each sample's classes")
    return Operation(
        name=f"observation.{kind}",
        text=text,
        inputs=(takes("z", "(batch, C)", "network outputs"), _Z, _Y[kind == "gaussian"]),
        options=(center,) if kind == "logits" else (),
        outputs=tuple(outputs),
        oracle=lambda x, o: oracle.observation(kind, x, o),
        plain=lambda x, o, F, keep: plain.observe(kind, x, o, F, keep),
    )


def _optimizer(
    name: str, text: str, options: tuple[Option, ...], formulas: dict[str, str], label: str
) -> Any:
    slots = " ".join(k for k in formulas if k != "theta")
    outputs = [
        gives(slot, "(steps, n)", f"after each step: {formulas[slot]}", label, "gradient theta")
        for slot in slots.split()
    ]
    after = f"after each step: {formulas['theta']}"
    outputs.append(gives("theta", "(steps, n)", after, label, f"theta gradient {slots}"))
    return Operation(
        name=f"optimizer.{name}",
        text=text,
        inputs=(
            takes("theta", "(n,)", "parameters at the start; the optimizer's state is fresh"),
            takes("gradient", "(steps, n)", "the gradients, one row a step"),
        ),
        options=options,
        outputs=tuple(outputs),
        oracle=lambda x, o: oracle.optimizer(name, x, o),
        plain=lambda x, o, F, keep: plain.optimizer(name, x, o, F, keep),
        stepwise=True,
    )


_DECAY = option("weight_decay", 0.0, "added to the gradient as weight_decay * theta")

_ALL = (
    Operation(
        name="kalman.dense_update",
        text="measurement update with a dense covariance",
        inputs=(_THETA, takes("P", "(n, n)", "prior covariance"), _H, _E, _R),
        options=(),
        outputs=(*_gain("P", ""), gives("P", "(n, n)", "P - K H P", "KAL-2 KAL-3 KAL-4", "P K H")),
        oracle=oracle.dense_update,
        plain=plain.dense_update,
    ),
    Operation(
        name="kalman.diagonal_update",
        text="measurement update with a diagonal covariance: LoKO's",
        inputs=(_THETA, takes("p", "(n,)", "prior variances, > 0"), _H, _E, _R),
        options=(DIAGONAL,),
        outputs=(
            *_gain("p", ", P = diag(p)"),
            gives("p", "(n,)", "by the option diagonal", "DIAG-1 DIAG-2", "p K H R"),
        ),
        oracle=oracle.diagonal_update,
        plain=plain.diagonal_update,
    ),
    Operation(
        name="kalman.time_update",
        text="forgetting and process noise",
        inputs=(takes("p", "(n,)", "posterior variances of the last step"),),
        options=(
            option("lam", 1.0, "forgetting factor, 0 < lam <= 1"),
            option("q", 0.0, "process noise variance, >= 0"),
        ),
        outputs=(gives("p_pred", "(n,)", "p / lam + q", "KAL-1", "p"),),
        oracle=oracle.time_update,
        plain=plain.time_update,
    ),
    *(_observation(kind) for kind in ("gaussian", "softmax", "logits", "glm")),
    Operation(
        name="noise.update",
        text="refresh the estimate of the observation noise",
        inputs=(
            takes("R", "(m, m)", "the estimate so far"),
            takes("e", "(m,)", "innovation; for ema_residual_hph the residual y - yhat(theta+)"),
            takes("HpH", "(m, m)", "H P H', given; for ema_residual_hph with the posterior P"),
        ),
        options=(
            option(
                "noise",
                None,
                "the estimator",
                ("fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph"),
            ),
            option("beta", 0.95, "weight of the past"),
        ),
        outputs=(
            gives(
                "R",
                "(m, m)",
                "fixed: R; ema_innovation: beta R + (1-beta) e e'; both others: "
                "beta R + (1-beta) (e e' + HpH)",
                "NOISE-1 NOISE-2 NOISE-3 NOISE-4",
                "R e HpH",
            ),
        ),
        oracle=oracle.noise_update,
        plain=plain.noise_update,
    ),
    Operation(
        name="lora.delta",
        text="what LoRA adds to the weight",
        inputs=(takes("A", "(r, i)", "down factor"), takes("B", "(o, r)", "up factor")),
        options=(option("alpha", None, "LoRA's alpha; scale = alpha / r"),),
        outputs=(gives("delta", "(o, i)", "(alpha / r) B A", "LORA-2", "A B"),),
        oracle=oracle.delta,
        plain=plain.delta,
    ),
    Operation(
        name="lora.merge",
        text="fold LoRA into the weight",
        inputs=(
            takes("W", "(o, i)", "frozen weight"),
            takes("A", "(r, i)", "down factor"),
            takes("B", "(o, r)", "up factor"),
        ),
        options=(option("alpha", None, "LoRA's alpha; scale = alpha / r"),),
        outputs=(gives("W", "(o, i)", "W + (alpha / r) B A", "LORA-3", "W A B"),),
        oracle=oracle.merge,
        plain=plain.merge,
    ),
    *MODEL,
    _optimizer(
        "sgd",
        "stochastic gradient descent, torch's semantics",
        (
            option("lr", 1e-2, "learning rate"),
            option("momentum", 0.0, "the first step's buffer is the gradient itself"),
            option("dampening", 0.0, "of the gradient on its way into the buffer"),
            _DECAY,
            option("nesterov", False, "Nesterov's look-ahead"),
        ),
        {
            "momentum": "g at step 1, then mu momentum + (1 - dampening) g; mu is the option, "
            "g = gradient + weight_decay theta (left out where mu = 0)",
            "theta": "theta - lr d, d = momentum; with nesterov g + mu momentum; with mu = 0 g",
        },
        "OPT-1",
    ),
    _optimizer(
        "adagrad",
        "AdaGrad, torch's semantics",
        (
            option("lr", 1e-2, "learning rate"),
            option("lr_decay", 0.0, "lr / (1 + (t-1) lr_decay) at step t = 1, 2, ..."),
            _DECAY,
            option("initial_accumulator_value", 0.0, "start of the sum"),
            option("eps", 1e-10, "added to the root"),
        ),
        {
            "sum": "sum + g^2 from initial_accumulator_value, g = gradient + weight_decay theta",
            "theta": "theta - lr / (1 + (t-1) lr_decay) g / (sqrt(sum) + eps)",
        },
        "OPT-2",
    ),
    _optimizer(
        "adamw",
        "Adam with decoupled weight decay, torch's semantics",
        (
            option("lr", 1e-3, "learning rate"),
            option("beta1", 0.9, "decay of exp_avg"),
            option("beta2", 0.999, "decay of exp_avg_sq"),
            option("eps", 1e-8, "added to the root of the corrected exp_avg_sq"),
            option("weight_decay", 1e-2, "theta is first multiplied by 1 - lr weight_decay"),
        ),
        {
            "exp_avg": "beta1 exp_avg + (1 - beta1) g, g = gradient, from 0",
            "exp_avg_sq": "beta2 exp_avg_sq + (1 - beta2) g^2, elementwise, from 0",
            "theta": "(1 - lr weight_decay) theta - lr (exp_avg / (1 - beta1^t)) / "
            "(sqrt(exp_avg_sq / (1 - beta2^t)) + eps) at step t = 1, 2, ...",
        },
        "OPT-3",
    ),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (*_ALL, *LTE, RUN)}
"""Operation name -> entry, in the order of the catalogue."""


def get(name: str) -> Operation:
    """Return an operation by name; an unknown one is an InputError naming the closest."""
    from loko_ref.errors import unknown_option

    if name not in OPERATIONS:
        raise unknown_option("operation", name, OPERATIONS)
    return OPERATIONS[name]
