"""A stand-in for CuPy without a GPU: the discipline of a device, on the host.

:func:`build` makes an array class and a namespace that support what CuPy supports and refuse what
it refuses (its "Differences between CuPy and NumPy"):

* host arrays never mix with device arrays, neither as operands nor as indices or values;
* nothing converts implicitly: ``np.asarray`` and NumPy's functions raise (real CuPy would run some
  of NumPy's functions by dispatch; the seam asks more: no package but the seam names NumPy);
* ``float(a)``, ``int(a)``, ``bool(a)`` work for one element and synchronise; reductions give 0-d
  arrays, not scalars;
* names that CuPy lacks raise AttributeError;
* Cholesky of an indefinite matrix, and a solve with a singular one, return NaN without a word,
  unless ``errstate(linalg="raise")`` is on.
"""

import contextlib
import sys
import tracemalloc
import types
from importlib.machinery import ModuleSpec

import numpy as np
import scipy.linalg
import scipy.special


def words(text):
    return text.split()


FUNCTIONS = words(
    """
    abs absolute add all allclose any arange argmax argmin argsort array array_equal atleast_1d
    atleast_2d broadcast_to ceil clip concatenate copy cos count_nonzero cumsum diag diagonal
    divide dot einsum empty empty_like equal exp expand_dims expm1 eye flip floor full full_like
    greater hstack identity inner isclose isfinite isinf isnan isneginf isposinf kron less
    linspace log log1p logical_and logical_not logical_or matmul max maximum mean min minimum
    moveaxis multiply negative nonzero ones ones_like outer power prod ravel repeat reshape roll
    round sign sin sort split sqrt square squeeze stack subtract sum swapaxes take
    take_along_axis tan tanh tensordot tile trace transpose tril triu unique var vdot vstack
    where zeros zeros_like
    """
)
LINALG = words("cholesky det eigh eigvalsh inv lstsq norm pinv qr slogdet solve svd")
CONSTANTS = words("e euler_gamma float32 float64 inf int32 int64 bool_ nan newaxis pi")
LACKING = words("errstate longdouble float128")
LINALG_LACKING = words("multi_dot")

METHODS = words(
    """
    sum mean max min any all prod argmax argmin reshape astype copy transpose ravel repeat
    cumsum diagonal dot flatten squeeze swapaxes take trace nonzero clip var argsort
    """
)
BINARY = words("add sub mul truediv floordiv mod pow matmul lt le gt ge eq ne and or xor")


def build(module):
    """The stand-in under the name of a module: ``array``, ``xp``, ``errstate``, ``linalg`` ..."""
    state = {"linalg": "ignore"}

    def wrap(value):
        if isinstance(value, np.ndarray | np.generic):
            return array(value)
        if isinstance(value, tuple | list):  # named tuples too: CuPy's have no names
            return (list if isinstance(value, list) else tuple)(wrap(v) for v in value)
        return value

    def unwrap(value):
        if isinstance(value, array):
            return value._a
        if isinstance(value, np.ndarray):
            raise TypeError(f"{module}: unsupported type {type(value)}: a host array")
        if isinstance(value, tuple | list):
            return type(value)(unwrap(v) for v in value)
        if isinstance(value, slice):
            return slice(unwrap(value.start), unwrap(value.stop), unwrap(value.step))
        return value

    def scalar(a):
        if a.size != 1:
            raise ValueError("the truth value of an array with more than one element is ambiguous")
        return a._a.reshape(())[()]

    class array:
        """An array on the device; `_a` is its memory, which only this file may touch."""

        __hash__ = None

        def __init__(self, a):
            self._a = np.asarray(a)

        def __array__(self, *args, **kwargs):
            raise TypeError("implicit conversion to a NumPy array is not allowed: use .get()")

        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            scalars = [x for x in inputs if not isinstance(x, array)]
            if method != "__call__" or not scalars:
                raise TypeError(f"numpy.{ufunc.__name__} was called on a {module} array")
            if not all(isinstance(x, np.generic | int | float) for x in scalars):
                raise TypeError(f"{module}: unsupported type among {[type(x) for x in inputs]}")
            return wrap(ufunc(*unwrap(inputs), **kwargs))

        def __array_function__(self, f, *args, **kwargs):
            raise TypeError(f"numpy.{f.__name__} was called on a {module} array")

        shape, ndim, size, dtype, nbytes = (
            property(lambda self, k=k: getattr(self._a, k))
            for k in ["shape", "ndim", "size", "dtype", "nbytes"]
        )
        T, real, imag = (
            property(lambda self, k=k: wrap(getattr(self._a, k))) for k in ["T", "real", "imag"]
        )

        def get(self):
            return self._a.copy()

        def item(self):
            return scalar(self).item()

        def tolist(self):
            return self._a.tolist()

        def __len__(self):
            return len(self._a)

        def __iter__(self):
            return iter([wrap(row) for row in self._a])

        def __getitem__(self, key):
            return wrap(self._a[unwrap(key)])

        def __setitem__(self, key, value):
            self._a[unwrap(key)] = unwrap(value)

        def __bool__(self):
            return bool(scalar(self))

        def __float__(self):
            return float(scalar(self))

        def __int__(self):
            return int(scalar(self))

        def __index__(self):
            return scalar(self).__index__()

        def __neg__(self):
            return wrap(-self._a)

        def __abs__(self):
            return wrap(abs(self._a))

        def __invert__(self):
            return wrap(~self._a)

        def __repr__(self):
            return f"{module}.{self._a!r}"

    def operator(name):
        def method(self, other):
            return wrap(getattr(self._a, name)(unwrap(other)))

        return method

    for name in BINARY:
        setattr(array, f"__{name}__", operator(f"__{name}__"))
        if name not in ("lt", "le", "gt", "ge", "eq", "ne"):
            setattr(array, f"__r{name}__", operator(f"__r{name}__"))
    for name in METHODS:

        def method(self, *args, _name=name, **kwargs):
            return wrap(getattr(self._a, _name)(*unwrap(args), **unwrap_all(kwargs)))

        setattr(array, name, method)
    array.__module__, array.__qualname__, array.__name__ = f"{module}._core", "ndarray", "ndarray"

    def unwrap_all(kwargs):
        return {k: unwrap(v) for k, v in kwargs.items()}

    def function(f):
        return lambda *args, **kwargs: wrap(f(*unwrap(args), **unwrap_all(kwargs)))

    def transfer(a, dtype=None):
        """`asarray` and `array`: the one way from the host."""
        return array(np.array(a._a if isinstance(a, array) else a, dtype=dtype))

    def quiet(f, name):
        def inner(*args, **kwargs):
            with np.errstate(all="ignore"):
                try:
                    return f(*args, **kwargs)
                except np.linalg.LinAlgError:
                    if state["linalg"] == "raise":
                        raise
                    shape = args[-1].shape
                    return array(np.full(shape, np.nan, args[-1].dtype))

        inner.__name__ = name
        return inner

    @contextlib.contextmanager
    def errstate(*, linalg):
        before, state["linalg"] = state["linalg"], linalg
        try:
            yield
        finally:
            state["linalg"] = before

    def solve_triangular(
        a, b, trans=0, lower=False, unit_diagonal=False, overwrite_b=False, check_finite=False
    ):
        a, b = unwrap(a), unwrap(b)
        return wrap(scipy.linalg.solve_triangular(a, b, trans=trans, lower=lower))

    xp = types.ModuleType(module)
    for name in FUNCTIONS:
        setattr(xp, name, function(getattr(np, name)))
    xp.asarray = xp.array = transfer
    xp.add.at = lambda a, indices, b: np.add.at(unwrap(a), unwrap(indices), unwrap(b))
    for name in CONSTANTS:
        setattr(xp, name, getattr(np, name))
    xp.ndarray, xp.asnumpy = array, lambda a: a.get()
    xp.linalg = types.ModuleType(f"{module}.linalg")
    for name in LINALG:
        setattr(xp.linalg, name, quiet(function(getattr(np.linalg, name)), name))
    special = types.ModuleType(f"{module}.special")
    special.erf, special.erfc = function(scipy.special.erf), function(scipy.special.erfc)
    return types.SimpleNamespace(
        array=array,
        xp=xp,
        errstate=errstate,
        solve_triangular=solve_triangular,
        special=special,
    )


