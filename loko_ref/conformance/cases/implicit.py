"""Cases of the implicit glm step: its fixed point, from small p to large, saturated and stacked.

A margin is set by the frozen bias. Shapes as in ``operations``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.cases.model import loko_inputs, lora
from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.network.model import mlp_spec

__all__: list[str] = []

Inputs = dict[str, Any]

_SPEC = mlp_spec([3, 4], lora=lora(2, 2.0))
_NET = mlp_spec([4, 5, 3], "tanh", lora(2, 3.0))


def _define(
    name: str,
    covers: str,
    spec: list[dict[str, Any]] = _SPEC,
    batch: int = 1,
    p: float = 1.0,
    margin: float = 0.0,
    steps: int = 0,
    **options: Any,
) -> None:
    """Define a step, or a run, with variances about p; wrong by a margin, or not."""
    chosen = {"solve": "implicit", **options}

    @define("loko.run" if steps else "loko.step", name, covers, spec=spec, **chosen)
    def _(draw: Draw, dtype: str) -> Inputs:
        x = loko_inputs(draw, spec, chosen, batch, steps)
        if margin:  # certain of class 0, where class 1 is observed
            x["weights"]["0.b"] = margin * np.eye(4)[0]
            x["y"] = np.eye(4)[[1] * batch]
        size = 10 * (p if dtype == "float64" else min(p, 1e3))  # K has lost its digits beyond
        return x | ({"P": size * x["P"]} if "P" in x else {"p": size * x["p"]})


_ONE = "IMPLICIT-ONE-ITERATION IMPLICIT-NOT-TAKEN IMPLICIT-HALF-SOLVED"
_define("implicit", f"{_ONE} IMPLICIT-INNOVATION-AT-PRIOR", _NET)
_define("implicit-stacked", "IMPLICIT-EACH-SAMPLE-ALONE IMPLICIT-CURVATURE-AFTER", _NET, batch=3)
_define("implicit-time", "IMPLICIT-PRIOR-P IMPLICIT-THETA-PRIOR-P", _NET, p=0.2, lam=0.8, q=0.05)
_define(
    "implicit-dense",
    "IMPLICIT-DIAGONAL-OF-P IMPLICIT-EACH-SAMPLE-ALONE IMPLICIT-THETA-POSTERIOR-P",
    batch=2,
    covariance="dense",
)
_define("implicit-dense-wide", "IMPLICIT-DIAGONAL-OF-P", _NET, p=0.3, covariance="dense")
_define("implicit-variational", f"{_ONE} IMPLICIT-THETA-POSTERIOR-P", _NET, diagonal="variational")
_define("implicit-small-p", "IMPLICIT-INNOVATION-AT-PRIOR", p=1e-6)
_define("implicit-large-p", "IMPLICIT-FIVE-ITERATIONS", p=1e4)
_define("implicit-huge-p", "IMPLICIT-FIVE-ITERATIONS", p=1e6)
_define("implicit-saturated", "IMPLICIT-UNDAMPED IMPLICIT-CURVATURE-AFTER", p=30.0, margin=15.0)
_define("implicit-far", "IMPLICIT-UNDAMPED IMPLICIT-FIVE-ITERATIONS", p=1000.0, margin=12.0)
_define(
    "implicit-run",
    "IMPLICIT-PRIOR-P IMPLICIT-THETA-PRIOR-P",
    _NET,
    p=0.3,
    steps=4,
    lam=0.9,
    q=0.02,
)
