"""One pass over a stream of real data: LoKO and first-order baselines, the same network and order.

Shapes: x (batch, i); y (batch,) labels or (batch, 1) targets; z (batch, C); theta, gradient (n,).

A run is described whole by a :class:`loko_ref.runconfig.RunConfig`. It trains a base network on
unshifted data, puts LoRA on every linear, and streams the shifted data once: each batch is first
predicted (that is the online accuracy), then learned from. Everything that a run carries from
batch to batch is one frozen :class:`Progress`, so that stopping and resuming changes no bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loko_ref import data, loko, optimizers, texts
from loko_ref.architectures import roberta_spec, vit_spec
from loko_ref.arrays import Array, asarray, get_backend, namespace, to_host
from loko_ref.data import Dataset
from loko_ref.errors import InputError, NumericalError
from loko_ref.kalman.observation import innovation, predict
from loko_ref.model import Model, add_lora, forward, init_model, mlp_spec, pack, unpack, vjp
from loko_ref.runconfig import BASELINES, RunConfig
from loko_ref.spec import linears, map_linears

__all__ = [
    "Point",
    "Progress",
    "Task",
    "advance",
    "begin",
    "evaluate",
    "finished",
    "learner",
    "loss_gradient",
    "prepare",
    "result",
    "stream_batch",
    "train_base",
]


ENCODER: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "ff": 64}
"""Size of the transformers trained here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What a run works on and never changes.

    Attributes
    ----------
    config : RunConfig
        What was asked for.
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


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the learning curve.

    Attributes
    ----------
    samples : int
        Streamed so far.
    online, test : float
        Accuracy so far on the stream, each sample before it was learned; accuracy on the test
        part now. For regression root mean squared errors in the target's unit.
    """

    samples: int
    online: float
    test: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """Everything that a run carries from step to step.

    Attributes
    ----------
    state : LokoState or OptimizerState
        The learner's.
    step : int
        Batches learned.
    score : float
        Sum over the stream of correct predictions, or of squared errors.
    seconds : float
        Spent in steps (evaluation excluded).
    curve : tuple of Point
        So far.
    """

    state: loko.LokoState | optimizers.OptimizerState
    step: int = 0
    score: float = 0.0
    seconds: float = 0.0
    curve: tuple[Point, ...] = ()


def loss_gradient(model: Model, x: Array, y: Array, observation: str) -> tuple[Array, Array]:
    """Run the network and pull the mean loss back to the trainables: z and the gradient.

    The loss is the cross-entropy, or half the squared error. Its gradient is ``-Z' e / batch``,
    made of the innovation that LoKO weighs by its gain.  [LAY-9]

    Parameters
    ----------
    model : Model
        The network.
    x : array (batch, i)
        Inputs.
    y : array (batch,) or (batch, C)
        Labels, one-hot rows, or real rows (``gaussian``).
    observation : str
        ``gaussian`` for the squared error; any other name for the cross-entropy.

    Returns
    -------
    z : array (batch, C)
    gradient : array (n,)
    """
    z, cache = forward(model, x)
    rows = loko.targets(y, z, observation)
    dz = -innovation(observation, rows, predict(observation, z)) / z.shape[0]  # (batch, C)
    parts = vjp(model, dz[None], cache)
    g: Array = namespace(z).concatenate([a.reshape(-1) for a in parts.values()])
    return z, g


def _observation(dataset: Dataset) -> str:
    return "gaussian" if dataset.regression else "softmax"


def train_base(config: RunConfig, dataset: Dataset, rng: np.random.Generator) -> Model:
    """Train all weights of a multilayer perceptron on the base part, on the host.

    Parameters
    ----------
    config : RunConfig
        Widths and how long.
    dataset : Dataset
        Its base part is used.
    rng : numpy.random.Generator
        Draws the weights and the order of the samples.
    """
    drawn = init_model(rng, _base_spec(config, dataset), dtype=config.dtype)
    model = Model(spec=drawn.spec, weights=drawn.weights, trainable=tuple(drawn.weights))
    adamw = optimizers.AdamW(lr=config.base_lr)
    state = optimizers.init(pack(model), adamw)
    x, y = dataset.base.x, dataset.base.y
    chunks = max(1, len(x) // config.base_batch)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(config.epochs):
            for chosen in np.array_split(rng.permutation(len(x)), chunks):
                z, g = loss_gradient(
                    unpack(model, state.theta), x[chosen], y[chosen], _observation(dataset)
                )
                _check_bounded(g, z, state.step, "base_lr")
                state = optimizers.step(state, g, adamw)
    return Model(spec=model.spec, weights=unpack(model, state.theta).weights)


def prepare(config: RunConfig, weights: Mapping[str, NDArray[Any]] | None = None) -> Task:
    """Load the data, train the base and add LoRA, or take `weights` from a checkpoint.

    Parameters
    ----------
    config : RunConfig
        The run.
    weights : mapping of str to array, optional
        All weights before the stream, base and LoRA, from :attr:`Task.model`.

    Raises
    ------
    BackendError
        If the backend asked for cannot be used.
    MissingExtraError
        If scikit-learn is not installed.
    """
    like = get_backend(config.backend).asarray(np.zeros(1, config.dtype))
    dataset = _load(config)
    if config.batch > len(dataset.stream):
        raise InputError(
            "batch", config.batch, f"at most {len(dataset.stream)}, the stream", "an empty pass"
        )
    if weights is None:
        base_rng, lora_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(5)[3:]
        )  # the first three children are the data's
        made = train_base(config, dataset, base_rng)
        for layer in linears(made.spec):
            if _adapted(config, layer):
                site = _site(config, layer)
                made = add_lora(lora_rng, made, **site, init=config.init, targets=[layer["name"]])
        weights = made.weights
    spec = map_linears(
        _base_spec(config, dataset),
        lambda layer: {**layer, "lora": _site(config, layer)} if _adapted(config, layer) else layer,
    )
    model = Model(spec=spec, weights={name: asarray(w, like) for name, w in weights.items()})
    return Task(config=config, dataset=dataset, model=model)


def _base_spec(config: RunConfig, dataset: Dataset) -> list[dict[str, Any]]:
    if config.network == "vit":
        return vit_spec(image=(1, 8, 8), patch=(2, 2), outputs=dataset.outputs, **ENCODER)
    if config.network == "encoder":
        tokens = dataset.base.x.shape[1]
        return roberta_spec(
            vocab=texts.VOCABULARY,
            positions=tokens + texts.PAD + 1,
            pad=texts.PAD,
            types=0,
            outputs=dataset.outputs,
            **ENCODER,
        )
    widths = [dataset.base.x.shape[1], *(config.hidden or ()), dataset.outputs]
    return mlp_spec(widths, config.activation)


def _adapted(config: RunConfig, layer: Mapping[str, Any]) -> bool:
    """Whether a linear gets LoRA: all of an mlp, q and v and the last layer of an encoder."""
    return config.network == "mlp" or layer["name"].endswith((".q", ".v", "head.out"))


def _load(config: RunConfig) -> Dataset:
    where = {"shift": str(config.shift), "seed": config.seed, "label_noise": config.label_noise}
    if config.data in texts.TEXTS:
        return texts.load(config.data, **where)  # type: ignore[arg-type]
    return data.load(config.data, dtype=config.dtype, **where)  # type: ignore[arg-type]


def _site(config: RunConfig, layer: Mapping[str, Any]) -> dict[str, Any]:
    """LoRA on one linear: rank r, or less where the layer is narrower, with the same scale."""
    r = min(config.r, layer["in"], layer["out"])
    return {"r": r, "alpha": float(config.alpha) / config.r * r, "bias": False}


def learner(task: Task) -> Any:
    """Give the optimizer's own configuration: a LokoConfig, SGD, AdaGrad or AdamW."""
    options = dict(task.config.options)
    if task.config.optimizer == "loko":
        return loko.LokoConfig(model=task.model, **options)
    return BASELINES[task.config.optimizer](**options)


