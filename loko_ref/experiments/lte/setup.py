"""From the arguments of ``loko-ref lte`` to a run that is ready: network, data, optimizer, state.

Shapes: x (samples, i), or (samples, t) ids of a text; W (o, i).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loko_ref.arrays import Array, get_backend
from loko_ref.checks.values import (
    check_choice,
    check_format,
    check_memory,
    check_range,
    check_whole,
    read_number,
    read_whole,
)
from loko_ref.errors import InputError, extras, shown, unknown_option
from loko_ref.experiments.lte import checkpoint
from loko_ref.experiments.lte.train import BASELINES, Data, History
from loko_ref.lte.config import OPTIMIZERS, LteConfig
from loko_ref.lte.state import LteState, init
from loko_ref.lte.team import Team
from loko_ref.network.architectures import SMALL, patch_side, roberta_spec, vit_spec
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.network.spec import linears, map_linears, mlp_spec, param_shapes

__all__ = ["HIDDEN", "LEARNING_RATES", "NETWORKS", "SIZE", "Job", "network", "prepare"]

LEARNING_RATES = {"sgd": 0.1, "adagrad": 0.01, "adamw": 0.002}
"""Defaults, found on digits; LoKO has p0 in its place, :class:`loko_ref.lte.config.Loko`'s own."""

NETWORKS = ("mlp", "vit", "encoder")
"""A perceptron on features; a vision transformer on patches; an encoder of the RoBERTa kind."""

HIDDEN = "128,128"
"""Hidden widths of the perceptron, where none are named."""

DEEPEST = 100
"""Most hidden layers of the perceptron."""

SIZE = (*SMALL, "patch")
"""Of the transformers: blocks, width of a token, heads of the attention, width of the feed-forward;
side of a patch."""

_SAME = (
    "mode",
    "realisation",
    "reset",
    "optimizer_state",
    "filter_merge",
    "scaling",
    "reduction",
    "merging",
    "init",
    "seed",
    "heads",
    "merge_every",
    "replicas",
)


class _Source(Protocol):
    """What is read of a :class:`loko_ref.experiments.data.bundled.Dataset`."""

    @property
    def image(self) -> tuple[int, int, int] | None: ...
    @property
    def vocabulary(self) -> int | None: ...
    @property
    def pad(self) -> int | None: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def outputs(self) -> int: ...
    @property
    def base(self) -> Any: ...
    @property
    def stream(self) -> Any: ...
    @property
    def test(self) -> Any: ...
    def digest(self) -> str: ...


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


def _optimizer(name: str, lr: float | None, options: list[str], regression: bool) -> Any:
    check_choice("optimizer", name, OPTIMIZERS)
    kind = OPTIMIZERS[name]
    known = [f.name for f in fields(kind)]
    truths = [f.name for f in fields(kind) if isinstance(f.default, bool)]
    chosen: dict[str, Any] = {}
    if name == "loko":
        if regression:
            chosen["observation"] = "gaussian"
        if lr is not None:
            raise InputError("lr", lr, "no learning rate with loko", "p0 takes its place")
    else:
        chosen["lr"] = LEARNING_RATES[name] if lr is None else lr
    told = {"lr"} if lr is not None else set()
    for item in options:
        key, _, value = item.partition("=")
        if key not in known:
            raise unknown_option("option", key, known)
        if not value:
            raise InputError("option", repr(item), "NAME=VALUE", "a missing value")
        if key in told:
            raise InputError("option", repr(item), f"one {key}", "a value that was given twice")
        told.add(key)
        lowered = value.lower()
        if lowered in ("true", "false"):
            chosen[key] = lowered == "true"
        elif key in truths:
            raise InputError("option", repr(item), f"{key}=true or {key}=false", "another value")
        else:
            chosen[key] = _number_or_word(item, value)
    return kind(**chosen)


def _number_or_word(item: str, value: str) -> float | str:
    """Read a value: a number where it begins as one, else a choice's name."""
    try:
        float(value)
    except ValueError:
        return value
    return read_number(f"option {shown(item)}", value)


