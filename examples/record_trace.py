"""Record a run, then check the recording.

    python examples/record_trace.py /tmp/trace.npz && loko-ref verify --trace /tmp/trace.npz

Without an argument the recording goes to a new temporary folder, and its place is printed.

Dump the state before each step under ``k/``, whatever you compute on the way beside it, and the
state after the last step. This filter is someone's own: it shares no code with loko_ref.
"""

import json
import os
import sys
import tempfile

import numpy as np

rng = np.random.default_rng(0)
theta, p, R = np.zeros(6), np.full(6, 0.5), 0.2 * np.eye(2)
record = {"options": np.array(json.dumps({"noise": "ema_innovation", "beta": 0.9, "lam": 0.99}))}
for k in range(5):
    record |= {f"{k}/theta": theta, f"{k}/p": p, f"{k}/R": R}
    H, e = rng.standard_normal((2, 6)), rng.standard_normal(2)
    p_pred = p / 0.99
    R = 0.9 * R + (1 - 0.9) * np.outer(e, e)
    S = (H * p_pred) @ H.T + R
    K = np.linalg.solve(S, H * p_pred).T
    theta, p = theta + K @ e, p_pred * (1 - np.einsum("nm,mn->n", K, H))
    record |= {f"{k}/p_pred": p_pred, f"{k}/H": H, f"{k}/e": e, f"{k}/S": S, f"{k}/K": K}
record |= {"5/theta": theta, "5/p": p, "5/R": R}
place = sys.argv[1] if len(sys.argv) > 1 else os.path.join(tempfile.mkdtemp(), "trace.npz")
np.savez(place, **record)
print(f"recorded 5 steps; check them: loko-ref verify --trace {place}")
