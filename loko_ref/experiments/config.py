"""A training run as plain values: which data, which network, which optimizer, which options.

A :class:`RunConfig` is complete: ``RunConfig(**config.as_dict())`` is the same run, so that a
result file or a checkpoint states how to repeat what it reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loko_ref import loko, optimizers
from loko_ref.checks.signatures import check_type
from loko_ref.checks.values import (
    check_choice,
    check_format,
    check_range,
    check_seed,
    check_whole,
    known_keywords,
)
from loko_ref.errors import InputError, unknown_option
from loko_ref.experiments.data import bundled as data
from loko_ref.experiments.data import registry as sources
from loko_ref.experiments.data import texts
from loko_ref.experiments.defaults import FINE_TUNING, with_preset
from loko_ref.experiments.networks import full_alpha, shape_of
from loko_ref.loko.config import as_stored
from loko_ref.network.layers.activation import ActivationName
from loko_ref.network.lora import INITS, Init
from loko_ref.network.model import Model, param_shapes
from loko_ref.network.spec import mlp_spec

__all__ = ["BASELINES", "CLASSES", "ROUTES", "RunConfig", "default_options", "default_shift"]

BASELINES: dict[str, type[Any]] = dict(optimizers.METHODS)

CLASSES: dict[str, type[Any]] = {"loko": loko.LokoConfig, **BASELINES}
"""Optimizer -> the class whose fields are its options."""

ROUTES = ("readable", "fast")
"""Which code takes LoKO's steps: :func:`loko_ref.loko.step`, or :mod:`loko_ref.fast`."""


def default_shift(name: str) -> str:
    """Return the shift taken when none is named.

    ``rotate90`` for images, ``noise`` for a text, else ``invert``.
    """
    return {"image": "rotate90", "text": "noise", "table": "invert"}[sources.kind_of(name)]


