"""The same step, fast: a second route beside the readable one, held equal to it by test.

:func:`loko_ref.loko.step` is the truth; :func:`prepare` builds a :class:`Stepper` that takes the
same states and batches to the same states, without the gain, H or K in its record. What it does
otherwise, each proved in derivations/fast.md:

- as few cotangents as the innovation has directions, C - 1 per sample on the simplex  [FAST-1]
- no cotangent below the lowest site, only the rows that the head reads  [FAST-2]
- cotangents of one token side by side, so that each product is one large GEMM  [FAST-3]
- H scaled by the deviations; leverages by a triangular product; no gain  [FAST-4]
- columns that are products of a cotangent with an input are never formed  [FAST-5]
- GELU of a float32 by a polynomial in place of an erfc in float64  [FAST-6]
"""

from loko_ref.fast.stepper import FastRecord, Stepper, prepare

__all__ = ["FastRecord", "Stepper", "prepare"]
