"""CuPy's discipline, without a GPU and (marked `gpu`) with one.

Every operation of the core runs on the stand-in (tests/device.py), under a registered name and as
``cupy`` itself, stays on the device from input to output, and gives the bits that NumPy gives.
"""

import importlib
import importlib.util
import sys

import device
import numpy as np
import pytest
import table
from support import is_array, leaves, readonly, tree_map

from loko_ref import arrays
from loko_ref.arrays import backends
from loko_ref.errors import BackendError, InputError, NumericalError
from loko_ref.network import model

OPERATIONS = list(table.operations())
NAMES = [name for name, _, _ in OPERATIONS]


@pytest.fixture
def strict_device():
    """The stand-in under the name of a module of its own."""
    lib = device.backend("strict_device")
    arrays.register_backend("strict_device", lambda: lib)
    yield lib
    del backends.KNOWN["strict_device"]


@pytest.fixture
def cupy_stand_in(monkeypatch):
    """The stand-in as ``cupy`` and ``cupyx``, through the code that builds CuPy's backend."""
    backends._cupy.cache_clear()
    device.fake_cupy(monkeypatch)
    yield arrays.get_backend("cupy")
    backends._cupy.cache_clear()


@pytest.fixture
def real_cupy():
    """CuPy on a GPU, or a skip that says which of the four states it is in."""
    backends._cupy.cache_clear()
    try:
        return arrays.get_backend("cupy")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(
    params=["strict_device", "cupy_stand_in", pytest.param("real_cupy", marks=pytest.mark.gpu)]
)
def lib(request):
    return request.getfixturevalue(request.param)


def cast(tree, dtype):
    """Inputs in a dtype, read-only; integers stay."""

    def one(a):
        a = np.asarray(a)
        return readonly(a.astype(dtype) if a.dtype.kind == "f" else a)

    return tree_map(one, tree, lambda x: isinstance(x, np.ndarray))


def on_device(tree, lib):
    return tree_map(lib.asarray, tree, lambda x: isinstance(x, np.ndarray))


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize(("name", "f", "inputs"), OPERATIONS, ids=NAMES)
def test_dtype_is_kept_and_inputs_are_untouched(name, f, inputs, dtype):
    """Float32 in, float32 out, everywhere (NumPy scalars as options included); read-only inputs."""
    out = f(**cast(inputs, dtype))
    found = leaves(out, is_array)
    assert found
    for path, a in found:
        assert a.dtype.kind in "bi" or a.dtype == dtype, (name, path, a.dtype)


@pytest.mark.sampled(0.3, by=lambda lib, **_: lib)
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_device_alone(name, lib, dtype):
    _, f, inputs = OPERATIONS[NAMES.index(name)]
    host = cast(inputs, dtype)
    expected = leaves(f(**host), is_array)
    cls = type(lib.asarray(np.zeros(1)))
    out = f(**on_device(host, lib))
    assert not [path for path, _ in leaves(out, is_array)], "a host array came out"
    got = leaves(out, lambda x: isinstance(x, cls))
    assert [p for p, _ in got] == [p for p, _ in expected]
    exactly = "_a" in dir(got[0][1])
    for (path, a), (_, b) in zip(got, expected, strict=True):
        a = lib.to_host(a)
        assert a.dtype == b.dtype, path
        if exactly:
            np.testing.assert_array_equal(a, b, err_msg=f"{name} {path}")
        else:  # another BLAS; the table's problems have conditions below 1e4
            size = np.abs(b).max(initial=1.0)
            unit = 1e4 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(a, b, rtol=unit, atol=unit * size, err_msg=str(path))


def test_models_are_drawn_on_the_host_and_moved(lib):
    """The same bits on every backend."""
    spec = model.mlp_spec([3, 2], lora={"r": 1, "alpha": 1.0})
    here = model.init_model(np.random.default_rng(4), spec)
    there = model.init_model(np.random.default_rng(4), spec, like=lib.asarray(np.zeros(1)))
    assert arrays.backend_of(*there.weights.values()).name == lib.name
    for key, value in here.weights.items():
        np.testing.assert_array_equal(arrays.to_host(there.weights[key]), value)


def test_a_failed_factorisation_raises_there_as_here(lib):
    for S in (np.diag([1.0, -1.0]), np.ones((2, 2)), np.full((2, 2), np.nan)):
        errors = []
        for a in (S, lib.asarray(S)):
            with pytest.raises(NumericalError) as told:
                arrays.cholesky(a, "S")
            errors.append(told.value)
        here, there = errors
        assert here.cause.split(":")[0] == there.cause.split(":")[0]
        if here.eigenvalue is None:
            assert there.eigenvalue is None
        else:
            assert abs(here.eigenvalue - there.eigenvalue) <= 8 * np.finfo(float).eps