def backend(name):
    """A :class:`loko_ref.arrays.Backend` of the stand-in, for `register_backend`."""
    from loko_ref.arrays import Backend

    lib = build(name)

    def strictly(f):
        def inner(*args):
            with lib.errstate(linalg="raise"):
                return f(*args)

        return inner

    return Backend(
        name=name,
        xp=lib.xp,
        asarray=lib.xp.asarray,
        to_host=lib.xp.asnumpy,
        erf=lib.special.erf,
        erfc=lib.special.erfc,
        cholesky=strictly(lib.xp.linalg.cholesky),
        solve_triangular=lambda L, b, t: lib.solve_triangular(L, b, trans=int(t), lower=True),
        solve=strictly(lib.xp.linalg.solve),
        eigvalsh=lib.xp.linalg.eigvalsh,
    )


class CUDARuntimeError(RuntimeError):
    """What CuPy raises without a driver."""


class Memory:
    """CuPy's memory pool: what NumPy's arrays made since the last clearing hold, and their peak."""

    def used_bytes(self):
        numpy = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        traces = tracemalloc.take_snapshot().filter_traces([numpy]).traces
        return sum(trace.size for trace in traces)

    def total_bytes(self):
        return tracemalloc.get_traced_memory()[1]

    def free_all_blocks(self):
        tracemalloc.stop()
        tracemalloc.start()


MEMORY = Memory()


def fake_cupy(monkeypatch, devices=1):
    """Put modules ``cupy`` and ``cupyx`` made of the stand-in in ``sys.modules``.

    `devices`: what the CUDA runtime counts, or the error that it raises. Returns ``cupy``.
    """
    lib = build("cupy")
    cupy, cupyx = lib.xp, types.ModuleType("cupyx")

    def count():
        if isinstance(devices, Exception):
            raise devices
        return devices

    runtime = types.SimpleNamespace(
        getDeviceCount=count,
        getDeviceProperties=lambda device: {"name": b"the stand-in for CuPy"},
        driverGetVersion=lambda: 0,
        runtimeGetVersion=lambda: 0,
        deviceSynchronize=lambda: None,
        CUDARuntimeError=CUDARuntimeError,
    )
    cupy.cuda = types.SimpleNamespace(runtime=runtime)
    cupy.__version__ = f"stand-in on NumPy {np.__version__}"
    cupy.get_default_memory_pool = lambda: MEMORY
    cupy.is_available = lambda: devices == 1
    cupyx.errstate = lib.errstate
    cupyx.scipy = types.ModuleType("cupyx.scipy")
    cupyx.scipy.linalg = types.ModuleType("cupyx.scipy.linalg")
    cupyx.scipy.linalg.solve_triangular = lib.solve_triangular
    cupyx.scipy.special = lib.special
    for name, module in {
        "cupy": cupy,
        "cupyx": cupyx,
        "cupyx.scipy": cupyx.scipy,
        "cupyx.scipy.linalg": cupyx.scipy.linalg,
        "cupyx.scipy.special": lib.special,
    }.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return cupy