def begin(task: Task) -> Progress:
    """Stand before the first batch."""
    options = learner(task)
    if isinstance(options, loko.LokoConfig):
        return Progress(state=loko.init(options, batch=task.config.batch))
    return Progress(state=optimizers.init(pack(task.model), options))


def stream_batch(task: Task, step: int) -> loko.Batch:
    """Take one batch of the stream to the backend.

    Parameters
    ----------
    task : Task
        Model and data.
    step : int
        Number of the batch, from 0.
    """
    like = next(iter(task.model.weights.values()))
    span = slice(step * task.config.batch, (step + 1) * task.config.batch)
    part = task.dataset.stream
    return loko.Batch(x=asarray(part.x[span], like), y=asarray(part.y[span], like))


def finished(progress: Progress, task: Task) -> bool:
    """Tell whether the stream is at its end."""
    return progress.step >= task.steps


def _targets(task: Task, step: int) -> NDArray[Any]:
    return task.dataset.stream.y[step * task.config.batch : (step + 1) * task.config.batch]


def _knob(config: RunConfig) -> str:
    return "p0" if config.optimizer == "loko" else "lr"


def _check_bounded(a: Array, z: Array, step: int, knob: str, name: str = "gradient") -> None:
    """Tell a run that diverged from bad input: outputs, gradient and theta must not overflow."""
    xp = namespace(z)
    for what, array in (("z", z), (name, a)):
        if not bool(xp.isfinite(array).all()):
            raise NumericalError(
                what,
                None,
                f"The run diverged: its steps grew without bound. Take a smaller {knob}.",
                step,
            )


