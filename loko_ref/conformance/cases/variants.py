"""Cases of the filter's variants: the implicit glm step, and precisions of low rank and of blocks.

Of the step its fixed point, from small p to large, saturated and stacked; a margin is set by the
frozen bias. Of a precision no column and every one, one output and many, ill scales, and blocks of
one and of all. Shapes as in ``operations``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loko_ref.conformance.cases.model import blocks_of, loko_inputs, lora
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
_define(
    "implicit-large-p",
    "IMPLICIT-TWO-ITERATIONS IMPLICIT-THREE-ITERATIONS IMPLICIT-FIVE-ITERATIONS "
    "IMPLICIT-FIXED-POINT IMPLICIT-AFTER-LINEAR",
    p=1e4,
)
_define(
    "implicit-huge-p",
    "IMPLICIT-TWO-ITERATIONS IMPLICIT-THREE-ITERATIONS IMPLICIT-FIVE-ITERATIONS "
    "IMPLICIT-FIXED-POINT IMPLICIT-AFTER-LINEAR",
    p=1e6,
)
_define("implicit-saturated", "IMPLICIT-UNDAMPED IMPLICIT-CURVATURE-AFTER", p=30.0, margin=15.0)
_define("implicit-far", "IMPLICIT-UNDAMPED IMPLICIT-FIVE-ITERATIONS", p=1000.0, margin=12.0)
_define(
    "implicit-run", "IMPLICIT-PRIOR-P IMPLICIT-THETA-PRIOR-P", _NET, p=0.3, steps=4, lam=0.9, q=0.02
)

# ------------------------------------------------------------ precisions of low rank and of blocks

_SMALL = mlp_spec([3, 3], lora=lora(2, 2.0))
_DEEP = mlp_spec([3, 2, 3], "tanh", lora(2, 3.0))


def _precise(
    name: str,
    covers: str,
    spec: list[dict[str, Any]],
    L: int | None,
    batch: int = 1,
    steps: int = 0,
    **options: Any,
) -> None:
    """Define a step, or a run, of a precision with L columns, or with blocks alone."""

    @define("loko.run" if steps else "loko.step", name, covers, spec=spec, **options)
    def _(draw: Draw, dtype: str) -> Inputs:
        return loko_inputs(draw, spec, options, batch, steps, L)


_LOW: dict[str, Any] = {"covariance": "lowrank"}
_UNITS: dict[str, Any] = {"covariance": "block", "blocks": blocks_of(_SMALL, "unit")}
_TENSORS: dict[str, Any] = {"covariance": "block", "blocks": blocks_of(_SMALL, "tensor")}
_EMA: dict[str, Any] = {"noise": "ema_innovation_hph", "beta": 0.8}
_precise(
    "lowrank-implicit",
    "IMPLICIT-ONE-ITERATION LOWRANK-CUT-LOST LOWRANK-OLD-KEPT LOWRANK-NEW-KEPT "
    "LOWRANK-DIAGONAL-GAIN",
    _DEEP,
    3,
    solve="implicit",
    **_LOW,
)
_precise(
    "lowrank-softmax",
    "LOWRANK-COUNTED-TWICE LOWRANK-OF-COVARIANCE NOISE-AFTER",
    _SMALL,
    2,
    2,
    observation="softmax",
    **_EMA,
    **_LOW,
)
_precise(
    "block-implicit",  # the preset `recommended`
    "BLOCKS-DIAGONAL-ALONE BLOCKS-WHOLE BLOCKS-COVARIANCES BLOCKS-NEIGHBOURS IMPLICIT-NOT-TAKEN",
    _DEEP,
    None,
    covariance="block",
    blocks=blocks_of(_DEEP, "unit"),
    solve="implicit",
)
_precise(
    "block-gaussian",
    "BLOCKS-S-OF-EACH BLOCKS-Q-DIAGONAL LOWRANK-NOT-WHITENED LOWRANK-R-DIAGONAL",
    _SMALL,
    None,
    observation="gaussian",
    noise="fixed",
    lam=0.9,
    q=0.05,
    **_TENSORS,
)
_precise(
    "block-lowrank-residual",
    "BLOCKS-CUT-DIAGONAL LOWRANK-SMALLEST-KEPT NOISE-PRIOR-FOR-RESIDUAL",
    _SMALL,
    2,
    observation="logits",
    noise="ema_residual_hph",
    timing="after",
    **_UNITS,
)
_precise(
    "lowrank-run",
    "LOWRANK-LAM-NO-ROOT LOWRANK-LAM-U-ALONE LOWRANK-Q-U-ALONE LOWRANK-CUT-LOST",
    _SMALL,
    2,
    steps=4,
    lam=0.9,
    q=0.02,
    **_LOW,
)
_precise(
    "block-run",
    "BLOCKS-DIAGONAL-ALONE BLOCKS-WHOLE NOISE-RESET",
    _SMALL,
    None,
    steps=4,
    observation="softmax",
    **_EMA,
    **_UNITS,
)


def _seen(draw: Draw, n: int, m: int, L: int | None, condition: float = 10.0) -> Inputs:
    """Draw the inputs of an update but U; L None: nothing of low rank."""
    low = {} if L is None else {"W": draw(n, L, size=1.5)}
    R = draw.spd(m, condition) if m > 1 else np.array([[0.3]])  # 1 whitens nothing
    return {"theta": draw(n), "H": draw(m, n), "e": draw(m), "R": R, **low}


_L = "kalman.lowrank_update"
_CUT = "LOWRANK-SMALLEST-KEPT LOWRANK-CUT-LOST LOWRANK-NEW-KEPT LOWRANK-OLD-KEPT"
_LOWRANK: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "random": (f"{_CUT} LOWRANK-UNIT-COLUMNS LOWRANK-COUNTED-TWICE", (9, 3, 2), {}),
    "one-output": (f"{_CUT} LOWRANK-OF-COVARIANCE", (7, 1, 3), {}),
    "one-column": ("LOWRANK-UNIT-COLUMNS LOWRANK-SUM-SQUARED", (6, 4, 1), {}),
    "no-column": ("LOWRANK-BY-S LOWRANK-NOT-WHITENED LOWRANK-SUM-SQUARED", (6, 2, 0), {}),
    "all-columns": ("LOWRANK-DIAGONAL-GAIN LOWRANK-CAPACITANCE LOWRANK-BY-S", (4, 1, 4), {}),
    "first-step": ("LOWRANK-NOT-WHITENED LOWRANK-R-DIAGONAL LOWRANK-COUNTED-TWICE", (8, 2, 2), {}),
    "ill-scaled": ("LOWRANK-CAPACITANCE LOWRANK-DIAGONAL-GAIN", (8, 2, 3), {}),
    "correlated-R": ("LOWRANK-R-DIAGONAL LOWRANK-NOT-WHITENED", (7, 4, 3), {}),
    "forgetting": ("LOWRANK-LAM-NO-ROOT LOWRANK-LAM-U-ALONE", (7, 2, 2), {"lam": 0.8}),
    "process-noise": ("LOWRANK-Q-U-ALONE LOWRANK-Q-ADDED", (7, 2, 2), {"q": 0.25}),
    "both": (
        "LOWRANK-LAM-NO-ROOT LOWRANK-LAM-U-ALONE LOWRANK-Q-U-ALONE LOWRANK-Q-ADDED "
        "LOWRANK-OF-COVARIANCE",
        (8, 3, 3),
        {"lam": 0.9, "q": 0.125},
    ),
}

for _name, (_covers, _sizes, _options) in _LOWRANK.items():

    @define(_L, _name, _covers, **_options)
    def _(
        draw: Draw, dtype: str, name: str = _name, sizes: tuple[int, int, int] = _sizes
    ) -> Inputs:
        n, m, L = sizes
        x = _seen(draw, n, m, L) | {"U": draw.positive(n, low=1.0, high=4.0)}
        if name == "first-step":
            x["W"] = np.zeros((n, L))
        if name == "correlated-R":
            x["R"] = 0.1 * np.eye(m) + 0.9
        if name == "ill-scaled":  # from what is hardly known to what is well known
            x["U"] = np.logspace(0, 4, n)
            x["W"] = x["W"] * np.array([20.0 if dtype == "float64" else 4.0, 1.0, 0.3])
        return x


_B = "kalman.block_update"
_UNIT, _MIXED = [0, 1, 2, 0, 1, 2, 3, 3, 4], [0, 0, 1, 2, 2, 2, 0]
_BLOCK: dict[str, tuple[str, tuple[int, int | None], list[int], dict[str, Any]]] = {
    "unit": (
        "BLOCKS-DIAGONAL-ALONE BLOCKS-WHOLE BLOCKS-COVARIANCES BLOCKS-NEIGHBOURS",
        (2, None),
        _UNIT,
        {},
    ),
    "mixed": (
        "BLOCKS-DIAGONAL-ALONE BLOCKS-WHOLE BLOCKS-COVARIANCES BLOCKS-NEIGHBOURS",
        (3, None),
        _MIXED,
        {},
    ),
    "one-block": ("BLOCKS-DIAGONAL-ALONE LOWRANK-BY-S", (1, None), [0] * 5, {}),
    "blocks-of-one": ("BLOCKS-WHOLE BLOCKS-S-OF-EACH", (2, None), [0, 1, 2, 3, 4], {}),
    "low-rank": (f"BLOCKS-CUT-DIAGONAL {_CUT}", (3, 2), _UNIT, {}),
    "all-columns": ("BLOCKS-S-OF-EACH LOWRANK-DIAGONAL-GAIN", (1, 4), [0, 0, 1, 1], {}),
    "time": (
        "BLOCKS-CUT-DIAGONAL BLOCKS-Q-DIAGONAL LOWRANK-LAM-NO-ROOT LOWRANK-Q-U-ALONE",
        (2, 2),
        _MIXED,
        {"lam": 0.9, "q": 0.2},
    ),
    "process-noise": ("BLOCKS-Q-DIAGONAL BLOCKS-COVARIANCES", (2, None), _MIXED, {"q": 0.25}),
}

for _name, (_covers, _block_sizes, _blocks, _options) in _BLOCK.items():

    @define(_B, _name, _covers, blocks=_blocks, **_options)
    def _(
        draw: Draw,
        dtype: str,
        sizes: tuple[int, int | None] = _block_sizes,
        blocks: list[int] = _blocks,
    ) -> Inputs:
        n, (m, L) = len(blocks), sizes
        x, labels = _seen(draw, n, m, L), np.array(blocks)
        parts = {k: 4 * draw.spd(int((labels == k).sum()), 5.0) for k in sorted(set(blocks))}
        U = np.zeros((n, n))
        for k, part in parts.items():
            U[np.ix_(labels == k, labels == k)] = part
        return x | {"U": U}
