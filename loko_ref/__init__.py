"""loko_ref: the correctness oracle for LoKO and LTE, in plain NumPy.

Every number is computed by hand-derived formulas that stand beside their derivation; no automatic
differentiation, no jitter, no clipping.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from loko_ref import arrays, errors, kalman, loko, optimizers
    from loko_ref.network import jacobian, layers, lora, model

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "arrays",
    "errors",
    "jacobian",
    "kalman",
    "layers",
    "loko",
    "lora",
    "model",
    "optimizers",
]


def __getattr__(name: str) -> ModuleType:
    """Import a public module when it is first named: the command line answers Ctrl-C before."""
    if name in __all__:
        import importlib

        return importlib.import_module(f"loko_ref.{name}")
    raise AttributeError(f"module 'loko_ref' has no attribute {name!r}")
