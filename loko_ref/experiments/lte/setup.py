"""From the arguments of ``loko-ref lte`` to a run that is ready: network, data, optimizer, state.

Shapes: x (samples, i), or (samples, t) ids of a text; W (o, i).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array, get_backend
from loko_ref.checks.values import check_choice, check_format, check_whole
from loko_ref.errors import InputError
from loko_ref.experiments.data.bundled import Dataset
from loko_ref.experiments.data.registry import load
from loko_ref.experiments.defaults import FROM_SCRATCH, with_preset
from loko_ref.experiments.lte import checkpoint
from loko_ref.experiments.lte.train import BASELINES, Data, History
from loko_ref.experiments.networks import base_spec, put_lora, shape_of
from loko_ref.lte.config import OPTIMIZERS, LteConfig
from loko_ref.lte.state import LteState, init
from loko_ref.lte.team import Team

STEPS = 480
"""Steps of a run where neither steps nor epochs are given."""

_SAME = {f.name for f in fields(LteConfig)} - {"spec", "optimizer", "data", "loss", "init"}
"""Fields of the configuration that the command's options name alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A run that is ready to begin, or to go on."""

    config: LteConfig
    data: Data
    state: LteState
    start: Mapping[str, Array]
    history: History
    run: Mapping[str, Any]
    steps: int
    batch: int
    checkpoint: Path | None
    baselines: tuple[str, ...]


def _network(arguments: Mapping[str, Any], source: Dataset) -> list[dict[str, Any]]:
    shape = shape_of(
        *(arguments[name] for name in ("data", "network", "hidden", "activation", "size"))
    )
    return put_lora(
        base_spec(shape, source),
        FROM_SCRATCH,
        rank=arguments["rank"],
        alpha=arguments["alpha"],
        targets=arguments["targets"] or (),
        bias=arguments["lora_bias"],
        # a regression has one output: nothing is low-rank about it
        dense_last=arguments["dense_last"] or source.regression,
    )


def _check_together(arguments: Mapping[str, Any]) -> None:
    """Raise for a choice that the mode would not read."""
    for name, usual, mode in (
        ("scaling", "mean", "mhlora"),
        ("merging", "telescoped", "lte"),
        ("filter_merge", "keep", "lte"),
    ):
        if arguments[name] != usual and arguments["mode"] != mode:
            raise InputError(
                name,
                f"'{arguments[name]}' with mode='{arguments['mode']}'",
                f"'{usual}', or mode='{mode}'",
                "a choice of the other mode, which would change nothing",
            )


def _optimizer(name: str, options: Mapping[str, Any], *, regression: bool) -> Any:
    if name != "loko":
        return OPTIMIZERS[name](**{"lr": FROM_SCRATCH.lr[name]} | dict(options))
    usual = {"observation": "gaussian"} if regression else {}
    return OPTIMIZERS[name](**usual | with_preset(options, regression, FROM_SCRATCH))


def _steps(arguments: Mapping[str, Any], per_epoch: int) -> int:
    """Return the steps of the run, from steps or epochs."""
    steps, epochs = arguments["steps"], arguments["epochs"]
    if steps is not None and epochs is not None:
        raise InputError("epochs", epochs, "steps or epochs, not both", "two lengths of one run")
    if epochs is not None:
        check_whole("epochs", epochs)
        steps = epochs * per_epoch
    check_whole("steps", STEPS if steps is None else steps)
    return STEPS if steps is None else int(steps)


def prepare(arguments: Mapping[str, Any], team: Team) -> Job:
    """Turn the command's arguments into a run, from its start or from a checkpoint.

    Parameters
    ----------
    arguments : mapping
        The command's arguments by name; ``hidden``, ``size`` and ``optimizer`` (name and options)
        as values. Base and stream of the data are trained on together.
    team : Team
        Which rank holds which heads.

    Raises
    ------
    InputError
        If an argument cannot be used, or a checkpoint is not of this run.
    """
    for name in arguments["baseline"] or ():
        check_choice("baseline", name, BASELINES)
    _check_together(arguments)
    dtype = "float64" if arguments["dtype"] is None else arguments["dtype"]
    backend = "numpy" if arguments["backend"] is None else arguments["backend"]
    check_format("dtype", dtype)
    check_choice("data_split", arguments["data_split"], ("chunks", "replicated"))
    check_choice("backend", backend, ("numpy", "cupy"))  # balls enclose, and do not train
    like = get_backend(backend).asarray(np.zeros(1, dtype))
    options = {name: arguments[name] for name in ("seed", "limit", "tokenizer", "length")}
    source = load(arguments["data"], dtype=dtype, **options)
    data = Data(
        x=np.concatenate([source.base.x, source.stream.x]),
        y=np.concatenate([source.base.y, source.stream.y]),
        x_test=source.test.x,
        y_test=source.test.y,
    )
    config = LteConfig(
        spec=_network(arguments, source),
        optimizer=_optimizer(*arguments["optimizer"], regression=source.regression),
        data="replicated" if arguments["mode"] == "mhlora" else arguments["data_split"],
        loss="mse" if source.regression else "cross_entropy",
        init=FROM_SCRATCH.init if arguments["init"] is None else arguments["init"],
        **{name: arguments[name] for name in _SAME},
    )
    samples = data.x.shape[0]
    batch = FROM_SCRATCH.batch if arguments["batch"] is None else arguments["batch"]
    if not 1 <= batch <= samples:
        required = f"1 to {samples} samples"
        raise InputError("batch", batch, required, "none, or more than there are")
    if config.data == "chunks" and batch % config.heads:
        raise InputError(
            "batch",
            batch,
            f"a multiple of heads = {config.heads}",
            "every head takes an equal chunk; or use --data-split replicated",
        )
    steps = _steps(arguments, samples // batch)
    each = batch // config.heads if config.data == "chunks" else batch
    run = {"dtype": dtype, "backend": backend, "batch": batch}
    run["data"] = source.digest()  # last, for a dtype changes it too
    state = init(config, batch=each, dtype=dtype, team=team, like=like)
    start, history = state.weights, History()
    if arguments["resume"] is not None:
        state, history = checkpoint.load(arguments["resume"], config, run, team, state)
        if state.step > steps:
            required, cause = f"at least {state.step}, the checkpoint's", "one of a longer run"
            raise InputError("steps", steps, required, cause)
        team.sent = history.sent
    return Job(
        config=config,
        data=data,
        state=state,
        start=start,
        history=history,
        run=run,
        steps=steps,
        batch=batch,
        checkpoint=arguments["checkpoint"],
        baselines=tuple(dict.fromkeys(arguments["baseline"] or ())),
    )
