"""An implementation verified from Python, as in a notebook or a test; no extra is needed.

    python examples/verify_in_python.py

One of the two functions has a mistake: LoRA's scale is alpha in place of alpha / r. A notebook
shows a report as a table; a test ends with ``report.raise_if_failed()``.
"""

import numpy as np

import loko_ref


def time_update(p, lam=1.0, q=0.0):
    return {"p_pred": (p / lam + q).astype(p.dtype)}


def delta(A, B, alpha):
    return {"delta": np.asarray(alpha, A.dtype) * (B @ A)}  # the mistake


report = loko_ref.verify({"kalman.time_update": time_update, "lora.delta": delta})
print(report)
for failure in report.failures:
    print(f"{failure.mistake}: {failure.quantity}{list(failure.index)} in {failure.case}")

right = loko_ref.verify({"kalman.time_update": time_update}, dtype="float64")
right.raise_if_failed()
print(right)
