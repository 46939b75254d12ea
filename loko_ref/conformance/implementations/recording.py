"""A recorded run of an implementation: read from a file, checked for form.

Array ``k/name`` holds quantity `name` of step k, k = 0, 1, 2, ...; ``k/theta``, ``k/p`` (or
``k/P``) and ``k/R`` hold the state *before* step k, so that step k's posterior is ``k+1/theta`` and
so on. The names are those of the operation ``loko.step``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.checks.values import check_choice, read_number
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.conformance.judge.declared import read_precision
from loko_ref.errors import InputError, shown, unknown_option
from loko_ref.files.containers import parse_npz, parse_safetensors, text_of
from loko_ref.files.reading import map_file, open_file, refuse
from loko_ref.files.strict_json import parse_json
from loko_ref.kalman.lowrank import PRECISIONS
from loko_ref.kalman.noise import check_combination
from loko_ref.textbook.loko import SHAPES

NAMING = (
    "Array 'k/name' is quantity name of step k = 0, 1, ...: k/theta, k/p (or k/P), k/R the state "
    "before step k (so step k's posteriors are k+1/theta, k+1/p, k+1/R), and whatever there is of "
    "k/y, k/z, k/Z, k/p_pred, k/yhat, k/e, k/H, k/R_used (the R in S), k/S, k/K, "
    "k/r (y - h(theta+)), as in 'loko-ref operations loko.step'."
)
"""How a recording is laid out, in a sentence."""

_OPTIONS = {o.name: o for o in OPERATIONS["loko.step"].options if o.name not in ("spec", "blocks")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Quantities by step."""

    steps: Mapping[int, Mapping[str, Array]]  # step -> name -> array, of one dtype
    shapes: Mapping[int, tuple[int, int]]  # step -> (batch, C), where outputs are recorded
    options: Mapping[str, Any]  # all options of the run
    dtype: str  # {"float64", "float32"}: that of every array
    notes: tuple[str, ...]  # arrays that were ignored, and the options in use
    precision: Mapping[str, str]  # the precision that it states, quantity -> format


def load(path: Path) -> tuple[dict[str, Array], str]:
    """Return the arrays of a recording by name, and its options as JSON.

    Raises
    ------
    InputError
        If the file is damaged, or of another kind.
    """
    suffix, form = path.suffix.lower(), "a file that ends in .npz or .safetensors"
    if suffix not in (".npz", ".safetensors"):
        raise refuse(path, "--trace", f"suffix {suffix!r}", form, "a missing or unknown suffix")
    with open_file(path, "--trace") as file:
        if suffix == ".safetensors":
            views, about = parse_safetensors(map_file(file), path, "--trace")
            arrays = {name: np.array(view) for name, view in views.items()}
            return arrays, about.get("options", "{}")
        arrays = parse_npz(file, path, "--trace", texts=("options",))
    head = arrays.pop("options", None)
    if head is None:
        return arrays, "{}"
    try:
        return arrays, text_of(head)
    except ValueError as error:
        got, cause = f"options: {error}", "options stored in another form"
        raise refuse(path, "--trace", got, "one text, as JSON", cause) from None


