"""The array libraries, each described to the seam: NumPy, CuPy, and ball arithmetic.

A request for a library by name either gets it or raises: nothing else is given in its place. CuPy
can stand in four states (not installed, import fails, no device, smoke run fails), each with its
own message.

Shapes: S, L (m, m); b (m,) or (m, k).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import NDArray

from loko_ref.errors import BackendError, unknown_option

Array: TypeAlias = NDArray[Any]
"""A NumPy array, or an array of a registered backend that stands in for one."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One array library, and the functions that libraries spell differently.

    Attributes
    ----------
    name : str
        The name by which :func:`get_backend` finds it.
    xp : module
        Its NumPy-like namespace.
    asarray, to_host : callable
        From a host array (or scalar) to this library, and back to NumPy.
    erf, erfc : callable
        Elementwise error function and its complement.
    cholesky : callable
        Lower factor of a symmetric positive definite matrix; must raise ``LinAlgError`` where
        there is none.
    solve_triangular : callable
        ``(L, b, transpose) -> L^-1 b`` or ``L'^-1 b`` for lower triangular L.
    solve, eigvalsh : callable
        General linear solve; eigenvalues of a symmetric matrix, ascending.
    cho_solve, contrast_basis : callable, optional
        ``(L, b) -> S^-1 b`` and ``C -> Q``, where the library has a way of its own.
    """

    name: str
    xp: Any
    asarray: Callable[[Any], Any]
    to_host: Callable[[Any], NDArray[Any]]
    erf: Callable[[Any], Any]
    erfc: Callable[[Any], Any]
    cholesky: Callable[[Any], Any]
    solve_triangular: Callable[[Any, Any, bool], Any]
    solve: Callable[[Any, Any], Any]
    eigvalsh: Callable[[Any], Any]
    cho_solve: Callable[[Any, Any], Any] | None = None
    contrast_basis: Callable[[int], Any] | None = None


def _numpy_solve_triangular(L: Array, b: Array, transpose: bool) -> Array:
    x: Array = scipy.linalg.solve_triangular(
        L, b, lower=True, trans=1 if transpose else 0, check_finite=False
    )
    return x


NUMPY = Backend(
    name="numpy",
    xp=np,
    asarray=np.asarray,
    to_host=np.asarray,
    erf=scipy.special.erf,
    erfc=scipy.special.erfc,
    cholesky=np.linalg.cholesky,
    solve_triangular=_numpy_solve_triangular,
    solve=np.linalg.solve,
    eigvalsh=np.linalg.eigvalsh,
)


@cache
def _cupy() -> Backend:
    """Build the CuPy backend, or state which of the four conditions prevents it."""
    if importlib.util.find_spec("cupy") is None:
        raise BackendError(
            "cupy",
            "not installed",
            "pip install 'loko-ref[cuda12]' or 'loko-ref[cuda13]', whichever the driver supports",
        )
    try:
        cp = importlib.import_module("cupy")
    except Exception as error:  # an import can fail in any way; each failure is reported
        raise BackendError(
            "cupy",
            "import fails",
            f"{type(error).__name__}: {error}; it does not suit this CUDA or Python",
        ) from error
    try:
        devices = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            "cupy",
            "no device",
            f"{error}; no NVIDIA driver or no visible GPU (CUDA_VISIBLE_DEVICES?)",
        ) from error
    if devices < 1:
        raise BackendError("cupy", "no device", "the CUDA runtime counts 0 devices")

    def cholesky(S: Any) -> Any:
        with importlib.import_module("cupyx").errstate(linalg="raise"):
            return cp.linalg.cholesky(S)

    def solve(A: Any, b: Any) -> Any:
        with importlib.import_module("cupyx").errstate(linalg="raise"):
            return cp.linalg.solve(A, b)

    def solve_triangular(L: Any, b: Any, transpose: bool) -> Any:
        return importlib.import_module("cupyx.scipy.linalg").solve_triangular(
            L, b, lower=True, trans=1 if transpose else 0, check_finite=False
        )

    try:
        special = importlib.import_module("cupyx.scipy.special")
        a = cp.asarray([[4.0, 2.0], [2.0, 3.0]])
        L = cholesky(a @ cp.eye(2))
        x = cp.asnumpy(solve_triangular(L, cp.asarray([2.0, 1.0]), False) + special.erf(a)[0])
    except Exception as error:  # any failure of the smoke run is the finding itself
        raise BackendError(
            "cupy",
            "smoke run fails",
            f"{type(error).__name__}: {error}; a CUDA library is missing or does not match CuPy",
        ) from error
    expected = np.array([1.0, 0.0]) + scipy.special.erf(np.array([4.0, 2.0]))
    if not np.allclose(x, expected, rtol=1e-14, atol=1e-15):
        raise BackendError("cupy", "smoke run fails", f"expected {expected}, got {x}")
    return Backend(
        name="cupy",
        xp=cp,
        asarray=cp.asarray,
        to_host=cp.asnumpy,
        erf=special.erf,
        erfc=special.erfc,
        cholesky=cholesky,
        solve_triangular=solve_triangular,
        solve=solve,
        eigvalsh=cp.linalg.eigvalsh,
    )


@cache
def _balls() -> Backend:
    """Build the backend of ball arithmetic (extra ``certify``).  [BALL-1]."""
    lib = importlib.import_module("loko_ref.arrays.balls")
    return Backend(
        name="balls",
        xp=lib.xp,
        asarray=lib.balls,
        to_host=lib.to_host,
        erf=lib.erf,
        erfc=lib.erfc,
        cholesky=lib.cholesky,
        solve_triangular=lib.solve_triangular,
        solve=lib.solve,
        eigvalsh=lib.eigvalsh,
        cho_solve=lib.cho_solve,
        contrast_basis=lib.contrast_basis,
    )


KNOWN: dict[str, Callable[[], Backend]] = {"numpy": lambda: NUMPY, "cupy": _cupy, "balls": _balls}
"""Name -> what builds the backend when it is first asked for."""


def register_backend(name: str, factory: Callable[[], Backend]) -> None:
    """Make a further array library known.

    Parameters
    ----------
    name : str
        Its name; also the first part of the module in which its array type is defined.
    factory : callable
        Called without arguments to build the :class:`Backend`.
    """
    KNOWN[name] = factory


def get_backend(name: str) -> Backend:
    """Return a backend asked for by name; never another one in its place.

    Parameters
    ----------
    name : {"numpy", "cupy", "balls"}
        The library, or the name of a registered one.

    Raises
    ------
    BackendError
        If it is not installed, fails to import, has no device, or fails a small smoke run.
    InputError
        If the name is unknown.

    Examples
    --------
    >>> get_backend("numpy").name
    'numpy'
    """
    if name not in KNOWN:
        raise unknown_option("backend", name, KNOWN)
    return KNOWN[name]()


def keep_freed_memory() -> None:
    """Configure the C library to keep freed blocks of up to 32 MB for the arrays of the next step.

    glibc maps a large block anew at each allocation, and the system clears its pages one fault at a
    time: 4,400 faults and a third of the time of one step of a small transformer. What it keeps
    follows the largest mapped block that was freed, so a block is allocated, never touched, and
    let go. With another C library this changes nothing.
    """
    np.empty(2**25 - 2**13, dtype=np.uint8)
