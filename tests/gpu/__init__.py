"""What can only be seen on a GPU: run from a bare checkout, judged, and written as JSON.

    python -m tests.gpu OUT [--emulate] [--only PART ...]

Needs CuPy, NumPy, SciPy, pytest, Hypothesis and torch, and nothing installed of this project. It
ends within six minutes. Each part is a process with a time-out of its own; one that fails, or is
stopped, leaves the others alone, and what it had found by then is kept. ``OUT/gpu.json`` holds each
figure with its target and its verdict: ``met``, ``missed``, ``reported`` (it has no target) or
``not measured``, with the reason.

``--emulate`` runs every line on the stand-in for CuPy (tests/device.py), at small sizes.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

for folder in ("tests/lte", "tests/benchmarks", "tests", "."):
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))
