"""Mistakes in LoRA and the network.

Shapes as in ``formulas``.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special

from loko_ref.arrays import Array
from loko_ref.conformance.mistakes.registry import mutant
from loko_ref.textbook.filter import FORMULAS
from loko_ref.textbook.quantities import Values

__all__: list[str] = []

F = FORMULAS

# ------------------------------------------------------------------------------ LoRA

mutant(
    "SCALE-ALPHA",
    "alpha for alpha / r",
    "The branch is scaled by alpha, not divided by the rank.",
    "scale = alpha / r",
    {"scale": lambda alpha, r: alpha},
)
mutant(
    "SCALE-ROOT",
    "alpha / sqrt(r)",
    "Rank-stabilised LoRA's scale; LoKO's is alpha / r.",
    "scale = alpha / r",
    {"scale": lambda alpha, r: alpha / math.sqrt(r)},
)
mutant(
    "SCALE-TWICE",
    "scale applied twice",
    "(alpha / r)^2: once on the way in and once on the way out.",
    "y = W x + scale * (B @ (A @ x))",
    {"scale": lambda alpha, r: (alpha / r) ** 2},
)
mutant(
    "SCALE-NONE",
    "scale left out",
    "B A without alpha / r.",
    "y = W x + scale * (B @ (A @ x))",
    {"scale": lambda alpha, r: 1.0},
)
mutant(
    "SCALE-FACTOR",
    "another factor on the branch",
    "The branch is multiplied by a constant: an alpha or a rank that is not the one given.",
    "scale = alpha / r",
    lambda size: {"scale": lambda alpha, r: size * alpha / r},
    sizes=(0.1, 0.25, 0.5, 0.8, 1.5, 2.0, 4.0, 10.0),
    example=1.37,
)
mutant(
    "MERGE-SUBTRACTED",
    "merge subtracts",
    "W - scale B A: that is the unmerge.",
    "W = W + scale * B @ A",
    {"W_post": lambda v: v.W - v.F["delta"](v)},
)
mutant(
    "MERGE-ONLY-DELTA",
    "merge returns the delta alone",
    "W is left out of the merged weight.",
    "W = W + scale * B @ A",
    {"W_post": lambda v: v.F["delta"](v)},
)

# --------------------------------------------------------------------------- network

mutant(
    "BIAS-MISSING",
    "biases of the linears left out",
    "W x in place of W x + b: a checkpoint's biases are not loaded.",
    "y = W x + b",
    {"bias": lambda w: 0.0},
)
mutant(
    "JACOBIAN-NO-SCALE",
    "scale missing in the Jacobian",
    "The outputs have alpha / r, the derivatives with respect to A and B have not.",
    "dB = scale * outer(dy, A x), dA = scale * outer(B' dy, x)",
    {"jacobian_scale": lambda scale: 1.0, "branch_back": lambda d: d},
)
mutant(
    "JACOBIAN-NO-BRANCH",
    "cotangent not sent through the branch",
    "Lower layers get W' dy only; the part scale A' B' dy of the LoRA branch is missing.",
    "dx = W.T @ dy + scale * A.T @ (B.T @ dy)",
    {"branch_back": lambda d: 0 * d},
)
mutant(
    "ORDER-B-A",
    "A and B swapped in theta",
    "Each site is packed B first.",
    "theta: linear by linear, A then B",
    {"order": lambda names: [*names[:2][::-1], *names[2:]]},
)
mutant(
    "ORDER-BIASES-FIRST",
    "LoRA biases packed first",
    "bA, bB stand before A, B.",
    "theta: A, B, bA, bB in each site",
    {"order": lambda names: [*names[2:], *names[:2]]},
)
mutant(
    "ORDER-SITES",
    "sites in reverse order",
    "theta is packed from the last linear to the first (the order of a backward pass).",
    "theta: linears in the order of the spec",
    {key: lambda spec, key=key: F[key](spec)[::-1] for key in ("sites", "sites.weights")},
)


def _column_major(a: Array) -> Array:
    return np.swapaxes(a, 2, 3).reshape(*a.shape[:2], -1) if a.ndim == 4 else a


mutant(
    "FLATTEN-COLUMNS",
    "factors flattened column by column",
    "Transposed (Fortran) order in theta.",
    "A.reshape(-1), row-major",
    {"flatten": _column_major, "unflatten": lambda flat, shape: flat.reshape(shape[::-1]).T},
)
mutant(
    "STACK-CLASS-MAJOR",
    "a batch stacked class by class",
    "Row j*batch + b of Z holds output j of sample b.",
    "row b*C + j: Z.reshape(batch * C, n) of an array (batch, C, n)",
    {"stack": lambda Z: np.swapaxes(Z, 0, 1).reshape(-1, Z.shape[-1])},
)


def _gelu_tanh(v: Values, x: Array) -> tuple[Array, Array]:
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope


mutant(
    "GELU-TANH",
    "GELU by tanh",
    "The tanh approximation in place of erf (JAX's default, torch's approximate='tanh').",
    "0.5 * x * (1 + erf(x / sqrt(2)))",
    {"gelu": _gelu_tanh},
)
mutant(
    "GELU-ERF",
    "exact GELU where the one by tanh is asked for",
    "erf in place of the tanh approximation (torch's and the papers' default).",
    "0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))",
    {"gelu_tanh": F["gelu"]},
)
mutant(
    "GELU-SIGMOID",
    "GELU by a sigmoid",
    "x * sigmoid(1.702 x) in place of erf.",
    "0.5 * x * (1 + erf(x / sqrt(2)))",
    {
        "gelu": lambda v, x: (
            x / (1 + np.exp(-1.702 * x)),
            (1 + np.exp(-1.702 * x) * (1 + 1.702 * x)) / (1 + np.exp(-1.702 * x)) ** 2,
        )
    },
)
mutant(
    "GELU-JACOBIAN-NO-DENSITY",
    "GELU's derivative without its density term",
    "Phi(x) in place of Phi(x) + x phi(x): Phi is taken for a constant.",
    "dx = (Phi(x) + x * exp(-x * x / 2) / sqrt(2 pi)) * dy",
    {"gelu": lambda v, x: (F["gelu"](v, x)[0], 0.5 * (1 + scipy.special.erf(x / math.sqrt(2))))},
)
mutant(
    "RELU-LEAKY",
    "leaky ReLU",
    "Negative inputs pass with a small slope.",
    "np.maximum(x, 0)",
    lambda size: {
        "relu": lambda x: np.where(x > 0, x, size * x),
        "relu_derivative": lambda x: np.where(x > 0, 1.0, size),
    },
    sizes=(1e-3, 1e-2, 0.1, 0.3),
    example=0.03,
)
mutant(
    "TANH-DERIVATIVE",
    "tanh's derivative at the output",
    "1 - tanh(y)^2 with y = tanh(x): tanh is applied twice.",
    "dx = (1 - y * y) * dy",
    {"tanh_derivative": lambda y: 1 - np.tanh(y) ** 2},
)
mutant(
    "SOFTMAX-HEAD-DIAGONAL",
    "softmax layer's derivative taken for its diagonal",
    "dx = y (1 - y) dy in place of y (dy - <y, dy>).",
    "dx = y * (dy - (y * dy).sum())",
    {"softmax_back": lambda y, d: y * (1 - y) * d},
)
mutant(
    "LORA-BIAS-UNSCALED",
    "bB outside the scale",
    "y = W x + b + scale B (A x + bA) + bB.",
    "scale * (B @ (A @ x + bA) + bB)",
    {
        "branch": lambda v, scale, u, w: scale * v.keep("v", u @ w["B"].T) + w.get("bB", 0.0),
        "shift_back": lambda dv, d: d,
    },
)
