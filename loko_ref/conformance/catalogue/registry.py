"""The catalogue ``operations/3``: what an implementation may offer, what it takes and returns.

An operation is a function of named arrays (its inputs) and options, all given as keywords, that
returns a mapping of named arrays (its outputs, any subset). Inputs and outputs have one dtype,
float64 or float32. Options are JSON values; the arithmetic between options alone (``1 - beta``,
``alpha / r``) is float64's.
"""

from __future__ import annotations

from loko_ref.conformance.catalogue.entry import (
    Operation,
    Option,
    gives,
    narrowed,
    option,
    outputs_of,
    takes,
)
from loko_ref.conformance.catalogue.kalman import KALMAN
from loko_ref.conformance.catalogue.loko import MODEL
from loko_ref.conformance.catalogue.lte import LTE
from loko_ref.conformance.catalogue.lte_run import RUN
from loko_ref.conformance.oracle import loko as oracle
from loko_ref.kalman.noise import ESTIMATED
from loko_ref.kalman.observation import OBSERVATIONS, ObservationModel
from loko_ref.textbook import loko as table
from loko_ref.textbook import operations as plain
from loko_ref.textbook.optimizers import METHODS

VERSION = 3
"""Of the catalogue. What a new one may ask of an implementation stands in CHANGELOG."""

CATALOGUE = f"operations/{VERSION}"
"""Its name; each input and option states with which version it came."""

_Z = takes("Z", "(m, n)", "Jacobian of z, row b*C + j for output j of sample b; m = batch*C")
_Y = {
    True: takes("y", "(batch, C)", "observation: real rows"),
    False: takes("y", "(batch, C)", "observation: one-hot rows, or probabilities that sum to 1"),
}


def _observation(kind: ObservationModel) -> Operation:
    text = {
        "gaussian": "regression: the outputs themselves are observed",
        "softmax": "class probabilities observed",
        "logits": "innovation of the probabilities, linearisation of the logits",
        "glm": "as softmax, with R the covariance of a one-hot y given yhat",
    }[kind]
    yhat = "z" if kind == "gaussian" else "softmax(z), sample by sample, stacked"
    centers = (False, True) if kind == "logits" else (False,)
    H = {"gaussian": "Z", "logits": "Z; with center (I - 1 1'/C) Z in each sample"}.get(
        kind, "J Z, J = diag(yhat) - yhat yhat' in each sample"
    )
    outputs = outputs_of(
        lambda o: (*table.observation(o), *(table.noise_used(o) if kind == "glm" else ())),
        [{"observation": kind, "center": center} for center in centers],
        {
            "yhat": ("(m,)", yhat),
            "e": ("(m,)", "y - yhat, y stacked as yhat is"),
            "H": ("(m, n)", H),
            "R": ("(m, m)", "J, block diagonal over the samples"),
        },
    )
    center = option("center", False, "whether H is centred over each sample's classes")
    return Operation(
        name=f"observation.{kind}",
        text=text,
        inputs=(takes("z", "(batch, C)", "network outputs"), _Z, _Y[kind == "gaussian"]),
        options=(center,) if kind == "logits" else (),
        outputs=outputs,
        oracle=lambda x, o: oracle.observation(kind, x, o),
        plain=lambda x, o, F, keep: plain.observation(kind, x, o, F, keep),
    )


def _optimizer(name: str, text: str, options: tuple[Option, ...]) -> Operation:
    return Operation(
        name=f"optimizer.{name}",
        text=text,
        inputs=(
            takes("theta", "(n,)", "parameters at the start; the optimizer's state is fresh"),
            takes("gradient", "(steps, n)", "the gradients, one row a step"),
        ),
        options=options,
        outputs=tuple(
            gives(
                q.name,
                "(steps, n)",
                f"after each step: {q.equation}",
                " ".join(q.labels),
                " ".join(q.parents),
            )
            for q in METHODS[name]
        ),
        oracle=lambda x, o: oracle.optimizer(name, x, o),
        plain=lambda x, o, F, keep: plain.optimizer(name, x, o, F, keep),
        stepwise=True,
    )


_DECAY = option("weight_decay", 0.0, "added to the gradient as weight_decay * theta")

_ALL = (
    *KALMAN,
    *(_observation(kind) for kind in OBSERVATIONS),
    Operation(
        name="noise.update",
        text="refresh the estimate of the observation noise",
        inputs=(
            takes("R", "(m, m)", "the estimate so far"),
            takes("e", "(m,)", "innovation; for ema_residual_hph the residual y - yhat(theta+)"),
            takes("HpH", "(m, m)", "H P H', given; for ema_residual_hph with the posterior P"),
        ),
        options=(
            option("noise", None, "the estimator", ESTIMATED),
            option("beta", 0.95, "weight of the past"),
        ),
        outputs=outputs_of(
            table.noise,
            [{"noise": noise} for noise in ESTIMATED],
            {
                "R": (
                    "(m, m)",
                    "fixed: R; ema_innovation: beta R + (1-beta) e e'; both others: "
                    "beta R + (1-beta) (e e' + HpH)",
                )
            },
        ),
        oracle=oracle.noise_update,
        plain=plain.noise_update,
        narrow=narrowed(table.noise),
    ),
    Operation(
        name="lora.delta",
        text="what LoRA adds to the weight",
        inputs=(takes("A", "(r, i)", "down factor"), takes("B", "(o, r)", "up factor")),
        options=(option("alpha", None, "LoRA's alpha; scale = alpha / r"),),
        outputs=outputs_of(lambda o: table.delta(), [{}], {"delta": ("(o, i)", "(alpha / r) B A")}),
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
        outputs=outputs_of(lambda o: table.merge(), [{}], {"W": ("(o, i)", "W + (alpha / r) B A")}),
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
    ),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (*_ALL, *LTE, RUN)}
"""Operation name -> entry, in the order of the catalogue."""


def get(name: str) -> Operation:
    """Return an operation by name; an unknown one is an InputError naming the closest."""
    from loko_ref.errors import unknown_option

    if not isinstance(name, str) or name not in OPERATIONS:
        raise unknown_option("operation", name, OPERATIONS)
    return OPERATIONS[name]
