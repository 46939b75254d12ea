"""SGD, AdaGrad, AdamW [OPT-1 to OPT-3]: plain loops always, torch where it is installed."""

import importlib
import importlib.util
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs
from support import close, eps

from loko_ref import optimizers
from loko_ref import strategies as st
from loko_ref.errors import InputError
from loko_ref.optimizers import SGD, AdaGrad, AdamW

RATES = hs.sampled_from([0.0, 1e-3, 0.1])
CONFIGS = (
    hs.builds(
        SGD,
        lr=RATES,
        momentum=hs.sampled_from([0.0, 0.9]),
        dampening=hs.sampled_from([0.0, 0.5]),
        weight_decay=RATES,
    )
    | hs.builds(SGD, lr=RATES, momentum=hs.just(0.5), weight_decay=RATES, nesterov=hs.just(True))
    | hs.builds(
        AdaGrad,
        lr=RATES,
        lr_decay=RATES,
        weight_decay=RATES,
        initial_accumulator_value=RATES,
        eps=hs.sampled_from([1e-10, 1e-3]),
    )
    | hs.builds(
        AdamW,
        lr=RATES,
        beta1=hs.sampled_from([0.9, 0.0]),
        beta2=hs.sampled_from([0.999, 0.5]),
        eps=hs.sampled_from([1e-8, 1e-3]),
        weight_decay=RATES,
    )
)


def loops(theta, gradients, c):
    """The textbook's pseudo-code, one float64 at a time."""
    out = []
    for j, x in enumerate(map(float, theta)):
        buffer = total = m = v = 0.0
        if isinstance(c, AdaGrad):
            total = c.initial_accumulator_value
        for t, step in enumerate(gradients, start=1):
            g = float(step[j])
            if isinstance(c, SGD):
                g += c.weight_decay * x
                if c.momentum:
                    buffer = g if t == 1 else c.momentum * buffer + (1 - c.dampening) * g
                    g = g + c.momentum * buffer if c.nesterov else buffer
                x -= c.lr * g
            elif isinstance(c, AdaGrad):
                g += c.weight_decay * x
                total += g * g
                x -= c.lr / (1 + (t - 1) * c.lr_decay) * g / (math.sqrt(total) + c.eps)
            else:
                x -= c.lr * c.weight_decay * x
                m = c.beta1 * m + (1 - c.beta1) * g
                v = c.beta2 * v + (1 - c.beta2) * g * g
                m_hat, v_hat = m / (1 - c.beta1**t), v / (1 - c.beta2**t)
                x -= c.lr * m_hat / (math.sqrt(v_hat) + c.eps)
        out.append(x)
    return np.array(out)


def run(theta, gradients, config):
    state = optimizers.init(theta, config)
    for t, g in enumerate(gradients):
        assert state.step == t
        state = optimizers.step(state, g, config)
    return state


def tolerance(theta, gradients, config):
    """A step is within 16 roundings of its size; steps add up.

    A step is at most lr (|g| + wd |x|) (1 + momentum)^t in SGD; in the others lr times a ratio of
    order 1, which moves by its own rounding relative to eps in the denominator.
    """
    steps = len(gradients)
    size = np.abs(theta).max() + steps * (1 + config.lr * 64) * 2.0 ** (steps if config.lr else 0)
    return 16 * steps * eps(theta) * size


@given(CONFIGS, st.dtypes(), hs.data())
def test_by_plain_loops(config, dtype, data):
    theta = data.draw(st.arrays(3, dtype=dtype))
    gradients = [data.draw(st.arrays(3, dtype=dtype)) for _ in range(4)]
    state = run(theta, gradients, config)
    assert state.theta.dtype == dtype
    assert all(slot.dtype == dtype for slot in state.slots.values())
    close(state.theta, loops(theta, gradients, config), tolerance(theta, gradients, config))