def _widths(text: str, i: int, o: int) -> list[int]:
    words = text.split(",")
    if len(words) > DEEPEST:
        got = f"{len(words)} widths"
        raise InputError("hidden", got, f"at most {DEEPEST} widths", "another option's value")
    return [i, *(_count("hidden", text, "widths such as 128,128, each", w) for w in words), o]


def _count(argument: str, item: str, form: str, text: str) -> int:
    """Read a number of an option that has several words."""
    try:
        return read_whole(argument, text)
    except InputError as error:
        required = f"{form} {error.required}"
        raise InputError(argument, shown(item), required, error.cause) from None


def _size(items: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = dict(SMALL)
    for item in items:
        key, _, value = item.partition("=")
        if key not in SIZE:
            raise unknown_option("size", key, SIZE)
        found[key] = _count("size", item, "NAME=NUMBER,", value)
    return found


def _check_size(argument: str, got: object, spec: list[dict[str, Any]]) -> None:
    """Raise where a network's weights alone are more than a run may ask for."""
    count = sum(math.prod(shape) for shape in param_shapes(spec).values())
    check_memory(argument, got, 2 * count)  # the weights now, and at the last reset


def network(asked: Mapping[str, Any], source: _Source) -> list[dict[str, Any]]:
    """Build the spec that was asked for, with LoRA where it was asked for.

    Parameters
    ----------
    asked : mapping
        ``network``, ``hidden``, ``activation``, ``size``; ``rank``, ``alpha``, ``lora_bias``,
        ``targets``, ``dense_last``.
    source : Dataset
        Says what the inputs are, and how many outputs there are.

    Raises
    ------
    InputError
        If the network cannot read the data, or a rank exceeds a dimension.
    """
    text = source.vocabulary is not None
    name = asked["network"]
    if name is None:
        name = "encoder" if text else "mlp"
    check_choice("network", name, NETWORKS)
    if (name == "encoder") != text or (name == "vit" and source.image is None):
        raise InputError(
            "network",
            repr(name),
            "'encoder' for a text, 'vit' for images, 'mlp' for images and tables",
            "a network that cannot read these data",
        )
    surplus = "size" if name == "mlp" else "hidden"
    if asked[surplus] not in (None, []):
        raise InputError(
            surplus,
            repr(asked[surplus]),
            f"nothing with network '{name}'",
            "--hidden has the widths of a perceptron, --size those of a transformer",
        )
    size = _size(asked["size"])
    side = size.pop("patch", None)
    size["outputs"] = source.outputs
    activation = asked["activation"]
    if activation is None:
        activation = "relu" if name == "mlp" else "gelu"
    check_choice("activation", activation, ACTIVATIONS)
    if name == "mlp":
        hidden = HIDDEN if asked["hidden"] is None else asked["hidden"]
        widths = _widths(hidden, source.base.x.shape[1], source.outputs)
        spec = mlp_spec(widths, activation)
    elif name == "vit":
        assert source.image is not None
        patch = [patch_side(pixels) if side is None else side for pixels in source.image[1:]]
        spec = vit_spec(image=source.image, patch=patch, activation=activation, **size)
    else:
        assert source.vocabulary is not None
        assert source.pad is not None
        spec = roberta_spec(
            vocab=source.vocabulary,
            positions=source.base.x.shape[1] + source.pad + 1,
            pad=source.pad,
            types=0,
            activation=activation,
            **size,
        )
    option = "hidden" if name == "mlp" else "size"
    _check_size(option, asked[option], spec)
    return _with_lora(spec, asked, regression=source.classes is None)


def _with_lora(
    spec: list[dict[str, Any]], asked: Mapping[str, Any], *, regression: bool
) -> list[dict[str, Any]]:
    """Put LoRA on the linears asked for; all of them by default."""
    r = asked["rank"]
    check_whole("rank", r)
    if asked["alpha"] is not None:
        check_range("alpha", asked["alpha"], low_open=True, high_open=True)
    alpha = 2.0 * r if asked["alpha"] is None else asked["alpha"]
    names = [layer["name"] for layer in linears(spec)]
    ends = {name.rsplit(".", 1)[-1] for name in names} | set(names)
    for target in asked["targets"]:
        check_choice("targets", target, sorted(ends))

    def put(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        name, cap = layer["name"], min(layer["in"], layer["out"])
        if asked["targets"] and not {name, name.rsplit(".", 1)[-1]} & set(asked["targets"]):
            return layer
        if name == names[-1] and (asked["dense_last"] or regression):
            return layer  # one output: nothing is low-rank about it; a replica layer
        if r > cap:
            raise InputError(
                "rank",
                r,
                f"at most {cap}, the smaller side of layer {name}",
                "a rank larger than a dimension; --dense-last leaves the last linear without "
                "LoRA, --targets names those that get it",
            )
        return {**layer, "lora": {"r": r, "alpha": float(alpha), "bias": asked["lora_bias"]}}

    return map_linears(spec, put)


def _check_together(asked: Mapping[str, Any]) -> None:
    """Refuse a choice that the mode would not read."""
    for name, usual, mode in (
        ("scaling", "mean", "mhlora"),
        ("merging", "telescoped", "lte"),
        ("filter_merge", "keep", "lte"),
    ):
        if asked[name] != usual and asked["mode"] != mode:
            raise InputError(
                name,
                f"'{asked[name]}' with mode='{asked['mode']}'",
                f"'{usual}', or mode='{mode}'",
                "a choice of the other mode, which would change nothing",
            )


def prepare(asked: Mapping[str, Any], source: _Source, team: Team) -> Job:
    """Turn the command's arguments into a run, from its start or from a checkpoint.

    Parameters
    ----------
    asked : mapping
        The command's arguments by name.
    source : Dataset
        Base and stream together are trained on.
    team : Team
        Who holds what.

    Raises
    ------
    InputError
        If an argument cannot be used, or a checkpoint is not of this run.
    """
    if asked["plot"] is not None:
        extras.load("matplotlib", "a plot")
    for name in asked["baseline"]:
        check_choice("baseline", name, BASELINES)
    _check_together(asked)
    check_whole("steps", asked["steps"])
    check_format("dtype", asked["dtype"])
    check_choice("data_split", asked["data_split"], ("chunks", "replicated"))
    check_choice("backend", asked["backend"], ("numpy", "cupy"))  # balls enclose, and do not train
    like = get_backend(asked["backend"]).asarray(np.zeros(1, asked["dtype"]))
    regression = source.classes is None
    data = Data(
        x=np.concatenate([source.base.x, source.stream.x]),
        y=np.concatenate([source.base.y, source.stream.y]),
        x_test=source.test.x,
        y_test=source.test.y,
    )
    config = LteConfig(
        spec=network(asked, source),
        optimizer=_optimizer(asked["optimizer"], asked["lr"], asked["option"], regression),
        data="replicated" if asked["mode"] == "mhlora" else asked["data_split"],
        loss="mse" if regression else "cross_entropy",
        **{name: asked[name] for name in _SAME},
    )
    batch = asked["batch"]
    if not 1 <= batch <= data.x.shape[0]:
        raise InputError(
            "batch", batch, f"1 to {data.x.shape[0]} samples", "none, or more than there are"
        )
    if config.data == "chunks" and batch % config.heads:
        raise InputError(
            "batch",
            batch,
            f"a multiple of heads = {config.heads}",
            "every head takes an equal chunk; or use --data-split replicated",
        )
    each = batch // config.heads if config.data == "chunks" else batch
    run = {"dtype": asked["dtype"], "backend": asked["backend"], "batch": batch}
    run["data"] = source.digest()  # last, for a dtype changes it too
    state = init(config, batch=each, dtype=asked["dtype"], team=team, like=like)
    start, history = state.weights, History()
    if asked["resume"] is not None:
        state, history = checkpoint.load(asked["resume"], config, run, team, state)
        if state.step > asked["steps"]:
            raise InputError(
                "steps",
                asked["steps"],
                f"at least {state.step}, the checkpoint's",
                "a checkpoint of a longer run",
            )
        team.sent = history.sent
    if team.rank == 0:
        checkpoint.check_place(asked["checkpoint"], asked["resume"])
    return Job(
        config=config,
        data=data,
        state=state,
        start=start,
        history=history,
        run=run,
        steps=asked["steps"],
        batch=batch,
        checkpoint=asked["checkpoint"],
        baselines=tuple(dict.fromkeys(asked["baseline"])),
    )
