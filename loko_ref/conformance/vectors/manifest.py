"""The manifest of a set of golden vectors: its form, its digest, and reading it without trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loko_ref.errors import InputError
from loko_ref.files import documents
from loko_ref.files.strict_json import read_json

MANIFEST_SCHEMA = documents.load("vectors")
"""JSON Schema of the manifest."""

MANIFEST_LIMIT = 16 * 2**20
"""Bytes that a manifest may have."""

NAME = "manifest.json"

_APART = ("digest", "versions", "platform")
"""Keys that the digest does not cover: itself, and the platform on which the set was made."""


def canonical(value: Any) -> str:
    """Return JSON with sorted keys, no spaces, in ASCII: 1, 1.0 and true are three values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's canonical JSON without digest, versions and platform."""
    covered = {key: value for key, value in manifest.items() if key not in _APART}
    return hashlib.sha256(canonical(covered).encode("ascii")).hexdigest()


def plain_file(folder: Path, name: str, limit: int) -> Path:
    """Return the path of a plain file of the folder itself, not too large.

    Raises
    ------
    InputError
        If the name leads elsewhere, or there is no plain file of at most `limit` bytes.
    """
    if not name or Path(name).name != name or "\\" in name or "\0" in name or name in (".", ".."):
        raise InputError(
            str(folder),
            f"a file named {name!r:.120}",
            "a plain file name",
            "a path that leaves the folder",
        )
    path = folder / name
    try:
        plain = not path.is_symlink() and path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(str(folder), f"a file named {name!r:.120}", "a file", str(error)) from None
    if not plain:
        raise InputError(str(path), "no such plain file", "a file", "renamed, removed or a link")
    size = path.stat().st_size
    if size > limit:
        raise InputError(
            str(path), f"{size} bytes", f"at most {limit}", "an oversized or foreign file"
        )
    return path


def _matches(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    """Validate against the small part of JSON Schema that the manifest uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, kinds[kind]) or isinstance(value, bool) != (kind == "boolean")
    ):
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
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return f"{where} has {len(value)} entries, which leaves nothing to check"
        for at, item in enumerate(value):
            wrong = _matches(item, schema.get("items", {}), f"{where}[{at}]")
            if wrong:
                return wrong
    return None


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a folder; its form is checked, its digest and claims are not yet.

    Raises
    ------
    InputError
        If it is missing, damaged, of another version, or not a manifest.
    """
    if not Path(folder).is_dir():
        raise InputError("DIR", str(folder), "a folder", "a path misspelt")
    path = plain_file(Path(folder), NAME, MANIFEST_LIMIT)
    manifest = read_json(path, limit=MANIFEST_LIMIT)
    wanted = documents.SCHEMAS["vectors"]
    kind = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(kind, str) and kind.startswith("loko-ref/vectors/") and kind != wanted:
        raise InputError(
            str(path),
            f"schema {kind!r:.80}",
            f"schema '{wanted}'",
            "exported by another version of loko-ref; export it again",
        )
    wrong = _matches(manifest, MANIFEST_SCHEMA, "manifest")
    if wrong:
        raise InputError(
            str(path),
            wrong,
            "what 'loko-ref schema vectors' describes",
            "a damaged file, or one of another program",
        )
    return dict(manifest)
