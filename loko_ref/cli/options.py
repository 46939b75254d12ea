"""The options that ``train`` and ``lte`` share, and how their texts are read.

One dialect: ``--optimizer NAME,KEY=VALUE,...``, ``--lr``, ``--p0``, ``--rank``, ``--alpha``,
``--hidden 64,32``, ``--size NAME=NUMBER`` and so on mean the same in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loko_ref.checks.values import read_number, read_whole
from loko_ref.errors import InputError, shown, unknown_option
from loko_ref.experiments.config import BASELINES, CLASSES, default_options
from loko_ref.experiments.defaults import FINE_TUNING, FROM_SCRATCH, PRESETS
from loko_ref.kalman.observation import OBSERVATIONS

RUN, NETWORK, LEARNER, OUTPUT = "The run", "Network and LoRA", "Optimizer", "Output"
_TRAIN, _LTE = FINE_TUNING, FROM_SCRATCH
_RATES = ", ".join(f"{name} {rate:g} or {_LTE.lr[name]:g}" for name, rate in _TRAIN.lr.items())


def option(panel: str, text: str, *names: str) -> Any:
    """Return a typer option that stands in a panel of ``--help``."""
    return typer.Option(*names, help=text, rich_help_panel=panel)


_DATA = """digits (default), breast_cancer, wine, iris, diabetes (regression), topics (texts); or
files: mnist:DIR, cifar10:DIR, cifar100:DIR, glue:FILE.tsv, glue:DIR."""
_BATCH = f"Samples per step. Default {_TRAIN.batch} (train), {_LTE.batch} over all heads (lte)."
_NETWORK = "mlp (default), vit (images, in patches), encoder (texts; their default)."
_HIDDEN = "Hidden widths of an mlp, such as 64,32. Default 128,128; tables 32,32."
_SIZE = "NAME=NUMBER of a transformer: layers, width, heads, ff, patch; repeatable."
_RANK = f"""Rank of LoRA, at most the smaller side of every layer. Default {_TRAIN.rank}, or the
smaller side of a narrower layer, with the same alpha / rank."""
_ALPHA = f"LoRA's alpha. Default: rank times {_TRAIN.scale:g} (train), {_LTE.scale:g} (lte)."
_TARGETS = """Linears with LoRA: a name, or its end, such as q; repeatable. Default: all; 'train' of
a transformer: q, v, head.out."""
_INIT = f"""Initialization of A: orthogonal, kaiming, gaussian. Default {_TRAIN.init} (train),
{_LTE.init} (lte)."""
_P0 = f"""LoKO's prior variance. Default with glm: {_TRAIN.p0["glm"]:g} (train),
{_LTE.p0["glm"]:g} (lte)."""
_LR = f"""Learning rate of the first-order optimizers, or NAME=RATE; repeatable. Defaults (train or
lte): {_RATES}."""
_RESUME = (
    "Resume from a checkpoint, with the same options; 'train' takes its own if none are given."
)

Data = Annotated[str | None, option(RUN, _DATA)]
Limit = Annotated[int | None, option(RUN, "Maximum samples in each of base, stream and test.")]
Tokenizer = Annotated[str | None, option(RUN, "glue: a tokenizer.json, not the built-in words.")]
Length = Annotated[int | None, option(RUN, "glue: maximum tokens per sample. Default 64.")]
Batch = Annotated[int | None, option(RUN, _BATCH)]
Dtype = Annotated[str | None, option(RUN, "float64 (default) or float32.")]
Backend = Annotated[str | None, option(RUN, "numpy (default) or cupy.")]
Network = Annotated[str | None, option(NETWORK, _NETWORK)]
Hidden = Annotated[str | None, option(NETWORK, _HIDDEN)]
Activation = Annotated[str | None, option(NETWORK, "By default relu (mlp) or gelu (the others).")]
Size = Annotated[list[str] | None, option(NETWORK, _SIZE)]
Rank = Annotated[int | None, option(NETWORK, _RANK)]
Alpha = Annotated[float | None, option(NETWORK, _ALPHA)]
Targets = Annotated[list[str] | None, option(NETWORK, _TARGETS)]
Init = Annotated[str | None, option(NETWORK, _INIT)]
P0 = Annotated[float | None, option(LEARNER, _P0)]
Lr = Annotated[list[str] | None, option(LEARNER, _LR)]
Json = Annotated[Path | None, option(OUTPUT, "Write the results (loko-ref schema).", "--json")]
Plot = Annotated[Path | None, option(OUTPUT, "Draw the curves: F.svg (or .png).")]
Checkpoint = Annotated[Path | None, option(OUTPUT, "Keep a checkpoint: F.npz or F.safetensors.")]
Resume = Annotated[Path | None, option(OUTPUT, _RESUME)]


def _kinds(kind: type[Any]) -> dict[str, type]:
    """Return for each option of an optimizer the type that its text is read as."""
    fields = (f for f in dataclasses.fields(kind) if f.name != "model")
    unset = {"int | None": int}  # of an option without a number as its default
    return {
        f.name: unset.get(str(f.type), str) if f.default is None else type(f.default)
        for f in fields
    }


def _value(argument: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise InputError(argument, shown(text), "true or false", "a value of another option")
    if kind is float:
        return read_number(argument, text)
    if kind is int:
        return read_whole(argument, text, low=0)
    return text


def parse_pairs(
    argument: str, optimizer: str, words: Iterable[str], classes: Mapping[str, type[Any]] = CLASSES
) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words as options of an optimizer; a bare word names an observation.

    It may name a preset of LoKO's too: ``loko,abstract_reading``.

    ``p0.NAME=VALUE`` gives the prior variance of a factor (``p0.A``, ``p0.B``), a LoRA site, by its
    layer's name (``p0.0``), or a factor of one (``p0.0.A``).  [LOKO-3]

    Parameters
    ----------
    classes : mapping of str to type
        Optimizer -> the class whose fields are its options.

    Examples
    --------
    >>> parse_pairs("--variant", "loko", ["logits", "center=true", "p0.0=0.1", "p0.1=1"])
    {'observation': 'logits', 'center': True, 'p0': {'0': 0.1, '1': 1.0}}
    """
    kinds = _kinds(classes[optimizer])
    presets = PRESETS if optimizer == "loko" else {}
    kinds |= {"preset": str} if presets else {}
    found: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.strip().partition("=")
        if not sign:
            words_of = (*OBSERVATIONS, *presets)
            if optimizer != "loko" or key not in words_of:
                allowed = words_of if optimizer == "loko" else [f"{k}=..." for k in kinds]
                raise unknown_option(argument, key, allowed)
            key, text = "preset" if key in presets else "observation", key
        site = key.removeprefix("p0.") if optimizer == "loko" and key.startswith("p0.") else None
        if site is not None:
            table = found.setdefault("p0", {})
            if not isinstance(table, dict):
                raise InputError(argument, shown(word), "p0 or p0.NAME, not both", "a repeated key")
            table[site] = _value(f"{argument} {key}", text, float)
            continue
        if key not in kinds:
            raise unknown_option(argument, key, kinds)
        if key in found:
            raise InputError(argument, shown(word), f"'{key}' once", "a repeated key")
        found[key] = _value(f"{argument} {key}", text, kinds[key])
    return found


