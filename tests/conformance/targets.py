"""Broken implementations, one a kind; each wraps or replaces a right function of einsum_loko."""

import contextlib
import importlib.util
import time
from pathlib import Path

import numpy as np

_spec = importlib.util.spec_from_file_location(
    "einsum_loko_for_targets", Path(__file__).with_name("einsum_loko.py")
)
_right = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_right)

OP = "kalman.diagonal_update"
right = _right.IMPLEMENTATION[OP]
NOT_A_MAPPING = 3
EMPTY = {}
UNKNOWN = {"kalman.diagonal_updat": right}
MISSPELT = {"kalman.diagonal_updat": right, "lora.delta": _right.IMPLEMENTATION["lora.delta"]}
NOT_CALLABLE = {
    OP: right(theta=np.ones(1), p=np.ones(1), H=np.ones((1, 1)), e=np.ones(1), R=np.eye(1))
}


def changed(**change):
    def function(**keywords):
        out = right(**keywords)
        return out | {name: f(out[name]) for name, f in change.items()}

    return {OP: function}


def _raises(**keywords):
    raise RuntimeError("boom\nand more")


def _exits(**keywords):
    raise SystemExit(0)


def _declines(**keywords):
    raise NotImplementedError("not yet")


def _declines_float32(**keywords):
    if keywords["theta"].dtype == np.float32:
        raise NotImplementedError
    return right(**keywords)


def _mutates(theta, p, H, e, R, diagonal="decoupled"):
    out = right(theta=theta, p=p, H=H, e=e, R=R, diagonal=diagonal)
    p *= 1.5
    return out


def _mutates_by_a_zero_sign(theta, p, H, e, R, diagonal="decoupled"):
    out = right(theta=theta, p=p, H=H, e=e, R=R, diagonal=diagonal)
    theta[0] = np.nextafter(theta[0], 9)
    return out


def _hangs(**keywords):
    while True:
        time.sleep(0.001)


def _hangs_stubbornly(**keywords):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.001)


def _jitter(theta, p, H, e, R, diagonal="decoupled"):
    return right(
        theta=theta, p=p, H=H, e=e, R=R + 1e-9 * np.eye(len(R), dtype=R.dtype), diagonal=diagonal
    )


def _wrong_diagonal(diagonal="decoupled", **arrays):
    return right(**arrays, diagonal={"decoupled": "variational"}.get(diagonal, "decoupled"))


def _no_option(theta, p, H, e, R):
    return right(theta=theta, p=p, H=H, e=e, R=R)


def _no_e(theta, p, H, R, diagonal="decoupled"):
    return {}


def _subset(**keywords):
    return {"p": right(**keywords)["p"]}


class Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("it lives on the device")


RAISES = {OP: _raises}
EXITS = {OP: _exits}
DECLINES = {OP: _declines}
DECLINES_FLOAT32 = {OP: _declines_float32}
MUTATES = {OP: _mutates}
MUTATES_A_BIT = {OP: _mutates_by_a_zero_sign}
HANGS = {OP: _hangs}
HANGS_STUBBORNLY = {OP: _hangs_stubbornly}
JITTER = {OP: _jitter}
WRONG_DIAGONAL = {OP: _wrong_diagonal}
NO_OPTION = {OP: _no_option}
NO_E = {OP: _no_e}
SUBSET = {OP: _subset}
SHAPE = changed(K=np.transpose)
DTYPE = changed(p=lambda p: p.astype(np.float16))
WIDENED = changed(theta=lambda a: a.astype(np.float64))
NAN = changed(theta=lambda a: np.where(np.arange(len(a)) == 1, np.nan, a))
INF = changed(p=lambda a: a * np.inf)
LIST = changed(p=list)
UNREADABLE = changed(p=lambda p: Unreadable())
NOT_A_DICT = {OP: lambda **k: tuple(right(**k).values())}
NOTHING = {OP: lambda **k: {}}
EXTRA = {OP: lambda **k: right(**k) | {"Kk": 1}}
ULP = changed(S=lambda a: np.nextafter(a, np.inf, dtype=a.dtype))
IMPLEMENTATION = {OP: right}