def torch_twin(torch, config, parameter):
    if isinstance(config, SGD):
        return torch.optim.SGD(
            [parameter],
            lr=config.lr,
            momentum=config.momentum,
            dampening=config.dampening,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    if isinstance(config, AdaGrad):
        return torch.optim.Adagrad(
            [parameter],
            lr=config.lr,
            lr_decay=config.lr_decay,
            weight_decay=config.weight_decay,
            initial_accumulator_value=config.initial_accumulator_value,
            eps=config.eps,
        )
    return torch.optim.AdamW(
        [parameter],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch (extra interop) is not installed"
)
@pytest.mark.filterwarnings("default")  # torch's own deprecations are not ours
@given(CONFIGS, hs.data())
def test_against_torch(config, data):
    torch = importlib.import_module("torch")
    theta = data.draw(st.arrays(3))
    gradients = [data.draw(st.arrays(3)) for _ in range(4)]
    parameter = torch.nn.Parameter(torch.tensor(theta.tolist(), dtype=torch.float64))
    peer = torch_twin(torch, config, parameter)
    for g in gradients:
        parameter.grad = torch.tensor(g.tolist(), dtype=torch.float64)
        peer.step()
    ours = run(theta, gradients, config).theta
    close(ours, parameter.detach().numpy(), tolerance(theta, gradients, config))


def test_slots_are_named():
    theta = np.zeros(2)
    assert set(optimizers.init(theta, SGD()).slots) == set()
    assert set(optimizers.init(theta, SGD(momentum=0.9)).slots) == {"momentum"}
    assert set(optimizers.init(theta, AdaGrad()).slots) == {"sum"}
    assert set(optimizers.init(theta, AdamW()).slots) == {"exp_avg", "exp_avg_sq"}


RANGES = {
    SGD: ("lr", "momentum", "weight_decay"),
    AdaGrad: ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"),
    AdamW: ("lr", "eps", "weight_decay", "beta1", "beta2"),
}


@pytest.mark.parametrize(("kind", "names"), list(RANGES.items()))
def test_bad_constants(kind, names):
    for name, value in itertools.product(names, (-1e-3, float("nan"), "0.1", None, True)):
        with pytest.raises(InputError, match=f"{name}: got"):
            kind(**{name: value})
    if kind is AdamW:
        with pytest.raises(InputError, match=r"beta1: got 1.0; required a number in \[0, 1\)"):
            AdamW(beta1=1.0)
    if kind is SGD:
        with pytest.raises(InputError, match=r"nesterov: got True; required momentum > 0"):
            SGD(nesterov=True)


def test_bad_arrays():
    state = optimizers.init(np.zeros(2), SGD())
    for gradient, message in [
        (np.zeros(3), r"gradient: got shape \(3,\)"),
        (np.zeros(2, "float32"), r"gradient: got dtype float32"),
        (np.array([0.0, np.inf]), r"gradient: got inf at index \(1,\)"),
    ]:
        with pytest.raises(InputError, match=message):
            optimizers.step(state, gradient, SGD())
    with pytest.raises(InputError, match=r"theta: got shape \(2, 1\)"):
        optimizers.init(np.zeros((2, 1)), SGD())


@pytest.mark.parametrize("config", [SGD(momentum=0.9), AdaGrad(), AdamW()])
def test_the_state_of_another_method_is_refused(config):
    with pytest.raises(InputError, match=r"state: got slots \[\]; required slots \['"):
        optimizers.step(optimizers.init(np.zeros(2), SGD()), np.ones(2), config)
    with pytest.raises(InputError, match=r"required slots \[\], as SGD has.*another config"):
        optimizers.step(optimizers.init(np.zeros(2), config), np.ones(2), SGD())


@pytest.mark.parametrize(
    "config", [SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), AdaGrad(), AdamW()]
)
def test_blocks_change_no_bit_and_leave_the_old_state(config, monkeypatch):
    rng = np.random.default_rng(0)
    theta, gradients = rng.standard_normal(11), rng.standard_normal((3, 11))
    whole = run(theta, gradients, config)
    monkeypatch.setattr(optimizers, "_BLOCK", 32)  # 4 numbers: the last block has 3
    state = optimizers.init(theta, config)
    for g in gradients:
        held = {"theta": state.theta, **state.slots}
        before = {name: array.copy() for name, array in held.items()}
        state = optimizers.step(state, g, config)
        for name, array in held.items():
            np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(state.theta, whole.theta)
    for name, slot in whole.slots.items():
        np.testing.assert_array_equal(state.slots[name], slot)
