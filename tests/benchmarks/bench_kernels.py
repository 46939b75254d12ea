"""Kernels of the attention stack and of the fast route, by pytest-benchmark.

    OMP_NUM_THREADS=2 python -m pytest tests/benchmarks/bench_kernels.py -o addopts=

The rows of the table in README come from ``side_by_side.py``; these say where the time goes.
"""

import numpy as np
import pytest

from loko_ref import loko
from loko_ref.fast import prepare
from loko_ref.fast.bench import problem
from loko_ref.fast.columns import Mixed, squares
from loko_ref.fast.filter import decoupled, root_inverse
from loko_ref.fast.network import Network
from loko_ref.network.jacobian import jacobian
from loko_ref.network.layers import attention, norm
from loko_ref.network.layers.activation import gelu_forward, gelu_vjp

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def draw(dtype):
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


def test_norm_forward(benchmark, draw):
    benchmark(norm.forward, draw(1, 128, 768), draw(768), draw(768))


def test_norm_vjp(benchmark, draw):
    _, cache = norm.forward(draw(1, 64, 128), draw(128), draw(128))
    benchmark(norm.vjp, draw(10, 1, 64, 128), cache)


def test_gelu_forward(benchmark, draw):
    benchmark(gelu_forward, draw(1, 128, 3072))


def test_gelu_vjp(benchmark, draw):
    _, cache = gelu_forward(draw(1, 64, 512))
    benchmark(gelu_vjp, draw(10, 1, 64, 512), cache)


def test_attention_forward(benchmark, draw):
    benchmark(attention.forward, *(draw(1, 128, 768) for _ in range(3)), 12)


def test_attention_vjp(benchmark, draw):
    _, cache = attention.forward(*(draw(1, 64, 128) for _ in range(3)), 4)
    benchmark(attention.vjp, draw(10, 1, 64, 128), cache)


def scaled(draw, m=288, n=2344):
    Hs = draw(m, n) * n**-0.5
    S = Hs @ Hs.T + np.eye(m, dtype=Hs.dtype)
    return Hs, S, root_inverse(S, "S")


def test_innovation_covariance(benchmark, draw):
    Hs, _, _ = scaled(draw)
    benchmark(lambda: Hs @ Hs.T)


def test_triangular_inverse(benchmark, draw):
    _, S, _ = scaled(draw)
    benchmark(root_inverse, S, "S")


def test_leverages(benchmark, draw):
    Hs, _, L_inv = scaled(draw)
    benchmark(squares, L_inv, Hs)


def test_decoupled(benchmark, draw):
    Hs, _, L_inv = scaled(draw)
    m, n = Hs.shape
    p, R = np.ones(n, Hs.dtype), np.eye(m, dtype=Hs.dtype)
    benchmark(decoupled, p, Mixed(Hs, [slice(0, n)], [], n), L_inv, R)


@pytest.mark.parametrize("name", ["mlp_b1", "mlp_b32", "tf_small"])
@pytest.mark.parametrize("route", ["fast", "readable"])
def test_jacobian(benchmark, name, route, dtype):
    config, state, batch = problem(name, dtype)
    if route == "readable":
        benchmark(jacobian, config.model, batch.x)
        return
    network = Network(config.model)
    C = config.model.outputs
    seeds = np.broadcast_to(np.eye(C, dtype=dtype), (len(batch.x), C, C))

    def both():
        _, now = network.forward(state.theta, batch.x)
        network.backward(seeds, now)

    benchmark(both)


@pytest.mark.parametrize("name", ["mlp_b1", "mlp_b32", "tf_small"])
@pytest.mark.parametrize("route", ["fast", "readable"])
def test_step(benchmark, name, route, dtype):
    config, state, batch = problem(name, dtype)
    if route == "readable":
        benchmark(loko.step, state, batch, config)
    else:
        benchmark(prepare(config).step, state, batch)
