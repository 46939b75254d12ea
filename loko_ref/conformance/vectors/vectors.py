"""Golden vectors: the cases as files, for a language that cannot be called from here.

A folder holds ``manifest.json`` and one safetensors file per case with the tensors ``in.*`` (the
inputs, in the case's dtype; a mapping's entries as ``in.weights.0.W``), ``out.*`` (the oracle's
outputs, float64) and ``tol.*`` (tolerance of every element, float64). Where the set was made with
the extra ``certify``, ``gold.*`` holds the correctly rounded float64 of every exact value and
``bound.*`` a proven bound on its distance from that value; an element whose rounding is not decided
is NaN there, and the manifest lists it.  [BALL-6]

Reading trusts nothing: sizes, names, hashes, heads, shapes and dtypes are checked before a number
is used. :func:`check` derives every entry of the manifest and every tensor again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance.cases.registry import Case, all_cases, select
from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.judge.tolerance import expected, tolerance
from loko_ref.conformance.vectors import enclosure
from loko_ref.conformance.vectors.manifest import NAME, canonical, digest, plain_file, read_manifest
from loko_ref.conformance.vectors.numbers import differs, flatten, golden_unproven, of_file
from loko_ref.errors import InputError
from loko_ref.files.containers import pack_safetensors
from loko_ref.files.documents import document
from loko_ref.files.reading import read_bytes
from loko_ref.files.writing import make_folder, write_bytes
from loko_ref.interop.tensors import read_tensors

VERSION = "vectors/1"
"""Version of the vector set; it changes when a case's numbers do."""

FILE_LIMIT = 64 * 2**20


def file_name(case_id: str) -> str:
    """Name the file of a case: slashes become two dashes."""
    return case_id.replace("/", "--") + ".safetensors"


def _tensors(case: Case, golden: bool) -> dict[str, Array]:
    tensors = flatten("in", case.inputs())
    tensors |= {f"out.{name}": value for name, value in expected(case).items()}
    for name, bound in tolerance(case).items():
        if bound is not None:
            tensors[f"tol.{name}"] = bound
    if golden:
        for name, gold in enclosure.golden(case).items():
            tensors[f"gold.{name}"] = np.where(gold.decided, gold.value, np.nan)
            tensors[f"bound.{name}"] = np.where(gold.decided, gold.bound, np.nan)
    return tensors


def _undecided(tensors: Mapping[str, Array]) -> list[str]:
    """Name the elements whose correctly rounded value is not decided: ``P[0, 3]``."""
    return [
        f"{name.removeprefix('gold.')}{list(map(int, at))}"
        for name, value in sorted(tensors.items())
        if name.startswith("gold.")
        for at in np.argwhere(np.isnan(value))
    ]


def _head(case_id: str) -> dict[str, str]:
    """Return the head of a case's file."""
    return {"id": case_id, "version": VERSION}