def parse_variants(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Read the values of ``--variant``: options of one LoKO run, or of several.

    A text that begins with the name of an observation model begins a variant of its own; one of
    ``KEY=VALUE`` alone adds to the variant before it.

    Examples
    --------
    >>> parse_variants(["glm", "logits", "beta=0.9,p0=1"])
    [{'observation': 'glm'}, {'observation': 'logits', 'beta': 0.9, 'p0': 1.0}]
    """
    groups: list[list[str]] = []
    for text in texts:
        words = [word for word in text.split(",") if word.strip()]
        if not words:
            raise InputError("--variant", repr(text), "at least one word", "an empty value")
        if not groups or "=" not in words[0]:
            groups.append([])
        groups[-1] += words
    return [parse_pairs("--variant", "loko", words) for words in groups]


def parse_optimizers(
    texts: Sequence[str], classes: Mapping[str, type[Any]] = CLASSES
) -> list[tuple[str, dict[str, Any]]]:
    """Read the values of ``--optimizer``: ``NAME`` or ``NAME,KEY=VALUE,...``.

    Examples
    --------
    >>> parse_optimizers(["adamw", "sgd,lr=0.03,momentum=0.9"])
    [('adamw', {}), ('sgd', {'lr': 0.03, 'momentum': 0.9})]
    """
    found = []
    for text in texts:
        name, *words = text.split(",")
        name = name.strip().lower()
        if name not in classes:
            raise unknown_option("--optimizer", name, classes)
        found.append((name, parse_pairs("--optimizer", name, words, classes)))
    return found


def read_learners(
    texts: Sequence[str],
    *,
    lr: Sequence[str] | None,
    p0: float | None,
    variants: Sequence[str] | None = None,
    classes: Mapping[str, type[Any]] = CLASSES,
) -> list[tuple[str, dict[str, Any]]]:
    """Read ``--optimizer``, ``--lr``, ``--p0`` and ``--variant`` together: each name, and options.

    LoKO without an option is the preset ``recommended``.

    Raises
    ------
    InputError
        If a word cannot be read, is given twice, or is of an optimizer that was left out.

    Examples
    --------
    >>> read_learners(["loko,logits", "sgd"], lr=["0.1"], p0=1.0)
    [('loko', {'p0': 1.0, 'observation': 'logits'}), ('sgd', {'lr': 0.1})]
    """
    named, rates = parse_optimizers(texts, classes), _rates(lr or [])
    names = {name for name, _ in named}
    if "loko" not in names and (variants or p0 is not None):
        argument, required = "--variant" if variants else "--p0", "--optimizer loko too"
        raise InputError(argument, "an option of LoKO", required, "LoKO was left out")
    for name in rates.keys() - names - {""}:
        got, required = f"a rate for {name}", "a rate for one that runs"
        raise InputError("--lr", got, required, "it was left out")
    if "" in rates and names == {"loko"}:
        required = "no learning rate with loko alone"
        raise InputError("--lr", rates[""], required, "LoKO has none: p0 takes its place")
    found = []
    for name, options in named:
        key = "p0" if name == "loko" else "lr"
        common = p0 if name == "loko" else rates.get(name, rates.get(""))
        if key in options and common is not None and (name in rates or len(named) == 1):
            cause = f"a value that was given twice: once as --{key}"
            raise InputError("--optimizer", f"{name},{key}=...", f"one {key} for {name}", cause)
        usual = {} if common is None else {key: common}
        choices = (parse_variants(variants or []) or [{}]) if name == "loko" else [{}]
        found += [(name, usual | choice | options) for choice in choices]
    bare = {"preset": "recommended"}
    return [(name, options or bare if name == "loko" else options) for name, options in found]


def _rates(texts: Sequence[str]) -> dict[str, float]:
    """Read the values of ``--lr``: optimizer, or nothing for all of them -> rate."""
    found = {}
    for text in texts:
        name, sign, number = text.rpartition("=")
        if sign and name not in BASELINES:
            raise unknown_option("--lr", name, BASELINES)
        if name in found:
            raise InputError("--lr", shown(text), "one rate each", "a value that was given twice")
        found[name] = read_number("--lr", number)
    return found


def _count(argument: str, item: str, form: str, text: str) -> int:
    """Read a number of an option that has several words."""
    try:
        return read_whole(argument, text)
    except InputError as error:
        required = f"{form} {error.required}"
        raise InputError(argument, shown(item), required, error.cause) from None


def parse_widths(text: str | None) -> tuple[int, ...] | None:
    """Read the value of ``--hidden``.

    Examples
    --------
    >>> parse_widths("64,32")
    (64, 32)
    """
    if text is None:
        return None
    form = "widths such as 128,128, each"
    return tuple(_count("--hidden", text, form, word) for word in text.split(","))


def parse_sizes(items: Sequence[str] | None) -> dict[str, int] | None:
    """Read the values of ``--size``.

    Examples
    --------
    >>> parse_sizes(["layers=1", "width=16"])
    {'layers': 1, 'width': 16}
    """
    found: dict[str, int] = {}
    for item in items or ():
        key, _, value = item.partition("=")
        if key in found:
            raise InputError("--size", shown(item), f"'{key}' once", "a repeated key")
        found[key] = _count("--size", item, "NAME=NUMBER,", value)
    return found or None


def describe(optimizer: str, options: Mapping[str, Any], regression: bool) -> str:
    """Return an optimizer's name with those of its options that are not the default.

    Examples
    --------
    >>> describe("adamw", default_options("adamw", False, {"lr": 0.01}), False)
    'adamw lr=0.01'
    """
    given = {"observation": options["observation"]} if "observation" in options else {}
    usual = default_options(optimizer, regression, given)
    words = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in options.items()
        if key != "observation" and value != usual[key]
    ]
    if given and options["observation"] != default_options(optimizer, regression)["observation"]:
        words.insert(0, options["observation"])
    return " ".join([optimizer, *words])
