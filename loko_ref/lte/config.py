"""LTE's choices, each by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.values import (
    check_choice,
    check_memory,
    check_seed,
    check_whole,
    known_keywords,
)
from loko_ref.errors import InputError
from loko_ref.kalman.diagonal import DiagonalKind
from loko_ref.kalman.implicit import Solve
from loko_ref.kalman.lowrank import Blocks
from loko_ref.kalman.noise import NoiseEstimator, Timing
from loko_ref.kalman.observation import ObservationModel
from loko_ref.loko.config import LokoConfig, as_stored
from loko_ref.lte.layout import Layout
from loko_ref.network import lora
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.model import Model, param_shapes
from loko_ref.network.spec import check_spec
from loko_ref.optimizers import METHODS, SGD, AdaGrad, AdamW

Mode: TypeAlias = Literal["lte", "mhlora"]
Realisation: TypeAlias = Literal["shared", "copies"]
Reset: TypeAlias = Literal["none", "B", "AB"]
OptimizerState: TypeAlias = Literal["keep", "reset"]
Merging: TypeAlias = Literal["telescoped", "incremental"]
Scaling: TypeAlias = Literal["mean", "sum"]
Data: TypeAlias = Literal["chunks", "replicated"]
Reduction: TypeAlias = Literal["all", "own"]
Loss: TypeAlias = Literal["cross_entropy", "mse"]
FilterMerge: TypeAlias = Literal["keep", "shrink", "prior"]
Replicas: TypeAlias = Literal["train", "frozen"]


HeadCovariance: TypeAlias = Literal["diagonal", "lowrank", "block"]
"""What a head's filter keeps."""


@known_keywords
@dataclass(frozen=True, kw_only=True, eq=False)
class Loko:
    """LoKO inside each head: :class:`loko_ref.loko.LokoConfig` without its model.  [LTE-10].

    Its defaults, but for ``p0``: LTE trains from scratch, where LoKO's own, found for fine-tuning,
    overshoots within a few steps. :mod:`loko_ref.experiments.defaults` has both, with the reasons.
    """

    observation: ObservationModel = "glm"
    noise: NoiseEstimator | None = None
    timing: Timing | None = None
    beta: float = 0.95
    r0: float = 1.0
    p0: float | Mapping[str, float] | Array = 0.01
    diagonal: DiagonalKind = "decoupled"
    lam: float = 1.0
    q: float = 0.0
    center: bool = False
    solve: Solve = "linear"
    covariance: HeadCovariance = "diagonal"
    columns: int | None = None
    blocks: Blocks = "unit"


OPTIMIZERS: dict[str, type] = {**METHODS, "loko": Loko}
"""Name -> its configuration."""


