"""Arrays of torch and JAX: read by the kit, those that need a gradient too, and named in errors."""

import numpy as np
import pytest

import loko_ref
from loko_ref import kalman
from loko_ref.conformance.user_inputs import agree, save_case
from loko_ref.errors import InputError
from loko_ref.network import lora
from loko_ref.properties import check, check_all

NAME = "kalman.diagonal_update"


class Parameter:
    """What a torch parameter is to the kit: it refuses NumPy until it is detached."""

    __module__ = "torch.nn.parameter"

    def __init__(self, array):
        self._array, self.dtype, self.shape = array, array.dtype, array.shape

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def detach(self):
        return self

    def cpu(self):
        return self._array


class Tracer:
    __module__ = "jax._src.core"
    dtype, shape, ndim = np.dtype("float64"), (3,), 1

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "The numpy.ndarray conversion method __array__() was called on traced array"
        )


def held(theta, p, H, e, R):
    K = np.linalg.solve((H * p) @ H.T + R, H * p).T
    return {"theta": Parameter(theta + K @ e), "p": Parameter(p - np.einsum("nm,mn->n", K, H) * p)}


PROBLEM = {"theta": np.zeros(2), "p": np.ones(2), "H": np.ones((1, 2)), "e": np.ones(1),
           "R": np.eye(1)}  # fmt: skip


def test_outputs_that_need_a_gradient_are_read():
    report = loko_ref.verify({NAME: held}, only=NAME, dtype="float64")
    assert report.passed
    assert check_all({NAME: held}, only=f"{NAME}/stationary").passed


def test_inputs_that_need_a_gradient_are_read(tmp_path):
    given = {name: Parameter(a) for name, a in PROBLEM.items()}
    agree(held, NAME, given)
    check(f"{NAME}/stationary", {NAME: held}, **given)
    save_case(tmp_path / "case.json", NAME, given)
    assert loko_ref.verify({NAME: held}, case=tmp_path / "case.json").passed
    with pytest.raises(InputError, match=r"p: got a Tracer that cannot be read.*outside of jit"):
        agree(held, NAME, {**PROBLEM, "p": Tracer()})


@pytest.mark.parametrize(
    ("array", "how"),
    [
        (
            Parameter(np.ones(3)),
            r"a tensor of torch: convert it with a.detach\(\).cpu\(\).numpy\(\)",
        ),
        (Tracer(), r"a tensor of jax: convert it with numpy.asarray\(a\), outside of jit"),
        ([1.0, 1.0, 1.0], r"convert it with numpy.asarray\(a\)"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda a: kalman.time.update(a, 0.5, 0.0),
        lambda a: kalman.diagonal.update(np.zeros(3), a, np.ones((1, 3)), np.ones(1), np.eye(1)),
        lambda a: kalman.noise.update("fixed", a, np.ones(1), np.eye(1), 0.5),
        lambda a: lora.delta(a, a, 1.0),
    ],
)
def test_the_numerical_functions_name_the_conversion(call, array, how):
    with pytest.raises(InputError, match=how):
        call(array)


def test_arrays_of_torch_and_jax_themselves():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")

    def update(theta, p, H, e, R):
        theta, p, H, e, R = (torch.tensor(a, requires_grad=True) for a in (theta, p, H, e, R))
        K = torch.linalg.solve(H @ (p[:, None] * H.T) + R, H * p).T
        return {"theta": theta + K @ e, "p": p - (K * H.T).sum(1) * p}

    given = {name: torch.nn.Parameter(torch.tensor(a)) for name, a in PROBLEM.items()}
    agree(update, NAME, given)
    as_jax = {name: jnp.asarray(a, jnp.float32) for name, a in PROBLEM.items()}
    agree(update, NAME, as_jax)
    assert check_all({NAME: update}, only=f"{NAME}/stationary").passed
    with pytest.raises(InputError, match=r"a.detach\(\).cpu\(\).numpy\(\)"):
        kalman.time.update(given["p"], 0.5, 0.0)
