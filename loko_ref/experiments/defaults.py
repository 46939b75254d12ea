"""Defaults of ``train`` (fine-tuning) and ``lte`` (from scratch), in one table, with the reasons.

The two purposes differ in what a good step is. Fine-tuning starts from a network that is right
about other data: its factors may move far at once. Training from scratch starts where the
linearisation holds only nearby: the same prior variance overshoots within a few steps.

A number that a lower module has already is read from there and not repeated: the prior variance of
:class:`loko_ref.loko.LokoConfig` (fine-tuning, ``glm``) and of :class:`loko_ref.lte.config.Loko`
(from scratch), and the rates of :mod:`loko_ref.optimizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loko_ref.checks.values import check_choice
from loko_ref.loko import LokoConfig
from loko_ref.lte.config import Loko
from loko_ref.network.lora import Init
from loko_ref.optimizers import SGD, AdaGrad, AdamW

__all__ = ["FINE_TUNING", "FROM_SCRATCH", "HIDDEN", "PRESETS", "Defaults", "with_preset"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What is taken where an option is left out.

    Attributes
    ----------
    rank : int
        Of LoRA; a layer with a smaller side gets that side.
    scale : float
        alpha / rank.
    init : str
        Initialization of A.
    p0 : mapping of str to float
        LoKO's prior variance, by observation model.
    preset_p0 : mapping of str to float or mapping
        LoKO's prior variance, by preset.
    lr : mapping of str to float
        Learning rate, by first-order optimizer.
    batch : int
        Samples of a step.
    """

    rank: int = 4
    scale: float
    init: Init
    p0: Mapping[str, float]
    preset_p0: Mapping[str, float | Mapping[str, float]]
    lr: Mapping[str, float]
    batch: int


_P0: Any = LokoConfig.p0
_P0_SCRATCH: Any = Loko.p0

FINE_TUNING = Defaults(
    scale=1.0,
    init="kaiming",  # PEFT's
    # Measured on digits, rotate90, batch 1, seeds 0 to 9, mean test accuracy (worst seed): `glm`
    # .74 (.67) at 0.04, .78 (.71) at 0.05, .76 (.67) at 0.06, .72 (.32) at 0.07: beyond, the first
    # steps leave the region of the linearisation, and some seeds collapse or diverge. `logits` .67
    # (.59) at 0.5, .68 at 1. `softmax` stands still where the network is sure and wrong [OBS-7], at
    # any p0: .13 at 0.05; with noise=fixed,r0=0.1,p0=0.5 .77 (.63).
    p0={"glm": _P0, "softmax": _P0, "logits": 0.5, "gaussian": _P0},
    preset_p0={"recommended": {"A": 0.1, "B": 1.0}, "abstract_reading": 0.5},
    # torch's, so that a baseline is what it is named after. AdamW: .40 at 0.001, .73 (.57) at its
    # best rate, 0.006.
    lr={"sgd": SGD.lr, "adagrad": AdaGrad.lr, "adamw": AdamW.lr},
    batch=1,  # online: one sample at a time
)
"""``loko-ref train``: LoRA on a network that was trained on unshifted data."""

FROM_SCRATCH = Defaults(
    scale=2.0,  # the heads' mean update is small at first
    init="orthogonal",  # the heads' A span different directions  [LTE-1]
    # 0.05 diverges within ten steps on digits, 4 heads, rank 4, batch 32  [LTE-10]
    p0=dict.fromkeys(("glm", "softmax", "logits", "gaussian"), _P0_SCRATCH),
    # One number: dense layers have no A and B. digits, 240 steps, seeds 0 to 2, accuracy and loss:
    # recommended .953 .966 .986, .068 .048 .060 (p0 0.3: .946 .960 .980, .056 .045 .048); the glm
    # diagonal .926 .939 .973, .143 .110 .135; AdamW, 25 times as fast, .933 .929 .973, .166 .146
    # .160.
    preset_p0={"recommended": 0.1, "abstract_reading": _P0_SCRATCH},
    lr={"sgd": 0.1, "adagrad": 0.01, "adamw": 0.002},  # found on digits, batch 32
    batch=32,
)
"""``loko-ref lte``: all weights from their initialization."""

PRESETS: dict[str, dict[str, Any]] = {
    # One setting for every stream. Mean of seeds 0 to 2, online/final accuracy, in brackets the
    # default of LokoConfig: digits rotate90 .78/.92 (.56/.77), permute .76/.90 (.61/.82), noise
    # .82/.83 (.81/.79), wine permute .74/.90 (.59/.71), iris invert .77/.89 (.59/.85),
    # breast_cancer invert .91/.96 (.87/.94). Next to it low rank alone (columns=10, p0 .2 and 1):
    # .74/.90, .76/.91, .81/.82, .75/.90, .76/.92, .91/.96; blocks alone (p0 1): .74/.90, .72/.88,
    # .81/.81, .79/.94, .72/.80, .90/.97; AdaGrad at 0.1: .61/.78, .61/.82, .78/.82, .74/.88,
    # .73/.83, .89/.96.
    "recommended": {
        "solve": "implicit",  # a large p0 does not overshoot  [OBS-9]
        "covariance": "block",
        "columns": 10,
    },
    # Our reading; the full text was not at hand. An average of e e', a diagonal, linear in n.
    "abstract_reading": {
        "observation": "logits",
        "noise": "ema_innovation",
        "timing": "before",
        "covariance": "diagonal",
        "diagonal": "decoupled",
    },
}
"""LoKO's options under one name, but for p0: what is taken where none is given, and what the
abstract of the paper describes, for comparison."""


def with_preset(
    options: Mapping[str, Any], regression: bool, purpose: Defaults = FINE_TUNING
) -> dict[str, Any]:
    """Return LoKO's options, and those of the ``preset`` that they name where they are silent.

    Real targets are observed as ``gaussian``.

    Parameters
    ----------
    options : mapping
        Options; ``preset`` among them is a name of :data:`PRESETS`.
    regression : bool
        Whether the targets are real.
    purpose : Defaults
        Where the preset's p0 is from.

    Raises
    ------
    InputError
        If the preset is unknown.

    Examples
    --------
    >>> with_preset({"preset": "recommended", "columns": 4}, True)
    {'covariance': 'block', 'columns': 4, 'p0': {'A': 0.1, 'B': 1.0}}
    """
    given = {k: value for k, value in options.items() if k != "preset"}
    if options.get("preset") is None:
        return given
    check_choice("preset", options["preset"], PRESETS)
    left_out = {"solve", "observation"} if regression else set()
    if given.get("observation") not in (None, "glm"):
        left_out.add("solve")
    usual = PRESETS[options["preset"]] | {"p0": purpose.preset_p0[options["preset"]]}
    return {k: value for k, value in usual.items() if k not in left_out} | given


HIDDEN = {"image": (128, 128), "table": (32, 32), "text": ()}
"""Hidden widths of a perceptron, by what a sample is; both purposes: they follow from the data."""