def test_arrays_of_two_libraries_never_mix(lib):
    there, here = lib.asarray(np.ones(2)), np.ones(2)
    with pytest.raises(
        InputError, match=rf"arrays of .*{lib.name}.*required arrays of one library"
    ):
        arrays.namespace(there, here)
    with pytest.raises(InputError, match="arrays of one library"):
        arrays.solve(np.eye(2), there)
    with pytest.raises((InputError, TypeError)):
        arrays.asarray(there, here)  # to the host only by to_host
    np.testing.assert_array_equal(arrays.to_host(there), here)
    assert arrays.asarray(here, there).dtype == here.dtype
    assert arrays.asarray(there, there) is there
    assert not arrays.is_numpy(there)


def test_the_stand_in_is_as_strict_as_it_says(strict_device):
    """The discipline itself: what must raise raises."""
    xp, a, here = strict_device.xp, strict_device.asarray(np.ones((2, 2))), np.ones((2, 2))
    for wrong in (
        lambda: np.asarray(a),
        lambda: np.sqrt(a),
        lambda: np.concatenate([a, a]),
        lambda: a + here,
        lambda: here + a,
        lambda: a @ here,
        lambda: here @ a,
        lambda: a[np.array([0])],
        lambda: xp.where(a > 0, here, a),
        lambda: a.__setitem__(0, here[0]),
    ):
        with pytest.raises(TypeError):
            wrong()
    for name in device.LACKING:
        assert not hasattr(xp, name)
    for name in device.LINALG_LACKING:
        assert not hasattr(xp.linalg, name)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(a)
    assert float(a.sum()) == 4.0
    assert type(a.sum()) is type(a)
    assert np.isnan(xp.linalg.cholesky(-a).get()).all()  # garbage without a word
    assert (np.float64(2) * a).get().sum() == 8


# The four states of an explicit request, told apart; none falls back.


@pytest.fixture
def _fresh():
    backends._cupy.cache_clear()
    yield
    backends._cupy.cache_clear()


def request_cupy():
    with pytest.raises(BackendError) as told:
        arrays.get_backend("cupy")
    assert told.value.backend == "cupy"
    return told.value


@pytest.mark.usefixtures("_fresh")
def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    error = request_cupy()
    assert error.state == "not installed"
    assert "pip install 'loko-ref[cuda12]' or 'loko-ref[cuda13]'" in str(error)


@pytest.mark.usefixtures("_fresh")
def test_import_fails(monkeypatch, tmp_path):
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text("raise RuntimeError('libcublas.so.12: gone')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    error = request_cupy()
    assert error.state == "import fails"
    assert "RuntimeError: libcublas.so.12: gone" in str(error)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (device.CUDARuntimeError("cudaErrorInsufficientDriver"), "cudaErrorInsufficientDriver"),
        (0, "the CUDA runtime counts 0 devices"),
    ],
)
def test_no_device(monkeypatch, devices, message):
    device.fake_cupy(monkeypatch, devices)
    error = request_cupy()
    assert error.state == "no device"
    assert message in str(error)


@pytest.mark.usefixtures("_fresh")
def test_smoke_run_fails(monkeypatch):
    """A missing library, a module that does not import, or a wrong result."""
    cupy = device.fake_cupy(monkeypatch)

    def no_library(*args):
        raise ImportError("libcusolver.so.11: cannot open shared object file")

    monkeypatch.setattr(cupy.linalg, "cholesky", no_library)
    error = request_cupy()
    assert error.state == "smoke run fails"
    assert "libcusolver.so.11" in str(error)

    device.fake_cupy(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.linalg", None)
    error = request_cupy()
    assert error.state == "smoke run fails"
    assert "cupyx.scipy.linalg" in str(error)

    cupy = device.fake_cupy(monkeypatch)
    exact = cupy.linalg.cholesky
    monkeypatch.setattr(cupy.linalg, "cholesky", lambda a: exact(a) * 1.001)
    error = request_cupy()
    assert error.state == "smoke run fails"
    assert "expected" in str(error)


@pytest.mark.usefixtures("_fresh")
def test_a_failure_is_not_remembered(monkeypatch):
    """A request after the cause is mended succeeds; no other backend is ever given in its place."""
    device.fake_cupy(monkeypatch, 0)
    request_cupy()
    device.fake_cupy(monkeypatch)
    assert arrays.get_backend("cupy").name == "cupy"


def test_unknown_backends():
    with pytest.raises(InputError, match=r"backend: got 'cupyy'.*closest known name is 'cupy'"):
        arrays.get_backend("cupyy")
    with pytest.raises(InputError, match="got list; required an array of one of"):
        arrays.namespace([1.0])
    assert importlib.util.find_spec("strict_device") is None