def _plain(value: Any) -> Any:
    """Copy nested mappings and sequences as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@known_keywords
@dataclass(frozen=True, kw_only=True, eq=False)
class LteConfig:
    """Every choice that LTE leaves open, by name.  [LTE-1 to LTE-12].

    Parameters
    ----------
    spec : sequence of mapping
        The network (:mod:`loko_ref.network.model`). Linears with ``lora``, those of an attention
        too, are the low-rank sites; layers without (norms, tables, the other linears) are replica
        layers, one trainable copy per head, averaged at a merge.  [LTE-7]
    heads : int
        Number of heads, >= 1.
    merge_every : int
        Steps between merges, T >= 1. Not read by ``mhlora``.
    mode : {"lte", "mhlora"}
        LTE, or multi-head LoRA without merging.  [LTE-2, LTE-3]
    realisation : {"shared", "copies"}
        One shared weight and the factors last merged, or one weight copy per head.  [LTE-3, LTE-4]
    reset : {"none", "B", "AB"}
        What is reset after a merge: nothing; B = 0; B = 0 and A redrawn.  [LTE-6]
    optimizer_state : {"keep", "reset"}
        Whether momenta (or p and R) survive a merge.
    merging : {"telescoped", "incremental"}
        How W is formed: from the weight at the last reset, or from the last W.  [LTE-5]
    scaling : {"mean", "sum"}
        Of mhlora: scale / heads, or scale.  [LTE-2]
    data : {"chunks", "replicated"}
        Each head its own contiguous chunk of the batch, or the whole.
    reduction : {"all", "own"}
        Mean of the loss over all heads' samples, or each head's own mean.  [LTE-8]
    loss : {"cross_entropy", "mse"}
        Over classes; or squared error, mean over all entries.  [LTE-8]
    optimizer : SGD, AdaGrad, AdamW or Loko
        Inside each head.
    filter_merge : {"keep", "shrink", "prior"}
        What a merge does to LoKO's p, where its state is kept.  [LTE-10]
    init : {"orthogonal", "kaiming", "gaussian"}
        Initialization of A, at first and when redrawn.
    seed : int
        Seeds factors, redraws and the order of the data.
    replicas : {"train", "frozen"}
        Whether layers without LoRA are trained, or stay as they began.  [LTE-7]
    """

    spec: Sequence[Mapping[str, Any]]
    heads: int
    merge_every: int = 8
    mode: Mode = "lte"
    realisation: Realisation = "shared"
    reset: Reset = "none"
    optimizer_state: OptimizerState = "keep"
    merging: Merging = "telescoped"
    scaling: Scaling = "mean"
    data: Data = "chunks"
    reduction: Reduction = "all"
    loss: Loss = "cross_entropy"
    optimizer: SGD | AdaGrad | AdamW | Loko = field(default_factory=AdamW)
    filter_merge: FilterMerge = "keep"
    init: lora.Init = "orthogonal"
    seed: int = 0
    replicas: Replicas = "train"

    def __post_init__(self) -> None:
        """Check every choice, and that they go together."""
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        check_whole("heads", self.heads)
        check_whole("merge_every", self.merge_every)
        check_seed("seed", self.seed)
        if not isinstance(self.optimizer, SGD | AdaGrad | AdamW | Loko):
            raise InputError(
                "optimizer",
                type(self.optimizer).__name__,
                "a configuration: SGD, AdaGrad, AdamW or Loko",
                "a name in place of a configuration",
            )
        check_spec(self.spec)
        weights = 2 * sum(math.prod(shape) for shape in param_shapes(self.spec).values())
        check_memory("spec", f"{weights // 2} weights", weights)  # W, and W at the last reset
        own = 4 * self.heads * self.layout.n  # theta, as merged, two slots of the optimizer
        check_memory("heads", self.heads, weights + own)
        if not self.layout.factors and (self.heads > 1 or self.replicas == "frozen"):
            raise InputError(
                "spec",
                f"no layer with 'lora' for {self.heads} heads, replicas='{self.replicas}'",
                "at least one, or one head that trains its replicas",
                "a spec without LoRA sites; one head without them is full-weight training",
            )
        for site in self.layout.sites.values():
            if "bB" in site.parts and f"{site.name}.b" not in self.frozen:
                raise InputError(
                    "spec",
                    f"branch biases on '{site.name}', which has no bias",
                    "a layer with bias",
                    "a merge would have nowhere to put scale(B bA + bB)",
                )
        if self.mode == "mhlora":
            self._check_mhlora()
        if isinstance(self.optimizer, Loko):
            gaussian = self.filter("float64").observation == "gaussian"
            if gaussian != (self.loss == "mse"):
                raise InputError(
                    "loss",
                    f"'{self.loss}' with observation='{self.optimizer.observation}'",
                    "'mse' with 'gaussian', 'cross_entropy' with the others",
                    "an observation model for other data than the loss",
                )
            check_choice("covariance", self.optimizer.covariance, get_args(HeadCovariance))
            if self.optimizer.covariance != "diagonal" and self.filter_merge != "keep":
                raise InputError(
                    "filter_merge",
                    f"'{self.filter_merge}' with covariance='{self.optimizer.covariance}'",
                    "'keep', or covariance='diagonal'",
                    "a precision has no variances p that could be changed entry by entry; "
                    "LoKO without an option is 'recommended', whose covariance is 'block'",
                )
        elif self.filter_merge != "keep":
            raise InputError(
                "filter_merge", repr(self.filter_merge), "'keep'", "an option of LoKO alone"
            )
        if self.optimizer_state == "reset" and self.filter_merge != "keep":
            raise InputError(
                "filter_merge",
                f"'{self.filter_merge}' with optimizer_state='reset'",
                "'keep'",
                "a reset filter keeps no p that could be changed",
            )

    def _check_mhlora(self) -> None:
        usual = {f.name: f.default for f in fields(self)}
        for name in ("realisation", "reset", "optimizer_state", "reduction", "data"):
            if getattr(self, name) != usual[name] and (name, getattr(self, name)) != (
                "data",
                "replicated",
            ):
                raise InputError(
                    name,
                    f"'{getattr(self, name)}' with mode='mhlora'",
                    "its default",
                    "mhlora is one network that never merges: every head sees the whole batch",
                )
        replicas = [site.name for site in self.layout.sites.values() if not site.lora]
        if replicas and self.heads > 1 and isinstance(self.optimizer, Loko):
            raise InputError(
                "optimizer",
                f"loko with mode='mhlora' and layers {replicas} without LoRA",
                "LoRA on every layer, or replicas='frozen'",
                "each head's filter would estimate its own copy of a layer that is shared",
            )

    @cached_property
    def layout(self) -> Layout:
        """Packing of one head's trainables."""
        return Layout.of(self.spec, self.replicas)

    @cached_property
    def nested(self) -> bool:
        """Whether whole networks are run: each head's, or mhlora's one.  [LTE-2, LTE-12].

        The heads of a flat spec whose linears are all trained are computed at once.
        """
        return self.mode == "mhlora" or not all(
            layer["kind"] in ACTIVATIONS
            or (layer["kind"] == "linear" and layer["name"] in self.layout.sites)
            for layer in self.spec
        )

    @cached_property
    def outputs(self) -> int:
        """C, the network's outputs."""
        return self.template.outputs

    @cached_property
    def inputs(self) -> int:
        """Width of the network's input (pixels of an image, positions of a text)."""
        return self.template.inputs

    @cached_property
    def template(self) -> Model:
        """One head's network with zero weights: shapes, names, order."""
        weights = {name: np.zeros(shape) for name, shape in param_shapes(self.spec).items()}
        return Model(spec=self.spec, weights=weights, trainable=self.layout.names)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the shared weights: every array but the factors, in model order."""
        names = param_shapes(self.spec)
        return tuple(k for k in names if k.rsplit(".", 1)[1] not in lora.FACTORS)

    @cached_property
    def _filters(self) -> dict[str, LokoConfig]:
        return {}

    def filter(self, dtype: str | np.dtype[Any]) -> LokoConfig:
        """Return the filter's configuration for one head (only shapes of its model are read)."""
        assert isinstance(self.optimizer, Loko)
        if str(dtype) in self._filters:
            return self._filters[str(dtype)]
        weights = {k: v.astype(dtype) for k, v in self.template.weights.items()}
        model = Model(spec=self.spec, weights=weights, trainable=self.layout.names)
        options = {f.name: getattr(self.optimizer, f.name) for f in fields(Loko)}
        return self._filters.setdefault(str(dtype), LokoConfig(model=model, **options))

    def as_json(self) -> dict[str, Any]:
        """Every choice as JSON data, in a fixed order: what a checkpoint is compared by."""
        found: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "spec":
                value = _plain(value)
            elif f.name == "optimizer":
                kind = next(k for k, v in OPTIMIZERS.items() if isinstance(value, v))
                options = {g.name: getattr(value, g.name) for g in fields(value)}
                if hasattr(options.get("p0"), "tolist"):
                    options["p0"] = options["p0"].tolist()
                value = {"kind": kind, **as_stored(options, covariance="diagonal")}
            found[f.name] = value
        return found


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint)
    for name, hint in get_type_hints(LteConfig).items()
    if get_origin(hint) is Literal
}
"""Option of :class:`LteConfig` -> its names."""
