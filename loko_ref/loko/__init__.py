"""LoKO: fine-tuning as state estimation, one Kalman step a batch.

A functional core: ``step(state, batch, config) -> (state, record)``. The state is what the next
step needs; the record is what happened.
"""

from loko_ref.loko.config import COVARIANCES, DEFAULT_NOISE, LokoConfig
from loko_ref.loko.filter import loss, run, step, step_from_jacobian, targets
from loko_ref.loko.state import Batch, LokoRecord, LokoState, init, init_at

__all__ = [
    "COVARIANCES",
    "DEFAULT_NOISE",
    "Batch",
    "LokoConfig",
    "LokoRecord",
    "LokoState",
    "init",
    "init_at",
    "loss",
    "run",
    "step",
    "step_from_jacobian",
    "targets",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
