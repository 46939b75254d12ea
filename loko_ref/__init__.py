"""loko_ref: the correctness oracle for LoKO and LTE, in plain NumPy.

Every number is computed by hand-derived formulas that stand beside their derivation; no automatic
differentiation, no jitter, no clipping.
"""

from loko_ref import arrays, errors, jacobian, kalman, layers, loko, lora, model, optimizers

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