def _value(name: str, text: str) -> Any:
    """Parse an option's value by the option's type."""
    if name not in _OPTIONS:
        raise unknown_option("--option", name, _OPTIONS)
    option = _OPTIONS[name]
    if option.choices:
        return text.strip('"')
    if isinstance(option.default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    return read_number(f"--option {name}", text)


def _finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def parse_options(head: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options that a recording has, unchecked, and the precision that it states."""
    named = parse_json("--trace, options", head)
    if not isinstance(named, dict):
        raise InputError("--trace, options", shown(head), "a JSON object", "another JSON value")
    return named, read_precision("--trace, options, precision", named.pop("precision", None))


def _options(named: dict[str, Any], given: Sequence[str], dense: bool) -> dict[str, Any]:
    """Return the checked options: the command line's, then those of the file, then defaults."""
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError("--option", repr(item), "NAME=VALUE", "a missing value")
        named[name] = _value(name, value)
    for name, value in named.items():
        if name not in _OPTIONS:
            raise unknown_option("--option", name[:80], _OPTIONS)
        option = _OPTIONS[name]
        if option.choices:
            check_choice(f"--option {name}", value, option.choices)
        kind = bool if isinstance(option.default, bool) else (int, float)
        wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
        if not option.choices and (wrong or not _finite(value)):
            what = "true or false" if kind is bool else "a finite number"
            raise InputError(f"--option {name}", shown(value), what, "a typing error")
        if not option.choices and kind is not bool:
            named[name] = float(value)
    lam, q, beta = (named.get(k, _OPTIONS[k].default) for k in ("lam", "q", "beta"))
    if not (0 < lam <= 1 and q >= 0 and 0 <= beta <= 1):
        got = f"lam={lam}, q={q}, beta={beta}"
        raise InputError("--option", got, "0 < lam <= 1, q >= 0, 0 <= beta <= 1", "a typing error")
    observation = named.setdefault("observation", "gaussian")
    noise = named.setdefault("noise", "glm" if observation == "glm" else "fixed")
    timing = named.setdefault("timing", "after" if noise == "ema_residual_hph" else "before")
    check_combination(observation, noise, timing)
    if named.get("solve") == "implicit" and observation != "glm":
        cause = (
            "the observation was left out: a recording is of 'gaussian' unless it states another"
        )
        raise InputError("--option solve", "'implicit'", "'linear' unless 'glm'", cause)
    if named.get("covariance") in PRECISIONS:
        cause = "a precision, whose U and W are in no recording: 'loko-ref verify' has cases of it"
        got = f"covariance={named['covariance']}"
        raise InputError("--option", got, "covariance=diagonal or covariance=dense", cause)
    covariance = "dense" if dense else "diagonal"
    if named.setdefault("covariance", covariance) != covariance:
        got = f"covariance={named['covariance']}"
        raise InputError("--option", got, f"{covariance}, as recorded", "p stored as P, or P as p")
    return {**{name: o.default for name, o in _OPTIONS.items()}, **named}


def _shape(step: int, arrays: dict[str, Array], n: int) -> tuple[int, int] | None:
    """Check every shape of a step; return (batch, C), or None if no output is recorded."""
    pair = None
    sizes: dict[str, tuple[int, str]] = {"n": (n, "theta")}
    for name in ("y", "z", "yhat"):
        if name in arrays and arrays[name].ndim == 2:
            pair = pair or (arrays[name].shape[0], arrays[name].shape[1])
            sizes.setdefault("m", (arrays[name].size, name))
    for name in ("H", "e", "R", "R_used", "S", "yhat", "Z", "y", "z", "r", "v"):
        if name in arrays and arrays[name].ndim:
            size = arrays[name].size if name in ("y", "z", "yhat") else arrays[name].shape[0]
            sizes.setdefault("m", (size, name))
    if "m" in sizes:
        pair = pair or (1, sizes["m"][0])
    for name, array in arrays.items():
        axes = SHAPES[name]
        if axes == ("batch", "C") or (name == "yhat" and array.ndim == 2):
            allowed = [pair, (pair[1],)] if pair and pair[0] == 1 else [pair]
        else:
            allowed = [tuple(sizes.get(a, (-1, ""))[0] for a in axes)]
        if "m" in sizes or "m" not in axes:
            if array.shape in allowed:
                continue
            source = ", ".join(f"{a} = {s} from {step}/{by}" for a, (s, by) in sizes.items())
            got, wanted = f"shape {array.shape}", f"({', '.join(axes)}), {source}"
            cause = "a transposed or flattened array, or one of another step"
            raise InputError(f"--trace, {step}/{name}", got, wanted, cause)
    return pair


def by_step(
    place: Path, arrays: Mapping[str, Array], known: Collection[str], naming: str
) -> tuple[dict[int, dict[str, Array]], str, list[str]]:
    """Sort a recording's arrays by step, each checked: its name, its dtype, its numbers.

    Parameters
    ----------
    arrays : mapping of str to array
        ``k/name`` -> array.
    known : collection of str
        Names of quantities; others are passed over.
    naming : str
        How a recording is laid out, in a sentence.

    Returns
    -------
    steps : dict of int to dict of str to array
        Step -> name -> array, of one dtype.
    dtype : {"float64", "float32"}
        That of every array.
    notes : list of str
        What was passed over.

    Raises
    ------
    InputError
        If a name, a dtype or a number cannot be used, or no quantity is there.
    """
    steps: dict[int, dict[str, Array]] = {}
    other: dict[str, None] = {}
    kinds: dict[str, str] = {}
    for key, array in arrays.items():
        step, _, name = key.partition("/")
        number = int(step) if step.isascii() and step.isdigit() and len(step) < 10 else -1
        if str(number) != step or not name:
            got = f"an array {key!r:.120}"
            raise refuse(place, "--trace", got, "names such as '0/theta'", naming[:-1])
        if name not in known:
            other[name] = None
            continue
        if array.dtype.kind not in "fiu" or str(array.dtype) == "float16":
            got = f"dtype {array.dtype}"
            raise InputError(f"--trace, {key}", got, "float64 or float32", "another format")
        if array.dtype.kind == "f":
            kinds.setdefault(array.dtype.name, key)  # of either byte order
        if not np.isfinite(array).all():
            where = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
            got = f"{array[where]} at index {list(where)}"
            raise InputError(f"--trace, {key}", got, "finite numbers", "the run had diverged there")
        steps.setdefault(number, {})[name] = array
    if not steps:
        got = "no quantity of any step"
        raise refuse(place, "--trace", got, "names such as '0/theta'", naming[:-1])
    if len(kinds) > 1 or not set(kinds) <= {"float64", "float32"}:
        got = ", ".join(f"{dtype} ({key})" for dtype, key in kinds.items())
        cause = "an array converted before it was recorded"
        raise refuse(place, "--trace", got, "one dtype, float64 or float32", cause)
    dtype = next(iter(kinds), "float64")
    cast = {k: {q: a.astype(dtype) for q, a in one.items()} for k, one in sorted(steps.items())}
    return cast, dtype, [f"ignored: {', '.join(other)}"] if other else []


def read(path: str | Path, given: Sequence[str] = ()) -> Recording:
    """Read a recording of LoKO.

    Parameters
    ----------
    path : path-like
        ``.npz`` or ``.safetensors``. Options as JSON: in an array ``options`` of text (npz), or
        in the metadata's entry ``options`` (safetensors); among them ``precision`` may state that
        of the quantities.
    given : sequence of str
        More options, ``NAME=VALUE``; they override the file's.

    Raises
    ------
    InputError
        If the file is damaged, a name, shape, dtype or value is invalid, or theta is missing.
    """
    return parse(Path(path), *load(Path(path)), given)


def parse(place: Path, arrays: dict[str, Array], head: str, given: Sequence[str] = ()) -> Recording:
    """Check the content of a recording of LoKO, from :func:`load`; as :func:`read`."""
    names = {key.partition("/")[2] for key in arrays}
    dense = bool(names & {"P", "P_pred"})
    if dense and names & {"p", "p_pred"}:
        cause = "the diagonal stored beside the matrix"
        raise refuse(place, "--trace", "both p and P", "one of them", cause)
    named, precision = parse_options(head)
    options = _options(named, given, dense)
    # a v beside the linear step is another's, such as Adam's
    known = {k: axes for k, axes in SHAPES.items() if k != "v" or options["solve"] == "implicit"}
    steps, dtype, notes = by_step(place, arrays, known, NAMING)
    for k, one in steps.items():
        if "theta" not in one or one["theta"].ndim != 1:
            got = f"shape {one['theta'].shape}" if "theta" in one else "nothing"
            cause = "theta before each step was not recorded, or not packed into one vector"
            raise InputError(f"--trace, {k}/theta", got, "an array (n,)", cause)
    n = steps[min(steps)]["theta"].shape[0]
    shapes = {k: _shape(k, one, n) for k, one in steps.items()}
    notes.append("options: " + ", ".join(f"{k}={v}" for k, v in options.items()))
    return Recording(
        steps=steps,
        shapes={k: pair for k, pair in shapes.items() if pair is not None},
        options=options,
        dtype=dtype,
        notes=tuple(notes),
        precision=precision,
    )
