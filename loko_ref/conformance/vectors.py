"""Golden vectors: the cases as files, for a language that cannot be called from here.

A folder holds ``manifest.json`` and one safetensors file a case with the tensors ``in.*`` (the
inputs, in the case's dtype; a mapping's entries as ``in.weights.0.W``), ``out.*`` (the oracle's
outputs, float64) and ``tol.*`` (tolerance of every element, float64). Where the set was made with
the extra ``certify``, ``gold.*`` holds the correctly rounded float64 of every exact value and
``bound.*`` a proven bound on its distance from that value; an element whose rounding is not decided
is NaN there, and the manifest lists it.  [BALL-6]

Reading trusts nothing: sizes, names, hashes, heads, shapes and dtypes are checked before a number
is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loko_ref.arrays import Array
from loko_ref.conformance import enclosure, schema
from loko_ref.conformance.cases import Case, all_cases
from loko_ref.conformance.operations import CATALOGUE
from loko_ref.conformance.tolerance import expected, tolerance
from loko_ref.documents import read_json
from loko_ref.errors import InputError
from loko_ref.interop.tensors import read_tensors, write_tensors
from loko_ref.reading import read_bytes
from loko_ref.writing import make_folder, write_bytes

__all__ = ["MANIFEST_SCHEMA", "VERSION", "check", "export", "file_name", "read"]

VERSION = "vectors/1"
"""Version of the vector set; it changes when a case's numbers do."""

FILE_LIMIT = 64 * 2**20
MANIFEST_LIMIT = 16 * 2**20

MANIFEST_SCHEMA = schema.load("vectors")
"""JSON Schema of the manifest."""


def file_name(case_id: str) -> str:
    """Name the file of a case: slashes become two dashes."""
    return case_id.replace("/", "--") + ".safetensors"


def _flatten(prefix: str, value: Any) -> dict[str, Array]:
    if isinstance(value, Mapping):
        found: dict[str, Array] = {}
        for key, item in value.items():
            found |= _flatten(f"{prefix}.{key}", item)
        return found
    return {prefix: value}


def _tensors(case: Case) -> dict[str, Array]:
    tensors = _flatten("in", case.inputs())
    tensors |= {f"out.{name}": value for name, value in expected(case).items()}
    for name, bound in tolerance(case).items():
        if bound is not None:
            tensors[f"tol.{name}"] = bound
    if enclosure.available():
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


