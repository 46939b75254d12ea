"""LTE (LoRA-the-Explorer): parallel low-rank heads that are merged into one weight.

:func:`init`, :func:`step`, :func:`merge`, :func:`reset` and :func:`run` are the whole of it in one
process; :mod:`loko_ref.lte.mpi` spreads the heads over ranks, with the same bits.
"""

from loko_ref.lte import team
from loko_ref.lte.config import Loko, LteConfig
from loko_ref.lte.layout import Layout
from loko_ref.lte.merging import merge, reset
from loko_ref.lte.serial import Event, Trace, bytes_per_merge, iterate, run
from loko_ref.lte.state import LteState, fingerprint, init, merged_model
from loko_ref.lte.stepping import StepRecord, step

__all__ = [
    "Event",
    "Layout",
    "Loko",
    "LteConfig",
    "LteState",
    "StepRecord",
    "Trace",
    "bytes_per_merge",
    "fingerprint",
    "init",
    "iterate",
    "merge",
    "merged_model",
    "reset",
    "run",
    "step",
    "team",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
