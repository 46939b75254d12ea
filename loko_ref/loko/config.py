"""Every choice that LoKO leaves open, by name, with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

from loko_ref.arrays import Array
from loko_ref.checks.values import check_choice, check_range, check_whole, known_keywords
from loko_ref.errors import InputError
from loko_ref.kalman import dense, diagonal, noise
from loko_ref.kalman.dense import Form
from loko_ref.kalman.diagonal import DiagonalKind
from loko_ref.kalman.implicit import SOLVES, Solve
from loko_ref.kalman.lowrank import BLOCKS, Blocks
from loko_ref.kalman.noise import NoiseEstimator, Timing
from loko_ref.kalman.observation import OBSERVATIONS, ObservationModel
from loko_ref.network.model import Model

Covariance: TypeAlias = Literal["diagonal", "dense", "lowrank", "block"]
COVARIANCES: tuple[Covariance, ...] = get_args(Covariance)

DEFAULT_NOISE: dict[ObservationModel, tuple[NoiseEstimator, Timing]] = {
    "gaussian": ("fixed", "before"),
    "softmax": ("ema_innovation_hph", "before"),
    "logits": ("ema_innovation", "before"),
    "glm": ("glm", "before"),
}
"""Observation model -> the estimator of R, and its timing, that it takes by default."""

LATER: dict[str, Any] = {"solve": "linear", "columns": None, "blocks": "unit"}
"""Options that came after files were written -> their default, which a file that has none means."""


def as_stored(options: Mapping[str, Any], **later: Any) -> dict[str, Any]:
    """Return options as a file has them: later ones where they are not at their default."""
    later = LATER | later
    return {k: a for k, a in options.items() if k not in later or a != later[k]}


@known_keywords
@dataclass(frozen=True, kw_only=True, eq=False)
class LokoConfig:
    """Every choice that LoKO leaves open, by name.

    The defaults are the ones that learn: of the observation models, ``glm`` is the exact
    exponential-family filter, has no noise to tune, and moves where ``softmax`` saturates.  [OBS-7]

    Parameters
    ----------
    model : Model
        The network; its trainables are theta.
    observation : {"glm", "softmax", "logits", "gaussian"}
        The observation model.
    noise : {"fixed", "ema_innovation", "ema_innovation_hph", "ema_residual_hph", "glm"}, optional
        The estimator of R; by default the one of ``DEFAULT_NOISE``.
    timing : {"before", "after"}, optional
        Whether R is refreshed before the gain or after it.
    beta : float
        Weight of the past in R's average, 0 <= beta < 1.
    r0 : float
        R_0 = r0 I, r0 > 0. Not read by ``glm``.
    p0 : float, mapping of str to float, or array
        Prior variance: a number; one a factor or a LoRA site, by the keys ``A``, ``B``, ``SITE``
        (the layer's name), ``SITE.A``, the most specific of which wins (bA follows A, bB follows
        B); an array (n,), or (n, n) with a dense covariance. The default is for fine-tuning with
        ``glm``; others stand, with the reasons, in :mod:`loko_ref.experiments.defaults`.  [LOKO-3]
    covariance : {"diagonal", "dense", "lowrank", "block"}
        LoKO's diagonal; the full filter for small n [LOKO-4]; a diagonal precision plus `columns`
        of low rank [KAL-9]; blocks of a precision, plus as many [KAL-10].
    columns : int, optional
        L, the columns kept by ``lowrank`` (10 by default) and ``block`` (none by default).
    blocks : {"unit", "tensor"}
        For ``block``: one block per input of A and output of B, or per whole tensor.
    diagonal : {"decoupled", "variational"}
        Which diagonal is kept; left at its default with a dense covariance.
    form : {"joseph", "textbook", "information", "sequential"}
        Form of the dense update; left at its default with a diagonal covariance.
    lam : float
        Forgetting factor, 0 < lam <= 1.
    q : float
        Process noise variance, >= 0.
    center : bool
        For ``logits``: project H on the contrasts.
    solve : {"linear", "implicit"}
        For ``glm``, how theta is found: by the linearised observation, ``theta + K e``, or as the
        mode of the posterior whose logits are linear, ``theta + P Z' v``. S, K and the covariance
        are the same.  [OBS-9]

    Raises
    ------
    InputError
        If an option is unknown, out of range, or does not go with another.
    """

    model: Model
    observation: ObservationModel = "glm"
    noise: NoiseEstimator | None = None
    timing: Timing | None = None
    beta: float = 0.95
    r0: float = 1.0
    p0: float | Mapping[str, float] | Array = 0.05
    covariance: Covariance = "diagonal"
    diagonal: DiagonalKind = "decoupled"
    form: Form = "joseph"
    lam: float = 1.0
    q: float = 0.0
    center: bool = False
    solve: Solve = "linear"
    columns: int | None = None
    blocks: Blocks = "unit"

    @property
    def kept(self) -> int:
        """L, the columns of low rank."""
        if self.columns is not None:
            return self.columns
        return 10 if self.covariance == "lowrank" else 0

    def _check_precision(self) -> None:
        """Check what belongs to the covariances that are kept as a precision."""
        check_choice("blocks", self.blocks, BLOCKS)
        if self.columns is not None:
            check_whole("columns", self.columns, low=0)
        for name, usual, known in (
            ("columns", None, ("lowrank", "block")),
            ("blocks", "unit", ("block",)),
            ("diagonal", "decoupled", ("diagonal", "dense")),
        ):
            if getattr(self, name) != usual and self.covariance not in known:
                raise InputError(
                    name,
                    repr(getattr(self, name)),
                    f"its default with covariance='{self.covariance}'",
                    "an option of another covariance; a precision has the variational diagonal",
                )

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on the observation model, and check everything."""
        if not isinstance(self.model, Model):
            raise InputError(
                "model",
                type(self.model).__name__,
                "a loko_ref.network.model.Model",
                "a spec or weights alone: Model(spec=..., weights=...) holds both",
            )
        check_choice("observation", self.observation, OBSERVATIONS)
        usual, _ = DEFAULT_NOISE[self.observation]
        if self.noise is None:
            object.__setattr__(self, "noise", usual)
        if self.timing is None:
            late = self.noise == "ema_residual_hph"
            object.__setattr__(self, "timing", "after" if late else "before")
        noise.check_combination(self.observation, str(self.noise), str(self.timing))
        check_choice("covariance", self.covariance, COVARIANCES)
        check_choice("diagonal", self.diagonal, diagonal.DIAGONALS)
        check_choice("form", self.form, dense.FORMS)
        if self.covariance == "dense" and self.diagonal != "decoupled":
            raise InputError(
                "diagonal",
                repr(self.diagonal),
                "'decoupled', the default, with covariance='dense'",
                "the dense filter keeps the whole P, so there is no diagonal to choose",
            )
        if self.covariance != "dense" and self.form != "joseph":
            raise InputError(
                "form",
                repr(self.form),
                f"'joseph', the default, with covariance='{self.covariance}'",
                "covariance='dense' was left out: the other filters have one form only",
            )
        self._check_precision()
        check_range("beta", self.beta, low=0, high=1, high_open=True)
        check_range("r0", self.r0, low=0, low_open=True, high_open=True)
        check_range("lam", self.lam, low=0, high=1, low_open=True)
        check_range("q", self.q, low=0, high_open=True)
        p0: object = self.p0
        if isinstance(p0, Real) or not (isinstance(p0, Mapping) or hasattr(p0, "shape")):
            check_range("p0", p0, low=0, low_open=True, high_open=True)
        for name in ("beta", "r0", "lam", "q"):  # a NumPy float64 would widen float32
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.center and self.observation != "logits":
            raise InputError(
                "center",
                True,
                "False unless observation='logits'",
                "in 'softmax' and 'glm' H is centred already, in 'gaussian' it has no classes",
            )
        check_choice("solve", self.solve, SOLVES)
        if self.solve == "implicit" and self.observation != "glm":
            raise InputError(
                "solve",
                "'implicit'",
                "'linear' unless observation='glm'",
                "in 'gaussian' the linear solution is the exact one already; 'softmax' and "
                "'logits' have no posterior that is convex in the logits, so no unique solution",
            )
