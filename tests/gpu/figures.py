"""A part's figures, one line of JSON each, and the array library that it runs on."""

import json
import operator
from dataclasses import dataclass, field

import device
import numpy as np
import pytest
from support import is_array, leaves, tree_map

from loko_ref import arrays

COMPARED = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass
class Part:
    """What a part runs on, and where its figures go."""

    emulated: bool
    out: object = None
    figures: list = field(default_factory=list)

    def __post_init__(self):
        """Put the stand-in in CuPy's place, where asked for, before anything asks for CuPy."""
        if self.emulated:
            device.fake_cupy(pytest.MonkeyPatch())

    @property
    def lib(self):
        """CuPy, or the error that says which of the four states it is in."""
        return arrays.get_backend("cupy")

    def to_device(self, tree):
        """Move the arrays of a tree."""
        return tree_map(self.lib.asarray, tree, lambda a: isinstance(a, np.ndarray))

    def figure(self, name, value, target="", *, unmeasured=""):
        """Hold a value to its target (``<= 1.0``), or say why it could not be."""
        verdict = "reported"
        if unmeasured:
            verdict = "not measured"
        elif target:
            sign, limit = target.split(maxsplit=1)
            verdict = "met" if COMPARED[sign](value, json.loads(limit)) else "missed"
        row = {"figure": name, "value": value, "target": target or None, "verdict": verdict}
        row |= {"reason": unmeasured} if unmeasured else {}
        self.figures.append(row)
        if self.out is not None:
            self.out.write(json.dumps(row) + "\n")
            self.out.flush()

    def on_both(self, name, f, inputs, limit):
        """Run f on the host and on the device: how far apart are the results, and is all there?"""
        host = leaves(f(inputs), is_array)
        there = f(self.to_device(inputs))
        stray = [path for path, _ in leaves(there, is_array)]
        found = leaves(there, lambda a: isinstance(a, self.lib.xp.ndarray))
        paths = [path for path, _ in host], [path for path, _ in found]
        if stray or paths[0] != paths[1] or not host:
            raise AssertionError(f"{name}: host arrays {stray}, device arrays {paths[1]}")
        pairs = [(a, self.lib.to_host(b)) for (_, a), (_, b) in zip(host, found, strict=True)]
        self.figure(f"{name}: device to host", max(apart(*pair) for pair in pairs), f"<= {limit}")


def apart(want, got):
    """Largest difference, relative to the largest entry; infinite where one is not finite."""
    if want.shape != got.shape or want.dtype != got.dtype or not np.isfinite(got).all():
        return float("inf")
    size = np.abs(want).max(initial=0.0)
    off = np.abs(want.astype(float) - got.astype(float)).max(initial=0.0)
    return float(off / size) if size else float(off)
