"""First-order baselines in torch's semantics, driven by the same gradients as the filter.

Shapes: theta, gradient, every slot (n,).

A configuration is one of :class:`SGD`, :class:`AdaGrad`, :class:`AdamW`; ``init(theta, config)``
gives the state and ``step(state, gradient, config)`` the next. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from loko_ref.arrays import Array, namespace, one_minus_power, scalar
from loko_ref.checks import check_finite, check_floats, check_range, check_shape, known_keywords
from loko_ref.errors import InputError

__all__ = ["SGD", "AdaGrad", "AdamW", "OptimizerConfig", "OptimizerState", "init", "step"]


def _plain_floats(config: object, *names: str) -> None:
    """Keep constants as Python floats: a NumPy float64 would widen float32 arrays."""
    for name in names:
        object.__setattr__(config, name, float(getattr(config, name)))


@known_keywords
@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent.  [OPT-1].

    Parameters
    ----------
    lr : float
        Learning rate, >= 0.
    momentum, dampening, weight_decay : float
        As in ``torch.optim.SGD``; >= 0.
    nesterov : bool
        Needs momentum > 0 and dampening 0.
    """

    lr: float = 1e-2
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("lr", "momentum", "weight_decay"):
            check_range(name, getattr(self, name), low=0, high_open=True)
        check_range("dampening", self.dampening)
        _plain_floats(self, "lr", "momentum", "weight_decay", "dampening")
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise InputError(
                "nesterov", True, "momentum > 0 and dampening = 0", "momentum left at its default"
            )


@known_keywords
@dataclass(frozen=True, kw_only=True)
class AdaGrad:
    """Adaptive gradient.  [OPT-2].

    Parameters
    ----------
    lr, lr_decay, weight_decay, initial_accumulator_value, eps : float
        As in ``torch.optim.Adagrad``; >= 0.
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        """Check the ranges."""
        names = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        for name in names:
            check_range(name, getattr(self, name), low=0, high_open=True)
        _plain_floats(self, *names)


@known_keywords
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay.  [OPT-3].

    Parameters
    ----------
    lr, eps, weight_decay : float
        As in ``torch.optim.AdamW``; >= 0.
    beta1, beta2 : float
        Decay of the first and second moment, in [0, 1).
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, getattr(self, name), low=0, high_open=True)
        for name in ("beta1", "beta2"):
            check_range(name, getattr(self, name), low=0, high=1, high_open=True)
        _plain_floats(self, "lr", "eps", "weight_decay", "beta1", "beta2")


OptimizerConfig: TypeAlias = SGD | AdaGrad | AdamW


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimizerState:
    """What a baseline carries from step to step.

    Attributes
    ----------
    theta : array (n,)
        Parameters.
    slots : mapping of str to array (n,)
        ``momentum`` (SGD with momentum); ``sum`` (AdaGrad); ``exp_avg``, ``exp_avg_sq`` (AdamW).
    step : int
        Steps taken.
    """

    theta: Array
    slots: Mapping[str, Array] = field(default_factory=dict)
    step: int = 0


def _slot_names(config: OptimizerConfig) -> tuple[str, ...]:
    """Name the slots that a method's state has."""
    if isinstance(config, SGD):
        return ("momentum",) if config.momentum else ()
    return ("sum",) if isinstance(config, AdaGrad) else ("exp_avg", "exp_avg_sq")


def init(theta: Array, config: OptimizerConfig) -> OptimizerState:
    """State before the first step.

    Parameters
    ----------
    theta : array (n,)
        Parameters, finite.
    config : SGD, AdaGrad or AdamW
        The method and its constants.
    """
    check_floats(theta=theta)
    check_shape("theta", theta, ("n",))
    check_finite(theta=theta)
    zeros = namespace(theta).zeros_like(theta)
    if isinstance(config, AdaGrad):
        zeros = zeros + config.initial_accumulator_value
    slots = dict.fromkeys(_slot_names(config), zeros)
    return OptimizerState(theta=theta, slots=slots)


def step(state: OptimizerState, gradient: Array, config: OptimizerConfig) -> OptimizerState:
    """One step down a gradient.  [OPT-1, OPT-2, OPT-3].

    Parameters
    ----------
    state : OptimizerState
        Untouched.
    gradient : array (n,)
        Gradient of the loss at ``state.theta``.
    config : SGD, AdaGrad or AdamW
        The same as for :func:`init`.

    Returns
    -------
    OptimizerState
    """
    check_floats(theta=state.theta, gradient=gradient)
    check_shape("gradient", gradient, ("n",), {"n": state.theta.shape[0]})
    check_finite(gradient=gradient)
    names = _slot_names(config)
    if set(state.slots) != set(names):
        raise InputError(
            "state",
            f"slots {sorted(state.slots)}",
            f"slots {sorted(names)}, as {type(config).__name__} has",
            "a state made by init for another config",
        )
    if isinstance(config, SGD):
        return _sgd(state, gradient, config)
    if isinstance(config, AdaGrad):
        return _adagrad(state, gradient, config)
    return _adamw(state, gradient, config)


def _sgd(state: OptimizerState, g: Array, config: SGD) -> OptimizerState:
    theta, slots = state.theta, dict(state.slots)
    if config.weight_decay:
        g = g + config.weight_decay * theta
    if config.momentum:
        # the first step's buffer is the gradient itself, undamped
        buffer = g
        if state.step:
            damped = (1 - scalar(config.dampening, g)) * g
            buffer = config.momentum * slots["momentum"] + damped
        slots["momentum"] = buffer
        g = g + config.momentum * buffer if config.nesterov else buffer
    return OptimizerState(theta=theta - config.lr * g, slots=slots, step=state.step + 1)


def _adagrad(state: OptimizerState, g: Array, config: AdaGrad) -> OptimizerState:
    theta = state.theta
    if config.weight_decay:
        g = g + config.weight_decay * theta
    total = state.slots["sum"] + g * g
    lr = config.lr / (1 + state.step * scalar(config.lr_decay, g))
    theta = theta - lr * g / (namespace(g).sqrt(total) + config.eps)
    return OptimizerState(theta=theta, slots={"sum": total}, step=state.step + 1)


def _adamw(state: OptimizerState, g: Array, config: AdamW) -> OptimizerState:
    t = state.step + 1
    beta1, beta2, lr = (scalar(value, g) for value in (config.beta1, config.beta2, config.lr))
    theta = state.theta * (1 - lr * config.weight_decay)
    m = beta1 * state.slots["exp_avg"] + (1 - beta1) * g
    v = beta2 * state.slots["exp_avg_sq"] + (1 - beta2) * g * g
    m_hat = m / one_minus_power(config.beta1, t, g)  # 1 - beta^t  [BALL-7]
    v_hat = v / one_minus_power(config.beta2, t, g)
    theta = theta - lr * m_hat / (namespace(g).sqrt(v_hat) + config.eps)
    return OptimizerState(theta=theta, slots={"exp_avg": m, "exp_avg_sq": v}, step=t)
