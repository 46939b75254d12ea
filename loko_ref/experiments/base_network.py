"""The network before the stream: a base trained on unshifted data, and LoRA put on it.

Shapes: x (batch, i); y (batch,) labels or (batch, 1) targets; z (batch, C); theta, gradient (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref import fast, loko, optimizers
from loko_ref.arrays import Array, asarray, get_backend, namespace
from loko_ref.errors import InputError, NumericalError
from loko_ref.experiments.config import BASELINES, RunConfig
from loko_ref.experiments.data import registry
from loko_ref.experiments.data.bundled import Dataset
from loko_ref.experiments.defaults import FINE_TUNING
from loko_ref.experiments.networks import base_spec, put_lora
from loko_ref.kalman.observation import ObservationModel, innovation, predict
from loko_ref.network.model import Model, add_lora, forward, init_model, pack, unpack, vjp
from loko_ref.network.spec import linears

SHAPE = ("network", "hidden", "activation", "size")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What a run works on and never changes.

    Attributes
    ----------
    config : RunConfig
        The run.
    dataset : Dataset
        On the host.
    model : Model
        Base and LoRA before the stream, on the backend.
    """

    config: RunConfig
    dataset: Dataset
    model: Model

    @property
    def steps(self) -> int:
        """Batches in the stream."""
        return len(self.dataset.stream) // self.config.batch

    @cached_property
    def learner(self) -> Any:
        """The optimizer's own configuration: a LokoConfig, SGD, AdaGrad or AdamW."""
        options = dict(self.config.options)
        if self.config.optimizer == "loko":
            return loko.LokoConfig(model=self.model, **options)
        return BASELINES[self.config.optimizer](**options)

    @cached_property
    def loko_step(self) -> Callable[[loko.LokoState, loko.Batch], tuple[loko.LokoState, Any]]:
        """LoKO's step by the chosen route; the fast one holds buffers, for one run at a time."""
        if self.config.route == "fast":
            return fast.prepare(self.learner).step
        return partial(loko.step, config=self.learner)


def loss_gradient(
    model: Model,
    x: Array,
    y: Array,
    observation: ObservationModel,
    *,
    step: int = 0,
    knob: str = "lr",
) -> tuple[Array, Array]:
    """Run the network and pull the mean loss back to the trainables: z and the gradient.

    The loss is the cross-entropy, or half the squared error. Its gradient is ``-Z' e / batch``,
    made of the innovation that LoKO weighs by its gain.  [LAY-9]

    Parameters
    ----------
    x : array (batch, i)
        Inputs.
    y : array (batch,) or (batch, C)
        Labels, one-hot rows, or real rows (``gaussian``).
    observation : str
        ``gaussian`` for the squared error; any other name for the cross-entropy.
    step, knob : int, str
        What a divergence names: the step, and the option to take smaller.

    Returns
    -------
    z : array (batch, C)
    gradient : array (n,)

    Raises
    ------
    NumericalError
        If outputs or gradient overflow.
    """
    z, cache = forward(model, x)
    check_bounded(z, step, knob, "z")
    rows = loko.targets(y, z, observation)
    dz = -innovation(observation, rows, predict(observation, z)) / z.shape[0]  # (batch, C)
    parts = vjp(model, dz[None], cache)
    g: Array = namespace(z).concatenate([a.reshape(-1) for a in parts.values()])
    check_bounded(g, step, knob, "gradient")
    return z, g


def observation_of(dataset: Dataset) -> ObservationModel:
    """Return the observation model of a plain loss: ``gaussian`` for real targets."""
    return "gaussian" if dataset.regression else "softmax"


def train_base(
    config: RunConfig, dataset: Dataset, spec: list[dict[str, Any]], rng: np.random.Generator
) -> Model:
    """Train all weights of a network on the base part, on the host.

    Parameters
    ----------
    config : RunConfig
        How long, and with which rate.
    spec : list of dict
        The network.
    rng : numpy.random.Generator
        Draws the weights and the order of the samples.
    """
    drawn = init_model(rng, spec, dtype=config.dtype)
    model = Model(spec=drawn.spec, weights=drawn.weights, trainable=tuple(drawn.weights))
    adamw = optimizers.AdamW(lr=config.base_lr)
    state = optimizers.init(pack(model), adamw)
    x, y, about = dataset.base.x, dataset.base.y, observation_of(dataset)
    chunks = max(1, len(x) // config.base_batch)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(config.epochs):
            for chosen in np.array_split(rng.permutation(len(x)), chunks):
                now = unpack(model, state.theta)
                _, g = loss_gradient(
                    now, x[chosen], y[chosen], about, step=state.step, knob="base_lr"
                )
                state = optimizers.step(state, g, adamw)
    return Model(spec=model.spec, weights=unpack(model, state.theta).weights)


def prepare(
    config: RunConfig,
    weights: Mapping[str, NDArray[Any]] | None = None,
    dataset: Dataset | None = None,
) -> Task:
    """Load the data, train the base and add LoRA, or take `weights` from a checkpoint.

    Parameters
    ----------
    config : RunConfig
        The run.
    weights : mapping of str to array, optional
        All weights before the stream, base and LoRA, from :attr:`Task.model`.
    dataset : Dataset, optional
        In place of the one that the configuration names.

    Raises
    ------
    BackendError
        If the backend cannot be used.
    MissingExtraError
        If scikit-learn is not installed.
    """
    like = get_backend(config.backend).asarray(np.zeros(1, config.dtype))
    dataset = load_dataset(config) if dataset is None else dataset
    if config.batch > len(dataset.stream):
        raise InputError(
            "batch", config.batch, f"at most {len(dataset.stream)}, the stream", "an empty pass"
        )
    base = base_spec({k: getattr(config, k) for k in SHAPE}, dataset)
    targets = tuple(config.targets or ())
    spec = put_lora(base, FINE_TUNING, rank=config.rank, alpha=config.alpha, targets=targets)
    if weights is None:
        base_rng, lora_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(5)[3:]
        )  # the first three children are the data's
        made = train_base(config, dataset, base, base_rng)
        for layer in linears(spec):
            if "lora" in layer:
                name = [layer["name"]]
                made = add_lora(lora_rng, made, **layer["lora"], init=config.init, targets=name)
        weights = made.weights
    model = Model(spec=spec, weights={name: asarray(w, like) for name, w in weights.items()})
    return Task(config=config, dataset=dataset, model=model)


def load_dataset(config: RunConfig) -> Dataset:
    """Load the data of a run."""
    names = ("shift", "seed", "dtype", "label_noise", "limit", "tokenizer", "length")
    return registry.load(config.data, **{name: getattr(config, name) for name in names})


def check_bounded(array: Array, step: int, knob: str, name: str) -> None:
    """Raise where a run diverged: outputs, gradient and theta must not overflow.

    Raises
    ------
    NumericalError
        If the array is not finite; names it, the step and the knob to turn.
    """
    if not bool(namespace(array).isfinite(array).all()):
        raise NumericalError(
            name,
            None,
            f"The run diverged: its steps grew without bound. Take a smaller {knob}.",
            step,
        )
