"""The catalogue ``operations/1``: what an implementation may offer, what it takes and returns.

An operation is a function of named arrays (its inputs) and options, all given as keywords, that
returns a mapping of named arrays (its outputs, any subset). Inputs and outputs have one dtype,
float64 or float32. Options are JSON values; the arithmetic between options alone (``1 - beta``,
``alpha / r``) is float64's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loko_ref.conformance import oracle, plain
from loko_ref.conformance.operations_lte import LTE
from loko_ref.conformance.operations_network import SPEC

__all__ = ["CATALOGUE", "OPERATIONS", "Input", "Operation", "Option", "Output", "get"]

CATALOGUE = "operations/1"

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input array: name, shape, meaning; `optional` ones are given only where they belong."""

    name: str
    shape: str
    text: str
    optional: str = ""


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option: name, default (None: always given), choices where it is a name, meaning."""

    name: str
    default: Any
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output array: name, shape, formula, derivation labels, and what it is computed from."""

    name: str
    shape: str
    formula: str
    labels: tuple[str, ...]
    feeds: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One entry of the catalogue.

    Attributes
    ----------
    name, text : str
        Its name and a one-line description.
    inputs, options, outputs : tuple
        What it takes and returns; outputs in dataflow order.
    oracle : callable
        ``(inputs, options) -> outputs`` by the package's own rooms, float64.
    plain : callable
        ``(inputs, options, F, keep) -> outputs`` by ``formulas``.
    stepwise : bool
        Whether the leading axis of every output counts steps.
    """

    name: str
    text: str
    inputs: tuple[Input, ...]
    options: tuple[Option, ...]
    outputs: tuple[Output, ...]
    oracle: Callable[[Arrays, Arrays], dict[str, Any]]
    plain: Callable[..., dict[str, Any]]
    stepwise: bool = False

    def labels(self, quantity: str) -> tuple[str, ...]:
        """Name the derivation labels of an output."""
        return next((o.labels for o in self.outputs if o.name == quantity), ())


def _i(name: str, shape: str, text: str, optional: str = "") -> Input:
    return Input(name=name, shape=shape, text=text, optional=optional)


def _opt(name: str, default: Any, text: str, choices: tuple[str, ...] = ()) -> Option:
    return Option(name=name, default=default, text=text, choices=choices)


def _o(name: str, shape: str, formula: str, labels: str, feeds: str) -> Output:
    return Output(
        name=name,
        shape=shape,
        formula=formula,
        labels=tuple(labels.split()),
        feeds=tuple(feeds.split()),
    )


_THETA = _i("theta", "(n,)", "prior mean: the packed trainables")
_H = _i("H", "(m, n)", "the observation's linearisation at the prior theta")
_E = _i("e", "(m,)", "innovation y - yhat")
_R = _i("R", "(m, m)", "observation-noise covariance, symmetric positive definite")
_DIAGONAL = _opt(
    "diagonal",
    "decoupled",
    "decoupled: p+ = p (1 - diag(K H)), LoKO's; variational: 1/p+ = 1/p + diag(H' R^-1 H)",
    ("decoupled", "variational"),
)


def _gain(P: str, diagonal: str) -> tuple[Output, ...]:
    return (
        _o("S", "(m, m)", f"H P H' + R{diagonal}", "KAL-2", f"H {P} R"),
        _o("K", "(n, m)", "P H' S^-1", "KAL-2", f"{P} H S"),
        _o("theta", "(n,)", "theta + K e", "KAL-2", "theta K e"),
    )


_Z = _i("Z", "(m, n)", "Jacobian of z, row b*C + j for output j of sample b; m = batch*C")
_Y = {
    True: _i("y", "(batch, C)", "observation: real rows"),
    False: _i("y", "(batch, C)", "observation: one-hot rows, or probabilities that sum to 1"),
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
        _o("yhat", "(m,)", yhat, label, "z"),
        _o("e", "(m,)", "y - yhat, y stacked as yhat is", label, "y yhat"),
        _o("H", "(m, n)", H, label, "yhat Z"),
    ]
    if kind == "glm":
        outputs.append(_o("R", "(m, m)", "J, block diagonal over the samples", label, "yhat"))
    center = _opt("center", False, "whether H is centred over each sample's classes")
    return Operation(
        name=f"observation.{kind}",
        text=text,
        inputs=(_i("z", "(batch, C)", "network outputs"), _Z, _Y[kind == "gaussian"]),
        options=(center,) if kind == "logits" else (),
        outputs=tuple(outputs),
        oracle=lambda x, o: oracle.observation(kind, x, o),
        plain=lambda x, o, F, keep: plain.observation(kind, x, o, F, keep),
    )


_SPEC = _opt("spec", None, SPEC)
_INPUTS = "inputs; tokens (batch, t, i), images or token ids where the spec begins with such"
_X = _i("x", "(batch, i)", _INPUTS)
_WEIGHTS = _i(
    "weights",
    "mapping",
    'a mapping of name to array: "0.W" (o, i), "0.b" (o,), "0.A" (r, i), "0.B" (o, r), and with a '
    'LoRA bias "0.bA" (r,), "0.bB" (o,), for the linear named "0", and so on; other kinds\' as '
    "'layers of a spec' says",
)
_FROZEN = _i(
    "weights",
    "mapping",
    'a mapping of name to the frozen arrays alone: "0.W" (o, i), "0.b" (o,), and so on; the LoRA '
    "factors are in theta: linear by linear in the spec's order, A then B (then bA, bB), each "
    "row-major; an attention's linears are its q, k, v, o. Norms and tables are frozen",
)


_NETWORK = "LAY-1 LAY-2 LAY-3 ATT-1 ATT-2 ATT-3 ATT-7"


def _network(feeds: str) -> tuple[Output, Output]:
    return (
        _o("z", "(batch, C)", "the outputs, layer by layer", _NETWORK, feeds),
        _o(
            "Z",
            "(m, n)",
            "dz/dtheta, row b*C + j for output j of sample b; columns in packing order: linear by "
            "linear (an attention's q, k, v, o), A then B (then bA, bB), each row-major",
            "LAY-9 LAY-10 LORA-4",
            feeds,
        ),
    )


_LOKO_OPTIONS = (
    _SPEC,
    _opt("observation", "glm", "observation model", ("glm", "softmax", "logits", "gaussian")),
    _opt(
        "noise",
        "glm",
        "estimator of R, with s = e e': fixed (R stays), ema_innovation (R = beta R + (1-beta) s), "
        "ema_innovation_hph (s + H P_pred H' in place of s), ema_residual_hph (r r' + H P+ H' in "
        "place of s: r = y - yhat(theta+) from a new forward pass at the posterior theta, P+ the "
        "posterior covariance, H still the prior's; timing after only), glm (R = J, no state). "
        "observation glm goes with noise glm and no other, and noise glm with no other",
        ("fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph", "glm"),
    ),
    _opt(
        "timing",
        "before",
        "before: R is refreshed first, by e and P_pred, and enters this step's S; after: the old R "
        "enters S and is refreshed then, by the same e and P_pred (ema_residual_hph: by r and P+). "
        "fixed and glm refresh nothing, so it changes nothing there",
        ("before", "after"),
    ),
    _opt("beta", 0.95, "weight of the past in R's average"),
    _opt(
        "covariance",
        "diagonal",
        "diagonal: p (n,) is the state; dense: P (n, n) is, with the textbook update",
        ("diagonal", "dense"),
    ),
    Option(
        name="diagonal",
        default="decoupled",
        text=_DIAGONAL.text + ", R = R_used (for glm: 1/p + diag(Z' J Z)); p here is p_pred",
        choices=_DIAGONAL.choices,
    ),
    _opt("lam", 1.0, "forgetting: p_pred = p / lam + q"),
    _opt("q", 0.0, "process noise"),
    _opt("center", False, "for logits: centre H over each sample's classes"),
)
_LOKO_OUTPUTS = (
    _o("p_pred", "(n,)", "p / lam + q (covariance diagonal)", "KAL-1", "p"),
    _o("P_pred", "(n, n)", "P / lam + q I (covariance dense)", "KAL-1", "P"),
    *_network("x weights theta"),
    _o("yhat", "(m,)", "as in observation.NAME, by the option", "OBS-1 OBS-2 OBS-3 OBS-4", "z"),
    _o("e", "(m,)", "y - yhat, y stacked as yhat is", "OBS-1 OBS-2 OBS-3 OBS-4", "y yhat"),
    _o("H", "(m, n)", "as in observation.NAME, by the option", "OBS-1 OBS-2 OBS-3 OBS-4", "yhat Z"),
    _o(
        "R_used",
        "(m, m)",
        "the R that enters S (glm: J)",
        "NOISE-1 NOISE-2 NOISE-3 NOISE-5 OBS-4",
        "R e H p_pred",
    ),
    _o("S", "(m, m)", "H P_pred H' + R_used, P_pred or diag(p_pred)", "KAL-2", "H p_pred R_used"),
    _o(
        "K",
        "(n, m)",
        "P_pred H' S^-1; for glm, where S has no inverse (S 1 = 0 in each sample), "
        "P_pred H' S^+ = P_pred Z' (I + J Z P_pred Z')^-1, rows centred. softmax and glm are "
        "compared after each row is centred over each sample's classes; K e and K H are not "
        "changed by that",
        "KAL-2 OBS-5 OBS-6",
        "p_pred H S",
    ),
    _o("theta", "(n,)", "theta + K e", "KAL-2 LOKO-1", "theta K e"),
    _o("p", "(n,)", "by the option diagonal (covariance diagonal)", "DIAG-1 DIAG-2", "p_pred K H"),
    _o("P", "(n, n)", "P_pred - K H P_pred (covariance dense)", "KAL-2 LOKO-4", "P_pred K H"),
    _o(
        "R",
        "(m, m)",
        "noise estimate for the next step: fixed: R; before: R_used; after: refreshed; not for glm",
        "NOISE-4 NOISE-5",
        "R_used",
    ),
)


def _loko(name: str, text: str, lead: str, run: bool) -> Operation:
    def grow(shape: str) -> str:
        return f"({lead}{shape[1:]}"

    return Operation(
        name=name,
        text=text,
        inputs=(
            _i("x", grow("(batch, i)"), _INPUTS),
            _i("y", grow("(batch, C)"), "one-hot rows or probabilities; real rows for gaussian"),
            _i("theta", "(n,)", "prior mean, packed as under weights"),
            _i("p", "(n,)", "prior variances", "covariance='diagonal'"),
            _i("P", "(n, n)", "prior covariance", "covariance='dense'"),
            _i(
                "R",
                "(m, m)",
                "noise estimate so far, symmetric positive definite; m = batch*C; for softmax, and "
                "logits with center, it takes what is constant over each sample's classes to such",
                "any noise but 'glm'",
            ),
            _FROZEN,
        ),
        options=_LOKO_OPTIONS,
        outputs=tuple(
            Output(
                name=o.name,
                shape=grow(o.shape),
                formula=o.formula,
                labels=o.labels,
                feeds=o.feeds,
            )
            for o in _LOKO_OUTPUTS
        ),
        oracle=oracle.loko_run if run else oracle.loko_step,
        plain=plain.loko_run if run else plain.loko_step,
        stepwise=run,
    )


def _optimizer(
    name: str, text: str, options: tuple[Option, ...], formulas: dict[str, str], label: str
) -> Any:
    slots = " ".join(k for k in formulas if k != "theta")
    outputs = [
        _o(slot, "(steps, n)", f"after each step: {formulas[slot]}", label, "gradient theta")
        for slot in slots.split()
    ]
    after = f"after each step: {formulas['theta']}"
    outputs.append(_o("theta", "(steps, n)", after, label, f"theta gradient {slots}"))
    return Operation(
        name=f"optimizer.{name}",
        text=text,
        inputs=(
            _i("theta", "(n,)", "parameters at the start; the optimizer's state is fresh"),
            _i("gradient", "(steps, n)", "the gradients, one row a step"),
        ),
        options=options,
        outputs=tuple(outputs),
        oracle=lambda x, o: oracle.optimizer(name, x, o),
        plain=lambda x, o, F, keep: plain.optimizer(name, x, o, F, keep),
        stepwise=True,
    )


_DECAY = _opt("weight_decay", 0.0, "added to the gradient as weight_decay * theta")

_ALL = (
    Operation(
        name="kalman.dense_update",
        text="measurement update with a dense covariance",
        inputs=(_THETA, _i("P", "(n, n)", "prior covariance"), _H, _E, _R),
        options=(),
        outputs=(*_gain("P", ""), _o("P", "(n, n)", "P - K H P", "KAL-2 KAL-3 KAL-4", "P K H")),
        oracle=oracle.dense_update,
        plain=plain.dense_update,
    ),
    Operation(
        name="kalman.diagonal_update",
        text="measurement update with a diagonal covariance: LoKO's",
        inputs=(_THETA, _i("p", "(n,)", "prior variances, > 0"), _H, _E, _R),
        options=(_DIAGONAL,),
        outputs=(
            *_gain("p", ", P = diag(p)"),
            _o("p", "(n,)", "by the option diagonal", "DIAG-1 DIAG-2", "p K H R"),
        ),
        oracle=oracle.diagonal_update,
        plain=plain.diagonal_update,
    ),
    Operation(
        name="kalman.time_update",
        text="forgetting and process noise",
        inputs=(_i("p", "(n,)", "posterior variances of the last step"),),
        options=(
            _opt("lam", 1.0, "forgetting factor, 0 < lam <= 1"),
            _opt("q", 0.0, "process noise variance, >= 0"),
        ),
        outputs=(_o("p_pred", "(n,)", "p / lam + q", "KAL-1", "p"),),
        oracle=oracle.time_update,
        plain=plain.time_update,
    ),
    *(_observation(kind) for kind in ("gaussian", "softmax", "logits", "glm")),
    Operation(
        name="noise.update",
        text="refresh the estimate of the observation noise",
        inputs=(
            _i("R", "(m, m)", "the estimate so far"),
            _i("e", "(m,)", "innovation; for ema_residual_hph the residual y - yhat(theta+)"),
            _i("HpH", "(m, m)", "H P H', given; for ema_residual_hph with the posterior P"),
        ),
        options=(
            _opt(
                "noise",
                None,
                "the estimator",
                ("fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph"),
            ),
            _opt("beta", 0.95, "weight of the past"),
        ),
        outputs=(
            _o(
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
        inputs=(_i("A", "(r, i)", "down factor"), _i("B", "(o, r)", "up factor")),
        options=(_opt("alpha", None, "LoRA's alpha; scale = alpha / r"),),
        outputs=(_o("delta", "(o, i)", "(alpha / r) B A", "LORA-2", "A B"),),
        oracle=oracle.delta,
        plain=plain.delta,
    ),
    Operation(
        name="lora.merge",
        text="fold LoRA into the weight",
        inputs=(
            _i("W", "(o, i)", "frozen weight"),
            _i("A", "(r, i)", "down factor"),
            _i("B", "(o, r)", "up factor"),
        ),
        options=(_opt("alpha", None, "LoRA's alpha; scale = alpha / r"),),
        outputs=(_o("W", "(o, i)", "W + (alpha / r) B A", "LORA-3", "W A B"),),
        oracle=oracle.merge,
        plain=plain.merge,
    ),
    Operation(
        name="model.forward",
        text="the network's outputs",
        inputs=(_X, _WEIGHTS),
        options=(_SPEC,),
        outputs=_network("x weights")[:1],
        oracle=oracle.model_forward,
        plain=plain.model_forward,
    ),
    Operation(
        name="model.jacobian",
        text="outputs and their Jacobian with respect to every LoRA factor",
        inputs=(_X, _WEIGHTS),
        options=(_SPEC,),
        outputs=_network("x weights"),
        oracle=oracle.model_jacobian,
        plain=plain.model_jacobian,
    ),
    _loko("loko.step", "one step of LoKO on a batch stacked into one observation", "", False),
    _loko("loko.run", "LoKO on a stream: a step for each leading entry of x, y", "steps, ", True),
    _optimizer(
        "sgd",
        "stochastic gradient descent, torch's semantics",
        (
            _opt("lr", 1e-2, "learning rate"),
            _opt("momentum", 0.0, "the first step's buffer is the gradient itself"),
            _opt("dampening", 0.0, "of the gradient on its way into the buffer"),
            _DECAY,
            _opt("nesterov", False, "Nesterov's look-ahead"),
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
            _opt("lr", 1e-2, "learning rate"),
            _opt("lr_decay", 0.0, "lr / (1 + (t-1) lr_decay) at step t = 1, 2, ..."),
            _DECAY,
            _opt("initial_accumulator_value", 0.0, "start of the sum"),
            _opt("eps", 1e-10, "added to the root"),
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
            _opt("lr", 1e-3, "learning rate"),
            _opt("beta1", 0.9, "decay of exp_avg"),
            _opt("beta2", 0.999, "decay of exp_avg_sq"),
            _opt("eps", 1e-8, "added to the root of the corrected exp_avg_sq"),
            _opt("weight_decay", 1e-2, "theta is first multiplied by 1 - lr weight_decay"),
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


def _lte(entry: tuple[Any, ...]) -> Operation:
    name, text, inputs, options, outputs, expected, walk, stepwise = entry
    spec = () if name == "lte.merge" else (_SPEC,)
    return Operation(
        name=name,
        text=text,
        inputs=tuple(_i(*item) for item in inputs),
        options=(*spec, *(_opt(*item) for item in options)),
        outputs=tuple(_o(*item) for item in outputs),
        oracle=expected,
        plain=walk,
        stepwise=stepwise,
    )


OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (*_ALL, *map(_lte, LTE))
}
"""Operation name -> entry, in the order of the catalogue."""


def get(name: str) -> Operation:
    """Return an operation by name; an unknown one is an InputError naming the closest."""
    from loko_ref.errors import unknown_option

    if name not in OPERATIONS:
        raise unknown_option("operation", name, OPERATIONS)
    return OPERATIONS[name]