def _entry(case: Case, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Return the manifest's entry of a case, but for its file's size and hash."""
    return {
        "id": case.id,
        "operation": case.operation.name,
        "dtype": case.dtype,
        "options": case.options,
        "covers": list(case.recipe.covers),
        "file": file_name(case.id),
        "tensors": {
            name: {"dtype": str(a.dtype), "shape": list(a.shape)}
            for name, a in sorted(tensors.items())
        },
        "undecided": _undecided(tensors),
    }


def _top() -> dict[str, Any]:
    return {"version": VERSION, "catalogue": CATALOGUE}


def export(
    folder: str | Path,
    cases: Sequence[Case],
    progress: Callable[[Case], None] | None = None,
    *,
    only: str = "",
) -> dict[str, Any]:
    """Write cases and their manifest into a new or empty folder.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    progress : callable, optional
        Called after each case.
    only : str
        The glob that selected the cases, for the manifest; empty where they were chosen one by one.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    InputError
        If the folder holds something already, or cannot be written; if there is no case.
    """
    place = make_folder("DIR", folder)
    if any(place.iterdir()):
        raise InputError(
            "DIR", f"{folder}, which is not empty", "a new or empty folder", "an older export"
        )
    if not cases:
        raise InputError("cases", "none", "at least one case", "a selection that matches nothing")
    entries, golden = [], enclosure.available()
    for case in cases:
        tensors = _tensors(case, golden)
        payload = bytes(pack_safetensors(tensors, _head(case.id)))
        write_bytes(place / file_name(case.id), payload)
        known = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        entries.append(_entry(case, tensors) | known)
        if progress is not None:
            progress(case)
    content = _top() | {"only": only, "golden": golden, "cases": entries}
    manifest = document("vectors", content)
    manifest["digest"] = digest(manifest)
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    write_bytes(place / NAME, text.encode())
    return manifest


def _case_tensors(folder: Path, entry: Mapping[str, Any]) -> dict[str, Array]:
    """Read one case's file, every claim about it checked."""
    path = plain_file(folder, entry["file"], FILE_LIMIT)

    def refuse(got: str, required: str, cause: str) -> InputError:
        return InputError(str(path), got, required, cause)

    if entry["file"] != file_name(entry["id"]):
        raise refuse(f"the file of {entry['id']!r:.120}", file_name(entry["id"]), "renamed")
    payload = read_bytes(path, limit=FILE_LIMIT)
    if len(payload) != entry["bytes"]:
        raise refuse(f"{len(payload)} bytes", str(entry["bytes"]), "truncated or grown")
    if hashlib.sha256(payload).hexdigest() != entry["sha256"]:
        raise refuse("another SHA-256", entry["sha256"], "a damaged or exchanged file")
    tensors = read_tensors(path)
    found = {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in tensors.items()}
    if found != entry["tensors"]:
        names = sorted(set(found) ^ set(entry["tensors"])) or sorted(
            n for n in found if found[n] != entry["tensors"][n]
        )
        raise refuse(f"tensor {names[0]!r:.80} unlike the manifest's", "the same", "damaged")
    tensors = {name: np.array(a) for name, a in tensors.items()}
    if pack_safetensors(tensors, _head(entry["id"])) != payload:
        raise refuse(
            "another head than its tensors have", f"one with {_head(entry['id'])}", "edited by hand"
        )
    return tensors


def read(folder: str | Path) -> dict[str, dict[str, Array]]:
    """Read a vector set: case id -> tensors, every file and the manifest's digest checked.

    Raises
    ------
    InputError
        If a file is missing, damaged, truncated, renamed, oversized, surplus or hostile, or the
        manifest is not the one that was written.
    """
    place = Path(folder)
    return _read(place, read_manifest(place))


def _read(place: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
    path = str(place / NAME)
    ids = [entry["id"] for entry in manifest["cases"]]
    if len(set(ids)) != len(ids):
        raise InputError(path, "an id twice", "each id once", "damaged")
    known = {NAME, *(entry["file"] for entry in manifest["cases"])}
    surplus = sorted({path.name for path in place.iterdir()} - known)
    found = {entry["id"]: _case_tensors(place, entry) for entry in manifest["cases"]}
    if surplus:
        raise InputError(
            str(place), f"a file {surplus[0]!r} that no case names", "none", "renamed or added"
        )
    wanted = digest(manifest)
    if manifest["digest"] != wanted:
        raise InputError(
            path,
            f"digest {manifest['digest']:.80}",
            f"{wanted}, that of its content",
            "edited after the export, or damaged",
        )
    return found


def unchecked(folder: str | Path) -> str:
    """Return what :func:`check` cannot derive again here, in a sentence; empty where nothing.

    Raises
    ------
    InputError
        As :func:`loko_ref.conformance.vectors.manifest.read_manifest`.
    """
    if not read_manifest(folder)["golden"] or enclosure.available():
        return ""
    return (
        "gold.* and bound.* were held to the outputs and to each other, not derived again: that "
        "needs the package 'python-flint': pip install 'loko-ref[certify]'"
    )


def check(folder: str | Path, progress: Callable[[str], None] | None = None) -> list[str]:
    """Derive the manifest and every vector again, and compare.

    Every entry of the manifest must agree exactly. Inputs may differ by roundoff, since a BLAS of
    another machine may have drawn them; all else is derived from the inputs as they stand in the
    file. The correctly rounded values must then agree to the bit. Outputs may differ by the
    roundoff of float64, in which they are computed; tolerances by what that roundoff does to them;
    the proven bounds by what an enclosure's width leaves open.

    Returns
    -------
    list of str
        What differs, one sentence each; empty where nothing does.

    Raises
    ------
    InputError
        As :func:`read`.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    found = _read(place, manifest)
    differing = [
        f"manifest: {key} is {manifest[key]!r}, not {value!r}"
        for key, value in _top().items()
        if manifest[key] != value
    ]
    differing += _selection(manifest)
    cases = {case.id: case for case in all_cases()}
    golden = manifest["golden"]
    for entry in manifest["cases"]:
        key = entry["id"]
        if key not in cases:
            differing.append(f"{key:.200}: no case of this version has this id")
            continue
        tensors, case = found[key], of_file(cases[key], found[key])
        fresh = _tensors(case, golden and enclosure.available())
        if golden and not enclosure.available():
            fresh |= {n: a for n, a in tensors.items() if n.startswith(("gold.", "bound."))}
            differing += [f"{key}: {wrong}" for wrong in golden_unproven(case, tensors)]
        for name, value in _entry(case, fresh).items():
            if canonical(entry[name]) != canonical(value):
                shown = f"{canonical(entry[name]):.200}, not {canonical(value):.200}"
                differing.append(f"{key}: {name} is {shown}")
        for name in sorted(set(fresh) | set(tensors)):
            if name not in fresh or name not in tensors:
                differing.append(f"{key}: {name} is on one side only")
                continue
            wrong = differs(case, name, tensors[name], fresh[name])
            if wrong:
                differing.append(f"{key}: {name} {wrong}")
        if progress is not None:
            progress(key)
    return differing


def _selection(manifest: Mapping[str, Any]) -> list[str]:
    """Compare the cases that there are with those that the manifest's glob selects."""
    only, ids = manifest["only"], [entry["id"] for entry in manifest["cases"]]
    if not only:
        return []
    try:
        wanted = [case.id for case in select(only)]
    except InputError:
        return [f"manifest: only is {only!r:.120}, which matches no case"]
    absent = [key for key in wanted if key not in set(ids)]
    surplus = [key for key in ids if key not in set(wanted)]
    found = [f"{key}: a case that {only!r:.120} selects is missing" for key in absent]
    found += [f"{key:.200}: not a case that {only!r:.120} selects" for key in surplus]
    if not found and ids != wanted:
        found.append("manifest: the cases are in another order than the catalogue's")
    return found