def _score(z: NDArray[Any], y: NDArray[Any], dataset: Dataset) -> float:
    """Sum of correct predictions, or of squared errors in the target's unit."""
    if dataset.regression:
        return float((((z - y) * dataset.unit).astype(np.float64) ** 2).sum())
    return float((z.argmax(axis=1) == y).sum())


def _mean(score: float, samples: int, dataset: Dataset) -> float:
    return math.sqrt(score / samples) if dataset.regression else score / samples


def advance(progress: Progress, task: Task) -> Progress:
    """Predict one batch, learn from it, and perhaps evaluate.

    Parameters
    ----------
    progress : Progress
        Untouched.
    task : Task
        What is learned.

    Raises
    ------
    NumericalError
        If the learner diverges or a covariance becomes singular; names the step.
    """
    config, dataset, options = task.config, task.dataset, learner(task)
    started = time.perf_counter()
    batch = stream_batch(task, progress.step)
    state: loko.LokoState | optimizers.OptimizerState
    # a run that diverges overflows first; what it leaves is found by the checks for finiteness
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(progress.state, loko.LokoState):
            state, record = loko.step(progress.state, batch, options)
            z = record.z
        else:
            model = unpack(task.model, progress.state.theta)
            z, g = loss_gradient(model, batch.x, batch.y, _observation(dataset))
            _check_bounded(g, z, progress.step, "lr")
            state = optimizers.step(progress.state, g, options)
        _check_bounded(state.theta, z, progress.step, _knob(config), "theta")
    z = to_host(z)
    seconds = progress.seconds + time.perf_counter() - started
    step, score = (
        progress.step + 1,
        progress.score + _score(z, _targets(task, progress.step), dataset),
    )
    curve = progress.curve
    every = -(-task.steps // config.evaluations)
    if step % every == 0 or step == task.steps:
        online = _mean(score, step * config.batch, dataset)
        test = evaluate(task, state.theta, step - 1)
        curve = (*curve, Point(samples=step * config.batch, online=online, test=test))
    return Progress(state=state, step=step, score=score, seconds=seconds, curve=curve)


def evaluate(task: Task, theta: Array, step: int = 0) -> float:
    """Accuracy on the test part at theta, or root mean squared error in the target's unit.

    Parameters
    ----------
    task : Task
        Model and data.
    theta : array (n,)
        Trainables.
    step : int
        Named by the error if the outputs are not finite.
    """
    part = task.dataset.test
    with np.errstate(over="ignore", invalid="ignore"):
        z, _ = forward(unpack(task.model, theta), asarray(part.x, theta))
        _check_bounded(theta, z, step, _knob(task.config), "theta")
    return _mean(_score(to_host(z), part.y, task.dataset), len(part), task.dataset)


def result(progress: Progress, task: Task) -> dict[str, Any]:
    """Summarise a finished run, as the schema ``loko-ref/train/1`` has it.

    Returns
    -------
    dict
        ``optimizer``, ``config``, ``online_accuracy`` and ``test_accuracy`` (for regression
        ``online_rmse`` and ``test_rmse``), ``steps``, ``seconds``.
    """
    last = progress.curve[-1]
    kind = "rmse" if task.dataset.regression else "accuracy"
    return {
        "optimizer": task.config.optimizer,
        "config": task.config.as_dict(),
        f"online_{kind}": last.online,
        f"test_{kind}": last.test,
        "steps": progress.step,
        "seconds": progress.seconds,
    }
