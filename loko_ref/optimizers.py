"""First-order baselines in torch's semantics, driven by the same gradients as the filter.

Shapes: theta, gradient, every slot (n,).

A configuration is one of :class:`SGD`, :class:`AdaGrad`, :class:`AdamW`; ``init(theta, config)``
gives the state and ``step(state, gradient, config)`` the next. The state that is handed in stays;
the next one is written block by block: the formulas are elementwise, so blocks change no bit, and
a block stays in the cache from its first pass to its last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import Array, is_numpy, namespace, one_minus_power, root, scalar
from loko_ref.checks.signatures import takes
from loko_ref.checks.values import (
    check_finite,
    check_floats,
    check_range,
    check_shape,
    known_keywords,
)
from loko_ref.errors import InputError

__all__ = [
    "METHODS",
    "SGD",
    "AdaGrad",
    "AdamW",
    "Method",
    "OptimizerConfig",
    "OptimizerState",
    "init",
    "slot_names",
    "step",
    "step_unchecked",
]


def _constants(config: object, *names: str, high: float = math.inf) -> None:
    """Check constants; keep them as Python floats: a NumPy float64 would widen float32 arrays."""
    for name in names:
        check_range(name, getattr(config, name), low=0, high=high, high_open=True)
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
        _constants(self, "lr", "momentum", "weight_decay")
        check_range("dampening", self.dampening)
        object.__setattr__(self, "dampening", float(self.dampening))
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
        _constants(self, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")


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
        _constants(self, "lr", "eps", "weight_decay")
        _constants(self, "beta1", "beta2", high=1)


OptimizerConfig: TypeAlias = SGD | AdaGrad | AdamW

Method: TypeAlias = Literal["sgd", "adagrad", "adamw"]
_CLASSES: tuple[Any, ...] = (SGD, AdaGrad, AdamW)
METHODS: dict[str, Any] = dict(zip(get_args(Method), _CLASSES, strict=True))
"""Name -> its configuration."""


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


@takes(config=(SGD, AdaGrad, AdamW))
def slot_names(config: OptimizerConfig) -> tuple[str, ...]:
    """Names of the slots that a method's state has."""
    if isinstance(config, SGD):
        return ("momentum",) if config.momentum else ()
    return ("sum",) if isinstance(config, AdaGrad) else ("exp_avg", "exp_avg_sq")


@takes(config=(SGD, AdaGrad, AdamW))
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
    slots = dict.fromkeys(slot_names(config), zeros)
    return OptimizerState(theta=theta, slots=slots)


@takes(state=OptimizerState, config=(SGD, AdaGrad, AdamW))
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
    names = slot_names(config)
    if set(state.slots) != set(names):
        raise InputError(
            "state",
            f"slots {sorted(state.slots)}",
            f"slots {sorted(names)}, as {type(config).__name__} has",
            "a state made by init for another config",
        )
    return step_unchecked(state, gradient, config)


_BLOCK = 2**19
"""Bytes of theta that are taken at a time; of 2^18 and more NumPy reuses its own temporaries."""


def step_unchecked(
    state: OptimizerState, gradient: Array, config: OptimizerConfig
) -> OptimizerState:
    """Compute :func:`step` of checked arguments."""
    xp, n, dtype = namespace(state.theta), state.theta.shape[0], state.theta.dtype
    theta = xp.empty(n, dtype=dtype)
    slots = {name: xp.empty(n, dtype=dtype) for name in state.slots}
    new = OptimizerState(theta=theta, slots=slots, step=state.step + 1)
    rule = _sgd if isinstance(config, SGD) else _adagrad if isinstance(config, AdaGrad) else _adamw
    size = _BLOCK // dtype.itemsize if is_numpy(theta) else n
    for at in range(0, n, size):
        part = slice(at, at + size)
        rule(_part(new, part), _part(state, part), gradient[part], config)
    return new


def _part(state: OptimizerState, part: slice) -> OptimizerState:
    slots = {name: slot[part] for name, slot in state.slots.items()}
    return OptimizerState(theta=state.theta[part], slots=slots, step=state.step)


def _sgd(new: OptimizerState, old: OptimizerState, g: Array, config: Any) -> None:
    """Write the step from `old` into `new`.  [OPT-1]."""
    xp = namespace(g)
    if config.weight_decay:
        g = g + config.weight_decay * old.theta
    if config.momentum:
        buffer = new.slots["momentum"]
        if old.step:
            xp.multiply(config.momentum, old.slots["momentum"], out=buffer)
            xp.add(buffer, (1 - scalar(config.dampening, g)) * g, out=buffer)
        else:  # the first step's buffer is the gradient itself, undamped
            buffer[...] = g
        g = g + config.momentum * buffer if config.nesterov else buffer
    xp.subtract(old.theta, config.lr * g, out=new.theta)


def _adagrad(new: OptimizerState, old: OptimizerState, g: Array, config: Any) -> None:
    """Write the step from `old` into `new`.  [OPT-2]."""
    xp = namespace(g)
    if config.weight_decay:
        g = g + config.weight_decay * old.theta
    total = xp.add(old.slots["sum"], g * g, out=new.slots["sum"])
    lr = config.lr / (1 + old.step * scalar(config.lr_decay, g))
    xp.subtract(old.theta, lr * g / (xp.sqrt(total) + config.eps), out=new.theta)


def _adamw(new: OptimizerState, old: OptimizerState, g: Array, config: Any) -> None:
    """Write the step from `old` into `new`.  [OPT-3].

    With c1, c2 the corrections 1 - beta^t, ``(m / c1) / (sqrt(v / c2) + eps)`` is taken as
    ``(sqrt(c2) / c1) m / (sqrt(v) + sqrt(c2) eps)``: the same number, two passes less.
    """
    xp = namespace(g)
    beta1, beta2, lr = (scalar(value, g) for value in (config.beta1, config.beta2, config.lr))
    c1, c2 = (one_minus_power(beta, new.step, g) for beta in (config.beta1, config.beta2))
    c = root(c2, g)  # [BALL-7]
    m, v, theta = new.slots["exp_avg"], new.slots["exp_avg_sq"], new.theta
    xp.multiply(beta1, old.slots["exp_avg"], out=m)
    xp.add(m, (1 - beta1) * g, out=m)
    xp.multiply(beta2, old.slots["exp_avg_sq"], out=v)
    xp.add(v, (1 - beta2) * (g * g), out=v)
    xp.multiply(1 - lr * config.weight_decay, old.theta, out=theta)
    xp.subtract(theta, (lr * c / c1) * m / (xp.sqrt(v) + c * config.eps), out=theta)
