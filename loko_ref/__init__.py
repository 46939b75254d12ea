"""loko_ref: the correctness oracle for LoKO and LTE, in plain NumPy.

:func:`verify` checks an implementation and returns a :class:`Report`. Every number is computed by
hand-derived formulas that stand beside their derivation; no automatic differentiation, no jitter,
no clipping.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loko_ref import (
        arrays,
        conformance,
        errors,
        experiments,
        explain,
        fast,
        interop,
        kalman,
        loko,
        lte,
        network,
        optimizers,
    )
    from loko_ref import properties as properties
    from loko_ref import strategies as strategies
    from loko_ref.conformance import Report, verify
    from loko_ref.network import jacobian, layers, lora, model

__version__ = "0.1.0"

__all__ = [
    "Report",
    "__version__",
    "arrays",
    "conformance",
    "errors",
    "experiments",
    "explain",
    "fast",
    "interop",
    "jacobian",
    "kalman",
    "layers",
    "loko",
    "lora",
    "lte",
    "model",
    "network",
    "optimizers",
    "verify",
]

_PLACES = {name: f"network.{name}" for name in ("jacobian", "layers", "lora", "model")}
"""Public modules that stand within a package."""

_TESTING = ("properties", "strategies")
"""Public packages that need the extra ``[test]``."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for; two need the extra ``[test]``."""
    if name not in (*__all__, *_TESTING):
        raise AttributeError(f"module 'loko_ref' has no attribute {name!r}")
    import importlib

    if name in ("Report", "verify"):
        return getattr(importlib.import_module("loko_ref.conformance"), name)
    return importlib.import_module(f"loko_ref.{_PLACES.get(name, name)}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*__all__, *_TESTING])