def export(
    folder: str | Path,
    cases: Sequence[Case],
    progress: Callable[[Case], None] | None = None,
) -> dict[str, Any]:
    """Write cases and their manifest into a new or empty folder.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    cases : sequence of Case
        What to write.
    progress : callable, optional
        Called after each case.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    InputError
        If the folder holds something already, or cannot be written.
    """
    place = make_folder("DIR", folder)
    if any(place.iterdir()):
        raise InputError(
            "DIR", f"{folder}, which is not empty", "a new or empty folder", "an older export"
        )
    entries = []
    for case in cases:
        path, tensors = place / file_name(case.id), _tensors(case)
        write_tensors(path, tensors, {"id": case.id, "version": VERSION})
        payload = read_bytes(path)
        entries.append(
            {
                "id": case.id,
                "operation": case.operation.name,
                "dtype": case.dtype,
                "options": case.options,
                "hunts": case.hunts,
                "file": path.name,
                "bytes": len(payload),
                "sha256": hashlib.sha256(payload).hexdigest(),
                "tensors": {
                    name: {"dtype": str(a.dtype), "shape": list(a.shape)}
                    for name, a in sorted(tensors.items())
                },
                "undecided": _undecided(tensors),
            }
        )
        if progress is not None:
            progress(case)
    manifest = {
        "schema": "loko-ref/vectors/1",
        "version": VERSION,
        "catalogue": CATALOGUE,
        "cases": entries,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    write_bytes(place / "manifest.json", text.encode())
    return manifest


def _refuse(where: object, got: str, required: str, cause: str) -> InputError:
    return InputError(str(where), got, required, cause)


def _plain_file(folder: Path, name: str) -> Path:
    """Return the path of a plain file of the folder itself."""
    if not name or Path(name).name != name or "\\" in name or "\0" in name or name in (".", ".."):
        raise _refuse(
            folder, f"a file named {name!r}", "a plain file name", "a path that leaves the folder"
        )
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise _refuse(path, "no such plain file", "a file", "renamed, removed or a link")
    return path


def _matches(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    """Validate against the small part of JSON Schema that the manifest uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int}
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, kinds[kind]) or isinstance(value, bool)):
        return f"{where} is no {kind}"
    if "const" in schema and value != schema["const"]:
        return f"{where} is {value!r:.80}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value!r:.80}, not one of {schema['enum']}"
    if isinstance(value, int) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        return f"{where} is out of range"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        missing = [key for key in schema.get("required", ()) if key not in value]
        if missing:
            return f"{where} lacks '{missing[0]}'"
        for key, item in value.items():
            inner = properties.get(key, schema.get("additionalProperties", True))
            if inner is False:
                return f"{where} has a foreign key {key!r:.80}"
            if isinstance(inner, Mapping):
                wrong = _matches(item, inner, f"{where}.{key:.80}")
                if wrong:
                    return wrong
    if isinstance(value, list) and "items" in schema:
        for at, item in enumerate(value):
            wrong = _matches(item, schema["items"], f"{where}[{at}]")
            if wrong:
                return wrong
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise _refuse("DIR", str(folder), "a folder", "a path misspelt")
    path = _plain_file(folder, "manifest.json")
    manifest = read_json(path, limit=MANIFEST_LIMIT)
    wrong = _matches(manifest, MANIFEST_SCHEMA, "manifest")
    if wrong:
        raise _refuse(path, wrong, "what 'loko-ref vectors schema' says", "damaged, or not ours")
    return dict(manifest)


def _case_tensors(folder: Path, entry: Mapping[str, Any]) -> dict[str, Array]:
    """Read one case's file, every claim about it checked."""
    path = _plain_file(folder, entry["file"])
    if entry["file"] != file_name(entry["id"]):
        raise _refuse(path, f"the file of {entry['id']!r:.120}", file_name(entry["id"]), "renamed")
    payload = read_bytes(path, limit=FILE_LIMIT)
    if len(payload) != entry["bytes"]:
        raise _refuse(path, f"{len(payload)} bytes", str(entry["bytes"]), "truncated or grown")
    if hashlib.sha256(payload).hexdigest() != entry["sha256"]:
        raise _refuse(path, "another SHA-256", entry["sha256"], "a damaged or exchanged file")
    tensors = read_tensors(path)
    found = {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in tensors.items()}
    if found != entry["tensors"]:
        names = sorted(set(found) ^ set(entry["tensors"])) or sorted(
            n for n in found if found[n] != entry["tensors"][n]
        )
        raise _refuse(path, f"tensor {names[0]!r:.80} unlike the manifest's", "the same", "damaged")
    return {name: np.array(a) for name, a in tensors.items()}


def read(folder: str | Path) -> dict[str, dict[str, Array]]:
    """Read a vector set: case id -> tensors, every file checked.

    Raises
    ------
    InputError
        If a file is missing, damaged, truncated, renamed, oversized, surplus or hostile.
    """
    place = Path(folder)
    manifest = _manifest(place)
    ids = [entry["id"] for entry in manifest["cases"]]
    if len(set(ids)) != len(ids):
        raise _refuse(place / "manifest.json", "an id twice", "each id once", "damaged")
    known = {"manifest.json", *(entry["file"] for entry in manifest["cases"])}
    surplus = sorted({path.name for path in place.iterdir()} - known)
    found = {entry["id"]: _case_tensors(place, entry) for entry in manifest["cases"]}
    if surplus:
        raise _refuse(
            place, f"a file {surplus[0]!r} that no case names", "none", "renamed or added"
        )
    return found


def check(folder: str | Path, progress: Callable[[str], None] | None = None) -> list[str]:
    """Derive every vector again and compare.

    Inputs must agree bit for bit; outputs within the case's tolerance; tolerances within a factor
    of 32 (they depend on whether ball arithmetic is installed).

    Returns
    -------
    list of str
        What differs, one sentence each; empty where nothing does.

    Raises
    ------
    InputError
        As :func:`read`.
    """
    cases = {case.id: case for case in all_cases()}
    differing = []
    for key, tensors in read(folder).items():
        if key not in cases:
            differing.append(f"{key}: no case of this version has this id")
            continue
        fresh = _tensors(cases[key])
        for name in sorted(set(fresh) | set(tensors)):
            if name.startswith(("gold.", "bound.")) and not enclosure.available():
                continue  # they can be derived again with the extra 'certify' only
            if name not in fresh or name not in tensors:
                differing.append(f"{key}: {name} is on one side only")
                continue
            wrong = _differs(cases[key], name, tensors[name], fresh[name])
            if wrong:
                differing.append(f"{key}: {name} {wrong}")
        if progress is not None:
            progress(key)
    return differing


def _differs(case: Case, name: str, old: Array, new: Array) -> str | None:
    part, _, quantity = name.partition(".")
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"was {old.dtype}{old.shape}, is {new.dtype}{new.shape}"
    if part == "in":
        return None if old.tobytes() == new.tobytes() else "is another input"
    if part in ("gold", "bound"):  # a bound's last digits depend on the enclosure, no value does
        near = 1e-6 if part == "bound" else 0.0
        same = np.allclose(old, new, rtol=near, atol=0.0, equal_nan=True)
        return None if same else "is not what ball arithmetic proves"
    if not np.isfinite(old).all():
        return "is not finite"
    if part == "tol":
        within = (old <= 32 * new).all() and (new <= 32 * old).all()
        return None if within else "is another tolerance"
    bound = tolerance(case)[quantity]
    if bound is not None and not (np.abs(old - new) <= bound).all():
        return "is beyond its tolerance of what is derived now"
    return None