def default_options(
    optimizer: str, regression: bool, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Complete an optimizer's options by their defaults.

    Parameters
    ----------
    optimizer : {"loko", "sgd", "adagrad", "adamw"}
        Whose.
    regression : bool
        Whether the targets are real: LoKO then observes with ``gaussian``, else with ``glm``.
    given : mapping, optional
        Options that differ from the default; for LoKO the fields of
        :class:`loko_ref.loko.LokoConfig` but the model, and ``preset``, a name of
        :data:`loko_ref.experiments.defaults.PRESETS`; for the others those of
        :class:`loko_ref.optimizers.SGD` and so on, which have torch's names and defaults.

    Returns
    -------
    dict
        Every option, JSON-able.

    Raises
    ------
    InputError
        If a name is unknown.

    Examples
    --------
    >>> default_options("adamw", False)["lr"], default_options("loko", False)["p0"]
    (0.001, 0.05)
    """
    check_choice("optimizer", optimizer, CLASSES)
    given = dict(given or {})
    if optimizer == "loko":
        given = with_preset(given, regression)
    fields = {f.name: f.default for f in dataclasses.fields(CLASSES[optimizer])}
    fields.pop("model", None)
    if optimizer == "loko" and regression:
        fields["observation"] = "gaussian"
    for name in given:
        if name not in fields:
            raise unknown_option(f"{optimizer}'s option", name, fields)
        flag = isinstance(fields[name], bool)
        if flag and given[name] is not None and not isinstance(given[name], bool):
            raise InputError(name, repr(given[name]), "true or false", "a number or a text")
    if optimizer == "loko":
        observation = given.get("observation", fields["observation"])
        check_choice("observation", observation, FINE_TUNING.p0)
        fields["p0"] = FINE_TUNING.p0[observation]
        fields["noise"] = loko.DEFAULT_NOISE[observation][0]
        if given.get("noise") is not None:
            fields["noise"] = given["noise"]
        fields["timing"] = "after" if fields["noise"] == "ema_residual_hph" else "before"
        given_p0 = given.get("p0")
        if isinstance(given_p0, Mapping) and {"A", "B"} & set(given_p0):  # the other at its default
            given["p0"] = dict.fromkeys("AB", fields["p0"]) | dict(given_p0)
        if given.get("covariance") == "dense":
            fields["form"] = "textbook"  # n^2 m per step; Joseph's n^3 takes seconds at this n
    return fields | {name: value for name, value in given.items() if value is not None}


@known_keywords
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, described so that it can be repeated.

    Parameters
    ----------
    optimizer : {"loko", "sgd", "adagrad", "adamw"}
        Who learns.
    options : mapping
        Its options; missing ones are filled in by :func:`default_options`.
    data, shift, label_noise, seed, dtype, limit, tokenizer, length
        As in :func:`loko_ref.experiments.data.registry.load`; the seed also seeds the base and
        LoRA's A. The shift is :func:`default_shift` when not given.
    batch : int
        Samples a step; a remainder of the stream is left out.
    backend : {"numpy", "cupy"}
        Where the stream is learned; the base is always trained on the host.
    network, hidden, activation, size
        As :func:`loko_ref.experiments.networks.shape_of` completes them.
    route : {"readable", "fast"}
        Which code takes LoKO's steps: the same ones, up to rounding. ``fast`` runs any
        covariance but a dense one on NumPy.
    epochs, base_batch, base_lr : int, int, float
        Training of the base, by AdamW.
    rank, alpha : int, float, optional
        Of LoRA; where no rank is given, a layer narrower than the default one
        (:data:`loko_ref.experiments.defaults.FINE_TUNING`) gets the rank that fits, with the same
        scale. The default alpha is the scale times the rank.
    targets : sequence of str, optional
        Linears with LoRA; by default every linear of an mlp; q, v and the last layer of the others.
    init : {"orthogonal", "kaiming", "gaussian"}
        Initialization of A.
    evaluations : int
        How often along the stream the test part is evaluated, evenly, the end included.
    """

    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "digits"
    shift: str | None = None
    label_noise: float = 0.0
    seed: int = 0
    dtype: str = "float64"
    batch: int = FINE_TUNING.batch
    backend: str = "numpy"
    limit: int | None = None
    tokenizer: str | None = None
    length: int | None = None
    network: str | None = None
    route: str = "readable"
    hidden: Sequence[int] | None = None
    activation: ActivationName | None = None
    size: Mapping[str, int] | None = None
    epochs: int = 30
    base_batch: int = 32
    base_lr: float = 3e-3
    rank: int | None = None
    alpha: float | None = None
    targets: Sequence[str] | None = None
    init: Init = FINE_TUNING.init
    evaluations: int = 20

    def __post_init__(self) -> None:
        """Fill in what depends on the data set, and check what no lower module checks."""
        kind = sources.kind_of(self.data)
        self._set(**shape_of(self.data, self.network, self.hidden, self.activation, self.size))
        self._set(alpha=full_alpha(FINE_TUNING, self.rank, self.alpha))
        if self.targets is not None:
            check_type("targets", self.targets, Sequence, "one name in place of several")
        else:
            self._set(targets=() if self.network == "mlp" else ("q", "v", "head.out"))
        self._set(targets=tuple(self.targets or ()))
        if self.shift is None:
            self._set(shift=default_shift(self.data))
        if self.tokenizer is not None:  # a path becomes JSON
            self._set(tokenizer=str(self.tokenizer))
        sources.check_options(self.data, str(self.shift), self.tokenizer, self.length)
        for name in ("batch", "epochs", "base_batch", "evaluations", "limit", "length"):
            value = getattr(self, name)
            if value is not None or name not in ("limit", "length"):
                check_whole(name, value)
        check_seed("seed", self.seed)
        check_format("dtype", self.dtype)
        check_choice("shift", self.shift, texts.SHIFTS if kind == "text" else data.SHIFTS)
        check_range("label_noise", self.label_noise, low=0, high=1, high_open=True)
        check_choice("init", self.init, INITS)
        check_choice("backend", self.backend, ("numpy", "cupy"))  # balls enclose, and do not train
        check_range("base_lr", self.base_lr, low=0, high_open=True)
        real = sources.regression(self.data)
        options = default_options(self.optimizer, real, self.options)
        self._set(options=options)
        if self.optimizer != "loko":
            BASELINES[self.optimizer](**options)  # checks the ranges
        elif (options["observation"] == "gaussian") != real:
            raise InputError(
                "observation",
                repr(options["observation"]),
                "'gaussian' for diabetes, another for sets with classes",
                "an observation model of classes for real targets, or the reverse",
            )
        else:
            self._check_filter(1 if real else 2)
        self._check_route()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_filter(self, outputs: int) -> None:
        """Check LoKO's options on the smallest network: they do not depend on its size."""
        spec = mlp_spec([1, outputs])
        weights = {name: np.zeros(shape) for name, shape in param_shapes(spec).items()}
        filter_ = loko.LokoConfig(model=Model(spec=spec, weights=weights), **self.options)
        p0 = filter_.p0
        for name, value in p0.items() if isinstance(p0, Mapping) else [("", p0)]:
            where = f"p0[{name!r}]" if name else "p0"
            check_range(where, value, low=0, low_open=True, high_open=True)

    def _check_route(self) -> None:
        """Raise for the fast route where there is only the readable one."""
        check_choice("route", self.route, ROUTES)
        if self.route == "readable":
            return
        for name, got, required in (
            ("optimizer", self.optimizer, "loko"),
            ("backend", self.backend, "numpy"),
        ):
            if got != required:
                raise InputError(
                    "route",
                    f"'fast' with {name} '{got}'",
                    f"{name} '{required}', or 'readable'",
                    "the fast route has LoKO's filters on NumPy and nothing else",
                )
        if self.options["covariance"] == "dense":
            required = "another covariance, or 'readable'"
            cause = "the dense filter has one route only"
            raise InputError("route", "'fast' with covariance 'dense'", required, cause)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``RunConfig(**config.as_dict())`` is the same run."""
        found = dataclasses.asdict(self)
        found |= {name: list(found[name]) for name in ("hidden", "targets")}
        return found | {"options": as_stored(found["options"])}
