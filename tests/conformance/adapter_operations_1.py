"""An adapter as it was written for operations/1: strict, knows no input or option that came later.

The numbers are those of ``examples/my_loko.py``; what is frozen here is what each function takes.
"""

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[2] / "examples" / "my_loko.py"
_spec = importlib.util.spec_from_file_location("my_loko_behind_operations_1", _path)
_mine = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_mine)

_OPTIONS = [
    "observation",
    "noise",
    "timing",
    "beta",
    "covariance",
    "diagonal",
    "lam",
    "q",
    "center",
]


def time_update(p, lam, q):
    return _mine.kalman_time_update(p=p, lam=lam, q=q)


def model_jacobian(x, weights, spec):
    return _mine.model_jacobian(x, weights, spec)


def loko_step(x, y, theta, weights, spec, p=None, P=None, R=None, **options):
    if sorted(options) != sorted(_OPTIONS):  # as a configuration with these fields would
        raise TypeError(f"options {sorted(options)}")
    return _mine.loko_step(x, y, theta, weights, p, P, R, spec=spec, **options)


def loko_run(x, y, theta, weights, spec, p=None, P=None, R=None, **options):
    if sorted(options) != sorted(_OPTIONS):
        raise TypeError(f"options {sorted(options)}")
    return _mine.loko_run(x, y, theta, weights, p, P, R, spec=spec, **options)


IMPLEMENTATION = _mine.IMPLEMENTATION | {
    "kalman.time_update": time_update,
    "model.jacobian": model_jacobian,
    "loko.step": loko_step,
    "loko.run": loko_run,
}
