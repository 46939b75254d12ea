"""loko_ref: the correctness oracle for LoKO and LTE, in plain NumPy.

Every number is computed by hand-derived formulas that stand beside their derivation; no automatic
differentiation, no jitter, no clipping.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from loko_ref import (
        arrays,
        conformance,
        errors,
        experiments,
        fast,
        interop,
        kalman,
        loko,
        lte,
        network,
        optimizers,
    )
    from loko_ref import explain as explain
    from loko_ref import strategies as strategies
    from loko_ref.network import jacobian, layers, lora, model

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "arrays",
    "conformance",
    "errors",
    "experiments",
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
]

_PACKAGES = {name: f"loko_ref.{name}" for name in (*__all__[1:], "explain", "strategies")}
_PACKAGES |= {name: f"loko_ref.network.{name}" for name in ("jacobian", "layers", "lora", "model")}


def __getattr__(name: str) -> ModuleType:
    """Import a public package when it is first named."""
    if name in _PACKAGES:
        import importlib

        return importlib.import_module(_PACKAGES[name])
    raise AttributeError(f"module 'loko_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names; `explain` and `strategies` need an extra each."""
    return sorted({*__all__, *_PACKAGES})
