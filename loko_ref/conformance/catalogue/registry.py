"""The catalogue ``operations/3``: what an implementation may offer, what it takes and returns.

An operation is a function of named arrays (its inputs) and options, all given as keywords, that
returns a mapping of named arrays (its outputs, any subset). Inputs and outputs have one dtype,
float64 or float32. Options are JSON values; the arithmetic between options alone (``1 - beta``,
``alpha / r``) is float64's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loko_ref.conformance.catalogue.entry import (
    Input,
    Operation,
    Option,
    Output,
    gives,
    option,
    takes,
)
from loko_ref.conformance.catalogue.loko import DIAGONAL, MODEL
from loko_ref.conformance.catalogue.lte import LTE
from loko_ref.conformance.catalogue.lte_run import RUN
from loko_ref.conformance.oracle import loko as oracle
from loko_ref.kalman.noise import ESTIMATED
from loko_ref.kalman.observation import OBSERVATIONS, ObservationModel
from loko_ref.textbook import loko as table
from loko_ref.textbook import operations as plain
from loko_ref.textbook.optimizers import METHODS
from loko_ref.textbook.quantities import Quantity, in_order, origins

__all__ = ["CATALOGUE", "OPERATIONS", "VERSION", "Input", "Operation", "Option", "Output", "get"]

VERSION = 3
"""Of the catalogue. What a new one may ask of an implementation stands in CHANGELOG."""

CATALOGUE = f"operations/{VERSION}"
"""Its name; each input and option says with which version it came."""

_THETA = takes("theta", "(n,)", "prior mean: the packed trainables")
_H = takes("H", "(m, n)", "the observation's linearisation at the prior theta")
_E = takes("e", "(m,)", "innovation y - yhat")
_R = takes("R", "(m, m)", "observation-noise covariance, symmetric positive definite")


def _outputs(
    flow: Callable[[Mapping[str, Any]], Iterable[Quantity]],
    choices: Iterable[Mapping[str, Any]],
    texts: Mapping[str, tuple[str, str]],
) -> tuple[Output, ...]:
    """Describe outputs: order, labels and origins from the table of quantities, over all choices.

    ``texts`` has shape and formula of each in words that hold for every choice.
    """
    labels: dict[str, dict[str, None]] = {}
    feeds: dict[str, dict[str, None]] = {}
    for o in choices:
        big = "P" if o.get("covariance") == "dense" else "p"
        named = {"p": big, "p_pred": big, "R_used": "R"}
        found = list(flow(o))
        for q in found:
            if not q.hidden:
                name = {"R_used": "R"}.get(q.name, table.output_name(q.name, o))
                own = [k for k in q.labels if not k.startswith("LOKO")]  # alone, it is no LoKO
                labels.setdefault(name, {}).update(dict.fromkeys(own))
                come = (named.get(k, k) for k in origins(q.name, found))
                feeds.setdefault(name, {}).update(dict.fromkeys(come))
    return tuple(
        gives(name, *texts[name], " ".join(in_order(labels[name])), " ".join(feeds[name]))
        for name in labels
    )


def _narrow(
    flow: Callable[[Mapping[str, Any]], Iterable[Quantity]], **fixed: Any
) -> Callable[[str, Mapping[str, Any]], tuple[str, ...]]:
    """Return the labels of an output under the options, as a function."""

    def labels(name: str, o: Mapping[str, Any]) -> tuple[str, ...]:
        chosen = {**o, **fixed}
        own = (q for q in flow(chosen) if table.output_name(q.name, chosen) == name)
        return tuple(k for q in own for k in q.labels if not k.startswith("LOKO"))

    return labels


_UPDATE = {
    "S": ("(m, m)", "H P H' + R"),
    "K": ("(n, m)", "P H' S^-1"),
    "theta": ("(n,)", "theta + K e"),
}


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
    outputs = _outputs(
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
    Operation(
        name="kalman.dense_update",
        text="measurement update with a dense covariance",
        inputs=(_THETA, takes("P", "(n, n)", "prior covariance"), _H, _E, _R),
        options=(),
        outputs=_outputs(
            table.update,
            [{"observation": "gaussian", "covariance": "dense"}],
            {**_UPDATE, "P": ("(n, n)", "P - K H P, or a form equal to it [KAL-3] [KAL-4]")},
        ),
        oracle=oracle.dense_update,
        plain=plain.dense_update,
    ),
    Operation(
        name="kalman.diagonal_update",
        text="measurement update with a diagonal covariance: LoKO's",
        inputs=(_THETA, takes("p", "(n,)", "prior variances, > 0"), _H, _E, _R),
        options=(DIAGONAL,),
        outputs=_outputs(
            table.update,
            [
                {"observation": "gaussian", "covariance": "diagonal", "diagonal": diagonal}
                for diagonal in DIAGONAL.choices
            ],
            {
                **_UPDATE,
                "S": ("(m, m)", "H P H' + R, P = diag(p)"),
                "p": ("(n,)", "by the option diagonal"),
            },
        ),
        oracle=oracle.diagonal_update,
        plain=plain.diagonal_update,
        narrow=_narrow(table.update, observation="gaussian", covariance="diagonal"),
    ),
    Operation(
        name="kalman.time_update",
        text="forgetting and process noise",
        inputs=(
            takes("p", "(n,)", "posterior variances of the last step", "a diagonal covariance"),
            takes(
                "P",
                "(n, n)",
                "posterior covariance of the last step, in place of p",
                "a dense covariance",
                since=2,
            ),
        ),
        options=(
            option("lam", 1.0, "forgetting factor, 0 < lam <= 1"),
            option("q", 0.0, "process noise variance, >= 0"),
        ),
        outputs=_outputs(
            table.time_update,
            [{"covariance": "diagonal"}, {"covariance": "dense"}],
            {
                "p_pred": ("(n,)", "p / lam + q (of p)"),
                "P_pred": ("(n, n)", "P / lam + q I (of P): q on the diagonal alone"),
            },
        ),
        oracle=oracle.time_update,
        plain=plain.time_update,
    ),
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
        outputs=_outputs(
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
        narrow=_narrow(table.noise),
    ),
    Operation(
        name="lora.delta",
        text="what LoRA adds to the weight",
        inputs=(takes("A", "(r, i)", "down factor"), takes("B", "(o, r)", "up factor")),
        options=(option("alpha", None, "LoRA's alpha; scale = alpha / r"),),
        outputs=_outputs(lambda o: table.delta(), [{}], {"delta": ("(o, i)", "(alpha / r) B A")}),
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
        outputs=_outputs(lambda o: table.merge(), [{}], {"W": ("(o, i)", "W + (alpha / r) B A")}),
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
