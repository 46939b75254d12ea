"""Record AdamW, then check the recording.

    python examples/record_adamw.py /tmp/adamw.npz && loko-ref verify --trace /tmp/adamw.npz

Under ``k/`` stand the parameters and the moments *before* step k, and its gradient. The option
``operation`` says what was recorded, the others that operation's options, as in
``loko-ref operations optimizer.adamw``. This optimizer is someone's own.
"""

import json
import sys

import numpy as np

options = {"operation": "optimizer.adamw", "lr": 0.01, "beta2": 0.99, "weight_decay": 0.05}
rng = np.random.default_rng(0)
theta, m, s = rng.standard_normal(6), np.zeros(6), np.zeros(6)
record = {"options": np.array(json.dumps(options))}
for k in range(4):
    g = rng.standard_normal(6)
    record |= {f"{k}/theta": theta, f"{k}/exp_avg": m, f"{k}/exp_avg_sq": s, f"{k}/gradient": g}
    m, s = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g * g
    corrected = np.sqrt(s / (1 - 0.99 ** (k + 1))) + 1e-8
    theta = theta * (1 - 0.01 * 0.05) - 0.01 * m / (1 - 0.9 ** (k + 1)) / corrected
record |= {"4/theta": theta, "4/exp_avg": m, "4/exp_avg_sq": s}
np.savez(sys.argv[1], **record)
print(f"recorded 4 steps; check them: loko-ref verify --trace {sys.argv[1]}")
