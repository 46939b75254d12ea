"""Outputs that were computed elsewhere on the inputs of golden vectors: read without trust.

ANSWERS is a folder with one file for each case that was answered, named as in the vectors
(``lora.delta--tiny--float64``) and ending in ``.npz``, ``.safetensors`` or ``.json``, its arrays
named as the outputs (``delta``, or ``out.delta`` as in the vectors); or one file of all cases, its
arrays named ``lora.delta/tiny/float64/delta``. JSON has an object of such names; in one file of all
cases, an object for each id. An array in JSON is a nested list of numbers, read in the case's
dtype, or an object with ``dtype``, ``shape`` and ``data`` as in ``loko-ref protocol``. A folder may
have a file ``precision.json`` too: the precision that the code states, as an object of quantity and
format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case, all_cases
from loko_ref.conformance.implementations.protocol import ProtocolError, decode_all
from loko_ref.conformance.judge.declared import read_precision
from loko_ref.conformance.vectors.manifest import canonical, plain_file, read_manifest
from loko_ref.conformance.vectors.numbers import flatten, of_file
from loko_ref.conformance.vectors.vectors import FILE_LIMIT, file_name, read
from loko_ref.errors import InputError, closest, shown
from loko_ref.files.containers import parse_npz, parse_safetensors
from loko_ref.files.reading import map_file, open_file, refuse
from loko_ref.files.strict_json import read_json

SUFFIXES = (".npz", ".safetensors", ".json")

PRECISION = "precision.json"
"""File of a folder that states the precision of the answers."""

SMALL = 2**20
"""Most bytes of it."""

WHOLE = 4 * FILE_LIMIT
"""Most bytes of a file of all cases."""


def cases_of(folder: str | Path) -> list[Case]:
    """Return the cases of a set of golden vectors, with the inputs of its files.

    Parameters
    ----------
    folder : path-like
        What ``loko-ref vectors export`` wrote.

    Raises
    ------
    InputError
        If a file is damaged or hostile, or a case is not this version's: its id, its options or
        its inputs, which may differ by the rounding of another machine alone.
    """
    known, found = {case.id: case for case in all_cases()}, []
    manifest, files = read_manifest(folder), read(folder)
    for entry in manifest["cases"]:
        key, tensors = entry["id"], files[entry["id"]]
        cause = "exported by another version of loko-ref; export the vectors again"
        if key not in known:
            raise InputError("DIR", f"a case {shown(key)}", "cases of this version", cause)
        case = of_file(known[key], tensors)
        if canonical(entry["options"]) != canonical(case.options):
            raise InputError("DIR", f"{key} with other options", "those of this version", cause)
        wanted = flatten("in", case.inputs())
        if any(a.tobytes() != tensors.get(name, a[:0]).tobytes() for name, a in wanted.items()):
            raise InputError("DIR", f"{key} with other inputs", "those of this version", cause)
        found.append(case)
    return found


def read_answers(path: str | Path, cases: Sequence[Case]) -> dict[str, dict[str, Array]]:
    """Read the outputs of the cases that were answered.

    Parameters
    ----------
    path : path-like
        A folder or a file, as described at the top of the module.

    Returns
    -------
    dict of str to dict of str to array
        Case id -> output name -> array.

    Raises
    ------
    InputError
        If a file is damaged, hostile or larger than the outputs could be, an array is no array of
        numbers, an answer is to a case that is not among `cases`, or there is no answer at all.
    """
    place, known = Path(path), {case.id: case for case in cases}
    if place.is_dir():
        found = _of_folder(place, known)
    else:
        content = _content(place, WHOLE, known)
        found = {key: _outputs(place, key, arrays) for key, arrays in content.items()}
    if not found:
        cause = "a folder made for answers that were written elsewhere, or a run that wrote none"
        raise refuse(place, "ANSWERS", "no answer", "the outputs of one case of DIR or more", cause)
    return found


def read_stated(path: str | Path) -> dict[str, str]:
    """Return the precision that answers state, quantity -> format; empty for none."""
    place = Path(path)
    if not place.is_dir() or not (place / PRECISION).exists():
        return {}
    document = read_json(plain_file(place, PRECISION, SMALL), "ANSWERS", limit=SMALL)
    return read_precision(f"ANSWERS, {PRECISION}", document)


def _of_folder(place: Path, known: Mapping[str, Case]) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    stems = {file_name(key).removesuffix(".safetensors"): key for key in known}
    for file in sorted(place.iterdir()):
        if file.name == PRECISION:
            continue
        stem, suffix = file.name.removesuffix(file.suffix), file.suffix
        if suffix not in SUFFIXES or stem not in stems:
            raise _unknown(file.name, [stem + SUFFIXES[0] for stem in stems], "a file")
        key = stems[stem]
        if key in found:
            got = f"{file.name!r}, a second file of {key}"
            raise refuse(place, "ANSWERS", got, "one file for each case", "an older answer")
        one = plain_file(place, file.name, FILE_LIMIT)
        found[key] = _outputs(one, key, _content(one, FILE_LIMIT, {"": known[key]})[""])
    return found


def _unknown(name: str, known: Sequence[str], what: str) -> InputError:
    cause = "the vectors themselves, in place of outputs" if name == "manifest.json" else ""
    near = closest(name, known)
    cause = cause or (f"a typing error; the closest is '{near}'" if near else "another set's")
    required = f"{what} that answers a case of DIR, such as '{known[0]}'"
    return InputError("ANSWERS", f"{what} {shown(name)}", required, cause)


def _content(path: Path, limit: int, known: Mapping[str, Case]) -> dict[str, dict[str, Array]]:
    """Return the arrays of a file by case id and name; ids are "" in a file of one case."""
    suffix = path.suffix
    if suffix not in SUFFIXES:
        required = f"a folder, or a file that ends in {', '.join(SUFFIXES)}"
        raise InputError("ANSWERS", shown(str(path)), required, "another file, or a wrong path")
    if suffix == ".json":
        document = read_json(path, "ANSWERS", limit=limit)
        one = {"": document} if "" in known else document
        return dict(_from_json(path, one, known))
    with open_file(path, "ANSWERS", limit) as file:
        if suffix == ".npz":
            arrays = parse_npz(file, path, "ANSWERS")
        else:
            views, _ = parse_safetensors(map_file(file), path, "ANSWERS")
            arrays = {name: np.array(view) for name, view in views.items()}
    if "" in known:
        return {"": arrays}
    found: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        key, _, output = name.rpartition("/")
        if key not in known:
            raise _unknown(name, [f"{case.id}/{_first(case)}" for case in known.values()], "array")
        found.setdefault(key, {})[output] = array
    return found


def _first(case: Case) -> str:
    return case.operation.outputs[0].name


def _from_json(
    path: Path, document: Any, known: Mapping[str, Case]
) -> Iterator[tuple[str, dict[str, Array]]]:
    if not isinstance(document, Mapping):
        got, cause = "JSON that is no object", "outputs without the id of their case"
        raise refuse(path, "ANSWERS", got, "an object with an entry for each case", cause)
    for key, outputs in document.items():
        if key not in known:
            raise _unknown(key, list(known), "an entry")
        if not isinstance(outputs, Mapping):
            got = f"{key or 'a file'} without an object of outputs"
            raise refuse(path, "ANSWERS", got, "output name -> array", "an array without its name")
        dtype = known[key].dtype
        try:
            yield key, {name: _array(value, name, dtype) for name, value in outputs.items()}
        except (ProtocolError, ValueError, OverflowError, TypeError) as error:
            got = f"{key}: {error}"[:300].removeprefix(": ")
            required = "a nested list of numbers, or an object with dtype, shape and data"
            cause = "rows of different lengths, or a value that is no number"
            raise refuse(path, "ANSWERS", got, required, cause) from None


def _array(value: Any, name: str, dtype: str) -> Array:
    if isinstance(value, Mapping):
        return decode_all({name: value}, None, FILE_LIMIT)[name]
    array = np.array(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds what is no number")
    return array.astype(dtype)


def _outputs(path: Path, key: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return outputs by their names, in the byte order of this machine."""
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        if name.startswith(("in.", "tol.", "gold.", "bound.")):
            got, cause = f"an array {name!r:.80}", "a file of the vectors themselves"
            raise refuse(path, "ANSWERS", got, "outputs alone", cause)
        output = name.removeprefix("out.")
        if output in found:
            got = f"{key}: {output} and out.{output}"
            raise refuse(path, "ANSWERS", got, "each output once", "an older answer")
        found[output] = array.astype(array.dtype.newbyteorder("="))
    return found
